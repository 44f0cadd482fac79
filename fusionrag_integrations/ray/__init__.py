"""More than one machine, by Ray.

routing.py   which replica answers a prompt: where most of its chunks' KV is in memory
"""
