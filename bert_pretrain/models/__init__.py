"""Encoders that add no parameter to those of transformers."""
