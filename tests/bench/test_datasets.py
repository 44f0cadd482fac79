"""Each published format, as its authors lay it out, in a few hand-written rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from fusionrag_integrations.bench.datasets import (
    DATASET_NAMES,
    EVIDENCE_WORDS,
    QADataset,
    load_dataset,
)
from fusionrag_integrations.errors import InvalidInputError

FIXTURE = Path(__file__).parents[1] / "data" / "hotpotqa_5.jsonl"
LONVALE = ["Lonvale", ["Lonvale is a town.", " It lies on the Tolen."]]
BRASK = ["Brask Works", ["The Brask Works make bells."]]


def hotpotqa(identity: str = "5a8b57f2", **changes: Any) -> dict[str, Any]:
    return {
        "_id": identity,
        "answer": "the Tolen",
        "question": "Which river passes the town of the Brask Works?",
        "supporting_facts": [["Lonvale", 1]],
        "context": [BRASK, LONVALE],
        "type": "bridge",
        "level": "hard",
    } | changes


def two_wiki(**changes: Any) -> dict[str, Any]:
    row = hotpotqa("8813f87c", type="compositional") | {
        "evidences": [["Lonvale", "river", "Tolen"]],
        "entity_ids": "Q1_Q2",
        "context": [["Lonvale", ["Lonvale is a town.", "It lies on the Tolen."]], BRASK],
    }
    del row["level"]
    return row | changes


def musique(identity: str = "3hop1__13548_13529_2", **changes: Any) -> dict[str, Any]:
    return {
        "id": identity,
        "paragraphs": [
            {
                "idx": 0,
                "title": "Lonvale",
                "paragraph_text": "Lonvale is a town.",
                "is_supporting": True,
            },
            {
                "idx": 1,
                "title": "Lonvale",
                "paragraph_text": "Lonvale is also a ship.",
                "is_supporting": False,
            },
        ],
        "question": "What is Lonvale?",
        "question_decomposition": [
            {"id": 1, "question": "?", "answer": "a town", "paragraph_support_idx": 0}
        ],
        "answer": "a town",
        "answer_aliases": ["town", "a town"],
        "answerable": True,
    } | changes


def triviaqa(**changes: Any) -> dict[str, Any]:
    return {
        "Answer": {
            "Aliases": ["Sunset Blvd", "Sunset Boulevard"],
            "MatchedWikiEntityName": "Sunset Boulevard",
            "NormalizedAliases": ["sunset blvd", "sunset boulevard"],
            "NormalizedValue": "sunset boulevard",
            "Type": "WikipediaEntity",
            "Value": "Sunset Boulevard",
        },
        "EntityPages": [{"DocSource": "TagMe", "Filename": "Lloyd.txt", "Title": "Lloyd"}],
        "Question": "Which musical opened in 1993?",
        "QuestionId": "tc_33",
        "QuestionSource": "http://www.triviacountry.com/",
        "SearchResults": [
            {
                "Description": "...",
                "DisplayUrl": "www.example.org",
                "Filename": "35/35_995.txt",
                "Rank": 0,
                "Title": "Lloyd | The official site",
                "Url": "http://www.example.org/",
            }
        ],
    } | changes


def trivia_tree(root: Path, page: str = "Wrote musicals.\n\nAnd  more.") -> Path:
    """The published directories: qa/, evidence/wikipedia/ and evidence/web/<number>/."""
    path = root / "qa" / "web-dev.json"
    for file, text in (
        (path, json.dumps({"Data": [triviaqa()], "Domain": "Web", "Version": 1.0})),
        (root / "evidence" / "wikipedia" / "Lloyd.txt", page),
        (root / "evidence" / "web" / "35" / "35_995.txt", "The official site."),
    ):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return path


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """As a list in .json, and a row a line in .jsonl."""
    lines = path.suffix == ".jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n" if lines else json.dumps(rows))
    return path


def texts(dataset: QADataset, item: int = 0) -> list[tuple[str, str]]:
    documents = {document.id: document for document in dataset.documents}
    return [(documents[i].title, documents[i].text) for i in dataset.items[item].context]


def test_hotpotqa(tmp_path: Path) -> None:
    dataset = load_dataset("hotpotqa", write(tmp_path / "dev.json", [hotpotqa()]), None, 0)
    (item,) = dataset.items
    assert (dataset.name, item.id, item.kind) == ("hotpotqa", "5a8b57f2", "bridge")
    assert item.question == "Which river passes the town of the Brask Works?"
    assert item.answers == ("the Tolen",)
    assert texts(dataset) == [
        ("Brask Works", "The Brask Works make bells."),
        ("Lonvale", "Lonvale is a town. It lies on the Tolen."),
    ]


def test_2wiki_sentences_come_without_spaces(tmp_path: Path) -> None:
    dataset = load_dataset("2wiki", write(tmp_path / "dev.json", [two_wiki()]), None, 0)
    assert dataset.items[0].kind == "compositional"
    assert texts(dataset)[0] == ("Lonvale", "Lonvale is a town. It lies on the Tolen.")


def test_musique(tmp_path: Path) -> None:
    rows = [musique(), musique(answerable=False), musique("2hop__1_2")]
    dataset = load_dataset("musique", write(tmp_path / "dev.jsonl", rows), None, 0)
    assert [item.kind for item in dataset.items] == ["3hop", "2hop"]  # the twin is left out
    assert dataset.items[0].answers == ("a town", "town")
    assert texts(dataset) == [
        ("Lonvale", "Lonvale is a town."),
        ("Lonvale", "Lonvale is also a ship."),
    ]


def test_triviaqa_reads_the_evidence_beside_its_directory(tmp_path: Path) -> None:
    dataset = load_dataset("triviaqa", trivia_tree(tmp_path), None, 0)
    (item,) = dataset.items
    assert (item.id, item.kind) == ("tc_33", "triviaqa")
    assert item.answers == ("Sunset Boulevard", "Sunset Blvd", "sunset blvd", "sunset boulevard")
    assert texts(dataset) == [
        ("Lloyd", "Wrote musicals.\n\nAnd  more."),
        ("Lloyd | The official site", "The official site."),
    ]


def test_triviaqa_keeps_the_first_words(tmp_path: Path) -> None:
    words = [f"w{i}" for i in range(EVIDENCE_WORDS + 5)]
    dataset = load_dataset("triviaqa", trivia_tree(tmp_path, "\n".join(words)), None, 0)
    assert texts(dataset)[0][1] == "\n".join(words[:EVIDENCE_WORDS])


def test_jsonl() -> None:
    rows = [json.loads(line) for line in FIXTURE.read_text().splitlines()]
    dataset = load_dataset("jsonl", FIXTURE, None, 0)
    assert [item.id for item in dataset.items] == [row["id"] for row in rows]
    assert {item.kind for item in dataset.items} == {"jsonl"}
    assert dataset.items[0].answers == tuple(rows[0]["answers"])
    assert texts(dataset) == [(p["title"], p["text"]) for p in rows[0]["passages"]]


def test_shared_repeated_and_blank_paragraphs(tmp_path: Path) -> None:
    rows = [
        hotpotqa("a", context=[LONVALE, BRASK, ["Blank", [" "]], LONVALE]),
        hotpotqa("b", context=[BRASK, ["Lonvale", ["Lonvale is a ship."]]]),
    ]
    dataset = load_dataset("hotpotqa", write(tmp_path / "dev.json", rows), None, 0)
    first, second = (item.context for item in dataset.items)
    titles = [document.title for document in dataset.documents]
    assert titles == ["Lonvale", "Brask Works", "Lonvale"]
    assert len(first) == 2
    assert first[1] == second[0]
    assert first[0] != second[1]  # another text under the same title


def test_ids_depend_on_title_and_text_alone(tmp_path: Path) -> None:
    alone = write(tmp_path / "alone.json", [hotpotqa(context=[LONVALE])])
    among = write(tmp_path / "among.json", [hotpotqa("x", context=[BRASK, LONVALE])])
    (document,) = load_dataset("hotpotqa", alone, None, 0).documents
    assert document in load_dataset("hotpotqa", among, None, 0).documents


def test_limit_draws_by_seed_in_the_file_s_order(tmp_path: Path) -> None:
    path = write(tmp_path / "dev.json", [hotpotqa(f"{i:03}") for i in range(50)])

    def drawn(limit: int | None, seed: int) -> list[str]:
        return [item.id for item in load_dataset("hotpotqa", path, limit, seed).items]

    assert drawn(10, 1) == drawn(10, 1) == sorted(set(drawn(10, 1)))
    assert len(drawn(10, 1)) == 10
    assert drawn(10, 1) != drawn(10, 2)
    assert drawn(50, 1) == drawn(500, 1) == drawn(None, 1)
    assert len(drawn(None, 1)) == 50


def test_only_what_is_drawn_is_ingested(tmp_path: Path) -> None:
    rows = [hotpotqa(str(i), context=[[f"T{i}", [f"Text {i}."]]]) for i in range(9)]
    dataset = load_dataset("hotpotqa", write(tmp_path / "dev.json", rows), 3, 0)
    assert [d.id for d in dataset.documents] == [i for item in dataset.items for i in item.context]


ROWS: dict[str, Callable[[], dict[str, Any]]] = {
    "hotpotqa": hotpotqa,
    "2wiki": two_wiki,
    "musique": musique,
    "triviaqa": triviaqa,
    "jsonl": lambda: json.loads(FIXTURE.read_text().splitlines()[0]),
}


@pytest.mark.parametrize(("given", "named"), permutations(DATASET_NAMES, 2))
@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_another_format_is_named(tmp_path: Path, given: str, named: str, ending: str) -> None:
    path = write(tmp_path / f"dev.{ending}", [ROWS[given](), ROWS[given]()])
    with pytest.raises(InvalidInputError, match=r"dev\.jsonl? .*expected"):
        load_dataset(named, path, None, 0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("hotpotqa", "[", "isn't JSON"),
        ("hotpotqa", r'["\ud800"]', "isn't JSON .*hex escape"),
        ("hotpotqa", "3", "holds 3; expected a list"),
        ("hotpotqa", "{}", "holds {}; expected a list"),
        ("hotpotqa", "[]", "holds no questions"),
        ("musique", "\n", "holds no questions"),
        ("musique", json.dumps(musique(answerable=False)), "holds no questions"),
        ("musique", json.dumps(musique()) + "\n{", "Line 2 of .* isn't JSON"),
        ("musique", json.dumps(musique("nohop")), "row 1, id: String should match"),
        ("hotpotqa", json.dumps([hotpotqa(), hotpotqa(answer="")]), "row 2, answer: .* found ''"),
        ("hotpotqa", json.dumps([hotpotqa(context=[["T"]])]), "row 1, context.0.1: Field required"),
        ("hotpotqa", json.dumps([hotpotqa(context=[])]), "'5a8b57f2' has no text"),
        ("hotpotqa", json.dumps([hotpotqa(context=[["T", [""]]])]), "'5a8b57f2' has no text"),
        ("triviaqa", json.dumps({"Data": [triviaqa()]}), "evidence isn't a directory; expected"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: str, message: str) -> None:
    path = tmp_path / "qa" / "dev.json"
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(InvalidInputError, match=message) as caught:
        load_dataset(name, path, None, 0)
    assert str(path) in str(caught.value)


def test_hidden_answers(tmp_path: Path) -> None:
    row = musique()
    del row["answer"]
    path = write(tmp_path / "test.jsonl", [row])
    with pytest.raises(InvalidInputError, match="row 1, answer: Field required"):
        load_dataset("musique", path, None, 0)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"none\.json can't be read"):
        load_dataset("hotpotqa", tmp_path / "none.json", None, 0)
    (tmp_path / "latin.json").write_bytes("é".encode("latin-1"))
    with pytest.raises(InvalidInputError, match=r"latin\.json isn't UTF-8"):
        load_dataset("hotpotqa", tmp_path / "latin.json", None, 0)
    path = trivia_tree(tmp_path)
    (tmp_path / "evidence" / "wikipedia" / "Lloyd.txt").unlink()
    with pytest.raises(InvalidInputError, match=r"Lloyd\.txt can't be read"):
        load_dataset("triviaqa", path, None, 0)


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="Unknown dataset 'squad'; known are hotpotqa"):
        load_dataset("squad", tmp_path, None, 0)
    with pytest.raises(InvalidInputError, match="limit is 0"):
        load_dataset("hotpotqa", tmp_path, 0, 0)
