"""What docs/architecture.md promises of imports and public names."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fusionrag_integrations

PACKAGE = Path(fusionrag_integrations.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

RULE = re.compile(r"^errors <- .*", re.MULTILINE)


def layers() -> list[set[str]]:
    """Rooms by layer, as docs/architecture.md has them; a room imports from earlier layers only."""
    (rule,) = RULE.findall((PACKAGE.parent / "docs/architecture.md").read_text())
    return [set(rooms.split(", ")) for rooms in rule.split(" <- ")]


LAYER_OF = {room: number for number, rooms in enumerate(layers()) for room in rooms}
# Names from before the rooms had theirs; each only says where its names are now.
ALIASES = {"answer", "corpus", "embedding", "model", "neighbours", "options", "repair", "types"}


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
    if room in {"__init__", *ALIASES}:
        return  # names of all layers
    assert room in LAYER_OF, f"{room} is missing from the layers"
    others = {r for r in imported_rooms(file) if r} - {room}
    assert not others & ALIASES
    too_late = {r for r in others if LAYER_OF.get(r, 99) >= LAYER_OF[room]}
    assert not too_late


def test_the_rule_sees_a_forbidden_import(tmp_path: Path) -> None:
    file = tmp_path / "match.py"
    file.write_text("def f():\n    from fusionrag_integrations.engine import FusionEngine\n")
    assert imported_rooms(file) == {"engine"}


def test_few_rooms_touch_transformers() -> None:
    # bench makes a tokenizer, and models of random weights
    allowed = {"execution", "bench"}
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
        "Document",
        "FusionEngine",
        "FusionRAGError",
        "IngestReport",
        "KVHandle",
        "Passage",
        "Store",
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
from fusionrag_integrations import FusionEngine
from tests.conftest import town
from tests.store.memory import MemoryVectorIndex

model, path = sys.argv[1:]
with FusionEngine.from_pretrained(
    model, store=path, chunk_tokens=48, index=MemoryVectorIndex()
) as engine:
    engine.ingest([town(1), town(2)])
    texts = [hit.chunk.text for hit in engine.store.search("town", 3)]
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
