"""Steps of our training and of PyTorch's from equal weights on equal batches, in float64.

    python -m tests.parity.equal_steps --data-dir DIR --out FOLDER

takes `configs/cifar10_vit.py` with dropout and augmentation off, prints the largest difference, and
writes `equal_steps.json` (both losses of every step) and `equal_steps.png`. Exit status 1 where a
loss differs by more than LIMIT.
"""

import argparse
import dataclasses
import json
import pathlib
import sys

import jax
import numpy as np
import torch
from flax import nnx

import vit_jax
from tests.reference.classifier_vit import ClassifierViT
from vit_jax.config import TrainConfig
from vit_jax.config.recipes import load_recipe
from vit_jax.data.augment import make_eval_preprocess
from vit_jax.training.run import open_run, statistics_of

# What makes two runs differ by chance, and so is off here.
DETERMINISTIC = {"drop_rate": 0.0, "head_drop_rate": 0.0, "dtype": "float64"}
# Of a loss, between the two sides: see tests/training/test_equal_steps.py.
LIMIT = 1e-9


def without_chance(config: TrainConfig) -> TrainConfig:
    """The run without dropout and augmentation, computed in float64."""
    kwargs = config.model.kwargs | DETERMINISTIC | {"param_dtype": "float64"}
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, kwargs=kwargs),
        data=dataclasses.replace(config.data, rotation_degrees=0.0, horizontal_flip=False),
    )


def run_both(config: TrainConfig, steps: int) -> tuple[np.ndarray, dict[str, float]]:
    """Takes `steps` updates with both.

    Returns:
      Losses (steps, 2), ours first; by parameter the largest difference after the last update.
    """
    run = open_run(config)
    state = run.steps.init()

    def weights():
        return vit_jax.state_dict(nnx.merge(run.train_graph, state.params, state.frozen))

    fields = {k: v for k, v in config.model.kwargs.items() if "dtype" not in k}
    theirs = ClassifierViT(**fields).double()
    theirs.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in weights().items()})
    adamw = config.optimizer
    optimizer = torch.optim.AdamW(
        theirs.parameters(), lr=adamw.learning_rate, weight_decay=adamw.weight_decay
    )
    statistics = statistics_of(config, run.data.train.channels)
    preprocess = jax.jit(
        make_eval_preprocess(
            run.model.input_size, mean=statistics.mean, std=statistics.std, dtype=np.float64
        )
    )
    losses = []
    with run.train_batches(0) as batches:
        for _, batch in zip(range(steps), batches, strict=False):
            # Copied: images and labels are NumPy's here, and the state's buffers are donated.
            images = np.array(preprocess(batch["image"])).transpose(0, 3, 1, 2)
            state, ours = run.steps.train(state, batch)
            labels = torch.from_numpy(batch["label"].astype(np.int64))
            loss = torch.nn.functional.cross_entropy(theirs(torch.from_numpy(images)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append((float(ours), loss.item()))
    trained = {k: v.detach().numpy() for k, v in theirs.state_dict().items()}
    differences = {k: float(np.abs(v - trained[k]).max()) for k, v in weights().items()}
    return np.array(losses), differences


def draw(losses: np.ndarray, what: str, path: pathlib.Path) -> None:
    """Both curves above, their difference below.

    Args:
      losses: (steps, 2), ours first.
      what: was trained, for the title.
      path: of the picture, a PNG.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    curves, differences = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    steps = np.arange(1, len(losses) + 1)
    # One lies on the other: the wide one shows on both sides of the narrow one.
    curves.plot(steps, losses[:, 1], color="#E69F00", linewidth=5, alpha=0.6, label="PyTorch")
    curves.plot(steps, losses[:, 0], color="#0072B2", linewidth=1.2, label="vit_jax")
    curves.set_ylabel("cross entropy of the batch (nats)")
    curves.set_title(f"{what}: {len(losses)} AdamW steps from equal weights, float64")
    curves.legend()
    difference = np.abs(losses[:, 0] - losses[:, 1])
    apart = difference > 0
    floor = np.finfo(np.float64).eps / 4  # half a spacing of the smallest losses drawn
    differences.axhline(LIMIT, color="#D55E00", linestyle="--", label=f"required: {LIMIT:.0e}")
    differences.plot(
        steps[apart],
        difference[apart],
        color="#0072B2",
        linestyle="",
        marker="o",
        markersize=3,
        label=f"measured, at most {difference.max():.1e}",
    )
    if not apart.all():
        differences.plot(
            steps[~apart],
            np.full((~apart).sum(), floor),
            color="#009E73",
            linestyle="",
            marker="v",
            markersize=4,
            label=f"equal to the last bit: {(~apart).sum()} steps",
        )
    differences.set_yscale("log")
    differences.set_ylim(floor / 3, max(LIMIT, difference.max()) * 30)
    differences.set_xlabel("optimizer step")
    differences.set_ylabel("|difference of the losses| (nats)")
    differences.legend(fontsize=9, loc="center right")
    for axes in (curves, differences):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120, format="png")


def save(losses: np.ndarray, what: str, out: pathlib.Path) -> None:
    """Writes `equal_steps.json` and `equal_steps.png` into a folder, made if need be."""
    out.mkdir(parents=True, exist_ok=True)
    columns = {"vit_jax": losses[:, 0].tolist(), "pytorch": losses[:, 1].tolist()}
    (out / "equal_steps.json").write_text(json.dumps(columns, indent=1) + "\n")
    draw(losses, what, out / "equal_steps.png")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True, help="where TFDS's cifar10 is prepared")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", type=pathlib.Path, help="folder of the losses and the picture")
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    config = load_recipe("configs/cifar10_vit.py")
    config.data.data_dir = args.data_dir
    losses, differences = run_both(without_chance(config), args.steps)
    worst = max(differences, key=differences.__getitem__)
    apart = np.abs(losses[:, 0] - losses[:, 1]).max()
    print(f"{len(losses)} steps, loss {losses[0, 0]:.4f} to {losses[-1, 0]:.4f}")
    print(f"largest difference of a loss {apart:.1e}")
    print(f"largest difference of a parameter {differences[worst]:.1e} ({worst})")
    if args.out:
        save(losses, f"CIFAR-10, batches of {config.data.batch_size} images", args.out)
    return int(apart > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
