"""One upload to the Hub in a process of its own: `python -m bert_pretrain.publishing.upload FOLDER`.

A process can be stopped whatever its connection does, where a thread that waits for a silent server
would keep the interpreter from ending; and it takes no interpreter lock and, being nice, little
processor time from a training run. The token comes from `HF_TOKEN` or the login, never from the
command line. `publishing.pusher` starts it, and reads the exit status and the last line printed:
the repository's address, or why nothing came of it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, get_session, get_token, set_client_factory
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, OfflineModeIsEnabled

DONE, TRY_AGAIN, HOPELESS = 0, 75, 77  # the last two are EX_TEMPFAIL and EX_NOPERM of sysexits.h
RECORD = "run.json"  # of the run that a model comes from
STATE_FOLDER = "training_state"  # a whole checkpoint, beside the export it belongs to
# Client errors that pass: timeouts, conflicts with another commit, rate limits.
_PASSING_STATUS = (408, 409, 412, 423, 425, 429)
_STORAGE_IS_FULL = 507
_NICENESS = 10


class RefusedError(Exception):
    """Uploading would do what was not asked for; trying again cannot help."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Upload a folder; returns `DONE`, `TRY_AGAIN` or `HOPELESS`."""
    parser = argparse.ArgumentParser(
        prog="python -m bert_pretrain.publishing.upload", description=__doc__
    )
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        help="what to upload; without it the repository is made only",
    )
    parser.add_argument("--repo_id", required=True)
    parser.add_argument("--repo_type", default="model")
    parser.add_argument("--revision", default="main", help="branch, made where it is missing")
    parser.add_argument("--private", action="store_true")
    parser.add_argument(
        "--parent", type=int, help="number of the process with which the upload ends"
    )
    options = parser.parse_args(arguments)
    if options.parent is not None:
        threading.Thread(target=_end_with, args=(options.parent,), daemon=True).start()
    if hasattr(os, "nice"):  # not on Windows
        os.nice(_NICENESS)
    limit_waiting()
    try:
        address = upload(
            options.folder,
            repo_id=options.repo_id,
            repo_type=options.repo_type,
            revision=options.revision,
            private=options.private,
        )
    except Exception as error:  # whatever it is, training goes on and the caller is told
        is_hopeless, reason = diagnose(error)
        sys.stdout.write(f"{reason}\n")
        return HOPELESS if is_hopeless else TRY_AGAIN
    sys.stdout.write(f"{address}\n")
    return DONE


def upload(
    folder: Path | None, *, repo_id: str, repo_type: str, revision: str, private: bool
) -> str:
    """Bring a folder's files to a branch of a repository, both made where they are missing, in one commit.

    Files that are there already are not sent again; files that are there alone stay, except
    training state of other weights.

    Args:
        folder: what to upload; None = only make the repository.
        repo_id: `owner/name`, or a name of the token's owner.
        repo_type: "model" or "dataset".
        revision: branch to commit to.
        private: whether nobody else may see the repository.

    Returns:
        The repository's address.

    Raises:
        RefusedError: there is no token, or the repository is public and `private` is asked for.
    """
    if not (token := get_token()) or not token.isascii():
        raise RefusedError(
            "there is no token, or none that the Hub gives out; set HF_TOKEN or run `hf auth login`"
        )
    api = HfApi(endpoint=constants.ENDPOINT)
    # None leaves a new repository's visibility to its owner's settings.
    url = api.create_repo(repo_id, repo_type=repo_type, private=private or None, exist_ok=True)
    if private and not api.repo_info(url.repo_id, repo_type=repo_type).private:
        raise RefusedError(
            f"{url.repo_id} exists and is public but --hub_private_repo was asked for; make it "
            "private there"
        )
    if folder is None:
        return str(url)
    if revision != constants.DEFAULT_REVISION:
        api.create_branch(url.repo_id, repo_type=repo_type, branch=revision, exist_ok=True)
    is_same_model = _has_same_weights(api, url.repo_id, repo_type, revision, folder)
    api.upload_folder(
        folder_path=folder,
        repo_id=url.repo_id,
        repo_type=repo_type,
        revision=revision,
        commit_message=f"bert-pretrain: {revision}",
        delete_patterns=None if is_same_model else f"{STATE_FOLDER}/*",
    )
    return str(url)


def _has_same_weights(
    api: HfApi, repo_id: str, repo_type: str, revision: str, folder: Path
) -> bool:
    """Return whether a branch holds the model of the same update of the same start of a run as a folder does."""
    own = _update_in(folder / RECORD)
    if own is None:
        return False
    try:
        there = api.hf_hub_download(repo_id, RECORD, repo_type=repo_type, revision=revision)
    except EntryNotFoundError:
        return False
    return own == _update_in(Path(there))


def _update_in(record: Path) -> tuple[str, int] | None:
    """Return when a run was started and after which update its model was recorded; None if that is not known."""
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
        return content["started"], content["step"]
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
    ):  # no record, or one of an older version or another program
        return None


def diagnose(error: BaseException) -> tuple[bool, str]:
    """Return whether trying again is hopeless, and what went wrong in a line."""
    http_error = _cause_of_type(error, HfHubHTTPError)
    if isinstance(http_error, HfHubHTTPError):
        status = http_error.response.status_code
        is_hopeless = (
            400 <= status < 500 and status not in _PASSING_STATUS
        ) or status == _STORAGE_IS_FULL
        return (
            is_hopeless,
            f"it answered {status} "
            f"({http_error.server_message or http_error.response.reason_phrase})",
        )
    # A ValueError is a name or a card that the Hub's rules refuse.
    is_hopeless = isinstance(error, RefusedError | OfflineModeIsEnabled | ValueError)
    if isinstance(error, RefusedError):
        return is_hopeless, str(error)
    lines = str(error).strip().splitlines() or [""]
    return is_hopeless, f"{type(error).__name__}: {lines[0]}"


def _cause_of_type(error: BaseException | None, kind: type[BaseException]) -> BaseException | None:
    while error is not None and not isinstance(error, kind):
        error = error.__cause__ or error.__context__
    return error


def limit_waiting() -> None:
    """Give every request of this process a time after which a silent server is given up; the library waits for ever."""
    seconds = 6 * constants.HF_HUB_DOWNLOAD_TIMEOUT  # a minute, unless the user set that variable
    session = get_session()  # of httpx or of its successor, whichever the library uses
    client_class: Any = type(session)

    def limit(request: Any) -> None:
        request.extensions["timeout"] = dict.fromkeys(("connect", "read", "write", "pool"), seconds)

    hooks = {"request": [*session.event_hooks["request"], limit]}
    set_client_factory(lambda: client_class(follow_redirects=True, event_hooks=hooks))


def _end_with(parent: int) -> None:
    """End this process soon after the one that started it: it could bring an older state to the Hub after a newer."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(TRY_AGAIN)


if __name__ == "__main__":
    sys.exit(main())
