"""One upload to the Hub in a process of its own: `python -m bert_pretrain.publishing.upload JSON`.

The only argument holds the arguments of `upload` and the number of the `parent` process. A process
can be stopped whatever its connection does; a thread that waits for a silent server would keep the
interpreter from ending. It also shares no interpreter lock with training, and being nice it takes
little processor time from it. The token comes from `HF_TOKEN` or the login, never from the command
line. `publishing.pusher` starts it and reads the exit status and the last line printed: the
repository's address, or why the upload failed.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
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


def main() -> int:
    """Upload a folder; returns `DONE`, `TRY_AGAIN` or `HOPELESS`."""
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
    """Bring a folder's files to a branch of a repository in one commit, making both if necessary.

    Files that are there already are not sent again. Other files of the branch stay, except training
    state that belongs to other weights.

    Args:
        folder: what to upload; None = only make the repository.
        repo_id: `owner/name`, or a name of the token's owner.
        repo_type: "model" or "dataset".
        revision: branch to commit to.
        is_private: whether nobody else may see the repository.

    Returns:
        The repository's address.

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
    own = _update_in(Path(folder) / RECORD)
    is_same_model = own is not None and own == _published_update(
        api, url.repo_id, repo_type=repo_type, revision=revision
    )
    api.upload_folder(
        folder_path=folder,
        repo_id=url.repo_id,
        repo_type=repo_type,
        revision=revision,
        commit_message=f"bert-pretrain: {revision}",
        delete_patterns=None if is_same_model else f"{STATE_FOLDER}/*",
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
    # A ValueError is a name or a card that the Hub's rules refuse.
    is_hopeless = isinstance(error, OfflineModeIsEnabled | ValueError)
    first_line = (str(error).strip().splitlines() or [""])[0]
    return is_hopeless, f"{type(error).__name__}: {first_line}"


def limit_waiting() -> None:
    """Let every request of this process give up a silent server; the library waits for ever."""
    seconds = 6 * constants.HF_HUB_DOWNLOAD_TIMEOUT  # a minute, unless the user set that variable
    session = get_session()  # of httpx or of its successor, whichever the library uses
    client_class: Any = type(session)

    def limit(request: Any) -> None:
        request.extensions["timeout"] = dict.fromkeys(("connect", "read", "write", "pool"), seconds)

    hooks = {"request": [*session.event_hooks["request"], limit]}
    set_client_factory(lambda: client_class(follow_redirects=True, event_hooks=hooks))


def _published_update(
    api: HfApi, repo_id: str, *, repo_type: str, revision: str
) -> tuple[str, int] | None:
    """Return `_update_in` of the record that a branch of a repository holds."""
    try:
        record = api.hf_hub_download(repo_id, RECORD, repo_type=repo_type, revision=revision)
    except EntryNotFoundError:
        return None
    return _update_in(Path(record))


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
