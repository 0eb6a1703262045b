"""What `evaluate` refuses: the command, and words that must stand in its message."""

from __future__ import annotations

from pathlib import Path

import pytest
from refusals import cases, check_refusal

FLAGS: list[tuple[str, ...]] = [
    ("", "--model, --suite must be given"),
    ("--model bert", "--suite must be given"),
    ("--suite fill_mask", "--model must be given"),
    ("--model bert --suite", "--suite has no value"),
    ("--model vit --suite knn knnn", "--suite is 'knnn'", "linear_probe"),
    ("--model vit --suite knn --neighbours 3", "unknown arguments --neighbours 3"),
    ("--model '' --suite knn", "--model is ''"),
    ("--model vit --suite knn --k 0", "--k is 0 but must be"),
    ("--model vit --suite knn --k few", "--k is 'few' but must be a whole number"),
    ("--model vit --suite knn --temperature 0", "--temperature is 0.0"),
    ("--model vit --suite knn --temperature inf", "--temperature is inf", "finite"),
    ("--model vit --suite knn --seed -1", "--seed is -1"),
    ("--model vit --suite knn --per_device_eval_batch_size 0", "--per_device_eval_batch_size is 0"),
    ("--model vit --suite knn --validation_share 1.5", "--validation_share is 1.5", "(0, 1)"),
    ("--model vit --suite knn --on_bad_image ask", "--on_bad_image is 'ask'", "error, skip"),
    ("--model vit --suite knn --data_files a --dataset_name b", "both name the data", "pass one"),
    ("--model bert --suite fill_mask --json no/such/f.json", "no/such/f.json", "--json"),
    ("--model bert --suite fill_mask --json used", "--json is 'used'"),
    ("--model bert --suite fill_mask --json corpus.jsonl/x", "corpus.jsonl/x", "--json"),
    ("--model bert --suite fill_mask --json pipe", "--json is 'pipe'"),
    ("--model bert --suite fill_mask --sentences words", "'words' has no [MASK]", "--sentences"),
    ("--model bert --suite fill_mask --num_candidates 0", "--num_candidates is 0"),
    (
        "--model bert --suite fill_mask --num_candidates 8193",
        "--num_candidates is 8,193 but the model knows 8,192 tokens",
    ),
    (f"--model bert --suite fill_mask --sentences [MASK]{'-' * 80}", "shorten --sentences"),
    ("--model bert --suite nsp --max_seq_length 65", "takes 64 tokens", "lower --max_seq_length"),
    ("--model bert --suite nsp --max_seq_length 7", "--max_seq_length is 7 but must be"),
    ("--model bert --suite nsp --max_pairs 1", "--max_pairs is 1 but must be"),
    ("--model bert --suite knn label_efficiency", "label_efficiency runs alone", "--suite"),
]

MODELS: list[tuple[str, ...]] = [
    ("fill_mask --model nowhere", "'nowhere'", "--model"),
    ("fill_mask --model nowhere/at-all", "'nowhere/at-all'", "--model"),
    ("knn --model nowhere/at-all", "'nowhere/at-all'", "--model"),
    ("fill_mask --model ./nowhere", "there is no folder './nowhere'", "--model"),
    ("fill_mask --model corpus.jsonl", "'corpus.jsonl' is a file", "--model"),
    ("fill_mask --model empty", "'empty' holds no model of transformers", "--model"),
    ("fill_mask --model vit", "'vit' holds no model of transformers with a masked-LM head"),
    ("minimal_pairs --model vit", "with a masked-LM head", "--model"),
    ("perplexity --model vit --data_files corpus.jsonl", "with a masked-LM head", "--model"),
    ("nsp --model vit", "next-sentence head", "--model"),
    ("nsp --model weights_no_pairs", "next-sentence head (it lacks", "leave nsp out of --suite"),
    ("fill_mask --model weights_headless", "no trained masked-LM head", "--model"),
    ("knn --model bert", "'bert' holds no usable image processor", "--model"),
    ("linear_probe --model bert", "'bert' holds no usable image processor", "--model"),
    ("fill_mask --model config_list", "'config_list'", "--model"),
    ("fill_mask --model config_no_layers", "num_hidden_layers 0", "--model"),
    ("fill_mask --model config_huge_width", "hidden_size 1000000000", "--model"),
    (
        "fill_mask --model weights_missing",
        "the weights of weights_missing cannot be read (none are in safetensors files",
        "--model",
    ),
    ("fill_mask --model weights_text", "the weights of weights_text cannot be read", "--model"),
    ("fill_mask --model weights_cut", "the weights of weights_cut cannot be read", "--model"),
    ("fill_mask --model tokenizer_missing", "'tokenizer_missing' holds no", "--model"),
    ("fill_mask --model tokenizer_cut", "'tokenizer_cut' holds no usable tokenizer", "--model"),
    ("knn --model vit_weights_lost", "vit_weights_lost", "--model a complete checkpoint"),
    ("knn --model vit_weights_text", "vit_weights_text", "--model a complete checkpoint"),
    ("knn --model vit_processor_missing", "preprocessor_config.json", "--model"),
    ("knn --model vit_processor_list", "preprocessor_config.json", "--model"),
    ("knn --model vit_processor_size", "preprocessor_config.json", "--model"),
    ("knn --model vit_processor_mean", "preprocessor_config.json", "--model"),
    ("knn --model vit_patch_none", "patch_size 0", "--model"),
    ("knn --model vit_colour", "the weights of vit_colour cannot be read", "--model"),
    ("knn --model vit_processor_colour", "channels", "--model"),
    ("knn --model vit_processor_divides", "greater than 0", "--model"),
    ("knn --model vit --image_size 7", "--image_size"),
    ("fill_mask --model begun", "neither a complete checkpoint nor final/", "--model"),
    ("nsp --model of_mlm", "by the objective mlm", "leave nsp out of --suite"),
    ("nsp --model run_json_list", "run_json_list/run.json has no 'config'"),
    ("nsp --model run_json_deep", "nested too deeply"),
    ("nsp --model run_json_binary", "run_json_binary/run.json is damaged"),
]

DATA: list[tuple[str, ...]] = [
    ("knn --model vit --data_files no.parquet", "no.parquet is not a Parquet file"),
    ("knn --model vit --data_files nowhere.parquet", "nowhere.parquet", "--data_files"),
    ("knn --model vit --data_files unlabelled.parquet", "--label_column"),
    ("knn --model vit --data_files one_image.parquet", "at least 4 are needed", "--data_files"),
    ("knn --model vit --data_files column.parquet", "no column 'image'", "--image_column"),
    ("knn --model vit --dataset_name notes", "notes holds no images"),
    (
        "knn --model vit --data_files kinds.parquet --label_column kind --test_files wasps.parquet",
        "have the class 'wasp'",
    ),
    ("nsp --model bert --data_files nowhere.txt", "nowhere.txt", "--data_files"),
    ("nsp --model bert --data_files corpus.jsonl --validation_share 0.7", "--validation_share"),
    ("nsp --model bert --dataset_name manifest_cut", "no complete prepared corpus"),
    ("perplexity --model bert --data_files binary.txt", "binary.txt is a binary file"),
    ("perplexity --model bert --data_files blank.txt", "blank.txt", "no text"),
    ("perplexity --model bert --data_files column.csv", "--text_column"),
    ("minimal_pairs --model bert --pairs_file no*.gz", "no*.gz is no file", "--pairs_file"),
    ("minimal_pairs --model bert --pairs_file empty", "empty", "--pairs_file"),
    ("minimal_pairs --model bert --pairs_file no_pairs.jsonl", "holds no pair", "--pairs_file"),
    ("minimal_pairs --model bert --pairs_file not_pairs.jsonl", "line 1, has 'text'"),
    ("minimal_pairs --model bert --pairs_file same_pairs.jsonl", "twice", "3 of 3 rows"),
    ("minimal_pairs --model bert --pairs_file long_pairs.jsonl", "the model takes 64"),
    ("minimal_pairs --model bert --pairs_file deep.jsonl", "nested too deeply", "--pairs_file"),
    ("minimal_pairs --model bert --pairs_file latin1.jsonl", "not UTF-8", "--pairs_file"),
    ("minimal_pairs --model bert --pairs_file binary.txt", "binary file", "--pairs_file"),
    ("fill_mask --model fill_mask_broken", "fill_mask.jsonl, line 1, is not JSON"),
]

CURVE = "evaluate --suite label_efficiency --model bert --output_dir out"
LABELS: list[tuple[str, ...]] = [
    ("", "there is nothing to train on", "--train_file"),
    ("--train_file rows.jsonl --num_labels 0", "--num_labels is '0'", "or all"),
    ("--train_file rows.jsonl --num_labels some", "--num_labels is 'some'"),
    ("--train_file rows.jsonl --num_labels 00", "--num_labels is '00'"),
    (f"--train_file rows.jsonl --num_labels {'9' * 5000}", "--num_labels"),
    ("--train_file rows.jsonl --num_labels 4 1000", "no class has more than", "--num_labels"),
    ("--train_file rows.jsonl --arms magic", "--arms is ['magic']", "fine_tuned"),
    ("--train_file rows.jsonl --seeds 1 1", "--seeds is [1, 1]", "different"),
    ("--train_file rows.jsonl --max_test_rows -1", "--max_test_rows is -1"),
    ("--train_file rows.jsonl --test_file unlabelled.jsonl", "--test_file"),
    ("--train_file rows.jsonl --task multi_label", "single classes", "--task"),
    ("--train_file rows.jsonl --output_dir rows.jsonl/x", "rows.jsonl/x", "--output_dir"),
    ("--train_file rows.jsonl --output_dir used", "used is not an empty folder", "--output_dir"),
    ("--train_file rows.jsonl --model weights_text --arms frozen_probe", "--model"),
    ("--train_file rows.jsonl --model nowhere", "'nowhere'", "--model"),
    ("--dataset_name digits", "'digits' are images", "--model"),
]


@pytest.mark.parametrize(
    ("command", "words"),
    cases(
        flags=("evaluate", FLAGS),
        models=("evaluate --suite", MODELS),
        data=("evaluate --suite", DATA),
        labels=(CURVE, LABELS),
    ),
)
def test_evaluate_refuses(
    world: Path, capsys: pytest.CaptureFixture[str], command: str, words: list[str]
) -> None:
    check_refusal(command, words, capsys)
