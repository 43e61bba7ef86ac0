"""Trains seed 003's design in PyTorch on the data of a run of ours, and compares the two.

    python -m tests.parity.beside_torch --data-dir DIR --epochs 2 --seeds 3 --out OUT

trains both on 10,000 images of CIFAR-10 and writes each run and `curves.png` to OUT. The PyTorch
side has an order, augmentation (PIL) and dropout of its own: what is compared is the distribution
of the curves.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tests.reference.classifier_vit import ClassifierViT
from vit_jax.data.sources import ImageSource
from vit_jax.data.splits import open_splits
from vit_jax.data.statistics import STATISTICS

SPLITS = {
    "validation_split": "shuffled(test)[:70%]",
    "test_split": "shuffled(test)[70%:]",
}


def read_all(source: ImageSource) -> tuple[np.ndarray, np.ndarray]:
    examples = source.__getitems__(list(range(len(source))))
    images = np.stack([example["image"] for example in examples])
    return images, np.array([example["label"] for example in examples])


def prepare(images, generator, image_size, statistics):
    """Seed 003's transforms by PIL; without a generator, those of the evaluation."""
    batch = []
    for pixels in images:
        image = Image.fromarray(pixels).resize((image_size, image_size), Image.Resampling.BILINEAR)
        if generator is not None:
            image = image.rotate(float(generator.uniform(-7, 7)), Image.Resampling.NEAREST)
            if generator.uniform() < 0.5:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        batch.append(np.asarray(image))
    x = torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in statistics)
    return (x - mean) / std


def evaluate(model, images, labels, **preparation):
    model.eval()
    loss = correct = 0.0
    with torch.no_grad():
        for start in range(0, len(labels), 250):
            y = torch.from_numpy(labels[start : start + 250])
            logits = model(prepare(images[start : start + 250], None, **preparation))
            loss += torch.nn.functional.cross_entropy(logits, y, reduction="sum").item()
            correct += (logits.argmax(-1) == y).sum().item()
    return loss / len(labels), correct / len(labels)


def train_torch(data_dir, examples, epochs, seed, workdir, image_size=72, batch_size=32):
    """Validation loss and top-1 after each epoch, as rows like those of `metrics.jsonl`."""
    splits = open_splits(
        "tfds", "cifar10", data_dir, seed=seed, num_train_examples=examples, **SPLITS
    )
    preparation = {"image_size": image_size, "statistics": STATISTICS["cifar10"]}
    train_images, train_labels = read_all(splits.train)
    validation = read_all(splits.validation)
    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    model = ClassifierViT(img_size=image_size, num_classes=10)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-4)
    rows = []
    for epoch in range(1, epochs + 1):
        model.train()
        order = generator.permutation(len(train_labels))
        order = order[: len(order) // batch_size * batch_size].reshape(-1, batch_size)
        losses = []
        for batch in order:
            x = prepare(train_images[batch], generator, **preparation)
            loss = torch.nn.functional.cross_entropy(
                model(x), torch.from_numpy(train_labels[batch])
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        loss, top1 = evaluate(model, *validation, **preparation)
        rows.append(
            {"epoch": epoch, "loss": loss, "top1": top1, "train_loss": float(np.mean(losses))}
        )
        (workdir / "metrics.json").write_text(json.dumps(rows, indent=1))
    return rows


def train_ours(data_dir, examples, epochs, seed, workdir):
    """The same from `configs/cifar10_vit.py`, by its command."""
    command = [
        *(sys.executable, "train.py", "--config", "configs/cifar10_vit.py"),
        *("--workdir", str(workdir), f"--config.seed={seed}", f"--config.num_epochs={epochs}"),
        f"--config.data.data_dir={data_dir}",
        f"--config.data.num_train_examples={examples}",
        f"--config.checkpoint.every_steps={100_000}",
    ]
    subprocess.run(command, check=True)
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["split"] == "validation"]


def compare(ours, theirs):
    """Of each epoch: both means, the allowed difference (2 pooled standard errors + 1 point)."""
    rows = []
    for epoch in range(len(ours[0])):
        a, b = (np.array([run[epoch]["top1"] for run in runs]) for runs in (ours, theirs))
        error = np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2 * (1 / len(a) + 1 / len(b)))
        rows.append(
            {
                "epoch": epoch + 1,
                "ours": a.mean(),
                "torch": b.mean(),
                "difference": abs(a.mean() - b.mean()),
                "allowed": 2 * error + 0.01,
            }
        )
    return rows


def draw(ours, theirs, path):
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for runs, colour, label in ((ours, "tab:blue", "vit_jax"), (theirs, "tab:orange", "PyTorch")):
        for axis, field in zip(axes, ("loss", "top1"), strict=True):
            for i, run in enumerate(runs):
                epochs = [row["epoch"] for row in run]
                values = [row[field] for row in run]
                axis.plot(epochs, values, "o-", color=colour, alpha=0.6, label=None if i else label)
            axis.set_xlabel("epoch")
            axis.set_ylabel({"loss": "validation loss (nats)", "top1": "validation top-1"}[field])
            axis.set_xticks(epochs)
            axis.grid(alpha=0.3)
            axis.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True, help="where TFDS's cifar10 is prepared")
    parser.add_argument("--examples", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--side", choices=("both", "ours", "torch"), default="both")
    parser.add_argument("--out", type=Path, required=True, help="runs already in it are kept")
    args = parser.parse_args()
    sides = {"ours": train_ours, "torch": train_torch}
    runs = {side: {} for side in sides}
    for seed in range(args.seeds):
        for side, train in sides.items():
            out = args.out / f"{side}{seed}"
            out.mkdir(parents=True, exist_ok=True)
            result = out / "validation.json"
            if not result.exists() and args.side in ("both", side):
                start = time.perf_counter()
                rows = train(args.data_dir, args.examples, args.epochs, seed, out)
                seconds = time.perf_counter() - start
                result.write_text(json.dumps({"seconds": seconds, "rows": rows}, indent=1))
            if result.exists():
                runs[side][seed] = json.loads(result.read_text())["rows"]
    ours, theirs = (list(runs[side].values()) for side in sides)
    if ours and theirs:
        draw(ours, theirs, args.out / "curves.png")
    if len(ours) == len(theirs) > 1:
        print(json.dumps(compare(ours, theirs), indent=1))


if __name__ == "__main__":
    main()
