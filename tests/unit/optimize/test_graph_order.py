"""Graphs whose nodes are listed in any order."""

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from skerry.optimize import graph

COUNT = 6


def chain(order: list[int]) -> onnx.ModelProto:
    """x -> t1 -> ... -> t6, the nodes listed in that order; the last one needs the first again, in a branch."""
    nodes = [helper.make_node("Relu", [f"t{n}"], [f"t{n + 1}"], name=str(n)) for n in range(COUNT - 1)]
    branch = helper.make_graph(
        [helper.make_node("Add", ["t1", "t5"], ["inner"])],
        "branch",
        [],
        [helper.make_tensor_value_info("inner", TensorProto.FLOAT, ["n"])],
    )
    nodes.append(helper.make_node("If", ["yes"], ["t6"], name="5", then_branch=branch, else_branch=branch))
    ends = [
        helper.make_tensor_value_info("t0", TensorProto.FLOAT, ["n"]),
        helper.make_tensor_value_info("yes", TensorProto.BOOL, []),
        helper.make_tensor_value_info("t6", TensorProto.FLOAT, ["n"]),
    ]
    made = helper.make_graph([nodes[place] for place in order], "g", ends[:2], ends[2:])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@given(st.permutations(range(COUNT)))
def test_any_order_becomes_the_one_that_runs(order: list[int]) -> None:
    model = chain(order)
    graph.put_in_order(model)
    onnx.checker.check_model(model)
    assert [node.name for node in model.graph.node] == [str(n) for n in range(COUNT)]


def test_what_is_in_order_keeps_its_bytes_and_a_circle_stays_refused() -> None:
    model = chain(list(range(COUNT)))
    before = model.SerializeToString()
    graph.put_in_order(model)
    assert model.SerializeToString() == before
    model.graph.node[0].input[0] = "t3"
    graph.put_in_order(model)
    with pytest.raises(onnx.checker.ValidationError):
        onnx.checker.check_model(model)
