"""DINOv3 beside transformers: values, gradients, training, sizes, folders there and back."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import vit_jax
from tests.models.backbones import (
    FLOAT64,
    answers,
    assert_defaults,
    assert_folder_back,
    assert_state_dict_is_read,
    images,
    ours,
    outputs,
    parameters_of,
    pooled,
    theirs,
    transformers,
)
from tests.tiers import mostly_slow
from tests.weights.designs import assert_close
from vit_jax.layers.rotary import augmented, frequencies, patch_coordinates, rotations
from vit_jax.models.dinov3 import Dinov3, Dinov3Config
from vit_jax.models.registry import abstract_model
from vit_jax.parity import OptimizerSpec, assert_parity
from vit_jax.weights.dialects import to_own
from vit_jax.weights.huggingface import read_facts
from vit_jax.weights.load import load_with_notes
from vit_jax.weights.state_dict import torch_shapes

pytestmark = pytest.mark.xdist_group("huggingface")

_SIZES: dict[str, Any] = {"image_size": 32, "patch_size": 8, "hidden_size": 32}
_SIZES |= {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"num_register_tokens": 3},
    "gated": {"use_gated_mlp": True, "hidden_act": "silu", "num_register_tokens": 2},
    "without": {"query_bias": False, "value_bias": False, "num_register_tokens": 0},
}
# Parameters of transformers' models: the release's without the biases of the keys and the masks.
PARAMETERS = {
    "dinov3_vits16": 21_596_544,
    "dinov3_vits16plus": 28_692_864,
    "dinov3_vitb16": 85_660_416,
    "dinov3_vitl16": 303_129_600,
    "dinov3_vith16plus": 840_592_640,
    "dinov3_vit7b16": 6_716_035_072,
}


def module_of(kind: str) -> Any:
    config = transformers().DINOv3ViTConfig(**_SIZES, **KINDS[kind])
    return theirs("DINOv3ViTModel", config)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kind", mostly_slow(KINDS, ["gated"]))
def test_values_gradients_and_training(kind: str, tmp_path: Path) -> None:
    """Every stage to 1e-12, and ten steps of AdamW."""
    module = module_of(kind)
    model = ours(module, tmp_path)
    report = assert_parity(
        model, pooled(module), optimizer=OptimizerSpec(steps=10), precisions=("float64",)
    )
    stages = {row.name for row in report.rows if row.section == "forward"}
    mlp = "blocks.1.mlp.w3" if kind == "gated" else "blocks.1.mlp.fc2"
    assert {"patch_embed.proj", "blocks.0.ls1", "blocks.1.attn.proj", mlp, "norm", ""} <= stages


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kind", mostly_slow(KINDS, ["plain"]))
def test_images_of_other_sizes_and_the_way_back(kind: str, tmp_path: Path) -> None:
    module = module_of(kind)
    model = ours(module, tmp_path / "theirs")
    assert (model.num_classes, model.spec.name) == (0, "dinov3")
    for size in ((32, 32), (24, 40), (48, 16), (64, 64)):
        x = images(*size)
        want = answers(module, x)
        tokens, answer, blocks = outputs(model, x)
        assert_close(tokens, want.last_hidden_state.numpy())
        assert_close(answer, want.pooler_output.numpy())
        for block, hidden in zip(blocks, want.hidden_states[1:], strict=True):
            assert_close(block, hidden.numpy())
    with pytest.raises(ValueError, match="divisible by patch_size, 8x8, got 32x36"):
        model(jnp.zeros((1, 32, 36, 3)))
    assert_folder_back(model, module, tmp_path / "ours")
    assert_state_dict_is_read(model, module, tmp_path, "mlp_ratio")


def release(module: Any, rounding: str) -> dict[str, torch.Tensor]:
    """Their weights as the release's files hold them, with what these have beside."""
    named = {}
    for name, tensor in module.state_dict().items():
        name = name.replace("embeddings.patch_embeddings", "patch_embed.proj")
        name = name.removeprefix("embeddings.").removeprefix("model.")
        name = name.replace("register_tokens", "storage_tokens").replace("layer.", "blocks.")
        name = name.replace("layer_scale", "ls").replace("lambda1", "gamma")
        name = name.replace("attention.o_proj", "attn.proj").replace("attention", "attn")
        for part, own in (("gate", "w1"), ("up", "w2"), ("down", "w3")):
            if not module.config.use_gated_mlp:
                own = {"w2": "fc1", "w3": "fc2"}.get(own, own)
            name = name.replace(f"{part}_proj", own)
        if tensor.numel():  # transformers has a table of no registers
            named[name] = tensor
    named["mask_token"] = named["mask_token"].reshape(1, -1)
    for number in range(module.config.num_hidden_layers):
        attn = f"blocks.{number}.attn"
        for leaf in ("weight", "bias"):
            parts = [named.pop(f"{attn}.{part}_proj.{leaf}", None) for part in "qkv"]
            if any(part is not None for part in parts):
                like = next(part for part in parts if part is not None)
                # What the mask hides need not be zero.
                parts = [torch.ones_like(like) if part is None else part for part in parts]
                named[f"{attn}.qkv.{leaf}"] = torch.cat(parts)
        if f"{attn}.qkv.bias" in named:
            mask = torch.ones_like(named[f"{attn}.qkv.bias"]).reshape(3, -1)
            mask[1] = 0
            named[f"{attn}.qkv.bias_mask"] = mask.ravel()
    head_dim = module.config.hidden_size // module.config.num_attention_heads
    periods = 100.0 ** (torch.arange(head_dim // 4) * (4 / head_dim))
    named["rope_embed.periods"] = periods.to(getattr(torch, rounding)).float()
    named |= {f"local_cls_norm.{leaf}": torch.ones(32) for leaf in ("weight", "bias")}
    return named


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("kind", "rounding"),
    mostly_slow(
        [(kind, rounding) for kind in KINDS for rounding in ("float32", "bfloat16")],
        [("plain", "bfloat16")],
    ),
)
def test_names_of_the_release(kind: str, rounding: str, tmp_path: Path) -> None:
    """Fused biases and their masks, and periods that are rounded to bfloat16."""
    module = module_of(kind)
    path = tmp_path / "dinov3.pth"
    torch.save(release(module, rounding), path)
    fields: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2}
    fields |= {"num_heads": 2, "mlp_ratio": 1.5, **FLOAT64}
    model, notes = load_with_notes(path, name="dinov3", fields=fields)
    assert model.config.rope_rounding == rounding
    assert "local_cls_norm: 2 arrays of another part, left out" in notes
    x = images(24, 40)
    if rounding == "bfloat16":
        periods = release(module, rounding)["rope_embed.periods"].double()
        module.rope_embeddings.inv_freq = 1 / periods
    assert_close(outputs(model, x)[0], answers(module, x).last_hidden_state.numpy())
    with pytest.raises(ValueError, match=f"rope_rounding='{rounding}', this one has 'timm'"):
        vit_jax.from_pretrained(path, name="dinov3", **fields, rope_rounding="timm")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_embed.periods": torch.ones(4)}, "wanted periods from 1 to 100, of float32"),
        ({"blocks.0.attn.qkv.bias_mask": torch.ones(7)}, r"wanted the shape \(96,\), got \(7,\)"),
        ({"blocks.1.attn.qkv.bias_mask": torch.ones(96)}, "k_bias: there is none here"),
    ],
)
def test_what_the_release_has_not_is_refused(
    change: dict[str, torch.Tensor], message: str, tmp_path: Path
) -> None:
    torch.save({**release(module_of("plain"), "bfloat16"), **change}, tmp_path / "dinov3.pth")
    with pytest.raises(ValueError, match=message):
        vit_jax.from_pretrained(tmp_path / "dinov3.pth", name="dinov3")


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_gradients_with_what_is_of_float32(tmp_path: Path) -> None:
    """On a grid whose coordinates float32 rounds. (Parity runs the source without its casts.)"""
    module = module_of("plain")
    model = ours(module, tmp_path)
    x = images(24, 40)
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params: Any) -> jax.Array:
        return (nnx.merge(graph, params, rest)(jnp.asarray(x)) ** 2).mean()

    got = vit_jax.state_dict(nnx.merge(graph, jax.jit(jax.grad(loss))(params), rest))
    (module(torch.tensor(x.transpose(0, 3, 1, 2))).pooler_output ** 2).mean().backward()
    for parameter in module.parameters():
        gradient = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        parameter.data = gradient
    want = to_own({name: tensor.numpy() for name, tensor in module.state_dict().items()})[0]
    assert want.keys() == got.keys()
    for name in want.keys() - {"mask_token"}:
        assert_close(got[name], want[name])


@pytest.mark.usefixtures("x64")
def test_positions_drawn_in_training() -> None:
    """The table of the coordinates that transformers drew; each draw within its bounds."""
    from transformers.models.dinov3_vit import modeling_dinov3_vit as source

    drawn = patch_coordinates(3, 5) * np.float32(1.3) + np.float32(0.1)
    config = transformers().DINOv3ViTConfig(**{**_SIZES, "hidden_size": 128})
    rope = source.DINOv3ViTRopePositionEmbedding(config).double()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            source, "augment_patches_center_coordinates", lambda *_, **__: torch.tensor(drawn)
        )
        cos, sin = rope(torch.zeros(1, 3, 24, 40, dtype=torch.float64))
    got = rotations(jnp.asarray(drawn), frequencies(64, 100.0, "float32"), jnp.dtype("float64"))
    assert_close(jnp.tile(got, 2), torch.stack([cos, sin]).numpy())
    coordinates = jnp.asarray(patch_coordinates(2, 2))

    def ratios(**how: Any) -> np.ndarray:
        full = {"shift": None, "jitter": None, "rescale": None, **how}
        keys = jax.random.split(jax.random.key(0), 500)
        draw = jax.vmap(lambda key: augmented(coordinates, key, **full))
        return np.asarray(draw(keys) if not how.get("shift") else draw(keys) - coordinates[None])

    rescaled = ratios(rescale=2.0) / np.asarray(coordinates)
    assert np.ptp(rescaled, axis=(1, 2)).max() < 1e-6
    assert 0.5 < rescaled.min() < 0.52
    assert 1.95 < rescaled.max() < 2
    jittered = ratios(jitter=2.0) / np.asarray(coordinates)
    assert np.ptp(jittered, axis=1).max() < 1e-6 < np.ptp(jittered, axis=2).max()
    shifted = ratios(shift=0.3)
    assert np.ptp(shifted, axis=1).max() < 1e-6
    assert -0.3 < shifted.min() < -0.28
    assert 0.28 < shifted.max() < 0.3


def test_train_mode_draws_positions() -> None:
    fields: dict[str, Any] = {
        "img_size": 16,
        "patch_size": 8,
        "embed_dim": 32,
        "depth": 1,
        "num_heads": 1,
    }
    fields |= {"init_values": 1.0}
    model = vit_jax.create_model("dinov3_vits16", rngs=nnx.Rngs(0), **fields)
    x = jnp.asarray(images(16, 16), jnp.float32)
    with pytest.raises(ValueError, match="rngs="):
        model(x)
    run = nnx.jit(lambda m, x, key: m(x, rngs=nnx.Rngs(key)))
    one, two = (run(model, x, jax.random.key(seed)) for seed in (1, 2))
    assert float(jnp.abs(one - two).max()) > 1e-5
    model.eval()
    evaluate = nnx.jit(lambda m, x: m(x))
    other = Dinov3(Dinov3Config(**fields, rope_rounding="bfloat16"), rngs=nnx.Rngs(0))
    other.eval()
    gap = float(jnp.abs(evaluate(model, x) - evaluate(other, x)).max())
    assert 1e-6 < gap < 1e-1  # the release's periods are other numbers, not other positions


@pytest.mark.parametrize("name", mostly_slow(PARAMETERS, ["dinov3_vits16", "dinov3_vits16plus"]))
def test_sizes_of_the_release(name: str, tmp_path: Path) -> None:
    model = abstract_model(name)
    shapes = torch_shapes(model)
    assert parameters_of(model) == PARAMETERS[name]
    assert "storage_tokens" in shapes
    assert "blocks.0.attn.k_bias" not in shapes
    assert model.input_size == (256, 256)
    config = model.config
    stated = {
        "model_type": "dinov3_vit",
        "architectures": ["DINOv3ViTModel"],
        "hidden_size": config.embed_dim,
        "intermediate_size": int(config.embed_dim * config.mlp_ratio),
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "num_register_tokens": 4,
        "query_bias": config.qkv_bias,
        "value_bias": config.qkv_bias,
        "use_gated_mlp": config.swiglu,
        "hidden_act": "silu" if config.swiglu else "gelu",
    }
    (tmp_path / "config.json").write_text(json.dumps(stated))
    processor = {"size": {"height": 224, "width": 224}, "resample": 2, "do_center_crop": False}
    processor |= {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    facts = read_facts(tmp_path, [])[0]
    assert facts.name == name
    assert facts.preprocessing is not None
    assert (facts.preprocessing.interpolation, facts.preprocessing.crop_mode) == (
        "bilinear",
        "squash",
    )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"key_bias": True}, "wanted key_bias False, its config.json says True"),
        ({"query_bias": False}, r"wanted query_bias and value_bias alike, .* \[False, True\]"),
        ({"use_gated_mlp": True}, "wanted hidden_act 'silu', its config.json says 'gelu'"),
    ],
)
def test_a_config_of_another_model_is_refused(
    wrong: dict[str, Any], message: str, tmp_path: Path
) -> None:
    stated = {"model_type": "dinov3_vit", "architectures": ["DINOv3ViTModel"], **wrong}
    (tmp_path / "config.json").write_text(json.dumps(stated))
    with pytest.raises(ValueError, match=message):
        read_facts(tmp_path, [])


def test_defaults_of_the_configuration() -> None:
    assert_defaults(Dinov3.dialects[0], transformers().DINOv3ViTConfig())
