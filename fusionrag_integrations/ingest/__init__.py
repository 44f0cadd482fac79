"""Documents -> stored KV.

pipeline.py          `Ingest`: the offline steps, in their order
work.py              the port for what needs a tokenizer, an embedding or a model
in_process.py        the same by this process's model; `ray/indexing/` has it by several workers
model_facts.py       what is needed to know of a model, without its weights
documents.py         documents to chunks in the catalog
copied_documents.py  the same from another store
chunk_encoder.py     chunks to records with tokens and keys
missing_kv.py        which KV is missing, and noting what is true of it
neighbour_search.py  each chunk's neighbours in a store
neighbours.py        the policy by which they are chosen
chunk_prefill.py     computing isolated and fused KV, several chunks in a pass
adhoc.py             fusing a chunk that was kept from a request
corrections.py       each scope's correction of fused KV, measured when it is due
mixtures.py          measuring it, on prompts of the store's own chunks
deviations.py        how far stored KV deviates, summed up; the mean is the correction
"""

from fusionrag_integrations.ingest.pipeline import IngestReport

__all__ = ["IngestReport"]
