"""The model card: what a run's own records say of the model that came out of it.

Enters: what the objective knows of the model (`card_fields`), the record in run.json, and the rows
of metrics.jsonl. Leaves: a `huggingface_hub.ModelCard` with metadata and results in the Hub's
`model-index` form. Nothing is claimed that was not measured or recorded, and nothing of it belongs
to the machine alone (`scrub.py`).
"""

from __future__ import annotations

import csv
import shlex
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from bert_pretrain.publishing.upload import STATE_FOLDER

EMISSIONS_FILE = "emissions.csv"  # as CodeCarbon writes it
# Flags that say where something is or how the run was watched, not what was done; those of the Hub
# begin with hub_.
_NO_RECIPE = """
    output_dir resume_from_checkpoint report_to debug push_to_hub data_files dataset_name dataset_config_name
    dataset_split logging_steps eval_steps save_steps save_total_limit dataloader_num_workers num_cpu_threads streaming
    per_device_eval_batch_size max_eval_rows device
"""
_EMBEDDED = ("docs", "digits")
# What the best predictor reaches that knows no context, no pair, and no more than linear structure.
_BASELINES = {
    "mlm_loss": "unigram_entropy",
    "nsp_accuracy": "majority_nsp_accuracy",
    "reconstruction_loss": "pca_reconstruction_loss",
}
_METRIC_TYPES = {"loss": "loss", "accuracy": "accuracy", "perplexity": "perplexity"}


def model_card(
    fields: Mapping[str, Any],
    *,
    record: Mapping[str, Any],
    data_card: str,
    metrics_rows: Sequence[Mapping[str, Any]],
    step: int,
    seconds: float,
    dataset_id: str | None = None,
    base_model: str | None = None,
    emissions_grams: float | None = None,
) -> ModelCard:
    """Fill the template.

    Args:
        fields: what the objective says of the model: `is_text`, `summary`, `tags`, `pipeline_tag`,
            `limits`, of text `language` (None = not stated) and `is_english`, and what else the
            template reads.
        record: of run.json, scrubbed.
        data_card: what the data are, scrubbed.
        metrics_rows: rows of metrics.jsonl up to the state of the model.
        step: updates that the model has had.
        seconds: of training, all interruptions left out.
        dataset_id: name of the data set on the Hub; None for files, folders and the embedded data.
        base_model: name on the Hub of the model that the run began from; None if it began from
            nothing or a folder.
        emissions_grams: carbon dioxide equivalents, measured; None = not known.

    Returns:
        The card; its metadata have passed the checks that `huggingface_hub` makes without the Hub.
    """
    config = record["config"]
    repo_id = config.get("hub_model_id") or Path(config["output_dir"]).name
    evaluated = dict(
        next((row for row in reversed(metrics_rows) if row["split"] == "validation"), {})
    )
    names = [
        name for name in evaluated if name.rpartition("_")[2] in _METRIC_TYPES and name != "loss"
    ]
    names = [name for name in names if name not in _BASELINES.values()]
    source = dataset_id or config.get("dataset_name") or "own data"
    what = f"held-out {'documents' if fields['is_text'] else 'images'} of {source}"
    card_data = ModelCardData(
        language=fields.get("language"),
        license=config.get("hub_license") or "unknown",
        library_name="transformers",
        pipeline_tag=fields["pipeline_tag"],
        tags=[*fields["tags"], "bert-pretrain"],
        datasets=[dataset_id] if dataset_id else None,
        base_model=base_model,
        metrics=sorted({_metric_type(name) for name in names} - {"loss"}),
        model_name=repo_id.rpartition("/")[2],
        eval_results=[
            EvalResult(
                task_type=fields["pipeline_tag"],
                dataset_type=dataset_id or "held-out",
                dataset_name=what,
                dataset_split="validation",
                metric_type=_metric_type(name),
                metric_name=name.replace("_", " "),
                metric_value=round(evaluated[name], 6),
            )
            for name in names
        ],
        co2_eq_emissions=_emissions(record, emissions_grams),
    )
    card: ModelCard = ModelCard.from_template(
        card_data,
        template_str=resources.files("bert_pretrain.publishing")
        .joinpath("model_card.md")
        .read_text(encoding="utf-8"),
        **fields,
        title=repo_id.rpartition("/")[2],
        path=repo_id if "/" in repo_id else ".",
        path_comment="" if "/" in repo_id else "  # this folder, or its name on the Hub",
        state_folder=STATE_FOLDER if config.get("hub_push_state") else "",
        data_card=data_card,
        training=_training(config, metrics_rows, step),
        recipe=_recipe(config),
        has_curves=bool(metrics_rows),
        evaluated=what,
        evaluated_step=f"{evaluated.get('step', 0):,}",
        results=[_result(name, evaluated) for name in names],
        command=_command(record),
        versions=", ".join(
            f"{name} {version}" for name, version in record["versions"].items() if version
        )
        + ".",
        revision=f" Git revision `{record['git_revision']}`." if record.get("git_revision") else "",
        reproducible=_reproducible(config),
        hardware=_hardware(record, seconds),
        carbon=_carbon(emissions_grams),
    )
    return card


def hub_sources(config: Mapping[str, Any]) -> dict[str, str | None]:
    """Return the Hub names of a run's data set and of the model it began from, None for what is of this machine.

    Args:
        config: of run.json, not scrubbed: a folder's last part could pass for a name.
    """
    names = {
        "dataset_id": config.get("dataset_name"),
        "base_model": config.get("model_name_or_path"),
    }
    return {
        key: None if name in _EMBEDDED or not name or Path(name).exists() else name
        for key, name in names.items()
    }


def read_emissions(run_dir: Path) -> float | None:
    """Return the grams of CO2 equivalents that CodeCarbon has recorded in a run directory; None without a record."""
    path = run_dir / EMISSIONS_FILE
    if not path.is_file():
        return None
    with path.open(newline="") as file:
        try:
            return 1000 * sum(float(row["emissions"]) for row in csv.DictReader(file))
        except (
            KeyError,
            TypeError,
            ValueError,
        ):  # another program's file, or half a row: then nothing is claimed
            return None


def _metric_type(name: str) -> str:
    return _METRIC_TYPES[name.rpartition("_")[2]]


def _result(name: str, row: Mapping[str, Any]) -> dict[str, str]:
    result = {
        "name": name.replace("_", " "),
        "value": f"{row[name]:.4g}",
        "baseline_value": "",
        "baseline": "",
    }
    baseline = _BASELINES.get(name)
    if baseline is not None and baseline in row:
        result |= {"baseline_value": f"{row[baseline]:.4g}", "baseline": baseline.replace("_", " ")}
    return result


def _training(
    config: Mapping[str, Any], metrics_rows: Sequence[Mapping[str, Any]], step: int
) -> str:
    amounts = []
    for last in [row for row in metrics_rows if row["split"] == "train"][-1:]:
        amounts = [f"{last[unit]:,} {unit}" for unit in ("tokens", "images") if unit in last]
        amounts.append(f"{last['epoch']:.2f} passes over the training data")
    amount = f" ({', '.join(amounts)})" if amounts else ""
    return (
        f"{step:,} updates of {config['global_batch_size']:,} rows{amount}, on "
        f"{config['num_processes']} process(es), "
        f"in mixed precision: {config['mixed_precision']}. `run.json` has the rest; the flags that "
        "made it:"
    )


def _recipe(config: Mapping[str, Any]) -> dict[str, str]:
    return {
        name: str(value).replace("|", "\\|")  # it goes into a table
        for name, value in config.items()
        if name not in _NO_RECIPE.split() and not name.startswith("hub_") and value is not None
    }


def _command(record: Mapping[str, Any]) -> str:
    """Return what a user types; what a launcher was called with is lost, but not its number of processes."""
    program, *flags = record["command"]
    num_processes = record["config"]["num_processes"]
    launcher = (
        f"torchrun --nproc_per_node {num_processes}" if num_processes > 1 else "accelerate launch"
    )
    if Path(program).name == "__main__.py":
        program = "-m bert_pretrain"
    elif Path(program).name == "bert-pretrain" and num_processes == 1:
        launcher = ""
    return f"{launcher} {program} {shlex.join(flags)}".strip()


def _reproducible(config: Mapping[str, Any]) -> str:
    if config.get("max_hours"):
        return " The clock decided the schedule of the run, so its numbers repeat only roughly."
    return " On the same data and versions the numbers do not depend on the number of processes, but for rounding."


def _hardware(record: Mapping[str, Any], seconds: float) -> str:
    hardware = record["hardware"]
    gpus = ", ".join(
        f"{hardware['gpus'].count(name)} x {name}" for name in dict.fromkeys(hardware["gpus"])
    )
    machine = (
        gpus
        if gpus and record["config"]["device"] != "cpu"
        else f"{hardware['processor']}, {hardware['cores']} cores"
    )
    duration = f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{seconds / 60:.1f} minutes"
    return f"{machine}; {duration} of training and evaluation."


def _carbon(grams: float | None) -> str:
    if grams is None:
        return "Energy and carbon were not measured."
    return f"Emissions as measured by CodeCarbon: {grams:,.3g} g of CO2 equivalents."


def _emissions(record: Mapping[str, Any], grams: float | None) -> dict[str, Any] | None:
    if grams is None:
        return None
    hardware = record["hardware"]
    return {
        "emissions": round(grams, 6),
        "source": "CodeCarbon",
        "training_type": "pre-training",
        "hardware_used": ", ".join(hardware["gpus"]) or hardware["processor"],
    }
