"""Labelled data, and transformers' Trainer on what was exported."""
