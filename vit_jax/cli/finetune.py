"""`vit-jax finetune`: a classifier of one's own images, in one command.

It looks at the folder, chooses a recipe, writes it into the work directory, and trains it as
`vit-jax train` does. What is special here is only before and after.
"""

import dataclasses
import os
import pathlib
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vit_jax.cli import jax_setup
from vit_jax.cli.data import add_labels, asked_kind, check, label_table, relative
from vit_jax.cli.evaluate import report_of
from vit_jax.cli.parsing import Parser, fields_of_model, print_notes, printable
from vit_jax.cli.train import train_and_draw
from vit_jax.config.overrides import override
from vit_jax.config.recipe_by_size import Labels, Start, choose_recipe, choose_splits
from vit_jax.config.recipe_file import recipe_file
from vit_jax.config.recipes import load_recipe
from vit_jax.config.schema import TrainConfig
from vit_jax.config.validate import validate

if TYPE_CHECKING:
    import argparse

    from vit_jax.data.folder_check import CheckedFolder
    from vit_jax.data.sources import ImageSource

RECIPE_FILE = "recipe.py"
_CHOSEN = (
    "it was chosen by these images: on new ones expect somewhat less",
    "it was chosen by these images: of new ones expect somewhat fewer to be right",
)
_NAMED = 3  # damaged images that an error names


def run(arguments: Sequence[str]) -> int:
    """`finetune FOLDER [--from SOURCE] [--model NAME] [--workdir DIR] [--config.FIELD=VALUE]`."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    known = [name for action in parser._actions for name in action.option_strings]
    folder = os.path.normpath(options.folder)
    name = pathlib.Path(folder).resolve().name or "images"
    workdir = _work_directory(options.workdir or f"runs/{name}")
    recipe = workdir / RECIPE_FILE
    edited = load_recipe(recipe) if recipe.exists() else None
    # Before the config is made, for which JAX is used.
    asked = edited is not None and edited.training.deterministic
    asked |= any(option.startswith("--config.training.deterministic") for option in rest)
    jax_setup.set_up_jax(deterministic=asked)
    is_new = edited is None
    if edited is None:
        chosen, lines = _look_and_choose(folder, options)
    else:
        chosen = edited
        validate(chosen)
        _check_same(recipe, chosen, folder, options)
        lines = [f"{recipe} is there and used; without it the folder is looked at anew"]
    config, notes = override(chosen, rest, fields_of_model, known)
    _check_complete(config)
    if is_new:
        lines.append(_summary(config))
        _write(recipe, config, shlex.join(["vit-jax", "finetune", *arguments]), lines)
        lines.append(f"wrote the recipe to {recipe}")
    for line in lines:
        _say(line)
    print_notes(notes)
    train_and_draw(config, str(workdir))
    _tell_result(config, workdir)
    return 0


def _say(text: str) -> None:
    print(printable(text), flush=True)


def _work_directory(workdir: str) -> pathlib.Path:
    from vit_jax.storage import is_remote, run_path

    if is_remote(workdir):
        raise ValueError(
            f"--workdir {workdir}: wanted a directory; on object storage train with `vit-jax train "
            f"--config {RECIPE_FILE}`, the recipe that this command writes"
        )
    return run_path(workdir)


def _check_same(
    recipe: pathlib.Path, config: TrainConfig, folder: str, options: "argparse.Namespace"
) -> None:
    """Refuses to go on with the recipe of another folder, or another start."""
    given = {
        "data.data_dir": (config.data.data_dir, folder),
        "data.labels_file": (config.data.labels_file, options.labels),
        "objective": (config.loss.target, options.objective),
        "init_from": (config.init_from, options.source),
        "model.name": (config.model.name, options.model),
    }
    for field, (own, wanted) in given.items():
        if wanted is not None and wanted != own:
            raise ValueError(
                f"{recipe} has {field}={own!r}, and {wanted!r} was given: give another --workdir"
            )


def _check_complete(config: TrainConfig) -> None:
    if not config.data.validation_split or not config.checkpoint.keep_best:
        raise ValueError(
            "config.data.validation_split and config.checkpoint.keep_best: finetune evaluates the "
            "checkpoint of the best validation and needs both; `vit-jax train` needs neither"
        )
    if config.data.mean is None:
        raise ValueError(
            f"nothing states the mean and standard deviation that {config.init_from or 'a model'} "
            "takes its images with: wanted --config.data.mean and --config.data.std, three numbers "
            "each, such as (0.5,0.5,0.5)"
        )


def _look_and_choose(folder: str, options: "argparse.Namespace") -> tuple[TrainConfig, list[str]]:
    """The config for a folder, and what is to be said of it."""
    if options.source is None and options.model is None:
        raise ValueError(
            "wanted --from SOURCE, trained weights to start from (a file, a folder, a run, "
            "hf:OWNER/NAME), or --model NAME to train that model from scratch, for which few "
            "images are too few"
        )
    from vit_jax.data.folder import open_folder
    from vit_jax.data.splits import select

    start = _start(options.source, options.model)
    kind = asked_kind(options)
    checked = check(folder, options.labels, kind)
    exclude = _skipped(checked, folder, options.skip_damaged)
    available, left_out = checked.splits, checked.left_out
    if exclude:
        available, left_out = open_folder(folder, exclude, options.labels, kind)
    splits = choose_splits({name: len(part) for name, part in available.items()})
    named = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    used = {name: select(available, split) for name, split in named.items() if split}
    of_labels = _labels(used["train"], kind, options.labels)
    where = f"{folder}, labels {options.labels} ({kind})" if options.labels else folder
    lines = [
        f"{where}: {', '.join(f'{name} on {split}' for name, split in named.items() if split)}",
        *label_table(used),
        *(f"left out: {phrase}" for phrase in left_out),
    ]
    if wrong := checked.across_classes():
        lines.append(
            f"warning: equal images in several classes: {len(wrong):,}, the first "
            f"{' = '.join(relative(path, folder) for path in wrong[0])}"
        )
    return choose_recipe(folder, splits, of_labels, start, exclude), lines


def _labels(train: "ImageSource", kind: str, file: str | None) -> Labels:
    """What the labels of the training split are; ValueError where they are all the same."""
    from vit_jax.data.folder import labels_of

    if kind == "classification" and len(train.class_names) < 2:
        raise ValueError(
            f"{train.name} has the class {', '.join(train.class_names)} alone: wanted two or more"
        )
    if kind != "regression":
        return Labels(len(train.class_names), kind, file or "")
    numbers = labels_of(train).reshape(len(train), -1).astype(float)
    spread = numbers.std(axis=0)
    if (numbers == numbers[0]).all(axis=0).any():  # the deviation may be a rounding
        raise ValueError(f"{file}: a number is the same for all images of {train.name}")
    mean, std = (tuple(float(f"{x:.6g}") for x in each) for each in (numbers.mean(axis=0), spread))
    return Labels(len(mean), kind, file or "", mean, std)


def _summary(config: TrainConfig) -> str:
    kwargs = config.model.kwargs
    size = _by(config.data.image_size or kwargs["img_size"])
    return (
        f"{config.model.name} from {config.init_from or 'scratch'}, images of {size} pixels, "
        f"{_outputs(config)}; "
        f"{config.num_epochs} epochs in batches of {config.data.batch_size}, learning rate "
        f"{config.optimizer.learning_rate}"
    )


def _outputs(config: TrainConfig) -> str:
    words = {"multilabel": ("label", "labels"), "regression": ("number", "numbers")}
    count = config.model.kwargs["num_classes"]
    return f"{count} {words.get(config.loss.target, ('class', 'classes'))[count != 1]}"


def _write(recipe: pathlib.Path, config: TrainConfig, command: str, lines: list[str]) -> None:
    from vit_jax.storage import write_bytes
    from vit_jax.training.workdir import writing

    about = [
        f"Written by `{command}`.",
        "",
        f"Edit it, and train it with `vit-jax train --config {recipe} --workdir ANOTHER`.",
        "",
        *lines,
    ]
    with writing(recipe, "the folder is looked at anew"):
        recipe.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(recipe, recipe_file(config, "\n".join(map(printable, about))).encode())


def _skipped(checked: "CheckedFolder", folder: str, skip: bool) -> tuple[str, ...]:
    """The damaged images, from the folder, if they are to be skipped."""
    damaged = tuple(relative(file.path, folder) for file in checked.damaged)
    if not damaged:
        return ()
    count = f"{len(damaged):,} of {len(checked.files):,} images of {folder} are damaged"
    if not skip:
        named = ", ".join(damaged[:_NAMED]) + ", ..." * (len(damaged) > _NAMED)
        raise ValueError(
            f"{count} ({named}): --skip-damaged leaves them out; `vit-jax data check "
            f"{shlex.quote(folder)}` says what is wrong with each"
        )
    _say(f"{count} and left out:")
    for path in damaged:
        _say(f"  {path}")
    return damaged


def _start(source: str | None, name: str | None) -> Start:
    """What the weights state, or a registered name.

    Raises:
      ValueError: see `vit_jax.from_pretrained`; images of other channels than three.
    """
    from vit_jax.models.registry import abstract_model, design_of, model_fields
    from vit_jax.weights.load import load_with_notes

    if source is None:
        assert name is not None
        model = abstract_model(name)
    else:
        model, _ = load_with_notes(source, name=name)
    if model.in_chans != 3:
        raise ValueError(
            f"{source or name} takes images of {model.in_chans} channels, and those of a folder "
            "have 3: wanted weights of a model of colour images"
        )
    spec = model.spec
    own, design = model_fields(spec.name), design_of(spec.name)
    fields = {
        field: value
        for field, value in spec.fields
        if field in design.named_by
        or (
            value != own.get(field)
            and field != "num_classes"
            and not design.config_class.is_free(field)
        )
    }
    start = Start(spec.name, fields, source or "")
    if (stated := spec.preprocessing) is None:
        return start
    size = stated.size
    return dataclasses.replace(
        start,
        mean=stated.mean,
        std=stated.std,
        crop_fraction=stated.crop_fraction,
        interpolation=stated.interpolation,
        image_size=size[0] if size and size != model.img_size and size[0] == size[1] else None,
    )


def _by(size: int | tuple[int, ...]) -> str:
    sides = size if isinstance(size, tuple) else (size, size)
    return "x".join(str(side) for side in reversed(sides))


def _tell_result(config: TrainConfig, workdir: pathlib.Path) -> None:
    """Evaluates the best checkpoint, draws its confusion matrix, and says what to do next."""
    from vit_jax.inference.evaluate import evaluate
    from vit_jax.inference.labelled import open_labelled
    from vit_jax.training.workdir import writing
    from vit_jax.watching import watched
    from vit_jax.weights.load import from_pretrained
    from vit_jax.weights.run_folder import BEST, named_checkpoint

    jax_setup.set_matmul_precision(config.matmul_precision)
    best = f"{workdir}{BEST}"
    labelled = open_labelled(workdir)
    found = evaluate(
        from_pretrained(best), labelled.source, labelled.batch_size, labelled.num_workers, watched
    )
    report = report_of(found)
    plots = workdir / "plots"
    with writing(plots, "the run is finished, and its best checkpoint is evaluated"):
        plots.mkdir(exist_ok=True)
        report.draw(found, plots / report.picture)
    step = pathlib.Path(named_checkpoint(best)).name
    lines = [
        "",
        f"the best checkpoint, of step {step}: {report.headline(found)}",
    ]
    if not config.data.test_split:
        lines.append(_CHOSEN[config.loss.target == "classification"])
    curves = "error.png" if config.loss.target == "regression" else "accuracy.png"
    lines += [
        "",
        *report.as_text(found),
        "",
        f"results: {plots / report.picture}, {curves} and loss.png; "
        f"{workdir / RECIPE_FILE}, to edit",
        f"next: vit-jax predict {shlex.quote(best)} PHOTO.jpg",
    ]
    for line in lines:
        _say(line)


def _parser() -> Parser:
    parser = Parser(
        prog="vit-jax finetune",
        description="Makes a classifier of a folder of images: finds or cuts the splits, chooses a "
        "recipe by their number, trains it, and evaluates the best checkpoint. The same command "
        "resumes.",
        usage="%(prog)s FOLDER [--from SOURCE] [--model NAME] [--labels FILE.csv] [--workdir DIR] "
        "[--skip-damaged] "
        "[--config.FIELD=VALUE ...]",
        allow_abbrev=False,
        epilog="--config.FIELD=VALUE changes the recipe's fields: see `vit-jax train --help`.",
    )
    parser.add_argument(
        "folder", metavar="FOLDER", help="FOLDER/CLASS/*.jpg, or FOLDER/{train,val,test}/CLASS"
    )
    parser.add_argument(
        "--from",
        dest="source",
        metavar="SOURCE",
        help="the weights to start from: a file or folder, a work directory, or hf:OWNER/NAME",
    )
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="the registered model of the weights, if they do not say it; without --from it is "
        "trained from scratch",
    )
    add_labels(parser)
    parser.add_argument(
        "--workdir", metavar="DIR", help="takes recipe and results (default: runs/FOLDER)"
    )
    parser.add_argument(
        "--skip-damaged", action="store_true", help="train without the images that are damaged"
    )
    return parser
