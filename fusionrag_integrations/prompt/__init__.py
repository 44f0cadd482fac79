"""Prompt text or messages -> tokens, with the runs whose KV is known.

wording.py         the text that the model reads
template.py        the model's chat template, rendered
formatted.py       whether a string is in the model's chat format already
control_tokens.py  control tokens, told apart from text that only spells them
tokens.py          the text's tokens, of which those of known chunks are not made again
assembly.py        which of them a chunk's KV can stand for
"""

from fusionrag_integrations.prompt.assembly import (
    MIN_QUESTION,
    MIN_TOKENS,
    assemble,
    equal_at_start,
)
from fusionrag_integrations.prompt.control_tokens import Places, spells_control_tokens
from fusionrag_integrations.prompt.formatted import is_formatted
from fusionrag_integrations.prompt.tokens import (
    EncodedPrompt,
    encode,
    encode_chunk,
    encode_text,
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
    "Places",
    "WordedPrompt",
    "assemble",
    "encode",
    "encode_chunk",
    "encode_text",
    "encode_worded",
    "equal_at_start",
    "ingest_prefix",
    "ingest_surroundings",
    "is_formatted",
    "question_prompt",
    "spells_control_tokens",
    "word",
    "worded_question",
    "words_tools",
]
