"""Write the demo's corpus and questions: `python -m benchmarks.demo_model.make_corpus`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fusionrag_integrations.demo import CORPUS_PATH, QUESTIONS_PATH
from fusionrag_integrations.demo.corpus import make


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", default="demo corpus")
    corpus, questions = make(parser.parse_args().seed)
    _write(CORPUS_PATH, corpus)
    _write(QUESTIONS_PATH, questions)


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
