"""Aeroplanes: airliners, fighters, light aircraft on wheels or floats, biplanes, gliders."""

from __future__ import annotations

import numpy as np
from manifold3d import Manifold

from jonet.data.families.draws import count, pick
from jonet.data.families.solids import FRONT, UP, limb, loft, outline, pair, sweep, union

# The nose is at z = +0.5 and the tail at z = -0.5, whatever the kind; the last step scales to meters.


def draw(rng: np.random.Generator) -> dict:
    """Length in meters; everything else as fractions of it, sweep and dihedral as slopes."""
    u = rng.uniform
    kind = pick(rng, airliner=0.34, fighter=0.2, light=0.24, biplane=0.13, glider=0.09)
    length, girth, span, chord = {
        "airliner": (u(28, 65), u(0.048, 0.062), u(0.85, 1.12), u(0.17, 0.23)),
        "fighter": (u(13, 20), u(0.046, 0.06), u(0.55, 0.8), u(0.3, 0.44)),
        "light": (u(7, 10), u(0.062, 0.078), u(1.1, 1.4), u(0.17, 0.22)),
        "biplane": (u(6, 8), u(0.062, 0.08), u(1.0, 1.25), u(0.17, 0.21)),
        "glider": (u(6.5, 9), u(0.055, 0.068), u(1.6, 2.0), u(0.13, 0.16)),
    }[kind]
    swept, taper, dihedral = {
        "airliner": (u(0.35, 0.75), u(0.25, 0.4), u(0.04, 0.13)),
        "fighter": (u(0.55, 1.3), u(0.15, 0.4), u(-0.06, 0.03)),
        "light": (u(-0.03, 0.1), u(0.55, 1.0), u(0.01, 0.1)),
        "biplane": (u(0.0, 0.12), u(0.85, 1.0), u(0.0, 0.06)),
        "glider": (u(0.0, 0.06), u(0.4, 0.6), u(0.02, 0.08)),
    }[kind]
    engines = {
        "airliner": pick(rng, under2=0.4, under4=0.22, tail2=0.26, tail3=0.12),
        "fighter": pick(rng, jet1=0.5, jet2=0.5),
        "light": pick(rng, nose=0.65, props2=0.35),
        "biplane": "nose",
        "glider": "none",
    }[kind]
    gear = {"light": pick(rng, wheels=0.45, floats=0.25, none=0.3), "biplane": pick(rng, wheels=0.8, floats=0.2)}
    at_rear = engines.startswith("tail")
    tail = pick(rng, plain=0.66, v=0.1, t=0.24) if kind != "biplane" else "plain"
    if kind == "fighter" and u() < 0.4:
        tail = "twin"
    wing_at = dict(airliner=0.02, fighter=-0.05, light=0.16, biplane=0.16, glider=0.16)[kind] - 0.06 * at_rear
    return dict(
        kind=kind,
        length=length,
        girth=girth,
        fuselage_height=u(0.95, 1.2) if kind != "airliner" else u(0.98, 1.08),
        nose=u(0.12, 0.2) if kind == "airliner" else u(0.3, 0.42) if kind == "fighter" else u(0.14, 0.22),
        tail=u(0.3, 0.42) if kind == "airliner" else u(0.5, 0.65),
        upsweep=u(0.3, 0.8),
        span=span,
        chord=chord,
        taper=taper,
        sweep=swept,
        dihedral=dihedral,
        wing_at=wing_at + u(0.02, 0.08),
        wing_level=pick(rng, low=0.75, high=0.25) if kind in ("airliner", "fighter") else pick(rng, low=0.5, high=0.5),
        winglets=int(kind == "airliner" and u() < 0.35),
        gap=u(0.14, 0.2),
        stagger=u(0.0, 0.07),
        tail_kind="t" if at_rear else tail,
        tail_span=u(0.32, 0.42) * (1.15 if kind in ("light", "glider") else 1),
        tail_chord=u(0.1, 0.14) + (0.03 if kind == "fighter" else 0),
        fin_height=u(0.13, 0.19),
        fin_sweep=u(0.45, 0.9) if kind in ("airliner", "fighter") else u(0.1, 0.5),
        engines=engines,
        engine_size=u(0.6, 0.85),
        engine_at=u(0.28, 0.38),
        blades=count(rng, 2, 4),
        gear=gear.get(kind, "none"),
        canopy=u(0.5, 0.8),
    )


def build(p) -> Manifold:
    parts = [fuselage(p), *pair(wing(p)), *tail(p), *ENGINES[p.engines](p), *GEAR[p.gear](p)]
    if p.kind == "biplane":
        parts += upper_wing(p)
    if p.kind in ("fighter", "light", "biplane", "glider"):
        parts.append(canopy(p))
    return union(parts).scale((p.length,) * 3)


def thinnest(p) -> float:
    """The minimum thickness of wings and tails: 2.1 % of the longest side, as a fraction of the length."""
    return 0.021 * max(1.0, p.span)


# Body


def girth(p, z):
    """Half width of the fuselage at z."""
    from_nose, from_tail = np.clip((0.5 - z) / p.nose, 0, 1), np.clip((z + 0.5) / p.tail, 0, 1)
    blunt = 0.5 if p.kind == "airliner" else 0.62 if p.kind == "fighter" else 0.45
    bare = np.clip(from_nose, 0.0015, 1) ** blunt
    if p.engines == "nose":
        bare = 0.62 + 0.38 * np.sin(from_nose * np.pi / 2)  # a cowling
    end = 0.62 if p.kind == "fighter" else 0.2
    return p.girth * bare * (end + (1 - end) * np.sin(from_tail * np.pi / 2))


def middle(p, z):
    """Height of the fuselage's axis at z: its tail is drawn up."""
    return p.upsweep * p.girth * (1 - np.sin(np.clip((z + 0.5) / p.tail, 0, 1) * np.pi / 2)) * (p.kind != "fighter")


def fuselage(p) -> Manifold:
    z = np.concatenate([-0.5 + p.tail * np.linspace(0, 1, 6), 0.5 - p.nose * np.linspace(1, 0, 8) ** 1.6])
    path = np.stack([0 * z, middle(p, z), z], -1)
    roundness = 0.75 if p.kind in ("biplane", "fighter") else 1.0
    r = np.maximum(girth(p, z), 0.006)
    return sweep(path, 2 * r, 2 * r * p.fuselage_height, roundness, cut=FRONT, points=16)


def canopy(p) -> Manifold:
    length = dict(fighter=0.24, light=0.3, biplane=0.1, glider=0.24)[p.kind]
    front = dict(fighter=0.5 - 0.95 * p.nose, light=p.wing_at + 0.02, biplane=p.wing_at - 0.16, glider=0.3)
    turn = np.linspace(0.08, np.pi - 0.08, 9)
    z = front[p.kind] - np.cos(turn) * length / 2
    r = p.girth * p.canopy * np.sin(turn) ** 0.7
    rise = p.girth * (p.fuselage_height - 0.25)
    return sweep(np.stack([0 * z, 0 * z + rise, z], -1), 1.8 * r, 2 * r, cut=FRONT)


# Wings and tails


def surface(p, root, tip, chord: float, tip_chord: float, thickness: float = 0.12, upright: bool = False) -> Manifold:
    """A wing or fin between the leading edges of its two ends, each (x, y, z); it grows from root to tip."""
    along = np.array([0, 0.55, 0.93, 1.0])
    chords = (chord + (tip_chord - chord) * along) * [1, 1, 1, 0.72]
    edge = np.asarray(root) + along[:, None] * (np.asarray(tip) - np.asarray(root))
    edge[-1, 2] -= 0.14 * tip_chord
    thick = np.maximum(thickness * chords, thinnest(p)) * [1, 1, 1, 0.8]
    back = np.array([1.0, 0.8, 0.4, 0.12, 0.0, 0.0, 0.12, 0.4, 0.8, 1.0])
    up = np.array([-0.3, -0.38, -0.5, -0.42, -0.22, 0.22, 0.42, 0.5, 0.38, 0.3])
    normal = np.array([1, 0, 0]) if upright else np.array([0, 1, 0])
    rings = edge[:, None] - (chords[:, None] * back)[..., None] * [0, 0, 1] + (thick[:, None] * up)[..., None] * normal
    return loft(rings if upright else rings[:, ::-1])


def leading(p, x: float) -> np.ndarray:
    """The leading edge (x, y, z) [3] of the (lower) wing at a distance x from the middle."""
    level = -0.6 if p.kind == "biplane" else -0.45 if p.wing_level == "low" else 0.75
    return np.array([x, level * p.girth + p.dihedral * x, p.wing_at + 0.4 * p.chord - p.sweep * x])


def wing(p) -> Manifold:
    tip, end = leading(p, p.span / 2), p.chord * p.taper
    blade = surface(p, leading(p, 0), tip, p.chord, end)
    if p.winglets:
        foot = tip - [0.02, 0.002, 0.2 * end]
        blade += surface(p, foot, foot + [0.03, 0.07, -0.06], 0.6 * end, 0.4 * end, upright=True)
    return blade


def upper_wing(p) -> list[Manifold]:
    """The second wing of a biplane, on struts from the first and from the fuselage."""
    up = np.array([0, p.gap - leading(p, 0)[1], p.stagger])
    struts = []
    for x, foot in (
        (0.36 * p.span, leading(p, 0.36 * p.span)),
        (0.7 * p.girth, leading(p, 0.4 * p.girth) + [0, p.girth, 0]),
    ):
        head, back = leading(p, x) + up, [(0, 0, -fraction * p.chord) for fraction in (0.25, 0.75)]
        struts += [limb(foot + b, head + b, 0.55 * thinnest(p), points=8) for b in back]
    return pair(union([wing(p).translate(up), *struts]))


def tail(p) -> list[Manifold]:
    z, y = -0.5 + 1.15 * p.tail_chord + 0.02, middle(p, -0.48)
    fin, half = p.fin_height, p.tail_span / 2
    chord, tip = p.tail_chord * 1.2, p.tail_chord * 0.7
    if p.tail_kind == "v":
        return pair(surface(p, (0, y, z + 0.02), (half * 0.75, y + 0.8 * half, z - 0.35 * half), chord, tip))
    root = np.array([0, y, z + 0.03])
    top = root + [0, fin, -p.fin_sweep * fin]
    if p.tail_kind == "twin":
        out = np.array([0.85 * p.girth, 0, 0])
        fins = pair(surface(p, root + out, top + out + [0.25 * fin, 0, 0], chord, tip, upright=True))
    else:
        fins = [surface(p, root, top, chord * 1.15, tip * 1.1, upright=True)]
    foot = top - [0, 0.012, 0.01] if p.tail_kind == "t" else np.array([0, y, z])
    back = 0.3 if p.kind not in ("airliner", "fighter") else 0.6
    return [*fins, *pair(surface(p, foot, foot + [half, 0.05 * half, -back * half], p.tail_chord, tip))]


# Engines


def nacelle(p, at, size: float, length: float) -> Manifold:
    """A jet engine with a hollow intake, its front at `at`."""
    r = size * p.girth
    z = np.array([-0.22, -0.02, 0.0, -0.06, -0.5, -0.85, -1.0]) * length
    shape = np.array([0.62, 0.74, 0.86, 1.0, 1.0, 0.72, 0.5]) * r
    ring = np.append(outline(2, 2, points=16), np.zeros((16, 1)), 1)
    rings = shape[:, None, None] * ring + z[:, None, None] * FRONT
    return loft(rings[::-1]).translate(at)


def pods(p, where) -> list[Manifold]:
    """Engines on pylons, before and under the wing, at fractions of the half span."""
    parts = []
    for fraction in where:
        edge, size = leading(p, fraction * p.span / 2), p.engine_size * (1.0 if len(where) == 1 else 0.8)
        below = edge - [0, size * p.girth + 0.02, 0]
        pylon = sweep([below - [0, 0, 0.02], edge - [0, 0, 0.075]], 0.022, 0.09, 0.5, up=FRONT, cut=UP)
        parts += pair(nacelle(p, below + [0, 0, 0.045], size, 0.13) + pylon)
    return parts


def on_tail(p, third: bool) -> list[Manifold]:
    """Engines on the rear fuselage, the third in the fin's root."""
    size = 0.85 * p.engine_size
    x, z = p.girth + 0.55 * size * p.girth + 0.01, -0.5 + p.tail * 0.62
    stub = limb((0, 0.4 * p.girth, z - 0.075), (x, 0.5 * p.girth, z - 0.075), 0.014, points=8)
    parts = pair(nacelle(p, (x, 0.5 * p.girth, z), size, 0.14) + stub)
    return [*parts, nacelle(p, (0, p.girth * 1.45, z - 0.05), size, 0.2)] if third else parts


def propeller(p, at, radius: float) -> Manifold:
    z = np.array([-0.03, 0, 0.03, 0.05])
    hub = sweep(z[:, None] * FRONT, (0.05, 0.05, 0.035, 0.01))
    path = radius * np.array([0, 0.5, 1])[:, None] * UP
    blade = sweep(path, (0.028, 0.042, 0.03), 0.9 * thinnest(p), 0.5, up=(0.5, 0, 0.9), points=8)
    return union([hub, *(blade.rotate((0, 0, 20 + 360 * i / p.blades)) for i in range(p.blades))]).translate(at)


def props(p) -> list[Manifold]:
    """Two piston engines on the wing."""
    edge = leading(p, p.engine_at * p.span / 2)
    z = np.array([-1.1 * p.chord, -0.5 * p.chord, 0.02, 0.08, 0.1])
    body = sweep(edge + z[:, None] * FRONT, 0.62 * p.girth * np.array([0.4, 1.6, 2.0, 1.8, 1.2]))
    return pair(body + propeller(p, edge + [0, 0, 0.11], 0.11))


def jets(p, number: int) -> list[Manifold]:
    """Intakes along the sides, exhausts at the rear."""
    r = p.girth
    z = np.array([-0.35, -0.1, 0.12, 0.13])
    path = z[:, None] * FRONT + [0.85 * r, -0.15 * r, 0]
    wide, high = np.array([(0.9, 1.3, 1.1, 1.05), (1.1, 1.5, 1.3, 1.2)]) * r
    intakes = pair(sweep(path, wide, high, 0.5, points=8))
    pipe = nacelle(p, (0, 0, 0), 0.85 if number == 1 else 0.62, 0.2).rotate((0, 180, 0)).translate((0, 0, -0.53))
    return [*intakes, *([pipe] if number == 1 else pair(pipe.translate((0.6 * r, 0, 0))))]


ENGINES = dict(
    none=lambda p: [],
    nose=lambda p: [propeller(p, (0, 0, 0.52), 0.15)],
    props2=props,
    under2=lambda p: pods(p, [p.engine_at]),
    under4=lambda p: pods(p, [p.engine_at * 0.95, p.engine_at + 0.3]),
    tail2=lambda p: on_tail(p, third=False),
    tail3=lambda p: on_tail(p, third=True),
    jet1=lambda p: jets(p, 1),
    jet2=lambda p: jets(p, 2),
)


# Landing gear


def wheels(p) -> list[Manifold]:
    r, thin = 0.045, thinnest(p) * 0.6
    y, z, x = -p.girth * p.fuselage_height - 0.075, p.wing_at + 0.03, 0.13
    leg = limb((0.3 * p.girth, -0.5 * p.girth, z), (x, y, z), thin, points=8)
    wheel = limb((x - 0.018, y, z), (x + 0.018, y, z), r)
    skid = limb((0, middle(p, -0.42), -0.42), (0, middle(p, -0.42) - 0.07, -0.45), thin, points=8)
    return [*pair(leg + wheel), skid]


def floats(p) -> list[Manifold]:
    y, x = -p.girth * p.fuselage_height - 0.1, 0.14
    z, rise, full = np.array([(-0.34, -0.1, 0.12, 0.22, 0.27), (0.02, 0, 0, 0.01, 0.025), (0.3, 0.9, 1, 0.8, 0.3)])
    pontoon = sweep(np.stack([0 * z + x, y + rise, p.wing_at + z], -1), 0.075 * full, 0.07 * full, 0.7)
    struts = [
        limb((0.3 * p.girth, -0.5 * p.girth, p.wing_at + dz), (x, y, p.wing_at + dz), thinnest(p) * 0.6, points=8)
        for dz in (-0.1, 0.1)
    ]
    return pair(union([pontoon, *struts]))


GEAR = dict(none=lambda p: [], wheels=wheels, floats=floats)
