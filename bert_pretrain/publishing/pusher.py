"""Publishing beside training: an outbox in the run directory, and a thread that empties it.

What is to be published is first put whole into the outbox, as hard links where it is on disk
already. The trainer may then remove its checkpoint, the program may be killed and the Hub may be
down: the files wait there for `bert-pretrain hub push`. Uploads run one after the other, each in a
process of its own (`hub.py`), so that no training step waits for them.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError
from tqdm.auto import tqdm

from bert_pretrain.data.programs import environment
from bert_pretrain.errors import InputError
from bert_pretrain.publishing.hub import DONE, HOPELESS, TRY_AGAIN

OUTBOX = "hub"  # folder of a run directory
MAIN = "main"  # the branch that users of a repository see first
MAX_TRIES = 8  # of one upload, until something new is submitted or the run ends
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 300.0  # seconds between tries; each is twice the one before
# An upload may take ten minutes and a second for every 100 kB; it notices a silent server itself,
# much earlier.
_LEAST_SECONDS, _BYTES_PER_SECOND = 600.0, 100_000


class HubPusher:
    """Pushes folders to branches of a repository, in the background, in order, with retries.

    Its process must be the only one that writes to the outbox.
    """

    def __init__(
        self,
        outbox: Path,
        repo_id: str,
        *,
        is_private: bool,
        finish_command: str,
        repo_type: str = "model",
        say: Callable[[str], None] = tqdm.write,
    ) -> None:
        """Make the repository, and push what an earlier run has left in the outbox, if anything.

        Args:
            outbox: folder for what waits; made when needed.
            repo_id: `owner/name`, or a name of the token's owner.
            is_private: make a new repository private, and refuse one that exists and is public.
            finish_command: what a user types to push later what was not pushed.
            repo_type: "model" or "dataset".
            say: prints a line; called from the thread too.
        """
        self.repo_id, self.say = repo_id, say
        self._outbox, self._finish_command = outbox, finish_command
        self._repository = {"repo_id": repo_id, "repo_type": repo_type, "is_private": is_private}
        self._not_submitted: dict[str, str] = {}  # branch -> why it did not get into the outbox
        self._pushed: set[str] = set()  # branches
        self._address = ""  # of the repository, once the Hub has told it
        self._tries: dict[str, int] = {}  # by the name of a folder in the outbox
        self._reasons: dict[str, str] = {}  # why the last try failed, likewise
        self._last_reason = ""
        self._wait = _FIRST_WAIT  # seconds until the next try
        self._change = threading.Condition()
        self._is_closing = self._is_out_of_time = False
        self._process: subprocess.Popen[str] | None = None
        for leftover in outbox.glob("*.tmp"):  # half a folder, of a process that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        self._thread = threading.Thread(target=self._work, name="hub-pusher", daemon=True)
        self._thread.start()

    def submit(self, fill: Callable[[Path], None], *branches: str) -> bool:
        """Put what `fill` writes into a folder into the outbox, to be pushed to some branches.

        It replaces what still waits for the same branch.

        Returns:
            Whether it is in the outbox; if not, the reason has been said.
        """
        aside = self._outbox / "filling.tmp"
        files = aside / "files"
        left = list(branches)
        try:
            files.mkdir(parents=True)
            fill(files)
            with self._change:
                for branch in branches:
                    link_tree(files, aside / branch)
                    waiting = waiting_in(self._outbox)
                    number = int(waiting[-1].name.partition("-")[0]) + 1 if waiting else 1
                    os.replace(aside / branch, self._outbox / f"{number:06d}-{branch}")
                    self._not_submitted.pop(branch, None)
                    left.remove(branch)
                self._try_anew()
        # Most likely the disk is full, of which safetensors has an error of its own, or a
        # checkpoint is damaged. The run itself has what it needs and goes on.
        except (OSError, SafetensorError, InputError) as error:
            reason = f"it could not be put into {self._outbox}: {error}"
            self._not_submitted |= dict.fromkeys(left, reason)
            self.say(f"WARNING: {', '.join(left)} is not pushed to the Hub: {reason}")
            return False
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return True

    def finish(self, max_seconds: float | None) -> bool:
        """Wait until all is pushed or cannot be, say how it ended, and return whether all was.

        After `max_seconds` an upload is stopped; None = only its tries are limited.
        """
        with self._change:
            self._is_closing = True
            self._try_anew()
        if num_waiting := len({branch_of(path) for path in waiting_in(self._outbox)}):
            limit = "" if max_seconds is None else f", at most {max_seconds:,.0f} s"
            self.say(f"waiting for {num_waiting} upload(s) to the Hub{limit}")
        self._thread.join(max_seconds)
        while self._thread.is_alive():
            self._is_out_of_time = True
            with self._change:
                self._change.notify_all()
                process = self._process  # the thread may set it to None at any time
                if process is not None:
                    process.kill()
            self._thread.join(0.1)
        waiting = waiting_in(self._outbox)
        with contextlib.suppress(OSError):  # there is something in it, or it was never made
            self._outbox.rmdir()
        if self._pushed:
            self.say(f"pushed to {self._address}: {', '.join(sorted(self._pushed))}")
        for path in waiting:
            reason = self._reasons.get(path.name, "there was no time")
            self.say(f"NOT pushed: {branch_of(path)} ({reason}); its files are kept in {path}")
        for branch, reason in self._not_submitted.items():
            self.say(f"NOT pushed: {branch} ({reason})")
        if waiting or self._not_submitted:
            self.say(f"to finish later: {self._finish_command}")
        return not waiting and not self._not_submitted

    def __enter__(self) -> HubPusher:
        return self

    def __exit__(self, *error: object) -> None:
        """Stop at once when the block has failed; what waits stays in the outbox."""
        if self._thread.is_alive():
            self.finish(0)

    def _work(self) -> None:
        self._attempt(None)  # a refused token is known while there is time to do something about it
        while True:
            with self._change:
                folder = self._next()
                if folder is None:
                    if self._is_closing:
                        return
                    self._change.wait()
                    continue
            is_pushed = self._attempt(folder)
            with self._change:
                if is_pushed:
                    self._wait = _FIRST_WAIT
                elif self._next() is not None:
                    wait, self._wait = self._wait, min(2 * self._wait, _LONGEST_WAIT)
                    self._change.wait(wait)  # or until something is submitted or the run ends

    def _try_anew(self) -> None:
        self._tries.clear()
        self._wait = _FIRST_WAIT
        self._change.notify_all()

    def _next(self) -> Path | None:
        """Return the folder to try next, the least tried and then the oldest, if one is left."""
        if self._is_out_of_time:
            return None
        waiting = waiting_in(self._outbox)
        newest = {branch_of(path): path for path in waiting}
        for path in set(waiting) - set(newest.values()):
            _remove(path)
        candidates = [path for path in newest.values() if self._tries.get(path.name, 0) < MAX_TRIES]
        return min(candidates, key=lambda path: (self._tries.get(path.name, 0), path), default=None)

    def _attempt(self, folder: Path | None) -> bool:
        """Upload a folder, or for None only make the repository; returns whether that succeeded."""
        try:
            status, answer = self._upload(folder)
        except OSError as error:  # no memory for another process, say; the thread goes on
            status, answer = TRY_AGAIN, f"the upload could not be started ({error})"
        if status == DONE:
            self._address = answer
            if folder is not None:
                self._pushed.add(branch_of(folder))
                _remove(folder)
            return True
        if self._is_out_of_time:
            return False
        name, is_hopeless = "" if folder is None else folder.name, status == HOPELESS
        with self._change:
            self._tries[name] = MAX_TRIES if is_hopeless else self._tries.get(name, 0) + 1
        self._reasons[name] = answer
        if answer != self._last_reason:
            self._last_reason = answer
            again = "it will be tried again"
            if is_hopeless:
                again = "not tried again before the next upload"
            self.say(f"WARNING: the Hub did not take an upload: {answer}; nothing is lost, {again}")
        return False

    def _upload(self, folder: Path | None) -> tuple[int, str]:
        """Run an upload process to its end and return its exit status and its last line."""
        request = self._repository | {"parent": os.getpid(), "folder": None, "revision": MAIN}
        seconds = _LEAST_SECONDS
        if folder is not None:
            request |= {"folder": str(folder), "revision": branch_of(folder)}
            sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
            seconds += sum(sizes) / _BYTES_PER_SECOND
        with subprocess.Popen(
            [sys.executable, "-m", "bert_pretrain.publishing.hub", json.dumps(request)],
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            self._process = process
            try:
                answer, trouble = process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                answer, trouble = f"the upload was not done after {seconds:,.0f} s", ""
            finally:
                self._process = None
        lines = answer.strip().splitlines() or trouble.strip().splitlines()
        return process.returncode, lines[-1] if lines else "the upload was stopped"


def waiting_in(outbox: Path) -> list[Path]:
    """Return what waits in an outbox, oldest first, without what is still being written."""
    return sorted(outbox.glob("[0-9]*-*"))


def branch_of(folder: Path) -> str:
    """Return the branch for which a folder waits in an outbox."""
    return folder.name.partition("-")[2]


def link_tree(source: Path, target: Path) -> None:
    """Copy a folder, as hard links where the file system has them; an existing target is filled."""
    shutil.copytree(source, target, copy_function=link, dirs_exist_ok=True)


def link(source: str | Path, target: str | Path) -> None:
    """Hard-link a file, or copy it where the file system has no links.

    Of a symbolic link, as the cache of the Hub has them, it is the file that it leads to.
    """
    source = os.path.realpath(source)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _remove(folder: Path) -> None:
    # Renamed first, so that an interruption never leaves half of it waiting to be pushed.
    doomed = folder.with_name(f"removed-{folder.name}.tmp")
    with contextlib.suppress(OSError):
        os.replace(folder, doomed)
    shutil.rmtree(doomed, ignore_errors=True)
