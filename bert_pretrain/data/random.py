"""Random numbers without state: every draw is a hash of integers that say what it is for.

A generator that is advanced draw by draw makes a result depend on how many draws came before it,
hence on the number of processes, workers and interruptions. Here a draw is a pure function of its
keys, such as (seed, epoch, purpose, document, window), so any process computes any draw by itself,
in any order and for whole arrays at once.

The hash is SplitMix64 read at a position instead of advanced: each key moves the state by (key + 1)
golden-ratio steps and mixes it. Keys are absorbed one after the other, so their order counts.

Source: Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators", figure 18
(constants: Stafford's mix 13).
"""

from __future__ import annotations

from enum import IntEnum
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Key: TypeAlias = "int | np.integer[Any] | NDArray[Any]"

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_MASK_64 = 0xFFFFFFFFFFFFFFFF


class Purpose(IntEnum):
    """What a draw decides. One number per use keeps streams that share their other keys apart."""

    FIRST_TARGET = 1
    IS_SHORT = 2
    SHORT_TARGET = 3
    SPLIT = 4
    MATCH_TIE = 5
    DOCUMENT_RANK = 6
    SWAP = 7
    TRAINING_ORDER = 8
    GOOGLE_PAIRS = 9
    TRAINING_ROW = 10
    EVALUATION_ROW = 11
    MASK_ORDER = 12
    MASK_ACTION = 13
    REPLACEMENT = 14
    SPAN_LENGTH = 15
    DROPOUT = 16
    IMAGE_SPLIT = 17
    AUGMENTATION = 18
    INPUT_NOISE = 19
    PATCH_MASK = 20
    NEGATIVE = 21
    BLOCK_ORDER = 22


def hash_uint64(*keys: Key) -> NDArray[np.uint64]:
    """Hash integer keys to 64 well-mixed bits.

    Args:
        *keys: Integers or integer arrays of any type that broadcast together; negative values count
        modulo 2**64.

    Returns:
        uint64 array of the broadcast shape (shape () when every key is a scalar).
    """
    num_plain = next((i for i, key in enumerate(keys) if not isinstance(key, int)), len(keys))
    return _absorb(_hash_integers(keys[:num_plain]), keys[num_plain:])


def uniform(*keys: Key) -> NDArray[np.float64]:
    """Draw from [0, 1) in steps of 2**-53, one number per broadcast element of the keys."""
    return np.asarray((hash_uint64(*keys) >> np.uint64(11)) * 2.0**-53)


def integers(low: Key, high: Key, *keys: Key) -> NDArray[np.int64]:
    """Draw integers from [low, high), one per broadcast element.

    The hash is scaled to the range by the high half of a 64 x 32 bit product, so that the
    probability of a value is off by less than 2**-64 from uniform, without rejection.

    Args:
        low: Smallest value, integer or integer array.
        high: One more than the largest value; 1 <= high - low < 2**32.
        *keys: As for `hash_uint64`.

    Returns:
        int64 array of the broadcast shape of everything given.
    """
    low_array = np.asarray(low, dtype=np.int64)
    size = (np.asarray(high, dtype=np.int64) - low_array).astype(np.uint64)
    bits = hash_uint64(*keys)
    half = np.uint64(32)
    upper, lower = bits >> half, bits & np.uint64(0xFFFFFFFF)
    return np.asarray(
        low_array + ((upper * size + ((lower * size) >> half)) >> half).astype(np.int64)
    )


def permutation(n: int, *keys: Key) -> NDArray[np.int64]:
    """Return a random order of 0..n-1 as int64 (n,); the keys are scalars."""
    return np.argsort(hash_uint64(*keys, np.arange(n)), kind="stable").astype(np.int64)


@lru_cache(maxsize=16)
def _hash_integers(keys: tuple[Key, ...]) -> NDArray[np.uint64]:
    """Hash the plain integers that most keys begin with, once for all the arrays that follow."""
    state = _absorb(np.zeros((), dtype=np.uint64), keys)
    state.flags.writeable = False
    return state


def _absorb(state: NDArray[np.uint64], keys: tuple[Key, ...]) -> NDArray[np.uint64]:
    with np.errstate(over="ignore"):  # arithmetic modulo 2**64 is the point
        for key in keys:
            state = _mix(state + (_as_uint64(key) + np.uint64(1)) * _GOLDEN)
    return np.asarray(state)


def _as_uint64(key: Key) -> NDArray[np.uint64]:
    if isinstance(key, int):
        return np.asarray(key & _MASK_64, dtype=np.uint64)
    return np.asarray(key).astype(np.uint64, copy=False)


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = (state ^ (state >> np.uint64(30))) * _MIX_1
    state = (state ^ (state >> np.uint64(27))) * _MIX_2
    return state ^ (state >> np.uint64(31))
