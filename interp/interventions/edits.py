"""Edits: what to change, where, at which positions of which prompts. Values, never callbacks.

An edit says everything about itself, so that it can be checked before a forward pass, compiled into
arrays, and applied by one kernel to any number of rows at once (`interp.interventions.plan`). Edits act
in list order. None of them writes into its input.

Common arguments:
    site: where (`interp.models.site`); `head=None` means every head.
    positions: token positions; an int, a list for every prompt, or a [batch, n] tensor with each prompt's
        own. Negative ones count from the prompt's end. `None`: all tokens of the prompt. For
        scores and patterns of an attention these are query positions.
    rows: indices of the prompts concerned; `None`: all.
    units: indices on the last axis (neurons, for `mlp_act`; keys, for a denoiser's scores and patterns); `None`: all.
    when: passes of `generate` or of a denoising run that are concerned; `None`: every one.
    gate: what a state must hold for the edit to act there; `None`: it acts on all.
    keep_norm: whether the edited state (of each head, at a part with heads) is scaled back to the length that it had.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from jaxtyping import Float
from torch import Tensor

from interp.errors import InterpError, SiteError
from interp.interventions.captured import DenoisingRun, Run
from interp.models.guidance import Branch
from interp.models.site import Site

Positions: TypeAlias = int | Sequence[int] | Tensor | None


@dataclass(frozen=True, slots=True)
class UnderPrompt:
    """What the activation would be in this very state under another prompt: *state-matched* patching.

    Wherever an edit with this value acts, the denoiser also runs on the edited row's own x_t with the other prompt,
    unedited, and the value is taken from there. (A `DenoisingRun` as value is *trajectory-matched*: it holds what the
    other run had at the same step, on its own x_t.)

    Attributes:
        prompt: the other prompt (class label), the same for every edited row, or one for each row of the batch.
        negative: its negative prompt; `None`: the row's own.
    """

    prompt: str | int | tuple[str, ...] | tuple[int, ...]
    negative: str | None = None


@dataclass(frozen=True, slots=True)
class LiveRow:
    """As the value of an edit: what another row of the same pass has at the same place.

    Attributes:
        number: which other row; who applies the plan knows.
    """

    number: int


Value: TypeAlias = float | Tensor | Run | DenoisingRun | UnderPrompt | LiveRow
"""A number; a tensor that broadcasts to [row, position, (head,) width]; or a run, whose activation at
the same site, row and position (and step and branch) is taken (a run of one row serves every row)."""


@dataclass(frozen=True, slots=True)
class When:
    """In which passes of a run an edit acts: all that every given condition admits.

    Attributes:
        steps: in `generate`, 0 is the pass over the prompt and `k` the pass that reads the k-th new token; in a
            denoising run, `k` is the k-th step, 0 the noisiest. Text encoders run before all steps, in none.
        timesteps: (lowest, highest) timestep of the scheduler, both included; denoising only.
        sigmas: (lowest, highest) noise level σ/α, both included; denoising only.
        branch: the branch of classifier-free guidance; `None` means both. Denoising only.

    Raises:
        InterpError: a branch that is no `Branch`.
    """

    steps: Collection[int] | None = None
    timesteps: tuple[float, float] | None = None
    sigmas: tuple[float, float] | None = None
    branch: Branch | None = None

    def __post_init__(self) -> None:
        if self.branch is not None and not isinstance(self.branch, Branch):
            raise InterpError(f"branch={self.branch!r}: interp.Branch.COND, interp.Branch.UNCOND, or None for both.")


@dataclass(frozen=True, slots=True, eq=False)
class Gate:
    """Where in a run an edit acts, told from the states themselves: at places where x · read > threshold.

    x is the state as the edit finds it, after those before it in the list. With `UnderPrompt` or a run as value, the
    gate still looks at the edited row.

    Attributes:
        read: of the site's width (of a head's, at a part with heads).
        threshold: in the units of x · read; of a latent with a bias, its threshold minus the bias. The condition is
            hard: no gradient flows to `read`.
    """

    read: Float[Tensor, "width"]
    threshold: float


@dataclass(frozen=True, slots=True, eq=False)
class Latents:
    """Units of a dictionary: how each is read from a state x, and what it writes into it.

    The activation of unit i is a_i = z_i where z_i = x · read_i + bias_i exceeds threshold_i, and 0 elsewhere. A
    direction d of unit length is the latent whose read and write are both d.

    Attributes:
        read: [latent, width], rows of the encoder.
        write: [latent, width], rows of the decoder (atoms).
        bias: [latent]; `None`: 0.
        threshold: [latent], of JumpReLU units; 0 for a ReLU; `None`: none, so that a_i = z_i, of either sign.
    """

    read: Tensor
    write: Tensor
    bias: Tensor | None = None
    threshold: Tensor | None = None

    def __len__(self) -> int:
        return len(self.read)


@dataclass(frozen=True, slots=True, eq=False)
class Replace:
    """x ← value. Activation patching, when the value is a run."""

    site: Site
    value: Value
    positions: Positions = None
    rows: Sequence[int] | None = None
    units: Sequence[int] | None = None
    when: When | None = None
    gate: Gate | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Add:
    """x ← x + scale · value, in the activation's own units. Steering; noise."""

    site: Site
    value: Value
    scale: float = 1.0
    positions: Positions = None
    rows: Sequence[int] | None = None
    units: Sequence[int] | None = None
    when: When | None = None
    gate: Gate | None = None
    keep_norm: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Scale:
    """x ← factor · x."""

    site: Site
    factor: float
    positions: Positions = None
    rows: Sequence[int] | None = None
    units: Sequence[int] | None = None
    when: When | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Ablate:
    """x ← 0, a mean, or another prompt's value.

    Args:
        kind: `"zero"`; `"mean"`: the mean of `over` over its prompts and all their tokens, or, with
            `per_position`, over its prompts at each position; `"resample"`: the value at the same
            position of another prompt of `over`, drawn without fixed points by `seed`.
        over: the run that means or resamples are taken from; it must have captured the site.
    """

    site: Site
    kind: Literal["zero", "mean", "resample"] = "zero"
    over: Run | DenoisingRun | None = None
    per_position: bool = False
    seed: int = 0
    positions: Positions = None
    rows: Sequence[int] | None = None
    units: Sequence[int] | None = None
    when: When | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Swap:
    """x ← x + R Rᵀ (source − x): interchange of the subspace spanned by the columns of R.

    Args:
        source: as `value` of `Replace`.
        basis: R, [width, rank], orthonormal columns. Gradients flow to it in `differentiable`.
    """

    site: Site
    source: Value
    basis: Tensor
    positions: Positions = None
    rows: Sequence[int] | None = None
    when: When | None = None
    gate: Gate | None = None
    keep_norm: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Modulate:
    """x ← x + Σ_i (gain_i · a_i + offset_i − a_i) write_i: latents are read, changed, and only the change is written.

    gain 1 adds `offset`; gain 0 clamps to it; offset 0 multiplies, where the latent is active. All latents are read
    from the same x. What a dictionary does not explain stays as it was, since nothing is decoded; no other latent is
    computed. (Of a TopK dictionary that is the activation before the others compete.)

    Args:
        gain: one for all latents, or one each.
        offset: likewise, in the units of the activations.
    """

    site: Site
    latents: Latents
    gain: float | Sequence[float] = 1.0
    offset: float | Sequence[float] = 0.0
    positions: Positions = None
    rows: Sequence[int] | None = None
    when: When | None = None
    gate: Gate | None = None
    keep_norm: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Knockout:
    """Cut attention edges: these queries no longer see these keys; the rest of the row is renormalised.

    (For weights that are taken away without renormalising, scale the pattern: `Scale(site, 0.0, units=keys)`.)

    Args:
        layer: the layer, or a denoiser's block.
        keys: key positions, like `positions` an int, a list, or a [batch, n] tensor. A query must keep at
            least one visible key. In `generate` new tokens may be named too, from (prompt length) on.
        positions: query positions; `None`: every query (in `generate`, every one that is read at the steps
            of `when`).
        head: a query head, `None` for all.
        attention: which attention of a denoiser's block. Queries of each are cells; keys are cells of a self-attention,
            tokens of a cross-attention, both (cells first) of a joint one. Keys that the model masks count as visible
            here; a query that would see only such is found during the run.

    Raises:
        SiteError: a denoiser's block without `attention`, or a language model's layer with it.
    """

    layer: int | str
    keys: int | Sequence[int] | Tensor
    positions: Positions = None
    head: int | None = None
    rows: Sequence[int] | None = None
    when: When | None = None
    attention: Literal["self", "cross", "joint"] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.layer, str) == (self.attention is None):
            wants = "say which: 'self', 'cross' or 'joint'" if self.attention is None else "leave it out for a layer"
            raise SiteError(f"Knockout at {self.layer!r} with attention={self.attention!r}: {wants}.")

    @property
    def site(self) -> Site:
        """The scores that the cut edges belong to."""
        return Site(f"{self.attention or 'attn'}_scores", self.layer, self.head)


Edit: TypeAlias = Replace | Add | Scale | Ablate | Swap | Modulate | Knockout


def edits_of(*given: Any) -> list[Edit]:
    """Edits in order, from edits and lists of them, however deep.

    Raises:
        InterpError: something that is no edit.
    """
    found: list[Edit] = []
    for one in given:
        if isinstance(one, Edit):
            found.append(one)
        elif isinstance(one, Iterable) and not isinstance(one, str | bytes | Mapping | Tensor):
            found += edits_of(*one)
        else:
            what = "a function; call it" if callable(one) else f"a {type(one).__name__}; take the edits that it makes"
            raise InterpError(f"{one!r:.60} is no edit but {what}, such as concept.add(0.3).")
    return found
