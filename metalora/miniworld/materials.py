"""Colours of skin, eyes, mouth, hair and clothes at a point of the surface (linear RGB, head frame)."""

# ruff: noqa: RUF046 - numba's floor returns a float

from math import cos, exp, floor, sqrt

from numba import njit

from metalora.miniworld.noise import fractal2, hash01, noise2, step


@njit(fastmath=True)
def _mix(a, b, t):
    return a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t, a[2] + (b[2] - a[2]) * t


@njit(fastmath=True)
def _dim(c, f):
    return c[0] * f, c[1] * f, c[2] * f


@njit(fastmath=True)
def _eye(u, x, ax, y, c):
    """Paint an eye into the skin colour c; returns the colour and how much it shines."""
    side = 1.0 if x > 0 else -1.0
    dx = ax - u.eye_x
    v = dx / u.eye_w
    if abs(v) > 1.9 or abs(y - u.eye_y) > 0.32:
        return c, 0.0
    ey = y - u.eye_y - u.eye_tilt * dx
    bow = max(1.0 - v * v, 0.0)
    upper, lower = u.eye_open * bow**0.75, -u.eye_lower * bow**0.85
    # shadow, crease and bags around the eye
    c = _mix(
        c,
        (c[0] * 0.45, c[1] * 0.30, c[2] * 0.42),
        0.75 * u.eye_shadow * step(0.14, 0.02, ey - upper) * step(1.35, 0.8, abs(v)) * step(-0.02, 0.02, ey),
    )
    c = _dim(c, 1.0 - 0.35 * exp(-(((ey - upper - 0.045) / 0.014) ** 2)) * step(1.2, 0.8, abs(v)))
    c = _dim(c, 1.0 - (0.10 + 0.22 * u.wrinkles) * exp(-(((ey - lower + 0.05) / 0.02) ** 2)) * step(1.1, 0.5, abs(v)))
    if abs(v) < 1.0 and lower < ey < upper:
        white = (0.80, 0.79, 0.78)
        ball = _dim(white, 1.0 - 0.35 * v * v)
        ix = x - side * u.eye_x - 0.045 * u.gaze_x + side * 0.006
        iy = ey - 0.010 - 0.020 * u.gaze_y
        r = sqrt(ix * ix + iy * iy) / (0.071 * (0.5 + 3.0 * u.eye_w))
        if r < 1.0:
            iris = (u.iris_r, u.iris_g, u.iris_b)
            ball = _dim(iris, (0.75 + 0.85 * step(0.9, 0.3, r)) * step(1.12, 0.80, r))
            if r < 0.42:
                ball = (0.006, 0.005, 0.005)
        gx, gy = ix + 0.022, iy - 0.026
        if gx * gx + gy * gy < 0.00026:
            return (1.6, 1.6, 1.6), 0.0
        return _dim(ball, 0.45 + 0.55 * step(0.0, 0.05, upper - ey)), 0.5
    # lashes on the rims, thicker outwards
    thick = 0.011 + 0.013 * u.lashes * (0.7 + 0.6 * v)
    if abs(v) < 1.08 + 0.10 * u.lashes and upper - 0.004 <= ey < upper + thick and v > -1.05:
        return (0.012, 0.010, 0.010), 0.0
    if abs(v) < 1.0 and lower - 0.010 < ey <= lower:
        return _dim(c, 0.45), 0.0
    return c, 0.0


@njit(fastmath=True)
def _brow(u, ax, y, c):
    b = (ax - 0.095) / (u.brow_length * 1.55)
    if b < -0.05 or b > 1.0:
        return c
    centre = u.brow_y + u.brow_tilt * (0.45 - b) * -0.26 + u.brow_arch * (1.0 - (2.0 * b - 1.15) ** 2) * 0.9
    half = u.brow_thickness * (1.0 - 0.62 * b) * step(-0.05, 0.10, b) * step(1.0, 0.85, b) + 0.004
    d = abs(y - centre) / half
    if d > 1.25:
        return c
    dark = 0.55 + 0.25 * (u.hair_r < 0.4)
    hair = _dim((u.hair_r + 0.01, u.hair_g + 0.008, u.hair_b + 0.006), dark)
    strand = 0.75 + 0.25 * noise2(ax * 55.0 - y * 30.0, y * 12.0, 3)
    return _mix(c, hair, step(1.25, 0.7, d) * strand)


@njit(fastmath=True)
def _mouth(u, x, y, c):
    """Paint lips, teeth and the dark of the mouth; returns the colour and how much it shines."""
    m = x / u.mouth_w
    if abs(m) > 1.12:
        return c, 0.0
    dy = y - u.mouth_y - u.mouth_curve * (m * m - 0.35)
    bow = max(1.0 - m * m, 0.0)
    gap = u.mouth_open * (sqrt(bow) if u.mouth_round > 0.5 else bow)
    cupid = 1.0 - 0.28 * exp(-((m / 0.13) ** 2)) - 0.25 * (1.0 - exp(-((m / 0.5) ** 2)))
    top, bottom = gap + u.lip_up * bow**0.6 * cupid + 0.004, -gap * 1.1 - u.lip_low * bow**0.6
    lip = (u.lip_r, u.lip_g, u.lip_b)
    if -gap * 1.1 < dy < gap and u.mouth_open > 0.01:
        if u.teeth > 0.8 and dy > -gap * 0.55:
            tooth = 0.92 - 0.10 * step(0.35, 0.5, abs(x * 17.0 - floor(x * 17.0) - 0.5)) - 0.30 * m * m
            return (tooth, tooth * 0.97, tooth * 0.90), 0.3
        if u.mouth_round > 0.5 and dy > gap - 0.045 and abs(m) < 0.66:
            return (0.62, 0.60, 0.55), 0.2
        tongue = step(-gap * 0.2, -gap * 0.9, dy)
        return _mix((0.035, 0.008, 0.008), (0.30, 0.07, 0.07), 0.8 * tongue), 0.0
    line = exp(-((dy / 0.013) ** 2)) * step(1.12, 0.95, abs(m)) if u.mouth_open <= 0.01 else 0.0
    if bottom < dy < top and abs(m) < 1.0:
        edge = min((top - dy) / 0.02, (dy - bottom) / 0.02, 1.0)
        shade = 0.82 if dy > 0.0 else 1.0
        return _mix(
            _mix(c, _dim(lip, shade), (0.55 + 0.45 * edge) * u.lip_amount), (0.05, 0.015, 0.015), 0.85 * line
        ), 0.35
    c = _mix(c, (0.05, 0.015, 0.015), 0.75 * line)
    return _dim(c, 1.0 - 0.25 * exp(-(((dy - bottom + 0.05) / 0.03) ** 2)) * bow), 0.0


@njit(fastmath=True)
def _beard_cover(u, x, ax, y, z):
    """How much of the skin a beard, moustache or stubble covers, in [0, 1]."""
    kind = int(u.beard)
    if kind == 0 or z < -0.12:
        return 0.0
    n = 0.62 + 0.38 * noise2(x * 30.0 + z * 17.0, y * 22.0 - z * 23.0, int(u.noise))
    edge = 0.09 * (noise2(x * 12.0, y * 12.0, 7) - 0.5)
    jaw = step(u.beard_y + 0.06, u.beard_y - 0.08, y + 0.30 * max(0.45 - z, 0.0) * -1.0 + edge)
    lip_line = step(0.02, 0.07, abs(y - u.mouth_y + 0.5 * u.mouth_open) - u.mouth_open) if ax < u.mouth_w * 1.1 else 1.0
    jaw *= max(lip_line, step(0.9, 1.1, ax / u.mouth_w))
    side = step(-0.10, 0.12, z)
    rise = y - u.mouth_y - u.mouth_open
    tache = (
        step(0.03, 0.07, rise - u.lip_up * 0.8)
        * step(0.235, 0.18, rise + 0.35 * ax)
        * step(u.mouth_w * 1.35, u.mouth_w * 1.15, ax)
        * step(0.3, 0.4, z)
    )
    if kind == 2:
        return tache * n
    if kind == 3:
        chin = step(0.30, 0.20, ax) * jaw * step(0.25, 0.4, z)
        sides = (
            step(0.09, 0.05, abs(ax - u.mouth_w * 1.2))
            * step(u.mouth_y + 0.18, u.mouth_y + 0.1, y)
            * step(-1.1, -1.0, y)
            * step(0.25, 0.4, z)
        )
        return max(max(chin, tache), sides) * n
    cover = max(jaw * side, tache) * n
    # cheeks: the line climbs towards the ears
    cheek = step(0.50, 0.60, ax + 0.25 * (y + 0.3)) * step(0.02, -0.18, y) * step(0.02, 0.10, z) * step(0.42, 0.26, z)
    cheek *= step(u.ear_x - 0.02, u.ear_x - 0.08, ax)
    cover = max(cover, cheek * n)
    return cover * u.stubble if kind == 1 else cover


@njit(fastmath=True)
def skin_colour_at(u, x, y, z, ny):
    """Colour of the head's surface and its shine.

    Args:
        u: record of `anatomy.UNIFORMS`.
        x, y, z: the point.
        ny: upward part of the normal.
    """
    ax = abs(x)
    c = (u.skin_r, u.skin_g, u.skin_b)
    seed = int(u.noise)
    mottle = 0.96 + 0.08 * fractal2(x * 5.0 + 3.0, y * 5.0 + z * 3.0, seed)
    c = _dim(c, mottle)
    shine = 0.22
    if z > -0.1 and y > -1.4:
        warm = u.blush * exp(-8.0 * ((ax - 0.40) ** 2 + (y + 0.26) ** 2)) + 0.35 * exp(
            -30.0 * (x * x + (y - u.nose_tip_y) ** 2)
        )
        c = _mix(c, (c[0] * 0.98, c[1] * 0.62, c[2] * 0.60), min(warm, 1.0))
        if u.freckles > 0.0 and -0.55 < y < 0.35 and z > 0.32:
            gx, gy = x * 17.0, y * 17.0
            k, j = int(floor(gx)), int(floor(gy))
            ox, oy = gx - k - 0.3 - 0.4 * hash01(k, j, seed), gy - j - 0.3 - 0.4 * hash01(j, k, seed + 1)
            if hash01(k, j, seed + 2) < 0.8 * u.freckles * step(0.4, 0.0, abs(y + 0.16)) and ox * ox + oy * oy < 0.065:
                c = (c[0] * 0.58, c[1] * 0.42, c[2] * 0.36)
        if u.mole > 0.0 and z > 0.2:
            d = sqrt((x - u.mole_x) ** 2 + (y - u.mole_y) ** 2) / u.mole
            c = _mix(c, (0.05, 0.025, 0.02), step(1.15, 0.85, d))
        if u.scar > 0.0 and z > 0.2:
            sx, sy = x - u.scar_x, y - u.scar_y
            along, across = sx * u.scar_cos + sy * u.scar_sin, -sx * u.scar_sin + sy * u.scar_cos
            if abs(along) < 0.15:
                c = _mix(
                    c,
                    (min(c[0] * 1.3 + 0.10, 0.9), c[1] * 0.75 + 0.06, c[2] * 0.75 + 0.06),
                    step(0.026, 0.012, abs(across)) * step(0.15, 0.11, abs(along)),
                )
        # folds from nose to mouth, frown lines, forehead lines
        smile = max(u.mouth_curve, 0.0) * 6.0
        fold_x = 0.16 + 0.20 * min(max((-0.40 - y) / 0.36, 0.0), 1.0)
        fold = (
            exp(-(((ax - fold_x - 0.02) / 0.020) ** 2))
            * step(-0.36, -0.44, y)
            * step(-0.82, -0.70, y)
            * step(0.3, 0.45, z)
        )
        c = _dim(c, 1.0 - min(0.42 * u.wrinkles + 0.30 * smile, 0.5) * fold)
        if u.frown > 0.5:
            c = _dim(c, 1.0 - 0.45 * exp(-(((ax - 0.045) / 0.013) ** 2)) * step(0.06, 0.12, y) * step(0.36, 0.28, y))
        lines = max(u.wrinkles - 0.45, 0.9 * (u.mouth_round > 0.5)) * 0.45
        if lines > 0.0 and 0.40 < y < 0.66:
            wave = 0.5 + 0.5 * cos(70.0 * (y - 0.25 * x * x))
            c = _dim(c, 1.0 - lines * step(0.72, 0.98, wave) * step(0.42, 0.2, ax) * step(0.5, 0.6, z + 0.1))
        # nostrils
        if ny < 0.2 and z > 0.45:
            ox, oy = (ax - u.nose_wing_x * 0.68) / 0.044, (y - u.nose_tip_y + 0.088) / 0.030
            c = _dim(c, 1.0 - 0.82 * step(1.3, 0.6, sqrt(ox * ox + oy * oy)))
        cover = _beard_cover(u, x, ax, y, z)
        if cover > 0.0:
            b = _dim((u.hair_r + 0.004, u.hair_g + 0.003, u.hair_b + 0.003), 0.75)
            c = _mix(c, b, min(cover * 1.15, 0.96))
            shine *= 1.0 - 0.7 * cover
    if z > 0.30:
        c, gloss = _mouth(u, x, y, c)
        shine = max(shine, gloss)
        c = _brow(u, ax, y, c)
        c, gloss = _eye(u, x, ax, y, c)
        if gloss > 0.0:
            shine = gloss
    return c, shine


@njit(fastmath=True)
def hair_colour_at(u, x, y, z):
    """Colour of the hair: strands run downwards, with darker and lighter locks."""
    seed = int(u.noise)
    strand = noise2(x * 13.0 + 0.8 * y, z * 13.0 - 0.8 * y, seed) * 0.6 + 0.4 * noise2(
        x * 31.0 + y, z * 31.0 + 2.0 * y, seed + 1
    )
    f = 1.0 + 0.75 * u.hair_streak * (strand - 0.5)
    return (u.hair_r * f + 0.004, u.hair_g * f + 0.003, u.hair_b * f + 0.003), 0.25 + 0.5 * strand


@njit(fastmath=True)
def body_colour_at(u, bx, by, bz):
    """Colour of the clothes (or the skin above the neckline) at a point of the body's own frame."""
    shirt = (u.shirt_r, u.shirt_g, u.shirt_b)
    kind = int(u.neckline)
    if bz > -0.2:
        if kind == 1 and by > -2.15 and abs(bx) < 0.62 * (by + 2.15):
            return (u.skin_r, u.skin_g, u.skin_b), 0.15
        if kind == 2 and abs(bx) < 0.10 and by < -1.7:
            if abs(abs(bx) - 0.095) < 0.012:
                return _dim(shirt, 0.5), 0.0
            oy = (by * 2.2 - floor(by * 2.2) - 0.5) / 2.2
            if bx * bx + oy * oy < 0.0018:
                return (0.75, 0.73, 0.70) if u.shirt_r + u.shirt_g < 1.2 else (0.10, 0.10, 0.12), 0.3
    fold = 0.86 + 0.28 * fractal2(bx * 1.7 + 4.0, by * 1.1, int(u.seed))
    return _dim(shirt, fold), 0.04
