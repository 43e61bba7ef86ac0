"""Finding and loading recipes; the recipes that come along."""

import pathlib
import sys

import pytest

from tests.config.conftest import RECIPE
from vit_jax.config import (
    TrainConfig,
    find_recipe,
    load_recipe,
    recipe_names,
    recipes,
    validate,
)
from vit_jax.config.recipes import recipe_name
from vit_jax.models.registry import model_fields
from vit_jax.training.run import model_to_train

ROOT = pathlib.Path(__file__).parents[2]


def test_recipes_come_along():
    assert {"digits_vit", "cifar10_vit", "cifar100_vit", "imagenet_vit_s16"} <= set(recipe_names())


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "configs").glob("*.py")))
def test_a_recipe_is_valid_and_says_how_it_went(name):
    path = find_recipe(name)
    config = load_recipe(path)
    validate(config)
    model_to_train(config)
    text = path.read_text().split('"""')[1]
    assert f"python train.py --config configs/{name}.py" in text
    assert recipe_name(path) == name
    assert "Hardware, time and" in text


def test_cifar100_is_seed_003s_to_the_letter():
    config = load_recipe(find_recipe("cifar100_vit"))
    kwargs = model_fields("vit_classifier") | config.model.kwargs
    assert config.num_epochs == 100
    assert config.data.batch_size == 32
    assert config.data.image_size == 72
    assert config.data.rotation_degrees == 7
    assert config.data.horizontal_flip
    optimizer = config.optimizer
    assert (optimizer.learning_rate, optimizer.weight_decay) == (1e-3, 1e-4)
    assert (optimizer.schedule, optimizer.decay_mask) == ("constant", "all")
    assert optimizer.warmup_epochs == 0
    assert optimizer.gradient_clip_norm is None
    assert (optimizer.beta1, optimizer.beta2, optimizer.eps) == (0.9, 0.999, 1e-8)
    assert config.loss.label_smoothing == 0
    wanted = {
        "img_size": 72,
        "patch_size": 6,
        "embed_dim": 64,
        "num_heads": 4,
        "depth": 8,
        "mlp_dim": 128,
        "mlp_head_units": (2048, 1024),
        "drop_rate": 0.1,
        "attn_drop_rate": 0.0,
        "head_drop_rate": 0.5,
        "num_classes": 100,
        "class_token_batch": 1,
    }
    assert {name: kwargs[name] for name in wanted} == wanted


@pytest.mark.parametrize(
    ("name", "learning_rate", "weight_decay"),
    [
        ("t2t_vit_7", 1e-3, 0.03),
        ("t2t_vit_14", 5e-4, 0.05),
        ("t2t_vit_t_14", 5e-4, 0.05),
        ("t2t_vit_19", 5e-4, 0.065),
        ("t2t_vit_24", 5e-4, 0.065),
    ],
)
def test_imagenet_t2t_has_the_numbers_of_the_release(name, learning_rate, weight_decay):
    path = find_recipe(f"imagenet_{name}")
    assert path == find_recipe(f"imagenet_t2t_vit:{name.removeprefix('t2t_vit_')}")
    assert recipe_name(path) == f"imagenet_{name}"
    config = load_recipe(path)
    validate(config)
    model_to_train(config)
    optimizer = config.optimizer
    assert config.model.name == name
    assert config.model.kwargs["drop_path_rate"] == 0.1
    assert (optimizer.learning_rate, optimizer.weight_decay) == (learning_rate, weight_decay)
    data = config.data
    assert (config.num_epochs, optimizer.cooldown_epochs, data.batch_size) == (310, 10, 512)
    assert (optimizer.schedule, optimizer.schedule_unit) == ("cosine", "epoch")
    assert optimizer.warmup_epochs == 10
    assert (optimizer.warmup_learning_rate, optimizer.min_learning_rate) == (1e-6, 1e-5)
    assert (optimizer.beta1, optimizer.beta2, optimizer.eps) == (0.9, 0.999, 1e-8)
    assert optimizer.decay_mask == "matrices"
    assert optimizer.gradient_clip_norm is None
    assert config.loss.label_smoothing == 0.1
    assert (data.rand_augment, data.interpolation) == ("rand-m9-mstd0.5-inc1", "random")
    assert (data.random_erasing, data.random_erasing_mode) == (0.25, "pixel")
    assert data.random_resized_crop
    assert (data.crop_scale, data.eval_interpolation) == ((0.08, 1.0), "bicubic")
    mix = config.mix
    assert (mix.mixup_alpha, mix.cutmix_alpha) == (0.8, 1.0)
    assert (mix.probability, mix.switch_probability) == (1.0, 0.5)
    assert (config.ema.decay, config.ema.warmup) == (0.99996, False)


def test_arguments_of_recipes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = ROOT / "configs" / "imagenet_t2t_vit.py"
    for name in ("imagenet_t2t_vit:t_14", "configs/imagenet_t2t_vit.py:t_14", f"{file}:t_14"):
        assert load_recipe(find_recipe(name)).model.name == "t2t_vit_t_14", name
    assert load_recipe(find_recipe("imagenet_t2t_vit")).model.name == "t2t_vit_14"
    moved = file.with_name("imagenet_t2t_vit_19.py")  # a file of earlier versions, by its path
    assert load_recipe(find_recipe(str(moved))).model.name == "t2t_vit_19"
    own = tmp_path / "a:b.py"
    own.write_text(RECIPE.replace("get_config()", "get_config(*what)"))
    assert load_recipe(find_recipe(f"{own}:x/y:z")).num_epochs == 2
    assert recipe_name(f"{own}:x/y:z") == "a:b_x_y:z"
    with pytest.raises(ValueError, match=r"wanted a size of 7, .*, got '13'"):
        load_recipe(find_recipe("imagenet_t2t_vit:13"))
    with pytest.raises(ValueError, match="no recipe of that name"):
        find_recipe("digits_vit_13")  # it takes none


def test_a_recipe_imports_modules_of_its_folder_and_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path / "beside_it.py").write_text("from vit_jax.config import TrainConfig\nEPOCHS = 7\n")
    path = tmp_path / "own.py"
    text = "from beside_it import EPOCHS\n" + RECIPE.replace("num_epochs=2", "num_epochs=EPOCHS")
    path.write_text(text)
    other = tmp_path / ".venv" / "installed_there.py"
    other.parent.mkdir()
    other.touch()
    monkeypatch.syspath_prepend(other.parent)
    path.write_text("import installed_there\n" + text)
    before, searched = set(sys.modules), list(sys.path)
    assert load_recipe(path).num_epochs == 7
    assert set(sys.modules) - before == {"installed_there"}
    assert sys.path == searched
    assert sorted(found.name for found in tmp_path.glob("*")) == [".venv", "beside_it.py", "own.py"]


def test_cifar10_differs_from_cifar100_only_in_the_set():
    config, other = (load_recipe(find_recipe(name)) for name in ("cifar10_vit", "cifar100_vit"))
    assert (config.data.name, config.model.kwargs["num_classes"]) == ("cifar10", 10)
    config.data.name = other.data.name
    config.model.kwargs["num_classes"] = 100
    assert config == other


def test_names_and_paths_resolve_and_an_existing_file_goes_first(tmp_path, monkeypatch):
    built_in = ROOT / "configs" / "digits_vit.py"
    monkeypatch.chdir(tmp_path)
    for name in ("digits_vit", "digits_vit.py", "configs/digits_vit.py", "configs/digits_vit"):
        assert find_recipe(name).samefile(built_in)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "digits_vit.py").touch()
    assert find_recipe("configs/digits_vit.py") == pathlib.Path("configs/digits_vit.py")


@pytest.mark.parametrize(
    "name", ["digits_vti", "other/digits_vit.py", "/nowhere/digits_vit.py", ""]
)
def test_no_such_recipe(name):
    with pytest.raises(ValueError, match=r"recipes that come along: .*digits_vit"):
        find_recipe(name)


def test_a_wheel_carries_the_recipes_inside_the_package(tmp_path, monkeypatch):
    (tmp_path / "vit_jax" / "config").mkdir(parents=True)
    (tmp_path / "vit_jax" / "configs").mkdir()
    (tmp_path / "vit_jax" / "configs" / "one.py").touch()
    monkeypatch.setattr(recipes, "__file__", str(tmp_path / "vit_jax" / "config" / "recipes.py"))
    assert recipe_names() == ["one"]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("x = 1\n", "has no function get_config"),
        ("x = 1\n1 / 0\n", r"small\.py, line 2: ZeroDivisionError: division by zero"),
        ("def get_config(:\n", "SyntaxError"),
        ("import no_such_module\n", "line 1: ModuleNotFoundError"),
        ("def get_config():\n    return undefined\n", "line 2: NameError"),
        ("def get_config():\n    return {}\n", "wanted a vit_jax.config.TrainConfig .* got dict"),
        ("def get_config(size):\n    return {}\n", r"get_config\(\) wants an argument"),
        ("get_config = 3\n", "has no function get_config"),
        ("import sys\nsys.exit()\n", "line 2: SystemExit"),
        ("def get_config():\n    exit(0)\n", "line 2: SystemExit: 0"),
        ("class Stop(BaseException): pass\nraise Stop\n", "line 2: Stop"),
    ],
)
def test_a_recipe_that_fails_says_where(tmp_path, code, message):
    path = tmp_path / "small.py"
    path.write_text(code)
    with pytest.raises(ValueError, match=message) as error:
        load_recipe(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_loading_leaves_nothing_behind(recipe):
    assert isinstance(load_recipe(recipe), TrainConfig)
    assert [path.name for path in pathlib.Path(recipe).parent.iterdir()] == ["small.py"]
