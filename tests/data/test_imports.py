"""What importing the data package costs, and what reading data drags in."""

from pathlib import Path

from tests.commands import run_alone
from tests.data.conftest import prepare_small

_CODE = """
import sys
from vit_jax.data import *
heavy = "tensorflow_datasets", "grain", "cv2", "sklearn", "matplotlib", "torch", "tensorflow"
print("by the import:", *(m for m in heavy if m in sys.modules))
splits = open_splits("tfds", "small", sys.argv[1], validation_split=None)
next(train_batches(splits.train, batch_size=2, seed=0, num_workers=1))
open_splits("digits")
print("by reading:", *(m for m in ("tensorflow", "torch", "sklearn") if m in sys.modules))
"""


def test_import_is_light_and_reading_imports_no_other_framework(tmp_path: Path) -> None:
    prepare_small(tmp_path)
    ended = run_alone("-c", _CODE, str(tmp_path))
    assert ended.stdout.splitlines() == ["by the import:", "by reading:"]
