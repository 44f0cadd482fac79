"""Recompute nothing: full reuse of the stored KV."""

from __future__ import annotations

from dataclasses import dataclass

from fusionrag_integrations.prompt.assembled import AssembledPrompt
from fusionrag_integrations.selectors.probe import Probe
from fusionrag_integrations.selectors.selection import TokenSelection


@dataclass(frozen=True, slots=True)
class SelectNone:
    """Selects no token."""

    def select(self, prompt: AssembledPrompt, probe: Probe) -> TokenSelection:
        return TokenSelection(())
