"""Which rows of which requests the next pass of the model computes.

Decode goes on in every pass. What is left of its room goes to prompts: those that need little come
first, up to half of it, and the others in the order in which they came. Passes are brief while
somebody's prompt is being prepared or its KV read. So a long prompt delays a short one by about a
pass, and none waits forever.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf

import torch

from fusionrag_integrations.execution.executor import DenseInput, SequenceInput
from fusionrag_integrations.serving.request import Request, Stage

LEAST = 64  # rows that a long prompt gets, whatever overtakes it; fewer cost a CPU about as much


@dataclass(frozen=True, slots=True)
class Limits:
    """What requests at work may take together.

    rows: of a pass, about: what can't be cut may exceed it. rows_alone: the same where there is
    only one request. requests: at work at once; others wait. kv_bytes: that their KV may have. One
    request is always let in.
    """

    rows: int
    rows_alone: int
    requests: int
    kv_bytes: float = inf

    @classmethod
    def on(cls, device: torch.device, kv_bytes: float = inf) -> Limits:
        """For a device: more rows than these hardly make a pass more efficient there.

        A GPU computes a prompt under full attention quickest at once.
        """
        rows = 512 if device.type == "cpu" else 4096
        alone = rows if device.type == "cpu" else sys.maxsize
        return cls(rows, alone, 64, kv_bytes)

    @property
    def brief(self) -> Limits:
        """Those of a pass that somebody waits for."""
        rows = self.rows // 4
        return replace(self, rows=rows, rows_alone=rows)


@dataclass(frozen=True, slots=True, eq=False)
class Share:
    """A request's part of a pass. rows: of its work, about; 0 is the next token."""

    request: Request
    rows: int

    def take(self) -> Sequence[SequenceInput | DenseInput]:
        """What the pass computes for it."""
        if not self.rows or self.request.work is None:
            return [self.request.decode_input]
        return self.request.work.take(self.rows)


def plan(requests: Sequence[Request], limits: Limits) -> list[Share]:
    """The next pass. requests: those at work, in order of arrival."""
    shares = [Share(request, 0) for request in requests if request.stage is Stage.DECODE]
    left = {request: request.work.left for request in requests if request.work}
    rows = limits.rows_alone if len(requests) == 1 else limits.rows
    room = max(LEAST, rows - len(shares))
    short: list[Request] = []
    taken = 0
    for request in sorted(left, key=lambda request: left[request]):
        if taken + left[request] > room // 2:
            break
        short.append(request)
        taken += left[request]
    shares += [Share(request, left[request]) for request in short]
    others = [request for request in left if request not in short]
    if others and any(request.number > others[0].number for request in short):
        room = min(room, taken + max(LEAST, taken // 2))  # those that overtake wait for little else
    for request in others:
        if taken >= room:
            break
        most = min(left[request], room - taken)
        shares.append(Share(request, most))
        taken += most
    return shares
