"""config.json there and back, and what a resume may change."""

import copy
import json

import pytest

from vit_jax.config import (
    RESUMABLE_FIELDS,
    check_resumable,
    diff,
    from_dict,
    load_config,
    to_dict,
)
from vit_jax.config.serialize import to_json
from vit_jax.config.validate import fields_of


def test_json_round_trip_gives_the_same_config(config, tmp_path):
    config.data.mean, config.data.std = (0.1, 0.2), (0.3, 0.4)
    for text in (to_json(config), json.dumps(to_dict(config))):  # the latter of 0.1.0
        (tmp_path / "config.json").write_text(text)
        assert load_config(tmp_path / "config.json") == config
    assert config.model.kwargs["img_size"] == (64, 96)


def test_a_field_that_an_older_file_lacks_takes_its_default(config):
    values = to_dict(config)
    del values["mesh"], values["optimizer"]["beta2"]
    assert from_dict(values) == config


def test_a_field_that_is_no_more_may_stand_empty_in_an_older_file(config):
    assert from_dict({**to_dict(config), "unbuilt": ""}) == config
    with pytest.raises(ValueError, match=r"config\.unbuilt is not a field"):
        from_dict({**to_dict(config), "unbuilt": "mixup"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v["data"].update(batchsize=3), r"config\.data\.batchsize is not a field; did"),
        (lambda v: v["data"].pop("batch_size"), r"config\.data\.batch_size is missing"),
        (lambda v: v.update(data=3), r"config\.data: wanted a group of fields, got 3"),
        (lambda v: v.update(seed=-1), r"config\.seed: wanted an integer"),
    ],
)
def test_a_dict_that_is_no_config(config, change, message):
    values = to_dict(config)
    change(values)
    with pytest.raises(ValueError, match=message):
        from_dict(values)


@pytest.mark.parametrize(
    "text",
    [
        '{"seed": ',
        "[1]",
        "{}",
        "[" * 100_000,
        "\xff",
        '{"spec_version": 4}',
        '{"spec_version": "1"}',
    ],
    ids=range(7),
)
def test_a_file_that_is_no_config_is_named(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_text(text, encoding="latin1")
    with pytest.raises(ValueError, match=r"config\.json is not the config of a run"):
        load_config(path)


def test_diff_names_changed_fields_with_both_values(config):
    other = copy.deepcopy(config)
    assert diff(config, other) == {}
    other.seed = 7
    other.data.data_dir = "elsewhere"
    other.model.kwargs = {"depth": 2, "qkv_bias": False}
    assert diff(config, other) == {
        "seed": (0, 7),
        "model.kwargs.img_size": ((64, 96), "unset"),
        "model.kwargs.qkv_bias": ("unset", False),
        "data.data_dir": (None, "elsewhere"),
    }


def test_a_config_that_went_through_json_does_not_differ(config):
    assert diff(config, from_dict(json.loads(json.dumps(to_dict(config))))) == {}


def test_resume_allows_what_cannot_change_numbers(config):
    other = copy.deepcopy(config)
    other.mesh.fsdp = 2
    other.checkpoint.every_steps = 7
    other.data.num_workers, other.data.worker_kind = 5, "process"
    other.log.every_steps = 3
    other.parallel = "pmap"
    other.training.steps_per_dispatch, other.data.on_device = 16, True
    check_resumable(config, other)
    other.training.deterministic = True  # on GPUs it decides the bits: see `check_config`
    check_resumable(config, other, may_differ=("training.deterministic",))
    with pytest.raises(ValueError, match=r"training\.deterministic \(was False, now True\)"):
        check_resumable(config, other)


def test_resume_refuses_and_names_every_other_change(config):
    other = copy.deepcopy(config)
    other.mesh.fsdp = 2
    other.seed = 1
    other.optimizer.learning_rate = 0.5
    other.data.data_dir = "elsewhere"
    other.matmul_precision, other.attention = "highest", "plain"
    with pytest.raises(ValueError, match="another config") as error:
        check_resumable(config, other)
    assert "seed (was 0, now 1)" in str(error.value)
    assert "optimizer.learning_rate (was 0.001, now 0.5)" in str(error.value)
    assert "data.data_dir (was None, now 'elsewhere')" in str(error.value)
    assert "matmul_precision (was None, now 'highest')" in str(error.value)
    assert "attention (was 'auto', now 'plain')" in str(error.value)
    assert "mesh" not in str(error.value)


@pytest.mark.parametrize(
    ("schedule", "epochs", "restarts", "goes_on"),
    [
        ("constant", 5, None, True),
        ("step", 5, None, True),
        ("cosine", 5, (2,), True),
        ("constant", 1, None, False),
        ("cosine", 5, None, False),
        ("cosine", 5, (3,), False),
        ("linear", 5, (1, 2), False),
    ],
)
def test_more_epochs_where_the_learning_rates_before_stay(
    config, schedule, epochs, restarts, goes_on
):
    config.num_epochs, config.optimizer.schedule = 2, schedule
    other = copy.deepcopy(config)
    other.num_epochs, other.optimizer.restarts = epochs, restarts
    if goes_on:
        check_resumable(config, other)
        other.seed = 1
    wanted = r"num_epochs \(was 2, now" if not goes_on else r"differs in seed \(was 0, now 1\): rep"
    with pytest.raises(ValueError, match=wanted) as error:
        check_resumable(config, other)
    advised = "--config.optimizer.restarts=(2,)" in str(error.value)
    assert advised == ("init_from=RUN:best" in str(error.value)) == (not goes_on and epochs > 2)


def test_resumable_fields_exist():
    paths = {info.path for info in fields_of()}
    groups = {path.split(".")[0] for path in paths}
    assert paths | groups >= RESUMABLE_FIELDS
