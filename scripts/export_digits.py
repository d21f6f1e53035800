"""Write the embedded digits, kfcnet/data/digits.h5, from scikit-learn's copy (run once).

python scripts/export_digits.py        # needs scikit-learn, which kfcnet itself does not
"""

import numpy as np
from sklearn.datasets import load_digits

from kfcnet.data import cache, digits
from kfcnet.data.dataset import Arrays


def main():
    source = load_digits()
    images = source.images.astype(np.uint8)[..., np.newaxis]  # (1797, 8, 8, 1), values 0 to 16
    labels = source.target.astype(np.uint8)
    cut = digits.TRAIN_EXAMPLES
    arrays = Arrays(images[:cut], labels[:cut], images[cut:], labels[cut:])
    cache.write(digits.FILE, arrays, "gzip", source=digits.SOURCE, licence=digits.LICENCE)
    print(f"{digits.FILE}: {digits.FILE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
