"""Runs an exported model: python run.py IMAGE...

Needs numpy; for model.stablehlo jax and flatbuffers, for model.onnx onnxruntime; for image files
Pillow (an .npy file holds images that are ready, (B, H, W, C)). Nothing of the package that the
model was trained with. From other code:

    import run
    model, about = run.load()
    logits = model(run.read("image.jpg", about))
"""

import json
import math  # noqa: F401 - of evaluation_geometry
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from vit_jax.data.evaluation_geometry import evaluation_geometry  # export puts it here


def load(
    folder: pathlib.Path = pathlib.Path(__file__).parent,
) -> tuple[Callable[[Any], Any], dict[str, Any]]:
    """The model, a function of a batch of any size, and what model.json says."""
    about = json.loads((folder / "model.json").read_text())
    if (folder / "model.onnx").exists():
        import onnxruntime  # pyright: ignore[reportMissingImports]

        session = onnxruntime.InferenceSession(folder / "model.onnx")
        return lambda images: session.run(None, {"images": images})[0], about
    import jax
    import jax.export

    if about["input"]["dtype"] == "float64":
        jax.config.update("jax_enable_x64", True)
    program = bytearray((folder / "model.stablehlo").read_bytes())
    # It is compiled once for each batch size that it meets.
    return jax.jit(jax.export.deserialize(program).call), about


def read(path: str, about: dict[str, Any]) -> np.ndarray:
    """Images as the model takes them, (B, H, W, C), from an image file or an .npy file."""
    if path.endswith(".npy"):
        return np.load(path).astype(about["input"]["dtype"])
    from PIL import Image, ImageOps

    *_, channels = about["input"]["shape"]
    made_ready = about["preprocessing"]
    if made_ready is None or channels not in (1, 3):
        sys.exit(f"{path}: how image files become images of this model is not known; give an .npy")
    with Image.open(path) as file:
        image = ImageOps.exif_transpose(file)
        if image.mode in ("I", "F"):
            sys.exit(f"{path}: its pixels are numbers of 32 bits of unknown range")
        if image.mode.startswith("I;16"):  # the high byte; Pillow would clip
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        image = image.convert("L" if channels == 1 else "RGB")
    size = tuple(about["input"]["shape"][1:3])
    # As in training, where all images shared a size: to that first.
    height, width = made_ready["resized_from"] or size
    if made_ready["crop_fraction"] < 1 or (image.height, image.width) != (height, width):
        rows, columns, top, left = evaluation_geometry(
            image.height,
            image.width,
            height,
            width,
            made_ready["crop_fraction"],
            made_ready["crop_mode"],
        )
        kernel = Image.Resampling[made_ready["interpolation"].upper()]
        image = image.resize((columns, rows), kernel)
        image = image.crop((left, top, left + width, top + height))
    image = image.resize(size[::-1], Image.Resampling.BILINEAR)
    pixels = np.asarray(image).reshape(1, *size, channels)
    if about["input"]["dtype"] == "uint8":
        return pixels
    mean, std = np.array(made_ready["mean"]), np.array(made_ready["std"])
    return ((pixels / 255 - mean) / std).astype(about["input"]["dtype"])


def main(paths: list[str]) -> None:
    """Prints the most probable classes of each image; without any, or with --help, what this is."""
    if not paths or paths[0] in ("-h", "--help"):
        print(str(__doc__).strip())
        return
    model, about = load()
    names = about["class_names"]
    for path in paths:
        for logits in np.asarray(model(read(path, about)), np.float64):
            if not names:  # a model without a head
                print(f"{path}: {logits.tolist()}")
                continue
            print(f"{path}: {', '.join(told(logits, names, about['vit_jax'].get('target')))}")


def told(logits: np.ndarray, names: list[str], target: dict[str, Any] | None) -> list[str]:
    """What an image is: its most probable classes, all its labels, or its numbers."""
    if target is None:
        shares = np.exp(logits - logits.max())
        best = np.argsort(-logits)[:5]
        return [f"{names[label]} {shares[label] / shares.sum():.4f}" for label in best]
    if target["kind"] == "regression":
        mean, std = (
            np.array(target[name] or default) for name, default in (("mean", 0), ("std", 1))
        )
        return [f"{number:.6g}" for number in logits * std + mean]
    likely = [label for label in np.argsort(-logits) if logits[label] >= 0]
    return [f"{names[label]} {1 / (1 + np.exp(-logits[label])):.4f}" for label in likely]


if __name__ == "__main__":
    main(sys.argv[1:])
