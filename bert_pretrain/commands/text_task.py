"""The task of a text encoder: from flags to rows, model, monitor and exporter."""

from __future__ import annotations

from dataclasses import asdict

from accelerate import Accelerator
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from bert_pretrain.commands.machine import batch_layout, compiles, product_dtype
from bert_pretrain.config.flags import pick
from bert_pretrain.config.pretraining import PretrainingConfig
from bert_pretrain.data.processes import gather_on_hosts
from bert_pretrain.errors import spell
from bert_pretrain.models.any_encoder import is_scored_everywhere, may_be_cut, num_token_types
from bert_pretrain.models.attention_choice import fastest_attention
from bert_pretrain.models.beginning import begin_with_neighbours
from bert_pretrain.models.bert import BertForPreTraining
from bert_pretrain.models.loading import build_text_model, check_text_model, check_tokenizer
from bert_pretrain.models.positions import num_positions
from bert_pretrain.objectives.interface import Task
from bert_pretrain.objectives.text import TextExporter, TextMonitor, TextObjective, text_rows
from bert_pretrain.publishing.export import trained_length
from bert_pretrain.publishing.hub import download_corpus
from bert_pretrain.text.documents import TextSource
from bert_pretrain.text.foreign_tokenizer import refuse_foreign_tokenizer
from bert_pretrain.text.layout import fit_token_types
from bert_pretrain.text.literal_text import protected_token_ids
from bert_pretrain.text.masking import MaskingRule, ordinary_token_ids
from bert_pretrain.text.opening import corpus_warnings, data_card, open_corpus, refuse_unknown
from bert_pretrain.text.pairs import PairMode
from bert_pretrain.text.sentences import standard_language
from bert_pretrain.text.tokenizers import load_tokenizer, tokenizer_hash


def text_task(config: PretrainingConfig, accelerator: Accelerator) -> Task:
    """Open the text and return what a run on it is about; see `tasks.build_task`."""
    data, text, model, seed = config.data, config.text, config.model, config.run.seed
    is_from_scratch = model.model_name_or_path is None
    with_pairs = config.run.objective == "mlm_nsp"
    outline = check_text_model(
        model.config_name,
        model.model_name_or_path,
        text.max_seq_length,
        with_pairs=with_pairs,
        grow_positions=config.continued.grow_positions,
    )
    tokenizer = _tokenizer_for(outline, config)
    are_told_apart = fit_token_types(tokenizer, num_token_types(outline))
    if with_pairs and not are_told_apart:
        accelerator.print(
            "NOTE: the segments of a pair have no token types here: the tokenizer or the model "
            "knows one type only"
        )
    tokenizer.model_max_length = trained_length(
        tokenizer,
        int(text.max_seq_length),
        is_from_scratch=is_from_scratch,
        max_positions=num_positions(outline),
    )
    corpus = open_corpus(
        pick(TextSource, data, text),
        tokenizer,
        seed=seed,
        download=download_corpus,
        show_progress=accelerator.is_local_main_process,
    )
    refuse_unknown(corpus)
    for warning in corpus_warnings(corpus, text.masking):
        accelerator.print(f"WARNING: {spell(warning)}")
    rule = MaskingRule(
        mlm_probability=text.mlm_probability,
        last_mlm_probability=text.mlm_probability.last,
        mask_replace_prob=text.mask_replace_prob,
        random_replace_prob=text.random_replace_prob,
        unit=text.masking,
        mask_token_id=tokenizer.mask_token_id,
        ordinary_ids=ordinary_token_ids(tokenizer),
        protected_ids=protected_token_ids(tokenizer),
    )
    pair_mode: PairMode = text.pair_mode if with_pairs else "none"
    training, held_out = text_rows(
        corpus,
        tokenizer,
        rule,
        pair_mode=pair_mode,
        max_seq_length=text.max_seq_length.numbers[0],
        later_lengths=text.max_seq_length.numbers[1:],
        short_seq_prob=text.short_seq_prob,
        seed=seed,
        max_eval_rows=data.max_eval_rows,
        few_shapes=compiles(config, accelerator),
        cuts_padding=may_be_cut(type(outline)),
        same_document_partners=text.same_document_partners,
    )

    def make_model() -> PreTrainedModel:
        built = build_text_model(
            config_name=model.config_name,
            model_name_or_path=model.model_name_or_path,
            tokenizer=tokenizer,
            max_seq_length=text.max_seq_length,
            dropout=model.dropout,
            with_pairs=with_pairs,
            **asdict(config.continued),
        )
        if is_from_scratch and config.new.neighbour_heads:
            begin_with_neighbours(built)
        if isinstance(built, BertForPreTraining):
            choose_kernel(built, config, accelerator)
        elif is_scored_everywhere(built):
            accelerator.print(
                f"NOTE: {type(built).__name__} cannot be divided into encoder and head here, so it "
                "scores the vocabulary at every position, which is slower"
            )
        return built

    objective = TextObjective(
        training,
        held_out,
        make_model,
        token_counts=corpus.token_counts if is_from_scratch else None,
    )
    exporter = TextExporter(
        tokenizer,
        # Any block's plan will do: a resumed run need not make the first one's for it.
        describe_data=lambda: data_card(
            corpus,
            *(
                (training.any_plan(phase), blocks.num_blocks)
                for phase, blocks in enumerate(training.phases)
            ),
            pair_mode=pair_mode,
        ),
        with_nsp=with_pairs,
        is_of_order=pair_mode == "sop",
        language=standard_language(text.language) if text.language else corpus.language,
        max_seq_length=text.max_seq_length,
        is_from_scratch=is_from_scratch,
    )
    sources = {
        "data": corpus.provenance,
        "tokenizer": {"name": tokenizer.name_or_path, "sha256": tokenizer_hash(tokenizer)},
    }
    return Task(objective, TextMonitor(corpus, tokenizer, held_out), exporter, sources)


def _tokenizer_for(outline: PreTrainedModel, config: PretrainingConfig) -> PreTrainedTokenizerFast:
    """Load the tokenizer: the one named, else that of the model to continue, else the shipped one.

    Raises:
        InputError: it does not fit the model to continue.
    """
    source, name = config.model.model_name_or_path, config.text.tokenizer_name
    if source is None:
        return load_tokenizer(name)
    continued = config.continued
    if name is None:
        tokenizer = load_tokenizer(source, parameter="model_name_or_path")
    else:
        tokenizer = load_tokenizer(name)
        if not continued.force_tokenizer:
            refuse_foreign_tokenizer(tokenizer, source)
    check_tokenizer(
        outline.config,
        tokenizer,
        resize_vocab=continued.resize_vocab,
        force_tokenizer=continued.force_tokenizer,
    )
    return tokenizer


def choose_kernel(
    model: BertForPreTraining, config: PretrainingConfig, accelerator: Accelerator
) -> None:
    """Let a model attend in the way that is fastest on this device, and say what was measured."""
    layout = batch_layout(config, accelerator)
    num_passes = layout.num_micro_batches * accelerator.num_processes
    num_heads = model.config.num_attention_heads
    fastest, milliseconds = fastest_attention(
        accelerator.device,
        product_dtype(accelerator.mixed_precision),
        num_rows=-(-layout.global_batch_size // num_passes),
        row_length=int(config.text.max_seq_length),  # the longest
        num_heads=num_heads,
        head_width=model.config.hidden_size // num_heads,
        dropout=config.model.dropout,
    )
    model.attention = gather_on_hosts(fastest)[0]  # processes may measure differently
    if milliseconds:
        measured = ", ".join(f"{name} {value:.3g} ms" for name, value in milliseconds.items())
        accelerator.print(f"attention by {model.attention} (measured: {measured})")
