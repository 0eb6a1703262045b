"""Flags in, checked values out: flat groups of flags with their help, ranges and recipes."""
