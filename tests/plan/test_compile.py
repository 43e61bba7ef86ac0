"""The train step compiled: for the CPU at hand, and with libtpu for a slice that is not."""

import importlib.util
import json

import jax
import pytest

from tests.commands import run_alone
from vit_jax.config.recipes import find_recipe, load_recipe
from vit_jax.plan.compile import (
    _needed,
    _text,
    abstract_inputs,
    compile_step,
    planned_run,
    stored_image,
)
from vit_jax.plan.plan import count
from vit_jax.training.run import model_to_train, open_run

_SMALL = {"img_size": 16, "patch_size": 8, "depth": 2, "embed_dim": 16, "num_heads": 2}
_FLAGS = [f"--config.model.kwargs.{name}={value}" for name, value in _SMALL.items()]


def _small():
    config = load_recipe(find_recipe("digits_vit"))
    config.model.kwargs |= _SMALL
    config.data.image_size = 16
    config.data.batch_size = 8
    return config


def test_images_reach_the_device_as_they_are_stored():
    config = load_recipe(find_recipe("cifar100_vit"))
    assert stored_image(config, model_to_train(config)) == (32, 32, 3)
    config = load_recipe(find_recipe("imagenette_t2t_vit_7"))
    assert stored_image(config, model_to_train(config)) == (128, 128, 3)


@pytest.mark.parametrize("crop", [False, True])
def test_a_planned_batch_is_that_of_a_run(crop):
    config = _small()
    config.data.random_resized_crop = crop
    _, planned = abstract_inputs(planned_run(config, jax.devices()[:1]), (8, 8, 1))
    with open_run(config).train_batches(0) as batches:
        batch = next(batches)
    assert {name: (found.shape, found.dtype) for name, found in planned.items()} == {
        name: (found.shape, found.dtype) for name, found in batch.items()
    }


def test_channels_of_the_set_and_the_model_agree():
    config = load_recipe(find_recipe("digits_vit"))
    config.model.kwargs["in_chans"] = 3
    with pytest.raises(ValueError, match=r"1 channels and the model takes 3.*in_chans=1"):
        stored_image(config, model_to_train(config))


@pytest.mark.parametrize(
    ("message", "needed"),
    [
        ("Ran out of memory in memory space hbm. Used 22.5G of 15.75G hbm.", int(22.5 * 2**30)),
        (
            "the total memory required for HLO temporaries (521.71G) exceeds available HBM",
            int(521.71 * 2**30),
        ),
        ("out of something", None),
    ],
)
def test_the_need_is_read_from_what_xla_says(message, needed):
    assert _needed(message) == needed


class _Unprintable:
    """Compiled by libtpu 0.0.52 for v5p, where a gather has gone to the SparseCore."""

    def __init__(self, message):
        self.message = message

    def compile(self, compiler_options):
        assert compiler_options["xla_tpu_offload_gather_to_sparsecore"] == "false"
        return jax.jit(lambda x: x + 1).lower(1.0).compile()

    def as_text(self):
        raise jax.errors.JaxRuntimeError(f"INTERNAL: RET_CHECK failure (x.cc:390) {self.message}")


def test_a_program_that_xla_cannot_print_is_counted_without_its_offload_and_that_is_said():
    fault = _Unprintable("async-update instruction should have 1 operands but sees 15")
    text, remark = _text(fault, fault)
    assert text.startswith("HloModule")
    assert "without offloads to the SparseCore" in remark
    fault = _Unprintable("something else")
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        _text(fault, fault)


def test_a_step_on_one_cpu():
    config = _small()
    config.ema.decay = 0.9
    compiled = compile_step(config, jax.devices()[:1])
    assert compiled.is_compiled
    assert compiled.memory is not None
    # Adam's moments are two of each parameter, and a count.
    assert compiled.inputs.optimizer == pytest.approx(2 * compiled.parameter_bytes, rel=0.01)
    assert compiled.inputs.batch == 8 * (8 * 8 + 4 + 4 + 1)
    assert compiled.inputs.ema == compiled.parameter_bytes
    state = compiled.inputs.parameters + compiled.inputs.optimizer + compiled.inputs.ema
    assert compiled.memory.arguments == pytest.approx(state + compiled.inputs.batch, rel=0.05)
    counts = count(config, compiled)
    assert counts.exchanges == ()
    # All but the gradient of the images: 4 patches of 64 pixels, in 16 dimensions.
    assert counts.model_flops - counts.step_flops == 2 * 8 * 4 * 64 * 16
    assert counts.flops == counts.step_flops


needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
)


@needs_libtpu
def test_a_step_for_four_chips_that_are_not_there(tmp_path):
    """The command as typed. Data-parallel: the gradients move once, and nothing else but sums."""
    done = run_alone(
        *("-m", "vit_jax.cli", "plan", "--config=digits_vit", "--topology=v5e:2x2", *_FLAGS),
        *("--config.data.image_size=16", "--config.accumulation_steps=2", "--json"),
        cwd=tmp_path,
        timeout=600,
    )
    found = json.loads(done.stdout)
    assert found["devices"] == 4
    assert found["fits"] is True
    assert found["counts"]["loops"] == []
    (exchange,) = found["counts"]["exchanges"]
    assert exchange["kind"] == "all-reduce"
    assert 0 <= exchange["bytes"] - found["parameter_bytes"] <= 64
    counts = found["counts"]
    assert counts["flops"] == pytest.approx(counts["step_flops"], rel=1e-3)
    assert 0 < found["needed_bytes"] < 2**30
