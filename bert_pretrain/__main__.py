"""The console command `bert-pretrain COMMAND`, which `python -m bert_pretrain COMMAND` equals.

Without a command it pretrains, like run_pretraining.py, so that `accelerate launch -m
bert_pretrain` works.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module

COMMANDS = {
    "pretrain": "pretrain an encoder on text or images (also: run_pretraining.py)",
    "prepare": "split, tokenise and store text once, for any number of runs",
    "train-tokenizer": "train a WordPiece tokenizer on your own text",
    "finetune": "train a classifier on any encoder with transformers' Trainer",
    "worth-it": "say by cross-validation whether pretraining pays on your labels",
    "evaluate": "judge a finished model by one or several suites",
    "embed": "write the vectors of texts or images that an encoder makes",
    "neighbours": "find the nearest of embedded texts or images",
    "report": "show a run as one HTML page",
    "verify": "check that a run, and what it was made of, is as it was written",
    "demo": "show what pretraining is worth with few labels, without a download",
    "hub": "publish a run or a prepared corpus on the Hugging Face Hub",
    "cache": "list and remove the decoded copies of images",
}
HELP = "usage: bert-pretrain COMMAND [FLAGS]\n\n" + "\n".join(
    [f"  {name:16} {what}" for name, what in COMMANDS.items()]
    + [
        "",
        "`bert-pretrain COMMAND --help` lists a command's flags; without a command, pretrain is "
        "meant.",
        "",
    ]
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments in (["--help"], ["-h"]):
        sys.stdout.write(HELP)
        return 0
    name = "pretrain"
    if arguments and not arguments[0].startswith("-"):
        name = arguments.pop(0)
    if name not in COMMANDS:
        sys.stderr.write(f"error: unknown command {name!r}; commands: {', '.join(COMMANDS)}\n")
        return 2
    # Imported on demand: a command should not wait for what another one needs.
    command: Callable[[Sequence[str]], int] = import_module(
        f"bert_pretrain.commands.{name.replace('-', '_')}"
    ).main
    return command(arguments)


if __name__ == "__main__":
    sys.exit(main())
