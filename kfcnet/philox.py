"""Counter-based random numbers: Philox 4x32-10 (Salmon et al. 2011, the Random123 definition).

A number depends only on (seed, purpose, step, stream, position), never on what was drawn before:
shuffles, dropout masks and sampled targets are the same on every device, and a resumed run needs
no generator state. `kernels/philox.cuh` is the same function on the GPU.
"""

import math
import numbers

import numpy as np

SHUFFLE, DROPOUT, TARGETS, INITIAL, SYNTHETIC, SPLIT = range(6)
"""What a number is for; the second word of the key, so that no two uses share a sequence."""

_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_KEY_INCREMENTS = 0x9E3779B9, 0xBB67AE85
_LOW = np.uint64(0xFFFFFFFF)
_HIGH = np.uint64(32)


def check_seed(seed, name):
    """Raise ValueError, which names it, for a seed that is no whole number below 2^32."""
    if not (isinstance(seed, numbers.Integral) and 0 <= seed < 2**32):
        raise ValueError(f"{name}: {seed!r} is no whole number from 0 to 2**32 - 1")


def philox4x32(counter, key):
    """Philox 4x32-10 of counters (4, n) under one key (2,): uint32 words (4, n)."""
    c0, c1, c2, c3 = (np.asarray(word).astype(np.uint64) for word in counter)
    k0, k1 = (int(word) for word in key)
    for _ in range(10):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (p1 >> _HIGH) ^ c1 ^ np.uint64(k0),
            p1 & _LOW,
            (p0 >> _HIGH) ^ c3 ^ np.uint64(k1),
            p0 & _LOW,
        )
        k0, k1 = (k0 + _KEY_INCREMENTS[0]) & 0xFFFFFFFF, (k1 + _KEY_INCREMENTS[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3]).astype(np.uint32)


def words(seed, purpose, step, count, stream=0):
    """`count` random uint32 words.

    Key (seed, purpose), counter (block, stream, step mod 2^32, step div 2^32); block b holds words
    4b to 4b + 3. All arguments are non-negative; seed, purpose and stream are below 2^32.
    """
    blocks = np.arange(-(-count // 4))
    fixed = [np.full(len(blocks), word) for word in (stream, step & 0xFFFFFFFF, step >> 32)]
    return philox4x32([blocks, *fixed], (seed, purpose)).T.reshape(-1)[:count]


def permutation(seed, purpose, step, count, stream=0):
    """The numbers below `count` in random order, int64 (count,): sorted by a random word each."""
    return np.argsort(words(seed, purpose, step, count, stream), kind="stable")


def words_at(positions, seed, purpose, step, stream=0):
    """The words at ascending positions (n,) of the sequence of `words`, and no others computed."""
    blocks = positions // 4
    is_new = np.concatenate([[True], blocks[1:] != blocks[:-1]])[: len(blocks)]
    needed = blocks[is_new]
    fixed = [np.full(len(needed), word) for word in (stream, step & 0xFFFFFFFF, step >> 32)]
    return philox4x32([needed, *fixed], (seed, purpose))[positions % 4, np.cumsum(is_new) - 1]


def uniforms(seed, purpose, step, count, stream=0):
    """`count` float64 numbers in [0, 1), multiples of 2^-24 and therefore exact in float32 too."""
    return uniform(words(seed, purpose, step, count, stream))


def fill_uniforms(out, seed, purpose, step, stream, first):
    """out (n,) <- the uniforms from number `first` of their sequence on; a float type."""
    out[...] = uniform(words_at(first + np.arange(len(out)), seed, purpose, step, stream))


def uniform(word):
    """Words as numbers in [0, 1)."""
    return (word >> np.uint32(8)) * 2.0**-24


def threshold(keep):
    """The least whole number of 2^-24 that is not below `keep`.

    Uniforms are whole numbers of 2^-24: they are below both or neither, in float32 too.
    """
    return math.ceil(keep * 2**24)


def normals(seed, purpose, step, count, stream=0):
    """`count` float64 standard normals: Box-Muller on pairs of uniforms, cosine then sine."""
    pairs = uniforms(seed, purpose, step, 2 * -(-count // 2), stream).reshape(-1, 2)
    radius = np.sqrt(-2.0 * np.log1p(-pairs[:, 0]))  # 1 - u is in (0, 1]: the logarithm is finite
    angle = 2.0 * np.pi * pairs[:, 1]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)[:count]
