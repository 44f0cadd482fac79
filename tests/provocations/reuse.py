"""Why KV wasn't reused: what answers tell of themselves."""

from __future__ import annotations

from fusionrag_integrations import Document
from fusionrag_integrations.execution.devices import device_name
from fusionrag_integrations.store.calibration import Calibration, write_calibration
from fusionrag_integrations.store.layout import CALIBRATION_FILE
from tests.conftest import town
from tests.provocations.stores import without_kv
from tests.provocations.world import PROMPT, Provoked, Seen, World, records

provoked = Provoked()


@provoked.by("it has ... tokens, and reuse pays from ... on here.")
def short_prompt(world: World) -> list[Seen]:
    store = world.copy()
    signature = world.engine.store.catalog.info.signature
    lengths = {device_name(world.engine.model.device): 5000}
    write_calibration(store / CALIBRATION_FILE, signature, Calibration(layers=(1,)), {}, lengths)
    return world.asked(world.open(store))


@provoked.by("no KV of its chunks could be used.", "There is no KV record ....")
def lost_records(world: World) -> list[Seen]:
    store = world.copy()
    for file in records(store):
        file.unlink()
    return world.asked(world.open(store))


@provoked.by("It isn't fused: ingest was not finished, or what it was fused behind has changed.")
def changed_neighbour(world: World) -> list[Seen]:
    engine = world.open(world.copy())
    engine.delete(["town-1"])
    return world.asked(engine)


@provoked.by("It came with a question, and hasn't been used often enough to be fused.")
def captured(world: World) -> list[Seen]:
    engine = world.open(world.copy())
    text = "A text that came with a question, about the ferry, the bridge and the river. " * 2
    engine.register_texts([text])
    world.asked(engine, f"{text}\n\nWhere is the ferry?")
    engine.pipeline.adhoc.wait()  # it is kept after the answer
    return world.asked(engine, f"{text}\n\nWhere is the ferry?")


@provoked.by("Nothing says which chunk it is: several have this text, or the prompt cuts it short.")
def twice_the_same(world: World) -> list[Seen]:
    engine = world.open()
    engine.ingest([Document("a", town(0).text), Document("b", town(0).text)])
    return world.asked(engine)


provoked.pairs += [
    ("no text of the store stands in it.", lambda w: w.asked(w.engine, "Who are you?")),
    ("no text of the store stands in it.", lambda w: w.asked(w.engine, scopes=("none",))),
    ("the settings ask for it (kv='none').", lambda w: w.asked(w.engine, kv="none")),
    ("its engine keeps no KV (kv='none').", lambda w: w.asked(without_kv(w))),
    (
        "Nothing says which chunk it is: several have this text, or the prompt cuts it short.",
        lambda w: w.asked(w.engine, PROMPT[: PROMPT.index("\n\n") + 100]),
    ),
]
