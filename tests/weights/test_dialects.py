"""Names of other sources: Google's and torchvision's, built here by their own rules."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import vit_jax
from tests.models.families import build
from tests.weights.designs import assert_same_weights, redraw
from vit_jax.weights.dialects import DialectError, from_own, to_own

HEADS, WIDTH = 2, 8
HEAD = WIDTH // HEADS


def google(model: Any, style: str = "original") -> dict[str, np.ndarray]:
    """The model's weights as google-research/vision_transformer or big_vision write them."""
    state = vit_jax.state_dict(model)
    big = style != "original"
    attention = f"MultiHeadDotProductAttention_{0 if big else 1}"
    mlp = "MlpBlock_0" if big else "MlpBlock_3"
    said = {
        "cls": state["cls_token"],
        "embedding/kernel": state["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
        "head/kernel": state["head.weight"].T,
        "head/bias": state["head.bias"],
        "pos_embedding" if big else "Transformer/posembed_input/pos_embedding": state["pos_embed"],
    }
    if "pre_logits.fc.weight" in state:
        said["pre_logits/kernel"] = state["pre_logits.fc.weight"].T
        said["pre_logits/bias"] = state["pre_logits.fc.bias"]
    blocks = []
    for number in range(3):
        own = {
            name.removeprefix(f"blocks.{number}."): array
            for name, array in state.items()
            if name.startswith(f"blocks.{number}.")
        }
        block = {}
        for norm, torch_norm in (("LayerNorm_0", "norm1"), ("LayerNorm_1", "norm2")):
            norm = norm if big or norm == "LayerNorm_0" else "LayerNorm_2"
            block[f"{norm}/scale"] = own[f"{torch_norm}.weight"]
            block[f"{norm}/bias"] = own[f"{torch_norm}.bias"]
        for dense, layer in (("Dense_0", "fc1"), ("Dense_1", "fc2")):
            block[f"{mlp}/{dense}/kernel"] = own[f"mlp.{layer}.weight"].T
            block[f"{mlp}/{dense}/bias"] = own[f"mlp.{layer}.bias"]
        for index, part in enumerate(("query", "key", "value")):
            rows = slice(index * WIDTH, (index + 1) * WIDTH)
            kernel = own["attn.qkv.weight"][rows].T.reshape(WIDTH, HEADS, HEAD)
            block[f"{attention}/{part}/kernel"] = kernel
            block[f"{attention}/{part}/bias"] = own["attn.qkv.bias"][rows].reshape(HEADS, HEAD)
        kernel = own["attn.proj.weight"].T.reshape(HEADS, HEAD, WIDTH)
        block[f"{attention}/out/kernel"] = kernel
        block[f"{attention}/out/bias"] = own["attn.proj.bias"]
        blocks.append(block)
    if style == "scanned":
        for name in blocks[0]:
            said[f"Transformer/encoderblock/{name}"] = np.stack([block[name] for block in blocks])
    else:
        for number, block in enumerate(blocks):
            said |= {f"Transformer/encoderblock_{number}/{k}": v for k, v in block.items()}
    if not big:
        return said
    beside = {f"opt/0/mu/{name}": array for name, array in said.items()}
    said = {f"params/{name}": array for name, array in said.items()}
    return {**said, **beside, "opt/0/count": np.int32(3), "chrono/accum_train_time": np.float64(1)}


def torchvision(model: Any, new_mlp_names: bool) -> dict[str, np.ndarray]:
    state = vit_jax.state_dict(model)
    first, second = ("linear_1", "linear_2") if new_mlp_names else ("0", "3")
    names = {
        "cls_token": "class_token",
        "pos_embed": "encoder.pos_embedding",
        "patch_embed.proj.": "conv_proj.",
        "attn.qkv.": "self_attention.in_proj_",
        "attn.proj.": "self_attention.out_proj.",
        "mlp.fc1.": f"mlp.{first}.",
        "mlp.fc2.": f"mlp.{second}.",
        "norm1.": "ln_1.",
        "norm2.": "ln_2.",
        "pre_logits.fc.": "heads.pre_logits.",
    }
    said = {}
    for name, array in state.items():
        name = name.replace("blocks.", "encoder.layers.encoder_layer_")
        for own, other in names.items():
            name = name.replace(own, other)
        if name.startswith("norm."):
            name = f"encoder.ln.{name.removeprefix('norm.')}"
        if name.startswith("head."):
            name = f"heads.{name}"
        said[name] = array
    return said


def of_huggingface() -> dict[str, np.ndarray]:
    model = build("vit")
    return from_own(model, vit_jax.state_dict(model), "huggingface")


def loads(model: Any, path: Path, dialect: str | None) -> None:
    """The file gives the model's weights to another one."""
    width = 6 if model.pre_logits is not None else None
    other = redraw(build("vit", model.dtype, representation_size=width), seed=1)
    report = vit_jax.load_pretrained(other, path)
    assert report.dialect == dialect
    assert_same_weights(other, model)


@pytest.mark.parametrize("representation_size", [None, 6])
def test_google_there_and_back(tmp_path: Path, representation_size: int | None) -> None:
    """What is written is what the test's own writer writes, name by name and bit by bit."""
    model = build("vit", representation_size=representation_size)
    vit_jax.save_pretrained(model, tmp_path / "w.npz", dialect="google")
    with np.load(tmp_path / "w.npz") as stored:
        want = google(model)
        assert sorted(stored) == sorted(want)
        for name, array in want.items():
            np.testing.assert_array_equal(stored[name], array)
    loads(model, tmp_path / "w.npz", "google")


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("style", ["original", "big_vision", "scanned"])
def test_google_npz(tmp_path: Path, style: str) -> None:
    model = build("vit", jnp.float64, representation_size=6)
    np.savez(tmp_path / "w.npz", allow_pickle=False, **google(model, style))  # type: ignore[arg-type]
    loads(model, tmp_path / "w.npz", "google")


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("new_mlp_names", [False, True])
def test_torchvision(tmp_path: Path, new_mlp_names: bool) -> None:
    model = build("vit", jnp.float64)
    said = torchvision(model, new_mlp_names)
    assert "encoder.layers.encoder_layer_2.self_attention.in_proj_bias" in said
    torch.save({name: torch.tensor(a) for name, a in said.items()}, tmp_path / "w.pth")
    loads(model, tmp_path / "w.pth", "torchvision")


@pytest.mark.parametrize(
    ("wrap", "left"),
    [
        (lambda s: {"model": s}, "the weights lay under 'model'"),
        (
            lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}, "epoch": 3},
            "the names began with 'module.'",
        ),
    ],
    ids=["DeiT", "DataParallel"],
)
def test_wrappers(tmp_path: Path, wrap: Any, left: str) -> None:
    model = build("vit")
    state = {name: torch.tensor(array) for name, array in vit_jax.state_dict(model).items()}
    torch.save(wrap(state), tmp_path / "w.pth")
    other = redraw(build("vit"), seed=1)
    report = vit_jax.load_pretrained(other, tmp_path / "w.pth")
    assert_same_weights(other, model)
    assert left in report.left
    assert report.dialect is None


def test_googles_heads_are_the_models(tmp_path: Path) -> None:
    model = build("vit")
    vit_jax.save_pretrained(model, tmp_path / "w.npz", dialect="google")
    other = build("vit", num_heads=4)
    with pytest.raises(ValueError, match=r"num_heads=2, this one has 4: create_model"):
        vit_jax.load_pretrained(other, tmp_path / "w.npz")


@pytest.mark.parametrize(
    ("dialect", "path"), [("google", "w.npz"), ("huggingface", "folder")], ids=["google", "hf"]
)
@pytest.mark.parametrize(
    "fields",
    [
        {"qk_scale": 0.3},
        {"no_embed_class": True},
        {"class_token": False, "global_pool": ""},
        {"global_pool": ""},
        {"global_pool": "avg"},
        {"init_values": 0.1},
        {"qk_norm": True},
        {"reg_tokens": 2},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_what_a_dialect_cannot_say_is_refused(
    tmp_path: Path, fields: dict[str, Any], dialect: str, path: str
) -> None:
    model = build("vit", img_size=8, **fields)
    with pytest.raises(ValueError, match="no place for"):
        vit_jax.save_pretrained(model, tmp_path / path, dialect=dialect)
    assert not list(tmp_path.iterdir())


def test_what_only_one_dialect_cannot_say_is_refused(tmp_path: Path) -> None:
    distilled = build("distilled", img_size=8)
    with pytest.raises(
        ValueError, match="Google's ViT has no place for this model's distilled=True"
    ):
        vit_jax.save_pretrained(distilled, tmp_path / "w.npz", dialect="google")
    with pytest.raises(ValueError, match=r"no place for .* norm_eps=0\.001"):
        vit_jax.save_pretrained(build("vit", norm_eps=1e-3), tmp_path / "w.npz", dialect="google")
    wide = build("vit", img_size=8, representation_size=6)
    with pytest.raises(ValueError, match="no place for pre_logits"):
        vit_jax.save_pretrained(wide, tmp_path / "f", dialect="huggingface")
    with pytest.raises(ValueError, match="'google' is a dialect of siglip, vit, this model is"):
        vit_jax.save_pretrained(build("t2t performer"), tmp_path / "w.npz", dialect="google")
    assert not list(tmp_path.iterdir())


def test_a_query_alone_and_unlike_parts_are_refused() -> None:
    whole = of_huggingface()
    query, key = (
        f"vit.encoder.layer.1.attention.attention.{part}.weight" for part in ("query", "key")
    )
    for change in (
        {query: None},
        {key: None},
        {key: whole[key][:3]},
        {key: whole[key].astype(np.float16)},
        {query: np.float32(1), key: np.float32(1)},
    ):
        arrays = {name: np.asarray(a) for name, a in {**whole, **change}.items() if a is not None}
        with pytest.raises(
            DialectError, match=r"blocks\.1\.attn\.(q\.weight.*wanted 3 of|k.weight: there is no)"
        ):
            to_own(arrays)
    to_own(whole)


def test_two_arrays_of_one_place_are_refused() -> None:
    hf = of_huggingface()
    hf["layernorm.weight"] = hf["vit.layernorm.weight"] + 1
    vision = torchvision(build("vit"), new_mlp_names=True)
    name = "encoder.layers.encoder_layer_0.mlp."
    vision[f"{name}0.bias"] = vision[f"{name}linear_1.bias"] + 1
    flax = google(build("vit"))
    flax["params/cls"] = flax["cls"] + 1
    for arrays in (hf, vision, flax):
        with pytest.raises(DialectError, match="two of the arrays are"):
            to_own(arrays)


@pytest.mark.parametrize("style", ["original", "scanned"])
def test_google_arrays_without_axes_are_refused_by_name(style: str) -> None:
    model = build("vit")
    whole = google(model, style)
    for name in whole:
        if name.startswith(("opt/", "chrono/")):
            continue
        for array in (np.float32(1), np.zeros((0,), np.float32)):
            with pytest.raises(ValueError, match="wanted") as error:
                vit_jax.load_state_dict(model, to_own({**whole, name: np.asarray(array)})[0])
            # NumPy's own errors would not.
            assert "does not fit the model" in str(error.value) or name[-4:] in str(error.value)
