"""KV records: files on disk, and tiers in host and device memory from which requests use them.

types.py           ChunkKV; LayeredKV, which requests read layer by layer
tiers.py           TieredKV: disk, host memory and device as one
lease.py           the records that one request uses, pinned until its end
loader.py          reads records in the background, first layers first
kv_record.py       a record in memory, whose layers may not be read yet
tier.py            one tier within its budget, which evicts by LRFU scores
lrfu.py            LRFU scores: how often and how recently a record was used
disk_budget.py     Budgets; the files on disk within theirs
metrics.py         what the tiers hold and have done
record_store.py    tensors <-> records
quantisation.py    keys and values in 8 or 4 bits
record_files.py    records <-> bytes, checked; without torch
record_format.py   the layout of a record's file
base.py            KVFiles: the port for where the files are
local.py           KVFiles in a directory
verify.py          checks all records of a directory
"""
