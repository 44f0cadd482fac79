"""Whether reuse is right, close and quick with a model and a store of one's own.

questions.py  what is asked: made from the store's chunks, so that nobody needs to label anything
measure.py    a question in every way of reuse, beside full attention
run.py        all questions, and the report
verdict.py    what the report comes to
estimate.py, pace.py   what ingesting a corpus would take
report.py     all of it as plain values
"""

from fusionrag_integrations.check.estimate import estimate_ingest
from fusionrag_integrations.check.report import CheckReport, CheckRow, DiskUse, Estimate
from fusionrag_integrations.check.run import check_store

__all__ = [
    "CheckReport",
    "CheckRow",
    "DiskUse",
    "Estimate",
    "check_store",
    "estimate_ingest",
]
