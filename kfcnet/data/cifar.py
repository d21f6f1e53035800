"""The files of CIFAR-10 and CIFAR-100 (Krizhevsky 2009): 32x32 colour images.

A set has two published distributions, binary and pickled, each as an archive or unpacked. In all of
them an image is a red, a green and a blue plane of 32 rows.
"""

import pickle
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from kfcnet.data.dataset import Arrays, DataError, check_labels
from kfcnet.data.files import Distribution
from kfcnet.data.unpickle import load_batch

PIXELS = 3 * 32 * 32
URL = "https://www.cs.toronto.edu/~kriz/"


@dataclass(frozen=True)
class Reader:
    """Reads the files `images` {base name: number of its images} of one set; the last is for tests.

    label_bytes: how many labels precede the pixels of a binary record, the last of which is the
    class. labels: the key of the classes in a pickle.
    """

    title: str
    classes: int
    images: Mapping[str, int]
    label_bytes: int = 1
    labels: str = "labels"

    def archive(self, paths) -> Arrays:
        """From a .tar.gz file; nothing is unpacked to the disk."""
        [path] = paths
        try:
            with tarfile.open(path) as archive:
                batches = {}
                for member in archive:  # in its order: a step back decompresses from the start
                    name = member.name.rpartition("/")[2]
                    if name in self.images:
                        file = archive.extractfile(member)
                        batches[name] = self._parse(file, name, f"{path}: {name}")
                return _join([batches[name] for name in self.images])
        except (tarfile.TarError, EOFError, OSError, KeyError) as error:
            raise DataError(f"{path} is not a whole archive of {self.title}: {error}") from error

    def unpacked(self, paths) -> Arrays:
        """From the files themselves, in the order of `images`."""
        batches = []
        for path in paths:
            with open(path, "rb") as file:
                batches.append(self._parse(file, path.name, path))
        return _join(batches)

    def _parse(self, file, name, source):
        """images (N, 32, 32, 3), labels (N,) of one file, binary or a pickle."""
        parse = self._parse_binary if name.endswith(".bin") else self._parse_python
        planes, labels = parse(file, self.images[name], source)
        check_labels(labels, 0, self.classes - 1, source)
        images = planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        return np.ascontiguousarray(images), labels.astype(np.uint8)

    def _parse_binary(self, file, images, source):
        """Records of label bytes and 3,072 pixel bytes."""
        content, record = file.read(), self.label_bytes + PIXELS
        if len(content) != images * record:
            raise DataError(
                f"{source} has {len(content):,} bytes, not {images * record:,}: "
                f"it is cut short or no batch of {self.title}. Fetch it again."
            )
        records = np.frombuffer(content, dtype=np.uint8).reshape(images, record)
        return records[:, self.label_bytes :], records[:, self.label_bytes - 1]

    def _parse_python(self, file, images, source):
        """A pickled dictionary of `data` (N, 3072) and labels."""
        try:
            data, labels = load_batch(file, self.labels)
        except pickle.UnpicklingError as error:
            raise DataError(
                f"{source} is not a batch of {self.title}: {error}. Fetch it again."
            ) from error
        if data.shape != (images, PIXELS) or labels.shape != (images,):
            raise DataError(
                f"{source} holds pixels {data.shape} and labels {labels.shape}, not "
                f"{(images, PIXELS)} and {(images,)}. Fetch it again."
            )
        return data, labels


def published(binary, python, archives, folders, sums):
    """The four published forms of a set, the preferred one first.

    binary, python: the Readers of its two distributions; archives: {name of an archive: its MD5},
    and folders: what they unpack to, the binary one first; sums: {pickled file: its MD5}.
    """
    (binary_archive, python_archive), (binary_folder, python_folder) = archives.items(), folders
    return [
        Distribution(dict([binary_archive]), binary.archive, must_match=True, url=URL),
        Distribution(dict([python_archive]), python.archive, must_match=True),
        # No checksum of the unpacked binary files is published.
        Distribution(dict.fromkeys(binary.images), binary.unpacked, folder=binary_folder),
        Distribution(sums, python.unpacked, folder=python_folder),
    ]


def _join(batches):
    """Batches of (images, labels), the last one the test set -> Arrays."""
    images, labels = zip(*batches, strict=True)
    return Arrays(np.concatenate(images[:-1]), np.concatenate(labels[:-1]), images[-1], labels[-1])
