"""Documents in, batches of masked sentence pairs out."""
