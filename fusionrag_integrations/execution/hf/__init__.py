"""The only room that touches transformers' internals.

plain_model.py    `PlainModel`: any model with its tokenizer, and what is known of them
model.py          `CausalModel`: one whose KV can be moved and recomputed in part
loading.py        loading both by name, or from a directory; gguf.py: from a GGUF file
supported.py      which model families can be used, and why others can't
peft_adapters.py  LoRA and the like: loading them, and which of them act
signature.py      what identifies everything that stored KV depends on
own_pass.py       the model's own prefill, with the KV of all layers
own_sequence.py   a prompt and its answer by the model's own calls and cache, as `generate` has them
rotary.py         how keys depend on where their token stands, layer by layer
layers.py         some of a model's layers, on the same weights
rows_batches.py   rows of a pass, grouped by what kind of KV they have
rows_pass.py      what transformers is given to run over rows at any positions
generation.py     logits processors and stopping criteria, as the model's config asks for them
"""
