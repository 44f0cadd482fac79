"""A Hugging Face causal language model, seen as rows of tokens at positions over a KV buffer.

The only file that touches transformers' internals. What it relies on:
- every supported model calls `past_key_values.update(k, v, layer_idx)` with rotated keys, so a
  cache that writes rows at given positions makes the model compute any positions in any order;
- attention and mask functions are looked up by one registered name, and extra keyword
  arguments of the model's forward reach the attention function, as a layer's window does.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import torch
import xxhash
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    Cache,
    PreTrainedModel,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from fusionrag_integrations.errors import InvalidInputError, UnsupportedModelError
from fusionrag_integrations.kernels import Rows, attend
from fusionrag_integrations.rope import Rotation, rotate
from fusionrag_integrations.types import LayerView

ATTENTION = "fusionrag"
# Transformers makes no mask where it is given one of four dimensions; rows need none.
_NO_MASK = torch.empty(1, 1, 1, 1)

StepFunction = Callable[[int], torch.Tensor]
"""Appends a token id and gives the logits [V] behind it."""

SUPPORTED_MODEL_TYPES = ("gemma3_text", "glm4", "llama", "mistral", "phi3", "qwen2", "qwen3")
FIXED_ROPE_TYPES = ("default", "linear", "llama3", "yarn")
# These change their frequencies with the length of the prompt, so stored keys stay true only
# below the length at which they switch.
SWITCHING_ROPE_TYPES = ("dynamic", "longrope")
SUPPORTED_LAYER_TYPES = ("full_attention", "sliding_attention")

_REFUSALS = {
    "deepseek_v2": "multi-head latent attention keeps no per-head keys to move",
    "deepseek_v3": "multi-head latent attention keeps no per-head keys to move",
    "falcon_h1": "it mixes attention with state-space layers, which keep no per-token state",
    "gemma3": "it is the multimodal model; load its text part (model type gemma3_text)",
    "jamba": "it mixes attention with state-space layers, which keep no per-token state",
    "llama4": "chunked attention depends on where a chunk of the prompt begins",
    "llama4_text": "chunked attention depends on where a chunk of the prompt begins",
    "mamba": "state-space layers keep no per-token state",
    "mamba2": "state-space layers keep no per-token state",
    "qwen3_next": "it mixes attention with linear attention, which keeps no per-token state",
}


def refuse_unsupported(config: Any) -> None:
    """Raise `UnsupportedModelError`, naming the reason, unless this configuration is supported."""
    kind = config.model_type
    if kind not in SUPPORTED_MODEL_TYPES:
        reason = _REFUSALS.get(kind, "its attention has not been checked")
        raise UnsupportedModelError(
            f"Models of type {kind!r} are not supported: {reason}. "
            f"Supported types: {', '.join(SUPPORTED_MODEL_TYPES)}."
        )
    for layer_type in sorted(set(getattr(config, "layer_types", None) or ())):
        if layer_type not in SUPPORTED_LAYER_TYPES:
            raise UnsupportedModelError(
                f"This {kind} model has {layer_type} layers; only "
                f"{' and '.join(SUPPORTED_LAYER_TYPES)} layers keep per-token keys that can move."
            )
    if getattr(config, "use_bidirectional_attention", False):
        raise UnsupportedModelError(f"This {kind} model attends in both directions.")
    for rope_type in sorted(_rope_types(config)):
        if rope_type not in FIXED_ROPE_TYPES + SWITCHING_ROPE_TYPES:
            raise UnsupportedModelError(
                f"RoPE scaling {rope_type!r} is not supported; supported are "
                f"{', '.join(FIXED_ROPE_TYPES + SWITCHING_ROPE_TYPES)}."
            )


def _rope_parameters(config: Any) -> list[dict[str, Any]]:
    """One dictionary of RoPE parameters, or one per layer type."""
    parameters = config.rope_parameters
    if "rope_type" in parameters:
        return [parameters]
    return [p for p in parameters.values() if p is not None]


def _rope_types(config: Any) -> set[str]:
    return {p["rope_type"] for p in _rope_parameters(config)}


def _context_window(config: Any) -> int:
    """Tokens that a prompt and its answer may have together."""
    limit = int(config.max_position_embeddings)
    for parameters in _rope_parameters(config):
        if parameters["rope_type"] in SWITCHING_ROPE_TYPES:
            switch = parameters.get("original_max_position_embeddings") or getattr(
                config, "original_max_position_embeddings", None
            )
            limit = min(limit, int(switch or limit))
    return limit


class Capture(Protocol):
    """What a pass shows its attention to, layer by layer, while the model runs."""

    def record(self, layer: int, view: LayerView) -> None:
        """view: all rows of the pass. Its keys are the buffer's own, up to the last position."""
        ...


@dataclass(slots=True)
class ViewCapture:
    """Keeps what the rows from `first` on ask in chosen layers."""

    first: int
    layers: frozenset[int]
    views: dict[int, LayerView] = field(default_factory=dict)

    def record(self, layer: int, view: LayerView) -> None:
        """Keep the chosen rows, if it is a chosen layer."""
        if layer in self.layers:
            self.views[layer] = replace(
                view,
                queries=view.queries[:, self.first :],
                positions=view.positions[self.first :],
            )


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    rows: Rows | None = None,
    capture: Capture | None = None,
    keys_only: bool = False,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of rows at any positions; without `rows`, transformers' own SDPA attention.

    keys_only: no attention is wanted, only keys and values, which are in the cache by now.
    """
    if rows is None:
        output: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return output
    if capture is not None:
        layer = int(module.layer_idx)  # type: ignore[arg-type]
        view = LayerView(query[0], key[0], rows.on_device, sliding_window, scaling)
        capture.record(layer, view)
    if keys_only:
        return query.transpose(1, 2), None
    attended = attend(query[0], key[0], value[0], rows, scaling, sliding_window)
    return attended.transpose(0, 1)[None], None


class KVBuffer:
    """Room for the KV of one prompt and its answer. Owned by one request, never shared.

    keys, values: [L, Hkv, capacity, D]; slot i holds position i. Keys are rotated.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.keys = keys
        self.values = values

    @property
    def capacity(self) -> int:
        return self.keys.shape[2]

    def place(
        self, start: int, keys: torch.Tensor, values: torch.Tensor, rotation: Rotation
    ) -> None:
        """Copy unrotated keys, turned by `rotation`, and values [L, Hkv, T, D] into slots from
        `start` on. They may lie on any device and stay as they are. Changes the buffer.
        """
        slots = slice(start, start + keys.shape[2])
        self.keys[:, :, slots] = rotate(keys.to(self.keys.device), rotation)
        self.values[:, :, slots] = values

    def clear(self, positions: Sequence[int]) -> None:
        """Put zeros at `positions`. Changes the buffer."""
        slots = torch.tensor(positions, dtype=torch.int64, device=self.keys.device)
        self.keys.index_fill_(2, slots, 0.0)
        self.values.index_fill_(2, slots, 0.0)


class _RowsCache(Cache):  # type: ignore[misc]
    """Shows a `KVBuffer` to transformers for one pass over some rows.

    Each layer's new keys and values replace what stands at the rows' positions, and the layer
    attends to everything up to the last of them.
    """

    def __init__(self, buffer: KVBuffer, rows: Rows) -> None:
        super().__init__(layers=[])
        self._buffer = buffer
        self._slots = rows.on_device
        self._length = max(rows.positions) + 1

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        keys = self._buffer.keys[layer_idx : layer_idx + 1]
        values = self._buffer.values[layer_idx : layer_idx + 1]
        keys.index_copy_(2, self._slots, key_states)
        values.index_copy_(2, self._slots, value_states)
        return keys[:, :, : self._length], values[:, :, : self._length]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._length


class CausalModel:
    """A supported model with its tokenizer. All tensors it takes and gives lie on `device`."""

    def __init__(self, model: PreTrainedModel, tokenizer: Any, source: str) -> None:
        refuse_unsupported(model.config)
        AttentionInterface.register(ATTENTION, _attention)
        AttentionMaskInterface.register(ATTENTION, sdpa_mask)
        model.set_attn_implementation(ATTENTION)
        self.hf = model.eval()
        self.tokenizer = tokenizer
        self.source = source  # the directory or hub name that it was loaded from
        self.name = Path(source).name
        self.device: torch.device = model.device
        self.dtype: torch.dtype = model.dtype
        self.context_window = _context_window(model.config)
        layers = model.base_model.layers
        attention = layers[0].self_attn
        self.num_layers = len(layers)
        self.num_kv_heads = int(model.config.num_key_value_heads)
        self.head_dim = int(attention.head_dim)
        self._rotary = model.base_model.rotary_emb
        self._apply_rotary = sys.modules[type(attention).__module__].apply_rotary_pos_emb
        self._layer_types: list[str] = list(getattr(model.config, "layer_types", None) or ())
        windowed = getattr(model.config, "sliding_window", None) is not None
        kinds = self._layer_types or ["sliding_attention" if windowed else "full_attention"]
        # Layers whose attention reaches the whole prompt, not only a window of it.
        self.global_layers = tuple(
            i for i in range(self.num_layers) if kinds[i % len(kinds)] == "full_attention"
        )
        self._views: dict[tuple[int, int], Any] = {}
        self._uppers: dict[int, Any] = {}

    @classmethod
    def load(
        cls, name_or_path: str | Path, device: str = "auto", dtype: str = "auto"
    ) -> CausalModel:
        """Load a model and its tokenizer by name or from a directory.

        device: "auto" takes CUDA where there is one. dtype: "auto" takes the checkpoint's, but
        float32 on a CPU, whose half-precision arithmetic is slow. Raises `InvalidInputError`
        where there is no loadable model, and `UnsupportedModelError` where it isn't supported.
        """
        path = Path(name_or_path)
        source = str(path.resolve() if path.is_dir() else name_or_path)
        target = torch_device(device)
        weights_dtype = torch_dtype(dtype, target)
        try:
            config = AutoConfig.from_pretrained(name_or_path)
        except (OSError, ValueError) as error:
            raise InvalidInputError(
                f"{str(name_or_path)!r} is not a model that transformers can load: {error} "
                "Give a directory with config.json, weights and tokenizer, or a hub name."
            ) from error
        refuse_unsupported(config)
        try:
            tokenizer = AutoTokenizer.from_pretrained(name_or_path)
            model = AutoModelForCausalLM.from_pretrained(name_or_path, dtype=weights_dtype)
        except (OSError, ValueError) as error:
            raise InvalidInputError(
                f"The model at {str(name_or_path)!r} can't be loaded: {error}"
            ) from error
        if not tokenizer.is_fast:
            raise UnsupportedModelError(
                f"{str(name_or_path)!r} has no fast tokenizer, which finding chunks by their "
                "character offsets needs. Convert it to a tokenizer.json."
            )
        return cls(model.to(target), tokenizer, source)

    def signature(self, ingest_prefix: str) -> str:
        """Identifies everything that stored KV depends on; another signature, another KV.

        Covers the weights' bytes (adapters and quantised weights included), their dtype, the
        configuration that shapes attention, the tokenizer and the ingest prefix.
        """
        digest = xxhash.xxh3_128()
        for name, tensor in sorted(self.hf.state_dict().items()):
            digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
            raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(raw.numpy())
        config = self.hf.config.to_dict()
        for unrelated in ("_name_or_path", "architectures", "transformers_version", "torch_dtype"):
            config.pop(unrelated, None)
        digest.update(json.dumps(config, sort_keys=True, default=str).encode())
        digest.update(self.tokenizer.backend_tokenizer.to_str().encode())
        digest.update(ingest_prefix.encode())
        return digest.hexdigest()

    def new_buffer(self, capacity: int) -> KVBuffer:
        """Room for `capacity` tokens, on the model's device, with undefined content."""
        shape = (self.num_layers, self.num_kv_heads, capacity, self.head_dim)
        return KVBuffer(
            torch.empty(shape, dtype=self.dtype, device=self.device),
            torch.empty(shape, dtype=self.dtype, device=self.device),
        )

    def rotation(self, positions: Sequence[int] | torch.Tensor) -> Rotation:
        """The turn from position 0 to `positions` [T], for all layers."""
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

    @torch.inference_mode()
    def forward_rows(
        self, token_ids: Sequence[int], positions: Sequence[int], buffer: KVBuffer
    ) -> torch.Tensor:
        """Run the model over rows at `positions`; returns the last row's logits [V].

        At every layer the rows' keys and values replace what the buffer holds there, and each
        row attends to all positions up to its own, as far as the layer's window reaches.
        Changes the buffer at `positions` only. Rows may come in any order; ascending is quickest.
        """
        if len(positions) == 1:  # as in decode: nothing to save in the last layer
            return self._logits(self.hf, Rows(positions, self.device), buffer, token_ids=token_ids)
        hidden = self.forward_lower(token_ids, positions, buffer, self.num_layers - 1)
        return self.forward_upper(hidden, positions, buffer, self.num_layers - 1)

    @torch.inference_mode()
    def compute_kv(
        self,
        token_ids: Sequence[int],
        positions: Sequence[int],
        buffer: KVBuffer,
        capture: Capture | None = None,
    ) -> None:
        """Like `forward_rows`, but for what it writes to the buffer only."""
        last = self.num_layers - 1
        hidden = self.forward_lower(token_ids, positions, buffer, last, capture)
        self._last_kv(hidden, Rows(positions, self.device), buffer, capture)

    @torch.inference_mode()
    def forward_lower(
        self,
        token_ids: Sequence[int],
        positions: Sequence[int],
        buffer: KVBuffer,
        depth: int,
        capture: Capture | None = None,
    ) -> torch.Tensor:
        """Like `forward_rows`, but through the first `depth` layers only.

        Changes the buffer in those. Returns the rows' hidden states behind them, [R, hidden].
        """
        rows = Rows(positions, self.device)
        return self._hidden(
            self._between(0, depth), rows, buffer, capture=capture, token_ids=token_ids
        )

    @torch.inference_mode()
    def forward_upper(
        self, hidden: torch.Tensor, positions: Sequence[int], buffer: KVBuffer, depth: int
    ) -> torch.Tensor:
        """What is left of `forward_rows` behind the first `depth` layers; returns logits [V].

        hidden: the rows' states there, [R, hidden].
        """
        last = self.num_layers - 1
        rows = Rows(positions, self.device)
        if depth < last:
            hidden = self._hidden(self._between(depth, last), rows, buffer, hidden=hidden)
            depth = last
        if depth == last and len(rows) > 1:
            self._last_kv(hidden[:-1], Rows(positions[:-1], self.device), buffer)
        own = Rows(positions[-1:], self.device)
        return self._logits(self._upper(depth), own, buffer, hidden=hidden[-1:])

    def _last_kv(
        self, hidden: torch.Tensor, rows: Rows, buffer: KVBuffer, capture: Capture | None = None
    ) -> None:
        """Write the rows' keys and values in the last layer, which is all that others need there.

        hidden: behind the layer before it, [R, hidden].
        """
        self._hidden(self._last, rows, buffer, capture=capture, keys_only=True, hidden=hidden)

    def _hidden(self, model: Any, rows: Rows, buffer: KVBuffer, **inputs: Any) -> torch.Tensor:
        """The rows' states behind a view of the base model, [R, hidden]."""
        output = model(**self._inputs(rows, buffer, **inputs))
        hidden: torch.Tensor = output.last_hidden_state[0]
        return hidden

    def _logits(self, model: Any, rows: Rows, buffer: KVBuffer, **inputs: Any) -> torch.Tensor:
        """The last row's, [V]."""
        output = model(**self._inputs(rows, buffer, **inputs), logits_to_keep=1)
        logits: torch.Tensor = output.logits[0, -1]
        return logits

    def _inputs(
        self,
        rows: Rows,
        buffer: KVBuffer,
        *,
        token_ids: Sequence[int] | None = None,
        hidden: torch.Tensor | None = None,
        capture: Capture | None = None,
        keys_only: bool = False,
    ) -> dict[str, Any]:
        """What makes transformers run over rows of a buffer, from token ids or hidden states."""
        given = (
            {"inputs_embeds": hidden[None]}
            if hidden is not None
            else {"input_ids": torch.tensor([token_ids], device=self.device)}
        )
        return given | {
            "position_ids": rows.on_device[None],
            "past_key_values": _RowsCache(buffer, rows),
            "use_cache": True,
            "attention_mask": _NO_MASK,
            "rows": rows,
            "capture": capture,
            "keys_only": keys_only,
        }

    def _layers(self, first: int, last: int) -> Any:
        """A view of the base model that has only the layers [first, last), on the same weights."""
        base = _shallow(self.hf.base_model)
        base.layers = torch.nn.ModuleList(base.layers[first:last])
        base.config = deepcopy(base.config)
        base.config.num_hidden_layers = last - first
        if self._layer_types:  # layers are told their kind by their number in the list
            base.config.layer_types = self._layer_types[first:last]
        return base

    def _between(self, first: int, last: int) -> Any:
        """The base model's layers [first, last), without what normalises the last one's output."""
        if (first, last) not in self._views:
            base = self._layers(first, last)
            base.norm = torch.nn.Identity()
            self._views[first, last] = base
        return self._views[first, last]

    @cached_property
    def _last(self) -> Any:
        """The last layer as far as its keys and values go: without its MLP."""
        base = self._layers(self.num_layers - 1, self.num_layers)
        base.norm = torch.nn.Identity()
        layer = _shallow(base.layers[0])
        layer.mlp = torch.nn.Identity()
        base.layers = torch.nn.ModuleList([layer])
        return base

    def _upper(self, depth: int) -> Any:
        """The model from layer `depth` on, up to its logits."""
        if depth not in self._uppers:
            whole = _shallow(self.hf)
            setattr(whole, whole.base_model_prefix, self._layers(depth, self.num_layers))
            self._uppers[depth] = whole
        return self._uppers[depth]

    def appender(self, buffer: KVBuffer, position: int) -> StepFunction:
        """A function that appends a token to `buffer`, from `position` on, and gives logits [V]."""
        positions = count(position)
        return lambda token_id: self.forward_rows([token_id], [next(positions)], buffer)

    @torch.inference_mode()
    def prefill_dense(self, token_ids: Sequence[int]) -> tuple[torch.Tensor, StepFunction]:
        """Full attention: the model's own prefill with its own cache.

        Returns the last token's logits [V] and a function that appends a token.
        """
        output = self.hf(
            input_ids=torch.tensor([list(token_ids)], device=self.device),
            use_cache=True,
            logits_to_keep=1,
        )
        cache = output.past_key_values

        @torch.inference_mode()
        def step(token_id: int) -> torch.Tensor:
            ids = torch.tensor([[token_id]], device=self.device)
            logits: torch.Tensor = self.hf(
                input_ids=ids, past_key_values=cache, use_cache=True
            ).logits[0, -1]
            return logits

        return output.logits[0, -1], step


def _shallow(module: Any) -> Any:
    """A module with the same weights whose own parts can be exchanged without touching it."""
    shallow = copy(module)
    shallow._modules = dict(module._modules)
    return shallow


def torch_device(device: str) -> torch.device:
    """The device of this name; "auto" is CUDA where there is one.

    Raises `InvalidInputError` for one that isn't there.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
    except RuntimeError as error:
        raise InvalidInputError(f"Unknown device {device!r}; choose auto, cpu or cuda.") from error
    if target.type == "cuda" and not torch.cuda.is_available():
        raise InvalidInputError(f"There is no device {device!r} here; choose auto or cpu.")
    return target


def torch_dtype(dtype: str, device: torch.device) -> torch.dtype | str:
    """The dtype of this name; "auto" is float32 on a CPU, else "auto", the checkpoint's own.

    Raises `InvalidInputError` for another name.
    """
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    choices = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in choices:
        raise InvalidInputError(f"Unknown dtype {dtype!r}; choose auto, {', '.join(choices)}.")
    return choices[dtype]
