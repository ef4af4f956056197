"""Python files that the user names on purpose: builders, metrics, fine-tuning. They are run; model files never are.

Lives here: loading a function from such a file, and saying where it failed. Must not live here: what it is called with.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from skerry.api.errors import InvalidError, NotFoundError, TooLargeError
from skerry.optimize.foreign import first_line, raise_if_starved

MAX_BYTES = 4 * 1024**2


@dataclass(frozen=True, kw_only=True, slots=True)
class UserFunction:
    """A function of a file. Calling it turns whatever it raises into one sentence with the line."""

    element: str
    """`file.py:function`, as errors name it."""
    path: Path
    digest: str
    """sha256 of the file, hex."""
    function: Callable[..., Any]

    def __call__(self, *arguments: Any) -> Any:
        """Call it; it may import the files beside it. Raises InvalidError."""
        with _imports_beside(self.path):
            return _call(lambda: self.function(*arguments), self.path, self.element)


def load_function(spec: str, *, hint: str) -> UserFunction:
    """Run `file.py` of `file.py:function` and return the function.

    Raises NotFoundError, TooLargeError, InvalidError when there is no such function or the file fails.
    """
    file, _, name = spec.rpartition(":")
    if not file or not name.isidentifier():
        raise InvalidError("is not in the form FILE.py:FUNCTION", element=spec, hint=hint)
    path, code, namespace = _load(Path(file), hint=hint)
    function = getattr(namespace, name, None)
    element = f"{path.name}:{name}"
    if not callable(function):
        offered = [n for n, v in vars(namespace).items() if inspect.isfunction(v) and not n.startswith("_")]
        hint = f"functions in it: {', '.join(offered[:8])}" if offered else hint
        raise InvalidError(f"there is no function {name} in the file", element=element, hint=hint)
    return UserFunction(element=element, path=path, digest=sha256(code).hexdigest(), function=function)


def run_file(file: Path, *, hint: str) -> str:
    """Run a file for what it registers; return its sha256, hex. Raises as `load_function`."""
    return sha256(_load(file, hint=hint)[1]).hexdigest()


def _load(file: Path, *, hint: str) -> tuple[Path, bytes, Any]:
    path = Path(os.path.abspath(file))  # as it stands in tracebacks
    if not path.is_file():
        raise NotFoundError("no such file", element=str(path), hint=hint)
    if path.stat().st_size > MAX_BYTES:
        raise TooLargeError(f"{path.stat().st_size} bytes are more than {MAX_BYTES}", element=path.name)
    code = path.read_bytes()
    name = f"skerry_user_{sha256(os.fsencode(path)).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InvalidError("is not a Python file", element=path.name, hint=hint)
    loader, module = spec.loader, importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    with _imports_beside(path):
        _call(lambda: loader.exec_module(module), path, path.name)
    return path, code, module


@contextmanager
def _imports_beside(path: Path) -> Iterator[None]:
    """Let the file import those beside it, as it could if it were run as a script; leave no cache there."""
    directory, cached = str(path.resolve().parent), sys.dont_write_bytecode
    sys.path.insert(0, directory)
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = cached
        sys.path.remove(directory)


def _call(code: Callable[[], Any], path: Path, element: str) -> Any:
    try:
        return code()
    except (Exception, SystemExit) as error:
        raise_if_starved(error)
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        at = f" at line {lines[-1]}" if lines else ""
        raise InvalidError(
            f"failed with {type(error).__name__}{at}: {first_line(error)}", element=element, hint=f"mend {path.name}"
        ) from error
