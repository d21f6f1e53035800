"""Data sets: found or downloaded, verified, converted once to an HDF5 cache."""

import hashlib
import json

from kfcnet.config.schema import DataConfig
from kfcnet.data import cache, cifar10, digits, files, svhn, synthetic
from kfcnet.data.dataset import DataError, Dataset, make_dataset

__all__ = ["DataError", "Dataset", "load"]

PUBLISHED = {"cifar10": cifar10, "svhn": svhn}


def load(config: DataConfig, download: bool = True) -> Dataset:
    """The data set of a configuration; `download`: from the network where no directory has it.

    Raises DataError where it is absent or damaged; the text says what to do. Another data set is
    never used in its place.
    """
    if config.name in PUBLISHED:
        return _load_published(config, PUBLISHED[config.name], download)
    if config.path is not None:
        raise DataError(
            f"data.path is {config.path}, but {config.name} is not read from files: "
            "leave data.path out, or set data.name to cifar10 or svhn."
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
    return make_dataset(config.name, arrays, source.CLASSES, provenance)


def _load_synthetic(examples):
    origin = {"examples": examples, "seed": synthetic.SEED, "version": synthetic.VERSION}
    paths = _cache_paths("synthetic", origin)
    arrays, sha256 = cache.cached(paths, lambda: synthetic.generate(examples))
    return make_dataset("synthetic", arrays, synthetic.CLASSES, {**origin, "sha256": sha256})


def _cache_paths(name, origin):
    """Where a cache may lie. Its name has a hash of everything that determines the contents."""
    text = json.dumps([cache.FORMAT, origin], sort_keys=True)
    file = f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.h5"
    return [folder / file for folder in files.cache_folders()]
