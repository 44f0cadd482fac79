"""Recompute everything: exact, and the reference for every other method."""

from __future__ import annotations

from dataclasses import dataclass

from fusionrag_integrations.prompt.assembled import AssembledPrompt
from fusionrag_integrations.selectors.probe import Probe
from fusionrag_integrations.selectors.selection import TokenSelection


@dataclass(frozen=True, slots=True)
class SelectAll:
    """Selects every chunk token."""

    def select(self, prompt: AssembledPrompt, probe: Probe) -> TokenSelection:
        return TokenSelection(prompt.chunk_positions)
