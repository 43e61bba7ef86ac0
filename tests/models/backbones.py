"""transformers' image towers beside ours: random weights, saved and loaded, compared."""

import math
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

import vit_jax
from tests.parity.test_foreign import redrawn
from vit_jax.weights.state_dict import torch_shapes

FLOAT64: dict[str, Any] = {"dtype": "float64", "param_dtype": "float64"}


def transformers() -> Any:
    """The library, quiet."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def theirs(model: str, config: Any) -> Any:
    """Their model of a class's name, with random weights, in float64."""
    return redrawn(getattr(transformers(), model)(config)).double().eval()


def pooled(module: Any, output: str = "pooler_output") -> Any:
    """Their model, answering with one array alone."""
    kind = type(module)

    def forward(self: Any, images: torch.Tensor) -> torch.Tensor:
        return getattr(kind.forward(self, images), output)

    module.__class__ = type(kind.__name__, (kind,), {"forward": forward})
    return module


def ours(module: Any, folder: Path, **fields: Any) -> Any:
    """Our model of their folder."""
    module.save_pretrained(folder)
    return vit_jax.from_pretrained(folder, **FLOAT64, **fields)


def images(*size: int, count: int = 2) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(count, *size, 3))


def answers(module: Any, x: np.ndarray, **how: Any) -> Any:
    with torch.no_grad():
        return module(torch.tensor(x.transpose(0, 3, 1, 2)), output_hidden_states=True, **how)


# One program for all cases of a size.
forward = jax.jit(lambda m, x: (m.forward_features(x), m(x), m.forward_intermediates(x)))


def outputs(model: Any, x: np.ndarray) -> Any:
    return forward(model, jnp.asarray(x))


def parameters_of(model: Any) -> int:
    """How many numbers PyTorch's state dict of a model has."""
    return sum(math.prod(shape) for shape in torch_shapes(model).values())


def assert_state_dict_is_read(model: Any, module: Any, folder: Path, *fields: str) -> None:
    """Names in their modules are other than in files; `fields`: what arrays do not show."""
    torch.save(module.state_dict(), folder / "memory.pth")
    names = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", *fields)
    given: dict[str, Any] = {name: getattr(model.config, name) for name in names}
    found = vit_jax.from_pretrained(folder / "memory.pth", name=model.spec.name, **FLOAT64, **given)
    for name, array in vit_jax.state_dict(found).items():
        np.testing.assert_array_equal(array, vit_jax.state_dict(model)[name])


def assert_weights_back(model: Any, module: Any, folder: Path) -> Any:
    """Their class takes our folder, key by key, number by number; returns what it made of it."""
    vit_jax.save_pretrained(model, folder, dialect="huggingface")
    again, info = type(module).from_pretrained(
        folder, dtype=torch.float64, output_loading_info=True
    )
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for name, array in module.state_dict().items():
        np.testing.assert_array_equal(again.state_dict()[name], array)
    return again


def assert_folder_back(model: Any, module: Any, folder: Path) -> None:
    """Their class takes our folder: its weights, and its configuration field by field."""
    again = assert_weights_back(model, module, folder)
    said, wanted = (
        config.get("vision_config", config)
        for config in (again.config.to_dict(), module.config.to_dict())
    )
    for key, value in wanted.items():
        if key not in ("transformers_version", "dtype", "_name_or_path", "architectures"):
            has_place = key != "projection_dim" or hasattr(module, "visual_projection")
            assert said[key] == value or not has_place, key


def assert_defaults(dialect: Any, config: Any) -> None:
    """What a config.json leaves out is what their configuration class takes."""
    wanted = config.to_dict()
    for key, value in dialect.defaults.items():
        assert wanted[key] == (list(value) if isinstance(value, tuple) else value), key
