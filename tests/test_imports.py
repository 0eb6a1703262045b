"""Imports point upstream only: data, model and loss code never knows the loop, the loop never knows a modality."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "bert_pretrain"

# From upstream to downstream; a module may import from its own level and from those above it.
LEVELS = [
    ["errors"],
    ["data.tsv_quotes"],
    ["whole_files", "named_folders", "data.row_files"],
    [
        "command_line",
        "data.random",
        "distributed",
        "hardware",
        "models.fast_paths",
        "models.real_tokens",
        "models.positions",
        "optim",
        "recipes",
    ],
    ["losses.cross_entropy", "losses.precision"],
    ["losses.distances"],
    ["losses.nt_xent", "losses.reconstruction", "losses.triplet"],
    ["publishing.scrub", "publishing.upload"],
    ["publishing.download", "publishing.pusher"],
    ["models.bert", "models.image_encoder_config", "models.initialisation"],
    ["models.image_encoder"],
    ["data.files"],
    ["arguments"],
    ["argument_checks"],
    ["config", "models.loading", "data.docstrings", "data.embedded", "data.corpus", "data.tokenizers"],
    ["models.autoencoder", "models.masked_autoencoder", "models.contrastive"],
    ["data.prepared", "data.preparation", "data.windows", "data.google_pairs", "data.sentence_pairs"],
    ["data.neighbour_pairs"],
    ["data.images.rows"],
    ["data.images.decoding", "data.images.folders", "data.images.tables"],
    ["data.images.cache", "data.images.sources"],
    ["data.images.corpus"],
    ["data.augmentation.rules"],
    ["data.augmentation.parameters"],
    ["data.augmentation.colours", "data.augmentation.geometry"],
    ["data.augmentation.views"],
    ["data.masking", "data.collators", "data.image_batches"],
    ["objectives.base"],
    [
        "data.loaders",
        "evaluation.fill_mask",
        "evaluation.masked_language_model",
        "export",
        "vision_export",
    ],
    ["evaluation.features", "evaluation.intervals"],
    ["evaluation.floors", "evaluation.knn", "evaluation.linear_probe"],
    ["evaluation.feature_scores"],
    ["evaluation.collapse", "evaluation.pictures", "evaluation.image_features"],
    ["evaluation.run_records"],
    ["evaluation.curves", "evaluation.pseudo_likelihood", "evaluation.next_sentence", "run_state"],
    ["evaluation.minimal_pairs"],
    ["evaluation.pair_templates"],
    ["downstream.label_values", "downstream.tasks", "downstream.tables"],
    ["downstream.multi_hot"],
    ["downstream.data_flags", "downstream.labels", "downstream.metrics"],
    ["downstream.data", "downstream.image_data", "downstream.models"],
    ["downstream.sources", "downstream.training"],
    ["downstream.predictions", "downstream.results", "downstream.row_digests"],
    ["evaluation.label_efficiency"],
    ["evaluation.label_efficiency_log", "evaluation.label_efficiency_report"],
    ["metrics", "checkpoint", "publishing.model_card"],
    ["trainer"],
    ["objectives.images"],
    ["objectives.bert", "objectives.autoencoder", "objectives.contrastive"],
    ["prepare", "train_tokenizer", "run_directory", "publishing.publication"],
    ["evaluation.suites.context"],
    ["evaluation.suites.label_efficiency_arms"],
    [
        "evaluation.suites.fill_mask",
        "evaluation.suites.images",
        "evaluation.suites.label_efficiency",
        "evaluation.suites.minimal_pairs",
        "evaluation.suites.nsp",
    ],
    ["evaluate", "finetune", "report"],
    ["tasks", "hub"],
    ["pretrain"],
    ["__main__"],
]
LEVEL = {module: number for number, modules in enumerate(LEVELS) for module in modules}


def modules() -> list[Path]:
    return [path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"]


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("bert_pretrain."):
            module = node.module.removeprefix("bert_pretrain.")
            names |= {module} if module in LEVEL else {f"{module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_imports_point_upstream(path: Path) -> None:
    assert name_of(path) in LEVEL, "give the new module a level"
    for module in imported(path):
        assert LEVEL[module] <= LEVEL[name_of(path)], f"{name_of(path)} imports {module}"


def test_the_loop_knows_no_modality() -> None:
    text = (PACKAGE / "trainer.py").read_text()
    for word in ("input_ids", "pixel_values", "mlm", "nsp", "tokenizer"):
        assert word not in text


def test_backward_is_called_in_the_trainer_alone() -> None:
    callers = [name_of(path) for path in modules() if ".backward(" in path.read_text()]
    assert callers == ["trainer"]
