"""Forms of steering that only a denoiser has: with a sign for each branch of guidance, and of x₀ alone.

`antisymmetric`: more of a concept in the conditional branch, less in the unconditional one, so that guidance amplifies
the difference (the form of the SDXL-unbox demonstration, Surkov et al. 2024, arXiv:2410.22366).

`x0_only`: a first-order sampler takes x_t apart into an estimate of the picture and one of the noise, and puts them
together with less noise:

    x_{t−1} = α' x̂₀ + σ' ε̂

Asyrp (Kwon et al. 2023, arXiv:2210.10960) steers the first and leaves the second as it would be without steering. Both
are affine in what the denoiser predicts, of whatever kind (ε, v, velocity), so that is the same as the prediction

    v ← c · v_steered + (1 − c) · v_unsteered,      c = r / (r − r'),   r = σ/α, r' = σ'/α'

which edits of the waist say: `v_unsteered` is what the prompt itself would give in this very state. As c is above 1
(and largest where steps are small), a strength means more here than in the plain form. It costs one more evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from interp.errors import InterpError
from interp.interventions.denoise import Denoising, Schedule
from interp.interventions.edits import Add, Edit, Scale, UnderPrompt, When
from interp.models.denoiser import Denoiser, Sampling
from interp.models.guidance import Branch
from interp.models.site import Site

_FIRST_ORDER = ("DDIMScheduler", "FlowMatchEulerDiscreteScheduler", "EulerDiscreteScheduler")
"""Deterministic schedulers of the form above."""


def antisymmetric(push: Callable[..., list[Edit]], strength: float, **how: object) -> list[Edit]:
    """`push` with `strength` in the conditional branch, and with −`strength` in the unconditional one.

    Args:
        push: such as `concept.add`.
        how: its other arguments; steps of `when` are kept.

    Raises:
        InterpError: a branch in `when`.
    """
    when = how.pop("when", None) or When()
    assert isinstance(when, When)
    if when.branch is not None:
        raise InterpError(f"An antisymmetric push acts in both branches; leave {when.branch.value!r} out.")
    edits: list[Edit] = []
    for branch, sign in ((Branch.COND, 1), (Branch.UNCOND, -1)):
        own = When(when.steps, when.timesteps, when.sigmas, branch)
        edits += push(sign * strength, when=own, **how)
    return edits


def x0_only(model: Denoiser, sampling: Sampling, edits: Sequence[Edit]) -> list[Edit]:
    """Edits that steer the estimate of the picture, and leave that of the noise as it was.

    Args:
        sampling: what will be run; the factor c depends on its schedule.

    Raises:
        InterpError: another sampler than DDIM's and Euler's without added noise, or one that clips x̂₀; a step that
            does not change the noise level; as `denoise`.
    """
    scheduler = model.pipeline.scheduler
    name, config = type(scheduler).__name__, scheduler.config
    noisy = bool(sampling.options.get("eta")) or getattr(config, "stochastic_sampling", False)
    clips = getattr(config, "clip_sample", False) or getattr(config, "thresholding", False)
    if name not in _FIRST_ORDER or noisy or clips:
        what = " with added noise" if noisy else " that clips" if clips else ""
        raise InterpError(
            f"{name}{what}: x̂₀ and the noise are told apart for {', '.join(_FIRST_ORDER)}, deterministic and unclipped."
        )
    rows = Denoising(model, sampling, [list(edits)])
    after = _levels_after(scheduler, rows.schedule)
    acting = sorted({step for edit in edits for step in _steps(rows, edit)})
    own = UnderPrompt(tuple(sampling.prompts))  # pyright: ignore[reportArgumentType]  # all of one kind
    out, site = list(edits), Site("prediction")
    for step in acting:
        now, then = rows.schedule.sigmas[step], after[step]
        if now == then:
            raise InterpError(
                f"Step {step} leaves the noise at σ/α = {now:g}: its prediction decides nothing, and x̂₀ alone cannot "
                f"be steered there. Leave the step out, or take another timestep spacing than this {name}'s."
            )
        # From pure noise (r = ∞) and to none (r' = 0) the noise's estimate does not matter: c = 1.
        c = 1.0 if now == float("inf") or then == 0 else now / (now - then)
        if c != 1:
            when = When(steps=[step])
            out += [Scale(site, c / (1 - c), when=when), Add(site, own, when=when), Scale(site, 1 - c, when=when)]
    return out


def _steps(rows: Denoising, edit: Edit) -> list[int]:
    """Steps that an edit reaches: of a text encoder's, every one."""
    text = str(edit.site.layer).startswith("text")
    return list(range(len(rows.schedule.sigmas))) if text else rows.passes(edit.when)


def _levels_after(scheduler: Any, schedule: Schedule) -> list[float]:
    """σ/α that each step arrives at, as the scheduler takes it.

    DDIM does not go to the next timestep but by an equal stride, whatever the spacing of its timesteps.
    """
    if not hasattr(scheduler, "final_alpha_cumprod"):
        return [*schedule.sigmas[1:], 0.0]
    stride = scheduler.config.num_train_timesteps // len(schedule.timesteps)
    kept = []
    for t in schedule.timesteps:
        before = int(t) - stride
        kept.append(float(scheduler.alphas_cumprod[before] if before >= 0 else scheduler.final_alpha_cumprod))
    return [((1 - alpha) / alpha) ** 0.5 for alpha in kept]
