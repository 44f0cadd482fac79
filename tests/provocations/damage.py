"""Damaged files: what `verify` names, what answering goes around, what `repair` can't fix."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

from fusionrag_integrations import Store
from fusionrag_integrations.store.calibration import Calibration, write_calibration
from fusionrag_integrations.store.kv.local import LocalKVFiles
from fusionrag_integrations.store.kv.record_store import RecordStore
from fusionrag_integrations.store.layout import CALIBRATION_FILE, CATALOG_FILE, UNFINISHED_FILE
from fusionrag_integrations.store.manifests import Manifests
from fusionrag_integrations.store.vector_index.check import index_faults
from tests.conftest import all_records, town
from tests.provocations.stores import changed
from tests.provocations.world import PROMPT, Provoked, Seen, World, held, records
from tests.records.by_hand import build, tiny_parts
from tests.records.writer import KEY

FIRST_CHUNK = "chunks WHERE document_id = 'town-0' AND position = 0"

provoked = Provoked()


def verify(world: World, store: Path) -> list[Seen]:
    return world.run("verify", "--store", store)


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def documents(store: Path) -> list[Path]:
    return sorted((store / "documents").glob("??/*.json"))


@provoked.by("... is damaged: ...")
def damaged_record(world: World) -> list[Seen]:
    store = world.copy()
    flip_a_byte(records(store)[0])
    return verify(world, store)


@provoked.by("... is damaged: ...")
def damaged_document(world: World) -> list[Seen]:
    store = world.copy()
    flip_a_byte(documents(store)[0])
    return verify(world, store)


def changed_chunks(world: World, change: str) -> Path:
    """A store whose chunks' rows say something else."""
    return changed(world.copy(), f"UPDATE chunks SET {change}")


@provoked.by("... isn't a regular file.")
def directory_in_the_place_of_the_mark(world: World) -> list[Seen]:
    store = world.copy()
    (store / "unfinished").unlink(missing_ok=True)
    (store / "unfinished").mkdir()
    return verify(world, store)


@provoked.by("Chunk ... of document ... is damaged in ...")
def damaged_text(world: World) -> list[Seen]:
    return verify(world, changed_chunks(world, "text = text || 'x'"))


@provoked.by("The tokens of chunk ... of document ... in ... can't be used. ...")
def damaged_tokens(world: World) -> list[Seen]:
    return verify(world, changed_chunks(world, "token_ids = zeroblob(length(token_ids))"))


@provoked.by("The fused key of chunk ... of document ... in ... can't be used. ...")
def damaged_key(world: World) -> list[Seen]:
    return verify(world, changed_chunks(world, "fused_key = substr(fused_key, 2) || '0'"))


@provoked.by("The trace of chunk ... of document ... in ... can't be used. ...")
def damaged_trace(world: World) -> list[Seen]:
    return verify(world, changed(world.copy(), "UPDATE traces SET trace = zeroblob(length(trace))"))


@provoked.by("The trace of chunk ... of document ... in ... is lost. ...")
def lost_trace(world: World) -> list[Seen]:
    return verify(world, changed(world.copy(), "DELETE FROM traces"))


@provoked.by("The fused key of chunk ... of document ... in ... is not of its neighbours. ...")
def other_neighbours(world: World) -> list[Seen]:
    return verify(world, changed(world.copy(), "DELETE FROM neighbours WHERE position = 0"))


@provoked.by("The chunks of document ... in ... aren't those of its manifest.")
def lost_chunk(world: World) -> list[Seen]:
    """One that nothing else tells of."""
    store = world.copy()
    for statement in (
        "UPDATE chunks SET fused_key = ''",
        "DELETE FROM neighbours",
        f"DELETE FROM vectors WHERE chunk_id IN (SELECT id FROM {FIRST_CHUNK})",
        f"DELETE FROM {FIRST_CHUNK}",
    ):
        changed(store, statement)
    return verify(world, store)


@provoked.by("Chunks of document ... in ... have lost their vectors.")
def lost_vectors(world: World) -> list[Seen]:
    return verify(world, changed(world.copy(), "DELETE FROM vectors"))


@provoked.by("A chunk isn't looked for in prompts. ...")
def damaged_text_in_use(world: World) -> list[Seen]:
    return world.asked(world.open(changed_chunks(world, "title = title || 'x'")))


@provoked.by("A KV record of chunk ... isn't used: ...")
def damaged_in_use(world: World) -> list[Seen]:
    store = world.copy()
    for file in records(store):
        file.write_bytes(file.read_bytes()[:-1])
    return world.asked(world.open(store))


@provoked.by("Starting again without a KV record: ...")
def damaged_layer(world: World) -> list[Seen]:
    """Damage that shows when the last layer is read, while the first ones run: as of large KV."""
    world.patch.setattr("fusionrag_integrations.store.kv.loader.WHOLE_BYTES", 0)
    store = world.copy()
    for file in records(store):
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    return world.asked(world.open(store))


@provoked.by("There is no KV record ....")
def missing_record(world: World) -> list[Seen]:
    store = world.copy()
    records(store)[0].unlink()
    return verify(world, store)


@provoked.by("... can't be read: ...")
def unreadable_record(world: World) -> list[Seen]:
    """A disk that fails."""
    store = world.copy()

    def fails(path: Path) -> int:
        raise OSError(5, "Input/output error", str(path))

    world.patch.setattr("fusionrag_integrations.store.kv.local.open_descriptor", fails)
    return verify(world, store)


@provoked.by("... was made by another model, format or salt: its signature is ...")
def foreign_record(world: World) -> list[Seen]:
    store = world.copy()
    ours = RecordStore(
        LocalKVFiles(store / "kv"), world.engine.store.catalog.info.record_signature, "float32"
    )
    RecordStore(LocalKVFiles(store / "kv"), "another", "float32").put(
        ours.get(next(ours.keys())).dense()
    )
    return verify(world, store)


@provoked.by("... holds the record of another key, ....")
def renamed_record(world: World) -> list[Seen]:
    store = world.copy()
    first, second = records(store)[:2]
    second.write_bytes(first.read_bytes())
    return verify(world, store)


@provoked.by("Record ... holds another chunk's tokens.")
def another_text(world: World) -> list[Seen]:
    store = world.copy()
    kv = RecordStore(
        LocalKVFiles(store / "kv"), world.engine.store.catalog.info.record_signature, "float32"
    )
    first, second = all_records(world.engine.store.catalog)[:2]
    for key in (first.fused_key, first.isolated_key):
        kv.put(replace(kv.get(second.isolated_key).dense(), key=key))
    return world.asked(world.open(store))


@provoked.by("... isn't named like a KV record, which is ...")
def stranger(world: World) -> list[Seen]:
    store = world.copy()
    (store / "kv" / "notes.txt").write_text("hello")
    return verify(world, store)


def by_hand(world: World, **metadata: str) -> list[Seen]:
    """A record whose header says other things, with the right checksum."""
    store = world.copy()
    listed, data = tiny_parts()
    listed["__metadata__"].update(metadata)
    path = store / "kv" / KEY[:2] / f"{KEY}.safetensors"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(build(listed, data))
    return verify(world, store)


def corrected_store(world: World) -> tuple[Path, Path]:
    """A store with a correction, and its file."""
    store = world.tmp / "new"
    with world.open(chunk_tokens=48) as engine:
        engine.ingest([town(number) for number in range(6)])
    (file,) = set((store / "corrections").iterdir()) - {store / "corrections" / "tmp"}
    return store, file


@provoked.by("The correction ... is damaged (...). ...", "A correction isn't used: ...")
def damaged_correction(world: World) -> list[Seen]:
    store, file = corrected_store(world)
    flip_a_byte(file)
    return world.asked(world.open(store), f"{town(1).text}\n\n{PROMPT}")


@provoked.by("The correction ... can't be read (...). ...")
def pipe_in_the_place_of_a_correction(world: World) -> list[Seen]:
    store, file = corrected_store(world)
    file.unlink()
    os.mkfifo(file)
    return verify(world, store)


@provoked.by("The correction ... is of another store or scope. ...")
def another_scopes_correction(world: World) -> list[Seen]:
    store, file = corrected_store(world)
    file.rename(file.with_name("f" * 32))
    return verify(world, store)


@provoked.by("Its scope has no correction that is still true; ...")
def no_correction(world: World) -> list[Seen]:
    store, file = corrected_store(world)
    file.unlink()
    return world.asked(world.open(store), f"{town(1).text}\n\n{PROMPT}")


@provoked.by("... isn't a directory.")
def file_in_the_place_of_corrections(world: World) -> list[Seen]:
    store = world.copy()
    (store / "corrections").touch()
    return verify(world, store)


@provoked.by("... has version ... of the format ...; this release reads version ...")
def newer_document(world: World) -> list[Seen]:
    store = world.copy()
    path = documents(store)[0]
    head, _, body = path.read_bytes().partition(b"\n")
    path.write_bytes(json.dumps(json.loads(head) | {"version": 9}).encode() + b"\n" + body)
    return verify(world, store)


@provoked.by("... is missing.")
def missing_document(world: World) -> list[Seen]:
    store = world.copy()
    documents(store)[0].unlink()
    return verify(world, store)


@provoked.by("... is of no document.")
def stray_document(world: World) -> list[Seen]:
    store = world.copy()
    world.open(store).delete(["town-1"])
    for path in documents(world.store):
        target = store / path.relative_to(world.store)
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(path.read_bytes())
    return verify(world, store)


@provoked.by("... is of another document, ....")
def swapped_documents(world: World) -> list[Seen]:
    store = world.copy()
    first, second = documents(store)
    first.write_bytes(second.read_bytes())
    return verify(world, store)


@provoked.by("... is of another store: its tokens and keys aren't this one's.")
def another_stores_document(world: World) -> list[Seen]:
    """Whose model or salt has made other keys."""
    store = world.copy()
    manifests = Manifests(store)
    said = manifests.read(documents(store)[0])
    others = tuple(replace(record, isolated_key="0" * 64) for record in said.records)
    manifests.write(replace(said, records=others))
    return verify(world, store)


@provoked.by("... is of another text than the catalog's.")
def older_document(world: World) -> list[Seen]:
    store = world.copy()
    (store / UNFINISHED_FILE).unlink(missing_ok=True)
    return verify(world, changed(store, "UPDATE documents SET content_hash = 'another'"))


@provoked.by("... doesn't say what the catalog says.")
def another_store_json(world: World) -> list[Seen]:
    store = world.copy()
    manifests = Manifests(store)
    manifests.notes.info_path.unlink()
    manifests.notes.write_info(replace(world.engine.store.catalog.info, chunk_tokens=64))
    return verify(world, store)


@provoked.by("The catalog ... is damaged: ...")
def loose_ends(world: World) -> list[Seen]:
    return verify(world, changed(world.copy(), "DELETE FROM documents"))


@provoked.by("Searches go by Chroma's graph, and may miss chunks: ...")
def damaged_vectors(world: World) -> list[Seen]:
    with Store.open(changed(world.copy(), "UPDATE vectors SET vector = zeroblob(9)")) as corpus:
        corpus.search("Where is the fox?")
    return world.logged()


@provoked.by("The catalog ... can't be used: ...")
def no_catalog(world: World) -> None:
    store = world.copy()
    (store / CATALOG_FILE).write_bytes(b"no database" * 99)
    Store.open(store)


@provoked.by("The index in ... can't be used: ...")
def damaged_index(world: World) -> None:
    store = world.copy()
    (store / "index" / "chroma.sqlite3").write_bytes(b"no database" * 99)
    Store.open(store)


@provoked.by("The index in ... has lost chunks: ...")
def lost_index(world: World) -> None:
    store = world.copy()
    (store / "index" / "chroma.sqlite3").unlink()
    Store.open(store)


@provoked.by("The index in ... is damaged: ...")
def index_of_other_chunks(world: World) -> list[Seen]:
    store = world.copy()
    (store / "index" / "chroma.sqlite3").unlink()
    return verify(world, store)


@provoked.by("The index in ... can't be checked: ...")
def no_process(world: World) -> list[Seen]:
    def full(*_: object, **__: object) -> None:
        raise OSError(11, "Resource temporarily unavailable")

    world.patch.setattr("fusionrag_integrations.store.vector_index.check.subprocess.run", full)
    world.patch.setattr("fusionrag_integrations.store.verify.index_faults", index_faults)
    return verify(world, world.copy())


@provoked.by("The store at ... is being changed; wait for it to end.")
def repaired_while_changing(world: World) -> list[Seen]:
    store = world.copy()
    with held(store):
        return world.run("repair", "--store", store)


@provoked.by("Can't delete ...: ...")
def undeletable(world: World) -> None:
    """A directory in a file's place, which deleting a file can't delete."""
    store = world.copy()
    (store / UNFINISHED_FILE).unlink(missing_ok=True)
    for path in documents(store):
        path.unlink()
        path.mkdir()
    world.open(store).delete(["town-0"])


@provoked.by("... can't be listed: ...")
def unlisted(world: World) -> list[Seen]:
    def denied(path: Path) -> list[Path]:
        raise PermissionError(13, "Permission denied", str(path))

    world.patch.setattr(Path, "iterdir", denied)
    return world.run("inspect", "--store", world.store)


@provoked.by("A new chunk's KV was not kept: ...")
def capture_on_a_full_disk(world: World) -> list[Seen]:
    engine = world.open(world.copy())
    text = "A text that came with a question, about the ferry, the bridge and the river. " * 2
    engine.register_texts([text])
    world.full_disk()
    world.asked(engine, f"{text}\n\nWhere is the ferry?")
    engine.close()
    return world.logged()


@provoked.by("An ad-hoc chunk stays isolated for now: ...")
def hot_while_changing(world: World) -> list[Seen]:
    from fusionrag_integrations.serving.adhoc import HOT

    store = world.copy()
    engine = world.open(store)
    text = "A text that came with a question, about the ferry, the bridge and the river. " * 2
    engine.register_texts([text])
    with held(store):
        for _ in range(1 + HOT):
            world.asked(engine, f"{text}\n\nWhere is the ferry?")
            engine.pipeline.adhoc.wait()  # what an answer leaves to it
    return world.logged()


def calibrated(world: World, content: str) -> None:
    store = world.copy()
    (store / CALIBRATION_FILE).write_text(content)
    world.open(store)


@provoked.by("The calibration ... names layer ...; ... has layers ...")
def deeper_calibration(world: World) -> None:
    store = world.copy()
    signature = world.engine.store.catalog.info.signature
    write_calibration(store / CALIBRATION_FILE, signature, Calibration(layers=(99,)), {})
    world.open(store)


provoked.each(
    {
        "... has format version ...; this release reads version ...": lambda w: by_hand(
            w, format_version="9"
        ),
        "... isn't a KV record: ...": lambda w: by_hand(w, format="another"),
        "The calibration ... is damaged (...). Delete it and calibrate again.": lambda w: (
            calibrated(
                w,
                json.dumps(
                    {
                        "format": 1,
                        "calibrations": {w.engine.store.catalog.info.signature: {"layers": "all"}},
                    }
                ),
            )
        ),
        "... is no calibration (...). Delete it and calibrate again.": lambda w: calibrated(w, "{"),
        "... has format ...; this version reads format .... Calibrate again.": lambda w: calibrated(
            w, '{"format": 99, "calibrations": {}}'
        ),
    }
)
