"""What the adapters of both frameworks share.

component.py       their components as pydantic models: unknown arguments are refused
answer_options.py  the fields of their language models, and how calls change them
retrieval.py       their retrievers: which store is searched, opening and closing it
tool_calls.py      the tools that a model calls, found in what it says
"""
