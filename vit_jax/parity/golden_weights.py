"""Weights and inputs of golden files, rebuilt from their names: no file holds them.

Every array is a function of (name, shape, seed) alone: a PCG64 generator is seeded with the sha256
of "SEED:NAME", standard normals are drawn in float64, scaled by a rule that looks at name and shape
only, and rounded to float32. Names and shapes are those of a PyTorch state dict.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from vit_jax.layers.position import sinusoid_table
from vit_jax.models.registry import DESIGNS

_TOKENS = frozenset(name for design in DESIGNS for name in design.token_names)


def _normal(key: str, shape: Sequence[int]) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "little")
    return np.random.Generator(np.random.PCG64(seed)).standard_normal(tuple(shape))


def make_param(name: str, shape: Sequence[int], seed: int = 0) -> np.ndarray:
    """The float32 value of a parameter or buffer.

    The first rule that fits, n being standard normal and fan_in the product of shape[1:]:
      tokens and position tables                0.2 n
      the performer's random features, "w"      n sqrt(shape[0] / shape[1])
      the performer's projection, "kqv.weight"  0.25 n / sqrt(fan_in)
      whatever else has two axes or more        n / sqrt(fan_in)
      "weight" or "gamma" of one axis (norms)   1 + 0.1 n
      all else (biases)                         0.1 n
    """
    shape = tuple(int(side) for side in shape)
    n = _normal(f"{seed}:{name}", shape)
    leaf = name.rpartition(".")[2]
    if any(key in name for key in _TOKENS):
        value = 0.2 * n
    elif leaf == "w" and len(shape) == 2:
        value = n * np.sqrt(shape[0] / shape[1])
    elif len(shape) >= 2:
        gain = 0.25 if name.endswith("kqv.weight") else 1.0
        value = n * (gain / np.sqrt(np.prod(shape[1:], dtype=np.float64)))
    elif len(shape) == 1 and leaf in ("weight", "gamma"):
        value = 1.0 + 0.1 * n
    else:
        value = 0.1 * n
    return np.asarray(value).astype(np.float32)


def make_input(shape: Sequence[int], seed: int = 0) -> np.ndarray:
    """Standard normal float32 inputs; images are (B, C, H, W)."""
    return _normal(f"{seed}:input", shape).astype(np.float32)


def make_labels(batch: int, num_classes: int, seed: int = 0) -> np.ndarray:
    """The classes (B,) of the loss, int64."""
    return ((7 * np.arange(batch) + 3 + seed) % num_classes).astype(np.int64)


def digest(arrays: Iterable[np.ndarray]) -> str:
    """The sha256 of the little-endian bytes of all arrays, in their order."""
    sha256 = hashlib.sha256()
    for array in arrays:
        little = array.dtype.newbyteorder("<")
        sha256.update(np.ascontiguousarray(array).astype(little, copy=False).tobytes())
    return sha256.hexdigest()


def rebuild(spec: Mapping[str, Any], stored: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All float32 arrays of a golden file's state dict, in its order and in PyTorch's layout.

    Args:
      spec: its JSON: `state_dict` as [name, shape, dtype], `param_seed`, `params_sha256`, factors
        by name in `param_scale`, and in `computed` the names that follow from a formula.
      stored: its arrays. A computed one is taken from `computed/NAME`; the sinusoid `pos_embed` of
        T2T-ViT may be left out.

    Raises:
      ValueError: the rebuilt arrays have another digest; a computed array is not stored.
    """
    scale = spec["param_scale"]
    arrays: dict[str, np.ndarray] = {}
    for name, shape, _ in spec["state_dict"]:
        if name not in spec["computed"]:
            factor = np.float32(scale.get(name, 1.0))
            arrays[name] = make_param(name, shape, spec["param_seed"]) * factor
        elif f"computed/{name}" in stored:
            arrays[name] = stored[f"computed/{name}"]
        elif name == "pos_embed" and len(shape) == 3 and shape[0] == 1:
            arrays[name] = sinusoid_table(*shape[1:])[None].astype(np.float32)
        else:
            raise ValueError(f"wanted the array computed/{name}, which no formula of ours gives")
    got = digest(array for name, array in arrays.items() if name not in spec["computed"])
    if got != spec["params_sha256"]:
        raise ValueError(
            f"the weights that follow from its names have the sha256 {got}, wanted "
            f"{spec['params_sha256']}: the file was changed, or NumPy's random stream was"
        )
    return arrays
