"""Deterministic value noise for numba kernels."""

# ruff: noqa: RUF046 - numba's floor returns a float

from math import floor

from numba import njit


@njit(fastmath=True)
def hash01(a, b, c):
    """A number in [0, 1) from three integers."""
    h = (a * 374761393 + b * 668265263 + c * 2147483647) & 0xFFFFFFFF
    h = ((h ^ (h >> 13)) * 1274126177) & 0xFFFFFFFF
    h = ((h ^ (h >> 15)) * 2246822519) & 0xFFFFFFFF
    return ((h ^ (h >> 16)) & 0xFFFFFF) / 16777216.0


@njit(fastmath=True)
def noise2(x, y, seed):
    """Smooth value noise in [0, 1], one lattice cell per unit."""
    ix, iy = int(floor(x)), int(floor(y))
    fx, fy = x - ix, y - iy
    fx, fy = fx * fx * (3.0 - 2.0 * fx), fy * fy * (3.0 - 2.0 * fy)
    a, b = hash01(ix, iy, seed), hash01(ix + 1, iy, seed)
    c, d = hash01(ix, iy + 1, seed), hash01(ix + 1, iy + 1, seed)
    return (a + (b - a) * fx) * (1.0 - fy) + (c + (d - c) * fx) * fy


@njit(fastmath=True)
def fractal2(x, y, seed):
    """Three octaves of `noise2`, in [0, 1]."""
    n = 0.57 * noise2(x, y, seed) + 0.29 * noise2(2.03 * x + 5.2, 2.03 * y + 1.3, seed + 1)
    return n + 0.14 * noise2(4.1 * x + 9.1, 4.1 * y + 7.7, seed + 2)


@njit(fastmath=True)
def step(low, high, v):
    """Smooth step from 0 at `low` to 1 at `high`; `low` may be above `high`."""
    t = min(max((v - low) / (high - low), 0.0), 1.0)
    return t * t * (3.0 - 2.0 * t)
