"""The only training loop, with what it needs: optimisers, metrics, checkpoints, the run directory."""
