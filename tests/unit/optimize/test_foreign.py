"""What libraries say, cut down to a sentence's part."""

from skerry.optimize import foreign


def test_scratch_paths_take_no_room_of_the_reason() -> None:
    path = f"/home/someone/{'deep/' * 60}.scratch-ab12_x/onnx-fp16.onnx"
    error = RuntimeError(f"Load model from {path} failed: Type Error: Type (tensor(float16)) of output arg (b)")
    assert foreign.first_line(error) == (
        "Load model from onnx-fp16.onnx failed: Type Error: Type (tensor(float16)) of output arg (b)"
    )
    assert foreign.shortened("cannot read /tmp/skerry-toolchain-x1/program.pt2") == "cannot read program.pt2"
    assert foreign.shortened("cannot read /data/model.onnx") == "cannot read /data/model.onnx"
