"""Requests a second that a model and a machine answer, and how long each waits for its tokens.

plan.py         what is measured
workload.py     what is asked, and when: popular chunks more often, arrivals at random
load.py         clients in closed loops, and arrivals that wait for nobody; the times of tokens
systems.py      what is put under load: the engine at each ratio, together and one at a time
dense.py        full attention one request at a time, and the model that it runs
batches.py      full attention in static batches
continuous.py   full attention by transformers' continuous batching
memory.py       the most memory that a load took
rows.py         loads -> rows
measure.py      systems take turns under every load
table.py        rows -> a table
"""
