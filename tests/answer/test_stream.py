"""AnswerStream: read in a loop or an event loop, to its end or not, and closed by anyone."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from fusionrag_integrations import Answer, AnswerSettings, FusionEngine
from fusionrag_integrations.errors import FusionRAGError
from fusionrag_integrations.execution.buffer import KVBuffer
from fusionrag_integrations.serving.loading import LoadedPrompt
from tests.conftest import all_records, town
from tests.processes import quick_collection
from tests.steps import PATIENCE, Steps, kv_in_use, scripted_stream, until_kv_is_free

LONG = AnswerSettings(max_tokens=40)
MEMORY = KVBuffer, LoadedPrompt  # what holds a prompt's KV


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
    """Whoever keeps streams keeps no tensors of the prompt."""
    engine.answer(prompt, LONG)  # what all requests share is made now
    with quick_collection():
        streams = [engine.stream(prompt, LONG) for _ in range(3)]
        for stream in streams:
            if end == "read":
                stream.read()
            else:
                next(stream)
                stream.close()
        gc.collect()
        assert [kind for kind in map(type, gc.get_objects()) if kind in MEMORY] == []


def test_a_prompts_own_copies_are_gone_while_it_is_decoded(
    engine: FusionEngine, prompt: str
) -> None:
    with quick_collection(), closing(engine.stream(prompt, LONG)) as stream:
        next(stream)
        gc.collect()
        assert [kind for kind in map(type, gc.get_objects()) if kind is LoadedPrompt] == []


def test_closed_early_it_computes_nothing_more(
    engine: FusionEngine, prompt: str, steps: Steps
) -> None:
    with closing(engine.stream(prompt, LONG)) as stream:
        next(stream)
    done = steps.count
    assert kv_in_use(engine) == 0
    assert list(stream) == []
    stream.close()
    assert steps.count == done < 10
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
async def test_closed_by_another_thread_it_ends_after_the_step_under_way(
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
    steps.go_on()
    await asyncio.to_thread(reader.join, PATIENCE)
    assert not reader.is_alive()
    assert steps.count == held_at
    assert kv_in_use(engine) == 0
    assert len(pieces) <= held_at


@pytest.mark.parametrize("attempt", range(50))  # which thread is next is chance
def test_closed_while_several_threads_read_it_none_goes_on(attempt: int) -> None:
    begun: list[int] = []

    def pieces() -> Iterator[str]:
        for count in range(100):
            begun.append(count)
            if count == 8:
                stream.close()
            time.sleep(0.0005)
            yield "a"

    stream = scripted_stream(pieces())
    readers = [threading.Thread(target=list, args=(stream,)) for _ in range(8)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(PATIENCE)
    assert max(begun) == 8


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


def test_tokens_without_a_piece_are_passed_over_and_end_it_too() -> None:
    done: list[int] = []

    def events() -> Iterator[str]:
        for number in range(100):
            done.append(number)
            if number == 5:
                stream.close()  # as another thread would, which finds it at work
            yield "x" if number == 2 else ""

    stream = scripted_stream(events())
    assert list(stream) == ["x"]
    assert done == list(range(6))


def test_an_engine_gives_an_event_before_the_prompt_and_one_a_token(
    engine: FusionEngine, prompt: str, expected: Answer, steps: Steps
) -> None:
    """So that it may be closed there, even while text is held back that may begin a stop."""
    settings = LONG.changed({"stop": (expected.text + "?",)})
    request = engine.pipeline.request(prompt, settings)
    pieces: list[str] = []
    while not request.done:
        pieces.append(engine.pipeline.step(request))
    before = ["prepare", "load", "select", "recompute"]
    assert pieces[:-1] == [""] * (len(before) + LONG.max_tokens - 1)
    assert request.answer is not None
    assert pieces[-1] == request.answer.text == expected.text


def test_an_error_comes_through_and_ends_it(engine: FusionEngine) -> None:
    stream = engine.stream(" ")
    with pytest.raises(FusionRAGError, match="is empty"):
        next(stream)
    assert list(stream) == []
