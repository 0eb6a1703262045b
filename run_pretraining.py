"""Pretrain an encoder: `accelerate launch run_pretraining.py`.

With no flag it gathers the documentation inside your own Python, pretrains a small BERT on it in a
few minutes, and writes a plain transformers model to runs/bert/final. `--help` lists every flag.
The program itself:
"""

from bert_pretrain.commands.pretrain import main

if __name__ == "__main__":
    raise SystemExit(main())
