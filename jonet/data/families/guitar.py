"""Guitars: acoustic and electric, basses, ukuleles. The neck points up, the strings are at the front."""

from __future__ import annotations

import numpy as np
from manifold3d import Manifold

from jonet.data.families.draws import count, pick
from jonet.data.families.solids import FRONT, UP, curve, limb, loft, pair, sweep, turned, union

HEADS = dict(  # widths from the nut to the end
    slotted=(1.7, 1.8, 2.5, 2.4, 2.2), pointed=(1.7, 1.8, 2.7, 2.2, 1.2), inline=(1.7, 1.8, 2.2, 2.1, 1.6)
)


def draw(rng: np.random.Generator) -> dict:
    """Length in meters; everything else as fractions of it or of the size of the body."""
    u = rng.uniform
    kind = pick(rng, acoustic=0.42, electric=0.36, bass=0.12, ukulele=0.1)
    solid = kind in ("electric", "bass")
    body = dict(acoustic=0.48, electric=0.42, bass=0.4, ukulele=0.45)[kind] * u(0.94, 1.06)
    return dict(
        kind=kind,
        length=dict(acoustic=1.02, electric=0.98, bass=1.15, ukulele=0.58)[kind] * u(0.95, 1.05),
        body=body,
        lower=u(0.37, 0.42),
        waist=u(0.62, 0.76),
        upper=u(0.7, 0.84),
        waist_at=u(0.56, 0.64),
        depth=u(0.042, 0.055) if solid else u(0.085, 0.115),
        cutaways=count(rng, 1, 2) if solid else int(u() < 0.35),
        horn=u(0.06, 0.12),
        neck_width=u(0.052, 0.062),
        neck_depth=u(0.026, 0.034),
        head=u(0.15, 0.19),
        head_style=pick(rng, slotted=0.35, pointed=0.35, inline=0.3),
        head_lean=u(0.0, 0.25),
        pegs=count(rng, 2, 3),
        hole=u(0.042, 0.056),
        pickups=count(rng, 1, 3),
        knobs=count(rng, 1, 4),
        bridge=u(0.13, 0.2),
        arch=u(0.0, 0.012),
    )


# Everything below has height 1; `build` scales it


def build(p) -> Manifold:
    solid = union([body(p), *neck(p), *head(p), *front(p)])
    for hole in holes(p):
        solid -= hole
    return solid.scale((p.length,) * 3)


def plan(p) -> np.ndarray:
    """The body's outline [48, 2] of (x, y), counter-clockwise."""
    b, w = p.body, p.lower * p.body
    lower = [(0, 0), (0.62 * w, 0.03 * b), (w, 0.28 * b)]
    upper = [(p.upper * w, 0.82 * b), (0.55 * p.upper * w, 0.98 * b), (0, b)]
    side = curve([*lower, (p.waist * w, p.waist_at * b), *upper], 25)
    return np.concatenate([side, side[-2:0:-1] * [-1, 1]])


def body(p) -> Manifold:
    shape, half, middle = plan(p), p.depth / 2, np.array([0, 0.47 * p.body])
    z = np.array([-half - p.arch, -half, -half + 0.008, half - 0.008, half, half + p.arch])
    scale = np.array([0.6, 0.96, 1, 1, 0.96, 0.6])
    if not p.arch:
        z, scale = z[1:-1], scale[1:-1]
    flat = middle + (shape - middle) * scale[:, None, None]
    return loft(np.concatenate([flat, np.repeat(z[:, None, None], len(shape), 1)], -1))


def surface(p) -> float:
    """z of the fingerboard."""
    return p.depth / 2 + p.arch + 0.012


def neck(p) -> list[Manifold]:
    y = np.array([0.72 * p.body, p.body, 1 - p.head])
    width = p.neck_width * np.array([1.1, 1.05, 0.85])
    z = surface(p) - p.neck_depth / 2
    parts = [sweep(np.stack([0 * y, y, 0 * y + z], -1), width, p.neck_depth, 0.7, up=FRONT)]
    heel = limb((0, p.body - 0.05, 0), (0, p.body + 0.02, z), 0.5 * p.neck_width, 0.3 * p.neck_width)
    return [*parts, heel]


def head(p) -> list[Manifold]:
    w, low = 0.5 * p.neck_width, 1 - p.head
    y = low + p.head * np.array([-0.12, 0.05, 0.2, 0.85, 1.0])
    z = surface(p) - 0.016 - 0.8 * p.head_lean * np.maximum(y - low, 0)
    width = w * np.array(HEADS[p.head_style])
    x = w * np.array([0, 0, 0.3, 0.4, 0.7]) * (p.head_style == "inline")
    parts = [sweep(np.stack([x, y, z], -1), width, 0.024, 0.25, up=FRONT, cut=UP, points=8)]
    number = 2 * p.pegs if p.head_style == "inline" else p.pegs
    for at in low + p.head * np.linspace(0.28, 0.86, number):
        edge, level = np.interp(at, y, x - width / 2), np.interp(at, y, z)
        peg = limb((edge + 0.012, at, level), (edge - 0.022, at, level), 0.009, 0.009, 0.014, 0.011, points=8)
        parts += [peg] if p.head_style == "inline" else pair(peg)
    return parts


def front(p) -> list[Manifold]:
    """Bridge; pickups and knobs on a solid body."""
    z = p.depth / 2 + p.arch
    at = 0.27 * p.body
    parts = [sweep([(-p.bridge / 2, at, z), (p.bridge / 2, at, z)], 0.034, 0.03, 0.4, up=FRONT)]
    if p.kind in ("acoustic", "ukulele"):
        return parts
    for y in np.linspace(at + 0.055, 0.68 * p.body, p.pickups + 1)[:-1]:
        parts.append(sweep([(-0.045, y, z), (0.045, y, z)], 0.026, 0.028, 0.3, up=FRONT, points=8))
    for i in range(p.knobs):
        knob = turned((0.013, 0.013, 0.01), (-0.02, 0.012, 0.016), 12).rotate((90, 0, 0))
        parts.append(knob.translate((0.24 * p.body - 0.012 * i, (0.3 - 0.075 * i) * p.body, z)))
    return parts


def holes(p) -> list[Manifold]:
    b = p.body
    parts = []
    if p.kind in ("acoustic", "ukulele"):
        z = p.depth / 2
        parts.append(limb((0, 0.58 * b, z - 0.6 * p.depth), (0, 0.58 * b, z + 0.02), p.hole, points=20))
    x, y = 0.5 * p.neck_width + p.horn, b + 0.015
    cut = limb((x, y, -1), (x, y, 1), p.horn, points=20)
    return parts + [[], [cut], pair(cut)][p.cutaways]
