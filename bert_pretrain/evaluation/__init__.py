"""What a pretrained encoder has learnt.

Models, texts and images with their labels enter as plain values. Numbers with their intervals
leave, and pictures. Nothing here knows a flag or prints a table: that is the work of
`bert_pretrain.commands.suites`.
"""
