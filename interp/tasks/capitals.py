"""Countries and capitals: "The capital of France is" → " Paris".

One word decides, and the answer stands nowhere in the prompt. (`facts` has this relation among others, in the wordings
that the model completes best; here a country stands in any of the sentences, so that both can be held out.)
"""

from __future__ import annotations

from random import Random

from interp.tasks.pairs import PromptPair, Task, check_count, part_of, split_name

# Country and capital, each one token with its leading space.
_CAPITALS = (
    "France/Paris Germany/Berlin Italy/Rome Spain/Madrid Portugal/Lisbon England/London Scotland/Edinburgh "
    "Ireland/Dublin Wales/Cardiff Russia/Moscow Poland/Warsaw Austria/Vienna Hungary/Budapest Greece/Athens "
    "Sweden/Stockholm Norway/Oslo Denmark/Copenhagen Finland/Helsinki Belgium/Brussels Switzerland/Bern Bulgaria/Sofia "
    "China/Beijing Japan/Tokyo Iran/Tehran Iraq/Baghdad Syria/Damascus Afghanistan/Kabul Egypt/Cairo Tunisia/Tunis "
    "Kenya/Nairobi Canada/Ottawa Cuba/Havana Jamaica/Kingston Peru/Lima Chile/Santiago Australia/Canberra"
)
CAPITALS = tuple((country, capital) for country, _, capital in (words.partition("/") for words in _CAPITALS.split()))
TEMPLATES = (
    "The capital of {} is",
    "The capital city of {} is",
    "The government of {} is in its capital city,",
    "In {}, the capital city is",
    "The parliament of {} meets in the city of",
    "The embassy in {} is in the city of",
    "The largest and oldest museum of {} stands in its capital,",
    "We flew to {} and landed in its capital,",
    "Everybody knows that the capital of {} is",
)


def capitals(n: int, seed: int = 0, split: str = "all") -> Task:
    """Pairs for the capital of a country.

    The corrupted prompt names another country, one token as well: `answer` and `wrong_answer` are the two capitals,
    `subject` and `corrupted_subject` the two countries.

    Args:
        n: number of pairs.
        seed: same seed, same pairs; the first k of n pairs do not depend on n.
        split: `"train"` and `"held out"` share neither a template nor a country.

    Raises:
        PairError: an unknown `split`, or `n` below 1.

    Measured: SmolLM2-135M prefers the answer in 100 and 100 of 100 pairs (`"train"` and `"held out"`, seed 0), and the
    wrong answer after 100 and 100 of the corrupted prompts.

    Source: Hanna, Pezzelle & Belinkov 2024 (arXiv:2403.17806), whose country-capital task this resembles; countries
        and sentences are our own.
    """
    check_count(n)
    frames, known = part_of(TEMPLATES, split), part_of(CAPITALS, split)
    random = Random(seed)
    pairs = []
    for _ in range(n):
        template, ((country, answer), (other, wrong_answer)) = random.choice(frames), random.sample(known, 2)
        pairs.append(
            PromptPair(
                clean=template.format(country),
                corrupted=template.format(other),
                answer=f" {answer}",
                wrong_answer=f" {wrong_answer}",
                subject=country,
                corrupted_subject=other,
            )
        )
    return Task(split_name("capitals", split), tuple(pairs), "after Hanna et al. 2024, arXiv:2403.17806", seed)
