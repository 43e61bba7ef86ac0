"""SigLIP's image towers beside transformers: values, gradients, training, sizes, folders."""

import inspect
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
    images,
    ours,
    outputs,
    parameters_of,
    pooled,
    theirs,
    transformers,
)
from tests.models.test_clip import TEXT, VISION
from tests.models.timm_models import timm_models, with_weights_of
from tests.parity.test_foreign import redrawn
from tests.tiers import mostly_slow
from tests.weights.designs import assert_close
from vit_jax.layers.unfold import cut_patches
from vit_jax.models.registry import abstract_model
from vit_jax.models.siglip import Siglip
from vit_jax.models.siglip_naflex import SiglipNaflex, naflex_size, pack_images
from vit_jax.parity import OptimizerSpec, assert_parity
from vit_jax.weights.huggingface import read_facts
from vit_jax.weights.load import load_with_notes

pytestmark = pytest.mark.xdist_group("huggingface")

PARAMETERS = {
    "siglip_base_patch16_224": 92_884_224,
    "siglip_base_patch16_512": 93_520_128,
    "siglip_large_patch16_384": 316_283_904,
    "siglip_so400m_patch14_224": 427_680_704,
    "siglip_so400m_patch14_384": 428_225_600,
    "siglip2_base_patch32_256": 94_552_320,
    "siglip2_large_patch16_512": 316_742_656,
    "siglip2_so400m_patch16_512": 428_772_800,
    "siglip2_giant_opt_patch16_384": 1_163_659_776,
    "siglip2_base_patch16_naflex": 92_930_304,
    "siglip2_so400m_patch16_naflex": 427_888_064,
}
CLASSES = ("SiglipVisionModel", "SiglipForImageClassification")
_FLEXIBLE = {k: v for k, v in VISION.items() if k != "image_size"} | {"num_patches": 16}


def module_of(name: str, **fields: Any) -> Any:
    library = transformers()
    family = "Siglip2" if name.startswith("Siglip2") else "Siglip"
    vision = {**(_FLEXIBLE if family == "Siglip2" else VISION), **fields}
    if "Vision" in name:
        return theirs(name, getattr(library, f"{family}VisionConfig")(**vision))
    config = getattr(library, f"{family}Config")
    return theirs(name, config(vision_config=vision, text_config=TEXT, num_labels=5))


def answer_of(name: str) -> str:
    return "logits" if name.endswith("Classification") else "pooler_output"


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", mostly_slow(CLASSES, ["SiglipVisionModel"]))
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
    assert {"patch_embed.proj", "blocks.1.attn.proj", "blocks.0.mlp.fc2", "norm", ""} <= stages


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("name", "fields"),
    mostly_slow(
        [
            ("SiglipVisionModel", {}),
            ("SiglipVisionModel", {"image_size": 36}),  # 4 pixels that nobody looks at
            ("SiglipVisionModel", {"vision_use_head": False}),
            ("SiglipForImageClassification", {}),
            ("SiglipForImageClassification", {"vision_use_head": False}),
        ],
        [("SiglipVisionModel", {"image_size": 36})],
    ),
)
def test_images_of_other_sizes_and_the_way_back(
    name: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    module = module_of(name, **fields)
    model = ours(module, tmp_path / "theirs")
    side = fields.get("image_size", 32)
    for size in ((side, side), (24, 40), (48, 16), (64, 64)):
        x = images(*size)
        want = answers(module, x, interpolate_pos_encoding=True)
        tokens, answer, blocks = outputs(model, x)
        if "last_hidden_state" in want:
            assert_close(tokens, want.last_hidden_state.numpy())
        if getattr(want, answer_of(name)) is not None:
            assert_close(answer, getattr(want, answer_of(name)).numpy())
        for block, hidden in zip(blocks, want.hidden_states[1:], strict=True):
            assert_close(block, hidden.numpy())
    with pytest.raises(ValueError, match="divisible by patch_size, 8x8, got 32x35"):
        model(jnp.zeros((1, 32, 35, 3)))
    assert_folder_back(model, module, tmp_path / "ours")


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("family", mostly_slow(("Siglip", "Siglip2"), ["Siglip"]))
def test_a_whole_model_gives_its_tower(family: str, tmp_path: Path) -> None:
    module = module_of(f"{family}Model")
    processor = getattr(transformers(), f"{family}ImageProcessor")()
    processor.save_pretrained(tmp_path)
    module.save_pretrained(tmp_path)
    model, notes = load_with_notes(tmp_path, fields=FLOAT64)
    assert "text_model: 22 arrays of another part, left out" in notes
    assert "logit_bias: 1 array of another part, left out" in notes
    preprocessing = model.spec.preprocessing
    assert preprocessing is not None
    assert (preprocessing.mean, preprocessing.crop_mode) == ((0.5,) * 3, "squash")
    assert preprocessing.interpolation == ("bicubic" if family == "Siglip" else "bilinear")
    if family == "Siglip":
        x = images(32, 32)
        with torch.no_grad():
            want = module.get_image_features(torch.tensor(x.transpose(0, 3, 1, 2)))
        assert_close(outputs(model, x)[1], want.pooler_output.numpy())
    else:
        assert any("keep their aspect" in note for note in notes)


def wide_source() -> dict[str, Any]:
    """Their resize of positions, in float64 throughout."""
    from transformers.models.siglip2 import modeling_siglip2 as source

    text = inspect.getsource(source.Siglip2VisionEmbeddings)
    text = text.replace("float32", "float64").replace(".float()", ".double()")
    found: dict[str, Any] = dict(vars(source))
    exec(text, found)
    return found


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "name",
    mostly_slow(("Siglip2VisionModel", "Siglip2ForImageClassification"), ["Siglip2VisionModel"]),
)
def test_batches_of_images_of_several_sizes(name: str, tmp_path: Path) -> None:
    """Tokens, padding's too, and the answer: as they are in float64, and as they are."""
    module = module_of(name)
    model = ours(module, tmp_path / "theirs")
    draw = np.random.default_rng(0).normal
    sizes = ((32, 32), (16, 40), (56, 16))
    packed = pack_images([draw(size=(*size, 3)) for size in sizes], 8, 18)
    given = [torch.tensor(part) for part in packed]
    given[1] = given[1].int()

    @jax.jit
    def both(model: Any, patches: Any, mask: Any, shapes: Any) -> Any:
        tokens = model.forward_patches(patches, mask, shapes)
        return tokens, model.forward_head(tokens, mask=mask)

    got = both(model, *map(jnp.asarray, packed))
    tower = getattr(module, "vision_model", module)
    for precision in ("theirs", "float64"):
        if precision == "float64":
            tower.embeddings.__class__ = wide_source()["Siglip2VisionEmbeddings"]
        with torch.no_grad():
            tokens = tower(*given).last_hidden_state
            want = [tokens.numpy(), getattr(module(*given), answer_of(name)).numpy()]
        for mine, other in zip(got, want, strict=True):
            if precision == "float64":
                assert_close(mine, other)
            else:
                np.testing.assert_allclose(mine, other, rtol=0, atol=1e-6 * float(np.std(other)))
    # Gradients, of the padded batch.
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params: Any) -> jax.Array:
        return (both(nnx.merge(graph, params, rest), *map(jnp.asarray, packed))[1] ** 2).mean()

    mine = vit_jax.state_dict(nnx.merge(graph, jax.grad(loss)(params), rest))
    (getattr(module(*given), answer_of(name)) ** 2).mean().backward()
    theirs_by_name = dict(tower.named_parameters())
    for own, other in (
        ("pos_embed", "embeddings.position_embedding.weight"),
        ("patch_embed.proj.weight", "embeddings.patch_embedding.weight"),
        ("blocks.0.mlp.fc1.weight", "encoder.layers.0.mlp.fc1.weight"),
    ):
        assert_close(mine[own].squeeze(), theirs_by_name[other].grad.numpy())
    # Images of one size are the same without padding.
    x = images(16, 40)
    alone = pack_images(list(x), 8, 10)
    assert_close(both(model, *map(jnp.asarray, alone))[1], np.asarray(model(jnp.asarray(x))))
    assert_folder_back(model, module, tmp_path / "ours")


@pytest.mark.usefixtures("x64")
@pytest.mark.slow
def test_training_of_the_flexible_tower(tmp_path: Path) -> None:
    module = module_of("Siglip2VisionModel")
    model = ours(module, tmp_path)
    kind = type(module)

    def forward(self: Any, pixels: torch.Tensor) -> torch.Tensor:
        batch = pixels.permute(0, 2, 3, 1)
        patches = cut_patches(_Tensor(batch), (8, 8)).value
        mask = torch.ones(patches.shape[:2], dtype=torch.int32)
        shapes = torch.tensor([[pixels.shape[2] // 8, pixels.shape[3] // 8]] * len(pixels))
        return kind.forward(self, patches, mask, shapes).pooler_output

    module.__class__ = type(kind.__name__, (kind,), {"forward": forward})
    module.embeddings.__class__ = wide_source()["Siglip2VisionEmbeddings"]
    for size in ((32, 32), (24, 40)):
        assert_parity(
            model,
            module,
            images(*size),
            optimizer=OptimizerSpec(steps=10),
            precisions=("float64",),
        )


class _Tensor:
    """A tensor of PyTorch whose `transpose` takes all axes, as NumPy's."""

    def __init__(self, value: torch.Tensor):
        self.value, self.shape = value, tuple(value.shape)

    def reshape(self, *shape: int) -> "_Tensor":
        return _Tensor(self.value.reshape(*shape))

    def transpose(self, *axes: int) -> "_Tensor":
        return _Tensor(self.value.permute(*axes))


def test_sizes_and_patches_of_photographs() -> None:
    from transformers.models.siglip2 import image_processing_pil_siglip2 as source

    draw = np.random.default_rng(0).integers
    for height, width in [(1, 1), (16, 16), (4000, 3), *draw(1, 3000, (60, 2)).tolist()]:
        for limit in (256, 729):
            want = source.get_image_size_for_max_num_patches(height, width, 16, limit)
            assert naflex_size(height, width, 16, limit) == want
    x = np.random.default_rng(0).normal(size=(32, 48, 3))
    patches, mask, shapes = pack_images([x], 16, 10)
    want = source.convert_image_to_patches(x.transpose(2, 0, 1), 16)
    np.testing.assert_array_equal(patches[0, :6], np.asarray(want))
    assert mask.tolist() == [[True] * 6 + [False] * 4]
    assert shapes.tolist() == [[2, 3]]
    with pytest.raises(ValueError, match="at most 5 patches an image, got 2x3"):
        pack_images([x], 16, 5)
    with pytest.raises(ValueError, match="at least one image"):
        pack_images([], 16, 5)


def test_patches_of_another_shape_are_refused() -> None:
    fields: dict[str, Any] = {
        "img_size": 16,
        "patch_size": 8,
        "embed_dim": 16,
        "depth": 1,
        "num_heads": 2,
    }
    name = "siglip2_base_patch16_naflex"
    model: Any = vit_jax.create_model(name, rngs=nnx.Rngs(0), num_patches=4, **fields)
    with pytest.raises(ValueError, match=r"wanted patches \(B, N, 192\), .* got \(2, 4, 191\)"):
        model.forward_patches(np.zeros((2, 4, 191)), np.ones((2, 4)), np.ones((2, 2)))
    with pytest.raises(ValueError, match=r"\(2, 5\) and \(2, 2\)"):
        model.forward_patches(np.zeros((2, 4, 192)), np.ones((2, 5)), np.ones((2, 2)))
    with pytest.raises(ValueError, match="num_patches must be a square number, got 5"):
        vit_jax.create_model(name, rngs=nnx.Rngs(0), num_patches=5, **fields)
    with pytest.raises(ValueError, match="needs attn_pool=True"):
        vit_jax.create_model(name, rngs=nnx.Rngs(0), attn_pool=False, **fields)


@pytest.mark.parametrize(
    "name",
    mostly_slow(PARAMETERS, ["siglip_base_patch16_224", "siglip2_base_patch16_naflex"]),
)
def test_sizes_of_the_release(name: str, tmp_path: Path) -> None:
    model = abstract_model(name)
    assert parameters_of(model) == PARAMETERS[name]
    config = model.config
    vision = {
        "hidden_size": config.embed_dim,
        "intermediate_size": int(config.embed_dim * config.mlp_ratio),
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "patch_size": config.patch_size,
    }
    assert vision["intermediate_size"] in (3072, 4096, 4304, 6144)
    kind = "siglip2" if name.endswith("naflex") else "siglip"
    vision |= {} if kind == "siglip2" else {"image_size": config.img_size}
    stated = {"model_type": kind, "architectures": [f"{kind.title()}Model"]}
    (tmp_path / "config.json").write_text(json.dumps({**stated, "vision_config": vision}))
    found = read_facts(tmp_path, [])[0]
    # SigLIP 2's fixed sizes are SigLIP's: the first name that has them.
    assert found.name is not None
    assert abstract_model(found.name).config == config


@pytest.mark.parametrize("style", mostly_slow(["layer by layer", "scanned"], ["scanned"]))
def test_the_release_of_big_vision(style: str, tmp_path: Path) -> None:
    """timm reads the file that is written; both read the two towers of a release, scanned too."""
    fields: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3}
    fields |= {"num_heads": 4, "num_classes": 0}
    timm = timm_models("vision_transformer").VisionTransformer
    how: dict[str, Any] = {"class_token": False, "global_pool": "map", "act_layer": "gelu_tanh"}
    module, again = (redrawn(timm(**fields, **how)).eval() for _ in range(2))
    model = with_weights_of(module, "siglip", **fields)
    vit_jax.save_pretrained(model, tmp_path / "one.npz", dialect="google")
    said = dict(np.load(tmp_path / "one.npz"))
    if style == "scanned":
        layers = [[name for name in said if f"/encoderblock_{i}/" in name] for i in range(3)]
        for names in zip(*layers, strict=True):
            stacked = np.stack([said.pop(name) for name in names])
            said[names[0].replace("encoderblock_0", "encoderblock")] = stacked
    beside = {"params/txt/Encoder_0/encoder_norm/scale": np.ones(4), "params/t": np.zeros(1)}
    np.savez(tmp_path / "release.npz", allow_pickle=False, **said, **beside)
    for parameter in again.parameters():
        parameter.data.zero_()
    again.load_pretrained(str(tmp_path / "release.npz"))
    for name, array in module.state_dict().items():
        np.testing.assert_array_equal(again.state_dict()[name], array)
    found, notes = load_with_notes(tmp_path / "release.npz", name="siglip", fields=fields)
    assert [note for note in notes if "of another part" in note] == [
        "txt: 1 array of another part, left out",
        "t: 1 array of another part, left out",
    ]
    assert found.config == model.config
    jax.tree.map(
        np.testing.assert_array_equal, vit_jax.state_dict(found), vit_jax.state_dict(model)
    )


def test_defaults_of_the_configuration(tmp_path: Path) -> None:
    for design, kind in ((Siglip, "Siglip"), (SiglipNaflex, "Siglip2")):
        config = getattr(transformers(), f"{kind}VisionConfig")()
        for dialect in design.dialects:
            assert_defaults(dialect, config)
    # What google/siglip-base-patch16-224 says of its tower.
    stated = {"model_type": "siglip", "architectures": ["SiglipModel"]}
    (tmp_path / "config.json").write_text(
        json.dumps({**stated, "vision_config": {"model_type": "siglip_vision_model"}})
    )
    assert read_facts(tmp_path, [])[0].name == "siglip_base_patch16_224"
