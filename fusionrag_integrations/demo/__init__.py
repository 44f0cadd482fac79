"""Models, texts and questions to see the package work, without a download from a model hub.

run.py          the `fusionrag demo` command: strategies side by side, over real or invented text
pretrained.py   SmolLM2, a small pretrained model, where it is installed
real_text.py    paragraphs of Wikipedia, and questions that it is asked; both in wikipedia/
tasks.py        the bundled model's questions, and the prompts that ask them
suites.py       the same kinds of question with fresh seeds, and a harder suite, to be measured on
corpus.py       the demo's kinds of document and question, of any seed; corpus.jsonl is one
names.py, relations.py, world.py    the generator of invented documents and questions
hard.py, hard_worlds.py             the harder suite's contexts, and its documents
"""

from __future__ import annotations

from pathlib import Path

from fusionrag_integrations.demo.pretrained import smollm2

__all__ = ["CHUNK_TOKENS", "CORPUS_PATH", "MODEL_DIR", "QUESTIONS_PATH", "smollm2"]

MODEL_DIR = Path(__file__).parent / "fusionrag-demo-2m"
CORPUS_PATH = Path(__file__).parent / "corpus.jsonl"
QUESTIONS_PATH = Path(__file__).parent / "questions.jsonl"
CHUNK_TOKENS = 120  # one paragraph of the corpus a chunk
