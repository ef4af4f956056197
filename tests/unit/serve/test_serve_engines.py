"""Every engine behind the one port: the same models, the same answers, the same sentences."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from tests.unit.serve import engine_files as made

from skerry.api.errors import InvalidError, NotFoundError, SkerryError, UnavailableError, UnsupportedError
from skerry.api.kinds.tensors import ModelSignature, TensorSpec
from skerry.serve import engines


@pytest.fixture(scope="module", params=made.ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    pytest.importorskip(made.MODULES[request.param])
    return str(request.param)


@pytest.fixture(scope="module")
def files(engine: str, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    return made.files(engine, tmp_path_factory.getbasetemp() / f"engine-{engine}")


def load(engine: str, file: Path, signature: ModelSignature) -> engines.LoadedModel:
    return engines.open_engine(engine).load(file, signature, threads=1)


def close(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-5, err_msg=name)


def ask(model: engines.LoadedModel, inputs: Mapping[str, np.ndarray], *outputs: str) -> dict[str, np.ndarray]:
    return dict(zip(outputs, model.infer(inputs, outputs), strict=True))


def changed(signature: ModelSignature, side: str, **fields: object) -> ModelSignature:
    first, *rest = getattr(signature, side)
    return msgspec.structs.replace(signature, **{side: [msgspec.structs.replace(first, **fields), *rest]})


@pytest.mark.parametrize("file", ["dense", "dense1", "dense4"])
def test_any_number_of_samples_goes_through_any_file(engine: str, files: Mapping[str, Path], file: str) -> None:
    if file not in files:
        pytest.skip("TorchScript fixes no batch")
    model = load(engine, files[file], made.DENSE)
    for count in (1, 4, 3, 13, 1):
        inputs = made.samples(made.DENSE, count, seed=count)
        close(ask(model, inputs, "scores"), made.dense(inputs))


def test_several_inputs_and_outputs_keep_their_places(engine: str, files: Mapping[str, Path]) -> None:
    model = load(engine, files["pair"], made.PAIR)
    for count in (2, 1, 12):
        inputs = made.samples(made.PAIR, count)
        expected = made.pair(inputs)
        close(ask(model, inputs, "total", "dot"), expected)
        close(ask(model, dict(reversed(inputs.items())), "dot", "total"), {k: expected[k] for k in ("dot", "total")})
        close(ask(model, inputs, "dot"), {"dot": expected["dot"]})


def test_inputs_that_are_not_writeable_or_lie_otherwise_in_memory(engine: str, files: Mapping[str, Path]) -> None:
    model = load(engine, files["dense"], made.DENSE)
    inputs = made.samples(made.DENSE, 3)
    inputs["x"].flags.writeable = False
    close(ask(model, inputs, "scores"), made.dense(inputs))
    turned = {"x": np.asfortranarray(inputs["x"])}
    close(ask(model, turned, "scores"), made.dense(inputs))


@pytest.mark.parametrize(
    ("side", "fields", "words"),
    [
        ("inputs", {"datatype": "FP64"}, "FP32|Float"),
        ("inputs", {"shape": [-1, 9]}, "shape|size"),
        ("inputs", {"shape": [-1, 8, 1]}, "shape"),
        ("outputs", {"datatype": "INT64"}, '"scores" is FP32, the signature says INT64|gives FP32'),
        ("outputs", {"shape": [-1, 5]}, "the signature says"),
    ],
)
def test_a_file_that_is_not_as_its_signature_says_is_refused(
    engine: str, files: Mapping[str, Path], side: str, fields: dict[str, Any], words: str
) -> None:
    wrong = changed(made.DENSE, side, **fields)
    if engine == "torchscript" and side == "inputs":
        pytest.skip("TorchScript says nothing of its inputs before it runs; see below")
    with pytest.raises(InvalidError, match=words) as caught:
        load(engine, files["dense"], wrong)
    assert str(files["dense"]) in caught.value.sentence


def test_a_file_with_other_numbers_of_tensors_is_refused(engine: str, files: Mapping[str, Path]) -> None:
    more = ModelSignature(inputs=[*made.DENSE.inputs, made.fp32("y", -1, 8)], outputs=made.DENSE.outputs)
    with pytest.raises(InvalidError):
        load(engine, files["dense"], more)
    with pytest.raises(InvalidError):
        load(engine, files["pair"], ModelSignature(inputs=made.PAIR.inputs[:1], outputs=made.PAIR.outputs))
    with pytest.raises(InvalidError):
        load(engine, files["dense"], ModelSignature(inputs=made.DENSE.inputs, outputs=[*made.DENSE.outputs] * 2))


def test_what_the_model_cannot_take_is_a_clear_error_and_the_next_request_is_answered(
    engine: str, files: Mapping[str, Path]
) -> None:
    model = load(engine, files["dense"], made.DENSE)
    for wrong in (np.zeros((2, 9), dtype=np.float32), np.zeros((1, 8, 1), dtype=np.float32)):
        with pytest.raises(InvalidError, match=r"this file takes|failed on this input") as caught:
            model.infer({"x": wrong}, ["scores"])
        assert "\n" not in caught.value.sentence
    inputs = made.samples(made.DENSE, 2)
    close(ask(model, inputs, "scores"), made.dense(inputs))


@pytest.mark.parametrize("content", [b"", b"this is no model" * 8, b"PK\x03\x04" + bytes(100)])
def test_a_file_that_is_no_model_is_said(engine: str, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / f"broken{made.ENGINES[engine]}"
    file.write_bytes(content)
    with pytest.raises(InvalidError) as caught:
        load(engine, file, made.DENSE)
    assert caught.value.element == str(file)
    assert "\n" not in caught.value.sentence
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(NotFoundError, match="no such file"):
            load(engine, path, made.DENSE)


def test_a_file_cut_short_is_said(engine: str, files: Mapping[str, Path], tmp_path: Path) -> None:
    content = files["dense"].read_bytes()
    for part in (0.5, 0.9):
        file = tmp_path / f"short{made.ENGINES[engine]}"
        file.write_bytes(content[: int(len(content) * part)])
        with pytest.raises(InvalidError) as caught:
            load(engine, file, made.DENSE)
        assert str(file) in caught.value.sentence


def test_an_unloaded_model_says_so(engine: str, files: Mapping[str, Path]) -> None:
    model = load(engine, files["dense"], made.DENSE)
    model.unload()
    model.unload()
    with pytest.raises(UnavailableError, match="unloaded"):
        model.infer(made.samples(made.DENSE, 1), ["scores"])


def test_an_output_that_is_no_batch_is_not_put_together(engine: str, files: Mapping[str, Path]) -> None:
    if "dense4" not in files:
        pytest.skip("TorchScript fixes no batch")
    fixed = ModelSignature(inputs=made.DENSE.inputs, outputs=[made.fp32("scores", 4, 4)])
    model = load(engine, files["dense4"], fixed)
    inputs = made.samples(made.DENSE, 4)
    close(ask(model, inputs, "scores"), made.dense(inputs))
    with pytest.raises(InvalidError, match=r'5 samples do not go through a file that takes 4 at a time.*"scores"'):
        model.infer(made.samples(made.DENSE, 5), ["scores"])


def test_the_engine_says_its_version(engine: str) -> None:
    assert engines.open_engine(engine).version[0].isdigit()


# --- LiteRT ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def litert() -> None:
    pytest.importorskip("ai_edge_litert")


@pytest.mark.usefixtures("litert")
def test_a_file_without_names_is_taken_by_position(tmp_path: Path) -> None:
    model = load("litert", made.tflite_dense(tmp_path / "m.tflite", named=False), made.DENSE)
    inputs = made.samples(made.DENSE, 3)
    close(ask(model, inputs, "scores"), made.dense(inputs))
    with pytest.raises(InvalidError, match=r'output "total" has shape \[-1\], the signature says \[-1, 3\]'):
        load("litert", made.tflite_pair(tmp_path / "pair.tflite", named=False), made.PAIR)


@pytest.mark.usefixtures("litert")
def test_some_names_that_are_there_and_some_that_are_not_are_no_match(tmp_path: Path) -> None:
    file = made.tflite_pair(tmp_path / "pair.tflite")
    with pytest.raises(InvalidError, match=r"""has no output "sum", but \['dot', 'total'\]"""):
        load("litert", file, changed(made.PAIR, "outputs", name="sum"))


@pytest.mark.usefixtures("litert")
def test_a_file_whose_batch_is_open_by_its_own_word_only_is_run_one_by_one(tmp_path: Path) -> None:
    model = load("litert", made.tflite_dense(tmp_path / "m.tflite", hard_coded=True), made.DENSE)
    for count in (1, 3, 1, 2):
        inputs = made.samples(made.DENSE, count, seed=count)
        close(ask(model, inputs, "scores"), made.dense(inputs))


@pytest.mark.usefixtures("litert")
def test_an_input_without_dimensions_goes_into_every_piece(tmp_path: Path) -> None:
    for batch in (-1, 2):
        file = made.TfliteFile()
        x, factor, y = file.tensor("x", [batch, 3]), file.tensor("factor", []), file.tensor("y", [batch, 3])
        file.operator("MUL", [x, factor], y, kind="MulOptions")
        path = file.save(tmp_path / "m.tflite", {"x": x, "factor": factor}, {"y": y})
        signature = ModelSignature(inputs=[made.fp32("x", -1, 3), made.fp32("factor")], outputs=[made.fp32("y", -1, 3)])
        model = load("litert", path, signature)
        for count in (1, 5):
            inputs = {**made.samples(made.PAIR, count), "factor": np.array(3, dtype=np.float32)}
            given = {"x": inputs["a"], "factor": inputs["factor"]}
            close(ask(model, given, "y"), {"y": inputs["a"] * 3})


# --- TorchScript ----------------------------------------------------------------------------------------------------


class Attack:
    """Its pickle writes a file when it is read."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


def scripted(torch: Any, source: Any, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(source).save(str(path))
    return path


def test_pickles_are_refused_unread(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    import torch

    done, file = tmp_path / "done", tmp_path / "m.pt"
    attack = Attack(done)
    file.write_bytes(pickle.dumps(attack))
    with pytest.raises(InvalidError, match="is not a TorchScript archive"):
        load("torchscript", file, made.DENSE)
    torch.save(attack, file)
    with pytest.raises(InvalidError, match="is a pickle of Python objects, not TorchScript; export"):
        load("torchscript", file, made.DENSE)
    torch.save({"weight": torch.zeros(2)}, file)
    with pytest.raises(InvalidError, match="is a pickle of Python objects"):
        load("torchscript", file, made.DENSE)
    assert not done.exists()
    pickle.loads(pickle.dumps(attack))
    assert done.exists(), "the attack works where pickles are read"


def test_a_pickle_inside_an_archive_that_looks_right_executes_nothing(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    done = tmp_path / "done"
    good = made.torchscript_dense(tmp_path / "good.pt")
    bad = tmp_path / "bad.pt"
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(bad, "w", zipfile.ZIP_STORED) as target:
        for name in source.namelist():
            content = pickle.dumps(Attack(done)) if name.endswith(".pkl") else source.read(name)
            target.writestr(name, content)
    with pytest.raises(InvalidError, match=r"bad\.pt"):
        load("torchscript", bad, made.DENSE)
    assert not done.exists()


def test_bytecode_without_code_is_said(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    with zipfile.ZipFile(tmp_path / "m.ptl", "w") as archive:
        archive.writestr("m/bytecode.pkl", b"")
    with pytest.raises(InvalidError, match="bytecode for PyTorch Mobile only"):
        load("torchscript", tmp_path / "m.ptl", made.DENSE)


def test_a_file_for_the_lite_interpreter_runs(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        module = torch.jit.load(str(made.torchscript_dense(tmp_path / "m.pt")))
        module._save_for_lite_interpreter(str(tmp_path / "m.ptl"))
    inputs = made.samples(made.DENSE, 3)
    close(ask(load("torchscript", tmp_path / "m.ptl", made.DENSE), inputs, "scores"), made.dense(inputs))


def test_a_model_that_writes_into_its_inputs_does_not_write_into_the_callers(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    import torch

    class Writing(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x.mul_(2)
            return x

    signature = ModelSignature(inputs=[made.fp32("x", -1, 8)], outputs=[made.fp32("y", -1, 8)])
    model = load("torchscript", scripted(torch, Writing(), tmp_path / "m.pt"), signature)
    inputs = made.samples(made.DENSE, 2)
    before = inputs["x"].copy()
    close(ask(model, inputs, "y"), {"y": before * 2})
    np.testing.assert_array_equal(inputs["x"], before)


def test_memory_that_is_not_there_is_unavailable_and_not_the_callers_fault(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    import torch

    class Greedy(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if bool((x > 0).any()):
                return torch.zeros(1 << 50)
            return x

    signature = ModelSignature(inputs=[made.fp32("x", -1, 8)], outputs=[made.fp32("y", -1, 8)])
    model = load("torchscript", scripted(torch, Greedy(), tmp_path / "m.pt"), signature)
    with pytest.raises(UnavailableError, match="not enough memory; send a smaller batch"):
        model.infer({"x": np.ones((1, 8), dtype=np.float32)}, ["y"])


def test_what_a_model_gives_is_held_against_the_signature_each_time(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    import torch

    class Moody(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.to(torch.float64) if bool((x > 0).any()) else x

    signature = ModelSignature(inputs=[made.fp32("x", -1, 8)], outputs=[made.fp32("y", -1, 8)])
    model = load("torchscript", scripted(torch, Moody(), tmp_path / "m.pt"), signature)
    with pytest.raises(
        SkerryError, match=r'output "y": the model gives FP64 \[1, 8\], the signature says FP32'
    ) as caught:
        model.infer({"x": np.ones((1, 8), dtype=np.float32)}, ["y"])
    assert not isinstance(caught.value, InvalidError), "a fault of the model, not of the request"


def test_strings_are_nothing_pytorch_computes_with(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    text = ModelSignature(inputs=[TensorSpec(name="x", datatype="BYTES", shape=[-1, 8])], outputs=made.DENSE.outputs)
    model = load("torchscript", made.torchscript_dense(tmp_path / "m.pt"), text)
    with pytest.raises(InvalidError, match='input "x": strings are nothing'):
        model.infer({"x": np.full((1, 8), "a", dtype=object)}, ["scores"])


# --- what is not there ----------------------------------------------------------------------------------------------


def test_an_engine_that_cannot_be_imported_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(engines._MODULES, "litert", "skerry.serve.engines.not_there")
    with pytest.raises(UnsupportedError, match=r"litert: cannot be imported.*pip install 'skerry\[litert\]'"):
        engines.open_engine("litert")
