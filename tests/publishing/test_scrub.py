"""What is published keeps its meaning and loses what belongs to the machine."""

from __future__ import annotations

import getpass
import socket

import pytest

from bert_pretrain.publishing import scrub as scrub_module
from bert_pretrain.publishing.scrub import scrub


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
