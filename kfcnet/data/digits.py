"""The embedded data set: handwritten digits, 8x8 pixels with values 0 to 16, one channel.

The test part of "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak 1998, UCI Machine
Learning Repository, licence CC BY 4.0) as packaged by scikit-learn. `digits.h5` beside this file
was written by scripts/export_digits.py and carries source and licence as attributes.
"""

from pathlib import Path

from kfcnet.data import cache
from kfcnet.data.dataset import DataError, Dataset, make_dataset

FILE = Path(__file__).with_name("digits.h5")
SOURCE = (
    "Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak (1998), "
    "UCI Machine Learning Repository, doi:10.24432/C50P49; as packaged by scikit-learn"
)
LICENCE = "CC BY 4.0"
TRAIN_EXAMPLES = 1437


def load() -> Dataset:
    """The digits: 1,437 training images, 360 test images. Raises DataError if damaged."""
    try:
        arrays, sha256 = cache.read(FILE)
    except DataError as error:
        raise DataError(f"{error} It is part of kfcnet: install the package again.") from error
    provenance = {"source": SOURCE, "licence": LICENCE, "sha256": sha256}
    return make_dataset("digits", arrays, 10, provenance)
