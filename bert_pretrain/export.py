"""Write a pretrained model so that stock transformers loads it.

A model of this package enters; a folder with config.json, model.safetensors, tokenizer files and a model card leaves.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

CARD = """\
---
library_name: transformers
pipeline_tag: fill-mask
tags:
- bert
- masked-lm
{nsp_tag}---

# BERT pretrained with bert-pretrain

A BERT encoder ({layers} layers, width {width}, {vocab} word pieces, {parameters:.1f} M parameters) pretrained by
masked-language modelling{nsp_text}. It is a plain transformers model:

```python
from transformers import AutoModelForPreTraining, AutoModelForSequenceClassification, AutoTokenizer, pipeline

path = "."  # this folder or its Hub id
tokenizer = AutoTokenizer.from_pretrained(path)
model = AutoModelForPreTraining.from_pretrained(path)
classifier = AutoModelForSequenceClassification.from_pretrained(path, num_labels=2)
print(pipeline("fill-mask", model=path)(f"The quick brown fox {{tokenizer.mask_token}} over the lazy dog."))
```
"""


def export_bert(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path, *, with_nsp: bool) -> None:
    """Write the export folder; it appears whole or not at all.

    Args:
        model: a `BertForPreTraining`.
        tokenizer: the model's.
        directory: target; replaced if it exists.
        with_nsp: whether the next-sentence head was trained, for the model card.
    """
    aside = directory.with_name(directory.name + ".tmp")
    shutil.rmtree(aside, ignore_errors=True)
    model.save_pretrained(aside)
    tokenizer.save_pretrained(aside)
    (aside / "README.md").write_text(_card(model, with_nsp=with_nsp))
    shutil.rmtree(directory, ignore_errors=True)
    os.replace(aside, directory)


def write_config(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Write everything of an export but the weights into an existing folder."""
    config = model.config.__class__(**model.config.to_dict())
    config.architectures = ["BertForPreTraining"]
    config.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def _card(model: PreTrainedModel, *, with_nsp: bool) -> str:
    return CARD.format(
        layers=model.config.num_hidden_layers,
        width=model.config.hidden_size,
        vocab=model.config.vocab_size,
        parameters=model.num_parameters() / 1e6,
        nsp_tag="- next-sentence-prediction\n" if with_nsp else "",
        nsp_text=" and next-sentence prediction" if with_nsp else " (its next-sentence head is untrained)",
    )
