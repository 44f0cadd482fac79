"""Which tokens are in the same sentence."""

from __future__ import annotations

import re
from bisect import bisect_right

import torch

from fusionrag_integrations.prompt.assembled import AssembledPrompt

# Good enough to group tokens: an abbreviation splits a sentence in two, and nothing is lost.
_CLOSING = "\"')\\]”’»」』）"
_END = re.compile(rf"[.!?][{_CLOSING}]*\s+|[。！？][{_CLOSING}]*\s*|\n+")


def sentence_numbers(prompt: AssembledPrompt) -> torch.Tensor:
    """A number for each chunk token's sentence, int64 [C], from 0 and in order.

    No sentence continues from one placed chunk to another.
    """
    numbers: list[int] = []
    for spans in prompt.occurrences:
        encoded = spans[0].record.encoded
        ends = [match.end() for match in _END.finditer(encoded.chunk.text)]
        first = numbers[-1] + 1 if numbers else 0
        for span in spans:
            offsets = encoded.offsets[span.source_start : span.source_start + span.length]
            # A token may begin with the space before it, so its last character decides.
            numbers += [first + bisect_right(ends, stop - 1) for _, stop in offsets]
    return torch.tensor(numbers)
