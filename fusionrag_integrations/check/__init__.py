"""Whether reuse is exact, close and fast with the user's own model and store.

run.py        `check_store`: asks the questions, and makes the report
questions.py  questions made from the store's chunks, so that no labels are needed
measure.py    one question under every way of reuse, compared with full attention
echo.py       which tokens of an answer do more than repeat its question
bootstrap.py  how sure a measured mean is
report.py     `CheckReport`, as plain values
verdict.py    what to set, as text
estimate.py   what ingesting documents would take; pace.py times it
"""

from fusionrag_integrations.check.estimate import estimate_ingest
from fusionrag_integrations.check.report import (
    CheckReport,
    CheckRow,
    DiskUse,
    Estimate,
    ModelFacts,
)
from fusionrag_integrations.check.run import check_store

__all__ = [
    "CheckReport",
    "CheckRow",
    "DiskUse",
    "Estimate",
    "ModelFacts",
    "check_store",
    "estimate_ingest",
]
