"""Prompts of topics, invented and real."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.scale.prompts import InventedTopics, Prompt, RealPrompts
from benchmarks.scale.questions import CHOSEN_ON, as_prompts, overlap, read_questions
from fusionrag_integrations.errors import InvalidInputError


def test_own_share_and_popularity_are_as_asked() -> None:
    topics = InventedTopics(topics=50, own_share=0.7)
    own: list[float] = []
    first: Counter[str] = Counter()
    for prompt in topics.drawn(4_000, 0):
        of = Counter(chunk.split("/")[0] for chunk in prompt.chunks)
        assert of.total() == len(prompt.chunks) == 5
        first[of.most_common(1)[0][0]] += 1
        own.append(of.most_common(1)[0][1] / 5)
    assert sum(own) / len(own) == pytest.approx(0.7, abs=0.03)
    assert first["0"] / first["9"] == pytest.approx(10**0.8, rel=0.35)


@pytest.mark.parametrize("given", [{"retrieved": 30}, {"own_share": 1.5}, {"retrieved": 0}])
def test_impossible_topics(given: dict[str, float]) -> None:
    with pytest.raises(InvalidInputError, match="There are no such topics"):
        InventedTopics(**given)  # type: ignore[arg-type]


def test_real_prompts_are_drawn_from_all_topics() -> None:
    prompts = [[Prompt({str(n): 10, "all": 5}, 1, 1)] for n in range(4)]
    real = RealPrompts(prompts)
    assert real.tokens == 45
    drawn = Counter(next(iter(prompt.chunks)) for prompt in real.drawn(2_000, 0))
    assert drawn.keys() == set("0123")
    assert max(drawn.values()) > 2 * min(drawn.values())


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """Two questions about each of some towns, behind those that choices were made on."""

    def row(number: int, town: int) -> str:
        passages = [
            {"title": f"Town{town}", "text": f"Town{town} has {what}{town}.", "supporting": True}
            for what in ("bridge", "market", "tower", "harbour", "castle")
        ]
        question = f"What has Town{town}, bridge{town} or tower{town}?"
        return json.dumps({"id": str(number), "question": question, "passages": passages})

    path = tmp_path / "towns.jsonl"
    rows = [row(n, n // 2) for n in range(CHOSEN_ON + 12)]
    path.write_text("\n".join(rows) + "\n")
    return path


def test_what_is_found_for_real_questions(questions: Path) -> None:
    asked = read_questions(questions)
    found = overlap(asked)
    assert (found.questions, found.topics, found.passages) == (12, 6, 30)
    assert found.own > 0.8  # hashed words collide
    assert found.same_topic == 1.0
    assert found.other_topic == 0.0
    prompts = as_prompts(asked)
    assert [len(topic) for topic in prompts.by_topic] == [2] * 6
    assert all(len(prompt.chunks) == 5 for topic in prompts.by_topic for prompt in topic)
