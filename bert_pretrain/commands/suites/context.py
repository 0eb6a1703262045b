"""What every suite is given: the flags, and the run that wrote the model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from bert_pretrain.config.evaluating import (
    EvaluateArguments,
    EvaluationData,
    EvaluationImages,
    EvaluationText,
)
from bert_pretrain.data.run_folder import list_checkpoints, read_run_json

FLAG_GROUPS = (EvaluateArguments, EvaluationData, EvaluationImages, EvaluationText)
SOURCE_FLAGS = ("dataset_name", "dataset_config_name", "dataset_split", "data_files")


class SuiteResult(NamedTuple):
    """What a suite found: text to print, figures by name, and further detail as JSON takes it."""

    text: str
    figures: dict[str, float]
    details: Any


@dataclass(eq=False)  # hashed by identity, so that results of functions can be cached by it
class Evaluation:
    """The flags of one evaluation, and the run that wrote its model."""

    options: EvaluateArguments
    data: EvaluationData
    images: EvaluationImages
    text: EvaluationText

    @cached_property
    def run(self) -> dict[str, Any]:
        """The flags of the run that wrote the model; none if no run did."""
        return run_flags(self.options.model)

    @property
    def seed(self) -> int:
        """The seed of everything drawn here."""
        return int(self.options.seed if self.options.seed is not None else self.run.get("seed", 42))

    @cached_property
    def model(self) -> str:
        """What to load: the named model; of a run directory the final or the newest one."""
        return newest_model(self.options.model)

    @property
    def source(self) -> dict[str, Any]:
        """The flags that name the data: those given, else those of the run."""
        given = {name: getattr(self.data, name) for name in SOURCE_FLAGS}
        names_data = given["dataset_name"] or given["data_files"]
        inherited = {} if names_data else {name: self.run.get(name) for name in SOURCE_FLAGS}
        pairs = (*inherited.items(), *given.items())
        return {name: value for name, value in pairs if value is not None}


def run_folder(model: str) -> Path | None:
    """Return the run directory that a model folder is or belongs to; None if there is none."""
    folder = Path(model).absolute()
    owner = folder.parent.parent if folder.parent.name == "checkpoints" else folder.parent
    # An exported model has a run.json too: the public one, without the paths of this machine.
    is_model = (folder / "config.json").is_file()
    for candidate in (owner, folder) if is_model else (folder, owner):
        if (candidate / "run.json").is_file():
            return candidate
    return None


def run_flags(model: str) -> dict[str, Any]:
    """Return the flags of the run that a model folder is or belongs to; {} if there is none.

    Raises:
        InputError: its run.json is damaged, so that what was held out is unknown.
    """
    folder = run_folder(model)
    config: dict[str, Any] = read_run_json(folder)["config"] if folder else {}
    return config


def newest_model(model: str) -> str:
    """Return `model`, or of a run directory its `final`, else its newest checkpoint."""
    folder = Path(model)
    if (folder / "config.json").is_file() or not folder.is_dir():
        return model
    if (folder / "final/config.json").is_file():
        return str(folder / "final")
    checkpoints = list_checkpoints(folder / "checkpoints")
    return str(checkpoints[-1]) if checkpoints else model
