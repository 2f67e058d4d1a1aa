"""interp: causal, mechanistic interpretability of transformers and diffusion models.

The names below are loaded when they are first used, so that `import interp` is light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

_HOMES = {
    "load": "interp.models.load",
    "LanguageModel": "interp.models.language_model",
    "Denoiser": "interp.models.denoiser",
    "Sampling": "interp.models.denoiser",
    "Branch": "interp.models.guidance",
    "Prompts": "interp.models.prompts",
    "Site": "interp.models.site",
    "Replace": "interp.interventions.edits",
    "Add": "interp.interventions.edits",
    "Scale": "interp.interventions.edits",
    "Ablate": "interp.interventions.edits",
    "Swap": "interp.interventions.edits",
    "Modulate": "interp.interventions.edits",
    "Gate": "interp.interventions.edits",
    "Latents": "interp.interventions.edits",
    "Knockout": "interp.interventions.edits",
    "When": "interp.interventions.edits",
    "UnderPrompt": "interp.interventions.edits",
    "Run": "interp.interventions.captured",
    "DenoisingRun": "interp.interventions.captured",
    "run": "interp.interventions.run",
    "generate": "interp.interventions.generate",
    "sweep": "interp.interventions.sweep",
    "plan_sweep": "interp.interventions.sweep",
    "Savings": "interp.interventions.schedule",
    "differentiable": "interp.interventions.differentiable",
    "patch": "interp.patching",
    "trace": "interp.tracing",
    "trace_image": "interp.tracing",
    "attention_maps": "interp.tracing",
    "knockout": "interp.tracing",
    "score_dictionary": "interp.concepts.scores",
    "dissect": "interp.concepts",
    "unit_effects": "interp.concepts",
    "concept_graph": "interp.concepts",
    "align": "interp.alignment",
    "align_pictures": "interp.alignment",
    "edit_concept": "interp.steering",
    "edit_report": "interp.steering",
    "load_edit": "interp.steering",
    "steer": "interp.steering",
    "dose_response": "interp.steering",
    "Result": "interp.results",
    "InterpError": "interp.errors",
}
_SUBPACKAGES = (
    "tasks", "models", "interventions", "patching", "tracing", "circuits", "alignment", "dictionaries", "concepts",
    "steering", "plots", "kernels", "shapes",
)  # fmt: skip

__all__ = [*_HOMES, "dictionaries", "tasks"]

if TYPE_CHECKING:
    from interp import dictionaries as dictionaries
    from interp import tasks as tasks
    from interp.alignment import align as align
    from interp.alignment import align_pictures as align_pictures
    from interp.concepts import concept_graph as concept_graph
    from interp.concepts import dissect as dissect
    from interp.concepts import unit_effects as unit_effects
    from interp.concepts.scores import score_dictionary as score_dictionary
    from interp.errors import InterpError as InterpError
    from interp.interventions.captured import DenoisingRun as DenoisingRun
    from interp.interventions.captured import Run as Run
    from interp.interventions.differentiable import differentiable as differentiable
    from interp.interventions.edits import Ablate as Ablate
    from interp.interventions.edits import Add as Add
    from interp.interventions.edits import Gate as Gate
    from interp.interventions.edits import Knockout as Knockout
    from interp.interventions.edits import Latents as Latents
    from interp.interventions.edits import Modulate as Modulate
    from interp.interventions.edits import Replace as Replace
    from interp.interventions.edits import Scale as Scale
    from interp.interventions.edits import Swap as Swap
    from interp.interventions.edits import UnderPrompt as UnderPrompt
    from interp.interventions.edits import When as When
    from interp.interventions.generate import generate as generate
    from interp.interventions.run import run as run
    from interp.interventions.schedule import Savings as Savings
    from interp.interventions.sweep import plan_sweep as plan_sweep
    from interp.interventions.sweep import sweep as sweep
    from interp.models.denoiser import Denoiser as Denoiser
    from interp.models.denoiser import Sampling as Sampling
    from interp.models.guidance import Branch as Branch
    from interp.models.language_model import LanguageModel as LanguageModel
    from interp.models.load import load as load
    from interp.models.prompts import Prompts as Prompts
    from interp.models.site import Site as Site
    from interp.patching import patch as patch
    from interp.results import Result as Result
    from interp.steering import dose_response as dose_response
    from interp.steering import edit_concept as edit_concept
    from interp.steering import edit_report as edit_report
    from interp.steering import load_edit as load_edit
    from interp.steering import steer as steer
    from interp.tracing import attention_maps as attention_maps
    from interp.tracing import knockout as knockout
    from interp.tracing import trace as trace
    from interp.tracing import trace_image as trace_image


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name in _SUBPACKAGES:
        return import_module(f"interp.{name}")
    raise AttributeError(f"module 'interp' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return [*__all__, *_SUBPACKAGES]
