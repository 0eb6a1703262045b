"""The card claims what was recorded and measured, in the forms of the Hub, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from downstream_models import make_text_model
from huggingface_hub import ModelCard
from records import metrics_rows, run_record

from bert_pretrain.models.bert import BertForPreTraining
from bert_pretrain.publishing.export import text_card_fields
from bert_pretrain.publishing.model_card import hub_sources, model_card, read_emissions

TEXT = {
    "is_text": True,
    "with_nsp": True,
    "pipeline_tag": "fill-mask",
    "tags": ["bert"],
    "summary": "A BERT.",
    "limits": ["It is small."],
}


def card(record: dict[str, Any] | None = None, **more: Any) -> ModelCard:
    arguments: dict[str, Any] = {
        "metrics_rows": metrics_rows(mlm_loss=4.0, unigram_entropy=6.0),
        "seconds": 120.0,
        "data_card": "documents 12",
    }
    return model_card(TEXT, record=record or run_record(), step=20, **arguments | more)


def measured() -> dict[str, Any]:
    return {"metrics_rows": metrics_rows(mlm_loss=4.0), "step": 20, "seconds": 1.0}


def test_results_are_in_the_model_index_and_baselines_beside_them() -> None:
    made = card(
        metrics_rows=metrics_rows(
            mlm_loss=4.25, unigram_entropy=6.5, nsp_accuracy=0.75, pseudo_perplexity=70.1
        )
    )
    metadata = yaml.safe_load(made.data.to_yaml())
    (result,) = metadata["model-index"][0]["results"]
    assert {entry["name"]: entry["value"] for entry in result["metrics"]} == {
        "mlm loss": 4.25,
        "nsp accuracy": 0.75,
        "pseudo perplexity": 70.1,
    }
    assert result["task"] == {"type": "fill-mask"} and result["dataset"]["split"] == "validation"
    assert metadata["metrics"] == ["accuracy", "perplexity"]
    assert "| mlm loss | 4.25 | 6.5 | unigram entropy |" in made.text
    assert "| nsp accuracy | 0.75 |  |  |" in made.text
    again = ModelCard(str(made))
    assert again.data.to_dict() == made.data.to_dict()


def test_the_results_are_those_of_the_weights_that_are_exported() -> None:
    rows = metrics_rows(
        mlm_loss=4.25,
        pseudo_perplexity=70.1,
        unigram_entropy=6.5,
        ema_loss=5.0,
        ema_mlm_loss=4.125,
        ema_mlm_accuracy=0.5,
    )
    trained, averaged = (
        card(run_record(export_ema=is_average, ema_decay=0.99), metrics_rows=rows)
        for is_average in (False, True)
    )
    results = [
        {result.metric_name: result.metric_value for result in made.data.eval_results}
        for made in (trained, averaged)
    ]
    # The perplexity was measured of the weights as trained alone.
    assert results[0] == {"mlm loss": 4.25, "pseudo perplexity": 70.1}
    assert results[1] == {"mlm loss": 4.125, "mlm accuracy": 0.5}
    assert "| mlm loss | 4.125 | 6.5 | unigram entropy |" in averaged.text
    assert "exponential moving average" in averaged.text and "with decay 0.99" in averaged.text
    assert "exponential moving average" not in trained.text


def test_data_set_base_and_licence_are_tags_where_they_are_known() -> None:
    known = card(
        run_record(hub_license="cc-by-4.0"), dataset_id="owner/corpus", base_model="owner/bert"
    ).data
    assert (known.datasets, known.base_model, known.license) == (
        ["owner/corpus"],
        "owner/bert",
        "cc-by-4.0",
    )
    unknown = card().data
    assert (unknown.datasets, unknown.base_model, unknown.license) == (None, None, "unknown")


def test_what_lies_on_this_machine_is_no_name_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "owner/corpus").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for name in ("owner/corpus", str(tmp_path / "owner/corpus"), "docs", None):
        assert hub_sources({"dataset_name": name, "model_name_or_path": "owner/bert"}) == {
            "dataset_id": None,
            "base_model": "owner/bert",
        }


def test_accuracies_of_contrast_stand_beside_those_by_chance() -> None:
    measured = {"contrastive_accuracy": 0.25, "contrastive_local_accuracy": 0.125}
    rows = metrics_rows(unit="images", **measured, contrastive_chance_accuracy=0.0625)
    lines = [line for line in card(metrics_rows=rows).text.splitlines() if "| contrastive" in line]
    assert len(lines) == 2 and all("0.0625" in line for line in lines)


def test_the_command_says_how_many_processes_ran() -> None:
    assert "accelerate launch run_pretraining.py --max_steps 20" in card().text
    several = card(run_record(num_processes=4)).text
    assert "torchrun --nproc_per_node 4 run_pretraining.py --max_steps 20" in several
    spaced = run_record() | {"command": ["run_pretraining.py", "--data_files", "my text.txt"]}
    assert "--data_files 'my text.txt'" in card(spaced).text


def test_a_value_that_would_end_a_cell_of_the_table_does_not() -> None:
    assert "| `text_column` | a\\|b |" in card(run_record(text_column="a|b")).text


def test_what_a_run_says_is_text_and_no_html_and_ends_no_block() -> None:
    image = "<img src=x onerror=alert(1)>"
    record = run_record(text_column=image, output_dir=f"out/{image}", dataset_name=f"a/{image}")
    record["command"] += ["--data_files", f"```{image}"]
    rows = metrics_rows(mlm_loss=4.0)
    rows.append({"split": "warning", "step": 20, "message": image})
    text = card(record, metrics_rows=rows, data_card=f"```\n{image}\n```").text
    blocks = text.split("```")
    assert len(blocks) % 2 == 1  # each that begins ends
    prose, fenced = "".join(blocks[::2]), "".join(blocks[1::2])
    assert "<img" not in prose and prose.count("&lt;img src=x") >= 4
    assert fenced.count("<img src=x") == 2


def test_the_card_has_what_tells_data_code_tokenizer_and_weights_from_others() -> None:
    assert "SHA-256" not in card().text  # of a run that did not record them
    digests = {name: name[0] * 64 for name in ("fingerprint", "key", "tokenizer", "began", "code")}
    record = run_record() | {
        "sources": {
            "data": {"fingerprint": digests["fingerprint"], "key": digests["key"]},
            "tokenizer": {"name": "t", "sha256": digests["tokenizer"]},
            "initial_weights": {"name": "m", "files": {"model.safetensors": digests["began"]}},
        },
        "files": {"model.safetensors": "e" * 64, "config.json": "9" * 64},
        "code_sha256": digests["code"],
        "git_is_changed": True,
    }
    text = card(record).text
    assert all(digest in text for digest in digests.values())
    assert f"| `model.safetensors` here | `{'e' * 64}` |" in text and "9" * 64 not in text
    assert "`, with changes that were not committed." in text
    assert "changes that were not" not in card(record | {"git_is_changed": False}).text


def test_carbon_is_claimed_only_where_it_was_measured(tmp_path: Path) -> None:
    assert "not measured" in card().text and "co2_eq_emissions" not in card().data.to_dict()
    assert read_emissions(tmp_path) is None
    (tmp_path / "emissions.csv").write_text(
        "timestamp,emissions\n2026-01-01,0.0125\n2026-01-02,0.0005\n"
    )
    grams = read_emissions(tmp_path)
    assert grams == pytest.approx(13.0)
    (tmp_path / "emissions.csv").write_text("timestamp,emissions\n2026-01-01,")
    assert read_emissions(tmp_path) is None
    made = card(emissions_grams=grams)
    assert made.data.to_dict()["co2_eq_emissions"]["emissions"] == pytest.approx(13.0)
    assert "13 g of CO2" in made.text


def test_a_run_by_the_clock_does_not_claim_to_be_repeatable() -> None:
    assert "clock decided" in card(run_record(max_steps=0, max_hours=1.0)).text
    assert "clock decided" in card(run_record(max_steps=20, max_hours=1.0)).text
    assert "clock decided" not in card().text


def test_a_language_is_claimed_only_where_it_was_stated() -> None:
    assert (
        "language" not in card(run_record(language="en")).data.to_dict()
    )  # as runs recorded that stated none
    stated = model_card(TEXT | {"language": "ru"}, record=run_record(), data_card="", **measured())
    assert stated.data.language == "ru"


@pytest.mark.parametrize("language", ["en", "en-GB", "ru", None])
def test_the_example_is_english_only_for_an_english_model_and_runs_for_any(
    language: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = BertForPreTraining.from_pretrained(make_text_model(tmp_path))
    fields = text_card_fields(
        model, with_nsp=True, language=language, max_seq_length=64, is_from_scratch=True
    )
    made = model_card(fields, record=run_record(), data_card="", **measured())
    assert ("quick brown fox" in made.text) == bool(language and language.startswith("en"))
    (code,) = re.findall(r"```python\n(.*?)```", made.text, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert "token_str" in (printed := capsys.readouterr().out) and "follows:" in printed


@pytest.mark.parametrize(
    ("max_seq_length", "is_from_scratch", "said"),
    [
        (
            48,
            True,
            "trained on rows of up to 48 tokens; its position table has 64 places, those from 48 "
            "on",
        ),
        (64, True, "trained on rows of up to 64 tokens and reads no longer row"),
        (48, False, "trained further on rows of up to 48 tokens; its position table has 64 places"),
    ],
)
def test_positions_are_called_untrained_only_where_nothing_has_trained_them(
    max_seq_length: int, is_from_scratch: bool, said: str, tmp_path: Path
) -> None:
    model = BertForPreTraining.from_pretrained(make_text_model(tmp_path))
    how: dict[str, Any] = {"max_seq_length": max_seq_length, "is_from_scratch": is_from_scratch}
    limits = " ".join(text_card_fields(model, with_nsp=True, language=None, **how)["limits"])
    assert said in limits and ("untrained" in limits) == (is_from_scratch and max_seq_length < 64)


def test_the_card_of_a_model_trained_on_order_says_so(tmp_path: Path) -> None:
    model = BertForPreTraining.from_pretrained(make_text_model(tmp_path))
    how: dict[str, Any] = {"language": "en", "max_seq_length": 64, "is_from_scratch": True}
    fields = text_card_fields(model, with_nsp=True, is_of_order=True, **how)
    made = model_card(fields, record=run_record(), data_card="", **measured())
    assert "sentence-order prediction" in made.text and "1 = they were swapped" in made.text
    assert "trained on order alone" in made.text and "a random one" not in made.text
    assert "sentence-order-prediction" in made.data.tags


def test_a_model_without_next_sentence_head_is_not_shown_with_one() -> None:
    made = model_card(
        TEXT | {"with_nsp": False},
        record=run_record(),
        data_card="",
        metrics_rows=metrics_rows(),
        step=20,
        seconds=1.0,
    )
    assert "seq_relationship_logits" not in made.text and "fill_mask" in made.text


def test_a_number_beyond_all_numbers_is_left_out() -> None:
    made = card(metrics_rows=metrics_rows(mlm_loss=800.0, pseudo_perplexity=None))
    (result,) = yaml.safe_load(made.data.to_yaml())["model-index"][0]["results"]
    assert [entry["name"] for entry in result["metrics"]] == ["mlm loss"]
