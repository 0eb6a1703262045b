"""From the name of an objective to what a run is about.

A task's module is imported when it is asked for: training on text needs nothing of images.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from accelerate import Accelerator

from bert_pretrain.config.pretraining import PretrainingConfig
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
