"""Notebooks in kernels of their own: for the tests, and to write the outputs that are committed.

python -m tests.notebooks examples/*.ipynb     runs them and keeps what they show
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from traitlets.config import Config

METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "",  # outputs are a CPU's
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",  # others run at the same time, and rounding depends on it
    "TQDM_DISABLE": "1",  # progress is nothing to keep
    "PYTHONWARNINGS": "ignore:IProgress not found",  # tqdm misses ipywidgets, which nothing needs
}


def read_notebook(path: Path) -> NotebookNode:
    """A notebook with its outputs, as it is committed."""
    return nbformat.read(path, as_version=4)


def run_notebook(notebook: NotebookNode, directory: Path) -> NotebookNode:
    """A copy with the outputs of a fresh kernel, which works and keeps its files in `directory`.

    Raises `CellExecutionError` where a cell does.
    """
    run = nbformat.from_dict(notebook)
    with TemporaryDirectory() as private:
        # No TCP: the kernel's sockets are files, which tests may open.
        connection = {"transport": "ipc", "connection_file": f"{private}/kernel.json"}
        client = NotebookClient(
            run,
            config=Config(KernelManager=connection),
            timeout=300,
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": str(directory)}},
        )
        caches = {"IPYTHONDIR": private, "TORCHINDUCTOR_CACHE_DIR": private}
        client.execute(env=os.environ | ENVIRONMENT | caches | {"TMPDIR": str(directory)})
    run.metadata = nbformat.from_dict(METADATA)
    return run


def main() -> None:
    """Run the notebooks that are named, and write each with its outputs."""
    for path in map(Path, sys.argv[1:]):
        with TemporaryDirectory() as directory:
            nbformat.write(run_notebook(read_notebook(path), Path(directory)), path)


if __name__ == "__main__":
    main()
