"""What a request gives: the text, how it came about, and a page that shows it.

answer.py   `Answer`: the text, its usage and timing
stream.py   the same while it is generated
pieces.py   its text on the way from the thread that computes it to whoever reads it
trace.py    how each of the prompt's tokens was obtained
reuse.py    which KV was placed for the prompt
page.py     all of it as a page for a browser or a notebook (page.html)
"""

from fusionrag_integrations.serving.answer.answer import Answer
from fusionrag_integrations.serving.answer.page import Explanation
from fusionrag_integrations.serving.answer.reuse import Fallback, Reuse
from fusionrag_integrations.serving.answer.stream import AnswerStream
from fusionrag_integrations.serving.answer.trace import PromptTrace

__all__ = ["Answer", "AnswerStream", "Explanation", "Fallback", "PromptTrace", "Reuse"]
