"""Quality and time to first token, measured on one's own model.

strategies.py    the ways to answer that are compared; prefix_cache.py: one of the baselines
neighbours.py    behind what KV is fused, by name
suites.py        documents and questions; datasets.py: published ones
quality.py       every strategy on the same questions
comparison.py    answers side by side; shared_pass.py: all settings at a pass each
closeness.py     how close an answer comes to full attention's; inspection.py: and the KV
metrics.py       how right an answer is; statistics.py: how sure that is
measurement.py   one question under one strategy; log.py: kept while a run goes on, in json_lines.py
summary.py       measurements -> rows; tables.py: rows -> tables; files.py: a run as files
ttft.py          time to first token; ceilings.py: the limit of this machine; clock.py: timing
throughput/      requests a second under load, and how long they wait
break_even.py    from how many tokens on reuse pays
calibrate.py     which layers and signals tell one model best what to recompute
served.py        prompts of invented chunks (invented.py) over models of known shapes (shapes.py)
machine.py       on what, with what and when something was measured
extra.py         the packages that only measuring needs
"""
