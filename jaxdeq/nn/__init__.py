"""Equilibrium layers for Flax NNX."""

from jaxdeq.nn.deq import DEQ, Equilibrium

__all__ = ["DEQ", "Equilibrium"]
