"""The models of the paper."""

from jaxdeq.models import mdeq_configs, transformer_configs
from jaxdeq.models.checkpoint import load_torch_state_dict, to_torch_state_dict
from jaxdeq.models.mdeq import Branch, MDEQClassifier, MDEQConfig, MDEQOutput, MDEQSegmenter, resize_bilinear
from jaxdeq.models.resnet import ResNet, ResNetConfig, ResNetOutput, resnet18, resnet50, resnet101
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
    "ResNet",
    "ResNetConfig",
    "ResNetOutput",
    "TransformerXL",
    "TransformerXLConfig",
    "load_torch_state_dict",
    "mdeq_configs",
    "resize_bilinear",
    "resnet18",
    "resnet50",
    "resnet101",
    "to_torch_state_dict",
    "transformer_configs",
    "transformer_xl_wt103",
]
