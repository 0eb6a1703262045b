"""Minutes of training to a held-out loss: ours against stock transformers.

Equal corpus, tokenizer, size of model and clock. Stock (`stock_training.py`) learns in float32 with
the defaults of `TrainingArguments` and in bfloat16 with BERT's usual settings, each with a schedule
of its own that ends with its budget. Ours is `run_pretraining.py` with --max_hours in a process of
its own: since its schedule falls to 0 at the end too, it has a run for each budget. All are judged
by stock classes in float32 on the same held-out rows (`judging.py`), which is no part of the clock;
ours has an evaluation of 64 rows before its first update and its checkpoints in it. The minutes
that ours needs are its smallest budget whose final loss is at most stock's.

Settings of ours are those of the default recipe, chosen before on held-out rows of this kind; flags
after `--` change them and are kept with the run. `--arms ours_mlm ours_modernbert` compares two
encoders without pairs. Runs are added to --json, and what is there is not repeated, so that pieces
may be run one by one; --plot draws a picture of the file.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from judging import Judge, add_corpus_arguments, describe_setting, prepare
from our_runs import FEW_OWN_ROWS, judged_curve, train
from results import read_runs, write_results
from stock_training import STOCK, train_stock
from time_to_quality_picture import draw

from bert_pretrain.hardware import describe_run
from bert_pretrain.text.prepared import PreparedCorpus

# Objective, and the encoder where --config_name does not name it.
OURS = {
    "ours": ("mlm_nsp", None),
    "ours_mlm": ("mlm", "mini"),
    "ours_modernbert": ("mlm", "modernbert-mini"),
}
ARMS = [*OURS, *STOCK]


def identity(run: dict[str, Any]) -> tuple[Any, ...]:
    """Return what a run is known by."""
    return run["arm"], run["config_name"], run["minutes"], run["seed"]


def run_arm(
    arm: str, minutes: float, seed: int, corpus: list[str], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Return the record of one run."""
    objective, fixed = OURS.get(arm, ("mlm_nsp", None))
    encoder = ["--objective", objective, "--config_name", fixed or arguments.config_name]
    judge = Judge(corpus, objective=objective, eval_rows=arguments.eval_rows)
    if arm in STOCK:
        found = train_stock(
            STOCK[arm],
            [*corpus, *encoder],
            judge,
            seconds=60 * minutes,
            seed=seed,
            num_rows=arguments.rows,
            num_evaluations=arguments.num_evaluations,
        )
    else:
        flags = [*corpus, *encoder, "--max_hours", str(minutes / 60), "--seed", str(seed)]
        flags += f"--save_steps {arguments.save_steps} --save_total_limit 0 --eval_steps 0".split()
        run_dir = arguments.work_dir / "run"
        found = train(run_dir, [*flags, *FEW_OWN_ROWS, *arguments.flags])
        # Before its first update the output bias is that of the unigram frequencies.
        token_counts = PreparedCorpus.load(arguments.work_dir / "corpus").token_counts
        found["start_mlm_loss"] = judge.unigram_loss(token_counts)
        found["curve"] = judged_curve(run_dir, judge, most=arguments.num_evaluations)
    record = describe_run()
    return {
        "arm": arm,
        "config_name": Path(encoder[-1]).name,  # a folder's place is the machine's business
        "minutes": minutes,
        "seed": seed,
        "flags": [] if arm in STOCK else arguments.flags,
        "setting": describe_setting(arguments, objective) | {"rows": arguments.rows},
        "processor": record["hardware"]["processor"],
        "git_revision": record["git_revision"],
    } | found


def final_values(runs: Iterable[dict[str, Any]], name: str) -> dict[tuple[str, str, float], Any]:
    """Return what runs ended with, over seeds, by encoder, arm and budget."""
    found: dict[tuple[str, str, float], list[float]] = {}
    for run in runs:
        if name in run["curve"][-1]:
            key = (run["config_name"], run["arm"], run["minutes"])
            found.setdefault(key, []).append(run["curve"][-1][name])
    return dict(sorted(found.items()))


def summarise(runs: list[dict[str, Any]], target_minutes: float) -> dict[str, float]:
    """Return medians over seeds, and by which factor ours reaches stock's loss earlier.

    `CONFIG_STOCK_over_ours_minutes_ratio` is `target_minutes` over the minutes that ours takes to
    the loss that the stock arm ends a run of `target_minutes` with; `best_stock` is the arm whose
    loss is lowest. It is left out if no budget of ours gets there, or stock has no such run.
    `..._is_below_ours_start` is 1 if that loss is below what ours has before its first update,
    where its output bias knows the frequencies of words; if it is 0, there is no ratio.
    """
    figures = {}
    for name in ("mlm_loss", "nsp_accuracy", "nsp_loss"):
        for (config, arm, minutes), values in final_values(runs, name).items():
            figures[f"{config}_{arm}_{minutes:g}min_{name}"] = statistics.median(values)
    for config in dict.fromkeys(run["config_name"] for run in runs):
        members = [run for run in runs if run["config_name"] == config]
        ours = medians([run for run in members if run["arm"] == "ours"])
        stock = {
            arm: loss
            for (arm, minutes), loss in medians(members).items()
            if arm in STOCK and minutes == target_minutes
        }
        if stock:
            stock["best_stock"] = min(stock.values())
        starts = [run["start_mlm_loss"] for run in members if run["arm"] == "ours"]
        for arm, target in stock.items():
            figures[f"{config}_{arm}_minutes_to_its_{target_minutes:g}min_loss"] = target_minutes
            reaching = [minutes for (_, minutes), loss in ours.items() if loss <= target]
            if reaching:
                is_earned = target < min(starts)
                figures[f"{config}_ours_minutes_to_{arm}_loss"] = min(reaching)
                figures[f"{config}_{arm}_is_below_ours_start"] = int(is_earned)
                if is_earned:
                    ratio = target_minutes / min(reaching)
                    figures[f"{config}_{arm}_over_ours_minutes_ratio"] = ratio
    return figures


def medians(runs: list[dict[str, Any]]) -> dict[tuple[str, float], float]:
    """Return the median final loss of runs of one encoder, by arm and budget."""
    losses = final_values(runs, "mlm_loss")
    return {key[1:]: statistics.median(values) for key, values in losses.items()}


def print_table(runs: list[dict[str, Any]]) -> None:
    """Print a line for each arm and budget."""
    print(
        f"{'encoder':16} {'arm':18} {'minutes':>7} {'seeds':>5} {'MLM loss':>8} {'from':>6} "
        f"{'to':>6} {'NSP accuracy':>12} {'tokens/s':>8} {'updates':>8}"
    )
    accuracies = final_values(runs, "nsp_accuracy")
    for key, losses in final_values(runs, "mlm_loss").items():
        config, arm, minutes = key
        members = [run for run in runs if identity(run)[:3] == (arm, config, minutes)]
        rate, updates = (
            statistics.median(run[name] for run in members)
            for name in ("tokens_per_second", "updates")
        )
        accuracy = f"{statistics.median(accuracies[key]):.3f}" if key in accuracies else "-"
        print(
            f"{config:16} {arm:18} {minutes:7g} {len(losses):5} {statistics.median(losses):8.3f} "
            f"{min(losses):6.3f} {max(losses):6.3f} {accuracy:>12} {rate:8,.0f} {updates:8,.0f}"
        )


def refuse_other_settings(runs: list[dict[str, Any]]) -> None:
    """End with one line if runs of one objective cannot be compared."""
    known: dict[Any, Any] = {}
    for run in runs:
        is_stock = run["arm"] in STOCK
        compared = {
            run["setting"]["objective"]: (run["setting"], run["processor"]),
            (run["arm"], is_stock): run["flags"],
        }
        if any(known.setdefault(key, value) != value for key, value in compared.items()):
            raise SystemExit(
                "--json holds runs on another corpus or processor, with other rows, threads or "
                "flags: name a new file"
            )


def main() -> None:
    """Run what is missing, print the table, write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arms", nargs="*", default=["ours", "stock_fp32"], choices=ARMS)
    parser.add_argument("--minutes", type=float, nargs="+", default=[20.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[42])
    parser.add_argument("--config_name", default="mini")
    parser.add_argument("--rows", type=int, default=32, help="rows of an update of stock")
    parser.add_argument("--target_minutes", type=float, default=20.0, help="of stock's goal")
    parser.add_argument("--num_evaluations", type=int, default=6, help="points of a curve")
    parser.add_argument("--save_steps", type=int, default=250, help="updates between ours' points")
    parser.add_argument("--plot", type=Path, help="PNG to draw; with --arms alone nothing is run")
    parser.add_argument("--json", type=Path)
    add_corpus_arguments(parser)
    parser.add_argument("flags", nargs="*", help="flags of ours, after --")
    arguments = parser.parse_args()
    runs = read_runs(arguments.json)
    corpus = prepare(arguments) if arguments.arms else []
    for seed in arguments.seeds:
        for minutes in arguments.minutes:
            for arm in arguments.arms:
                config_name = OURS.get(arm, ("", None))[1] or arguments.config_name
                known = (arm, Path(config_name).name, minutes, seed)
                if known in map(identity, runs):
                    print(f"{arm}, {minutes:g} minutes, seed {seed}: in {arguments.json} already")
                    continue
                runs.append(run_arm(arm, minutes, seed, corpus, arguments))
                refuse_other_settings(runs)
                figures = summarise(runs, arguments.target_minutes)
                write_results(arguments.json, figures, runs=runs)
    if not runs:
        raise SystemExit("there is no run: pass --arms, or --json a file that has some")
    print_table(runs)
    for name, value in summarise(runs, arguments.target_minutes).items():
        if "minutes" in name:
            print(f"{name} {value:.3g}")
        if name.endswith("is_below_ours_start") and not value:
            print(f"{name}: no, so that a ratio would say nothing")
    if arguments.plot:  # a masked-LM loss without pairs is of other rows
        objective = runs[0]["setting"]["objective"]
        draw([r for r in runs if r["setting"]["objective"] == objective], arguments.plot)


if __name__ == "__main__":
    main()
