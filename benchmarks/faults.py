"""Do to runs what machines do to them, let the same command go on, and compare with a whole run.

Each fault is tried --times times, each time on the run as the last one left it; every start, the
first one too, is the same command with `--resume_from_checkpoint auto`. Then the run goes on to its
end, and its metrics and weights must be those of an undisturbed run to the last bit (its metrics to
within a tolerance where the number of processes changes); anything else counts as lost, as does a
process that stays behind, a temporary file, or what `bert-pretrain verify` calls damaged. A
checkpoint that the fault has damaged stays, set aside, as documented; no other may be set aside.

What was tried before and is in --json is kept and added to, so that many tries can be made in
pieces; `--times 0` prints the table of it. --write puts that table between the marks of documents.
It needs the extra `test`.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import math
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fault_kinds import FAULTS
from fault_setting import Kind, LostError, Setting, stays_behind, trains
from results import read_runs, replace_marked, write_results
from several_process_faults import launcher_killed

from bert_pretrain.commands import verify
from bert_pretrain.training.metrics import OF_THE_MACHINE

sys.path.append(str(Path(__file__).parents[1] / "tests"))  # for a corpus, and a Hub on 127.0.0.1
from loopback_hub import running_hub
from runs import write_corpus, write_model_config

FLAGS = "--data_files corpus.jsonl --config_name config --max_seq_length 48 --mixed_precision no "
FLAGS += "--dropout 0.1 --max_steps 150 --save_steps 10 --eval_steps 25 --logging_steps 5 "
FLAGS += "--num_cpu_threads 1"


Rows = list[dict[str, Any]]


def content(run_dir: Path) -> tuple[Rows, str]:
    """Return the metrics without the machine's numbers, and the digest of the exported weights."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    kept = [
        {key: value for key, value in row.items() if not key.endswith(OF_THE_MACHINE)}
        for row in rows
    ]
    return kept, hashlib.sha256((run_dir / "final/model.safetensors").read_bytes()).hexdigest()


def is_near(found: Rows, expected: Rows, *, tolerance: float) -> bool:
    """Return whether rows of metrics are others, but for rounding."""

    def is_same(key: str, ours: Any, theirs: Any) -> bool:
        if not isinstance(theirs, float):
            return bool(ours == theirs)
        # An accuracy may move by one token or pair where two scores tie to within rounding.
        allowed = 0.02 if key.endswith("accuracy") else 0.0
        return math.isclose(ours, theirs, rel_tol=tolerance, abs_tol=allowed)

    return len(found) == len(expected) and all(
        ours.keys() == theirs.keys() and all(is_same(key, ours[key], theirs[key]) for key in ours)
        for ours, theirs in zip(found, expected, strict=True)
    )


def leftovers(setting: Setting) -> list[str]:
    """Return what a finished run should not have left."""
    places = (setting.run_dir, setting.cache / "bert_pretrain")
    paths = [path for place in places for path in place.rglob("*")]
    left = [path.name for path in paths if path.suffix in (".tmp", ".old", ".new")]
    for path in setting.run_dir.glob("checkpoints/*.aside-*"):
        if path.stem not in setting.damaged:
            left.append(path.name)
    checks = verify.verify(setting.run_dir)
    return left + [f"{c.what}: {c.found}" for c in checks if c.state in verify.FAULTS]


def missing_on_hub(setting: Setting) -> str:
    """Return what the Hub lacks of a finished run once all is pushed; "" = nothing."""
    if setting.hub is None:
        return ""
    push = [sys.executable, "-m", "bert_pretrain", "hub", "push", "run"]
    done = subprocess.run(
        push, cwd=setting.folder, env=setting.environment, capture_output=True, text=True
    )
    if done.returncode:
        return f"hub push: {done.stdout}{done.stderr}"
    own = (setting.run_dir / "final/model.safetensors").read_bytes()
    there = setting.hub.model("words").files().get("model.safetensors")
    return "" if there == own else "the Hub has other weights"


@contextlib.contextmanager
def made_setting(
    flags: list[str], kind: Kind, *, seconds: float = 0.0, generator: random.Random
) -> Iterator[Setting]:
    """Yield the setting of a fault in a folder of its own."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        write_corpus(folder / "corpus.jsonl", num_documents=600)
        write_model_config(folder / "config")
        hub = stack.enter_context(running_hub()) if kind.with_hub else None
        # Of two flags of one name the last one counts.
        given = [*flags, *shlex.split(f"{kind.recipe} {kind.flags}")]
        yield Setting(folder, kind, given, seconds, generator, hub)


Whole = tuple[tuple[Rows, str], float]


def undisturbed_kind(kind: Kind) -> Kind:
    """Return what kinds have in common whose undisturbed run is the same."""
    return Kind(launcher_killed, kind.num_processes, recipe=kind.recipe, is_sharded=kind.is_sharded)


def undisturbed(flags: list[str], kind: Kind) -> Whole:
    """Return what a run comes to that nothing disturbs, and how many seconds its training takes."""
    with made_setting(flags, kind, generator=random.Random(0)) as setting:
        process = setting.start()
        trains(setting, process)
        start = time.perf_counter()
        if process.wait():
            sys.exit(setting.log.read_text()[-3000:])
        return content(setting.run_dir), time.perf_counter() - start


def check_end(setting: Setting, process: subprocess.Popen[bytes], whole: tuple[Rows, str]) -> None:
    """Wait for the end of a run, which must be that of the undisturbed one.

    Raises:
        LostError: something is lost, or left.
    """
    if status := process.wait():
        raise LostError(f"a start ends with {status}")
    found, tolerance = content(setting.run_dir), setting.kind.tolerance
    if not (is_near(found[0], whole[0], tolerance=tolerance) if tolerance else found == whole):
        raise LostError("other metrics or weights")
    if left := leftovers(setting) + stays_behind(setting):
        raise LostError(f"left: {left}")
    if missing := missing_on_hub(setting):
        raise LostError(missing)


def try_fault(setting: Setting, *, times: int, whole: tuple[Rows, str]) -> dict[str, int]:
    """Return how often a fault came, how many of these runs lost something, and how many did not.

    A run that has lost something has lost it in the last fault or an earlier one: all count.
    """
    num_tried, trouble = 0, ""
    is_over = False
    try:
        for _ in range(3 * times):
            if num_tried == times:
                break
            process = setting.start()
            num_tried += 1
            came = setting.kind.fault(setting, process)
            num_tried -= not came
            is_over = not came or process.returncode == 0
            if is_over:  # the run goes on to its end; what follows is tried on a new one
                check_end(setting, process, whole)
                shutil.rmtree(setting.run_dir)
                shutil.rmtree(setting.cache)
                setting.damaged.clear()
        if not is_over:
            check_end(setting, setting.start(), whole)
    except LostError as error:
        trouble = str(error)
        num_tried = max(num_tried, 1)
        print(setting.log.read_text()[-3000:], trouble)
    num_lost = num_tried if trouble else 0
    return {"tried": num_tried, "lost": num_lost, "recovered": num_tried - num_lost}


def totals(runs: list[dict[str, Any]]) -> dict[str, int]:
    """Return how often faults were tried in all, how many runs lost something, and the kills."""
    sums = {key: sum(run[key] for run in runs) for key in ("tried", "lost", "recovered")}
    kills = [run["tried"] for run in runs if FAULTS[run["fault"]].is_kill]
    return sums | {"kills": sum(kills)}


def table(runs: list[dict[str, Any]]) -> str:
    """Return what was tried as Markdown."""
    lines = ["| fault | processes | tried | lost | recovered |", "| --- | --- | --- | --- | --- |"]
    for run in [*runs, {"fault": "all", "processes": ""} | totals(runs)]:
        cells = [run[key] for key in ("fault", "processes", "tried", "lost", "recovered")]
        if (kind := FAULTS.get(run["fault"])) and kind.tolerance:
            cells[0] += f" (curve within a relative {kind.tolerance:g})"
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def processes(kind: Kind) -> int | str:
    """Return how many processes runs of a kind have, as the table says it."""
    other = kind.other_num_processes
    return f"{kind.num_processes}, {other}" if other else kind.num_processes


def add_to(runs: list[dict[str, Any]], record: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what was tried, with more tries of a fault, in the order of `FAULTS`."""
    by_name = {run["fault"]: run for run in runs}
    before = by_name.get(record["fault"], {"tried": 0, "lost": 0, "recovered": 0})
    sums = {key: before[key] + record[key] for key in ("tried", "lost", "recovered")}
    by_name[record["fault"]] = record | sums
    return [by_name[name] for name in FAULTS if name in by_name]


def main() -> None:
    """Try faults, print the table of all that were tried, write it; exit 1 if anything was lost."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=4, help="of each fault")
    parser.add_argument("--faults", nargs="*", default=list(FAULTS), choices=FAULTS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--write", type=Path, nargs="+", default=[], help="documents with marks")
    parser.add_argument("flags", nargs="*", help=f"default: {FLAGS}")
    arguments = parser.parse_args()
    flags = arguments.flags or FLAGS.split()
    wholes: dict[Kind, Whole] = {}
    runs = read_runs(arguments.json)
    for name in arguments.faults if arguments.times else ():
        kind = FAULTS[name]
        reference = undisturbed_kind(kind)
        if reference not in wholes:
            wholes[reference] = undisturbed(flags, reference)
        whole, seconds = wholes[reference]
        # Other moments than in an earlier piece.
        num_earlier = sum(run["tried"] for run in runs if run["fault"] == name)
        generator = random.Random(f"{arguments.seed} {name} {num_earlier}")
        with made_setting(flags, kind, seconds=seconds, generator=generator) as setting:
            found = try_fault(setting, times=arguments.times, whole=whole)
        runs = add_to(runs, {"fault": name, "processes": processes(kind)} | found)
        write_results(arguments.json, totals(runs), runs=runs)
    print(table(runs), end="")
    for path in arguments.write:
        path.write_text(replace_marked(path.read_text(), "faults", table(runs)))
    sys.exit(totals(runs)["lost"] > 0)


if __name__ == "__main__":
    main()
