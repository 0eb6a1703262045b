"""Whether a tokenizer is the one that a pretrained model knows, or only looks like it.

To a model a token is its id. With another tokenizer, however alike, its embeddings mean other
words, and nothing but a worse loss tells.
"""

from __future__ import annotations

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from bert_pretrain.errors import InputError
from bert_pretrain.text.tokenizers import PLACEHOLDER, ROLES


def refuse_foreign_tokenizer(tokenizer: PreTrainedTokenizerBase, model_name_or_path: str) -> None:
    """Compare a tokenizer with the own one of a model, if the model has one.

    Tokens added to the model's own are no difference, nor are other names of placeholders.

    Raises:
        InputError: pieces of the model's own tokenizer have another id or none, or its special
            tokens are others.
    """
    own = _own_tokenizer(model_name_or_path)
    if own is None:
        return
    ids = tokenizer.get_vocab()
    pieces = {piece: i for piece, i in own.get_vocab().items() if not PLACEHOLDER.fullmatch(piece)}
    num_different = sum(ids.get(piece) != i for piece, i in pieces.items())
    roles = [
        role
        for role in ROLES
        if getattr(own, f"{role}_token_id") not in (None, getattr(tokenizer, f"{role}_token_id"))
    ]
    if num_different:
        problem = (
            f"{100 * num_different / len(pieces):.1f} % of the {len(pieces):,} pieces that "
            f"{model_name_or_path!r} knows have another id, or none"
        )
    elif roles:
        problem = f"the {' and '.join(roles)} token of {model_name_or_path!r} is another one"
    else:
        return
    raise InputError(
        f"{problem}, in the tokenizer {tokenizer.name_or_path!r}",
        advice="leave `tokenizer_name` out, which takes the model's own, or pass `force_tokenizer` "
        "if the model is to learn this one",
    )


def _own_tokenizer(model_name_or_path: str) -> PreTrainedTokenizerBase | None:
    try:
        tokenizer = AutoTokenizer.from_pretrained(model_name_or_path, trust_remote_code=False)
    except Exception:  # whatever transformers' parsers raise: there is none to compare with
        return None
    # Where there is no tokenizer, transformers 5 makes one of its special tokens alone.
    return tokenizer if len(tokenizer) > len(tokenizer.all_special_ids) else None
