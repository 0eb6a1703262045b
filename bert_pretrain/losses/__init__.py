"""Pure functions from what models return to sums, each with what it is divided by."""
