"""Lamps: table lamps, floor lamps, jointed desk lamps, ceiling lamps."""

from __future__ import annotations

import numpy as np
from manifold3d import Manifold

from jonet.data.families.draws import count, pick
from jonet.data.families.solids import RIGHT, around, curve, limb, revolved, sweep, turned, union

SHADE_ODDS = {
    "table": dict(cone=0.5, drum=0.25, dome=0.1, globe=0.15),
    "floor": dict(cone=0.4, drum=0.35, dome=0.1, globe=0.15),
    "desk": dict(bell=0.4, cone=0.35, dome=0.25),
    "pendant": dict(dome=0.35, cone=0.25, bell=0.2, globe=0.2),
    "chandelier": dict(globe=0.4, bell=0.3, cone=0.3),
}
HEIGHT = dict(table=(0.42, 0.62), floor=(1.35, 1.7), desk=(0.42, 0.55), pendant=(0.5, 0.9), chandelier=(0.5, 0.75))

BODIES = {  # (radius, height) of the foot in radii and in heights of the lamp, and of the body above in its own height
    "vase": ([(0.6, 0), (0.62, 0.04), (0.55, 0.06)], [(0.6, 0.2), (1, 0.55), (0.85, 0.75), (0.3, 1)]),
    "bottle": ([(0.9, 0)], [(1, 0.04), (1, 0.45), (0.45, 0.7), (0.28, 1)]),
    "column": ([(1.1, 0), (1.1, 0.05), (0.8, 0.06)], [(0.45, 0.18), (0.38, 0.5), (0.38, 0.9), (0.5, 1)]),
    "balls": ([(0.9, 0), (0.9, 0.05)], []),
}


def draw(rng: np.random.Generator) -> dict:
    """Height in meters; everything else as fractions of it, arms as angles in degrees from upright."""
    u = rng.uniform
    kind = pick(rng, table=0.3, floor=0.22, desk=0.22, pendant=0.14, chandelier=0.12)
    shade = pick(rng, **SHADE_ODDS[kind])
    wide = dict(table=0.31, floor=0.17, desk=0.19, pendant=0.32, chandelier=0.11)[kind] * u(0.8, 1.2)
    wide *= 0.72 if shade == "globe" else 1
    return dict(
        kind=kind,
        shade=shade,
        height=u(*HEIGHT[kind]),
        shade_radius=wide,
        shade_height=wide * (u(1.0, 1.5) if kind in ("table", "floor") else u(0.8, 1.2)),
        shade_top=u(0.85, 1.0) if shade == "drum" else u(0.3, 0.65),
        wall=u(0.02, 0.028),
        pole=u(0.011, 0.017),
        base=pick(rng, vase=0.28, balls=0.24, column=0.24, bottle=0.24),
        base_radius=u(0.1, 0.17) * (0.85 if kind == "floor" else 1.1),
        base_height=u(0.03, 0.06),
        belly=u(0.09, 0.17),
        legs=3 if kind == "floor" and u() < 0.35 else 0,
        arc=u(0.2, 0.4) if kind == "floor" and u() < 0.3 else 0.0,
        balls=count(rng, 2, 4),
        arms=count(rng, 3, 6),
        reach=u(0.3, 0.45),
        lower_arm=u(-35, -5),
        upper_arm=u(35, 75),
        elbow=u(0.5, 0.6),
        tilt=u(0, 45),
    )


def build(p) -> Manifold:
    return KINDS[p.kind](p).scale((p.height,) * 3)


# Everything below has height 1; `build` scales it


def hood(p) -> Manifold:
    """The shade, its open rim at y = 0, its closed top upwards; a globe is a ball."""
    r, h, wall = p.shade_radius, crown(p), p.wall
    points = 12 if p.kind == "chandelier" else 24
    if p.shade == "globe":
        turn = np.linspace(-np.pi / 2, np.pi / 2, 13)[1:-1]
        return turned(r * np.cos(turn), r + r * np.sin(turn), points)
    if p.shade == "dome":
        turn = np.linspace(0, 0.42 * np.pi, 6)
        outer = np.stack([r * np.cos(turn), h * np.sin(turn) / np.sin(turn[-1])], -1)
    elif p.shade == "bell":
        outer = curve([(r, 0), (0.8 * r, 0.3 * h), (p.shade_top * r, 0.75 * h), (0.3 * r, h)], 8)
    else:
        outer = np.array([(r, 0), (p.shade_top * r, h)])
    inner = np.maximum(outer * [1, 1 - wall / h] - [wall, 0], [0.3 * wall, 0])
    return revolved([*outer, (0, h), (0, h - wall), *inner[::-1]], points)


def crown(p) -> float:
    """Height of the shade above its rim."""
    return 2 * p.shade_radius if p.shade == "globe" else p.shade_height * (0.72 if p.shade == "dome" else 1)


def fitting(p) -> float:
    """Height above the rim at which the support from below ends: inside the top, or just inside a globe."""
    return 0.02 if p.shade == "globe" else crown(p) - 0.4 * p.wall


def table(p) -> Manifold:
    rim = 1 - crown(p)
    r, b = p.belly, rim - 0.04  # widest radius and height of the body
    foot = BODIES[p.base][0]
    if p.base == "balls":
        turn = np.linspace(0, np.pi * p.balls, 8 * p.balls + 1)
        body = np.stack([0.25 + 0.55 * np.sqrt(abs(np.sin(turn))), np.linspace(0.06, b, len(turn))], -1)
    else:
        body = curve(BODIES[p.base][1], 13) * [1, b]
    profile = np.concatenate([foot, body]) * [r, 1]
    stem = [(1.2 * p.pole, b + 0.01), (1.2 * p.pole, rim + fitting(p))]
    radii, heights = np.concatenate([profile, stem]).T
    return union([turned(radii, heights, 20), hood(p).translate((0, rim, 0))])


def floor(p) -> Manifold:
    rim, pole, r, h = 1 - crown(p), p.pole, p.base_radius, p.base_height
    stand = [turned((r, r, 0.92 * r, 0.5 * r, pole), h * np.array([0, 0.5, 0.8, 1, 1.5]), 24)]
    if p.arc:
        path = curve([(0, 0, 0), (0, 0.55, -0.02), (0, 0.9, 0.2 * p.arc), (0, 0.985, 0.6 * p.arc), (0, 0.9, p.arc)], 17)
        tip = path[-2] - [0, crown(p) - 0.015, 0]
        return union([*stand, sweep(path[:-1], 2 * pole, up=RIGHT), hood(p).translate(tip)])
    low = 0.01
    if p.legs:
        low = 0.8 * rim
        leg = limb((0, low, 0.01), (0, 0, 1.6 * r + 0.06), 1.1 * pole, 0.8 * pole)
        stand = [*around(leg, p.legs), turned((2 * pole, 2 * pole, pole), (low - 0.04, low + 0.03, low + 0.04), 12)]
    stem = limb((0, low, 0), (0, rim + fitting(p), 0), pole)
    return union([*stand, stem, hood(p).translate((0, rim, 0))])


def desk(p) -> Manifold:
    """Two arms and a head, folded like a leg."""
    r, h, thick = p.base_radius, p.base_height, 1.15 * p.pole
    lean = np.radians([p.lower_arm, p.upper_arm])
    lower, upper = np.stack([0 * lean, np.cos(lean), np.sin(lean)], -1) * [[p.elbow], [1.05 - p.elbow]]
    start = np.array([0, h, 0])
    knee, tip = start + lower, start + lower + upper
    joint = limb((-2.2 * thick, 0, 0), (2.2 * thick, 0, 0), 1.7 * thick)
    neck = turned((1.8 * thick, 1.8 * thick, thick), (-0.03, 0.02, 0.035), 12)
    head = (hood(p).translate((0, -crown(p), 0)) + neck).rotate((-p.tilt, 0, 0))
    stand = turned((r, r, 0.85 * r, 1.5 * thick), (0, 0.6 * h, h, 1.15 * h), 24)
    arms = [limb(start, knee, thick), limb(knee, tip, thick)]
    return union(
        [stand, *arms, *(joint.translate(at) for at in (start + [0, thick, 0], knee, tip)), head.translate(tip)]
    )


def pendant(p) -> Manifold:
    h = crown(p)
    cord = turned((p.pole, p.pole, 0.08, 0.08), (h - 0.02, 0.96, 0.965, 1.0))
    cap = turned((0.05, 0.05, p.pole), (h - 0.02, h + 0.01, h + 0.05))
    return union([hood(p), cap, cord])


def chandelier(p) -> Manifold:
    """Curved arms around a turned stem, each with its own shade."""
    low, reach = 0.25, p.reach
    stem = turned(
        (0.02, 0.05, 0.055, 0.03, 0.022, 0.04, 0.022, 0.018, 0.08, 0.08),
        (low - 0.1, low - 0.06, low, low + 0.06, low + 0.12, low + 0.2, low + 0.28, 0.95, 0.96, 1.0),
    )
    arm = curve([(0, low, 0), (0, low - 0.09, 0.45 * reach), (0, low - 0.02, 0.9 * reach), (0, low + 0.08, reach)], 10)
    shade = hood(p) if p.shade == "globe" else hood(p).rotate((180, 0, 0)).translate((0, crown(p), 0))
    return union([stem, *around(sweep(arm, 0.032) + shade.translate((0, low + 0.055, reach)), p.arms)])


KINDS = dict(table=table, floor=floor, desk=desk, pendant=pendant, chandelier=chandelier)
