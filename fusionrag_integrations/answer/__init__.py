"""What a request gives: the text, how it came about, and a page that shows it.

answer.py   the answer
stream.py   the same while it is made
trace.py    what became of the prompt's tokens
reuse.py    what was placed for them
page.py     both as a page for a browser or a notebook (page.html)
"""

from fusionrag_integrations.answer.answer import Answer
from fusionrag_integrations.answer.page import Explanation
from fusionrag_integrations.answer.reuse import Fallback, Reuse
from fusionrag_integrations.answer.stream import AnswerStream
from fusionrag_integrations.answer.trace import PromptTrace

__all__ = ["Answer", "AnswerStream", "Explanation", "Fallback", "PromptTrace", "Reuse"]
