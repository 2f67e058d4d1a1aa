"""An induction circuit by hand: two layers of attention, in a residual stream without a preferred basis.

`a0.h0` attends to the word before and notes it; `a1.h0` attends to where the word before was the present one, and
copies what stands there. The other head of each layer has random weights: it reads everything and writes where nobody
of the circuit looks. All of it is then turned by a random rotation, so that no coordinate means anything.

Source: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"; Olsson et al. 2022 (arXiv:2209.11895).
"""

from __future__ import annotations

from random import Random

import torch
from torch import Tensor

from interp.models.load import describe
from interp.tasks.pairs import PromptPair, Task, check_count
from interp.tasks.truth import GroundTruth

WORDS = tuple("abcdefghijkl")
LONGEST = 12
"""Words of the longest prompt."""

_VARYING = frozenset({"input->a0.h0<v>", "a0.h0->a1.h0<k>", "input->a1.h0<q>", "input->a1.h0<v>", "a1.h0->logits"})
_FIXED = frozenset({"input->a0.h0<q>", "input->a0.h0<k>"})


def induction_by_hand(n: int = 32, seed: int = 0, *, model_seed: int = 0) -> GroundTruth:
    """A hand-built induction model, pairs and circuit.

    A prompt is five to eleven different words and then one of them again; the answer is the word that followed it. In
    the corrupted prompt either the repeated word is another, or it stood before another word, or another word followed:
    each takes another way through the circuit.

    Args:
        n: number of pairs.
        seed: same seed, same pairs.
        model_seed: of the rotation and the idle heads.

    Raises:
        PairError: `n` below 1.
    """
    from interp.models.normless import word_tokenizer

    check_count(n)
    random, pairs = Random(seed), []
    for _ in range(n):
        *words, other = random.sample(WORDS, random.randrange(6, LONGEST + 1))
        at, elsewhere = random.sample(range(len(words) - 1), 2)
        clean, answer = [*words, words[at]], words[at + 1]
        match random.randrange(3):
            case 0:  # another question
                corrupted, wrong = [*words, words[elsewhere]], words[elsewhere + 1]
            case 1:  # the match stands before another word
                exchanged = {words[at]: words[elsewhere], words[elsewhere]: words[at]}
                corrupted = [*(exchanged.get(word, word) for word in words), words[at]]
                wrong = corrupted[elsewhere + 1]
            case _:  # another word after the match
                corrupted, wrong = [other if word == answer else word for word in clean], other
        pairs.append(PromptPair(" ".join(clean), " ".join(corrupted), f" {answer}", f" {wrong}"))
    vocabulary = ("bos", *WORDS)
    return GroundTruth(
        "induction-by-hand",
        "what followed this word before",
        describe(_network(len(vocabulary), model_seed), word_tokenizer(vocabulary), "induction-by-hand"),
        Task("induction-by-hand", tuple(pairs), "by hand, after Elhage et al. 2021", seed),
        circuits={"resample": _VARYING, "zero": _VARYING | _FIXED},
    )


def _network(d_vocab: int, seed: int) -> torch.nn.Module:
    from interp.models.normless import normless_gpt2

    generator = torch.Generator().manual_seed(seed)
    n_positions, spare = LONGEST + 1, 9
    sizes = {"token": d_vocab, "place": n_positions, "before": d_vocab, "answer": d_vocab, "idle": spare}
    width = sum(sizes.values())
    width += width % 2
    d_head = width // 2
    starts = dict(zip(sizes, torch.tensor([0, *sizes.values()]).cumsum(0).tolist(), strict=False))
    turn = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.double)).Q

    def reading(part: str, columns: int = d_head) -> Tensor:
        """[width, columns]: coordinate i of this part of the stream, in column i."""
        weight = torch.zeros(width, columns, dtype=torch.double)
        index = torch.arange(sizes[part])
        weight[starts[part] + index, index] = 1
        return weight

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.double) / width**0.5

    def idle() -> tuple[list[Tensor], Tensor]:
        return [noise(width, d_head) for _ in range(3)], noise(d_head, spare) @ reading("idle", spare).T

    sharp = 30 * d_head**0.5  # a score of 30 where query and key agree, 0 elsewhere
    nearest_before = torch.zeros(width, d_head, dtype=torch.double)
    nearest_before[:, 1:] = reading("place")[:, :-1]  # the key of place p is that which place p + 1 asks for
    heads = (
        (([sharp * reading("place"), nearest_before, reading("token")], reading("before").T), idle()),
        (([sharp * reading("token"), reading("before"), reading("token")], reading("answer").T), idle()),
    )
    weights = {
        "transformer.wte.weight": reading("token", d_vocab).T @ turn,
        "transformer.wpe.weight": reading("place", n_positions).T @ turn,
        "lm_head.weight": 10 * reading("answer", d_vocab).T @ turn,
    }
    for layer, pair in enumerate(heads):
        qkv = torch.cat([into[part] for part in range(3) for into, _ in pair], 1)
        weights[f"transformer.h.{layer}.attn.c_attn.weight"] = turn.T @ qkv
        weights[f"transformer.h.{layer}.attn.c_proj.weight"] = torch.cat([out for _, out in pair]) @ turn
    shape = dict(n_layer=2, n_head=2, n_embd=width, n_inner=1, n_positions=n_positions, vocab_size=d_vocab)
    return normless_gpt2(shape, {name: weight.float() for name, weight in weights.items()})
