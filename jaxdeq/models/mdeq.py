"""Multiscale deep equilibrium models for images.

On a mesh the equilibrium lies as the images do, split by batch. Kernels name their axes in the
metadata `out_sharding`: `inner` for the widened inside of blocks, `channels` for one axis of every
kernel; `_axes.py` says how to lay them out by these names.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxdeq import BackwardStats, Stats, spectral_radius
from jaxdeq.models._entries import Entry
from jaxdeq.models._mdeq_cell import Branches, Cell
from jaxdeq.models._mdeq_config import Branch, MDEQConfig
from jaxdeq.models._mdeq_head import ClassifierHead, SegmenterHead, Stem
from jaxdeq.models._resize import resize_bilinear
from jaxdeq.nn import DEQ

__all__ = ["Branch", "MDEQClassifier", "MDEQConfig", "MDEQOutput", "MDEQSegmenter", "resize_bilinear"]

PROBES = 2  # of the reference's penalty


class MDEQOutput(NamedTuple):
    """What a multiscale DEQ returns.

    Attributes:
      logits: float32 or better; `[B, classes]` of a classifier, `[B, H', W', classes]` of a
        segmenter, at the resolution of its finest branch: see `resize_bilinear`.
      z: the equilibrium, one `[B, H' / 2^i, W' / 2^i, C_i]` a branch.
      stats: how it was found; None if it was unrolled.
      penalty: `jaxdeq.jacobian_penalty` there; None if no `key` was given.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> from jaxdeq.models import MDEQClassifier, mdeq_configs
      >>> def classify(images):
      ...     return MDEQClassifier(mdeq_configs.cifar10_tiny(), rngs=nnx.Rngs(0))(images)
      >>> out = jax.eval_shape(classify, jnp.zeros((1, 32, 32, 3)))
      >>> out.logits.shape, out.stats.steps.shape, out.penalty
      ((1, 10), (1,), None)
    """

    logits: Array
    z: Branches
    stats: Stats | None
    penalty: Array | None


class _MDEQ(nnx.Module):
    """Stem, equilibrium, head."""

    def __init__(self, config: MDEQConfig, head: Any, rngs: nnx.Rngs):
        self.config = config
        self.stem = Stem(config, rngs)
        self.deq = DEQ(
            Cell(config, rngs),
            solver=config.solver,
            adjoint=config.adjoint,
            rtol=config.rtol,
            atol=config.atol,
            max_steps=config.max_steps,
            batched=config.batched,
        )
        self.head = head

    def __call__(
        self,
        images: Float[Array, "B H W inputs"],
        *,
        key: Array | None = None,
        probes: int = PROBES,
        unroll: int | None = None,
        z0: Branches | None = None,
        rtol: ArrayLike | None = None,
        atol: ArrayLike | None = None,
        max_steps: ArrayLike | None = None,
        tap: BackwardStats | None = None,
    ) -> MDEQOutput:
        """Logits of a batch of images.

        In training mode (`model.train()`, the initial one) BatchNorm uses and records statistics of
        this batch, and dropout draws a mask for this solve; in evaluation mode (`model.eval()`)
        nothing changes.

        Args:
          images: `[B, H, W, inputs]`, normalised as for training; `H` and `W` multiples of
            `config.stride`.
          key: asks for the Jacobian penalty, and draws its probes; consumed.
          probes: of the penalty, to average over.
          unroll: applies the layer this many times from `z0` in place of the solve, and
            back-propagates through all of them: the paper's pre-training. Its memory grows with
            the number.
          z0: where to start, such as the equilibrium of similar images; None: zeros.
          rtol: in place of the configuration's; may be traced, as may `atol` and `max_steps`.
          tap: see `jaxdeq.fixed_point`.

        Raises:
          ValueError: images of another rank or number of channels, or of a size that the
            coarsest branch does not divide.
        """
        x = self._inject(images)
        if unroll is None:
            z, stats, penalty = self.deq(
                x, z0=z0, key=key, probes=probes, rtol=rtol, atol=atol, max_steps=max_steps, tap=tap
            )
        else:
            z, stats, penalty = self.deq.unroll(x, steps=unroll, z0=z0, key=key, probes=probes)
        return MDEQOutput(self.head(z), z, stats, penalty)

    def spectral_radius(
        self, images: Float[Array, "B H W inputs"], z: Branches, key: Array, *, iters: int = 64
    ) -> Float[Array, " B"]:
        """`jaxdeq.spectral_radius` of the layer at `z`, one an image; meant for evaluation mode.

        Args:
          images: as in a call.
          z: the equilibrium that a call returned.
          key: for the random start; consumed.
          iters: products with the Jacobian.
        """
        return spectral_radius(self.deq.bind(self._inject(images)), z, key, iters=iters, batched=True)

    def torch_entries(self) -> list[Entry]:
        """The names of all arrays in the PyTorch code; for `load_torch_state_dict`."""
        cell: Any = self.deq.cell
        return [
            *self.stem.torch_entries(),
            *cell.torch_entries("fullstage"),
            *self.head.torch_entries(),
        ]

    def _inject(self, images):
        """The features that the layer sees at every application, in the compute dtype."""
        _check_images(images, self.config)
        return self.stem(images.astype(jnp.dtype(self.config.dtype)))


class MDEQClassifier(_MDEQ):
    """Classifies images from an equilibrium at several resolutions.

    Head and gradient are taken at the equilibrium `z*` in training and in evaluation. (The
    reference's training head sees one more application, `f(z*)`, which is the same where the
    solve has converged.)

    Args:
      config: see there; `jaxdeq.models.mdeq_configs` has the paper's.
      rngs: `params` for the initial weights, `dropout` for masks.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> from jaxdeq.models import MDEQClassifier, mdeq_configs
      >>> model = MDEQClassifier(mdeq_configs.cifar10_tiny(), rngs=nnx.Rngs(0))
      >>> model.eval()
      >>> out = jax.eval_shape(model, jnp.zeros((2, 32, 32, 3)), key=jax.random.key(0))
      >>> out.logits.shape, [z.shape for z in out.z], out.penalty.shape
      ((2, 10), [(2, 32, 32, 24), (2, 16, 16, 24)], ())

    References:
      Bai, Koltun & Kolter, "Multiscale Deep Equilibrium Models", 2020.
    """

    def __init__(self, config: MDEQConfig, *, rngs: nnx.Rngs):
        super().__init__(config, ClassifierHead(config, rngs), rngs)


class MDEQSegmenter(_MDEQ):
    """Classifies pixels from an equilibrium at several resolutions.

    Logits are at the resolution of the finest branch, `2^downsample` times coarser than the images.
    The reference's loss brings them to the size of the labels by `resize_bilinear`. To start from
    a classifier of the same branches: `nnx.update(segmenter.deq, nnx.state(classifier.deq))`, and
    the same for `stem`.

    Args:
      config: see there; `jaxdeq.models.mdeq_configs` has the paper's.
      rngs: `params` for the initial weights, `dropout` for masks.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> from jaxdeq.models import Branch, MDEQConfig, MDEQSegmenter
      >>> config = MDEQConfig((Branch(8), Branch(8)), classes=3, downsample=1)
      >>> def segment(images):
      ...     return MDEQSegmenter(config, rngs=nnx.Rngs(0))(images)
      >>> jax.eval_shape(segment, jnp.zeros((2, 32, 48, 3))).logits.shape
      (2, 16, 24, 3)

    References:
      Bai, Koltun & Kolter, "Multiscale Deep Equilibrium Models", 2020.
    """

    def __init__(self, config: MDEQConfig, *, rngs: nnx.Rngs):
        super().__init__(config, SegmenterHead(config, rngs), rngs)


def _check_images(images, config):
    if images.ndim != 4 or images.shape[-1] != config.inputs:
        raise ValueError(f"images must be [batch, height, width, {config.inputs}]; got {images.shape}")
    size, step = images.shape[1:3], config.stride
    nearest = tuple(max(step, (n + step // 2) // step * step) for n in size)
    if nearest != size:
        raise ValueError(
            f"height and width of images must be multiples of {step}, so that all {len(config.branches)} "
            f"branches fit; got {size[0]}x{size[1]}, the nearest size that works is {nearest[0]}x{nearest[1]}"
        )
