"""CIFAR-10 (Krizhevsky 2009): 32x32 colour images, 10 classes, 50,000 to train and 10,000 to test.

Both published distributions contain the same batches of 10,000 images.
"""

from kfcnet.config.schema import DataConfig
from kfcnet.data.cifar import Reader, published
from kfcnet.data.files import Distribution

TITLE = "CIFAR-10"
CLASSES = 10
BATCH_IMAGES = 10_000

BINARY_FILES = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
PYTHON_FILES = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}


def distributions(config: DataConfig) -> list[Distribution]:
    """The published forms of the data set, the preferred one first."""
    binary = Reader(TITLE, CLASSES, dict.fromkeys(BINARY_FILES, BATCH_IMAGES))
    python = Reader(TITLE, CLASSES, dict.fromkeys(PYTHON_FILES, BATCH_IMAGES))
    archives = {
        "cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530",
        "cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a",
    }
    folders = "cifar-10-batches-bin", "cifar-10-batches-py"
    return published(binary, python, archives, folders, PYTHON_FILES)
