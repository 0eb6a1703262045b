"""How a run that is to be continued differs from the one that wrote its checkpoint, as a table.

Enters: what the checkpoint keeps of its run, and what the run is now; see
`run_directory.fingerprint`. Leaves: the changes, and whether each may be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_ABSENT = "-"  # the run then had nothing of this name
_LONGEST = 40  # letters of a value
# Their values are hashes, which tell a reader nothing.
_MEANINGS = {
    name: f"other {name}, or read, divided or tokenised otherwise (`data_files`, `dataset_name`, "
    "`validation_share`, `tokenizer_name`, ...)"
    for name in ("corpus", "images")
}


@dataclass(frozen=True)
class Change:
    """A value that is not as it was.

    Attributes:
        name: a flag between backquotes, or in words what else it is.
        then: in the checkpoint's run.
        now: in this one.
        is_allowed: whether a run may go on with it.
    """

    name: str
    then: str
    now: str
    is_allowed: bool

    @property
    def verdict(self) -> str:
        """Whether it may change, in words."""
        meaning = f": {_MEANINGS[self.name]}" if self.name in _MEANINGS else ""
        return ("yes" if self.is_allowed else "no") + meaning


def changes(theirs: dict[str, dict[str, Any]], ours: dict[str, dict[str, Any]]) -> list[Change]:
    """Return what has changed, what must not have before the rest.

    Args:
        theirs: of the checkpoint, as `run_directory.fingerprint` returns it.
        ours: likewise, of this run.
    """
    defining = _compared(theirs.get("defining", {}), ours["defining"], is_allowed=False)
    if any(change.name == "`objective`" for change in defining):  # it explains all others
        return [change for change in defining if change.name == "`objective`"]
    models = (_flat(theirs.get("model", {})), _flat(ours["model"]))
    then = theirs.get("noted", {})
    now = {name: value for name, value in ours["noted"].items() if name in then}  # others are new
    return [
        *defining,
        *_compared(*models, is_allowed=False, prefix="the model's "),
        *_compared(then, now, is_allowed=True),
    ]


def table(found: Sequence[Change]) -> str:
    """Return changes as an aligned table of several lines, under a head.

    Names of flags stand between backquotes, which are as long as the dashes of their spelling.
    """
    rows = [("what", "then", "now", "may it change?")]
    rows += [(change.name, change.then, change.now, change.verdict) for change in found]
    widths = [max(map(len, column)) for column in list(zip(*rows, strict=True))[:-1]]
    lines = []
    for *cells, last in rows:
        padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        lines.append("  ".join(["", *padded, last]))
    return "\n".join(lines)


def _compared(
    then: dict[str, Any], now: dict[str, Any], *, is_allowed: bool, prefix: str = ""
) -> list[Change]:
    found = []
    for name in now:
        if then.get(name) != now[name]:
            is_flag = not prefix and name.isidentifier() and name not in _MEANINGS
            shown = f"`{name}`" if is_flag else f"{prefix}{name}"
            before = _short(then[name]) if name in then else _ABSENT
            found.append(Change(shown, before, _short(now[name]), is_allowed))
    return found


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested configuration as one dict, with names such as encoder.hidden_size."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
