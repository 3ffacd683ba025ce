"""Mugs, cups, tankards and jugs: a hollow turned body, handles, a spout, a saucer."""

from __future__ import annotations

import numpy as np
from manifold3d import Manifold

from jonet.data.families.draws import pick
from jonet.data.families.solids import FRONT, curve, pair, rounded, sweep, turned, union

SIZES = {  # height, largest radius as a fraction of it
    "mug": ((0.085, 0.115), (0.36, 0.48)),
    "cup": ((0.055, 0.08), (0.52, 0.68)),
    "tankard": ((0.12, 0.17), (0.3, 0.4)),
    "jug": ((0.15, 0.24), (0.28, 0.4)),
}
HANDLES = dict(
    mug=(0.08, 0.84, 0.08), cup=(0.2, 0.6, 0.2), tankard=(0.0, 0.9, 0.1), jug=(0.1, 0.75, 0.15)
)  # probabilities of no, one and two handles


def draw(rng: np.random.Generator) -> dict:
    """Height in meters; everything else as fractions of it, or of the radius."""
    u = rng.uniform
    kind = pick(rng, mug=0.42, cup=0.22, tankard=0.14, jug=0.22)
    size = SIZES[kind]
    spout = u(0.12, 0.3) if kind == "jug" and u() < 0.75 else 0.0
    handles = int(np.searchsorted(np.cumsum(HANDLES[kind])[:2], u(), side="right"))
    lean = dict(mug=0.0, cup=0.35, tankard=-0.12, jug=0.0)[kind]
    return dict(
        kind=kind,
        height=u(*size[0]),
        radius=u(*size[1]),
        taper=lean + u(-0.08, 0.14),
        belly=u(0.08, 0.4) if kind == "jug" else u(0.05, 0.2) if u() < 0.5 else u(-0.1, 0.05),
        belly_height=u(0.3, 0.6),
        lip=u(0.0, 0.14),
        foot=u(0.72, 0.95) if u() < 0.5 else 1.0,
        wall=u(0.045, 0.065),
        handles=min(handles, 1) if spout else handles,
        handle=pick(rng, ring=0.4, ear=0.35, square=0.25),
        handle_top=u(0.74, 0.88),
        handle_bottom=u(0.18, 0.34),
        handle_reach=u(0.24, 0.36),
        handle_width=u(0.1, 0.16),
        handle_thickness=u(0.065, 0.095),
        spout=spout,
        saucer=u(1.45, 1.8) if kind == "cup" and u() < 0.35 else 0.0,
        bands=int(kind in ("tankard", "mug") and u() < 0.3),
    )


# Everything below has height 1; `build` scales it


def build(p) -> Manifold:
    parts = [pour(p, turned(*profile(p), 32)), *handles(p)]
    if p.bands:
        parts += [band(p, level) for level in (0.16, 0.84)]
    body = union(parts) - pour(p, turned(*hollow(p), 32))
    if p.saucer:
        body += saucer(p)
    return body.scale((p.height,) * 3)


def radius(p, y):
    """Outer radius of the body at a height."""
    y = np.asarray(y, float)
    sides = 1 + p.taper * (y - 0.6) + p.lip * y**8
    swell = p.belly * np.exp(-(((y - p.belly_height) / 0.28) ** 2))
    return p.radius * (sides + swell) / (1 + max(p.belly, 0)) * np.where(y < 0.07, p.foot, 1)


def profile(p) -> tuple[np.ndarray, np.ndarray]:
    """Radii and heights of the outside, [15] each."""
    y = np.array([0, 0.069, 0.075, 0.11, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.88, 0.94, 0.98, 1.0])
    r = radius(p, y)
    r[2] = (r[1] + r[3]) / 2
    r[[0, -1]] -= 0.012
    return r, y


def hollow(p) -> tuple[np.ndarray, np.ndarray]:
    """Radii and heights of the inside, which goes on above the rim, [13] each."""
    y = np.linspace(0.06 + 1.1 * p.wall, 1.0, 12)
    r = radius(p, np.maximum(y, 0.1)) - p.wall
    r[0] *= 0.9
    return np.append(r, r[-1] + 1.2 * p.lip * p.radius), np.append(y, 1.15)


def pour(p, solid: Manifold) -> Manifold:
    """The rim drawn out into a spout towards -x."""
    if not p.spout:
        return solid

    def bend(points):
        points = np.array(points)
        x, y, z = points.T
        rise = np.clip((y - 0.55) / 0.45, 0, 1.1) ** 2
        near = np.exp(-((np.arctan2(z, -x) / 0.45) ** 2)) * rise
        points[:, 0] -= p.spout * near
        points[:, 1] += 0.25 * p.spout * near
        return points

    return solid.warp_batch(bend)


def handles(p) -> list[Manifold]:
    if not p.handles:
        return []
    high, low = p.handle_top, p.handle_bottom
    start, end = radius(p, high) - 0.5 * p.wall, radius(p, low) - 0.5 * p.wall
    out = max(start, end) + p.handle_reach
    if p.handle == "square":
        path = rounded([(start, high, 0), (out, high - 0.01, 0), (out - 0.03, low + 0.03, 0), (end, low, 0)], 0.1)
    elif p.handle == "ear":
        bend = [(start + 0.6 * p.handle_reach, high + 0.03, 0), (out, high - 0.14, 0), (out - 0.12, low + 0.14, 0)]
        path = curve([(start, high, 0), *bend, (end, low, 0)], 14)
    else:
        turn = np.linspace(np.pi / 2, -np.pi / 2, 14)
        fraction = (1 + np.sin(turn)) / 2
        x = end + fraction * (start - end) + p.handle_reach * np.cos(turn) ** 0.8
        path = np.stack([x, low + fraction * (high - low), 0 * turn], -1)
    handle = sweep(path, p.handle_width, p.handle_thickness, 0.8, up=FRONT)
    return pair(handle) if p.handles == 2 else [handle]


def band(p, level: float) -> Manifold:
    y = np.array([-0.035, -0.025, 0.025, 0.035]) + level
    return turned(radius(p, y) + [0.0, 0.022, 0.022, 0.0], y, 32)


def saucer(p) -> Manifold:
    """A dish that the cup stands in, its well wider than the cup."""
    well, rim = p.radius, p.saucer * p.radius
    return turned((0.6 * well, well, rim, rim - 0.01, well, 0.3 * well), (-0.07, -0.06, 0.07, 0.12, 0.02, 0.02), 32)
