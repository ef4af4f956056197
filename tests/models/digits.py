"""Small networks for scikit-learn's digits, trained in seconds in each framework; seeded."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

BUILDER = """
from torch import nn


def build_model():
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10),
    )
"""


def split() -> dict[str, np.ndarray]:
    """Return images as float32 [n, 1, 8, 8] in 0..1 and labels int64 [n], by the names of the data's layout."""
    digits = load_digits()
    images, labels = (digits.images / 16).astype(np.float32)[:, None], digits.target.astype(np.int64)
    parts = {}
    for name, size in (("test", 400), ("golden", 64), ("calibration", 100)):
        images, parts[f"{name}_x"], labels, parts[f"{name}_y"] = train_test_split(
            images, labels, test_size=size, stratify=labels, random_state=0
        )
    return {**parts, "train_x": images, "train_y": labels}


def write_data(path: Path, *, channels_last: bool = False, flat: bool = False) -> Path:
    """Write `data.npz` in the layout that the framework's model takes."""
    arrays = split()
    for name in [name for name in arrays if name.endswith("_x")]:
        if channels_last:
            arrays[name] = np.moveaxis(arrays[name], 1, -1)
        if flat:
            arrays[name] = arrays[name].reshape(len(arrays[name]), 64)
    np.savez(path, **arrays)
    return path


def train_torch(directory: Path, *, epochs: int = 8) -> tuple[str, Path, Any]:
    """Write a builder and weights; return `file.py:function`, the weights' file and the module in evaluation mode."""
    import torch

    torch.manual_seed(0)
    (directory / "model.py").write_text(BUILDER)
    space: dict[str, Any] = {}
    exec(BUILDER, space)
    module = space["build_model"]()
    data = split()
    images, labels = torch.from_numpy(data["train_x"]), torch.from_numpy(data["train_y"])
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(module(images[batch]), labels[batch]).backward()
            optimizer.step()
    torch.save(module.state_dict(), directory / "weights.pt")
    return f"{directory}/model.py:build_model", directory / "weights.pt", module.eval()


def train_keras(file: Path, *, epochs: int = 8) -> Any:
    """Write a `.keras` file and return the model."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras

    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1), name="image"),
            keras.layers.Conv2D(16, 3, padding="same", use_bias=False),
            keras.layers.BatchNormalization(momentum=0.8),
            keras.layers.ReLU(),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(10, name="scores"),
        ]
    )
    model.compile(keras.optimizers.Adam(3e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    data = split()
    model.fit(np.moveaxis(data["train_x"], 1, -1), data["train_y"], batch_size=64, epochs=epochs, verbose=0)
    model.save(file)
    return model
