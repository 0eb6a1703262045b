"""Flags in, checked values out.

The command line enters; flat dataclasses leave, each value in its range, in combinations that make
sense, with the defaults of a recipe. They are handed down one by one: no other room but the
commands knows a configuration.
"""
