"""The registered names: which there are, and how large each model is."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import vit_jax
from tests.reference.classifier_vit import ClassifierViT
from tests.reference.vit import VisionTransformer
from tests.tiers import mostly_slow
from vit_jax.models.registry import abstract_model, model_fields
from vit_jax.models.spec import Target

TINY = {"embed_dim": 192, "depth": 12, "num_heads": 3}
SMALL = {"embed_dim": 384, "depth": 12, "num_heads": 6}
BASE = {"embed_dim": 768, "depth": 12, "num_heads": 12}
LARGE = {"embed_dim": 1024, "depth": 24, "num_heads": 16}
HUGE = {"embed_dim": 1280, "depth": 32, "num_heads": 16}
DISTILLED = {"distilled": True}
GIANT = {"embed_dim": 1536, "depth": 40, "num_heads": 24, "swiglu": True}
DINOV2 = {"init_values": 1e-5, "num_classes": 0}
REGISTERS = DINOV2 | {"reg_tokens": 4, "no_embed_class": True}
DEIT3 = {"no_embed_class": True, "init_values": 1e-6}

# name: (parameters, image size, patch size, further fields of timm's definition)
VITS = {
    "vit_tiny_patch16_224": (5_717_416, 224, 16, TINY),
    "vit_small_patch16_224": (22_050_664, 224, 16, SMALL),
    "vit_base_patch16_224": (86_567_656, 224, 16, BASE),
    "vit_large_patch16_224": (304_326_632, 224, 16, LARGE),
    "vit_small_patch32_224": (22_878_952, 224, 32, SMALL),
    "vit_base_patch32_224": (88_224_232, 224, 32, BASE),
    "vit_large_patch32_224": (306_535_400, 224, 32, LARGE),
    "vit_base_patch8_224": (86_576_872, 224, 8, BASE),
    "vit_huge_patch14_224": (632_045_800, 224, 14, HUGE),
    "vit_tiny_patch16_384": (5_790_376, 384, 16, TINY),
    "vit_small_patch16_384": (22_196_584, 384, 16, SMALL),
    "vit_base_patch16_384": (86_859_496, 384, 16, BASE),
    "vit_large_patch16_384": (304_715_752, 384, 16, LARGE),
    "vit_base_patch32_384": (88_297_192, 384, 32, BASE),
    "vit_large_patch32_384": (306_632_680, 384, 32, LARGE),
    "deit_tiny_patch16_224": (5_717_416, 224, 16, TINY),
    "deit_small_patch16_224": (22_050_664, 224, 16, SMALL),
    "deit_base_patch16_224": (86_567_656, 224, 16, BASE),
    "deit_base_patch16_384": (86_859_496, 384, 16, BASE),
    "deit_tiny_distilled_patch16_224": (5_910_800, 224, 16, TINY | DISTILLED),
    "deit_small_distilled_patch16_224": (22_436_432, 224, 16, SMALL | DISTILLED),
    "deit_base_distilled_patch16_224": (87_338_192, 224, 16, BASE | DISTILLED),
    "deit_base_distilled_patch16_384": (87_630_032, 384, 16, BASE | DISTILLED),
    "deit3_small_patch16_224": (22_059_496, 224, 16, SMALL | DEIT3),
    "deit3_small_patch16_384": (22_205_416, 384, 16, SMALL | DEIT3),
    "deit3_base_patch16_224": (86_585_320, 224, 16, BASE | DEIT3),
    "deit3_base_patch16_384": (86_877_160, 384, 16, BASE | DEIT3),
    "deit3_large_patch16_224": (304_374_760, 224, 16, LARGE | DEIT3),
    "deit3_large_patch16_384": (304_763_880, 384, 16, LARGE | DEIT3),
    "deit3_huge_patch14_224": (632_126_440, 224, 14, HUGE | DEIT3),
    # The release's, without the mask token; with registers, without the class token's position.
    "vit_small_patch14_dinov2": (22_056_192, 518, 14, SMALL | DINOV2),
    "vit_base_patch14_dinov2": (86_579_712, 518, 14, BASE | DINOV2),
    "vit_large_patch14_dinov2": (304_367_616, 518, 14, LARGE | DINOV2),
    "vit_giant_patch14_dinov2": (1_136_479_232, 518, 14, GIANT | DINOV2),
    "vit_small_patch14_reg4_dinov2": (22_057_344, 518, 14, SMALL | REGISTERS),
    "vit_base_patch14_reg4_dinov2": (86_582_016, 518, 14, BASE | REGISTERS),
    "vit_large_patch14_reg4_dinov2": (304_370_688, 518, 14, LARGE | REGISTERS),
    "vit_giant_patch14_reg4_dinov2": (1_136_483_840, 518, 14, GIANT | REGISTERS),
}
CLASSIFIER_PARAMETERS = 2_618_916


def shapes(model: nnx.Module) -> list[tuple[int, ...]]:
    return [tuple(variable.shape) for _, variable in nnx.to_flat_state(nnx.state(model, nnx.Param))]


def parameters(model: nnx.Module) -> int:
    return sum(int(np.prod(shape)) for shape in shapes(model))


def test_list_models_has_exactly_the_known_names() -> None:
    ours = vit_jax.list_models()
    assert ours == sorted(ours)
    assert {*VITS, "vit_classifier"} == {
        name for name in ours if name.startswith(("vit_", "deit"))
    } - {"vit_encoder", "vit_modular"}


def test_list_models_globs() -> None:
    assert vit_jax.list_models("deit_tiny*") == [
        "deit_tiny_distilled_patch16_224",
        "deit_tiny_patch16_224",
    ]
    assert vit_jax.list_models("vit_*_patch8_???") == ["vit_base_patch8_224"]
    assert vit_jax.list_models("no such*") == []


def assert_parameters(model: nnx.Module, **fields: Any) -> None:
    """Array for array the shapes of the reference of timm's fields, in any order."""
    with torch.device("meta"):
        reference = VisionTransformer(**fields)
    assert sorted(sorted(shape) for shape in shapes(model)) == sorted(
        sorted(parameter.shape) for parameter in reference.parameters()
    )


@pytest.mark.parametrize("name", VITS)
def test_parameters_fields_and_preprocessing_are_timms(name: str) -> None:
    """timm's fields, each array of the model with one block, and the known count at full depth."""
    count, img_size, patch_size, fields = VITS[name]
    fields = {"img_size": img_size, "patch_size": patch_size, **fields}
    assert fields.items() <= model_fields(name).items()
    model = abstract_model(name, depth=1)
    assert_preprocessing(name, model)
    assert_parameters(model, **{**fields, "depth": 1})
    stem = parameters(abstract_model(name, depth=0))
    assert stem + fields["depth"] * (parameters(model) - stem) == count


WHOLE = ["vit_large_patch32_384", "deit_tiny_distilled_patch16_224", "deit3_small_patch16_224"]


@pytest.mark.parametrize("name", mostly_slow(VITS, WHOLE))
def test_all_blocks_have_timms_arrays(name: str) -> None:
    count, img_size, patch_size, fields = VITS[name]
    model = abstract_model(name)
    assert parameters(model) == count
    assert_parameters(model, img_size=img_size, patch_size=patch_size, **fields)


def test_parameters_of_the_classifier() -> None:
    model = abstract_model("vit_classifier")
    assert parameters(model) == CLASSIFIER_PARAMETERS
    assert model.spec.preprocessing.mean == pytest.approx((0.5071, 0.4865, 0.4409), abs=5e-4)
    assert sum(p.numel() for p in ClassifierViT().parameters()) == CLASSIFIER_PARAMETERS
    # The text's own: one class token for each of 32 batch slots.
    assert parameters(abstract_model("vit_classifier", class_token_batch=32)) == 2_620_900


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit3_small_patch16_224"])
def test_scanned_form_has_the_same_parameters(name: str) -> None:
    assert parameters(abstract_model(name, scan_layers=True)) == VITS[name][0]


def assert_preprocessing(name: str, model: nnx.Module) -> None:
    """timm's: Inception statistics for ViT, ImageNet's for DeiT and DINOv2, no crop at 384."""
    half, imagenet = (0.5, 0.5, 0.5), (0.485, 0.456, 0.406)
    assert model.spec.preprocessing.mean == (
        half if name.startswith("vit") and "dinov2" not in name else imagenet
    )
    assert model.spec.preprocessing.interpolation == "bicubic"
    if name.endswith("384"):
        assert model.spec.preprocessing.crop_fraction == 1.0


@pytest.mark.usefixtures("promoting")
@pytest.mark.parametrize(
    "types", [{}, {"dtype": jnp.float16, "param_dtype": jnp.bfloat16}, {"dtype": "bfloat16"}]
)
def test_dtypes(types: dict[str, Any]) -> None:
    """Parameters follow param_dtype, results dtype; both are float32 unless said."""
    for name in ("deit3_small_patch16_224", "vit_classifier"):
        model = abstract_model(name, depth=2, img_size=48, **types)
        stored = {v.dtype.name for _, v in nnx.to_flat_state(nnx.state(model, nnx.Param))}
        assert stored == {jnp.dtype(types.get("param_dtype", jnp.float32)).name}
        image = jax.ShapeDtypeStruct((1, 48, 48, 3), jnp.float32)
        model.eval()
        logits = jax.eval_shape(type(model).__call__, model, image)
        assert logits.dtype == types.get("dtype", jnp.float32)


def test_a_model_says_what_it_is_in_a_few_lines() -> None:
    model = abstract_model("vit_tiny_patch16_224", img_size=32, depth=1, qkv_bias=False)
    assert repr(model) == str(model)
    assert repr(model).splitlines() == [
        "vit_tiny_patch16_224: VisionTransformer, 786,472 parameters, train mode",
        "  fields: img_size=32, patch_size=16, embed_dim=192, depth=1, num_heads=3, "
        "num_classes=1000, qkv_bias=False",
        "  images: 32x32x3, bicubic, center crop 0.9, mean 0.5, 0.5, 0.5, std 0.5, 0.5, 0.5",
    ]
    model.eval()
    model.spec = dataclasses.replace(
        model.spec,
        preprocessing=None,
        class_names=tuple("abcd"),
        source="a file",
        target=Target("multilabel"),
    )
    assert repr(model).splitlines()[0].endswith("eval mode")
    assert repr(model).splitlines()[2:] == [
        "  images: 32x32x3; nothing states their mean and deviation",
        "  outputs: multilabel",
        "  classes: 4: a, b, c, ...",
        "  source: a file",
    ]
    assert repr(abstract_model("t2t_vit_7")).startswith("t2t_vit_7: T2TViT, 4,")
