"""`kubectl skerry ...`: skerry's verbs as a plugin, at the cluster that kubectl means.

kubectl runs `kubectl-skerry` with what follows the plugin's name. Which file and context count is kubectl's rule then:
--kubeconfig, $KUBECONFIG, ~/.kube/config; --context and -n wherever they stand. Lives here: that translation. Must not
live here: a verb. Source: Kubernetes documentation, "Extend kubectl with plugins".
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import typer

from skerry.api.errors import InvalidError, SkerryError
from skerry.cli import main as command_line
from skerry.cli import output

PROGRAM = "kubectl skerry"
_SHORT = {"-n": "--namespace"}


def main() -> NoReturn:
    """Run a verb. Exit codes as `skerry`'s."""
    try:
        arguments, variables = translate(sys.argv[1:], os.environ)
    except SkerryError as error:
        output.print_error(error)
        sys.exit(1)
    os.environ.update(variables)
    command_line.run(arguments, program=PROGRAM)


def translate(arguments: Sequence[str], environment: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """Return the arguments for `skerry`, and the variables that say which hub. Raises InvalidError.

    Options of kubectl's that verbs have too go behind the verb, where they are known; what follows `--` is left alone.
    A namespace says nothing to a verb that has none, as with kubectl.
    """
    rest, found, after = list(arguments), dict[str, str](), list[str]()
    if "--" in rest:
        index = rest.index("--")
        rest, after = rest[:index], rest[index:]
    kept: list[str] = []
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        name = _SHORT.get(name, name)
        if name not in ("--context", "--kubeconfig", "--namespace"):
            kept.append(word)
            continue
        if not equals and not rest:
            raise InvalidError("needs a value", element=name)
        found[name] = value if equals else rest.pop(0)
    if "--namespace" in found and _takes_namespace(kept):
        kept += ["--namespace", found["--namespace"]]
    variables = {"SKERRY_KUBECONFIG": _file(found, environment)}
    if "--context" in found:
        variables["SKERRY_CONTEXT"] = found["--context"]
    return [*kept, *after], variables


def _takes_namespace(words: Sequence[str]) -> bool:
    """Whether the verb that these words begin with has a namespace."""
    verb: Any = typer.main.get_command(command_line.app)
    for word in words:
        inner = getattr(verb, "commands", {}).get(word)
        if inner is None and not word.startswith("-"):
            break
        verb = inner or verb
    return any("--namespace" in parameter.opts for parameter in verb.params)


def _file(found: Mapping[str, str], environment: Mapping[str, str]) -> str:
    """The file, or the files that count as one."""
    if "--kubeconfig" in found:
        return found["--kubeconfig"]
    listed = [path for path in environment.get("KUBECONFIG", "").split(os.pathsep) if path]
    return os.pathsep.join(listed) or str(Path(environment.get("HOME", "~")).expanduser() / ".kube/config")


if __name__ == "__main__":
    main()
