"""A seeded permutation of any number of positions; each position is computed directly, without storing or visiting others.

It is a Feistel network on pairs. The n positions become pairs (left, right) with left < a, right < b and a * b just above
n. Each round adds a hash of one half to the other half, modulo its size. Every round can be undone, so the whole is a
bijection of the a * b pairs. A pair that lands outside n goes through again (cycle walking), which keeps the bijection.

Source: J. Black and P. Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002: cycle walking, Feistel on a * b.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
from numpy.typing import NDArray

I64Array = NDArray[np.int64]
U64Array = NDArray[np.uint64]

NUM_ROUNDS = 6  # two more than the four that make a Feistel network a strong pseudo-random permutation

# Finaliser of SplitMix64 (G. Steele, D. Lea, C. Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014).
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_SHIFT_1, _SHIFT_2, _SHIFT_3 = np.uint64(30), np.uint64(27), np.uint64(31)


def round_keys(*parts: int | str) -> U64Array:
    """Return the keys of one permutation, [NUM_ROUNDS]: a pure function of the parts of its name."""
    name = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    digest = hashlib.sha512(name.encode()).digest()
    return np.frombuffer(digest, dtype="<u8", count=NUM_ROUNDS).astype(np.uint64)


def numbered_keys(numbers: I64Array, *parts: int | str) -> U64Array:
    """Return the keys of one permutation for each number, [K, NUM_ROUNDS]: a pure function of (parts, number)."""
    return random_bits(numbers.astype(np.uint64)[:, None], round_keys(*parts))


def random_bits(values: U64Array, keys: U64Array) -> U64Array:
    """Return 64 bits for each value under its key, as a pure function of both; shapes broadcast."""
    mixed = values ^ keys
    mixed = (mixed ^ (mixed >> _SHIFT_1)) * _MIX_1
    mixed = (mixed ^ (mixed >> _SHIFT_2)) * _MIX_2
    return mixed ^ (mixed >> _SHIFT_3)


def permute(positions: U64Array, num_positions: int, keys: U64Array) -> U64Array:
    """Return where each position goes under the keys' permutation of `range(num_positions)`.

    Args:
        positions: [K] values below `num_positions`.
        num_positions: Size of the permuted range, 1 to 2**62.
        keys: [NUM_ROUNDS] for one permutation of all positions, or [K, NUM_ROUNDS] for a separate one for each.

    Returns:
        [K] values below `num_positions`.
    """
    if not 1 <= num_positions <= 2**62:
        raise ValueError(f"cannot permute {num_positions} positions")
    keys = np.broadcast_to(keys, (len(positions), NUM_ROUNDS))
    placed = _one_pass(positions, num_positions, keys)
    while len(outside := np.flatnonzero(placed >= np.uint64(num_positions))):
        placed[outside] = _one_pass(placed[outside], num_positions, keys[outside])
    return placed


def _one_pass(values: U64Array, num_positions: int, keys: U64Array) -> U64Array:
    num_right = math.isqrt(num_positions - 1) + 1
    num_left = -(-num_positions // num_right)
    size_left, size_right = np.uint64(num_left), np.uint64(num_right)
    left, right = values // size_right, values % size_right
    for number in range(NUM_ROUNDS):
        if number % 2 == 0:
            left = (left + random_bits(right, keys[:, number]) % size_left) % size_left
        else:
            right = (right + random_bits(left, keys[:, number]) % size_right) % size_right
    return left * size_right + right
