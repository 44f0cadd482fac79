"""The only room that runs the model.

admission.py   whether KV of a model can be moved and recomputed in part, tried on a few tokens
executor.py    `Executor`: every pass of the model, and what passes need on the device
hf/            transformers' internals, which no other room touches
rows_kv.py     KV as a pass uses it
buffer.py      a request's KV with a slot for every position
in_place.py    a request's KV over shared chunks that stay in place
placement.py   chunks' KV placed in a prompt, either way
known_start.py KV of what a prompt begins with, computed for another
chunk_kv.py    a chunk's isolated and fused KV
work.py        what is to be computed of one sequence, in as many passes as it takes
dense.py       full attention: the model's own prefill, in pieces
own_attention.py  full attention by the model's own cache, of any kind, to the answer's end
recompute.py   `PlacedPrompt`: probed by a selector, then recomputed; `PrefillOutput`
observed.py    what a pass computes in the place of placed KV
staleness.py   how far placed KV is off, seen so
carryover.py   what recomputed tokens were off by, carried over to those near them
correction.py  a chunk's KV with its scope's correction added
sampling.py    how an answer's tokens are chosen
decoding.py    logits -> tokens
steps.py       a decode step of several requests, on CUDA as a graph
padding.py     rows that fill a step up to a graph's size
fidelity.py    how close an answer over reused KV comes to full attention's
devices.py     devices and dtypes by name
"""
