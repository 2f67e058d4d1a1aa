"""A language model that we wrote: some concepts of the first layer's stream compose concepts of the second's."""

from __future__ import annotations

import torch
import transformers as tf

from interp.concepts.levels import ConceptLevel
from interp.dictionaries.jumprelu import JumpReLU
from interp.dictionaries.standardise import Standardisation
from interp.models.load import load

WIDTH, CONSTANT, VOCABULARY, THRESHOLD = 32, 31, 240, 0.1
PARENTS, CHILDREN = (0, 1, 2, 3), (4, 5, 6, 7)
EDGES = {(0, 0): 2.0, (0, 1): 1.4, (1, 1): 1.6, (2, 2): 2.0}
"""(parent, child): how much of the parent's channel the second layer adds to the child's, about."""


def network(edges=EDGES, seed: int = 0):
    """Channels 0 to 3 are parents, 4 to 7 children, the last is constant, the others concepts that nobody asks for.

    Tokens decide what is on; attention does nothing. Parent 3 is on only where parent 2 is (and then mostly), and the tokens that have parent 1
    mostly have child 3 too: relations that no edge of the network stands behind.
    """
    random = torch.Generator().manual_seed(seed)
    config = tf.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    made = tf.LlamaForCausalLM(config).double().eval()

    def coin(p):
        return torch.rand(VOCABULARY, generator=random) < p

    on = torch.stack([coin(0.3) for _ in range(CONSTANT)], 1)
    on[:, 3] = on[:, 2] & coin(0.8)
    on[:, 7] = torch.where(coin(0.8), on[:, 1], coin(0.3))
    size = 1 + torch.rand(on.shape, generator=random, dtype=torch.float64)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if "norm" not in name and "lm_head" not in name:
                weight.zero_()
        embed = made.model.embed_tokens.weight
        embed.copy_(0.02 * torch.randn(embed.shape, generator=random, dtype=torch.float64))
        embed[:, :CONSTANT] += on * size
        embed[:, CONSTANT] = 12.0  # much longer than the rest, so that the norm divides all tokens by about the same
        mlp, scale = made.model.layers[1].mlp, WIDTH**0.5 / 12.8
        for unit, ((parent, child), weight) in enumerate(edges.items()):
            mlp.gate_proj.weight[unit, CONSTANT] = 1.0
            mlp.up_proj.weight[unit, PARENTS[parent]] = 1.0
            mlp.down_proj.weight[CHILDREN[child], unit] = weight / (12 * scale * scale)
    return load(made, name="planted concepts")


def level(name: str, site: str, channels=PARENTS) -> ConceptLevel:
    """Each channel is a latent, on above a threshold."""
    made = JumpReLU(Standardisation.identity(WIDTH, site, torch.float64), len(channels)).double()
    with torch.no_grad():
        directions = torch.eye(WIDTH, dtype=torch.float64)[list(channels)]
        made.atoms.copy_(directions)
        made.encoder.copy_(directions)
        made.log_threshold.fill_(THRESHOLD).log_()
    return ConceptLevel(name, made, range(len(channels)))


def levels() -> list[ConceptLevel]:
    """Parents after the first layer, children after the second."""
    return [level("parents", "L0.resid_post"), level("children", "L1.resid_post", CHILDREN)]


def prompts() -> torch.Tensor:
    """Random tokens."""
    return torch.randint(0, VOCABULARY, (40, 8), generator=torch.Generator().manual_seed(5))
