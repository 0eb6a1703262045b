"""A folder of what people pass by mistake: files of every kind that are empty, broken or others."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from downstream_models import make_image_model, make_text_model, sentences
from PIL import Image
from runs import run_here, small_flags, write_corpus, write_model_config
from safetensors.torch import load_file, save_file

SENTENCE = b"The model returns a list of values. "
DEEP = b"[" * 200_000  # more than any parser of JSON can hold open
LONG_NUMBER = b"9" * 5_000  # more digits than Python reads


def parquet(columns: dict[str, Any]) -> bytes:
    """Return a Parquet file."""
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


def image(grey: int = 0, size: tuple[int, int] = (8, 8)) -> bytes:
    """Return a PNG of one level of grey."""
    file = io.BytesIO()
    Image.new("L", size, grey).save(file, "png")
    return file.getvalue()


IMAGES = [image(8 * number) for number in range(30)]


def rows(*given: dict[str, Any]) -> bytes:
    """Return JSON lines."""
    return b"".join(json.dumps(row).encode() + b"\n" for row in given)


def labelled(**changes: Any) -> bytes:
    """Return eight labelled sentences, the third one changed."""
    made = sentences(8)
    made[2] |= changes
    return rows(*made)


FILES: dict[str, bytes] = {
    # Text.
    "empty.txt": b"",
    "blank.txt": b"\n\n  \n",
    "binary.txt": b"MZ\x00\x01\x02" * 50,
    "latin1.txt": "caf\xe9 cr\xe8me".encode("latin-1"),
    "utf16.txt": "Some text.".encode("utf-16"),
    "one.txt": SENTENCE * 40,
    "short.txt": b"A sentence. Another one. A third one.",
    "tweets.txt": b"\n\n".join(b"Sentence number %d." % i for i in range(40)),
    "two.txt": b"One sentence.\n\nAnother sentence.",
    "text.docx": b"PK",
    "plain.txt.gz": SENTENCE * 99,
    "cut.txt.gz": gzip.compress(SENTENCE * 999)[:40],
    "plain.txt.zst": SENTENCE * 99,
    "plain.txt.xz": SENTENCE * 99,
    "plain.txt.bz2": SENTENCE * 99,
    # Tables of text.
    "column.jsonl": rows({"body": "Some text. More text."}),
    "copies.jsonl": rows(*[{"text": "The pump stands still. Its valve leaks."}] * 9),
    "short.jsonl": rows(*({"text": f"Sentence number {i}."} for i in range(40))),
    "broken.jsonl": b'{"text": "Some text."}\n{"text": \n',
    "number.jsonl": b"5\n",
    "deep.jsonl": DEEP,
    "long_number.jsonl": b'{"text": ' + LONG_NUMBER + b"}\n",
    "half.jsonl": b'{"text": "a \\ud800"}\n',
    "latin1.jsonl": '{"text": "caf\xe9"}\n'.encode("latin-1"),
    "cut.json": b'[{"text": "Some text."}, {"text": "Mo',
    "deep.json": b"[{" + b'"a": [' * 100_000,
    "object.json": b'{"text": ["a", "b"], "more": {\n"x": 1}}',
    "column.csv": b"body,label\nSome text.,1\n",
    "shifted.csv": b"text,label\nSome text, not quoted.,1\n",
    "quote.csv": b'text,label\n"never closed,1\n',
    "header.csv": b"text,label\n",
    "ragged.tsv": b"text\tlabel\nSome text.\t1\t2\n",
    "quote.tsv": b'text\tlabel\n"never closed\t1\n',
    "no.parquet": b"PAR1 is not enough PAR1",
    "cut.parquet": parquet({"text": ["Some text."] * 99})[:-60],
    "numbers.parquet": parquet({"text": list(range(9)), "label": list(range(9))}),
    "column.parquet": parquet({"body": ["Some text."]}),
    # Images.
    "unlabelled.parquet": parquet({"image": IMAGES}),
    "grey.parquet": parquet({"image": IMAGES, "label": [0, 1] * 15}),
    "kinds.parquet": parquet({"image": IMAGES, "kind": ["ant", "bee"] * 15}),
    "wasps.parquet": parquet({"image": IMAGES, "kind": ["wasp"] * 30}),
    "one_image.parquet": parquet({"image": IMAGES[:1], "label": [0]}),
    "broken_image.parquet": parquet({"image": [*IMAGES, b"\x89PNG broken"], "label": [0] * 31}),
    "far_label.parquet": parquet({"image": IMAGES, "label": [10**9] * 30}),
    "float_label.parquet": parquet({"image": IMAGES, "label": [0.5] * 30}),
    "no_images.parquet": parquet({"image": [1, 2, 3]}),
    "sizes.parquet": parquet({"image": [*IMAGES, image(size=(9, 9))]}),
    "no_rows.parquet": parquet({"image": pa.array([], pa.binary())}),
    "photos/ant/0.png": image(),
    "photos/ant/1.png": b"\x89PNG broken",
    "photos/bee/0.png": image(),
    "flat/0.png": image(),
    "flat/1.png": image(1),
    "splits/train/0.png": image(),
    "splits/test/0.png": image(),
    "splits/more/0.png": image(),
    "notes/notes.md": b"mine",
    "used/notes.txt": b"mine",
    "begun/run.json": b'{"config": {}}',
    "of_mlm/run.json": b'{"config": {"objective": "mlm"}}',
    # Labelled rows.
    "rows.jsonl": rows(*sentences(60)),
    "eight.jsonl": rows(*sentences(8)),
    "unlabelled.jsonl": rows({"text": "a"}),
    "blind.jsonl": rows(*({"text": "a", "label": None} for _ in range(9))),
    "other.jsonl": rows({"text": "a", "label": "worse"}),
    "pairs.jsonl": rows({"text": "a", "text_pair": "b", "label": "good"}),
    "all_pairs.jsonl": rows(*(row | {"text_pair": "x"} for row in sentences(8))),
    "one_class.jsonl": rows(*[{"text": "a", "label": "x"}] * 9),
    "one_value.jsonl": rows(*[{"text": "a", "label": 0.5}] * 9),
    "no_class.jsonl": rows(*[{"text": "a", "label": []}] * 9),
    "lone_classes.jsonl": rows(*(row | {"label": f"id {i}"} for i, row in enumerate(sentences(8)))),
    "values.jsonl": rows(*({"text": "a", "label": i / 9} for i in range(9))),
    "huge_values.jsonl": rows(*({"text": "a", "label": 10.0**i} for i in range(50))),
    "bits.jsonl": rows(*(row | {"label": [i % 2, 1, 0]} for i, row in enumerate(sentences(8)))),
    "no_label.jsonl": labelled(label=None),
    "nan_label.jsonl": labelled(label=float("nan")),
    "object_label.jsonl": labelled(label={"a": 1}),
    "nested_label.jsonl": labelled(label=[["a"]]),
    "mixed_label.jsonl": labelled(label=["a", {"b": 1}]),
    "half_label.jsonl": labelled(label="a \ud800"),
    "half_text.jsonl": labelled(text="a \ud800"),
    "number_text.jsonl": labelled(text=5),
    # Minimal pairs.
    "no_pairs.jsonl": b"\n",
    "same_pairs.jsonl": rows(*[{"good": "It is so.", "bad": "It is so."}] * 3),
    "long_pairs.jsonl": rows(*[{"good": "a " * 90, "bad": "the " * 90}] * 3),
    "not_pairs.jsonl": rows({"text": "a"}),
}


def make_world(folder: Path) -> None:
    """Fill a folder with files, models, prepared corpora and runs."""
    for name, content in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    write_corpus(folder / "corpus.jsonl")
    (folder / "empty").mkdir()
    (folder / "folder.txt").mkdir()
    (folder / "dangling.txt").symlink_to("nowhere.txt")
    os.mkfifo(folder / "pipe")
    (folder / "loops").mkdir()
    for name in ("back", "back_too"):  # a walk that follows both would not end
        (folder / "loops" / name).symlink_to(".")
    make_text_model(folder / "bert")
    make_image_model(folder / "vit")
    for name, change in (CONFIGS | MODELS).items():
        damage = _of_config(change) if isinstance(change, dict | bytes) else change
        base = "vit" if name.startswith("vit_") else "bert"
        damage(Path(shutil.copytree(folder / base, folder / name)))
    write_model_config(folder / "config")
    flags = ["--max_steps", "2", "--output_dir", "run"]
    run_here(folder, [*small_flags(folder), *flags])
    for name, damage in RUNS.items():
        damage(Path(shutil.copytree(folder / "run", folder / name)))
    _make_corpora(folder)


def _of_config(change: dict[str, Any] | bytes) -> Callable[[Path], None]:
    def damage(model: Path) -> None:
        path = model / "config.json"
        whole = change
        if isinstance(change, dict):
            whole = json.dumps(json.loads(path.read_text()) | change).encode()
        path.write_bytes(whole)

    return damage


def writing(name: str, content: bytes | str) -> Callable[[Path], None]:
    """Return what writes a file of a folder."""
    binary = content.encode() if isinstance(content, str) else content
    return lambda folder: _ignore((folder / name).write_bytes(binary))


def losing(*patterns: str) -> Callable[[Path], None]:
    """Return what removes files of a folder."""

    def damage(folder: Path) -> None:
        for path in [path for pattern in patterns for path in folder.glob(pattern)]:
            path.unlink()

    return damage


def cutting(name: str, size: int = -4) -> Callable[[Path], None]:
    """Return what keeps the beginning of a file of a folder."""
    return lambda folder: _ignore((folder / name).write_bytes((folder / name).read_bytes()[:size]))


def _ignore(_: Any) -> None:
    pass


def _rename_a_piece(model: Path) -> None:
    path = model / "tokenizer.json"
    content = json.loads(path.read_text())
    pieces = content["model"]["vocab"]
    pieces["zzqx"] = pieces.pop(max(pieces, key=pieces.__getitem__))
    path.write_text(json.dumps(content))


def _processor(**changes: Any) -> Callable[[Path], None]:
    def damage(model: Path) -> None:
        path = model / "preprocessor_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


def _lose_weights(*keys: str) -> Callable[[Path], None]:
    def damage(model: Path) -> None:
        path = model / "model.safetensors"
        weights = load_file(path)
        kept = {name: value for name, value in weights.items() if not name.startswith(keys)}
        assert len(kept) < len(weights)
        save_file(kept, path, metadata={"format": "pt"})

    return damage


# What stands in config.json, or is changed in it.
CONFIGS: dict[str, dict[str, Any] | bytes] = {
    "config_cut": b'{"model_type": "be',
    "config_list": b"[]",
    "config_deep": DEEP,
    "config_binary": b"\xff\xfe\x00",
    "config_untyped": b'{"hidden_size": 32}',
    "config_strange_type": {"model_type": "no_such_model"},
    "config_number_type": {"model_type": 5},
    "config_wide": {"hidden_size": 64},
    "config_odd_width": {"hidden_size": 65, "num_attention_heads": 4},
    "config_no_layers": {"num_hidden_layers": 0},
    "config_negative": {"vocab_size": -1},
    "config_text_width": {"hidden_size": "32"},
    "config_huge_width": {"hidden_size": 10**9},
    "config_activation": {"hidden_act": "no_such_activation"},
    "config_dropout": {"hidden_dropout_prob": 1.5},
    "config_positions": {"max_position_embeddings": 0},
    "config_positions_text": {"max_position_embeddings": "many"},
    "config_gpt2": b'{"model_type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 2}',
    "config_t5": b'{"model_type": "t5", "d_model": 32, "num_layers": 1, "vocab_size": 99}',
    "vit_patch": {"patch_size": 3},
    "vit_patch_none": {"patch_size": 0},
    "vit_channels": {"num_channels": "many"},
    "vit_size": {"image_size": -8},
    "vit_colour": {"num_channels": 3},
}

# What is done to the other files of a model.
MODELS: dict[str, Callable[[Path], None]] = {
    "weights_missing": losing("model.safetensors"),
    "weights_empty": writing("model.safetensors", b""),
    "weights_text": writing("model.safetensors", b"no weights"),
    "weights_cut": cutting("model.safetensors"),
    "weights_header": writing("model.safetensors", (2**60).to_bytes(8, "little") + b"{}"),
    "weights_header_text": writing("model.safetensors", (9).to_bytes(8, "little") + b"not json!"),
    "weights_others": _of_config({"intermediate_size": 96}),
    "weights_headless": _lose_weights("cls."),
    "weights_no_pairs": _lose_weights("cls.seq_relationship"),
    "vit_weights_lost": _lose_weights("embeddings."),
    "vit_weights_text": writing("model.safetensors", b"no weights"),
    "tokenizer_missing": losing("tokenizer*"),
    "tokenizer_cut": cutting("tokenizer.json", 500),
    "tokenizer_list": writing("tokenizer.json", "[]"),
    "tokenizer_other": _rename_a_piece,
    "tokenizer_binary": writing("tokenizer.json", b"\xff\xfe\x00"),
    "tokenizer_config_cut": writing("tokenizer_config.json", "{"),
    "tokenizer_config_list": writing("tokenizer_config.json", "[]"),
    "tokenizer_maskless": writing(
        "tokenizer_config.json",
        '{"tokenizer_class": "PreTrainedTokenizerFast", "cls_token": "[CLS]", "sep_token": "[SEP]",'
        ' "pad_token": "[PAD]", "unk_token": "[UNK]"}',
    ),
    "vit_processor_missing": losing("preprocessor_config.json"),
    "vit_processor_cut": writing("preprocessor_config.json", "{"),
    "vit_processor_list": writing("preprocessor_config.json", "[]"),
    "vit_processor_colour": _processor(image_mean=[0.5] * 3, image_std=[0.5] * 3),
    "vit_processor_divides": _processor(image_std=[0.0]),
    "vit_processor_size": _processor(size="large"),
    "vit_processor_mean": _processor(image_mean="grey"),
}

STATE = "checkpoints/step-000002/trainer_state.json"
# What is done to a run of two updates.
RUNS: dict[str, Callable[[Path], None]] = {
    "run_unstarted": losing("metrics.jsonl"),
    "run_unmeasured": writing("metrics.jsonl", '{"split": '),
    "run_json_lost": losing("run.json"),
    "run_json_cut": writing("run.json", '{"config"'),
    "run_json_list": writing("run.json", "[]"),
    "run_json_deep": writing("run.json", DEEP),
    "run_json_binary": writing("run.json", b"\xff\xfe\x00"),
    "run_json_config": writing("run.json", '{"config": [], "started": 5}'),
    "run_json_versions": writing("run.json", '{"config": {}, "versions": ["torch"]}'),
    "metrics_broken": writing("metrics.jsonl", '{"split": "train", "step": 1}\n{"split": \n'),
    "metrics_deep": writing("metrics.jsonl", DEEP + b"\n"),
    "metrics_numbers": writing("metrics.jsonl", "1\n2\n"),
    "metrics_text_step": writing("metrics.jsonl", '{"split": "validation", "step": "one"}\n'),
    "metrics_binary": writing("metrics.jsonl", b"\xff\xfe\x00\n"),
    "fill_mask_broken": writing("fill_mask.jsonl", '{"step":\n'),
    "state_cut": cutting(STATE, 50),
    "state_list": writing(STATE, "[]"),
    "state_deep": writing(STATE, DEEP),
    "state_empty": writing(STATE, ""),
    "state_binary": writing(STATE, b"\xff\xfe\x00"),
    "state_version": writing(STATE, '{"format_version": 99}'),
    "state_digest": writing(STATE, '{"format_version": 1, "step": 2}'),
    "state_lost": losing(STATE),
    "optimizer_cut": cutting("checkpoints/step-000002/optimizer.bin"),
    "optimizer_lost": losing("checkpoints/step-000002/optimizer.bin"),
    "weights_damaged": cutting("checkpoints/step-000002/model.safetensors"),
}


def _make_corpora(folder: Path) -> None:
    """Prepare a corpus, and damage copies of it."""
    from bert_pretrain.__main__ import main

    flags = f"prepare --data_files {folder}/corpus.jsonl --validation_share 0.2 --output_dir"
    assert main([*flags.split(), str(folder / "prepared")]) == 0
    for name, damage in CORPORA.items():
        damage(Path(shutil.copytree(folder / "prepared", folder / name)))


def _numbers(name: str, values: Any) -> Callable[[Path], None]:
    return lambda folder: np.save(folder / name, values)


def _manifest(**changes: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


CORPORA: dict[str, Callable[[Path], None]] = {
    "manifest_cut": cutting("manifest.json", 100),
    "manifest_list": writing("manifest.json", "[]"),
    "manifest_deep": writing("manifest.json", DEEP),
    "manifest_empty": writing("manifest.json", "{}"),
    "manifest_version": _manifest(format_version=10**6),
    "manifest_words": _manifest(words=None),
    "arrow_lost": losing("corpus.arrow"),
    "arrow_cut": cutting("corpus.arrow", 1000),
    "arrow_text": writing("corpus.arrow", b"ARROW1 is not enough"),
    "held_out_lost": losing("validation_documents.npy"),
    "held_out_text": writing("validation_documents.npy", b"no numbers"),
    "held_out_objects": _numbers("validation_documents.npy", np.array([{}], dtype=object)),
    "held_out_beyond": _numbers("validation_documents.npy", np.array([10**6])),
    "held_out_shares": _numbers("validation_documents.npy", np.array([0.5])),
    "token_counts_cut": cutting("token_counts.npy", 40),
    "token_counts_text": _numbers("token_counts.npy", np.array(["a"])),
}
