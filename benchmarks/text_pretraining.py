"""Pretrain the text encoders of the README's curves: one recipe, several seeds, general text.

Every encoder is one run of micro on novels, Reuters news and kernel documentation, of equally many
updates, in some 18 minutes on one core with bfloat16. Every step is the command that a user would
type, in a process of its own; what is finished in --work_dir is not repeated. --data_dir is a
folder with

    novels, reuters, kerneldoc      documents, .jsonl.gz with "text"
    subj, mr                        labelled rows, .jsonl.gz with "text" and "label"

of which the labelled ones have no test rows: a fifth, drawn with seed 0, becomes them
(subj_train.jsonl, subj_test.jsonl in --work_dir). `label_efficiency.py` beside this file then
measures what the encoders are worth.
"""

from __future__ import annotations

import argparse
import gzip
import random
import subprocess
import sys
from pathlib import Path

from results import write_results

from bert_pretrain.data.run_folder import read_rows

ROOT = Path(__file__).parents[1]
CORPORA = ("novels", "reuters", "kerneldoc")
WITHOUT_TEST_ROWS = ("subj", "mr")
RECIPE = "--recipe hours --config_name micro --learning_rate 1.5e-3 --eval_steps 1000"


def split_rows(name: str, data_dir: Path, work_dir: Path) -> None:
    """Write four fifths of a task's rows to learn from and one fifth to test on."""
    with gzip.open(data_dir / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        lines = list(file)  # str.splitlines would cut texts at other separators too
    random.Random(0).shuffle(lines)
    num_test = len(lines) // 5
    for split, rows in (("train", lines[:-num_test]), ("test", lines[-num_test:])):
        (work_dir / f"{name}_{split}.jsonl").write_text("".join(rows), encoding="utf-8")


def main() -> None:
    """Print where each model is and what it reached, and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--max_steps", type=int, default=3000, help="updates of each")
    parser.add_argument("--work_dir", type=Path, default=Path("runs/text_pretraining"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("flags", nargs="*", help="further flags of all runs, after --")
    arguments = parser.parse_args()
    data_dir, work_dir = arguments.data_dir, arguments.work_dir
    work_dir.mkdir(parents=True, exist_ok=True)
    for name in WITHOUT_TEST_ROWS:
        split_rows(name, data_dir, work_dir)
    files = ["--data_files", *(str(data_dir / f"{name}.jsonl.gz") for name in CORPORA)]
    tokenizer, corpus = str(work_dir / "tokenizer"), str(work_dir / "corpus")
    if not Path(tokenizer).exists():
        size = ["--vocab_size", "16384"]
        run("-m", "bert_pretrain", "train-tokenizer", *files, *size, "--output_dir", tokenizer)
    named = ["--tokenizer_name", tokenizer]
    # At once, where it was prepared before.
    run("-m", "bert_pretrain", "prepare", *files, *named, "--output_dir", corpus)
    figures, found = {}, []
    for seed in arguments.seeds:
        folder = work_dir / f"seed-{seed}"
        if not (folder / "final").is_dir():
            flags = [*RECIPE.split(), "--dataset_name", corpus, *named, "--seed", str(seed)]
            flags += ["--max_steps", str(arguments.max_steps), "--output_dir", str(folder)]
            flags += ["--resume_from_checkpoint", "auto", *arguments.flags]
            run(str(ROOT / "run_pretraining.py"), *flags)
        *_, last = [r for r in read_rows(folder / "metrics.jsonl") if r["split"] == "validation"]
        found.append({"seed": seed, "flags": arguments.flags} | last)
    for key in ("mlm_loss", "unigram_entropy", "nsp_accuracy"):
        figures[key] = sum(row[key] for row in found) / len(found)
        print(f"{key:16} {', '.join(f'{row[key]:.3f}' for row in found)}")
    write_results(arguments.json, figures, runs=found)


def run(*command: str) -> None:
    """Run Python on a command line."""
    subprocess.run([sys.executable, *command], check=True)


if __name__ == "__main__":
    main()
