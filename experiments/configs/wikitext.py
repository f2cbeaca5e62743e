"""WikiText-103 as in the paper: 56 streams of text, in segments of 150 words."""

from dataclasses import replace

from experiments.data import WikiText
from jaxdeq.models import transformer_configs
from jaxdeq.training import Adam, Budget, Checkpoints, Config, Cosine, Evaluation, LanguageModelling, Penalty


def wt103() -> Config:
    """DEQ-Transformer, post-LN, without penalty. The paper: 24.0 perplexity at 30 evaluations.

    python -m experiments.main wt103 --data.folder FOLDER
    """
    return Config(
        model=transformer_configs.wt103(),
        task=LanguageModelling(),
        data=WikiText(length=150),
        optimizer=Adam(Cosine(2.5e-4, warmup=16_000, first_at_peak=True), clip=0.25),
        steps=300_000,
        batch=56,
        pretrain=32_000,
        seed=1111,
        evaluation=Evaluation(every=5000, batch=16),
        checkpoints=Checkpoints(every=1000),
    )


def wt103_reg() -> Config:
    """DEQ-Transformer, post-LN, with the Jacobian penalty. The paper: 24.9 perplexity at 12 evaluations.

    python -m experiments.main wt103_reg --data.folder FOLDER
    """
    return replace(
        wt103(),
        model=transformer_configs.wt103_reg(),
        penalty=Penalty(1.9, 0.35, increment=0.1, interval=35_000, from_start=True),
        budget=Budget((-2, 0)),
    )


def wt103_preln_reg() -> Config:
    """DEQ-Transformer, pre-LN, with the Jacobian penalty. The paper: 24.5 perplexity at 14 evaluations.

    python -m experiments.main wt103_preln_reg --data.folder FOLDER
    """
    return replace(
        wt103_reg(),
        model=transformer_configs.wt103_preln_reg(),
        penalty=Penalty(2.0, 0.4, increment=0.1, interval=30_000, from_start=True),
    )
