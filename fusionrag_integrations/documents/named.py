"""An embedding, or another object of the user's, named as MODULE:NAME."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from types import FunctionType
from typing import TYPE_CHECKING

from fusionrag_integrations.errors import FusionRAGError, InvalidInputError

if TYPE_CHECKING:
    from fusionrag_integrations.documents.embedding import Embedder


def imported(name: str) -> object:
    """The embedding that MODULE:NAME names, called first where it is a class or a function."""
    from fusionrag_integrations.documents.embedding import as_embedder

    found = find("--embedding", name)
    try:
        made = found() if isinstance(found, type | FunctionType) else found
    except Exception as error:  # it is the user's, and may raise anything
        raise InvalidInputError(
            f"--embedding {name!r} can't be made ({type(error).__name__}: {error}). Name a class "
            "or function that takes no arguments, or an object."
        ) from error
    return _Named(name, as_embedder(made))


class _Named:
    """An embedder of the user's, whose errors are told by the option that named it."""

    def __init__(self, option: str, embedder: Embedder) -> None:
        self.name = embedder.name
        self._option = option
        self._embedder = embedder

    def embed_documents(self, texts: Sequence[str]) -> list[list[float]]:
        with self._telling():
            return self._embedder.embed_documents(texts)

    def embed_query(self, text: str) -> list[float]:
        with self._telling():
            return self._embedder.embed_query(text)

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except FusionRAGError:
            raise
        except Exception as error:  # it is the user's, and may raise anything
            raise InvalidInputError(
                f"--embedding {self._option!r} failed ({type(error).__name__}: {error}). Call it "
                "with a few texts by itself."
            ) from error


def find(option: str, name: str) -> object:
    """What MODULE:NAME names, which was given to `option`; raises `InvalidInputError`."""
    module, _, attribute = name.partition(":")
    try:
        found: object = getattr(import_module(module), attribute)
    except Exception as error:  # a module runs when it is imported, and may raise anything
        raise InvalidInputError(
            f"{option} {name!r} can't be imported ({error}). Give MODULE:NAME of something in an "
            "installed module, or in one on PYTHONPATH."
        ) from error
    return found
