"""Publishing: exports that stock transformers loads, model cards and the Hugging Face Hub.

Enters: a model with its tokenizer or image processor, and the records of its run. Leaves: a folder
to be used anywhere (`export`, `publication`), its card and curves (`model_card`), and uploads that
run beside training (`pusher`); `hub` sends files and fetches them.
"""
