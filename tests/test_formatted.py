"""A string that is in the model's chat format already isn't wrapped a second time."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
from tokenizers import processors

from fusionrag_integrations.errors import InvalidInputError
from fusionrag_integrations.prompt import encode, encode_rendered, is_formatted, render
from fusionrag_integrations.prompt.messages import Message
from tests.tiny_tokenizers import CHAT_TEMPLATE, byte_level_tokenizer

TURNS = "{% for m in messages %}"
# As published: how turns are written, and which of their words are control tokens.
TEMPLATES: dict[str, tuple[str, list[str]]] = {
    "chatml": (
        "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n"
        "{% endif %}" + TURNS + "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        ["<|im_start|>", "<|im_end|>"],
    ),
    "llama3": (
        "{{ bos_token }}" + TURNS + "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
        "{{ m.content | trim }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}"
        "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
        ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    ),
    "mistral": (
        "{{ bos_token }}{% set s = messages[0].content if messages[0].role == 'system' else '' %}"
        + TURNS
        + "{% if m.role == 'user' %}[INST] {{ s }} {{ m.content }} [/INST]"
        "{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
        [],
    ),
    "gemma": (
        "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}"
        + TURNS
        + "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content }}"
        "<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
        ["<start_of_turn>", "<end_of_turn>"],
    ),
    "glm": (
        "[gMASK]<sop>" + TURNS + "<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
        ["[gMASK]", "<sop>"],
    ),
    "thinking": (
        "{{ bos_token }}" + TURNS + "<|{{ m.role }}|>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}",
        [],
    ),
    "ours": (CHAT_TEMPLATE, []),
}
TEMPLATES["smollm"] = TEMPLATES["chatml"]  # whose bos token begins each turn
FORMATTED = {
    "chatml": [
        "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n",
        "\n<|im_start|>system\nBe brief.<|im_end|><|im_start|>user\nWho?<|im_end|>"
        "<|im_start|>assistant",
        "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\nIt is ",
        "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\nIt is Tia.<|im_end|>\n"
        "<|im_start|>user\nWhere?<|im_end|>\n<|im_start|>assistant\n",
    ],
    "llama3": [
        "<s><|start_header_id|>user<|end_header_id|>\n\nWho?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|start_header_id|>user<|end_header_id|>\n\nWho?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nIt is",
    ],
    "mistral": ["<s>[INST] Who? [/INST]", "[INST] Who? [/INST] It is"],
    "gemma": [
        "<start_of_turn>user\nWho?<end_of_turn>\n<start_of_turn>model\n",
        "<s><start_of_turn>user\nWho?<end_of_turn>\n<start_of_turn>model\nIt is",
    ],
    "glm": ["[gMASK]<sop><|user|>\nWho?<|assistant|>\n", "<|user|>\nWho?<|assistant|>\n"],
    "thinking": ["<s><|user|>Who?<|assistant|>", "<|user|>Who?<|assistant|><think>\n\n</think>"],
    "ours": ["<s><|user|>\nWho?<|end|>\n<|assistant|>\n", "<|user|>\nWho?<|end|>\n"],
}
FORMATTED["smollm"] = FORMATTED["chatml"]
NOT = [
    "Who makes lamps?",
    "What does <|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n mean?",
    "Context:\n[INST] Who? [/INST]\n\nWho?",
    "How do I use <|end|>, <|eot_id|>, <end_of_turn> and [/INST]?",
    "<start_of_turn>",
    "<s>Once upon a time",
    "<s>What is <|im_end|>, <|eot_id|>, <|end|> or [/INST]?",
]


def tokenizer_for(name: str) -> Any:
    """With a beginning that the tokenizer itself puts before texts, where models have one."""
    template, special = TEMPLATES[name]
    tokenizer = deepcopy(byte_level_tokenizer(chat=True))
    if name == "smollm":
        tokenizer.bos_token = "<|im_start|>"
    if special:
        tokenizer.add_special_tokens({"additional_special_tokens": special})
    if name == "thinking":
        tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.chat_template = template
    if name not in ("chatml", "smollm"):
        begins = ["[gMASK]", "<sop>"] if name == "glm" else ["<s>"]
        ids = [(token, tokenizer.convert_tokens_to_ids(token)) for token in begins]
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            " ".join([*begins, "$A"]), special_tokens=ids
        )
    return tokenizer


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_begins_and_ends_as_the_template_does(name: str) -> None:
    tokenizer = tokenizer_for(name)
    for text in FORMATTED[name]:
        assert is_formatted(tokenizer, text), text
    for text in NOT:
        assert not is_formatted(tokenizer, text), text
    messages: list[Message] = [{"role": "user", "content": "Who?"}]
    assert is_formatted(tokenizer, encode(tokenizer, messages).text)


@pytest.mark.parametrize("name", TEMPLATES)
def test_its_tokens_are_the_templates_and_begin_once(name: str) -> None:
    tokenizer = tokenizer_for(name)
    messages: list[Message] = [{"role": "user", "content": "Who makes lamps?"}]
    worded = encode(tokenizer, messages)
    for text in (worded.text, worded.text.removeprefix("<s>").removeprefix("[gMASK]<sop>")):
        raw = encode_rendered(tokenizer, render(tokenizer, text, raw=True))
        assert raw.token_ids == worded.token_ids
        assert raw.text[: raw.content_stop].rstrip().endswith("Who makes lamps?")


def test_raw_text_without_turns_is_left_alone() -> None:
    tokenizer = tokenizer_for("ours")
    raw = encode_rendered(tokenizer, render(tokenizer, "Once upon a time", raw=True))
    assert list(raw.token_ids) == tokenizer("Once upon a time").input_ids
    assert raw.content_stop == len("Once upon a time")


def test_raw_text_is_told_of_no_tools() -> None:
    with pytest.raises(InvalidInputError, match="by its chat template"):
        render(tokenizer_for("ours"), "Who?", [{"type": "function", "function": {}}], raw=True)


class TestPrefilled:
    @pytest.mark.parametrize("name", [name for name in TEMPLATES if name != "thinking"])
    def test_the_assistants_last_message_is_continued(self, name: str) -> None:
        tokenizer = tokenizer_for(name)
        asked: list[Message] = [{"role": "user", "content": "Who makes lamps?"}]
        begun = encode(tokenizer, [*asked, {"role": "assistant", "content": "It is Mira, who"}])
        assert begun.text == encode(tokenizer, asked).text.rstrip(" ") + (
            " It is Mira, who" if name == "mistral" else "It is Mira, who"
        )
        assert begun.text[: begun.content_stop].endswith("Who makes lamps?")
        closed = encode(tokenizer, [*asked, {"role": "assistant", "content": "Mira."}, *asked])
        assert "Mira." in closed.text
        assert closed.text.endswith(encode(tokenizer, asked).text[-12:])

    def test_thoughts_that_it_begins_with_are_tokens(self) -> None:
        tokenizer = tokenizer_for("thinking")
        encoded = encode(
            tokenizer,
            [
                {"role": "user", "content": "Who?"},
                {"role": "assistant", "content": "<think>\n\n</think>\n\n"},
            ],
        )
        ids = tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
        assert [i for i in encoded.token_ids if i in ids] == ids

    def test_a_call_of_a_tool_is_not_continued(self) -> None:
        tokenizer = tokenizer_for("ours")
        tokenizer.chat_template += "{{ tools | tojson if tools else '' }}"
        call = {"type": "function", "function": {"name": "f", "arguments": {}}}
        messages: list[Message] = [
            {"role": "user", "content": "Who?"},
            {"role": "assistant", "content": "Let me see.", "tool_calls": [call]},
        ]
        assert encode(tokenizer, messages).text.endswith("see.<|end|>\n<|assistant|>\n")

    def test_a_template_that_drops_it_is_named(self) -> None:
        tokenizer = tokenizer_for("ours")
        users = "{% set messages = messages | selectattr('role', 'equalto', 'user') | list %}"
        tokenizer.chat_template = users + tokenizer.chat_template
        with pytest.raises(InvalidInputError, match="changes the assistant's last message"):
            encode(
                tokenizer,
                [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "It is"}],
            )
