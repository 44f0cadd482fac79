"""Full attention by llama.cpp, as the server of its Python bindings gives it: a request at a time,
with a cache of the prompts before.

Only where the bindings are installed and the model comes from a GGUF file. Its weights are the
file's own, quantised as they are there, for which llama.cpp has kernels; all others compute with
the same weights in full, in the model's dtype.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from importlib import import_module
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any

import torch

from fusionrag_integrations.bench.throughput.load import Ask, TokenTimes
from fusionrag_integrations.bench.throughput.plan import Plan
from fusionrag_integrations.bench.throughput.systems import System
from fusionrag_integrations.bench.throughput.workload import Asked
from fusionrag_integrations.execution.hf.model import CausalModel


def llama_cpp_systems(model: CausalModel, plan: Plan) -> list[System]:
    """The one, or none. `way` says how most of the file's weights are kept."""
    file = Path(model.source)
    if not file.is_file():
        return []
    try:
        bindings = import_module("llama_cpp")
    except ImportError:
        return []
    settings = {
        "n_ctx": plan.prompt_tokens + plan.output_tokens,
        "n_threads": torch.get_num_threads(),
        "n_threads_batch": torch.get_num_threads(),
        "n_gpu_layers": -1 if model.device.type == "cuda" else 0,  # all or none
        "flash_attn": True,
        "verbose": False,
    }
    serve = partial(_serve, bindings, file, settings, plan.output_tokens)
    return [System("llama_cpp", f"{_weights(file)} weights, one at a time", None, serve)]


@contextmanager
def _serve(bindings: Any, file: Path, settings: dict[str, Any], tokens: int) -> Iterator[Ask]:
    lock = Lock()
    with closing(bindings.Llama(str(file), **settings)) as llama:
        cache = bindings.LlamaRAMCache()

        def ask(asked: Asked, times: TokenTimes) -> Sequence[int]:
            with lock:
                times.check()
                _begin_from(cache, llama, asked.token_ids)
                answer = []
                # It goes on behind end tokens; its text isn't wanted, so none is decoded.
                for token in islice(llama.generate(asked.token_ids, temp=0.0), tokens):
                    times.add()
                    answer.append(int(token))
                cache[(*asked.token_ids, *answer)] = llama.save_state()
            return answer

        yield ask


def _begin_from(cache: Any, llama: Any, token_ids: Sequence[int]) -> None:
    """Restore the cached state that has most of a prompt's beginning, if the last one has less."""
    if token_ids not in cache:
        return
    state = cache[token_ids]
    in_cache, in_use = (
        llama.longest_token_prefix(one.input_ids[: one.n_tokens].tolist(), token_ids)
        for one in (state, llama)
    )
    if in_cache > in_use:
        llama.load_state(state)


def _weights(file: Path) -> str:
    """How most of a GGUF file's bytes are kept, by ggml's name."""
    from gguf import GGUFReader

    kinds: Counter[str] = Counter()
    for tensor in GGUFReader(file).tensors:
        kinds[tensor.tensor_type.name] += int(tensor.n_bytes)
    return max(kinds, key=lambda kind: kinds[kind])
