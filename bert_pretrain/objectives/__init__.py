"""What can be learnt: one file per objective, one interface, one literal registry."""

from bert_pretrain.objectives.base import LossTerm, Objective, Place, Window

__all__ = ["LossTerm", "Objective", "Place", "Window"]
