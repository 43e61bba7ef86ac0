"""The same images through every form of the same weights: docs/how_close.md has the table.

    python -m tests.inference.photographs

trains a small ViT on a folder of made-up photographs, writes it in every form, and prints, for each
of ten images of odd shapes and kinds, the largest difference of a probability from that of the run:
of `predict` on each form, and of the exports' own `run.py`. The last column is the difference
between `predict` and transformers' own processor and model, both on the Hugging Face folder without
our description in it, as others would write it. Needs transformers, and the packages of the extra
"onnx". Exit status 1 where a form differs by more than `WITHIN`, or transformers by more than
`ACROSS` (not of the 16-bit image, which transformers clips at 255).
"""

import importlib.util
import json
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

import vit_jax
from vit_jax.config import TrainConfig, from_dict
from vit_jax.inference.export import export_model
from vit_jax.inference.predict import predict
from vit_jax.training import train

WITHIN, ACROSS = 1e-5, 1e-4
CLASSES = ("7", "café", "night")
_ORIENTATION = 0x0112
_Reader = Callable[[pathlib.Path, list[pathlib.Path]], np.ndarray]


def photograph(width: int, height: int, seed: int) -> Image.Image:
    """Noise at all scales, as natural images have."""
    random = np.random.default_rng(seed)
    total = np.zeros((height, width, 3))
    for side in (2, 4, 8, 16, 32, 64):
        coarse = random.integers(0, 256, (side, side, 3), np.uint8)
        resized = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        total += (np.asarray(resized, float) - 127.5) / side**0.5
    return Image.fromarray(np.clip(127.5 + total / 2, 0, 255).astype(np.uint8))


def write_images(folder: pathlib.Path) -> list[tuple[str, pathlib.Path]]:
    """Ten images: what each is, and its file."""
    folder.mkdir()
    plain = photograph(211, 157, 1)
    turned = Image.Exif()
    turned[_ORIENTATION] = 6
    clear = photograph(150, 190, 2).convert("RGBA")
    clear.putalpha(photograph(150, 190, 3).convert("L"))
    deep = np.asarray(photograph(120, 170, 4).convert("L")).astype(np.uint16) * 257
    kinds: list[tuple[str, str, Image.Image, dict[str, object]]] = [
        ("wide", "jpg", photograph(640, 97, 5), {}),
        ("tall", "jpg", photograph(83, 501, 6), {}),
        ("tiny", "png", photograph(9, 7, 7), {}),
        ("rotated by EXIF", "jpg", plain, {"exif": turned}),
        ("grey", "jpg", plain.convert("L"), {}),
        ("palette", "png", plain.quantize(64), {}),
        ("CMYK", "jpg", plain.convert("CMYK"), {}),
        ("16 bit", "png", Image.fromarray(deep), {}),
        ("transparent", "png", clear, {}),
        ("640x427", "webp", photograph(640, 427, 8), {}),
    ]
    found = []
    for kind, suffix, image, options in kinds:
        path = folder / f"{kind.replace(' ', '_')}.{suffix}"
        image.save(path, **options)
        found.append((kind, path))
    return found


def config_of(data_dir: pathlib.Path) -> TrainConfig:
    """Of a run that learns to tell the classes of `data_dir`, with timm's crop."""
    sizes = {"img_size": 64, "patch_size": 16, "embed_dim": 64, "depth": 2, "num_heads": 4}
    return from_dict(
        {
            "num_epochs": 30,
            "model": {"name": "vit_tiny_patch16_224", "kwargs": {**sizes, "num_classes": 3}},
            "data": {
                "source": "folder",
                "data_dir": str(data_dir),
                "validation_split": None,
                "batch_size": 7,
                "eval_batch_size": 7,
                "image_size": 64,
                "mean": (0.485, 0.456, 0.406),
                "std": (0.229, 0.224, 0.225),
                "eval_crop_fraction": 0.9,
                "eval_interpolation": "bicubic",
                "num_workers": 0,
            },
            "optimizer": {"learning_rate": 1e-3},
            "log": {"tensorboard": False, "progress": "none"},
        }
    )


def by_predict(source: pathlib.Path, paths: list[pathlib.Path]) -> np.ndarray:
    """Probabilities (images, classes) of `predict` with nothing but the source."""
    model = vit_jax.from_pretrained(source)
    if model.spec.class_names != CLASSES:
        raise ValueError(f"{source}: wanted the classes {CLASSES}, got {model.spec.class_names}")
    rows = []
    for prediction in predict(model, [str(path) for path in paths], top=len(CLASSES)):
        rows.append([guess.probability for guess in sorted(prediction.top, key=lambda g: g.index)])
    return np.asarray(rows)


def by_export(folder: pathlib.Path, paths: list[pathlib.Path]) -> np.ndarray:
    """Of the `run.py` of an exported model."""
    spec = importlib.util.spec_from_file_location(f"run_{folder.name}", folder / "run.py")
    assert spec is not None
    assert spec.loader is not None
    run = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(run)
    call, about = run.load()
    return _softmax(np.concatenate([call(run.read(str(path), about)) for path in paths]))


def by_transformers(folder: pathlib.Path, paths: list[pathlib.Path]) -> np.ndarray:
    """Of transformers' own processor and model."""
    import torch
    import transformers
    from transformers.image_utils import load_image

    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    model = transformers.ViTForImageClassification.from_pretrained(folder).eval()
    assert tuple(model.config.id2label[i] for i in range(len(CLASSES))) == CLASSES
    rows = []
    with torch.inference_mode():
        for path in paths:
            inputs = processor(images=load_image(str(path)), return_tensors="pt")
            rows.append(model(**inputs).logits.numpy())
    return _softmax(np.concatenate(rows))


def _softmax(logits: np.ndarray) -> np.ndarray:
    shares = np.exp(logits.astype(float) - logits.max(-1, keepdims=True))
    return shares / shares.sum(-1, keepdims=True)


def forms(folder: pathlib.Path) -> Iterator[tuple[str, _Reader, pathlib.Path]]:
    """Of each form of the weights its name, who reads it, and where it is."""
    data = folder / "data"
    for seed, name in enumerate(CLASSES):
        for split, count in (("train", 7), ("test", 1)):
            (data / split / name).mkdir(parents=True)
            for i in range(count):
                image = photograph(90 + 7 * i, 120 - 5 * i, 100 * seed + i)
                shade = np.asarray(image) * (0.5 + 0.2 * seed)
                image = Image.fromarray(shade.astype(np.uint8))
                image.save(data / split / name / f"{i}.png")
    run = folder / "run"
    train(config_of(data), run)
    model = vit_jax.from_pretrained(run)
    yield "run", by_predict, run
    for name in ("model.safetensors", "model.pth"):
        vit_jax.save_pretrained(model, folder / name)
        yield name.replace("model", ""), by_predict, folder / name
    for name in ("orbax", "huggingface"):
        vit_jax.save_pretrained(model, folder / name, dialect=name)
        yield name, by_predict, folder / name
    for name in ("stablehlo", "onnx"):
        export_model(model, folder / name, format=name)
        yield name, by_export, folder / name


def without_description(folder: pathlib.Path) -> pathlib.Path:
    """A copy of a Hugging Face folder that says no more than transformers' own."""
    plain = folder.with_name("plain")
    shutil.copytree(folder, plain)
    config = json.loads((plain / "config.json").read_text())
    del config["vit_jax"]
    (plain / "config.json").write_text(json.dumps(config))
    return plain


def main() -> int:
    """Prints the table."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        images = write_images(folder / "images")
        paths = [path for _, path in images]
        found = {name: read(place, paths) for name, read, place in forms(folder)}
        plain = without_description(folder / "huggingface")
        across = np.abs(by_predict(plain, paths) - by_transformers(plain, paths)).max(1)
    own = found.pop("run")
    within = {name: np.abs(of - own).max(1) for name, of in found.items()}
    print(f"| image | probability | {' | '.join(within)} | transformers |")
    print("|---|---|" + "---|" * (len(within) + 1))
    for row, (kind, _) in enumerate(images):
        errors = (f"{of[row]:.1e}" for of in (*within.values(), across))
        print(f"| {kind} | {own[row].max():.4f} | {' | '.join(errors)} |")
    bound = np.asarray([np.inf if kind == "16 bit" else ACROSS for kind, _ in images])
    return int(any((of > WITHIN).any() for of in within.values()) or (across > bound).any())


if __name__ == "__main__":
    sys.exit(main())
