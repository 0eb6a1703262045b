"""From the name of an objective to what a run is about, and what it is made of.

A task's module is imported when it is asked for: training on text decodes and augments nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from bert_pretrain.config.pretraining import PretrainingConfig
from bert_pretrain.data.digests import digests_of
from bert_pretrain.objectives.interface import Task

TASKS = {
    "mlm_nsp": "text_task:text_task",
    "mlm": "text_task:text_task",
    "autoencoder": "image_tasks:autoencoder_task",
    "contrastive": "image_tasks:contrastive_task",
}


def build_task(config: PretrainingConfig, accelerator: Accelerator) -> Task:
    """Open the data and return what a run is about.

    Raises:
        InputError: the data, the tokenizer or the model cannot be used.
    """
    module, _, function = TASKS[config.run.objective].partition(":")
    build: Callable[[PretrainingConfig, Accelerator], Task]
    build = getattr(import_module(f"bert_pretrain.commands.{module}"), function)
    return build(config, accelerator)


def sources_of(config: PretrainingConfig, task: Task) -> dict[str, Any]:
    """Return what a run is made of, for its run.json: data, tokenizer, the weights it begins with.

    Weights are named by the digests of their files; those of the Hub lie in its cache.
    """
    name = config.model.model_name_or_path
    if name is None:
        return {**task.sources, "initial_weights": None}
    folder = Path(name)
    if not folder.is_dir():
        with contextlib.suppress(HFValidationError):
            folder = Path(str(try_to_load_from_cache(name, "config.json"))).parent
    names = [str(path.relative_to(folder)) for path in folder.rglob("model*.safetensors")]
    weights = {"name": name, "folder": str(folder.absolute()), "files": digests_of(folder, names)}
    return {**task.sources, "initial_weights": weights}
