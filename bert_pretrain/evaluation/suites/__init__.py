"""The suites of `python -m bert_pretrain.evaluate`: each a function from the flags to text, figures and details."""
