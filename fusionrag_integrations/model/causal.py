"""A Hugging Face causal language model with its tokenizer."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Sequence
from copy import copy, deepcopy
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path
from threading import Lock
from typing import Any

import torch
import xxhash
from tokenizers import Tokenizer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    StopStringCriteria,
)

from fusionrag_integrations.errors import InvalidInputError, StoreError, UnsupportedModelError
from fusionrag_integrations.forks import Forkable
from fusionrag_integrations.kernels import Rows
from fusionrag_integrations.model.adapters import refuse_adapted, refuse_adapter
from fusionrag_integrations.model.buffer import KVBuffer, SequenceKV
from fusionrag_integrations.model.devices import torch_device, torch_dtype
from fusionrag_integrations.model.generation import (
    Generation,
    likeliest_tokens,
    prepare_generation,
    unsupported,
)
from fusionrag_integrations.model.gguf import find_gguf, load_gguf
from fusionrag_integrations.model.rows_pass import ATTENTION, Capture, Part, pass_inputs, register
from fusionrag_integrations.model.steps import GraphedSteps, StaticStep, StepFunction
from fusionrag_integrations.model.supported import context_window, refuse_unsupported
from fusionrag_integrations.rope import Rotation
from fusionrag_integrations.types import AnswerSettings

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Run:
    """Rows of one sequence whose keys and values are to be computed, and who looks on."""

    token_ids: Sequence[int]
    positions: Sequence[int]
    kv: SequenceKV
    capture: Capture | None = None


class CausalModel(Forkable):
    """A supported model with its tokenizer. All tensors it takes and gives lie on `device`."""

    def __init__(self, model: PreTrainedModel, tokenizer: Any, source: str) -> None:
        refuse_adapted(model)
        refuse_unsupported(model.config)
        register()
        model.set_attn_implementation(ATTENTION)
        self.hf = model.eval()
        self.tokenizer = tokenizer
        self.source = source  # the directory, GGUF file or hub name that it was loaded from
        path = Path(source)
        self.name = path.stem if path.is_file() else path.name
        self.directory = path.parent if path.is_file() else path  # with files that belong to it
        self.device: torch.device = model.device
        self.dtype: torch.dtype = model.dtype
        self.context_window = context_window(model.config)
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
        self._one_graph = Lock()
        self._views: dict[tuple[int, int], Any] = {}
        self._uppers: dict[int, Any] = {}
        self._passed_over: dict[str, Any] = {}
        self._stop_strings: StopStringCriteria | None = None
        self._process = os.getpid()
        super().__init__()

    def renew(self) -> None:
        """In a forked child: OpenMP's threads are gone there, and PyTorch would wait for them."""
        self._one_graph = Lock()
        torch.set_num_threads(1)

    def check_process(self) -> None:
        """Raises `StoreError` in a child that was forked with this model on a GPU."""
        if self.device.type == "cuda" and self._process != os.getpid():
            raise StoreError(
                f"{self.name} was loaded on {self.device} before this process was forked, and CUDA "
                "can't be used in a forked child. Load the model in the child, or start workers by "
                "'spawn'."
            )

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
        weights_dtype = torch_dtype(dtype, target)
        file = find_gguf(name_or_path, gguf_file)
        if file is not None:
            model, tokenizer = load_gguf(file, weights_dtype)
            return cls(model.to(target), tokenizer, str(file))
        path = Path(name_or_path)
        source = str(path.resolve() if path.is_dir() else name_or_path)
        try:
            refuse_adapter(name_or_path)
            config = AutoConfig.from_pretrained(name_or_path, trust_remote_code=False)
        except UnsupportedModelError:
            raise
        except Exception as error:  # of many kinds: what a file says wrongly shows anywhere
            raise InvalidInputError(
                f"{str(name_or_path)!r} is not a model that transformers can load: {error} "
                "Give a directory with config.json, weights and tokenizer, a .gguf file, or a hub "
                "name."
            ) from error
        refuse_unsupported(config)
        try:
            tokenizer = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False)
            model, loaded = AutoModelForCausalLM.from_pretrained(
                name_or_path,
                dtype=weights_dtype,
                trust_remote_code=False,
                output_loading_info=True,
            )
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # `safetensors` and `tokenizers` have errors of their own
            raise InvalidInputError(
                f"The model at {str(name_or_path)!r} can't be loaded: {error} "
                "Its directory needs whole weights and a tokenizer beside config.json."
            ) from error
        if missing := sorted(loaded["missing_keys"]):  # transformers would make them up
            raise InvalidInputError(
                f"The model at {str(name_or_path)!r} can't be loaded: its weights lack "
                f"{len(missing)} tensors, {missing[0]} among them. Its directory needs whole "
                "weights and a tokenizer beside config.json."
            )
        if not tokenizer.is_fast:
            raise UnsupportedModelError(
                f"{str(name_or_path)!r} has no fast tokenizer, which finding chunks by their "
                "character offsets needs. Convert it to a tokenizer.json."
            )
        return cls(model.to(target), tokenizer, source)

    def signature(self, surroundings: str) -> str:
        """Identifies everything that stored KV depends on; another signature, another KV.

        Covers the weights' bytes (adapters and quantised weights included), their dtype, the
        configuration that shapes attention, the tokenizer and the text around chunks at ingest.
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
        digest.update(_tokenization(self.tokenizer).encode())
        digest.update(surroundings.encode())
        return digest.hexdigest()

    def generation(self, token_ids: Sequence[int], settings: AnswerSettings) -> Generation:
        """What the answer to a prompt is generated by: the model's generation config and settings.

        Ways to decode that aren't supported, such as beams, are passed over and logged. Raises
        `InvalidInputError` for a config that can't be.
        """
        config = self.hf.generation_config
        passed_over = unsupported(config)
        if passed_over and passed_over != self._passed_over:
            self._passed_over = passed_over
            logger.warning(
                "The generation config of %s asks for %s, which is not supported and passed over: "
                "answers are decoded one token after the other.",
                self.name,
                ", ".join(f"{name}={value!r}" for name, value in passed_over.items()),
            )
        try:
            return prepare_generation(self.hf, token_ids, settings, self._stops(config))
        except (TypeError, ValueError) as error:
            raise InvalidInputError(
                f"The generation config of {self.name} can't be used: {error} Correct its "
                "generation_config.json, or change model.hf.generation_config."
            ) from error

    def likeliest(self, max_tokens: int) -> Generation:
        """Greedy decoding by the model's logits as they are, up to its end tokens."""
        return likeliest_tokens(self.hf, max_tokens)

    def _stops(self, config: GenerationConfig) -> StopStringCriteria | None:
        """The config's stop strings, prepared once: it takes a look at the whole vocabulary."""
        strings = config.stop_strings
        if not strings:
            return None
        wanted = (strings,) if isinstance(strings, str) else tuple(strings)
        if self._stop_strings is None or self._stop_strings.stop_strings != wanted:
            self._stop_strings = StopStringCriteria(self.tokenizer, list(wanted))
        return self._stop_strings

    def new_buffer(self, capacity: int) -> KVBuffer:
        """Room for `capacity` tokens, on the model's device, with undefined content.

        On CUDA zeros: a graph of a step reads all of it, with weight 0 where nothing is yet, and
        what is undefined may be no number.
        """
        shape = (self.num_layers, self.num_kv_heads, capacity, self.head_dim)
        made = torch.zeros if self.device.type == "cuda" else torch.empty
        keys, values = (made(shape, dtype=self.dtype, device=self.device) for _ in range(2))
        return KVBuffer(keys, values, self._moves)

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
        self, token_ids: Sequence[int], positions: Sequence[int], kv: SequenceKV, last: int = 1
    ) -> torch.Tensor:
        """Run the model over rows at `positions`; returns the `last` rows' logits, [last, V].

        At every layer the rows' keys and values replace what `kv` holds there, and each row
        attends to all positions up to its own, as far as the layer's window reaches. Changes `kv`
        at `positions` only. Rows may come in any order; ascending is quickest.
        """
        rows, ids = Rows.at(positions, self.device), self._ids(token_ids)
        if len(rows) == last:  # as in decode: nothing to save in the last layer
            return self._logits(self.hf, Part(kv.over(rows)), token_ids=ids)
        depth = self.num_layers - 1
        hidden = self._hidden(self._between(0, depth), [Part(kv.over(rows))], token_ids=ids)
        return self._finish(hidden, rows, kv, depth, last)

    @torch.inference_mode()
    def compute_kv(self, runs: Sequence[Run]) -> None:
        """Like `forward_rows` over several sequences at once, for what it writes to their KV only.

        Attention apart, their rows are computed together.
        """
        last = self.num_layers - 1
        ids = self._ids([token for run in runs for token in run.token_ids])
        parts = [
            Part(run.kv.over(Rows.at(run.positions, self.device)), run.capture) for run in runs
        ]
        hidden = self._hidden(self._between(0, last), parts, token_ids=ids)
        self._last_kv(hidden, parts)

    @torch.inference_mode()
    def forward_lower(
        self,
        token_ids: Sequence[int],
        positions: Sequence[int],
        kv: SequenceKV,
        depth: int,
        capture: Capture | None = None,
    ) -> torch.Tensor:
        """Like `forward_rows`, but through the first `depth` layers only.

        Changes `kv` in those. Returns the rows' hidden states behind them, [R, hidden].
        """
        part = Part(kv.over(Rows.at(positions, self.device)), capture)
        return self._hidden(self._between(0, depth), [part], token_ids=self._ids(token_ids))

    @torch.inference_mode()
    def forward_upper(
        self,
        hidden: torch.Tensor,
        positions: Sequence[int],
        kv: SequenceKV,
        depth: int,
        last: int = 1,
    ) -> torch.Tensor:
        """What is left of `forward_rows` behind the first `depth` layers; logits [last, V].

        hidden: the rows' states there, [R, hidden].
        """
        rows, deepest = Rows.at(positions, self.device), self.num_layers - 1
        if depth < deepest:
            part = Part(kv.over(rows))
            hidden = self._hidden(self._between(depth, deepest), [part], hidden=hidden)
        return self._finish(hidden, rows, kv, max(depth, deepest), last)

    def _finish(
        self, hidden: torch.Tensor, rows: Rows, kv: SequenceKV, depth: int, last: int
    ) -> torch.Tensor:
        """What only the last rows need whole: the last layer, where `depth` leaves it, and logits.

        hidden: behind the layers before `depth`, [R, hidden].
        """
        if depth < self.num_layers and len(rows) > last:
            self._last_kv(hidden[:-last], [Part(kv.over(rows.part(slice(-last))))])
        own = Part(kv.over(rows.part(slice(-last, None))))
        return self._logits(self._upper(depth), own, hidden=hidden[-last:])

    def _last_kv(self, hidden: torch.Tensor, parts: Sequence[Part]) -> None:
        """Write the rows' keys and values in the last layer, which is all that others need there.

        hidden: behind the layer before it, [R, hidden].
        """
        self._hidden(self._last, parts, keys_only=True, hidden=hidden)

    def _hidden(self, model: Any, parts: Sequence[Part], **inputs: Any) -> torch.Tensor:
        """The rows' states behind a view of the base model, [R, hidden]."""
        output = model(**pass_inputs(parts, **inputs))
        hidden: torch.Tensor = output.last_hidden_state[0]
        return hidden

    def _logits(self, model: Any, part: Part, **inputs: Any) -> torch.Tensor:
        """All rows', [R, V]."""
        logits: torch.Tensor = model(**pass_inputs([part], **inputs)).logits[0]
        return logits

    def _ids(self, token_ids: Sequence[int]) -> torch.Tensor:
        return torch.tensor(token_ids, device=self.device)

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
    def _moves(self) -> torch.cuda.Stream | None:
        """The stream that KV moves on, one for all requests: a stream has memory of its own."""
        if self.device.type != "cuda":
            return None
        stream: torch.cuda.Stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        return stream

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

    def appender(self, kv: SequenceKV, position: int) -> StepFunction:
        """A function that appends a token to `kv`, from `position` on, and gives logits [V].

        On CUDA it is a graph once a few tokens are out (`GraphedSteps`).
        """
        if self.device.type == "cuda":
            return GraphedSteps(self.static_step(kv, position), self.device, self._one_graph)
        positions = count(position)
        return lambda token_id: self.forward_rows([token_id], [next(positions)], kv)[0]

    def static_step(self, kv: SequenceKV, position: int) -> StaticStep:
        """The same as one step over tensors that stay where they are."""

        def forward(token_id: torch.Tensor, row: Rows) -> torch.Tensor:
            return self._logits(self.hf, Part(kv.over(row)), token_ids=token_id)[0]

        return StaticStep(forward, position, kv.capacity, self.device)

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


def _tokenization(tokenizer: Any) -> str:
    """What a tokenizer does, as JSON. Truncation and padding aren't part of it: calls set them."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    return str(backend.to_str())


def _shallow(module: Any) -> Any:
    """A module with the same weights whose own parts can be exchanged without touching it."""
    shallow = copy(module)
    shallow._modules = dict(module._modules)
    return shallow
