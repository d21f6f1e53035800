"""SVHN, Street View House Numbers (Netzer et al. 2011): cropped 32x32 colour digits.

73,257 training images and 26,032 test images; `extra` adds 531,131 easier training images.
"""

import numpy as np

from kfcnet.config.schema import DataConfig
from kfcnet.data.dataset import Arrays, DataError, check_labels
from kfcnet.data.files import Distribution

TITLE = "SVHN"
CLASSES = 10
FILES = {
    "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
    "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
}
EXTRA_FILES = {"extra_32x32.mat": "a93ce644f1a588dc4d68dda5feec44a7"}


def distributions(config: DataConfig) -> list[Distribution]:
    """The one published form of the data set, with the extra file where `config.extra` is set."""
    return [
        Distribution(
            files={**FILES, **(EXTRA_FILES if config.extra else {})},
            read=_read,
            url="http://ufldl.stanford.edu/housenumbers/",
            spare=dict.fromkeys(EXTRA_FILES, "data.extra=false"),
        )
    ]


def _read(paths):
    (images, labels), test, *extra = (_read_file(path) for path in paths)
    for more_images, more_labels in extra:
        images = np.concatenate([images, more_images])
        labels = np.concatenate([labels, more_labels])
    return Arrays(images, labels, *test)


def _read_file(path):
    """MATLAB's X (32, 32, 3, N), y (N, 1) -> images (N, 32, 32, 3), labels (N,); label 10 is 0."""
    images, labels = _read_variables(path)
    if images.dtype != np.uint8 or images.shape != (32, 32, 3, labels.size) or not labels.size:
        raise DataError(
            f"{path} holds X {images.dtype} {images.shape} and y {labels.shape}, not X uint8 "
            "(32, 32, 3, N) and y (N, 1): it is no file of SVHN's cropped digits."
        )
    labels = labels.reshape(-1)
    check_labels(labels, 1, 10, path)
    return np.ascontiguousarray(images.transpose(3, 0, 1, 2)), (labels % 10).astype(np.uint8)


def _read_variables(path):
    from scipy.io import loadmat

    try:
        variables = loadmat(path, variable_names=["X", "y"])
        return variables["X"], variables["y"]
    except Exception as error:  # a damaged file can make the parser raise nearly anything
        raise DataError(
            f"{path} cannot be read as a file of SVHN ({type(error).__name__}: {error}). "
            "It is cut short or damaged: fetch it again."
        ) from error
