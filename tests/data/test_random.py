"""Claims about the counter-based hash: it is SplitMix64, uniform, and its streams do not meet."""

from __future__ import annotations

from collections import Counter
from math import sqrt

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bert_pretrain.data.random import Purpose, hash_uint64, integers, permutation, uniform

INTEGERS = st.integers(-(2**63), 2**63 - 1)


def chi_square(counts: np.ndarray, expected: float) -> float:
    return float(((counts - expected) ** 2 / expected).sum())


def chi_square_bound(num_bins: int) -> float:
    """Mean plus 4 standard deviations: a chi-square with f degrees has mean f, variance 2 f."""
    degrees = num_bins - 1
    return degrees + 4 * sqrt(2 * degrees)


def test_first_hashes_are_the_published_outputs_of_splitmix64_with_seed_0() -> None:
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [int(hash_uint64(i)) for i in range(3)] == published


@given(st.lists(INTEGERS, min_size=1, max_size=4), st.integers(0, 3))
def test_scalar_draw_equals_array_element(keys: list[int], place: int) -> None:
    place = min(place, len(keys) - 1)
    mixed = [np.array([7, key, -1]) if i == place else key for i, key in enumerate(keys)]
    assert hash_uint64(*mixed)[1] == hash_uint64(*keys)
    assert uniform(*mixed)[1] == uniform(*keys)
    assert integers(-3, 1000, *mixed)[1] == integers(-3, 1000, *keys)


def test_keys_broadcast_like_nested_loops() -> None:
    grid = hash_uint64(5, np.arange(3)[:, None], np.arange(4))
    loops = [[int(hash_uint64(5, i, j)) for j in range(4)] for i in range(3)]
    assert grid.dtype == np.uint64
    assert grid.tolist() == loops


def test_order_and_number_of_keys_matter() -> None:
    assert (
        len({int(hash_uint64(*keys)) for keys in [(1, 2), (2, 1), (1,), (1, 2, 0), (0, 1, 2)]}) == 5
    )


def test_streams_of_different_keys_never_collide() -> None:
    """The chance that any two of n = 320,000 64-bit hashes are equal is n^2 / 2^65 = 3e-9."""
    streams = [
        hash_uint64(seed, epoch, purpose, np.arange(2000))
        for seed in (0, 1)
        for epoch in range(5)
        for purpose in Purpose
    ]
    together = np.concatenate(streams)
    assert len(np.unique(together)) == len(together)


def test_streams_of_neighbouring_keys_are_uncorrelated() -> None:
    n = 20_000
    draws = [uniform(seed, purpose, np.arange(n)) for seed in (0, 1) for purpose in (1, 2, 3)]
    correlation = np.corrcoef(draws)[np.triu_indices(len(draws), k=1)]
    assert np.abs(correlation).max() < 4 / sqrt(n)


def test_flipping_any_bit_of_a_key_flips_half_of_the_hash() -> None:
    n = 500
    keys = np.arange(n, dtype=np.uint64) * np.uint64(977)
    original = hash_uint64(3, keys)
    flipped = hash_uint64(3, keys ^ (np.uint64(1) << np.arange(64, dtype=np.uint64))[:, None])
    changed = np.unpackbits((original ^ flipped).view(np.uint8), axis=None).reshape(64, -1)
    assert changed.shape == (64, n * 64)
    bound = 5 * 0.5 / sqrt(n * 64)  # 5 sigma, since the largest of 64 deviations is tested
    assert np.abs(changed.mean(axis=1) - 0.5).max() < bound


def test_uniform_fills_equal_bins_equally() -> None:
    draws = uniform(11, np.arange(2**16))
    counts = np.bincount((draws * 256).astype(int), minlength=256)
    assert draws.min() >= 0
    assert draws.max() < 1
    assert chi_square(counts, 2**16 / 256) < chi_square_bound(256)


def test_integers_are_uniform_on_a_half_open_range() -> None:
    draws = integers(-3, 4, 13, np.arange(70_000))
    values, counts = np.unique(draws, return_counts=True)
    assert values.tolist() == [-3, -2, -1, 0, 1, 2, 3]
    assert chi_square(counts, 10_000) < chi_square_bound(7)


def test_integers_scale_the_hash_without_rounding_it() -> None:
    size = 2**32 - 1  # the larger the range, the more the low half of the hash matters
    for key in range(2000):
        assert int(integers(0, size, key)) == int(hash_uint64(key)) * size >> 64


def test_integers_take_a_range_per_element() -> None:
    high = np.arange(1, 2001)
    draws = integers(0, high, 17, np.arange(2000))
    assert (draws >= 0).all()
    assert (draws < high).all()


def test_every_order_of_four_is_equally_likely() -> None:
    orders = Counter(tuple(permutation(4, 19, i).tolist()) for i in range(4800))
    assert len(orders) == 24
    assert chi_square(np.array(list(orders.values())), 200) < chi_square_bound(24)


@given(st.integers(0, 300), INTEGERS)
def test_permutation_holds_every_number_once(n: int, seed: int) -> None:
    assert sorted(permutation(n, seed).tolist()) == list(range(n))
