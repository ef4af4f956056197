"""A small convolutional network for 8 x 8 images of handwritten digits.

`skerry model optimize` imports this file and calls `build_model`; `train.py` beside it trains what it returns.
"""

from __future__ import annotations

from torch import nn


def build_model() -> nn.Module:
    """Return the untrained network: float32 images [batch, 1, 8, 8] in, ten logits out.

    Nearly all of its 8 MB of weights lie in two wide layers: what 8-bit weights shrink most.
    """
    return nn.Sequential(
        nn.Conv2d(1, 32, kernel_size=3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 64, kernel_size=3, padding=1),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 4 * 4, 1280),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Linear(1280, 512),
        nn.ReLU(),
        nn.Linear(512, 10),
    )
