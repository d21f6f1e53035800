"""CIFAR-10 (Krizhevsky 2009): 32x32 colour images, 10 classes, 50,000 to train and 10,000 to test.

Both published distributions can be read, as an archive or unpacked. Both contain the same batches
of 10,000 images; an image is a red, a green and a blue plane of 32 rows.
"""

import pickle
import tarfile
from functools import partial

import numpy as np

from kfcnet.config.schema import DataConfig
from kfcnet.data.dataset import Arrays, DataError, check_labels
from kfcnet.data.files import Distribution
from kfcnet.data.unpickle import load_batch

TITLE = "CIFAR-10"
CLASSES = 10
BATCH_IMAGES = 10_000
RECORD_BYTES = 1 + 3 * 32 * 32

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
    return [
        Distribution(
            files={"cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530"},
            read=partial(_read_archive, names=BINARY_FILES, parse=_parse_binary),
            archive=True,
            url="https://www.cs.toronto.edu/~kriz/",
        ),
        Distribution(
            files={"cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a"},
            read=partial(_read_archive, names=list(PYTHON_FILES), parse=_parse_python),
            archive=True,
        ),
        Distribution(
            files=dict.fromkeys(BINARY_FILES),  # no checksum of these is published
            folder="cifar-10-batches-bin",
            read=partial(_read_unpacked, parse=_parse_binary),
        ),
        Distribution(
            files=PYTHON_FILES,
            folder="cifar-10-batches-py",
            read=partial(_read_unpacked, parse=_parse_python),
        ),
    ]


def _read_archive(paths, names, parse):
    """The batches `names` of a .tar.gz file; nothing is unpacked to the disk."""
    [path] = paths
    try:
        with tarfile.open(path) as archive:
            batches = {}
            for member in archive:  # in its order: a step back decompresses from the start
                name = member.name.rpartition("/")[2]
                if name in names:
                    batches[name] = parse(archive.extractfile(member), f"{path}: {name}")
            return _join([batches[name] for name in names])
    except (tarfile.TarError, EOFError, OSError, KeyError) as error:
        raise DataError(f"{path} is not a whole archive of {TITLE}: {error}") from error


def _read_unpacked(paths, parse):
    batches = []
    for path in paths:
        with open(path, "rb") as file:
            batches.append(parse(file, path))
    return _join(batches)


def _parse_binary(file, source):
    """Records of one label byte and 3,072 pixel bytes -> images (N, 32, 32, 3), labels (N,)."""
    content = file.read()
    if len(content) != BATCH_IMAGES * RECORD_BYTES:
        raise DataError(
            f"{source} has {len(content):,} bytes, not {BATCH_IMAGES * RECORD_BYTES:,}: "
            "it is cut short or no batch of CIFAR-10. Fetch it again."
        )
    records = np.frombuffer(content, dtype=np.uint8).reshape(BATCH_IMAGES, RECORD_BYTES)
    return _as_images(records[:, 1:], records[:, 0], source)


def _parse_python(file, source):
    """A pickled dictionary of `data` (N, 3072) and `labels` -> images (N, 32, 32, 3), labels."""
    try:
        data, labels = load_batch(file)
    except pickle.UnpicklingError as error:
        raise DataError(f"{source} is not a batch of CIFAR-10: {error}. Fetch it again.") from error
    if data.shape != (BATCH_IMAGES, RECORD_BYTES - 1) or labels.shape != (BATCH_IMAGES,):
        raise DataError(
            f"{source} holds pixels {data.shape} and labels {labels.shape}, not "
            f"{(BATCH_IMAGES, RECORD_BYTES - 1)} and {(BATCH_IMAGES,)}. Fetch it again."
        )
    return _as_images(data, labels, source)


def _as_images(planes, labels, source):
    check_labels(labels, 0, CLASSES - 1, source)
    images = planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), labels.astype(np.uint8)


def _join(batches):
    """Batches of (images, labels), the last one the test set -> Arrays."""
    images, labels = zip(*batches, strict=True)
    return Arrays(np.concatenate(images[:-1]), np.concatenate(labels[:-1]), images[-1], labels[-1])
