"""Run a recipe with several seeds, and print the tables of what was measured.

`run NAME` is `accelerate launch run_pretraining.py --recipe NAME` as a user types it, from an empty
cache to the exported model, once for each seed (`default_run.py`); figures go to
results/recipe_NAME.json, with the curves of all seeds in a picture of that name. Held-out numbers
are those that the run itself prints. Seeds that are there are not repeated. `table` prints, from
the files in results/, the tables of recipes, of the ablation and of time to quality as they stand
in README.md and docs/recipes.md; with --write they are put there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from default_run import run_once
from matplotlib.figure import Figure
from results import read_runs, write_results

from bert_pretrain.config.recipes import TEXT_PURPOSES
from bert_pretrain.data.run_folder import read_rows
from bert_pretrain.hardware import describe_run

RESULTS = Path(__file__).parent / "results"
BEGIN, END = "<!-- recipes -->\n", "<!-- /recipes -->"
NOT_RUN = "*not run*"
# Of a run's record: heading and decimals.
COLUMNS = {
    "minutes": ("minutes", 1),
    "tokens_per_second": ("tokens/s", 0),
    "mlm_loss": ("masked-LM loss, nats", 2),
    "nats_below_unigram": ("below unigram", 2),
    "mlm_accuracy": ("masked-LM accuracy", 3),
    "nsp_accuracy": ("next-sentence accuracy", 3),
}


def run_recipe(name: str, seed: int, flags: Sequence[str]) -> dict[str, Any]:
    """Return the record of one run, with its curve."""
    with tempfile.TemporaryDirectory() as folder:
        record = run_once(seed, ["--recipe", name, *flags], Path(folder))
        rows = read_rows(Path(folder) / "run/metrics.jsonl")
    wanted = ("step", "mlm_loss", "nsp_accuracy")
    curve = [
        {key: row[key] for key in wanted if key in row}
        for row in rows
        if row["split"] == "validation"
    ]
    found = describe_run()
    about = {key: found[key] for key in ("hardware", "versions", "git_revision")}
    return record | about | {"curve": curve, "flags": list(flags)}


def draw_curves(runs: list[dict[str, Any]], title: str, path: Path) -> None:
    """Draw the held-out curves of all seeds into a PNG."""
    panels = {"mlm_loss": "held-out masked-LM loss, nats", "nsp_accuracy": "next-sentence accuracy"}
    figure = Figure(figsize=(9.0, 3.4), dpi=150, layout="constrained")
    for axis, (name, text) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        for number, run in enumerate(runs):
            points = [(row["step"], row[name]) for row in run["curve"] if name in row]
            if points:
                axis.plot(*zip(*points, strict=True), "-o", color=f"C{number}", markersize=3)
                axis.annotate(f" seed {run['seed']}", points[-1], color=f"C{number}", fontsize=7)
        axis.set(xlabel="updates", ylabel=text)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, format="png", metadata={"Software": None})


def number(value: float, decimals: int) -> str:
    """Return a number as README writes it: no 0 before the point, thousands apart."""
    text = f"{value:,.{decimals}f}"
    return text[1:] if decimals == 3 and text.startswith("0.") else text


def spread(values: Sequence[float], decimals: int) -> str:
    """Return the median and, of several values, the smallest and the largest."""
    median = number(statistics.median(values), decimals)
    if len(values) < 2:
        return f"{median} (one seed)"
    return f"{median} ({number(min(values), decimals)} to {number(max(values), decimals)})"


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a table of Markdown."""
    rows = [head, ["---"] * len(head), *lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def recipes_table(results: Path) -> str:
    """Return a line for each recipe of text, run or not."""
    lines = []
    for name, (hardware, purpose) in TEXT_PURPOSES.items():
        path = results / f"recipe_{name}.json"
        runs = read_runs(path)
        cells = [NOT_RUN] + [""] * (len(COLUMNS) - 1)
        if runs:
            hardware = machine(path).split(", torch")[0]
            cells = [
                spread([run[key] for run in runs if key in run], decimals)
                for key, (_, decimals) in COLUMNS.items()
            ]
        lines.append([f"`{name}`", purpose, hardware, *cells])
    return table(["recipe", "for", "on", *(heading for heading, _ in COLUMNS.values())], lines)


def machine(path: Path) -> str:
    """Return what a results file was measured on, and on how many of its cores."""
    record = json.loads(path.read_text())
    hardware, versions = record["hardware"], record["versions"]
    settings = [run.get("setting", {}) for run in record["runs"]]
    used = max((setting.get("num_cpu_threads", 0) for setting in settings), default=0)
    cores = f"{used} of {hardware['cores']} cores" if used else f"{hardware['cores']} cores"
    return (
        f"{hardware['processor']}, {cores}, torch {versions['torch']}, "
        f"transformers {versions['transformers']}"
    )


def ablation_table(results: Path) -> str:
    """Return what each part of the default recipe gives."""
    path = results / "ablation.json"
    if not path.is_file():
        return f"What each part of the recipe gives (`benchmarks/ablation.py`): {NOT_RUN}\n"
    # Here, since it imports torch and all of the package.
    from ablation import by_arm, gains

    runs = read_runs(path)
    arms, lines = by_arm(runs), []
    for arm, members in arms.items():
        by_name = {
            key: [run[key] for run in members.values()]
            for key in ("mlm_loss", "nsp_accuracy", "tokens_per_second")
        }
        above = ""
        if arm != "base" and (differences := sorted(gains(members, arms.get("base", {})))):
            median, low, high = (
                f"{value:+.2f}"
                for value in (statistics.median(differences), differences[0], differences[-1])
            )
            spread_of_seeds = f"{low} to {high}" if len(differences) > 1 else "one seed"
            above = f"{median} ({spread_of_seeds})"
        lines.append(
            [
                arm.replace("_", " "),
                spread(by_name["mlm_loss"], 2),
                above,
                spread(by_name["nsp_accuracy"], 3),
                spread(by_name["tokens_per_second"], 0),
            ]
        )
    head = ["change", "masked-LM loss", "above base, by seed", "next-sentence accuracy", "tokens/s"]
    text = "One change at a time from the default recipe without neighbour heads, "
    text += f"{runs[0]['length']} a run"
    return f"{text} (`benchmarks/ablation.py`; {machine(path)}):\n\n{table(head, lines)}"


def quality_tables(results: Path) -> str:
    """Return held-out numbers by minutes of training: ours and stock, then two encoders."""
    path = results / "time_to_quality.json"
    if not path.is_file():
        return f"Minutes to stock's loss (`benchmarks/time_to_quality.py`): {NOT_RUN}\n"
    titles = {
        "mlm_nsp": "Against stock transformers",
        "mlm": "BERT beside ModernBERT, masked words alone, each with the default recipe",
    }
    parts = []
    for objective, title in titles.items():
        runs = [run for run in read_runs(path) if run["setting"]["objective"] == objective]
        if runs:
            where = f"`benchmarks/time_to_quality.py`; {machine(path)}"
            parts.append(f"{title} ({where}):\n\n{quality_table(runs)}")
    return "\n".join(parts)


def quality_table(runs: list[dict[str, Any]]) -> str:
    """Return a line for each encoder, way and budget."""
    from time_to_quality import final_values, identity

    lines = []
    accuracies = final_values(runs, "nsp_accuracy")
    for key, losses in final_values(runs, "mlm_loss").items():
        config, arm, minutes = key
        rates = [r["tokens_per_second"] for r in runs if identity(r)[:3] == (arm, config, minutes)]
        lines.append(
            [
                config,
                arm.replace("_", " "),
                f"{minutes:g}",
                spread(losses, 2),
                *([spread(accuracies[key], 3)] if accuracies else []),
                spread(rates, 0),
            ]
        )
    head = ["encoder", "run", "minutes of training", "masked-LM loss"]
    return table([*head, *["next-sentence accuracy"] * bool(accuracies), "tokens/s"], lines)


def page(results: Path = RESULTS) -> str:
    """Return all tables; median of the seeds, from the smallest to the largest."""
    parts = (recipes_table(results), ablation_table(results), quality_tables(results))
    return "\n".join(parts)


def written(text: str, tables: str) -> str:
    """Return a document with the tables between its markers.

    Raises:
        ValueError: it has no markers.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"there is no {BEGIN.strip()} ... {END}")
    return before + begin + tables + end + after


def main() -> None:
    """Run a recipe, or print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser(
        "run",
        help="run a recipe with several seeds",
        epilog="Flags for run_pretraining.py follow after --.",
    )
    running.add_argument("name", choices=list(TEXT_PURPOSES))
    running.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    running.add_argument("--json", type=Path, help="default: results/recipe_NAME.json")
    printing = commands.add_parser("table", help="print the tables")
    printing.add_argument("--write", type=Path, nargs="+", default=[], help="documents with marks")
    # argparse has its own mind about -- after a subcommand.
    words = sys.argv[1:]
    place = words.index("--") if "--" in words else len(words)
    arguments, flags = parser.parse_args(words[:place]), words[place + 1 :]
    if arguments.command == "table":
        print(page(), end="")
        for path in arguments.write:
            path.write_text(written(path.read_text(), page()))
        return
    path = arguments.json or RESULTS / f"recipe_{arguments.name}.json"
    runs = read_runs(path)
    if flags and arguments.json is None:
        parser.error("with flags of your own it is another recipe: name a file with --json")
    if any(run["flags"] != flags for run in runs):
        raise SystemExit(f"{path} holds runs with other flags: name a new file with --json")
    for seed in arguments.seeds:
        if seed in [run["seed"] for run in runs]:
            print(f"seed {seed}: in {path} already")
            continue
        runs.append(run_recipe(arguments.name, seed, flags))
        figures = {
            name: statistics.median(run[name] for run in runs)
            for name in COLUMNS
            if all(name in run for run in runs)
        }
        write_results(path, figures, runs=runs)
        draw_curves(runs, f"--recipe {arguments.name}", path.with_suffix(".png"))
    for name, (heading, decimals) in COLUMNS.items():
        print(f"{heading:24} {spread([run[name] for run in runs if name in run], decimals)}")


if __name__ == "__main__":
    main()
