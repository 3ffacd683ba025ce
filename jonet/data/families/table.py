"""Tables and desks: a top, a base, and parts between them."""

from __future__ import annotations

from typing import Any

import numpy as np
from manifold3d import Manifold

from jonet.data.families.draws import count, pick
from jonet.data.families.solids import FRONT, around, curve, limb, outline, pair, plate, rounded, sweep, turned, union

SIZES = {  # length, depth as a fraction of it, height
    "dining": ((1.2, 1.7), (0.5, 0.68), (0.71, 0.77)),
    "desk": ((1.05, 1.45), (0.46, 0.58), (0.71, 0.77)),
    "coffee": ((0.75, 1.15), (0.5, 0.75), (0.36, 0.48)),
    "side": ((0.42, 0.7), (0.85, 1.0), (0.5, 0.74)),
}
BASE_ODDS = {
    "dining": dict(legs=0.4, pedestal=0.2, trestle=0.25, frames=0.15),
    "desk": dict(cabinets=0.5, legs=0.3, frames=0.2),
    "coffee": dict(legs=0.5, frames=0.2, pedestal=0.15, panels=0.15),
    "side": dict(legs=0.5, pedestal=0.5),
}
KNOB = np.array([(0.009, 0.009, 0.015, 0.012), (0, 0.012, 0.024, 0.034)])  # radii and heights, in lengths of the table
TURNING = np.array([1.0, 1.0, 0.75, 1.05, 1.25, 1.2, 1.0, 0.85, 0.75, 0.7, 0.95, 0.75])  # radii down a turned leg


def draw(rng: np.random.Generator) -> dict:
    """Lengths in meters, splay as a slope, the rest as fractions."""
    u = rng.uniform
    use = pick(rng, dining=0.32, desk=0.2, coffee=0.22, side=0.26)
    base = pick(rng, **BASE_ODDS[use])
    length, depth, height = (u(*span) for span in SIZES[use])
    shape = "rect" if base in ("cabinets", "panels", "frames") else pick(rng, rect=0.55, oval=0.45)
    joined = base == "legs" and shape == "rect"
    return dict(
        use=use,
        base=base,
        shape=shape,
        length=length,
        depth=length * (1.0 if base == "pedestal" and use == "side" else depth),
        height=height,
        top_thickness=length * u(0.022, 0.036),
        top_roundness=1.0 if shape == "oval" else u(0.04, 0.12 if base in ("cabinets", "panels") else 0.3),
        bevel=u(0.1, 0.45),
        leg_style=pick(rng, square=0.4, round=0.35, turned=0.25),
        leg_radius=(0.012 + 0.017 * length) * u(0.85, 1.25),
        leg_taper=u(0.5, 1.0),
        splay=0.0 if joined and u() < 0.5 else u(0.03, 0.14),
        inset=u(0.02, 0.1),
        apron=u(0.055, 0.09) if joined and u() < 0.6 else 0.0,
        drawers=count(rng, 1, 3) if joined and use != "dining" and u() < 0.5 else 0,
        shelf=u(0.2, 0.4) if base == "legs" and use in ("coffee", "side") and u() < 0.5 else 0.0,
        braces=pick(rng, none=0.5, h=0.3, box=0.2),
        column=u(0.045, 0.075),
        column_belly=u(0.8, 1.7),
        feet=int(rng.choice([0, 3, 4])),
        foot=u(0.3, 0.42),
        end=pick(rng, t=0.4, a=0.35, x=0.25),
        cabinets=count(rng, 1, 2),
        cabinet=u(0.26, 0.34),
        cabinet_drawers=count(rng, 2, 4),
        cabinet_drop=u(0.0, 0.35),
    )


def build(p) -> Manifold:
    return union([top(p), *BASES[p.base](p)])


def underside(p) -> float:
    return p.height - p.top_thickness


def top(p) -> Manifold:
    shape = outline(p.length, p.depth, p.top_roundness, points=32 if p.shape == "oval" else 16)
    return plate(shape, underside(p), p.height, bevel=p.bevel * p.top_thickness, under=0.15 * p.top_thickness)


def corner(p) -> np.ndarray:
    """(x, z) [2] of the right front leg under the top."""
    inside = 1 - 0.29 * p.top_roundness - p.inset
    return np.array([p.length, p.depth]) / 2 * inside - p.leg_radius


def slab(x, y, z, roundness: float = 0.08) -> Manifold:
    """A box between pairs of bounds, its upright edges rounded."""
    shape = outline(x[1] - x[0], z[1] - z[0], roundness, points=8)
    return plate(shape, *y).translate(((x[0] + x[1]) / 2, 0, (z[0] + z[1]) / 2))


# Four legs, with an apron, drawers, a shelf or stretchers between


def legs(p) -> list[Manifold]:
    x, z = corner(p)
    out = 0.7 * p.splay * underside(p)
    start, foot = np.array([x, underside(p) + 0.4 * p.top_thickness, z]), np.array([x + out, 0, z + out])
    radii = p.leg_radius * (TURNING if p.leg_style == "turned" else np.array([1, 1, p.leg_taper]))
    leg = limb(start, foot, *radii, roundness=0.25 if p.leg_style == "square" else 1.0)
    parts = [*pair(leg), *pair(leg.mirror(FRONT))]
    if p.shelf:
        parts.append(shelf(p, foot + p.shelf * (start - foot)))
    elif p.braces != "none":
        parts += braces(p, foot + 0.22 * (start - foot))
    if p.drawers:
        parts += chest(p, (-x, x), (underside(p) - 0.13, underside(p) + 0.005), (-z, z), p.drawers, 1)
    elif p.apron:
        y = underside(p) + 0.005 - p.apron / 2
        size: dict[str, Any] = dict(width=0.02 * p.length + 0.01, height=p.apron + 0.01, roundness=0.2, points=8)
        front = sweep([(-x, y, z), (x, y, z)], **size)
        parts += [*pair(sweep([(x, y, z), (x, y, -z)], **size)), front, front.mirror(FRONT)]
    return parts


def shelf(p, at) -> Manifold:
    """A board between the legs, one of which passes through `at`."""
    grow = 1.35 if p.shape == "oval" else 1.0
    x, z = 2 * grow * (at[[0, 2]] + 0.7 * p.leg_radius)
    shape = outline(x, z, 1.0 if p.shape == "oval" else 0.1, points=24)
    return plate(shape, at[1], at[1] + 0.8 * p.top_thickness, bevel=0.2 * p.top_thickness)


def braces(p, at) -> list[Manifold]:
    """Stretchers at the height of `at`, a place on the right front leg."""
    left, back, middle = np.array([(-1, 1, 1), (1, 1, -1), (1, 1, 0)])
    thin = max(0.55 * p.leg_radius, 0.011 * p.length)
    parts = pair(limb(at, at * back, thin, points=8))
    lines = [at * middle] if p.braces == "h" else [at, at * back]
    return parts + [limb(line * left, line, thin, points=8) for line in lines]


def chest(p, x, y, z, columns: int, rows: int) -> list[Manifold]:
    """A block with drawer fronts and knobs on its front."""
    proud, gap = 0.012 * p.length, 0.014 * p.length
    parts = [slab(x, y, z)]
    xs, ys = np.linspace(x[0], x[1], columns + 1), np.linspace(y[0], y[1], rows + 1)
    for i in range(columns):
        for j in range(rows):
            wide, high = (xs[i] + gap, xs[i + 1] - gap), (ys[j] + gap, ys[j + 1] - gap)
            parts.append(slab(wide, high, (z[1] - 0.01, z[1] + proud)))
            knob = turned(p.length * KNOB[0], p.length * KNOB[1], 8).rotate((90, 0, 0))
            parts.append(knob.translate((sum(wide) / 2, sum(high) / 2, z[1])))
    return parts


def cabinets(p) -> list[Manifold]:
    """A desk on one or two stacks of drawers; with one, legs support the other side."""
    x, z = p.length / 2 * (1 - 0.5 * p.inset), p.depth / 2 * (1 - 0.5 * p.inset)
    low, high = p.cabinet_drop * p.height, underside(p) + 0.005
    inner = x - p.cabinet * p.length * (1 if p.cabinets == 1 else 0.85)
    box = (inner, x), (low, high), (-z, z - 0.02)
    stack = chest(p, *box, 1, p.cabinet_drawers if p.cabinet_drop < 0.2 else min(p.cabinet_drawers, 3))
    r = 0.8 * p.leg_radius

    def feet(*where: float) -> list[Manifold]:
        ends = [(a, b) for a in where for b in (z - 0.03 - r, r - z)]
        return [limb((a, high, b), (a, 0, b), r, r * p.leg_taper, roundness=0.25) for a, b in ends]

    modesty = slab((-x, inner + 0.02), (0.45 * p.height, high), (-z + 0.01, -z + 0.03 * p.length))
    if p.cabinets == 2:
        return [*pair(union([*stack, *feet(inner + r, x - r)])), modesty]
    return [*stack, *feet(r - x, inner + r, x - r), modesty]


# Other bases


def pedestal(p) -> list[Manifold]:
    y, r = underside(p), p.column * np.sqrt(min(p.length, 1.3))
    reach = p.foot * p.depth
    bulge = p.column_belly
    radii = r * np.array([1.15, 0.8, bulge, 0.95 * bulge, 0.75, 0.8, 1.5])
    levels = np.array([0.2, 0.24, 0.42, 0.5, 0.75, 0.88, 0.97]) * y
    head = [0.35 * p.depth] * 2, [y - 0.015, y + 0.01]
    if not p.feet:
        low = 0.03 + 0.02 * p.length
        disc = [reach, reach, 0.85 * reach, 1.5 * r, 1.1 * r], [0, 0.4 * low, 0.75 * low, 1.1 * low, 1.8 * low]
        return [turned([*disc[0], *radii, *head[0]], [*disc[1], *levels, *head[1]], 20)]
    claw = curve([(0, 0.24 * y, 0), (0, 0.22 * y, 0.45 * reach), (0, 0.055, 0.85 * reach), (0, 0.022, reach + 0.02)], 9)
    foot = sweep(claw, np.linspace(1.1, 0.75, 9) * r, np.linspace(1.4, 0.75, 9) * r, 0.6)
    foot = foot.trim_by_plane((0, 1, 0), 0.0)
    return [
        turned([0.7 * r, r, *radii, *head[0]], [0.1 * y, 0.14 * y, *levels, *head[1]], 20),
        *around(foot, p.feet, 0 if p.feet == 3 else 45),
    ]


def trestle(p) -> list[Manifold]:
    """Two like ends, joined by a beam."""
    x, z = p.length * (0.36 - 0.6 * p.inset), p.depth * 0.4
    y, r = underside(p), 1.1 * p.leg_radius

    def rail(height: float, reach: float, *radii: float) -> Manifold:
        return limb((x, height, -reach * z), (x, height, reach * z), *(r * np.array(radii)), roundness=0.25)

    if p.end == "t":
        post = sweep([(x, r, 0), (x, y, 0)], 1.8 * r, 3.2 * r, 0.2, up=FRONT)
        end = [rail(r, 1, 1, 1.2, 1), post, rail(y - r + 0.005, 0.9, 0.8, 1, 0.8)]
    elif p.end == "a":
        leg = limb((x, y + 0.01, 0.3 * z), (x, 0, z), r, 0.8 * r, roundness=0.25)
        end = [leg, leg.mirror(FRONT), rail(0.32 * y, 0.8, 0.7), rail(y - 0.6 * r, 0.6, 0.8)]
    else:
        leg = limb((x, y + 0.01, z), (x, 0, -z), r, roundness=0.25)
        end = [leg, leg.mirror(FRONT)]
    height = {"t": 0.4, "a": 0.32, "x": 0.5}[p.end] * y
    beam = sweep([(-x, height, 0), (x, height, 0)], 1.2 * r, 2.2 * r, 0.2, points=8)
    return [*pair(union(end)), beam]


def frames(p) -> list[Manifold]:
    """A bent or welded loop at either end."""
    x, z = corner(p)
    y, r = underside(p), p.leg_radius
    out = 0.5 * p.splay * y
    loop = [(x, y, z), (x + out, 0.8 * r, z + out), (x + out, 0.8 * r, -z - out), (x, y, -z)]
    tube = sweep(rounded(loop, 0.02 + 0.1 * p.top_roundness), 1.4 * r, 1.8 * r, 0.3, up=(1, 0, 0))
    rail = sweep([(-x, y - 0.5 * r, 0), (x, y - 0.5 * r, 0)], 2 * r, 1.6 * r, 0.2, points=8)
    return [*pair(tube), rail]


def panels(p) -> list[Manifold]:
    """Two boards on edge, and a shelf between them."""
    x, z, y = p.length * (0.48 - 0.6 * p.inset), p.depth * (0.48 - 0.3 * p.inset), underside(p)
    end = slab((x - 1.2 * p.top_thickness, x), (0, y + 0.005), (-z, z))
    level = 0.35 * y
    return [*pair(end), slab((-x + 0.01, x - 0.01), (level, level + p.top_thickness), (-0.9 * z, 0.9 * z))]


BASES = dict(legs=legs, cabinets=cabinets, pedestal=pedestal, trestle=trestle, frames=frames, panels=panels)
