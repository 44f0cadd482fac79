"""A soak, in a process that may mount its own small disk.

    python -m tests.long.soak DISK ELSEWHERE REQUESTS

DISK is a directory where this process may mount: `unshare --user --map-root-user --mount` lets it.
Prints JSON: what was done how often, what was wrong, and what is held after it that wasn't before.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import json
import sys
from ctypes import CDLL
from pathlib import Path

import torch

from fusionrag_integrations import FusionEngine
from fusionrag_integrations.demo import CHUNK_TOKENS, MODEL_DIR
from fusionrag_integrations.execution.hf.model import CausalModel
from fusionrag_integrations.store.kv.disk_budget import Budgets
from fusionrag_integrations.store.verify import find_damage
from fusionrag_integrations.support.arenas import share_arenas
from tests.long.full_disk import mount
from tests.long.soak.cases import AD_HOC, DOCUMENTS, Expected, records
from tests.long.soak.faults import Damage, Disk, Logs
from tests.long.soak.requests import Soak
from tests.processes import Held
from tests.server.conftest import Running, running
from tests.server.test_load import counts
from tests.steps import kv_in_use, until_kv_is_free
from tests.waiting import until

ROOM = 256 << 10  # KB: several times what the store takes
LONGEST = 3600  # seconds, after which it counts as hanging
WARM = 400  # requests, after which there are all threads, and caches are full
WAYS = ("read", "read by HTTP", "closed", "cancelled", "reset", "killed")
BUDGETS = Budgets(  # some of the records: others are read from the disk, or computed, each time
    host=8 << 20, starts=16 << 20, captured=4 << 20
)


def make(model: CausalModel, store: Path) -> list[Path]:
    """A store of the demo's documents; returns its records."""
    with FusionEngine.open(model, store, chunk_tokens=CHUNK_TOKENS) as engine:
        engine.ingest(DOCUMENTS)
    return records(store)


def tensor_megabytes() -> int:
    """What all tensors of this process take, shared memory once."""
    tensors = [found for found in gc.get_objects() if type(found) is torch.Tensor]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values()) >> 20


def now(engine: FusionEngine, server: Running) -> dict[str, int]:
    """What is held once all requests have ended."""
    asyncio.run(until_kv_is_free(engine))
    until(lambda: counts(server)["answering"] == 0)
    tensors = tensor_megabytes()
    gc.collect()
    CDLL(None).malloc_trim(0)  # what is free, and kept for what comes, is no leak
    held = Held.now()
    return {
        "records of KV": kv_in_use(engine),
        "threads": held.threads,
        "descriptors": held.descriptors,
        "directories": held.directories,
        "MB of tensors": tensors,
        "MB": held.memory,
    }


def main(disk: Path, elsewhere: Path, requests: int) -> None:
    faulthandler.dump_traceback_later(LONGEST, exit=True)  # even if what hangs holds the GIL
    share_arenas()  # as `fusionrag serve` does
    torch.set_num_threads(1)
    mount(disk, ROOM)
    store = disk / "store"
    model = CausalModel.load(MODEL_DIR)
    damage = Damage(make(model, store))
    expected = Expected(model, store, elsewhere)
    with FusionEngine.open(model, store, budgets=BUDGETS) as engine, running(engine) as server:
        engine.register_texts(AD_HOC)
        port = int(server.url.rpartition(":")[2])
        Soak(engine, port, expected, damage, Disk(disk)).run(range(-WARM, 0))
        before = now(engine, server)
        damage, filling = Damage(damage.files), Disk(disk)
        soak = Soak(engine, port, expected, damage, filling)
        with (logs := Logs()).noting():
            soak.run(range(requests))
        after = now(engine, server)
        engine.ingest([])
    found = {
        "counts": {
            **{way: soak.counts[way] for way in WAYS},
            "answers on a full disk": soak.counts["on a full disk"],
            "answers that stopped at a given string": soak.counts["stopped"],
            "answers without a damaged record": soak.counts["fell back"],
            "records damaged and restored": damage.count,
            "times that the disk was full": filling.changes // 2,
            "ingests and deletes": soak.writing.counts["done"],
            "attempts at these without room": soak.writing.counts["found no room"],
            "texts of questions without room": logs.not_kept,
        },
        "wrong": soak.wrong,
        "errors": soak.writing.errors + logs.errors,
        "more": {what: max(0, after[what] - number) for what, number in before.items()},
        "damages": [f"{found.area}: {found.message}" for found in find_damage(store)],
    }
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
