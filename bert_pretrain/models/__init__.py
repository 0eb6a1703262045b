"""Models that transformers loads again.

A size name, a configuration or a checkpoint enters; a model to pretrain leaves. BERT adds no
parameter to transformers' class. Image models are an encoder of transformers and what only
pretraining needs: a decoder or a projection head.
"""
