"""Cutaway: the whole language model in one package, with its side cut away.

The public names below are imported when they are first used, so ``import cutaway`` costs no torch.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# How long a thread waits awake for the next kernel, in turns of libgomp's loop. By default about a millisecond: beside
# one busy neighbour on two cores that made a training step of 0.3 s last 3.1 s. Too short, and small kernels wake a
# sleeping thread each: a sentence through a small encoder takes 6.5 ms at 2,000 turns, 3.4 at 5,000, 3.2 at 10,000,
# and beside a busy neighbour a step of 103 ms lasts 188, 198 and 224 ms. Read once, when PyTorch loads its OpenMP.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")

_HOMES = {
    "errors": ("CutawayError",),
    "settings": ("Settings",),
    "records": ("Measurement",),
    "device": ("Device", "Machine"),
    "batch": ("Batch", "Example", "pack", "pad"),
    "text.tokenizer": ("Tokenizer",),
    "text.chat": ("Message", "render"),
    "models.bag": ("BagConfig", "fit_bag"),
    "models.convolution": ("ConvolutionConfig",),
    "models.recurrent": ("RecurrentConfig",),
    "models.transformer": ("TransformerConfig",),
    "models.model": ("LanguageModel", "Model", "build"),
    "models.cost": ("cost",),
    "models.folder": ("load_model", "load_tokenizer", "save_model"),
    "models.kneser_ney": ("fit as fit_ngram",),
    "models.ngram": ("NGramConfig",),
    "models.text_classifier": ("TextClassifier", "TextEmbedder"),
    "objectives.objective": ("Loss", "Objective"),
    "objectives.likelihood": ("Likelihood",),
    "objectives.preference": ("DPO",),
    "objectives.policy": ("GRPO",),
    "generate.beam": ("Beam",),
    "generate.request": ("Request", "Sampling"),
    "generate.engine": ("Engine",),
    "generate.writer": ("Writer",),
    "train.schedule": ("Schedule",),
    "train.optimizer": ("OptimizerSettings", "build_optimizer"),
    "train.loop": ("Step", "steps"),
    "train.fit": ("FitSettings", "fit_classifier", "fit_seq2seq"),
}
_HOME_OF = {name.split(" as ")[-1]: (home, name.split(" as ")[0]) for home, names in _HOMES.items() for name in names}

if TYPE_CHECKING:
    from cutaway.batch import Batch, Example, pack, pad
    from cutaway.device import Device, Machine
    from cutaway.errors import CutawayError
    from cutaway.generate.beam import Beam
    from cutaway.generate.engine import Engine
    from cutaway.generate.request import Request, Sampling
    from cutaway.generate.writer import Writer
    from cutaway.models.bag import BagConfig, fit_bag
    from cutaway.models.convolution import ConvolutionConfig
    from cutaway.models.cost import cost
    from cutaway.models.folder import load_model, load_tokenizer, save_model
    from cutaway.models.kneser_ney import fit as fit_ngram
    from cutaway.models.model import LanguageModel, Model, build
    from cutaway.models.ngram import NGramConfig
    from cutaway.models.recurrent import RecurrentConfig
    from cutaway.models.text_classifier import TextClassifier, TextEmbedder
    from cutaway.models.transformer import TransformerConfig
    from cutaway.objectives.likelihood import Likelihood
    from cutaway.objectives.objective import Loss, Objective
    from cutaway.objectives.policy import GRPO
    from cutaway.objectives.preference import DPO
    from cutaway.records import Measurement
    from cutaway.settings import Settings
    from cutaway.text.chat import Message, render
    from cutaway.text.tokenizer import Tokenizer
    from cutaway.train.fit import FitSettings, fit_classifier, fit_seq2seq
    from cutaway.train.loop import Step, steps
    from cutaway.train.optimizer import OptimizerSettings, build_optimizer
    from cutaway.train.schedule import Schedule

__all__ = [
    "DPO", "GRPO", "BagConfig", "Batch", "Beam", "ConvolutionConfig", "CutawayError", "Device", "Engine",
    "Example", "FitSettings", "LanguageModel", "Likelihood", "Loss", "Machine", "Measurement", "Message",
    "Model", "NGramConfig", "Objective", "OptimizerSettings", "RecurrentConfig", "Request", "Sampling",
    "Schedule", "Settings", "Step", "TextClassifier", "TextEmbedder", "Tokenizer", "TransformerConfig",
    "Writer", "build", "build_optimizer", "cost", "fit_bag", "fit_classifier", "fit_ngram", "fit_seq2seq",
    "load_model", "load_tokenizer", "pack", "pad", "render", "save_model", "steps",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'cutaway' has no attribute {name!r}")
    home, there = _HOME_OF[name]
    return getattr(import_module(f"cutaway.{home}"), there)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
