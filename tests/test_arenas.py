"""How many heaps the threads of a server's process share."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from fusionrag_integrations.support.arenas import AT_MOST

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="this system's allocator has no arenas"
)

# Threads that allocate at the same time, then glibc's own account.
PROGRAM = """
import sys
from concurrent.futures import ThreadPoolExecutor
from ctypes import CDLL, c_void_p
from threading import Barrier
from fusionrag_integrations.support.arenas import share_arenas

libc = CDLL(None)
libc.malloc.restype = libc.fopen.restype = c_void_p
if sys.argv[2] == "share":
    share_arenas()
together = Barrier(6)

def allocate(number):
    together.wait()
    libc.malloc(1000)
    together.wait()

with ThreadPoolExecutor(6) as threads:
    list(threads.map(allocate, range(6)))
account = c_void_p(libc.fopen(sys.argv[1].encode(), b"w"))
libc.malloc_info(0, account)
libc.fclose(account)
"""


def arenas(account: Path, way: str, **environment: str) -> int:
    without = {name: text for name, text in os.environ.items() if name != "MALLOC_ARENA_MAX"}
    command = [sys.executable, "-c", PROGRAM, str(account), way]
    subprocess.run(command, check=True, env=without | environment)
    return account.read_text().count("<heap nr=")


def test_threads_share_two_unless_the_environment_says_otherwise(tmp_path: Path) -> None:
    account = tmp_path / "account.xml"
    assert arenas(account, "alone") > AT_MOST
    assert arenas(account, "share") <= AT_MOST
    assert arenas(account, "share", MALLOC_ARENA_MAX="5") > AT_MOST
