"""The pretraining program.

run_pretraining.py and `bert-pretrain pretrain` call `main`. The exit status speaks of the training:
0 = `final/` is complete, 1 = it diverged, or the machine failed it (a full disk), 2 = something
given cannot be used and nothing was written, 128 + N = signal N has stopped it and it has saved. If
the Hub refuses an upload, the run does not fail, since a launcher might then start it again: the
program says so and keeps the files, and `bert-pretrain hub push RUN_DIR` uploads them later, with
an exit status of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from bert_pretrain.commands.running import reporting_input_errors
from bert_pretrain.config.pretraining import parse_config
from bert_pretrain.data.signals import stop_with_launcher


def main(arguments: Sequence[str] | None = None) -> int:
    """Pretrain as the command line says; returns the exit status."""
    # run_pretraining.py gives no arguments, `bert-pretrain pretrain` does.
    prog = "run_pretraining.py" if arguments is None else "bert-pretrain pretrain"
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    reporting = reporting_input_errors(debug="--debug" in arguments)
    stop_with_launcher()
    with reporting:
        config = parse_config(arguments, prog=prog)
        # torch and the models of transformers take seconds to import: help and refused flags need
        # not wait for them.
        from bert_pretrain.commands.pretraining import pretrain

        pretrain(config)
    return 0
