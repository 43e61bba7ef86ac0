"""Names of the Hugging Face hub: from a filled cache, and what is said without one."""

import functools
import json
import re
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

import vit_jax
from tests.models.families import build
from tests.weights.designs import assert_same_weights, redraw
from vit_jax.models.pretrained import PUBLISHED
from vit_jax.weights import hub

HASH = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def fill(cache: Path, name: str = "owner/name", revision: str = "main") -> Path:
    """The folder of a model in the cache, as huggingface_hub lays it out."""
    model = cache / f"models--{name.replace('/', '--')}"
    folder = model / "snapshots" / HASH
    folder.mkdir(parents=True)
    reference = model / "refs" / revision
    reference.parent.mkdir(parents=True)
    reference.write_text(HASH)
    return folder


@pytest.mark.parametrize("revision", ["main", "v1.0"])
def test_a_cached_model_is_loaded(cache: Path, revision: str) -> None:
    model = build("vit", img_size=8)
    vit_jax.save_pretrained(model, cache.parent / "f", dialect="huggingface")
    folder = fill(cache, revision=revision)
    for file in (cache.parent / "f").iterdir():
        file.rename(folder / file.name)
    name = "hf:owner/name" if revision == "main" else f"hf:owner/name@{revision}"
    other = redraw(build("vit", img_size=8), seed=1)
    report = vit_jax.load_pretrained(other, name)
    assert (report.source, report.dialect) == (name, "huggingface")
    assert_same_weights(other, model)
    with pytest.raises(ValueError, match="not in the cache"):
        vit_jax.load_pretrained(other, "hf:owner/name@other")


def test_what_to_do_without_a_cache(cache: Path) -> None:
    model = build("vit")
    with pytest.raises(ValueError, match=r"hf:owner/name is not in the cache") as error:
        vit_jax.load_pretrained(model, "hf:owner/name")
    message = str(error.value)
    assert "`hf download owner/name` fills the cache" in message
    assert "config.json and model.safetensors" in message
    assert "\n" not in message


def test_a_network_that_does_not_answer_is_one_error_soon(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection itself fails, at a port of no service."""
    from huggingface_hub import constants, snapshot_download

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    nowhere = functools.partial(snapshot_download, endpoint="http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.snapshot_download", nowhere)
    start = time.perf_counter()
    with pytest.raises(ValueError, match="is not in the cache and cannot be had"):
        hub.fetch("owner/name")
    assert time.perf_counter() - start < 10


@pytest.mark.parametrize("held", [[], ["config.json"], ["pytorch_model.bin"]])
def test_a_cache_without_safetensors(cache: Path, held: list[str]) -> None:
    folder = fill(cache)
    for name in held:
        (folder / name).write_text("{}")
    with pytest.raises(ValueError, match="is not in the cache and cannot be had"):
        hub.fetch("owner/name")


@pytest.mark.parametrize("name", ["", "name", "a/b/c", "../b/c", "a/b@", "a b/c", "a/b?x"])
def test_names_that_are_none(cache: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"wanted hf:OWNER/NAME"):
        hub.fetch(name)


def test_without_the_library_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"pip install 'vit-jax\[hub\]'"):
        hub.fetch("owner/name")


def test_a_folder_of_timm_needs_nothing_else(cache: Path) -> None:
    """Its architecture, and what differs from its defaults."""
    sizes = {"patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 2}
    model = build("vit", img_size=8, **sizes)
    folder = fill(cache, "timm/vit_tiny.y")
    save_file(vit_jax.state_dict(model), folder / "model.safetensors")
    config = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": 5,
        "global_pool": "token",
        "model_args": dict(sizes),
        "pretrained_cfg": {"input_size": [3, 8, 8], "mean": [0.1] * 3, "std": [0.5] * 3},
    }
    (folder / "config.json").write_text(json.dumps(config))
    found = vit_jax.from_pretrained("hf:timm/vit_tiny.y")
    assert (found.spec.name, found.num_classes) == ("vit_tiny_patch16_224", 5)
    assert found.spec.preprocessing is not None
    assert_same_weights(found, model)
    config["model_args"]["pos_embed"] = "rope"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="model_args states 'pos_embed', and vit_tiny_patch16_224"):
        vit_jax.from_pretrained("hf:timm/vit_tiny.y")


def test_a_model_that_timm_wrote(cache: Path) -> None:
    """Its own names, and preprocessing in config.json under "pretrained_cfg"."""
    model = build("vit")
    folder = fill(cache, "timm/vit_tiny.x")
    save_file(vit_jax.state_dict(model), folder / "model.safetensors")
    (folder / "config.json").write_text(
        '{"architecture": "vit_tiny", "num_classes": 5, "pretrained_cfg": {"mean": [0.1, 0.2, 0.3],'
        ' "std": [0.5, 0.5, 0.5], "crop_pct": 0.875, "interpolation": "bicubic"}}'
    )
    other = redraw(build("vit"), seed=1)
    assert vit_jax.load_pretrained(other, "hf:timm/vit_tiny.x").dialect is None
    assert_same_weights(other, model)
    assert other.spec.preprocessing is not None
    np.testing.assert_allclose(other.spec.preprocessing.mean, (0.1, 0.2, 0.3))
    assert other.spec.preprocessing.crop_fraction == 0.875


def test_published_weights_by_name(cache: Path) -> None:
    """A name's repository, and a repository's name: one table."""
    fields = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
    fields |= {"position_resize": "bicubic"}
    tiny = redraw(vit_jax.create_model("dinov2", rngs=nnx.Rngs(0), **fields), seed=1)
    vit_jax.save_pretrained(tiny, cache.parent / "f", dialect="huggingface")
    folder = fill(cache, "facebook/dinov2-small")
    for file in (cache.parent / "f").iterdir():
        file.rename(folder / file.name)
    found = vit_jax.from_pretrained("hf:facebook/dinov2-small")
    assert found.spec.name == "dinov2_vits14"
    assert found.deterministic
    assert_same_weights(found, tiny)
    by_name = vit_jax.create_model(
        "dinov2_vits14", pretrained=True, num_classes=3, rngs=nnx.Rngs(0)
    )
    assert (by_name.num_classes, by_name.deterministic) == (3, False)
    with pytest.raises(ValueError, match="no published weights of 't2t_vit_7' are known"):
        vit_jax.create_model("t2t_vit_7", pretrained=True)
    with pytest.raises(ValueError, match="rngs must be"):
        vit_jax.create_model("t2t_vit_7")


def test_gated_weights_say_so(cache: Path) -> None:
    with pytest.raises(ValueError, match="is not in the cache") as error:
        vit_jax.create_model("dinov3_vitb16", pretrained=True)
    message, repository = str(error.value), "facebook/dinov3-vitb16-pretrain-lvd1689m"
    assert f"It is looked for at {cache}/models--{repository.replace('/', '--')}." in message
    assert (
        f"It is gated (dinov3-license): ask for access at https://huggingface.co/{repository}"
        in (message)
    )
    with pytest.raises(ValueError, match="is not in the cache") as error:
        vit_jax.from_pretrained("hf:google/siglip-base-patch16-224")
    assert "It is gated" not in str(error.value)


def test_the_table_of_published_weights() -> None:
    """Every name is registered, every repository stands once; names with weights can be listed."""
    assert {entry.name for entry in PUBLISHED} <= {*vit_jax.list_models()}
    assert len({entry.repository for entry in PUBLISHED}) == len(PUBLISHED)
    assert all(re.fullmatch(r"[\w.-]+/[\w.-]+", entry.repository) for entry in PUBLISHED)
    assert vit_jax.list_models("dinov3*", pretrained=True) == vit_jax.list_models("dinov3*")
    assert vit_jax.list_models("t2t*", pretrained=True) == []
