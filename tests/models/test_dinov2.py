"""DINOv2 beside transformers: values, gradients, training, sizes, folders there and back."""

import itertools
import json
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import vit_jax
from tests.models.backbones import (
    FLOAT64,
    assert_state_dict_is_read,
    assert_weights_back,
    parameters_of,
)
from tests.models.uses import FORMS, assert_forms_agree, assert_is_used, grey
from tests.parity.test_foreign import redrawn
from tests.tiers import mostly_slow
from tests.training.runs import tiny
from tests.weights.designs import assert_close, assert_same_weights
from vit_jax.models.registry import abstract_model
from vit_jax.parity import OptimizerSpec, assert_parity
from vit_jax.training import train
from vit_jax.weights.huggingface import read_facts
from vit_jax.weights.state_dict import torch_shapes

pytestmark = pytest.mark.xdist_group("huggingface")

_SIZES: dict[str, Any] = {"image_size": 28, "patch_size": 7, "hidden_size": 24}
_SIZES |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_labels": 5}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("Dinov2", {}),
    "gated": ("Dinov2", {"use_swiglu_ffn": True}),
    "registers": ("Dinov2WithRegisters", {"num_register_tokens": 3}),
    "gated registers": (
        "Dinov2WithRegisters",
        {"use_swiglu_ffn": True, "num_register_tokens": 2},
    ),
}
# Parameters of the release, the mask token among them.
PARAMETERS = {
    "dinov2_vits14": 22_056_576,
    "dinov2_vits14_reg": 22_058_112,
    "dinov2_vitb14": 86_580_480,
    "dinov2_vitb14_reg": 86_583_552,
    "dinov2_vitl14": 304_368_640,
    "dinov2_vitl14_reg": 304_372_736,
    "dinov2_vitg14": 1_136_480_768,
    "dinov2_vitg14_reg": 1_136_486_912,
}


def theirs(kind: str, model: str) -> torch.nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    family, fields = KINDS[kind]
    config = getattr(transformers, f"{family}Config")(**_SIZES, **fields)
    return redrawn(getattr(transformers, f"{family}{model}")(config)).double().eval()


def ours(module: Any, folder: Path, **fields: Any) -> Any:
    module.save_pretrained(folder)
    return vit_jax.from_pretrained(folder, **FLOAT64, **fields)


def images(*size: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(2, *size, 3))


def answers(module: Any, x: np.ndarray) -> Any:
    with torch.no_grad():
        return module(torch.tensor(x.transpose(0, 3, 1, 2)), output_hidden_states=True)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kind", mostly_slow(KINDS, ["gated registers"]))
def test_values_gradients_and_training(kind: str, tmp_path: Path) -> None:
    """Every stage to 1e-12, and ten steps of AdamW."""
    module = theirs(kind, "ForImageClassification")
    model = ours(module, tmp_path)
    assert model.spec.name == "dinov2"
    report = assert_parity(
        model, module, optimizer=OptimizerSpec(steps=10), precisions=("float64",)
    )
    stages = {row.name for row in report.rows if row.section == "forward"}
    mlp = "blocks.1.mlp.w3" if "gated" in kind else "blocks.1.mlp.fc2"
    assert {"patch_embed.proj", "blocks.0.ls1", mlp, "norm", "head", ""} <= stages


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kind", mostly_slow(KINDS, ["plain"]))
def test_a_base_model_and_images_of_other_sizes(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hidden states in their order; positions as they resize them, here without their float32."""
    module = theirs(kind, "Model")
    model = ours(module, tmp_path / "theirs")
    assert (model.num_classes, model.config.global_pool) == (0, "token")
    interpolate = torch.nn.functional.interpolate
    monkeypatch.setattr(
        torch.nn.functional, "interpolate", lambda x, **how: interpolate(TABLE[0], **how)
    )
    table = module.embeddings.position_embeddings.detach()[:, 1:]
    TABLE[:] = [table.reshape(1, 4, 4, -1).permute(0, 3, 1, 2)]
    forward = jax.jit(lambda m, x: (m.forward_features(x), m(x), m.forward_intermediates(x)))
    for size in ((28, 28), (35, 21), (14, 42), (56, 56)):
        x = images(*size)
        want = answers(module, x)
        tokens, pooled, blocks = forward(model, jnp.asarray(x))
        assert_close(tokens, want.last_hidden_state.numpy())
        assert_close(pooled, want.pooler_output.numpy())
        prefix = model.num_prefix_tokens
        for block, hidden in zip(blocks, want.hidden_states[1:], strict=True):
            assert_close(block, hidden.numpy()[:, prefix:] if block.shape[1] < hidden.shape[1]
                         else hidden.numpy())  # fmt: skip
    with pytest.raises(ValueError, match="divisible by patch_size, 7x7, got 28x30"):
        model(jnp.zeros((1, 28, 30, 3)))


TABLE: list[torch.Tensor] = []


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("kind", "head"),
    mostly_slow(
        itertools.product(KINDS, ("Model", "ForImageClassification")),
        [("gated", "Model"), ("registers", "ForImageClassification")],
    ),
)
def test_a_folder_there_and_back(kind: str, head: str, tmp_path: Path) -> None:
    module = theirs(kind, head)
    model = ours(module, tmp_path / "theirs")
    assert_weights_back(model, module, tmp_path / "ours")
    assert_state_dict_is_read(model, module, tmp_path, "swiglu")


_RELEASE = (
    ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
    ("embeddings.position_embeddings", "pos_embed"),
    ("embeddings.", ""),
    ("encoder.layer.", "blocks."),
    ("attention.o_proj", "attn.proj"),
    ("layer_scale", "ls"),
    ("lambda1", "gamma"),
    ("mlp.down_proj", "mlp.w3"),
    ("layernorm.", "norm."),
)


def release(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Their weights under the release's names."""
    state, named = module.state_dict(), {}
    for name, tensor in state.items():
        joined = {"q_proj": ("q_proj", "k_proj", "v_proj"), "gate_proj": ("gate_proj", "up_proj")}
        for first, parts in joined.items():
            if f".{first}." in name:
                tensor = torch.cat([state[name.replace(first, part)] for part in parts])
        for part, own in (*_RELEASE, ("attention.q_proj", "attn.qkv"), ("gate_proj", "w12")):
            name = name.replace(part, own)
        if not any(part in name for part in ("k_proj", "v_proj", "up_proj")):
            named[name] = tensor
    return named


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kind", mostly_slow(KINDS, ["registers"]))
def test_names_of_the_release(kind: str, tmp_path: Path) -> None:
    """They are the names here."""
    module = theirs(kind, "Model")
    model = ours(module, tmp_path / "theirs")
    torch.save(release(module), tmp_path / "dinov2.pth")
    fields: dict[str, Any] = {"img_size": 28, "patch_size": 7, "embed_dim": 24, "depth": 2}
    fields |= {"num_heads": 4, "swiglu": model.config.swiglu}
    other = vit_jax.from_pretrained(tmp_path / "dinov2.pth", name="dinov2", **fields, **FLOAT64)
    assert_same_weights(other, model)
    assert vit_jax.state_dict(model).keys() == release(module).keys()
    assert other.config.position_resize == ("timm" if "registers" in kind else "dinov2")


@pytest.mark.parametrize("name", mostly_slow(PARAMETERS, ["dinov2_vits14", "dinov2_vitg14_reg"]))
def test_sizes_of_the_release(name: str, tmp_path: Path) -> None:
    model = abstract_model(name)
    shapes = torch_shapes(model)
    assert parameters_of(model) == PARAMETERS[name]
    assert {"mask_token", "blocks.0.ls1.gamma", "pos_embed"} <= shapes.keys()
    assert ("register_tokens" in shapes) == name.endswith("reg")
    assert model.input_size == (224, 224)
    config = model.config
    stated = {
        "model_type": "dinov2_with_registers" if config.reg_tokens else "dinov2",
        "architectures": ["Dinov2WithRegistersModel" if config.reg_tokens else "Dinov2Model"],
        "hidden_size": config.embed_dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "image_size": 518,
        "patch_size": 14,
        "mlp_ratio": 4,
        "use_swiglu_ffn": config.swiglu,
    }
    stated |= {"num_register_tokens": config.reg_tokens} if config.reg_tokens else {}
    (tmp_path / "config.json").write_text(json.dumps(stated))
    processor = {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}}
    processor |= {"do_center_crop": True, "resample": 3}
    processor |= {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    facts = read_facts(tmp_path, [])[0]
    assert facts.name == name
    assert facts.preprocessing is not None
    assert (facts.preprocessing.size, facts.preprocessing.crop_fraction) == ((224, 224), 224 / 256)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    fields = {"img_size": 8, "patch_size": 4, "in_chans": 1, "num_classes": 10}
    fields |= {"embed_dim": 16, "depth": 1, "num_heads": 2}
    config = tiny(
        model__name="dinov2_vits14_reg",
        model__kwargs=fields,
        optimizer__layer_decay=0.5,
        num_epochs=1,
    )
    train(config, folder := tmp_path_factory.mktemp("dinov2"))
    return folder


@pytest.mark.usefixtures("promoting")
def test_what_a_name_does(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It trains, predicts, is converted, summarised, scanned, rematerialised and resized."""
    model, weights = assert_is_used(run, tmp_path, capsys)
    assert (vit_jax.state_dict(model)["mask_token"] == 0).all()
    assert_forms_agree(model, weights, grey(12, 8), (*FORMS, {"img_size": (12, 8)}))
