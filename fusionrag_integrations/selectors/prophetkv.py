"""ProphetKV's selection (arXiv 2602.02579): the suffix's attention, mean over all layers."""

from __future__ import annotations

import torch

from fusionrag_integrations.prompt.assembled import AssembledPrompt
from fusionrag_integrations.selectors.attention_weights import weights
from fusionrag_integrations.selectors.probe import Probe


def prophetkv(prompt: AssembledPrompt, probe: Probe) -> torch.Tensor:
    """Scores [C], float32."""
    views = probe.suffix(range(probe.num_layers))
    positions = torch.tensor(prompt.chunk_positions, device=views[0].keys.device)
    return torch.stack([weights(view).mean((0, 1))[positions] for view in views]).mean(0)
