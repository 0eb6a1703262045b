"""Take out of records what is not for others: tokens, absolute paths, names of user and machine.

A record enters (run.json, a data card, a corpus manifest) and a copy fit to be published leaves.
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

from huggingface_hub.constants import HF_HOME

from bert_pretrain.errors import REMOVED, hide_secrets, is_secret_name

# Tokens of Hugging Face, OpenAI, GitHub and GitLab, values assigned to the name of a secret, and
# the user and password of an address.
_TOKEN = re.compile(
    r"\b(?:(?:hf|api_org|ghp|gho)_[A-Za-z0-9]{10,}|(?:sk-|github_pat_|glpat-)[\w-]{10,})"
    r"|(?<=token=)\S+|(?<=password=)\S+|(?<=secret=)\S+|(?<=api_key=)\S+"
    r"|(?<=://)[^\s/@]+:[^\s/@]+(?=@)",
    re.IGNORECASE,
)
# A path from the root, the home folder or a drive, where a word begins; not the // of an address.
_PATH_START = r"(?:file://)?(?:[A-Za-z]:[\\/]|~[\w.-]*[\\/]|/(?=[^\s/])|\\\\)"
_REST = r"[^\s\"'`,;()\[\]{}]*"
_PATH = re.compile(rf"(?<![\w/.:~\\-]){_PATH_START}{_REST}")
# A text that is one path, perhaps behind its flag; it may hold blanks.
_ONE_PATH = re.compile(rf"(?:--[\w-]+=)?(?P<path>{_PATH_START}[^,\n]*)")
_IS_PATH = re.compile(rf"{_PATH_START}|\.\.[\\/]|[^\n=]*[\\/]\.\.[\\/]")
_SHORTEST_NAME = 3  # characters; shorter ones are too often words


def scrub(value: Any, *, keep: Collection[str] = (), paths: Collection[str] = ()) -> Any:
    """Return a JSON-able value in which every text is fit to be published; keys are kept.

    Paths keep their last part, so that a command can still be followed, and the texts of `keep`,
    such as the Hub id of the model, stay whole. Where a path ends cannot be told if there are
    blanks or commas in it: `paths` are those that are known, see `paths_in`.
    """
    if isinstance(value, dict):
        return {
            key: REMOVED
            if isinstance(entry, str) and is_secret_name(key)
            else scrub(entry, keep=keep, paths=paths)
            for key, entry in value.items()
        }
    if isinstance(value, list | tuple):
        return [scrub(entry, keep=keep, paths=paths) for entry in value]
    if not isinstance(value, str) or value in keep or value.partition("=")[2] in keep:
        return value
    text = hide_secrets(_TOKEN.sub(REMOVED, value))
    for path in sorted(paths, key=len, reverse=True):
        whole = rf"(?<![\w/.:~\\-]){re.escape(path)}(?![\w.-]){_REST}"
        text = re.sub(whole, lambda match: _last_part(match[0]), text)
    if match := _ONE_PATH.fullmatch(text):
        text = text[: match.start("path")] + _last_part(match["path"])
    text = _PATH.sub(lambda match: _last_part(match[0]), text)
    for name, substitute in _names_of_this_machine().items():
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", substitute, text)
    return text


def paths_in(*values: Any) -> set[str]:
    """Return the texts among JSON-able values that are paths of this machine, and its own folders.

    Those are absolute ones, those from the home folder, and those that lead up, each as it stands
    and as the absolute path that it means.
    """
    found = {str(Path.cwd()), str(Path.home()), HF_HOME}
    for value in values:
        if isinstance(value, dict):
            found |= paths_in(*value.values())
        elif isinstance(value, list | tuple):
            found |= paths_in(*value)
        elif isinstance(value, str) and _IS_PATH.match(value):
            found |= {value, os.path.abspath(os.path.expanduser(value))}
    return {path.rstrip("\\/") for path in found if len(Path(path).parts) > 1}


def _last_part(path: str) -> str:
    return re.split(r"[\\/]", path.rstrip("\\/"))[-1]


@functools.cache
def _names_of_this_machine() -> dict[str, str]:
    """Return what to write instead of the names of this machine and its user, longest first."""
    host = socket.gethostname()
    users = {Path.home().name}
    with contextlib.suppress(KeyError, OSError):  # containers may have no entry for the account
        users.add(getpass.getuser())
    names = dict.fromkeys(users, "user") | dict.fromkeys((host, host.split(".")[0]), "machine")
    return {
        name: names[name]
        for name in sorted(names, key=len, reverse=True)
        if len(name) >= _SHORTEST_NAME and name not in ("root", "user", "localhost")
    }
