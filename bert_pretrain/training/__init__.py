"""The only training loop, with its optimisers, metrics, checkpoints and run directory.

A task (`objectives.interface`) and settings as plain values enter; a trained model, metrics.jsonl
and checkpoints leave. Nothing here knows what is learnt.
"""
