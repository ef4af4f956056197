"""What a torch.export archive would make torch do while it is loaded; it is looked at, never run.

`torch.export.load` trusts its file: it falls back to full unpickling, evaluates expressions of shapes as Python,
compiles guards as Python, and calls whatever function of torch a node names. So each of these is held against what
exporters write before torch sees the file. Must not live here: loading.
"""

from __future__ import annotations

import ast
import io
import json
import pickle
import re
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from skerry.api.errors import ForbiddenError, InvalidError, SkerryError, TooLargeError
from skerry.optimize.foreign import first_line
from skerry.optimize.importers import pickles
from skerry.optimize.importers.archives import Archive

HINT = "save it with torch.export.save(torch.export.export(model, examples), 'model.pt2')"
MAX_UNPACKED_BYTES = 8 * 1024**3
MAX_JSON_BYTES = 256 * 1024**2
MAX_MEMBERS = 100_000

_MEMBER = re.compile(
    r"("
    r"archive_format|archive_version|byteorder|version|\.data/(version|serialization_id)|\.format_version|\.storage_alignment|"
    r"models/model\.json|extra/.+|data/sample_inputs/model\.pt|"
    r"data/(weights|constants)/[\w.\-]+)"
)
_OPERATOR = re.compile(
    r"torch\.ops\.(aten|prim|prims|quantized|quantized_decomposed|torchao|torchvision)\.[a-z_]\w*(\.\w+)?|"
    r"torch\.ops\.higher_order\.(cond|while_loop|map_impl|scan|associative_scan|wrap_with_\w+|flex_attention)|"
    r"_operator\.(eq|ne|le|ge|lt|gt|neg|pos|abs|add|sub|mul|floordiv|truediv|mod|pow|and_|or_|xor|not_|lshift|rshift|getitem)|"
    r"math\.[a-z]+\d*|torch\.(_sym_\w+|sym_\w+)"
)
_TOUCHES_FILES = re.compile(r"torch\.ops\.aten\.(save|from_file|load)\b")
_TREE_TYPES = {None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"}
_SYMBOLIC = {
    *("Symbol", "Integer", "Float", "Rational", "Add", "Mul", "Pow", "Mod", "Max", "Min", "And", "Or", "Not"),
    *("PythonMod", "FloorDiv", "CleanDiv", "CeilDiv", "IntTrueDiv", "FloatTrueDiv", "ModularIndexing", "Where"),
    *("Eq", "Ne", "Lt", "Le", "Gt", "Ge", "Equality", "Unequality", "StrictLessThan", "LessThan", "StrictGreaterThan"),
    *("GreaterThan", "ToFloat", "TruncToInt", "FloorToInt", "CeilToInt", "PowByNatural", "FloatPow", "Abs", "oo"),
    *("True", "False", "Identity", "int_oo", "Piecewise", "Half", "One", "Zero", "NegativeOne"),
}
_SYMBOL = re.compile(r"[su]\d+|zuf\d+|u\d+")
_GUARD_CALLS = {
    "size",
    "stride",
    "storage_offset",
    "isnan",
    "len",
    "isinstance",
    "type",
    "FloorDiv",
    "Mod",
    "PythonMod",
}
_GUARD_CALLS |= {"Max", "Min", "Eq", "Ne", "Lt", "Le", "Gt", "Ge", "CleanDiv", "IntTrueDiv"}
_EXPRESSION_NODES = (ast.Expression, ast.UnaryOp, ast.USub, ast.Load, ast.Tuple)
"""Beside names, calls and numbers: exporters write `Mul(Integer(2), Symbol('s0'))`, never `2*s0`."""
_POWERS = {"Pow", "PowByNatural", "FloatPow"}
_LARGEST_POWER = 16
_GUARD_NODES = (
    *(ast.Expression, ast.Compare, ast.BoolOp, ast.UnaryOp, ast.BinOp, ast.Load, ast.Tuple, ast.List, ast.Subscript),
    *(ast.cmpop, ast.boolop, ast.unaryop, ast.Add, ast.Sub, ast.Mult, ast.FloorDiv, ast.Mod),
)
_ASSUMPTIONS = {"positive", "integer", "nonnegative", "real", "evaluate"}


def check(content: bytes, name: str) -> None:
    """Refuse an archive that is none of a torch.export program, or would run code. Raises SkerryError."""
    try:
        with Archive(content, name, hint=HINT) as archive:
            _check_members(archive, name)
            model = _loads(archive.read("models/model.json"), name)
            _check_payloads(archive, name)
    except SkerryError:
        raise
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, NotImplementedError, ValueError) as error:
        if found := pickles.found_in(content):
            raise _forbidden(f"is a pickle, which is a program{found}", name) from error
        raise InvalidError(f"is no torch.export archive ({first_line(error)})", element=name, hint=HINT) from error
    _check_model(model, name)


def check_expression(text: str, name: str) -> None:
    """Refuse a shape's expression that is more than arithmetic on symbols: it is evaluated. Raises ForbiddenError."""
    for node in _parsed(text, name):
        allowed = isinstance(node, _EXPRESSION_NODES)
        if isinstance(node, ast.Name):
            allowed = node.id in _SYMBOLIC or _SYMBOL.fullmatch(node.id) is not None
        elif isinstance(node, ast.Call):
            allowed = isinstance(node.func, ast.Name) and (node.func.id not in _POWERS or _is_small(node))
        elif isinstance(node, ast.keyword):
            allowed = node.arg in _ASSUMPTIONS
        elif isinstance(node, ast.Constant):
            allowed = _harmless(node.value)
        if not allowed:
            raise _forbidden(f"evaluates {text[:80]!r} as a tensor's size", name)


def check_guard(text: str, name: str) -> None:
    """Refuse a guard that is more than a comparison of sizes: it is compiled. Raises ForbiddenError."""
    for node in _parsed(text, name):
        allowed = isinstance(node, _GUARD_NODES)
        if isinstance(node, ast.Attribute):
            allowed = not node.attr.startswith("_") and node.attr in _GUARD_CALLS | {"shape", "dtype"}
        elif isinstance(node, ast.Name):
            allowed = node.id in {"L", "math", "inf", "args", *_GUARD_CALLS} or node.id in _SYMBOLIC
        elif isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            allowed = called in _GUARD_CALLS and not node.keywords
        elif isinstance(node, ast.Constant):
            allowed = _harmless(node.value)
        if not allowed:
            raise _forbidden(f"runs {text[:80]!r} as a guard", name)


def _check_members(archive: Archive, name: str) -> None:
    if len(archive.sizes) > MAX_MEMBERS or sum(archive.sizes.values()) > MAX_UNPACKED_BYTES:
        raise TooLargeError(f"unpacks to more than {MAX_UNPACKED_BYTES} bytes", element=name)
    if len(archive.roots) > 1 or "models/model.json" not in archive.sizes:
        raise InvalidError("is no torch.export archive of this torch", element=name, hint=HINT)
    for inner in archive.sizes:
        if not _MEMBER.fullmatch(inner):
            what = "holds compiled code" if "aotinductor" in inner else "holds what exporters do not write"
            raise _forbidden(f"{what} ({inner[:80]})", name)


def _check_payloads(archive: Archive, name: str) -> None:
    """Refuse pickles in the archive that are more than tensors, and objects that torch unpickles without a question."""
    for part, prefixes in (("weights", ("weight_",)), ("constants", ("tensor_", "constant_"))):
        config = _loads(archive.read(f"data/{part}/model_{part}_config.json"), name)
        for key, payload in dict(config["config"]).items():
            path = str(payload["path_name"])
            if not path.startswith(prefixes) or not re.fullmatch(r"\w+", path):
                raise _forbidden(f"{part} {key[:60]} is an object of its own ({path[:40]}), not a tensor", name)
            if payload.get("use_pickle"):
                _check_pickle(archive.read(f"data/{part}/{path}"), f"{part} {key[:60]}", name)
    for inner, size in archive.sizes.items():
        if inner.endswith(".pt") and size:
            _check_pickle(archive.read(inner), inner[:80], name)


def _check_pickle(content: bytes, what: str, name: str) -> None:
    try:
        with warnings.catch_warnings(action="ignore"):
            torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _forbidden(f"{what} holds more than tensors{pickles.found_in(content)}", name) from error
    except Exception as error:  # torch.load has no documented set of exceptions
        raise InvalidError(f"{what} cannot be read ({first_line(error)})", element=name, hint=HINT) from error


def _check_model(model: Any, name: str) -> None:
    for key, value in _walk(model):
        if key in _CHECKS:
            _CHECKS[key](value, name)


def _check_target(value: Any, name: str) -> None:
    if not isinstance(value, str) or not _OPERATOR.fullmatch(value) or "__" in value:
        raise _forbidden(f"a node calls {str(value)[:80]}, which is no operator", name)
    if _TOUCHES_FILES.match(value):
        raise _forbidden(f"a node calls {value[:80]}, which touches files", name)


def _check_guards(value: Any, name: str) -> None:
    for guard in value if isinstance(value, list) else [value]:
        check_guard(str(guard), name)


def _check_tree(value: Any, name: str) -> None:
    for key, kind in _walk(_loads(value, name) if isinstance(value, str) else value):
        if key == "type" and kind not in _TREE_TYPES:
            raise _forbidden(f"its inputs or outputs are of the class {str(kind)[:80]}", name)


def _check_no_tuples(value: Any, name: str) -> None:
    if value:
        raise _forbidden("its inputs or outputs are named tuples", name)


_CHECKS: Mapping[str, Callable[[Any, str], None]] = {
    "target": _check_target,
    "as_operator": _check_target,
    "expr_str": lambda value, name: check_expression(str(value), name),
    "guards_code": _check_guards,
    "in_spec": _check_tree,
    "out_spec": _check_tree,
    "treespec_namedtuple_fields": _check_no_tuples,
}


def _walk(value: Any) -> Iterator[tuple[str, Any]]:
    """Walk all fields of a JSON value, with their keys."""
    stack = [value]
    while stack:
        inner = stack.pop()
        if isinstance(inner, dict):
            for key, part in inner.items():
                yield key, part
                stack.append(part)
        elif isinstance(inner, list):
            stack.extend(inner)


def _loads(text: bytes | str, name: str) -> Any:
    if len(text) > MAX_JSON_BYTES:
        raise TooLargeError(f"describes the model in more than {MAX_JSON_BYTES} bytes", element=name)
    try:
        return json.loads(text)
    except RecursionError:
        raise InvalidError("is nested too deeply", element=name, hint=HINT) from None


def _parsed(text: str, name: str) -> Iterator[ast.AST]:
    try:
        return ast.walk(ast.parse(text[:10_000].strip(), mode="eval"))
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise _forbidden(f"evaluates {text[:80]!r}", name) from None


def _is_small(power: ast.Call) -> bool:
    """Tell whether a power can be worked out at all: nothing but a small number is its exponent."""
    inner = [node for argument in power.args[1:] for node in ast.walk(argument)]
    numbers = [node.value for node in inner if isinstance(node, ast.Constant)]
    names = {node.id for node in inner if isinstance(node, ast.Name)}
    return names <= {"Integer"} and all(isinstance(n, int) and abs(n) <= _LARGEST_POWER for n in numbers)


def _harmless(value: object) -> bool:
    return isinstance(value, (int, float, type(None))) or (
        isinstance(value, str) and bool(re.fullmatch(r"\w{1,80}", value))
    )


def _forbidden(what: str, name: str) -> ForbiddenError:
    return ForbiddenError(f"{what}; it was not run", element=name, hint=HINT)
