"""Documents to stored KV by several workers, with Ray Data.

settings.py    which workers, and what they cost
connecting.py  Ray at an address, or started here
workers.py     what runs in the workers: splitting and embedding, isolated KV, fused KV
model_kv.py    a worker's model, and the store's KV as it reads and writes it
ledger.py      what the workers did: time, bytes, work that was lost and done again
stages.py      the work of an ingest as datasets, each with a pool of workers
run.py         `index_on_ray`: the whole of it

The process that calls it changes catalog and index, as in any ingest (`ingest/pipeline.py`), and
needs neither the model nor a GPU. Workers write nothing but KV records, under keys that say what
is in them: whoever writes one again writes the same.
"""

from fusionrag_integrations.ray.indexing.ledger import StageAccount
from fusionrag_integrations.ray.indexing.run import RayReport, index_on_ray
from fusionrag_integrations.ray.indexing.settings import Workers

__all__ = ["RayReport", "StageAccount", "Workers", "index_on_ray"]
