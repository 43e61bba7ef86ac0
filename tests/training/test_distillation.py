"""The loss of distillation against PyTorch's; runs that are mixed and taught, in every layout."""

import dataclasses
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from safetensors.numpy import load_file, save_file

from tests.training.layouts import Result, run_all
from tests.training.runs import arrays, tiny
from tests.training.test_layouts import BATCH, KEY_BIAS, LAYOUTS, LOSS, PARAMETER, differences
from vit_jax.config import DistillationConfig, TrainConfig
from vit_jax.layers.forms import eval_graph
from vit_jax.models.registry import abstract_model, create_model
from vit_jax.models.spec import Preprocessing
from vit_jax.plan.compile import compile_step
from vit_jax.training import train
from vit_jax.training.distillation import Teacher, distillation_loss, make_teacher
from vit_jax.training.mixing import smooth_one_hot
from vit_jax.training.run import model_to_train, open_run
from vit_jax.weights.load import load_pretrained
from vit_jax.weights.save import save_pretrained
from vit_jax.weights.state_dict import torch_shapes

pytestmark = pytest.mark.xdist_group("runs")

TEACHER = "vit_tiny_patch16_224"
TEACHER_FIELDS: dict[str, Any] = {
    "patch_size": 4,
    "embed_dim": 24,
    "depth": 1,
    "num_heads": 2,
    "drop_rate": 0.1,  # which it must not have when it is asked
}
SIZES = {"img_size": 8, "in_chans": 1, "num_classes": 10}
MIX = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0}


def torch_loss(
    heads: list[torch.Tensor], targets: torch.Tensor, teacher: torch.Tensor, config: Any
) -> torch.Tensor:
    """The paper's two losses, in PyTorch's words, averaged over the batch."""
    functional = torch.nn.functional
    labelled = functional.cross_entropy(heads[0], targets)
    if config.kind == "hard":
        taught = functional.cross_entropy(heads[1], teacher.argmax(dim=1))
    else:
        ours, theirs = ((x / config.temperature).log_softmax(dim=1) for x in (heads[1], teacher))
        taught = functional.kl_div(ours, theirs, reduction="batchmean", log_target=True)
        taught = taught * config.temperature**2
    return (1 - config.alpha) * labelled + config.alpha * taught


@pytest.mark.parametrize("soft_targets", [False, True], ids=["labels", "mixed"])
@pytest.mark.parametrize(
    ("kind", "alpha", "temperature"), [("hard", 0.5, 1.0), ("soft", 0.1, 3.0), ("soft", 0.9, 0.5)]
)
def test_loss_and_gradients_are_pytorchs(kind, alpha, temperature, soft_targets, x64):
    config = DistillationConfig(kind=kind, alpha=alpha, temperature=temperature)
    rng = np.random.default_rng(0)
    first, second, teacher = (rng.normal(size=(6, 5)) * 3 for _ in range(3))
    targets = np.array([0, 4, 2, 2, 1, 3], np.int32)
    if soft_targets:
        smooth = np.asarray(smooth_one_hot(jnp.asarray(targets), 5, 0.1, jnp.dtype(jnp.float64)))
        targets = 0.3 * smooth + 0.7 * smooth[::-1]

    def loss(heads: tuple[jax.Array, jax.Array], teacher: jax.Array) -> jax.Array:
        return distillation_loss(heads, jnp.asarray(targets), teacher, config)[0].mean()

    heads = (jnp.asarray(first), jnp.asarray(second))
    found, (gradients, of_teacher) = jax.value_and_grad(loss, (0, 1))(heads, jnp.asarray(teacher))
    theirs = [torch.tensor(head, requires_grad=True) for head in (first, second)]
    torch_targets = torch.tensor(targets) if soft_targets else torch.tensor(targets).long()
    wanted = torch_loss(theirs, torch_targets, torch.tensor(teacher), config)
    wanted.backward()
    np.testing.assert_allclose(found, wanted.item(), rtol=1e-14)
    for ours, head in zip(gradients, theirs, strict=True):
        assert head.grad is not None
        np.testing.assert_allclose(ours, head.grad, rtol=1e-13, atol=1e-16)
    assert not np.asarray(of_teacher).any()


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_pretrained(create_model(TEACHER, rngs=nnx.Rngs(5), **TEACHER_FIELDS, **SIZES), path)
    return path


def taught(teacher: pathlib.Path, **overrides: Any) -> TrainConfig:
    """The tiny run with a second head, taught by the teacher, and mixed."""
    distillation = {"kind": "hard", "teacher": str(teacher), "teacher_model": TEACHER}
    fields = tiny().model.kwargs | {"distilled": True}
    return tiny(
        **{
            "model__kwargs": fields,
            "mix": MIX,
            "distillation": distillation | {"teacher_kwargs": TEACHER_FIELDS},
            **overrides,
        }
    )


def of_layout(teacher: pathlib.Path, layout: str, **overrides: Any) -> TrainConfig:
    """Six updates in float64, with the augmentation and dropout that layouts could change."""
    types = {"dtype": "float64", "param_dtype": "float64"}
    config = taught(
        teacher,
        **LAYOUTS[layout],
        num_epochs=1,
        data__batch_size=BATCH,
        data__num_train_examples=BATCH * 6,
        data__horizontal_flip=True,
        loss__label_smoothing=0.1,
        **overrides,
    )
    config.model.kwargs |= types
    config.distillation.teacher_kwargs |= types
    return config


@pytest.fixture(scope="module")
def layouts(teacher_file, tmp_path_factory) -> dict[str, Result]:
    configs = {
        "one": of_layout(teacher_file, "one"),
        "one 4 parts": of_layout(teacher_file, "one", accumulation_steps=4),
        "fsdp 2 parts": of_layout(teacher_file, "fsdp", accumulation_steps=2),
        "pmap 2 parts": of_layout(teacher_file, "pmap", accumulation_steps=2),
        "one not mixed": of_layout(teacher_file, "one", mix={}),
    }
    return run_all(configs, 6, tmp_path_factory.mktemp("layouts") / "taught.npz")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["one 4 parts", "fsdp 2 parts", "pmap 2 parts"])
def test_same_run_in_every_layout(layouts, name):
    loss, parameter, key_bias = differences(layouts[name], layouts["one"])
    assert loss <= LOSS
    assert parameter <= PARAMETER
    assert key_bias <= KEY_BIAS
    np.testing.assert_array_equal(layouts[name]["sums"][1:], layouts["one"]["sums"][1:])
    assert layouts[name]["devices"] == (1 if name.startswith("one") else 8)


@pytest.mark.slow
def test_mixing_is_felt(layouts):
    mixed, plain = (layouts[name]["loss"] for name in ("one", "one not mixed"))
    assert (np.abs(mixed / plain - 1) > 1e3 * LOSS).all()


def test_the_teacher_is_said(every_method, first_state):
    log = dataclasses.replace(every_method.log, progress="plain")
    _, said = first_state(dataclasses.replace(every_method, log=log))
    assert f"taught by weights of {every_method.distillation.teacher}" in said


def test_the_teacher_is_in_no_checkpoint(every_method, every_method_finished):
    shapes = torch_shapes(model_to_train(every_method))
    stored = {k: v for k, v in arrays(every_method_finished, 24).items() if k.startswith("model/")}
    own = sum(4 * math.prod(shape) for shape in shapes.values())
    assert sum(map(len, stored.values())) == own + 4 * (len(stored) - 1)  # and the fingerprints


def test_the_second_head_alone_learns_from_the_teacher(teacher_file):
    """With alpha 1 the labels teach nothing."""
    config = taught(teacher_file, mix={}, optimizer__weight_decay=0.0, num_epochs=8)
    config.distillation.kind, config.distillation.alpha = "soft", 1.0
    config.optimizer.learning_rate = 1e-2
    config.model.kwargs["drop_rate"] = 0.0
    run = open_run(config)
    state = run.steps.init()
    start = jax.device_get(state.params)
    losses = []
    with run.train_batches(0) as batches:
        for batch in run.on_device(batches):
            state, loss = run.steps.train(state, batch)
            losses.append(float(loss))
    assert np.mean(losses[-3:]) < 0.3 * np.mean(losses[:3])
    np.testing.assert_array_equal(state.params["head"]["kernel"], start["head"]["kernel"])
    assert np.abs(state.params["head_dist"]["kernel"] - start["head_dist"]["kernel"]).max() > 1e-3


def model_sized(config: TrainConfig, size: int) -> Any:
    model = model_to_train(config)
    preprocessing = Preprocessing((0.5,), (0.5,), size=(size, size))
    model.spec = dataclasses.replace(model.spec, preprocessing=preprocessing)
    return model


def teacher_of(config: TrainConfig, size: int = 8) -> Teacher:
    found = make_teacher(config, model_sized(config, size), "cpu")
    assert found is not None
    return found


def test_a_work_directory_knows_its_model(every_method, every_method_finished):
    """Also as a teacher that has two heads itself."""
    distillation = DistillationConfig(kind="soft", teacher=str(every_method_finished))
    teacher = teacher_of(dataclasses.replace(every_method, distillation=distillation), 16)
    images = np.random.default_rng(0).normal(size=(3, 16, 16, 3)).astype(np.float32)
    state, said = teacher.weights
    assert said.startswith(f"weights of {every_method_finished}, step 24; normalisation: ")
    model = abstract_model(TEACHER, **every_method.model.kwargs)
    load_pretrained(model, every_method_finished)
    model.eval()
    graph, wanted = eval_graph(model, "cpu"), nnx.state(model)
    found = jax.jit(teacher.logits)(state, images)
    wanted = jax.jit(lambda state, images: nnx.merge(graph, state)(images))(wanted, images)
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__kwargs": tiny().model.kwargs}, r"second head .*model\.kwargs\.distilled=True"),
        ({"distillation__teacher_model": "vit_tinny"}, "unknown model 'vit_tinny'"),
        ({"distillation__teacher_kwargs": {"width": 3}}, r"teacher_kwargs\.width: .* embed_dim"),
        ({"distillation__teacher_kwargs": {"num_classes": 7}}, r"logits \(7,\).* 10 classes"),
        ({"distillation__teacher_kwargs": {"img_size": 16}}, "does not take the model's images"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_teacher_that_does_not_fit(teacher_file, changes, message):
    config = taught(teacher_file)
    for path, value in changes.items():
        group, name = path.split("__")
        if name == "teacher_kwargs":
            value = TEACHER_FIELDS | value
        setattr(getattr(config, group), name, value)
    with pytest.raises(ValueError, match=message):
        teacher_of(config)


def test_the_teachers_file_states_its_model(teacher_file, tmp_path):
    config = taught(teacher_file)
    config.distillation.teacher_model, config.distillation.teacher_kwargs = "", {}
    assert teacher_of(config).name == TEACHER
    bare = tmp_path / "bare.safetensors"
    save_file(load_file(teacher_file), bare)
    config.distillation.teacher = str(bare)
    with pytest.raises(ValueError, match=r"teacher_model: wanted .*bare.* do not state it"):
        teacher_of(config)


def test_no_teacher_there(teacher_file, tmp_path):
    config = taught(teacher_file)
    config.distillation.teacher = "nowhere.safetensors"
    with pytest.raises(ValueError, match=r"config\.distillation\.teacher: there is no 'nowhere"):
        train(config, tmp_path)


def test_the_plan_reads_no_teacher(teacher_file):
    config = taught(teacher_file, mix={})
    config.distillation.teacher = "nowhere.safetensors"
    compiled = compile_step(config, jax.devices()[:1])
    assert compiled.is_compiled
    plain = compile_step(taught(teacher_file, mix={}, distillation={}), jax.devices()[:1])
    assert compiled.step_flops > plain.step_flops
