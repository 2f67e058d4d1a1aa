"""`differentiable`: train what edits are made of, without running what they cannot change.

States below the edited sites, and before the edited positions, do not depend on a rotation or a mask that
is trained there. They are computed once; each step reruns only the rest. Many variants (the cells of a search over
layers and positions, say) are rows of one pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import InterpError, SiteError
from interp.interventions.base_states import BaseStates, base_states
from interp.interventions.edits import Edit
from interp.interventions.packed import needed_sites
from interp.interventions.plan import Index, Plan, compile_variants
from interp.interventions.run import Captures, capture_sites, run, run_plan
from interp.interventions.schedule import Savings, part_of, schedule
from interp.interventions.sweep import ChunkLogits, base_logits
from interp.models.language_model import LanguageModel
from interp.models.prompts import Prompts
from interp.tasks.metrics import FunctionMetric, Readout

_SAVINGS = Savings(skip_noops=False)
"""What an edit would change is not asked: a rotation must learn from edits that change nothing yet."""


@dataclass(frozen=True, slots=True, eq=False)
class EditedRows:
    """Logits of the rows that had to run.

    Attributes:
        variant, example: of each row, which comes first and which fastest is not said.
        logits: where the run is read.
    """

    variant: Int[Tensor, "row"]
    example: Int[Tensor, "row"]
    logits: Float[Tensor, "row read d_vocab"]


@dataclass(frozen=True, slots=True, eq=False)
class Differentiable:
    """Prompts whose base run is kept; call it with edits.

    Gradients flow from the logits to the tensors in the edits (`value`, `source`, `basis`). Ask for those alone
    (`torch.autograd.grad`): then no gradient of a weight is computed, whether or not the network is frozen.
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
        found = self.rows([edits])
        logits = self.base_logits()
        if np.array_equal(found.example.cpu().numpy(), np.arange(len(logits))):
            return found.logits
        return logits.index_copy(0, found.example, found.logits)

    def rows(self, variants: Sequence[Sequence[Edit]]) -> EditedRows:
        """Logits of many variants, in one pass: of each variant on the prompts that its edits can reach.

        A variant that names `rows` runs on those alone. What is missing is the base run (`base_logits`).

        Raises:
            SiteError: as above.
        """
        plan = compile_variants(self.model, self.prompts, variants)
        if self.base is None:
            return self._whole_passes(plan, variants)
        missing = needed_sites(plan.sites, self.model.n_layers) - self.base.sites.keys()
        missing = {site for site in missing if site.part not in ("resid_pre", "resid_post")}
        if missing:
            raise SiteError(f"Name {', '.join(map(str, plan.sites))} in `sites` when calling differentiable.")
        rows = schedule(self.model, plan, self.base, self.readout.positions.cpu().numpy(), _SAVINGS)
        if not len(rows):
            return self._rows(rows.variant, rows.example, self.base_logits()[:0])
        chunk = part_of(rows, slice(0, len(rows)), self.shared, self.model.n_layers)
        logits = ChunkLogits(self.model, plan, self.base, chunk, self.readout, _SAVINGS).blocks()
        return self._rows(chunk.variant, chunk.example, torch.cat([x for x, _ in logits]))

    def base_logits(self) -> Float[Tensor, "batch read d_vocab"]:
        """Logits of the base run where it is read."""
        example = torch.arange(len(self.prompts), device=self.model.device)
        if self.base is not None:
            return base_logits(self.model, self.base, self.readout, example)
        whole = run(self.model, self.prompts, self.edits).logits
        assert whole is not None
        return whole[example[:, None], self.readout.positions]

    def _whole_passes(self, plan: Plan, variants: Sequence[Sequence[Edit]]) -> EditedRows:
        """The rows of one plain forward pass over copies of the prompts, for models that are not run block by block."""
        batch = len(self.prompts)
        pairs = [op.variant * batch + op.example for ops in plan.sites.values() for op in ops]
        pair = np.unique(np.concatenate([np.empty(0, dtype=np.int64), *pairs]))
        variant, example = pair // batch, pair % batch
        if not len(pair):
            return self._rows(variant, example, self.base_logits()[:0])
        both = compile_variants(self.model, self.prompts, [[*self.edits, *variants[int(v)]] for v in variant])
        sites = {}
        for site, ops in both.sites.items():
            # A variant of `both` is one row: of all prompts that its edits name, only the row's own is meant.
            own = [op.select(op.example == example[op.variant]) for op in ops]
            sites[site] = tuple(replace(op, variant=op.variant * 0, example=op.variant) for op in own)
        whole = run_plan(self.model, Plan(self.prompts.select(example.tolist()), 1, sites), (), grad=True).logits
        assert whole is not None
        at = torch.arange(len(pair), device=whole.device)[:, None]
        return self._rows(variant, example, whole[at, self.readout.positions[torch.from_numpy(example)]])

    def _rows(self, variant: Index, example: Index, logits: Tensor) -> EditedRows:
        at = [torch.from_numpy(x.copy()).to(logits.device) for x in (variant, example)]
        return EditedRows(at[0], at[1], logits)


def differentiable(
    model: LanguageModel,
    inputs: str | Sequence[str] | Prompts | Tensor,
    sites: Captures,
    *,
    positions: Int[Tensor, "batch read"] | None = None,
    edits: Sequence[Edit] = (),
    base: BaseStates | None = None,
) -> Differentiable:
    """Prepare prompts for many differentiable runs with edits at `sites`.

    Args:
        sites: where the edits of later calls will be.
        positions: where logits are read; each prompt's last token if not given.
        edits: fixed edits of the base run, not trained.
        base: the base run's states, where they are known already (`states_with_source`).
    """
    prompts = model.prompts(inputs)
    wanted = capture_sites(model, sites)
    if not wanted:
        raise InterpError("`sites` is empty: name the sites that will be edited.")
    shared = compile_variants(model, prompts, [edits])
    readout = Readout.of(FunctionMetric(lambda logits, example: logits[:, 0], positions=positions), prompts.lengths)
    if base is None and not model.not_replayable:
        base = base_states(model, shared, needed_sites((site.all_heads for site in wanted), model.n_layers))
    return Differentiable(model, prompts, readout, shared, base, tuple(edits))
