"""The flags of pretraining but those of images, grouped as `--help` shows them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from bert_pretrain.config.flags import (
    NON_NEGATIVE,
    ONE_OR_MORE,
    POSITIVE,
    ROWS,
    ROWS_OF_UPDATE,
    SEEDS,
    SHARE,
    SHARE_BELOW_ONE,
    THREADS,
    TOKENS,
    WORKERS,
    CountOrAuto,
    Range,
    flag,
    flags,
)
from bert_pretrain.config.recipes import TEXT_PURPOSES
from bert_pretrain.config.schedules import Lengths, Ramp, Rates


@dataclass
class RunArguments:
    """Where a run goes and how it continues."""

    _argument_group_name: ClassVar[str] = "run"
    objective: Literal["mlm_nsp", "mlm", "autoencoder", "contrastive"] = flag(
        "mlm_nsp",
        "What is learnt: masked words and next sentences, masked words only, images by "
        "reconstruction, images by contrast. Each has its own defaults: add --help.",
    )
    recipe: str = flag(
        "minutes",
        f"Named defaults: for text {', '.join(TEXT_PURPOSES)}, for images minutes, small_images. "
        "docs/recipes.md says what each is for and what it reached.",
    )
    output_dir: str = flag("runs/bert", "Folder of run.json, metrics.jsonl, checkpoints/, final/.")
    seed: int = flag(42, "Seed of initialisation, order, pairs, masks and dropout.", SEEDS)
    resume_from_checkpoint: str | None = flag(
        None,
        "'auto' = the newest whole checkpoint of --output_dir, or a new run where there is none; "
        "'latest' = the same, of a run that there is; a checkpoint folder; or owner/name@revision "
        "that --hub_push_state pushed.",
    )
    signal_grace: float = flag(
        0.0,
        "Seconds that a run has after SIGTERM, SIGINT, SIGHUP or SIGUSR1 to finish its update and "
        "save; then it ends without; 0 = as long as that takes. Another SIGINT ends it at once.",
        NON_NEGATIVE,
    )
    logging_steps: int = flag(10, "Updates between training rows of metrics.jsonl.", ONE_OR_MORE)
    eval_steps: int = flag(450, "Updates between evaluations; 0 = at start and end.", NON_NEGATIVE)
    save_steps: int = flag(450, "Updates between checkpoints; 0 = only at the end.", NON_NEGATIVE)
    stuck_timeout: float = flag(
        1800.0,
        "Seconds without a forward pass or a checkpoint after which a process ends the run and "
        "says where it stood; 0 = never.",
        NON_NEGATIVE,
    )
    save_total_limit: int = flag(
        2,
        "Checkpoints kept, the newest, and beside them the one of the lowest held-out loss; 0 = "
        "all.",
        NON_NEGATIVE,
    )
    keep_every: int = flag(
        0,
        "Checkpoints of every so many updates, a multiple of --save_steps, are kept as well; 0 = "
        "none.",
        NON_NEGATIVE,
    )
    report_to: Literal["none", "tensorboard", "trackio", "wandb", "all"] = flag(
        "none", "Tracker of experiments that gets the metrics too."
    )
    profile: int = flag(
        0,
        "Updates to profile: a trace and a table in OUTPUT_DIR/profile; 0 = none.",
        Range(0, 10**4),  # memory holds the trace
    )
    debug: bool = flag(False, "Show the traceback of an input error.")


@dataclass
class DataArguments:
    """Where the text or the images come from."""

    _argument_group_name: ClassVar[str] = "data"
    dataset_name: str | None = flag(
        None,
        "'docs' (the documentation inside your own Python; the default for text without "
        "--data_files), 'digits' (scikit-learn's; the default for images), a folder that "
        "bert-pretrain prepare wrote, a folder of text files or of images, a data set saved by "
        "datasets, or a name on the Hub, of a data set or of a prepared corpus.",
    )
    dataset_config_name: str | None = flag(None, "Configuration of the Hub data set.")
    dataset_split: str = flag("train", "Split of the data set or folder to read.")
    data_files: list[str] | None = flags(
        "Own text (.txt, .jsonl, .json, .csv, .tsv, .parquet, also .gz, .bz2, .xz or .zst of each; "
        "globs, and folders, which are read whole) or images (image files, .parquet, or .tar as "
        "WebDataset has them; globs)."
    )
    validation_share: float = flag(
        0.05,
        "Share of the text's tokens, or of the images, held out for evaluation: whole documents; "
        "where these are few and long, the first or last sentences of each.",
        Range(0, 0.5, low_included=False, high_included=False),
    )
    max_eval_rows: int = flag(2000, "Evaluated rows at most, drawn once; 0 = all.", NON_NEGATIVE)
    dataloader_num_workers: CountOrAuto = flag(
        CountOrAuto("auto"),
        "Worker processes per process that make batches; auto = some beside a GPU, none without.",
        replace(WORKERS, or_auto=True),
    )


@dataclass
class TextArguments:
    """How text becomes training rows."""

    _argument_group_name: ClassVar[str] = "text"
    validation_files: list[str] | None = flags(
        "Own text to hold out, in place of --validation_share; training documents that are in it "
        "as well are left out."
    )
    validation_split: str | None = flag(
        None, "Split of the data set to hold out, in place of --validation_share."
    )
    text_column: str = flag(
        "text",
        "Column with the text, of files other than .txt and of data sets; a.b = column b within a. "
        "Of a list of texts each is a paragraph.",
    )
    document_boundary: Literal["blank_line", "line", "file"] = flag(
        "blank_line", "What ends a document in .txt: a blank line, the line, or the file."
    )
    newline: Literal["auto", "space", "sentence", "paragraph"] = flag(
        "auto",
        "What a newline in a document is: space = a line was wrapped there, sentence = the end of "
        "one, paragraph = the end of one; auto = what the first part of the text looks like, for "
        "each kind of file (the data card says so).",
    )
    tsv_quotes: Literal["none", "minimal"] = flag(
        "none",
        "Quotes of a .tsv: letters like others, or around cells that hold a tab, quote or newline.",
    )
    streaming: bool = flag(False, "Read a Hub data set without downloading it first.")
    language: str | None = flag(
        None,
        "Language code of the text, such as de or pt-BR: its rules split sentences, and the cards "
        "of model and corpus name it. Without it, text in Latin script is split as English, and "
        "cards name a language for 'docs' only. Paragraphs in another script than the language's "
        "are split by rules of their script (docs/languages.md).",
    )
    tokenizer_name: str | None = flag(
        None,
        "Fast tokenizer with mask, cls, sep and pad: folder or Hub id. Default: the shipped one.",
        aliases=["--tokenizer"],
    )
    preprocessing_num_workers: int = flag(0, "Threads that tokenise; 0 = one a core.", THREADS)
    max_seq_length: Lengths = flag(
        Lengths(128),
        "Tokens per row with [CLS] and [SEP], at most the model's positions; or LENGTH:SHARE,... "
        "for phases of a run, such as 128:0.9,512:0.1.",
        TOKENS,
    )
    short_seq_prob: float = flag(0.1, "Share of rows of a random shorter length.", SHARE_BELOW_ONE)
    pair_mode: Literal["exact", "google", "sop"] = flag(
        "exact",
        "How sentence pairs are drawn: unbiased; as google-research/bert does; or sop, sentence "
        "order: neighbours of one document, in order or swapped (ALBERT).",
    )
    same_document_partners: bool = flag(
        False,
        "Let the random B of an exact pair be of a distant place of the same document, where none "
        "of another document is left; the data card says how many are.",
    )
    mlm_probability: Rates = flag(
        Rates(0.15),
        "Share of tokens to predict; or FIRST:LAST, linear over the run, such as 0.3:0.15.",
        Range(0, 1, low_included=False, high_included=False),
    )
    mask_replace_prob: float = flag(0.8, "Share of those that become [MASK].", SHARE)
    random_replace_prob: float = flag(0.1, "Share of those that become a random token.", SHARE)
    masking: Literal["token", "whole_word", "span"] = flag(
        "token",
        "Unit that is masked together; words are those of the text (docs/languages.md).",
    )


@dataclass
class ModelArguments:
    """The encoder."""

    _argument_group_name: ClassVar[str] = "model"
    config_name: str = flag(
        "micro",
        "Size of text encoders (tiny, micro, mini, small, medium, base, large), of BERT or of the "
        "architecture before it (albert-, deberta-v2-, distilbert-, electra-, modernbert-, "
        "roberta-, as in modernbert-mini); or of image encoders (vit-tiny, vit-mini, vit-small, "
        "vit-base, vit-large, beit-base, beit-large, dinov2-small, dinov2-base, dinov2-large, "
        "convnext-tiny, convnext-small, convnext-base, convnextv2-mini, convnextv2-micro, "
        "convnextv2-atto, convnextv2-nano, convnextv2-tiny, convnextv2-base, swin-tiny, "
        "swin-small, swin-base, swinv2-tiny, swinv2-small, swinv2-base, resnet18, resnet34, "
        "resnet50, resnet101, resnet152); or a folder or Hub id with a config.json. All begin "
        "with random weights.",
    )
    model_name_or_path: str | None = flag(
        None, "Model to continue from, a folder or Hub id, in place of --config_name."
    )
    dropout: float = flag(
        0.0,
        "Dropout of hidden states and attention while pretraining; the export keeps the config's.",
        SHARE_BELOW_ONE,
    )


@dataclass
class NewModelArguments:
    """What a text model that --config_name names begins with."""

    _argument_group_name: ClassVar[str] = "new text model"
    neighbour_heads: bool = flag(
        True,
        "Start half the heads of a new encoder so that each looks at one neighbour of a token; "
        "otherwise training needs long to learn that. Encoders that add no table of positions to "
        "words (DeBERTa, ModernBERT), and ALBERT, start as transformers makes them.",
    )


@dataclass
class ContinuedModelArguments:
    """What may be changed of the text model that --model_name_or_path names."""

    _argument_group_name: ClassVar[str] = "continued text model"
    force_tokenizer: bool = flag(
        False,
        "Train the model with a tokenizer other than its own, which is refused otherwise: where "
        "pieces or special tokens have other ids, its embeddings mean other words.",
    )
    resize_vocab: bool = flag(
        False,
        "Add rows to the model's tables for tokens that they lack, such as added ones; they begin "
        "as the mean of the others.",
    )
    grow_positions: Literal["no", "repeat", "interpolate"] = flag(
        "no",
        "Let the model take rows of --max_seq_length where it has fewer positions: its table of "
        "them again from the beginning, or stretched. Positions by a formula just go on.",
    )


@dataclass
class OptimizationArguments:
    """The update and its schedule."""

    _argument_group_name: ClassVar[str] = "optimization"
    max_steps: int = flag(1800, "Updates; 0 = by --num_train_epochs or --max_hours.", NON_NEGATIVE)
    num_train_epochs: float = flag(
        0.0, "Passes over the data, in place of --max_steps.", NON_NEGATIVE
    )
    max_hours: float = flag(
        0.08,
        "Wall-clock budget in hours in which the schedule ends exactly; 0 = none. The one flag "
        "that gives up reproducibility. With --max_steps, whichever ends first.",
        NON_NEGATIVE,
    )
    stop_at_loss: float = flag(
        0.0,
        "Held-out loss (`loss` in metrics.jsonl: the sum of all losses, of the weights in "
        "training) at or below which an evaluation ends the run, as if the update before it were "
        "the last; 0 = none.",
        NON_NEGATIVE,
    )
    global_batch_size: int = flag(
        32,
        "Rows per update over all processes, whatever their number; 0 = per-device size x "
        "accumulation x processes, as also where one of these is given and this is not.",
        ROWS_OF_UPDATE,
    )
    batch_size_ramp: Ramp | None = flag(
        None,
        "START:SHARE, such as 8:0.3: rows per update rise from START, in multiples of it, to "
        "--global_batch_size over that share of the updates.",
    )
    per_device_train_batch_size: CountOrAuto = flag(
        CountOrAuto(32),
        "Most rows of one forward pass; auto = as many as fit on the GPU (32 without one), which "
        "leaves the rows of an update as the recipe has them.",
        replace(ROWS, or_auto=True),
    )
    per_device_eval_batch_size: int = flag(64, "Rows of a forward pass in evaluation.", ROWS)
    gradient_accumulation_steps: int = flag(
        0, "Micro-batches per update; 0 = 1, or what --global_batch_size needs.", ROWS_OF_UPDATE
    )
    optimizer: Literal["adamw", "muon", "lamb"] = flag(
        "muon",
        "adamw; muon for hidden matrices with AdamW for the rest; or lamb, for thousands of rows "
        "an update.",
    )
    learning_rate: float = flag(1.5e-3, "Peak rate.", POSITIVE)
    adamw_learning_rate: float = flag(
        0.0,
        "Peak rate of what AdamW trains beside Muon (embeddings, biases, heads); 0 = "
        "--learning_rate.",
        NON_NEGATIVE,
    )
    weight_decay: float = flag(
        0.01, "Decoupled decay of matrices (never of biases or normalisation).", NON_NEGATIVE
    )
    adam_beta1: float = flag(0.9, "First decay rate of AdamW and LAMB.", SHARE_BELOW_ONE)
    adam_beta2: float = flag(0.98, "Second decay rate of AdamW and LAMB.", SHARE_BELOW_ONE)
    adam_epsilon: float = flag(1e-6, "Epsilon of AdamW and LAMB.", POSITIVE)
    max_grad_norm: float = flag(1.0, "Largest norm of the gradients; 0 = any.", NON_NEGATIVE)
    schedule: Literal["linear", "cosine", "stable_decay"] = flag(
        "stable_decay",
        "After warm-up: fall to 0 at once, evenly or along a cosine, or stay and fall over the "
        "last --decay_share.",
    )
    warmup_steps: int = flag(30, "Updates over which the rate rises.", NON_NEGATIVE)
    decay_share: float = flag(
        0.5, "Share of the run over which stable_decay falls.", Range(0, 1, low_included=False)
    )
    decay_shape: Literal["linear", "sqrt"] = flag(
        "linear",
        "How stable_decay falls: evenly, or as 1 - sqrt(x), fast first and slowly in the end.",
    )
    ema_decay: float = flag(
        0.0,
        "Average the weights after each update, those of an older update weighing this factor less "
        "for each update since; the average is evaluated too, as ema_loss etc.; 0 = no average.",
        SHARE_BELOW_ONE,
    )
    export_ema: bool = flag(False, "Let the averaged weights be what is exported and published.")
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = flag(
        "auto", "auto = bf16 where processor or GPU computes in it natively."
    )
    torch_compile: Literal["auto", "on", "off"] = flag(
        "auto", "Compile the model; auto = on a GPU, where the run is long enough to repay it."
    )
    gradient_checkpointing: bool = flag(False, "Recompute activations in backward to save memory.")
    skip_nonfinite: int = flag(
        0,
        "Updates with a gradient that is not finite that a run leaves out; one more ends it. "
        "(fp16 leaves out those that overflow anyway, and ends after 50 in a row.)",
        NON_NEGATIVE,
    )
    on_spike: Literal["warn", "rewind"] = flag(
        "warn",
        "Where the training loss jumps: warn; or go back to the last checkpoint from before it, "
        "and pass over the rows since (at most 3 times to one checkpoint).",
    )
    num_cpu_threads: int = flag(0, "CPU threads per process; 0 = its share of cores.", THREADS)


@dataclass
class HubArguments:
    """Publishing on the Hugging Face Hub; the token comes from HF_TOKEN or `hf auth login`."""

    _argument_group_name: ClassVar[str] = "hub"
    push_to_hub: bool = flag(
        False,
        "Publish the export, its model card, curves and run.json. A run succeeds (exit status 0) "
        "also where the Hub does not take something: it says so and keeps it, and `bert-pretrain "
        "hub push OUTPUT_DIR` publishes it later (status 0 or 1).",
    )
    hub_model_id: str | None = flag(
        None, "Repository, owner/name or name. Default: --output_dir's."
    )
    hub_private_repo: bool = flag(False, "Make the repository private; refuse a public one.")
    hub_strategy: Literal["end", "every_save", "all_checkpoints"] = flag(
        "end",
        "Publish at the end, at every checkpoint, or also each checkpoint on a branch step-NNNNNN "
        "of its own.",
    )
    hub_push_state: bool = flag(
        False,
        "Publish the checkpoint itself too, for --resume_from_checkpoint owner/name@revision "
        "elsewhere.",
    )
    hub_max_wait: int = flag(600, "Seconds that the run's end waits for publishing.", NON_NEGATIVE)
    hub_license: str | None = flag(
        None, "The Hub's identifier of the model's licence, for its card."
    )
