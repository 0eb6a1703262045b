"""The console command `bert-pretrain COMMAND`; without a command it pretrains, like run_pretraining.py."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module

COMMANDS = {
    "pretrain": "bert_pretrain.pretrain",
    "prepare": "bert_pretrain.prepare",
    "train-tokenizer": "bert_pretrain.train_tokenizer",
    "finetune": "bert_pretrain.finetune",
    "evaluate": "bert_pretrain.evaluate",
    "report": "bert_pretrain.report",
    "hub": "bert_pretrain.hub",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    name = "pretrain"
    if arguments and not arguments[0].startswith("-"):
        name = arguments.pop(0)
    if name not in COMMANDS:
        sys.stderr.write(f"error: unknown command {name!r}; commands: {', '.join(COMMANDS)}\n")
        return 2
    # Imported on demand: a command should not wait for what another one needs.
    command: Callable[[Sequence[str]], int] = import_module(COMMANDS[name]).main
    return command(arguments)


if __name__ == "__main__":
    sys.exit(main())
