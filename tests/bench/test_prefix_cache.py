"""A prefix cache: the same words as full attention, for less work where prompts begin alike."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fusionrag_integrations import Answer, AnswerSettings, FusionEngine
from fusionrag_integrations.bench.prefix_cache import PrefixCache
from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.prompt import NEUTRAL, question_prompt
from fusionrag_integrations.prompt.messages import Message, Prompt
from tests.conftest import town
from tests.tiny_models import COMMON, heads
from tests.tiny_tokenizers import byte_level_tokenizer

LAYERS = 3
TEXT = town(1).text
CHAT_PREFIX = f"<s><|system|>\n{NEUTRAL}<|end|>\n<|user|>\nContext:\n"
PLAIN_PREFIX = f"<s>{NEUTRAL}\n\nContext:\n"


@pytest.fixture(scope="module")
def chat(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> FusionEngine:
    path = tmp_path_factory.mktemp("prefix") / "store"
    engine = FusionEngine.from_pretrained(model_dir, store=path, chunk_tokens=48)
    engine.ingest([town(1)])  # a prefix cache makes no use of it
    return engine


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> FusionEngine:
    """A model without a chat template: prompts may begin with anything."""
    path = tmp_path_factory.mktemp("plain")
    tokenizer = byte_level_tokenizer()
    torch.manual_seed(1)
    config = COMMON | {"vocab_size": len(tokenizer)}
    LlamaForCausalLM(LlamaConfig(**config, **heads(4, 2))).save_pretrained(path / "model")
    tokenizer.save_pretrained(path / "model")
    return FusionEngine.from_pretrained(path / "model", store=path / "store")


def system(text: str) -> list[Message]:
    return [{"role": "system", "content": text}, {"role": "user", "content": TEXT}]


def worded(tokenizer: PreTrainedTokenizerFast, prompt: Prompt) -> list[int]:
    """The prompt's tokens, by the tokenizer alone; of messages where it has a template."""
    if not isinstance(prompt, str):
        prompt = str(
            tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        )
    return list(tokenizer(prompt, add_special_tokens=False).input_ids)


def shared(one: Sequence[int], other: Sequence[int]) -> int:
    return max(n for n in range(min(len(one), len(other)) + 1) if one[:n] == other[:n])


def both(engine: FusionEngine, prompt: Prompt, max_tokens: int = 12) -> tuple[Answer, Answer]:
    """By full attention, and with a prefix cache."""
    settings = AnswerSettings(kv="none", max_tokens=max_tokens)
    cache = PrefixCache(engine.model)
    return engine.answer(prompt, settings), cache.answer(prompt, settings.sampling)


def check(engine: FusionEngine, prefix: str, prompt: Prompt, max_tokens: int = 12) -> int:
    """Same answer, and counts that follow from the tokens; returns how many were shared."""
    ids = worded(engine.model.tokenizer, prompt)
    equal = shared(worded(engine.model.tokenizer, prefix), ids[:-1])
    full, cached = both(engine, prompt, max_tokens)
    assert cached.token_ids == full.token_ids
    assert cached.text == full.text
    assert cached.finish_reason == full.finish_reason
    usage = cached.usage
    assert usage.prompt_tokens == full.usage.prompt_tokens == len(ids)
    assert (usage.reused_tokens, usage.recomputed_tokens) == (equal, 0)
    assert (usage.fresh_tokens, usage.missed_tokens) == (len(ids) - equal, 0)
    assert usage.completion_tokens == len(cached.token_ids)
    assert full.usage.token_layers == LAYERS * len(ids)
    assert usage.token_layers == LAYERS * (len(ids) - equal)
    assert (cached.fused_chunks, cached.isolated_chunks, cached.missed_chunks) == (0, 0, 0)
    return equal


class TestChat:
    def test_a_prompt_that_begins_with_the_prefix(self, chat: FusionEngine) -> None:
        prefix = worded(chat.model.tokenizer, CHAT_PREFIX)
        prompt = question_prompt([TEXT], "Which house stands there?")
        assert check(chat, CHAT_PREFIX, prompt) == len(prefix)

    @pytest.mark.parametrize("text", [NEUTRAL[:-1], f"{NEUTRAL} Be brief.", "Answer in French."])
    def test_one_that_only_partly_does(self, chat: FusionEngine, text: str) -> None:
        whole = len(worded(chat.model.tokenizer, CHAT_PREFIX))
        role = len(worded(chat.model.tokenizer, "<s><|system|>\n"))
        assert role < check(chat, CHAT_PREFIX, system(text)) < whole

    def test_a_string_shares_only_the_first_token(self, chat: FusionEngine) -> None:
        user: list[Message] = [{"role": "user", "content": TEXT}]
        assert check(chat, CHAT_PREFIX, user) == 1  # <s>, then another role
        assert both(chat, TEXT)[1].token_ids == both(chat, user)[1].token_ids

    def test_one_prompt_leaves_the_next_alone(self, chat: FusionEngine) -> None:
        """What isn't shared is overwritten, in the request's own buffer only."""
        cache, sampling = PrefixCache(chat.model), AnswerSettings(max_tokens=12).sampling
        prompts = [TEXT, question_prompt([TEXT], "Which?"), system("Answer in French."), "Hello"]
        first = [cache.answer(prompt, sampling).token_ids for prompt in prompts]
        again = [cache.answer(prompt, sampling).token_ids for prompt in reversed(prompts)][::-1]
        assert again == first
        assert first == [both(chat, prompt)[0].token_ids for prompt in prompts]


class TestPlain:
    def test_a_prompt_that_begins_with_the_prefix(self, plain: FusionEngine) -> None:
        prefix = worded(plain.model.tokenizer, PLAIN_PREFIX)
        assert check(plain, PLAIN_PREFIX, PLAIN_PREFIX + "The old bridge.") == len(prefix)

    def test_one_that_does_not_at_all(self, plain: FusionEngine) -> None:
        assert check(plain, PLAIN_PREFIX, TEXT) == 0

    def test_one_that_is_the_prefix(self, plain: FusionEngine) -> None:
        """The last token is always computed: its logits give the answer's first."""
        prefix = worded(plain.model.tokenizer, PLAIN_PREFIX)
        assert check(plain, PLAIN_PREFIX, PLAIN_PREFIX) == len(prefix) - 1

    @pytest.mark.parametrize("max_tokens", [1, 3, 12])
    @pytest.mark.parametrize("prompt", ["<s>", "<s>Answer", "<s>Answer the", "The", "<s>Answer a"])
    def test_one_that_is_shorter(self, plain: FusionEngine, prompt: str, max_tokens: int) -> None:
        ids = worded(plain.model.tokenizer, prompt)
        assert len(ids) < len(worded(plain.model.tokenizer, PLAIN_PREFIX))
        assert check(plain, PLAIN_PREFIX, prompt, max_tokens) < len(ids)

    def test_what_it_computes_takes_time(self, plain: FusionEngine) -> None:
        cached = both(plain, PLAIN_PREFIX + "The old bridge.")[1]
        assert cached.ttft.prefill > 0.0
        assert cached.usage.prefix_tokens == cached.usage.reused_tokens
        assert (cached.full_reason, cached.short) == ("", False)
        assert "doesn't begin with" in both(plain, TEXT)[1].full_reason


def test_it_is_no_setting() -> None:
    with pytest.raises(InvalidInputError, match="'prefix'; choose one of isolated, fused, none"):
        AnswerSettings(kv="prefix")  # type: ignore[arg-type]
