"""A server that speaks OpenAI's protocol over one engine; the extra `serve`.

app.py            the ASGI application and its endpoints
running.py        running it until it is told to end
gate.py           what every request passes: key, size, closing; and its end
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
service.py        what endpoints share, and limits
metrics.py        Prometheus metrics
records.py        what is logged of a request
"""

from fusionrag_integrations.server.app import create_app
from fusionrag_integrations.server.keys import Keys
from fusionrag_integrations.server.running import Server, bound
from fusionrag_integrations.server.service import Limits

__all__ = ["Keys", "Limits", "Server", "bound", "create_app"]
