"""An engine behind a server, for processes that hold no model.

engine.py      `RemoteEngine`: what adapters ask of an engine, asked over HTTP
source.py      `RemoteSource`: what retrievers ask of a store
connection.py  requests, made again while the server is busy
failures.py    what a failed response means, as the package's errors
stream.py      an answer while it comes
bodies.py      prompts and settings as the bodies of requests
"""

from fusionrag_integrations.adapters.remote.connection import Connection
from fusionrag_integrations.adapters.remote.engine import RemoteEngine
from fusionrag_integrations.adapters.remote.source import RemoteSource

__all__ = ["Connection", "RemoteEngine", "RemoteSource"]
