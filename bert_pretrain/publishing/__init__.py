"""Publishing: exports that stock transformers loads, model cards and the Hugging Face Hub.

Enters: a model with its tokenizer or image processor, and the records of its run. Leaves: a folder
to be used anywhere (`export`, `publication`), pictures of the run (`curves`), and uploads that run
beside training (`pusher`, `upload`); `download` fetches what they brought to the Hub.
"""
