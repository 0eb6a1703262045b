"""Pure functions from tensors to losses.

What a model returns and what it should have returned enter; sums and counts leave, in float32 also
under autocast. Whoever calls them divides.
"""
