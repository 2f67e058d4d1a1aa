"""GPT-2 without norms: what it is, what its weights must be, and what its words are."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from interp.errors import LoadError, PairError
from interp.models.load import load
from interp.models.normless import normless_gpt2, word_tokenizer

SHAPE = dict(n_layer=2, n_head=2, n_embd=8, n_inner=6, n_positions=8, vocab_size=5)
UP = "transformer.h.1.mlp.c_fc.weight"


def random_weights():
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(p.shape, generator=generator) for name, p in normless_gpt2(SHAPE, {}).named_parameters()}


def test_nothing_normalises_and_what_is_left_out_is_zero() -> None:
    network = normless_gpt2(SHAPE, {UP: torch.ones(8, 6)})
    assert not [module for module in network.modules() if isinstance(module, nn.LayerNorm)]
    assert sum(float(p.abs().sum()) for p in network.parameters()) == 48
    assert not network.training and not any(p.requires_grad for p in network.parameters())


def test_the_proofs_of_loading_hold_with_random_weights() -> None:
    model = load(normless_gpt2(SHAPE, random_weights()), name="random")
    assert model.not_replayable is None and not model.untouchable


def test_an_mlp_without_attention_is_what_it_is_by_hand() -> None:
    """relu, no norm: two layers of which only the second's MLP has weights."""
    weights = random_weights()
    alive = {name: w for name, w in weights.items() if ".h." not in name or ".h.1.mlp." in name}
    network = normless_gpt2(SHAPE, alive)
    ids = torch.tensor([[1, 4, 2]])
    x = weights["transformer.wte.weight"][ids[0]] + weights["transformer.wpe.weight"][:3]
    hidden = (x @ weights[UP] + weights["transformer.h.1.mlp.c_fc.bias"]).relu()
    x = x + hidden @ weights["transformer.h.1.mlp.c_proj.weight"] + weights["transformer.h.1.mlp.c_proj.bias"]
    assert torch.allclose(network(input_ids=ids).logits[0], x @ weights["lm_head.weight"].T, atol=1e-5)


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ({"transformer.h.0.ln_1.weight": torch.ones(8)}, "no such weight"),
        ({UP: torch.ones(6, 8)}, r"shape \(6, 8\) does not fit the network, which has \(8, 6\)"),
        ({UP: torch.full((8, 6), torch.nan)}, "holds NaN or infinite"),
    ],
)
def test_weights_that_do_not_fit_are_refused(weights, says) -> None:
    with pytest.raises(LoadError, match=says):
        normless_gpt2(SHAPE, weights)


def test_a_word_is_a_token_after_the_first_of_the_vocabulary() -> None:
    tokenizer = word_tokenizer(("bos", "x", "(", "1/2"))
    assert tokenizer("x 1/2 (").input_ids == [0, 1, 3, 2]
    assert tokenizer(["x", "( ("]).input_ids == [[0, 1], [0, 2, 2]]
    assert tokenizer("x (", add_special_tokens=False).input_ids == [1, 2]


def test_a_word_that_is_no_token_is_refused() -> None:
    with pytest.raises(PairError, match="'y' is no word of this model. Allowed: x, z"):
        word_tokenizer(("bos", "x", "z"))("x y")
