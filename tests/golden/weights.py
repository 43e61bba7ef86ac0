"""Deterministic weights and inputs for the golden fixtures (numpy only).

Every array is a pure function of (name, shape, seed): a PCG64 generator is
seeded with sha256("<seed>:<name>"), standard normals are drawn in float64,
scaled by a rule that depends on name and shape only, and rounded to float32.
Names and shapes are those of the PyTorch reference's state_dict, so shapes
are in PyTorch layout (Linear weight = (out, in), Conv2d weight =
(out, in, kh, kw)).  Layout conversion is up to the user of the array.
"""

import hashlib

import numpy as np

# Substrings that mark class/distillation/register tokens and position tables.
_TOKEN_KEYS = (
    "pos_embed",
    "position_emb",
    "positional_encodings",
    "positon_embedding_table",
    "cls_token",
    "dist_token",
    "reg_token",
    "class_parameter",
)


def _normal(key: str, shape) -> np.ndarray:
    """Float64 standard normals of `shape`, seeded by sha256 of `key`."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "little")
    return np.random.Generator(np.random.PCG64(seed)).standard_normal(tuple(shape))


def make_param(name: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Return the float32 value of the parameter or buffer `name`.

    First matching rule wins (n = standard normal, fan_in = prod(shape[1:])):
      tokens and position tables            0.2 * n
      performer random features, name "w"   n * sqrt(shape[0] / shape[1])
      performer projection "kqv.weight"     n * 0.25 / sqrt(fan_in)
      any other array with >= 2 dimensions  n / sqrt(fan_in)
      1-D "*.weight", "*.gamma" (norms)     1 + 0.1 * n
      everything else (biases)              0.1 * n
    """
    shape = tuple(int(s) for s in shape)
    n = _normal(f"{seed}:{name}", shape)
    leaf = name.rsplit(".", 1)[-1]
    if any(k in name for k in _TOKEN_KEYS):
        out = 0.2 * n
    elif leaf == "w" and len(shape) == 2:
        out = n * np.sqrt(shape[0] / shape[1])
    elif len(shape) >= 2:
        gain = 0.25 if name.endswith("kqv.weight") else 1.0
        out = n * (gain / np.sqrt(np.prod(shape[1:], dtype=np.float64)))
    elif len(shape) == 1 and leaf in ("weight", "gamma"):
        out = 1.0 + 0.1 * n
    else:
        out = 0.1 * n
    return out.astype(np.float32)


def make_input(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Return a float32 standard-normal input; images are NCHW."""
    return _normal(f"{seed}:input", shape).astype(np.float32)


def make_labels(batch: int, num_classes: int, seed: int = 0) -> np.ndarray:
    """Return the fixed integer labels used for losses and gradients."""
    return ((7 * np.arange(batch) + 3 + seed) % num_classes).astype(np.int64)


def params_from_spec(spec: dict) -> dict[str, np.ndarray]:
    """Build all non-computed arrays of a fixture from its parsed JSON file.

    Entries listed in spec["computed"] are skipped: their value follows from a
    formula.  spec["param_scale"] holds optional float32 factors applied after make_param.
    """
    scale = spec.get("param_scale", {})
    return {
        name: make_param(name, shape, spec["param_seed"]) * np.float32(scale.get(name, 1.0))
        for name, shape, _dtype in spec["state_dict"]
        if name not in spec["computed"]
    }


def digest(arrays) -> str:
    """sha256 over the raw little-endian bytes of the arrays, in order."""
    h = hashlib.sha256()
    for a in arrays:
        h.update(np.ascontiguousarray(a).astype(a.dtype.newbyteorder("<"), copy=False).tobytes())
    return h.hexdigest()
