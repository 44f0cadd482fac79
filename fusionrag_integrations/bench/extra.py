"""What only measuring needs is asked for before anything is measured."""

from importlib.util import find_spec

from fusionrag_integrations.errors import InvalidInputError


def require_bench_extra() -> None:
    """Raises `InvalidInputError` where the extra `bench` isn't installed."""
    if find_spec("rouge_score") is None:
        raise InvalidInputError(
            "Measuring quality needs rouge-score: pip install 'fusionrag-integrations[bench]'"
        )
