"""What `finetune` refuses: the command, and words that must stand in its message."""

from __future__ import annotations

from pathlib import Path

import pytest
from refusals import cases, check_refusal

BEGIN = "finetune --model bert --output_dir out --max_steps 1 --min_steps 0"
ROWS = "--train_file eight.jsonl --validation_share 0.5"

FLAGS: list[tuple[str, ...]] = [
    ("--learning_rate fast", "--learning_rate is 'fast' but must be a number"),
    ("--learning_rate -1", "--learning_rate is -1.0 but must be at least 0"),
    ("--learning_rate nan", "--learning_rate is nan", "finite"),
    ("--num_train_epochs 0", "--num_train_epochs is 0.0", "greater than 0"),
    ("--per_device_train_batch_size 0", "--per_device_train_batch_size is 0"),
    ("--warmup_ratio 1", "--warmup_ratio is 1.0", "[0, 1)"),
    ("--mixed_precision fp16", "--mixed_precision is 'fp16'", "auto, bf16, no"),
    ("--seeds", "--seeds has no value"),
    ("--seeds 1 1", "--seeds is [1, 1] but must be different numbers"),
    ("--seeds -1", "--seeds is [-1]", "0..4294967295"),
    ("--seed 1", "unknown arguments --seed 1", "--help"),
    ("--epochs 3", "unknown arguments --epochs 3"),
    ("--push_to_hub", "--push_to_hub needs a repository", "--hub_model_id"),
    ("--push_to_hub --hub_model_id a/b/c", "'a/b/c'", "--hub_model_id"),
    ("--hub_private_repo", "--hub_private_repo means nothing without --push_to_hub"),
    ("--hub_model_id a/b", "--hub_model_id means nothing without --push_to_hub"),
    ("--from_scratch --freeze_encoder", "--from_scratch", "one of them"),
    ("--text_column label", "cannot be both text and label", "--label_column"),
    ("--label_column text", "cannot be both text and label", "--label_column"),
    ("--label_column text_pair", "cannot be both text and label", "--label_column"),
    ("--augmentation crop", "--augmentation means nothing for a text encoder"),
    ("--augmentation blur", "--augmentation is 'blur'", "none, crop, crop_flip"),
    ("--test_split test", "--test_split goes with --dataset_name"),
    ("--dataset_config_name x", "--dataset_config_name goes with --dataset_name"),
    ("--dataset_name x", "--train_file and --dataset_name 'x'", "pass one"),
    ("--task squad", "squad", "mnli", "--task"),
    ("--metrics nonesuch", "nonesuch", "--metrics"),
    ("--metrics pearson", "not defined", "--metrics"),
    ("--max_seq_length 65", "--max_seq_length is 65 but must lie in 3..64"),
    ("--max_seq_length 2", "must lie in 3..64"),
    ("--max_seq_length -5", "--max_seq_length is -5"),
    ("--validation_share 1", "--validation_share is 1.0", "(0, 1)"),
    ("--text_pair_column second", "no column 'second'", "--text_pair_column"),
    ("--label_column lable", "it has 'text', 'label'", "--label_column"),
    ("--label_names x", "--label_names"),
    ("--label_names x ''", "--label_names"),
    ("--output_dir eight.jsonl/x", "cannot be created in", "--output_dir"),
    ("--output_dir used", "used is not an empty folder", "--output_dir"),
    ("--output_dir dangling.txt", "--output_dir"),
    ("--test_file nowhere.csv", "there is no file 'nowhere.csv'", "--test_file"),
    ("--test_file .", "'.' is a folder", "--test_file"),
    ("--test_file pairs.jsonl", "pairs.jsonl has pairs of texts but eight"),
    ("--validation_file other.jsonl", "'worse'"),
    ("--validation_file blind.jsonl", "blind.jsonl has no labels"),
    ("--task mrpc", "text_pair"),
    ("--task regression", "regression needs numbers"),
]

SOURCES: list[tuple[str, ...]] = [
    ("", "there is nothing to train on", "--train_file, --dataset_name or a --task"),
    ("--train_file ''", "--train_file is ''"),
    ("--dataset_name digits", "'digits' are images but --model is a text encoder"),
    ("--dataset_name ./data", "no folder './data'", "--dataset_name"),
    ("--dataset_name x --tsv_quotes minimal", "--tsv_quotes goes with --train_file"),
    ("--dataset_name x --test_file rows.jsonl", "--test_file goes with --train_file"),
    ("--task sst2", "'nyu-mll/glue' cannot be loaded", "--dataset_name"),
    ("--train_file text.docx", "text.docx has an unknown extension", "--train_file", ".csv"),
    ("--train_file tweets.txt", "tweets.txt has an unknown extension", "--train_file"),
    ("--train_file empty.txt", "--train_file"),
    ("--train_file no_pairs.jsonl", "no_pairs.jsonl has no rows", "--train_file"),
    ("--train_file broken.jsonl", "broken.jsonl, line 2, is not JSON", "--train_file"),
    ("--train_file deep.jsonl", "nested too deeply", "--train_file"),
    ("--train_file latin1.jsonl", "latin1.jsonl is not UTF-8 text", "--train_file"),
    ("--train_file cut.json", "cut.json, line 1, is not an array", "--train_file"),
    ("--train_file no.parquet", "no.parquet is not a Parquet file", "--train_file"),
    ("--train_file cut.parquet", "cut.parquet is not a Parquet file", "--train_file"),
    ("--train_file numbers.parquet", "holds 0 in row 1, which is not a text", "--text_column"),
    ("--train_file quote.csv", "quote.csv has cells that are not quoted", "--train_file"),
    ("--train_file header.csv", "header.csv has no rows", "--train_file"),
    ("--train_file ragged.tsv", "ragged.tsv, line 2, has 3 cells", "--tsv_quotes"),
    ("--train_file column.csv", "column.csv has no column 'text'", "--text_column"),
    ("--train_file unlabelled.jsonl", "no column 'label'", "--label_column"),
    ("--train_file one_class.jsonl", "two classes"),
    ("--train_file one_value.jsonl", "nothing can be learnt"),
    ("--train_file no_class.jsonl", "none of the 9 rows"),
    ("--train_file blind.jsonl", "blind.jsonl has no labels", "--label_column"),
    ("--train_file lone_classes.jsonl", "each class keeps a row"),
    ("--train_file eight.jsonl", "--validation_file"),
    ("--train_file values.jsonl --label_names x", "no classes to be named", "--label_names"),
    ("--train_file huge_values.jsonl --task regression", "row 40"),
    ("--train_file bits.jsonl", "pass --task multi_hot if a 1 in place i means the class i"),
    ("--train_file no_label.jsonl", "row 3 of no_label.jsonl has no label"),
    ("--train_file nan_label.jsonl", "row 3"),
    ("--train_file object_label.jsonl", "row 3"),
    ("--train_file nested_label.jsonl", "row 3"),
    ("--train_file mixed_label.jsonl --task multi_label", "row 3"),
    ("--train_file half_label.jsonl", "row 3"),
    ("--train_file half_text.jsonl", "row 3", "--text_column"),
    ("--train_file number_text.jsonl", "holds 5 in row 3, which is not a text"),
    ("--train_file all_pairs.jsonl --max_seq_length 4", "in 5..64 for this model and pairs"),
]

MODELS: list[tuple[str, ...]] = [
    ("nowhere", "'nowhere' is neither a folder nor", "--model"),
    ("./nowhere", "there is no folder './nowhere'", "--model"),
    ("eight.jsonl", "'eight.jsonl' is a file", "--model"),
    ("empty", "'empty' has no usable config.json", "--model"),
    ("run", "'run' is the folder of a run", "run/final", "--model"),
    ("config_cut", "'config_cut' has no usable config.json", "--model"),
    ("config_list", "'config_list' has no usable config.json", "--model"),
    ("config_deep", "'config_deep' has no usable config.json", "--model"),
    ("config_strange_type", "'config_strange_type'", "--model"),
    ("config_odd_width", "no model can be made of the config.json", "--model"),
    ("config_no_layers", "num_hidden_layers 0", "--model"),
    ("config_negative", "vocab_size -1", "--model"),
    ("config_huge_width --from_scratch", "hidden_size 1000000000", "--model"),
    ("config_activation", "no_such_activation", "--model"),
    ("config_t5", "decoder_start_token_id", "--model"),
    ("weights_missing", "weights_missing", "--model"),
    ("weights_text", "weights_text", "--model"),
    ("weights_cut", "weights_cut", "--model"),
    ("weights_header", "weights_header", "--model"),
    ("weights_others", "intermediate.dense.bias has the shape [64], not [96]", "--model"),
    ("tokenizer_missing", "tokenizer", "--model"),
    ("tokenizer_cut", "'tokenizer_cut' holds no usable tokenizer", "--model"),
    ("tokenizer_list", "'tokenizer_list'", "--model"),
]

OF_IMAGES: list[tuple[str, ...]] = [
    ("vit --text_column x --dataset_name digits", "--text_column means nothing"),
    ("vit --max_seq_length 9 --dataset_name digits", "--max_seq_length means nothing"),
    ("vit --test_split test --dataset_name digits", "--test_split"),
    ("vit --test_split test --dataset_name flat", "so no 'test'", "--test_split"),
    ("vit --train_file eight.jsonl", "--train_file takes Parquet", "--dataset_name"),
    ("vit --train_file cut.parquet", "cut.parquet is not a Parquet file"),
    ("vit --train_file unlabelled.parquet", "--label_column"),
    ("vit --train_file broken_image.parquet", "cannot be decoded"),
    ("vit --dataset_name ./images", "no folder './images'"),
    ("vit --dataset_name empty", "empty holds no images"),
    ("vit --dataset_name flat", "flat has no labels", "a subfolder for each of its classes"),
    ("vit --dataset_name photos", "photos/ant/1.png cannot be decoded"),
    ("vit_processor_missing --dataset_name digits", "preprocessor_config.json"),
    ("vit_processor_cut --dataset_name digits", "preprocessor_config.json", "--model"),
    ("vit_processor_list --dataset_name digits", "preprocessor_config.json", "--model"),
    ("vit_processor_size --dataset_name digits", "preprocessor_config.json", "--model"),
    ("vit_processor_mean --dataset_name digits", "preprocessor_config.json", "--model"),
    ("vit_patch_none --dataset_name digits", "patch_size 0", "--model"),
    ("vit_channels --dataset_name digits", "'vit_channels'", "--model"),
    ("vit_weights_text --dataset_name digits", "vit_weights_text", "--model"),
]


@pytest.mark.parametrize(
    ("command", "words"),
    cases(
        flags=(f"{BEGIN} {ROWS}", FLAGS),
        sources=(BEGIN, SOURCES),
        models=(f"{BEGIN} {ROWS} --model", MODELS),
        images=(f"{BEGIN} --model", OF_IMAGES),
    ),
)
def test_finetune_refuses(
    world: Path, capsys: pytest.CaptureFixture[str], command: str, words: list[str]
) -> None:
    check_refusal(command, words, capsys)


@pytest.mark.parametrize("missing", ["--model", "--output_dir"])
def test_what_must_be_given(world: Path, capsys: pytest.CaptureFixture[str], missing: str) -> None:
    given = {"--model": "bert", "--output_dir": "out"}
    del given[missing]
    words = " ".join(f"{name} {value}" for name, value in given.items())
    check_refusal(f"finetune {words} {ROWS}", [f"{missing} must be given"], capsys)
