"""Requests a second that a model and a machine answer, and how long each waits for its tokens.

plan.py         what is measured
workload.py     what is asked, and when: popular chunks more often, arrivals at random
load.py         clients in closed loops, and arrivals that wait for nobody; the times of tokens
systems.py      what is put under load: the engine at each ratio, together and one at a time
dense.py        full attention one request at a time, and the model that it runs
batches.py      full attention in static batches
continuous.py   full attention by transformers' continuous batching
llama_cpp.py    full attention by llama.cpp
one_request.py  one request with nothing else at work
bound.py        the most requests a second that the engine's own work allows
overtaking.py   a short prompt behind a long one
memory.py       the most memory that a load took
rows.py         loads -> rows
kept.py         what is measured, in a log that an interrupted run goes on from
measure.py      systems take turns under every load
table.py        rows -> a table, and limits -> lines
"""
