"""CIFAR-100 (Krizhevsky 2009): 32x32 colour images, 100 classes, 50,000 to train, 10,000 to test.

Every image has two labels, one of 20 superclasses and one of 100 classes; the latter is used.
"""

from kfcnet.config.schema import DataConfig
from kfcnet.data.cifar import Reader, published
from kfcnet.data.files import Distribution

TITLE = "CIFAR-100"
CLASSES = 100
IMAGES = {"train": 50_000, "test": 10_000}
PYTHON_FILES = {
    "train": "16019d7e3df5f24257cddd939b257f8d",
    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
}


def distributions(config: DataConfig) -> list[Distribution]:
    """The published forms of the data set, the preferred one first."""
    binary_images = {f"{part}.bin": count for part, count in IMAGES.items()}
    binary = Reader(TITLE, CLASSES, binary_images, label_bytes=2)
    python = Reader(TITLE, CLASSES, IMAGES, labels="fine_labels")
    archives = {
        "cifar-100-binary.tar.gz": "03b5dce01913d631647c71ecec9e9cb8",
        "cifar-100-python.tar.gz": "eb9058c3a382ffc7106e4002c42a8d85",
    }
    return published(
        binary, python, archives, ("cifar-100-binary", "cifar-100-python"), PYTHON_FILES
    )
