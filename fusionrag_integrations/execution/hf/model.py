"""A Hugging Face causal language model with its tokenizer, as it is loaded."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, StopStringCriteria

from fusionrag_integrations.attention.rope import Rotation
from fusionrag_integrations.errors import InvalidInputError, StoreError
from fusionrag_integrations.execution.devices import torch_device, torch_dtype
from fusionrag_integrations.execution.hf.generation import (
    Generation,
    likeliest_tokens,
    prepare_generation,
    unsupported,
)
from fusionrag_integrations.execution.hf.loading import load_model
from fusionrag_integrations.execution.hf.peft_adapters import refuse_adapted
from fusionrag_integrations.execution.hf.rows_pass import ATTENTION, register
from fusionrag_integrations.execution.hf.signature import model_signature
from fusionrag_integrations.execution.hf.supported import context_window, refuse_unsupported
from fusionrag_integrations.execution.sampling import SamplingParams
from fusionrag_integrations.support.forks import Forkable

logger = logging.getLogger(__name__)


class CausalModel(Forkable):
    """A supported model with its tokenizer. What runs it is an `Executor`.

    source: the directory, GGUF file or hub name that it was loaded from; directory: where files
    that belong to it are. device, dtype: of its weights. context_window: tokens that a prompt and
    its answer may have together. global_layers: those whose attention reaches the whole prompt, not
    only a window of it. window: how many keys the others' rows see. graph_lock: held while a CUDA
    graph is recorded, for which the device must be quiet.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: Any, source: str) -> None:
        refuse_adapted(model)
        refuse_unsupported(model.config)
        register()
        model.set_attn_implementation(ATTENTION)
        self.hf = model.eval()
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
        self._rotary = model.base_model.rotary_emb
        self._apply_rotary = sys.modules[type(attention).__module__].apply_rotary_pos_emb
        self._layer_types: list[str] = list(getattr(model.config, "layer_types", None) or ())
        self.window: int | None = getattr(model.config, "sliding_window", None)
        kinds = self._layer_types or [
            "full_attention" if self.window is None else "sliding_attention"
        ]
        self.global_layers = tuple(
            i for i in range(self.num_layers) if kinds[i % len(kinds)] == "full_attention"
        )
        self._ignored: dict[str, Any] = {}  # of the generation config, and logged
        self._stop_strings: StopStringCriteria | None = None
        self._process = os.getpid()
        self.graph_lock = Lock()
        super().__init__()

    def in_child(self) -> None:
        """In a forked child: OpenMP's threads are gone there, and PyTorch would wait for them."""
        self.graph_lock = Lock()
        torch.set_num_threads(1)

    @property
    def kv_bytes(self) -> int:
        """Of a token's keys and values in all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * self.dtype.itemsize

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
        model, tokenizer, source = load_model(name_or_path, torch_dtype(dtype, target), gguf_file)
        return cls(model.to(target), tokenizer, source)

    def check_process(self) -> None:
        """Raises `StoreError` in a child that was forked with this model on a GPU."""
        if self.device.type == "cuda" and self._process != os.getpid():
            raise StoreError(
                f"{self.name} was loaded on {self.device} before this process was forked, and CUDA "
                "can't be used in a forked child. Load the model in the child, or start workers by "
                "'spawn'."
            )

    def signature(self, surroundings: str) -> str:
        """Identifies everything that stored KV depends on; another signature, another KV.

        Covers the weights' bytes (adapters and quantised weights included), their dtype, the
        configuration that shapes attention, the tokenizer and the text around chunks at ingest.
        """
        return model_signature(self.hf, self.tokenizer, surroundings)

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
        at = torch.as_tensor(positions, device=self.device)[None]
        wide = torch.empty(0, dtype=torch.float32, device=self.device)
        if not hasattr(self._rotary, "layer_types"):
            cos, sin = self._rotary(wide, at)
            scaling = self._rotary.attention_scaling
            return Rotation(cos / scaling, sin / scaling, self._apply_rotary)
        by_type: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        for kind in self._rotary.layer_types:  # Gemma3: one rotary base per layer type
            cos, sin = self._rotary(wide, at, kind)
            scaling = getattr(self._rotary, f"{kind}_attention_scaling")
            by_type[kind] = (cos / scaling, sin / scaling)
        return Rotation(
            torch.cat([by_type[kind][0] for kind in self._layer_types]),
            torch.cat([by_type[kind][1] for kind in self._layer_types]),
            self._apply_rotary,
        )

    def _stops(self, config: GenerationConfig) -> StopStringCriteria | None:
        """The config's stop strings, prepared once: it takes a look at the whole vocabulary."""
        strings = config.stop_strings
        if not strings:
            return None
        wanted = (strings,) if isinstance(strings, str) else tuple(strings)
        if self._stop_strings is None or self._stop_strings.stop_strings != wanted:
            self._stop_strings = StopStringCriteria(self.tokenizer, list(wanted))
        return self._stop_strings
