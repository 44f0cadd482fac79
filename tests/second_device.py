"""A second device that there is none of: tensors on it are the CPU's, but none meets one of the CPU
in an operation. `python -m tests.second_device` tries models that are spread over both; in a
process of its own, since a device is registered for good.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from fusionrag_integrations.execution.admission import check_movable
from fusionrag_integrations.execution.executor import Executor
from fusionrag_integrations.execution.hf.model import CausalModel
from tests.test_gates import CHUNKS, TOLERANCE, isolated, prompt_of_chunks, reference_of, warm
from tests.tiny_models import build

FAMILIES = ("llama_gqa2", "gpt_oss", "gemma4_shared", "deepseek_v3")  # sinks, shared KV, latents
CPU, SECOND = torch.device("cpu"), "second"
aten = torch.ops.aten


class Second(torch.Tensor):
    """A tensor on the second device."""

    raw: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, raw: torch.Tensor) -> Second:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            raw.size(),
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            device=torch.device(SECOND, 0),
        )
        made.raw = raw
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return operate(func, *args, **(kwargs or {}))


def operate(func: Any, *args: Any, **kwargs: Any) -> Any:
    """What the CPU makes of it, on the device where it belongs."""
    given = tree_leaves((args, kwargs))
    tensors = [one for one in given if isinstance(one, torch.Tensor)]
    seconds = [one for one in tensors if isinstance(one, Second)]
    if func is aten.copy_.default:
        unwrapped(args[0]).copy_(unwrapped(args[1]))
        return args[0]
    moves = func is aten._to_copy.default or func.overloadpacket is aten.to
    if seconds and not moves and any(one.dim() for one in tensors if not isinstance(one, Second)):
        raise RuntimeError(f"{func} of tensors on two devices")
    made = func(*tree_map(unwrapped, args), **tree_map(unwrapped, kwargs))
    named = [one for one in given if isinstance(one, torch.device)]
    stays = named[0].type == SECOND if named else bool(seconds)
    same = {id(one.raw): one for one in seconds}  # an operation in place gives what it was given

    def placed(one: Any) -> Any:
        if not isinstance(one, torch.Tensor) or not stays:
            return one
        return same[id(one)] if id(one) in same else Second(one)

    return tree_map(placed, made)


def unwrapped(one: Any) -> Any:
    if isinstance(one, torch.device):
        return CPU
    return one.raw if isinstance(one, Second) else one


def register() -> torch.library.Library:
    """The device exists as long as what this returns."""
    _setup_privateuseone_for_python_backend(SECOND)
    library = torch.library.Library("_", "IMPL")
    library.fallback(operate, "PrivateUse1")
    # PyTorch's own doesn't know devices like this one.
    tensor = torch.tensor
    torch.tensor = lambda data, *, dtype=None, device=CPU: tensor(data, dtype=dtype).to(device)
    return library


def spread(hf: Any) -> Any:
    """The model with its second half on the second device, as accelerate runs such models. Of
    layers with experts only the attention: how experts are computed depends on the kind of device.
    """
    base, second = hf.base_model, torch.device(SECOND, 0)
    half = len(base.layers) // 2
    if any("expert" in name for name, _ in hf.named_parameters()):
        attentions = [layer.self_attn for layer in base.layers[half:]]
        places = dict.fromkeys(attentions, second)
    else:
        places = dict.fromkeys(base.layers[:half], CPU)
        places |= dict.fromkeys((*base.layers[half:], base.norm, hf.lm_head), second)
    for module, device in places.items():
        module.to(device)
        back = "Attention" in type(module).__name__
        add_hook_to_module(module, AlignDevicesHook(device, io_same_device=back))
    return add_hook_to_module(hf, AlignDevicesHook(CPU, io_same_device=True))


def try_family(family: str) -> None:
    """Its gates: tried at load, recomputed in whole, and decoded."""
    model = CausalModel(spread(build(family)), None, family)
    executor, prompt = Executor(model), prompt_of_chunks()
    assert model.device == CPU
    assert {one.device.type for one in model.hf.parameters()} == {"cpu", SECOND}
    check_movable(executor)
    kvs = [isolated(model, ids) for ids in CHUNKS]
    logits, keys, values = warm(model, prompt, kvs, prompt.chunk_positions)
    expected, (true_keys, true_values) = reference_of(family).dense([*prompt.token_ids, 7])
    torch.testing.assert_close(logits, expected[-2], **TOLERANCE)
    end = len(prompt)
    torch.testing.assert_close(keys, true_keys[:, :, :end], **TOLERANCE)
    torch.testing.assert_close(values, true_values[:, :, :end], **TOLERANCE)
    dense, step = executor.prefill_dense(prompt.token_ids)
    torch.testing.assert_close(dense, expected[-2], **TOLERANCE)
    torch.testing.assert_close(step(7), expected[-1], **TOLERANCE)


if __name__ == "__main__":
    device = register()
    for name in FAMILIES:
        try_family(name)
