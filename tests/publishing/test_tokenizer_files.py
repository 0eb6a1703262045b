"""Saved tokenizers give the same ids in transformers 4.57 and in 5."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from languages import SAMPLES
from recombined import recombine
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForPreTraining,
    PreTrainedTokenizerFast,
    RobertaTokenizerFast,
)

from bert_pretrain.publishing.export import export_text_model, write_config
from bert_pretrain.publishing.tokenizer_files import save_tokenizer
from bert_pretrain.text.tokenizer_training import train_wordpiece
from bert_pretrain.text.tokenizers import default_tokenizer_folder, load_tokenizer

TEXTS = [sample.text for sample in SAMPLES]
PAIRS = [(sample.sentences[0], sample.sentences[1]) for sample in SAMPLES]
ROBERTA = {
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "cls_token": "<s>",
    "sep_token": "</s>",
    "mask_token": "<mask>",
}


def wordpiece(**options: Any) -> PreTrainedTokenizerFast:
    passages = [passage for sample in SAMPLES for passage in recombine(sample, 10)]
    return train_wordpiece(passages, vocab_size=1500, show_progress=False, **options)


def with_users_tokens() -> PreTrainedTokenizerFast:
    tokenizer = wordpiece()
    tokenizer.add_special_tokens({"additional_special_tokens": ["[E1]", "<speaker>"]})
    tokenizer.add_tokens(["covid19"])
    return tokenizer


def byte_level() -> Tokenizer:
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    return backend


def roberta_like() -> PreTrainedTokenizerFast:
    backend = byte_level()
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **ROBERTA)


def roberta() -> PreTrainedTokenizerFast:
    model = json.loads(byte_level().to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    return RobertaTokenizerFast(vocab=model["vocab"], merges=merges)


def unigram() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    names = list(ROBERTA.values())
    trainer = trainers.UnigramTrainer(
        vocab_size=1200, special_tokens=names, unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator(TEXTS, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> $B </s>",
        special_tokens=[(name, backend.token_to_id(name)) for name in ("<s>", "</s>")],
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, **ROBERTA)


KINDS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "shipped": lambda: load_tokenizer(None),
    "wordpiece": wordpiece,
    "long words": lambda: wordpiece(max_input_chars_per_word=400),
    "users tokens": with_users_tokens,
    "roberta": roberta,
    "roberta-like": roberta_like,
    "unigram": unigram,
}


def encoded(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Return what must not differ between versions."""
    specials = "a [E1] b <speaker>: covid19"
    long = "ab" * 150
    return {
        "texts": [dict(tokenizer(text)) for text in [*TEXTS, specials, long]],
        "pairs": [dict(tokenizer(*pair)) for pair in PAIRS],
        "special": {
            name: getattr(tokenizer, f"{name}_token_id") for name in ("pad", "cls", "sep", "mask")
        },
        "never_shown": tokenizer.decode(tokenizer(specials)["input_ids"], skip_special_tokens=True),
        "length": tokenizer.model_max_length,
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_tokenizer_is_the_same_when_loaded(kind: str, tmp_path: Path) -> None:
    tokenizer = KINDS[kind]()
    save_tokenizer(tokenizer, tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    # What transformers 4.57 knows; anything else it refuses, or fails at.
    known = ("BertTokenizer", "RobertaTokenizer", "PreTrainedTokenizerFast")
    assert config["tokenizer_class"] in known
    assert isinstance(config.get("extra_special_tokens", {}), dict)
    assert encoded(AutoTokenizer.from_pretrained(tmp_path)) == encoded(tokenizer)


def test_the_users_special_tokens_stay_special(tmp_path: Path) -> None:
    save_tokenizer(with_users_tokens(), tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert {"[E1]", "<speaker>"} < set(loaded.all_special_tokens)
    assert loaded.tokenize("[E1] covid19") == ["[E1]", "covid19"]


LOADER = """
from __future__ import annotations
import json, sys
from transformers import AutoTokenizer, __version__
TEXTS, PAIRS = json.load(sys.stdin)
{encoded}
results = {{}}
for folder in sys.argv[1:]:
    try:
        results[folder] = encoded(AutoTokenizer.from_pretrained(folder))
    except Exception as error:
        results[folder] = repr(error)
print(json.dumps([__version__, results]))
"""


@pytest.fixture(scope="module")
def older_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the interpreter of an environment with transformers 4.57, and no torch."""
    folder = tmp_path_factory.mktemp("transformers-4.57")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin/python"
    install = [str(python), "-m", "pip", "install", "--quiet", "transformers==4.57.*"]
    done = subprocess.run(install, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"pip cannot install transformers 4.57: {done.stderr.strip()[-200:]}")
    return python


@pytest.mark.slow
def test_transformers_4_57_gives_the_same_ids(older_python: Path, tmp_path: Path) -> None:
    expected = {str(default_tokenizer_folder()): encoded(load_tokenizer(None))}
    config = BertConfig(
        vocab_size=2000,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
    )
    model = BertForPreTraining(config)
    for kind, make in KINDS.items():
        tokenizer = make()
        alone, export, checkpoint = (
            tmp_path / f"{kind} {name}" for name in ("alone", "export", "checkpoint")
        )
        save_tokenizer(tokenizer, alone)
        export_text_model(model, tokenizer, export)
        checkpoint.mkdir()
        write_config(model, tokenizer, checkpoint)
        expected |= dict.fromkeys(map(str, (alone, export, checkpoint)), encoded(tokenizer))
    program = LOADER.format(encoded=inspect.getsource(encoded))
    done = subprocess.run(
        [str(older_python), "-c", program, *expected],
        input=json.dumps([TEXTS, PAIRS]),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    version, found = json.loads(done.stdout)
    assert version.startswith("4.57.")
    for folder, values in expected.items():
        assert found[folder] == json.loads(json.dumps(values)), folder
        assert encoded(AutoTokenizer.from_pretrained(folder)) == values, folder
