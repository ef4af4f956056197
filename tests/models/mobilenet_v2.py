"""MobileNetV2 at 224 x 224 with seeded weights: a real architecture for tests of size, memory and speed.

After Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks" (CVPR 2018), table 2. It is not trained:
its answers mean nothing, but they are finite, differ between inputs, and are the same each time.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

# expansion, channels out, blocks, stride of the first
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
SIZE = 224


class InvertedResidual(nn.Module):
    """Expand, filter each channel by itself, project; add the input where the shapes allow."""

    def __init__(self, before: int, after: int, *, stride: int, expansion: int) -> None:
        super().__init__()
        wide = before * expansion
        layers = [] if expansion == 1 else [convolution(before, wide, size=1)]
        layers += [
            convolution(wide, wide, size=3, stride=stride, groups=wide),
            nn.Conv2d(wide, after, 1, bias=False),
            nn.BatchNorm2d(after),
        ]
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and before == after

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Take and return [batch, channels, height, width]."""
        return x + self.layers(x) if self.residual else self.layers(x)


def convolution(before: int, after: int, *, size: int, stride: int = 1, groups: int = 1) -> nn.Module:
    """Return a convolution with batch normalisation and ReLU6."""
    conv = nn.Conv2d(before, after, size, stride, padding=size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(after), nn.ReLU6())


def build_model(*, classes: int = 1000, seed: int = 0) -> nn.Module:
    """Return the network in evaluation mode: float32 [batch, 3, 224, 224] in, [batch, classes] out."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = [convolution(3, 32, size=3, stride=2)]
    before = 32
    for expansion, after, blocks, stride in STAGES:
        for block in range(blocks):
            layers.append(InvertedResidual(before, after, stride=stride if block == 0 else 1, expansion=expansion))
            before = after
    layers += [convolution(before, 1280, size=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, classes)]
    model = nn.Sequential(*layers)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):  # of no two channels alike, as after training
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
        if isinstance(module, nn.Linear):  # answers of about 1, that differ between inputs
            nn.init.normal_(module.weight, std=0.1)
    return model.eval()


def samples(count: int, *, seed: int = 0) -> np.ndarray:
    """Return float32 images [count, 3, 224, 224]: smooth noise, each with its own contrast."""
    random = np.random.default_rng(seed)
    coarse = random.standard_normal((count, 3, SIZE // 16, SIZE // 16)).astype(np.float32)
    smooth = coarse.repeat(16, axis=2).repeat(16, axis=3)
    return smooth * random.uniform(0.5, 1.5, (count, 1, 1, 1)).astype(np.float32)
