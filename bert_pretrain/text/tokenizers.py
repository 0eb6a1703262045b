"""Find and check a fast tokenizer that has every special token pretraining needs."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from pathlib import Path

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from bert_pretrain.data.names import refuse_misnamed_model
from bert_pretrain.errors import InputError
from bert_pretrain.text.layout import complete_layout, read_layouts

DEFAULT_TOKENIZER = "docs-uncased-8192"
ROLES = ("unk", "cls", "sep", "mask", "pad")
PLACEHOLDER = re.compile(r"\[unused\d+\]")  # a piece for words that somebody may add


def load_tokenizer(
    name_or_path: str | None, *, parameter: str = "tokenizer_name"
) -> PreTrainedTokenizerFast:
    """Load a tokenizer that can pretrain a BERT; one that adds no special tokens gets BERT's rows.

    Args:
        name_or_path: folder or Hub id; None = the one that comes with the package.
        parameter: that named it, for messages; a model's folder holds its tokenizer too.

    Raises:
        InputError: it cannot be loaded, is not fast, lacks a special token, has two tokens of one
            id, or lays out rows as no row can be.
    """
    if name_or_path is None:
        return load_tokenizer(str(default_tokenizer_folder()))
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False)
    except Exception as error:  # of transformers' parsers; all mean the same to the user
        if parameter != "tokenizer_name":
            refuse_misnamed_model(name_or_path, parameter=parameter)
        is_folder = Path(name_or_path).is_dir()
        kind = "holds no usable tokenizer" if is_folder else "is neither a folder nor on the Hub"
        raise InputError(
            f"{name_or_path!r} {kind} ({type(error).__name__})",
            advice=f"pass `{parameter}` a folder or Hub id with tokenizer.json",
        ) from error
    # Where there is no tokenizer, transformers 5 makes one of its special tokens alone.
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise InputError(
            f"{name_or_path!r} holds no tokenizer with words",
            advice=f"pass `{parameter}` a folder or Hub id with tokenizer.json",
        )
    ids = {name: getattr(tokenizer, f"{name}_token_id") for name in ("mask", "cls", "sep", "pad")}
    if not tokenizer.is_fast:
        problem = "is a slow one (no tokenizer.json)"
    elif missing := [name for name, token_id in ids.items() if token_id is None]:
        problem = f"has no {', '.join(missing)} token"
    elif len(set(ids.values())) < len(ids):
        problem = f"shares ids among mask, cls, sep and pad ({ids}) but they must differ"
    elif shared := _tokens_of_one_id(tokenizer):
        problem = f"gives {' and '.join(map(repr, shared))} one id"
    else:
        complete_layout(tokenizer)
        read_layouts(tokenizer)  # refuses what cannot be followed
        return tokenizer
    raise InputError(
        f"the tokenizer {name_or_path!r} {problem}",
        advice="pass a fast one with a mask, cls, sep and pad token as `tokenizer_name`",
    )


def _tokens_of_one_id(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Return two tokens or more that share an id; none if no id is shared."""
    vocabulary = tokenizer.get_vocab()
    shared = [i for i, count in Counter(vocabulary.values()).items() if count > 1]
    return sorted(token for token, i in vocabulary.items() if i in shared[:1])


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the rows of a table of all ids: more than there are tokens where ids have holes."""
    return int(max(tokenizer.get_vocab().values())) + 1


def default_tokenizer_folder() -> Path:
    """Return the folder of the shipped tokenizer."""
    # It is package data in a wheel, and lies beside the package in a checkout.
    package = Path(__file__).resolve().parents[1]
    in_wheel = package / "tokenizer" / DEFAULT_TOKENIZER
    return in_wheel if in_wheel.is_dir() else package.parent / "tokenizer" / DEFAULT_TOKENIZER


def tokenizer_hash(tokenizer: PreTrainedTokenizerFast) -> str:
    """Return the SHA-256 of everything that decides how the tokenizer cuts text."""
    determinants = [bare_backend(tokenizer).to_str(), *sorted(role_names(tokenizer))]
    return hashlib.sha256("\n".join(determinants).encode()).hexdigest()


def role_names(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """Return the names of the special tokens that the machine itself puts into rows."""
    names = (getattr(tokenizer, f"{role}_token") for role in ROLES)
    return {str(name) for name in names if name is not None}


def has_space_in_words(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Return whether the space before a word is part of it, as in byte-level BPE.

    A sentence that is cut out of its text then lacks its first word's, and gets other tokens.
    """
    backend = bare_backend(tokenizer)
    together, first, second, with_space = (
        backend.encode(text, add_special_tokens=False).ids for text in ("a b", "a", "b", " b")
    )
    return together != first + second and together == first + with_space


def bare_backend(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    """Return a copy of the Rust tokenizer that neither truncates nor pads."""
    # Both are state: a file may come with them, and a call with `truncation=True` leaves them.
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    return backend
