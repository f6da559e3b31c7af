"""Counter-based randomness (physics rules 2.1 to 2.4): a draw depends on (seed, kind, id) and on nothing else."""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist

import numpy as np

from selfserve.simulator.jit import kernel

U = np.uint64
GAMMA = U(0x9E3779B97F4A7C15)
_M1, _M2 = U(0xBF58476D1CE4E5B9), U(0x94D049BB133111EB)
_S30, _S27, _S31 = U(30), U(27), U(31)

REQUEST, GAP, BOOT, LIFE, REFUSAL, UNSURE = range(1, 7)
QUANTILES = 4096


@kernel
def fin(z):
    """Return the finalizer of splitmix64 (Steele et al., OOPSLA 2014), a bijection of 64-bit numbers."""
    z ^= z >> _S30
    z *= _M1
    z ^= z >> _S27
    z *= _M2
    return z ^ (z >> _S31)


@kernel
def draw(base, ident):
    """Return the 64-bit draw of an id from the base of (seed, kind)."""
    return fin(base + (U(ident) + U(1)) * GAMMA)


def bases(seed: int) -> np.ndarray:
    """Return the base of every kind, uint64 [7], index 0 unused."""
    mask = 2**64 - 1

    def mix(z: int) -> int:
        z ^= z >> 30
        z = z * int(_M1) & mask
        z ^= z >> 27
        z = z * int(_M2) & mask
        return z ^ (z >> 31)

    root = mix((seed + int(GAMMA)) & mask)
    return np.array([mix((root + kind * int(GAMMA)) & mask) for kind in range(7)], dtype=np.uint64)


def lognormal_table(spread: float) -> np.ndarray:
    """Return the quantiles of a lognormal with mean 1, int64 [4096] in units of 1/65536 (rule 2.3).

    Args:
        spread: coefficient of variation, at least 0.
    """
    return _lognormal(spread).copy()


@lru_cache(maxsize=64)  # asked for again and again with the same spread
def _lognormal(spread: float) -> np.ndarray:
    if spread == 0:
        return np.full(QUANTILES, 65536, dtype=np.int64)
    s = math.sqrt(math.log1p(spread * spread))
    normal = NormalDist()
    x = [math.exp(s * normal.inv_cdf((i + 0.5) / QUANTILES) - s * s / 2) for i in range(QUANTILES)]
    mean = math.fsum(x) / QUANTILES
    return np.array([round(v / mean * 65536) for v in x], dtype=np.int64)


def exponential_table() -> np.ndarray:
    """Return the knots of the exponential quantile function, int64 [4097] in units of 2^-24 (rule 2.4)."""
    knots = [round(-math.log1p(-k / QUANTILES) * 2**24) for k in range(QUANTILES)]
    return np.array([*knots, round((math.log(QUANTILES) + 2) * 2**24)], dtype=np.int64)


_KNOTS = exponential_table().astype(np.int32)  # half as much cache as 64 bits


@kernel
def exponential(h):
    """Return a unit exponential in units of 2^-24 from the top 24 bits of a draw."""
    k = h >> U(52)
    f = np.int64((h >> U(40)) & U(4095))
    low = np.int64(_KNOTS[k])
    return low + (((_KNOTS[k + U(1)] - low) * f) >> 12)
