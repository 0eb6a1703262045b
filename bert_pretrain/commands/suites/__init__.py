"""The suites of `bert-pretrain evaluate`.

The flags of one evaluation enter a suite; it opens what they name, has it measured by
`bert_pretrain.evaluation`, and returns a table to print, figures by name and details for JSON.
"""
