"""Documents -> stored KV.

pipeline.py       `Ingest`: the offline steps, in their order
documents.py      documents to chunks in the catalog
copied_documents.py  the same from another store
chunk_encoder.py  chunks to records with tokens and keys
neighbours.py     behind which chunks a chunk's KV is fused
chunk_prefill.py  isolated and fused KV of the chunks that have none
corrections.py    each scope's correction of fused KV, measured when it is due
mixtures.py       measuring it, on prompts of the store's own chunks
deviations.py     how far stored KV deviates, summed up; the mean is the correction
"""

from fusionrag_integrations.ingest.pipeline import IngestReport

__all__ = ["IngestReport"]
