"""How stored KV deviates in prompts, by index in the chunk; the mean is the correction."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fusionrag_integrations.store.corrections import INDICES, Correction


@dataclass(frozen=True, slots=True, eq=False)
class Deviations:
    """True less stored KV, summed by index in the chunk: of keys, then of values.

    count: of tokens, float32 [INDICES]. sums: of deviations, float32 [L, Hkv, INDICES, D] each.
    squares: of their squared norms, float32 [L, Hkv, INDICES] each.
    """

    count: torch.Tensor
    sums: tuple[torch.Tensor, torch.Tensor]
    squares: tuple[torch.Tensor, torch.Tensor]

    @classmethod
    def of(
        cls,
        stored: tuple[torch.Tensor, torch.Tensor],
        true: tuple[torch.Tensor, torch.Tensor],
        indices: torch.Tensor,
    ) -> Deviations:
        """Of some of a chunk's tokens.

        stored, true: unrotated keys and values, [L, Hkv, T, D]. indices: of the tokens in their
        chunk, int64 [T].
        """
        at = indices.clamp(max=INDICES - 1)
        count = torch.bincount(at, minlength=INDICES).float()
        sums, squares = [], []
        for old, new in zip(stored, true, strict=True):
            deviation = (new.float() - old.float()).cpu()
            layers, heads, _, size = deviation.shape
            none = deviation.new_zeros(layers, heads, INDICES, size)
            sums.append(none.index_add(2, at, deviation))
            squares.append(none[..., 0].index_add(2, at, deviation.square().sum(3)))
        return cls(count, (sums[0], sums[1]), (squares[0], squares[1]))

    def __add__(self, other: Deviations) -> Deviations:
        keys, values = (a + b for a, b in zip(self.sums, other.sums, strict=True))
        of_keys, of_values = (a + b for a, b in zip(self.squares, other.squares, strict=True))
        return Deviations(self.count + other.count, (keys, values), (of_keys, of_values))

    def mean(self) -> Correction:
        """The means, each shrunk towards 0 as far as it may be chance (James and Stein, 1961)."""
        count = self.count.clamp(min=1.0)
        keys, values = (
            _shrunk(total / count[:, None], squares / count, count)
            for total, squares in zip(self.sums, self.squares, strict=True)
        )
        return Correction(keys, values)


def _shrunk(means: torch.Tensor, squares: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """means: [L, Hkv, I, D]. squares: mean squared norms, [L, Hkv, I]. count: [I]."""
    norm = means.square().sum(3)
    chance = (squares - norm).clamp(min=0.0) / count
    return means * (1.0 - chance / norm.clamp(min=1e-30)).clamp(min=0.0)[..., None]
