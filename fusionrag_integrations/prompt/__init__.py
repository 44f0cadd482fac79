"""Prompt text or messages -> tokens, with the runs whose KV is known.

wording.py   the text that the model reads
tokens.py    its tokens, of which those of known chunks are not made again
assembly.py  which of them a chunk's KV can stand for
"""

from fusionrag_integrations.prompt.assembly import (
    MIN_QUESTION,
    MIN_TOKENS,
    assemble,
    equal_at_start,
)
from fusionrag_integrations.prompt.tokens import (
    EncodedPrompt,
    encode,
    encode_chunk,
    encode_worded,
)
from fusionrag_integrations.prompt.wording import (
    BRIEFLY,
    NEUTRAL,
    SEPARATOR,
    WordedPrompt,
    ingest_prefix,
    ingest_surroundings,
    question_prompt,
    word,
    worded_question,
    words_tools,
)

__all__ = [
    "BRIEFLY",
    "MIN_QUESTION",
    "MIN_TOKENS",
    "NEUTRAL",
    "SEPARATOR",
    "EncodedPrompt",
    "WordedPrompt",
    "assemble",
    "encode",
    "encode_chunk",
    "encode_worded",
    "equal_at_start",
    "ingest_prefix",
    "ingest_surroundings",
    "question_prompt",
    "word",
    "worded_question",
    "words_tools",
]
