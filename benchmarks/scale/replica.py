"""A simulated replica: what it has in which tier, by the package's own tiers and scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from benchmarks.scale.parameters import Cluster
from benchmarks.scale.prompts import Prompt
from fusionrag_integrations.store.kv.lrfu import LRFUScores
from fusionrag_integrations.store.kv.tier import Tier
from fusionrag_integrations.store.kv.tiered_kv import HALF_LIFE

TIERS = ("memory", "disk", "object storage")


@dataclass(slots=True)
class Link:
    """Carries one transfer after the other, each at its full speed."""

    bytes_s: float
    free_at: float = 0.0

    def send(self, now: float, nbytes: float) -> float:
        """When the last of so many bytes has passed, from now on."""
        self.free_at = max(self.free_at, now) + nbytes / self.bytes_s
        return self.free_at


@dataclass(slots=True, eq=False)
class Replica:
    """One replica of a cluster. load: requests under way or waiting here."""

    name: str
    cluster: Cluster
    shared: Link
    load: int = 0
    busy_s: float = 0.0
    device_free_at: float = 0.0
    memory: Tier[None] = field(init=False)
    disk: Tier[None] = field(init=False)
    _scores: LRFUScores = field(init=False)
    _pinned: Counter[str] = field(init=False)
    _links: Mapping[str, Link] = field(init=False)
    _arriving: dict[str, float] = field(init=False)

    def __post_init__(self) -> None:
        service = self.cluster.service
        self._scores, self._pinned = LRFUScores(HALF_LIFE), Counter()
        self.memory = Tier(int(self.cluster.memory_bytes), self._scores, self._pinned)
        self.disk = Tier(int(self.cluster.disk_bytes), self._scores, self._pinned)
        self._links = {
            "disk": Link(service.disk.bytes_s),
            "object storage": Link(service.object_storage.bytes_s),
        }
        self._arriving = {}

    def fetch(self, prompt: Prompt, now: float) -> tuple[float, dict[str, int]]:
        """When all KV of a prompt is in memory, and its tokens by the tier that had them."""
        found = dict.fromkeys(TIERS, 0)
        ready = now
        for chunk, tokens in prompt.chunks.items():
            self._pinned[chunk] += 1
            self._scores.touch(chunk)
            if chunk in self.memory:  # or on its way there
                found["memory"] += tokens
                ready = max(ready, self._arriving.get(chunk, now))
                continue
            tier = "disk" if chunk in self.disk else "object storage"
            found[tier] += tokens
            done = self._read(tier, tokens * self.cluster.service.bytes_a_token, now)
            self._keep(chunk, tokens, done)
            ready = max(ready, done)
        return ready, found

    def compute(self, prompt: Prompt, now: float) -> tuple[float, float]:
        """When the device begins with a prompt whose KV is there, and when its first token comes.

        One prompt after the other; steps of decode take their part of the device when it is done.
        """
        service = self.cluster.service
        prefill = service.prefill_s(sum(prompt.chunks.values()), prompt.own_tokens)
        taken = prefill + prompt.output_tokens * service.decode_device_s
        started = max(now, self.device_free_at)
        self.device_free_at = started + taken
        self.busy_s += taken
        return started, started + prefill

    def release(self, prompt: Prompt) -> None:
        """Unpin the KV of a prompt that is answered."""
        for chunk in prompt.chunks:
            self._pinned[chunk] -= 1
            if not self._pinned[chunk]:
                del self._pinned[chunk]

    def _read(self, tier: str, nbytes: float, now: float) -> float:
        """When so many bytes have come from a tier."""
        service, passed = self.cluster.service, self._links[tier].send(now, nbytes)
        if tier == "disk":
            return passed + service.disk.latency_s
        return max(passed, self.shared.send(now, nbytes)) + service.object_storage.latency_s

    def _keep(self, chunk: str, tokens: int, done: float) -> None:
        nbytes = int(tokens * self.cluster.service.bytes_a_token)
        if chunk not in self.disk:
            self.disk.admit(chunk, None, nbytes)
        if self.memory.admit(chunk, None, nbytes):
            self._arriving[chunk] = done
