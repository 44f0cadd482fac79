"""How the model and the texts that the package bundles were made.

make_corpus.py                      corpus.jsonl and questions.jsonl, about names held out
prompts.py, train_tokenizer.py      how prompts are rendered; the model's tokenizer
packing.py, packed_attention.py     many questions behind each context, each asked alone
induction.py, supervision.py, train.py, evaluate.py    the model
"""
