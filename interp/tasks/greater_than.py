"""Greater-than: "The war lasted from the year 1732 to the year 17" → a decade after the thirties.

The answer follows from an order of the numbers, which no word of the prompt names. For tokenizers that write every
digit as a token of its own (SmolLM2, Llama 1 and 2, Gemma, Qwen): what comes next is then one digit, the decade.
"""

from __future__ import annotations

from random import Random

from interp.tasks.pairs import PromptPair, Task, check_count, part_of, split_name

TEMPLATES = (
    "The {event} lasted from the year {start} to the year {century}",
    "The {event} began in the year {start} and ended in the year {century}",
    "The {event} went on from the year {start} to the year {century}",
    "The {event} started in the year {start} and was over in the year {century}",
    "The great {event} lasted from the year {start} until the year {century}",
    "The second {event} continued from the year {start} to the year {century}",
)
EVENTS = tuple(
    "war siege famine drought plague expedition voyage journey campaign conflict dispute trial reign project strike "
    "festival tour study revolt rebellion blockade occupation crusade alliance mission debate".split()
)
CENTURIES = tuple(range(11, 20))


def greater_than(n: int, seed: int = 0, split: str = "all") -> Task:
    """Pairs for the order of two years.

    The clean prompt starts in decade d of a century and calls for the end: `answer` is a decade after d, which must be
    right, `wrong_answer` one before d, which cannot. In the corrupted prompt the start's decade, one token, is moved
    before the wrong answer, which thereby becomes possible. The answer stays possible, so that the logit difference of
    a model that knows nothing else of years falls towards zero or, as it prefers near ends, below. Neither is d
    itself, about which the last digit would have to decide. `subject` and `corrupted_subject` are the start years,
    `label` is d.

    Args:
        n: number of pairs.
        seed: same seed, same pairs; the first k of n pairs do not depend on n.
        split: `"train"` and `"held out"` share neither a template nor an event.

    Raises:
        PairError: an unknown `split`, or `n` below 1. Encoding refuses a tokenizer in which digits melt into one
            token.

    Measured: SmolLM2-135M prefers the answer in 100 and 100 of 100 pairs (`"train"` and `"held out"`, seed 0), and the
    wrong answer after 94 and 95 of the corrupted prompts.

    Source: Hanna et al. 2023, "How does GPT-2 compute greater-than?" (arXiv:2305.00586). Theirs is the first template;
    they compare the probability of all two-digit ends after and before the start, and corrupt with the start 01, after
    which all ends are possible.
    """
    check_count(n)
    frames, events = part_of(TEMPLATES, split), part_of(EVENTS, split)
    random = Random(seed)
    pairs = []
    for _ in range(n):
        earlier, wrong, decade, answer = sorted(random.sample(range(10), 4))
        words = {"event": random.choice(events), "century": random.choice(CENTURIES)}
        year, template = random.randrange(10), random.choice(frames)
        start, corrupted_start = (f"{words['century']}{d}{year}" for d in (decade, earlier))
        pairs.append(
            PromptPair(
                clean=template.format(start=start, **words),
                corrupted=template.format(start=corrupted_start, **words),
                answer=str(answer),
                wrong_answer=str(wrong),
                subject=start,
                corrupted_subject=corrupted_start,
                label=str(decade),
            )
        )
    return Task(split_name("greater-than", split), tuple(pairs), "Hanna et al. 2023, arXiv:2305.00586", seed)
