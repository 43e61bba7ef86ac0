"""The command line of training, up to the config it gives."""

import pytest

from tests.config.conftest import RECIPE, model_fields
from vit_jax.config import load_recipe
from vit_jax.config.overrides import fields_help, literal, read_recipe
from vit_jax.config.validate import fields_of


def parse(*arguments: str):
    """`--config=RECIPE` first, and its overrides."""
    recipe = arguments[0].removeprefix("--config=") if arguments else None
    return read_recipe(recipe, arguments[1:], model_fields, ("--workdir", "--fast"))


def test_without_overrides_it_is_the_recipe(recipe):
    command = parse(f"--config={recipe}")
    assert command.config == load_recipe(recipe)
    assert command.name == "small"
    assert command.notes == ()
    assert type(command.config.model.kwargs) is dict


def test_fields_of_every_type(recipe):
    config = parse(
        f"--config={recipe}",
        "--config.seed=3",
        "--config.optimizer.learning_rate=1",
        "--config.data.horizontal_flip",
        "--noconfig.log.tensorboard",
        "--config.data.data_dir=here",
        "--config.data.num_train_examples",
        "50",
        "--config.data.mean=(1,2.5)",
        "--config.data.std=.5,2",
        "--config.optimizer.schedule=cosine",
        "--config.optimizer.frozen=head, blocks.0",
        "--config.init_from=007",
    ).config
    assert config.seed == 3
    assert config.optimizer.learning_rate == 1.0
    assert config.data.horizontal_flip
    assert not config.log.tensorboard
    assert config.data.data_dir == "here"
    assert config.data.num_train_examples == 50
    assert config.data.mean == (1, 2.5)
    assert config.data.std == (0.5, 2)
    assert config.optimizer.schedule == "cosine"
    assert config.optimizer.frozen == ("head", "blocks.0")
    assert config.init_from == "007"


@pytest.mark.parametrize(
    ("text", "value"),
    [("backbone", ("backbone",)), ("('a','b.*')", ("a", "b.*")), ("['a']", ("a",)), ("None", None)],
)
def test_tuples_of_strings(recipe, text, value):
    config = parse(f"--config={recipe}", f"--config.optimizer.frozen={text}").config
    assert config.optimizer.frozen == value


@pytest.mark.parametrize("dashes", [3_000, 9_000])  # RecursionError and MemoryError of Python 3.11
def test_what_python_cannot_read_is_text(dashes):
    assert literal("-" * dashes + "1") == "-" * dashes + "1"


def test_optionals_go_back_to_none_and_the_last_one_counts(recipe):
    config = parse(
        f"--config={recipe}",
        "--config.data.num_train_examples=None",
        "--config.data.mean=None",
        "--config.data.std=none",
        "--config.optimizer.gradient_clip_norm=None",
        "--config.data.image_size=8",
        "--config.data.image_size=None",
        "--config.data.data_dir=None",
        "--config.data.data_dir=x",
    ).config
    data = config.data
    assert (data.num_train_examples, data.mean, data.std, data.image_size) == (None,) * 4
    assert config.optimizer.gradient_clip_norm is None
    assert data.data_dir == "x"


def test_model_fields_that_the_recipe_leaves_alone(recipe):
    kwargs = parse(
        f"--config={recipe}",
        "--config.model.kwargs.img_size=(64,96)",
        "--config.model.kwargs.head_units=[1,2]",
        "--config.model.kwargs.init_values=None",
        "--config.model.kwargs.qk_scale=1e-3",
        "--config.model.kwargs.global_pool=avg",
        "--config.model.kwargs.qkv_bias=false",
        "--config.model.kwargs.remat=none",
        "--config.model.kwargs.scan_layers",
        "--noconfig.model.kwargs.class_token",
        "--config.seed=0x10",
    ).config.model.kwargs
    assert kwargs == {
        "depth": 2,
        "num_classes": 10,
        "img_size": (64, 96),
        "head_units": (1, 2),
        "init_values": None,
        "qk_scale": 1e-3,
        "global_pool": "avg",
        "qkv_bias": False,
        "remat": "none",
        "scan_layers": True,
        "class_token": False,
    }


def test_a_model_field_of_the_recipe_is_overridden(recipe):
    assert parse(f"--config={recipe}", "--config.model.kwargs.depth=5").config.model.kwargs == {
        "depth": 5,
        "num_classes": 10,
    }


def test_another_model_with_its_own_fields_keeps_what_tells_of_the_data(recipe):
    command = parse(
        f"--config={recipe}", "--config.model.kwargs.width=7", "--config.model.name=vit_b"
    )
    assert command.config.model.name == "vit_b"
    assert command.config.model.kwargs == {"num_classes": 10, "width": 7}
    assert command.notes == (
        "model.name is no longer vit_a: the recipe's model.kwargs depth are dropped",
    )


def test_one_parse_leaves_nothing_to_the_next(recipe):
    parse(f"--config={recipe}", "--config.model.kwargs.qkv_bias=false", "--config.seed=9")
    assert parse(f"--config={recipe}").config == load_recipe(recipe)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), r"wanted --config RECIPE; recipes: .*digits_vit"),
        (("--config=RECIPE", "--workdr=x"), "--workdr: no such option; did you mean --workdir"),
        (("--config=RECIPE", "stray"), "unexpected argument 'stray'"),
        (("--config=RECIPE", "--config.seed"), "--config.seed: wanted a value"),
        (("--config=RECIPE", "--config.seed=x"), r"config\.seed: wanted an integer .* got 'x'"),
        (("--config=RECIPE", "--config.seed=None"), r"config\.seed: wanted an integer"),
        (("--config=RECIPE", "--config.seed=-1"), r"config\.seed: wanted an integer >= 0"),
        (("--config=RECIPE", "--config.optimizer.eps=x"), "eps: wanted a number > 0, got 'x'"),
        (("--config=RECIPE", "--config.log.tensorboard=3"), "wanted true or false, got '3'"),
        (("--config=RECIPE", "--config.data.image_size=x"), "an integer >= 1, or None, got 'x'"),
        (("--config=RECIPE", "--config.data.mean=(1"), "mean: wanted a tuple of numbers, or None"),
        (("--config=RECIPE", "--config.data.mean=x"), "mean: wanted a tuple of numbers, or None"),
        (("--config=RECIPE", "--config.data.mean=3"), "mean: wanted a tuple of numbers, or None"),
        (("--config=RECIPE", "--config.optimizer.frozen=('a'"), "a tuple of strings, or None"),
        (("--config=RECIPE", "--config.optimizer.frozen="), "a tuple of strings, or None"),
        (("--config=RECIPE", "--config.batch_size=3"), "no such field; did you mean data.batch_s"),
        (("--config=RECIPE", "--config.optimiser.lr=3"), "did you mean optimizer.learning_rate"),
        (("--config=RECIPE", "--config.wd=3"), "did you mean optimizer.weight_decay"),
        (("--config=RECIPE", "--config.data.batchsize=3"), "did you mean data.batch_size"),
        (("--config=RECIPE", "--config.zzz=3"), r"--config\.zzz: no such field$"),
        (("--config=RECIPE", "--noconfig.zzz"), r"--config\.zzz: no such field$"),
        (("--config=RECIPE", "--config.data=3"), r"wanted one of them: --config\.data\.FIELD"),
        (("--config=RECIPE", "--config.model.kwargs={}"), r"model\.kwargs: a group of fields"),
        (("--config=RECIPE", "--config.model.kwargs.a.b=1"), "no such field"),
        (("--config=RECIPE", "--config.model.kwargs.dept=1"), "vit_a has no such field; did you"),
        (("--config=RECIPE", "--config.model.name=vit_z"), "unknown model 'vit_z'"),
        (("--config=RECIPE", "--noconfig.seed"), "--noconfig.seed: wanted --config.seed=VALUE"),
        (("--config=RECIPE", "--config.seed", "--config.x=1"), "--config.seed: wanted a value"),
        (("--config=RECIPE:14",), r"small.py:14: its get_config\(\) takes no argument, got '14'"),
        (("--config=RECIPE", "--config.data.mean={[1]:2}"), "mean: wanted a tuple of numbers"),
    ],
)
def test_a_mistake_is_one_value_error(recipe, arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        parse(*(argument.replace("RECIPE", recipe) for argument in arguments))
    assert "\n" not in str(error.value)


def test_a_recipe_that_is_not_valid_is_refused_before_flags_are(tmp_path):
    path = tmp_path / "wrong.py"
    path.write_text(RECIPE.replace("num_epochs=2", "num_epochs=0"))
    with pytest.raises(ValueError, match=r"config\.num_epochs: wanted an integer >= 1, got 0"):
        parse(f"--config={path}", "--config.num_epochs=1")


def test_model_code_is_asked_for_last(recipe):
    def no_models(name: str) -> dict[str, object]:
        raise AssertionError(name)

    with pytest.raises(ValueError, match="batch_size"):
        read_recipe(recipe, ["--config.data.batch_size=0"], no_models)


def test_help_names_every_field():
    text = fields_help()
    assert all(f"--config.{info.path}\n" in text for info in fields_of())
    assert max(map(len, text.splitlines())) <= 100
