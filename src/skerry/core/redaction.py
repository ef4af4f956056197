"""What of a request may be shown in the audit log: values without secrets, by rule. Pure.

What is called like a secret has no value here, wherever it is: a field, a parameter, an option of a command, a pair of
name and value, a variable of an environment, or JSON inside a string as kubectl's last-applied annotation has it. What
looks like a credential is never shown, whatever it is called. Must not live here: what is recorded (`audit_policy`).
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote_plus

import msgspec

MAX_DEPTH = 40
REDACTED = "[redacted]"
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"

_WORDS = (
    r"token|secret|password|passwd|passphrase|\bpwd\b|credential|authorization|api[-_.]?key|private[-_.]?key|"
    r"access[-_.]?key|bearer|connection[-_.]?string"
)
_SECRET = re.compile(rf"(?i)({_WORDS})")
_NOT_SECRET = frozenset({"tokenid", "tokenttl", "automountserviceaccounttoken", "secretref", "secretname"})
_PARAMETERS = frozenset({"code", "key", "sig", "signature", "x-amz-signature"})
"""Parameters of addresses that are as good as a password, besides those that are called like one."""
_OPTION = re.compile(rf"(?i)-{{1,2}}[\w.-]{{0,64}}?({_WORDS})[\w.-]{{0,64}}|-u|--user")
"""An option of a command whose value is the next word."""
_ASSIGNED = re.compile(
    rf"(?i)((?:{_WORDS})[\w.-]{{0,64}}[\"']?\s{{0,8}}(?:=|:(?!//))\s{{0,8}})"
    r"((?:(?:bearer|basic|digest)\s{1,8})?(?:\"(?:[^\"\\]|\\.)*\"?|'[^']*'?|[^\s\"',;&}\]]+))"
)
# Bodies come from whoever may write: nothing here may go through the same text again and again.
_CREDENTIAL = re.compile(
    r"sk[a-z]1\.[^\s\"'&,;]{8,}"  # this hub's own: join tokens, registry tokens and their bearers
    r"|(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]{8,2048}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*"  # JWT
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----(?:[^-]|-(?!----END))*(?:-----END [A-Z ]*PRIVATE KEY-----)?"
    r"|(?<=://)[^\s/@:\"']*+:[^\s/@\"']*+(?=@)"  # user:password of an address
    r"|(?i:(?<=bearer )|(?<=basic ))[A-Za-z0-9+/=._~-]{8,}"
)
_ENVIRONMENTS = frozenset({"env", "environment"})
_VALUES = frozenset({"value", "values", "default"})
_DECODINGS = 3
"""So often something may be percent-encoded, one time around the other."""


def is_secret(name: str) -> bool:
    """Return whether what is called so is nobody's business."""
    return _SECRET.search(name) is not None and name.lower() not in _NOT_SECRET


def credentials(text: str) -> str:
    """Return a text without what looks like a credential: a name, a path, a program."""
    return _CREDENTIAL.sub(REDACTED, text)


def text(value: str) -> str:
    """Return a sentence or a setting without credentials and without what is said to be a secret's value."""
    return _ASSIGNED.sub(rf"\1{REDACTED}", credentials(value))


def query(raw: str) -> str:
    """Return the query of an address without the values of parameters that are secret, however they are encoded."""
    shown, option = [], False
    for pair in raw.split("&"):
        name, equals, value = pair.partition("=")
        plain_name, plain = _decoded(name), _decoded(value)
        hidden = option or is_secret(plain_name) or plain_name.lower() in _PARAMETERS or text(plain) != plain
        if text(plain_name) != plain_name:
            name = REDACTED
        shown.append(f"{name}{equals}{REDACTED if hidden and value else value}")
        option = plain_name == "command" and _OPTION.fullmatch(plain) is not None
    return "&".join(shown)


def redacted(value: Any, depth: int = 0) -> Any:
    """Return a JSON value without what may be secret."""
    if depth > MAX_DEPTH:
        return REDACTED
    if isinstance(value, dict):
        return {credentials(key): item for key, item in _fields(value, depth + 1)}
    if isinstance(value, list):
        before = ["", *(item if isinstance(item, str) else "" for item in value)]
        return [
            REDACTED if _OPTION.fullmatch(option) and isinstance(item, str) else redacted(item, depth + 1)
            for option, item in zip(before, value, strict=False)
        ]
    return _string(value, depth) if isinstance(value, str) else value


def _fields(value: dict[str, Any], depth: int) -> list[tuple[str, Any]]:
    """Return the fields of an object, redacted by what they and the others among them are called."""
    named = any(is_secret(str(value.get(key, ""))) for key in ("name", "key", "Name", "Key"))
    steps = [step.replace("~1", "/").replace("~0", "~") for step in _path(value).split("/")]
    patched = any(is_secret(step) for step in steps)
    in_environment = not _ENVIRONMENTS.isdisjoint(step.lower() for step in steps)
    found: list[tuple[str, Any]] = []
    for key, item in value.items():
        if is_secret(key) or (key in _VALUES and (named or patched)):
            shown = _nothing(item)
        elif key.lower() in _ENVIRONMENTS or (key == "value" and in_environment):
            shown = _environment(item, depth)
        elif value.get("kind") == "Secret" and key in ("data", "stringData"):
            shown = _nothing(item)
        elif (key == LAST_APPLIED or (key == "value" and LAST_APPLIED in steps)) and isinstance(item, str):
            shown = _inner(item, depth) or REDACTED
        else:  # each value is gone through once: what is in it may be twice as deep for every time
            shown = redacted(item, depth)
        found.append((key, shown))
    return found


def _path(value: dict[str, Any]) -> str:
    """Return where one operation of a JSON patch goes; empty for anything else."""
    path = value.get("path")
    return path if isinstance(path, str) and "value" in value else ""


def _environment(value: Any, depth: int) -> Any:
    """Return variables by their names alone: their values are secrets as often as not."""
    if isinstance(value, list):
        return [_environment(item, depth + 1) for item in value] if depth <= MAX_DEPTH else REDACTED
    if isinstance(value, dict):
        if isinstance(value.get("name"), str):
            return {
                credentials(key): _nothing(item) if key == "value" else redacted(item, depth + 1)
                for key, item in value.items()
            }
        return {credentials(key): _nothing(item) for key, item in value.items()}
    return _nothing(value)


def _nothing(value: Any) -> Any:
    """Return what is shown of a secret: whether there is one."""
    return value if value is None or isinstance(value, bool) else REDACTED


def _string(value: str, depth: int) -> str:
    return _inner(value, depth) or text(value)


def _inner(value: str, depth: int) -> str:
    """Return a string that holds JSON, redacted; empty for one that holds none."""
    if value.lstrip()[:1] not in ("{", "["):
        return ""
    try:
        return msgspec.json.encode(redacted(msgspec.json.decode(value), depth + 1)).decode()
    except (msgspec.DecodeError, ValueError, RecursionError):
        return ""


def _decoded(raw: str) -> str:
    for _ in range(_DECODINGS):
        plain = unquote_plus(raw, errors="replace")
        if plain == raw:
            break
        raw = plain
    return raw
