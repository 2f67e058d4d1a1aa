"""Dictionaries: activations harvested from a model, and sparse codes of them.

`harvest_texts` or `harvest_pictures` fills a `Store`; `TopK` and its kin are trained on it by `train`; `semi_nmf`
factorises the activations of an MLP.
"""

from interp.dictionaries.activations import Activations, Batch, InMemory
from interp.dictionaries.codes import Codes
from interp.dictionaries.dictionary import Dictionary, LinearDictionary, Unit
from interp.dictionaries.finetune import FinetuneResult, finetune
from interp.dictionaries.gated import Gated
from interp.dictionaries.harvest import harvest_pictures, harvest_texts
from interp.dictionaries.jumprelu import JumpReLU
from interp.dictionaries.kinds import KINDS, load, save
from interp.dictionaries.matching_pursuit import MatchingPursuit
from interp.dictionaries.saelens import read_saelens, write_saelens
from interp.dictionaries.semi_nmf import Factors, Hierarchy, refine, semi_nmf
from interp.dictionaries.standardise import Moments, Standardisation
from interp.dictionaries.store import Store, StoredActivations
from interp.dictionaries.texts import hub_texts, python_manual, task_texts
from interp.dictionaries.topk import BatchTopK, Matryoshka, TopK
from interp.dictionaries.training import Training, TrainingResult, train

__all__ = [
    "KINDS",
    "Activations",
    "Batch",
    "BatchTopK",
    "Codes",
    "Dictionary",
    "Factors",
    "FinetuneResult",
    "Gated",
    "Hierarchy",
    "InMemory",
    "JumpReLU",
    "LinearDictionary",
    "MatchingPursuit",
    "Matryoshka",
    "Moments",
    "Standardisation",
    "Store",
    "StoredActivations",
    "TopK",
    "Training",
    "TrainingResult",
    "Unit",
    "finetune",
    "harvest_pictures",
    "harvest_texts",
    "hub_texts",
    "load",
    "python_manual",
    "read_saelens",
    "refine",
    "save",
    "semi_nmf",
    "task_texts",
    "train",
    "write_saelens",
]
