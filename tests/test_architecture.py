"""What docs/architecture.md promises of imports and public names."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fusionrag_integrations

PACKAGE = Path(fusionrag_integrations.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

# Rooms by layer; a room imports from earlier layers only.
LAYERS = (
    {"errors"},
    {"inputs", "metadata"},
    {"types"},
    {"forks"},
    {
        "rope",
        "keys",
        "timing",
        "fingerprints",
        "durable",
        "bootstrap",
        "echo",
        "threads",
        "components",
        "stops",
    },
    {"kernels", "records", "answer"},
    {"attention", "model"},
    {"observed"},
    {"carryover", "staleness"},
    {
        *("documents", "chunking", "embedding", "index", "catalog", "neighbours", "chunk_kv"),
        *("store", "match", "prompt", "selectors", "recompute", "decode", "calibration"),
        "correction",
    },
    {"manifests", "corrections", "fidelity", "exact_search"},
    {"corpus", "capture", "loading", "mixtures", "index_check"},
    {"ingest", "serve", "repair"},
    {"check"},
    {"engine"},
    {"options", "bench", "calibrate"},
    {"langchain", "llama_index", "demo"},
    {"cli"},
)
LAYER_OF = {room: number for number, rooms in enumerate(LAYERS) for room in rooms}


def room_of(module: str) -> str:
    """`fusionrag_integrations.store.files` -> `store`; the package itself is the empty room."""
    return module.partition(".")[2].partition(".")[0]


def imported_rooms(file: Path) -> set[str]:
    """Rooms that a file imports, anywhere in it."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            modules.add(node.module)
            if node.module == PACKAGE.name:  # from fusionrag_integrations import room
                modules.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            modules.update(alias.name for alias in node.names)
    return {room_of(m) for m in modules if m.partition(".")[0] == PACKAGE.name}


def room_of_file(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_a_file_imports_only_from_earlier_layers(file: Path) -> None:
    room = room_of_file(file)
    if room == "__init__":
        return  # names the public objects of all layers, lazily
    assert room in LAYER_OF, f"{room} is missing from the layers"
    others = {r for r in imported_rooms(file) if r} - {room}
    too_late = {r for r in others if LAYER_OF.get(r, 99) >= LAYER_OF[room]}
    assert not too_late


def test_the_rule_sees_a_forbidden_import(tmp_path: Path) -> None:
    file = tmp_path / "match.py"
    file.write_text("def f():\n    from fusionrag_integrations.engine import FusionEngine\n")
    assert imported_rooms(file) == {"engine"}


def test_few_rooms_touch_transformers() -> None:
    # decode takes logits processors, demo holds a training script, and bench makes a tokenizer
    allowed = {"model", "decode", "demo", "bench"}
    importing = {
        room_of_file(file)
        for file in FILES
        if "from transformers" in file.read_text() or "import transformers" in file.read_text()
    }
    assert importing <= allowed


def test_public_names() -> None:
    assert fusionrag_integrations.__all__ == [
        "Answer",
        "AnswerSettings",
        "AnswerStream",
        "Chunk",
        "Corpus",
        "Document",
        "FusionEngine",
        "FusionRAGError",
        "IngestReport",
        "KVHandle",
        "Passage",
    ]
    for name in fusionrag_integrations.__all__:
        assert getattr(fusionrag_integrations, name).__name__ == name


def test_public_names_of_the_adapters() -> None:
    import fusionrag_integrations.langchain as langchain
    import fusionrag_integrations.llama_index as llama_index

    assert langchain.__all__ == [
        "ChatFusionRAG",
        "FusionKVRetriever",
        "FusionRAGLLM",
        "to_documents",
    ]
    assert llama_index.__all__ == [
        "FusionKVRetriever",
        "FusionKVTransform",
        "FusionRAGLLM",
        "to_documents",
    ]


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = fusionrag_integrations.Nothing


def run(code: str) -> str:
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    return process.stdout.strip()


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = ["torch", "transformers", "chromadb", "langchain_core", "llama_index", "numpy"]
    code = (
        "import sys, fusionrag_integrations, fusionrag_integrations.cli\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    assert run(code) == "[]"


WITHOUT_FRAMEWORKS = """
import sys
for name in ("chromadb", "langchain_core", "llama_index"):
    sys.modules[name] = None  # importing it fails
from functools import partial
from pathlib import Path
from fusionrag_integrations import Corpus, Document, FusionEngine
from fusionrag_integrations.catalog import Catalog, StoreInfo
from fusionrag_integrations.embedding import LexicalEmbedder, probe
from fusionrag_integrations.model import CausalModel
from fusionrag_integrations.prompt import ingest_prefix, ingest_surroundings
from fusionrag_integrations.recompute import resident
from fusionrag_integrations.records import FORMAT_VERSION
from fusionrag_integrations.store import Budgets, FileKVStore, TieredKV
from tests.conftest import town

class NearestByOrder:
    def __init__(self): self.known = {}
    def __len__(self): return len(self.known)
    def ids(self): return set(self.known)
    def add(self, chunks, embeddings): self.known.update({c.id: c for c in chunks})
    def remove(self, chunk_ids): [self.known.pop(i, None) for i in chunk_ids]
    def search(self, embedding, k, scopes=None, where=None):
        return [(i, 1.0) for i in sorted(self.known)[:k]]
    def refresh(self): pass
    def neighbours_many(self, chunk_ids, k):
        return {c: [i for i in sorted(self.known) if i != c][:k] for c in chunk_ids}

model = CausalModel.load(sys.argv[1])
prefix = ingest_prefix(model.tokenizer)
path = Path(sys.argv[2])
signature = model.signature(ingest_surroundings(model.tokenizer))
info = StoreInfo(
    *(FORMAT_VERSION, signature, model.source, LexicalEmbedder.name, 48, "float32"),
    probes=probe(LexicalEmbedder()),
)
catalog = Catalog.create(path / "catalog.sqlite", info)
corpus = Corpus(path, catalog, LexicalEmbedder(), NearestByOrder())
files = FileKVStore(path / "kv", info.record_signature, "float32")
kv = TieredKV(files, Budgets(), model.device, partial(resident, model))
engine = FusionEngine(model, corpus, kv, prefix)
engine.ingest([town(1), town(2)])
texts = [hit.chunk.text for hit in corpus.search("town", 3)]
answer = engine.answer("\\n\\n".join(texts) + "\\n\\nWhich town?")
print(answer.fused_chunks, answer.isolated_chunks)
"""


def test_the_engine_runs_without_chroma_and_the_frameworks(model_dir: Path, tmp_path: Path) -> None:
    process = subprocess.run(
        [sys.executable, "-c", WITHOUT_FRAMEWORKS, str(model_dir), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=PACKAGE.parent,
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.strip() == "2 1"
