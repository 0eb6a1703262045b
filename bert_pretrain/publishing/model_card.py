"""The model card and its curves: what a run's own records say of the model that came out of it.

The record in run.json, the rows of metrics.jsonl and what the objective says of the model enter; a
`huggingface_hub.ModelCard` and a picture leave. They claim nothing that was not measured or
recorded, and what enters has been scrubbed of what belongs to the machine alone.
"""

from __future__ import annotations

import csv
import html
import shlex
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from bert_pretrain.data.atomic import atomic_file
from bert_pretrain.data.names import is_hub_id
from bert_pretrain.errors import InputError
from bert_pretrain.publishing.hub import STATE_FOLDER

if TYPE_CHECKING:
    from matplotlib.axes import Axes

EMISSIONS_FILE = "emissions.csv"  # as CodeCarbon writes it
# Flags that say where something is or how the run was watched, not what was done. The card leaves
# them out, and those that begin with hub_.
_NO_RECIPE = """
    output_dir resume_from_checkpoint report_to debug push_to_hub data_files dataset_name
    validation_files
    dataset_config_name dataset_split logging_steps eval_steps save_steps save_total_limit
    dataloader_num_workers num_cpu_threads streaming per_device_eval_batch_size max_eval_rows device
"""
_EMBEDDED = ("docs", "digits")
# Measure -> its baseline: the best guess without context, the more frequent answer for pairs, the
# best linear reconstruction, embeddings that are all equal, a random choice among the views of a
# batch, the largest class. Training does not change it, so it is drawn as a dotted line.
_BASELINES = {
    "mlm_loss": "unigram_entropy",
    "nsp_accuracy": "majority_nsp_accuracy",
    "reconstruction_loss": "pca_reconstruction_loss",
    "contrastive_loss": "chance_contrastive_loss",
    "contrastive_accuracy": "contrastive_chance_accuracy",
    "contrastive_local_accuracy": "contrastive_chance_accuracy",
    "knn_accuracy": "majority_knn_accuracy",
    "reconstruction_psnr": "pca_reconstruction_psnr",
}
_PANEL_INCHES = (5.0, 3.2)
_DOTS_PER_INCH = 110
# Title, endings of the columns of metrics.jsonl in it, whether its axis is logarithmic.
_PANELS = (
    ("loss", ("loss", "unigram_entropy"), False),
    ("accuracy", ("_accuracy",), False),
    ("PSNR, dB", ("_psnr",), False),
    ("learning rate", ("learning_rate",), False),
    ("gradient norm", ("grad_norm",), True),
    ("throughput", ("_per_second",), False),
)
# Metrics as the Hub names them; a measure's name ends with its metric.
_METRIC_TYPES = ("loss", "accuracy", "perplexity", "psnr")


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
    """Fill in the template model_card.md.

    Args:
        fields: what the objective says of the model: `is_text`, `summary`, `tags`, `pipeline_tag`,
            `limits`, of text `language` (None = not stated) and `is_english`, and what else the
            template reads.
        record: of run.json, scrubbed.
        data_card: what the data are, scrubbed.
        metrics_rows: rows of metrics.jsonl up to the state of the model.
        step: updates that the model has had.
        seconds: of training, without interruptions.
        dataset_id: from `hub_sources`.
        base_model: from `hub_sources`.
        emissions_grams: carbon dioxide equivalents, measured; None = not known.
    """
    config = record["config"]
    repo_id = config.get("hub_model_id") or Path(config["output_dir"]).name
    evaluations = [row for row in metrics_rows if row["split"] == "validation"]
    exports_average = bool(config.get("export_ema"))
    evaluated = _of_the_export(evaluations[-1] if evaluations else {}, is_average=exports_average)
    measured = {
        name: value
        for name, value in evaluated.items()
        if value is not None  # as infinity is in metrics.jsonl
        and _metric_type(name) in _METRIC_TYPES
        and name not in ("loss", *_BASELINES.values())
    }
    source = dataset_id or config.get("dataset_name") or "own data"
    evaluated_on = f"held-out {'documents' if fields['is_text'] else 'images'} of {source}"
    card_data = ModelCardData(
        language=fields.get("language"),
        license=config.get("hub_license") or "unknown",
        library_name="transformers",
        pipeline_tag=fields["pipeline_tag"],
        tags=[*fields["tags"], "bert-pretrain"],
        datasets=[dataset_id] if dataset_id else None,
        base_model=base_model,
        metrics=sorted({_metric_type(name) for name in measured} - {"loss"}),
        model_name=repo_id.rpartition("/")[2],
        eval_results=[
            EvalResult(
                task_type=fields["pipeline_tag"],
                dataset_type=dataset_id or "held-out",
                dataset_name=evaluated_on,
                dataset_split="validation",
                metric_type=_metric_type(name),
                metric_name=name.replace("_", " "),
                metric_value=round(value, 6),
            )
            for name, value in measured.items()
        ],
        co2_eq_emissions=_emissions(record["hardware"], emissions_grams),
    )
    template = resources.files("bert_pretrain.publishing").joinpath("model_card.md")
    card: ModelCard = ModelCard.from_template(
        card_data,
        template_str=template.read_text(encoding="utf-8"),
        **fields,
        title=html.escape(str(card_data.model_name)),
        repo_id=repo_id,
        state_folder=STATE_FOLDER if config.get("hub_push_state") else "",
        data_card=_fenced(data_card),
        record=record,
        config=config,
        left_out=_NO_RECIPE.split(),
        step=step,
        amount=_amount(metrics_rows),
        has_curves=bool(metrics_rows),
        warnings=[row for row in metrics_rows if row["split"] == "warning"],
        evaluated=evaluated,
        evaluated_on=html.escape(evaluated_on, quote=False),
        measured=measured,
        baselines=_BASELINES,
        command=_fenced(_command(record)),
        digests=_digests(record),
        machine=_machine(record["hardware"], uses_gpu=config["device"] != "cpu"),
        seconds=seconds,
        emissions_grams=emissions_grams,
        exports_average=exports_average,
    )
    return card


def hub_sources(config: Mapping[str, Any]) -> dict[str, str | None]:
    """Return the Hub names of a run's data set and base model, None for what is not on the Hub.

    Args:
        config: of run.json, not scrubbed: a folder's last part could pass for a name.
    """
    keys = {"dataset_id": "dataset_name", "base_model": "model_name_or_path"}
    names = {key: config.get(flag) for key, flag in keys.items()}
    return {
        key: name if name and name not in _EMBEDDED and is_hub_id(name) else None
        for key, name in names.items()
    }


def read_emissions(run_dir: Path) -> float | None:
    """Return the grams of carbon dioxide that CodeCarbon measured; None if it did not."""
    path = run_dir / EMISSIONS_FILE
    if not path.is_file():
        return None
    with path.open(newline="") as file:
        try:
            return 1000 * sum(float(row["emissions"]) for row in csv.DictReader(file))
        except (KeyError, TypeError, ValueError):  # another program's file, or half a row
            return None


def _of_the_export(row: Mapping[str, Any], *, is_average: bool) -> dict[str, Any]:
    """Return what an evaluation says of the exported weights, and what is true of any weights.

    Args:
        row: of the weights as trained, and under names with "ema_" of their average.
        is_average: whether the average is exported.
    """
    prefix = "ema_"
    if not is_average:
        return {name: value for name, value in row.items() if not name.startswith(prefix)}
    averaged = {n.removeprefix(prefix): v for n, v in row.items() if n.startswith(prefix)}
    common = ("split", "step", "epoch", *_BASELINES.values())
    return {name: row[name] for name in common if name in row} | averaged


def _metric_type(name: str) -> str:
    return name.rpartition("_")[2]


def _amount(metrics_rows: Sequence[Mapping[str, Any]]) -> str:
    """Return how much was trained on, in brackets; "" if the run trained nothing itself."""
    trained = [row for row in metrics_rows if row["split"] == "train"]
    if not trained:
        return ""
    last = trained[-1]
    counts = [f"{last[unit]:,} {unit}" for unit in ("tokens", "images") if unit in last]
    passes = f"{last['epoch']:.2f} passes over the training data"
    return f" ({', '.join([*counts, passes])})"


def _command(record: Mapping[str, Any]) -> str:
    """Return what repeats the run; of a launcher's flags only the number of processes is known."""
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


def _fenced(text: str) -> str:
    """Return a text that cannot end the code block it stands in, as a file's name could."""
    return text.replace("```", "'''")


def _digests(record: Mapping[str, Any]) -> dict[str, str]:
    """Return the SHA-256 of what the model was made of and of what it is, as far as recorded."""
    sources = record.get("sources") or {}
    data, tokenizer = sources.get("data", {}), sources.get("tokenizer", {})
    files = {
        f"`{name}` here": digest
        for name, digest in record.get("files", {}).items()
        if name.endswith(".safetensors")
    }
    began = (sources.get("initial_weights") or {}).get("files", {})
    known = {
        "the data as they were read": data.get("fingerprint"),
        "the data as they were prepared and divided": data.get("key"),
        "the tokenizer": tokenizer.get("sha256"),
        **{f"`{name}` that it began with": digest for name, digest in began.items()},
        "the program's Python files": record.get("code_sha256"),
        **files,
    }
    return {what: digest for what, digest in known.items() if digest}


def _machine(hardware: Mapping[str, Any], *, uses_gpu: bool) -> str:
    gpus = hardware["gpus"]
    if gpus and uses_gpu:
        return ", ".join(f"{gpus.count(name)} x {name}" for name in dict.fromkeys(gpus))
    return f"{hardware['processor']}, {hardware['cores']} cores"


def _emissions(hardware: Mapping[str, Any], grams: float | None) -> dict[str, Any] | None:
    """Return the carbon entry of the card's metadata."""
    if grams is None:
        return None
    return {
        "emissions": round(grams, 6),
        "source": "CodeCarbon",
        "training_type": "pre-training",
        "hardware_used": ", ".join(hardware["gpus"]) or hardware["processor"],
    }


def draw_curves(rows: Sequence[Mapping[str, Any]], png: Path) -> None:
    """Draw the rows of metrics.jsonl against updates; the picture appears whole or not at all.

    Raises:
        InputError: the rows hold nothing to draw.
    """
    from matplotlib.figure import Figure  # takes a second to import

    present = list(dict.fromkeys(key for row in rows for key in row))
    panels = [
        (title, columns, is_log)
        for title, endings, is_log in _PANELS
        if (columns := [column for column in present if column.endswith(endings)])
    ]
    if not panels:
        raise InputError("metrics.jsonl holds no loss", advice="pass the folder of a run")
    num_columns = min(len(panels), 3)
    num_lines = -(-len(panels) // num_columns)
    inches = (_PANEL_INCHES[0] * num_columns, _PANEL_INCHES[1] * num_lines)
    figure = Figure(figsize=inches, dpi=_DOTS_PER_INCH, layout="constrained")
    axes = figure.subplots(num_lines, num_columns, squeeze=False).flatten()
    for axis, (title, columns, is_log) in zip(axes, panels, strict=False):
        _draw_panel(axis, rows, columns)
        axis.set_title(title)
        axis.set_xlabel("updates")
        if is_log:
            axis.set_yscale("log")
    for axis in axes[len(panels) :]:
        axis.remove()
    with atomic_file(png) as aside:
        figure.savefig(aside, format="png", metadata={"Software": None})


def _draw_panel(axis: Axes, rows: Sequence[Mapping[str, Any]], columns: list[str]) -> None:
    for number, column in enumerate(columns):
        name, color = column.replace("_", " "), f"C{number}"
        if column in _BASELINES.values():
            value = next(row[column] for row in reversed(rows) if column in row)
            axis.axhline(value, color=color, linestyle=":", label=name)
            continue
        for split, style, alpha in (("train", "-", 0.5), ("validation", "o--", 1.0)):
            shown = [row for row in rows if row["split"] == split and column in row]
            if shown:
                points = [[row[key] for row in shown] for key in ("step", column)]
                label = f"{name}, {split}"
                axis.plot(*points, style, color=color, alpha=alpha, markersize=3, label=label)
    axis.legend(fontsize=7)
    axis.grid(alpha=0.3)
