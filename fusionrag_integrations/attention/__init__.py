"""Attention of rows at any positions over keys and values by position: what models run.

attend.py             picks the fastest way that there is on a device
rows.py               where one sequence's rows are
sequences.py          rows of several sequences, and where the KV of each is
spec.py               what a layer's attention is, beside its tensors
reference.py          the formula
blocked.py            in blocks of rows, by PyTorch's own attention
sparse_attention.py   in Triton
segments.py           keys and values that are in several places
placed.py             a copy of them in one place
gather.py             the same, in Triton
shared_runs.py        which rows of several sequences read which of them
segment_attention.py  attention to them in place, in Triton
cascade.py            the same on a CPU
scatter.py            new keys and values put in their places, in Triton
online_softmax.py     what both attention kernels are made of
launch.py             how they are laid out on a device
rope.py               keys moved between positions
"""
