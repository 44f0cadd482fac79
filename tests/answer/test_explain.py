"""What became of a prompt's tokens, why, and the page that shows it."""

from __future__ import annotations

import json
import stat
from dataclasses import fields, replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fusionrag_integrations import Answer, AnswerSettings, Document, FusionEngine
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.serving.answer import Explanation, PromptTrace
from fusionrag_integrations.serving.usage import TTFTBreakdown, Usage
from tests.conftest import all_records, town

HALF = AnswerSettings(selector="random", ratio=0.5, max_tokens=4)


class Page(HTMLParser):
    """A page's texts by the element that holds them, and what it would fetch."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[tuple[str, dict[str, str | None]]] = []
        self.marked: list[str] = []
        self.passages = ""
        self.chunks: list[dict[str, str | None]] = []
        self.bars: list[float] = []
        self.text = ""
        self.fetched: list[str] = []
        self.feed(page)
        self.close()
        assert [tag for tag, _ in self.open] == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.fetched += [str(found[name]) for name in ("src", "href") if name in found]
        self.fetched += ["script"] * (tag == "script")
        if tag not in ("meta", "link"):
            self.open.append((tag, found))
        if tag == "article":
            self.chunks.append(found)
        if "style" in found:
            self.bars.append(float(str(found["style"]).removeprefix("width: ").removesuffix("%")))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if any(tag == "p" and found.get("class") == "passage" for tag, found in self.open):
            in_answer = any(found.get("id") == "answer" for _, found in self.open)
            self.passages += "" if in_answer else data
            if self.open[-1][0] == "mark":
                self.marked.append(data)


def test_every_part_of_the_time_has_a_colour(engine: FusionEngine) -> None:
    html = engine.answer("How?", AnswerSettings(max_tokens=1)).explain().html
    for part in fields(TTFTBreakdown):
        assert f".{part.name} {{ background: #" in html


@pytest.fixture
def indexed(engine: FusionEngine) -> FusionEngine:
    engine.ingest([town(0), town(1)])
    return engine


def ask(engine: FusionEngine, settings: AnswerSettings = HALF) -> Answer:
    chunks = [record.chunk.text for record in all_records(engine.store.catalog)][:4]
    context = "\n\n".join(chunks)
    return engine.answer(
        [
            {"role": "system", "content": "Answer from the context."},
            {"role": "user", "content": f"{context}\n\nWhat is <b>near</b> the bank?"},
        ],
        settings,
    )


def traced(answer: Answer) -> PromptTrace:
    assert answer.trace is not None
    return answer.trace


class TestTrace:
    def test_all_of_the_prompt_is_in_it_once(self, indexed: FusionEngine) -> None:
        answer = ask(indexed)
        trace = traced(answer)
        passages = trace.passages()
        assert "".join(run.text for p in passages for run in p.runs) == trace.text
        chunks = [p for p in passages if p.chunk]
        assert len(chunks) == 4
        assert (answer.fused_chunks, answer.isolated_chunks) == (3, 1)
        for passage in chunks:
            assert passage.chunk is not None
            told = "".join(run.text for run in passage.runs)
            assert told.strip() in passage.chunk.text or passage.chunk.text in told

    def test_as_many_tokens_fare_as_is_counted(self, indexed: FusionEngine) -> None:
        """Byte-level tokens: a character each here, so that runs' texts count them."""
        answer = ask(indexed)
        usage, fates = answer.usage, traced(answer).fates()
        assert fates.count("recomputed") == usage.recomputed_tokens > 0
        assert fates.count("reused") == usage.reused_tokens > 0
        assert fates.count("fresh") == usage.fresh_tokens

    def test_neighbours_are_those_of_now_or_none(self, indexed: FusionEngine) -> None:
        answer = ask(indexed)
        behind = traced(answer).fused_behind()
        catalog = indexed.store.catalog
        assert len(behind) == 3  # the first one's KV was made behind none
        for chunk_id, chunks in behind.items():
            assert tuple(chunk.id for chunk in chunks) == catalog.kv.neighbours(chunk_id) != ()
        changed = next(iter(behind.values()))[0].document_id
        indexed.ingest([Document(changed, "Another text altogether, of which nothing was known.")])
        assert all(
            chunk.document_id != changed
            for chunks in traced(answer).fused_behind().values()
            for chunk in chunks
        )


class TestReasons:
    def test_nothing_is_told_where_all_is_well(self, indexed: FusionEngine) -> None:
        answer = ask(indexed)
        assert answer.full_reason == ""
        assert answer.fallbacks == ()
        assert answer.report()["fallbacks"] == []

    def test_full_attention_was_asked_for(self, indexed: FusionEngine) -> None:
        assert "kv='none'" in ask(indexed, AnswerSettings(kv="none", max_tokens=1)).full_reason

    def test_a_text_that_nobody_knows(self, indexed: FusionEngine) -> None:
        answer = indexed.answer("Who are you?", AnswerSettings(max_tokens=1))
        assert answer.full_reason == "no text of the store stands in it."
        assert traced(answer).passages()[0].chunk is None

    def test_a_chunk_whose_neighbour_changed(self, indexed: FusionEngine) -> None:
        indexed.delete(["town-1"])
        answer = ask(indexed, replace(HALF, corrected=False))
        assert answer.isolated_chunks == len(answer.fallbacks) > 0
        assert {fallback.used for fallback in answer.fallbacks} == {"isolated"}
        assert all("fused behind has changed" in f.reason for f in answer.fallbacks)

    def test_a_record_that_is_gone(self, indexed: FusionEngine) -> None:
        store = Path(indexed.store.path)
        for file in (store / "kv").glob("??/*"):
            file.unlink()
        answer = ask(indexed)
        assert answer.full_reason == "no KV of its chunks could be used."
        assert [fallback.used for fallback in answer.fallbacks] == [None] * 4
        assert all("There is no KV record" in fallback.reason for fallback in answer.fallbacks)
        store = indexed.store.path
        told = f"{json.dumps(answer.report())} {answer.explain().html}"
        assert f"{store.name}/kv/" in told
        assert str(store.parent) not in told
        (one,) = [f for f in answer.report()["fallbacks"] if f["document_id"] == "town-1"][:1]
        assert one["reason"] == answer.fallbacks[-1].reason
        assert all(p.kind is None for p in traced(answer).passages())


class TestPage:
    def test_it_shows_the_prompt_and_marks_what_was_recomputed(self, indexed: FusionEngine) -> None:
        answer = ask(indexed)
        page = Page(answer.explain().html)
        assert page.passages == traced(answer).text
        runs = [run for p in traced(answer).passages() for run in p.runs]
        assert page.marked == [run.text for run in runs if run.fate == "recomputed"]
        assert [chunk["data-kind"] for chunk in page.chunks] == ["isolated", *["fused"] * 3]

    def test_it_names_the_neighbours_and_the_times(self, indexed: FusionEngine) -> None:
        answer = ask(indexed)
        page = Page(answer.explain().html)
        assert page.text.count("Fused behind ") == 3
        assert f"Time to first token: {answer.ttft.total:,.1f} ms" in page.text
        assert f"prefill {answer.ttft.prefill:,.1f} ms" in page.text
        assert f"recomputed {answer.usage.recomputed_tokens:,}" in page.text
        assert sum(page.bars) == pytest.approx(200.0, abs=0.5)  # two bars

    def test_it_needs_nothing_else(self, indexed: FusionEngine) -> None:
        """No script, no style sheet, no picture; and no text becomes a tag."""
        html = ask(indexed).explain().html
        assert Page(html).fetched == []
        assert "<b>near</b>" not in html
        assert "&lt;b&gt;near&lt;/b&gt;" in html

    def test_no_chunk_becomes_a_tag(self, engine: FusionEngine) -> None:
        """Whatever became of its tokens, and in a neighbour's beginning and a title too."""
        for name in ("one", "two"):
            text = f"The <i>{name}</i> of us & them has <script>no</script> harbour to speak of."
            engine.ingest([Document(name, text, title=f"<u>{name}</u>")])
        for selector in ("none", "all"):
            answer = ask(engine, AnswerSettings(selector=selector, max_tokens=1))
            page = Page(answer.explain().html)
            assert page.passages == traced(answer).text
            assert page.fetched == []
            assert "<u>one</u>, chunk 1" in page.text

    def test_it_says_why(self, indexed: FusionEngine) -> None:
        indexed.delete(["town-1"])
        answer = ask(indexed)
        page = Page(answer.explain().html)
        assert page.text.count(answer.fallbacks[0].reason) == len(answer.fallbacks)
        whole = Page(ask(indexed, AnswerSettings(kv="none", max_tokens=1)).explain().html)
        assert "The whole prompt was computed: the settings ask for it (kv='none')." in whole.text

    def test_it_is_saved_for_its_owner(self, indexed: FusionEngine, tmp_path: Path) -> None:
        explanation = ask(indexed).explain()
        path = tmp_path / "why.html"
        explanation.save(path)
        assert path.read_text(encoding="utf-8") == explanation.html
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with pytest.raises(InvalidInputError, match=r"There is no directory .*nowhere"):
            explanation.save(tmp_path / "nowhere" / "why.html")

    def test_a_notebook_shows_it_in_a_frame(self) -> None:
        shown = Explanation('<p title="x">&amp;</p>')._repr_html_()
        frame = HTMLParser()
        attributes: list[dict[str, str | None]] = []
        frame.handle_starttag = lambda tag, attrs: attributes.append(dict(attrs))  # type: ignore[method-assign]
        frame.feed(shown)
        assert attributes[0]["srcdoc"] == '<p title="x">&amp;</p>'

    def test_an_answer_of_no_engine_has_none(self) -> None:
        usage = Usage(1, 0, 0, 1, 0, 1, 1)
        answer = Answer("yes", (5,), "stop", usage, TTFTBreakdown())
        with pytest.raises(InvalidInputError, match="no trace"):
            answer.explain()
