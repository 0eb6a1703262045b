"""Every two options of pretraining on text: resumed bit for bit, one curve on two processes.

A run has one value of each option, and the runs are chosen so that each pair of values is in one.
It is resumed with dropout, and compared with itself on two processes without, which would draw
anew there. What ends a run, `--stop_at_loss` and the clock, and bfloat16, whose sums depend on the
layout, have tests of their own.
"""

from __future__ import annotations

import itertools
import json
import random
import shutil
from pathlib import Path

import pytest
from runs import metrics, parted, run, run_here, small_flags, write_model_config
from test_encoders import ENCODERS, WITH_PAIRS

from bert_pretrain.__main__ import main

# Values of each option, as flags.
OPTIONS: dict[str, list[str]] = {
    "encoder": ["bert", *ENCODERS],
    "objective": ["mlm", "mlm_nsp exact", "mlm_nsp sop", "mlm_nsp google"],
    "optimizer": ["--optimizer adamw", "--optimizer muon", "--optimizer lamb"],
    "schedule": [
        "--schedule linear",
        "--schedule cosine --warmup_steps 2",
        "--schedule stable_decay --decay_shape sqrt",
    ],
    "length": ["--max_seq_length 48", "--max_seq_length 32:0.6,48:0.4"],
    "ramp": ["", "--batch_size_ramp 4:0.5"],
    "rate": ["--mlm_probability 0.15", "--mlm_probability 0.4:0.15"],
    "masking": ["--masking token", "--masking whole_word", "--masking span"],
    "average": ["", "--ema_decay 0.9 --export_ema"],
    "memory": ["", "--gradient_checkpointing"],
}


def is_possible(choice: dict[str, str]) -> bool:
    """Return whether an encoder has the head that an objective trains, and saves memory so."""
    encoder = choice.get("encoder", "bert")
    needs_head = choice.get("objective", "mlm") != "mlm"
    if encoder == "albert" and choice.get("memory"):
        return False
    return not needs_head or encoder in ("bert", *WITH_PAIRS)


def pairs_of(choice: dict[str, str]) -> set[tuple[tuple[str, str], tuple[str, str]]]:
    return set(itertools.combinations(sorted(choice.items()), 2))


def covering_runs() -> list[dict[str, str]]:
    """Return few runs that have each possible pair of values: of random ones the best, again."""
    generator = random.Random(0)
    missing = set()
    for (first, values), (second, others) in itertools.combinations(sorted(OPTIONS.items()), 2):
        for value, other in itertools.product(values, others):
            if is_possible({first: value, second: other}):
                missing.add(((first, value), (second, other)))
    chosen = []
    while missing:
        drawn, in_order = [], sorted(missing)  # a set has another order in each process
        for _ in range(300):
            choice = {name: generator.choice(values) for name, values in OPTIONS.items()}
            choice |= dict(generator.choice(in_order))
            if is_possible(choice):
                drawn.append(choice)
        best = max(drawn, key=lambda choice: len(pairs_of(choice) & missing))
        chosen.append(best)
        missing -= pairs_of(best)
    return chosen


RUNS = covering_runs()


def flags_of(choice: dict[str, str], folder: Path) -> list[str]:
    encoder = choice["encoder"]
    fields = ENCODERS.get(encoder, {})
    config = write_model_config(folder / encoder, model_type=encoder, **fields)
    flags = small_flags(folder)
    flags[flags.index("--config_name") + 1] = str(config)
    del flags[flags.index("--max_seq_length") :][:2]
    objective, _, pair_mode = choice["objective"].partition(" ")
    flags += ["--objective", objective, *(["--pair_mode", pair_mode] if pair_mode else [])]
    names = [name for name in OPTIONS if name not in ("encoder", "objective")]
    flags += " ".join(choice[name] for name in names).split()
    flags += ["--max_steps", "8", "--global_batch_size", "16", "--learning_rate", "1e-3"]
    return [*flags, "--eval_steps", "4", "--output_dir"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pairwise")


def test_the_runs_have_every_pair_of_values() -> None:
    found = set().union(*map(pairs_of, RUNS))
    for (first, values), (second, others) in itertools.combinations(sorted(OPTIONS.items()), 2):
        for value, other in itertools.product(values, others):
            if is_possible({first: value, second: other}):
                assert ((first, value), (second, other)) in found
    assert len(RUNS) < 40


def test_an_encoder_that_cannot_recompute_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {name: values[0] for name, values in OPTIONS.items()}
    choice = values | {"encoder": "albert", "memory": "--gradient_checkpointing"}
    with pytest.raises(SystemExit) as ended:
        main(["pretrain", *flags_of(choice, folder), str(folder / "refused")])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "AlbertForMaskedLM" in said and "--gradient_accumulation_steps" in said
    assert not (folder / "refused").exists()


# Any two of the options meet in the long part; the slow one has every eighteenth run.
@pytest.mark.parametrize("number", parted(range(len(RUNS)), slow=range(0, len(RUNS), 18)))
def test_two_options_at_a_time_keep_the_numbers(number: int, folder: Path) -> None:
    choice = RUNS[number]
    flags = flags_of(choice, folder)
    check_resumed(folder, [*flags, str(folder / f"run-{number}"), "--dropout", "0.2"], choice)
    one, two = folder / f"one-{number}", folder / f"two-{number}"
    run_here(folder, [*flags, str(one)])
    run(folder, [*flags, str(two), "--per_device_train_batch_size", "4"], num_processes=2)
    assert json.loads((two / "run.json").read_text())["config"]["num_processes"] == 2
    tolerance = 1e-4 if choice["optimizer"] == "--optimizer muon" else 1e-5
    for row, other in zip(metrics(one), metrics(two), strict=True):
        for key, value in row.items():
            allowed = 0.02 if key.endswith("accuracy") else tolerance
            if isinstance(value, float):
                assert other[key] == pytest.approx(value, rel=tolerance, abs=allowed), (key, choice)


def check_resumed(folder: Path, flags: list[str], choice: dict[str, str]) -> None:
    """Check that a run which goes on from its third update is the run that was not ended."""
    out = Path(flags[flags.index("--output_dir") + 1])
    flags = [*flags, "--save_steps", "3", "--save_total_limit", "0"]
    run_here(folder, flags)
    expected = metrics(out)
    final = (out / "final/model.safetensors").read_bytes()
    for step in (6, 8):
        shutil.rmtree(out / f"checkpoints/step-{step:06d}")
    run_here(folder, [*flags, "--resume_from_checkpoint", "latest"])
    assert metrics(out) == expected, choice
    assert (out / "final/model.safetensors").read_bytes() == final, choice
