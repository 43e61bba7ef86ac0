"""What every design is put through once it is trained or saved: commands, other forms, sizes."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import vit_jax
from tests.training.runs import rows
from vit_jax import cli
from vit_jax.inspect.summary import summarize

FORMS: tuple[dict[str, Any], ...] = (
    {"scan_layers": True},
    {"remat": "blocks"},
    {"patchify": "unfold"},
)
logits = nnx.jit(lambda m, x: m(x))


def assert_is_used(run: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[Any, Path]:
    """A run on the digits was tested, predicts, is summarised and converted.

    Returns:
      Its model, and the file of its converted weights.
    """
    assert rows(run)[-1]["split"] == "test"
    model: Any = vit_jax.from_pretrained(run)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "a.png")
    assert cli.main(["predict", str(run), str(folder / "a.png"), "--json", "--top=1"]) == 0
    assert json.loads(capsys.readouterr().out)["top"][0]["name"] in "0123456789"
    assert cli.main(["convert", str(run), str(folder / "w.pth")]) == 0
    assert summarize(model).parameters == sum(a.size for a in vit_jax.state_dict(model).values())
    return model, folder / "w.pth"


def assert_forms_agree(
    model: Any,
    path: Path,
    x: jax.Array,
    forms: Sequence[dict[str, Any]] = FORMS,
    *,
    bfloat16: float = 0.05,
) -> None:
    """A model's saved weights give its logits in other forms too, and roughly in bfloat16."""
    want = logits(model, x)
    for form in forms:
        again = vit_jax.from_pretrained(path, **form)
        np.testing.assert_allclose(logits(again, x), want, rtol=0, atol=1e-5)
    half = vit_jax.from_pretrained(path, dtype="bfloat16")
    np.testing.assert_allclose(logits(half, x), want, rtol=0, atol=bfloat16)


def grey(*size: int) -> jax.Array:
    """Two images of noise with one channel."""
    draw = np.random.default_rng(0)
    return jnp.asarray(draw.normal(size=(2, *size, 1)).astype(np.float32))
