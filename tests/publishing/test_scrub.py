"""What is published keeps its meaning and loses what belongs to the machine."""

from __future__ import annotations

import getpass
import os
import socket
from pathlib import Path

import pytest
from huggingface_hub.constants import HF_HOME

from bert_pretrain.errors import is_secret_name
from bert_pretrain.publishing import scrub as scrub_module
from bert_pretrain.publishing.scrub import paths_in, scrub


@pytest.mark.parametrize(
    ("private", "public"),
    [
        ("/data/secret project/x", "x"),
        ("--data_files=/data/secret project/*.jsonl.gz", "--data_files=*.jsonl.gz"),
        ("/home/someone/corpora/law.jsonl", "law.jsonl"),
        ("--output_dir=/mnt/disk/runs/law", "--output_dir=law"),
        ("mapped from /home/someone/.cache/hf/pixels.npy", "mapped from pixels.npy"),
        ("~/runs/law/", "law"),
        (r"C:\Users\someone\law.txt", "law.txt"),
        ("file:///srv/law.txt", "law.txt"),
        ("hf_AbCdEfGhIjKl", "[removed]"),
        ("--wandb_key sk-abcdefghijkl", "--wandb_key [removed]"),
        ("https://me:pass@example.org/data", "https://[removed]@example.org/data"),
    ],
)
def test_what_is_private_is_taken_out(private: str, public: str) -> None:
    assert scrub(private) == public
    assert scrub({"a": [private, 1]}) == {"a": [public, 1]}


@pytest.mark.parametrize(
    "public",
    [
        "owner/name",
        "https://example.org/a/b",
        "google-research/bert",
        "tokens/s",
        "and/or",
        "0.1/0.8/0.1",
        "runs/bert",
        "a / b",
        "hf_internal_testing/tiny",
        "hf_dataset",
        "f" * 40,
        "2.13.0+cpu",
    ],
)
def test_what_is_public_stays(public: str) -> None:
    assert scrub(public) == public


def test_secrets_go_by_their_name_and_settings_stay() -> None:
    record = {
        "api_key": "12345",
        "hub_token": "abc",
        "tokenizer_name": "docs",
        "tokens": 5,
        "max_seq_length": 128,
    }
    assert scrub(record) == record | {"api_key": "[removed]", "hub_token": "[removed]"}


def test_the_secrets_of_the_environment_go_wherever_they_stand(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "falsefalse")
    assert scrub(["x-0123456789abcdef-y", "falsefalse"]) == ["x-[removed]-y", "falsefalse"]


def test_names_of_user_and_machine_go_but_for_the_public_repository(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(getpass, "getuser", lambda: "adalovelace")
    monkeypatch.setattr(socket, "gethostname", lambda: "engine.example.org")
    scrub_module._names_of_this_machine.cache_clear()
    try:
        assert (
            scrub("runs/adalovelace on engine.example.org or engine")
            == "runs/user on machine or machine"
        )
        assert scrub("search_engine") == "search_engine"
        repository = "adalovelace/model"
        command = [
            "--hub_model_id",
            repository,
            f"--hub_model_id={repository}",
            "adalovelace/other",
        ]
        assert scrub(command, keep=[repository]) == [*command[:3], "user/other"]
    finally:
        scrub_module._names_of_this_machine.cache_clear()


def test_known_paths_are_taken_out_whatever_characters_they_have() -> None:
    config = {
        "dataset_name": "/data/Clinic A/patients/2024, new/xrays",
        "data_files": ["../../clients/acme/x.txt", "my_text/*.jsonl"],
        "model_name_or_path": "owner/name",
    }
    text = (
        "images   /data/Clinic A/patients/2024, new/xrays\n"
        "skipped: /data/Clinic A/patients/2024, new/xrays/two words/1.png\n"
        f"--data_files=../../clients/acme/x.txt {os.path.abspath('../../clients/acme/x.txt')} "
        f"my_text/*.jsonl, mapped from {HF_HOME}/pixels.npy"
    )
    public = scrub(text, paths=paths_in(config))
    assert public == (
        "images   xrays\nskipped: two words/1.png\n--data_files=x.txt x.txt "
        "my_text/*.jsonl, mapped from pixels.npy"
    )


def test_known_paths_change_no_other_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path / "data")
    paths = paths_in("/data", "/app", "--data_files=../../x.txt", str(Path.cwd()))
    assert "--data_files=../../x.txt" not in paths
    text = f"owner/data/app (train) of {Path.cwd()}/clients/acme/part-1.parquet"
    assert scrub(text, paths=paths) == "owner/data/app (train) of part-1.parquet"


@pytest.mark.parametrize(
    "name",
    [
        "HF_TOKEN",
        "AWS_SECRET_ACCESS_KEY",
        "AZURE_STORAGE_KEY",
        "GITHUB_PAT",
        "PGPASSWORD",
        "DB_PASSWD",
        "OPENAI_API_KEY",
        "GOOGLE_CREDENTIALS",
    ],
)
def test_secrets_of_the_environment_go_by_many_names(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "correct horse battery")
    assert scrub("it is correct horse battery.") == "it is [removed]."


@pytest.mark.parametrize("name", ["PATH", "mask_token_id", "sort_key", "keyboard", "compat"])
def test_other_names_are_no_secrets(name: str) -> None:
    assert not is_secret_name(name)
