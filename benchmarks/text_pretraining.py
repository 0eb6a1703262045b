"""Pretrain the two text encoders of the README's curves, each in under 40 minutes on two cores.

Both begin as `pairs`, joint masked-LM and next-sentence learning from the first corpora. `general`
goes on from it with single segments of the same corpora, as a classifier sees them; `adapted` with
the sentences of the tasks that one has without labels: the training rows, never a test row. Every
step is the command that a user would type, in a process of its own; what is finished in --work_dir
is not repeated. --data_dir is a folder with

    novels, reuters, kerneldoc                                      documents, .jsonl.gz with "text"
    sst2_train, sst2_test, trec_train, trec_test, subj,             labelled rows, with "text" and
    "label" agnews_train10k, agnews_test

of which subj has no test rows: a fifth of its rows, drawn with seed 0, becomes them
(subj_train.jsonl, subj_test.jsonl in --work_dir). `label_efficiency.py` beside this file then
measures what the encoders are worth.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import subprocess
import sys
from pathlib import Path

from results import write_results

ROOT = Path(__file__).parents[1]
CORPORA = ("novels", "reuters", "kerneldoc")
UNLABELLED = ("sst2_train", "trec_train", "agnews_train10k")
PAIRS = [
    "--recipe",
    "hours",
    "--config_name",
    "micro",
    "--learning_rate",
    "1.5e-3",
    "--eval_steps",
    "2000",
]
SINGLE = [
    "--recipe",
    "hours",
    "--objective",
    "mlm",
    "--max_seq_length",
    "64",
    "--learning_rate",
    "7e-4",
]
SINGLE += ["--warmup_steps", "50"]
GENERAL = [*SINGLE, "--short_seq_prob", "0.5", "--per_device_train_batch_size", "64"]
ADAPTED = [*SINGLE, "--per_device_train_batch_size", "128"]  # short rows


def split_subj(data_dir: Path, work_dir: Path) -> tuple[Path, Path]:
    """Write four fifths of the rows to learn from and one fifth to test on; returns both files."""
    files = (work_dir / "subj_train.jsonl", work_dir / "subj_test.jsonl")
    with gzip.open(data_dir / "subj.jsonl.gz", "rt", encoding="utf-8") as file:
        lines = list(file)  # str.splitlines would cut texts at other separators too
    random.Random(0).shuffle(lines)
    num_test = len(lines) // 5
    for path, rows in zip(files, (lines[:-num_test], lines[-num_test:]), strict=True):
        path.write_text("".join(rows), encoding="utf-8")
    return files


def main() -> None:
    """Print where each model is and what it reached, and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument(
        "--hours",
        type=float,
        nargs=3,
        default=[0.48, 0.16, 0.13],
        metavar=("PAIRS", "GENERAL", "ADAPTED"),
    )
    parser.add_argument("--work_dir", type=Path, default=Path("runs/text_pretraining"))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    data_dir, work_dir = arguments.data_dir, arguments.work_dir
    work_dir.mkdir(parents=True, exist_ok=True)
    subj_train, _ = split_subj(data_dir, work_dir)
    corpora = [str(data_dir / f"{name}.jsonl.gz") for name in CORPORA]
    unlabelled = [*(str(data_dir / f"{name}.jsonl.gz") for name in UNLABELLED), str(subj_train)]
    tokenizer, pairs = work_dir / "tokenizer", work_dir / "pairs"
    if not tokenizer.exists():
        trainer = str(ROOT / "tokenizer/train_tokenizer.py")
        run(
            [
                trainer,
                "--data_files",
                *corpora,
                "--vocab_size",
                "16384",
                "--output_dir",
                str(tokenizer),
            ]
        )
    for files, name in ((corpora, "corpora"), (unlabelled, "sentences")):
        flags = [
            "--data_files",
            *files,
            "--tokenizer_name",
            str(tokenizer),
            "--output_dir",
            str(work_dir / name),
        ]
        run(["-m", "bert_pretrain", "prepare", *flags])  # at once, where it was prepared before
    figures: dict[str, float] = {}
    runs = (
        ("pairs", "corpora", PAIRS),
        ("general", "corpora", [*GENERAL, "--model_name_or_path", str(pairs / "final")]),
        ("adapted", "sentences", [*ADAPTED, "--model_name_or_path", str(pairs / "final")]),
    )
    for (name, corpus, flags), hours in zip(runs, arguments.hours, strict=True):
        folder = work_dir / name
        if not (folder / "final").is_dir():
            flags += ["--dataset_name", str(work_dir / corpus), "--tokenizer_name", str(tokenizer)]
            run(
                [
                    str(ROOT / "run_pretraining.py"),
                    *flags,
                    "--max_hours",
                    str(hours),
                    "--output_dir",
                    str(folder),
                ]
            )
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        last = [row for row in rows if row["split"] == "validation"][-1]
        for key in ("step", "mlm_loss", "unigram_entropy", "nsp_accuracy"):
            if key in last:
                figures[f"{name}_{key}"] = last[key]
                print(f"{name:8} {key:16} {last[key]:.3f}")
    write_results(arguments.json, figures, runs=1)


def run(command: list[str]) -> None:
    """Run Python on a command line."""
    subprocess.run([sys.executable, *command], check=True)


if __name__ == "__main__":
    main()
