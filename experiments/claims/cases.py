"""The models that are compared, and small ones that only show that a study runs."""

from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import grain
import jax
from flax import nnx

from experiments import configs
from experiments.data.batches import Batches, Data
from jaxdeq import adjoints, solvers, training
from jaxdeq.models import Branch, LMConfig, ResNetConfig, TransformerXLConfig

Name = Literal["fashion_mdeq", "sotu_transformer"]
NAMES: tuple[Name, ...] = ("fashion_mdeq", "sotu_transformer")


@dataclass(frozen=True)
class Beginning:
    """Other data, of which an evaluation sees the first batches only."""

    data: Data
    batches: int

    def train(self, batch: int, seed: int) -> grain.IterDataset:
        return self.data.train(batch, seed)

    def evaluate(self, split: str, batch: int) -> grain.IterDataset:
        whole = self.data.evaluate(split, batch)
        if not isinstance(whole, Batches) or whole.steps is None:
            raise TypeError(f"data must give finite Batches to evaluate on; got {whole!r}")
        return Batches(whole.make, min(self.batches, whole.steps), whole.reading)

    def steps_per_epoch(self, batch: int) -> int:
        return self.data.steps_per_epoch(batch)


class Known(NamedTuple):
    """An embedded experiment.

    Attributes:
      config: of the model with an equilibrium and the penalty.
      explicit: a network without equilibrium, of as many parameters.
      score: what it is judged by, as its task calls it.
      coarse: the same on grids as coarse as those of the equilibrium, where `explicit` has finer ones.
    """

    config: training.Config
    explicit: ResNetConfig | TransformerXLConfig
    score: str
    coarse: ResNetConfig | None = None


def full(name: Name) -> Known:
    """As in `experiments.configs`; the explicit networks are within 2 % of their parameters.

    The ResNet has 13 convolutions and a linear layer, and works on all 32 x 32 pixels, down to 8 x 8. On coarse
    grids, with a stem that quarters the images, these are 8 x 8 to 2 x 2; the equilibrium's are 8 x 8 and 4 x 4.
    The Transformer-XL has 3 layers, four times as wide inside, with the same words, norms, memory and dropout.
    """
    if name == "fashion_mdeq":
        resnet = ResNetConfig((2, 2, 2), classes=10, width=23, small_images=True, inputs=1)
        return Known(configs.fashion_mdeq(), resnet, "accuracy", coarse=replace(resnet, small_images=False))
    config = configs.sotu_transformer()
    explicit = TransformerXLConfig(layers=3, **shared(config.model, width=104, inner=416))
    return Known(config, explicit, "perplexity")


def quick(name: Name) -> Known:
    """Seconds of a few steps; whatever comes out means nothing."""
    known = full(name)
    model: Any = known.config.model
    if name == "fashion_mdeq":
        few = {"branches": (Branch(8, 2),), "groups": 2, "expansion": 1, "final_channels": 8}
        model = replace(model, solver=solvers.Anderson(history=2), unroll=1, max_steps=4, **few)
        explicit: Any = replace(known.explicit, blocks=(1,), width=4)
        coarse = replace(explicit, small_images=False)
    else:
        few = {"width": 16, "heads": 2, "inner": 16, "embed": 16, "memory": 8}
        model = replace(model, adjoint=adjoints.Implicit(max_steps=4), max_steps=4, **few)
        explicit, coarse = replace(known.explicit, layers=1, **few), None
    config = replace(
        known.config,
        model=model,
        data=Beginning(known.config.data, 2),
        steps=6,
        batch=8,
        pretrain=0,  # these two: so that there is one program to compile
        penalty=replace(known.config.penalty, frequency=1.0),
        evaluation=replace(known.config.evaluation, every=3, batch=8),
        log=replace(known.config.log, every=1),
        mesh=training.Mesh(data=1),
    )
    return known._replace(config=config, explicit=explicit, coarse=coarse)


def shared(config: LMConfig, **others: int) -> dict[str, Any]:
    """The settings of a language model that do not concern the number and width of its layers."""
    names = (
        "vocab",
        "heads",
        "embed",
        "cutoffs",
        "divisor",
        "tie_projections",
        "pre_norm",
        "memory",
        "init_std",
        "dropout",
    )
    return {name: getattr(config, name) for name in names} | others


def parameters(config: training.Config) -> int:
    """How many numbers are learnt."""
    model = nnx.eval_shape(lambda: config.task.build(config.model, nnx.Rngs(0)))
    return sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param)))
