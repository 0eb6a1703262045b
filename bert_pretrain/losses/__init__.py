"""Pure functions from tensors to sums and counts."""
