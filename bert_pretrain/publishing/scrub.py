"""What may be read by others: texts without tokens, absolute paths, and the names of user and machine.

The record of a run enters (`run.json`, a data card, a corpus manifest); the same without what
belongs to the machine alone leaves. Paths keep their last part, so that a command can still be
followed.
"""

from __future__ import annotations

import contextlib
import functools
import getpass
import os
import re
import socket
from collections.abc import Collection
from pathlib import Path
from typing import Any

# Tokens of Hugging Face, OpenAI, GitHub and GitLab, and whatever is assigned to a name for such a
# thing.
_TOKEN = re.compile(
    r"\b(?:(?:hf|api_org|ghp|gho)_[A-Za-z0-9]{10,}|(?:sk-|github_pat_|glpat-)[\w-]{10,})"
    r"|(?<=token=)\S+|(?<=password=)\S+|(?<=secret=)\S+|(?<=api_key=)\S+|(?<=://)[^\s/@]+:[^\s/@]+(?=@)",
    re.IGNORECASE,
)
_SECRET_KEY = re.compile(r"(?:.*_)?(?:token|secret|password|api_?key)", re.IGNORECASE)
# A path from the root, the home folder or a drive, where a word begins; not the // of an address.
_PATH_START = r"(?:file://)?(?:[A-Za-z]:[\\/]|~[\w.-]*[\\/]|/(?=[^\s/])|\\\\)"
_PATH = re.compile(rf"(?<![\w/.:~\\-]){_PATH_START}[^\s\"'`,;()\[\]{{}}]*")
_ONE_PATH = re.compile(
    rf"(?:--[\w-]+=)?(?P<path>{_PATH_START}[^,\n]*)"
)  # the value of a flag, blanks and all
_REMOVED = "[removed]"
_SHORTEST_NAME = 3  # of a user or machine: shorter ones are words too often


def scrub(value: Any, *, keep: Collection[str] = ()) -> Any:
    """Return a JSON-able value in which every text is fit to be published.

    Args:
        value: of dictionaries, lists, texts and numbers; the keys are kept.
        keep: texts that are public though they may look otherwise, such as the Hub id of the model.
    """
    if isinstance(value, dict):
        return {
            key: _REMOVED
            if isinstance(entry, str) and _SECRET_KEY.fullmatch(key)
            else scrub(entry, keep=keep)
            for key, entry in value.items()
        }
    if isinstance(value, list | tuple):
        return [scrub(entry, keep=keep) for entry in value]
    if not isinstance(value, str) or value in keep or value.partition("=")[2] in keep:
        return value
    text = _TOKEN.sub(_REMOVED, value)
    for secret in _secrets_of_this_process():
        text = text.replace(secret, _REMOVED)
    if match := _ONE_PATH.fullmatch(text):
        text = text[: match.start("path")] + _last_part(match["path"])
    text = _PATH.sub(lambda match: _last_part(match[0]), text)
    for name, substitute in _names_of_this_machine().items():
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", substitute, text)
    return text


def _last_part(path: str) -> str:
    return re.split(r"[\\/]", path.rstrip("\\/"))[-1]


def _secrets_of_this_process() -> list[str]:
    """Return the values of environment variables that are named like secrets, such as HF_TOKEN, WANDB_API_KEY."""
    return [
        value
        for name, value in os.environ.items()
        if len(value) >= 8 and _SECRET_KEY.fullmatch(name)
    ]


@functools.cache
def _names_of_this_machine() -> dict[str, str]:
    """Return what to write for the names by which this machine and its user are known."""
    host = socket.gethostname()
    users = {Path.home().name}
    with contextlib.suppress(
        KeyError, OSError
    ):  # an account without an entry, as in some containers
        users.add(getpass.getuser())
    names = dict.fromkeys(users, "user") | dict.fromkeys((host, host.split(".")[0]), "machine")
    ordinary = {"root", "user", "localhost"}
    longest_first = sorted(names, key=len, reverse=True)
    return {
        name: names[name]
        for name in longest_first
        if len(name) >= _SHORTEST_NAME and name not in ordinary
    }
