"""Portraits by sphere tracing: cones find the silhouette, rays the surface; then light, colour, style and averaging.

N pictures, H height, W width. Pictures are rendered in parallel; nothing in one depends on another.
"""

import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import sqrt
from pathlib import Path

import numpy as np
from numba import njit
from numpy import float32 as F  # noqa: N812 - it stands before every constant

from metalora.core.cores import cores
from metalora.miniworld.anatomy import CAMERA_DISTANCE, FAR, pack
from metalora.miniworld.identity import Identity
from metalora.miniworld.materials import body_colour_at, hair_colour_at, skin_colour_at
from metalora.miniworld.scenes import scene_colour
from metalora.miniworld.sdf import distances
from metalora.miniworld.shots import Shot
from metalora.miniworld.styles import apply_style

_BLOCK = 4  # subpixels along one side of a cone
_NEAR, _BEYOND = F(CAMERA_DISTANCE - 2.6), F(CAMERA_DISTANCE + 2.6)
_STEPS = 40
_PARTS = 4  # of a thread's pictures: some take longer than others


@njit(fastmath=True)
def _direction(u, px, py):
    """Unit ray direction in the head frame through a point of the picture (pixels)."""
    dx, dy, dz = (px - u.centre_x) / u.focal, (u.centre_y - py) / u.focal, -1.0
    s = 1.0 / sqrt(dx * dx + dy * dy + 1.0)
    dx, dy, dz = dx * s, dy * s, dz * s
    return (
        u.r00 * dx + u.r10 * dy + u.r20 * dz,
        u.r01 * dx + u.r11 * dy + u.r21 * dz,
        u.r02 * dx + u.r12 * dy + u.r22 * dz,
    )


@njit(fastmath=True, error_model="numpy")
def _march(n, t, dx, dy, dz, slack, u, xs, ys, zs, head, hair, body, index):
    """Advance n rays (t in place) until closer to the surface than `slack` times their length; misses get t = FAR."""
    alive = n
    for k in range(n):
        index[k] = k
    for _ in range(_STEPS):
        for k in range(alive):
            r = index[k]
            xs[k], ys[k], zs[k] = u.ex + t[r] * dx[r], u.ey + t[r] * dy[r], u.ez + t[r] * dz[r]
        distances(alive, xs, ys, zs, u, head, hair, body)
        kept = 0
        for k in range(alive):
            r = index[k]
            d = min(head[k], min(hair[k], body[k]))
            if d < slack * t[r]:
                continue
            t[r] += d * F(0.9)
            if t[r] > _BEYOND:
                t[r] = F(FAR)
                continue
            index[kept] = r
            kept += 1
        alive = kept
        if alive == 0:
            break


@njit(fastmath=True, error_model="numpy")
def _anchor(u):
    """Measure the bare face under the eyes and the mouth and hang those parts on it."""
    x, y, z = np.empty(2, np.float32), np.empty(2, np.float32), np.empty(2, np.float32)
    a, b, c = np.empty(2, np.float32), np.empty(2, np.float32), np.empty(2, np.float32)
    x[0], y[0], z[0] = u.eye_x, u.eye_y, F(1.6)
    x[1], y[1], z[1] = F(0.0), u.mouth_y, F(1.6)
    for _ in range(30):
        distances(2, x, y, z, u, a, b, c)
        z[0] -= a[0] * F(0.8)
        z[1] -= a[1] * F(0.8)
    u.socket_z = z[0] + F(0.055)
    u.eye_z = z[0] - u.eyeball_r - F(0.035)
    u.mouth_z = z[1] - F(0.02)
    if u.mouth_open > F(0.01):
        u.cavity_z = z[1] + F(0.04)


@njit(fastmath=True)
def _glasses(u, dx, dy, dz, t):
    """Whether a ray meets the rims of the glasses before t."""
    plane = u.eye_z + u.eyeball_r + 0.13
    s = (plane - u.ez) / dz
    if s > t + 0.05 or s < 0.0:
        return False
    x, y = u.ex + s * dx, u.ey + s * dy - u.eye_y + 0.02
    ax = abs(x)
    w, h = 0.225 * u.glasses_size, 0.17 * u.glasses_size
    qx, qy = (ax - 0.30) / w, y / h
    d = sqrt(qx * qx + qy * qy) if u.glasses < 1.5 else max((qx**4 + qy**4) ** 0.25, 0.0)
    if 0.88 < d < 1.06:
        return True
    return abs(y - 0.04) < 0.018 and ax < 0.09


@njit(fastmath=True)
def _shade(u, c, shine, nx, ny, nz, vx, vy, vz, ao, shadow):
    """Light a surface colour: key with soft wrap and shadow, fill, sky and ground, rim, a highlight. Linear RGB."""
    key = (nx * u.key_x + ny * u.key_y + nz * u.key_z + 0.15) / 1.15
    key = max(key, 0.0) * shadow
    fill = max(nx * u.fill_x + ny * u.fill_y + nz * u.fill_z, 0.0) * ao
    up = 0.5 + 0.5 * (nx * u.r10 + ny * u.r11 + nz * u.r12)
    facing = max(-(nx * vx + ny * vy + nz * vz), 0.0)
    rim = (1.0 - facing) ** 3 * ao
    hx, hy, hz = u.key_x - vx, u.key_y - vy, u.key_z - vz
    s = (nx * hx + ny * hy + nz * hz) / sqrt(hx * hx + hy * hy + hz * hz)
    s2 = max(s, 0.0) ** 2
    s4 = s2 * s2
    s16 = s4 * s4 * s4 * s4
    spec = shine * shadow * 0.42 * s16 * (0.5 + s16)
    r = (
        c[0] * (u.key_r * key + u.fill_r * fill + ao * (u.ground_r + (u.sky_r - u.ground_r) * up))
        + u.rim_r * rim * (0.25 + c[0])
        + spec * u.key_r
    )
    g = (
        c[1] * (u.key_g * key + u.fill_g * fill + ao * (u.ground_g + (u.sky_g - u.ground_g) * up))
        + u.rim_g * rim * (0.25 + c[1])
        + spec * u.key_g
    )
    b = (
        c[2] * (u.key_b * key + u.fill_b * fill + ao * (u.ground_b + (u.sky_b - u.ground_b) * up))
        + u.rim_b * rim * (0.25 + c[2])
        + spec * u.key_b
    )
    return r, g, b


@njit(fastmath=True)
def _display(v):
    """Linear light to display: a soft shoulder, then gamma 2."""
    v = max(v, 0.0)
    return sqrt(v * (1.0 + 0.12 * v) / (1.0 + 0.55 * v * v) if v < 1.35 else 0.83)


@njit(fastmath=True, error_model="numpy")
def _background(u, rgb, height, width):
    seed = int(u.seed)
    unit = 0.5 * min(height, width)
    tint_r, tint_g, tint_b = (
        0.60 + 0.42 * min(u.key_r * 0.7 + u.sky_r * 0.5, 1.0),
        0.60 + 0.42 * min(u.key_g * 0.7 + u.sky_g * 0.5, 1.0),
        0.60 + 0.42 * min(u.key_b * 0.7 + u.sky_b * 0.5, 1.0),
    )
    if int(u.light) == 3:
        tint_r, tint_g, tint_b = 0.55, 0.55, 0.58
    scene = int(u.scene)
    for i in range(height):
        y = (0.5 * height - i - 0.5) / unit
        for j in range(width):
            x = (j + 0.5 - 0.5 * width) / unit
            c = scene_colour(scene, x, y, seed)
            rgb[0, i, j], rgb[1, i, j], rgb[2, i, j] = c[0] * tint_r, c[1] * tint_g, c[2] * tint_b


@njit(fastmath=True, error_model="numpy")
def _render_one(u, out, samples):
    height, width = out.shape[0] * samples, out.shape[1] * samples
    _anchor(u)
    rgb = np.empty((3, height, width), np.float32)
    albedo = np.ones((height, width), np.float32)
    normal = np.zeros((3, height, width), np.float32)
    part = np.zeros((height, width), np.uint8)
    _background(u, rgb, height, width)

    # 1. cones: one per block of subpixels, stopped where the block might meet the surface
    rows, columns = (height + _BLOCK - 1) // _BLOCK, (width + _BLOCK - 1) // _BLOCK
    m = rows * columns
    size = max(m, height * width)
    t, dx, dy, dz = (
        np.empty(size, np.float32),
        np.empty(size, np.float32),
        np.empty(size, np.float32),
        np.empty(size, np.float32),
    )
    xs, ys, zs = np.empty(size, np.float32), np.empty(size, np.float32), np.empty(size, np.float32)
    head, hair, body = np.empty(size, np.float32), np.empty(size, np.float32), np.empty(size, np.float32)
    index = np.empty(size, np.int32)
    for k in range(m):
        i, j = k // columns, k % columns
        dx[k], dy[k], dz[k] = _direction(u, (j + 0.5) * _BLOCK / samples, (i + 0.5) * _BLOCK / samples)
        t[k] = _NEAR
    cone = F(0.78 * _BLOCK / (samples * u.focal))
    _march(m, t, dx, dy, dz, cone, u, xs, ys, zs, head, hair, body, index)

    # 2. rays of the blocks that may be hit
    start = t[:m].copy()
    place = np.empty(height * width, np.int32)
    n = np.int64(0)  # a literal would be compiled for, too: seconds
    for i in range(height):
        for j in range(width):
            s = start[(i // _BLOCK) * columns + j // _BLOCK]
            if s < _BEYOND:
                dx[n], dy[n], dz[n] = _direction(u, (j + 0.5) / samples, (i + 0.5) / samples)
                t[n] = s
                place[n] = i * width + j
                n += 1
    fine = F(0.30 / (samples * u.focal))
    _march(n, t, dx, dy, dz, fine, u, xs, ys, zs, head, hair, body, index)

    # 3. surface points: which part, normal, occlusion, shadow
    hits = np.int64(0)
    for k in range(n):
        if t[k] < _BEYOND:
            t[hits], dx[hits], dy[hits], dz[hits], place[hits] = t[k], dx[k], dy[k], dz[k], place[k]
            hits += 1
    px, py, pz = np.empty(hits, np.float32), np.empty(hits, np.float32), np.empty(hits, np.float32)
    nx, ny, nz = np.zeros(hits, np.float32), np.zeros(hits, np.float32), np.zeros(hits, np.float32)
    for k in range(hits):
        px[k], py[k], pz[k] = u.ex + t[k] * dx[k], u.ey + t[k] * dy[k], u.ez + t[k] * dz[k]
    distances(hits, px, py, pz, u, head, hair, body)
    kind = np.empty(hits, np.uint8)
    for k in range(hits):
        kind[k] = 1
        if hair[k] < head[k] and hair[k] < body[k]:
            kind[k] = 2
        elif body[k] < head[k]:
            kind[k] = 3
    reach = F(0.012)
    for corner in range(4):
        sx = reach if corner in (0, 3) else -reach
        sy = reach if corner in (2, 3) else -reach
        sz = reach if corner in (1, 3) else -reach
        for k in range(hits):
            xs[k], ys[k], zs[k] = px[k] + sx, py[k] + sy, pz[k] + sz
        distances(hits, xs, ys, zs, u, head, hair, body)
        for k in range(hits):
            d = head[k] if kind[k] == 1 else hair[k] if kind[k] == 2 else body[k]
            nx[k] += sx * d
            ny[k] += sy * d
            nz[k] += sz * d
    for k in range(hits):
        s = F(1.0) / (sqrt(nx[k] * nx[k] + ny[k] * ny[k] + nz[k] * nz[k]) + F(1e-12))
        nx[k], ny[k], nz[k] = nx[k] * s, ny[k] * s, nz[k] * s
    ao, shadow = np.ones(hits, np.float32), np.ones(hits, np.float32)
    for tap in range(2):
        h = F(0.07) if tap == 0 else F(0.26)
        w = F(0.42) if tap == 0 else F(0.55)
        for k in range(hits):
            xs[k], ys[k], zs[k] = px[k] + h * nx[k], py[k] + h * ny[k], pz[k] + h * nz[k]
        distances(hits, xs, ys, zs, u, head, hair, body)
        for k in range(hits):
            d = min(head[k], min(hair[k], body[k]))
            ao[k] -= w * min(max(F(1.0) - d / h, F(0.0)), F(1.0))
    for tap in range(3):
        h = F(0.10) if tap == 0 else F(0.24) if tap == 1 else F(0.55)
        for k in range(hits):
            s = F(0.02)
            xs[k], ys[k], zs[k] = (
                px[k] + s * nx[k] + h * u.key_x,
                py[k] + s * ny[k] + h * u.key_y,
                pz[k] + s * nz[k] + h * u.key_z,
            )
        distances(hits, xs, ys, zs, u, head, hair, body)
        for k in range(hits):
            d = min(head[k], min(hair[k], body[k]))
            shadow[k] = min(shadow[k], min(max(F(0.5) + F(2.8) * d / h, F(0.12)), F(1.0)))

    # 4. colour and light
    for k in range(hits):
        x, y, z = px[k], py[k], pz[k]
        occlusion = max(ao[k], F(0.12))
        which = kind[k]
        if which == 1:
            c, shine = skin_colour_at(u, x, y, z, ny[k])
        elif which == 2:
            c, shine = hair_colour_at(u, x, y, z)
        else:
            bx = u.b00 * x + u.b01 * (y + F(0.75)) + u.b02 * (z + F(0.25))
            by = u.b10 * x + u.b11 * (y + F(0.75)) + u.b12 * (z + F(0.25)) - F(0.75)
            bz = u.b20 * x + u.b21 * (y + F(0.75)) + u.b22 * (z + F(0.25)) - F(0.25)
            c, shine = body_colour_at(u, bx, by, bz)
        if u.glasses > 0.5:
            if which == 1 and abs(y - u.eye_y - 0.02) < 0.022 and abs(x) > 0.5 and z > 0.0:
                c = (0.02, 0.02, 0.02)
            if _glasses(u, dx[k], dy[k], dz[k], t[k]):
                g = 0.015 + 0.25 * (u.glasses_dark > 0.7)
                c, shine, which = (g, g * 0.8, g * 0.6), 0.6, 4
        r, g, b = _shade(u, c, shine, nx[k], ny[k], nz[k], dx[k], dy[k], dz[k], occlusion, shadow[k])
        i, j = place[k] // width, place[k] % width
        rgb[0, i, j], rgb[1, i, j], rgb[2, i, j] = _display(r), _display(g), _display(b)
        albedo[i, j] = 0.30 * c[0] + 0.59 * c[1] + 0.11 * c[2]
        part[i, j] = which
        normal[0, i, j] = u.r00 * nx[k] + u.r01 * ny[k] + u.r02 * nz[k]
        normal[1, i, j] = u.r10 * nx[k] + u.r11 * ny[k] + u.r12 * nz[k]
        normal[2, i, j] = u.r20 * nx[k] + u.r21 * ny[k] + u.r22 * nz[k]

    # 5. style, then the mean over each pixel
    apply_style(int(u.style), rgb, albedo, normal, part, sqrt(float(height) * width), int(u.seed))
    weight = F(255.0) / F(samples * samples)
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            for c in range(3):
                total = F(0.0)
                for a in range(samples):
                    for b in range(samples):
                        total += min(max(rgb[c, i * samples + a, j * samples + b], F(0.0)), F(1.0))
                out[i, j, c] = np.uint8(total * weight + F(0.5))


def _compile(version: int) -> Callable[[np.ndarray, np.ndarray, int], None]:
    """The kernel, compiled once and kept on disk. It is serial: Numba's own threads cost seconds of compiling.

    Numba notices changes of this file only; the closure's `version` is part of the cache key and stands for the others.
    """

    @njit(nogil=True, fastmath=True, error_model="numpy", cache=True)
    def render_all(uniforms, out, samples):
        assert version > 0
        for k in range(len(uniforms)):
            _render_one(uniforms[k], out[k], samples)

    return render_all


_SOURCES = ("anatomy.py", "materials.py", "noise.py", "renderer.py", "scenes.py", "sdf.py", "styles.py")
_VERSION = 1 + zlib.crc32(b"".join((Path(__file__).parent / name).read_bytes() for name in _SOURCES))
_render_all = _compile(_VERSION)


def render(
    identities: Sequence[Identity], shots: Sequence[Shot], *, height: int, width: int, supersample: int = 2
) -> np.ndarray:
    """Render one picture per (identity, shot).

    Args:
        identities: N people.
        shots: N shots.
        height, width: picture size in pixels.
        supersample: rays along each side of a pixel.

    Returns:
        uint8 [N, H, W, 3], sRGB.
    """
    out = np.empty((len(shots), height, width, 3), np.uint8)
    if not len(shots):
        return out
    uniforms = pack(identities, shots, height=height, width=width)
    threads = min(cores(), len(shots))
    size = -(-len(shots) // (_PARTS * threads))
    parts = [slice(start, start + size) for start in range(0, len(shots), size)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda part: _render_all(uniforms[part], out[part], supersample), parts))
    return out


def face_boxes(identities: Sequence[Identity], shots: Sequence[Shot], height: int, width: int) -> np.ndarray:
    """Where the faces are: forehead to chin and cheek to cheek, about what MTCNN reports.

    Returns:
        float64 [N, 4]: x0, y0, x1, y1 in pixels, clipped to the picture.
    """
    if not len(shots):
        return np.zeros((0, 4))
    u = pack(identities, shots, height=height, width=width)
    low = u["chin_y"].astype(float) - 0.14
    points = np.zeros((len(u), 6, 3))
    points[:, 0] = np.stack([0 * low, low, 0 * low + 0.5], -1)
    points[:, 1] = (0, 0.50, 0.62)
    half = 0.57 / (u["face_ix"].astype(float) * 0.60)
    for k, (side, y) in enumerate(((-1, 0.1), (1, 0.1), (-1, -0.5), (1, -0.5))):
        points[:, 2 + k] = np.stack([side * half * (0.95 if y < 0 else 1), 0 * low + y, 0 * low + 0.32], -1)
    rotation = np.stack([np.stack([u[f"r{i}{j}"] for j in range(3)], -1) for i in range(3)], -2).astype(float)
    eye = np.stack([u["ex"], u["ey"], u["ez"]], -1).astype(float)
    camera = np.einsum("nij,npj->npi", rotation, points - eye[:, None])
    x = u["centre_x"][:, None] + u["focal"][:, None] * camera[..., 0] / -camera[..., 2]
    y = u["centre_y"][:, None] - u["focal"][:, None] * camera[..., 1] / -camera[..., 2]
    # MTCNN's boxes reach above the brows and keep their width when the head turns (medians of measured differences)
    tall = y.max(1) - y.min(1)
    wide = 1.13 * 2 * half * u["focal"] / -camera[..., 2].mean(1)
    middle = (x.min(1) + x.max(1)) / 2
    box = np.stack([middle - wide / 2, y.min(1) - 0.12 * tall, middle + wide / 2, y.max(1)], -1).astype(float)
    return np.clip(box, 0, [width, height, width, height])
