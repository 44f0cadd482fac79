"""AnswerStream: read in a loop or an event loop, to its end or not, and closed by anyone."""

from __future__ import annotations

import asyncio
import gc
import signal
import threading
import time
from contextlib import closing

import pytest

from fusionrag_integrations import Answer, AnswerSettings, AnswerStream, FusionEngine
from fusionrag_integrations.errors import FusionRAGError
from fusionrag_integrations.execution.buffer import KVBuffer
from fusionrag_integrations.serving.loading import LoadedPrompt
from tests.conftest import all_records, town
from tests.processes import quick_collection
from tests.steps import PATIENCE, Steps, kv_in_use, until_kv_is_free, wait_until_kv_is_free

LONG = AnswerSettings(max_tokens=40)
MEMORY = KVBuffer, LoadedPrompt  # what holds a prompt's KV
FINE = 10  # tests of what is chance run so often


@pytest.fixture(scope="module")
def engine(model_dir: object, tmp_path_factory: pytest.TempPathFactory) -> FusionEngine:
    store = tmp_path_factory.mktemp("streams") / "store"
    engine = FusionEngine.from_pretrained(str(model_dir), store=store, chunk_tokens=48)
    engine.ingest([town(0)])
    return engine


@pytest.fixture(scope="module")
def prompt(engine: FusionEngine) -> str:
    texts = [record.chunk.text for record in all_records(engine.store.catalog)]
    return "\n\n".join([*texts, "Where is house 1?"])


@pytest.fixture(scope="module")
def expected(engine: FusionEngine, prompt: str) -> Answer:
    return engine.answer(prompt, LONG)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    return Steps(monkeypatch)


def in_memory() -> set[type]:
    """The kinds of what holds a prompt's KV."""
    gc.collect()
    return {kind for kind in map(type, gc.get_objects()) if kind in MEMORY}


def check(answer: Answer, expected: Answer) -> None:
    assert (answer.text, answer.usage) == (expected.text, expected.usage)


def test_it_is_read_piece_by_piece(engine: FusionEngine, prompt: str, expected: Answer) -> None:
    stream = engine.stream(prompt, LONG)
    pieces = list(stream)
    assert "" not in pieces
    assert len(pieces) > 2
    assert "".join(pieces) == expected.text
    check(stream.answer, expected)
    assert list(stream) == []


@pytest.mark.asyncio
async def test_and_in_an_event_loop(engine: FusionEngine, prompt: str, expected: Answer) -> None:
    stream = engine.stream(prompt, LONG)
    assert [piece async for piece in stream] == list(engine.stream(prompt, LONG))
    check(stream.answer, expected)
    check(await engine.stream(prompt, LONG).aread(), expected)


def test_kv_is_free_at_the_end_though_the_stream_is_kept(engine: FusionEngine, prompt: str) -> None:
    stream = engine.stream(prompt, LONG)
    next(stream)
    assert kv_in_use(engine) == 3
    stream.read()
    assert kv_in_use(engine) == 0


@pytest.mark.parametrize("end", ["read", "closed"])
def test_and_so_is_its_memory(engine: FusionEngine, prompt: str, end: str) -> None:
    """Whoever keeps streams keeps no tensors of the prompt, at the latest after a pass."""
    engine.answer(prompt, LONG)  # what all requests share is made now
    with quick_collection():
        streams = [engine.stream(prompt, LONG) for _ in range(3)]
        for stream in streams:
            if end == "read":
                stream.read()
            else:
                next(stream)
                stream.close()
        end_by = time.monotonic() + PATIENCE
        while in_memory() and time.monotonic() < end_by:
            time.sleep(0.01)
        assert not in_memory()


def test_a_prompts_own_copies_are_gone_while_it_is_decoded(
    engine: FusionEngine, prompt: str, steps: Steps
) -> None:
    steps.hold_at(3)
    with quick_collection(), closing(engine.stream(prompt, LONG)) as stream:
        next(stream)
        assert steps.is_held.wait(PATIENCE)
        kinds = in_memory()
        steps.go_on()
    assert kinds == {KVBuffer}


def test_closed_early_it_computes_nothing_more(
    engine: FusionEngine, prompt: str, steps: Steps
) -> None:
    steps.hold_at(3)
    with closing(engine.stream(prompt, LONG)) as stream:
        next(stream)
        assert steps.is_held.wait(PATIENCE)
    assert list(stream) == []
    steps.go_on()
    wait_until_kv_is_free(engine)
    stream.close()
    assert steps.count == 3
    with pytest.raises(FusionRAGError, match="read to the end"):
        _ = stream.answer
    with pytest.raises(FusionRAGError, match="read to the end"):
        stream.read()


def test_closed_before_it_began_it_does_nothing(
    engine: FusionEngine, prompt: str, steps: Steps
) -> None:
    stream = engine.stream(prompt, LONG)
    stream.close()
    assert list(stream) == []
    assert steps.count == 0


@pytest.mark.parametrize("held_at", [0, 3])
@pytest.mark.asyncio
async def test_closed_by_another_thread_it_ends_before_the_step_under_way_does(
    engine: FusionEngine, prompt: str, steps: Steps, held_at: int
) -> None:
    steps.hold_at(held_at)
    stream = engine.stream(prompt, LONG)
    pieces: list[str] = []
    reader = threading.Thread(target=lambda: pieces.extend(stream))
    reader.start()
    await steps.held()
    assert kv_in_use(engine) == 3
    stream.close()  # returns at once, or nobody would let the step go on
    await asyncio.to_thread(reader.join, PATIENCE)
    assert not reader.is_alive()
    assert len(pieces) <= held_at
    steps.go_on()
    await until_kv_is_free(engine)
    assert steps.count == held_at


def read_by_several(stream: AnswerStream, close_at: int | None = None) -> list[str]:
    """The pieces that eight threads read of one answer; one may close it once so many are read."""
    pieces: list[str] = []

    def read() -> None:
        for piece in stream:
            pieces.append(piece)
            if close_at is not None and len(pieces) >= close_at:
                stream.close()

    readers = [threading.Thread(target=read) for _ in range(8)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(PATIENCE)
        assert not reader.is_alive()
    return pieces


@pytest.mark.parametrize("attempt", range(FINE))  # which thread is next is chance
def test_several_threads_share_its_pieces(
    engine: FusionEngine, prompt: str, expected: Answer, attempt: int
) -> None:
    stream = engine.stream(prompt, LONG)
    pieces = read_by_several(stream)
    assert sorted("".join(pieces)) == sorted(expected.text)
    check(stream.answer, expected)


@pytest.mark.parametrize("attempt", range(FINE))
def test_closed_while_several_threads_read_it_none_goes_on(
    engine: FusionEngine, prompt: str, attempt: int
) -> None:
    stream = engine.stream(prompt, LONG)
    assert 3 <= len(read_by_several(stream, close_at=3)) <= 3 + 7  # the others had one in hand
    wait_until_kv_is_free(engine)


@pytest.mark.parametrize("way", ["pieces", "whole"])
@pytest.mark.parametrize("held_at", [0, 3])
@pytest.mark.asyncio
async def test_cancelled_it_ends_after_the_step_under_way(
    engine: FusionEngine, prompt: str, steps: Steps, way: str, held_at: int
) -> None:
    stream = engine.stream(prompt, LONG)

    async def pieces() -> None:
        async for _ in stream:
            pass

    steps.hold_at(held_at)
    task = asyncio.create_task(pieces() if way == "pieces" else stream.aread())
    await steps.held()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task  # at once, for the step is still held
    assert kv_in_use(engine) == 3
    steps.go_on()
    await until_kv_is_free(engine)
    assert steps.count == held_at


def test_it_goes_on_whether_it_is_read_or_not(
    engine: FusionEngine, prompt: str, expected: Answer
) -> None:
    stream = engine.stream(prompt, LONG)
    first = next(stream)
    wait_until_kv_is_free(engine)
    check(stream.answer, expected)
    assert first + "".join(stream) == expected.text


def test_but_work_begins_when_it_is_first_read(
    engine: FusionEngine, prompt: str, steps: Steps
) -> None:
    steps.hold_at(0)
    streams = [engine.stream(prompt, LONG) for _ in range(3)]
    assert not steps.is_held.wait(0.1)
    assert kv_in_use(engine) == 0
    steps.go_on()
    assert streams[1].read().text


def test_text_that_may_begin_a_stop_is_held_back(
    engine: FusionEngine, prompt: str, expected: Answer
) -> None:
    settings = LONG.changed({"stop": (expected.text + "?",)})
    assert list(engine.stream(prompt, settings)) == [expected.text]


def test_it_is_closed_between_tokens_that_give_no_text(
    engine: FusionEngine, prompt: str, expected: Answer, steps: Steps
) -> None:
    steps.hold_at(5)
    stream = engine.stream(prompt, LONG.changed({"stop": (expected.text + "?",)}))
    pieces: list[str] = []
    reader = threading.Thread(target=lambda: pieces.extend(stream))
    reader.start()
    assert steps.is_held.wait(PATIENCE)
    stream.close()
    reader.join(PATIENCE)
    assert not reader.is_alive()
    steps.go_on()
    wait_until_kv_is_free(engine)
    assert (pieces, steps.count) == ([], 5)


def test_dropped_it_computes_nothing_more(engine: FusionEngine, prompt: str, steps: Steps) -> None:
    steps.hold_at(3)
    stream = engine.stream(prompt, LONG)
    next(stream)
    assert steps.is_held.wait(PATIENCE)
    del stream
    gc.collect()
    steps.go_on()
    wait_until_kv_is_free(engine)
    assert steps.count == 3


def test_its_finalizer_waits_for_nobody(engine: FusionEngine, prompt: str, steps: Steps) -> None:
    """It runs wherever garbage is collected: in a thread, say, whose start another one awaits."""
    steps.hold_at(3)
    stream = engine.stream(prompt, LONG)
    next(stream)
    assert steps.is_held.wait(PATIENCE)
    held = [stream]
    collecting = threading.Thread(target=held.clear)
    del stream
    with engine.serving._changed:
        collecting.start()
        collecting.join(PATIENCE)
        assert not collecting.is_alive()
    steps.go_on()
    wait_until_kv_is_free(engine)
    assert steps.count == 3


def test_an_interrupted_reader_ends_it(engine: FusionEngine, prompt: str, steps: Steps) -> None:
    steps.hold_at(3)
    stream = engine.stream(prompt, LONG)

    def interrupt() -> None:
        assert steps.is_held.wait(PATIENCE)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    interrupting = threading.Thread(target=interrupt)
    interrupting.start()
    with pytest.raises(KeyboardInterrupt):
        stream.read()
    interrupting.join(PATIENCE)
    assert list(stream) == []
    steps.go_on()
    wait_until_kv_is_free(engine)
    assert steps.count == 3


def test_an_error_comes_through_and_ends_it(engine: FusionEngine) -> None:
    stream = engine.stream(" ")
    with pytest.raises(FusionRAGError, match="is empty"):
        next(stream)
    assert list(stream) == []
