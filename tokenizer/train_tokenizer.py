"""Train a WordPiece tokenizer: `python tokenizer/train_tokenizer.py --data_files my.txt --output_dir my_tokenizer`."""

from bert_pretrain.train_tokenizer import main

if __name__ == "__main__":
    raise SystemExit(main())
