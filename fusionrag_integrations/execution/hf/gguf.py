"""Models from GGUF files: transformers' own loader unpacks them into plain weights."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import cached_file
from transformers.utils.versions import require_version

from fusionrag_integrations.errors import InvalidInputError, UnsupportedModelError
from fusionrag_integrations.execution.hf.supported import has_plain_rope, refuse_unsupported

# Of the extra. Older transformers takes the wrong token for the one that ends an answer.
REQUIREMENTS = ("accelerate>=1.10", "gguf>=0.17.1", "transformers>=5.18")
# By llama.cpp's names: those that this package supports and that transformers reads right. Of
# others it passes over what files say (StarCoder 2's RoPE base, the size of Qwen2's shared expert),
# or takes for given what they don't say (the scale of Gemma 2's attention, another at 27B).
ARCHITECTURES = ("gemma3", "llama", "phi3", "qwen2", "qwen3", "qwen3moe")
# The tensors that hold the frequencies of scaled RoPE.
_ROPE_TENSORS = {"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"}
_GEMMA3_PATTERN = 6  # of which one layer has no window: what transformers takes for given


def find_gguf(name_or_path: str | Path, gguf_file: str | None = None) -> Path | None:
    """The absolute path of the GGUF file that is meant; None for any other model.

    gguf_file: a file's name in the directory or hub repository `name_or_path`. Raises
    `InvalidInputError` where there is no such file.
    """
    path = Path(name_or_path)
    if gguf_file is not None and not path.is_dir():
        try:
            # A file in the hub's cache is a link to one without a name: links aren't resolved.
            return Path(str(cached_file(str(name_or_path), gguf_file))).absolute()
        except (OSError, ValueError) as error:
            raise InvalidInputError(
                f"There is no {gguf_file!r} in {str(name_or_path)!r}: {error} "
                "Give gguf_file= with a directory or hub name that holds it, or the file's path."
            ) from error
    if gguf_file is not None:
        path = path / gguf_file
    elif path.is_dir() or not (path.is_file() or path.suffix == ".gguf"):
        return None
    if not path.is_file():
        raise InvalidInputError(
            f"There is no file {str(path)!r}: give the path of a GGUF file, or the name of one, as "
            "gguf_file=, in a directory or a hub repository."
        )
    return path.absolute()


def load_gguf(path: Path, dtype: torch.dtype | str) -> tuple[PreTrainedModel, Any]:
    """The model in a GGUF file, with plain weights, and its tokenizer.

    Raises `InvalidInputError` where the extra `gguf` isn't installed or the file isn't a whole
    GGUF file, and `UnsupportedModelError` where transformers wouldn't read it right.
    """
    require_gguf_extra()
    metadata, tensors = _read_header(path)
    # Loaded as if from an empty directory: transformers would take a tokenizer.json or an adapter
    # beside the file for the model's own, and weights of the same name in the working directory.
    with TemporaryDirectory() as empty:
        given: dict[str, Any] = {"gguf_file": str(path), "trust_remote_code": False}
        try:
            config = AutoConfig.from_pretrained(empty, **given)
            refuse_unsupported(config)
            _refuse_unread(path, metadata, tensors, config)
            # What AutoTokenizer comes to, but it would read the whole file once more.
            tokenizer = PreTrainedTokenizerFast.from_pretrained(empty, **given)
            model, loaded = AutoModelForCausalLM.from_pretrained(
                empty,
                config=config,
                dtype=dtype,
                quantization_config=GgufConfig(dequantize=True),
                output_loading_info=True,
                **given,
            )
        except UnsupportedModelError:
            raise
        except Exception as error:  # of many kinds: `tokenizers` raises no other for a damaged file
            raise InvalidInputError(
                f"The model at {str(path)!r} can't be loaded: {error} "
                "It may be cut short: download it again, whole."
            ) from error
    # transformers passes over tensors that it has no place for, and makes up missing ones.
    in_pairs = sum(name.endswith(".ffn_up_exps.weight") for name in tensors)  # in one with the gate
    if loaded["missing_keys"] or len(tensors) - in_pairs != sum(1 for _ in model.parameters()):
        raise _unread(path, "some tensors")
    # The title that the file gives itself is no part of the model.
    vars(model.config).pop("_model_name_or_path", None)
    return model, tokenizer


def require_gguf_extra() -> None:
    """Raises `InvalidInputError` where the extra `gguf` isn't installed as a whole."""
    missing = [requirement for requirement in REQUIREMENTS if not _installed(requirement)]
    if missing:
        raise InvalidInputError(
            f"Loading a GGUF file needs {' and '.join(missing)}: "
            "pip install 'fusionrag-integrations[gguf]'"
        )


def _installed(requirement: str) -> bool:
    try:
        require_version(requirement)
    except ImportError:
        return False
    return True


def _read_header(path: Path) -> tuple[dict[str, Any], Sequence[str]]:
    """Metadata and the names of tensors, of an architecture that is supported."""
    # Young and no public name: nothing else may depend on it.
    from transformers.integrations.gguf import read_gguf_metadata

    try:
        metadata, tensors = read_gguf_metadata(str(path))
    except (OSError, ValueError, IndexError, OverflowError, struct.error) as error:
        raise InvalidInputError(
            f"{str(path)!r} is not a whole GGUF file: {error} Give a .gguf file as it was "
            "published, or a directory with config.json, weights and tokenizer."
        ) from error
    architecture = metadata["general.architecture"]
    if architecture not in ARCHITECTURES:
        raise UnsupportedModelError(
            f"GGUF files of architecture {architecture!r} are not supported; supported are "
            f"{', '.join(ARCHITECTURES)}. Of a supported model type, load the directory or hub "
            "name that the file was converted from."
        )
    if metadata.get(f"{architecture}.block_count", 0) > len(tensors):  # before layers are made
        raise _unread(path, "some tensors")
    return metadata, tensors


def _refuse_unread(
    path: Path, metadata: Mapping[str, Any], tensors: Sequence[str], config: Any
) -> None:
    """Refuse a file that says more of its attention than the configuration made from it."""

    def stated(key: str, default: Any = None) -> Any:
        return metadata.get(f"{metadata['general.architecture']}.{key}", default)

    expert_size = getattr(config, "moe_intermediate_size", None)
    head_size = stated("attention.key_length", config.hidden_size // config.num_attention_heads)
    window = stated("attention.sliding_window") or config.max_position_embeddings
    unread = {
        "the RoPE scaling": has_plain_rope(config)
        and (
            stated("rope.scaling.type", "none") != "none"
            or stated("rope.scaling.factor", 1.0) not in (0.0, 1.0)
            or stated("rope.scale_linear", 1.0) not in (0.0, 1.0)
            or not _ROPE_TENSORS.isdisjoint(tensors)
        ),
        "the size of the experts": stated("expert_feed_forward_length", expert_size) != expert_size,
        "the partial rotation": stated("rope.dimension_count", head_size) != head_size,
        "the sliding window": window < config.max_position_embeddings
        and (
            window != getattr(config, "sliding_window", None)
            or stated("attention.sliding_window_pattern", _GEMMA3_PATTERN) != _GEMMA3_PATTERN
        ),
    }
    for what, found in unread.items():
        if found:
            raise _unread(path, what)


def _unread(path: Path, what: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"transformers doesn't read {what} of the GGUF file {str(path)!r}, so the model would be "
        "another one. Load the directory or hub name that the file was converted from."
    )
