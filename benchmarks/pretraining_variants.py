"""Which pretraining serves classifiers with few labels: one change at a time, at an equal clock.

Every arm learns from the same corpus for --minutes, once for each of --seeds, as the program in a
process of its own. Its final model is then judged

    tasks     fine-tuned by the package's recipe with --num_labels labels a class, on 1,000 rows of
              each task that are held out of its training rows (never on a test row)
    grammar   on minimal pairs, by pseudo-log-likelihood
    loss      held-out masked-LM loss by stock classes in float32, rows of one segment, 15 % masked

A gain is that over `base` with equal pretraining and fine-tuning seeds; its interval knows both
(`statistics.two_way_interval`, tasks beside fine-tuning seeds). What is in --json is not repeated:

    python benchmarks/pretraining_variants.py --minutes 20 --data_files novels.jsonl.gz
    --task trec trec_train.jsonl.gz --task subj subj.jsonl.gz --json found.json
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from judging import Judge, add_corpus_arguments, describe_setting, environment, prepare
from numpy.typing import NDArray
from our_runs import FEW_OWN_ROWS, train
from results import read_runs, write_results

from bert_pretrain.data.random import Purpose, permutation
from bert_pretrain.downstream.tables import read_table
from bert_pretrain.evaluation.statistics import format_interval, two_way_interval
from bert_pretrain.hardware import describe_run

_HELD_OUT = 1000  # rows of a task that are judged on
_SINGLES_SHARE = 0.25  # of the clock, in the arm that ends with single segments


@dataclass(frozen=True)
class Arm:
    """A way to pretrain; the defaults are those of `base`.

    Attributes:
        flags: that differ from it.
        updates: times those of `base` with this seed, where a course needs its length beforehand;
            the clock ends it if that is longer. 0 = the clock alone.
        ends_with_singles: whether the last part of the clock is masked words of single segments.
    """

    flags: str = ""
    updates: float = 0.0
    ends_with_singles: bool = False


ARMS = {
    "base": Arm(),
    "google": Arm("--pair_mode google"),
    "sop": Arm("--pair_mode sop"),
    "no pairs": Arm("--objective mlm"),
    "then singles": Arm(ends_with_singles=True),
    "mask .3": Arm("--mlm_probability 0.3"),
    "mask .4": Arm("--mlm_probability 0.4"),
    "mask .3 to .15": Arm("--mlm_probability 0.3:0.15", updates=0.97),
    # Rows of 64 cost about half of rows of 128.
    "length 64, then 128": Arm("--max_seq_length 64:0.6,128:0.4", updates=1.35),
    "mini": Arm("--config_name mini"),
    "small": Arm("--config_name small"),
}


def divide(name: str, file: Path, folder: Path) -> tuple[Path, Path]:
    """Write the rows of a task to learn from, and those to judge on; the same in every call."""
    parts = (folder / f"{name}_train.jsonl", folder / f"{name}_held_out.jsonl")
    columns = read_table(str(file), parameter="task").columns
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    order = permutation(len(rows), 0, Purpose.SPLIT)
    chosen = (np.sort(order[_HELD_OUT:]), np.sort(order[:_HELD_OUT]))
    folder.mkdir(parents=True, exist_ok=True)
    for path, places in zip(parts, chosen, strict=True):
        lines = [json.dumps(rows[place]) + "\n" for place in places.tolist()]
        path.write_text("".join(lines), encoding="utf-8")
    return parts


def pretrain(
    name: str, seed: int, corpus: list[str], num_updates: int, arguments: argparse.Namespace
) -> tuple[Path, dict[str, Any]]:
    """Train an arm; return its model, and what the run says of itself."""
    arm, run_dir = ARMS[name], arguments.work_dir / "run"
    shared = [*corpus, "--seed", str(seed), *FEW_OWN_ROWS, "--eval_steps", "0", "--save_steps", "0"]
    flags = [*shared, *arguments.flags, *arm.flags.split()]
    hours = arguments.minutes / 60
    first = hours * (1 - _SINGLES_SHARE) if arm.ends_with_singles else hours
    flags += ["--max_hours", str(first)]
    if arm.updates:
        flags += ["--max_steps", str(round(arm.updates * num_updates))]
    found = train(run_dir, flags)
    if arm.ends_with_singles:
        pairs = arguments.work_dir / "pairs"
        shutil.rmtree(pairs, ignore_errors=True)
        run_dir.rename(pairs)
        rest = ["--objective", "mlm", "--model_name_or_path", str(pairs / "final")]
        rest += ["--max_hours", str(hours * _SINGLES_SHARE), "--warmup_steps", "50"]
        singles = train(run_dir, [*shared, *rest])
        for key in ("command_minutes", "updates", "tokens"):
            found[key] += singles[key]
    return run_dir / "final", found


def suite(name: str, model: Path, *flags: str, json_file: Path) -> dict[str, Any]:
    """Return the figures of a suite of `bert-pretrain evaluate`."""
    command = [sys.executable, "-m", "bert_pretrain", "evaluate", "--suite", name]
    command += ["--model", str(model), "--json", str(json_file), *flags]
    subprocess.run(command, check=True, env=environment(), stdout=subprocess.DEVNULL)
    figures: dict[str, Any] = json.loads(json_file.read_text())["figures"]
    return figures


def accuracies(
    model: Path, parts: dict[str, tuple[Path, Path]], arguments: argparse.Namespace
) -> dict[str, list[float]]:
    """Return the accuracy on each task, with each fine-tuning seed."""
    found = {}
    for task, (train_file, held_out) in parts.items():
        folder = arguments.work_dir / "curve"
        shutil.rmtree(folder, ignore_errors=True)
        flags = ["--train_file", str(train_file), "--test_file", str(held_out)]
        flags += ["--num_labels", str(arguments.num_labels), "--arms", "fine_tuned"]
        flags += ["--seeds", *map(str, arguments.finetuning_seeds), "--output_dir", str(folder)]
        suite("label_efficiency", model, *flags, json_file=arguments.work_dir / "curve.json")
        lines = (folder / "rows.jsonl").read_text().splitlines()
        by_seed = {row["seed"]: row["accuracy"] for row in map(json.loads, lines)}
        found[task] = [by_seed[seed] for seed in arguments.finetuning_seeds]
    return found


def run_arm(
    name: str,
    seed: int,
    corpus: list[str],
    num_updates: int,
    parts: dict[str, tuple[Path, Path]],
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """Return the record of one encoder."""
    model, found = pretrain(name, seed, corpus, num_updates, arguments)
    grammar = suite("minimal_pairs", model, json_file=arguments.work_dir / "pairs.json")
    judge = Judge(corpus, objective="mlm", eval_rows=arguments.eval_rows)
    record = describe_run()
    return {
        "arm": name,
        "seed": seed,
        "accuracies": accuracies(model, parts, arguments),
        "grammar": grammar["minimal_pairs_accuracy"],
        "mlm_loss": judge.judge_folder(model)["mlm_loss"],
        "processor": record["hardware"]["processor"],
        "git_revision": record["git_revision"],
    } | found


def comparison(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what runs must have in common to be compared."""
    return describe_setting(arguments, "mlm") | {
        "minutes": arguments.minutes,
        "num_labels": arguments.num_labels,
        "finetuning_seeds": arguments.finetuning_seeds,
        "tasks": [name for name, _ in arguments.task],
        "flags": arguments.flags,
    }


def matrix(runs: list[dict[str, Any]], seeds: list[int]) -> NDArray[np.float64]:
    """Return the accuracies of an arm, (pretraining seeds, tasks times fine-tuning seeds)."""
    by_seed = {run["seed"]: run["accuracies"] for run in runs}
    return np.array([list(itertools.chain(*by_seed[seed].values())) for seed in seeds])


def table(runs: list[dict[str, Any]]) -> str:
    """Return, as Markdown, a line for each arm: what it reaches and its gain over `base`."""
    by_arm = {name: [run for run in runs if run["arm"] == name] for name in ARMS}
    head = ["pretraining", "seeds", "accuracy", "gain over base", "grammar", "over base"]
    head += ["masked-LM loss", "tokens"]
    lines = [head, ["---"] * len(head)]
    for name, members in by_arm.items():
        if not members:
            continue
        shared = sorted({r["seed"] for r in members} & {r["seed"] for r in by_arm["base"]})
        cells = [name, str(len(members))]
        cells += [f"{matrix(members, [r['seed'] for r in members]).mean():.3f}", ""]
        cells += [f"{np.mean([r['grammar'] for r in members]):.3f}", ""]
        if name != "base" and shared:
            difference = matrix(members, shared) - matrix(by_arm["base"], shared)
            cells[3] = format_interval(*two_way_interval(difference), sign="+")
            known = [{r["seed"]: r["grammar"] for r in by_arm[arm]} for arm in (name, "base")]
            apart = np.array([[known[0][seed] - known[1][seed]] for seed in shared])
            cells[5] = format_interval(*two_way_interval(apart), sign="+")
        cells += [f"{np.mean([r['mlm_loss'] for r in members]):.2f}"]
        cells += [f"{np.mean([r['tokens'] for r in members]) / 1e6:.1f} M"]
        lines.append(cells)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def main() -> None:
    """Train and judge what is not in the results yet, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44], help="of pretraining")
    parser.add_argument("--finetuning_seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--minutes", type=float, default=20.0, help="of pretraining")
    parser.add_argument("--task", nargs=2, action="append", default=[], metavar=("NAME", "FILE"))
    parser.add_argument("--num_labels", type=int, default=64, help="labels a class")
    parser.add_argument("--json", type=Path, help="results, to which others are added")
    add_corpus_arguments(parser)
    parser.add_argument("flags", nargs="*", help="flags of all arms, after --")
    arguments = parser.parse_args()
    runs = read_runs(arguments.json)
    if arguments.arms:
        corpus, setting = prepare(arguments), comparison(arguments)
        if any(run["setting"] != setting for run in runs):
            raise SystemExit("--json holds runs with other settings: name a new file")
        folder = arguments.work_dir / "rows"
        parts = {name: divide(name, Path(file), folder) for name, file in arguments.task}
    for seed, name in itertools.product(arguments.seeds, arguments.arms):
        known = {(run["seed"], run["arm"]): run for run in runs}
        if (seed, name) in known:
            continue
        base = known.get((seed, "base"))
        if ARMS[name].updates and base is None:
            raise SystemExit(f"{name!r} is as long as `base`: run that one of seed {seed} first")
        num_updates = base["updates"] if base else 0
        found = run_arm(name, seed, corpus, num_updates, parts, arguments)
        runs.append({"setting": setting} | found)
        write_results(arguments.json, {}, runs=runs)
    print(table(runs), end="")


if __name__ == "__main__":
    main()
