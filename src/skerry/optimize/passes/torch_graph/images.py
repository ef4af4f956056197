"""Operators on images: convolution, pooling, resizing, in one, two or three dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from skerry.optimize.passes.torch_graph.steps import Node, Step

_CONVOLUTIONS = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
_TRANSPOSED = (torch.nn.ConvTranspose1d, torch.nn.ConvTranspose2d, torch.nn.ConvTranspose3d)
_MAX = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)
_AVERAGE = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)


def convolution(node: Node) -> None:
    """Conv with constant weights."""
    weights = node.known(1, "weights")
    window, (strides, dilations) = weights.shape[2:], _each(node, weights.ndim - 2, "strides", "dilations")
    value, padding = _padded(node, window, strides, dilations)
    make = _CONVOLUTIONS[len(window) - 1]
    groups = int(node.attribute("group", 1))
    sizes = weights.shape[1] * groups, len(weights), window, strides, padding, dilations, groups
    node.put_layer(_filled(node, _empty(make, *sizes, bias=node.has(2))), value)


def transposed_convolution(node: Node) -> None:
    """ConvTranspose with constant weights, padded evenly."""
    weights = node.known(1, "weights")
    count = weights.ndim - 2
    window, (strides, dilations) = weights.shape[2:], _each(node, count, "strides", "dilations")
    pads = node.attribute("pads", [0] * (2 * count))
    if list(pads[:count]) != list(pads[count:]) or node.attribute("auto_pad", "NOTSET") not in {"NOTSET", "VALID"}:
        raise node.unsupported("is not padded evenly")
    padding = tuple(int(pad) for pad in pads[:count])
    given, wanted = node.shape(0).sizes[2:], node.output_shape().sizes[2:]
    more = tuple(
        wanted[i] - ((given[i] - 1) * strides[i] - 2 * padding[i] + dilations[i] * (window[i] - 1) + 1)
        for i in range(count)
    )
    groups = int(node.attribute("group", 1))
    make = _TRANSPOSED[count - 1]
    sizes = len(weights), weights.shape[1] * groups, window, strides, padding, more, groups
    layer = _empty(make, *sizes, bias=node.has(2), dilation=dilations)
    node.put_layer(_filled(node, layer), 0)


def max_pool(node: Node) -> None:
    """MaxPool."""
    if any(node.outputs[1:]):
        raise node.unsupported("gives indices")
    window = [int(size) for size in node.attribute("kernel_shape")]
    strides, dilations = _each(node, len(window), "strides", "dilations")
    value, padding = _padded(node, window, strides, dilations, filler=float("-inf"))
    call = _MAX[len(window) - 1]
    if any(2 * pad > size for pad, size in zip(padding, window, strict=True)):
        raise node.unsupported("is padded by more than half of its window")
    node.put(partial(call, kernel_size=window, stride=strides, padding=padding, dilation=dilations), value)


def average_pool(node: Node) -> None:
    """AveragePool, padded evenly."""
    window = [int(size) for size in node.attribute("kernel_shape")]
    strides, dilations = _each(node, len(window), "strides", "dilations")
    if any(size != 1 for size in dilations):
        raise node.unsupported("is dilated")
    value, padding = _padded(node, window, strides, dilations)
    if value != node.value(0) or any(2 * pad > size for pad, size in zip(padding, window, strict=True)):
        raise node.unsupported("is not padded evenly")
    counted = bool(node.attribute("count_include_pad", 0))
    call = partial(_AVERAGE[len(window) - 1], kernel_size=window, stride=strides, padding=padding)
    node.put(partial(call, count_include_pad=counted), value)


def global_average_pool(node: Node) -> None:
    """GlobalAveragePool."""
    axes = list(range(2, len(node.shape(0).sizes)))
    if len(axes) == 2:
        node.put(partial(functional.adaptive_avg_pool2d, output_size=1), 0)
    else:
        node.put(partial(torch.mean, dim=axes, keepdim=True), 0)


def global_max_pool(node: Node) -> None:
    """GlobalMaxPool."""
    node.put(partial(torch.amax, dim=list(range(2, len(node.shape(0).sizes))), keepdim=True), 0)


def batch_normalization(node: Node) -> None:
    """BatchNormalization that no convolution has taken in: a product and a sum per channel."""
    scale, offset, mean, variance = (node.known(i, "parameters").astype(np.float64) for i in range(1, 5))
    factor = scale / np.sqrt(variance + float(node.attribute("epsilon", 1e-5)))
    ones = (1,) * (len(node.shape(0).sizes) - 2)
    parts = (factor, offset - mean * factor)
    held = [node.held(part.astype(node.dtype()).reshape(-1, *ones), f"part{i}") for i, part in enumerate(parts)]
    node.put(lambda value, times, plus: value * times + plus, 0, *held)


def instance_normalization(node: Node) -> None:
    """InstanceNormalization: each channel by itself."""
    _normalize(node, node.shape(0).sizes[1])


def group_normalization(node: Node) -> None:
    """GroupNormalization, with a factor for each channel; before operator set 21 each group had one."""
    if len(node.known(1, "factors")) != node.shape(0).sizes[1]:
        raise node.unsupported("has a factor for each group")
    _normalize(node, int(node.attribute("num_groups")))


def resize(node: Node) -> None:
    """Resize of height and width: nearest, bilinear or bicubic, as PyTorch does it."""
    mode, way = node.attribute("mode", "nearest"), node.attribute("coordinate_transformation_mode", "half_pixel")
    before, after = node.shape(0).sizes, node.output_shape().sizes
    if len(after) != 4 or node.shape(0).free[1:] != node.output_shape().free[1:] or before[:2] != after[:2]:
        raise node.unsupported("resizes more than height and width")
    whole = all(new % old == 0 for old, new in zip(before[2:], after[2:], strict=True))
    nearest = mode == "nearest" and (
        (way == "asymmetric" and node.attribute("nearest_mode", "round_prefer_floor") == "floor")
        or (way == "half_pixel" and whole)  # the pixels are the same ones
    )
    linear = mode == "linear" and way in {"half_pixel", "pytorch_half_pixel", "align_corners"}
    cubic = (
        mode == "cubic"
        and way in {"half_pixel", "pytorch_half_pixel", "align_corners"}
        and abs(node.attribute("cubic_coeff_a", -0.75) + 0.75) < 1e-6  # PyTorch's
        and not node.attribute("exclude_outside", 0)
    )
    if not (nearest or linear or cubic) or node.attribute("antialias", 0):
        raise node.unsupported(f"resizes in the mode {mode}, {way}")
    size = list(after[2:])
    if nearest:
        node.put(partial(functional.interpolate, size=size, mode="nearest"), 0)
    else:
        corners, name = way == "align_corners", "bicubic" if cubic else "bilinear"
        node.put(partial(functional.interpolate, size=size, mode=name, align_corners=corners), 0)


def _normalize(node: Node, groups: int) -> None:
    held = [node.held(node.known(i, "parameters"), f"part{i}") for i in (1, 2)]
    epsilon = float(node.attribute("epsilon", 1e-5))
    node.put(lambda value, scale, bias: torch.group_norm(value, groups, scale, bias, epsilon), 0, *held)


def _empty(make: Any, *sizes: Any, **more: Any) -> torch.nn.Module:
    layer: torch.nn.Module = torch.nn.utils.skip_init(make, *sizes, **more)  # type: ignore[no-untyped-call]
    return layer


def _filled(node: Node, layer: Any) -> torch.nn.Module:
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(node.known(1, "weights").copy()))
        if node.has(2):
            layer.bias.copy_(torch.from_numpy(node.known(2, "bias").copy()))
    made: torch.nn.Module = layer
    return made


def _each(node: Node, count: int, *names: str) -> list[tuple[int, ...]]:
    """Return attributes with one number for each of an image's dimensions."""
    if not 1 <= count <= 3:
        raise node.unsupported(f"works over {count} dimensions")
    return [tuple(int(size) for size in node.attribute(name, (1,) * count)) for name in names]


def _padded(
    node: Node, window: Sequence[int], strides: Sequence[int], dilations: Sequence[int], *, filler: float = 0.0
) -> tuple[str, tuple[int, ...]]:
    """Return the image, padded if it has to be done unevenly, and the padding that is left to the operator.

    What lies behind follows from the output's size: automatic padding and rounding up need no case of their own.
    """
    count = len(window)
    given, wanted = node.shape(0).sizes[2:], node.output_shape().sizes[2:]
    automatic, pads = node.attribute("auto_pad", "NOTSET"), node.attribute("pads", (0,) * (2 * count))
    amounts, even = [], True
    for i in range(count):
        reach = (window[i] - 1) * dilations[i] + 1
        needed = max((wanted[i] - 1) * strides[i] + reach - given[i], 0)
        before = {"SAME_UPPER": needed // 2, "SAME_LOWER": needed - needed // 2, "VALID": 0}.get(
            automatic, int(pads[i])
        )
        even &= (given[i] + 2 * before - reach) // strides[i] + 1 == wanted[i]
        amounts.append((before, max(needed - before, 0)))
    if even:
        return node.value(0), tuple(before for before, _ in amounts)
    name, flat = f"{node.name}::padded", [size for pair in amounts[::-1] for size in pair]
    node.plan.put(Step(lambda value: functional.pad(value, flat, value=filler), (node.value(0),), (name,)))
    return name, (0,) * count
