"""Equilibrium layers for Flax NNX."""

from jaxdeq.nn.deq import DEQ, Equilibrium
from jaxdeq.nn.dropout import VariationalDropout
from jaxdeq.nn.monotone import Monotone
from jaxdeq.nn.norm import SpectralNorm, WeightNorm

__all__ = ["DEQ", "Equilibrium", "Monotone", "SpectralNorm", "VariationalDropout", "WeightNorm"]
