"""Styles as treatments of the supersampled picture; each keeps the lines and shading that tell who it is.

Every function rewrites `rgb` [3, H, W] (display space) in place. `albedo` [H, W] is the luminance of the bare surface,
`normal` [3, H, W] is in camera space, `part` [H, W] is 0 for the scene, 1 skin, 2 hair, 3 clothes, 4 glasses.
"""

from math import cos, floor, sin, sqrt

import numpy as np
from numba import njit

from metalora.miniworld.noise import fractal2, noise2, step


@njit(fastmath=True)
def _luminance(r, g, b):
    return 0.30 * r + 0.59 * g + 0.11 * b


@njit(fastmath=True)
def _outlines(rgb, part, reach, edge):
    """Strength of outlines in [0, 1] from steps in brightness (gradient over `reach` pixels) and in the parts."""
    height, width = part.shape
    for i in range(height):
        up, down = max(i - reach, 0), min(i + reach, height - 1)
        for j in range(width):
            left, right = max(j - reach, 0), min(j + reach, width - 1)
            gx = _luminance(
                rgb[0, i, right] - rgb[0, i, left],
                rgb[1, i, right] - rgb[1, i, left],
                rgb[2, i, right] - rgb[2, i, left],
            )
            gy = _luminance(
                rgb[0, down, j] - rgb[0, up, j], rgb[1, down, j] - rgb[1, up, j], rgb[2, down, j] - rgb[2, up, j]
            )
            strength = step(0.10, 0.42, sqrt(gx * gx + gy * gy)) * (0.95 if part[i, j] > 0 else 0.55)
            if part[i, right] != part[i, left] or part[down, j] != part[up, j]:
                strength = max(strength, 0.85)
            edge[i, j] = strength


@njit(fastmath=True)
def _pencil(rgb, part, edge, unit, seed):
    height, width = part.shape
    for i in range(height):
        for j in range(width):
            x, y = j / unit, i / unit
            tone = _luminance(rgb[0, i, j], rgb[1, i, j], rgb[2, i, j])
            if part[i, j] == 0:
                tone = 0.55 + 0.45 * tone
            hatch = 0.5 + 0.5 * sin(150.0 * (0.75 * x + y) + 3.0 * noise2(x * 9.0, y * 9.0, seed))
            dark = (1.0 - tone) ** 1.25 * (0.78 if part[i, j] == 1 else 0.95)
            grain = 0.06 * (noise2(x * 120.0, y * 120.0, seed) - 0.5)
            v = 1.0 - dark * (0.62 + 0.38 * hatch) - 0.70 * edge[i, j] + grain
            v = min(max(v, 0.10), 0.97)
            rgb[0, i, j], rgb[1, i, j], rgb[2, i, j] = v, v * 0.995, v * 0.97


@njit(fastmath=True)
def _ink(rgb, part, edge, unit, seed):
    height, width = part.shape
    for i in range(height):
        for j in range(width):
            x, y = j / unit, i / unit
            tone = _luminance(rgb[0, i, j], rgb[1, i, j], rgb[2, i, j])
            blot = fractal2(x * 7.0, y * 7.0, seed)
            if part[i, j] == 0:
                fade = step(0.35, 0.8, blot)
                tone = 0.62 + 0.38 * tone + 0.25 * fade
            level = tone * 4.0 + 0.9 * (blot - 0.5)
            wash = (floor(level) + step(0.30, 0.70, level - floor(level))) / 4.0
            v = 0.10 + 0.86 * min(max(0.18 + 0.92 * wash, 0.0), 1.0)
            v *= 1.0 - 0.85 * edge[i, j] * (1.0 if part[i, j] > 0 else 0.6)
            v = min(max(v, 0.05), 0.97)
            rgb[0, i, j], rgb[1, i, j], rgb[2, i, j] = v * 0.985, v * 0.98, v * 0.93 + 0.015
    # the painter's seal
    size = int(0.11 * unit)
    top, left = height - size - int(0.07 * unit), int(0.06 * unit)
    for i in range(max(top, 0), top + size):
        for j in range(left, min(left + size, width)):
            mark = abs((i - top) / size - 0.5) < 0.10 or abs((j - left) / size - 0.5) < 0.10
            rgb[0, i, j], rgb[1, i, j], rgb[2, i, j] = (0.93, 0.80, 0.75) if mark else (0.74, 0.12, 0.10)


@njit(fastmath=True)
def _popart(rgb, part, edge, unit, seed):
    height, width = part.shape
    warm = seed % 4
    for i in range(height):
        for j in range(width):
            r, g, b = rgb[0, i, j], rgb[1, i, j], rgb[2, i, j]
            tone = _luminance(r, g, b)
            level = floor(min(tone, 0.999) * 5.0 + 0.35) / 4.6
            gain = (0.12 + 0.95 * level) / (tone + 0.05)
            grey = tone * gain
            r, g, b = grey + (r * gain - grey) * 2.1, grey + (g * gain - grey) * 2.1, grey + (b * gain - grey) * 2.1
            if part[i, j] == 0:
                x, y = j / unit * 17.0, i / unit * 17.0
                u, v = (x + y) * 0.7071, (x - y) * 0.7071
                u, v = u - floor(u) - 0.5, v - floor(v) - 0.5
                if warm == 0:
                    p, q = (1.0, 0.88, 0.10), (0.95, 0.15, 0.35)
                elif warm == 1:
                    p, q = (0.20, 0.80, 0.95), (0.98, 0.95, 0.30)
                elif warm == 2:
                    p, q = (0.98, 0.45, 0.70), (0.25, 0.20, 0.75)
                else:
                    p, q = (0.45, 0.90, 0.35), (0.10, 0.35, 0.90)
                dot = step(0.03, -0.03, sqrt(u * u + v * v) - 0.48 * sqrt(1.0 - min(tone, 1.0)))
                flat = 0.55
                r = r * (1 - flat) + flat * (p[0] + (q[0] - p[0]) * dot)
                g = g * (1 - flat) + flat * (p[1] + (q[1] - p[1]) * dot)
                b = b * (1 - flat) + flat * (p[2] + (q[2] - p[2]) * dot)
            k = 1.0 - edge[i, j] * (0.95 if part[i, j] > 0 else 0.5)
            rgb[0, i, j], rgb[1, i, j], rgb[2, i, j] = r * k, g * k, b * k


@njit(fastmath=True)
def _marble(rgb, albedo, part, unit, seed):
    height, width = part.shape
    for i in range(height):
        for j in range(width):
            tone = _luminance(rgb[0, i, j], rgb[1, i, j], rgb[2, i, j])
            x, y = j / unit, i / unit
            if part[i, j] == 0:
                v = 0.22 + 0.40 * tone
                rgb[0, i, j], rgb[1, i, j], rgb[2, i, j] = v * 0.96, v * 0.98, v * 1.02
                continue
            # light without colour: divide the surface's own brightness out, then let a third of it back in as carving
            own = sqrt(max(albedo[i, j], 0.002))
            base = 0.86 if part[i, j] == 2 else 0.98
            light = tone / (own + 0.10) * base
            carve = 0.62 + 0.55 * min(own, 0.8)
            vein = abs(fractal2(x * 3.0 + 2.0, y * 3.0, seed) - 0.5)
            v = min(max(light * carve + 0.10, 0.0), 1.0) * (1.0 - 0.16 * step(0.035, 0.0, vein))
            rgb[0, i, j], rgb[1, i, j], rgb[2, i, j] = v, v * 0.985, v * 0.955


@njit(fastmath=True)
def _vangogh(rgb, normal, part, unit, seed):
    height, width = part.shape
    source = rgb.copy()
    for i in range(height):
        for j in range(width):
            x, y = j / unit, i / unit
            here = part[i, j]
            if here == 0:
                a = 7.0 * fractal2(x * 1.6, y * 1.6, seed)
                tx, ty, amount, fine = cos(a), sin(a), 0.30, 30.0
            else:
                nx, ny = normal[0, i, j], normal[1, i, j]
                if here == 2:
                    tx, ty = 0.3 * nx + 0.1, 1.0
                else:
                    tx, ty = ny + 0.08, nx + 0.15  # around the form
                length = sqrt(tx * tx + ty * ty) + 1e-6
                tx, ty, amount, fine = tx / length, ty / length, (0.13 if here == 1 else 0.22), 34.0
            along, across = x * tx + y * ty, -x * ty + y * tx
            wobble = noise2(along * fine * 0.22 + 3.0, across * fine, seed)
            # the pigment of a stroke comes from its middle, so strokes stay of one colour
            shift = (0.020 if here == 0 else 0.006) * unit * (noise2(along * 9.0, across * fine, seed + 3) - 0.5) * 2.0
            si, sj = int(i + shift * ty), int(j + shift * tx)
            if not (0 <= si < height and 0 <= sj < width) or part[si, sj] != here:
                si, sj = i, j
            r, g, b = source[0, si, sj], source[1, si, sj], source[2, si, sj]
            tone = _luminance(r, g, b)
            stroke = 1.0 + amount * 2.0 * (wobble - 0.5)
            cold, warm = (0.08, 0.20, 0.52), (1.0, 0.86, 0.34)
            t = step(0.15, 0.85, tone)
            pr, pg, pb = (
                cold[0] + (warm[0] - cold[0]) * t,
                cold[1] + (warm[1] - cold[1]) * t,
                cold[2] + (warm[2] - cold[2]) * t,
            )
            k = 0.42 if here == 0 else 0.30
            grey = tone * 0.15
            r, g, b = (
                (r * 1.15 - grey) * (1 - k) + pr * k,
                (g * 1.15 - grey) * (1 - k) + pg * k,
                (b * 1.15 - grey) * (1 - k) + pb * k,
            )
            lift = 0.10 * (wobble - 0.5) * (2.0 if here == 0 else 0.8)
            rgb[0, i, j], rgb[1, i, j], rgb[2, i, j] = (
                r * stroke + lift,
                g * stroke + lift * 0.9,
                b * stroke + lift * 0.3,
            )


@njit(fastmath=True)
def _cyberpunk(rgb, albedo, normal, part, unit, seed):
    height, width = part.shape
    flip = 1.0 if seed % 2 == 0 else -1.0
    for i in range(height):
        scan = 0.96 + 0.04 * sin(i / unit * 260.0)
        for j in range(width):
            tone = _luminance(rgb[0, i, j], rgb[1, i, j], rgb[2, i, j])
            if part[i, j] == 0:
                x, y = j / unit, i / unit
                t = tone * 0.75
                neon = noise2(x * 2.0, y * 2.0, seed)
                r, g, b = (
                    0.06 + t * (0.30 + 0.65 * neon),
                    0.03 + t * 0.30 * (1.3 - neon),
                    0.14 + t * (0.95 - 0.15 * neon),
                )
                gx, gy = x * 6.0, y * 6.0
                line = max(step(0.06, 0.0, abs(gx - floor(gx) - 0.5)), step(0.06, 0.0, abs(gy - floor(gy) - 0.5)))
                r, g, b = r + 0.16 * line, g + 0.03 * line, b + 0.28 * line
            else:
                nx, ny, nz = normal[0, i, j] * flip, normal[1, i, j], normal[2, i, j]
                own = sqrt(max(albedo[i, j], 0.0))
                own = 0.16 + 0.95 * own
                pink = max(-nx - 0.15 * nz, 0.0) * 1.5
                cyan = max(nx - 0.15 * nz, 0.0) * 1.5
                front = 0.62 * max(nz, 0.0) + 0.30 * max(ny, 0.0) + 0.12
                soft = 0.35 + 0.75 * tone / (own + 0.15)
                r = own * (pink * 1.0 + cyan * 0.05 + front * 1.15) * soft
                g = own * (pink * 0.10 + cyan * 0.80 + front * 0.70) * soft
                b = own * (pink * 0.65 + cyan * 0.95 + front * 1.10) * soft + 0.03
                rim = (1.0 - max(nz, 0.0)) ** 3
                r, g, b = r + rim * 0.4 * (nx < 0), g + rim * 0.3 * (nx >= 0), b + rim * 0.4
            rgb[0, i, j], rgb[1, i, j], rgb[2, i, j] = r * scan, g * scan, b * scan


@njit(fastmath=True)
def _watercolor(rgb, part, edge, unit, seed):
    height, width = part.shape
    for i in range(height):
        for j in range(width):
            x, y = j / unit, i / unit
            r, g, b = rgb[0, i, j], rgb[1, i, j], rgb[2, i, j]
            tone = _luminance(r, g, b)
            bloom = fractal2(x * 5.0, y * 5.0, seed)
            r, g, b = tone + (r - tone) * 1.5, tone + (g - tone) * 1.5, tone + (b - tone) * 1.5
            thin = 0.74 + 0.26 * bloom if part[i, j] > 0 else 0.42 + 0.45 * bloom
            margin = min(min(x, y), min(width / unit - x, height / unit - y))
            thin *= step(-0.02, 0.10 + 0.16 * bloom, margin) * 0.97
            level = 0.10 * sin(22.0 * tone + 4.0 * bloom) * thin
            grain = 0.05 * (noise2(x * 90.0, y * 90.0, seed) - 0.5)
            k = 1.0 - 0.34 * edge[i, j] * thin
            rgb[0, i, j] = ((1.0 - thin) * 0.98 + thin * (0.10 + 0.90 * r) + 0.4 * level + grain) * k
            rgb[1, i, j] = ((1.0 - thin) * 0.97 + thin * (0.10 + 0.90 * g) + 0.4 * level + grain) * k
            rgb[2, i, j] = ((1.0 - thin) * 0.94 + thin * (0.11 + 0.90 * b) + 0.4 * level + grain) * k


@njit(fastmath=True)
def apply_style(style, rgb, albedo, normal, part, unit, seed):
    """Rewrite the picture in one of `vocabulary.STYLES` (by position); `unit` is a length in subpixels."""
    if style == 0:
        return
    edge = np.empty(part.shape, np.float32)
    if style in (1, 2, 3, 7):
        _outlines(rgb, part, max(int(unit / 110.0 + 0.5), 1), edge)
    if style == 1:
        _pencil(rgb, part, edge, unit, seed)
    elif style == 2:
        _ink(rgb, part, edge, unit, seed)
    elif style == 3:
        _popart(rgb, part, edge, unit, seed)
    elif style == 4:
        _marble(rgb, albedo, part, unit, seed)
    elif style == 5:
        _vangogh(rgb, normal, part, unit, seed)
    elif style == 6:
        _cyberpunk(rgb, albedo, normal, part, unit, seed)
    else:
        _watercolor(rgb, part, edge, unit, seed)
