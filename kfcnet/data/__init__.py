"""Data sets: found or downloaded, verified, converted once to an HDF5 cache."""

import functools
import hashlib
import json
import numbers
import os

from numpy.typing import ArrayLike

from kfcnet import philox
from kfcnet.config.schema import ArraysDataConfig, DataConfig, FolderDataConfig, IdxDataConfig
from kfcnet.data import arrays as array_files
from kfcnet.data import (
    cache,
    cifar10,
    cifar100,
    digits,
    files,
    folder,
    idx,
    mnist,
    own,
    svhn,
    synthetic,
)
from kfcnet.data.checksum import md5_of, sha256_of
from kfcnet.data.dataset import DataError, Dataset, make_dataset

__all__ = ["DataError", "Dataset", "from_arrays", "load"]

PUBLISHED = {
    "cifar10": cifar10,
    "cifar100": cifar100,
    "svhn": svhn,
    "mnist": mnist.MNIST,
    "fashion_mnist": mnist.FASHION_MNIST,
}
OWN = ("arrays", "folder", "idx")


def load(
    config: DataConfig | ArraysDataConfig | FolderDataConfig | IdxDataConfig, download: bool = True
) -> Dataset:
    """The data set of a configuration; `download`: from the network where no directory has it.

    Raises DataError where it is absent or damaged; the text says what to do. Another data set is
    never used in its place. TypeError for what is no part `data` of a configuration.
    """
    if not hasattr(config, "name"):
        raise TypeError(
            "data.load: expected the data of a configuration, such as "
            f"kfcnet.load_config(name).data, got a {type(config).__name__}"
        )
    if config.name in OWN:
        return _load_own(config)
    if config.name in PUBLISHED:
        return _load_published(config, PUBLISHED[config.name], download)
    if config.path is not None:
        raise DataError(
            f"data.path is {config.path}, but {config.name} is not read from files: "
            f"leave data.path out, or set data.name to {', '.join([*PUBLISHED, *OWN])}."
        )
    return digits.load() if config.name == "digits" else _load_synthetic(config.examples)


def _load_published(config, source, download):
    distributions = source.distributions(config)
    found = files.locate(config.name, source.TITLE, distributions, config.path, download)
    records = files.verify(found, source.TITLE)
    paths = _cache_paths(config.name, [records])
    arrays, sha256 = cache.cached(paths, lambda: found.distribution.read(found.paths))
    files.warn_unpublished(found, records, source.TITLE)
    provenance = {"files": records, "sha256": sha256}
    names = getattr(source, "CLASS_NAMES", ())
    return make_dataset(config.name, arrays, source.CLASSES, provenance, names)


def _load_own(config):
    """A user's own images; the cache is made anew when a file has changed."""
    if config.path is None:
        raise DataError(
            f"data.path: missing; name the {config.name} of images (of a run that is evaluated by "
            "--data PATH: no record has the path)"
        )
    path = files.expanded(config.path, "data.path")
    if not os.path.exists(path):
        raise DataError(f"data.path: {path} does not exist")
    try:
        origin, split, names, read = _own_source(config, path)
    except OSError as error:  # a folder that may not be entered, a link that leads nowhere
        raise DataError(
            f"data.path: {error.filename or path} cannot be read ({error.strerror or error})"
        ) from error
    found, sha256 = cache.cached(_cache_paths(config.name, [own.VERSION, origin, split]), read)
    provenance = {"title": own.title(path), "sha256": sha256}
    if config.name != "folder":
        provenance["files"] = origin
    return make_dataset(config.name, found, own.classes_of(found), provenance, tuple(names))


def _own_source(config, path):
    """(what tells whether files have changed, the settings of a split, the names of the classes, a
    function that reads the Arrays) of a user's own images.
    """
    if config.name == "idx":
        files = idx.files_in(path)
        return _identified(files), [], (), lambda: own.joined(*idx.read(files), path)
    split = [config.test_share, config.split_seed]
    if config.name == "arrays":
        origin, names = _identified([path]), ()
        parts = functools.partial(array_files.read, path)
    else:
        names, listed = folder.listing(path)
        origin = {"size": config.size, "classes": names, "files": _changes(path, listed)}
        parts = functools.partial(folder.read, listed, config.size)
    return origin, split, names, lambda: own.together(*parts(), *split, path)


def _identified(files):
    """Name, size and checksum of each file."""
    return [
        {"name": file.name, "bytes": file.stat().st_size, "md5": md5_of(file)} for file in files
    ]


def _changes(root, listed):
    """What tells whether the files of a folder have changed: its path, and of each file name, size
    and times. The time of writing alone is that of an archive, or of a layer of a container.
    """
    found = [str(root.resolve())]
    for part, pairs in listed.items():
        for path, _ in pairs:
            status = path.stat()
            name = path.relative_to(root).as_posix()
            found.append([part, name, status.st_size, status.st_mtime_ns, status.st_ctime_ns])
    return found


def from_arrays(
    images: ArrayLike,
    labels: ArrayLike,
    test_images: ArrayLike | None = None,
    test_labels: ArrayLike | None = None,
    test_share: float = 0.2,
    split_seed: int = 0,
) -> Dataset:
    """The Dataset of arrays in memory: images (N, H, W, C) or (N, H, W), labels (N,).

    Without a test part, `test_share` of the images is drawn as one. Raises DataError, which names
    the index of what is wrong.
    """
    if (test_images is None) != (test_labels is None):
        raise DataError("the test part: of its images and labels only one is given")
    if not (isinstance(test_share, numbers.Real) and 0 < test_share < 1):
        raise DataError(f"test_share: {test_share!r} is not between 0 and 1")
    try:
        philox.check_seed(split_seed, "split_seed")
    except ValueError as error:
        raise DataError(str(error)) from None
    train = own.checked(images, labels, "the training part")
    test = None if test_images is None else own.checked(test_images, test_labels, "the test part")
    found = own.together(train, test, test_share, split_seed, "the data")
    provenance = {"title": "arrays in memory", "sha256": sha256_of(found)}
    return make_dataset("arrays", found, own.classes_of(found), provenance)


def _load_synthetic(examples):
    origin = {"examples": examples, "seed": synthetic.SEED, "version": synthetic.VERSION}
    paths = _cache_paths("synthetic", origin)
    arrays, sha256 = cache.cached(paths, lambda: synthetic.generate(examples))
    return make_dataset("synthetic", arrays, synthetic.CLASSES, {**origin, "sha256": sha256})


def _cache_paths(name, origin):
    """Where a cache may lie: its name contains a hash of all that determines the contents."""
    text = json.dumps([cache.FORMAT, origin], sort_keys=True)
    file = f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.h5"
    return [folder / file for folder in files.cache_folders()]
