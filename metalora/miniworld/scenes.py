"""Ten places behind a person, in picture coordinates: x to the right, y up, 1 unit = half the shorter side."""

# ruff: noqa: RUF046 - numba's floor returns a float

from math import exp, floor, sin, sqrt

from numba import njit

from metalora.miniworld.noise import fractal2, hash01, noise2, step


@njit(fastmath=True)
def _mix(a, b, t):
    return a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t, a[2] + (b[2] - a[2]) * t


@njit(fastmath=True)
def _beach(x, y, s, r0, r1):
    horizon = -0.10 + 0.35 * r0
    if y > horizon:
        sky = _mix((0.72, 0.88, 0.97), (0.30, 0.58, 0.90), min((y - horizon) * 0.8, 1.0))
        return _mix(sky, (1.0, 1.0, 1.0), 0.85 * step(0.52, 0.75, fractal2(x * 1.3 + 9 * r1, y * 3.0, s)))
    shore = horizon - 0.42 - 0.06 * sin(4 * x + 6 * r1)
    if y > shore:
        sea = _mix((0.10, 0.62, 0.70), (0.05, 0.33, 0.60), step(shore, horizon, y))
        return _mix(
            sea,
            (0.95, 0.98, 1.0),
            0.9 * step(shore + 0.05, shore, y) + 0.35 * step(0.66, 0.8, noise2(x * 5, y * 26, s)),
        )
    return _mix((0.93, 0.83, 0.62), (0.80, 0.67, 0.45), 0.7 * fractal2(x * 5, y * 9, s))


@njit(fastmath=True)
def _forest(x, y, s, r0, r1):
    depth = fractal2(x * 3.5, y * 3.5, s)
    c = _mix((0.05, 0.20, 0.07), (0.26, 0.50, 0.15), depth * 1.1)
    c = _mix(c, (0.75, 0.90, 0.45), 0.8 * step(0.66, 0.85, noise2(x * 6.0, y * 6.0, s + 5)) * step(-0.3, 1.0, y))
    for k in range(6):
        cx = -1.9 + 0.72 * k + 0.5 * (hash01(k, 3, s) - 0.5)
        w = 0.06 + 0.09 * hash01(k, 4, s)
        d = abs(x - cx + 0.05 * y) / w
        if d < 1.0:
            bark = noise2(x * 30, y * 3, s)
            c = _mix((0.34, 0.23, 0.14), (0.13, 0.08, 0.05), 0.6 * d * d + 0.4 * bark)
    return c if y > -0.95 + 0.1 * r0 else _mix(c, (0.25, 0.20, 0.08), 0.6)


@njit(fastmath=True)
def _garden(x, y, s, r0, r1):
    c = _mix((0.16, 0.45, 0.12), (0.45, 0.72, 0.25), fractal2(x * 4, y * 4, s))
    c = _mix(c, (0.75, 0.90, 0.98), step(0.75, 1.25, y + 0.2 * noise2(x * 3, 0.0, s)))
    for layer in range(2):
        f = 2.6 + 1.6 * layer
        gx, gy = x * f + 3.7 * layer, y * f
        cx, cy = floor(gx), floor(gy)
        k, j = int(cx), int(cy) + 50 * layer
        ox, oy = gx - cx - 0.3 - 0.4 * hash01(k, j, s), gy - cy - 0.3 - 0.4 * hash01(j, k, s + 1)
        d = sqrt(ox * ox + oy * oy)
        if d < 0.27 and hash01(k, j, s + 2) < 0.75:
            hue = hash01(k, j, s + 3)
            if d < 0.09:
                return 0.98, 0.85, 0.25
            if hue < 0.4:
                return 0.95, 0.35, 0.60
            if hue < 0.7:
                return 0.98, 0.95, 0.95
            return 0.80, 0.35, 0.85
    return c


@njit(fastmath=True)
def _desert(x, y, s, r0, r1):
    horizon = 0.05 + 0.3 * r0
    c = _mix((0.98, 0.87, 0.66), (0.45, 0.68, 0.88), min(max((y - horizon) * 0.8, 0.0), 1.0))
    for k in range(3):
        ridge = horizon - 0.42 * k + 0.20 * sin(1.7 * x + 5 * r1 + 2.3 * k) + 0.07 * sin(4.1 * x + 9 * r0 + k)
        if y < ridge:
            lit = step(-0.3, 0.3, sin(1.7 * x + 5 * r1 + 2.3 * k + 1.4) * 0.5 + (ridge - y) * 0.5)
            c = _mix((0.72, 0.42, 0.18), (0.95, 0.70, 0.36), lit)
            c = _mix(c, (1.0, 0.85, 0.55), 0.15 * sin(60.0 * (y + 0.1 * sin(3 * x))))
    return c


@njit(fastmath=True)
def _snow(x, y, s, r0, r1):
    horizon = -0.15 + 0.3 * r0
    if y > horizon:
        c = _mix((0.86, 0.91, 0.96), (0.62, 0.73, 0.85), min((y - horizon) * 0.8, 1.0))
        for k in range(7):
            cx = -2.0 + 0.66 * k + 0.4 * hash01(k, 1, s)
            top = horizon + 0.45 + 0.6 * hash01(k, 2, s)
            if y < top:
                t = (top - y) / (top - horizon)
                saw = t * 4.0 - floor(t * 4.0)
                if abs(x - cx) < 0.26 * t * (0.65 + 0.5 * saw):
                    c = _mix((0.20, 0.34, 0.33), (0.95, 0.97, 1.0), 0.85 * step(0.45, 0.1, saw))
    else:
        c = _mix((0.97, 0.98, 1.0), (0.78, 0.85, 0.95), 0.8 * fractal2(x * 1.5, y * 5, s))
    f = 4.5
    cx, cy = floor(x * f), floor(y * f)
    k, j = int(cx), int(cy)
    ox, oy = x * f - cx - 0.2 - 0.6 * hash01(k, j, s), y * f - cy - 0.2 - 0.6 * hash01(j, k, s + 1)
    return (1.0, 1.0, 1.0) if ox * ox + oy * oy < 0.022 else c


@njit(fastmath=True)
def _brick(x, y, s, r0, r1):
    f = 5.0 + 1.5 * r0
    row = floor(y * f)
    shift = 0.5 if int(row) % 2 == 0 else 0.0
    bx = x * f * 0.45 + shift + r1
    col = floor(bx)
    fx, fy = bx - col, y * f - row
    if fx < 0.05 or fx > 0.95 or fy < 0.10 or fy > 0.90:
        return 0.78, 0.75, 0.70
    tone = hash01(int(col), int(row), s) * 0.7 + 0.3 * noise2(x * 25, y * 25, s)
    return _mix((0.72, 0.33, 0.24), (0.45, 0.17, 0.13), tone)


@njit(fastmath=True)
def _library(x, y, s, r0, r1):
    f = 1.9 + 0.5 * r0
    shelf = floor(y * f + r1)
    fy = y * f + r1 - shelf
    if fy < 0.13:
        return _mix((0.42, 0.26, 0.13), (0.25, 0.14, 0.06), fy / 0.13)
    bx = x * 9.0 + 3.7 * shelf
    book = floor(bx)
    k, j = int(book), int(shelf)
    fx, tall = bx - book, 0.72 + 0.22 * hash01(k, j, s)
    if fy > tall or fx < 0.07:
        return 0.13, 0.08, 0.05
    hue, dim = hash01(k, j, s + 1), 0.65 + 0.5 * hash01(k, j, s + 2)
    c = (0.60, 0.14, 0.12)
    if hue > 0.2:
        c = (0.16, 0.24, 0.48)
    if hue > 0.4:
        c = (0.78, 0.66, 0.42)
    if hue > 0.6:
        c = (0.14, 0.36, 0.22)
    if hue > 0.78:
        c = (0.42, 0.26, 0.14)
    if 0.62 < fy < 0.68:
        return 0.85, 0.72, 0.35
    shade = dim * (1.0 - 0.5 * abs(fx - 0.5))
    return c[0] * shade, c[1] * shade, c[2] * shade


@njit(fastmath=True)
def _city(x, y, s, r0, r1):
    c = _mix((0.14, 0.12, 0.30), (0.03, 0.04, 0.13), min(max(y * 0.7 + 0.3, 0.0), 1.0))
    for layer in range(2):
        f = 1.5 + 0.9 * (1 - layer)
        bx = x * f + 5.3 * layer + r1
        k = int(floor(bx))
        top = 0.95 - 0.75 * layer + 0.65 * (hash01(k, layer, s) - 0.4) + 0.2 * r0
        if y < top:
            c = (0.07, 0.08, 0.17) if layer == 0 else (0.035, 0.04, 0.09)
            wx, wy = (bx - k) * 5.0, y * 8.0
            i, j = int(floor(wx)), int(floor(wy))
            if 0.22 < wx - i < 0.82 and 0.22 < wy - j < 0.75 and hash01(i + 7 * k, j, s + 3 + layer) < 0.55:
                tint = hash01(i + 7 * k, j, s + 5)
                c = _mix((1.0, 0.82, 0.36), (0.75, 0.85, 1.0), 1.0 if tint > 0.8 else 0.0)
    return c


@njit(fastmath=True)
def _sunset(x, y, s, r0, r1):
    horizon = -0.25 + 0.25 * r0
    up = min(max((y - horizon) * 0.75, 0.0), 1.0)
    c = _mix((1.0, 0.62, 0.22), (0.86, 0.28, 0.38), min(up * 2.0, 1.0))
    c = _mix(c, (0.32, 0.16, 0.45), max(up * 2.0 - 1.0, 0.0) * 1.2)
    sx, sy = x - 1.4 * (r1 - 0.5), y - horizon - 0.25
    glow = exp(-3.0 * (sx * sx + sy * sy))
    c = _mix(c, (1.0, 0.85, 0.45), 0.75 * glow)
    if sx * sx + sy * sy < 0.045:
        c = (1.0, 0.95, 0.70)
    c = _mix(c, (0.55, 0.20, 0.40), 0.7 * step(0.55, 0.7, fractal2(x * 1.2, y * 6.0, s)))
    if y < horizon + 0.16 * fractal2(x * 2.2, 0.0, s + 3):
        glint = step(0.6, 0.8, noise2(x * 3.0, y * 22.0, s)) * exp(-4.0 * sx * sx)
        c = _mix((0.16, 0.07, 0.18), (0.95, 0.55, 0.30), glint)
    return c


@njit(fastmath=True)
def _studio(x, y, s, r0, r1):
    d = sqrt((x - 0.5 * (r1 - 0.5)) ** 2 + (y - 0.2) ** 2)
    g = 0.80 - 0.30 * min(d * 0.75, 1.2) + 0.05 * (noise2(x * 1.5, y * 1.5, s) - 0.5)
    warm = 0.04 * (r0 - 0.5)
    return g + warm, g, g - warm + 0.015


@njit(fastmath=True)
def scene_colour(scene, x, y, seed):
    """Display-space RGB in [0, 1] of one point of a scene; `seed` varies the instance."""
    r0, r1 = hash01(seed, 11, 1), hash01(seed, 12, 2)
    if scene == 0:
        return _beach(x, y, seed, r0, r1)
    if scene == 1:
        return _forest(x, y, seed, r0, r1)
    if scene == 2:
        return _garden(x, y, seed, r0, r1)
    if scene == 3:
        return _desert(x, y, seed, r0, r1)
    if scene == 4:
        return _snow(x, y, seed, r0, r1)
    if scene == 5:
        return _brick(x, y, seed, r0, r1)
    if scene == 6:
        return _library(x, y, seed, r0, r1)
    if scene == 7:
        return _city(x, y, seed, r0, r1)
    if scene == 8:
        return _sunset(x, y, seed, r0, r1)
    return _studio(x, y, seed, r0, r1)
