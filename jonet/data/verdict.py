"""The verdict on a mesh: has it an inside, how is that found, and how far can the answer be trusted."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING

import numpy as np

from jonet.data.orientation import STEP, Sky, Surface, areas, spread, turns, unfold, weld, winding
from jonet.errors import MeshError

if TYPE_CHECKING:
    from jonet.data.meshes import Mesh

NO_AREA = 1e-6  # of the extent's square: what rounding to float32 leaves of faces on one line is 2e-8
PROBES = 512  # places on the surface where both sides are looked at; half of them where it is closed
RAYS = 32  # directions in which the inside looks for the open
DOUBT = 0.14  # beyond this share of doubtful places winding numbers are not trusted
NOTHING = 0.1  # up to this share of the surface with inside behind it, there is no solid
OVERLAP = 0.004  # up to this share, one probe in 256, overlap is taken for rounding


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a mesh is, and how its inside is found.  Shares are of the surface's area, after `orient`.

    closed: every edge is run along equally often in both directions, once all is turned
    consistent: neighbouring faces are wound alike, as given
    parts, open_parts, inverted, cavities: numbers of parts; `orient` turns the inverted ones, which are inside out
    thin: share that is a sheet: coincides with an opposite face, or has nothing inside on either side
    overlap: share that lies inside another part
    doubtful: share beside which winding numbers do not tell inside from outside
    repaired: whether `orient` changes anything
    method: `exact` (closed, no overlap), `winding` (winding numbers of the oriented mesh), `views` (neither is fit)
    reason: a sentence
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
    def from_dict(cls, values: dict) -> Verdict:
        return cls(**values)


def check(mesh: Mesh) -> Mesh:
    """The mesh itself, or MeshError that says what makes it unusable: no faces, bad indices, not finite, no area."""
    name = mesh.name or "mesh"
    if not len(mesh.faces):
        what = f"{len(mesh.vertices)} vertices but no faces" if len(mesh.vertices) else "no vertices and no faces"
        raise MeshError(f"{name}: holds {what}; a surface is needed")
    if mesh.faces.min() < 0 or mesh.faces.max() >= len(mesh.vertices):
        bad = int(np.flatnonzero(((mesh.faces < 0) | (mesh.faces >= len(mesh.vertices))).any(1))[0])
        raise MeshError(
            f"{name}: face {bad} uses vertices {mesh.faces[bad].tolist()}, but there are {len(mesh.vertices)}"
        )
    if not (finite := np.isfinite(mesh.corners).all((1, 2))).all():
        bad = int(np.argmin(finite))
        raise MeshError(f"{name}: face {bad} has the corners {mesh.corners[bad].tolist()}, which are not all finite")
    if not mesh.area > NO_AREA * np.ptp(mesh.bounds, axis=0).max() ** 2:
        raise MeshError(f"{name}: its {len(mesh.faces)} faces have no area, they lie in one point or on one line")
    return mesh


def examine(mesh: Mesh) -> Verdict:
    """Closed or open, wound how, inside out where: and from that the sign method.  5,000 faces take about 20 ms."""
    return _settle(mesh)[0]


def orient(mesh: Mesh, verdict: Verdict | None = None) -> Mesh:
    """The mesh welded, without duplicate faces or unused vertices, every part turned outwards as far as can be told.

    Cavities look into their hollow.  Sheets that are given in both windings stay so: they bound nothing.  Where the
    verdict (of `examine`) says that nothing is to be repaired, the mesh itself; else vertex normals are dropped.
    """
    return mesh if verdict is not None and not verdict.repaired else _settle(mesh)[1]


@functools.lru_cache(maxsize=1)  # by identity: `orient` follows upon `examine`
def _settle(mesh: Mesh) -> tuple[Verdict, Mesh]:
    check(mesh)
    low, high = mesh.bounds
    local = (mesh.vertices - (low + high) / 2) / (high - low).max()
    first, faces = weld(local, mesh.faces)
    vertices = local[first]
    faces, sheets, doubled = unfold(vertices, faces)
    surface = Surface.of(vertices, faces)
    turn, cavities, hidden = turns(surface, sheets)
    faces = surface.turned(turn)
    whole = np.concatenate([faces, sheets, sheets[:, ::-1]])
    oriented = dataclasses.replace(mesh, vertices=mesh.vertices[first], faces=whole, normals=None)
    rims = int(np.count_nonzero(surface.chain(turn)))
    shares, solid = probe(vertices, whole, bool(rims))
    facts = dict(
        closed=not rims,
        consistent=surface.consistent,
        parts=len(surface.open),
        open_parts=int(surface.open.sum()),
        inverted=int((turn < 0).sum()),
        cavities=cavities,
        repaired=len(first) < len(mesh.vertices) or not np.array_equal(whole, mesh.faces),
        **shares,
    )
    return Verdict(**facts, **judge(solid=solid, rims=rims, doubled=doubled, hidden=hidden, **facts)), oriented


def judge(*, closed, consistent, parts, inverted, cavities, thin, overlap, doubtful, solid, rims, doubled, hidden, **_):
    """The sign method and a sentence that gives its reason, from the verdict's facts and:

    solid: see `probe`; rims: number of edges that are not closed; doubled: see `unfold`; hidden: see `turns`.
    """
    said = ["closed" if closed else f"open ({rims} unmatched edges)"]
    if doubled:
        said.append("given in both windings, of which one is kept")
    if not consistent:
        said.append("with neighbouring faces wound against each other, which is mended")
    if inverted:
        said.append(f"with {inverted} of {parts} parts inside out, which are turned")
    if cavities:
        said.append(f"with {cavities} {'cavity' if cavities == 1 else 'cavities'}")
    if overlap > OVERLAP:
        said.append(f"with parts that overlap ({overlap:.1%} of the surface lies inside another part)")
    if thin > OVERLAP:
        said.append(f"with sheets that bound nothing ({thin:.1%} of the surface)")
    if hidden:
        said.append(f"with {hidden} open {'part' if hidden == 1 else 'parts'} whose outside cannot be told")
    if not solid:
        method, ending = "views", "there is no inside to speak of"
    elif doubtful > DOUBT:
        method, ending = "views", f"winding numbers leave the inside in doubt along {doubtful:.0%} of the surface"
    elif closed and overlap <= OVERLAP:
        method, ending = "exact", "the inside is certain"
    else:
        method, ending = "winding", f"winding numbers tell inside from outside along {1 - doubtful:.0%} of the surface"
    return {"method": method, "reason": f"{', '.join(said).capitalize()}; {ending}."}


def probe(vertices, faces, rimmed: bool) -> tuple[dict[str, float], bool]:
    """Winding numbers on both sides of an oriented surface: its shares that are thin, that overlap, that are in doubt;
    and whether it encloses anything.

    A place is in doubt where either number is near the threshold 1/2, or where the inside, with a number far from
    whole, sees the open: through a large hole, or behind a single sheet.  rimmed: whether numbers may not be whole.
    """
    rng = np.random.default_rng(1)
    area = areas(vertices, faces)
    count = PROBES if rimmed else PROBES // 2
    at, normals = spread(vertices, faces, rng.choice(len(faces), count, p=area / area.sum()), rng)
    outer, inner = np.split(winding(vertices, faces, np.concatenate([at + STEP * normals, at - STEP * normals])), 2)
    doubt = np.zeros(count, bool)
    if rimmed:
        directions = np.broadcast_to(rng.standard_normal((RAYS, 3)), (count, RAYS, 3))
        sees = Sky(vertices, faces).seen(at - 10 * STEP * normals, directions) > 0.1 * RAYS
        blurred = np.abs(outer - np.round(outer)) > 0.25
        doubt = (np.abs(inner - 0.5) < 0.2) | (np.abs(outer - 0.5) < 0.2) | ((inner > 0.5) & blurred & sees)
    sheet = (inner < 0.5) | (inner - outer < 0.5)
    within = (outer > 0.75) & ~sheet
    shares = {"thin": sheet, "overlap": within, "doubtful": doubt}
    return {name: float(found.mean()) for name, found in shares.items()}, bool((inner > 0.5).mean() > NOTHING)
