"""Past one machine, simulated from figures that were measured on one.

parameters.py      what was measured: speeds of tiers, of prefill and of decode
prompts.py         prompts of many questions about few topics
questions.py       the same from real questions, and how much their chunks overlap
policies.py        which replica answers: the package's own way, and what it is compared with
other_policies.py  ways that were tried and not taken
hindsight.py       what a placement gives that is made with all prompts known
replica.py         a replica: its tiers, its device, its links
simulation.py      requests that arrive, wait and are answered; discrete events
outcome.py         hit rates, waits and requests a second
routing.py         every policy on the same requests
serving.py         1 to 256 replicas
ingest.py          workers that prefill, wait for neighbours, fuse and write
kv_bytes.py        bytes of KV, by model and format
dollars.py         what storage, ingest and serving cost, and from how many uses on keeping KV pays
measured.py        parameters from the results in docs/benchmarks
"""
