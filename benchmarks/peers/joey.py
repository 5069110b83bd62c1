"""Peer: JoeyNMT's transformer (Kreutzer 2019, arXiv 1907.12484) of the same sizes in the plain loop.

Its modules import tokenizers, metrics and plotting that the model never uses; those are left blank, so that
``pip install --no-deps joeynmt`` is enough.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import types
import typing
from typing import Any

import torch
import torch.nn.functional as F
from shapes import pairs
from torch import Tensor, nn
from worker import Case, enter, race

UNUSED = ("sacrebleu", "sacremoses", "sentencepiece", "subword_nmt")
UNUSED_PARTS = ("joeynmt.plotting", "torch.utils.tensorboard")


class _Blank(types.ModuleType):
    __path__: typing.ClassVar[list[str]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class _Blanks(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        named = fullname.partition(".")[0] in UNUSED or fullname in UNUSED_PARTS
        return importlib.machinery.ModuleSpec(fullname, self) if named else None

    def create_module(self, spec: Any) -> types.ModuleType:
        return _Blank(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


sys.meta_path.insert(0, _Blanks())

from joeynmt.decoders import TransformerDecoder  # noqa: E402
from joeynmt.embeddings import Embeddings  # noqa: E402
from joeynmt.encoders import TransformerEncoder  # noqa: E402


class Translator(nn.Module):
    """Encoder, decoder and loss as ``joeynmt.model.Model`` puts them together, pre-norm, without dropout."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        sizes = {"hidden_size": case.hidden_size, "num_layers": case.num_layers, "num_heads": case.num_heads,
                 "ff_size": case.inner * 3 // 2, "dropout": 0.0, "emb_dropout": 0.0, "layer_norm": "pre"}
        self.embedding = Embeddings(case.hidden_size, vocab_size=case.vocab_size, padding_idx=0, scale=True)
        self.encoder = TransformerEncoder(**sizes)
        self.decoder = TransformerDecoder(vocab_size=case.vocab_size, **sizes)

    def forward(self, source: Tensor, source_mask: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        memory, final = self.encoder(self.embedding(source), source_mask.sum(-1).squeeze(1), source_mask)
        real = (inputs != 0)[:, None]
        logits = self.decoder(trg_embed=self.embedding(inputs), encoder_output=memory, encoder_hidden=final,
                              src_mask=source_mask, unroll_steps=inputs.shape[1], hidden=None, trg_mask=real)[0]
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-100)


def _batch(source: list[Tensor], target: list[Tensor]) -> tuple[Tensor, ...]:
    padded = nn.utils.rnn.pad_sequence(source, batch_first=True)
    inputs = nn.utils.rnn.pad_sequence([t[:-1] for t in target], batch_first=True)
    targets = nn.utils.rnn.pad_sequence([t[1:] for t in target], batch_first=True, padding_value=-100)
    return padded, (padded != 0)[:, None], inputs, targets


if __name__ == "__main__":
    case, turns = enter()
    torch.manual_seed(0)
    race(case, turns, Translator(case), lambda model, *batch: model(*batch), [_batch(*p) for p in pairs(case)])
