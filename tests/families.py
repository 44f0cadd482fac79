"""The table of tested model types in docs/models.md; `python -m tests.families` writes it anew."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel

from fusionrag_integrations.execution.hf.kv_layout import kv_layout
from tests.tiny_models import FACTORIES, build

PAGE = Path(__file__).parent.parent / "docs" / "models.md"
START, END = "<!-- python -m tests.families -->\n", "<!-- end -->"
PUBLISHED = {
    "apertus": "Apertus",
    "cohere2": "Command R7B, Command A",
    "deepseek_v2": "DeepSeek V2, DeepSeek Coder V2",
    "deepseek_v3": "DeepSeek V3, DeepSeek R1",
    "ernie4_5": "ERNIE 4.5, dense",
    "exaone4": "EXAONE 4.0",
    "gemma2": "Gemma 2",
    "gemma3_text": "Gemma 3 (text)",
    "gemma4_text": "Gemma 4 (text)",
    "glm4": "GLM-4-0414",
    "glm4_moe": "GLM-4.5, GLM-4.5-Air",
    "glm4_moe_lite": "GLM-4.7-Flash",
    "gpt_oss": "gpt-oss",
    "granite": "Granite 3, dense",
    "granitemoe": "Granite 3, mixtures of experts",
    "llama": "Llama 2 to 3.3, SmolLM2 and many others",
    "ministral": "Ministral 8B",
    "ministral3": "Ministral 3",
    "mistral": "Mistral 7B, Mistral Nemo, Mistral Small",
    "mixtral": "Mixtral",
    "olmo2": "OLMo 2",
    "olmo3": "OLMo 3",
    "phi3": "Phi-3, Phi-4, Phi-4-mini",
    "qwen2": "Qwen2, Qwen2.5",
    "qwen2_moe": "Qwen1.5-MoE, Qwen2-57B-A14B",
    "qwen3": "Qwen3, dense",
    "qwen3_moe": "Qwen3, mixtures of experts",
    "seed_oss": "Seed-OSS",
    "smollm3": "SmolLM3",
    "starcoder2": "StarCoder2",
}
REAL_WEIGHTS = {"llama": "SmolLM2-135M", "qwen2": "Qwen2.5-Coder-0.5B"}  # those of docs/quality.md


def table() -> str:
    """A row for each type, from what its tiny models have."""
    found: dict[str, list[str]] = {}
    for name in FACTORIES:
        model = build(name)
        features = found.setdefault(model.config.model_type, [])
        features += [one for one in _features(model) if one not in features]
    rows = [
        f"| `{kind}` | {PUBLISHED[kind]} | {', '.join(features)} | {REAL_WEIGHTS.get(kind, '')} |"
        for kind, features in sorted(found.items())
    ]
    head = ["| type | models | what its gates cover | real weights |", "| --- | --- | --- | --- |"]
    return "\n".join(head + rows) + "\n"


def _features(model: PreTrainedModel) -> list[str]:
    config, attention = model.config, model.base_model.layers[0].self_attn
    kinds = set(getattr(config, "layer_types", None) or ()) or {
        "sliding_attention" if getattr(config, "sliding_window", None) else "full_attention"
    }
    rope = config.rope_parameters
    ropes = [one for one in (rope, *rope.values()) if isinstance(one, dict) and "rope_type" in one]
    scalings = {one["rope_type"] for one in ropes}
    layout = kv_layout(model)
    has = {
        "full attention": "full_attention" in kinds,
        "windows": "sliding_attention" in kinds,
        "layers without positions": not all(layout.shape.rotated),
        "keys rotated in part": any(one.get("partial_rotary_factor", 1.0) < 1.0 for one in ropes),
        "latent attention": layout.expands,
        "heads of several sizes": len(set(getattr(layout, "value_sizes", ()))) > 1,
        "layers that share KV": layout.shape.shared,
        "soft caps": getattr(config, "attn_logit_softcapping", None) is not None,
        "sinks": hasattr(attention, "sinks"),
        "queries scaled by position": "llama_4_scaling_beta" in rope,
        "experts": any("expert" in name for name, _ in model.named_parameters()),
    }
    named = {"linear": "linear RoPE scaling", "llama3": "Llama 3's RoPE scaling", "yarn": "YaRN"}
    return [one for one, is_so in has.items() if is_so] + [
        text for kind, text in named.items() if kind in scalings
    ]


def rewritten(page: str) -> str:
    """The page with the table as it is now."""
    before, rest = page.split(START)
    return before + START + "\n" + table() + "\n" + rest[rest.index(END) :]


if __name__ == "__main__":
    PAGE.write_text(rewritten(PAGE.read_text()))
