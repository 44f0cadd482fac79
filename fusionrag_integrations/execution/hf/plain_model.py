"""A Hugging Face causal language model with its tokenizer, run as transformers runs it.

Nothing is asked of its structure: it may have attention, a state, or both.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from math import inf
from pathlib import Path
from typing import Any, Self

import torch
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StopStringCriteria,
)

from fusionrag_integrations.errors import InvalidInputError, StoreError, UnsupportedModelError
from fusionrag_integrations.execution.devices import torch_device, torch_dtype
from fusionrag_integrations.execution.hf.generation import (
    Generation,
    prepare_generation,
    unsupported,
)
from fusionrag_integrations.execution.hf.loading import check_fast, load_model
from fusionrag_integrations.execution.hf.peft_adapters import without_wrapper
from fusionrag_integrations.execution.hf.signature import ModelIdentity, model_identity
from fusionrag_integrations.execution.hf.supported import context_window
from fusionrag_integrations.execution.sampling import SamplingParams
from fusionrag_integrations.support.forks import Forkable
from fusionrag_integrations.support.inputs import shown

logger = logging.getLogger(__name__)


class PlainModel(Forkable):
    """Any causal language model, as it is: for full attention by its own calls and its own cache.

    source: the directory, GGUF file or hub name that it was loaded from; directory: where files
    that belong to it are. device, dtype: of its weights. context_window: tokens that a prompt and
    its answer may have together.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: Any, source: str) -> None:
        self.hf = model
        self.tokenizer = tokenizer
        self.source = source
        path = Path(source)
        self.name = path.stem if path.is_file() else path.name
        self.directory = path.parent if path.is_file() else path
        self.device: torch.device = model.device
        self.dtype: torch.dtype = model.dtype
        self.context_window = context_window(model.config, tokenizer)
        self.num_layers = int(self._text_config.num_hidden_layers)
        self._ignored: dict[str, Any] = {}  # of the generation config, and logged
        self._stop_strings: StopStringCriteria | None = None
        self._process = os.getpid()
        self._was_training = model.training
        model.eval()
        super().__init__()

    @classmethod
    def check_config(cls, config: Any) -> None:
        """Called before weights are loaded. Raises `UnsupportedModelError` for what can't be used:
        nothing, here.
        """

    @property
    def keys_of_a_row(self) -> float:
        """How many keys a row attends to at the cost of all else that is computed of it.

        Infinite: it isn't known, and a prompt isn't cut by it.
        """
        return inf

    def give_back(self) -> None:
        """Make the model as it was found. Nothing of this can be used any more."""
        self.hf.train(self._was_training)

    def in_child(self) -> None:
        """In a forked child: OpenMP's threads are gone there, and PyTorch would wait for them."""
        torch.set_num_threads(1)

    @property
    def kv_bytes(self) -> float:
        """Of a token in the model's own cache, about: as if each layer attended with heads of usual
        size. 0 for a configuration without heads; a state that doesn't grow isn't counted.
        """
        config = self._text_config
        heads = getattr(config, "num_attention_heads", None)
        if not isinstance(heads, int):  # or of each layer
            return 0.0
        kept = getattr(config, "num_key_value_heads", None) or heads
        of_a_layer = 2 * kept * config.hidden_size / heads
        return float(self.num_layers * of_a_layer * self.dtype.itemsize)

    @classmethod
    def load(
        cls,
        name_or_path: str | Path,
        device: str = "auto",
        dtype: str = "auto",
        gguf_file: str | None = None,
    ) -> Self:
        """Load a model and its tokenizer by name, from a directory or from a GGUF file.

        device: "auto" takes CUDA where there is one. dtype: "auto" takes the checkpoint's, but
        float32 on a CPU, whose half-precision arithmetic is slow, and of a GGUF file. gguf_file:
        the name of one in the directory or hub repository. Raises `InvalidInputError` where there
        is no loadable model, and `UnsupportedModelError` where it isn't supported.
        """
        target = torch_device(device)
        wanted = torch_dtype(dtype, target)
        return cls(*load_model(name_or_path, target, wanted, gguf_file, cls.check_config))

    @classmethod
    def of(cls, model: Any, tokenizer: Any) -> Self:
        """A model that is loaded already, where it is and as it is quantised.

        model: a `PreTrainedModel`, or peft's `PeftModel` around one, with the adapters that it has.
        It is in evaluation mode from then on. Raises `UnsupportedModelError` where it isn't
        supported, and `InvalidInputError` for anything but a model and a tokenizer.
        """
        model = without_wrapper(model)
        if not isinstance(model, PreTrainedModel):
            raise InvalidInputError(
                f"model is {shown(model)}; give a causal language model of transformers, as "
                "AutoModelForCausalLM.from_pretrained returns it."
            )
        if model.config.get_text_config() is not model.config:
            raise UnsupportedModelError(
                f"This {type(model).__name__} is multimodal. Give its name or directory to "
                "from_pretrained, which loads the text part."
            )
        if (
            model.get_output_embeddings() is None
            or model.config.is_encoder_decoder
            or not model.can_generate()
        ):
            raise UnsupportedModelError(
                f"A {type(model).__name__} doesn't go on with a text; give the model with its "
                "language model's head, as AutoModelForCausalLM loads it."
            )
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise InvalidInputError(
                f"tokenizer is {shown(tokenizer)}; give the model's own, as "
                "AutoTokenizer.from_pretrained returns it."
            )
        name = model.name_or_path or type(model).__name__  # made, not loaded
        check_fast(tokenizer, name)
        path = Path(name)
        return cls(model, tokenizer, str(path.resolve()) if path.is_dir() else name)

    def check_usable(self) -> None:
        """Raises `StoreError` in a child that was forked with this model on a GPU."""
        if self.device.type == "cuda" and self._process != os.getpid():
            raise StoreError(
                f"{self.name} was loaded on {self.device} before this process was forked, and CUDA "
                "can't be used in a forked child. Load the model in the child, or start workers by "
                "'spawn'."
            )

    @property
    def weights(self) -> str:
        """Their dtype, or how they are quantised."""
        config = getattr(self.hf.config, "quantization_config", None)
        method = getattr(config, "quant_method", None)
        if method is not None:
            return str(getattr(method, "value", method))
        kinds = {type(weight.data) for weight in self.hf.parameters()}
        quantised = sorted(kind.__name__ for kind in kinds - {torch.Tensor})
        return ", ".join(quantised) or str(self.dtype).removeprefix("torch.")

    def signature(self, surroundings: str) -> str:
        """Identifies the model, and everything that stored KV depends on.

        Covers the weights' bytes (adapters and quantised weights included), their dtype, the
        configuration that shapes attention, the tokenizer and the text around chunks at ingest.
        """
        return self.identity(surroundings).signature

    def identity(self, surroundings: str) -> ModelIdentity:
        """The signature, with digests of its parts."""
        return model_identity(self.hf, self.tokenizer, surroundings, self.weights)

    @property
    def _text_config(self) -> Any:
        return self.hf.config.get_text_config(decoder=True)

    def generation(self, token_ids: Sequence[int], sampling: SamplingParams) -> Generation:
        """What an answer is generated by: the model's generation config and `sampling`.

        Ways to decode that aren't supported, such as beams, are ignored and logged. Raises
        `InvalidInputError` for a config that can't be.
        """
        config = self.hf.generation_config
        ignored = unsupported(config)
        if ignored and ignored != self._ignored:
            self._ignored = ignored
            logger.warning(
                "The generation config of %s asks for %s, which is not supported and passed over: "
                "answers are decoded one token after the other.",
                self.name,
                ", ".join(f"{name}={value!r}" for name, value in ignored.items()),
            )
        try:
            return prepare_generation(self.hf, token_ids, sampling, self._stops(config))
        except (TypeError, ValueError) as error:
            raise InvalidInputError(
                f"The generation config of {self.name} can't be used: {error} Correct its "
                "generation_config.json, or change model.hf.generation_config."
            ) from error

    def _stops(self, config: GenerationConfig) -> StopStringCriteria | None:
        """The config's stop strings, prepared once: it takes a look at the whole vocabulary."""
        strings = config.stop_strings
        if not strings:
            return None
        wanted = (strings,) if isinstance(strings, str) else tuple(strings)
        if self._stop_strings is None or self._stop_strings.stop_strings != wanted:
            self._stop_strings = StopStringCriteria(self.tokenizer, list(wanted))
        return self._stop_strings
