"""Cutaway: the whole language model in one package, with its side cut away."""

__version__ = "0.1.0"
