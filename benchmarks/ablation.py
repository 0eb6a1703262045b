"""What each part of the recipe gives: one change at a time from the default, at an equal clock.

The base is the default recipe (encoder micro, Muon, bfloat16 where the processor has it, 15 % of
tokens masked, no dropout, 32 rows an update) but for its neighbour heads, which came last and have
an arm of their own. Every run is given --minutes of training, or with --max_steps as many updates,
which a busy machine does not change. Every run is the program in a process of its own; every final
model is judged by stock classes in float32 on the same held-out rows with 15 % of their tokens
masked, whatever its own share (`judging.py`). An arm's gain is in nats against the base, paired by
seed; negative ones stay in the table. Runs are added to --json, and what is there is not repeated.

Arms that another learning rate would suit better have several: AdamW three, larger batches the
base's and one that grows with the root of the rows.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from judging import ROOT, Judge, add_corpus_arguments, describe_setting, prepare
from our_runs import FEW_OWN_ROWS, PROGRAM, judged_curve, train
from results import read_runs, write_results

from bert_pretrain.hardware import describe_run

BASE = ["--no_neighbour_heads"]
WITHOUT = str(ROOT / "benchmarks/without_savings.py")
# Of each arm the flags that differ from the default recipe, and the program if it is another one.
ARMS: dict[str, tuple[str, list[str]]] = {
    "base": ("", PROGRAM),
    "neighbour_heads": ("--neighbour_heads", PROGRAM),
    "no_sparse_head": ("", [WITHOUT, "sparse_head"]),
    "no_unpadding": ("", [WITHOUT, "unpadding"]),
    "no_sparse_head_no_unpadding": ("", [WITHOUT, "both"]),
    "fp32": ("--mixed_precision no", PROGRAM),
    "adamw_lr5e-4": ("--optimizer adamw --learning_rate 5e-4", PROGRAM),
    "adamw_lr1e-3": ("--optimizer adamw --learning_rate 1e-3", PROGRAM),
    "adamw_lr2e-3": ("--optimizer adamw --learning_rate 2e-3", PROGRAM),
    "mask_20": ("--mlm_probability 0.2", PROGRAM),
    "mask_30": ("--mlm_probability 0.3", PROGRAM),
    "mask_40": ("--mlm_probability 0.4", PROGRAM),
    "dropout_10": ("--dropout 0.1", PROGRAM),
    "rows_64": ("--global_batch_size 64", PROGRAM),
    "rows_64_lr2.1e-3": ("--global_batch_size 64 --learning_rate 2.1e-3", PROGRAM),
    "rows_128": ("--global_batch_size 128", PROGRAM),
    "rows_128_lr3e-3": ("--global_batch_size 128 --learning_rate 3e-3", PROGRAM),
}
COLUMNS = ("mlm_loss", "nsp_accuracy", "mlm_accuracy", "tokens_per_second", "updates")


def run_arm(
    arm: str, seed: int, corpus: list[str], judge: Judge, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Return the record of one run."""
    change, program = ARMS[arm]
    hours = str(arguments.minutes / 60)
    length = (
        ["--max_steps", str(arguments.max_steps)] if arguments.max_steps else ["--max_hours", hours]
    )
    flags = [*corpus, *length, "--eval_steps", "0", "--save_steps", "0", "--seed", str(seed)]
    run_dir = arguments.work_dir / "run"
    found = train(
        run_dir,
        [*flags, *FEW_OWN_ROWS, *BASE, *arguments.flags, *change.split()],
        program=program,
    )
    (end,) = judged_curve(run_dir, judge, most=1)
    record = describe_run()
    return {
        "arm": arm,
        "seed": seed,
        "length": length_of(arguments),
        "flags": arguments.flags,
        "setting": describe_setting(arguments, "mlm_nsp"),
        "processor": record["hardware"]["processor"],
        "git_revision": record["git_revision"],
    } | (found | end)


def length_of(arguments: argparse.Namespace) -> str:
    """Return how long each run is, in words."""
    if arguments.max_steps:
        return f"{arguments.max_steps} updates"
    return f"{arguments.minutes:g} minutes"


def by_arm(runs: list[dict[str, Any]]) -> dict[str, dict[int, dict[str, Any]]]:
    """Return the runs of each arm by seed, arms in the order of `ARMS`."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for run in sorted(runs, key=lambda run: list(ARMS).index(run["arm"])):
        found.setdefault(run["arm"], {})[run["seed"]] = run
    return found


def gains(arm: dict[int, dict[str, Any]], base: dict[int, dict[str, Any]]) -> list[float]:
    """Return by how many nats the loss of an arm is above the base's, for each seed of both."""
    return [run["mlm_loss"] - base[seed]["mlm_loss"] for seed, run in arm.items() if seed in base]


def summarise(runs: list[dict[str, Any]]) -> dict[str, float]:
    """Return medians over seeds, and speeds relative to the base."""
    arms = by_arm(runs)
    figures: dict[str, float] = {}
    for arm, members in arms.items():
        for column in COLUMNS:
            values = [run[column] for run in members.values()]
            figures[f"{arm}_{column}"] = statistics.median(values)
        if differences := gains(members, arms.get("base", {})):
            figures[f"{arm}_mlm_loss_above_base"] = statistics.median(differences)
            speed = figures[f"{arm}_tokens_per_second"] / figures["base_tokens_per_second"]
            figures[f"{arm}_speed_over_base_ratio"] = speed
    return figures


def print_table(runs: list[dict[str, Any]]) -> None:
    """Print a line for each arm: medians, and the range over seeds of the loss."""
    print(
        f"{'arm':28} {'seeds':>5} {'MLM loss':>8} {'from':>6} {'to':>6} {'above base':>10} "
        f"{'from':>6} {'to':>6} {'NSP':>5} {'tokens/s':>8} {'updates':>8}"
    )
    arms, figures = by_arm(runs), summarise(runs)
    for arm, members in arms.items():
        losses = [run["mlm_loss"] for run in members.values()]
        differences = gains(members, arms.get("base", {})) or [float("nan")]
        print(
            f"{arm:28} {len(members):5} {statistics.median(losses):8.3f} {min(losses):6.3f} "
            f"{max(losses):6.3f} {statistics.median(differences):+10.3f} {min(differences):+6.3f} "
            f"{max(differences):+6.3f} {figures[f'{arm}_nsp_accuracy']:5.3f} "
            f"{figures[f'{arm}_tokens_per_second']:8,.0f} {figures[f'{arm}_updates']:8,.0f}"
        )


def main() -> None:
    """Run what is missing, print the table, write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    parser.add_argument("--minutes", type=float, default=5.0, help="of training, for each run")
    parser.add_argument("--max_steps", type=int, default=0, help="updates, in place of --minutes")
    parser.add_argument("--json", type=Path)
    add_corpus_arguments(parser)
    parser.add_argument("flags", nargs="*", help="flags of all arms, after --")
    arguments = parser.parse_args()
    runs = read_runs(arguments.json)
    if any(run["length"] != length_of(arguments) for run in runs):
        raise SystemExit("--json holds runs of another length: name a new file")
    corpus = prepare(arguments) if arguments.arms else []
    judge = Judge(corpus, objective="mlm_nsp", eval_rows=arguments.eval_rows)
    for (
        seed
    ) in arguments.seeds:  # a seed of all arms before the next: what is there can be compared
        for arm in arguments.arms:
            if (arm, seed) in [(run["arm"], run["seed"]) for run in runs]:
                print(f"{arm}, seed {seed}: in {arguments.json} already")
                continue
            run = run_arm(arm, seed, corpus, judge, arguments)
            if runs and (runs[0]["setting"], runs[0]["flags"]) != (run["setting"], run["flags"]):
                raise SystemExit("--json holds runs with other data or flags: name a new file")
            runs.append(run)
            write_results(arguments.json, summarise(runs), runs=runs)
    if not runs:
        raise SystemExit("there is no run: pass --arms, or --json a file that has some")
    print(f"{runs[0]['length']} a run")
    print_table(runs)


if __name__ == "__main__":
    main()
