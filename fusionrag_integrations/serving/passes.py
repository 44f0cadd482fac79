"""Which rows of which requests the next pass of the model computes.

Decode goes on in every pass. What is left of its room goes to prompts: those that cost little come
first, up to half of it, and the others in the order in which they came. Passes are brief while
somebody's prompt is being prepared or its KV read. So a long prompt delays a short one by about a
pass, and none waits forever.

A row costs 1, and what attention to its prompt's keys adds to that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf

from fusionrag_integrations.execution.hf.plain_model import PlainModel
from fusionrag_integrations.execution.work import Input
from fusionrag_integrations.serving.request import Request, Stage

LEAST = 64  # what a long prompt's rows may cost, whatever overtakes it: fewer cost a CPU as much


@dataclass(frozen=True, slots=True)
class Limits:
    """What requests at work may take together.

    cost: of a pass, about: what can't be cut may exceed it. cost_alone: the same where there is
    only one request. requests: at work at once; others wait. kv_bytes: that their KV may have. One
    request is always let in. keys_of_a_row: to attend to so many keys costs 1.
    """

    cost: float
    cost_alone: float
    requests: int
    kv_bytes: float = inf
    keys_of_a_row: float = inf

    @classmethod
    def on(cls, model: PlainModel, kv_bytes: float = inf) -> Limits:
        """For a model where it is: more rows than these hardly make a pass more efficient there.

        A GPU computes a prompt under full attention quickest at once.
        """
        on_cpu = model.device.type == "cpu"
        cost = 800.0 if on_cpu else 8192.0
        return cls(cost, cost if on_cpu else inf, 64, kv_bytes, model.keys_of_a_row)

    @property
    def brief(self) -> Limits:
        """Those of a pass that somebody waits for."""
        return replace(self, cost=self.cost / 4, cost_alone=self.cost / 4)

    def of_a_row(self, request: Request) -> float:
        """What a row of a prompt costs."""
        return 1.0 + len(request.encoded.token_ids) / self.keys_of_a_row


@dataclass(frozen=True, slots=True, eq=False)
class Share:
    """A request's part of a pass. rows: of its work, about; 0 is the next token."""

    request: Request
    rows: int

    def take(self) -> Sequence[Input]:
        """What the pass computes for it."""
        if not self.rows or self.request.work is None:
            return [self.request.decode_input]
        return self.request.work.take(self.rows)


def plan(requests: Sequence[Request], limits: Limits) -> list[Share]:
    """The next pass. requests: those at work, in order of arrival."""
    shares = [Share(request, 0) for request in requests if request.stage is Stage.DECODE]
    left = {request: request.work.left for request in requests if request.work}
    row = {request: limits.of_a_row(request) for request in left}
    most = limits.cost_alone if len(requests) == 1 else limits.cost
    room = max(LEAST, most - len(shares))
    short: list[Request] = []
    taken = 0.0
    cost = {request: left[request] * row[request] for request in left}
    for request in sorted(cost, key=lambda request: cost[request]):
        if taken + cost[request] > room / 2:
            break
        short.append(request)
        taken += cost[request]
    shares += [Share(request, left[request]) for request in short]
    others = [request for request in left if request not in short]
    if others and any(request.number > others[0].number for request in short):
        room = min(room, taken + max(LEAST, taken / 2))  # those that overtake wait for little else
    for request in others:
        if taken >= room:
            break
        rows = int(min(left[request], max(1.0, (room - taken) / row[request])))
        shares.append(Share(request, rows))
        taken += rows * row[request]
    return shares
