"""How a prompt may be rendered. Training sees most formats; some are kept for evaluation."""

from __future__ import annotations

from dataclasses import dataclass

from fusionrag_integrations.prompt.messages import Message

SYSTEM = "Answer the question from the context."


@dataclass(frozen=True, slots=True)
class PromptFormat:
    """Chat messages with {context} and {question}; an empty system message is left out."""

    name: str
    user: str
    system: str = ""
    separator: str = "\n\n"
    held_out: bool = False

    def messages(self, paragraphs: list[str], question: str) -> list[Message]:
        """The messages that ask `question` over `paragraphs`."""
        context = self.separator.join(paragraphs)
        texts = [("system", self.system), ("user", self.user)]
        return [
            {
                "role": role,
                "content": text.replace("{context}", context).replace("{question}", question),
            }
            for role, text in texts
            if text
        ]


DEFAULT = PromptFormat(
    "default", "Context:\n{context}\n\nQuestion: {question}\nAnswer:", system=SYSTEM
)

_LLAMA_INDEX = (
    "Context information is below.\n---------------------\n{context}\n---------------------\n"
    "Given the context information and not prior knowledge, answer the query.\n"
    "Query: {question}\nAnswer:"
)
_PIECES = (
    "Use the following pieces of context to answer the question at the end. If you don't know "
    "the answer, just say that you don't know, don't try to make up an answer.\n\n{context}\n\n"
    "Question: {question}\nHelpful Answer:"
)

FORMATS: tuple[PromptFormat, ...] = (
    DEFAULT,
    PromptFormat("default_without_system", DEFAULT.user),
    PromptFormat("llama_index", _LLAMA_INDEX),
    PromptFormat("llama_index_with_system", _LLAMA_INDEX, system=SYSTEM),
    PromptFormat(
        "based_only",
        "Answer the question based only on the following context:\n{context}\n\n"
        "Question: {question}",
    ),
    PromptFormat("pieces", _PIECES),
    PromptFormat("bare", "{context}\n\n{question}", system=SYSTEM),
    PromptFormat("bare_lines", "{context}\n{question}", separator="\n"),
    PromptFormat(
        "context_in_system",
        "{question}",
        system="You are an assistant for question-answering tasks. Use the following context to "
        "answer the question.\n\n{context}",
    ),
    PromptFormat(
        "documents",
        "Documents:\n{context}\n\nUsing the documents, answer: {question}",
        separator="\n---\n",
    ),
    PromptFormat(
        "question_below",
        "Read the passages and answer.\n\n{context}\n\nQuestion: {question}",
        system=SYSTEM,
        held_out=True,
    ),
    PromptFormat(
        "query_without_header",
        "{context}\n\nQuery: {question}\nAnswer:",
        separator="\n",
        held_out=True,
    ),
)
