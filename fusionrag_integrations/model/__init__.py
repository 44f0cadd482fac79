"""A Hugging Face causal language model, seen as rows of tokens at positions over a KV buffer.

The only room that touches transformers' internals.

causal.py     the model: loading, passes over rows, and its own dense prefill
rows_pass.py  what transformers is given to run over rows
steps.py      one token after the other, on CUDA as a graph
buffer.py     the KV that rows write and read, in one place
in_place.py   the same over chunks where they lie
supported.py  which models can be used
gguf.py       models from GGUF files
devices.py    devices and dtypes by name
"""

from fusionrag_integrations.model.buffer import KVBuffer, RowsKV, SequenceKV
from fusionrag_integrations.model.causal import CausalModel, Run
from fusionrag_integrations.model.devices import device_name, torch_device, torch_dtype
from fusionrag_integrations.model.in_place import InPlaceKV
from fusionrag_integrations.model.rows_pass import Capture, ViewCapture
from fusionrag_integrations.model.steps import StepFunction
from fusionrag_integrations.model.supported import refuse_unsupported

__all__ = [
    "Capture",
    "CausalModel",
    "InPlaceKV",
    "KVBuffer",
    "RowsKV",
    "Run",
    "SequenceKV",
    "StepFunction",
    "ViewCapture",
    "device_name",
    "refuse_unsupported",
    "torch_device",
    "torch_dtype",
]
