"""Publishing beside training: an outbox in the run directory, and a thread that empties it.

What is to be published is first put into the outbox, whole, as hard links where it is on disk
already. The trainer may then remove its checkpoint, the program may be killed and the Hub may be
down: what was not pushed waits there for `bert-pretrain hub push`. Uploads run one after the other,
each in a process of its own (`upload.py`), so that no step waits for them and none can keep the
program from ending.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from safetensors import SafetensorError
from tqdm.auto import tqdm

from bert_pretrain.errors import InputError
from bert_pretrain.publishing.upload import DONE, HOPELESS, TRY_AGAIN

OUTBOX = "hub"  # folder of a run directory
MAX_TRIES = 8  # of one upload, until something new is submitted or the run ends
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 300.0  # seconds between tries; each is twice the one before
_ROOT = str(Path(__file__).parents[2])  # from where the package is imported here, installed or not
# An upload may take ten minutes and a second for every 100 kB; that it hangs is noticed by itself
# much earlier.
_LEAST_SECONDS, _BYTES_PER_SECOND = 600.0, 100_000


class HubPusher:
    """Pushes folders to a repository's branches in the background, in order, trying again what fails.

    One pusher at a time empties an outbox: its process must be the only one to write into that
    folder.

    Attributes:
        repo_id: as asked for.
        say: prints a line; called from the thread too.
        pushed: branches pushed so far, oldest first.
        address: of the repository, once the Hub has told it.
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
        """Start pushing what an earlier run has left in the outbox, if anything.

        Args:
            outbox: folder for what waits; made when needed.
            repo_id: `owner/name`, or a name of the token's owner.
            is_private: whether a new repository is private; an existing public one is then refused.
            finish_command: what a user types to push later what was not pushed.
            repo_type: "model" or "dataset".
            say: see above.
        """
        self.repo_id = repo_id
        self.say = say
        self.pushed: list[str] = []
        self.address = ""
        self._outbox = outbox
        self._options = [
            "--repo_id",
            repo_id,
            "--repo_type",
            repo_type,
            *(["--private"] if is_private else []),
        ]
        self._finish_command = finish_command
        self._failed: dict[str, str] = {}  # branch -> why nothing was put into the outbox for it
        self._tries: dict[str, int] = {}
        self._reasons: dict[str, str] = {}
        self._last_said = ""
        self._change = threading.Condition()
        self._wait = _FIRST_WAIT
        self._is_closing = self._is_out_of_time = False
        self._process: subprocess.Popen[str] | None = None
        for leftover in outbox.glob(
            "*.tmp"
        ):  # of a process that was killed while it filled or emptied the outbox
            shutil.rmtree(leftover, ignore_errors=True)
        self._thread = threading.Thread(target=self._work, name="hub-pusher", daemon=True)
        self._thread.start()

    def submit(self, fill: Callable[[Path], None], *revisions: str) -> bool:
        """Put something into the outbox; an older one for the same branch that still waits gives way.

        Args:
            fill: writes the files into a folder that exists.
            revisions: branches to push them to.

        Returns:
            Whether it is in the outbox; if not, the reason has been said.
        """
        aside = self._outbox / "filling.tmp"
        files = aside / "files"
        left = list(revisions)
        try:
            files.mkdir(parents=True)
            fill(files)
            with self._change:
                for revision in revisions:
                    link_tree(files, aside / revision)
                    number = max((_number(path) for path in self._waiting()), default=0) + 1
                    os.replace(aside / revision, self._outbox / f"{number:06d}-{revision}")
                    self._failed.pop(revision, None)
                    left.remove(revision)
                self._try_anew()
        # A full disk, most likely, of which safetensors has an error of its own, or a damaged
        # checkpoint: the run itself has what it needs.
        except (OSError, SafetensorError, InputError) as error:
            self._failed |= dict.fromkeys(left, f"it could not be put into {self._outbox}: {error}")
            self.say(
                f"WARNING: {', '.join(left)} is not pushed to the Hub: {self._failed[left[0]]}"
            )
            return False
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return True

    def finish(self, max_seconds: float | None) -> bool:
        """Wait until all is pushed or cannot be, and say how it ended; call it once.

        Args:
            max_seconds: after which an upload is stopped; None = only its tries are limited.

        Returns:
            Whether all was pushed.
        """
        with self._change:
            self._is_closing = True
            self._try_anew()
        if num_waiting := len({revision_of(path) for path in self._waiting()}):
            limit = "" if max_seconds is None else f", at most {max_seconds:,.0f} s"
            self.say(f"waiting for {num_waiting} upload(s) to the Hub{limit}")
        self._thread.join(max_seconds)
        while self._thread.is_alive():
            self._is_out_of_time = True
            with self._change:
                self._change.notify_all()
                if (
                    process := self._process
                ) is not None:  # the thread may set it to None at any time
                    process.kill()
            self._thread.join(0.1)
        waiting = self._waiting()
        with contextlib.suppress(
            OSError
        ):  # while there is something in it, or where it has never been
            self._outbox.rmdir()
        if self.pushed:
            self.say(f"pushed to {self.address}: {', '.join(sorted(set(self.pushed)))}")
        for path in waiting:
            reason = self._reasons.get(path.name, "there was no time")
            self.say(f"NOT pushed: {revision_of(path)} ({reason}); its files are kept in {path}")
        for revision, reason in self._failed.items():
            self.say(f"NOT pushed: {revision} ({reason})")
        if waiting or self._failed:
            self.say(f"to finish later: {self._finish_command}")
        return not waiting and not self._failed

    def __enter__(self) -> HubPusher:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop at once when the run ended by an error; what waits stays in the outbox."""
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
            has_succeeded = self._attempt(folder)
            with self._change:
                if has_succeeded:
                    self._wait = _FIRST_WAIT
                elif self._next() is not None:
                    wait, self._wait = self._wait, min(2 * self._wait, _LONGEST_WAIT)
                    self._change.wait(wait)  # or until something is submitted or the run ends

    def _try_anew(self) -> None:
        self._tries.clear()
        self._wait = _FIRST_WAIT
        self._change.notify_all()

    def _waiting(self) -> list[Path]:
        return waiting_in(self._outbox)

    def _next(self) -> Path | None:
        """Return what to try next: the least tried, then the oldest; None when nothing is left to try."""
        if self._is_out_of_time:
            return None
        waiting = self._waiting()
        newest = {revision_of(path): path for path in waiting}
        for path in set(waiting) - set(newest.values()):
            _remove(path)
        candidates = [path for path in newest.values() if self._tries.get(path.name, 0) < MAX_TRIES]
        return min(candidates, key=lambda path: (self._tries.get(path.name, 0), path), default=None)

    def _attempt(self, folder: Path | None) -> bool:
        """Upload a folder (None = only make the repository) and return whether that succeeded."""
        name = "" if folder is None else folder.name
        what = [] if folder is None else [str(folder), "--revision", revision_of(folder)]
        try:
            status, answer = self._run(what, _seconds_allowed(folder))
        except OSError as error:  # no memory for another process, say; the thread goes on
            status, answer = TRY_AGAIN, f"the upload could not be started ({error})"
        if status == DONE:
            self.address = answer
            if folder is not None:
                self.pushed.append(revision_of(folder))
                _remove(folder)
            return True
        if self._is_out_of_time:
            return False
        with self._change:
            self._tries[name] = MAX_TRIES if status == HOPELESS else self._tries.get(name, 0) + 1
        self._reasons[name] = answer
        if answer != self._last_said:
            self._last_said = answer
            again = (
                "not tried again before the next upload"
                if status == HOPELESS
                else "it will be tried again"
            )
            self.say(f"WARNING: the Hub did not take an upload: {answer}; nothing is lost, {again}")
        return False

    def _run(self, what: list[str], seconds: float) -> tuple[int, str]:
        """Run an upload process to its end and return its exit status and its last line."""
        with subprocess.Popen(
            [
                sys.executable,
                "-m",
                "bert_pretrain.publishing.upload",
                *what,
                *self._options,
                "--parent",
                f"{os.getpid()}",
            ],
            env=os.environ
            | {"PYTHONPATH": os.pathsep.join(filter(None, [_ROOT, os.environ.get("PYTHONPATH")]))},
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
        lines = (
            answer.strip().splitlines()
            or trouble.strip().splitlines()
            or ["the upload was stopped"]
        )
        return process.returncode, lines[-1]


def waiting_in(outbox: Path) -> list[Path]:
    """Return what is in an outbox, oldest first, without what is still being written."""
    return sorted(outbox.glob("[0-9]*-*"))


def link_tree(source: Path, target: Path) -> None:
    """Copy a folder as hard links, or as copies where the file system has none; an existing target is filled up."""
    shutil.copytree(source, target, copy_function=link, dirs_exist_ok=True)


def link(source: str | Path, target: str | Path) -> None:
    """Hard-link a file, or copy it where the file system has no links."""
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


def revision_of(folder: Path) -> str:
    """Return the branch for which a folder waits in an outbox."""
    return folder.name.partition("-")[2]


def _number(folder: Path) -> int:
    return int(folder.name.partition("-")[0])


def _seconds_allowed(folder: Path | None) -> float:
    if folder is None:
        return _LEAST_SECONDS
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return _LEAST_SECONDS + size / _BYTES_PER_SECOND
