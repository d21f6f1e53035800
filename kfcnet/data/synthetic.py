"""Made-up images of CIFAR's shape with the statistics of natural ones, for benchmarks and trials.

An image is the pattern of its class, moved by a few pixels, plus a pattern of its own. Both are
random fields whose amplitude falls as 1/frequency in every direction (Field 1987), stronger in
brightness than in the two colour contrasts. All of it comes from a fixed seed.
"""

import numpy as np

from kfcnet.data.dataset import Arrays
from kfcnet.philox import SYNTHETIC, normals, words

CLASSES = 10
SIZE = 32
SEED = 0
VERSION = 1
"""Goes into the cache's name: raise it when the images change."""

BLOCK_IMAGES = 128
PATTERNS, TRAIN, TEST, TRAIN_SHIFTS, TEST_SHIFTS = range(5)
"""Streams of random numbers: a longer training set begins with the images of a shorter one."""

CLASS_SHARE = 0.1
"""Share of an image's variance that its class decides."""

SHIFTS = 9
"""A class's pattern moves by 0 to SHIFTS - 1 pixels down and right, cyclically."""

BRIGHTNESS, CONTRAST = 128.0, 50.0
CHANNEL_DEVIATIONS = np.array([0.96, 0.22, 0.17])
OPPONENT_AXES = np.array([[1, 1, 1], [1, -1, 0], [1, 1, -2]])  # brightness, red-green, blue-yellow


def generate(examples):
    """`examples` images to train on and a fifth as many (at least one) to test on, as Arrays."""
    patterns = fields(0, PATTERNS)[:CLASSES]
    train = _images(patterns, examples, TRAIN, TRAIN_SHIFTS)
    test = _images(patterns, max(1, examples // 5), TEST, TEST_SHIFTS)
    return Arrays(*train, *test)


def _images(patterns, count, stream, shift_stream):
    """Images uint8 (count, 32, 32, 3) and their labels, which go round the classes."""
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
    """Each of (n, 32, 32, 3) moved cyclically by its own (down, right) of (n, 2) pixels."""
    pixels = np.arange(SIZE)
    rows = (pixels - shifts[:, :1].astype(int)) % SIZE
    columns = (pixels - shifts[:, 1:].astype(int)) % SIZE
    which = np.arange(len(images))[:, np.newaxis, np.newaxis]
    return images[which, rows[:, :, np.newaxis], columns[:, np.newaxis, :]]


def fields(block, stream):
    """Random fields with a 1/f amplitude spectrum: float64 (BLOCK_IMAGES, 32, 32, 3).

    Every colour channel has mean zero and variance about one.
    """
    shape = (BLOCK_IMAGES, SIZE, SIZE, 3)
    noise = normals(SEED, SYNTHETIC, block, int(np.prod(shape)), stream).reshape(shape)
    spectrum = np.fft.rfft2(noise, axes=(1, 2)) * amplitudes()[:, :, np.newaxis]
    opponent = np.fft.irfft2(spectrum, s=(SIZE, SIZE), axes=(1, 2)) * CHANNEL_DEVIATIONS
    axes = OPPONENT_AXES / np.linalg.norm(OPPONENT_AXES, axis=1, keepdims=True)
    return np.sqrt(3) * opponent @ axes


def amplitudes():
    """Gain 1/f of every frequency, (32, 17), scaled so that white noise keeps its variance."""
    rows, columns = np.fft.fftfreq(SIZE), np.fft.fftfreq(SIZE)
    frequency = np.hypot(rows[:, np.newaxis], columns)
    frequency[0, 0] = 1 / SIZE  # an image's brightness varies as much as its slowest wave
    gain = 1 / frequency
    return (gain / np.sqrt(np.mean(gain**2)))[:, : SIZE // 2 + 1]
