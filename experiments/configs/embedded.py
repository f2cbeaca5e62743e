"""Experiments on data that ship with the project, made for two cores."""

from experiments.data import FashionMNIST, StateOfTheUnion
from jaxdeq import adjoints, solvers
from jaxdeq.models import Branch, DEQTransformerConfig, MDEQConfig
from jaxdeq.training import Adam, Budget, Classification, Config, Cosine, Evaluation, LanguageModelling, Log, Penalty


def fashion_mdeq() -> Config:
    """A multiscale DEQ on 10,000 images of Fashion-MNIST.

    python -m experiments.main fashion_mdeq

    Without the penalty, for comparison:

    python -m experiments.main fashion_mdeq --penalty.weight 0 --work work/fashion_mdeq_plain
    """
    backward = adjoints.Implicit(rtol=3e-2, max_steps=8)
    return Config(
        model=MDEQConfig(
            (Branch(32, 16), Branch(64, 32)),
            classes=10,
            inputs=1,
            downsample=2,
            expansion=2,
            post_affine=False,
            final_channels=256,
            unroll=4,
            solver=solvers.Anderson(),
            adjoint=backward,
            rtol=1e-2,
            max_steps=14,
        ),
        task=Classification(smoothing=0.1),
        data=FashionMNIST(pad=2, erase=0.25),
        optimizer=Adam(Cosine(2e-3, warmup=200), decay=2e-2, decoupled=True, clip=1.0),
        steps=40 * 100,
        batch=100,
        pretrain=10 * 100,
        penalty=Penalty(2.0, 0.2),
        ema=0.995,
        evaluation=Evaluation(every=400),
        log=Log(every=20),
    )


def sotu_transformer() -> Config:
    """A DEQ-Transformer of 1.5 M parameters on the State of the Union addresses, 1.6 M words.

    python -m experiments.main sotu_transformer

    Without the penalty, for comparison:

    python -m experiments.main sotu_transformer --penalty.weight 0 --work work/sotu_transformer_plain
    """
    return Config(
        model=DEQTransformerConfig(
            vocab=15_059,
            width=160,
            heads=4,
            inner=640,
            embed=160,
            cutoffs=(2000, 6000),
            divisor=2,
            tie_projections=(False, True, True),
            memory=64,
            init_std=0.05,
            dropout=0.05,
            adjoint=adjoints.Implicit(solver=solvers.Broyden(history=13), max_steps=14),
            max_steps=12,
        ),
        task=LanguageModelling(),
        data=StateOfTheUnion(length=64),
        optimizer=Adam(Cosine(1e-3, warmup=200, first_at_peak=True), clip=0.25),
        steps=13_000,
        batch=16,
        pretrain=4500,
        penalty=Penalty(0.3, 0.35),
        budget=Budget((-2, 0)),
        evaluation=Evaluation(every=1000, batch=16),
    )
