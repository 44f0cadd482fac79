"""Requests that share passes: each gets what it would get alone, and ends alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusionrag_integrations import AnswerSettings, FusionEngine
from fusionrag_integrations.errors import InvalidInputError, KVCorruptError
from fusionrag_integrations.execution.executor import Executor
from fusionrag_integrations.selectors import selector_names
from fusionrag_integrations.serving.alone import AtOnce, answer_alone
from fusionrag_integrations.serving.passes import Limits
from fusionrag_integrations.serving.request import Request, Stage
from fusionrag_integrations.serving.scheduler import Scheduler, Step
from fusionrag_integrations.store.kv.disk_budget import Budgets
from tests.conftest import town

pytestmark = pytest.mark.usefixtures("beginnings_are_known")

TOWNS = 4
FEW = Limits(cost=64, cost_alone=64, requests=5)  # so that every prompt is cut


@pytest.fixture(scope="module", params=["no starts", "starts"])
def engine(
    request: pytest.FixtureRequest, model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FusionEngine]:
    """Without and with beginnings of prompts that are kept."""
    store = tmp_path_factory.mktemp("scheduler") / "store"
    budgets = Budgets(starts=1 << 24 if request.param == "starts" else 0)
    with FusionEngine.from_pretrained(
        model_dir, store=store, chunk_tokens=48, budgets=budgets
    ) as engine:
        engine.ingest([town(number) for number in range(TOWNS)])
        yield engine


def prompt_of(towns: Sequence[int], question: str = "Where is the fox?") -> str:
    return "\n\n".join([*(town(number).text for number in towns), question])


@dataclass(frozen=True)
class Asked:
    """A request of a mixture: it comes before a step, and is cancelled before another."""

    prompt: str
    settings: AnswerSettings
    comes: int = 0
    cancelled: int | None = None


class Mixture:
    """Requests that one scheduler computes, step by step."""

    def __init__(self, engine: FusionEngine, asked: Sequence[Asked], limits: Limits = FEW) -> None:
        self.engine = engine
        self.scheduler = Scheduler(engine.pipeline, limits, AtOnce())
        self.requests: dict[Asked, Request] = {}
        self.asked = asked
        self.steps = 0

    def step(self) -> bool:
        """One more; returns whether any follows."""
        for one in self.asked:
            if one.comes == self.steps and one not in self.requests:
                self.requests[one] = self.engine.pipeline.request(one.prompt, one.settings)
                self.scheduler.add(self.requests[one])
            if one.cancelled == self.steps and one in self.requests:
                self.requests[one].cancelled = True
        self.scheduler.step()
        self.steps += 1
        return not self.scheduler.idle or any(one not in self.requests for one in self.asked)

    def run(self) -> dict[Asked, Request]:
        while self.step():
            assert self.steps < 2000, "it doesn't end"
        return self.requests


def read(request: Request) -> str:
    pieces = []
    while (piece := request.pieces.get()) is not None:
        pieces.append(piece)
    return "".join(pieces)


settings_of_requests = st.builds(
    AnswerSettings,
    kv=st.sampled_from(["fused", "isolated", "none"]),
    corrected=st.booleans(),
    selector=st.sampled_from(selector_names()),
    ratio=st.sampled_from([0.0, 0.15, 0.6, 1.0]),
    scopes=st.sampled_from([None, (), ("",)]),
    max_tokens=st.integers(1, 12),
    stop=st.sampled_from([(), ("e",), ("\n", "th")]),
    temperature=st.sampled_from([0.0, 0.0, 0.7]),
    seed=st.integers(0, 5),
    repetition_penalty=st.sampled_from([None, 1.3]),
)
requests = st.builds(
    Asked,
    prompt=st.builds(
        prompt_of,
        st.lists(st.integers(0, TOWNS - 1), max_size=3, unique=True),
        st.sampled_from(["Where is the fox?", "How many houses are there, and why? " * 9]),
    ),
    settings=settings_of_requests,
    comes=st.integers(0, 12),
    cancelled=st.sampled_from([None, None, 3, 9, 14]),
)


@settings(max_examples=25, deadline=None)
@given(asked=st.lists(requests, min_size=2, max_size=8, unique=True))
def test_together_each_gets_what_it_would_get_alone(
    engine: FusionEngine, asked: list[Asked]
) -> None:
    for one, request in Mixture(engine, asked).run().items():
        text = read(request)
        alone = answer_alone(engine.pipeline, one.prompt, one.settings)
        if request.answer is None:
            assert one.cancelled is not None
            assert alone.text.startswith(text)
            continue
        assert request.answer.token_ids == alone.token_ids
        assert text == request.answer.text == alone.text
        if not engine.pipeline.starts.nbytes:
            assert request.answer.usage == alone.usage
    assert engine.kv.in_use() == 0


THREE = [prompt_of([number], f"Where is house {number}?") for number in range(3)]
SHORT = AnswerSettings(max_tokens=6)


def passes(engine: FusionEngine, monkeypatch: pytest.MonkeyPatch) -> list[list[Any]]:
    """The inputs of every pass from now on."""
    seen: list[list[Any]] = []
    run = Executor.run

    def watched(executor: Executor, inputs: Sequence[Any]) -> Any:
        seen.append(list(inputs))
        return run(executor, inputs)

    monkeypatch.setattr(Executor, "run", watched)
    return seen


def test_probes_prefills_and_decodes_share_passes(
    engine: FusionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = []
    for prompt in THREE:
        seen = passes(engine, monkeypatch)
        answer_alone(engine.pipeline, prompt, SHORT)
        alone.append(len(seen))
        monkeypatch.undo()
    seen = passes(engine, monkeypatch)
    wide = Limits(cost=4096, cost_alone=4096, requests=8)
    Mixture(engine, [Asked(prompt, SHORT) for prompt in THREE], wide).run()
    assert len(seen) == max(alone)
    assert all(len(inputs) == 3 for inputs in seen)


def test_a_long_prompt_is_cut_so_that_others_go_on(
    engine: FusionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What decodes gets its token in every pass."""
    decoding = Asked(THREE[0], AnswerSettings(max_tokens=12))
    for kv in ("none", "fused"):
        long = Asked(
            prompt_of([1, 2, 3], "Why? " * 60), SHORT.changed({"kv": kv, "ratio": 1.0}), comes=3
        )
        seen = passes(engine, monkeypatch)
        mixture = Mixture(engine, [decoding, long])
        counts = []
        while mixture.step():
            if mixture.requests[decoding].stage is Stage.DECODE:
                counts.append(len(mixture.requests[decoding].output.token_ids))
        assert counts[-8:] == list(range(counts[-8], counts[-8] + 8))
        assert max(sum(len(one.token_ids) for one in inputs) for inputs in seen) <= FEW.cost + 48
        monkeypatch.undo()


def test_rows_of_long_prompts_cost_more(
    engine: FusionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that their passes take no longer than those of others, and others wait no longer."""
    prompt = prompt_of([1, 2, 3], "Why? " * 60)
    tokens = engine.count_tokens(prompt)
    for keys, most in ((inf, 256), (tokens, 128), (tokens / 3, 64)):
        limits = Limits(cost=512, cost_alone=256, requests=1, keys_of_a_row=keys)
        seen = passes(engine, monkeypatch)
        Mixture(engine, [Asked(prompt, SHORT.changed({"kv": "none"}))], limits).run()
        longest = max(len(one.token_ids) for inputs in seen for one in inputs)
        assert most - 2 <= longest <= most
        monkeypatch.undo()


@pytest.mark.parametrize("kv", ["none", "fused"])
def test_a_short_question_overtakes_a_long_one(engine: FusionEngine, kv: str) -> None:
    """With or without a known beginning, which nothing has to be read for."""
    answer_alone(engine.pipeline, "Who is it?", SHORT)
    long = Asked(prompt_of([0, 1, 2, 3], "Why? " * 60), SHORT.changed({"kv": "none"}))
    short = Asked("Who?", SHORT.changed({"kv": kv}), comes=2)
    mixture = Mixture(engine, [long, short])
    while mixture.step():
        if short in mixture.requests and mixture.requests[short].stage is Stage.DECODE:
            break
    assert mixture.steps == short.comes + 1
    assert mixture.requests[long].work is not None  # and it goes on
    mixture.run()


class Held(AtOnce):
    """A background that ends nothing for a while."""

    def __init__(self) -> None:
        super().__init__()
        self.holds = False

    def finished(self) -> Sequence[tuple[Request, Exception | None]]:
        return () if self.holds else super().finished()


def test_passes_are_brief_while_somebody_is_on_the_way(
    engine: FusionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    background, limits = Held(), Limits(cost=512, cost_alone=256, requests=8)
    scheduler = Scheduler(engine.pipeline, limits, background)
    seen = passes(engine, monkeypatch)

    def add(prompt: str) -> Request:
        request = engine.pipeline.request(prompt, SHORT.changed({"kv": "none"}))
        scheduler.add(request)
        return request

    def rows_of_next() -> int:
        scheduler.step()
        return sum(len(one.token_ids) for one in seen[-1])

    long = add(prompt_of([0, 1, 2, 3], "Why? " * 60))
    scheduler.step()
    assert rows_of_next() == 256
    background.holds = True
    other = add("Who?")
    assert rows_of_next() == 128
    background.holds = False
    while not scheduler.idle:
        scheduler.step()
    assert long.answer is not None
    assert other.answer is not None


class Late(AtOnce):
    """A background whose steps end only while somebody waits for them."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[int] = []

    def wait(self, count: int, seconds: float) -> None:
        self.waits.append(count)

    def finished(self) -> Sequence[tuple[Request, Exception | None]]:
        return super().finished() if self.waits else ()


def test_a_pass_is_put_off_once_for_who_is_being_prepared(
    engine: FusionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    background = Late()
    scheduler = Scheduler(engine.pipeline, FEW, background)
    settings = SHORT.changed({"kv": "none"})

    def add(prompt: str) -> None:
        scheduler.add(engine.pipeline.request(prompt, settings))

    background.waits = [0]  # nobody is at work who would have to be put off
    add(THREE[0])
    scheduler.step()
    assert background.waits == [0]
    background.waits = []
    seen = passes(engine, monkeypatch)
    add("Who?")
    add("Where?")
    scheduler.step()
    assert background.waits == [2]
    assert len(seen[-1]) == 3
    while not scheduler.idle:
        scheduler.step()
    assert background.waits == [2]


def test_only_what_a_disk_is_waited_for_is_read_in_the_background(
    model_dir: Path, tmp_path: Path
) -> None:
    class Noting(AtOnce):
        def start(self, request: Request, step: Step) -> None:
            started.append(step.__name__)
            super().start(request, step)

    def read_in_background(prompt: str, **changes: Any) -> bool:
        started.clear()
        scheduler = Scheduler(engine.pipeline, FEW, Noting())
        scheduler.add(engine.pipeline.request(prompt, SHORT.changed(changes)))
        while not scheduler.idle:
            scheduler.step()
        return "read" in started

    started: list[str] = []
    store = tmp_path / "store"
    with FusionEngine.from_pretrained(model_dir, store=store, chunk_tokens=48) as engine:
        engine.ingest([town(number) for number in range(TOWNS)])
    with FusionEngine.from_pretrained(model_dir, store=store) as engine:
        assert read_in_background(prompt_of([0, 1]))
        assert not read_in_background(prompt_of([0, 1], "Who is it?"))
        assert read_in_background(prompt_of([0, 1]), kv="isolated")  # other records
        assert read_in_background(prompt_of([1, 2]))
        assert not read_in_background("Who?")


def test_who_came_first_is_let_in_first_and_none_starves(engine: FusionEngine) -> None:
    """Room for one long request: short ones behind it wait, and so does it for those before."""
    one = 700 * engine.model.kv_bytes
    limits = Limits(cost=64, cost_alone=64, requests=8, kv_bytes=one)
    asked = [Asked(THREE[0], SHORT), Asked(prompt_of([0, 1, 2, 3]), SHORT)]
    asked += [Asked(prompt, SHORT.changed({"max_tokens": 5})) for prompt in THREE]
    mixture = Mixture(engine, asked, limits)
    ends: list[int] = []
    while mixture.step():
        held = [r.capacity for r in mixture.requests.values() if hasattr(r, "output")]
        assert len(held) < 2 or sum(held) <= 700
        ends += [
            number
            for number, request in enumerate(mixture.requests.values())
            if request.answer is not None and number not in ends
        ]
    assert ends[:2] == [0, 1]


def test_more_than_the_room_is_let_in_alone(engine: FusionEngine) -> None:
    tight = Limits(cost=64, cost_alone=64, requests=8, kv_bytes=1)
    answers = Mixture(engine, [Asked(prompt, SHORT) for prompt in THREE], tight).run()
    assert all(request.answer is not None for request in answers.values())


@pytest.mark.parametrize("at", ["prepare", "read", "place", "select", "decode"])
def test_one_that_fails_ends_alone(
    engine: FusionEngine, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    step = getattr(engine.pipeline, at)

    def failing(request: Request, *arguments: Any) -> None:
        if request.prompt == THREE[1]:
            raise InvalidInputError("It fails here.")
        step(request, *arguments)

    monkeypatch.setattr(engine.pipeline, at, failing)
    asked = [Asked(prompt, SHORT) for prompt in THREE]
    requests = Mixture(engine, asked).run()
    monkeypatch.undo()
    with pytest.raises(InvalidInputError, match="fails here"):
        read(requests[asked[1]])
    for one in (asked[0], asked[2]):
        answer = requests[one].answer
        assert answer is not None
        assert answer.token_ids == answer_alone(engine.pipeline, one.prompt, SHORT).token_ids
    assert engine.kv.in_use() == 0


@pytest.mark.parametrize("error", [KVCorruptError("It is damaged."), MemoryError("No room.")])
@pytest.mark.parametrize("which", range(8))
def test_a_pass_that_fails_costs_others_nothing(
    engine: FusionEngine, monkeypatch: pytest.MonkeyPatch, error: Exception, which: int
) -> None:
    """It may have written some layers of everybody's KV by then."""
    run, count = Executor.run, 0

    def failing(executor: Executor, inputs: Sequence[Any]) -> Any:
        nonlocal count
        count += 1
        outputs = run(executor, inputs)
        if count == which + 1:
            raise error
        return outputs

    asked = [Asked(prompt, SHORT, comes=number) for number, prompt in enumerate(THREE)]
    expected = [answer_alone(engine.pipeline, one.prompt, one.settings).token_ids for one in asked]
    monkeypatch.setattr(Executor, "run", failing)
    requests = Mixture(engine, asked).run()
    for one, token_ids in zip(asked, expected, strict=True):
        answer = requests[one].answer
        if answer is None:  # it was alone in that pass
            with pytest.raises(type(error)):
                read(requests[one])
        else:
            assert answer.token_ids == token_ids
    assert sum(request.answer is not None for request in requests.values()) >= 2
    assert engine.kv.in_use() == 0
