"""BEiT beside transformers and timm: values, gradients, training, sizes, folders there and back."""

import copy
import itertools
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
    assert_defaults,
    assert_folder_back,
    assert_state_dict_is_read,
    images,
    ours,
    outputs,
    parameters_of,
    theirs,
    transformers,
)
from tests.models.timm_models import (
    assert_drawn_alike,
    assert_preprocessing_is_timms,
    timm_models,
    with_weights_of,
)
from tests.models.uses import assert_forms_agree
from tests.parity.test_foreign import redrawn
from tests.tiers import mostly_slow
from tests.weights.designs import assert_close
from vit_jax.layers.relative_bias import CLASS_ROWS, relative_index, resize_bias_table
from vit_jax.models.beit import Beit
from vit_jax.models.registry import abstract_model
from vit_jax.parity import OptimizerSpec, assert_parity
from vit_jax.weights.huggingface import read_facts
from vit_jax.weights.state_dict import torch_shapes

pytestmark = pytest.mark.xdist_group("huggingface")

_SIZES: dict[str, Any] = {"image_size": 32, "patch_size": 8, "hidden_size": 24}
_SIZES |= {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
OWN, SHARED = "use_relative_position_bias", "use_shared_relative_position_bias"
KINDS: dict[str, dict[str, Any]] = {
    "own tables": {OWN: True},
    "shared table": {SHARED: True, "use_mask_token": True, "layer_norm_eps": 1e-6},
    "both": {OWN: True, SHARED: True, "use_absolute_position_embeddings": True},
    "class token": {"use_absolute_position_embeddings": True, "use_mean_pooling": False},
    "no scale": {OWN: True, "layer_scale_init_value": 0.0},
}
CLASSES = ("BeitModel", "BeitForImageClassification")
# Parameters of timm's models, which are those of the release.
PARAMETERS = {
    "beit_base_patch16_224": 86_530_984,
    "beit_base_patch16_384": 86_744_104,
    "beit_large_patch16_224": 304_430_568,
    "beit_large_patch16_384": 304_998_888,
    "beit_large_patch16_512": 305_674_728,
    "beitv2_base_patch16_224": 86_530_984,
    "beitv2_large_patch16_224": 304_430_568,
}
_TIMM: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2}
_TIMM |= {"num_heads": 4, "num_classes": 5, "init_values": 0.1}
_TIMM |= {"use_abs_pos_emb": True, "use_rel_pos_bias": True, "use_shared_rel_pos_bias": True}


def module_of(kind: str, model: str) -> Any:
    labels = {"num_labels": 5} if "Classification" in model else {}
    return theirs(model, transformers().BeitConfig(**_SIZES, **KINDS[kind], **labels))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kind", mostly_slow(KINDS, ["both"]))
def test_values_gradients_and_training(kind: str, tmp_path: Path) -> None:
    """Every stage to 1e-12, and ten steps of AdamW."""
    module = module_of(kind, "BeitForImageClassification")
    model = ours(module, tmp_path)
    report = assert_parity(
        model, module, optimizer=OptimizerSpec(steps=10), precisions=("float64",)
    )
    stages = {row.name for row in report.rows if row.section == "forward"}
    wanted = {"patch_embed.proj", "blocks.0", "blocks.1.attn.proj", "blocks.1.mlp.fc2", "head", ""}
    assert wanted <= stages
    tables = {row.name for row in report.rows if row.name.endswith("bias_table")}
    assert len(tables) == 2 * bool(KINDS[kind].get(OWN)) + bool(KINDS[kind].get(SHARED))


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("library", ["transformers", "timm"])
def test_float32_too(library: str, tmp_path: Path) -> None:
    """Within ten times PyTorch's own noise."""
    if library == "timm":
        module = redrawn(timm_models("beit").Beit(**_TIMM)).eval()
        model = with_weights_of(module, "beit", **_TIMM)
    else:
        module: Any = module_of("own tables", "BeitForImageClassification").float()
        module.save_pretrained(tmp_path)
        model = vit_jax.from_pretrained(tmp_path)
    assert_parity(model, module, optimizer=OptimizerSpec(steps=10))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("kind", "head"), mostly_slow(itertools.product(KINDS, CLASSES), [("both", CLASSES[0])])
)
def test_images_of_other_sizes_and_the_way_back(kind: str, head: str, tmp_path: Path) -> None:
    module = module_of(kind, head)
    model = ours(module, tmp_path / "theirs")
    assert (model.num_classes, model.spec.name) == (5 * (head == CLASSES[1]), "beit")
    encoder = module if head == "BeitModel" else module.beit
    for size in ((32, 32), (24, 40), (48, 16), (64, 64)):
        x = images(*size)
        with torch.no_grad():
            pixels = torch.tensor(x.transpose(0, 3, 1, 2))
            want = encoder(pixels, output_hidden_states=True)
            answer = want.pooler_output if head == "BeitModel" else module(pixels).logits
        tokens, got, blocks = outputs(model, x)
        assert_close(tokens, want.last_hidden_state.numpy())
        assert_close(got, answer.numpy())
        for block, hidden in zip(blocks, want.hidden_states[1:], strict=True):
            assert_close(block, hidden.numpy())
    with pytest.raises(ValueError, match="divisible by patch_size, 8x8, got 32x36"):
        model(jnp.zeros((1, 32, 36, 3)))
    assert_folder_back(model, module, tmp_path / "ours")
    assert_state_dict_is_read(model, module, tmp_path, "mlp_ratio", "norm_eps", "init_values")


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_a_model_for_masked_pretraining_is_read_as_its_encoder(tmp_path: Path) -> None:
    module: Any = module_of("shared table", "BeitForMaskedImageModeling")
    model: Any = ours(module, tmp_path)
    x = images(32, 32)
    pixels = torch.tensor(x.transpose(0, 3, 1, 2))
    with torch.no_grad():
        want = module.layernorm(module.beit(pixels).last_hidden_state)
    assert model.config.global_pool == "token"
    assert_close(outputs(model, x)[0], want.numpy())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:torch.searchsorted", "ignore:Using a non-tuple sequence")
@pytest.mark.usefixtures("x64")
def test_timm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Values, gradients, training; then images of another size, here without timm's float32."""
    module: Any = redrawn(timm_models("beit").Beit(**_TIMM)).double().eval()
    model = with_weights_of(module, "beit", **_TIMM, **FLOAT64)
    assert_parity(model, module, optimizer=OptimizerSpec(steps=10), precisions=("float64",))
    vit_jax.save_pretrained(model, tmp_path / "w.safetensors")
    monkeypatch.setattr(torch.Tensor, "float", lambda tensor: tensor)
    torch.set_default_dtype(torch.float64)
    try:
        for size in ((48, 48), (24, 40), (16, 16), (32, 32)):
            other = copy.deepcopy(module)
            other.set_input_size(size)
            x = images(*size)
            with torch.no_grad():
                want = other(torch.tensor(x.transpose(0, 3, 1, 2))).numpy()
            again = vit_jax.from_pretrained(tmp_path / "w.safetensors", img_size=size)
            for found in (again, model):
                assert_close(outputs(found, x)[1], want)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", mostly_slow(PARAMETERS, ["beit_base_patch16_224"]))
def test_sizes_of_the_release(name: str, tmp_path: Path) -> None:
    model = abstract_model(name)
    shapes = torch_shapes(model)
    assert parameters_of(model) == PARAMETERS[name]
    assert {"blocks.0.gamma_1", "blocks.0.attn.q_bias", "fc_norm.weight"} <= shapes.keys()
    assert_preprocessing_is_timms(model, "beit", tmp_path)
    config = model.config
    stated = {
        "model_type": "beit",
        "architectures": ["BeitForImageClassification"],
        "hidden_size": config.embed_dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "intermediate_size": 4 * config.embed_dim,
        "image_size": config.img_size,
        OWN: True,
        "layer_scale_init_value": config.init_values,
    }
    (tmp_path / "config.json").write_text(json.dumps(stated))
    assert read_facts(tmp_path, [])[0].name == name.replace("beitv2", "beit")


def test_what_the_release_keeps_beside_the_weights(tmp_path: Path) -> None:
    """Its index is computed; tables become those of another size."""
    fields: dict[str, Any] = {**_TIMM, "depth": 1, "use_abs_pos_emb": False}
    model = abstract_model("beit", **fields)
    state = {
        name: torch.randn(shape, generator=torch.Generator().manual_seed(0))
        for name, shape in torch_shapes(model).items()
    }
    index = torch.tensor(relative_index((4, 4), CLASS_ROWS), dtype=torch.int64)
    beside = {
        f"{path}.relative_position_index": index for path in ("blocks.0.attn", "rel_pos_bias")
    }
    torch.save({**state, **beside}, tmp_path / "w.pth")
    names = ("img_size", "patch_size", "embed_dim", "depth", "num_heads")
    sizes = {name: fields[name] for name in names}
    found = vit_jax.from_pretrained(tmp_path / "w.pth", name="beit", **sizes)
    for name, array in vit_jax.state_dict(found).items():
        np.testing.assert_array_equal(array, state[name])
    larger = vit_jax.from_pretrained(tmp_path / "w.pth", name="beit", **{**sizes, "img_size": 48})
    table = "blocks.0.attn.relative_position_bias_table"
    how: dict[str, Any] = {"method": "geometric", "class_rows": CLASS_ROWS}
    want = resize_bias_table(state[table].numpy(), (4, 4), (6, 6), **how)
    np.testing.assert_array_equal(vit_jax.state_dict(larger)[table], want)
    vit_jax.save_pretrained(found, tmp_path / "own.safetensors")
    with pytest.raises(ValueError, match="is for a grid of 4x4 patches, this model's for 6x6"):
        vit_jax.load_pretrained(larger, tmp_path / "own.safetensors")
    report = vit_jax.load_pretrained(larger, tmp_path / "own.safetensors", resize="source")
    assert f"{table}: 4x4 to 6x6 by 'geometric'" in report.adapted


@pytest.mark.slow
def test_initial_weights() -> None:
    """timm's: what a block adds is scaled by its depth, tables are zeros, the head is small."""
    fields: dict[str, Any] = {**_TIMM, "embed_dim": 64, "num_classes": 1000}
    state = vit_jax.state_dict(vit_jax.create_model("beit", rngs=nnx.Rngs(0), **fields))
    module = timm_models("beit").Beit(**fields)
    assert_drawn_alike(state, module, spread=0.5)


@pytest.mark.slow
@pytest.mark.usefixtures("promoting")
def test_other_forms_give_the_same_numbers(tmp_path: Path) -> None:
    fields: dict[str, Any] = {**_TIMM, "img_size": 16}
    module = redrawn(timm_models("beit").Beit(**fields))
    model = with_weights_of(module, "beit", **fields)
    vit_jax.save_pretrained(model, tmp_path / "w.safetensors")
    x = jnp.asarray(images(24, 16), jnp.float32)
    assert_forms_agree(model, tmp_path / "w.safetensors", x)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_a_whole_size() -> None:
    module = redrawn(timm_models("beit").beit_base_patch16_224()).double().eval()
    model = with_weights_of(module, "beit_base_patch16_224", **FLOAT64)
    x = images(224, 224, count=1)
    with torch.no_grad():
        want = module(torch.tensor(x.transpose(0, 3, 1, 2))).numpy()
    assert_close(jax.jit(lambda m, x: m(x))(model, jnp.asarray(x)), want)


def test_defaults_of_the_configuration() -> None:
    for dialect in Beit.dialects:
        assert_defaults(dialect, transformers().BeitConfig())
