"""What machines do to runs loses nothing: one fault here, a few in the slow part, all in the long.

`benchmarks/faults.py` tries them many times, and README.md and SECURITY.md say how often.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import pytest
from runs import ROOT, parted, run_here

sys.path.insert(0, str(ROOT / "benchmarks"))
import faults
import soak
from fault_setting import Fault
from results import replace_marked

RESULTS = json.loads((ROOT / "benchmarks/results/faults.json").read_text())
SMALL = faults.FLAGS.replace("--max_steps 150", "--max_steps 60")


def test_a_run_that_is_killed_in_a_checkpoint_goes_on_as_if_nothing_had_been() -> None:
    kind = faults.FAULTS["killed in a checkpoint"]
    resumed = "--output_dir run --resume_from_checkpoint auto"
    with faults.made_setting(SMALL.split(), kind, generator=random.Random(0)) as setting:
        run_here(setting.folder, [*setting.flags, "--output_dir", "whole"])
        assert kind.fault(setting, setting.start())
        assert not (setting.run_dir / "final").exists()
        run_here(setting.folder, [*setting.flags, *resumed.split()])
        assert faults.content(setting.run_dir) == faults.content(setting.folder / "whole")
        assert faults.leftovers(setting) == []
        *_, older, newest = sorted((setting.run_dir / "checkpoints").iterdir())
        (older / "optimizer.bin").unlink()
        (found,) = faults.leftovers(setting)
        assert f"checkpoints/{older.name}: " in found and "is missing or damaged" in found
        older.rename(aside := older.with_name(f"{older.name}.aside-1"))
        assert faults.leftovers(setting) == [aside.name]
        setting.damaged.add(older.name)  # by the fault: it is set aside, and stays
        assert faults.leftovers(setting) == []
        newest.rename(newest.with_name(f"{newest.name}.aside-1"))
        assert faults.leftovers(setting) == [f"{newest.name}.aside-1"]


class EndedRun:
    """A setting whose starts have come to their end at once."""

    def __init__(self, folder: Path, fault: Fault) -> None:
        self.kind = faults.Kind(fault)
        self.run_dir, self.cache, self.log = (folder / name for name in ("run", "cache", "log"))
        self.damaged: set[str] = set()
        self.log.touch()

    def start(self) -> subprocess.Popen[bytes]:
        for folder in (self.run_dir, self.cache):
            folder.mkdir(exist_ok=True)
        process = subprocess.Popen(["true"])
        process.wait()
        return process


@pytest.mark.parametrize("comes", [False, True])
def test_a_run_that_comes_to_its_end_is_compared_before_it_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, comes: bool
) -> None:
    ends = []

    def check_end(setting: EndedRun, *_: Any) -> None:
        ends.append(setting.run_dir.is_dir())
        if len(ends) == 2:
            raise faults.LostError("other metrics or weights")

    monkeypatch.setattr(faults, "check_end", check_end)
    setting: Any = EndedRun(tmp_path, lambda *_: comes)
    found = faults.try_fault(setting, times=2, whole=([], ""))
    assert ends == [True, True]
    # Where no fault came, the run is lost all the same.
    num_tried = 2 if comes else 1
    assert found == {"tried": num_tried, "lost": num_tried, "recovered": 0}


def test_a_curve_is_near_another_if_it_differs_by_rounding_alone() -> None:
    row = {"split": "train", "step": 5, "loss": 8.0, "mlm_accuracy": 0.25}

    def is_near(**changes: Any) -> bool:
        return faults.is_near([row | changes], [row], tolerance=1e-5)

    assert is_near() and is_near(loss=8.00007) and is_near(mlm_accuracy=0.26)
    assert not is_near(loss=8.00009) and not is_near(mlm_accuracy=0.28)
    assert not is_near(step=6) and not is_near(more=1.0) and not is_near(loss=float("nan"))
    assert not faults.is_near([row, row], [row], tolerance=1e-5)


@cache
def undisturbed(kind: faults.Kind) -> faults.Whole:
    return faults.undisturbed(faults.FLAGS.split(), kind)


SLOW = (
    "killed in the export",
    "loader worker killed",
    "disk full in a checkpoint",
    "one of two killed",
)


@pytest.mark.parametrize("name", parted(faults.FAULTS, slow=SLOW))
def test_a_fault_loses_nothing(name: str) -> None:
    kind = faults.FAULTS[name]
    whole, seconds = undisturbed(faults.undisturbed_kind(kind))
    times = 2 if kind.other_num_processes else 1  # there and back
    flags, generator = faults.FLAGS.split(), random.Random(name)
    with faults.made_setting(flags, kind, seconds=seconds, generator=generator) as setting:
        found = faults.try_fault(setting, times=times, whole=whole)
    assert found == {"tried": times, "lost": 0, "recovered": times}


@pytest.mark.parametrize("name", ["README.md", "SECURITY.md"])
def test_documents_hold_the_table_of_the_committed_results(name: str) -> None:
    text = (ROOT / name).read_text()
    assert replace_marked(text, "faults", faults.table(RESULTS["runs"])) == text, (
        "run python benchmarks/faults.py --times 0 --json benchmarks/results/faults.json "
        "--write README.md SECURITY.md"
    )


def test_nothing_that_was_tried_was_lost() -> None:
    tried = [run["fault"] for run in RESULTS["runs"]]
    assert tried == [name for name in faults.FAULTS if name in tried]
    assert all(run["tried"] > 0 and run["lost"] == 0 for run in RESULTS["runs"])
    assert RESULTS["figures"] == faults.totals(RESULTS["runs"])
    kills = RESULTS["figures"]["kills"]
    assert kills >= 50 and f"{kills} of the tries are kills" in (ROOT / "README.md").read_text()


def test_a_checkpoint_holds_the_run_for_at_most_a_fifth_of_an_update() -> None:
    figures = json.loads((ROOT / "benchmarks/results/checkpoint_cost.json").read_text())["figures"]
    text = " ".join((ROOT / "docs/checkpoints.md").read_text().split())
    wait, longest = (figures[f"mini_beside_{name}wait_ratio"] for name in ("", "longest_"))
    assert longest <= 0.2
    assert f"the run waited {wait:.2f} of an update, at most {longest:.2f}" in text
    slowing = (figures[f"mini_{kind}_slowing_ratio"] for kind in ("beside", "waited_for"))
    assert "took {:.2f} of an update longer, and {:.2f} less".format(*map(abs, slowing)) in text


def test_tries_of_several_pieces_add_up() -> None:
    first = {"fault": "one of two killed", "processes": 2, "tried": 3, "lost": 0, "recovered": 3}
    other = {"fault": "killed at random", "processes": 1, "tried": 1, "lost": 1, "recovered": 0}
    runs = faults.add_to(faults.add_to([], first), other)
    assert runs == [other, first]
    runs = faults.add_to(runs, first)
    assert runs[1]["tried"] == runs[1]["recovered"] == 6
    assert faults.totals(runs) == {"tried": 7, "lost": 1, "recovered": 6, "kills": 7}
    assert "| all |  | 7 | 1 | 6 |\n" in faults.table(runs)
    moved = {"fault": "killed, goes on with another number of processes", "processes": "1, 2"}
    moved |= {"tried": 2, "lost": 0, "recovered": 2}
    assert f"| {moved['fault']} (curve within a relative 1e-05) | 1, 2 |" in faults.table([moved])


def looks(*, growth: float, files: int = 0, threads: int = 0) -> list[soak.Look]:
    """Return a hundred looks; the last third differs."""
    early, late = soak.Look(100.0, 9, 5), soak.Look(100.0 + growth, 9 + files, 5 + threads)
    warming_up = soak.Look(50.0, 3, 2)
    return [warming_up] * 25 + [early] * 45 + [late] * 30


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"growth": 1.9}, True),
        ({"growth": -30.0}, True),
        ({"growth": 2.1}, False),
        ({"growth": 0.0, "files": 1}, False),
        ({"growth": 0.0, "threads": 1}, False),
    ],
)
def test_a_soak_tells_what_grows_from_what_warms_up(
    changes: dict[str, float], expected: bool
) -> None:
    figures = soak.figures_of(looks(**changes), warmup_share=0.25)  # type: ignore[arg-type]
    assert soak.is_steady(figures) == expected


def test_the_soak_of_an_hour_was_steady() -> None:
    figures = json.loads((ROOT / "benchmarks/results/soak.json").read_text())["figures"]
    assert figures["minutes"] >= 60 and soak.is_steady(figures)
    text = " ".join((ROOT / "docs/checkpoints.md").read_text().split())
    early, late = (f"{figures[f'memory_mib_{third}']:.0f}" for third in ("early", "late"))
    growth = f"{figures['memory_growth_share']:.1%}".replace("%", " %")
    assert f"{early} MiB in the first third of the hour and {late} in the last, {growth}" in text


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_pages_that_a_forked_process_shares_are_counted_once() -> None:
    script = """
import mmap, os, sys
block = mmap.mmap(-1, 64 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for place in range(0, len(block), mmap.PAGESIZE):
    block[place] = 1
child = os.fork()
if child:
    print(child, flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdin is not None and parent.stdout is not None
        members = [psutil.Process(parent.pid), psutil.Process(int(parent.stdout.readline()))]
        alone, together = soak.own_mebibytes(members[0]), sum(map(soak.own_mebibytes, members))
        parent.stdin.close()
    assert 32 < alone < 48 and 64 < together < 80
    assert soak.own_mebibytes(members[0]) == 0  # it has ended


@pytest.mark.long
def test_a_minute_of_saves_evaluations_and_pushes_leaves_no_file_open() -> None:
    figures, happened = soak.soak(0.75, 0.25, soak.FLAGS.split())
    assert happened["evaluations"] > 2 and happened["commits"] > 1 and happened["hub_away"] >= 1
    assert figures["open_files_late"] <= figures["open_files_early"]
    assert figures["threads_late"] <= figures["threads_early"]
