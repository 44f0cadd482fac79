"""A Hugging Face causal language model with its tokenizer, as it is loaded."""

from __future__ import annotations

import logging
import os
from collections.abc import Hashable, Sequence
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StopStringCriteria,
)

from fusionrag_integrations.attention.rope import Rotation
from fusionrag_integrations.errors import InvalidInputError, StoreError, UnsupportedModelError
from fusionrag_integrations.execution.devices import torch_device, torch_dtype
from fusionrag_integrations.execution.hf.generation import (
    Generation,
    likeliest_tokens,
    prepare_generation,
    unsupported,
)
from fusionrag_integrations.execution.hf.loading import check_fast, load_model
from fusionrag_integrations.execution.hf.peft_adapters import adapter_state, without_wrapper
from fusionrag_integrations.execution.hf.rotary import Rotary
from fusionrag_integrations.execution.hf.rows_pass import ATTENTION, register
from fusionrag_integrations.execution.hf.signature import ModelIdentity, model_identity
from fusionrag_integrations.execution.hf.supported import (
    context_window,
    refuse_other_structure,
    refuse_unsupported,
)
from fusionrag_integrations.execution.sampling import SamplingParams
from fusionrag_integrations.support.forks import Forkable
from fusionrag_integrations.support.inputs import shown

logger = logging.getLogger(__name__)

# By how much numbers may differ that a model computes in two ways, relative to their size: several
# times the rounding error in models of 8 to 30 layers (2e-6, 2e-3 and 2e-2). Where activations are
# quantised, the least difference may move one to the next step.
ROUNDING = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}
OF_QUANTISED = 1e-1


class CausalModel(Forkable):
    """A supported model with its tokenizer. What runs it is an `Executor`.

    source: the directory, GGUF file or hub name that it was loaded from; directory: where files
    that belong to it are. device, dtype: of its weights. context_window: tokens that a prompt and
    its answer may have together. global_layers: those whose attention reaches the whole prompt, not
    only a window of it. window: how many keys the others' rows see. graph_lock: held while a CUDA
    graph is recorded, for which the device must be quiet.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: Any, source: str) -> None:
        refuse_unsupported(model.config)
        refuse_other_structure(model)
        self.hf = model
        self.tokenizer = tokenizer
        self.source = source
        path = Path(source)
        self.name = path.stem if path.is_file() else path.name
        self.directory = path.parent if path.is_file() else path
        self.device: torch.device = model.device
        self.dtype: torch.dtype = model.dtype
        self.context_window = context_window(model.config)
        layers = model.base_model.layers
        attention = layers[0].self_attn
        self.num_layers = len(layers)
        self.num_heads = int(model.config.num_attention_heads)
        self.num_kv_heads = int(model.config.num_key_value_heads)
        self.head_dim = int(attention.head_dim)
        self._rotary = Rotary(model)
        self.window: int | None = getattr(model.config, "sliding_window", None) or None
        kinds: list[str] = list(getattr(model.config, "layer_types", None) or ()) or [
            "full_attention" if self.window is None else "sliding_attention"
        ]
        self.global_layers = tuple(
            i for i in range(self.num_layers) if kinds[i % len(kinds)] == "full_attention"
        )
        self._ignored: dict[str, Any] = {}  # of the generation config, and logged
        self._stop_strings: StopStringCriteria | None = None
        self._process = os.getpid()
        self.graph_lock = Lock()
        self._before = str(model.config._attn_implementation), model.training
        register()
        model.set_attn_implementation(ATTENTION)
        model.eval()
        if getattr(model, "hf_quantizer", None) is not None:
            _unpack(model)
        self._adapters, self._weights = adapter_state(model), _weights(model)
        super().__init__()

    def give_back(self) -> None:
        """Make the model as it was found. Nothing of this can be used any more."""
        attention, training = self._before
        self.hf.set_attn_implementation(attention)
        self.hf.train(training)

    def in_child(self) -> None:
        """In a forked child: OpenMP's threads are gone there, and PyTorch would wait for them."""
        self.graph_lock = Lock()
        torch.set_num_threads(1)

    @property
    def kv_bytes(self) -> int:
        """Of a token's keys and values in all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * self.dtype.itemsize

    @property
    def weights(self) -> str:
        """Their dtype, or how the first layer's are quantised."""
        config = getattr(self.hf.config, "quantization_config", None)
        method = getattr(config, "quant_method", None)
        if method is not None:
            return str(getattr(method, "value", method))
        kinds = {type(weight.data) for weight in self.hf.base_model.layers[0].parameters()}
        quantised = sorted(kind.__name__ for kind in kinds - {torch.Tensor})
        return ", ".join(quantised) or str(self.dtype).removeprefix("torch.")

    @property
    def rounding(self) -> float:
        """By how much its numbers may differ that are computed in two ways, relative to them."""
        plain = str(self.dtype).removeprefix("torch.")
        return ROUNDING[self.dtype] if self.weights == plain else OF_QUANTISED

    @property
    def keys_of_a_row(self) -> float:
        """How many keys a row attends to at the cost of all else that is computed of it."""
        weights = sum(int(weight.numel()) for weight in self.hf.base_model.layers.parameters())
        return weights / (2 * self.num_layers * self.num_heads * self.head_dim)

    @cached_property
    def kv_stream(self) -> torch.cuda.Stream | None:
        """The stream that KV moves on, one for all requests: a stream has memory of its own."""
        if self.device.type != "cuda":
            return None
        stream: torch.cuda.Stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        return stream

    @classmethod
    def load(
        cls,
        name_or_path: str | Path,
        device: str = "auto",
        dtype: str = "auto",
        gguf_file: str | None = None,
    ) -> CausalModel:
        """Load a model and its tokenizer by name, from a directory or from a GGUF file.

        device: "auto" takes CUDA where there is one. dtype: "auto" takes the checkpoint's, but
        float32 on a CPU, whose half-precision arithmetic is slow, and of a GGUF file. gguf_file:
        the name of one in the directory or hub repository. Raises `InvalidInputError` where there
        is no loadable model, and `UnsupportedModelError` where it isn't supported.
        """
        target = torch_device(device)
        wanted = torch_dtype(dtype, target)
        return cls(*load_model(name_or_path, target, wanted, gguf_file))

    @classmethod
    def of(cls, model: Any, tokenizer: Any) -> CausalModel:
        """A model that is loaded already, where it is and as it is quantised.

        model: a `PreTrainedModel`, or peft's `PeftModel` around one, with the adapters that it has.
        Its attention is this package's from then on, which computes what the model's own did
        wherever the model is called by others, and it is in evaluation mode. Raises
        `UnsupportedModelError` where it isn't supported, and `InvalidInputError` for anything but a
        model and a tokenizer.
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
        if model.get_output_embeddings() is None:
            raise UnsupportedModelError(
                f"A {type(model).__name__} generates no text; give the model with its language "
                "model's head, as AutoModelForCausalLM loads it."
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
        """Raises `StoreError` in a child that was forked with this model on a GPU, and once other
        weights or adapters act in it than when this was made, or another attention. A change that
        PyTorch doesn't count, of a weight's `.data`, isn't noticed.
        """
        if self.device.type == "cuda" and self._process != os.getpid():
            raise StoreError(
                f"{self.name} was loaded on {self.device} before this process was forked, and CUDA "
                "can't be used in a forked child. Load the model in the child, or start workers by "
                "'spawn'."
            )
        if self.hf.config._attn_implementation != ATTENTION:
            raise StoreError(
                f"The attention of {self.name} was changed to "
                f"{self.hf.config._attn_implementation!r}, which knows no stored KV. Set it back: "
                f"model.set_attn_implementation({ATTENTION!r})."
            )
        if adapter_state(self.hf) != self._adapters or not self._weights <= _weights(self.hf):
            raise StoreError(
                f"The weights or adapters of {self.name} were changed, and KV belongs to those "
                "that it had. Make an engine for the model as it is now, with a store of its own; "
                "adapters can also be set back."
            )

    def signature(self, surroundings: str) -> str:
        """Identifies everything that stored KV depends on; another signature, another KV.

        Covers the weights' bytes (adapters and quantised weights included), their dtype, the
        configuration that shapes attention, the tokenizer and the text around chunks at ingest.
        """
        return self.identity(surroundings).signature

    def identity(self, surroundings: str) -> ModelIdentity:
        """The signature, with digests of its parts."""
        return model_identity(self.hf, self.tokenizer, surroundings, self.weights)

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

    def likeliest(self, max_tokens: int) -> Generation:
        """Greedy decoding by the model's logits as they are, up to its end tokens."""
        return likeliest_tokens(self.hf, max_tokens)

    def rotation(self, positions: Sequence[int] | torch.Tensor) -> Rotation:
        """The rotation from position 0 to `positions` [T], for all layers, on `device`."""
        return self._rotary.rotation(positions)

    def _stops(self, config: GenerationConfig) -> StopStringCriteria | None:
        """The config's stop strings, prepared once: it takes a look at the whole vocabulary."""
        strings = config.stop_strings
        if not strings:
            return None
        wanted = (strings,) if isinstance(strings, str) else tuple(strings)
        if self._stop_strings is None or self._stop_strings.stop_strings != wanted:
            self._stop_strings = StopStringCriteria(self.tokenizer, list(wanted))
        return self._stop_strings


def _unpack(model: PreTrainedModel) -> None:
    """Have quantised weights as they are computed with. Some are unpacked by a first forward of
    the whole model, and what runs parts of it would compute with packed ones.
    """
    with torch.no_grad():
        model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device), use_cache=False)


def _weights(model: PreTrainedModel) -> frozenset[Hashable]:
    """Each with how often it was changed in place, which PyTorch counts."""
    tensors = (*model.parameters(), *model.buffers())
    return frozenset(
        (id(one), one.dtype, 0 if one.is_inference() else one._version) for one in tensors
    )
