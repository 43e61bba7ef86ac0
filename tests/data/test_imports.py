"""What importing the data package costs, and what reading data drags in."""

import subprocess
import sys
from pathlib import Path

from tests.data.conftest import prepare_small


def run(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    ).stdout.strip()


def test_import_is_light() -> None:
    heavy = ("tensorflow_datasets", "grain", "cv2", "sklearn", "matplotlib", "torch", "tensorflow")
    loaded = run(f"import sys, vit_jax.data; print([m for m in {heavy} if m in sys.modules])")
    assert loaded == "[]"


def test_reading_imports_no_other_framework(tmp_path: Path) -> None:
    prepare_small(tmp_path)
    loaded = run(
        "import sys\n"
        "from vit_jax.data import *\n"
        f"s = open_splits('tfds', 'small', {str(tmp_path)!r}, validation_split=None)\n"
        "next(train_batches(s.train, batch_size=2, seed=0, num_workers=1))\n"
        "open_splits('digits')\n"
        "print([m for m in ('tensorflow', 'torch', 'sklearn') if m in sys.modules])"
    )
    assert loaded == "[]"
