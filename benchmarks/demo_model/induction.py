"""Start a model with the circuit that copying needs, which is slow to be found by descent.

An induction circuit (Elhage et al., 2021; Olsson et al., 2022) continues "... a b ... a" with b:

layer 0, head 0   looks one position back and notes what stands there
layer 1           looks for a position whose note equals the current token, and copies its token

Later layers that are to copy, too, start with values that write what was read; where to look is
left to training.

With random weights a model of this size spends thousands of steps before it has found one; with
the circuit in place, copying is learned within a hundred. Training is free to change all of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import LlamaForCausalLM

EMBEDDING_STD = 0.05
CONSTANT = 0.3  # value of the embeddings' first dimension, by which a head can ignore content
LOOK_BACK = 2.0  # sharpness of looking one position back
NOTE = 0.1  # size of the note in the residual stream
MATCH = 1.3  # sharpness of comparing notes
COPY = 0.1  # size of what is copied


@torch.no_grad()
def write_induction_circuit(model: LlamaForCausalLM, copying: Sequence[int]) -> None:
    """Change the embeddings, the first two layers' attention, and values of layers `copying`."""
    size, width = model.config.head_dim, model.config.hidden_size
    embeddings = model.model.embed_tokens.weight
    embeddings.normal_(0.0, EMBEDDING_STD)
    embeddings[:, 0] = CONSTANT
    rows = torch.nn.init.orthogonal_(torch.empty(2 * size, width))
    content, note = rows[:size], rows[size:]

    back = model.model.layers[0].self_attn
    angles = model.model.rotary_emb.inv_freq
    normed = CONSTANT / ((EMBEDDING_STD**2 * (width - 1) + CONSTANT**2) / width) ** 0.5
    # Rotary pairs are (i, i + size / 2). A query turned back by one position fits best the key
    # that stands one position before it.
    query, key = torch.cat([angles.cos(), -angles.sin()]), torch.zeros(size)
    key[: size // 2] = 1.0
    for projection, vector, scale in (
        (back.q_proj, query, LOOK_BACK),
        (back.k_proj, key, LOOK_BACK / normed),
    ):
        projection.weight[:size] = 0.0
        projection.weight[:size, 0] = scale * vector
    back.v_proj.weight[:size] = content
    back.o_proj.weight[:, :size] = NOTE * note.T

    match = model.model.layers[1].self_attn
    heads = model.config.num_attention_heads
    match.q_proj.weight.copy_(MATCH * content.repeat(heads, 1))
    match.k_proj.weight.copy_(MATCH * note.repeat(heads, 1))
    for layer in (1, *copying):
        values = torch.nn.init.orthogonal_(torch.empty(width, width))
        model.model.layers[layer].self_attn.v_proj.weight.copy_(values)
        model.model.layers[layer].self_attn.o_proj.weight.copy_(COPY * values.T)
