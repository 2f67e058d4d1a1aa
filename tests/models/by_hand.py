"""Attention processors written out: softmax(Q Kᵀ / √d) V, with what they saw and a place to change it.

Axes are [line, head, query, key]; in a joint attention the cells of the picture come first, then the prompt's tokens.
"""

from __future__ import annotations

from contextlib import contextmanager

import torch


class ByHand:
    """In place of any processor of the tiny pipelines; `scores` and `pattern` may return something else for a call."""

    def __init__(self, scores=lambda call, x: x, pattern=lambda call, x: x):
        self.change_scores, self.change_pattern = scores, pattern
        self.scores, self.patterns = [], []

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, image_rotary_emb=None):
        joint = hasattr(attn, "add_q_proj") and attn.add_q_proj is not None
        source = hidden_states if encoder_hidden_states is None or joint else encoder_hidden_states
        q, k, v = attn.to_q(hidden_states), attn.to_k(source), attn.to_v(source)
        q, k, v = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (q, k, v))
        q, k = norm(attn.norm_q, q), norm(attn.norm_k, k)
        if joint:
            extra = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
            qt, kt, vt = (p(encoder_hidden_states).unflatten(-1, (attn.heads, -1)).transpose(1, 2) for p in extra)
            qt, kt = norm(attn.norm_added_q, qt), norm(attn.norm_added_k, kt)
            q, k, v = (torch.cat(pair, 2) for pair in ((q, qt), (k, kt), (v, vt)))
        n_text = 0
        if image_rotary_emb is not None:  # Flux: the tables begin with the prompt's tokens
            n_text = encoder_hidden_states.shape[1] if joint else self.n_text
            if not joint:
                q, k, v = (x.roll(-n_text, 2) for x in (q, k, v))
            q, k = (rotated(x, *(table.roll(-n_text, 0) for table in image_rotary_emb)) for x in (q, k))
        scores = torch.einsum("bhqd,bhkd->bhqk", q, k) / q.shape[-1] ** 0.5
        if attention_mask is not None:
            scores = scores + attention_mask[:, None]
        scores = self.change_scores(len(self.scores), scores)
        pattern = (scores - scores.amax(-1, keepdim=True)).exp()
        pattern = self.change_pattern(len(self.scores), pattern / pattern.sum(-1, keepdim=True))
        self.scores.append(scores)
        self.patterns.append(pattern)
        z = torch.einsum("bhqk,bhkd->bqhd", pattern, v).flatten(2)
        if image_rotary_emb is not None and not joint:
            return z.roll(n_text, 1)
        cells, tokens = z[:, : hidden_states.shape[1]], z[:, hidden_states.shape[1] :]
        cells = attn.to_out[0](cells)
        if not joint:
            return cells
        return cells, attn.to_add_out(tokens) if getattr(attn, "to_add_out", None) is not None else tokens

    n_text = 0
    """Tokens at the head of the sequence, for Flux's single blocks, which get cells and tokens as one."""


def norm(module, x):
    return x if module is None else module(x)


def rotated(x, cos, sin):
    a, b = x[..., ::2], x[..., 1::2]
    return (x.float() * cos + torch.stack([-b, a], -1).flatten(-2).float() * sin).to(
        x.dtype
    )  # as diffusers, in float32


@contextmanager
def processed(processors):
    """While the block runs, each module has its processor."""
    own = {module: module.processor for module in processors}
    try:
        for module, processor in processors.items():
            module.processor = processor
        yield
    finally:
        for module, processor in own.items():
            module.processor = processor
