"""The models of the paper."""

from jaxdeq.models import mdeq_configs, transformer_configs
from jaxdeq.models.checkpoint import load_torch_state_dict, to_torch_state_dict
from jaxdeq.models.mdeq import Branch, MDEQClassifier, MDEQConfig, MDEQOutput, MDEQSegmenter, resize_bilinear
from jaxdeq.models.transformer import DEQTransformerConfig, DEQTransformerLM, Generated, LMConfig, LMOutput, Memory
from jaxdeq.models.transformer_xl import TransformerXL, TransformerXLConfig, transformer_xl_wt103

__all__ = [
    "Branch",
    "DEQTransformerConfig",
    "DEQTransformerLM",
    "Generated",
    "LMConfig",
    "LMOutput",
    "MDEQClassifier",
    "MDEQConfig",
    "MDEQOutput",
    "MDEQSegmenter",
    "Memory",
    "TransformerXL",
    "TransformerXLConfig",
    "load_torch_state_dict",
    "mdeq_configs",
    "resize_bilinear",
    "to_torch_state_dict",
    "transformer_configs",
    "transformer_xl_wt103",
]
