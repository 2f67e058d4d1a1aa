"""AND and OR by hand: the smallest circuits on which methods that look at one edge at a time must fail.

Two heads fetch the first two words of a prompt, a bit each, and an MLP combines them. From `1 1` to `0 0`:

- **OR**, noising: take one bit away from the clean run, and the other still answers. No edge of the two branches shows
  any effect by itself. Denoising sees each: one bit is enough.
- **AND**, denoising: one bit brings nothing back. Noising sees each.

So neither direction alone finds both circuits, and gradients at either end find what patches of that end find.
"""

from __future__ import annotations

from random import Random

import torch

from interp.models.load import describe
from interp.tasks.pairs import PromptPair, Task, check_choice, check_count
from interp.tasks.truth import GroundTruth

LONGEST = 7
"""Words of the longest prompt; from the third on they change nothing."""

_VOCABULARY = ("bos", "0", "1", "no", "yes")
_ONE, _FIRST, _SECOND, _BIT, _A, _B, _OUT = range(7)  # directions of the residual stream, of eight
_BRANCHES = frozenset({"input->a0.h0<v>", "input->a0.h1<v>", "a0.h0->m0", "a0.h1->m0"})
_VARYING = _BRANCHES | {"m0->logits"}
_PLACES = frozenset({f"input->a0.h{head}<{part}>" for head in (0, 1) for part in "qk"})


def gate(kind: str, n: int = 32, seed: int = 0) -> GroundTruth:
    """A gate's model, pairs and circuit.

    The clean prompt begins with `1 1`, the corrupted one with `0 0`; up to five random bits follow, alike in both. The
    answers are `yes` and `no`, ten logits apart.

    Args:
        kind: `"and"` or `"or"`.
        n: number of pairs.
        seed: same seed, same pairs.

    Raises:
        PairError: another kind, or `n` below 1.
    """
    from interp.models.normless import word_tokenizer

    check_choice("gate", kind, ("and", "or"))
    check_count(n)
    random, pairs = Random(seed), []
    for _ in range(n):
        rest = [random.choice("01") for _ in range(random.randrange(LONGEST - 1))]
        pairs.append(PromptPair(" ".join(["1", "1", *rest]), " ".join(["0", "0", *rest]), " yes", " no"))
    task = Task(f"gate-{kind}", tuple(pairs), "by hand", seed)
    return GroundTruth(
        f"gate-{kind}",
        f"{kind.upper()} of the first two bits",
        describe(_network(kind), word_tokenizer(_VOCABULARY), f"gate-{kind}"),
        task,
        circuits={"resample": _VARYING, "zero": _VARYING | _PLACES | {"input->logits"}},
        unseen={"denoising": _BRANCHES} if kind == "and" else {"noising": _BRANCHES, "zero": _BRANCHES | _PLACES},
    )


def _network(kind: str) -> torch.nn.Module:
    from interp.models.normless import normless_gpt2

    width, d_head = 8, 4
    token, place = torch.zeros(len(_VOCABULARY), width), torch.zeros(LONGEST + 1, width)
    token[_VOCABULARY.index("1"), _BIT] = 1
    place[:, _ONE] = 1
    place[1, _FIRST] = place[2, _SECOND] = 1
    into, out = torch.zeros(width, 3 * width), torch.zeros(width, width)
    for head, (where, what) in enumerate(((_FIRST, _A), (_SECOND, _B))):
        query, key, value = (part * width + head * d_head for part in range(3))
        into[_ONE, query], into[where, key] = 20.0, 10.0  # a score of 100 for the place, 0 for any other
        into[_BIT, value] = 1
        out[head * d_head, what] = 1
    # OR = relu(a + b + 1) − relu(a + b − 1) − 1, AND = relu(a + b − 1): neither bends at 0 or 2, where the runs are, so
    # that gradients there are what they seem.
    up, down, constant = torch.zeros(width, 2), torch.zeros(2, width), torch.zeros(width)
    up[_A], up[_B] = 1, 1
    down[:, _OUT] = torch.tensor([1.0, -1.0] if kind == "or" else [0.0, 1.0])
    constant[_OUT] = -1.0 if kind == "or" else 0.0
    unembed = torch.zeros(len(_VOCABULARY), width)
    unembed[_VOCABULARY.index("yes"), _OUT], unembed[_VOCABULARY.index("no"), _ONE] = 20.0, 10.0
    block = "transformer.h.0"
    return normless_gpt2(
        dict(n_layer=1, n_head=2, n_embd=width, n_inner=2, n_positions=LONGEST + 1, vocab_size=len(_VOCABULARY)),
        {
            "transformer.wte.weight": token,
            "transformer.wpe.weight": place,
            f"{block}.attn.c_attn.weight": into,
            f"{block}.attn.c_proj.weight": out,
            f"{block}.mlp.c_fc.weight": up,
            f"{block}.mlp.c_fc.bias": torch.tensor([1.0, -1.0]),
            f"{block}.mlp.c_proj.weight": down,
            f"{block}.mlp.c_proj.bias": constant,
            "lm_head.weight": unembed,
        },
    )
