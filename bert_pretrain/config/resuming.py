"""What a changed flag means to a run that is continued from a checkpoint: one table of all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

Role = Literal["defines", "noted", "free"]

DEFINES: Role = "defines"
"""The flag must be as it was: the numbers before and after could not be compared."""
NOTED: Role = "noted"
"""The flag may change, and the run says that from there on it is not the uninterrupted one."""
FREE: Role = "free"
"""The flag may change without a word: it changes no number, or is compared by its outcome."""

ROLES: dict[str, Role] = {
    # What is learnt, from which draws.
    "objective": DEFINES,
    "seed": DEFINES,
    # Where a run is written, how often it reports, and which defaults its flags had.
    "recipe": FREE,
    "output_dir": FREE,
    "resume_from_checkpoint": FREE,
    "logging_steps": FREE,
    "eval_steps": FREE,
    "save_steps": FREE,
    "save_total_limit": FREE,
    "report_to": FREE,
    "debug": FREE,
    # Where the data come from and how they are read and divided: the run compares the key of the
    # prepared corpus or of the images, which all of these determine. The same corpus may lie in
    # another folder or be prepared from the same files again.
    "dataset_name": FREE,
    "dataset_config_name": FREE,
    "dataset_split": FREE,
    "data_files": FREE,
    "validation_share": FREE,
    "text_column": FREE,
    "document_boundary": FREE,
    "streaming": FREE,
    "language": FREE,
    "tokenizer_name": FREE,
    "image_column": FREE,
    "label_column": FREE,
    "image_size": FREE,
    "num_channels": FREE,
    "on_bad_image": FREE,
    # Other held-out rows: validation figures before and after are of different rows.
    "max_eval_rows": NOTED,
    # How many threads and processes do the same work.
    "preprocessing_num_workers": FREE,
    "dataloader_num_workers": FREE,
    "num_cpu_threads": FREE,
    # How text becomes rows, and rows targets.
    "max_seq_length": DEFINES,
    "short_seq_prob": DEFINES,
    "pair_mode": DEFINES,
    "mlm_probability": DEFINES,
    "mask_replace_prob": DEFINES,
    "random_replace_prob": DEFINES,
    "masking": DEFINES,
    # The model: the run compares its whole configuration; the weights are the checkpoint's.
    "config_name": FREE,
    "model_name_or_path": FREE,
    "dropout": DEFINES,
    # The losses of images, and what the encoder sees of them.
    "embedding_dim": DEFINES,
    "reconstruction_loss": DEFINES,
    "noise_std": DEFINES,
    "mask_ratio": DEFINES,
    "norm_pix_loss": DEFINES,
    "augmentation": DEFINES,
    "horizontal_flip": DEFINES,
    "loss": DEFINES,
    "margin": DEFINES,
    "distance": DEFINES,
    "normalize": DEFINES,
    "negatives": DEFINES,
    "reduction": DEFINES,
    "temperature": DEFINES,
    "projection_dim": DEFINES,
    # The state of an optimizer fits no other one.
    "optimizer": DEFINES,
    # Length and steering of the training: one may want to change them on the way.
    "max_steps": NOTED,
    "num_train_epochs": NOTED,
    "max_hours": NOTED,
    "learning_rate": NOTED,
    "adamw_learning_rate": NOTED,
    "weight_decay": NOTED,
    "adam_beta1": NOTED,
    "adam_beta2": NOTED,
    "adam_epsilon": NOTED,
    "max_grad_norm": NOTED,
    "schedule": NOTED,
    "warmup_steps": NOTED,
    "decay_share": NOTED,
    "mixed_precision": NOTED,
    # Rows of an update: the run compares the number that this and the layout come to.
    "global_batch_size": FREE,
    # How an update is divided into forward passes. It changes the loss where rows of one pass are
    # compared with each other; see `_OF_COUPLED_ROWS`.
    "per_device_train_batch_size": NOTED,
    "per_device_eval_batch_size": NOTED,
    "gradient_accumulation_steps": NOTED,
    # The same numbers in less memory.
    "gradient_checkpointing": FREE,
    # What is published, where and when.
    "push_to_hub": FREE,
    "hub_model_id": FREE,
    "hub_private_repo": FREE,
    "hub_strategy": FREE,
    "hub_push_state": FREE,
    "hub_max_wait": FREE,
    "hub_license": FREE,
}

# The sums of the other objectives do not depend on how their rows are grouped.
_COUPLING_OBJECTIVES = ("contrastive",)
_OF_COUPLED_ROWS = (
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
)


def flags_to_compare(flags: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the flags that define a run, and those whose change is noted.

    Args:
        flags: every flag of the run by name, see `PretrainingConfig.to_dict`.
    """
    couples_rows = flags["objective"] in _COUPLING_OBJECTIVES
    defining = {name: value for name, value in flags.items() if ROLES[name] == DEFINES}
    noted = {
        name: value
        for name, value in flags.items()
        if ROLES[name] == NOTED and (couples_rows or name not in _OF_COUPLED_ROWS)
    }
    return defining, noted
