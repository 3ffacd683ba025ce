"""Cars: saloons, hatchbacks, estates, coupés, off-roaders, vans, pick-ups, roadsters."""

from __future__ import annotations

import numpy as np
from manifold3d import Manifold

from jonet.data.families.draws import count, pick
from jonet.data.families.solids import FRONT, limb, loft, outline, pair, plate, sweep, turned, union

KINDS = {  # length, width, height; bonnet, windscreen, roof, rear window as fractions of the length; rest: boot
    "saloon": ((4.2, 5.0), (1.74, 1.9), (1.38, 1.5), (0.24, 0.29), (0.11, 0.16), (0.24, 0.29), (0.1, 0.16)),
    "hatchback": ((3.5, 4.3), (1.65, 1.82), (1.42, 1.58), (0.19, 0.25), (0.14, 0.19), (0.36, 0.42), (0.08, 0.14)),
    "estate": ((4.3, 4.9), (1.74, 1.88), (1.42, 1.54), (0.24, 0.28), (0.11, 0.15), (0.46, 0.52), (0.05, 0.09)),
    "coupe": ((4.0, 4.7), (1.76, 1.95), (1.18, 1.32), (0.27, 0.34), (0.14, 0.19), (0.14, 0.2), (0.19, 0.27)),
    "offroader": ((4.0, 4.9), (1.8, 1.98), (1.65, 1.9), (0.2, 0.26), (0.06, 0.12), (0.5, 0.58), (0.02, 0.07)),
    "van": ((4.3, 5.3), (1.8, 2.0), (1.85, 2.25), (0.07, 0.13), (0.09, 0.15), (0.68, 0.74), (0.01, 0.03)),
    "pickup": ((4.8, 5.5), (1.8, 2.0), (1.68, 1.85), (0.22, 0.27), (0.08, 0.12), (0.17, 0.27), (0.02, 0.05)),
    "roadster": ((3.7, 4.4), (1.66, 1.85), (1.14, 1.26), (0.3, 0.36), (0.09, 0.12), (0.2, 0.24), (0.02, 0.04)),
}


def draw(rng: np.random.Generator) -> dict:
    """Lengths in meters: length, width, height, wheels; along the car in lengths, vertically in heights of the car."""
    u = rng.uniform
    kind = pick(
        rng, saloon=0.2, hatchback=0.18, estate=0.12, coupe=0.14, offroader=0.12, van=0.1, pickup=0.08, roadster=0.06
    )
    length, width, height, bonnet, screen, roof, rear = (u(*span) for span in KINDS[kind])
    tall = kind in ("offroader", "van", "pickup")
    wheel = u(0.34, 0.4) if kind in ("offroader", "pickup") else u(0.29, 0.33)
    return dict(
        kind=kind,
        length=length,
        width=width,
        height=height,
        bonnet=bonnet,
        screen=screen,
        roof=roof,
        rear=rear,
        belt=u(0.6, 0.66) if kind in ("coupe", "roadster") else u(0.55, 0.62) if not tall else u(0.5, 0.6),
        nose=2.2 * wheel * u(1.0, 1.1),
        deck=u(0.92, 1.05),
        clearance=u(0.2, 0.26) if kind in ("offroader", "pickup") else u(0.13, 0.18),
        wheel=wheel,
        softness=u(0.03, 0.2),
        wheelbase=u(0.57, 0.64),
        tumblehome=u(0.7, 0.84) if not tall else u(0.82, 0.92),
        roundness=u(0.75, 0.95),
        side_windows=1 if kind in ("coupe", "pickup", "roadster") else 3 if kind in ("estate", "offroader") else 2,
        panel_van=int(kind == "van" and u() < 0.4),
        spoiler=int(kind in ("coupe", "saloon", "hatchback") and u() < 0.3),
        rack=int(kind in ("estate", "offroader") and u() < 0.5),
        spare=int(kind == "offroader" and u() < 0.5),
        mirrors=count(rng, 0, 1),
    )


def build(p) -> Manifold:
    solid = union([body(p), *extras(p)])
    for hole in [*arches(p), *(cockpit(p) if p.kind == "roadster" else windows(p)), *bed(p)]:
        solid -= hole
    return union([solid, *wheels(p)])


def along(p) -> dict[str, float]:
    """z of the corners of the side view, from the nose to the tail."""
    fraction = dict(nose=0.0, cowl=p.bonnet, front=p.screen, back=p.roof, shelf=p.rear)
    return dict(zip(fraction, p.length * (0.5 - np.cumsum(list(fraction.values()))), strict=True), tail=-p.length / 2)


def levels(p, z) -> tuple[np.ndarray, np.ndarray]:
    """Height of the waistline and of the roof (or bonnet, or boot lid) at z [...], corners rounded: [...] each."""
    a, belt = along(p), p.belt * p.height
    deck = p.deck * belt
    roof = belt + 0.01 if p.kind == "roadster" else p.height
    stops = [a["tail"], a["shelf"], a["back"], a["front"], a["cowl"], a["nose"]]
    near = np.asarray(z)[..., None] + p.softness * np.linspace(-1, 1, 9)
    waist = np.interp(near, stops, [0.96 * deck, deck, belt, belt, 0.98 * belt, p.nose])
    top = np.interp(near, stops, [0.96 * deck, deck, 0.98 * roof, roof, 0.98 * belt, p.nose])
    return waist.mean(-1), top.mean(-1)


def section(p, z) -> tuple[np.ndarray, np.ndarray]:
    """Right half of the cross-section at z, from the sill over the waist to the roof: x and y [..., 7]."""
    z = np.asarray(z)
    waist, roof = levels(p, z)
    inset = np.clip((p.length / 2 - abs(z)) / (0.05 * p.length), 0, 1)
    wide = p.width / 2 * (p.roundness + (1 - p.roundness) * np.sqrt(inset)) * (1 - 0.07 * (2 * z / p.length) ** 2)
    sill, rise = p.clearance + 0.12 * (1 - inset), roof - waist
    waist, roof = waist - 0.05 * (1 - inset), roof - 0.05 * (1 - inset)
    x = [0.9 * wide, wide, wide, 0.97 * wide, 0.89 * wide, p.tumblehome * wide, 0.8 * p.tumblehome * wide]
    y = [sill, sill + 0.1, 0.55 * waist + 0.45 * sill, waist - 0.05, waist, waist + 0.88 * rise + 0.014, roof + 0.024]
    return np.stack(x, -1), np.stack(y, -1)


def body(p) -> Manifold:
    z = p.length / 2 * np.concatenate([[-1, -0.98], np.linspace(-0.95, 0.95, 26), [0.98, 1]])
    x, y = section(p, z)
    ridge = np.stack([0 * z, y[:, -1] + 0.02], -1)[:, None]
    ring = np.concatenate([np.stack([x, y], -1), ridge, np.stack([-x, y], -1)[:, ::-1]], 1)
    return loft(np.concatenate([ring, np.repeat(z[:, None, None], ring.shape[1], 1)], -1))


def pane(corners, depth: float = 0.06) -> Manifold:
    """The solid that is subtracted to recess a window with four corners [4, 3] by a depth."""
    c = np.asarray(corners, float)
    normal = np.cross(c[2] - c[0], c[3] - c[1])
    normal *= depth / np.linalg.norm(normal)
    return Manifold.hull_points(np.concatenate([c + normal, c - normal]))


def windows(p) -> list[Manifold]:
    a = along(p)
    low, high = p.belt * p.height, p.height
    sills = low + 0.06, high - 0.13 - 0.4 * p.softness

    def edge(y, stop: str, top: str) -> float:
        return a[stop] + (a[top] - a[stop]) * (y - low) / (high - low)

    def flank(y, z) -> list[float]:
        x, level = section(p, z)
        return [float(np.interp(y, level, x)), y, z]

    def slot(fraction: float, y: float) -> list[float]:
        """A point on the flank, from the front pillar (0) to the rear pillar (1)."""
        first, last = edge(y, "cowl", "front") - 0.14, edge(y, "shelf", "back") + 0.16
        return flank(y, first + fraction * (last - first))

    parts = []
    cuts = np.array([0.0, 0.3]) if p.panel_van else np.linspace(0, 1, p.side_windows + 1)
    for a0, a1 in zip(cuts[:-1] + 0.02, cuts[1:] - 0.02, strict=True):
        parts += pair(pane([slot(a0, sills[0]), slot(a1, sills[0]), slot(a1, sills[1]), slot(a0, sills[1])]))
    for stop, top in [("cowl", "front")] + ([] if p.panel_van else [("shelf", "back")]):
        y0, y1, x0, x1 = low + 0.08, high - 0.09, 0.4 * p.width, 0.42 * p.tumblehome * p.width
        z0, z1 = edge(y0, stop, top), edge(y1, stop, top)
        parts.append(pane([(x0, y0, z0), (-x0, y0, z0), (-x1, y1, z1), (x1, y1, z1)]))
    return parts


def arches(p) -> list[Manifold]:
    half = p.width / 2
    ends = [((half - 0.27, p.wheel, z), (half + 0.2, p.wheel, z)) for z in axles(p)]
    return [solid for start, end in ends for solid in pair(limb(start, end, 1.12 * p.wheel, points=24))]


def cockpit(p) -> list[Manifold]:
    a = along(p)
    shape = outline(0.78 * p.width, a["cowl"] - a["back"] - 0.35, 0.4, 16)
    return [plate(shape, 0.5 * p.belt * p.height, p.height).translate((0, 0, (a["cowl"] + a["back"]) / 2 - 0.14))]


def bed(p) -> list[Manifold]:
    """The solid that is subtracted for the load bed of a pick-up."""
    if p.kind != "pickup":
        return []
    a = along(p)
    long = a["shelf"] - a["tail"] - 0.2
    shape = outline(0.66 * p.width, long, 0.1, 8)
    return [plate(shape, 0.66 * p.belt * p.height, p.height).translate((0, 0, a["tail"] + 0.08 + long / 2))]


def extras(p) -> list[Manifold]:
    """The roadster's windscreen and seats; spoiler, roof rack, spare wheel, mirrors."""
    a, half, belt = along(p), p.width / 2, p.belt * p.height
    parts = []
    if p.kind == "roadster":
        screen = [(0, belt - 0.08, a["cowl"] + 0.05), (0, p.height, a["front"] + 0.2)]
        seat = [(0.2 * p.width, belt - 0.1, a["back"]), (0.2 * p.width, belt + 0.16, a["back"])]
        parts += pair(sweep(seat, 0.42, 0.16, 0.7, up=FRONT))
        parts.append(sweep(screen, half * np.array([1.5, 1.3]), 0.07, 0.4, up=FRONT))
    if p.spoiler:
        z = a["tail"] + 0.1
        y = float(levels(p, z + 0.05)[1])
        parts += pair(limb((0.6 * half, y - 0.05, z + 0.05), (0.6 * half, y + 0.16, z), 0.05, points=8))
        parts.append(sweep([(-0.85 * half, y + 0.17, z), (0.85 * half, y + 0.17, z)], 0.26, 0.07, 0.6))
    if p.rack:
        x, y = 0.7 * p.tumblehome * half, p.height + 0.08
        feet = (x, p.height - 0.02, a["front"] - 0.15), (x, p.height - 0.06, a["back"] + 0.1)
        parts += pair(sweep([feet[0], (x, y, a["front"] - 0.3), (x, y, a["back"] + 0.3), feet[1]], 0.07, points=8))
    if p.spare:
        tyre = turned((0.2, 0.33, 0.35, 0.33, 0.2), (0, 0.03, 0.1, 0.17, 0.2), 20).rotate((90, 0, 0))
        parts.append(tyre.translate((0, 0.52 * p.height, a["tail"] - 0.17)))
    if p.mirrors:
        y, z = belt + 0.06, a["cowl"] - 0.2
        arm = [(0.8 * half, y - 0.05, z), (half + 0.02, y, z), (half + 0.14, y + 0.02, z - 0.02)]
        parts += pair(sweep(arm, (0.08, 0.09, 0.1), (0.08, 0.13, 0.13), 0.6, points=8))
    return parts


def axles(p) -> tuple[float, float]:
    shift = 0.015 * p.length
    return (p.wheelbase * p.length / 2 + shift, -p.wheelbase * p.length / 2 + shift)


def wheels(p) -> list[Manifold]:
    half, r = p.width / 2, p.wheel
    radii = r * np.array([0.9, 1, 1, 0.9, 0.64, 0.6, 0.2])
    wheel = turned(radii, (-0.11, -0.08, 0.08, 0.11, 0.11, 0.06, 0.09), 24).rotate((0, 0, -90))
    parts = []
    for z in axles(p):
        parts += [*pair(wheel.translate((half - 0.13, r, z))), limb((-half + 0.15, r, z), (half - 0.15, r, z), 0.1)]
    return parts
