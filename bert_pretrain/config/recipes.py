"""Named defaults by objective: they replace those of flags; the command line wins.

docs/recipes.md says of each one of text what it costs and reaches, with the command that measured
it, or that it was not run. Lengths are in updates, so that a run is reproducible bit for bit. Two
have a clock too, which may end them before: `minutes` and `base-24h-1gpu`.
"""

from __future__ import annotations

from typing import Any

from bert_pretrain.config.schedules import Rates

# What a recipe for text is for, and on what.
TEXT_PURPOSES = {
    "minutes": ("two CPU cores", "the first command: see a BERT learn"),
    "half-hour": ("two CPU cores", "a small encoder of the embedded corpus or of a few MB of text"),
    "two-hours": ("two CPU cores", "the most that a processor learns from as much text"),
    "hours": ("CPU or GPU", "text of one's own, of any size: 20,000 updates of 32 rows"),
    "base-24h-1gpu": ("1 GPU of the H100 class", "BERT-base in a day"),
    "base-8gpu": ("8 GPUs of the H100 class", "BERT-base of some 100 billion tokens"),
    "devlin2019": ("GPUs", "comparison with the literature: the original settings"),
}

# MosaicBERT-base's settings (mosaicml/examples, mosaic-bert-base-uncased.yaml), which were not
# tested here: Muon's rate is known for small models alone. docs/recipes.md has the arithmetic of
# rows, tokens, hours and memory. Held-out rows have 30 % of their tokens masked too, so that their
# loss is not to be compared with one at 15 %.
_BASE_ON_GPUS: dict[str, Any] = {
    "config_name": "base",
    "mlm_probability": Rates(0.3),
    "optimizer": "adamw",
    "learning_rate": 5e-4,
    "weight_decay": 0.02,  # theirs, 1e-5, is not multiplied by the rate of 5e-4
    "schedule": "linear",
    "global_batch_size": 4096,
    "per_device_train_batch_size": 256,
    "eval_steps": 2000,
    "save_steps": 2000,
}

_BERT: dict[str, dict[str, Any]] = {
    "minutes": {},  # the defaults as `--help` shows them: the embedded corpus in under six minutes
    # Two cores with bfloat16 learn some 10,000 tokens/s at mini; a row has about 118.
    "half-hour": {
        "config_name": "mini",
        "max_steps": 4400,
        "max_hours": 0.0,
        "warmup_steps": 100,
        "learning_rate": 1e-3,
        "eval_steps": 1100,
        "save_steps": 1100,
    },
    # Twice the rows of an update, and so a higher rate.
    "two-hours": {
        "config_name": "mini",
        "max_steps": 8800,
        "max_hours": 0.0,
        "global_batch_size": 64,
        "warmup_steps": 200,
        "learning_rate": 1.5e-3,
        "eval_steps": 1100,
        "save_steps": 1100,
    },
    "hours": {
        "config_name": "mini",
        "max_steps": 20_000,
        "max_hours": 0.0,
        "warmup_steps": 400,
        "learning_rate": 1e-3,
        "eval_steps": 1000,
        "save_steps": 1000,
    },
    "base-24h-1gpu": _BASE_ON_GPUS
    | {"max_steps": 100_000, "max_hours": 24.0, "warmup_steps": 6000},
    "base-8gpu": _BASE_ON_GPUS | {"max_steps": 200_000, "max_hours": 0.0, "warmup_steps": 12_000},
    # Devlin et al. 2019, appendix A.2, at sequence length 128 (90 % of its steps).
    "devlin2019": {
        "config_name": "base",
        "pair_mode": "google",
        "short_seq_prob": 0.1,
        "optimizer": "adamw",
        "learning_rate": 1e-4,
        "adam_beta2": 0.999,
        "weight_decay": 0.01,
        "schedule": "linear",
        "warmup_steps": 10_000,
        "max_steps": 900_000,
        "max_hours": 0.0,
        "global_batch_size": 256,
        "per_device_train_batch_size": 32,
        "dropout": 0.1,
        "neighbour_heads": False,
        "eval_steps": 10_000,
        "save_steps": 10_000,
    },
}

_IMAGES: dict[str, Any] = {
    "max_hours": 0.0,
    "weight_decay": 0.05,
    "adam_beta2": 0.95,
    "learning_rate": 1e-3,
    "per_device_eval_batch_size": 256,
}
_DIGITS = _IMAGES | {
    "config_name": "convnextv2-mini",
    "dataset_name": "digits",
    "validation_share": 0.2,
    "eval_steps": 100,
    "save_steps": 100,
}
# For some ten thousand small photographs, such as CIFAR-10's; README, "Your own images", says what
# they cost and reach.
_PHOTOGRAPHS = _IMAGES | {"config_name": "convnextv2-micro", "eval_steps": 300, "save_steps": 300}
_AUTOENCODER = {
    "output_dir": "runs/autoencoder",
    "global_batch_size": 128,
    "per_device_train_batch_size": 128,
}
_CONTRASTIVE = {
    "output_dir": "runs/contrastive",
    "global_batch_size": 256,
    "per_device_train_batch_size": 256,
}

RECIPES: dict[str, dict[str, dict[str, Any]]] = {
    "mlm_nsp": _BERT,
    "mlm": _BERT,
    "autoencoder": {
        "minutes": _DIGITS | _AUTOENCODER | {"max_steps": 400},
        "small_images": _PHOTOGRAPHS | _AUTOENCODER | {"max_steps": 1500},
    },
    "contrastive": {
        "minutes": _DIGITS | _CONTRASTIVE | {"max_steps": 200, "augmentation": "basic"},
        "small_images": _PHOTOGRAPHS | _CONTRASTIVE | {"max_steps": 1200, "loss": "nt_xent"},
    },
}
