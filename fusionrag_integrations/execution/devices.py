"""Devices and dtypes by their names."""

from __future__ import annotations

from math import inf
from pathlib import Path

import torch

from fusionrag_integrations.errors import InvalidInputError

MEMORY = Path("/proc/meminfo")


def settle(device: torch.device) -> None:
    """Wait for the device's queued work, so that a clock read now counts it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def free_bytes(device: torch.device) -> float:
    """Memory that a device has to spare now; infinite where that isn't known."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return float(free)
    try:
        lines = MEMORY.read_text().splitlines()
    except OSError:  # not Linux
        return inf
    known = dict(line.split(":") for line in lines if ":" in line)
    return float(known["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in known else inf


def torch_device(device: str) -> torch.device:
    """The device of this name; "auto" is CUDA where there is one.

    Raises `InvalidInputError` for one that isn't there, or is none of CPU, CUDA and Apple's mps.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    unknown = InvalidInputError(f"Unknown device {device!r}; choose auto, cpu, cuda or mps.")
    try:
        target = torch.device(device)
    except RuntimeError as error:
        raise unknown from error
    if target.type not in ("cpu", "cuda", "mps"):
        raise unknown
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if not there[target.type]:
        raise InvalidInputError(f"There is no device {device!r} here; choose auto or cpu.")
    if target.type == "cuda" and (target.index or 0) >= torch.cuda.device_count():
        gpus = ", ".join(f"cuda:{index}" for index in range(torch.cuda.device_count()))
        raise InvalidInputError(f"There is no device {device!r} here; choose auto, cpu or {gpus}.")
    return target


def torch_dtype(dtype: str, device: torch.device) -> torch.dtype | str:
    """The dtype of this name; "auto" is float32 on a CPU, else "auto", the checkpoint's own.

    Raises `InvalidInputError` for another name.
    """
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    choices = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in choices:
        raise InvalidInputError(f"Unknown dtype {dtype!r}; choose auto, {', '.join(choices)}.")
    return choices[dtype]


def device_name(device: torch.device) -> str:
    """What timings are of: a GPU's own name, or "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
