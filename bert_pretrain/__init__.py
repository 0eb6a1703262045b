"""Pretrain an encoder of your own on text or images; out come plain transformers models."""
