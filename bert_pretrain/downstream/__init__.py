"""Using a pretrained encoder: labelled data, metrics, and training a classifier on it with transformers' Trainer."""
