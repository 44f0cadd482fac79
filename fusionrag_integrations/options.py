"""The same names as in `fusionrag_integrations.adapters.answer_options`, where they are defined."""

from fusionrag_integrations.adapters.answer_options import (
    AnswerOptions,
)

__all__ = ["AnswerOptions"]
