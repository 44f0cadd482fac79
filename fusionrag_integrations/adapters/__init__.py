"""What the adapters of both frameworks share.

component.py       their components as pydantic models: unknown arguments are refused
answer_options.py  the fields of their language models, and how calls change them
base.py            the ports `Engine` and `ChunkSource`: what they need of an engine and a store
huggingface.py     the model and settings that the frameworks' Hugging Face components hold
chosen.py          which of an engine, a store and a server a component was given
retrieval.py       their retrievers: opening and closing what is searched
store_source.py    chunks from a store of this process
remote/            an engine and its chunks behind a server
tool_calls.py      the tools that a model calls, found in what it says
"""
