"""Synthetic images of CIFAR's shape with statistics of natural images, for benchmarks and trials.

An image is the sum of its class's pattern, shifted by a few pixels, and a pattern of its own. Both
are random fields whose amplitude falls as 1/frequency in every direction (Field 1987), with more
variance in brightness than in the two colour contrasts. The seed is fixed.
"""

import numpy as np
from numpy.typing import NDArray

from kfcnet.data.dataset import Arrays
from kfcnet.philox import SYNTHETIC, normals, words

CLASSES = 10
SIZE = 32
SEED = 0
VERSION = 1
"""Part of the cache's name: raise it when the images change."""

BLOCK_IMAGES = 128
PATTERNS, TRAIN, TEST, TRAIN_SHIFTS, TEST_SHIFTS = range(5)
"""Streams of random numbers: a larger training set starts with the images of a smaller one."""

CLASS_SHARE = 0.1
"""Share of an image's variance that its class determines."""

SHIFTS = 9
"""A class's pattern is shifted cyclically by 0 to SHIFTS - 1 pixels down and right."""

BRIGHTNESS, CONTRAST = 128.0, 50.0
CHANNEL_DEVIATIONS = np.array([0.96, 0.22, 0.17])
OPPONENT_AXES = np.array([[1, 1, 1], [1, -1, 0], [1, 1, -2]])  # brightness, red-green, blue-yellow


def generate(examples: int) -> Arrays:
    """`examples` training images and a fifth as many test images, at least one."""
    patterns = fields(0, PATTERNS)[:CLASSES]
    train = _images(patterns, examples, TRAIN, TRAIN_SHIFTS)
    test = _images(patterns, max(1, examples // 5), TEST, TEST_SHIFTS)
    return Arrays(*train, *test)


def _images(patterns, count, stream, shift_stream):
    """Images uint8 (count, 32, 32, 3) and their labels 0, 1, ..., 9, 0, 1, ..."""
    labels = (np.arange(count) % CLASSES).astype(np.uint8)
    shifts = words(SEED, SYNTHETIC, 0, 2 * count, shift_stream).reshape(count, 2) % SHIFTS
    images = np.empty((count, SIZE, SIZE, 3), np.uint8)
    for begin in range(0, count, BLOCK_IMAGES):
        block = slice(begin, begin + BLOCK_IMAGES)
        own = fields(begin // BLOCK_IMAGES, stream)[: len(labels[block])]
        of_class = _moved(patterns[labels[block]], shifts[block])
        mixed = np.sqrt(CLASS_SHARE) * of_class + np.sqrt(1 - CLASS_SHARE) * own
        images[block] = np.clip(np.rint(BRIGHTNESS + CONTRAST * mixed), 0, 255)
    return images, labels


def _moved(images, shifts):
    """Images (n, 32, 32, 3), each shifted cyclically by its (down, right) of shifts (n, 2)."""
    pixels = np.arange(SIZE)
    rows = (pixels - shifts[:, :1].astype(int)) % SIZE
    columns = (pixels - shifts[:, 1:].astype(int)) % SIZE
    which = np.arange(len(images))[:, np.newaxis, np.newaxis]
    return images[which, rows[:, :, np.newaxis], columns[:, np.newaxis, :]]


def fields(block: int, stream: int) -> NDArray[np.float64]:
    """Random fields with a 1/f amplitude spectrum: float64 (BLOCK_IMAGES, 32, 32, 3).

    Every colour channel has mean zero and variance about one.
    """
    shape = (BLOCK_IMAGES, SIZE, SIZE, 3)
    noise = normals(SEED, SYNTHETIC, block, int(np.prod(shape)), stream).reshape(shape)
    spectrum = np.fft.rfft2(noise, axes=(1, 2)) * amplitudes()[:, :, np.newaxis]
    opponent = np.fft.irfft2(spectrum, s=(SIZE, SIZE), axes=(1, 2)) * CHANNEL_DEVIATIONS
    axes = OPPONENT_AXES / np.linalg.norm(OPPONENT_AXES, axis=1, keepdims=True)
    return np.sqrt(3) * opponent @ axes


def amplitudes() -> NDArray[np.float64]:
    """Gain 1/f of every frequency, (32, 17), scaled to preserve the variance of white noise."""
    rows, columns = np.fft.fftfreq(SIZE), np.fft.fftfreq(SIZE)
    frequency = np.hypot(rows[:, np.newaxis], columns)
    frequency[0, 0] = 1 / SIZE  # the mean brightness varies as much as the lowest frequency
    gain = 1 / frequency
    return (gain / np.sqrt(np.mean(gain**2)))[:, : SIZE // 2 + 1]
