"""What the probe says, and what is not computed twice; the gates check everything else."""

from __future__ import annotations

import pytest
import torch

from fusionrag_integrations.model import CausalModel, KVBuffer
from fusionrag_integrations.recompute import PlacedProbe, place, recompute
from fusionrag_integrations.types import AssembledPrompt, TokenSelection
from tests.reference import Reference
from tests.test_gates import CHUNKS, PREFIX, SUFFIX, TOLERANCE, isolated, span
from tests.tiny_models import build

PROMPT_IDS = (*PREFIX, *CHUNKS[0], *SUFFIX)
STOP = len(PREFIX) + len(CHUNKS[0])
PROMPT = AssembledPrompt(
    PROMPT_IDS, (span(CHUNKS[0], len(PREFIX)),), question=(STOP, len(PROMPT_IDS))
)


def probed(model: CausalModel) -> tuple[PlacedProbe, KVBuffer, list[int]]:
    """A probe over the placed prompt, its buffer, and the rows of each pass from now on."""
    buffer = place(model, PROMPT, [isolated(model, CHUNKS[0])], len(PROMPT))
    passes: list[int] = []
    model.hf.register_forward_pre_hook(
        lambda module, args, kwargs: passes.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    return PlacedProbe(model, PROMPT, buffer), buffer, passes


@pytest.mark.parametrize("family", ["llama_gqa2", "qwen3", "phi3_partial", "glm4", "gemma3"])
def test_the_probe_gives_the_models_own_attention(family: str) -> None:
    """The chunk stands where it was made, so the dense model's weights are what must come out."""
    probe, _, _ = probed(CausalModel(build(family), None, family))
    dense = Reference(build(family)).model
    dense.set_attn_implementation("eager")
    with torch.inference_mode():
        expected = dense(torch.tensor([PROMPT_IDS]), output_attentions=True).attentions
    layer = 1  # Gemma's is its only one without a window
    queries = probe.question_queries(layer)
    keys = probe.placed_keys(layer)
    keys = keys.repeat_interleave(queries.shape[0] // keys.shape[0], dim=0)
    logits = queries @ keys.transpose(1, 2) * probe.scaling(layer)
    seen = torch.ones(logits.shape[1:]).tril(STOP).bool()
    weights = logits.masked_fill(~seen, -torch.inf).softmax(-1)
    torch.testing.assert_close(weights, expected[layer][0, :, STOP:], **TOLERANCE)


def test_signals_are_computed_once_and_timed() -> None:
    probe, _, passes = probed(CausalModel(build("llama_gqa2"), None, "tiny"))
    assert probe.fresh_logits is None
    assert probe.elapsed_ms == 0.0
    for layer in range(probe.num_layers):
        probe.question_queries(layer)
        probe.placed_keys(layer)
        probe.scaling(layer)
    assert passes == [len(PROMPT.fresh_positions)]
    assert probe.elapsed_ms > 0.0


def test_what_the_probe_computed_stands_where_nothing_is_selected() -> None:
    model = CausalModel(build("llama_gqa2"), None, "tiny")
    probe, buffer, passes = probed(model)
    probe.question_queries(0)
    logits = recompute(model, PROMPT, TokenSelection(()), buffer, probe)
    assert logits is probe.fresh_logits
    assert len(passes) == 1


def test_fresh_tokens_before_the_selection_do_not_run_again() -> None:
    model = CausalModel(build("llama_gqa2"), None, "tiny")
    probe, buffer, passes = probed(model)
    probe.question_queries(0)
    recompute(model, PROMPT, TokenSelection((STOP - 1,)), buffer, probe)
    assert passes == [len(PREFIX) + len(SUFFIX), 1 + len(SUFFIX)]


def test_a_prompt_without_chunks_is_computed_whole() -> None:
    model = CausalModel(build("llama_gqa2"), None, "tiny")
    prompt = AssembledPrompt(PROMPT_IDS, (), (0, len(PROMPT_IDS)))
    buffer = place(model, prompt, [], len(prompt))
    probe = PlacedProbe(model, prompt, buffer)
    logits = recompute(model, prompt, TokenSelection(()), buffer, probe)
    expected, _ = Reference(build("llama_gqa2")).dense(PROMPT_IDS)
    torch.testing.assert_close(logits, expected[-1], **TOLERANCE)
