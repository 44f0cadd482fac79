"""The packages that only measuring needs, which are asked for before anything is measured."""

from importlib.util import find_spec

from fusionrag_integrations.errors import InvalidInputError

_PACKAGES = {"matplotlib": "matplotlib", "rouge_score": "rouge-score"}


def require_bench_extra() -> None:
    """Raises `InvalidInputError` where the extra `bench` isn't installed as a whole."""
    missing = [package for module, package in _PACKAGES.items() if find_spec(module) is None]
    if missing:
        raise InvalidInputError(
            f"Measuring quality needs {' and '.join(missing)}: "
            "pip install 'fusionrag-integrations[bench]'"
        )
