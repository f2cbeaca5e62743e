"""The models of the paper."""

from jaxdeq.models import mdeq_configs, transformer_configs
from jaxdeq.models.checkpoint import load_torch_state_dict, to_torch_state_dict
from jaxdeq.models.mdeq import Branch, MDEQClassifier, MDEQConfig, MDEQOutput, MDEQSegmenter, resize_bilinear
from jaxdeq.models.transformer import DEQTransformerConfig, DEQTransformerLM, Generated, LMOutput, Memory

__all__ = [
    "Branch",
    "DEQTransformerConfig",
    "DEQTransformerLM",
    "Generated",
    "LMOutput",
    "MDEQClassifier",
    "MDEQConfig",
    "MDEQOutput",
    "MDEQSegmenter",
    "Memory",
    "load_torch_state_dict",
    "mdeq_configs",
    "resize_bilinear",
    "to_torch_state_dict",
    "transformer_configs",
]
