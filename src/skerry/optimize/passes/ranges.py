"""Ranges of activations: what values each tensor of a graph takes on calibration samples.

Three ways to a range: `min-max` takes every value seen, `percentile` leaves out a share of the largest and smallest,
`entropy` clips where the clipped, rounded distribution stays nearest to the true one (Kullback-Leibler; the idea is
NVIDIA's, S. Migacz, "8-bit Inference with TensorRT", 2017). Histograms are filled batch by batch, so that memory stays
within a bound whatever the number of samples. Must not live here: what is done with the ranges (`quantize`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import onnx
import onnxruntime

from skerry.api.errors import InvalidError
from skerry.optimize import graph
from skerry.optimize.arrays import Array
from skerry.optimize.foreign import first_line
from skerry.optimize.passes.material import Inputs, first

Method = Literal["min-max", "entropy", "percentile"]
Range = tuple[float, float]

BATCH = 32
HELD_BYTES = 256 * 1024**2
"""Intermediate tensors of one batch that are held at the same time while histograms are filled, about."""
BINS = 2048
LEVELS = 128
"""Steps of a quantised value on one side of zero; what entropy compares the histogram with."""
FILLED = 8
"""Values per bin that the entropy wants on average; with fewer samples the bins become wider."""
STRIDE = 16
"""Bins between two candidates for the entropy's threshold."""

_LOW, _HIGH = "skerry.low:", "skerry.high:"


def check(model: onnx.ModelProto, samples: Inputs) -> None:
    """Compare calibration samples with the graph's inputs. Raises InvalidError, naming the tensor."""
    wanted = graph.signature(model).inputs
    dtypes = {v.name: onnx.helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type) for v in model.graph.input}
    for spec in wanted:
        element = f"calibration samples of tensor {spec.name}"
        if spec.name not in samples:
            raise InvalidError("are missing", element=element, hint="give one array per input of the model")
        array = samples[spec.name]
        fits = array.ndim == len(spec.shape) and all(
            size in {-1, given} for size, given in zip(spec.shape[1:], array.shape[1:], strict=True)
        )
        if not fits or len(array) == 0:
            shapes = f"have shape {list(array.shape)}, the model takes {spec.shape}"
            raise InvalidError(shapes, element=element, hint="prepare them as the model's inputs")
        if array.dtype != dtypes[spec.name]:
            cause = f"are {array.dtype.name}, the model takes {dtypes[spec.name].name}"
            raise InvalidError(cause, element=element, hint="prepare them as the model's inputs")
        if len(array) != len(samples[wanted[0].name]):
            raise InvalidError("differ in number from the other inputs'", element=element)
    unknown = sorted(set(samples) - {spec.name for spec in wanted})
    if unknown:
        raise InvalidError("the model has no such input", element=f"calibration samples of tensor {unknown[0]}")


def measure(
    model: onnx.ModelProto, samples: Inputs, *, method: Method = "min-max", percentile: float = 99.99
) -> Mapping[str, Range]:
    """Return (lowest, highest) of every float tensor that nodes compute or take. Raises InvalidError.

    `percentile` is the share of values, in percent, that stays inside.
    """
    check(model, samples)
    tensors = _float_tensors(model)
    extremes = _extremes(model, samples, tensors)
    if method == "min-max":
        return extremes
    histograms = _histograms(model, samples, extremes)
    narrow = _entropy if method == "entropy" else _percentile
    return {name: narrow(histograms[name], extremes[name], percentile) for name in extremes}


def batches(samples: Inputs, size: int) -> Iterator[Inputs]:
    """Cut samples into batches, the last one shorter."""
    count = len(next(iter(samples.values())))
    for start in range(0, count, size):
        yield {name: np.ascontiguousarray(array[start : start + size]) for name, array in samples.items()}


def session(model: onnx.ModelProto, *, optimise: bool = True) -> onnxruntime.InferenceSession:
    """Load a graph in ONNX Runtime, on the CPU. Raises InvalidError."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(graph.serialise(model), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the engine's exception types have no public root
        raise InvalidError(f"ONNX Runtime cannot load it ({first_line(error)})") from error


def _float_tensors(model: onnx.ModelProto) -> list[str]:
    constants = {tensor.name for tensor in model.graph.initializer}
    constants |= {output for node in model.graph.node if node.op_type == "Constant" for output in node.output}
    known = (*model.graph.value_info, *model.graph.input, *model.graph.output)
    floats = {value.name for value in known if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT} - constants
    used = [name for node in model.graph.node for name in (*node.input, *node.output)]
    return [name for name in dict.fromkeys(used) if name in floats]


def _extremes(model: onnx.ModelProto, samples: Inputs, tensors: Sequence[str]) -> dict[str, Range]:
    """Let the engine itself reduce each tensor to two numbers: no tensor leaves it."""
    probed = onnx.ModelProto()
    probed.CopyFrom(model)
    del probed.graph.output[:]
    for name in tensors:
        for prefix, operator in ((_LOW, "ReduceMin"), (_HIGH, "ReduceMax")):
            probed.graph.node.append(onnx.helper.make_node(operator, [name], [prefix + name], keepdims=0))
            probed.graph.output.append(onnx.helper.make_tensor_value_info(prefix + name, onnx.TensorProto.FLOAT, []))
    engine = session(probed)
    names = [output.name for output in engine.get_outputs()]
    low, high = dict.fromkeys(tensors, np.inf), dict.fromkeys(tensors, -np.inf)
    for batch in batches(samples, BATCH):
        found = dict(zip(names, _run(engine, names, batch), strict=True))
        for name in tensors:
            low[name] = min(low[name], float(found[_LOW + name]))
            high[name] = max(high[name], float(found[_HIGH + name]))
    for name in tensors:
        if not np.isfinite([low[name], high[name]]).all():
            raise InvalidError("is NaN or infinite on the calibration samples", element=f"tensor {name}")
    return {name: (low[name], high[name]) for name in tensors}


def _histograms(model: onnx.ModelProto, samples: Inputs, extremes: Mapping[str, Range]) -> dict[str, Array]:
    """Count each tensor's values in BINS equal parts of its range."""
    counts = {name: np.zeros(BINS, np.int64) for name in extremes}
    probed = onnx.ModelProto()
    probed.CopyFrom(model)
    present = {output.name for output in probed.graph.output} | {value.name for value in probed.graph.input}
    probed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in extremes if name not in present)
    engine = session(probed, optimise=False)
    computed = [output.name for output in engine.get_outputs() if output.name in counts]
    one = _run(engine, computed, first(samples, 1))
    size = max(1, min(BATCH, HELD_BYTES // max(1, sum(array.nbytes for array in one))))
    for batch in batches(samples, size):
        values = {**batch, **dict(zip(computed, _run(engine, computed, batch), strict=True))}
        for name, (low, high) in extremes.items():
            if high > low:
                counts[name] += np.histogram(values[name], bins=BINS, range=(low, high))[0]
    return counts


def _run(engine: onnxruntime.InferenceSession, names: Collection[str], batch: Inputs) -> list[Array]:
    try:
        found: list[Array] = engine.run(names, dict(batch))
    except Exception as error:  # the engine's exception types have no public root
        raise InvalidError(f"cannot be run on the calibration samples ({first_line(error)})") from error
    return found


def _percentile(counts: Array, extremes: Range, percentile: float) -> Range:
    """Leave out half of the rest on either side."""
    if not counts.any():
        return extremes
    edges = np.linspace(*extremes, BINS + 1)
    share = np.cumsum(counts) / counts.sum()
    outside = (100 - percentile) / 200
    low = edges[int(np.searchsorted(share, outside, side="right"))]
    high = edges[min(int(np.searchsorted(share, 1 - outside)) + 1, BINS)]
    return float(low), float(high)


def _entropy(counts: Array, extremes: Range, _percent: float) -> Range:
    """Clip the magnitude where the quantised distribution diverges least from the true one."""
    largest = max(map(abs, extremes))
    if not counts.any() or largest == 0:
        return extremes
    middles = np.linspace(*extremes, 2 * BINS + 1)[1::2]
    bins = BINS
    while bins > LEVELS and counts.sum() < bins * FILLED:  # an empty bin is a lack of samples, not a shape
        bins //= 2
    magnitudes, _ = np.histogram(np.abs(middles), bins=bins, range=(0, largest), weights=counts)
    candidates = range(LEVELS, bins + 1, STRIDE)
    best = min(candidates, key=lambda end: (_divergence(magnitudes, end), -end))
    threshold = largest * best / bins
    return max(extremes[0], -threshold), min(extremes[1], threshold)


def _divergence(magnitudes: Array, end: int) -> float:
    """Kullback-Leibler divergence between the first `end` bins, tail put into the last, and LEVELS steps of them."""
    true = magnitudes[:end].astype(np.float64)
    step = np.arange(end) * LEVELS // end
    filled = true > 0
    steps = np.bincount(step, weights=true, minlength=LEVELS) / np.maximum(
        np.bincount(step, weights=filled, minlength=LEVELS), 1
    )
    rounded = np.where(filled, steps[step], 0)
    true[-1] += magnitudes[end:].sum()
    if rounded.sum() == 0 or rounded[-1] == 0 < true[-1]:
        return float("inf")
    p, q = true[filled] / true.sum(), rounded[filled] / rounded.sum()
    return float((p * np.log(p / q)).sum())
