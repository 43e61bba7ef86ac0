"""Each mistake is one ValueError that says what was wanted and what came."""

import functools
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from flax import nnx

import vit_jax
from tests.models.families import DESIGNS, FAMILIES, build, images, shallow
from tests.tiers import mostly_slow
from vit_jax.models.registry import abstract_model, model_fields


@pytest.fixture
def unchecked_shapes() -> Iterator[None]:
    """As users run it: the run-time check of the annotations would speak before our own errors."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def create(name: str = "vit_tiny_patch16_224", **fields: Any) -> nnx.Module:
    return abstract_model(name, **fields)


def not_refused(build: Callable[..., Any], mistakes: Iterable[tuple[Any, ...]]) -> list[str]:
    """Of mistakes (arguments, fields, message of the error) those that go without their error."""
    found = []
    for *arguments, fields, message in mistakes:
        try:
            build(*arguments, **fields)
            said = "no error"
        except ValueError as error:
            said = str(error)
        if not re.search(message, said):
            found.append(f"{arguments} {fields}: wanted {message!r}, got {said}")
    return found


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("vit_base_patch16_244", "vit_base_patch16_224"),
        ("deit_tiny_destilled_patch16_224", "deit_tiny_distilled_patch16_224"),
        ("vit_clasifier", "vit_classifier"),
    ],
)
def test_unknown_model_proposes_near_names(wrong: str, near: str) -> None:
    with pytest.raises(ValueError, match=rf"unknown model '{wrong}'.*{near}"):
        create(wrong)


def test_unknown_model_without_a_near_name() -> None:
    with pytest.raises(ValueError, match=r"unknown model 'resnet50'.*list_models"):
        create("resnet50")


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_classifier"])
def test_unknown_field_names_the_valid_ones(name: str) -> None:
    with pytest.raises(ValueError, match=r"unknown field 'embed_dims'") as error:
        create(name, embed_dims=8)
    for field in ("img_size", "embed_dim", "depth", "num_heads", "drop_rate", "patchify", "dtype"):
        assert re.search(rf"\b{field}\b", str(error.value)), field


COMMON_FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"embed_dim": 10, "num_heads": 4}, r"embed_dim.*divisible.*num_heads.*10.*4"),
    ({"num_heads": 0}, r"num_heads must be an int of at least 1, got 0"),
    ({"num_heads": 2.0}, r"num_heads must be an int.*2\.0"),
    ({"embed_dim": 0}, r"embed_dim must be an int of at least 1, got 0"),
    ({"depth": -1}, r"depth must be an int of at least 0, got -1"),
    ({"depth": True}, r"depth must be an int.*True"),
    ({"norm_eps": -1.0}, r"norm_eps must be a finite number above 0.*-1"),
    ({"scan_layers": "no"}, r"scan_layers must be True or False.*'no'"),
    ({"remat": "all"}, r"remat.*none.*blocks.*dots.*'all'"),
    ({"drop_rate": "0.1"}, r"drop_rate must be at least 0 and below 1, got '0\.1'"),
    ({"head_drop_rate": float("nan")}, r"head_drop_rate must be.*nan"),
    ({"dtype": None}, r"dtype must be float32.*None"),
    ({"dtype": "float8_e4m3fn"}, r"dtype must be float32.*float8"),
    ({"img_size": 32.0}, r"img_size must be a positive int.*32\.0"),
    ({"num_classes": 2.5}, r"num_classes must be an int.*2\.5"),
    ({"img_size": 30, "patch_size": 16}, r"img_size.*divisible.*patch_size.*30x30.*16x16"),
    ({"img_size": (32, 20), "patch_size": 16}, r"img_size.*divisible.*patch_size.*32x20"),
    ({"img_size": (32, 32, 3)}, r"img_size must be.*\(32, 32, 3\)"),
    ({"img_size": 0}, r"img_size must be a positive int.*0"),
    ({"in_chans": 0}, r"in_chans must be an int of at least 1.*0"),
    ({"num_classes": -1}, r"num_classes must be an int of at least 0.*-1"),
    ({"patchify": "stride"}, r"patchify.*conv.*unfold.*'stride'"),
    ({"dtype": "int32"}, r"dtype must be float32.*'int32'"),
    ({"param_dtype": "float99"}, r"param_dtype must be float32.*'float99'"),
    ({"dtype": "float64"}, r"float64.*x64"),
]
VIT_FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"global_pool": "mean"}, r"global_pool.*token.*avg.*max.*avgmax.*'mean'"),
    ({"class_token": False}, r"global_pool='token' needs class_token=True.*avg"),
    ({"distilled": True, "global_pool": "avg"}, r"distilled.*global_pool='token'.*'avg'"),
    ({"distilled": True, "reg_tokens": 2}, r"distilled.*reg_tokens=0.*2"),
    ({"reg_tokens": -1}, r"reg_tokens must be an int of at least 0.*-1"),
    ({"weight_init": "zeros"}, r"weight_init.*kaiming_conv.*'zeros'"),
    ({"mlp_ratio": 0.001}, r"embed_dim \* mlp_ratio.*at least 1, got 0"),
    ({"mlp_ratio": -1}, r"mlp_ratio must be a finite number above 0"),
    ({"qk_scale": "big"}, r"qk_scale must be a finite number.*'big'"),
    ({"init_values": float("inf")}, r"init_values must be a finite number.*inf"),
    ({"representation_size": -3}, r"representation_size must be an int.*-3"),
]
CLASSIFIER_FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"mlp_head_units": ()}, r"mlp_head_units.*at least one.*\(\)"),
    ({"mlp_head_units": (8, 0)}, r"mlp_head_units must be an int of at least 1, got 0"),
    ({"class_token_batch": 0}, r"class_token_batch must be an int of at least 1.*0"),
    ({"mlp_dim": -1}, r"mlp_dim must be an int of at least 1.*-1"),
]
T2T_FIELDS: list[tuple[str, dict[str, Any], str]] = [
    ("t2t_vit_7", {"tokens_type": "perfomer"}, r"tokens_type.*performer.*convolution.*'perfomer'"),
    ("t2t_vit_7", {"token_dim": 0}, r"token_dim must be an int of at least 1, got 0"),
    ("t2t_vit_7", {"token_dim": 1}, r"token_dim \* kernel_ratio.*at least 1, got 0"),
    ("t2t_vit_7", {"token_drop_rate": 1.0}, r"token_drop_rate must be at least 0 and below 1.*1"),
    (
        "t2t_vit_7",
        {"tokens_type": "convolution", "token_drop_rate": 0.1},
        r"convolution.*token_drop_rate must be 0.*0\.1",
    ),
    ("t2t_vit_7", {"img_size": (32, 2)}, r"32x2.*smaller than a window"),
    ("t2t_vit_7", {"mlp_ratio": 0}, r"mlp_ratio must be a finite number above 0"),
    ("t2t_vit_7", {"qk_scale": "big"}, r"qk_scale must be a finite number.*'big'"),
    ("t2t_vit_7", {"qkv_bias": 1}, r"qkv_bias must be True or False.*1"),
    ("t2t_vit_14_se", {"embed_dim": 8, "num_heads": 2}, r"embed_dim // 16.*at least 1, got 0"),
    ("t2t_vit_16_ghost", {"mlp_ratio": 2.0}, r"mlp_ratio must be 3.*768.*384"),
    ("t2t_vit_16_ghost", {"embed_dim": 9, "num_heads": 3}, r"embed_dim: it must be even, got 9"),
    ("t2t_vit_dense", {"block_config": ()}, r"block_config must be .*at least one.*\(\)"),
    ("t2t_vit_dense", {"block_config": 4}, r"block_config must be a sequence.*4"),
    ("t2t_vit_dense", {"block_config": (2, 0)}, r"block_config must be an int of at least 1.*0"),
    ("t2t_vit_dense", {"growth_rate": 0}, r"growth_rate must be an int of at least 1, got 0"),
    ("t2t_vit_dense", {"growth_rate": 4}, r"divisible by num_heads, got 132 and 8"),
]
Case = tuple[str, dict[str, Any], str]
MISTAKES: dict[str, list[Case]] = {
    **{
        name: [
            (name, fields, message)
            for fields, message in COMMON_FIELDS
            if fields.keys() <= model_fields(name).keys()
        ]
        for name in ("vit_tiny_patch16_224", "vit_classifier", "t2t_vit_7")
    },
    "of ViT": [("vit_tiny_patch16_224", *mistake) for mistake in VIT_FIELDS],
    "of the classifier": [("vit_classifier", *mistake) for mistake in CLASSIFIER_FIELDS],
    "of T2T": T2T_FIELDS,
}


@pytest.mark.parametrize("mistakes", MISTAKES)
@pytest.mark.usefixtures("unchecked_shapes")
def test_fields_that_do_not_fit(mistakes: str) -> None:
    assert not_refused(create, MISTAKES[mistakes]) == []


def test_t2t_has_no_patches_and_a_dense_one_no_scan() -> None:
    for name, field in (
        ("t2t_vit_7", "patch_size"),
        ("t2t_vit_dense", "scan_layers"),
        ("t2t_vit_dense", "depth"),
    ):
        with pytest.raises(ValueError, match=rf"unknown field '{field}' of {name}"):
            create(name, **{field: 2})


@pytest.mark.usefixtures("unchecked_shapes")
def test_rngs_of_another_kind() -> None:
    with pytest.raises(ValueError, match=r"rngs must be flax.nnx.Rngs.*got 0"):
        vit_jax.create_model("vit_classifier", rngs=0)  # pyright: ignore[reportArgumentType]
    model = build("vit", drop_rate=0.1)
    with pytest.raises(ValueError, match=r'stream "dropout" or "default"'):
        model(images(), rngs=nnx.Rngs(params=0))


@pytest.mark.usefixtures("unchecked_shapes")
def test_numpy_integers_are_integers() -> None:
    assert create(img_size=np.int64(32)).img_size == (32, 32)


SHAPES = {
    (2, 8, 12, 1): r"images \(batch, 8, 12, 3\).*1 channels",
    (8, 12, 3): r"images \(batch, 8, 12, 3\).*rank 3",
    (2, 1, 8, 12, 3): r"images \(batch, 8, 12, 3\).*rank 5",
    (2, 3, 8, 12): r"images \(batch, 8, 12, 3\).*NCHW",
    (2, 3, 16, 16): r"images \(batch, 8, 12, 3\).*NCHW",
    (2, 12, 8, 3): r"images \(batch, 8, 12, 3\).*12x8",
    (2, 16, 24, 3): r"images \(batch, 8, 12, 3\).*16x24.*img_size",
}


@pytest.mark.parametrize("family", DESIGNS)
@pytest.mark.usefixtures("unchecked_shapes")
def test_images_of_another_shape(family: str) -> None:
    name, fields = FAMILIES[family]
    model = create(name, **fields)
    mistakes = [(shape, {}, message) for shape, message in SHAPES.items()]
    assert not_refused(lambda shape: model(np.zeros(shape, np.float32)), mistakes) == []
    abstractly = functools.partial(jax.eval_shape, model.forward_features)
    assert not_refused(lambda shape: abstractly(np.zeros(shape, np.float32)), mistakes) == []


@pytest.mark.usefixtures("unchecked_shapes")
def test_raw_bytes_are_not_images() -> None:
    with pytest.raises(ValueError, match=r"floating.*uint8"):
        create()(jnp.zeros((2, 224, 224, 3), jnp.uint8))


def test_nchw_is_not_suspected_where_the_layout_fits() -> None:
    """A 3x3 image of 3 channels looks the same in both layouts: it is taken as it is."""
    fields = {"img_size": 3, "patch_size": 1, "embed_dim": 4, "depth": 1, "num_heads": 1}

    def logits() -> jax.Array:
        model = vit_jax.create_model("vit_tiny_patch16_224", rngs=nnx.Rngs(0), **fields)
        return model(jnp.zeros((2, 3, 3, 3)))

    assert nnx.eval_shape(logits).shape == (2, 1000)


@pytest.mark.parametrize("family", mostly_slow(DESIGNS, ["vit", "t2t performer"]))
def test_a_state_dict_that_does_not_fit_names_every_entry(family: str) -> None:
    model = build(family, **shallow(family))
    before = vit_jax.state_dict(model)
    names = list(before)
    broken = {name: array + 1 for name, array in before.items()}
    missing, misshapen = (names[0], names[5]), (names[-1], names[7])
    for name in missing:
        del broken[name]
    for name in misshapen:
        broken[name] = broken[name][..., None]
    broken |= {"head.scale": np.zeros(1), "module.head.weight": np.zeros(1)}
    with pytest.raises(ValueError, match=r"state dict") as error:
        vit_jax.load_state_dict(model, broken)
    lines = str(error.value).splitlines()
    for kind, concerned in (
        ("missing", missing),
        ("unexpected", ("head.scale", "module.head.weight")),
        ("misshapen", misshapen),
    ):
        listed = [line for line in lines if kind in line]
        assert len(listed) == 2, listed
        assert all(any(name in line for line in listed) for name in concerned)
    for name in misshapen:  # what was wanted, and what came
        line = next(line for line in lines if name in line)
        assert str(before[name].shape) in line
        assert str(broken[name].shape) in line
    after = vit_jax.state_dict(model)
    for name in before:
        np.testing.assert_array_equal(after[name], before[name])


def test_annotated_shapes_are_checked_in_tests() -> None:
    """The import hook of conftest.py is at work: a block takes tokens, not images."""
    with pytest.raises(jaxtyping.TypeCheckError):
        build("vit").blocks[0](images())
