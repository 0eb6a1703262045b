"""The suites of `bert-pretrain evaluate`: each a function from the flags to text, figures and details."""
