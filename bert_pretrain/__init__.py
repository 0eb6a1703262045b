"""Pretrain an encoder of your own: BERT with masked-LM and next-sentence heads, out as plain transformers models."""
