"""What goes to the Hub and comes from it: uploads of folders, checkpoints and prepared corpora.

`python -m bert_pretrain.publishing.hub JSON` is one upload in a process of its own, which can be
stopped whatever its connection does; a thread that waits for a silent server would keep the
interpreter from ending. `publishing.pusher` starts it and reads the exit status and the last line:
the repository's address, or why the upload failed. The token comes from `HF_TOKEN` or the login.
Downloads land in the Hugging Face cache, where several processes may ask for them at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import threading
import time
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, get_session, get_token, set_client_factory
from huggingface_hub.errors import (
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
)

from bert_pretrain.errors import InputError

DONE, TRY_AGAIN, HOPELESS = 0, 75, 77  # the last two are EX_TEMPFAIL and EX_NOPERM of sysexits.h
RECORD = "run.json"  # of the run that a model comes from
STATE_FOLDER = "training_state"  # a whole checkpoint, beside the export it belongs to
# Client errors that pass: timeouts, conflicts with another commit, rate limits.
_PASSING_STATUS = (408, 409, 412, 423, 425, 429)
_STORAGE_IS_FULL = 507
_NICENESS = 10
_REPO_ID = r"[\w.-]+/[\w.-]+"
_CHECKPOINT = re.compile(rf"{_REPO_ID}@[\w./-]+")
_MANIFEST = "manifest.json"  # of a prepared corpus


class RefusedError(Exception):
    """Uploading would do what was not asked for; trying again cannot help."""


def main() -> int:
    """Upload by the arguments in JSON, which also name the parent; returns how it ended."""
    request = json.loads(sys.argv[1])
    threading.Thread(target=_end_with, args=(request.pop("parent"),), daemon=True).start()
    if hasattr(os, "nice"):  # not on Windows
        os.nice(_NICENESS)
    limit_waiting()
    try:
        answer, status = upload(**request), DONE
    except Exception as error:  # whatever it is, training goes on and the parent is told
        is_hopeless, answer = diagnose(error)
        status = HOPELESS if is_hopeless else TRY_AGAIN
    sys.stdout.write(f"{answer}\n")
    return status


def upload(
    folder: str | None, *, repo_id: str, repo_type: str, revision: str, is_private: bool
) -> str:
    """Bring a folder's files to a branch of a repository in one commit; return its address.

    Repository (for no folder it alone) and branch are made if necessary. Files that are there
    already are not sent again; others stay, except training state that belongs to other weights.

    Raises:
        RefusedError: there is no token, or the repository exists and is public but `is_private`.
    """
    if not (token := get_token()) or not token.isascii():
        raise RefusedError(
            "there is no token, or none that the Hub gives out; set HF_TOKEN or run `hf auth login`"
        )
    api = HfApi(endpoint=constants.ENDPOINT)
    # None leaves a new repository's visibility to its owner's settings.
    url = api.create_repo(repo_id, repo_type=repo_type, private=is_private or None, exist_ok=True)
    if is_private and not api.repo_info(url.repo_id, repo_type=repo_type).private:
        raise RefusedError(
            f"{url.repo_id} exists and is public but a private repository was asked for; make it "
            "private there"
        )
    if folder is None:
        return str(url)
    if revision != constants.DEFAULT_REVISION:
        api.create_branch(url.repo_id, repo_type=repo_type, branch=revision, exist_ok=True)
    branch: Any = {"repo_id": url.repo_id, "repo_type": repo_type, "revision": revision}
    own, published = _update_in(Path(folder) / RECORD), None
    if own is not None:
        # Not what the cache has, nor nothing because there was no answer.
        with contextlib.suppress(RemoteEntryNotFoundError):
            record = api.hf_hub_download(filename=RECORD, force_download=True, **branch)
            published = _update_in(Path(record))
    api.upload_folder(
        folder_path=folder,
        commit_message=f"bert-pretrain: {revision}",
        delete_patterns=f"{STATE_FOLDER}/*" if own is None or own != published else None,
        **branch,
    )
    return str(url)


def diagnose(error: BaseException) -> tuple[bool, str]:
    """Return whether trying again is hopeless, and what went wrong, in one line."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, HfHubHTTPError):
        cause = cause.__cause__ or cause.__context__
    if isinstance(cause, HfHubHTTPError):
        status = cause.response.status_code
        is_refused = 400 <= status < 500 and status not in _PASSING_STATUS
        reason = cause.server_message or cause.response.reason_phrase
        return is_refused or status == _STORAGE_IS_FULL, f"it answered {status} ({reason})"
    if isinstance(error, RefusedError):
        return True, str(error)
    # A ValueError is a name or a card that the Hub's rules refuse; an answer that is no JSON is
    # some proxy's.
    is_garbled = isinstance(error, json.JSONDecodeError | UnicodeError)
    is_hopeless = isinstance(error, OfflineModeIsEnabled | ValueError) and not is_garbled
    return is_hopeless, f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


def limit_waiting() -> None:
    """Let every request of this process give up a silent server; the library waits for ever."""
    seconds = 6 * constants.HF_HUB_DOWNLOAD_TIMEOUT  # a minute, unless the user set that variable
    session = get_session()  # of httpx or of its successor, whichever the library uses
    client_class: Any = type(session)

    def limit(request: Any) -> None:
        request.extensions["timeout"] = dict.fromkeys(("connect", "read", "write", "pool"), seconds)

    hooks = {"request": [*session.event_hooks["request"], limit]}
    set_client_factory(lambda: client_class(follow_redirects=True, event_hooks=hooks))


def is_hub_checkpoint(name: str) -> bool:
    """Return whether a name reads `owner/name@revision` and is no path that exists."""
    return _CHECKPOINT.fullmatch(name) is not None and not Path(name).exists()


def download_checkpoint(name: str) -> Path:
    """Return the folder of a checkpoint, `owner/name@revision`, that was pushed beside its export.

    Raises:
        InputError: there is no such repository or revision, or no training state in it.
    """
    repo_id, _, revision = name.partition("@")
    try:
        snapshot = HfApi(endpoint=constants.ENDPOINT).snapshot_download(
            repo_id, revision=revision, allow_patterns=f"{STATE_FOLDER}/*"
        )
    except Exception as error:  # of the network, of the Hub, of the disk
        raise InputError(
            f"`resume_from_checkpoint` {name} cannot be fetched from the Hub "
            f"({diagnose(error)[1]})",
            advice="pass owner/name@revision of a repository that this machine's token may read, "
            "or a checkpoint folder",
        ) from error
    folder = Path(snapshot) / STATE_FOLDER
    if not folder.is_dir():
        raise InputError(
            f"`resume_from_checkpoint` {name} holds a model but no training state: it was pushed "
            "without `hub_push_state`",
            advice=f"begin a new run from its weights with `model_name_or_path` {repo_id}",
        )
    return folder


def download_corpus(name: str) -> Path | None:
    """Return the folder of a prepared corpus of the Hub, if `name` (`owner/name`) is one.

    Raises:
        InputError: it is one and cannot be fetched.
    """
    if re.fullmatch(_REPO_ID, name) is None or Path(name).exists():
        return None
    api = HfApi(endpoint=constants.ENDPOINT)
    try:
        manifest = Path(api.hf_hub_download(name, _MANIFEST, repo_type="dataset"))
        if not {"format_version", "tokenizer", "counts"} <= set(json.loads(manifest.read_text())):
            return None
    except Exception:  # no such data set or no answer: whoever reads data sets says so
        return None
    patterns = ["*.json", "*.arrow", "*.npy"]
    try:
        return Path(api.snapshot_download(name, repo_type="dataset", allow_patterns=patterns))
    except Exception as error:  # of the network, of the Hub, of the disk
        raise InputError(
            f"the prepared corpus {name} cannot be fetched from the Hub ({diagnose(error)[1]})",
            advice="try again later, or download it and pass the folder as `dataset_name`",
        ) from error


def _update_in(record: Path) -> tuple[str, int] | None:
    """Return the start of a run and the update that a record is of; None if it does not say."""
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
        return content["started"], content["step"]
    except (OSError, ValueError, KeyError, TypeError):  # none, or another program's
        return None


def _end_with(parent: int) -> None:
    """End this process soon after its parent: later it could overwrite what a newer run pushes."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(TRY_AGAIN)


if __name__ == "__main__":
    sys.exit(main())
