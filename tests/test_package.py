"""What is built: a wheel and a source distribution that hold the package, and little else."""

from __future__ import annotations

import email
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.message import Message
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest

import fusionrag_integrations

ROOT = Path(__file__).parent.parent
PACKAGE = Path(fusionrag_integrations.__file__).parent
NAMED = {"chromadb", "langchain-core", "llama-index-core", "tiktoken", "torch", "transformers"}
IMPORTS = """
import fusionrag_integrations
from fusionrag_integrations.demo import MODEL_DIR, CORPUS_PATH
print(fusionrag_integrations.__file__)
print((MODEL_DIR / "model.safetensors").stat().st_size, CORPUS_PATH.stat().st_size)
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory with both, made from a copy: building leaves files behind."""
    copy = tmp_path_factory.mktemp("build") / "project"
    unwanted = ignore_patterns(".*", "*.egg-info", "__pycache__", "build", "dist")
    copytree(ROOT, copy, ignore=unwanted)
    process = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", copy],
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return copy / "dist"


@pytest.fixture
def wheel(built: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(next(built.glob("*.whl")))


def metadata(wheel: zipfile.ZipFile) -> Message:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return email.message_from_bytes(wheel.read(name))


def files_of_the_package() -> set[str]:
    return {
        str(file.relative_to(PACKAGE.parent))
        for file in PACKAGE.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }


def test_the_wheel_holds_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert held == files_of_the_package()
    assert "fusionrag_integrations/py.typed" in held
    assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())


def test_only_the_demo_is_large(wheel: zipfile.ZipFile) -> None:
    large = {file.filename for file in wheel.filelist if file.file_size > 50_000}
    assert {str(Path(name).parent.name) for name in large} <= {"demo", "fusionrag-demo-2m"}
    assert Path(str(wheel.filename)).stat().st_size < 4_000_000


def test_the_source_distribution_builds_the_same(built: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        held = {name.split("/", 1)[-1] for name in archive.getnames()}
    assert files_of_the_package() <= held
    assert {"README.md", "LICENSE", "CHANGELOG.md", "SECURITY.md", "constraints.txt"} <= held
    assert not any(name.startswith(("tests/", "benchmarks/")) for name in held)


def test_the_named_libraries_are_core_and_all_else_is_extra(wheel: zipfile.ZipFile) -> None:
    told = metadata(wheel)
    required = [line for line in told.get_all("Requires-Dist", []) if "extra ==" not in line]
    names = {re.split(r"[ <>=!~\[]", line, maxsplit=1)[0] for line in required}
    assert names >= NAMED
    assert not names & {
        "accelerate",
        "fastapi",
        "gguf",
        "matplotlib",
        "mkdocs-material",
        "nbclient",
        "pytest",
        "triton",
    }
    assert set(told.get_all("Provides-Extra", [])) >= {
        "bench",
        "docs",
        "gguf",
        "notebooks",
        "serve",
        "triton",
    }


def test_the_version_is_semantic_and_in_the_changelog(wheel: zipfile.ZipFile) -> None:
    version = metadata(wheel)["Version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    assert f"\n## {version}" in (ROOT / "CHANGELOG.md").read_text()


def test_what_is_in_the_wheel_finds_its_files(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path)
    printed = subprocess.run(
        [sys.executable, "-c", IMPORTS],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert Path(printed[0]).is_relative_to(tmp_path)
    assert all(int(size) > 100_000 for size in printed[1].split())


def test_every_dependency_is_in_the_tested_set() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    names = {re.split(r"[<>=\[;]", line, maxsplit=1)[0] for lines in lists for line in lines}
    assert names - {project["name"]} <= pinned
