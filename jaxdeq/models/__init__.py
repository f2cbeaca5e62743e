"""The models of the paper."""

from jaxdeq.models import mdeq_configs
from jaxdeq.models.checkpoint import load_torch_state_dict, to_torch_state_dict
from jaxdeq.models.mdeq import Branch, MDEQClassifier, MDEQConfig, MDEQOutput, MDEQSegmenter, resize_bilinear

__all__ = [
    "Branch",
    "MDEQClassifier",
    "MDEQConfig",
    "MDEQOutput",
    "MDEQSegmenter",
    "load_torch_state_dict",
    "mdeq_configs",
    "resize_bilinear",
    "to_torch_state_dict",
]
