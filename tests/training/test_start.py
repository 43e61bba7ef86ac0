"""Runs that start from the weights of another model: another head, another image size."""

import dataclasses
import shutil
from typing import Any

import jax
import numpy as np
import pytest
import torch
from flax import nnx

import vit_jax
from tests.training.runs import tiny
from vit_jax.config import TrainConfig, load_config
from vit_jax.config.validate import fields_of
from vit_jax.layers.position_resize import resize_pos_embed
from vit_jax.models.base import VisionModel
from vit_jax.models.registry import create_model
from vit_jax.models.spec import ModelSpec, Preprocessing, Target
from vit_jax.training import train
from vit_jax.training.run import open_run
from vit_jax.training.start import facts_used, load_initial_weights, with_stated_fields
from vit_jax.weights.adapt import RESIZE
from vit_jax.weights.save import save_pretrained
from vit_jax.weights.spec_json import StatedSpec

pytestmark = pytest.mark.xdist_group("runs")

HEAD = ("head.weight", "head.bias")


def model(seed: int) -> VisionModel:
    """That of the tiny run."""
    config = tiny().model
    return create_model(config.name, rngs=nnx.Rngs(seed), **config.kwargs)


def other(init_from: Any, **overrides: Any) -> TrainConfig:
    """The tiny run for 16x16 images, a grid of 4x4, and 12 classes."""
    return tiny(
        seed=9,
        init_from=str(init_from),
        model__kwargs__num_classes=12,
        model__kwargs__img_size=16,
        log__progress="plain",
        **{"init_head": "fresh", "init_resize": "source", **overrides},
    )


def fresh(config: TrainConfig) -> dict[str, np.ndarray]:
    run = open_run(config)
    state = jax.jit(lambda state: state)(run.steps.init())
    return vit_jax.state_dict(nnx.merge(run.train_graph, state.params, state.frozen))


@pytest.mark.parametrize("form", ["workdir", "checkpoint", "weights"])
def test_another_head_and_another_size(form, finished, first_state, tmp_path):
    trained = model(1)
    vit_jax.load_pretrained(trained, finished)
    source = {
        "workdir": finished,
        "checkpoint": finished / "checkpoints" / "12",
        "weights": tmp_path / "weights.safetensors",
    }[form]
    if form == "weights":
        save_pretrained(trained, source)
    config = other(source)
    found, said = first_state(config)
    stored, begun = vit_jax.state_dict(trained), fresh(config)
    for name, array in found.items():
        if name == "pos_embed":
            array_before = stored[name]
            wanted = resize_pos_embed(
                array_before, (2, 2), (4, 4), num_prefix_tokens=1, method="timm"
            )
        else:
            wanted = begun[name] if name in HEAD else stored[name]
        np.testing.assert_array_equal(array, wanted, err_msg=name)
    (line,) = [line for line in said.splitlines() if "starting from" in line]
    assert f"starting from weights of {source}" in line
    assert "pos_embed: 2x2 to 4x4 by 'timm', 1 prefix rows kept" in line
    assert "head: dropped the state dict's (10 classes), the model keeps its own of 12" in line
    assert "(as the weights'), crop: the run's 1.0 bilinear center (as the weights'), " in line
    assert "classes: the run's 0, 1, 2, ... (the head is fresh)" in line


def test_the_line_tells_whose_normalisation_crop_and_classes_are_used():
    own = ModelSpec("vit", model(1).config, Preprocessing((0.5,), (0.25,), 0.9), ("b", "a"))
    same = StatedSpec(preprocessing=own.preprocessing, class_names=own.class_names)
    assert facts_used(own, same) == (
        "normalisation: the run's (0.5) and (0.25) (as the weights'), "
        "crop: the run's 0.9 bicubic center (as the weights'), "
        "classes: the run's b, a (as the weights')"
    )
    theirs = StatedSpec(preprocessing=Preprocessing((0.1,), (0.2,)), class_names=("a", "b"))
    assert facts_used(own, theirs) == (
        "normalisation: the run's (0.5) and (0.25) (the weights' (0.1) and (0.2)), "
        "crop: the run's 0.9 bicubic center (the weights' 1.0 bicubic center), "
        "classes: the run's b, a (the weights' a, b are in another order)"
    )
    squashed = StatedSpec(preprocessing=dataclasses.replace(own.preprocessing, crop_mode="squash"))
    assert "(the weights' 0.9 bicubic squash)" in facts_used(own, squashed)
    assert "classes: the run's b, a (the head is fresh)" in facts_used(own, theirs, "fresh")
    assert facts_used(own, StatedSpec()).count("(the weights state none)") == 3
    numbers = StatedSpec(target=Target("regression", (5.0,), (2.0,)))
    said = "outputs: the run's None (the weights' regression of mean and std (5) and (2))"
    assert said in facts_used(own, numbers)
    assert "outputs" not in facts_used(own, numbers, "fresh")


def left_alone(config: TrainConfig, *fields: str) -> TrainConfig:
    """The config with no other field of the model than these."""
    kwargs = {name: config.model.kwargs[name] for name in fields}
    return dataclasses.replace(config, model=dataclasses.replace(config.model, kwargs=kwargs))


def test_windows_are_taken_from_the_weights_as_the_image_size_is(tmp_path):
    name = "swin_tiny_patch4_window7_224"
    fields = {"img_size": 32, "embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2)}
    fields |= {"window_size": 2, "in_chans": 1}
    path = tmp_path / "swin.safetensors"
    save_pretrained(vit_jax.create_model(name, rngs=nnx.Rngs(0), **fields), path)

    def taken(**given):
        config = tiny(init_from=str(path), model__name=name, model__kwargs={}, **given)
        return with_stated_fields(config)[0].model.kwargs

    assert taken() == fields
    sizes = ("img_size", "window_size")
    left = {field: value for field, value in fields.items() if field not in sizes}
    assert taken(init_resize="source") == left


@pytest.mark.parametrize("form", ["run", "weights"])
def test_what_the_weights_state_need_not_be_said_again(form, finished, first_state, tmp_path):
    """Nor when the run goes on, when they may be gone; and what is said otherwise is refused."""
    source = tmp_path / "source"
    if form == "run":
        shutil.copytree(finished, source)
    else:
        source = source.with_suffix(".safetensors")
        save_pretrained(vit_jax.from_pretrained(finished), source)
    quick = {"data__validation_split": None, "data__test_split": None, "log__progress": "plain"}
    config = left_alone(tiny(init_from=str(source), num_epochs=1, **quick))
    found, said = first_state(config)
    assert "as its weights state them: img_size=8, in_chans=1, num_classes=10, " in said
    for name, array in vit_jax.state_dict(vit_jax.from_pretrained(finished)).items():
        np.testing.assert_array_equal(found[name], array)
    train(config, tmp_path / "run")
    stored = load_config(tmp_path / "run" / "config.json").model.kwargs
    known = {k: v for k, v in tiny().model.kwargs.items() if k != "drop_rate"}
    assert stored == known  # a rate of dropout is not the weights'
    assert vit_jax.from_pretrained(tmp_path / "run").config.depth == 1
    shutil.move(source, tmp_path / "gone")
    train(config, tmp_path / "run")
    shutil.move(tmp_path / "run" / "checkpoints", tmp_path / "away")  # its rows tell that it began
    assert with_stated_fields(config, tmp_path / "run")[0].model.kwargs == stored
    shutil.move(tmp_path / "away", tmp_path / "run" / "checkpoints")
    changed = tiny(init_from=str(source), num_epochs=1, model__kwargs={"embed_dim": 24}, **quick)
    with pytest.raises(ValueError, match=r"model\.kwargs\.embed_dim \(was 16, now 24\)"):
        train(changed, tmp_path / "run")


def test_what_is_adapted_is_not_taken_from_the_weights(finished):
    config = left_alone(other(finished), "num_classes")
    told, names = with_stated_fields(config)
    assert "img_size" not in names
    assert told.model.kwargs["num_classes"] == 12
    names = with_stated_fields(left_alone(other(finished)))[1]
    assert set(names) == {"patch_size", "in_chans", "embed_dim", "depth", "num_heads"}
    renamed = dataclasses.replace(config.model, name="vit_small_patch16_224")
    assert with_stated_fields(dataclasses.replace(config, model=renamed))[1] == ()
    design = dataclasses.replace(config.model, name="vit", kwargs={})
    assert "depth" in with_stated_fields(dataclasses.replace(config, model=design))[1]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model__kwargs__num_heads": 4}, "num_heads=2, this one has 4"),
        ({"model__kwargs__norm_eps": 1e-3}, "norm_eps=1e-06, this one has 0.001"),
        ({"model__kwargs__img_size": (4, 16)}, r"grid of 2x2 patches, this model's for 1x4"),
        ({"data__num_train_examples": None, "model__kwargs": {"in_chans": 1}, "told": 1},
         "has 10 classes, and vit_tiny_patch16_224 left alone has 12"),
    ],
)  # fmt: skip
def test_a_run_of_another_model_with_the_same_arrays(overrides, message, finished, tmp_path):
    source = finished
    if overrides.pop("told", None):
        source = tmp_path / "w.safetensors"
        fields = tiny().model.kwargs | {"num_classes": 12}
        save_pretrained(create_model(tiny().model.name, rngs=nnx.Rngs(0), **fields), source)
    with pytest.raises(ValueError, match=message):
        train(tiny(init_from=str(source), **overrides), tmp_path / "run")


def test_a_fine_tuning_run_trains(finished, tmp_path):
    quick = {"num_epochs": 1, "data__validation_split": None, "data__test_split": None}
    metrics = train(other(finished, **quick), tmp_path)
    assert np.isfinite(metrics["train_loss"])


def test_averaged_weights_of_a_training_checkpoint(first_state, tmp_path):
    raw, averaged = (
        {k: torch.tensor(v) for k, v in vit_jax.state_dict(model(seed)).items()} for seed in (1, 2)
    )
    path = tmp_path / "training.pth"
    torch.save({"state_dict": raw, "state_dict_ema": averaged, "epoch": 3}, path)
    found, said = first_state(tiny(init_from=str(path), init_weights="ema", log__progress="plain"))
    assert "starting from averaged weights of" in said
    for name, array in averaged.items():
        np.testing.assert_array_equal(found[name], array.numpy())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"init_head": "load"}, r"head\.(weight|bias)"),
        ({"init_resize": "none"}, "pos_embed"),
        ({"init_weights": "ema"}, "averages no weights"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_not_asked_for_is_not_adapted(overrides, message, finished, tmp_path):
    with pytest.raises(ValueError, match=message):
        train(other(finished, **overrides), tmp_path)


@pytest.mark.parametrize("path", ["init_head", "init_resize", "init_weights"])
def test_nothing_to_adapt(path):
    value = {"init_head": "fresh", "init_resize": "timm", "init_weights": "ema"}[path]
    with pytest.raises(ValueError, match=rf"config\.{path}: wanted .* without init_from"):
        tiny(**{path: value})


def test_all_ways_to_resize_can_be_chosen():
    (info,) = [info for info in fields_of() if info.path == "init_resize"]
    assert set(info.limits.choices) == {"none", *RESIZE}


def test_weights_as_they_are_come_straight_from_the_checkpoint(finished, tmp_path):
    """Without a config.json beside it."""
    lone = tmp_path / "lone"
    shutil.copytree(finished / "checkpoints", lone / "checkpoints")
    begun = model(1)
    said = load_initial_weights(begun, str(lone), begun.spec)
    assert said.startswith(f"weights of {lone}, step 12; normalisation: the run's None")
