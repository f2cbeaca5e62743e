"""What a multiscale DEQ is built from."""

from dataclasses import dataclass

from jaxdeq import _checks as check
from jaxdeq import adjoints, solvers
from jaxdeq._types import Adjoint, Solver


@dataclass(frozen=True)
class Branch:
    """One resolution of the equilibrium; the next branch has half of its height and width.

    Attributes:
      channels: of its state.
      head: width of its bottleneck in the classifier's head, which returns four times as many
        channels; a segmenter does not use it.
      blocks: residual blocks between two fusions.
      kernels: sizes of the two convolutions of a block, odd.

    Example:
      >>> from jaxdeq.models import Branch
      >>> Branch(32, kernels=(5, 3))
      Branch(channels=32, head=1, blocks=1, kernels=(5, 3))
    """

    channels: int
    head: int = 1
    blocks: int = 1
    kernels: tuple[int, int] = (3, 3)

    def __post_init__(self):
        check.count("channels", self.channels)
        check.count("head", self.head)
        check.count("blocks", self.blocks)
        for size in self.kernels:
            odd("kernels", size)


@dataclass(frozen=True)
class MDEQConfig:
    """A multiscale DEQ: its layers, and how its equilibrium is found.

    Attributes:
      branches: finest first.
      classes: of images, or of pixels.
      inputs: channels of the images.
      downsample: how often the stem halves height and width, before the finest branch.
      groups: of the group normalisations; after the fusion, half as many.
      expansion: how many times wider the inside of a block is.
      block_affine: whether the normalisations in blocks have scales and offsets.
      fuse_affine: the same for those on the way from branch to branch.
      post_affine: the same for the last ones. Without, the size of the equilibrium is fixed.
      weight_norm: whether the convolutions of blocks and after the fusion are weight-normalised.
      dropout: the rate at which a block's channels are dropped, one mask a solve.
      final_channels: of the classifier's last features.
      final_kernel: size of the segmenter's last convolution, odd.
      momentum: the weight of a new batch in BatchNorm's running statistics.
      unroll: applications in unrolled pre-training; for the argument of that name.
      solver: see `jaxdeq.fixed_point`, as for all below.
      adjoint: how gradients flow.
      rtol: relative tolerance.
      atol: absolute tolerance.
      max_steps: the budget, in applications of the layer.
      batched: whether each image has its own stop, and an answer that its batch mates do not change.
      dtype: of convolutions and of the equilibrium, whose solver then holds half of the memory and
        stops where the convolutions' rounding does. Normalisations, logits and residual tests are
        in float32 or better whatever it is.
      param_dtype: of parameters. BatchNorm's running statistics are in float32 or better whatever it is.

    Raises:
      ValueError: channels that the groups do not divide, an even kernel, a number out of range.
      TypeError: a number that should be an int, a flag that is no bool, an unknown dtype.

    Example:
      >>> from jaxdeq.models import Branch, MDEQConfig
      >>> MDEQConfig((Branch(16), Branch(32)), classes=10, downsample=1).stride
      4
    """

    branches: tuple[Branch, ...]
    classes: int
    inputs: int = 3
    downsample: int = 0
    groups: int = 8
    expansion: int = 5
    block_affine: bool = True
    fuse_affine: bool = True
    post_affine: bool = True
    weight_norm: bool = True
    dropout: float = 0.0
    final_channels: int = 2048
    final_kernel: int = 1
    momentum: float = 0.1
    unroll: int = 5
    solver: Solver = solvers.Broyden()
    adjoint: Adjoint = adjoints.Implicit()
    rtol: float = 1e-3
    atol: float = 0.0
    max_steps: int = 27
    batched: bool = True
    dtype: str = "float32"
    param_dtype: str = "float32"

    def __post_init__(self):
        for name in ("classes", "inputs", "expansion", "final_channels", "unroll"):
            check.count(name, getattr(self, name))
        check.count("downsample", self.downsample, least=0)
        check.count("groups", self.groups, least=2)
        check.count("number of branches", len(self.branches))
        check.fraction("momentum", self.momentum)
        check.nonnegative("dropout", self.dropout)
        if self.dropout >= 1:
            raise ValueError(f"dropout must be below 1, or nothing is left; got {self.dropout}")
        for name in ("block_affine", "fuse_affine", "post_affine", "weight_norm", "batched"):
            check.flag(name, getattr(self, name))
        for name in ("dtype", "param_dtype"):
            check.floating(name, getattr(self, name))
        odd("final_kernel", self.final_kernel)
        for branch in self.branches:
            if branch.channels % self.groups or branch.channels % (self.groups // 2):
                raise ValueError(
                    f"groups, and half of them, must divide the channels of every branch; got {self.groups} groups "
                    f"and {branch.channels} channels"
                )

    @property
    def stride(self) -> int:
        """Images must have multiples of this many pixels on each side."""
        return 2 ** (self.downsample + len(self.branches) - 1)


def odd(name: str, size: int) -> None:
    """Checks the size of a kernel."""
    check.count(name, size)
    if not size % 2:
        raise ValueError(f"{name} must be odd, so that a kernel has a centre; got {size}")
