"""Temporary memory of training steps, read from compiled programs that are never run."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from benchmarks.memory import language, temporaries, vision
from benchmarks.twins import LENGTH, SMALL
from jaxdeq.models import (
    Branch,
    DEQTransformerLM,
    MDEQClassifier,
    MDEQConfig,
    TransformerXL,
    transformer_configs,
    transformer_xl_wt103,
)

IMAGES = MDEQConfig((Branch(8, 4), Branch(16, 4)), classes=3, groups=4, expansion=2, final_channels=8)


@pytest.mark.slow
def test_wt103_takes_less_than_half_of_a_transformer_xl():
    config = replace(transformer_configs.wt103_reg(), memory=LENGTH)
    layers = temporaries(*language(TransformerXL, transformer_xl_wt103()))
    assert temporaries(*language(DEQTransformerLM, config)) < 0.5 * layers


def test_a_transformers_step_does_not_grow_with_the_budget():
    sizes = [temporaries(*language(DEQTransformerLM, replace(SMALL, max_steps=budget))) for budget in (3, 300)]
    assert sizes[0] == sizes[1] > 0


def test_a_multiscale_models_step_does_not_grow_with_the_budget():
    def penalised(model, images, labels):
        out = model(images, key=jax.random.key(0))
        return jnp.sum(out.logits**2) + out.penalty

    def size(budget):
        model, _, *inputs = vision(MDEQClassifier, replace(IMAGES, max_steps=budget), (2, 8, 8, 3))
        return temporaries(model, penalised, *inputs)

    assert size(3) == size(300) > 0
