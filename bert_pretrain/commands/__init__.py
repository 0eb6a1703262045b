"""The commands: one file each, with the suites of `evaluate` in a folder of their own.

A command line enters; text on the terminal, files and an exit status leave. A command parses its
flags, opens the configuration once, hands plain values to the other rooms, and spells their errors
as flags. No other room imports from here.
"""
