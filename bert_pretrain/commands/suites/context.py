"""What every suite is given: the flags, the run that wrote the model, and the model itself."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForNextSentencePrediction,
    AutoModelForPreTraining,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from bert_pretrain.config.evaluating import (
    EvaluateArguments,
    EvaluationData,
    EvaluationImages,
    EvaluationText,
)
from bert_pretrain.data.names import refuse_misnamed_model
from bert_pretrain.data.run_folder import model_in, read_run_json
from bert_pretrain.errors import InputError
from bert_pretrain.hardware import default_device
from bert_pretrain.models.any_encoder import num_token_types
from bert_pretrain.models.loaded_models import (
    check_finite_weights,
    check_sizes,
    lacks_safetensors,
    unread,
)
from bert_pretrain.text.layout import fit_token_types
from bert_pretrain.text.tokenizers import load_tokenizer, vocabulary_size

FLAG_GROUPS = (EvaluateArguments, EvaluationData, EvaluationImages, EvaluationText)
SOURCE_FLAGS = ("dataset_name", "dataset_config_name", "dataset_split", "data_files")
# Of the run's own data, where seed, share, how they are read, or they themselves are others.
DIVIDED_OTHERWISE = (
    "WARNING: the run that wrote this model divided its data otherwise (they have changed since, "
    "or seed, share or how they are read differ), so it may have been pretrained on some of what "
    "is judged here\n"
)
_AUTO_CLASSES: dict[str, Any] = {
    "masked-LM": AutoModelForMaskedLM,
    "next-sentence": AutoModelForNextSentencePrediction,
}


class SuiteResult(NamedTuple):
    """What a suite found: text to print, figures by name, and further detail as JSON takes it."""

    text: str
    figures: dict[str, float]
    details: Any


@dataclass(eq=False)  # hashed by identity, so that results of functions can be cached by it
class Evaluation:
    """The flags of one evaluation, and the run that wrote its model."""

    options: EvaluateArguments
    data: EvaluationData
    images: EvaluationImages
    text: EvaluationText

    @cached_property
    def _record(self) -> dict[str, Any]:
        return run_record(self.options.model)

    @property
    def run(self) -> dict[str, Any]:
        """The flags of the run that wrote the model; none if no run did."""
        flags: dict[str, Any] = self._record.get("config", {})
        return flags

    @property
    def data_then(self) -> dict[str, Any]:
        """What told the data of that run from others; {} if that is not recorded."""
        found: dict[str, Any] = self._record.get("sources", {}).get("data", {})
        return found

    @property
    def seed(self) -> int:
        """The seed of everything drawn here."""
        return int(self.options.seed if self.options.seed is not None else self.run.get("seed", 42))

    @cached_property
    def model(self) -> str:
        """The named model; of a run directory its `final`, else its newest checkpoint."""
        return model_in(self.options.model)

    @property
    def source(self) -> dict[str, Any]:
        """The flags that name the data: those given, else those of the run."""
        given = {name: getattr(self.data, name) for name in SOURCE_FLAGS}
        names_data = given["dataset_name"] or given["data_files"]
        inherited = {} if names_data else {name: self.run.get(name) for name in SOURCE_FLAGS}
        pairs = (*inherited.items(), *given.items())
        return {name: value for name, value in pairs if value is not None}


def run_record(model: str) -> dict[str, Any]:
    """Return the run.json of the run that a model folder is or belongs to; {} if there is none.

    Raises:
        InputError: it is damaged, so that what was held out is unknown.
    """
    folder = Path(model).absolute()
    if not folder.is_dir():  # a name of the Hub
        return {}
    owner = folder.parent.parent if folder.parent.name == "checkpoints" else folder.parent
    # An exported model has a run.json too: the public one, without the paths of this machine.
    is_model = (folder / "config.json").is_file()
    for candidate in (owner, folder) if is_model else (folder, owner):
        if (candidate / "run.json").is_file():
            return read_run_json(candidate)
    return {}


def load_language_model(
    name: str, head: Literal["masked-LM", "next-sentence"]
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Load a folder or Hub id in float32, in evaluation mode, on the accelerator if there is one.

    Raises:
        InputError: it is no model of transformers with such a head, trained, and a fast tokenizer
            that has words.
    """
    advice = "pass another `model`"
    if head == "next-sentence":
        advice += ", or leave nsp out of `suite`"
    try:
        auto_class = _AUTO_CLASSES[head]
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        check_sizes(config, name, parameter="model")
        if head == "next-sentence" and config.model_type == "albert":
            auto_class = AutoModelForPreTraining  # transformers knows no other class with its head
        model, loading = auto_class.from_pretrained(
            name,
            dtype=torch.float32,
            output_loading_info=True,
            trust_remote_code=False,
            use_safetensors=True,
        )
    except InputError:
        raise
    except Exception as error:  # the readers of files raise whatever they stumble over
        if lacks_safetensors(error) or isinstance(error, SafetensorError):  # a file cut short
            raise unread(name, error, parameter="model") from error
        refuse_misnamed_model(name)
        where = "holds no" if Path(name).is_dir() else "is neither a folder nor, on the Hub, a"
        raise InputError(
            f"{name!r} {where} model of transformers with a {head} head", advice=advice
        ) from error
    if loading["missing_keys"]:
        lacking = min(loading["missing_keys"])
        raise InputError(f"{name!r} has no trained {head} head (it lacks {lacking})", advice=advice)
    check_finite_weights(model, name, parameter="model")
    tokenizer = load_tokenizer(name)
    if (num_rows := vocabulary_size(tokenizer)) > model.config.vocab_size:
        raise InputError(
            f"the ids of the tokenizer of {name!r} need a table of {num_rows:,} rows but that of "
            f"the model has {model.config.vocab_size:,}",
            advice="they do not belong together; change `model`",
        )
    fit_token_types(tokenizer, num_token_types(model))
    return model.eval().to(default_device()), tokenizer
