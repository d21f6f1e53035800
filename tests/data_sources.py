"""Small files in the formats of the real data sets, made up, for the tests of their readers."""

import io
import pickle
import tarfile
from types import SimpleNamespace

import numpy as np
import scipy.io

IMAGES = 3
"""Images of one made-up batch of CIFAR-10; the tests set cifar10.BATCH_IMAGES to it."""


def data_config(name, path=None, extra=False, examples=20):
    """What `load` reads of a configuration."""
    return SimpleNamespace(name=name, path=path, extra=extra, examples=examples)


def cifar_batch(number):
    """Images uint8 (3, 32, 32, 3) and labels (3,) of batch 1 to 5, or 6 for the test batch."""
    rng = np.random.default_rng(number)
    return rng.integers(0, 256, (IMAGES, 32, 32, 3), np.uint8), rng.integers(0, 10, IMAGES)


def binary_batch(images, labels):
    """Records of one label byte and the red, green and blue plane."""
    return b"".join(
        bytes([label]) + image.transpose(2, 0, 1).tobytes()
        for image, label in zip(images, labels, strict=True)
    )


def python2_batch(images, labels):
    """The pickle that Python 2 wrote, opcode by opcode as in the published files."""

    def text(value):
        return b"U" + bytes([len(value)]) + value

    data = images.transpose(0, 3, 1, 2).tobytes()
    shape = b"M" + len(images).to_bytes(2, "little") + b"M" + (3072).to_bytes(2, "little") + b"\x86"
    data_type = (
        b"cnumpy\ndtype\n"
        + text(b"u1")
        + b"K\x00K\x01\x87R(K\x03"
        + text(b"|")
        + b"NNN"
        + 2 * b"J\xff\xff\xff\xff"
        + b"K\x00tb"
    )
    return (
        b"\x80\x02}("
        + text(b"batch_label")
        + text(b"training batch")
        + text(b"labels")
        + b"]("
        + b"".join(b"K" + bytes([label]) for label in labels)
        + b"e"
        + text(b"data")
        + b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
        + b"K\x00\x85"
        + text(b"b")
        + b"\x87R(K\x01"
        + shape
        + data_type
        + b"\x89"
        + b"T"
        + len(data).to_bytes(4, "little")
        + data
        + b"tb"
        + text(b"filenames")
        + b"]("
        + text(b"a.png")
        + b"eu."
    )


def python3_batch(images, labels, protocol=4):
    """The same content as Python 3 and a present NumPy pickle it."""
    data = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    return pickle.dumps({"data": data, "labels": [int(label) for label in labels]}, protocol)


def cifar_files(write, suffix=""):
    """Base name -> content of the six batches; `write` turns (images, labels) into bytes."""
    names = [*(f"data_batch_{i}{suffix}" for i in range(1, 6)), f"test_batch{suffix}"]
    return {name: write(*cifar_batch(i)) for i, name in enumerate(names, 1)}


def put(directory, contents):
    """Write files: base name -> bytes."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (directory / name).write_bytes(content)
    return directory


def archive(contents, folder):
    """A .tar.gz of the files, in another order than they are read in."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as file:
        for name in sorted(contents, reverse=True):
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(contents[name])
            file.addfile(member, io.BytesIO(contents[name]))
    return stream.getvalue()


def svhn_part(seed, count):
    """Images uint8 (count, 32, 32, 3) and digits (count,), the first of which is a zero."""
    rng = np.random.default_rng(seed)
    digits = rng.integers(0, 10, count)
    digits[0] = 0
    return rng.integers(0, 256, (count, 32, 32, 3), np.uint8), digits


def svhn_file(images, digits):
    """A MATLAB file as published: X (32, 32, 3, N), y (N, 1), in which 10 stands for 0."""
    stream = io.BytesIO()
    labels = np.where(digits == 0, 10, digits).astype(np.uint8)[:, np.newaxis]
    scipy.io.savemat(stream, {"X": images.transpose(1, 2, 3, 0), "y": labels}, do_compression=True)
    return stream.getvalue()
