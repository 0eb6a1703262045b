"""Export as plain transformers models, their cards, and the Hub."""
