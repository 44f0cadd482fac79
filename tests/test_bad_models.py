"""Models whose files are cut, broken or odd: each a named error, and no store is made."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest

from fusionrag_integrations import FusionEngine
from fusionrag_integrations.errors import InvalidInputError, UnsupportedModelError
from fusionrag_integrations.langchain import ChatFusionRAG


def _cut(name: str, share: float) -> Callable[[Path], None]:
    def cut(model: Path) -> None:
        content = (model / name).read_bytes()
        (model / name).write_bytes(content[: int(len(content) * share)])

    return cut


def _written(name: str, content: str) -> Callable[[Path], None]:
    return lambda model: (model / name).write_text(content) and None


def _lacking(model: Path) -> None:
    """Weights without one tensor, which transformers would make up."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(model / "model.safetensors")
    tensors.pop(next(name for name in tensors if "layers.1." in name))
    save_file(tensors, model / "model.safetensors", {"format": "pt"})


def _changed(name: str, **entries: Any) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        content = json.loads((model / name).read_text())
        (model / name).write_text(json.dumps(content | entries))

    return change


DAMAGE: dict[str, Callable[[Path], None]] = {
    "weights cut": _cut("model.safetensors", 0.6),
    "weights cut in the header": _cut("model.safetensors", 0.001),
    "weights empty": _cut("model.safetensors", 0),
    "weights that are none": _written("model.safetensors", "weights" * 99),
    "weights that lack a tensor": _lacking,
    "tokenizer cut": _cut("tokenizer.json", 0.5),
    "tokenizer that is none": _written("tokenizer.json", "[]"),
    "configuration cut": _cut("config.json", 0.5),
    "configuration that is a list": _written("config.json", "[]"),
    "configuration nested deeply": _written("config.json", '{"a":' * 5_000 + "1" + "}" * 5_000),
    "configuration of other sizes": _changed("config.json", hidden_size=48),
    "configuration of odd kinds": _changed("config.json", num_attention_heads="many"),
}
BROKEN = {
    "of no messages": "Hello",
    "that fails": "{{ messages + 5 }}",
    "that divides": "{{ 1 // 0 }}",
    "that isn't finished": "{% for m in messages %}{{ m.content }}",
    "that refuses": "{{ raise_exception('no') }}",
    "that calls nothing": "{{ nothing(1) }}",
}


@pytest.fixture
def model(model_dir: Path, tmp_path: Path) -> Path:
    return Path(copytree(model_dir, tmp_path / "model"))


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_files_that_cannot_be_loaded(
    model: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    damage(model)
    with pytest.raises((InvalidInputError, UnsupportedModelError), match="model"):
        FusionEngine.from_pretrained(model, store=tmp_path / "store")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("template", BROKEN.values(), ids=BROKEN.keys())
def test_templates_that_cannot_be_used(model: Path, tmp_path: Path, template: str) -> None:
    (model / "chat_template.jinja").unlink(missing_ok=True)
    _changed("tokenizer_config.json", chat_template=template)(model)
    with pytest.raises(UnsupportedModelError, match=r"chat template can't be used: .*published"):
        FusionEngine.from_pretrained(model, store=tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_a_template_that_fails_at_an_answer(
    engine: FusionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.model.tokenizer, "chat_template", "{{ messages + 5 }}")
    with pytest.raises(InvalidInputError, match="refuses these messages: TypeError"):
        ChatFusionRAG(engine=engine).invoke("Where?")


NEEDED = {  # what a checkpoint's quantisation says of itself, and a package that it needs
    "optimum": {"quant_method": "gptq", "bits": 4},
    "gptqmodel": {"quant_method": "awq", "bits": 4},
    "bitsandbytes": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    "compressed_tensors": {"quant_method": "compressed-tensors", "format": "pack-quantized"},
    "torchao": {"quant_method": "torchao", "quant_type": {"default": "int4_weight_only"}},
    "hqq": {"quant_method": "hqq"},
}


@pytest.mark.parametrize("package", NEEDED)
def test_what_a_quantisation_needs_is_named(model: Path, tmp_path: Path, package: str) -> None:
    if find_spec(package) is not None:
        pytest.skip(f"{package} is installed")
    _changed("config.json", quantization_config=NEEDED[package])(model)
    named = package.replace("_", "[_-]")
    with pytest.raises(InvalidInputError, match=f"(?i)can't be loaded here: .*{named}.* Install"):
        FusionEngine.from_pretrained(model, store=tmp_path / "store")
    assert not (tmp_path / "store").exists()
