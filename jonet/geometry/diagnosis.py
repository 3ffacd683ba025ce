"""Diagnosis of meshes: closed or open, which sign method fits, and how reliable its inside test is."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

from jonet.geometry.mesh import Mesh, check
from jonet.geometry.orientation import STEP, Sky, Surface, areas, flips, spread, unfold, weld, winding
from jonet.wording import counted

PROBES = 512  # surface points whose two sides are tested; half as many on closed meshes
RAYS = 32  # rays per probe that test whether it is enclosed
DOUBT = 0.14  # maximum fraction of doubtful probes for which winding numbers are trusted
NOTHING = 0.1  # up to this fraction of probes with inside behind them, there is no solid
OVERLAP = 0.004  # up to this fraction, one probe in 256, overlap counts as rounding


@dataclasses.dataclass(frozen=True)
class MeshDiagnosis:
    """Properties of a mesh and its sign method.  Fractions are of the surface area, after `orient`.

    closed: every edge is traversed equally often in both directions, after orientation
    consistent: neighboring faces agree in winding, as given
    parts, open_parts, inverted, cavities: numbers of parts; `orient` flips the inverted ones, which are inside out
    thin: fraction of sheets: faces that coincide with an opposite face, or with no inside on either side
    overlap: fraction inside another part
    doubtful: fraction next to which winding numbers do not separate inside from outside
    repaired: whether `orient` changes anything
    method: `exact` (closed, no overlap), `winding` (winding numbers of the oriented mesh), `views` (neither fits)
    reason: a sentence for the user
    """

    closed: bool
    consistent: bool
    parts: int
    open_parts: int
    inverted: int
    cavities: int
    thin: float
    overlap: float
    doubtful: float
    repaired: bool
    method: str
    reason: str

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> MeshDiagnosis:
        return cls(**values)


def diagnose(mesh: Mesh) -> MeshDiagnosis:
    """The diagnosis of a mesh, and from it the sign method.  5,000 faces take about 20 ms."""
    return _diagnosed(mesh)[0]


def orient(mesh: Mesh, diagnosis: MeshDiagnosis | None = None) -> Mesh:
    """The mesh welded, without duplicate faces or unused vertices, every part facing outwards (as far as known).

    Cavities face into their hollow.  Sheets that are given in both windings stay so: they bound nothing.  If the
    diagnosis (of `diagnose`) needs no repair, the mesh itself is returned; else vertex normals are dropped.
    """
    return mesh if diagnosis is not None and not diagnosis.repaired else _diagnosed(mesh)[1]


@functools.lru_cache(maxsize=1)  # meshes hash by identity; `orient` is usually called right after `diagnose`
def _diagnosed(mesh: Mesh) -> tuple[MeshDiagnosis, Mesh]:
    check(mesh)
    low, high = mesh.bounds
    local = (mesh.vertices - (low + high) / 2) / (high - low).max()
    first, faces = weld(local, mesh.faces)
    vertices = local[first]
    faces, sheets, doubled = unfold(vertices, faces)
    surface = Surface.of(vertices, faces)
    flip, cavities, hidden = flips(surface, sheets)
    faces = surface.flipped(flip)
    whole = np.concatenate([faces, sheets, sheets[:, ::-1]])  # a sheet in both windings adds 0 to winding numbers
    oriented = dataclasses.replace(mesh, vertices=mesh.vertices[first], faces=whole, normals=None)
    rims = int(np.count_nonzero(surface.chain(flip)))
    fractions, solid = probe(vertices, whole, bool(rims))
    facts: dict[str, Any] = dict(
        closed=not rims,
        consistent=surface.consistent,
        parts=len(surface.open),
        open_parts=int(surface.open.sum()),
        inverted=int((flip < 0).sum()),
        cavities=cavities,
        repaired=len(first) < len(mesh.vertices) or not np.array_equal(whole, mesh.faces),
        **fractions,
    )
    return MeshDiagnosis(
        **facts, **sign_method(solid=solid, rims=rims, doubled=doubled, hidden=hidden, **facts)
    ), oriented


def sign_method(
    *, closed, consistent, parts, inverted, cavities, thin, overlap, doubtful, solid, rims, doubled, hidden, **_
) -> dict[str, Any]:
    """The sign method and the sentence that explains it, from the fields of the diagnosis and:

    solid: see `probe`; rims: number of unmatched edges; doubled: see `unfold`; hidden: see `flips`.
    """
    findings = ["closed" if closed else f"open ({counted(rims, 'unmatched edge')})"]
    if doubled:
        findings.append("given in both windings, of which one is kept")
    if not consistent:
        findings.append("with inconsistent winding of neighboring faces, which is repaired")
    if inverted:
        findings.append(f"with {inverted} of {counted(parts, 'part')} inside out and flipped")
    if cavities:
        findings.append(f"with {cavities} {'cavity' if cavities == 1 else 'cavities'}")
    if overlap > OVERLAP:
        findings.append(f"with parts that overlap ({overlap:.1%} of the surface is inside another part)")
    if thin > OVERLAP:
        findings.append(f"with sheets that bound nothing ({thin:.1%} of the surface)")
    if hidden:
        findings.append(f"with {hidden} open {'part' if hidden == 1 else 'parts'} whose outside cannot be determined")
    if not solid:
        method, ending = "views", "there is no inside"
    elif doubtful > DOUBT:
        method, ending = "views", f"winding numbers are ambiguous along {doubtful:.0%} of the surface"
    elif closed and overlap <= OVERLAP:
        method, ending = "exact", "the inside is certain"
    else:
        method, ending = (
            "winding",
            f"winding numbers separate inside from outside along {1 - doubtful:.0%} of the surface",
        )
    return {"method": method, "reason": f"{', '.join(findings).capitalize()}; {ending}."}


def probe(vertices, faces, rimmed: bool) -> tuple[dict[str, float], bool]:
    """Fractions of an oriented surface that are thin, overlap, or are doubtful, and whether it encloses anything, by
    winding numbers on both sides of random surface points.

    vertices [V, 3], faces [F, 3].
    A point is doubtful if either winding number is near the threshold 1/2, or if its inner side has a number far from
    an integer and rays escape from it: through a large hole, or behind a single sheet.  rimmed: whether there are open
    edges, without which all winding numbers are integers.
    """
    rng = np.random.default_rng(1)
    area = areas(vertices, faces)
    count = PROBES if rimmed else PROBES // 2
    at, normals = spread(vertices, faces, rng.choice(len(faces), count, p=area / area.sum()), rng)
    outer, inner = np.split(winding(vertices, faces, np.concatenate([at + STEP * normals, at - STEP * normals])), 2)
    doubt = np.zeros(count, bool)
    if rimmed:
        directions = np.broadcast_to(rng.standard_normal((RAYS, 3)), (count, RAYS, 3))
        escapes = Sky(vertices, faces).seen(at - 10 * STEP * normals, directions) > 0.1 * RAYS
        fractional = np.abs(outer - np.round(outer)) > 0.25
        doubt = (np.abs(inner - 0.5) < 0.2) | (np.abs(outer - 0.5) < 0.2) | ((inner > 0.5) & fractional & escapes)
    # Crossing an oriented face from outside to inside raises the winding number by 1; across a sheet it stays equal.
    sheet = (inner < 0.5) | (inner - outer < 0.5)
    within = (outer > 0.75) & ~sheet  # even its outer side is inside: the face is within another part
    masks = {"thin": sheet, "overlap": within, "doubtful": doubt}
    return {name: float(mask.mean()) for name, mask in masks.items()}, bool((inner > 0.5).mean() > NOTHING)
