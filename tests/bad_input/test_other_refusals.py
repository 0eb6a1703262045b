"""What `prepare`, `train-tokenizer`, `report` and `hub` refuse, and the words in the message."""

from __future__ import annotations

from pathlib import Path

import pytest
from refusals import cases, check_refusal, snapshot
from strange_files import RUNS

from bert_pretrain.__main__ import main

PREPARE: list[tuple[str, ...]] = [
    ("", "--output_dir must be given"),
    ("--output_dir out --seed -1", "--seed is -1", "[0, 4294967295]"),
    ("--output_dir out --seed 4294967296", "--seed is 4294967296", "[0, 4294967295]"),
    ("--output_dir out --objective contrastive", "--objective is 'contrastive'", "mlm_nsp, mlm"),
    ("--output_dir out --max_steps 5", "unknown arguments --max_steps 5"),
    ("--output_dir out --pair_mode", "--pair_mode has no value"),
    ("--output_dir out --objective mlm --pair_mode sop", "--pair_mode means nothing"),
    ("--output_dir out --mask_replace_prob 1 --random_replace_prob 1", "is 2 but must be at most"),
    ("--output_dir out --dataset_name docs", "both name the data", "pass one"),
    ("--output_dir out --tokenizer_name nowhere", "'nowhere'", "--tokenizer_name"),
    ("--output_dir out --tokenizer_name tokenizer_list", "'tokenizer_list'", "--tokenizer_name"),
    ("--output_dir out --language german", "--language is 'german'"),
    ("--output_dir out --validation_share 0", "--validation_share is 0.0", "(0, 0.5)"),
    ("--output_dir out --validation_files two.txt --validation_split x", "pass one"),
    ("--output_dir out --validation_files empty", "the folder empty", "--validation_files"),
    ("--output_dir out --validation_split x", "--validation_split is 'x'"),
    ("--output_dir out --preprocessing_num_workers 5000", "--preprocessing_num_workers is 5000"),
    ("--output_dir corpus.jsonl", "corpus.jsonl is no folder to write into", "--output_dir"),
    ("--output_dir corpus.jsonl/out", "cannot be created in", "--output_dir"),
    ("--output_dir dangling.txt", "--output_dir"),
    ("--output_dir used", "neither empty nor a prepared corpus", "--output_dir"),
    ("--output_dir run", "neither empty nor a prepared corpus", "--output_dir"),
    ("--output_dir .", "--output_dir"),
    (f"--output_dir {'x' * 300}", "File name too long"),
]

TEXT: list[tuple[str, ...]] = [
    ("nowhere.txt", "there is no file 'nowhere.txt'", "--data_files"),
    ("''", "--data_files is ''"),
    ("empty.txt", "empty.txt is empty"),
    ("empty", "the folder empty holds no file of text"),
    ("binary.txt", "binary.txt is a binary file"),
    ("latin1.txt", "latin1.txt is not UTF-8"),
    ("cut.txt.gz", "cut.txt.gz is not a complete gzip file"),
    ("broken.jsonl", "broken.jsonl, line 2, is not JSON"),
    ("deep.jsonl", "nested too deeply"),
    ("cut.json", "cut.json, line 1, is not an array"),
    ("column.csv", "column.csv has no column 'text'", "--text_column"),
    ("ragged.tsv", "ragged.tsv, line 2, has 3 cells", "--tsv_quotes"),
    ("cut.parquet", "cut.parquet is not a Parquet file"),
    ("blank.txt", "blank.txt"),
    ("text.docx", "text.docx has an unknown extension"),
    ("prepared", "pass it as --dataset_name"),
]

TOKENIZER: list[tuple[str, ...]] = [
    ("--vocab_size few", "--vocab_size is 'few' but must be a whole number"),
    ("--vocab_size 100", "--vocab_size is 100", "[200, "),
    ("--strip_accents yes", "--strip_accents is 'yes'", "auto, on, off"),
    ("--alphabet_coverage 0", "--alphabet_coverage is 0.0", "(0, 1]"),
    ("--alphabet_coverage 99", "--alphabet_coverage 0.99"),
    ("--max_input_chars_per_word 0", "--max_input_chars_per_word is", "or auto"),
    ("--min_frequency 0", "--min_frequency is 0"),
    ("--model_max_length 7", "--model_max_length is 7 but must be"),
    ("--max_unknown_share 1.5", "--max_unknown_share is 1.5"),
    ("--dataset_name docs", "both name the data"),
    ("--output_dir corpus.jsonl", "corpus.jsonl is no folder to write into", "--output_dir"),
    ("--output_dir corpus.jsonl/out", "cannot be created in", "--output_dir"),
    ("--output_dir dangling.txt", "--output_dir"),
    ("--output_dir used", "holds something other than a tokenizer", "--output_dir"),
    ("--output_dir used --overwrite", "holds something other than a tokenizer", "--output_dir"),
    ("--output_dir bert", "bert holds a tokenizer", "--overwrite"),
    ("--tokenizer_name bert", "unknown arguments --tokenizer_name bert"),
]

REPORTS: list[tuple[str, ...]] = [
    ("nowhere", "nowhere is no run"),
    ("corpus.jsonl", "corpus.jsonl is no run"),
    ("empty", "empty is no run"),
    ("run_json_lost", "run_json_lost is no run"),
    ("run_json_cut", "run.json is damaged", "pass the folder of another run"),
    ("run_json_list", "run.json has no 'config'"),
    ("run_json_deep", "run.json is damaged", "nested too deeply"),
    ("run_json_binary", "run.json is damaged"),
    ("run_json_config", "run.json has no 'config'"),
    ("run_json_versions", "run.json is damaged ('versions' is no object)"),
    ("run_unstarted", "metrics.jsonl cannot be read"),
    ("run_unmeasured", "metrics.jsonl has no row yet", "first evaluation"),
    ("metrics_broken", "metrics.jsonl, line 2, is not JSON"),
    ("metrics_deep", "metrics.jsonl, line 1, is not JSON"),
    ("metrics_numbers", "metrics.jsonl, line 1, has no step"),
    ("metrics_text_step", "metrics.jsonl, line 1, has no step"),
    ("metrics_binary", "metrics.jsonl cannot be read"),
    ("fill_mask_broken", "fill_mask.jsonl, line 1, is not JSON"),
]

PUSHES: list[tuple[str, ...]] = [
    ("push nowhere", "nowhere is no run"),
    ("push empty", "empty is no run"),
    ("push run_json_cut", "run.json is damaged"),
    ("push run_json_deep", "nested too deeply"),
    ("push run_json_list", "run.json has no 'config'"),
    ("push run --hub_model_id a/b/c", "'a/b/c'", "--hub_model_id"),
    ("push run --hub_model_id a..b", "'a..b'", "--hub_model_id"),
    ("push begun", "begun has nothing to publish yet", "--resume_from_checkpoint latest"),
    ("push_dataset nowhere", "no complete prepared corpus"),
    ("push_dataset run", "no complete prepared corpus"),
    ("push_dataset manifest_list", "no complete prepared corpus"),
    ("push_dataset manifest_version", "was written in format 1000000"),
    ("push_dataset arrow_cut", "no complete prepared corpus"),
    ("push_dataset prepared --hub_license 'My own'", "no identifier of a licence", "apache-2.0"),
    ("push_dataset prepared --hub_dataset_id a/b/c", "'a/b/c'", "--hub_dataset_id"),
]

VERIFIED: list[tuple[str, ...]] = [
    ("nowhere", "nowhere holds no run", "--output_dir"),
    ("''", "holds no run", "--output_dir"),
    ("corpus.jsonl", "corpus.jsonl holds no run", "--output_dir"),
    ("pipe", "pipe holds no run", "--output_dir"),
    ("empty", "empty holds no run", "--output_dir"),
    ("bert", "bert holds no run", "--output_dir"),
    ("prepared", "prepared holds no run", "--output_dir"),
    ("run/checkpoints/step-000002", "holds no run", "--output_dir"),
    ("run/final", "run/final is what a run has exported", "--output_dir"),
    ("x" * 300, "File name too long"),
    ("run --json empty", "--json is 'empty'", "a folder that exists"),
    ("run --json nowhere/x.json", "--json is 'nowhere/x.json'"),
    ("run --json pipe", "--json is 'pipe'"),
    ("run --json ''", "--json is ''"),
    ("run --json run/run.json", "--json is 'run/run.json', in the run that is checked"),
    ("run --json run/new.json", "in the run that is checked", "another folder"),
]

CLEANED: list[tuple[str, ...]] = [
    ("--clean everything", "--clean is 'everything'", "all, or a number of days, at least 0"),
    ("--clean ''", "--clean is ''", "all, or a number of days"),
    ("--clean -1", "--clean is '-1'", "at least 0"),
    ("--clean nan", "--clean is 'nan'"),
    ("--clean inf", "--clean is 'inf'"),
    ("--clean 1e400", "--clean is '1e400'"),
    ("--clean '30 days'", "--clean is '30 days'"),
]

MIN = "--max_unknown_share 1"


@pytest.mark.parametrize(
    ("command", "words"),
    cases(
        prepare=("prepare --data_files corpus.jsonl", PREPARE),
        prepare_text=("prepare --output_dir out --data_files", TEXT),
        tokenizer=(f"train-tokenizer --data_files corpus.jsonl {MIN}", TOKENIZER),
        tokenizer_text=("train-tokenizer --output_dir out --data_files", TEXT),
        report=("report", REPORTS),
        hub=("hub", PUSHES),
        verify=("verify", VERIFIED),
    ),
)
def test_other_commands_refuse(
    world: Path, capsys: pytest.CaptureFixture[str], command: str, words: list[str]
) -> None:
    check_refusal(command, words, capsys)


@pytest.mark.parametrize(("command", "words"), cases(cache=("cache", CLEANED)))
def test_what_cache_refuses_removes_no_copy(
    world: Path, caches: Path, capsys: pytest.CaptureFixture[str], command: str, words: list[str]
) -> None:
    copy = caches / "bert_pretrain/images/damaged"  # which `--clean all` would remove
    copy.mkdir(parents=True, exist_ok=True)
    before = snapshot(caches)
    assert str(copy) in before
    check_refusal(command, words, capsys)
    assert snapshot(caches) == before


@pytest.mark.parametrize("name", RUNS)
def test_verify_looks_at_any_run_and_changes_nothing(
    world: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    before = snapshot(world)
    # A file that may be edited, and one of before records had digests.
    is_damaged = name not in ("fill_mask_broken", "run_json_versions")
    assert main(["verify", name]) == is_damaged
    assert ("damaged or missing\n" in capsys.readouterr().out) == is_damaged
    assert snapshot(world) == before


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("report", "RUN_DIR"),
        ("report run stray", "stray"),
        ("hub", "command"),
        ("hub pull run", "'pull' (choose from"),
        ("hub push", "run_dir"),
        ("hub push run --private", "--private"),
        ("hub push_dataset", "prepared"),
        ("verify", "RUN_DIR"),
        ("verify run stray", "stray"),
        ("verify run --jsn x", "--jsn x"),
        ("cache stray", "stray"),
        ("cache --clean", "--clean"),
        ("cache --clena all", "--clena all"),
    ],
)
def test_a_command_with_few_flags_shows_them(
    world: Path, capsys: pytest.CaptureFixture[str], command: str, words: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(command.split())
    message = capsys.readouterr().err
    assert stopped.value.code == 2
    assert message.startswith("usage: bert-pretrain ") and words in message


def test_an_unknown_command_is_answered_with_those_that_there_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["pretend"]) == 2
    assert "unknown command 'pretend'; commands: pretrain, prepare" in capsys.readouterr().err
