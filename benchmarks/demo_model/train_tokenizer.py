"""Make the demo model's tokenizer.

A unigram vocabulary put together by hand: every word that the generator uses, the pieces of
names, letters, and bytes for everything else. A word's pieces are the same wherever it stands,
at the start of a line or behind a space, so that answering is copying.
"""

from __future__ import annotations

import argparse
import string
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from benchmarks.demo_model import prompts
from fusionrag_integrations.demo import MODEL_DIR, names, relations

BOS, EOS, PAD = "<|begin|>", "<|end|>", "<|pad|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
SPACE = "▁"

CHAT_TEMPLATE = (
    "<|begin|>{% for message in messages %}<|{{ message['role'] }}|>\n"
    "{{ message['content'] | trim }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def words() -> list[str]:
    """Every word of the generator's templates and prompts, without punctuation, sorted."""
    texts = [r.verb for r in relations.RELATIONS]
    texts += [ask for asks in relations.ASK.values() for ask in asks]
    texts += [word for columns in relations.WORDS.values() for c in columns for word in c]
    texts += [relations.BRIDGE_WORD, *relations.FILLER_STARTS, *relations.FILLER_SCENES]
    texts += [m for mentions in relations.FILLER_MENTIONS.values() for m in mentions]
    texts += [f"{f.system} {f.user}" for f in prompts.FORMATS]
    texts += ["She He It I you your and or not is are was were be been this that these those"]
    texts += [*names.WOMEN, *names.MEN, *names.SURNAMES, *names.PLACE_STEMS]
    texts += [*names.COMPANY_STEMS, *names.COMPANY_KINDS, *names.THING_STEMS, *names.THING_KINDS]
    kept = "".join(c if c.isalpha() else " " for c in " ".join(texts))
    return sorted({w for w in kept.split() if len(w) > 1})


def build() -> PreTrainedTokenizerFast:
    """The tokenizer, with its special tokens and chat template."""
    vocabulary: list[tuple[str, float]] = [(t, 0.0) for t in (PAD, BOS, EOS, *ROLES)]
    vocabulary += [(f"<0x{byte:02X}>", -20.0) for byte in range(256)]
    letters = [c for c in string.printable if c == "\n" or not c.isspace()]
    vocabulary += [(c, -10.0) for c in (SPACE, *letters)]
    vocabulary.append((SPACE + "\n", -5.0))
    vocabulary += [(SPACE + c, -10.0) for c in letters if c != "\n"]
    known = {piece for piece, _ in vocabulary}
    pieces = [SPACE + w for w in words()] + sorted(names.PLACE_ENDINGS)
    vocabulary += [(p, -5.0) for p in pieces if p not in known]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("\n"), "isolated"),
            pre_tokenizers.Metaspace(prepend_scheme="always", split=True),
            pre_tokenizers.Split(Regex(r"[^\p{L}\p{N}▁\n]|\p{N}"), "isolated"),
        ]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE + "\n", "\n"),
            decoders.Replace(SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Replace("\n ", "\n"),
            decoders.Strip(" ", 1, 0),
        ]
    )
    special = [AddedToken(t, special=True, normalized=False) for t in (PAD, BOS, EOS, *ROLES)]
    tokenizer.add_special_tokens(special)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=list(ROLES),
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def main() -> None:
    """Write the tokenizer's files."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, default=MODEL_DIR)
    build().save_pretrained(parser.parse_args().out)


if __name__ == "__main__":
    main()
