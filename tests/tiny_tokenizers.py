"""Small tokenizers made in memory, of the two kinds that models use."""

from __future__ import annotations

import json
from functools import lru_cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TRAINING = (
    "The quick brown fox jumps over the lazy dog near the old river bank.",
    "Mira founded the company in the small town by the sea, and it makes lamps.",
    "Question: which city is it? Answer: the city by the river.",
    "Answer the question from the context. Observation: nothing happened there.",
) * 5

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] | trim }}"
    "<|end|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
# As Llama 3.2 and Mistral Small write the day into their system blocks.
DATED_TEMPLATES = {
    "given or asked": (
        "{{ bos_token }}{%- if not date_string is defined %}{%- if strftime_now is defined %}"
        "{%- set date_string = strftime_now('%d %b %Y') %}{%- else %}"
        "{%- set date_string = '26 Jul 2024' %}{%- endif %}{%- endif %}"
        "{%- if messages[0]['role'] == 'system' %}{%- set told = messages[0]['content'] | trim %}"
        "{%- set messages = messages[1:] %}{%- else %}{%- set told = '' %}{%- endif %}"
        "{{- '<|system|>\nToday Date: ' + date_string + '\n\n' + told + '<|end|>\n' }}"
        "{%- for m in messages %}{{- '<|' + m['role'] + '|>\n' + m['content'] | trim }}"
        "{{- '<|end|>\n' }}"
        "{%- endfor %}{%- if add_generation_prompt %}{{- '<|assistant|>\n' }}{%- endif %}"
    ),
    "in a macro": (
        "{%- macro day() %}{{ strftime_now('%A %-d %B, %H:%M:%S') }}{% endmacro %}\n"
        "{{- bos_token }}{%- for m in messages %}{{- '<|' + m['role'] + '|>\n' }}"
        "{%- if m['role'] == 'system' %}{{- 'It is ' + day() + '. ' }}{%- endif %}"
        "{{- m['content'] + '<|end|>\n' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|assistant|>\n' }}{%- endif %}"
    ),
    "yesterday's": (
        "{%- set year = strftime_now('%Y') | int %}{%- set day = strftime_now('%j') | int - 1 %}"
        "{{- bos_token }}{%- for m in messages %}{{- '<|' + m['role'] + '|>\n' }}"
        "{%- if loop.first %}{{- year ~ '/' ~ day ~ '. ' }}{%- endif %}"
        "{{- m['content'] + '<|end|>\n' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|assistant|>\n' }}{%- endif %}"
    ),
}
SPECIAL = ["<pad>", "<s>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]


@lru_cache
def byte_level_tokenizer(
    chat: bool = False, training: tuple[str, ...] = TRAINING, vocabulary: int = 500
) -> PreTrainedTokenizerFast:
    """Byte-level BPE, as of GPT-2, Llama 3 and Qwen."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=SPECIAL,
        show_progress=False,
    )
    tokenizer.train_from_iterator(training, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="<|end|>",
        pad_token="<pad>",
        chat_template=CHAT_TEMPLATE if chat else None,
    )


@lru_cache
def metaspace_tokenizer() -> PreTrainedTokenizerFast:
    """BPE whose tokens carry the space before them, with bytes for rare characters; as Llama 2."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    special = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(TRAINING, trainer)
    # `special` bytes are tokens of the vocabulary, not special ones: load them without the marks.
    plain = Tokenizer.from_str(json.dumps(json.loads(tokenizer.to_str()) | {"added_tokens": []}))
    return PreTrainedTokenizerFast(tokenizer_object=plain, bos_token="<s>", unk_token="<unk>")
