"""Flags in, checked values out.

The command line enters; flat dataclasses leave, each value in its range (`flags`), in combinations
that make sense (`checks`), with the defaults of a recipe (`recipes`). `resuming` says of each flag
what its change means to a run that is continued. The values are handed down one by one: no other
room but the commands knows a configuration.
"""
