"""`differentiable`: train what edits are made of, without running what they cannot change.

States below the edited sites, and before the edited positions, do not depend on a rotation or a mask that
is trained there. They are computed once; each step reruns only the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import InterpError, SiteError
from interp.interventions.base_states import BaseStates, base_states
from interp.interventions.edits import Edit
from interp.interventions.packed import needed_sites
from interp.interventions.plan import Plan, compile_variants
from interp.interventions.run import Captures, capture_sites, run
from interp.interventions.schedule import Savings, part_of, schedule
from interp.interventions.sweep import ChunkLogits, base_logits
from interp.models.language_model import LanguageModel
from interp.models.prompts import Prompts
from interp.tasks.metrics import FunctionMetric, Readout


@dataclass(frozen=True, slots=True, eq=False)
class Differentiable:
    """Prompts whose base run is kept; call it with edits.

    Gradients flow from the logits to the tensors in the edits (`value`, `source`, `basis`). Freeze the network
    (`requires_grad_(False)`) unless you want its weights' gradients too.
    """

    model: LanguageModel
    prompts: Prompts
    readout: Readout
    shared: Plan
    base: BaseStates | None
    edits: tuple[Edit, ...]

    def __call__(self, edits: Sequence[Edit]) -> Float[Tensor, "batch read d_vocab"]:
        """Logits of the edited run where it is read (the last token, unless positions were named).

        Raises:
            SiteError: an edit at a site that was not announced.
        """
        example = torch.arange(len(self.prompts), device=self.model.device)
        if self.base is None:
            whole = run(self.model, self.prompts, [*self.edits, *edits], grad=True).logits
            assert whole is not None
            return whole[example[:, None], self.readout.positions]
        plan = compile_variants(self.model, self.prompts, [edits])
        missing = needed_sites(plan.sites, self.model.n_layers) - self.base.sites.keys()
        missing = {site for site in missing if site.part not in ("resid_pre", "resid_post")}
        if missing:
            raise SiteError(f"Name {', '.join(map(str, plan.sites))} in `sites` when calling differentiable.")
        # What an edit would change is not asked: a rotation must learn from edits that change nothing yet.
        savings = Savings(skip_noops=False)
        rows = schedule(self.model, plan, self.base, self.readout.positions.cpu().numpy(), savings)
        logits = base_logits(self.model, self.base, self.readout, example)
        if not len(rows):
            return logits
        chunk = part_of(rows, slice(0, len(rows)), self.shared, self.model.n_layers)
        found = torch.cat(
            [x for x, _ in ChunkLogits(self.model, plan, self.base, chunk, self.readout, savings).blocks()]
        )
        if np.array_equal(chunk.example, np.arange(len(logits))):
            return found
        return logits.index_copy(0, torch.from_numpy(chunk.example).to(found.device), found)


def differentiable(
    model: LanguageModel,
    inputs: str | Sequence[str] | Prompts | Tensor,
    sites: Captures,
    *,
    positions: Int[Tensor, "batch read"] | None = None,
    edits: Sequence[Edit] = (),
) -> Differentiable:
    """Prepare prompts for many differentiable runs with edits at `sites`.

    Args:
        sites: where the edits of later calls will be.
        positions: where logits are read; each prompt's last token if not given.
        edits: fixed edits of the base run, not trained.
    """
    prompts = model.prompts(inputs)
    wanted = capture_sites(model, sites)
    if not wanted:
        raise InterpError("`sites` is empty: name the sites that will be edited.")
    shared = compile_variants(model, prompts, [edits])
    readout = Readout.of(FunctionMetric(lambda logits, example: logits[:, 0], positions=positions), prompts.lengths)
    base = None
    if not model.not_replayable:
        base = base_states(model, shared, needed_sites((site.all_heads for site in wanted), model.n_layers))
    return Differentiable(model, prompts, readout, shared, base, tuple(edits))
