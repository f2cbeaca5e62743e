"""The image classifiers that multiscale DEQs are compared with: residual networks."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxdeq import _checks as check
from jaxdeq._tree import wide
from jaxdeq.models._entries import Entry
from jaxdeq.models._mdeq_layers import ConvNorm, linear, linear_entries

__all__ = ["ResNet", "ResNetConfig", "ResNetOutput", "resnet18", "resnet50", "resnet101"]

WIDENING = 4  # of a bottleneck: outputs for each channel inside

_he = nnx.initializers.variance_scaling(2, "fan_out", "normal")


class ResNetOutput(NamedTuple):
    """What a ResNet returns, under the names of `MDEQOutput`.

    Attributes:
      logits: float32 or better, `[B, classes]`.
      z: the features that each stage ends with, finest first.
      stats: None: nothing is solved.
      penalty: None, likewise.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> from jaxdeq.models import ResNet, ResNetConfig
      >>> def classify(images):
      ...     return ResNet(ResNetConfig((1, 1), classes=10, width=8), rngs=nnx.Rngs(0))(images)
      >>> jax.eval_shape(classify, jnp.zeros((2, 64, 64, 3))).logits.shape
      (2, 10)
    """

    logits: Array
    z: tuple[Array, ...]
    stats: None = None
    penalty: None = None


@dataclass(frozen=True)
class ResNetConfig:
    """A residual network.

    Attributes:
      blocks: residual blocks of each stage; a stage has half the resolution of the one before,
        and twice its channels.
      classes: of images.
      bottleneck: whether a block is 1x1, 3x3, 1x1 and narrow inside, or two 3x3 convolutions.
      width: channels inside the blocks of the first stage.
      small_images: whether the stem is a 3x3 convolution that keeps the resolution, as usual for
        CIFAR's 32 pixels, or a 7x7 one and pooling, which quarter it.
      inputs: channels of the images.
      momentum: the weight of a new batch in BatchNorm's running statistics.
      dtype: of convolutions. Statistics and logits are in float32 or better whatever it is.
      param_dtype: of parameters. BatchNorm's running statistics are in float32 or better whatever it is.

    Raises:
      ValueError: a number out of range.
      TypeError: a number that should be an int, or a flag that is no bool.

    Example:
      >>> from jaxdeq.models import ResNetConfig
      >>> ResNetConfig((2, 2), classes=10, small_images=True).bottleneck
      False
    """

    blocks: tuple[int, ...]
    classes: int = 1000
    bottleneck: bool = False
    width: int = 64
    small_images: bool = False
    inputs: int = 3
    momentum: float = 0.1
    dtype: str = "float32"
    param_dtype: str = "float32"

    def __post_init__(self):
        for name in ("classes", "width", "inputs"):
            check.count(name, getattr(self, name))
        for name in ("bottleneck", "small_images"):
            check.flag(name, getattr(self, name))
        check.fraction("momentum", self.momentum)
        for name in ("dtype", "param_dtype"):
            check.floating(name, getattr(self, name))
        check.count("number of stages", len(self.blocks))
        for blocks in self.blocks:
            check.count("blocks", blocks)


def resnet18(classes: int = 1000, *, small_images: bool = False) -> ResNetConfig:
    """18 layers: 11.69 M parameters for ImageNet, 11.17 M for CIFAR-10 with `small_images`.

    Example:
      >>> from jaxdeq.models import resnet18
      >>> resnet18().blocks
      (2, 2, 2, 2)
    """
    return ResNetConfig((2, 2, 2, 2), classes, small_images=small_images)


def resnet50(classes: int = 1000, *, small_images: bool = False) -> ResNetConfig:
    """50 layers: 25.56 M parameters for ImageNet.

    Example:
      >>> from jaxdeq.models import resnet50
      >>> resnet50().blocks
      (3, 4, 6, 3)
    """
    return ResNetConfig((3, 4, 6, 3), classes, bottleneck=True, small_images=small_images)


def resnet101(classes: int = 1000, *, small_images: bool = False) -> ResNetConfig:
    """101 layers: 44.55 M parameters for ImageNet, 42.51 M for CIFAR-10 with `small_images`.

    Example:
      >>> from jaxdeq.models import resnet101
      >>> resnet101().blocks
      (3, 4, 23, 3)
    """
    return ResNetConfig((3, 4, 23, 3), classes, bottleneck=True, small_images=small_images)


class ResNet(nnx.Module):
    """A classifier of images by residual blocks, for comparison: called as an `MDEQClassifier` is.

    The network, its initial weights and its names are torchvision's, whose weights
    `load_torch_state_dict` takes: a stage halves the resolution in the 3x3 convolution of its first
    block. Backpropagation holds what all blocks computed.

    Args:
      config: see there; `resnet18`, `resnet50` and `resnet101` make the usual ones.
      rngs: `params` for the initial weights.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> from jaxdeq.models import ResNet, ResNetConfig
      >>> model = ResNet(ResNetConfig((1,), classes=10, width=8, small_images=True), rngs=nnx.Rngs(0))
      >>> model.eval()
      >>> out = jax.eval_shape(model, jnp.ones((2, 32, 32, 3)))
      >>> out.logits.shape, [z.shape for z in out.z]
      ((2, 10), [(2, 32, 32, 8)])

    References:
      He et al., "Deep Residual Learning for Image Recognition", 2015.
    """

    def __init__(self, config: ResNetConfig, *, rngs: nnx.Rngs):
        self.config = config
        size, stride = (3, 1) if config.small_images else (7, 2)
        self.stem = ConvNorm(config.inputs, config.width, size, config, rngs, stride=stride, init=_he)
        stages, channels = [], config.width
        for i, blocks in enumerate(config.blocks):
            stage: list[Block] = []
            for j in range(blocks):
                stage.append(Block(channels, config.width << i, 2 if i and not j else 1, config, rngs))
                channels = stage[-1].outputs
            stages.append(nnx.List(stage))
        self.stages = nnx.List(stages)
        self.classifier = linear(channels, config.classes, config, rngs)

    def __call__(self, images: Float[Array, "B H W inputs"]) -> ResNetOutput:
        """Logits of a batch of images.

        In training mode (`model.train()`, the initial one) BatchNorm uses and records statistics of
        this batch; in evaluation mode (`model.eval()`) nothing changes.

        Args:
          images: `[B, H, W, inputs]`, normalised as for training.

        Raises:
          ValueError: images of another rank or number of channels.
        """
        if images.ndim != 4 or images.shape[-1] != self.config.inputs:
            raise ValueError(f"images must be [batch, height, width, {self.config.inputs}]; got {images.shape}")
        x = jax.nn.relu(self.stem(images.astype(jnp.dtype(self.config.dtype))))
        if not self.config.small_images:
            x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        features = []
        for stage in self.stages:
            for block in stage:
                x = block(x)
            features.append(x)
        return ResNetOutput(self.classifier(jnp.mean(wide(x), axis=(1, 2))), tuple(features))

    def torch_entries(self) -> list[Entry]:
        """The names of all arrays in torchvision; for `load_torch_state_dict`."""
        entries = self.stem.torch_entries("conv1", "bn1")
        for i, stage in enumerate(self.stages, 1):
            for j, block in enumerate(stage):
                entries += block.torch_entries(f"layer{i}.{j}")
        return entries + linear_entries("fc", self.classifier)


class Block(nnx.Module):
    """Convolutions around which the input is added, brought to their shape if need be."""

    def __init__(self, inputs: int, inner: int, stride: int, config: ResNetConfig, rngs: nnx.Rngs):
        outputs = inner * WIDENING if config.bottleneck else inner
        layer = lambda a, b, size, stride=1: ConvNorm(a, b, size, config, rngs, stride=stride, init=_he)
        if config.bottleneck:
            layers = [layer(inputs, inner, 1), layer(inner, inner, 3, stride=stride), layer(inner, outputs, 1)]
        else:
            layers = [layer(inputs, inner, 3, stride=stride), layer(inner, inner, 3)]
        self.layers = nnx.List(layers)
        self.shortcut = None if (inputs, stride) == (outputs, 1) else layer(inputs, outputs, 1, stride=stride)
        self.outputs = outputs

    def __call__(self, x: jax.Array) -> jax.Array:
        *others, last = self.layers
        y = x
        for layer in others:
            y = jax.nn.relu(layer(y))
        return jax.nn.relu(last(y) + (x if self.shortcut is None else self.shortcut(x)))

    def torch_entries(self, name: str) -> list[Entry]:
        entries = []
        for i, layer in enumerate(self.layers, 1):
            entries += layer.torch_entries(f"{name}.conv{i}", f"{name}.bn{i}")
        if self.shortcut is not None:
            entries += self.shortcut.torch_entries(f"{name}.downsample.0", f"{name}.downsample.1")
        return entries
