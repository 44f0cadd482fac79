"""Shared fixtures: a tiny random model in a directory, as users have theirs."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from shutil import disk_usage
from typing import Any

import pytest
import torch

os.environ.setdefault("TQDM_DISABLE", "1")  # as the command does, before tqdm is imported
if not torch.cuda.is_available():  # Triton asks once, when transformers imports it
    os.environ["TRITON_INTERPRET"] = "1"

from transformers import LlamaConfig, LlamaForCausalLM

from fusionrag_integrations import Document, FusionEngine
from fusionrag_integrations.demo import smollm2
from fusionrag_integrations.documents.chunk_record import ChunkRecord
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.execution.hf.gguf import require_gguf_extra
from fusionrag_integrations.execution.hf.model import CausalModel
from fusionrag_integrations.execution.known_start import NOTHING_KNOWN
from fusionrag_integrations.serving.known_starts import KnownStarts
from fusionrag_integrations.store.catalog import Catalog
from fusionrag_integrations.store.corrections import Correction
from fusionrag_integrations.store.kv.tiered_kv import TieredKV
from fusionrag_integrations.store.kv.types import LayeredKV
from fusionrag_integrations.store.vector_index.check import faults
from tests.tiny_models import COMMON, heads
from tests.tiny_tokenizers import byte_level_tokenizer

FIND = KnownStarts.find

torch.set_num_threads(1)  # tiny tensors are slower on many threads, and rounding varies


def pytest_addoption(parser: pytest.Parser) -> None:
    """For soaks, wherever they are."""
    parser.addoption(
        "--record", action="store_true", help="keep what was found in docs/results/reliability"
    )


def pytest_configure() -> None:
    """Files in memory: stores sync what they write, and some tests wait a third of their time."""
    memory = Path("/dev/shm")
    if "TMPDIR" not in os.environ and memory.is_dir() and disk_usage(memory).free > 4 << 30:
        os.environ["TMPDIR"] = tempfile.tempdir = str(memory)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests first: a worker that ends with one would leave the other idle."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(autouse=True)
def index_checked_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no graph is damaged, the index needs no process of its own, which takes seconds."""
    monkeypatch.setattr(
        "fusionrag_integrations.store.verify.index_faults",
        lambda catalog, index: list(faults(catalog, index)),
    )


@pytest.fixture(scope="session", autouse=True)
def working_copies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Of stores at URLs; not in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FUSIONRAG_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def nothing_was_asked_before() -> Iterator[None]:
    """Most tests count a request's tokens as they are where no other has begun the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KnownStarts, "find", lambda starts, *given: NOTHING_KNOWN)
        yield


@pytest.fixture(scope="module")
def beginnings_are_known(nothing_was_asked_before: None) -> Iterator[None]:
    """Others use what earlier requests began with, as it is for users."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KnownStarts, "find", FIND)
        yield


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of three layers with a byte-level tokenizer and a chat template."""
    path = tmp_path_factory.mktemp("tiny-llama")
    tokenizer = byte_level_tokenizer(chat=True)
    torch.manual_seed(0)
    config = COMMON | {"vocab_size": len(tokenizer), "max_position_embeddings": 2048}
    LlamaForCausalLM(LlamaConfig(**config, **heads(4, 2))).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def smollm2_file() -> Path:
    """The file of SmolLM2-135M-Instruct, where it is installed and can be read."""
    try:
        require_gguf_extra()
        return smollm2()
    except InvalidInputError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def pretrained(smollm2_file: Path) -> CausalModel:
    """SmolLM2-135M-Instruct, in float32; loading it takes a quarter of a minute."""
    return CausalModel.load(smollm2_file)


@pytest.fixture
def smollm2_loaded(
    smollm2_file: Path, pretrained: CausalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever loads SmolLM2 gets the one that is loaded already; models are never changed."""
    load = CausalModel.load

    def loaded(name: str | Path, *arguments: Any) -> CausalModel:
        own = Path(name) == smollm2_file and set(arguments) <= {"auto", None}
        return pretrained if own else load(name, *arguments)

    monkeypatch.setattr(CausalModel, "load", loaded)


def nested(depth: int = 5000) -> list[Any]:
    """Lists in lists, deeper than Python calls functions."""
    within: list[Any] = []
    for _ in range(depth):
        within = [within]
    return within


def town(number: int, paragraphs: int = 3) -> Document:
    """A document whose paragraphs become one chunk each at 48 tokens a chunk."""
    text = "\n\n".join(
        f"Town number {number} has a paragraph {part} which tells of the river, the old bridge, "
        f"house {number * 7 + part}, and of a fox that jumps over the lazy dog near the bank."
        for part in range(paragraphs)
    )
    return Document(id=f"town-{number}", text=text, title=f"Town {number}")


def document_ids(catalog: Catalog) -> list[str]:
    """The ids of all documents, by scope and id."""
    return [document.id for document in catalog.documents.all()]


def all_records(catalog: Catalog) -> list[ChunkRecord]:
    """The records of all chunks, by document and index."""
    return list(catalog.chunks.records(catalog.chunks.ids()).values())


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[LayeredKV]:
    """Every record that a request takes, in order."""
    taken: list[LayeredKV] = []
    acquire = TieredKV.acquire

    def watched(kv: TieredKV, key: str, correction: Correction | None = None) -> LayeredKV:
        taken.append(acquire(kv, key, correction))
        return taken[-1]

    monkeypatch.setattr(TieredKV, "acquire", watched)
    return taken


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Selenium's driver of a browser; for tests that are marked with `NEEDS_BROWSER`."""
    from tests.browser import open_browser

    with open_browser() as driver:
        yield driver


@pytest.fixture
def engine(model_dir: Path, tmp_path: Path) -> FusionEngine:
    """An engine with an empty store of its own."""
    return FusionEngine.from_pretrained(model_dir, store=tmp_path / "store", chunk_tokens=48)
