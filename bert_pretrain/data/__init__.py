"""What text and images share: random numbers without state, the loader, files that appear whole, processes."""
