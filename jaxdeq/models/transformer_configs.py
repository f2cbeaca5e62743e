"""The configurations of the paper for WikiText-103, as its PyTorch code sets them.

Budgets are the reference's. Its backward solver is Broyden's, where a threshold of T updates is T + 1
products with the Jacobian, and its memory is never full.

Example:
  >>> from jaxdeq.models import transformer_configs
  >>> transformer_configs.wt103_reg().memory
  300
"""

from dataclasses import replace

from jaxdeq import adjoints, solvers
from jaxdeq.models._lm_config import DEQTransformerConfig


def wt103() -> DEQTransformerConfig:
    """Post-LN, no penalty (the paper: 24.0 perplexity)."""
    config = DEQTransformerConfig(
        vocab=267_735,
        width=700,
        heads=10,
        inner=48_000,
        embed=700,
        cutoffs=(20_000, 40_000, 200_000),
        divisor=4,
        tie_projections=(False, True, True, True),
        memory=150,
        dropout=0.05,
        keep="active",
        parts=3,  # with the paper's 14 sequences a device, faster on a CPU than all at once
    )
    return _budget(config, forward=30, backward=35)


def wt103_reg() -> DEQTransformerConfig:
    """Post-LN with the Jacobian penalty (weight 1.9 and growing; the paper: 24.9 perplexity)."""
    config = replace(wt103(), memory=300, dropout=0.06, attention_dropout=0.01)
    return _budget(config, forward=12, backward=13)


def wt103_preln_reg() -> DEQTransformerConfig:
    """Pre-LN with the Jacobian penalty (weight 2.0 and growing; the paper: 24.5 perplexity)."""
    return _budget(replace(wt103_reg(), pre_norm=True), forward=14, backward=14)


def _budget(config, forward, backward):
    adjoint = adjoints.Implicit(solver=solvers.Broyden(history=backward), max_steps=backward + 1)
    return replace(config, adjoint=adjoint, max_steps=forward)
