"""The same names as in `fusionrag_integrations.serving.answer`, where they are defined."""

from fusionrag_integrations.serving.answer import (
    Answer,
    AnswerStream,
    Explanation,
    Fallback,
    PromptTrace,
    Reuse,
)

__all__ = ["Answer", "AnswerStream", "Explanation", "Fallback", "PromptTrace", "Reuse"]
