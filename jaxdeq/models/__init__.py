"""The models of the paper."""

from jaxdeq.models.checkpoint import load_torch_state_dict, to_torch_state_dict

__all__ = ["load_torch_state_dict", "to_torch_state_dict"]
