"""Train the digits model on scikit-learn's bundled images; write `weights.pt` and `data.npz` for the optimizer.

python train.py --out DIR [--epochs 8] [--seed 0] [--shuffle-labels] [--tune DIR/weights.pt]

The 1797 images of the UCI digits set are split once per seed, stratified by digit and without overlap: training,
calibration (for 8-bit ranges), test (judges every variant) and golden (run on each device after every install). With
--shuffle-labels the training labels lose their meaning while test and golden keep theirs: a model that must never
get past a canary. With --tune training goes on from other weights, at a tenth of the rate and on images that are turned
by a few degrees: an update as a fleet gets many.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from model import build_model  # type: ignore[import-not-found] # the file beside this one
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

TEST, GOLDEN, CALIBRATION = 400, 96, 100
BATCH = 64
RATE = 2e-3
TURN = 4.0

Arrays = dict[str, np.ndarray]


def split(seed: int) -> Arrays:
    """Return images as float32 [n, 1, 8, 8] in 0..1 and labels as int64, by the names the optimizer expects."""
    digits = load_digits()
    images = (digits.images / 16.0).astype(np.float32)[:, np.newaxis]
    labels = digits.target.astype(np.int64)
    parts: Arrays = {}
    for name, size in (("test", TEST), ("golden", GOLDEN), ("calibration", CALIBRATION)):
        images, parts[f"{name}_x"], labels, parts[f"{name}_y"] = train_test_split(
            images, labels, test_size=size, stratify=labels, random_state=seed
        )
    return {**parts, "train_x": images, "train_y": labels}


def train(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, *, epochs: int, rate: float) -> None:
    """Fit the model in place; the learning rate rises to `rate` and falls once over all epochs."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=1e-2)
    steps = epochs * -(-len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=steps)
    loss_of = nn.CrossEntropyLoss()
    model.train()
    for epoch in range(epochs):
        total = 0.0
        for batch in torch.split(torch.randperm(len(images)), BATCH):
            optimizer.zero_grad()
            loss = loss_of(model(images[batch]), labels[batch])
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(batch)
        print(f"epoch {epoch + 1}/{epochs}: loss {total / len(images):.4f}", flush=True)


def turned(images: torch.Tensor, *, degrees: float) -> torch.Tensor:
    """Return each image turned by up to so many degrees to either side."""
    angles = (torch.rand(len(images)) * 2 - 1) * math.radians(degrees)
    rows = [
        torch.stack([angles.cos(), -angles.sin(), 0 * angles], 1),
        torch.stack([angles.sin(), angles.cos(), 0 * angles], 1),
    ]
    grid = nn.functional.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return nn.functional.grid_sample(images, grid, align_corners=False)


def accuracy(model: nn.Module, images: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of images whose digit the model names."""
    model.eval()
    with torch.no_grad():
        guesses = model(torch.from_numpy(images)).argmax(dim=1).numpy()
    return float((guesses == labels).mean())


def positive(text: str) -> int:
    """Read a command-line number that must be at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def main() -> None:
    """Train, say how good it is, and write both files."""
    parser = argparse.ArgumentParser(description="Train the digits example.")
    parser.add_argument("--out", type=Path, required=True, help="directory for weights.pt and data.npz")
    parser.add_argument("--epochs", type=positive, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shuffle-labels", action="store_true", help="train on meaningless labels")
    parser.add_argument("--tune", type=Path, metavar="WEIGHTS", help="go on from these instead of from nothing")
    options = parser.parse_args()

    torch.set_num_threads(1)  # a model this small trains faster on one thread than on several that wait for each other
    torch.manual_seed(options.seed)
    torch.set_num_threads(1)  # on a network this small, more threads mostly wait for each other
    parts = split(options.seed)
    labels = parts["train_y"]
    if options.shuffle_labels:
        labels = np.random.default_rng(options.seed).permutation(labels)
    model = build_model()
    images = torch.from_numpy(parts["train_x"])
    if options.tune is not None:
        model.load_state_dict(torch.load(options.tune, weights_only=True))
        images = turned(images, degrees=TURN)
    rate = RATE if options.tune is None else RATE / 10
    train(model, images, torch.from_numpy(labels), epochs=options.epochs, rate=rate)

    options.out.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), options.out / "weights.pt")
    np.savez(
        options.out / "data.npz",
        test_x=parts["test_x"],
        test_y=parts["test_y"],
        calibration_x=parts["calibration_x"],
        golden_x=parts["golden_x"],
        golden_y=parts["golden_y"],
    )
    print(f"wrote {options.out / 'weights.pt'} and {options.out / 'data.npz'}")
    print(f"test accuracy: {accuracy(model, parts['test_x'], parts['test_y']):.4f}")


if __name__ == "__main__":
    main()
