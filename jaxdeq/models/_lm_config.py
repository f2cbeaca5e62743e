"""What a language model is built from."""

from dataclasses import dataclass
from itertools import pairwise

import jax.numpy as jnp

from jaxdeq import _checks as check
from jaxdeq import adjoints, solvers
from jaxdeq._tree import wide_dtype
from jaxdeq._types import Adjoint, Solver

KEEP = ("all", "active", "nothing")


@dataclass(frozen=True)
class LMConfig:
    """A Transformer: its words and the size of a layer.

    Attributes:
      vocab: words. The most frequent ones come first if there are `cutoffs`.
      width: of a layer's output at each position.
      heads: of the attention; divides `width`.
      inner: width of the feed-forward layer's inside.
      embed: width of the word vectors of the first cluster.
      cutoffs: where the vocabulary is cut into clusters, increasing: words below the first cutoff are
        the first cluster. Empty: no clusters, a plain softmax.
      divisor: the word vectors of each cluster are this many times narrower than those of the one
        before. 1: all are in one table.
      tie_tables: whether the softmax uses the word vectors of the embedding.
      tie_projections: for each cluster, whether the softmax uses the embedding's projection between
        word vectors and `width`. Empty: none does.
      pre_norm: whether attention and feed-forward layer normalise their input, and not their output.
      weight_norm: whether all matrices inside a layer are weight-normalised.
      window: positions that one position sees, itself included. The reference's 0 is 1000.
      memory: past positions that a call hands on, and the next one sees.
      parts: how many parts the positions of a segment go through the feed-forward layer in, one
        after another, so that its inside is held for one part at a time. 1: all at once.
      keep: what a gradient keeps of the feed-forward layer's inside, of `inner` numbers a position;
        the rest is computed anew, at the cost of one more product. `"all"`; `"active"`, which units
        were active, a byte each and enough for products with the Jacobian; `"nothing"`. On a CPU, XLA
        undoes it with `parts=1`.
      init_std: standard deviation of what word vectors, projections, the injection and the biases of
        attention start from, a normal distribution. The reference's is 0.01, at a width of 700; a model
        160 wide learns faster from 0.05. Weight-normalised layers start from PyTorch's default.
      dropout: the rate of all dropout but that of attention weights.
      attention_dropout: the rate for attention weights.
      dtype: of matrix products and of an injection. The layers' outputs, attention weights,
        normalisations and losses are in float32 or better whatever it is.
      param_dtype: of parameters.

    Raises:
      ValueError: a number out of range, `heads` that do not divide `width`, cutoffs that do not
        increase or exceed the vocabulary, a number of `tie_projections` that is not that of clusters.
      TypeError: a number that should be an int, or another setting of the wrong type.

    Example:
      >>> from jaxdeq.models import LMConfig
      >>> LMConfig(vocab=100, width=16, heads=2, inner=32, embed=16, cutoffs=(20,)).bounds
      (0, 20, 100)
    """

    vocab: int
    width: int
    heads: int
    inner: int
    embed: int
    cutoffs: tuple[int, ...] = ()
    divisor: int = 1
    tie_tables: bool = True
    tie_projections: tuple[bool, ...] = ()
    pre_norm: bool = False
    weight_norm: bool = True
    window: int = 1000
    memory: int = 150
    parts: int = 1
    keep: str = "all"
    init_std: float = 0.01
    dropout: float = 0.0
    attention_dropout: float = 0.0
    dtype: str = "float32"
    param_dtype: str = "float32"

    def __post_init__(self):
        for name in ("vocab", "width", "heads", "inner", "embed", "divisor", "window", "memory", "parts"):
            check.count(name, getattr(self, name))
        for name in ("tie_tables", "pre_norm", "weight_norm"):
            check.flag(name, getattr(self, name))
        check.nonnegative("init_std", self.init_std)
        for name in ("dtype", "param_dtype"):
            check.floating(name, getattr(self, name))
        for name in ("dropout", "attention_dropout"):
            rate = getattr(self, name)
            check.nonnegative(name, rate)
            if rate >= 1:
                raise ValueError(f"{name} must be below 1, or nothing is left; got {rate}")
        if self.keep not in KEEP:
            raise ValueError(f"keep must be one of {', '.join(map(repr, KEEP))}; got {self.keep!r}")
        self._check_widths()
        self._check_clusters()

    def _check_widths(self):
        if self.width % self.heads or self.width % 2:
            raise ValueError(
                f"width must be even, for sines and cosines, and a multiple of heads; "
                f"got width {self.width} and {self.heads} heads"
            )
        if self.embed < self.divisor ** len(self.cutoffs):
            raise ValueError(
                f"embed must leave the last of {len(self.cutoffs) + 1} clusters a width of at least 1; "
                f"got {self.embed} for divisor {self.divisor}"
            )

    def _check_clusters(self):
        for words in self.cutoffs:
            check.count("cutoffs", words)
        if any(a >= b for a, b in pairwise(self.bounds)):
            raise ValueError(
                f"cutoffs must increase, from above 0 to below vocab; got {self.cutoffs} for {self.vocab} words"
            )
        if len(self.tie_projections) not in (0, len(self.cutoffs) + 1):
            raise ValueError(
                f"tie_projections must be empty or one bool for each of {len(self.cutoffs) + 1} clusters; "
                f"got {self.tie_projections}"
            )
        if any(self.tie_projections) and not self.projected:
            raise ValueError("tie_projections needs projections: embed != width, or divisor > 1; got none of these")

    @property
    def bounds(self) -> tuple[int, ...]:
        """Where clusters begin and end: `0`, the cutoffs, `vocab`."""
        return (0, *self.cutoffs, self.vocab)

    @property
    def projected(self) -> bool:
        """Whether there are projections between word vectors and `width`."""
        return self.divisor > 1 or self.embed != self.width

    @property
    def state_dtype(self) -> jnp.dtype:
        """Of a layer's output: `dtype`, but float32 at least."""
        return wide_dtype(jnp.dtype(self.dtype))


@dataclass(frozen=True)
class DEQTransformerConfig(LMConfig):
    """A DEQ-Transformer: its layer, and how its equilibrium is found.

    Attributes:
      vocab: see `LMConfig`, as for all others that are not below.
      unroll: applications in unrolled pre-training; for the argument of that name.
      solver: see `jaxdeq.fixed_point`, as for all below.
      adjoint: how gradients flow.
      rtol: relative tolerance.
      atol: absolute tolerance.
      max_steps: the budget, in applications of the layer.
      batched: whether each sequence has its own stop, and an answer that its batch mates do not change.

    Raises:
      ValueError: as `LMConfig`.
      TypeError: as `LMConfig`.

    Example:
      >>> from jaxdeq.models import DEQTransformerConfig
      >>> config = DEQTransformerConfig(vocab=100, width=16, heads=2, inner=32, embed=16)
      >>> config.max_steps, config.state_dtype
      (30, dtype('float32'))
    """

    unroll: int = 2
    solver: Solver = solvers.Anderson(history=6)
    adjoint: Adjoint = adjoints.Implicit()
    rtol: float = 1e-3
    atol: float = 0.0
    max_steps: int = 30
    batched: bool = True

    def __post_init__(self):
        super().__post_init__()
        check.count("unroll", self.unroll)
