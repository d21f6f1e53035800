"""MNIST (LeCun et al. 1998) and Fashion-MNIST (Xiao et al. 2017): 28x28 grey images, 10 classes.

Both have 60,000 images to train and 10,000 to test, in files of the same names.
"""

from dataclasses import dataclass

from kfcnet.config.schema import DataConfig
from kfcnet.data import idx
from kfcnet.data.dataset import Arrays
from kfcnet.data.files import Distribution


@dataclass(frozen=True)
class MnistLike:
    """One of the two sets; `sums` are the MD5 sums of the four compressed files."""

    TITLE: str
    url: str
    sums: tuple[str, str, str, str]
    CLASS_NAMES: tuple[str, ...] = ()
    CLASSES: int = 10

    def distributions(self, config: DataConfig) -> list[Distribution]:
        """The one published form. Only by their sums can the files of the two sets be told apart,
        so that unpacked ones are read as `idx`, under no set's name.
        """
        names = [f"{name}.gz" for name in idx.FILES]
        files = dict(zip(names, self.sums, strict=True))
        return [Distribution(files=files, read=self._read, must_match=True, url=self.url)]

    def _read(self, paths):
        train, test = idx.read(paths)
        return Arrays(*train, *test)


# The authors of MNIST publish no sums. These are the ones that PyTorch's and other libraries'
# downloads of it are checked with.
MNIST = MnistLike(
    "MNIST",
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    (
        "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "d53e105ee54ea40749a09fcbcd1e9432",
        "9fb629c4189551a2d022fa330f9573f3",
        "ec29112dd5afa0611ce80d1b7f02629c",
    ),
)
FASHION_MNIST = MnistLike(
    "Fashion-MNIST",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    (
        "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "25c81989df183df01b3e8a0aad5dffbe",
        "bef4ecab320f06d8554ea6380940ec79",
        "bb300cfdad3c16e7a12a480ee83cd310",
    ),
    (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
)
