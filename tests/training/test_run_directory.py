"""What a checkpoint keeps of its run."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import pytest
from tiny_task import loop_state
from transformers import ViTConfig

from bert_pretrain.errors import InputError, spell
from bert_pretrain.models.image_heads import ContrastiveConfig
from bert_pretrain.training.changes import Change, changes, table
from bert_pretrain.training.checkpoint_state import STATE_FILE, write_state
from bert_pretrain.training.run_directory import (
    claim_run_dir,
    confirm_claim,
    fingerprint,
)


def test_a_run_that_another_process_began_or_continued_is_not_written_over(tmp_path: Path) -> None:
    run_dir = tmp_path / "out"
    assert claim_run_dir(run_dir, None) is None
    run_dir.mkdir()
    confirm_claim(run_dir, None, None)  # nobody was there
    (run_dir / "run.json").write_text("{}")
    with pytest.raises(InputError, match="holds another run"):
        confirm_claim(run_dir, None, None)
    first, second = (run_dir / f"checkpoints/step-{step:06d}" for step in (2, 4))
    for checkpoint in (first, second):
        claimed = claim_run_dir(run_dir, "latest")
        confirm_claim(run_dir, "latest", claimed)
        checkpoint.mkdir(parents=True)
        write_state(checkpoint / STATE_FILE, loop_state(), {})
        with pytest.raises(InputError, match="continued the run"):
            confirm_claim(run_dir, "latest", claimed)
    confirm_claim(run_dir, str(first), first)  # asked for by name


@pytest.mark.parametrize("resume_from", ["latest", "auto"])
def test_a_finished_run_without_its_checkpoints_is_not_begun_anew(
    tmp_path: Path, resume_from: str
) -> None:
    (tmp_path / "run.json").write_text("{}")
    assert claim_run_dir(tmp_path, resume_from) is None  # ended before its first checkpoint
    (tmp_path / "final").mkdir()
    with pytest.raises(InputError, match="holds a finished run, but its checkpoints are gone"):
        claim_run_dir(tmp_path, resume_from)


def test_where_a_configuration_was_read_from_makes_no_other_model() -> None:
    prints = []
    for place in ("/somewhere/private", "/elsewhere"):
        encoder = ViTConfig(hidden_size=32, name_or_path=place)
        assert encoder.name_or_path == place
        prints.append(fingerprint({}, {}, ContrastiveConfig(encoder=encoder, name_or_path=place)))
    assert prints[0] == prints[1]
    assert "private" not in json.dumps(prints)
    other = ContrastiveConfig(encoder=ViTConfig(hidden_size=64))
    assert fingerprint({}, {}, other)["model"] != prints[0]["model"]


def test_what_has_changed_is_a_table_with_what_may_and_what_may_not() -> None:
    theirs = fingerprint({"seed": 42, "corpus": "1f"}, {"max_steps": 9}, ViTConfig())
    ours = fingerprint(
        {"seed": 7, "corpus": "2e", "ramp": None},  # a flag that there was not, and is not used
        {"max_steps": 12, "on_spike": "warn"},  # one that there was not
        ViTConfig(num_hidden_layers=3),
    )
    found = changes(theirs, ours)
    assert [(change.name, change.is_allowed) for change in found] == [
        ("`seed`", False),
        ("corpus", False),
        ("the model's num_hidden_layers", False),
        ("`max_steps`", True),
    ]
    rows = [line.split() for line in table(found).splitlines()]
    assert rows[1] == ["`seed`", "42", "7", "no"]
    assert rows[2][:4] == ["corpus", "1f", "2e", "no:"]
    assert rows[4] == ["`max_steps`", "9", "12", "yes"]
    head, first, *_ = table(found).splitlines()
    assert head.index("now") == first.index("7")
    assert changes(theirs, theirs) == []


def test_the_table_of_the_documentation_is_one() -> None:
    found = [
        Change("`seed`", "42", "7", is_allowed=False),
        Change("`learning_rate`", "0.0015", "0.0001", is_allowed=True),
    ]
    page = (Path(__file__).parents[2] / "docs/checkpoints.md").read_text()
    assert textwrap.dedent(spell(table(found))) in page


def test_another_objective_explains_all_that_differs() -> None:
    theirs = fingerprint({"objective": "mlm", "dropout": 0.1}, {"max_steps": 9}, ViTConfig())
    ours = fingerprint({"objective": "mlm_nsp", "dropout": 0.0}, {"max_steps": 8}, ViTConfig())
    (change,) = changes(theirs, ours)
    assert (change.name, change.then, change.now) == ("`objective`", "mlm", "mlm_nsp")


def test_a_checkpoint_that_names_no_run_fits_none() -> None:
    ours = fingerprint({"seed": 7}, {}, ViTConfig())
    (seed, *model) = changes({}, ours)
    assert (seed.then, seed.is_allowed) == ("-", False)
    assert model and not any(change.is_allowed for change in model)
