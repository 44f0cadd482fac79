"""What the frameworks' own Hugging Face components hold: a loaded model, and how it generates.

They are known by what they have, since their packages needn't be installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.support.inputs import shown

_SETTINGS = {
    "max_new_tokens": "max_tokens",
    "repetition_penalty": "repetition_penalty",
    "stop_strings": "stop",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
}
_OF_SAMPLING = ("temperature", "top_k", "top_p")
# Of every model, or without a meaning where one prompt is answered token by token.
_UNNEEDED = frozenset(
    (
        *("do_sample", "bos_token_id", "pad_token_id", "generation_config", "use_cache"),
        *("transformers_version", "num_return_sequences"),
    )
)
TOP_K = 50  # where nobody says, as `generate` has it


@dataclass(frozen=True, slots=True, eq=False)
class HeldModel:
    """A component's model of transformers with its tokenizer, and its settings by our names."""

    model: Any
    tokenizer: Any
    settings: dict[str, Any]

    @classmethod
    def of_langchain(cls, llm: Any) -> HeldModel:
        """Of a `HuggingFacePipeline`, or a `ChatHuggingFace` over one.

        Raises `InvalidInputError` for anything else, and for settings that have no counterpart.
        """
        if hasattr(llm, "bound"):
            raise InvalidInputError(
                "llm is bound to settings of calls, which aren't carried over; give the component "
                "itself, and the settings as arguments."
            )
        pipeline: Any = getattr(getattr(llm, "llm", llm), "pipeline", None)
        if not hasattr(pipeline, "model") or not hasattr(pipeline, "tokenizer"):
            raise InvalidInputError(
                f"llm is {shown(llm)}; give a HuggingFacePipeline of langchain-huggingface, or a "
                "ChatHuggingFace over one."
            )
        # Where transformers keeps what a pipeline was made with, as it changed in 5.x.
        given: dict[str, Any] = {}
        for name in ("_forward_params", "_generate_kwargs"):
            given |= getattr(pipeline, name, {})
        config = getattr(pipeline, "generation_config", None)
        if config is None:  # of the model, over the pipeline's defaults
            defaults = getattr(type(pipeline), "_default_generation_config", None)
            by_default = defaults.to_diff_dict() if defaults else {}
        else:
            by_default = {}
            given = config.to_diff_dict() | given
        return cls(
            pipeline.model, pipeline.tokenizer, _translated(pipeline.model, by_default, given)
        )

    @classmethod
    def of_llama_index(cls, llm: Any) -> HeldModel:
        """Of a `HuggingFaceLLM`. Raises as `of_langchain` does."""
        if not hasattr(llm, "_model") or not hasattr(llm, "_tokenizer"):
            raise InvalidInputError(
                f"llm is {shown(llm)}; give a HuggingFaceLLM of llama-index-llms-huggingface."
            )
        if llm.stopping_ids:
            raise InvalidInputError(
                f"llm has stopping_ids={llm.stopping_ids}, which have no counterpart; put them "
                "into the eos_token_id of its model's generation_config, or their text into stop=."
            )
        given = {"max_new_tokens": llm.max_new_tokens} | llm.generate_kwargs
        settings = _translated(llm._model, {}, given)
        return cls(llm._model, llm._tokenizer, settings | _rendering(llm))


def _translated(
    model: Any, by_default: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """`generate`'s arguments, on top of the model's own and those of whoever calls it."""
    if own := given.get("generation_config"):
        given = {**own.to_diff_dict(), **given}
    unknown = {
        name: value
        for name, value in given.items()
        if name not in _SETTINGS and name not in _UNNEEDED and value is not None
        if value != getattr(model.generation_config, name, None)  # which answers follow, too
    }
    if unknown:
        named = ", ".join(f"{name}={value!r}" for name, value in unknown.items())
        raise InvalidInputError(
            f"llm generates with {named}, which has no counterpart; put it into its model's "
            f"generation_config, or leave it out. Carried over are {', '.join(_SETTINGS)}."
        )
    effective = {**by_default, **model.generation_config.to_diff_dict(), **given}
    sampled = bool(effective.get("do_sample"))
    settings = {
        ours: value
        for theirs, ours in _SETTINGS.items()
        if (value := effective.get(theirs)) is not None and (sampled or ours not in _OF_SAMPLING)
    }
    if sampled:
        settings = {"temperature": 1.0, "top_k": TOP_K} | settings
    stop = settings.get("stop")
    return settings | ({"stop": [stop]} if isinstance(stop, str) else {})


def _rendering(llm: Any) -> dict[str, Any]:
    """How LlamaIndex's component makes text of prompts and messages, where users said so."""
    rendering: dict[str, Any] = {"raw": None if llm.is_chat_model else True}
    if llm.system_prompt:
        rendering["system_prompt"] = llm.system_prompt
    if llm.query_wrapper_prompt.get_template() != "{query_str}":
        rendering["query_wrapper_prompt"] = llm.query_wrapper_prompt
    default = getattr(type(llm), "_tokenizer_messages_to_prompt", None)
    if getattr(llm.messages_to_prompt, "__func__", None) is not default:
        rendering["messages_to_prompt"] = llm.messages_to_prompt
    for name in ("completion_to_prompt", "output_parser"):
        if (given := getattr(llm, name)) is not None:
            rendering[name] = given
    return rendering
