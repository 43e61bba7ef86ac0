"""Vision Transformers and Tokens-to-Token ViTs in JAX, held number by number against PyTorch."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vit_jax import parity
    from vit_jax.inference.preprocess import preprocess
    from vit_jax.models.registry import list_models, register_model
    from vit_jax.weights.load import create_model, from_pretrained, load_pretrained
    from vit_jax.weights.save import save_pretrained
    from vit_jax.weights.state_dict import load_state_dict, state_dict

__all__ = [
    "create_model",
    "from_pretrained",
    "list_models",
    "load_pretrained",
    "load_state_dict",
    "parity",
    "preprocess",
    "register_model",
    "save_pretrained",
    "state_dict",
]
__version__ = "0.1.0"

_HOMES = {
    "create_model": "vit_jax.weights.load",
    "from_pretrained": "vit_jax.weights.load",
    "list_models": "vit_jax.models.registry",
    "load_pretrained": "vit_jax.weights.load",
    "load_state_dict": "vit_jax.weights.state_dict",
    "parity": "vit_jax.parity",
    "preprocess": "vit_jax.inference.preprocess",
    "register_model": "vit_jax.models.registry",
    "save_pretrained": "vit_jax.weights.save",
    "state_dict": "vit_jax.weights.state_dict",
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used: `vit-jax --help` need not wait for JAX."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(_HOMES[name])
    value = globals()[name] = module if name == "parity" else getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
