"""What training asks of the model: its answers, and steps on the way to them.

Told only the answers, a model of this size finds facts by their wording and hardly learns to heed
whom they are about. So its middle is taught, too (deep supervision; Lee et al., 2015):

subjects  where a clause ends, and where its answer begins, a read-out of the hidden state must
          tell whom the clause is about
looks     at some tokens, all heads of a layer must look at the one token where what comes next is
          found
"""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from benchmarks.demo_model.packed_attention import question_mask, read
from benchmarks.demo_model.packing import IGNORED, Batch

# For every step of looking (`packing.Look`), the layer whose heads learn it. Before the first two
# of these layers, the model must know whom the first and second clause is about.
LOOK_LAYERS = (4, 6, 7)


class Trainee(torch.nn.Module):
    """The model with read-outs of its middle, which only training uses."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        super().__init__()
        self.model = model
        width = model.config.hidden_size
        self.read_outs = torch.nn.ModuleList(
            torch.nn.Sequential(
                torch.nn.RMSNorm(width),
                torch.nn.Linear(width, 2 * width, bias=False),
                torch.nn.Unflatten(-1, (2, width)),
            )
            for _ in range(2)
        )

    def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Mean cross entropy of every kind of label that the batch has."""
        states = read(self.model, batch)
        losses = {}
        for name, labels in (("answers", batch.answers), ("hints", batch.hints)):
            at = labels != IGNORED
            if bool(at.any()):
                # Only where there is a label: logits are wide.
                losses[name] = cross_entropy(self.model.lm_head(states[-1][at]), labels[at])
        for hop, read_out in enumerate(self.read_outs):
            at = batch.subjects[hop, ..., 0] != IGNORED
            if bool(at.any()):
                logits = self.model.lm_head(read_out(states[LOOK_LAYERS[hop]][at]))
                names = batch.subjects[hop][at]
                losses[f"subjects{hop}"] = cross_entropy(logits.flatten(0, 1), names.flatten())
        mask = question_mask(batch)
        for step, (layer, looks) in enumerate(zip(LOOK_LAYERS, batch.looks, strict=True)):
            if looks.numel():
                losses[f"looks{step}"] = self._look_loss(batch, states[layer], layer, looks, mask)
        return losses

    def _look_loss(
        self,
        batch: Batch,
        state: torch.Tensor,
        layer: int,
        looks: torch.Tensor,
        mask: torch.Tensor,
    ) -> torch.Tensor:
        """Cross entropy of attention, mean over all heads of the layer that reads `state`."""
        block, config = self.model.model.layers[layer], self.model.config
        normed = block.input_layernorm(state)
        query, key = (
            projection(normed).unflatten(-1, (config.num_attention_heads, -1)).transpose(1, 2)
            for projection in (block.self_attn.q_proj, block.self_attn.k_proj)
        )
        rotation = self.model.model.rotary_emb(state, batch.positions)
        query, key = apply_rotary_pos_emb(query, key, *rotation)
        rows, (tokens, at) = torch.arange(len(looks))[:, None], looks.unbind(-1)
        width = batch.in_context.shape[1]
        asking = tokens.clamp(min=width)  # padding looks from anywhere, and is dropped
        scores = torch.einsum("bnhd,bhtd->bnht", query[rows, :, asking], key)
        scores = scores * config.head_dim**-0.5 + mask[rows, 0, asking - width][:, :, None]
        known = tokens != IGNORED
        return cross_entropy(
            scores[known].flatten(0, 1), at[known].repeat_interleave(config.num_attention_heads)
        )
