"""Replicas on Ray that are asked over HTTP, and what they tell of themselves."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from fusionrag_integrations import FusionEngine
from fusionrag_integrations.ray.settings import ServingSettings
from fusionrag_integrations.server import Keys
from tests.conftest import town
from tests.langchain.templates import WITH_TOOLS
from tests.server.conftest import KEYS, KEYS_FILE
from tests.tiny_models import COMMON, heads

PATIENCE = 60
COMPLETIONS = "/v1/completions"
PROMPT = f"{town(0).text}\n\n{town(1).text}\n\nWhich house?"
_REPLICA = re.compile(r'replica="(\w+)"')


@dataclass(frozen=True)
class Served:
    """Replicas with keys, and a single engine over the same store."""

    port: int
    keys_file: Path
    settings: ServingSettings
    alone: FusionEngine
    deployed: str

    def client(self, key: str = "admin") -> httpx.Client:
        headers = {"Authorization": f"Bearer {KEYS[key]}"} if key else {}
        url = f"http://127.0.0.1:{self.port}"
        return httpx.Client(base_url=url, headers=headers, timeout=PATIENCE)

    def ask(self, path: str = COMPLETIONS, body: Any = None, key: str = "admin") -> httpx.Response:
        with self.client(key) as client:
            return client.post(path, json={"prompt": PROMPT, "max_tokens": 4} | (body or {}))

    def now(self, name: str = "fusionrag_requests_now", of: str = "answering") -> Counter[str]:
        """A number of each replica, by its name."""
        with self.client() as client:
            lines = client.get("/metrics").text.splitlines()
        counts: Counter[str] = Counter()
        for line in lines:
            if line.startswith(f"{name}{{") and f'"{of}"' in line:
                counts[_REPLICA.findall(line)[0]] += int(float(line.split()[-1]))
        return counts


def model(path: Path, model_dir: Path, seed: int) -> Path:
    """A tiny model, whose answers don't end by themselves, and a template that knows tools."""
    tokenizer = AutoTokenizer.from_pretrained(model_dir, chat_template=WITH_TOOLS)
    torch.manual_seed(seed)
    config = COMMON | {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 2048,
        "eos_token_id": None,
    }
    LlamaForCausalLM(LlamaConfig(**config, **heads(4, 2))).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def written_keys(file: Path) -> Keys:
    """Keys of the server's tests, in a new file."""
    digests = {name: sha256(key.encode()).hexdigest() for name, key in KEYS.items()}
    file.write_text(KEYS_FILE.format(**digests))
    return Keys.read(file)


def actor(part: str) -> Any:
    """The Serve replica in whose name this is."""
    import ray
    from ray.util import list_named_actors

    [name] = [a["name"] for a in list_named_actors(all_namespaces=True) if part in a["name"]]
    return ray.get_actor(name, namespace="serve")
