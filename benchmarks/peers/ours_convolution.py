"""Cutaway's own contender among convolutional language models: the shape of ``plain_tcn.py``."""

from __future__ import annotations

import cutaway  # noqa: F401  (first, as a user has it: it sets how long waiting threads spin)

# isort: split
from plain_tcn import DILATIONS, KERNEL
from trainer import train
from worker import enter

from cutaway.models.convolution import ConvolutionConfig
from cutaway.objectives.likelihood import Likelihood

if __name__ == "__main__":
    case, turns = enter()
    config = ConvolutionConfig(
        vocab_size=case.vocab_size,
        hidden_size=case.hidden_size,
        num_layers=case.num_layers,
        kernel_sizes=(KERNEL,),
        dilations=DILATIONS,
        context_length=case.context,
    )
    train(case, turns, config, Likelihood())
