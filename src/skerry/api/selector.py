"""Label and field selectors: parse the query-string form, match the structured and the parsed form.

Source: Kubernetes API concepts, labels and selectors; `!=` and `notin` also match objects that lack the key.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from skerry.api.errors import InvalidError
from skerry.api.meta import LabelSelector, LabelSelectorRequirement

MAX_SELECTOR_LENGTH = 4096
_KEY = r"(?:[A-Za-z0-9](?:[-A-Za-z0-9.]{0,251}[A-Za-z0-9])?/)?[A-Za-z0-9](?:[-_.A-Za-z0-9]{0,61}[A-Za-z0-9])?"
_VALUE = r"(?:[A-Za-z0-9](?:[-_.A-Za-z0-9]{0,61}[A-Za-z0-9])?)?"
_HINT = "write it as in site=lab,tier!=test,arch in (amd64,arm64),!retired"

_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(rf"({_KEY})\s+in\s*\(([^()]*)\)"), "In"),
    (re.compile(rf"({_KEY})\s+notin\s*\(([^()]*)\)"), "NotIn"),
    (re.compile(rf"({_KEY})\s*!=\s*({_VALUE})"), "NotIn"),
    (re.compile(rf"({_KEY})\s*==?\s*({_VALUE})"), "In"),
    (re.compile(rf"!\s*({_KEY})()"), "DoesNotExist"),
    (re.compile(rf"({_KEY})()"), "Exists"),
)
_LABEL_VALUE = re.compile(_VALUE)
_LABEL_KEY = re.compile(_KEY)


def is_label_key(text: str) -> bool:
    """Return whether Kubernetes would take this as a label's (or annotation's) key."""
    return len(text) <= 317 and _LABEL_KEY.fullmatch(text) is not None


def is_label_value(text: str) -> bool:
    """Return whether Kubernetes would take this as a label's value: at most 63 characters, or empty."""
    return len(text) <= 63 and _LABEL_VALUE.fullmatch(text) is not None


def parse_labels(text: str) -> list[LabelSelectorRequirement]:
    """Parse `a=b,c in (d,e),!f`. Empty text selects everything. Raises InvalidError."""
    _check_length(text, "label selector")
    return [_parse_term(term) for term in _split_terms(text)]


def requirements(selector: LabelSelector) -> list[LabelSelectorRequirement]:
    """Return a structured selector as its list of requirements. Raises InvalidError for what Kubernetes refuses."""
    exact = [LabelSelectorRequirement(key=k, operator="In", values=[v]) for k, v in selector.match_labels.items()]
    for requirement in (*exact, *selector.match_expressions):
        _check(requirement)
    return [*exact, *selector.match_expressions]


def matches(wanted: Sequence[LabelSelectorRequirement], labels: Mapping[str, str]) -> bool:
    """Return whether labels meet all requirements."""
    return all(_meets(requirement, labels) for requirement in wanted)


def render(wanted: Sequence[LabelSelectorRequirement]) -> str:
    """Return the query-string form; `parse_labels` gives the same requirements back."""
    forms: dict[str, Callable[[LabelSelectorRequirement], str]] = {
        "In": lambda r: f"{r.key}={r.values[0]}" if len(r.values) == 1 else f"{r.key} in ({','.join(r.values)})",
        "NotIn": lambda r: f"{r.key}!={r.values[0]}" if len(r.values) == 1 else f"{r.key} notin ({','.join(r.values)})",
        "Exists": lambda r: r.key,
        "DoesNotExist": lambda r: f"!{r.key}",
    }
    return ",".join(forms[r.operator](r) for r in wanted)


def parse_fields(text: str, allowed: Sequence[str]) -> list[tuple[str, bool, str]]:
    """Parse `metadata.name=x,status.phase!=Online` into (path, equal, value). Raises InvalidError."""
    _check_length(text, "field selector")
    terms: list[tuple[str, bool, str]] = []
    for term in filter(None, (part.strip() for part in text.split(","))):
        operator = next((o for o in ("!=", "==", "=") if o in term), "")
        path, _, value = (part.strip() for part in term.partition(operator)) if operator else ("", "", "")
        if path not in allowed:
            raise InvalidError(
                f'"{term[:80]}" is not a supported field selector',
                element="field selector",
                hint=f"fields: {', '.join(allowed)}; operators: =, !=",
            )
        terms.append((path, operator != "!=", value))
    return terms


def _check_length(text: str, element: str) -> None:
    if len(text) > MAX_SELECTOR_LENGTH:
        raise InvalidError(f"is longer than {MAX_SELECTOR_LENGTH} characters", element=element)


def _split_terms(text: str) -> list[str]:
    terms, depth, start = [], 0, 0
    for position, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if character == "," and depth == 0:
            terms.append(text[start:position])
            start = position + 1
    terms.append(text[start:])
    if terms == [""] or not text.strip():
        return []
    return [term.strip() for term in terms]


def _parse_term(term: str) -> LabelSelectorRequirement:
    for pattern, operator in _PATTERNS:
        match = pattern.fullmatch(term)
        if match is None:
            continue
        key, rest = match.groups()
        listed = "(" in term
        values = [value.strip() for value in rest.split(",")] if listed else [rest]
        requirement = LabelSelectorRequirement(
            key=key,
            operator=operator,  # type: ignore[arg-type]
            values=[] if operator in ("Exists", "DoesNotExist") else values,
        )
        _check(requirement)
        return requirement
    raise InvalidError(f'"{term[:80]}" cannot be read', element="label selector", hint=_HINT)


def _check(requirement: LabelSelectorRequirement) -> None:
    element = f'label selector, key "{requirement.key[:80]}"'
    if not is_label_key(requirement.key):
        raise InvalidError("is not a label key", element=element, hint="letters, digits, '-', '_', '.', at most 63")
    takes_values = requirement.operator in ("In", "NotIn")
    if takes_values != bool(requirement.values):
        must = "needs at least one value" if takes_values else "takes no values"
        raise InvalidError(f"operator {requirement.operator} {must}", element=element)
    for value in requirement.values:
        if not is_label_value(value):
            raise InvalidError(f'"{value[:80]}" is not a label value', element=element, hint=_HINT)


def _meets(requirement: LabelSelectorRequirement, labels: Mapping[str, str]) -> bool:
    value = labels.get(requirement.key)
    match requirement.operator:
        case "In":
            return value is not None and value in requirement.values
        case "NotIn":
            return value is None or value not in requirement.values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
