"""What can be learnt: one file per objective, one small interface."""

from bert_pretrain.objectives.interface import LossTerm, Objective, Place, Window

__all__ = ["LossTerm", "Objective", "Place", "Window"]
