"""MAE beside transformers: the encoder, and what it is pretrained with."""

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
    assert_weights_back,
    images,
    ours,
    outputs,
    parameters_of,
    theirs,
    transformers,
)
from tests.models.timm_models import timm_models
from tests.parity.test_foreign import redrawn
from tests.tiers import mostly_slow
from tests.weights.designs import assert_close
from vit_jax.layers.masking import masked_order, patch_noise
from vit_jax.layers.position import grid_sinusoid_table
from vit_jax.models.mae import Mae
from vit_jax.models.registry import abstract_model
from vit_jax.parity import OptimizerSpec, assert_parity
from vit_jax.weights.dialects import to_own
from vit_jax.weights.state_dict import trained_names

pytestmark = pytest.mark.xdist_group("huggingface")

_SIZES: dict[str, Any] = {"image_size": 32, "patch_size": 8, "hidden_size": 24}
_SIZES |= {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
_SIZES |= {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 2}
_SIZES |= {"decoder_num_attention_heads": 2, "decoder_intermediate_size": 40}
KINDS: dict[str, dict[str, Any]] = {
    "normalised": {"norm_pix_loss": True},
    "raw": {"mask_ratio": 0.6, "layer_norm_eps": 1e-6},
    "without biases": {"qkv_bias": False, "norm_pix_loss": True},
}
# Of the release's encoders, and of the whole with a decoder of 512 channels and 8 blocks.
PARAMETERS = {
    "mae_vit_base_patch16": (85_798_656, 111_907_840),
    "mae_vit_large_patch16": (303_301_632, 329_541_888),
    "mae_vit_huge_patch14": (630_764_800, 657_074_508),
}
NOISE = np.random.default_rng(0).uniform(size=(2, 128))


def module_of(kind: str, model: str = "ViTMAEForPreTraining") -> Any:
    module = theirs(model, transformers().ViTMAEConfig(**_SIZES, **KINDS[kind]))
    for name, parameter in module.named_parameters():
        parameter.requires_grad_("position_embeddings" not in name and "pos_embed" not in name)
    return module


def noise_of(size: tuple[int, int]) -> np.ndarray:
    return NOISE[:, : size[0] * size[1] // 64]


class _Pretrained(Mae):
    """Its call is the reconstruction of images with the test's noise."""

    def __call__(self, images: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        return self.reconstruct(images, jnp.asarray(NOISE[:, :16]), rngs=rngs).patches


def _reconstructing(module: Any) -> Any:
    kind = type(module)

    def forward(self: Any, images: torch.Tensor) -> torch.Tensor:
        return kind.forward(self, images, noise=torch.tensor(NOISE[: len(images), :16])).logits

    module.__class__ = type(kind.__name__, (kind,), {"forward": forward})
    return module


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kind", mostly_slow(KINDS, ["normalised"]))
def test_values_gradients_and_training(kind: str, tmp_path: Path) -> None:
    """Every stage to 1e-12, and ten steps of AdamW: of encoder and decoder."""
    module = module_of(kind)
    module.save_pretrained(tmp_path)
    read = vit_jax.from_pretrained(tmp_path, **FLOAT64)
    model = nnx.eval_shape(lambda: _Pretrained(read.config, rngs=nnx.Rngs(0)))
    vit_jax.load_state_dict(model, vit_jax.state_dict(read))
    model.eval()
    report = assert_parity(
        model,
        _reconstructing(module),
        images(32, 32),
        optimizer=OptimizerSpec(steps=10),
        precisions=("float64",),
    )
    stages = {row.name for row in report.rows if row.section == "forward"}
    assert {"blocks.1.attn.proj", "norm", "decoder_embed", "decoder_blocks.1.mlp.fc2"} <= stages
    trained = {row.name for row in report.rows if row.section == "trained"}
    assert {"mask_token", "decoder_pred.weight", "cls_token"} <= trained
    assert not {"pos_embed", "decoder_pos_embed"} & trained


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kind", mostly_slow(KINDS, ["normalised"]))
def test_the_loss_its_gradient_other_sizes_and_the_way_back(kind: str, tmp_path: Path) -> None:
    module = module_of(kind)
    model = ours(module, tmp_path / "theirs")
    assert (model.spec.name, model.config.decoder) == ("mae", True)

    @nnx.jit
    def reconstruct(model: Mae, x: jax.Array, noise: jax.Array) -> Any:
        return model.reconstruct(x, noise)

    for size in ((32, 32), (24, 40), (48, 16), (64, 64)):
        x, noise = images(*size), noise_of(size)
        pixels = torch.tensor(x.transpose(0, 3, 1, 2))
        want = module(pixels, noise=torch.tensor(noise), interpolate_pos_encoding=True)
        got = reconstruct(model, jnp.asarray(x), jnp.asarray(noise))
        assert_close(got.patches, want.logits.detach().numpy())
        assert_close(got.loss, want.loss.detach().numpy())
        np.testing.assert_array_equal(got.mask, want.mask.numpy())
    assert_folder_back(model, module, tmp_path / "ours")
    names = ("mlp_ratio", "qkv_bias", "decoder_depth", "decoder_num_heads", "decoder_mlp_dim")
    assert_state_dict_is_read(model, module, tmp_path, *names, "norm_eps")


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_gradients_of_the_loss(tmp_path: Path) -> None:
    module = module_of("normalised")
    model = ours(module, tmp_path)
    x = images(32, 32)
    pixels = torch.tensor(x.transpose(0, 3, 1, 2))
    module(pixels, noise=torch.tensor(NOISE[:, :16])).loss.backward()
    for parameter in module.parameters():
        parameter.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    want = vit_jax.state_dict(ours(module, tmp_path / "gradients"))
    graph, trained, rest = nnx.split(model, nnx.Param, ...)

    def loss(trained: nnx.State) -> jax.Array:
        merged = nnx.merge(graph, trained, rest)
        return merged.reconstruct(jnp.asarray(x), jnp.asarray(NOISE[:, :16])).loss

    gradients = vit_jax.state_dict(nnx.merge(graph, jax.jit(jax.grad(loss))(trained), rest))
    names = trained_names(model)
    assert {"mask_token", "cls_token", "decoder_pred.bias"} <= {*names}
    for name in names:
        if not name.endswith("qkv.bias"):  # of which a third, the keys', is nothing but rounding
            assert_close(gradients[name], want[name])
        else:
            for part in (0, 2):
                got, wanted = (np.split(of[name], 3)[part] for of in (gradients, want))
                assert_close(got, wanted)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kind", mostly_slow(KINDS, []))
def test_the_encoder_alone(kind: str, tmp_path: Path) -> None:
    """As a model of its own, and of the folder with a decoder, for images of any size."""
    whole = module_of(kind)
    whole.save_pretrained(tmp_path / "whole")
    module = module_of(kind, "ViTMAEModel")
    module.load_state_dict(whole.vit.state_dict())
    module.config.mask_ratio = 0.0
    model = ours(module, tmp_path / "encoder", mask_ratio=0.5)
    assert (model.spec.name, model.config.decoder, model.num_classes) == ("mae", False, 0)
    cut = vit_jax.from_pretrained(tmp_path / "whole", decoder=False, **FLOAT64)
    for size in ((32, 32), (24, 40), (48, 16), (64, 64)):
        x = images(*size)
        noise = torch.arange(size[0] * size[1] // 64)[None].repeat(2, 1)  # in their order
        want = answers(module, x, noise=noise, interpolate_pos_encoding=True)
        for found in (model, cut):
            tokens, answer, blocks = outputs(found, x)
            assert_close(tokens, want.last_hidden_state.numpy())
            assert_close(answer, want.last_hidden_state.numpy()[:, 0])
            for block, hidden in zip(blocks, want.hidden_states[1:], strict=True):
                assert_close(block, hidden.numpy())
    assert_weights_back(model, module, tmp_path / "ours")


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_what_is_fine_tuned(tmp_path: Path) -> None:
    """The release's: the mean of the patches, a norm behind it, a small new head."""
    module = module_of("raw")
    module.save_pretrained(tmp_path)
    fields = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 4}
    fields |= {"mlp_ratio": 2.0, "num_classes": 5}
    model = vit_jax.create_model("mae", rngs=nnx.Rngs(0), global_pool="avg", **fields, **FLOAT64)
    report = vit_jax.load_pretrained(model, tmp_path, head="drop")
    assert "norm: left out with the head, the model has none" in report.adapted
    assert any("arrays for pretraining, left out" in line for line in report.left)
    model.eval()
    timm = timm_models("vision_transformer").VisionTransformer(global_pool="avg", **fields).double()
    timm.load_state_dict({n: torch.tensor(a) for n, a in vit_jax.state_dict(model).items()})
    x = images(32, 32)
    with torch.no_grad():
        want = timm.eval()(torch.tensor(x.transpose(0, 3, 1, 2))).numpy()
    assert_close(outputs(model, x)[1], want)
    assert 1e-6 < vit_jax.state_dict(model)["head.weight"].std() < 4e-5


def test_masks_follow_from_the_seed_the_step_and_the_image() -> None:
    """Whatever else is in the batch; each keeps as many patches as it is told to."""
    draw = jax.jit(patch_noise, static_argnums=(0, 3))
    indices = jnp.asarray([7, 3, 9])
    noise = draw(0, 5, indices, 16)
    np.testing.assert_array_equal(draw(0, 5, indices[1:], 16), noise[1:])
    for other in (draw(1, 5, indices, 16), draw(0, 6, indices, 16), draw(0, 5, indices + 1, 16)):
        assert float(jnp.abs(other - noise).min()) > 0
    kept, places, mask = masked_order(noise, 4)
    np.testing.assert_array_equal(mask.sum(axis=1), [12, 12, 12])
    for row in range(3):
        order = np.argsort(noise[row])
        np.testing.assert_array_equal(kept[row], order[:4])
        np.testing.assert_array_equal(np.asarray(places[row])[order], np.arange(16))
        assert not np.asarray(mask[row])[order[:4]].any()


@pytest.mark.parametrize("grid", [(4, 4), (2, 5)])
def test_positions_are_those_of_transformers(grid: tuple[int, int]) -> None:
    """To the last digit; in the order of the release, columns first."""
    from transformers.models.vit_mae import modeling_vit_mae as source

    build = source.build_2d_sinusoidal_position_embedding
    want = build(height=grid[0], width=grid[1], embed_dim=24).numpy()
    np.testing.assert_array_equal(np.roll(grid_sinusoid_table(grid, 24), 12, axis=1), want)
    with pytest.raises(ValueError, match="width divisible by 4, got 6"):
        grid_sinusoid_table(grid, 6)


@pytest.mark.parametrize("name", mostly_slow(PARAMETERS, ["mae_vit_base_patch16"]))
def test_sizes_of_the_release(name: str) -> None:
    for decoder, count in zip((False, True), PARAMETERS[name], strict=True):
        model = abstract_model(name, decoder=decoder)
        assert parameters_of(model) == count
        assert not {"pos_embed", "decoder_pos_embed"} & {*trained_names(model)}
    preprocessing = abstract_model(name, depth=0).spec.preprocessing
    assert preprocessing is not None
    assert (preprocessing.crop_fraction, preprocessing.interpolation) == (0.875, "bicubic")


def test_errors_say_what_is_wanted() -> None:
    fields: dict[str, Any] = {"img_size": 16, "patch_size": 8, "embed_dim": 8, "num_heads": 2}
    model: Any = abstract_model("mae", depth=1, **fields)
    with pytest.raises(ValueError, match="no decoder: build it with decoder=True"):
        model.reconstruct(jnp.zeros((1, 16, 16, 3)), jnp.zeros((1, 4)))
    with pytest.raises(ValueError, match=r"mask_ratio must be .*, got 1\.0"):
        abstract_model("mae", mask_ratio=1.0)
    with pytest.raises(ValueError, match="decoder=True needs global_pool='token', got 'avg'"):
        abstract_model("mae", decoder=True, global_pool="avg")


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_a_whole_size() -> None:
    config = transformers().ViTMAEConfig(norm_pix_loss=True, layer_norm_eps=1e-6)
    module: Any = redrawn(transformers().ViTMAEForPreTraining(config)).double().eval()
    model = abstract_model("mae_vit_base_patch16", decoder=True, norm_pix_loss=True, **FLOAT64)
    arrays, _ = to_own({name: t.numpy() for name, t in module.state_dict().items()})
    vit_jax.load_state_dict(model, arrays)
    model.eval()
    x = images(224, 224, count=1)
    noise = np.random.default_rng(0).uniform(size=(1, 196))
    with torch.no_grad():
        want = module(torch.tensor(x.transpose(0, 3, 1, 2)), noise=torch.tensor(noise))
    got = jax.jit(lambda m, x, noise: m.reconstruct(x, noise))(
        model, jnp.asarray(x), jnp.asarray(noise)
    )
    assert_close(got.patches, want.logits.numpy())
    assert_close(got.loss, want.loss.numpy())


def test_defaults_of_the_configuration() -> None:
    for dialect in Mae.dialects:
        assert_defaults(dialect, transformers().ViTMAEConfig())
