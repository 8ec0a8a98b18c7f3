"""The signed distance of a person: one branch-free loop over points that LLVM turns into vector instructions.

Everything is float32 (a stray float64 literal would halve the vector width), hence the many `F(...)`. Coordinates are
the head's own: x to the picture's right, y up, z out of the face, eyes at y = 0.
"""

from math import floor, sqrt

from numba import njit
from numpy import float32 as F  # noqa: N812 - it stands before every constant


@njit(fastmath=True)
def _ellipsoid(x, y, z, ix, iy, iz):
    qx, qy, qz = x * ix, y * iy, z * iz
    k0 = sqrt(qx * qx + qy * qy + qz * qz)
    gx, gy, gz = qx * ix, qy * iy, qz * iz
    k1 = sqrt(gx * gx + gy * gy + gz * gz)
    return k0 * (k0 - F(1.0)) / (k1 + F(1e-6))


@njit(fastmath=True)
def smooth_min(a, b, k):
    """Polynomial smooth minimum with a blend of width k."""
    h = max(k - abs(a - b), F(0.0))
    return min(a, b) - h * h * (F(0.25) / k)


@njit(fastmath=True)
def _smooth_max(a, b, k):
    h = max(k - abs(a - b), F(0.0))
    return max(a, b) + h * h * (F(0.25) / k)


@njit(fastmath=True)
def _wave(v):
    """A parabolic stand-in for sin(2 pi v), because a library sine would not be vectorised."""
    t = F(2.0) * (v - floor(v)) - F(1.0)
    return F(-4.0) * t * (F(1.0) - abs(t))


@njit(fastmath=True)
def _unit(v):
    return min(max(v, F(0.0)), F(1.0))


@njit(fastmath=True, error_model="numpy")
def distances(n, xs, ys, zs, u, head, hair, body):
    """Distances of n points to the skin of the head, the hair and the dressed body.

    Args:
        n: number of points.
        xs, ys, zs: float32 [>= n], head frame.
        u: one record of `anatomy.UNIFORMS`.
        head, hair, body: float32 [>= n], written.
    """
    skx, sky, skz = u.skull_ix, u.skull_iy, u.skull_iz
    fcx, jwx, jwy, chx, chy, chz = u.face_ix, u.jaw_ix, u.jaw_y, u.chin_ix, u.chin_y, u.chin_z
    ckz, ckf, brz = u.cheek_z, u.cheek_fat, u.ridge_z
    nby, nbz, nty, ntz, nbr = u.nose_base_y, u.nose_base_z, u.nose_tip_y, u.nose_tip_z, u.nose_radius
    ntx, nti, nwx, nwy, nwz, nhk = u.nose_tip_ix, u.nose_tip_i, u.nose_wing_x, u.nose_wing_y, u.nose_wing_z, u.nose_hook
    nwi = u.nose_wing_i
    dy, dz = nty - nby, ntz - nbz
    idl = F(1.0) / (dy * dy + dz * dz)
    eyx, eyy, eyz, eix, eiy, ebz = u.eye_x, u.eye_y, u.eye_z, u.socket_ix, u.socket_iy, u.socket_z
    ebr = u.eyeball_r
    mty, mtz, muy, mly, mux, mui, mli = (
        u.mouth_y,
        u.mouth_z,
        u.lip_up_y,
        u.lip_low_y,
        u.lip_ix,
        u.lip_up_iy,
        u.lip_low_iy,
    )
    mcx, mcy, mcu, mcz = u.cavity_ix, u.cavity_iy, u.cavity_y, u.cavity_z
    erx, ery, erz, eri = u.ear_x, u.ear_y, u.ear_z, u.ear_i
    bdl, bdy, msl = u.beard_length, u.beard_y, u.moustache
    cpy, cpz, cpx, cpiy, cpiz = u.cap_y, u.cap_z, u.cap_ix, u.cap_iy, u.cap_iz
    npy_, nps = u.nape_y, u.nape_slope
    cry, crz, crix, criy, criz, crb = (
        u.curtain_y,
        u.curtain_z,
        u.curtain_ix,
        u.curtain_iy,
        u.curtain_iz,
        u.curtain_bottom,
    )
    opx, opy, opz, opix, opiu, opid, opiz, opt = (
        u.open_x, u.open_y, u.open_z, u.open_ix, u.open_iup, u.open_idown, u.open_iz, u.open_tilt)  # fmt: skip
    bnx, bny, bnz, bnr = u.bun_x, u.bun_y, u.bun_z, u.bun_r
    amp, frx, fry, hph = u.hair_amp, u.hair_fx, u.hair_fy, u.hair_phase
    m00, m01, m02, m10, m11, m12, m20, m21, m22 = u.b00, u.b01, u.b02, u.b10, u.b11, u.b12, u.b20, u.b21, u.b22
    nkr, shx, shi = u.neck_r, u.shoulder_x, u.shoulder_ix
    hair_off = u.hair_off
    for i in range(n):
        x, y, z = xs[i], ys[i], zs[i]
        ax = abs(x)
        # skull, face, jaw, chin, cheeks
        d = _ellipsoid(x, y - F(0.30), z + F(0.15), skx, sky, skz)
        d = smooth_min(d, _ellipsoid(x, y + F(0.25), z - F(0.10), fcx, F(1.176), F(1.515)), F(0.22))
        d = smooth_min(d, _ellipsoid(x, y - jwy, z - F(0.10), jwx, F(2.5), F(1.92)), F(0.24))
        d = smooth_min(d, _ellipsoid(x, y - chy, z - chz, chx, F(6.6), F(5.6)), F(0.22))
        d = smooth_min(d, _ellipsoid(ax - F(0.40), y + F(0.24), z - ckz, F(4.8), F(6.0), F(5.0)), F(0.20))
        d = smooth_min(d, _ellipsoid(ax - F(0.30), y + F(0.58), z - F(0.38), F(5.0), F(4.2), F(5.0)) + ckf, F(0.22))
        d = smooth_min(d, _ellipsoid(ax - F(0.25), y - F(0.22), z - brz, F(3.4), F(10.0), F(7.5)), F(0.16))
        # nose: a capsule from the root to the tip, ball, wings
        py, pz = y - nby, z - nbz
        h = _unit((py * dy + pz * dz) * idl)
        bump = nhk * h * (F(1.0) - h)
        qy, qz = py - dy * h, pz - dz * h - bump
        nose = sqrt(x * x + qy * qy + qz * qz) - nbr * (F(0.75) + F(0.5) * h)
        nose = smooth_min(nose, _ellipsoid(x, y - nty, z - ntz, ntx, nti, nti), F(0.08))
        nose = smooth_min(nose, _ellipsoid(ax - nwx, y - nwy, z - nwz, nwi, nwi * F(1.15), nwi * F(0.85)), F(0.07))
        d = smooth_min(d, nose, F(0.11))
        # eye sockets carved, eyeballs put in
        d = _smooth_max(d, -_ellipsoid(ax - eyx, y - eyy, z - ebz, eix, eiy, F(7.0)), F(0.14))
        ex, ey, ez = ax - eyx, y - eyy, z - eyz
        d = smooth_min(d, sqrt(ex * ex + ey * ey + ez * ez) - ebr, F(0.05))
        # beard and moustache lift the skin a little
        lift = _unit((bdy - y - F(0.25) * z) * F(4.0)) * _unit((z + F(0.05)) * F(4.0))
        mo = _unit(F(1.0) - abs(y - mty - F(0.14)) * F(9.0)) * _unit((F(0.36) - ax) * F(6.0)) * _unit(z * F(4.0))
        d -= bdl * lift + msl * mo
        # lips and the open mouth
        mz = z - mtz
        lip = _ellipsoid(x, y - mty - muy, mz + F(0.03), mux, mui, F(11.0))
        lip = smooth_min(lip, _ellipsoid(x, y - mty - mly, mz + F(0.03), mux * F(1.25), mli, F(10.0)), F(0.02))
        d = smooth_min(d, lip, F(0.05))
        d = _smooth_max(d, -_ellipsoid(x, y - mty - mcu, z - mcz, mcx, mcy, F(5.0)), F(0.03))
        ear = _ellipsoid(ax - erx, y - ery, z - erz + F(0.3) * (ax - erx), eri * F(1.9), eri * F(0.72), eri * F(1.1))
        d = smooth_min(d, ear, F(0.07))
        # neck, still part of the skin; its lower end follows the body
        bx = m00 * x + m01 * (y + F(0.75)) + m02 * (z + F(0.25))
        by = m10 * x + m11 * (y + F(0.75)) + m12 * (z + F(0.25)) - F(0.75)
        bz = m20 * x + m21 * (y + F(0.75)) + m22 * (z + F(0.25)) - F(0.25)
        abx = abs(bx)
        t = _unit((F(-0.5) - by) * F(0.77))
        nz = bz + F(0.22) + F(0.18) * t
        neck = sqrt(bx * bx + nz * nz) - nkr * (F(0.94) + F(0.10) * t + F(0.35) * _unit(t - F(0.75)))
        neck = max(neck, by + F(0.45))
        neck = max(neck, F(-2.3) - by)
        d = smooth_min(d, neck, F(0.16))
        head[i] = d
        # torso, shoulders, arms
        torso = _ellipsoid(bx, by + F(2.33), bz + F(0.42), shi, F(1.28), F(1.75))
        torso = smooth_min(torso, _ellipsoid(bx, by + F(3.68), bz + F(0.36), shi * F(1.22), F(0.52), F(1.45)), F(0.5))
        ty = _unit((F(-2.20) - by) * F(0.33))
        ay = by + F(2.20) + F(3.0) * ty
        arm_x, arm_z = abx - shx - F(0.2) * ty, bz + F(0.42)
        torso = smooth_min(torso, sqrt(arm_x * arm_x + ay * ay + arm_z * arm_z) - F(0.40), F(0.16))
        cx = F(0.93) * by + F(0.36) * bz
        ring_y = cx + F(1.56)
        ring_r = sqrt(bx * bx + (bz + F(0.38)) * (bz + F(0.38))) - nkr - F(0.10)
        collar = sqrt(ring_y * ring_y * F(0.45) + ring_r * ring_r) - F(0.085)
        body[i] = smooth_min(torso, collar, F(0.07))
        # hair: cap and curtain, less the opening for the face, plus a bun
        w = amp * (
            _wave(frx * x + hph) * _wave(fry * y + F(0.6) * hph)
            + _wave(frx * z + F(1.7) * hph) * _wave(fry * y + F(0.25))
        )
        c = _ellipsoid(x, y - cpy, z - cpz, cpx, cpiy, cpiz)
        c = _smooth_max(c, (npy_ + nps * z - y) * F(0.8), F(0.06))
        curtain = _ellipsoid(x, y - cry, z - crz, crix, criy, criz)
        curtain = _smooth_max(curtain, crb - y, F(0.14))
        c = smooth_min(c, curtain, F(0.12)) + w
        oy = y - opy + opt * x
        opening = _ellipsoid(x - opx, oy, z - opz, opix, opiu if oy > F(0.0) else opid, opiz)
        c = _smooth_max(c, -opening, F(0.06))
        ux, uy, uz = x - bnx, y - bny, z - bnz
        c = smooth_min(c, sqrt(ux * ux + uy * uy + uz * uz) - bnr + w * F(0.5), F(0.10))
        hair[i] = c + hair_off
