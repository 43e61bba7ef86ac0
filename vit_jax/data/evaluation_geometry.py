"""How evaluation resizes and crops an image, in numbers alone.

`inference.export` copies this function into the `run.py` of every export.
"""

import math


def evaluation_geometry(
    rows: int, columns: int, height: int, width: int, crop_fraction: float, crop_mode: str
) -> tuple[int, int, int, int]:
    """The resize of evaluation, and the central crop after it: timm's, or transformers'.

    "center" keeps the aspect ratio: of square crops torchvision's `Resize(side)` and `CenterCrop`,
    side = floor(height / crop_fraction); of others timm's `ResizeKeepRatio`. "squash" resizes both
    sides. (timm 1.0.31, data/transforms_factory.py, `transforms_imagenet_eval`.) With "_floor" the
    crop's offset is rounded down, as transformers does (5.24, image_transforms.py, `center_crop`):
    elsewhere half a pixel goes to the even one.

    Args:
      rows: of the image.
      columns: of the image.
      height: rows of the crop.
      width: columns of the crop.
      crop_fraction: share of the resized image's tighter side that the crop keeps, in (0, 1].
      crop_mode: "center" or "squash", or either with "_floor".

    Returns:
      Rows and columns of the resized image, and the first row and column of the crop in it.
    """
    # A fraction such as 224 / 248 is rounded: 224 divided by it may be a bit below 248.
    covered = [math.floor(side / crop_fraction + 1e-9) for side in (height, width)]
    if crop_mode.startswith("squash"):
        resized = (covered[0], covered[1])
    elif covered[0] == covered[1]:
        short, long = min(rows, columns), max(rows, columns)
        longer = int(covered[0] * long / short)
        resized = (covered[0], longer) if rows <= columns else (longer, covered[0])
    else:
        ratio = min(rows / covered[0], columns / covered[1])
        resized = (round(rows / ratio), round(columns / ratio))
    whole = math.floor if crop_mode.endswith("_floor") else round
    top, left = (resized[0] - height) / 2, (resized[1] - width) / 2
    return (*resized, whole(top), whole(left))
