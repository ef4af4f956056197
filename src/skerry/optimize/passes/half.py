"""float16: weights and arithmetic in half precision, inputs and outputs as they were."""

from __future__ import annotations

import warnings
from collections.abc import Collection

from onnxconverter_common import float16

from skerry.optimize import graph
from skerry.optimize.passes import layers

SMALLEST, LARGEST = 5.97e-8, 65504.0
"""What float16 can hold; weights beyond are clipped, which the metric then judges."""

SENSITIVE = (
    "Exp",
    "InstanceNormalization",
    "LayerNormalization",
    "Log",
    "LogSoftmax",
    "Pow",
    "ReduceMean",
    "ReduceSum",
    "Softmax",
    "Sqrt",
)
"""Operators whose sums and exponentials overflow or cancel in half precision."""


def convert(raw: bytes, *, keep_sensitive: bool = False, keep_layers: Collection[str] = ()) -> bytes:
    """Return the graph in float16, the sensitive operators and some layers still in float32 if asked.

    Raises InvalidError for a layer that does not exist.
    """
    model = graph.parse(raw)
    layers.name_all(model)
    blocked = [*float16.DEFAULT_OP_BLOCK_LIST, *(SENSITIVE if keep_sensitive else ())]
    with warnings.catch_warnings(action="ignore"):  # one warning per clipped weight
        converted = float16.convert_float_to_float16(
            model,
            min_positive_val=SMALLEST,
            max_finite_val=LARGEST,
            keep_io_types=True,
            op_block_list=blocked,
            node_block_list=layers.matching(model, keep_layers),
        )
    del converted.graph.value_info[:]  # the types of before, some of which the converter leaves
    return graph.serialise(converted)
