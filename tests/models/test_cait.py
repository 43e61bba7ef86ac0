"""CaiT beside timm: values, gradients, training, sizes."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import vit_jax
from tests.models.backbones import FLOAT64, images, outputs, parameters_of
from tests.models.timm_models import (
    assert_drawn_alike,
    assert_preprocessing_is_timms,
    timm_models,
    with_weights_of,
)
from tests.models.uses import assert_forms_agree, logits
from tests.parity.test_foreign import redrawn
from tests.tiers import mostly_slow
from tests.weights.designs import assert_close
from vit_jax.inspect.attention import attention_maps, class_attention
from vit_jax.layers.position_resize import resize_pos_embed
from vit_jax.models.registry import abstract_model
from vit_jax.parity import OptimizerSpec, assert_parity

_FIELDS: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2}
_FIELDS |= {"num_heads": 4, "num_classes": 5, "init_values": 0.1}
KINDS: dict[str, dict[str, Any]] = {
    "small": {"depth": 1, "depth_token_only": 1},
    "two and two": {},
    "mean": {"global_pool": "avg", "qkv_bias": False, "mlp_ratio": 2.0, "num_heads": 3},
    "no head": {"num_classes": 0, "mlp_ratio_token_only": 2.0},
}
# Parameters of timm's models, which are those of the release.
PARAMETERS = {
    "cait_xxs24_224": 11_956_264,
    "cait_xxs24_384": 12_029_224,
    "cait_xxs36_224": 17_299_720,
    "cait_xxs36_384": 17_372_680,
    "cait_xs24_384": 26_670_088,
    "cait_s24_224": 46_916_200,
    "cait_s24_384": 47_062_120,
    "cait_s36_384": 68_366_632,
    "cait_m36_384": 271_221_352,
    "cait_m48_448": 356_460_520,
}


def pair(kind: str, **types: Any) -> tuple[Any, Any]:
    """Their model and ours."""
    fields = {**_FIELDS, **KINDS[kind]}
    module = redrawn(timm_models("cait").Cait(**fields)).eval()
    module = module.double() if types else module
    return module, with_weights_of(module, "cait", **fields, **types)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kind", mostly_slow(KINDS, ["small"]))
def test_values_gradients_and_training(kind: str) -> None:
    """Every stage to 1e-12, and ten steps of AdamW."""
    module, model = pair(kind, **FLOAT64)
    report = assert_parity(
        model, module, optimizer=OptimizerSpec(steps=10), precisions=("float64",)
    )
    stages = {row.name for row in report.rows if row.section == "forward"}
    assert {"blocks.0.attn.proj_l", "blocks.0.attn.proj_w", "blocks.0.mlp.fc2"} <= stages
    assert {"blocks_token_only.0.attn.k", "blocks_token_only.0.mlp.fc2", "norm", ""} <= stages


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_float32_too() -> None:
    """Within ten times PyTorch's own noise."""
    module, model = pair("two and two")
    assert_parity(model, module, optimizer=OptimizerSpec(steps=10))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kind", mostly_slow(KINDS, ["small"]))
def test_tokens_blocks_and_images_of_other_sizes(kind: str) -> None:
    """timm takes one size: there its positions are the resized ones."""
    module, model = pair(kind, **FLOAT64)
    fields = {**_FIELDS, **KINDS[kind]}
    table = module.pos_embed.detach().numpy()
    sizes = ((32, 32), (24, 40)) if kind == "small" else ((32, 32), (24, 40), (48, 16), (64, 64))
    for size in sizes:
        x = images(*size)
        other = timm_models("cait").Cait(**{**fields, "img_size": size}).double().eval()
        grid = (size[0] // 8, size[1] // 8)
        positions = resize_pos_embed(table, (4, 4), grid, num_prefix_tokens=0, method="bicubic")
        other.load_state_dict({**module.state_dict(), "pos_embed": torch.tensor(positions)})
        with torch.no_grad():
            pixels = torch.tensor(x.transpose(0, 3, 1, 2))
            want, blocks = other.forward_intermediates(pixels, output_fmt="NLC")
            answer = other.forward_head(want)
        tokens, got, found = outputs(model, x)
        assert_close(tokens, want.numpy())
        assert_close(got, answer.numpy())
        for block, theirs in zip(found, blocks, strict=True):
            assert_close(block, theirs.numpy())
        maps = model.forward_intermediates(jnp.asarray(x), [0], layout="NHWC")
        assert maps[0].shape == (2, *grid, 24)
        assert_close(maps[0].reshape(found[0].shape), np.asarray(found[0]))


@pytest.mark.parametrize("name", mostly_slow(PARAMETERS, ["cait_xxs24_224"]))
def test_sizes_of_the_release(name: str, tmp_path: Path) -> None:
    model = abstract_model(name)
    assert parameters_of(model) == PARAMETERS[name]
    assert_preprocessing_is_timms(model, "cait", tmp_path)


@pytest.mark.slow
def test_initial_weights_and_names_are_timms() -> None:
    fields: dict[str, Any] = {**_FIELDS, "embed_dim": 64, "num_classes": 1000}
    state = vit_jax.state_dict(vit_jax.create_model("cait", rngs=nnx.Rngs(0), **fields))
    module = timm_models("cait").Cait(**fields)
    assert_drawn_alike(state, module, spread=0.8)  # of the heads' 4 x 4
    assert state.keys() == module.state_dict().keys()


@pytest.mark.slow
@pytest.mark.usefixtures("promoting")
def test_other_forms_give_the_same_numbers(tmp_path: Path) -> None:
    module, model = pair("two and two")
    del module
    vit_jax.save_pretrained(model, tmp_path / "w.safetensors")
    x = jnp.asarray(images(24, 32), jnp.float32)
    assert_forms_agree(model, tmp_path / "w.safetensors", x, bfloat16=0.1)
    larger = vit_jax.from_pretrained(tmp_path / "w.safetensors", img_size=(24, 32))
    np.testing.assert_allclose(logits(larger, x), logits(model, x), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_attention_of_the_patches() -> None:
    """Of the blocks that have no class token: what the patches attend to, after the mixing."""
    module, model = pair("two and two")
    x = jnp.asarray(images(24, 32), jnp.float32)
    maps = attention_maps(model, x)
    assert {name: a.shape for name, a in maps.items()} == {
        f"blocks.{number}.attn": (2, 4, 12, 12) for number in range(2)
    }
    table = resize_pos_embed(
        module.pos_embed.detach().numpy(), (4, 4), (3, 4), num_prefix_tokens=0, method="bicubic"
    )
    block = module.blocks[0]
    with torch.no_grad():
        tokens = module.patch_embed.proj(torch.tensor(np.asarray(x).transpose(0, 3, 1, 2)))
        tokens = block.norm1(tokens.flatten(2).transpose(1, 2) + torch.tensor(table))
        qkv = block.attn.qkv(tokens).reshape(2, 12, 3, 4, 6).permute(2, 0, 3, 1, 4)
        scores = (qkv[0] * 6**-0.5) @ qkv[1].transpose(-2, -1)
        talked = block.attn.proj_l(scores.permute(0, 2, 3, 1)).softmax(dim=2)
        want = block.attn.proj_w(talked).permute(0, 3, 1, 2)
    np.testing.assert_allclose(maps["blocks.0.attn"], want, rtol=0, atol=1e-5)
    attention = maps["blocks.0.attn"]
    shown = class_attention(attention, model, query="mean", image_size=(24, 32))
    assert shown.shape == (2, 4, 3, 4)
    with pytest.raises(ValueError, match="has no 'class' token to ask: query is one of mean"):
        class_attention(attention, model, image_size=(24, 32))


@pytest.mark.slow
def test_stochastic_depth_is_the_same_in_all_blocks() -> None:
    fields: dict[str, Any] = {**_FIELDS, "drop_path_rate": 0.5}
    model = vit_jax.create_model("cait", rngs=nnx.Rngs(0), **fields)
    assert model.drop_path_rates == (0.5, 0.5)
    drops = [block.drop_path.drop_prob for block in timm_models("cait").Cait(**fields).blocks]
    assert drops == [0.5, 0.5]


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_a_whole_size() -> None:
    module = redrawn(timm_models("cait").cait_xxs24_224()).double().eval()
    model = with_weights_of(module, "cait_xxs24_224", **FLOAT64)
    x = images(224, 224, count=1)
    with torch.no_grad():
        want = module(torch.tensor(x.transpose(0, 3, 1, 2))).numpy()
    assert_close(jax.jit(lambda m, x: m(x))(model, jnp.asarray(x)), want)
