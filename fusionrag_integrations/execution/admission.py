"""Whether KV of a model can be moved and recomputed in part: tried, when the model is loaded.

A family that nobody has tested may do something with positions, or with its attention, that
reuse doesn't know; answers would be wrong, and nothing would say so. So a few tokens are computed
by the model itself, and again in the way that reuse does.
"""

from __future__ import annotations

import logging
import random
from collections import defaultdict
from collections.abc import Iterator

import torch

from fusionrag_integrations.attention.rope import rotate
from fusionrag_integrations.errors import FusionRAGError, UnsupportedModelError
from fusionrag_integrations.execution.executor import Executor, SequenceInput
from fusionrag_integrations.execution.hf.model import CausalModel
from fusionrag_integrations.execution.hf.own_pass import own_pass
from fusionrag_integrations.execution.hf.rows_pass import ViewCapture
from fusionrag_integrations.execution.hf.supported import IN_FULL, TESTED_MODEL_TYPES

logger = logging.getLogger(__name__)

TOKENS = 24  # of a text, and as many beyond the window of a type that isn't tested
TEXTS = 3  # of random tokens
# Where they stand, too. In float32 those of a type that isn't tested stand at the context's end,
# where models in half precision round positions themselves.
FAR = 311
LAST = 12  # whose logits are compared
SMALLEST = 1e-6
INSTEAD = f"Give a model of a type that is tested. {IN_FULL}"
# Of the tokens of the middle one of three texts, that have to agree within rounding, which moves
# others far: experts are chosen by rounded scores, and real models have tokens, and texts behind
# them, that differ by their size in half precision.
MOST = 0.75
FEW = 10  # times as far may be the others in float32 without experts, where nobody tested the type
KNOWN = 3  # times as far may be those of a tested type, whose layers do nothing unknown


@torch.inference_mode()
def check_movable(executor: Executor) -> None:
    """Raises `UnsupportedModelError`, telling what differs, where reuse would compute something
    else than the model does. A model of a type that isn't tested, but passes, is logged.
    """
    model, kind = executor.model, executor.model.hf.config.model_type
    tested = kind in TESTED_MODEL_TYPES
    try:
        _check(executor, tested)
    except (FusionRAGError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # of a type that nobody has tried anything may fail
        if tested:
            raise
        why = f"trying it ended with {type(error).__name__}: {error}. {INSTEAD}"
        raise _unusable(model, why) from error
    if not tested:
        logger.warning(
            "%s is of a type that isn't tested with every release, %r. It was tried on random "
            "tokens: moved, and recomputed in part, they are what the model itself computes.",
            *(model.name, kind),
        )


def _check(executor: Executor, tested: bool) -> None:
    model = executor.model
    experts = any("expert" in name for name, _ in model.hf.named_parameters())
    plain = model.dtype == torch.float32 and model.weights == "float32"
    exact = plain and not experts and not tested
    most = model.rounding * (KNOWN if tested else 1)
    sizes = [TOKENS] * TEXTS
    if not tested and model.window is not None and TOKENS + model.window <= model.context_window:
        sizes.append(TOKENS + model.window)
    found: dict[str, list[torch.Tensor]] = defaultdict(list)
    for text, tokens in enumerate(sizes):
        far = model.context_window - tokens if plain and not tested else FAR
        for what, computed, expected in _differences(executor, text, tokens, far):
            found[what].append(_off(computed, expected)[-TOKENS:])
    for what, texts in found.items():
        for alike in (texts[:TEXTS], texts[TEXTS:]):
            if not alike:
                continue
            typical = float(torch.stack([off.quantile(MOST) for off in alike]).median())
            worst = float(torch.cat(alike).max()) if exact else 0.0
            if not (typical <= most and worst <= FEW * most):
                raise _unusable(
                    model,
                    f"{what} by {max(typical, worst):.2g} of their size, where {most:g} would be "
                    f"rounding. {INSTEAD}",
                )


def _off(computed: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """How far each token is off in the layer and head where it is worst, of its size, [T]."""
    size = expected.float().norm(dim=-1).clamp_min(SMALLEST)  # some embeddings are 0
    off = (computed - expected).float().norm(dim=-1) / size
    worst: torch.Tensor = off.transpose(0, -1).flatten(1).amax(1)
    return worst


def _differences(
    executor: Executor, text: int, tokens: int, far: int
) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """What differs, as it is found, and as it should be, [L, Hkv, T, D]; logits [1, 1, R, V]."""
    model, draw = executor.model, random.Random(text)
    ids = [draw.randrange(model.hf.config.vocab_size) for _ in range(tokens)]
    logits, keys, values = _dense(executor, ids, 0)
    _, far_keys, far_values = _dense(executor, ids, far)
    moved = rotate(keys, model.rotation(range(tokens)).inverse())
    moved = rotate(moved, model.rotation(range(far, far + tokens)))
    yield "moved keys differ from those computed there", moved, far_keys
    yield "values differ by where they are computed", values, far_values
    first, last = range(tokens - LAST), range(tokens - LAST, tokens)
    buffer, middle = executor.new_buffer(tokens), model.num_layers // 2
    seen = ViewCapture(0, frozenset(range(model.num_layers)))
    # In two passes, so that what a layer makes of the rows beside a row shows. A probe ends in the
    # middle of the layers, and a recompute goes on from there.
    for part, wanted in ((first, 0), (last, LAST)):
        order = draw.sample(part, len(part))
        rows = ([ids[at] for at in order], order, buffer)
        (states,) = executor.run([SequenceInput(*rows, seen, depth=middle)])
        resumed = SequenceInput(*rows, seen, hidden=states, first=middle, last=wanted)
        (found,) = executor.run([resumed])
    _check_windows(model, seen)
    yield "keys of rows in any order differ from a prefill's", buffer.keys, keys
    yield "values of rows in any order differ from a prefill's", buffer.values, values
    expected = logits[[at - tokens for at in order]]
    yield "logits of rows in any order differ from a prefill's", found[None, None], expected


def _check_windows(model: CausalModel, seen: ViewCapture) -> None:
    """Some families keep their windows in masks alone, which passes over rows don't have."""
    for layer, view in seen.views.items():
        window = None if layer in model.global_layers else model.window
        if view.window != window:
            raise _unusable(
                model,
                f"the attention of layer {layer} is told of a window of {view.window} tokens, "
                f"where its configuration says {window}. {INSTEAD}",
            )


def _dense(executor: Executor, ids: list[int], start: int) -> tuple[torch.Tensor, ...]:
    """The last logits [LAST, V], keys and values of a sequence by the model's own prefill."""
    hf, device = executor.model.hf, executor.model.device
    positions = torch.arange(start, start + len(ids))[None]
    tokens = torch.tensor([ids], device=device)
    output, *kv = own_pass(hf, positions, input_ids=tokens, logits_to_keep=LAST)
    kept = [
        executor.model.layout.keep(keys, values)
        for keys, values in zip(*kv, strict=True)
        if keys is not None and values is not None
    ]
    keys, values = (torch.cat([one.to(device) for one in of]) for of in zip(*kept, strict=True))
    return output.logits[0].to(device), keys, values


def _unusable(model: CausalModel, why: str) -> UnsupportedModelError:
    kind = model.hf.config.model_type
    return UnsupportedModelError(
        f"KV of {model.name}, a model of type {kind!r}, can't be reused: {why}"
    )
