"""The configurations of the paper, as its PyTorch code sets them.

Budgets are the reference's: a Broyden threshold of T updates is T + 1 applications of the layer, and
its memory is never full. The tolerance is relative, as in the paper; the reference's absolute one on
ImageNet and Cityscapes is practically never met, so that the budget decides.

Example:
  >>> from jaxdeq.models import mdeq_configs
  >>> mdeq_configs.imagenet_small_reg().max_steps
  15
"""

from dataclasses import replace

from jaxdeq import adjoints, solvers
from jaxdeq.models._mdeq_config import Branch, MDEQConfig


def cifar10_tiny() -> MDEQConfig:
    """CIFAR-10 without augmentation, 0.16 M parameters."""
    branches = _branches((24, 24), heads=(8, 16))
    config = MDEQConfig(branches, 10, post_affine=False, dropout=0.25, final_channels=200, unroll=10)
    return _budget(config, forward=18, backward=20)


def cifar10_large() -> MDEQConfig:
    """CIFAR-10, 11.1 M parameters (the paper, with narrower layers: 93.6 %)."""
    branches = _branches((32, 64, 128, 256), heads=(14, 28, 56, 112))
    config = MDEQConfig(branches, 10, post_affine=False, dropout=0.3, final_channels=1680, unroll=10)
    return _budget(config, forward=18, backward=20)


def cifar10_large_reg() -> MDEQConfig:
    """CIFAR-10 with the Jacobian penalty (weight 0.4), 11.1 M parameters (the paper: 93.1 %)."""
    config = replace(cifar10_large(), dropout=0.22, unroll=8)
    return _budget(config, forward=8, backward=7)


def imagenet_small() -> MDEQConfig:
    """ImageNet, 16.8 M parameters (the paper: 75.4 % top-1)."""
    branches = _branches((32, 64, 128, 256), heads=(24, 48, 96, 192))
    return _budget(MDEQConfig(branches, 1000, downsample=2, unroll=5), forward=26, backward=27)


def imagenet_small_reg() -> MDEQConfig:
    """ImageNet with the Jacobian penalty (weight 2.5), 18.6 M parameters (the paper: 74.5 % top-1)."""
    branches = _branches((32, 64, 128, 256), heads=(28, 56, 112, 224))
    config = MDEQConfig(branches, 1000, downsample=2, post_affine=False, dropout=0.02, unroll=5)
    return _budget(config, forward=14, backward=14)


def imagenet_large() -> MDEQConfig:
    """ImageNet, 67.1 M parameters (the paper: 77.5 % top-1)."""
    branches = _branches((80, 160, 320, 640), heads=(32, 64, 128, 256))
    return _budget(MDEQConfig(branches, 1000, downsample=2, unroll=4), forward=26, backward=27)


def imagenet_large_reg() -> MDEQConfig:
    """ImageNet with the Jacobian penalty (weight 3.0), 67.1 M parameters (the paper: 76.8 % top-1)."""
    return _budget(replace(imagenet_large(), post_affine=False), forward=14, backward=14)


def imagenet_xl() -> MDEQConfig:
    """ImageNet, 90.5 M parameters."""
    branches = _branches((88, 176, 352, 704), heads=(32, 64, 128, 256))
    config = MDEQConfig(branches, 1000, downsample=2, expansion=6, unroll=4)
    return _budget(config, forward=26, backward=27)


def cityscapes_small() -> MDEQConfig:
    """Cityscapes, 9.0 M parameters; starts from `imagenet_small`."""
    return _cityscapes(imagenet_small(), dropout=0.05)


def cityscapes_large() -> MDEQConfig:
    """Cityscapes, 56.0 M parameters."""
    return _cityscapes(imagenet_large(), dropout=0.03)


def cityscapes_xl() -> MDEQConfig:
    """Cityscapes, 79.6 M parameters; starts from `imagenet_xl`."""
    return _cityscapes(imagenet_xl(), dropout=0.04)


def _branches(channels, heads):
    return tuple(Branch(c, head) for c, head in zip(channels, heads, strict=True))


def _cityscapes(config, dropout):
    config = replace(config, classes=19, momentum=0.01, dropout=dropout, unroll=3)
    return _budget(config, forward=27, backward=30)


def _budget(config, forward, backward):
    solver = solvers.Broyden(history=max(forward, backward))
    return replace(config, solver=solver, adjoint=adjoints.Implicit(max_steps=backward + 1), max_steps=forward + 1)
