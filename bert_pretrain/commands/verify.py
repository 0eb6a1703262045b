"""`bert-pretrain verify RUN_DIR`: whether a run is what it was, and what it was made of still is.

A run directory enters; a table leaves, and the exit status: 0 = nothing is damaged or missing, 1 =
something is, 2 = there is no run. Every byte is read again, whatever is known of the files. What a
run does not record, because it began with an older version or has not come to it yet, is unknown,
which is no fault; nor is it one that the program has changed since.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict

from bert_pretrain.commands.running import reporting_input_errors
from bert_pretrain.config.flags import check_json_target
from bert_pretrain.data.atomic import write_json
from bert_pretrain.data.digests import damages, is_sealed, record_digest
from bert_pretrain.data.json_files import parse_json
from bert_pretrain.data.json_forms import misfit
from bert_pretrain.data.run_folder import list_checkpoints, read_final, read_rows
from bert_pretrain.errors import InputError
from bert_pretrain.hardware import code_sha256
from bert_pretrain.images.corpus import default_cache_dir
from bert_pretrain.text.preparation import prepared_copies
from bert_pretrain.text.tokenizers import load_tokenizer, tokenizer_hash
from bert_pretrain.training.checkpoint import read_state

State = Literal["ok", "damaged", "missing", "changed", "unknown"]
FAULTS = ("damaged", "missing")
_SHOWN_LETTERS = 12  # of a digest, in the table


@dataclass(frozen=True)
class Check:
    """What was looked at, what it should be, what it is."""

    what: str
    expected: str
    found: str
    state: State


class _Data(TypedDict):
    folder: str | None
    files: dict[str, str]


class _Tokenizer(TypedDict):
    sha256: str


class _Weights(TypedDict):
    name: str
    folder: str
    files: dict[str, str]


class _Sources(TypedDict, total=False):
    data: _Data | None
    tokenizer: _Tokenizer | None
    initial_weights: _Weights | None


class _AnyRun(TypedDict):
    """What run.json always has."""

    config: dict[str, Any]


class _Run(_AnyRun, total=False):
    """What is read of run.json, as far as it is there."""

    started: str | None
    sources: _Sources | None
    code_sha256: str | None


class _Export(TypedDict, total=False):
    """The same of final/run.json."""

    files: dict[str, str] | None


class _File(TypedDict):
    path: str
    sha256: str


class _Source(TypedDict, total=False):
    files: list[_File] | None


class _Manifest(TypedDict, total=False):
    """The same of the manifest of a corpus."""

    source: _Source | None


def main(arguments: Sequence[str] | None = None) -> int:
    """Verify a run; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="bert-pretrain verify",
        description="Check a run's record, metrics, checkpoints and export, the corpus and the "
        "files it was made of. Exit status: 0 = nothing is damaged or missing, 1 = something is, "
        "2 = there is no run.",
        allow_abbrev=False,
    )
    help_text = "The --output_dir of a pretraining run."
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help=help_text)
    parser.add_argument("--json", metavar="FILE", help="File that gets the table, digests in full.")
    help_text = "Show the traceback of an input error."
    parser.add_argument("--debug", action="store_true", help=help_text)
    options = parser.parse_args(arguments)
    with reporting_input_errors(debug=options.debug):
        _check_target(options.json, options.run_dir)
        checks = verify(options.run_dir)
        is_whole = not any(check.state in FAULTS for check in checks)
        sys.stdout.write(format_table(checks))
        if options.json:
            content = {"is_whole": is_whole, "checks": [asdict(check) for check in checks]}
            write_json(Path(options.json), content)
    return 0 if is_whole else 1


def _check_target(path: str | None, run_dir: Path) -> None:
    if path and Path(path).resolve().is_relative_to(run_dir.resolve()):
        raise InputError(
            f"`json` is {path!r}, in the run that is checked: it could replace what the run wrote",
            advice="pass a file in another folder as `json`",
        )
    check_json_target(path)


def verify(run_dir: Path) -> list[Check]:
    """Return what was checked of a run.

    Raises:
        InputError: the folder holds no run.
    """
    checkpoints = list_checkpoints(run_dir / "checkpoints")
    if not (run_dir / "run.json").is_file() and not checkpoints:
        raise InputError(
            f"{run_dir} holds no run: neither run.json nor a checkpoint",
            advice="pass the `output_dir` of a pretraining run",
        )
    if (run_dir / "config.json").is_file():  # its run.json is the record of the export
        raise InputError(
            f"{run_dir} is what a run has exported, not the run",
            advice="pass the `output_dir` of the run, which checks its final/ too",
        )
    check, record = _record_check(run_dir / "run.json", "run.json", _Run)
    checks = [check, _metrics_check(run_dir, record)]
    checks += [
        check
        for path in checkpoints
        if (check := _checkpoint_check(path)) and path.is_dir()  # a run may rotate it away
    ]
    if not checkpoints:
        checks.append(Check("checkpoints/", "", "none; not written yet, or removed", "unknown"))
    checks += _export_checks(run_dir / "final")
    sources = record.get("sources")
    if sources is None:
        return [*checks, Check("what it is made of", "", "run.json does not say", "unknown")]
    with_tokenizer = [run_dir / "final", *reversed(checkpoints)]
    folder = next((path for path in with_tokenizer if (path / "tokenizer.json").is_file()), None)
    checks += _data_checks(sources.get("data") or {})
    checks += _tokenizer_checks(sources.get("tokenizer"), folder)
    if began := sources.get("initial_weights"):
        checks += _file_checks(f"weights of {began['name']}", Path(began["folder"]), began["files"])
    if code := record.get("code_sha256"):
        is_same = code == code_sha256()
        checks.append(Check("the program", code, code_sha256(), "ok" if is_same else "changed"))
    return checks


def _record_check(path: Path, what: str, form: type) -> tuple[Check, dict[str, Any]]:
    """Check a record with a digest of itself; return it too, {} if it cannot be relied on.

    Args:
        path: of the record.
        what: as the table calls it.
        form: that its content must have: it may be a stranger's, with a digest that is right.
    """
    try:
        record = parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        return Check(what, "a record", error.strerror or str(error), "missing"), {}
    except ValueError as error:
        return Check(what, "a record", f"no JSON ({error})", "damaged"), {}
    if wrong := misfit(record, form, "it"):
        return Check(what, "a record", wrong, "damaged"), {}
    if not is_sealed(record):
        if {"code_sha256", "format_version"} & record.keys():
            return Check(what, "a digest", "none", "damaged"), {}
        return Check(what, "", "it has no digest: an older version wrote it", "unknown"), record
    content = {name: value for name, value in record.items() if name != "digest"}
    expected, found = str(record["digest"]), record_digest(content)
    if expected != found:
        return Check(what, expected, found, "damaged"), {}
    return Check(what, expected, found, "ok"), record


def _metrics_check(run_dir: Path, record: Mapping[str, Any]) -> Check:
    """Check that metrics.jsonl can be read, is in order, and goes to the end of a run that has."""
    what, expected = "metrics.jsonl", "rows in the order of their updates"
    path = run_dir / what
    resumed_from = (record.get("config") or {}).get("resume_from_checkpoint")
    is_continued = resumed_from not in (None, "latest", "auto")
    if not path.is_file():
        if is_continued:  # from another folder: there may have been nothing left to measure
            return Check(what, "", "none; the run continues one of another folder", "unknown")
        return Check(what, expected, "none", "missing")
    try:
        rows = read_rows(path)
    except InputError as error:
        return Check(what, expected, error.problem, "damaged")
    steps: dict[Any, list[Any]] = {"train": [-1], "validation": [-1]}
    for row in rows:
        step, reached = row["step"], steps.get(row.get("split"))
        if reached is None:  # a warning
            continue
        if not isinstance(step, int | float) or step <= reached[-1]:
            found = f"a row of update {step} after one of {reached[-1]}"
            return Check(what, expected, found, "damaged")
        reached.append(step)
    last = steps["validation"][-1]
    try:
        final = read_final(run_dir)
    except InputError:  # which is said of the records themselves
        final = None
    end = final.step if final is not None and final.is_end else None
    if end is not None and last != end and not is_continued:
        return Check(what, f"rows up to update {end}", f"rows up to update {last}", "damaged")
    return Check(what, expected, f"{len(rows)} rows up to update {last}", "ok")


def _checkpoint_check(checkpoint: Path) -> Check:
    what, expected = f"checkpoints/{checkpoint.name}", "every file as it was written"
    try:
        read_state(checkpoint)
    except InputError as error:
        return Check(what, expected, error.problem, "damaged")
    return Check(what, expected, expected, "ok")


def _export_checks(final: Path) -> Iterator[Check]:
    if not final.is_dir():
        yield Check("final/", "", "not there; the run has not ended, or it was removed", "unknown")
        return
    check, record = _record_check(final / "run.json", "final/run.json", _Export)
    yield check
    if record and not record.get("files"):
        yield Check("final/", "", "its record lists no files", "unknown")
    yield from _file_checks("final/", final, record.get("files") or {})


def _data_checks(data: Mapping[str, Any]) -> Iterator[Check]:
    """Check what was prepared, and what that was made of."""
    if data.get("folder") is None:
        yield Check("data", "", "embedded in a package, not on disk", "unknown")
        return
    folder = Path(data["folder"])
    if not folder.exists() and folder.parent in (default_cache_dir(), prepared_copies().folder):
        yield Check("data", "", "no longer in the cache; made again when needed", "unknown")
        return
    check, manifest = _record_check(folder / "manifest.json", f"{folder}/manifest.json", _Manifest)
    yield check
    yield from _file_checks(f"{folder}", folder, data["files"])
    files = (manifest.get("source") or {}).get("files") or []
    # A corpus of the Hub says nothing of another machine's files.
    if digests := {f["path"]: f["sha256"] for f in files if os.path.isabs(f["path"])}:
        yield from _file_checks("files it was made of", Path("/"), digests)
    else:
        yield Check("files it was made of", "", "their digests are not recorded", "unknown")


def _tokenizer_checks(tokenizer: Mapping[str, Any] | None, folder: Path | None) -> Iterator[Check]:
    """Check that the tokenizer beside the newest weights is the one of the corpus."""
    if tokenizer is None or folder is None:
        return
    what, expected = f"tokenizer in {folder.name}", str(tokenizer["sha256"])
    try:
        found = tokenizer_hash(load_tokenizer(str(folder)))
    except InputError as error:
        yield Check(what, expected, error.problem, "damaged")
        return
    yield Check(what, expected, found, "ok" if found == expected else "damaged")


def _file_checks(what: str, folder: Path, digests: Mapping[str, str]) -> Iterator[Check]:
    """Yield a check for each file that is not as it was, one for all if there is none.

    Names that lead out of the folder, as a stranger's record may hold, are not followed.
    """
    root = os.path.abspath(folder)
    inside = {
        name: digest
        for name, digest in digests.items()
        # By name: in the cache of the Hub every file is a link to one elsewhere.
        if Path(os.path.abspath(folder / name)).is_relative_to(root)
    }
    for name in digests.keys() - inside.keys():
        yield Check(f"{what}: {name}", digests[name], "it leads out of the folder", "damaged")
    wrong = damages(folder, inside, anew=True)
    for name, (problem, found) in wrong.items():
        state: State = "damaged" if found else "missing"
        yield Check(f"{what}: {name}", digests[name], found or problem, state)
    if digests and len(inside) == len(digests) and not wrong:
        number = f"{len(digests)} file{'s' * (len(digests) > 1)}"
        yield Check(what, f"{number} as written", f"{number} as written", "ok")


def format_table(checks: Sequence[Check]) -> str:
    """Return the checks as lines of text, with the beginnings of digests."""
    rows = [("what", "expected", "found", "")]
    rows += [(c.what, _shortened(c.expected), _shortened(c.found), c.state) for c in checks]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]])
        for row in rows
    ]
    faults = sum(check.state in FAULTS for check in checks)
    verdict = f"{faults} of {len(checks)} damaged or missing" if faults else "nothing is damaged"
    return "\n".join([*(line.rstrip() for line in lines), verdict]) + "\n"


def _shortened(text: str) -> str:
    is_digest = len(text) == 64 and text.isalnum()
    return text[:_SHOWN_LETTERS] if is_digest else text
