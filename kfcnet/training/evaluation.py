"""Loss and error of a network on given images, and trained networks read back from their runs."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kfcnet.batches import Examples
from kfcnet.config import ConfigError, parse_config
from kfcnet.config.schema import Config
from kfcnet.data import DataError, Dataset
from kfcnet.data.dataset import as_float32, why_no_classes
from kfcnet.layers import Layer
from kfcnet.layers.normalization import BatchStatistics
from kfcnet.ops.cpu.blas import one_blas_thread
from kfcnet.runs.checkpoint import CHECKPOINT, load_checkpoint
from kfcnet.runs.files import write_bytes
from kfcnet.runs.folder import DATA
from kfcnet.training.build import build_model, build_ops, reconstructs, with_classes
from kfcnet.training.exports import from_arrays, to_arrays


@one_blas_thread
def evaluate(network, loss, examples, indices=None, check=lambda: None):
    """(mean loss in nats, mean error) of a network as it stands on some examples.

    The error is the share of wrong classes, of an autoencoder the mean square of what it misses.

    `indices` (n,): which examples, all by default. `check` is called between mini-batches, for
    callers who want to stop by raising.
    """
    indices = np.arange(len(examples)) if indices is None else indices
    totals, ranks = np.zeros(2), network.ops.ranks
    for batch in examples.batches(ranks.share(indices)):
        check()
        evaluated = loss.evaluate(network.forward(batch.inputs), batch.targets)
        totals += network.ops.to_numpy(evaluated.totals)
    mean_loss, error = sum(ranks.allgather(totals)) / len(indices)
    return float(mean_loss), float(error)


def batch_statistics(network):
    """{layer name: {"mean" (J,), "inv_std" (J,)}} of the network's batch normalisations."""
    to_numpy = network.ops.to_numpy
    return {
        layer.name: {part: to_numpy(array) for part, array in layer.population._asdict().items()}
        for layer in network.layers
        if getattr(layer, "population", None) is not None
    }


class TrainedNetwork:
    """A network with the averaged parameters of a run, for images as the data set has them."""

    def __init__(self, config: Config, checkpoint: dict, device: str = "cpu") -> None:
        """config: that of the run; checkpoint: what `load_checkpoint` returned."""
        ops = build_ops(config, device)
        self.config, self.steps = config, checkpoint["optimizer"]["steps"]
        self.mean = checkpoint["data"]["mean"]
        # Older checkpoints are of published data, whose pixels are bytes.
        self.pixels = np.dtype(checkpoint["data"].get("pixels", "uint8"))
        self.class_names = tuple(json.loads(checkpoint["data"].get("classes", "[]")))
        self.data_checksum = checkpoint["origin"][DATA]
        self.network, self.loss = build_model(config, ops, self.mean.shape)
        ops.write(self.network.theta, checkpoint["optimizer"]["average"])
        for layer in self.network.layers:
            if layer.name in checkpoint["statistics"]:
                saved = checkpoint["statistics"][layer.name]
                layer.population = BatchStatistics(
                    *(ops.asarray(saved[part]) for part in BatchStatistics._fields)
                )

    def __reduce__(self) -> Any:
        raise TypeError(
            "a trained network holds functions of its device, and is neither pickled nor copied: "
            "keep it by run.save(path), or its run's folder, and read it by kfcnet.load(path)"
        )

    @classmethod
    def of_run(
        cls, folder: str | Path, device: str = "cpu", layers: Iterable[type[Layer]] = ()
    ) -> "TrainedNetwork":
        """That of the run in a folder. Raises CheckpointError where it cannot be used.

        layers: the classes of its custom layers; ConfigError where one is not given.
        """
        path = Path(folder) / CHECKPOINT
        checkpoint = load_checkpoint(path)
        config = with_classes(parse_config(checkpoint["config"], str(path)), layers)
        try:
            return cls(config, checkpoint, device)
        except ValueError as error:
            raise ConfigError(f"{path}: {error}") from None

    def predict(self, images: ArrayLike) -> NDArray:
        """Class numbers int64 (M,) of raw images (M, H, W, C); `class_names` has their names.

        An autoencoder gives the images (M, H, W, C) that it makes of them, as floating-point
        pixels.
        """
        if reconstructs(self.config):
            pixels = self.logits(images).reshape(-1, *self.mean.shape)
            return pixels * self.config.data.input_scale + self.mean
        return self.probabilities(images).argmax(axis=1)

    def predict_proba(self, images: ArrayLike) -> NDArray:
        """The same as `probabilities`, by the name that scikit-learn gives it."""
        return self.probabilities(images)

    def probabilities(self, images: ArrayLike) -> NDArray:
        """Predictive distributions (M, classes) of raw images (M, H, W, C).

        Raises ValueError for images of another shape or kind than the network was trained on.
        """
        return self._outputs(images, self.loss.predictive)

    def logits(self, images: ArrayLike) -> NDArray:
        """What the last layer computes, (M, classes), of raw images (M, H, W, C).

        Raises ValueError like `probabilities`.
        """
        return self._outputs(images, lambda z: z)

    @one_blas_thread
    def _outputs(self, images, function):
        """function(logits) of raw images, in batches of an evaluation."""
        images, to_numpy = np.asarray(images), self.network.ops.to_numpy
        examples = self.examples(images, np.zeros(images.shape[:1], np.int32))
        parts = [
            to_numpy(function(self.network.forward(batch.inputs))).copy()
            for batch in examples.batches(np.arange(len(images)))
        ]
        none = np.empty((0, *self.network.layers[-1].output_shape), self.network.ops.dtype)
        return np.concatenate([none, *parts])

    def to_arrays(self) -> dict[str, NDArray]:
        """{name: array} of all weights, such as `conv1.weight` (I, K, K, J) and `conv1.bias` (I,).

        The table of names and shapes is in `kfcnet.training.exports.arrays`.
        """
        return to_arrays(self.network)

    def from_arrays(self, arrays: Mapping[str, ArrayLike]) -> "TrainedNetwork":
        """A network like this one with other weights, of the names and shapes of `to_arrays`.

        It is of no run, so that it has neither history nor `save`. Raises ValueError naming an
        array that is missing, unknown, of another shape or not finite.
        """
        other = TrainedNetwork.__new__(TrainedNetwork)
        for name in ("config", "steps", "mean", "pixels", "class_names", "data_checksum", "loss"):
            setattr(other, name, getattr(self, name))
        other.network = self.network.copy()
        from_arrays(other.network, arrays)
        return other

    def to_torch(self) -> Any:
        """A torch.nn.Module in evaluation mode: raw images (M, H, W, C) -> logits (M, classes).

        Its weights are copies. Raises ImportError without PyTorch, ValueError for custom layers.
        """
        try:
            from kfcnet.training.exports.torch_module import to_torch
        except ImportError as error:
            raise ImportError("to_torch needs PyTorch: pip install torch") from error
        return to_torch(self.network, self.mean, self.config.data.input_scale)

    def to_onnx(self, path: str | Path) -> None:
        """Write an ONNX model: `images` (M, H, W, C), raw pixels as float32 -> `logits`.

        Raises ImportError without the package onnx, ValueError for custom layers, WriteError where
        the file cannot be written.
        """
        try:
            from kfcnet.training.exports.onnx_model import to_onnx
        except ImportError as error:
            raise ImportError("to_onnx needs the package onnx: pip install onnx") from error
        model = to_onnx(self.network, self.mean, self.config.data.input_scale)
        write_bytes(path, model.SerializeToString())

    def evaluate(self, images: ArrayLike, labels: ArrayLike | None) -> tuple[float, float]:
        """(mean loss in nats, share of wrong classes) on raw images (M, H, W, C), labels (M,); of
        an autoencoder (mean loss, mean square of what it misses).

        Raises ValueError like `examples`, and where there is no image.
        """
        if not len(images):
            raise ValueError("no images given: there is nothing to average")
        return evaluate(self.network, self.loss, self.examples(images, labels))

    def class_errors(self, images: ArrayLike, labels: ArrayLike | None) -> dict[str, float]:
        """{name of a class: share of its images given another one}, the highest share first.

        Classes without names or images are left out; an autoencoder has none. Raises ValueError
        like `examples`.
        """
        examples = self.examples(images, labels)  # checks both
        if reconstructs(self.config):
            return {}
        labels = self.network.ops.to_numpy(examples.labels)
        wrong = self.predict(images) != labels
        present = [label for label in range(len(self.class_names)) if (labels == label).any()]
        errors = {
            self.class_names[label]: float(wrong[labels == label].mean()) for label in present
        }
        return dict(sorted(errors.items(), key=lambda item: -item[1]))

    def check_data(self, dataset: Dataset) -> None:
        """Raise DataError unless `dataset` is the one that the network was trained on."""
        found = dataset.provenance["sha256"]
        if found != self.data_checksum:
            raise DataError(
                f"the run was trained on other data than the {dataset.name} found here "
                f"(checksum {self.data_checksum[:12]}, here {found[:12]}); name the "
                "place of its data by --data"
            )

    def examples(self, images: ArrayLike, labels: ArrayLike | None) -> Examples:
        """Raw images (M, H, W, C), grey ones also (M, H, W), and labels (M,) or (M, 1) as the
        network takes them; an autoencoder does not look at labels, which may be None.

        Pixels are uint8, or floating where it was trained on such. Raises ValueError for images of
        another shape or kind than the network was trained on, and for labels that are not its
        classes.
        """
        images = np.asarray(images)
        given = images.shape
        autoencoder = reconstructs(self.config)
        labels = np.zeros(given[:1], np.int32) if autoencoder else np.asarray(labels)
        if labels.ndim == 2 and labels.shape[1] == 1:
            labels = labels[:, 0]
        if images.ndim == 3 and self.mean.shape[-1] == 1:  # grey images without a channel
            images = images[..., None]
        if images.shape[1:] != self.mean.shape or images.ndim != 4:
            raise ValueError(
                f"images of shape {given} given; the network takes "
                f"(M, {', '.join(map(str, self.mean.shape))})"
            )
        if self.pixels == np.uint8 and images.dtype != np.uint8:
            raise ValueError(f"images of {images.dtype} given; the network takes raw pixels, uint8")
        if images.dtype.kind not in "uif":
            raise ValueError(f"images of {images.dtype} given; pixels are numbers")
        if self.pixels != np.uint8 and images.dtype.kind != "f":
            raise ValueError(
                f"images of {images.dtype} given; the network takes floating pixels, scaled as "
                "those that it was trained on"
            )
        if self.pixels != np.uint8:
            images, wrong = as_float32(images)
            if wrong is not None:
                raise ValueError(f"a pixel of image {wrong} is not finite in float32")
        if labels.shape != images.shape[:1]:
            raise ValueError(f"labels of shape {labels.shape} given for {len(images)} images")
        (classes,) = self.network.layers[-1].output_shape
        if reason := why_no_classes(labels, 0, classes - 1):
            raise ValueError(reason)
        return Examples(
            self.network.ops,
            images,
            labels.astype(np.int32),
            self.mean,
            self.config.data.input_scale,
            autoencoder,
        )


def load_run(path: str | Path, device: str = "cpu") -> TrainedNetwork:
    """The TrainedNetwork of the run in folder `path`: averaged weights, ready to `predict`.

    Needs nothing but the run's checkpoint. Raises CheckpointError where it cannot be used.
    """
    return TrainedNetwork.of_run(path, device)
