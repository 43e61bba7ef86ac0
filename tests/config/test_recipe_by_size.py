"""What is chosen for a folder of images, by its size."""

import dataclasses

import pytest

from vit_jax.config import find_recipe, load_recipe, validate
from vit_jax.config.recipe_by_size import Labels, SplitNames, Start, choose_recipe, choose_splits

START = Start(
    "vit_tiny_patch16_224", {"img_size": 96}, "w.pth", (0.5,) * 3, (0.25,) * 3, 0.9, "bicubic"
)


@pytest.mark.parametrize(
    ("sizes", "wanted"),
    [
        (
            {"all": 60, "train": 42, "validation": 6, "test": 12},
            SplitNames("train", "validation+test", None, 42, 18),
        ),
        ({"all": 3, "train": 2, "validation": 0, "test": 1}, ("train", "test", None, 2, 1)),
        (
            {"all": 500, "train": 350, "validation": 50, "test": 100},
            SplitNames("train", "validation", "test", 350, 50),
        ),
        ({"train": 40, "validation": 9, "test": 8}, ("train", "validation", "test", 40, 9)),
        ({"train": 40, "validation": 9}, ("train", "validation", None, 40, 9)),
        (
            {"train": 41, "test": 8},
            ("shuffled(train)[:80%]", "shuffled(train)[80%:]", "test", 33, 8),
        ),
    ],
)
def test_splits_that_are_there_or_cut(sizes, wanted):
    assert choose_splits(sizes) == wanted


def choose(num_train, start=START):
    config = choose_recipe(
        "photos", SplitNames("train", "val", None, num_train, 18), Labels(3), start
    )
    validate(config)
    return config


def test_more_images_take_fewer_epochs_of_larger_batches():
    chosen = [choose(n) for n in (3, 42, 200, 201, 1_000, 10_000, 50_000)]
    assert [config.num_epochs for config in chosen] == [30, 30, 30, 20, 20, 10, 5]
    assert [config.data.batch_size for config in chosen] == [3, 8, 8, 16, 16, 32, 64]
    rates = [config.optimizer.learning_rate for config in chosen]
    assert rates == sorted(rates)
    assert rates[-1] == 5e-4
    strong = [bool(config.data.rand_augment) for config in chosen]
    assert strong == [False] * 5 + [True] * 2


def test_the_weights_say_how_images_are_prepared():
    config = choose(42)
    data = config.data
    assert (config.init_from, config.init_head, config.init_resize) == ("w.pth", "fresh", "source")
    assert config.model.kwargs == {"img_size": 96, "num_classes": 3}
    assert (data.mean, data.std) == (START.mean, START.std)
    assert (data.eval_crop_fraction, data.eval_interpolation) == (0.9, "bicubic")
    assert data.eval_batch_size == 24  # 18 images are one batch
    assert config.optimizer.layer_decay < 1


def test_from_scratch_takes_longer_and_treats_all_layers_alike():
    scratch = dataclasses.replace(START, init_from="")
    for number in (42, 50_000):
        config, other = choose(number, scratch), choose(number)
        assert config.num_epochs > other.num_epochs
        assert config.optimizer.learning_rate > other.optimizer.learning_rate
        assert config.optimizer.layer_decay == 1
        assert (config.init_from, config.init_head) == ("", "load")


def test_finetune_folder_is_the_choice_for_60_images_by_hand():
    splits = choose_splits({"all": 60, "train": 42, "validation": 6, "test": 12})
    start = dataclasses.replace(
        START,
        name="vit_small_patch16_224",
        fields={"img_size": 224},
        init_from="weights.safetensors",
        std=(0.5,) * 3,
    )
    chosen = choose_recipe("photos", splits, Labels(3), start)
    assert load_recipe(find_recipe("finetune_folder")) == chosen
