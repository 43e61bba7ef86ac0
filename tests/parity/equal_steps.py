"""Steps of our training and of PyTorch's from equal weights on equal batches, in float64.

    JAX_ENABLE_X64=1 python -m tests.parity.equal_steps --data-dir DIR --steps 200

takes `configs/cifar10_vit.py` with dropout and augmentation off, and prints the largest difference.
"""

import argparse
import dataclasses

import jax
import numpy as np
import torch
from flax import nnx

import vit_jax
from tests.reference.classifier_vit import ClassifierViT
from vit_jax.config import TrainConfig
from vit_jax.config.recipes import load_recipe
from vit_jax.data.augment import make_eval_preprocess
from vit_jax.training.setup import build, statistics_of

# What makes two runs differ by chance, and so is off here.
DETERMINISTIC = {"drop_rate": 0.0, "head_drop_rate": 0.0, "dtype": "float64"}


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
    setup = build(config)
    state = setup.init()

    def weights():
        return vit_jax.state_dict(nnx.merge(setup.graphs.train, state.params, state.frozen))

    fields = {k: v for k, v in config.model.kwargs.items() if "dtype" not in k}
    theirs = ClassifierViT(**fields).double()
    theirs.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in weights().items()})
    adamw = config.optimizer
    optimizer = torch.optim.AdamW(
        theirs.parameters(), lr=adamw.learning_rate, weight_decay=adamw.weight_decay
    )
    statistics = statistics_of(config, setup.splits.train.channels)
    preprocess = jax.jit(
        make_eval_preprocess(
            setup.image_size, mean=statistics.mean, std=statistics.std, dtype=np.float64
        )
    )
    losses = []
    with setup.train_batches(0) as batches:
        for _, batch in zip(range(steps), batches, strict=False):
            # Copied: images and labels are NumPy's here, and the state's buffers are donated.
            images = np.array(preprocess(batch["image"])).transpose(0, 3, 1, 2)
            state, ours = setup.train_step(state, batch)
            labels = torch.from_numpy(batch["label"].astype(np.int64))
            loss = torch.nn.functional.cross_entropy(theirs(torch.from_numpy(images)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append((float(ours), loss.item()))
    trained = {k: v.detach().numpy() for k, v in theirs.state_dict().items()}
    differences = {k: float(np.abs(v - trained[k]).max()) for k, v in weights().items()}
    return np.array(losses), differences


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True, help="where TFDS's cifar10 is prepared")
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()
    config = load_recipe("configs/cifar10_vit.py")
    config.data.data_dir = args.data_dir
    losses, differences = run_both(without_chance(config), args.steps)
    worst = max(differences, key=differences.__getitem__)
    print(f"{len(losses)} steps, loss {losses[0, 0]:.4f} to {losses[-1, 0]:.4f}")
    print(f"largest difference of a loss {np.abs(losses[:, 0] - losses[:, 1]).max():.1e}")
    print(f"largest difference of a parameter {differences[worst]:.1e} ({worst})")


if __name__ == "__main__":
    main()
