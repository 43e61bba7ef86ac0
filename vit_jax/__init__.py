"""Vision Transformers and Tokens-to-Token ViTs in JAX, held number by number against PyTorch."""

from vit_jax.interop.pretrained import load_pretrained, save_pretrained
from vit_jax.interop.state_dict import load_state_dict, state_dict
from vit_jax.models.registry import create_model, list_models

__all__ = [
    "create_model",
    "list_models",
    "load_pretrained",
    "load_state_dict",
    "save_pretrained",
    "state_dict",
]
__version__ = "0.1.0"
