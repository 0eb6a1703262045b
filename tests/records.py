"""What a run leaves behind, made up: the record of run.json and rows of metrics.jsonl."""

from __future__ import annotations

from typing import Any


def run_record(**config: Any) -> dict[str, Any]:
    """Return a record as run.json holds it, with flags of the caller's."""
    flags = {
        "output_dir": "out",
        "objective": "mlm_nsp",
        "dataset_name": "docs",
        "global_batch_size": 32,
        "num_processes": 1,
        "mixed_precision": "no",
        "device": "cpu",
        "max_steps": 20,
    }
    return {
        "config": flags | config,
        "command": ["run_pretraining.py", "--max_steps", "20"],
        "versions": {"python": "3.11.0", "bert-pretrain": "0.1.0", "torch": "2.13.0"},
        "git_revision": "f" * 40,
        "hardware": {"processor": "Some Processor", "cores": 2, "gpus": []},
    }


def metrics_rows(unit: str = "tokens", **measured: float) -> list[dict[str, Any]]:
    """Return two training rows and two evaluations, the last with what was measured."""
    rows: list[dict[str, Any]] = [
        {"split": "validation", "step": 0, "epoch": 0.0, "loss": 9.0} | measured
    ]
    for step in (10, 20):
        rows.append(
            {
                "split": "train",
                "step": step,
                "epoch": step / 10,
                "loss": 5.0,
                "learning_rate": 1e-3,
                unit: 7,
            }
        )
    return [*rows, {"split": "validation", "step": 20, "epoch": 2.0, "loss": 4.0} | measured]
