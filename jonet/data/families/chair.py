"""Chairs, armchairs, stools, rocking and swivel chairs: a seat, a support, a back, arms."""

from __future__ import annotations

from typing import Any

import numpy as np
from manifold3d import Manifold

from jonet.data.families.draws import count, pick
from jonet.data.families.solids import (
    FRONT,
    RIGHT,
    UP,
    around,
    curve,
    limb,
    outline,
    pair,
    plate,
    rounded,
    sweep,
    turned,
    union,
)

BACK_ODDS = {  # weights of the kinds of back for each support
    "legs": dict(ladder=0.24, slats=0.19, shell=0.32, hoop=0.12, none=0.13),
    "sled": dict(shell=0.6, ladder=0.4),
    "cantilever": dict(ladder=1.0),
    "swivel": dict(shell=0.85, none=0.15),
    "rockers": dict(slats=0.35, ladder=0.35, hoop=0.3),
    "pedestal": dict(shell=0.65, none=0.35),
}
ARM_ODDS = {
    "legs": dict(none=0.5, posts=0.28, closed=0.22),
    "sled": dict(none=0.6, loops=0.4),
    "cantilever": dict(none=0.5, posts=0.5),
    "swivel": dict(none=0.4, loops=0.35, closed=0.25),
    "rockers": dict(none=0.3, posts=0.7),
    "pedestal": dict(none=0.8, loops=0.2),
}
TURNING = np.array([1.0, 1.0, 0.72, 1.1, 1.15, 1.0, 0.85, 0.78, 0.74, 0.95, 0.62])  # radii down a turned leg


def draw(rng: np.random.Generator) -> dict:
    """Lengths in meters, lean and splay as slopes, the rest as fractions."""
    u = rng.uniform
    support = pick(rng, legs=0.46, sled=0.1, cantilever=0.08, swivel=0.15, rockers=0.09, pedestal=0.12)
    back = pick(rng, **BACK_ODDS[support])
    arms = pick(rng, **ARM_ODDS[support])
    if back == "none" or (arms == "closed" and back != "shell"):
        arms = "none"
    stool, soft = back == "none", back == "shell" and u() < 0.5 or arms == "closed"
    tall = stool and u() < 0.5
    size = u(-1, 1)  # correlates the sizes of the seat: wide chairs are deep
    return dict(
        support=support,
        back=back,
        arms=arms,
        cushion=int(soft),
        seat_height=u(0.60, 0.74) if tall else u(0.42, 0.48),
        seat_width=0.46 + 0.03 * size + u(-0.015, 0.015) + (0.05 if arms != "none" else 0) - (0.08 if stool else 0),
        seat_depth=0.45 + 0.025 * size + u(-0.015, 0.015) + (0.04 if soft else 0) - (0.07 if stool else 0),
        seat_thickness=u(0.09, 0.13) if soft else u(0.058, 0.082),
        seat_roundness=u(0.6, 1.0) if stool or support == "pedestal" else u(0.15, 0.6),
        seat_taper=1.0 if stool or arms == "closed" else u(0.8, 1.0),
        back_height=u(0.36, 0.56) + (0.06 if support == "rockers" else 0),
        back_lean=u(0.08, 0.22),
        back_bow=u(0.01, 0.07),
        back_flare=u(0.82, 1.1),
        back_thickness=u(0.075, 0.11) if soft else u(0.046, 0.062),
        back_roundness=u(0.2, 0.9),
        crest=u(0.0, 0.05),
        rail_height=u(0.07, 0.11),
        bars=count(rng, 3, 5) if back == "hoop" else int(rng.choice([1, 3, 4] if back == "slats" else [1, 2, 3])),
        bar_share=u(0.46, 0.66),
        gap=u(0.08, 0.14) if back == "shell" and arms != "closed" and u() < 0.35 else 0.0,
        arm_height=u(0.18, 0.25),
        arm_length=u(0.75, 0.95),
        arm_width=u(0.08, 0.12) if arms == "closed" else u(0.046, 0.064),
        legs=count(rng, 3, 4) if stool and support == "legs" else 5 if support == "swivel" else 4,
        leg_style=pick(rng, round=0.45, square=0.39, turned=0.16),
        leg_radius=u(0.026, 0.036),
        leg_taper=u(0.65, 1.0),
        splay=u(0.0, 0.12),
        stretchers=pick(rng, none=0.46, sides=0.18, h=0.18, box=0.18),
        stretcher_height=u(0.25, 0.5),
        apron=u(0.04, 0.06) if not soft and u() < 0.4 else 0.0,
        foot=u(0.22, 0.28),
    )


def build(p) -> Manifold:
    return union([seat(p), *SUPPORTS[p.support](p), *BACKS[p.back](p), *ARMS[p.arms](p)])


# Positions: the corners of the seat, and the curved, leaning sheet that contains all parts of the back


def corner(p, front: bool) -> np.ndarray:
    """(x, z) [2] of the right front or rear corner of the seat, as far out as a leg fits under it."""
    inside = 1 - 0.29 * p.seat_roundness
    x, z = p.seat_width / 2 * inside, p.seat_depth / 2 * inside
    margin = p.leg_radius + 0.006
    taper = 1 - (1 - p.seat_taper) * (1 - inside) / 2 if front else 1 - (1 - p.seat_taper) * (1 + inside) / 2
    return np.array([x * taper - margin, z - margin if front else margin - z])


def underside(p) -> float:
    return p.seat_height - p.seat_thickness


def top(p) -> float:
    return p.seat_height + p.back_height


def half(p, y):
    """Half the width of the back at a height."""
    fraction = (np.asarray(y) - p.seat_height) / p.back_height
    width = corner(p, front=False)[0] + (1.5 * p.leg_radius if p.back in ("shell", "hoop") else 0)
    return width * (1 + (p.back_flare - 1) * np.clip(fraction, 0, 1))


def sheet(p, x, y):
    """z of the back at (x, y): it leans backwards, and its middle is behind its sides."""
    fraction = np.clip((np.asarray(y) - p.seat_height) / p.back_height, 0, 1)
    hollow = 0.12 * p.seat_roundness * p.seat_depth + p.back_bow * fraction
    return corner(p, front=False)[1] - p.back_lean * fraction * p.back_height - hollow * (1 - (x / half(p, y)) ** 2)


def on_back(p, x, y) -> np.ndarray:
    """Points [..., 3] of the sheet."""
    return np.stack([*np.broadcast_arrays(x, y, sheet(p, x, y))], -1)


def across(p, y, height: float, thickness: float, arch: float = 0.0) -> Manifold:
    """A rail of the back from side to side at height y, its middle raised by arch."""
    x = np.linspace(-1, 1, 9) * half(p, y)
    path = on_back(p, x, y) + (arch * (1 - (x / x[-1]) ** 2))[:, None] * UP
    return sweep(path, thickness, height, 0.5, up=(0, 1, -p.back_lean))


# The seat and its support


def seat(p) -> Manifold:
    shape = outline(p.seat_width, p.seat_depth, p.seat_roundness, points=24)
    shape[:, 0] *= 1 - (1 - p.seat_taper) * (0.5 - shape[:, 1] / p.seat_depth)
    thick = p.seat_thickness
    if p.cushion:
        return plate(shape, underside(p), p.seat_height, bevel=0.45 * thick, under=0.2 * thick, dome=0.18 * thick)
    return plate(shape, underside(p), p.seat_height, bevel=0.3 * thick)


def leg(p, start, end) -> Manifold:
    r = p.leg_radius
    if p.leg_style == "turned":
        return limb(start, end, *(r * TURNING))
    return limb(start, end, r, r * p.leg_taper, roundness=0.3 if p.leg_style == "square" else 1.0)


def stations(p, floor: float = 0.0) -> np.ndarray:
    """Foot and top of the right front leg and of the right rear leg, [2, 2, 3]."""
    high, out = p.seat_height - 0.6 * p.seat_thickness, p.splay * underside(p)
    (x, z), (rear_x, rear_z) = corner(p, True), corner(p, False)
    front = (x + 0.5 * out, floor, z + out), (x, high, z)
    return np.array([front, ((rear_x + 0.5 * out, floor, rear_z - out), (rear_x, high, rear_z))])


def legs(p) -> list[Manifold]:
    if p.legs == 3:
        reach = min(p.seat_width, p.seat_depth) / 2 - p.leg_radius - 0.02
        start, end = (0, underside(p) + 0.01, reach), (0, 0, reach + p.splay * underside(p))
        return around(leg(p, start, end), 3)
    ends = stations(p)
    return [*(solid for foot, start in ends for solid in pair(leg(p, start, foot))), *braces(p, ends), *aprons(p)]


def braces(p, ends) -> list[Manifold]:
    """Stretchers between the legs, given as by `stations`."""
    if p.stretchers == "none":
        return []
    radius, left = 0.62 * p.leg_radius, (-1, 1, 1)
    front, rear = ends[:, 0] + p.stretcher_height * (ends[:, 1] - ends[:, 0])
    parts = pair(limb(front, rear, radius, points=8))
    if p.stretchers == "h":
        middle = (front + rear) / 2
        parts.append(limb(middle * left, middle, radius, points=8))
    if p.stretchers == "box":
        higher = ends[:, 0] + (p.stretcher_height + 0.12) * (ends[:, 1] - ends[:, 0])
        parts += [limb(place * left, place, radius, points=8) for place in higher]
    return parts


def aprons(p) -> list[Manifold]:
    """The frame under a joined seat."""
    if not p.apron:
        return []
    (x, z), (rear_x, rear_z) = corner(p, True), corner(p, False)
    y = underside(p) + 0.005 - p.apron / 2
    size: dict[str, Any] = dict(width=0.024, height=p.apron + 0.01, roundness=0.2, points=8)
    front, rear = np.array([(x, y, z), (rear_x, y, rear_z)])
    return [
        *pair(sweep([front, rear], **size)),
        *(sweep([place * (-1, 1, 1), place], **size) for place in (front, rear)),
    ]


def rockers(p) -> list[Manifold]:
    radius, r = 0.9, 0.022
    ends = stations(p)
    feet = ends[:, 0]
    feet[:, 1] = r + feet[:, 2] ** 2 / (2 * radius)
    z = np.linspace(feet[1, 2] - 0.2, feet[0, 2] + 0.12, 12)
    x = np.interp(z, feet[::-1, 2], feet[::-1, 0])
    runner = sweep(np.stack([x, r + z**2 / (2 * radius), z], -1), 2.2 * r, 2 * r, 0.4)
    return [*pair(runner), *(solid for foot, start in ends for solid in pair(leg(p, start, foot))), *braces(p, ends)]


def sled(p) -> list[Manifold]:
    """A bent tube on each side, with a runner on the floor."""
    r = 0.75 * p.leg_radius
    (front_foot, front), (rear_foot, rear) = stations(p, floor=r)
    front_foot[0] = rear_foot[0] = max(front_foot[0], rear_foot[0])
    runner = sweep(rounded([front, front_foot, rear_foot, rear], 0.08), 2 * r, up=RIGHT)
    bar = (rear_foot + rear) / 2 if p.stretchers == "none" else 0.8 * rear_foot + 0.2 * front_foot
    return [*pair(runner), limb(bar * (-1, 1, 1), bar, r)]


def cantilever(p) -> list[Manifold]:
    """One bent tube a side: down the back, along the seat, down in front and back along the floor."""
    r = 0.8 * p.leg_radius
    x, z = corner(p, True)
    rear_x, rear_z = corner(p, False)
    y = p.seat_height - p.seat_thickness / 2
    tube = [
        on_back(p, half(p, top(p)), top(p)),
        (rear_x, y, rear_z),
        (x, y, z + 0.03),
        (x, r, z + 0.05),
        (rear_x, r, rear_z),
    ]
    bar = limb((-rear_x, r, rear_z), (rear_x, r, rear_z), r)
    return [*pair(sweep(rounded(tube, 0.09), 2 * r, up=RIGHT)), bar]


def swivel(p) -> list[Manifold]:
    """A star on casters, a gas spring, a plate under the seat."""
    hub, y = 0.1, underside(p)
    ray = sweep(
        [(0, hub - 0.01, 0), (0, hub - 0.02, 0.4 * p.foot), (0, 0.062, p.foot)],
        (0.085, 0.075, 0.058),
        (0.065, 0.06, 0.048),
        0.5,
    )
    caster = turned((0.026, 0.038, 0.038, 0.026), (0, 0.012, 0.055, 0.08), 12, at=(0, p.foot))
    column = turned(
        (0.055, 0.055, 0.044, 0.04, 0.11, 0.11), (hub - 0.05, hub + 0.03, hub + 0.05, y - 0.04, y - 0.03, y + 0.01)
    )
    return [column, *around(ray + caster, p.legs)]


def pedestal(p) -> list[Manifold]:
    """A trumpet foot, as of a tulip chair or a bar stool."""
    y, neck = underside(p), 0.9 * p.leg_radius + 0.01
    radii = [p.foot, p.foot, 0.7 * p.foot, 0.35 * p.foot, 1.3 * neck, neck, 1.15 * neck, 0.075, 0.11]
    return [turned(radii, [0, 0.014, 0.03, 0.055, 0.11, 0.45 * y, 0.72 * y, y - 0.02, y + 0.01], 20)]


# The back


def posts(p) -> list[Manifold]:
    """The two uprights, which continue the rear legs."""
    if p.support == "cantilever":
        return []
    y = np.linspace(p.seat_height - 0.7 * p.seat_thickness, top(p), 5)
    path = on_back(p, half(p, y), y)
    size = 2 * p.leg_radius * np.linspace(1, 0.75, 5)
    return pair(sweep(path, size, roundness=0.3 if p.leg_style == "square" else 1.0, up=FRONT, cut=UP))


def ladder(p) -> list[Manifold]:
    """Posts and level rails; a single rail is a broad one."""
    low, high = p.seat_height + 0.3 * p.back_height, top(p) - p.rail_height / 2 - 0.01
    if p.bars == 1:
        broad = 0.5 * p.back_height
        return [*posts(p), across(p, top(p) - broad / 2, broad, p.back_thickness, p.crest / 2)]
    levels = np.linspace(low, high, p.bars)
    height = min(p.rail_height, 0.6 * (levels[1] - levels[0]))
    return [*posts(p), *(across(p, y, height, p.back_thickness, p.crest) for y in levels)]


def slats(p) -> list[Manifold]:
    """Posts, a crest rail, and upright slats from the seat or from a lower rail."""
    crest = top(p) - p.rail_height / 2
    foot = p.seat_height + 0.22 * p.back_height if p.apron else p.seat_height - 0.4 * p.seat_thickness
    parts = [*posts(p), across(p, crest, p.rail_height, p.back_thickness + 0.004, p.crest)]
    if p.apron:
        parts.append(across(p, foot, 0.04, p.back_thickness))
    for fraction in np.linspace(-1, 1, p.bars + 2)[1:-1]:
        y = np.linspace(foot, crest + p.crest * (1 - fraction**2), 4)
        x = fraction * half(p, y)
        width = p.bar_share * 2 * half(p, y) / (p.bars + 1)
        if p.bars == 1:  # a splat, waisted like a vase
            width *= [0.8, 1.15, 0.7, 1.1]
        parts.append(sweep(on_back(p, x, y), width, 0.7 * p.back_thickness, 0.5, up=FRONT, points=8))
    return parts


def hoop(p) -> list[Manifold]:
    """A bow bent over spindles (Windsor)."""
    wide, narrow = half(p, p.seat_height), half(p, top(p))
    foot = p.seat_height - 0.5 * p.seat_thickness
    bend = rounded([(-wide, foot), (-narrow, top(p)), (narrow, top(p)), (wide, foot)], 0.24, steps=8)
    parts = [sweep(on_back(p, *bend.T), 0.042, 0.038, up=(0, 0.2, 1))]
    for fraction in np.linspace(-1, 1, p.bars + 2)[1:-1]:
        x = fraction * np.array([0.85 * wide, 0.9 * narrow])
        start, end = on_back(p, x, np.array([foot, np.interp(x[1], *bend[1:-1].T)]))
        parts.append(limb(start, end, 0.015, 0.018, 0.015, points=8))
    return parts


def shell(p) -> list[Manifold]:
    """One bent panel, thin as plywood or padded, on the seat or on a stem above it."""
    low = p.seat_height + p.gap if p.gap else p.seat_height - 0.6 * p.seat_thickness
    radius = p.back_roundness * 0.45 * min(2 * half(p, low), top(p) - low)
    turn = np.linspace(0, np.pi / 2, 6)
    bend, straight = radius * (1 - np.cos(turn)), np.linspace(0, 1, 5)[1:-1]
    foot = low + bend if p.gap else np.array([low, low + 0.03])
    y = np.concatenate([foot, foot[-1] + straight * (top(p) - radius - foot[-1]), top(p) - bend[::-1]])
    width = 2 * half(p, y)
    width[-6:] -= 2 * radius * (1 - np.sin(turn[::-1]))
    if p.gap:
        width[:6] -= 2 * radius * (1 - np.sin(turn))
    bow = sheet(p, width / 2, y) - sheet(p, 0, y)
    panel = sweep(on_back(p, 0, y), width, p.back_thickness, 0.8, up=FRONT, bow=bow, points=16, edge=5)
    if not p.gap:
        return [panel]
    x = 0.0 if p.support == "swivel" else 0.55 * half(p, low)
    y = np.array([p.seat_height - 0.6 * p.seat_thickness, p.seat_height + 0.03, low + 0.08])
    stem = sweep(on_back(p, x, y), 0.09 if x == 0 else 0.036, 0.03, 0.6, up=FRONT)
    return [panel, stem] if x == 0 else [panel, *pair(stem)]


# Arms


def arm_posts(p) -> list[Manifold]:
    """A rest from the back to an upright on the seat's side."""
    y = p.seat_height + p.arm_height
    x, z = corner(p, True)
    z -= (1 - p.arm_length) * p.seat_depth
    back = on_back(p, half(p, y), y)
    front = np.array([x + 0.025, y - 0.005, z])
    rest = curve([back, (back + front) / 2 + [0.02, 0.008, 0], front, front + [0.004, -0.006, 0.05]], 8)
    upright = limb((x, p.seat_height - 0.6 * p.seat_thickness, z - 0.02), front, 0.8 * p.leg_radius, 0.6 * p.leg_radius)
    return [*pair(sweep(rest, np.linspace(0.75, 1.15, 8) * p.arm_width, 0.032, 0.6)), *pair(upright)]


def arm_loops(p) -> list[Manifold]:
    """A bent tube that rises from the side of the seat and returns to it."""
    side = p.seat_width / 2 * (0.5 + 0.5 * p.seat_taper)
    y, z = p.seat_height - 0.5 * p.seat_thickness, 0.36 * p.arm_length * p.seat_depth
    low, high, rise = side - 0.025, side + 0.03, p.seat_height + p.arm_height
    path = rounded([(low, y, -z), (high, rise - 0.01, -z - 0.02), (high, rise, z), (low, y, z - 0.03)], 0.07)
    return pair(sweep(path, 0.75 * p.arm_width, 0.032, 0.7, up=RIGHT))


def arm_walls(p) -> list[Manifold]:
    """The upholstered sides of an armchair."""
    x = p.seat_width / 2 + 0.3 * p.arm_width
    low, high = underside(p), p.seat_height + p.arm_height
    z = np.array([-0.5, -0.48, 0.3, 0.46, 0.5]) * p.seat_depth * [1, 1, 1, p.arm_length, p.arm_length]
    path = np.stack([0 * z + x, 0 * z + (low + high) / 2, z], -1)
    ends = np.array([0.9, 1, 1, 1, 0.88])
    return pair(sweep(path, ends * p.arm_width, ends * (high - low), 0.5, points=16))


SUPPORTS = dict(legs=legs, sled=sled, cantilever=cantilever, swivel=swivel, rockers=rockers, pedestal=pedestal)
BACKS = dict(ladder=ladder, slats=slats, hoop=hoop, shell=shell, none=lambda p: [])
ARMS = dict(posts=arm_posts, loops=arm_loops, closed=arm_walls, none=lambda p: [])
