"""What can be learnt: one file per objective, one small interface."""
