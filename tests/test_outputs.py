"""Where a user wants a file: only nothing or a regular file gives way to it."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fusionrag_integrations import AnswerSettings, FusionEngine
from fusionrag_integrations.cli import main
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.serving.answer import Answer
from fusionrag_integrations.store.calibration import Calibration, write_calibration
from tests.conftest import town

QUESTION = "Where is house 7 of town number 1?"


@pytest.fixture(scope="module")
def engine(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> FusionEngine:
    store = tmp_path_factory.mktemp("outputs") / "store"
    engine = FusionEngine.from_pretrained(model_dir, store=store, chunk_tokens=48)
    engine.ingest([town(0), town(1)])
    return engine


@pytest.fixture(scope="module")
def answer(engine: FusionEngine) -> Answer:
    return engine.answer(QUESTION, AnswerSettings(max_tokens=1))


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def _device(path: Path) -> None:
    """The numbers of /dev/full."""
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 7))
    except PermissionError:
        pytest.skip("only root makes devices")


def _link(path: Path) -> None:
    elsewhere = path.with_name("elsewhere")
    elsewhere.write_text("theirs")
    path.symlink_to(elsewhere)


ODD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "pipe": (os.mkfifo, "is a pipe"),
    "directory": (os.mkdir, "is a directory"),
    "socket": (_socket, "is a socket"),
    "device": (_device, "is a device"),
    "link": (_link, "is a symbolic link"),
    "link to nothing": (lambda path: path.symlink_to("gone"), "is a symbolic link"),
}
every_odd = pytest.mark.parametrize(("make", "message"), ODD.values(), ids=ODD.keys())


@every_odd
def test_what_is_no_file_stays_and_is_named(
    answer: Answer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Any, message: str
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path has to be short
    path = Path("there")
    make(path)
    before = path.lstat()
    with pytest.raises(InvalidInputError, match=message):
        answer.explain().save(path)
    with pytest.raises(InvalidInputError, match=rf"{message}|no calibration"):
        write_calibration(path, "signature", Calibration((0,)), {})
    after = path.lstat()
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    assert not list(tmp_path.glob("there.*"))
    if (tmp_path / "elsewhere").exists():
        assert (tmp_path / "elsewhere").read_text() == "theirs"


def test_the_command_says_so_before_it_works(engine: FusionEngine, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    given = ["ask", QUESTION, "--store", str(engine.store.path), "--explain"]
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/full"), tmp_path / "none" / "page.html"):
        result = CliRunner().invoke(main, [*given, str(path)])
        assert result.exit_code == 1, result.output
        assert "InvalidInputError" in result.stderr
        assert result.stdout == ""
    assert stat.S_ISCHR(Path("/dev/full").stat().st_mode)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_a_file_is_replaced_whole_with_its_mode(answer: Answer, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    answer.explain().save(page)
    assert stat.S_IMODE(page.stat().st_mode) == 0o600  # it holds the prompt
    calibration = tmp_path / "calibration.json"
    calibration.write_text('{"format": 1, "calibrations": {}}')
    calibration.chmod(0o640)
    write_calibration(calibration, "signature", Calibration((0,)), {})
    assert stat.S_IMODE(calibration.stat().st_mode) == 0o640
    assert sorted(path.name for path in tmp_path.iterdir()) == ["calibration.json", "page.html"]


def test_a_directory_may_be_reached_by_a_link(answer: Answer, tmp_path: Path) -> None:
    (tmp_path / "pages").mkdir()
    (tmp_path / "link").symlink_to("pages")
    answer.explain().save(tmp_path / "link" / "page.html")
    assert (tmp_path / "pages" / "page.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize("name", ["-", "/dev/stdout"])
def test_the_output_itself_is_written_to(
    answer: Answer, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    answer.explain().save(name)
    assert capfd.readouterr().out.startswith("<!doctype html>")
    assert not Path("-").exists()


def test_a_full_disk_is_named(
    answer: Answer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, content: Any) -> int:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("fusionrag_integrations.support.atomic_files.os.write", full)
    with pytest.raises(InvalidInputError, match="can't be written: No space left on device"):
        answer.explain().save(tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []


def test_results_of_a_run_replace_no_pipe(tmp_path: Path) -> None:
    from fusionrag_integrations.bench.files import write_run
    from fusionrag_integrations.bench.log import open_log

    for name in ("run.json", "log.jsonl"):
        os.mkfifo(tmp_path / name)
    with pytest.raises(InvalidInputError, match="is a pipe"):
        write_run(tmp_path, {"rows": []}, "")
    with pytest.raises(InvalidInputError, match="is a pipe"):
        open_log(tmp_path / "log.jsonl", {})


def test_a_notebooks_frame_runs_nothing(answer: Answer) -> None:
    assert answer.explain()._repr_html_().startswith("<iframe sandbox srcdoc=")
