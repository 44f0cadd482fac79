"""A small model, a corpus and questions, to see the package work without downloading anything."""

from __future__ import annotations

from pathlib import Path

MODEL_DIR = Path(__file__).parent / "model"
CORPUS_PATH = Path(__file__).parent / "corpus.jsonl"
QUESTIONS_PATH = Path(__file__).parent / "questions.jsonl"
