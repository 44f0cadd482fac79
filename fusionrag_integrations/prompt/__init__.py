"""Prompt text or messages -> tokens, with the runs whose KV is known.

messages.py        prompts as they are given: a string, or chat messages
question.py        this package's own prompt, and the ingest prefix
render.py          the text that the model reads, in its own chat template
template.py        applying a chat template, so that control tokens are its own alone
formatted.py       whether a string is in the model's chat format already
control_tokens.py  a copy of the tokenizer in which text can't spell control tokens
fingerprints.py    numbers that stand for stretches of text, so that known ones are found fast
match.py           known chunk texts in a prompt, found by content
found.py           a text that was found, and the comparison that finds it
resolve.py         which chunk a found text is, where several have the same text
tokenize.py        a prompt's tokens; those of known chunks are not encoded again
assemble.py        which of the tokens a chunk's KV can be reused for
assembled.py       the result: `AssembledPrompt`
"""

from fusionrag_integrations.prompt.assemble import assemble
from fusionrag_integrations.prompt.control_tokens import Places, spells_control_tokens
from fusionrag_integrations.prompt.formatted import is_formatted
from fusionrag_integrations.prompt.question import (
    BRIEFLY,
    NEUTRAL,
    SEPARATOR,
    ingest_prefix,
    ingest_surroundings,
    question_as_prompt,
    question_prompt,
)
from fusionrag_integrations.prompt.render import RenderedPrompt, render, supports_tools
from fusionrag_integrations.prompt.tokenize import (
    EncodedPrompt,
    encode,
    encode_chunk,
    encode_rendered,
    encode_text,
)

__all__ = [
    "BRIEFLY",
    "NEUTRAL",
    "SEPARATOR",
    "EncodedPrompt",
    "Places",
    "RenderedPrompt",
    "assemble",
    "encode",
    "encode_chunk",
    "encode_rendered",
    "encode_text",
    "ingest_prefix",
    "ingest_surroundings",
    "is_formatted",
    "question_as_prompt",
    "question_prompt",
    "render",
    "spells_control_tokens",
    "supports_tools",
]
