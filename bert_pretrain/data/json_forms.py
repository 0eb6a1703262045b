"""Whether what stands in a JSON file has the form that a type says.

Whoever writes a file can write its digest too, so that a right digest says nothing of the form.
"""

from __future__ import annotations

import types
from typing import Any, Union, get_args, get_origin, get_type_hints, is_typeddict

_MOST = 2**63  # no count of a run is larger


def misfit(value: Any, expected: Any, name: str) -> str:
    """Return what of a JSON value is not as a type says, "" if all is.

    Args:
        value: as JSON gives it.
        expected: a `TypedDict`, list[...], dict[str, ...], a union of these, or a simple type. An
            int is a count; keys that a `TypedDict` does not know are not looked at.
        name: of the value, for what is returned.
    """
    if expected is Any:
        return ""
    if is_typeddict(expected):
        if not isinstance(value, dict):
            return f"{name} is no object"
        if missing := sorted(expected.__required_keys__ - value.keys()):
            return f"{name} has no {missing[0]}"
        hints = get_type_hints(expected)
        parts = [(value[key], hint, key) for key, hint in hints.items() if key in value]
    elif get_origin(expected) is list:
        if not isinstance(value, list):
            return f"{name} is no list"
        parts = [(entry, get_args(expected)[0], f"an entry of {name}") for entry in value]
    elif get_origin(expected) is dict:
        if not isinstance(value, dict):
            return f"{name} is no object"
        parts = [(entry, get_args(expected)[1], f"{key} of {name}") for key, entry in value.items()]
    elif get_origin(expected) in (Union, types.UnionType):
        found = [misfit(value, choice, name) for choice in get_args(expected)]
        return "" if "" in found else found[0]
    else:
        return "" if _is_simple(value, expected) else f"{name} is {str(value)[:40]!r}"
    return next(filter(None, (misfit(*part) for part in parts)), "")


def _is_simple(value: Any, expected: Any) -> bool:
    """Return whether a JSON value is a string, truth value, nothing, count or number as asked."""
    if expected is int:
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST
    if expected is float:  # a sum may be NaN, where an update was left out
        return isinstance(value, float) or _is_simple(value, int)
    return isinstance(value, expected)
