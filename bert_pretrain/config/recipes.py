"""Named defaults by objective: they replace those of flags; the command line wins.

`minutes` is the first command's; what it costs and reaches on text is in README, "What to expect".
`hours` is for data of one's own and `devlin2019` for comparison with the literature; what they
reach was not measured.
"""

from __future__ import annotations

from typing import Any

_BERT: dict[str, dict[str, Any]] = {
    "minutes": {},  # the defaults as `--help` shows them: the embedded corpus in under six minutes
    "hours": {
        "config_name": "mini",
        "max_steps": 20_000,
        "max_hours": 0.0,
        "warmup_steps": 400,
        "learning_rate": 1e-3,
        "eval_steps": 1000,
        "save_steps": 1000,
    },
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
    "config_name": "vit-tiny",
    "dataset_name": "digits",
    "validation_share": 0.2,
    "eval_steps": 200,
    "save_steps": 200,
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
        "minutes": _DIGITS | _AUTOENCODER | {"max_steps": 600},
        "small_images": _PHOTOGRAPHS | _AUTOENCODER | {"max_steps": 1500},
    },
    "contrastive": {
        "minutes": _DIGITS | _CONTRASTIVE | {"max_steps": 400, "augmentation": "basic"},
        "small_images": _PHOTOGRAPHS | _CONTRASTIVE | {"max_steps": 1200, "loss": "nt_xent"},
    },
}
