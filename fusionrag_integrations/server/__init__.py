"""A server that speaks OpenAI's protocol over one engine; the extra `serve`.

app.py            the ASGI application and its endpoints
running.py        running it until it is told to end
entrance.py       what is asked of every request first: key, size, closing
gate.py           what every request passes, from its beginning to its end
keys.py           API keys, and what each may do
admission.py      how many requests are under way or wait
traffic.py        requests under way when the server closes
answering.py      the endpoints that answer
bodies.py         their requests, checked
openai_fields.py  OpenAI's fields that change nothing, or are refused
messages.py       OpenAI's messages as this package's
forms.py          answers in OpenAI's form
retrieving.py     the endpoints that search and change documents
facts.py          what is told of the model; tokens
errors.py         errors in OpenAI's form
service.py        what endpoints share
metrics.py        Prometheus metrics
records.py        what is logged of a request
limits.py         how much a server takes on
events.py         server-sent events

Importing this package loads nothing heavy: names are resolved on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fusionrag_integrations.support.lazy import resolve

if TYPE_CHECKING:
    from fusionrag_integrations.server.app import create_app
    from fusionrag_integrations.server.keys import Keys
    from fusionrag_integrations.server.limits import Limits
    from fusionrag_integrations.server.running import Server, bound

_MODULE_OF = {
    "Keys": "server.keys",
    "Limits": "server.limits",
    "Server": "server.running",
    "bound": "server.running",
    "create_app": "server.app",
}

__all__ = ["Keys", "Limits", "Server", "bound", "create_app"]


def __getattr__(name: str) -> Any:
    return resolve(__name__, _MODULE_OF, name)
