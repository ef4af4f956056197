"""TorchScript files and torch.export archives: what they do is kept, and code in them is never run."""

import ast
import io
import json
import logging
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.optimize.bombs import Bomb

from skerry.api.errors import ForbiddenError, InvalidError, SkerryError
from skerry.optimize import evaluate, graph, importers
from skerry.optimize.importers import Source, pickles, pt2
from skerry.optimize.recipe import SourceSpec

A, B = (np.random.default_rng(seed).random((5, 3, 4), dtype=np.float32) for seed in (1, 2))


class Two(torch.nn.Module):
    """Takes two tensors, gives two."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 3)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.layer(left - right).mean(dim=1), (left * right).sum(dim=2)


class Branch(torch.nn.Module):
    """TorchScript keeps the branch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool(x.sum() > 0):
            return x.flatten(1)
        return -x.flatten(1)


@pytest.fixture(scope="module")
def two() -> Two:
    torch.manual_seed(0)
    return Two().eval()


@pytest.fixture(scope="module")
def program(two: Two) -> bytes:
    batch = torch.export.Dim("batch")
    examples = torch.from_numpy(A[:2]), torch.from_numpy(B[:2])
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(two, examples, dynamic_shapes=({0: batch}, {0: batch})), buffer)
    return buffer.getvalue()


def opened(content: bytes, path: Path) -> Source:
    path.write_bytes(content)
    return importers.open_source(SourceSpec(path=str(path)))


def check_two(source: Source, two: Two) -> None:
    inputs = {"right": B, "left": A}  # in whatever order
    expected = [output.detach().numpy() for output in two(torch.from_numpy(A), torch.from_numpy(B))]
    for ours, theirs in zip(source.predict(inputs), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    signature = source.signature(inputs)
    assert [spec.name for spec in signature.inputs] == ["left", "right"]
    assert [(spec.name, spec.shape) for spec in signature.outputs] == [("output_0", [-1, 3]), ("output_1", [-1, 3])]
    raw = source.onnx(inputs, opset=20)
    assert graph.signature(graph.parse(raw)) == signature
    for ours, theirs in zip(evaluate.Runner(raw).predict({"left": A, "right": B}), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_program_keeps_its_inputs_and_answers(program: bytes, two: Two, tmp_path: Path) -> None:
    source = opened(program, tmp_path / "m.pt2")
    check_two(source, two)
    assert (source.kind, source.forms) == ("torch-export", frozenset({"torch", "onnx"}))
    assert isinstance(source.native(), torch.nn.Module)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated:DeprecationWarning")
def test_torchscript_keeps_its_inputs_and_answers(two: Two, tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(two), tmp_path / "m.pt")
    source = importers.open_source(SourceSpec(path=str(tmp_path / "m.pt")))
    check_two(source, two)
    assert (source.kind, source.forms) == ("torchscript", frozenset({"torchscript", "onnx"}))
    assert isinstance(source.native(), torch.jit.ScriptModule)
    torch.jit.save(torch.jit.script(Branch()), tmp_path / "branch.pt")
    branch = importers.open_source(SourceSpec(path=str(tmp_path / "branch.pt")))
    raw = branch.onnx({"input": A}, opset=20)
    for sign in (1, -1):
        expected = np.abs(sign * A.reshape(5, 12))
        np.testing.assert_allclose(evaluate.Runner(raw).predict({"input": sign * A})[0], expected)


def test_a_program_with_a_fixed_batch_is_run_in_pieces(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3)).eval()
    torch.export.save(torch.export.export(module, (torch.from_numpy(A[:2]),)), tmp_path / "m.pt2")
    source = importers.open_source(SourceSpec(path=str(tmp_path / "m.pt2")))
    expected = module(torch.from_numpy(A)).detach().numpy()
    np.testing.assert_allclose(source.predict({"input": A})[0], expected, rtol=1e-5)
    assert source.signature({"input": A}).inputs[0].shape == [-1, 3, 4]
    with pytest.raises(InvalidError, match="cannot be exported to ONNX"):
        source.onnx({"input": A}, opset=20)


class Writes(torch.nn.Module):
    def __init__(self, mark: str) -> None:
        super().__init__()
        self.mark = mark

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.save(x, self.mark)
        return x


@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated:DeprecationWarning")
def test_torchscript_that_touches_files_is_refused(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    torch.jit.save(torch.jit.script(Writes(str(mark))), tmp_path / "m.pt")
    with pytest.raises(ForbiddenError, match=r"m\.pt: the program uses the operator save, which reaches outside"):
        importers.open_source(SourceSpec(path=str(tmp_path / "m.pt")))
    assert not mark.exists()
    torch.jit.load(tmp_path / "m.pt")(torch.zeros(1))
    assert mark.exists()  # the program does what it was refused for


@pytest.mark.parametrize("kind", ["torchscript", "torch-export"])
@pytest.mark.parametrize(
    "write",
    [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))],
    ids=["torch.save", "pickle"],
)
def test_pickles_are_refused_and_never_run(tmp_path: Path, kind: str, write: Callable[[Any, Path], object]) -> None:
    mark = tmp_path / "mark"
    write({"weights": Bomb(mark)}, tmp_path / "m.pt")
    with pytest.raises(SkerryError) as caught:
        importers.open_source(SourceSpec(path=str(tmp_path / "m.pt"), kind=kind))
    assert "m.pt: is " in caught.value.sentence
    assert not mark.exists()


def test_what_a_pickle_would_import_is_told(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(3, 4), tmp_path / "m.pt")
    with pytest.raises(ForbiddenError, match=r"it would import torch\.nn\.modules\.linear\.Linear"):
        importers.open_source(SourceSpec(path=str(tmp_path / "m.pt")))
    torch.save(torch.nn.Linear(3, 4).state_dict(), tmp_path / "weights.pt")
    with pytest.raises(InvalidError, match=r"is no TorchScript file.*a state dict goes with its builder"):
        importers.open_source(SourceSpec(path=str(tmp_path / "weights.pt")))
    for protocol in range(6):
        assert pickles.imports(pickle.dumps(Bomb(tmp_path), protocol=protocol)) in (["posix.mkdir"],)


def rewritten(archive: bytes, changes: dict[str, Callable[[bytes], bytes]], added: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as before, zipfile.ZipFile(buffer, "w") as after:
        root = before.namelist()[0].partition("/")[0]
        for name in before.namelist():
            content = before.read(name)
            change = changes.get(name.partition("/")[2])
            after.writestr(name, change(content) if change else content)
        for name, content in added.items():
            after.writestr(f"{root}/{name}", content)
    return buffer.getvalue()


def in_model(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    def apply(content: bytes) -> bytes:
        described = json.loads(content)
        change(described)
        return json.dumps(described).encode()

    return apply


MODEL = "models/model.json"


def first_symbol(described: dict[str, Any]) -> dict[str, Any]:
    return described["graph_module"]["graph"]["tensor_values"]["left"]["sizes"][0]["as_expr"]


def test_sample_inputs_with_code_are_refused_and_would_have_run(program: bytes, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    bomb = io.BytesIO()
    torch.save(((Bomb(mark),), {}), bomb)
    evil = rewritten(program, {"data/sample_inputs/model.pt": lambda _: bomb.getvalue()}, {})
    with pytest.raises(ForbiddenError, match=r"sample_inputs/model\.pt holds more than tensors.*posix\.mkdir"):
        opened(evil, tmp_path / "m.pt2")
    assert not mark.exists()
    logging.disable(logging.CRITICAL)  # what torch says about it, it says wrongly
    try:
        torch.export.load(io.BytesIO(evil))
    finally:
        logging.disable(logging.NOTSET)
    assert mark.exists()  # torch itself runs it


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda m: m["graph_module"]["graph"]["nodes"][0].update(target="torch.os.system"),
            r"a node calls torch\.os\.system, which is no operator",
        ),
        (
            lambda m: m["graph_module"]["graph"]["nodes"][0].update(target="torch.ops.aten.from_file.default"),
            "which touches files",
        ),
        *(
            (lambda m, target=target: m["graph_module"]["graph"]["nodes"][0].update(target=target), "is no operator")
            for target in (
                "torch.ops.load_library",
                "_operator.methodcaller",
                "torch.ops.debugprims.load_tensor.default",
            )
        ),
        (lambda m: first_symbol(m).update(expr_str="__import__('os').system('true')"), "as a tensor's size"),
        (lambda m: first_symbol(m).update(expr_str="[c for c in ().__class__.__mro__]"), "as a tensor's size"),
        (lambda m: m.update(guards_code=["__import__('os').system('true') == 0"]), "as a guard"),
        (lambda m: m.update(guards_code=["L['left'].size()[0].__class__"]), "as a guard"),
        (lambda m: m.update(guards_code=["open('x') == 0"]), "as a guard"),
    ],
)
def test_archives_that_would_run_code_are_refused(
    program: bytes, tmp_path: Path, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    with pytest.raises(ForbiddenError, match=words):
        opened(rewritten(program, {MODEL: in_model(change)}, {}), tmp_path / "m.pt2")


def test_compiled_code_and_objects_in_an_archive_are_refused(program: bytes, tmp_path: Path) -> None:
    with pytest.raises(ForbiddenError, match=r"holds compiled code \(data/aotinductor/model/model\.so\)"):
        opened(rewritten(program, {}, {"data/aotinductor/model/model.so": b"ELF"}), tmp_path / "m.pt2")
    config = b'{"config": {"thing": {"path_name": "opaque_obj_0", "is_param": false, "use_pickle": true}}}'
    evil = rewritten(program, {"data/constants/model_constants_config.json": lambda _: config}, {})
    with pytest.raises(ForbiddenError, match="constants thing is an object of its own"):
        opened(evil, tmp_path / "m.pt2")


def members(archive: bytes, change: Callable[[str, bytes], list[tuple[str, bytes]]]) -> bytes:
    """Write every member as what `change` makes of it: none, one or several."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as before, zipfile.ZipFile(buffer, "w") as after:
        for name in before.namelist():
            for member, content in change(name, before.read(name)):
                after.writestr(member, content)
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
@pytest.mark.parametrize("middle", ["models/model.json", "MODELS/model.json"])
def test_a_program_that_torch_would_read_another_of_is_refused(program: bytes, tmp_path: Path, middle: str) -> None:
    mark = tmp_path / "mark"
    evil = in_model(lambda m: first_symbol(m).update(expr_str=f"__import__('os').mkdir({str(mark)!r})"))

    def thrice(name: str, content: bytes) -> list[tuple[str, bytes]]:
        if not name.endswith(MODEL):
            return [(name, content)]
        return [(name, content), (name.replace(MODEL, middle), evil(content)), (name, content)]

    with pytest.raises(ForbiddenError, match=r"(?i)holds models/model.json more than once; it was not run"):
        opened(members(program, thrice), tmp_path / "m.pt2")
    assert not mark.exists()


@pytest.fixture(scope="module")
def script() -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(Adds()), buffer)
    return buffer.getvalue()


class Adds(torch.nn.Module):
    """TorchScript calls the operator by name."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x).flatten(1)


READS = b"torch.from_file('/etc/passwd', None, 4, dtype=0)"


def reading(spelled: bytes) -> Callable[[bytes], bytes]:
    call = READS.replace(b"torch.from_file", spelled)
    return lambda content: content.replace(b"torch.relu(x)", b"torch.add(torch.relu(x), torch.sum(" + call + b"))")


@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
@pytest.mark.parametrize("rename", [("/code/", "/CODE/"), (".py", ".PY"), ("", "")])
def test_torchscript_is_looked_up_as_torch_does(script: bytes, tmp_path: Path, rename: tuple[str, str]) -> None:
    def change(name: str, content: bytes) -> list[tuple[str, bytes]]:
        if not name.endswith(".py"):
            return [(name, content)]
        evil = (name.replace(*rename), reading(b"torch.from_file")(content))
        if rename == ("", ""):
            return [evil, evil, evil, evil, (name, content)]
        return [evil, (name.partition("/")[0] + "/code/x.py", b"")]

    evil = members(script, change)
    with pytest.raises(ForbiddenError, match=r"holds code/.* more than once|uses the operator from_file"):
        opened(evil, tmp_path / "m.pt")
    assert "from_file" in torch.jit.load(io.BytesIO(evil)).code  # torch itself reads it


@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated:DeprecationWarning")
@pytest.mark.parametrize(
    "spelled",
    [
        b"torch.from_file",
        b"torch . from_file",
        b"(torch. #\n from_file)",
        b'getattr(torch, "from_file")',
        b'getattr(torch, "from" "_file")',
        b'getattr(torch, "from\\137file")',
        b"ops.aten.from_file",
    ],
)
def test_torchscript_cannot_spell_it_otherwise(script: bytes, tmp_path: Path, spelled: bytes) -> None:
    def change(name: str, content: bytes) -> list[tuple[str, bytes]]:
        return [(name, reading(spelled)(content) if name.endswith(".py") else content)]

    evil = members(script, change)
    with pytest.raises(ForbiddenError, match="uses the operator from_file"):
        opened(evil, tmp_path / "m.pt")
    assert "from_file" in torch.jit.load(io.BytesIO(evil)).code  # torch itself understands it


def test_a_name_that_ends_early_for_zipfile_is_refused(program: bytes, tmp_path: Path) -> None:
    """A NUL ends a name for zipfile, and not for torch."""
    evil = members(program, lambda name, content: [(name.replace(MODEL, MODEL + "_x"), content)])
    forged = evil.replace(b"models/model.json_x", b"models/model.json\0x")
    with pytest.raises(ForbiddenError, match="holds names that torch reads differently"):
        opened(forged, tmp_path / "m.pt2")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"garbage" * 99])
@pytest.mark.parametrize("suffix", [".pt", ".pt2"])
def test_bytes_that_are_neither(tmp_path: Path, content: bytes, suffix: str) -> None:
    with pytest.raises(InvalidError, match=r"m\.pt2?: is no "):
        opened(content, tmp_path / f"m{suffix}")


@pytest.mark.parametrize(
    "text",
    [
        "Pow(Integer(9), Integer(999999999))",
        "Pow(Integer(9), Pow(Integer(9), Integer(9)))",
        "9**9**9",
        "Symbol('s0').__class__",
        "Symbol('s0')[0]",
        "(lambda: 1)()",
        "exec('x')",
        "Symbol('__import__(1)')",
    ],
)
def test_expressions_that_reach_out_or_never_end_are_refused(text: str) -> None:
    with pytest.raises(ForbiddenError):
        pt2.check_expression(text, "m.pt2")


@given(st.text(max_size=60))
def test_an_expression_that_passes_names_nothing_and_reaches_for_nothing(text: str) -> None:
    try:
        pt2.check_expression(text, "m.pt2")
    except ForbiddenError:
        return
    nodes = list(ast.walk(ast.parse(text.strip(), mode="eval")))
    assert not any(isinstance(node, (ast.Attribute, ast.Lambda, ast.Subscript)) for node in nodes)


@pytest.mark.parametrize(
    "text", ["Symbol('s31', positive=True, integer=True)", "Mul(Integer(-1), Pow(Symbol('s0'), Integer(2)))", "7"]
)
def test_what_exporters_write_passes(text: str) -> None:
    pt2.check_expression(text, "m.pt2")
    pt2.check_guard("L['x'].size()[0] == 2", "m.pt2")
