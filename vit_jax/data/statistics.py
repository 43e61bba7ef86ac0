"""What is known of data sets before they are opened: channel statistics, and sizes.

Means and standard deviations are fractions of the full range 0 to 1, taken over all pixels of the
training images. (The CIFAR-10 deviations (0.2023, 0.1994, 0.2010) that many scripts carry are the
mean of each image's own deviation, and smaller.)
"""

import re
from typing import NamedTuple


class Statistics(NamedTuple):
    """Mean and standard deviation of each channel, of pixels scaled to [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


STATISTICS = {
    # The figures in common use for the 50,000 training images.
    "cifar10": Statistics((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    # The figures in common use for the 50,000 training images.
    "cifar100": Statistics((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    # torchvision's model zoo, and timm's IMAGENET_DEFAULT_MEAN and _STD.
    "imagenet": Statistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    # Measured on the 1,257 training images as uint8, see digits.py.
    "digits": Statistics((0.3052,), (0.3760,)),
    # Measured on the 60,000 training images.
    "fashion_mnist": Statistics((0.2860,), (0.3530,)),
}
# (height, width, channels) of the sets whose images all have one size.
IMAGE_SHAPES = {
    "cifar10": (32, 32, 3),
    "cifar100": (32, 32, 3),
    "digits": (8, 8, 1),
    "fashion_mnist": (28, 28, 1),
}


def set_name(source: str, name: str | None) -> str:
    """The name that a set has in `STATISTICS`, without its configuration and version.

    ImageNet's subsets share its statistics.
    """
    if source == "digits":
        return source
    family = re.split("[/:]", name or "")[0]
    return "imagenet" if family.startswith("imagenet") else family
