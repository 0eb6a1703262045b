"""What a changed flag means to a run that is continued from a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any


def _names(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text))


# These must be as they were: the numbers before and after could not be compared, and the state of
# an optimizer fits no other one.
DEFINING = _names(
    "objective seed max_seq_length short_seq_prob pair_mode same_document_partners "
    "mlm_probability mask_replace_prob "
    "random_replace_prob masking dropout embedding_dim reconstruction_loss noise_std mask_ratio "
    "norm_pix_loss augmentation horizontal_flip loss margin distance normalize negatives reduction "
    "temperature projection_dim optimizer batch_size_ramp crop_area "
    "crop_aspect flip_prob rotation_prob rotation_degrees jitter_prob brightness contrast "
    "saturation hue grayscale_prob blur_prob blur_sigma inversion_prob num_local_views "
    "local_view_size local_crop_area"
)
# These may change, and the run says that from there on it is not the uninterrupted one: length and
# steering of the training, and the held-out rows.
NOTED = _names(
    "max_eval_rows max_steps num_train_epochs max_hours stop_at_loss learning_rate "
    "adamw_learning_rate weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm schedule "
    "warmup_steps decay_share decay_shape ema_decay mixed_precision torch_compile skip_nonfinite "
    "on_spike"
)
# These may change without a word. Some change no number. For the others the run compares what they
# come to: the key of the prepared corpus or of the images (the same one may lie in another folder),
# the whole configuration of the model (its weights are the checkpoint's), the rows of an update,
# and, where held-out rows are compared with each other, the number of those.
FREE = _names(
    "recipe output_dir resume_from_checkpoint signal_grace stuck_timeout logging_steps eval_steps "
    "save_steps save_total_limit keep_every report_to debug profile preprocessing_num_workers "
    "dataloader_num_workers num_cpu_threads gradient_checkpointing export_ema push_to_hub "
    "hub_model_id hub_private_repo hub_strategy hub_push_state hub_max_wait hub_license "
    "dataset_name dataset_config_name dataset_split data_files validation_share "
    "validation_files validation_split text_column document_boundary newline tsv_quotes "
    "streaming language tokenizer_name image_column label_column image_size num_channels "
    "image_reading on_bad_image pixel_range config_name model_name_or_path force_tokenizer "
    "resize_vocab neighbour_heads "
    "grow_positions global_batch_size per_device_train_batch_size per_device_eval_batch_size "
    "gradient_accumulation_steps"
)


def flags_to_compare(flags: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the flags that define a run, and those whose change is noted.

    Args:
        flags: every flag of the run by name, see `PretrainingConfig.to_dict`.
    """
    return (
        {name: value for name, value in flags.items() if name in DEFINING},
        {name: value for name, value in flags.items() if name in NOTED},
    )
