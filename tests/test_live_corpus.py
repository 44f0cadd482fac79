"""A corpus that lives: documents come, change, move and go, writers crash, questions go on.

A state machine compares two engines over one directory with a plain model: document -> scope,
paragraphs and title. No answer comes from text that is gone or from another scope than the
chunk's own; nothing that was indexed is lost, not even by a crash; and after the next completed
ingest everything is fused again.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from fusionrag_integrations import Document
from fusionrag_integrations.documents.handles import KVHandle
from fusionrag_integrations.documents.keys import chunk_id, fused_key
from fusionrag_integrations.prompt import question_prompt
from fusionrag_integrations.serving.settings import AnswerSettings
from fusionrag_integrations.store.kv.types import ChunkKV
from tests.conftest import all_records, document_ids
from tests.live_corpus import (
    SCOPES,
    TEXTS,
    Moment,
    WatchedEngine,
    computed,
    key_of,
    origins,
    tokens,
    vector,
)
from tests.store.memory import MemoryVectorIndex

EXAMPLES = 60  # 9 to 27 seconds of one core, and what its disk takes to sync
EXAMPLES_ON_CHROMA = 15  # 7 to 10 seconds
STEPS = 10  # rules in one example, after the first ingest

NAMES = ("ash", "birch", "cedar", "dogwood")
TITLES = ("", "Chronicle")
EVERYTHING = 99  # more than there ever are chunks


@dataclass(frozen=True)
class Page:
    """What the plain model knows of a document. texts: numbers in `TEXTS`, a paragraph each."""

    scope: str
    texts: tuple[int, ...]
    title: str = ""

    def document(self, name: str) -> Document:
        text = "\n\n".join(TEXTS[number] for number in self.texts)
        return Document(name, text, self.title, self.scope)


@dataclass(frozen=True)
class Expected:
    """A chunk that must be there, worked out from its page. before: texts ahead of it."""

    document_id: str
    number: int
    scope: str
    title: str
    before: tuple[int, ...]

    @property
    def id(self) -> str:
        text, occurrence = TEXTS[self.number], self.before.count(self.number)
        kept = {"scope": self.scope, "title": self.title, "metadata": "{}"}
        return chunk_id(self.document_id, text, occurrence, **kept)

    @property
    def key(self) -> str:
        return key_of(self.number, self.scope)

    @property
    def last_neighbours(self) -> tuple[str, ...]:
        """Keys of the chunks before it, which stand last; equal texts count once."""
        nearest = dict.fromkeys(n for n in reversed(self.before[-2:]) if n != self.number)
        return tuple(key_of(number, self.scope) for number in reversed(nearest))


@lru_cache(512)
def chunks_of(pages: tuple[tuple[str, Page], ...]) -> dict[str, Expected]:
    """All chunks by id, in the catalog's order."""
    expected = [
        Expected(name, number, page.scope, page.title, page.texts[:i])
        for name, page in pages
        for i, number in enumerate(page.texts)
    ]
    return {chunk.id: chunk for chunk in expected}


def scope_of(name: str) -> str:
    """Each document's own: the same id in another scope would be another document."""
    return SCOPES[NAMES.index(name) % 2] if name in NAMES else SCOPES[0]


def by_scope(name: str) -> tuple[str, str]:
    return scope_of(name), name


class Crashed(BaseException):
    """Ends a write at a chosen moment, as an interrupt or a full disk would."""


def crash() -> None:
    raise Crashed


def edited(page: Page, edit: str, at: int, number: int) -> Page:
    at %= len(page.texts)
    before, this, behind = page.texts[:at], page.texts[at : at + 1], page.texts[at + 1 :]
    match edit:
        case "edit":
            return replace(page, texts=(*before, number, *behind))
        case "insert":
            return replace(page, texts=(number, *page.texts[:2]))
        case "remove":
            return replace(page, texts=before + behind or (number,))
        case "swap":
            return replace(page, texts=this + before + behind)
        case _:
            return replace(page, title=TITLES[1 - TITLES.index(page.title)])


def moments(calls: dict[str, int]) -> st.SearchStrategy[Moment]:
    """Moments at one of so many first calls of methods."""
    return st.one_of(
        st.builds(
            Moment,
            place=st.just(name),
            call=st.integers(0, count - 1),
            after=st.booleans(),
        )
        for name, count in calls.items()
    )


numbers = st.integers(0, len(TEXTS) - 1)
texts = st.lists(numbers, min_size=1, max_size=3).map(tuple)
pages = st.builds(Page, st.just(SCOPES[0]), texts, st.sampled_from(TITLES))


def scoped(pages: dict[str, Page]) -> dict[str, Page]:
    return {name: replace(page, scope=scope_of(name)) for name, page in pages.items()}


new_pages = st.dictionaries(st.sampled_from(NAMES), pages, min_size=1, max_size=2).map(scoped)
first_pages = st.dictionaries(st.sampled_from(NAMES), pages, min_size=2, max_size=3).map(scoped)
seldom = st.sampled_from([False, False, False, True])
edits = st.sampled_from(["edit", "insert", "remove", "swap", "retitle"])
places = st.integers(0, 2)
whiches = st.integers(0, len(NAMES) - 1)
deleted = st.lists(st.sampled_from([*NAMES, "unknown"]), min_size=1, max_size=2)
scope_lists = st.none() | st.sampled_from([[scope] for scope in SCOPES])
of_ingest = moments(
    {
        "engine.progress": 8,
        "catalog.documents.replace": 2,
        "catalog.kv.set_fused": 5,
        "index.add": 1,
        "index.remove": 3,
        "kv.put": 8,
        "kv.delete": 4,
    }
)
of_delete = moments({"catalog.documents.delete": 1, "index.remove": 1, "kv.delete": 4})


class LiveCorpus(RuleBasedStateMachine):
    """One engine writes, both answer. The index is in memory."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.path = Path(mkdtemp(dir=root))
        self.index = MemoryVectorIndex()
        self.pages: dict[str, Page] = {}
        self.untrue: set[str] = set()  # documents that a call touched which hasn't ended
        self.all_fused = True
        self.sides: tuple[dict[str, Page], ...] = ()  # what documents may be while one is written
        self.handles: list[KVHandle] = []  # all that there ever were
        self.writer = self.open()
        self.reader = self.open()

    def open(self) -> WatchedEngine:
        return WatchedEngine.open(self.path, self.index)

    def teardown(self) -> None:
        self.writer.engine.close()
        self.reader.engine.close()
        shutil.rmtree(self.path)

    @initialize(new=first_pages)
    def begin(self, new: dict[str, Page]) -> None:
        self.write(new)

    @rule(new=new_pages, delete_others=seldom)
    def ingest(self, new: dict[str, Page], delete_others: bool) -> None:
        self.write(new, delete_others=delete_others)

    @rule(new=new_pages, delete_others=seldom, moment=of_ingest)
    def ingest_crashes(self, new: dict[str, Page], delete_others: bool, moment: Moment) -> None:
        self.write(new, moment, crash, delete_others)

    @rule(new=new_pages, moment=of_ingest, which=whiches)
    def ingest_while_asked(self, new: dict[str, Page], moment: Moment, which: int) -> None:
        self.write(new, moment, lambda: self.look_in(which))

    @precondition(lambda self: self.untrue or not self.all_fused)
    @rule()
    def ingest_nothing_new(self) -> None:
        self.write({})

    @precondition(lambda self: self.pages)
    @rule(which=whiches, edit=edits, at=places, number=numbers)
    def change(self, which: int, edit: str, at: int, number: int) -> None:
        name = self.name(which)
        self.write({name: edited(self.pages[name], edit, at, number)})

    @precondition(lambda self: self.pages)
    @rule(which=whiches, edit=edits, at=places, number=numbers, moment=of_ingest)
    def change_crashes(self, which: int, edit: str, at: int, number: int, moment: Moment) -> None:
        name = self.name(which)
        self.write({name: edited(self.pages[name], edit, at, number)}, moment, crash)

    @precondition(lambda self: self.pages)
    @rule(names=deleted)
    def delete(self, names: list[str]) -> None:
        self.remove(names)

    @precondition(lambda self: self.pages)
    @rule(names=deleted, moment=of_delete)
    def delete_crashes(self, names: list[str], moment: Moment) -> None:
        self.remove(names, moment)

    @rule(role=st.sampled_from(["writer", "reader"]))
    def reopen(self, role: str) -> None:
        getattr(self, role).engine.close()
        setattr(self, role, self.open())

    @precondition(lambda self: self.pages and self.handles)
    @rule(
        which=st.none() | whiches,
        others=st.lists(numbers, max_size=3),
        earlier=st.lists(st.integers(0, 30), max_size=4),
        scopes=scope_lists,
        selector=st.sampled_from(["none", "fusionrag"]),
        corrected=st.booleans(),
        role=st.sampled_from(["writer", "reader"]),
    )
    def ask_over_texts(
        self,
        which: int | None,
        others: list[int],
        earlier: list[int],
        scopes: list[str] | None,
        selector: str,
        corrected: bool,
        role: str,
    ) -> None:
        """Over a whole document, texts that may be gone, and handles from any time."""
        asked = [*(() if which is None else self.pages[self.name(which)].texts), *others]
        handles = [self.handles[-1 - i % len(self.handles)] for i in earlier]
        self.ask(getattr(self, role), asked, handles, scopes, selector, corrected)

    @precondition(lambda self: self.pages)
    @rule(number=numbers, scopes=scope_lists, k=st.integers(1, 4))
    def ask_over_hits(self, number: int, scopes: list[str] | None, k: int) -> None:
        """Over what a search finds, with its handles."""
        hits = self.reader.store.search(TEXTS[number], k, scopes=scopes)
        inside = [c for c in self.chunks().values() if scopes is None or c.scope in scopes]
        assert {hit.chunk.id for hit in hits} <= {chunk.id for chunk in inside}
        assert len(hits) == min(k, len(inside))
        asked = [TEXTS.index(hit.chunk.text) for hit in hits]
        self.ask(self.reader, asked, [hit.handle for hit in hits], scopes)

    def name(self, which: int) -> str:
        return sorted(self.pages)[which % len(self.pages)]

    def look_in(self, which: int) -> None:
        """What a reader sees while the writer is at work."""
        self.check_catalog()
        self.check_search()
        if self.pages:
            asked = self.pages[self.name(which)].texts
            self.ask(self.reader, asked, self.handles[-4:])

    def write(
        self,
        new: dict[str, Page],
        moment: Moment | None = None,
        action: Callable[[], None] = crash,
        delete_others: bool = False,
    ) -> None:
        there = self.left_by_deletes()
        kept = {} if delete_others else there
        changed = [name for name, page in new.items() if there.get(name) != page]
        known = sum(name in there for name in changed)
        gone = there.keys() - kept.keys() - new.keys()
        with self.changing({**kept, **new}, {*changed, *gone}):
            with self.writer.acting(moment, action):
                report = self.writer.engine.ingest(
                    [page.document(name) for name, page in new.items()],
                    delete_others=delete_others,
                    progress=self.writer.progress,
                )
            assert report.documents_new == len(changed) - known
            assert report.documents_changed == known
            assert report.documents_unchanged == len(new) - len(changed)
            assert report.documents_deleted == len(gone)
            self.untrue, self.all_fused = set(), True
        if self.all_fused:
            self.check_completed()

    def remove(self, names: list[str], moment: Moment | None = None) -> None:
        there = self.left_by_deletes()
        gone = there.keys() & set(names)
        left = {name: page for name, page in there.items() if name not in gone}
        with self.changing(left, gone):
            with self.writer.acting(moment, crash):
                deleted = [
                    self.writer.engine.delete([n for n in names if scope_of(n) == s], scope=s)
                    for s in SCOPES
                ]
                assert sum(deleted) == len(gone)
            unused = {*self.writer.kv.keys()} - self.writer.catalog.kv.live_keys()
            assert not unused, "records are left that no chunk uses"

    def left_by_deletes(self) -> dict[str, Page]:
        """The documents without those whose deletion crashed: the next write completes it first."""
        begun = self.writer.store.manifests.deleted(self.writer.catalog.documents.all())
        going = {document.id for document in begun}
        return {name: page for name, page in self.pages.items() if name not in going}

    @contextmanager
    def changing(self, after: dict[str, Page], touched: set[str]) -> Iterator[None]:
        """A write that may crash: then each document it touched is the old or the new one."""
        left = self.left_by_deletes()
        touched = touched | (self.pages.keys() - left.keys())
        self.sides = (self.pages, left, after)
        self.untrue |= touched
        self.all_fused = False
        try:
            yield
        except Crashed:
            note("crashed")
        else:
            self.sides = (after,)
        self.check_catalog()
        self.check_search()
        sides = [side.get(name) for side in (*self.sides, self.pages) for name in sorted(touched)]
        numbers = dict.fromkeys(number for page in sides if page for number in page.texts)
        self.ask(self.reader, [*numbers], self.handles[-len(numbers) :])

    def chunks(self) -> dict[str, Expected]:
        """All chunks by id, worked out from the plain model."""
        return chunks_of(tuple(sorted(self.pages.items(), key=lambda item: by_scope(item[0]))))

    def can_fuse(self, chunk: Expected) -> bool:
        others = (other for other in self.chunks().values() if other.scope == chunk.scope)
        return any(other.number != chunk.number for other in others)

    def check_catalog(self) -> None:
        """The catalog holds the model's documents, and its fused keys have true records."""
        catalog, kv = self.reader.catalog, self.reader.kv
        records = {record.chunk.id: record for record in all_records(catalog)}
        held: dict[str, Page] = {}
        for chunk in (record.chunk for record in records.values()):
            page = held.setdefault(chunk.document_id, Page(chunk.scope, (), chunk.title))
            number = TEXTS.index(chunk.text)
            held[chunk.document_id] = replace(page, texts=(*page.texts, number))
        for name in held.keys() | {name for side in self.sides for name in side}:
            sides = [side.get(name) for side in self.sides]
            assert held.get(name) in sides, f"{name} is {held.get(name)}, not one of {sides}"
        self.pages = held
        expected = self.chunks()
        assert document_ids(catalog) == sorted(held, key=by_scope)
        assert list(records) == list(expected)
        stored = set(kv.keys())
        for record, chunk in zip(records.values(), expected.values(), strict=True):
            assert record.isolated_key == chunk.key
            assert chunk.document_id in self.untrue or chunk.key in stored, f"lost: {chunk}"
            if record.fused_key:
                assert record.fused_key in stored, f"a fused key without record: {chunk}"
                self.check_record(kv.get(record.fused_key), [chunk])
        self.handles += [r.handle for r in records.values() if r.handle not in self.handles]

    def check_search(self) -> None:
        """Each scope's search finds its chunks and no others, at any moment."""
        expected = self.chunks().values()
        for scopes in (None, *([scope] for scope in SCOPES)):
            hits = self.reader.store.nearest(vector(TEXTS[0]), EVERYTHING, scopes=scopes)
            inside = [chunk.id for chunk in expected if scopes is None or chunk.scope in scopes]
            assert sorted(hit.chunk.id for hit in hits) == sorted(inside), f"search in {scopes}"

    def check_completed(self) -> None:
        """After a completed ingest all is fused, indexed and stored, and there is nothing else."""
        expected, keys = self.chunks(), set[str]()
        assert self.reader.index.ids() == expected.keys()
        embeddings = self.reader.store.embeddings(list(expected))
        for record in all_records(self.reader.catalog):
            chunk = expected[record.chunk.id]
            assert bool(record.fused_key) == self.can_fuse(chunk), f"not fused: {chunk}"
            keys |= {record.isolated_key, record.fused_key}
            true = np.array(vector(record.chunk.embedding_text))
            off = np.abs(true - embeddings[record.chunk.id]).max()
            assert off < 1e-6, f"indexed otherwise: {chunk}"
        assert set(self.reader.kv.keys()) == keys - {""}

    def check_record(self, kv: ChunkKV, candidates: Sequence[Expected]) -> None:
        """A record is true KV of one of these chunks, as it and its neighbours are now."""
        made_with = [origins()[key] for key in kv.neighbours]
        shown = f"{kv.kind} KV made with {made_with}, for {candidates}"
        owners = [chunk for chunk in candidates if tokens(TEXTS[chunk.number]) == kv.token_ids]
        assert owners, f"tokens of no such chunk: {shown}"
        there = {chunk.key for chunk in self.chunks().values()}
        assert there.issuperset(kv.neighbours), f"a neighbour is gone: {shown}"
        scopes = {chunk.scope for chunk in owners}
        assert scopes.issuperset(s for _, s in made_with), f"a neighbour's scope: {shown}"
        owned = [
            fused_key(chunk.key, kv.neighbours) if kv.kind == "fused" else chunk.key
            for chunk in owners
        ]
        owners = [chunk for chunk, key in zip(owners, owned, strict=True) if key == kv.key]
        assert owners, f"KV of another chunk or scope: {shown}"
        assert (kv.kind == "fused") == bool(kv.neighbours)
        if kv.kind == "fused":
            tails = [chunk.last_neighbours for chunk in owners]
            ends = [kv.neighbours[len(kv.neighbours) - len(tail) :] for tail in tails]
            assert any(map(tuple.__eq__, ends, tails)), f"behind another document: {shown}"
        true = computed(owners[0].number, tuple(number for number, _ in made_with))
        keys, values = kv.tensors(slice(None), torch.device("cpu"))
        for read, made in ((keys, true.keys), (values, true.values)):
            assert torch.allclose(read, made, rtol=0, atol=1e-4), f"not what it should be: {shown}"

    def ask(
        self,
        asked_of: WatchedEngine,
        asked: Sequence[int],
        handles: Sequence[KVHandle],
        scopes: list[str] | None = None,
        selector: str = "none",
        corrected: bool = False,
    ) -> None:
        """Ask over these texts; the KV that stands in for one is that of a present chunk."""
        asked_of.served.clear()
        asked_of.missed.clear()
        answer = asked_of.engine.answer(
            question_prompt([TEXTS[number] for number in asked], "Who was there?"),
            AnswerSettings(
                selector=selector,
                ratio=0.1,
                max_tokens=1,
                handles=tuple(handles),
                scopes=None if scopes is None else tuple(scopes),
                corrected=corrected,
            ),
        )
        known = self.known(asked, handles, scopes)
        candidates = [chunk for choice in known for chunk in choice]
        for kv in asked_of.served:
            self.check_record(kv, candidates)
        if not self.untrue.intersection(chunk.document_id for chunk in candidates):
            assert not asked_of.missed, "what was indexed isn't served"

        placed = answer.fused_chunks + answer.isolated_chunks
        kinds = {kv.kind for kv in asked_of.served}
        assert kinds == {
            *(["fused"] if answer.fused_chunks else []),
            *(["isolated"] if answer.isolated_chunks else []),
        }
        assert bool(answer.missed_chunks) == bool(asked_of.missed)
        assert placed + answer.missed_chunks <= len(known)
        assert answer.missed_chunks or placed == len(known)
        assert answer.fused_chunks <= sum(any(map(self.can_fuse, choice)) for choice in known)
        if self.all_fused:  # then isolated KV serves only where it isn't known whose text it is
            behind = known[1:] if corrected else known  # or where nothing stands before it
            sure = sum(len(choice) == 1 and self.can_fuse(choice[0]) for choice in behind)
            assert answer.fused_chunks >= sure, "a fused chunk was served isolated"

        usage = answer.usage
        before = usage.prefix_tokens + usage.history_tokens
        found = usage.reused_tokens - before + usage.recomputed_tokens
        length = sum(len(tokens(TEXTS[choice[0].number])) for choice in known)
        assert found + usage.missed_tokens == length, "not the tokens of the known texts"
        assert before + found + usage.fresh_tokens == usage.prompt_tokens
        assert usage.missed_tokens <= usage.fresh_tokens

    def known(
        self, asked: Sequence[int], handles: Sequence[KVHandle], scopes: list[str] | None
    ) -> list[list[Expected]]:
        """For each text that is known: the chunk that a handle names, else all that have it."""
        chunks = {i: c for i, c in self.chunks().items() if scopes is None or c.scope in scopes}
        named = [chunks[handle.chunk_id] for handle in handles if handle.chunk_id in chunks]
        choices: list[list[Expected]] = []
        for number in asked:
            choice = [chunk for chunk in named if chunk.number == number][:1]
            for chunk in choice:
                named.remove(chunk)
            choices.append(choice or [c for c in chunks.values() if c.number == number])
        return [choice for choice in choices if choice]


class LiveCorpusOnChroma(LiveCorpus):
    """The same with the index that users have, in the store's directory."""

    def open(self) -> WatchedEngine:
        return WatchedEngine.open(self.path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("machine", "examples"),
    [(LiveCorpus, EXAMPLES), (LiveCorpusOnChroma, EXAMPLES_ON_CHROMA)],
    ids=["memory", "chroma"],
)
def test_a_corpus_that_lives(
    machine: type[LiveCorpus],
    examples: int,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("ERROR", "fusionrag_integrations")  # missing records are expected
    run_state_machine_as_test(
        lambda: machine(tmp_path),
        settings=settings(
            max_examples=examples,
            stateful_step_count=STEPS,
            deadline=None,
            derandomize=True,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        ),
    )
