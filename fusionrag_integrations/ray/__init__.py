"""More than one machine, by Ray; the extra `ray`.

cluster.py    Ray at an address, or started here
indexing/     documents to stored KV by several workers
settings.py   what is served, and by how many replicas
deploying.py  starting, replacing and ending them
replica.py    a replica: an engine with the server's application
ingress.py    the one endpoint before them: checks requests and passes them on
relay.py      passing a request on, again where a replica was lost
passing.py    a request and its reply as plain values
lookups.py    what a search has found, for the prompt that follows it
finding.py    which KV a request needs, found without a model
routing.py    which replica answers a prompt: where most of its chunks' KV is in memory
router.py     the same as Ray's router
memory.py     what replicas hold in memory, as the router knows it
metrics.py    the replicas' metrics as one text

Nothing here loads Ray when it is imported but `router.py`, which only Ray imports, and
`indexing/stages.py`.
"""
