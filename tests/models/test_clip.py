"""CLIP's image tower beside transformers: values, gradients, training, sizes, folders."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import vit_jax
from tests.models.backbones import (
    FLOAT64,
    answers,
    assert_defaults,
    assert_folder_back,
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
from vit_jax.models.clip import Clip
from vit_jax.models.registry import abstract_model
from vit_jax.parity import OptimizerSpec, assert_parity
from vit_jax.weights.huggingface import read_facts
from vit_jax.weights.load import load_with_notes
from vit_jax.weights.state_dict import torch_shapes, trained_names

pytestmark = pytest.mark.xdist_group("huggingface")

VISION: dict[str, Any] = {"image_size": 32, "patch_size": 8, "hidden_size": 32}
VISION |= {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
TEXT: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
TEXT |= {"num_attention_heads": 2, "vocab_size": 99}
# Parameters with the projection.
PARAMETERS = {
    "clip_vit_base_patch32": 87_849_216,
    "clip_vit_base_patch16": 86_192_640,
    "clip_vit_large_patch14": 303_966_208,
    "clip_vit_large_patch14_336": 304_293_888,
    "clip_vit_huge_patch14_gelu": 632_076_800,
    "clip_vit_giant_patch14_gelu": 1_012_645_632,
    "clip_vit_bigg_patch14_gelu": 1_844_907_264,
}
CLASSES = ("CLIPVisionModel", "CLIPVisionModelWithProjection", "CLIPForImageClassification")


def module_of(name: str, **fields: Any) -> Any:
    library = transformers()
    if "Vision" in name:
        return theirs(name, library.CLIPVisionConfig(**VISION, projection_dim=24, **fields))
    config = library.CLIPConfig(
        vision_config={**VISION, **fields}, text_config=TEXT, projection_dim=20, num_labels=5
    )
    return theirs(name, config)


def answer_of(name: str) -> str:
    kinds = {"Projection": "image_embeds", "Classification": "logits"}
    return next((kinds[kind] for kind in kinds if name.endswith(kind)), "pooler_output")


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", mostly_slow(CLASSES, ["CLIPVisionModelWithProjection"]))
def test_values_gradients_and_training(name: str, tmp_path: Path) -> None:
    """Every stage to 1e-12, and ten steps of AdamW, which leave alone what is not used."""
    module = module_of(name)
    model = ours(module, tmp_path)
    report = assert_parity(
        model,
        pooled(module, answer_of(name)),
        optimizer=OptimizerSpec(steps=10),
        precisions=("float64",),
    )
    stages = {row.name for row in report.rows if row.section == "forward"}
    assert {"patch_embed.proj", "norm_pre", "blocks.1.attn.proj", "blocks.0.mlp.fc2", ""} <= stages


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("name", "act"),
    mostly_slow(
        [(name, act) for name in CLASSES for act in ("quick_gelu", "gelu")],
        [("CLIPVisionModel", "quick_gelu")],
    ),
)
def test_images_of_other_sizes_and_the_way_back(name: str, act: str, tmp_path: Path) -> None:
    module = module_of(name, hidden_act=act)
    model = ours(module, tmp_path / "theirs")
    assert model.config.activation == act
    for size in ((32, 32), (24, 40), (48, 16), (64, 64)):
        x = images(*size)
        want = answers(module, x, interpolate_pos_encoding=True)
        tokens, answer, blocks = outputs(model, x)
        assert_close(answer, getattr(want, answer_of(name)).numpy())
        for block, hidden in zip(blocks, want.hidden_states[1:], strict=True):
            assert_close(block, hidden.numpy())
        if name == "CLIPVisionModel":  # theirs is before the last norm
            assert_close(blocks[-1], want.last_hidden_state.numpy())
            assert_close(tokens[:, 0], want.pooler_output.numpy())
    with pytest.raises(ValueError, match="divisible by patch_size, 8x8, got 32x36"):
        model(jnp.zeros((1, 32, 36, 3)))
    assert_folder_back(model, module, tmp_path / "ours")
    wider = vit_jax.from_pretrained(tmp_path / "theirs", img_size=(24, 40), **FLOAT64)
    assert_close(wider(jnp.asarray(images(24, 40))), np.asarray(model(jnp.asarray(images(24, 40)))))


@pytest.mark.usefixtures("x64")
def test_a_whole_model_gives_its_tower(tmp_path: Path) -> None:
    """The texts' tower is left out, and said; the projection is found by its shape."""
    module = module_of("CLIPModel")
    processor = transformers().CLIPImageProcessor(size={"shortest_edge": 36}, crop_size=32)
    processor.save_pretrained(tmp_path)
    module.save_pretrained(tmp_path)
    model, notes = load_with_notes(tmp_path, fields=FLOAT64)
    assert model.config.projection_dim == 20
    assert "text_model: 20 arrays of another part, left out" in notes
    assert "logit_scale: 1 array of another part, left out" in notes
    x = images(32, 32)
    with torch.no_grad():
        want = module.get_image_features(torch.tensor(x.transpose(0, 3, 1, 2))).pooler_output
    assert_close(outputs(model, x)[1], want.numpy())
    preprocessing = model.spec.preprocessing
    assert preprocessing is not None
    assert preprocessing.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))
    assert (preprocessing.crop_fraction, preprocessing.interpolation) == (32 / 36, "bicubic")


def openai(module: Any) -> dict[str, torch.Tensor]:
    """A whole model's weights as OpenAI's archives and OpenCLIP name them."""
    named: dict[str, torch.Tensor] = {}
    vision = module.vision_model.state_dict()
    for name, tensor in vision.items():
        name = name.replace("embeddings.patch_embedding", "conv1")
        name = name.replace("embeddings.position_embedding.weight", "positional_embedding")
        name = name.removeprefix("embeddings.")
        name = name.replace("encoder.layers.", "transformer.resblocks.")
        name = name.replace("pre_layrnorm", "ln_pre").replace("post_layernorm", "ln_post")
        name = name.replace("layer_norm", "ln_").replace("self_attn.out_proj", "attn.out_proj")
        name = name.replace("mlp.fc1", "mlp.c_fc").replace("mlp.fc2", "mlp.c_proj")
        if "self_attn.q_proj" in name:
            query = name.replace("transformer.resblocks.", "encoder.layers.")
            tensor = torch.cat([vision[query.replace("q_", f"{part}_")] for part in "qkv"])
            name = name.replace("self_attn.q_proj.", "attn.in_proj_")
        if "self_attn" not in name:
            named[f"visual.{name}"] = tensor
    named["visual.proj"] = module.visual_projection.weight.T
    texts = ("positional_embedding", "token_embedding.weight", "transformer.resblocks.0.ln_1.bias")
    texts += ("ln_final.weight", "text_projection", "logit_scale", "input_resolution")
    return {**named, **{name: torch.ones(2) for name in texts}}


@pytest.mark.usefixtures("x64")
def test_names_of_openai(tmp_path: Path) -> None:
    """Fused projections, and one that is transposed; the texts' tower is left out, and said."""
    module = module_of("CLIPModel")
    torch.save(openai(module), tmp_path / "ViT.pt")
    fields = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    model, notes = load_with_notes(
        tmp_path / "ViT.pt", name="clip", fields={**fields, "mlp_ratio": 1.5, **FLOAT64}
    )
    assert model.config.projection_dim == 20
    assert "transformer: 1 array of another part, left out" in notes
    x = images(32, 32)
    with torch.no_grad():
        want = module.get_image_features(torch.tensor(x.transpose(0, 3, 1, 2))).pooler_output
    assert_close(outputs(model, x)[1], want.numpy())


@pytest.mark.parametrize("name", mostly_slow(PARAMETERS, ["clip_vit_base_patch32"]))
def test_sizes_of_the_release(name: str, tmp_path: Path) -> None:
    model = abstract_model(name)
    assert parameters_of(model) == PARAMETERS[name]
    config = model.config
    vision = {
        "hidden_size": config.embed_dim,
        "intermediate_size": int(config.embed_dim * config.mlp_ratio),
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "image_size": config.img_size,
        "patch_size": config.patch_size,
        "hidden_act": config.activation,
    }
    stated = {"model_type": "clip", "architectures": ["CLIPModel"], "vision_config": vision}
    (tmp_path / "config.json").write_text(json.dumps(stated))
    assert read_facts(tmp_path, [])[0].name == name


@pytest.mark.usefixtures("x64")
def test_an_unknown_activation_is_refused(tmp_path: Path) -> None:
    module = module_of("CLIPVisionModel", hidden_act="relu")
    with pytest.raises(ValueError, match=r"activation must be one of .*got 'relu'"):
        ours(module, tmp_path)


def test_defaults_of_the_configuration() -> None:
    for dialect in Clip.dialects:
        assert_defaults(dialect, transformers().CLIPVisionConfig())


def test_what_is_not_used_is_not_trained() -> None:
    """It stands in the state dict all the same."""
    for name, part in (("clip", "norm.weight"), ("siglip", "attn_pool.q.weight")):
        for pool, is_trained in (("avg", False), (None, True)):
            fields: dict[str, Any] = {"global_pool": pool} if pool else {}
            model = abstract_model(name, depth=1, **fields)
            assert part in torch_shapes(model)
            assert (part in trained_names(model)) == is_trained
