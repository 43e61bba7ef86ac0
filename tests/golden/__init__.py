"""Golden fixtures: what the PyTorch references answered, and the same model built by vit_jax.

`NAME.json` says what was run, `NAME.npz` what came out, `vit_jax.parity.golden_weights` rebuilds
every weight and input from its name, shape and seed, and `models.json` maps a reference's
constructor and its arguments to a registered name and our fields.
"""

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

import vit_jax
from vit_jax.models.registry import abstract_model
from vit_jax.parity import golden_weights as weights

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Golden:
    """One fixture. `spec` is its JSON, `arrays` its npz, both as stored."""

    name: str
    spec: dict[str, Any]
    arrays: dict[str, np.ndarray]

    @property
    def params(self) -> dict[str, np.ndarray]:
        """PyTorch's name -> float32 array in its layout; tied arrays under their first name.

        Those of a tiny model are kept; of a full one they take up to 344 MB and are made anew.
        """
        if self.name.startswith("full"):
            return weights.rebuild(self.spec, self.arrays)
        return self._kept_params

    @functools.cached_property
    def _kept_params(self) -> dict[str, np.ndarray]:
        return weights.rebuild(self.spec, self.arrays)

    @functools.cached_property
    def images(self) -> np.ndarray:
        """Float32 images (B, H, W, C)."""
        source = self.spec["input"]
        return weights.make_input(tuple(source["shape"]), source["seed"]).transpose(0, 2, 3, 1)

    @property
    def labels(self) -> np.ndarray:
        return np.asarray(self.spec["labels"])

    @property
    def class_head_only(self) -> bool:
        """Whether the fixture's logits are the class head's, where ours average both heads."""
        return "004_caf" in self.spec["source"] and bool(self.spec["kwargs"].get("distilled"))

    @property
    def distilled(self) -> bool:
        return any(name == "head_dist.weight" for name, *_ in self.spec["state_dict"])

    def noise(self, of: str) -> float:
        """Largest difference of the reference's own float32 and float64 run."""
        return self.spec["noise_f32_vs_f64"][of]["max_abs"]

    def registry_name_and_fields(self) -> tuple[str, dict[str, Any]]:
        """The registered name and the keyword overrides that make the fixture's model."""
        spec = self.spec
        if spec["constructor"] in vit_jax.list_models():
            return spec["constructor"], dict(spec["kwargs"])
        rows = json.loads((_FOLDER / "models.json").read_text())["rows"]
        row = next(
            row
            for row in rows
            if row["source"] in spec["source"] and row["constructor"] == spec["constructor"]
        )
        renamed, dropped = row.get("fields", {}), row.get("drop", [])
        fields = dict(row["fixed"])
        for key, value in spec["kwargs"].items():
            field = renamed.get(key, key)
            if field.startswith("!"):  # the opposite of the field
                fields[field[1:]] = not value
            elif key not in dropped:  # JSON has no tuples
                fields[field] = tuple(value) if isinstance(value, list) else value
        if fields.pop("shared_cls", False):
            fields["class_token_batch"] = 1
        if row["registry"] == "vit_classifier":
            fields["img_size"] = spec["input"]["shape"][2]
            shapes = {name: shape for name, shape, _ in spec["state_dict"]}
            fields["class_token_batch"] = shapes["patch_embedding_layer.class_parameter"][0]
        return row["registry"], fields

    def build(self, dtype: Any = jnp.float64, **overrides: Any) -> Any:
        """The fixture's model in eval mode with the fixture's weights, everything in `dtype`."""
        name, fields = self.registry_name_and_fields()
        model = abstract_model(name, dtype=dtype, param_dtype=dtype, **{**fields, **overrides})
        # Cast by NumPy: JAX would compile a cast for each shape.
        vit_jax.load_state_dict(model, {n: array.astype(dtype) for n, array in self.params.items()})
        model.eval()
        return model


@functools.cache
def load(name: str) -> Golden:
    """Read the fixture `name` (without extension)."""
    spec = json.loads((_FOLDER / f"{name}.json").read_text())
    with np.load(_FOLDER / f"{name}.npz") as stored:
        return Golden(name, spec, dict(stored))


def names(kind: str) -> list[str]:
    """Names of the fixtures of a kind: "tiny" (gradients, training) or "full" (outputs only)."""
    return sorted(path.stem for path in _FOLDER.glob(f"{kind}_*.json"))
