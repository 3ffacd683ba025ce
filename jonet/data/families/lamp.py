"""Lamps: on a table, a floor, a desk's jointed arm, or from a ceiling."""

from __future__ import annotations

import numpy as np
from manifold3d import Manifold

from .draws import count, pick
from .solids import around, curve, limb, revolved, sweep, turned, union

SHADE_ODDS = {
    "table": dict(cone=0.5, drum=0.25, dome=0.1, globe=0.15),
    "floor": dict(cone=0.4, drum=0.35, dome=0.1, globe=0.15),
    "desk": dict(bell=0.4, cone=0.35, dome=0.25),
    "pendant": dict(dome=0.35, cone=0.25, bell=0.2, globe=0.2),
    "chandelier": dict(globe=0.4, bell=0.3, cone=0.3),
}
HEIGHT = dict(table=(0.42, 0.62), floor=(1.35, 1.7), desk=(0.42, 0.55), pendant=(0.5, 0.9), chandelier=(0.5, 0.75))


def draw(rng: np.random.Generator) -> dict:
    """height in metres; everything else as a share of it, arms as angles in degrees from upright."""
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


# Everything below is of height 1


def hood(p) -> Manifold:
    """The shade, its open rim at y = 0, its closed top upwards; a globe is a ball."""
    r, h, wall = p.shade_radius, p.shade_height, p.wall
    points = 12 if p.kind == "chandelier" else 24
    turn = np.linspace(0, np.pi / 2, 7)
    if p.shade == "globe":
        turn = np.linspace(-np.pi / 2, np.pi / 2, 13)[1:-1]
        return turned(np.stack([r * np.cos(turn), r + r * np.sin(turn)], -1), points)
    if p.shade == "dome":
        outer = np.stack([r * np.cos(turn), 0.75 * h * np.sin(turn)], -1)[:-1]
    elif p.shade == "bell":
        outer = curve([(r, 0), (0.8 * r, 0.3 * h), (p.shade_top * r, 0.75 * h), (0.3 * r, h)], 8)
    else:
        outer = np.array([(r, 0), (p.shade_top * r, h)])
    inner = np.maximum(outer * [1, (outer[-1, 1] - wall) / outer[-1, 1]] - [wall, 0], [0.3 * wall, 0])
    crown, ceiling = outer[-1, 1], inner[-1, 1]
    return revolved([*outer, (0, crown), (0, ceiling), *inner[::-1]], points)


def crown(p) -> float:
    """Height of the shade above its rim."""
    return {"globe": 2 * p.shade_radius, "dome": 0.75 * p.shade_height * np.sin(np.pi * 5 / 12)}.get(
        p.shade, p.shade_height
    )


def foot(p) -> Manifold:
    r, h = p.base_radius, p.base_height
    return turned([(r, 0), (r, 0.5 * h), (0.92 * r, 0.8 * h), (0.5 * r, h), (p.pole, 1.5 * h)], 24)


def table(p) -> Manifold:
    rim = 1 - crown(p)
    neck = rim + (0.02 if p.shade == "globe" else 0.0)
    r, b = p.belly, rim - 0.04
    if p.base == "vase":
        body = [
            (0.6 * r, 0),
            (0.62 * r, 0.04),
            (0.55 * r, 0.06),
            *curve([(0.6 * r, 0.1), (r, 0.55 * b), (0.85 * r, 0.75 * b), (0.3 * r, b)], 9),
        ]
    elif p.base == "bottle":
        body = [(0.9 * r, 0), *curve([(r, 0.02), (r, 0.45 * b), (0.45 * r, 0.7 * b), (0.28 * r, b)], 9)]
    elif p.base == "column":
        body = [
            (1.1 * r, 0),
            (1.1 * r, 0.05),
            (0.8 * r, 0.06),
            (0.45 * r, 0.1),
            (0.38 * r, 0.9 * b),
            (0.5 * r, 0.92 * b),
            (0.5 * r, b),
        ]
    else:
        y = np.linspace(0.06, b, 8 * p.balls + 1)
        swell = np.abs(np.sin(np.linspace(0, np.pi * p.balls, 8 * p.balls + 1)))
        body = [(0.9 * r, 0), (0.9 * r, 0.05), *np.stack([(0.25 + 0.55 * np.sqrt(swell)) * r, y], -1)]
    stem = [
        (p.pole * 1.2, max(b, 0) + 0.01),
        (p.pole * 1.2, neck + (0.0 if p.shade == "globe" else crown(p) - 0.4 * p.wall)),
    ]
    return union([turned([*body, *stem], 20), hood(p).translate((0, rim, 0))])


def floor(p) -> Manifold:
    rim = 1 - crown(p)
    pole, stand = p.pole, [foot(p)]
    if p.legs:
        hub = 0.8 * rim
        stand = around(limb((0, hub, 0.01), (0, 0, 1.6 * p.base_radius + 0.06), 1.1 * pole, 0.8 * pole), p.legs)
        return union(
            [
                *stand,
                turned(
                    [(2 * pole, hub - 0.04), (2 * pole, hub + 0.03), (pole, hub + 0.04), (pole, 1 - 0.4 * p.wall)], 12
                ),
                hood(p).translate((0, rim, 0)),
            ]
        )
    if p.arc:
        path = curve([(0, 0, 0), (0, 0.55, -0.02), (0, 0.9, 0.2 * p.arc), (0, 0.985, 0.6 * p.arc), (0, 0.9, p.arc)], 17)
        stem = sweep(path[:-1], 2 * pole, up=(1, 0, 0))
        drop = path[-2] - [0, crown(p) - 0.015, 0]
        return union([*stand, stem, hood(p).translate(tuple(drop))])
    return union(
        [
            *stand,
            limb((0, 0.01, 0), (0, rim + (0.02 if p.shade == "globe" else crown(p) - 0.4 * p.wall), 0), pole),
            hood(p).translate((0, rim, 0)),
        ]
    )


def desk(p) -> Manifold:
    """Two arms and a head, folded like a leg."""
    turn = lambda degrees: np.array([0, np.cos(np.radians(degrees)), np.sin(np.radians(degrees))])  # noqa: E731
    start = np.array([0, p.base_height, 0])
    lower, upper = p.elbow * turn(p.lower_arm), (1.05 - p.elbow) * turn(p.upper_arm)
    thick = 1.15 * p.pole
    knee, tip = start + lower, start + lower + upper
    joint = limb((-2.2 * thick, 0, 0), (2.2 * thick, 0, 0), 1.7 * thick)
    head = hood(p).translate((0, -crown(p), 0)) + turned(
        [(1.8 * thick, -0.03), (1.8 * thick, 0.02), (thick, 0.035)], 12
    )
    head = head.rotate((-p.tilt, 0, 0)).translate(tuple(tip))
    stand = turned(
        [
            (p.base_radius, 0),
            (p.base_radius, 0.6 * p.base_height),
            (0.85 * p.base_radius, p.base_height),
            (1.5 * thick, 1.15 * p.base_height),
        ],
        24,
    )
    return union(
        [
            stand,
            limb(start, knee, thick),
            limb(knee, tip, thick),
            joint.translate(tuple(start + [0, thick, 0])),
            joint.translate(tuple(knee)),
            joint.translate(tuple(tip)),
            head,
        ]
    )


def pendant(p) -> Manifold:
    rim = 0.0
    canopy = [(p.pole, rim + crown(p) - 0.02), (p.pole, 0.96), (0.08, 0.965), (0.08, 1.0)]
    cap = turned([(0.05, crown(p) - 0.02), (0.05, crown(p) + 0.01), (p.pole, crown(p) + 0.05)], 16)
    return union([hood(p), cap, turned(canopy, 16)])


def chandelier(p) -> Manifold:
    """Curved arms around a turned stem, each with its own shade."""
    drop, reach = 0.25, p.reach
    stem = [
        (0.02, drop - 0.1),
        (0.05, drop - 0.06),
        (0.055, drop),
        (0.03, drop + 0.06),
        (0.022, drop + 0.12),
        (0.04, drop + 0.2),
        (0.022, drop + 0.28),
        (0.018, 0.95),
        (0.08, 0.96),
        (0.08, 1.0),
    ]
    arm = curve(
        [(0, drop, 0), (0, drop - 0.09, 0.45 * reach), (0, drop - 0.02, 0.9 * reach), (0, drop + 0.08, reach)], 10
    )
    shade = hood(p)
    if p.shade != "globe":
        shade = shade.rotate((180, 0, 0)).translate((0, crown(p), 0))
    shade = shade.translate((0, drop + 0.055, reach))
    return union([turned(stem, 16), *around(sweep(arm, 0.032) + shade, p.arms)])


KINDS = dict(table=table, floor=floor, desk=desk, pendant=pendant, chandelier=chandelier)
