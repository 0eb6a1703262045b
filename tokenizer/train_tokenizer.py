"""Train a WordPiece tokenizer: the same as `bert-pretrain train-tokenizer`.

python tokenizer/train_tokenizer.py --data_files my.txt --output_dir my_tokenizer
"""

import sys
from pathlib import Path

# Without an installed package, Python looks for it beside this script only.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from bert_pretrain.commands.train_tokenizer import main

if __name__ == "__main__":
    raise SystemExit(main())
