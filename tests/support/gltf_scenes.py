"""glTF scenes of a tetrahedron, and of a sphere that is compressed, as trees and as files."""

import base64
import copy
import json
import struct

import numpy as np

CORNERS = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], "<f4")
FACES = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]], "<u4")
BINARY = CORNERS.tobytes() + FACES.tobytes()


def scene(nodes, **more):
    """A tetrahedron of volume 1/6, placed by nodes; more: replaces entries of the tree."""
    tree = {
        "asset": {"version": "2.0"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": nodes,
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1}]}],
        "accessors": [
            {"bufferView": 0, "componentType": 5126, "count": 4, "type": "VEC3"},
            {"bufferView": 1, "componentType": 5125, "count": 12, "type": "SCALAR"},
        ],
        "bufferViews": [{"buffer": 0, "byteOffset": start, "byteLength": 48} for start in (0, 48)],
        "buffers": [{"byteLength": 96}],
    }
    return copy.deepcopy(tree | more)


def glb(tree, binary=BINARY):
    text = json.dumps(tree).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(binary), b"BIN\0") + binary
    return b"glTF" + struct.pack("<II", 2, 12 + len(chunks)) + chunks


def draco_scene(data: bytes):
    """A tetrahedron that Draco compressed to these bytes."""
    tree = scene([{"mesh": 0, "translation": [1, 2, 3]}], extensionsRequired=["KHR_draco_mesh_compression"])
    packed = {"bufferView": 0, "attributes": {"POSITION": 0}}
    tree["meshes"][0]["primitives"][0]["extensions"] = {"KHR_draco_mesh_compression": packed}
    tree["bufferViews"] = [{"buffer": 0, "byteLength": len(data)}]
    tree["buffers"] = [{"byteLength": len(data)}]
    for accessor in tree["accessors"]:
        del accessor["bufferView"]
    return tree


# `trimesh.creation.icosphere(1)` by the encoders of meshoptimizer 0.2.30a0 (PyPI): int16 vertices in steps of 1/16384,
# padded to 8 bytes; its triangles; its corners as a sequence; and vertices by the exponential filter.
VERTICES = base64.b85decode(
    "pdCNJ%+HvYn6%<N;&S8U<8pH2<l}O20CE6v0CE5`GXMZ`adL4TKfuh-hJ}VfY}sxnPEAfFCr(XHC1wC6044w>0P{0206^y`Cn!G^"
    "4FA9kJZYGhn6z@wGY`+>a&qHxa^rGx<HPgt0CIBUa&qHx9Sr}#{Mjmog@!?Z{}|2yWoH1+0A)ab7)~007*7BH@Bk%1e;7_0e;7_B"
    "6#&ftz~Ve<n3tHe006+ia^vtYFaUCL<8l=M%>T@6*(!#GhCx6N1I)}ozdu+%jzIG>FaTvIKaN0U0000000000000000000000000"
    "00000003IvaW((|000"
)
TRIANGLES = base64.b85decode(
    ";r{>sB#%%26n}32CVx-=C4W!<CIA2bB>(^aBme*Y6aWAJB>(^aB>w;Y6OV5HD1S}=C4Wx;C4W!<CIA2a6951IBmV#YBme*Y694}H"
    "CI3n(|0**&A1@US3Lyv|0UI<19|bKo2p<PC?-Mrv6&Exg1ttFnMk~K80Us$F{|-C_{{}rULH{o_0sjIyARibx{{kKg{|PBB9|k4="
    "DjWYCCn`Z99|0949|9XD9|0jM1|J0{{|Ph~PZ$C*|2Y^ipD!{W0X6>+Ag>=D9|AG|10({k0R=Jt8!iX(2OkJE0CtB~XLzZGWr=8*"
    "0cijL"
)
SEQUENCE = base64.b85decode(
    "(EybJQ&nemUttsr4PQS&4-qRd6BR!_1rskZB_k_U0|h%3DFahgF)ufD3k_#2Jqr>65f59W0S*uaSs@Re0YEG&E@%o2Rv<VES`AlO"
    "b8%Bu0tEw88<YVG3<F^i51IiT8xe150|j$IF)u@i0WvUdJQNaATnq|6I0y`0Xf`-bR60CnWCS`cFa`)JC;|j7Gy(!9C>$CpL<9md"
    "92f*bL=+M>Pyz%-Fc<<>SP%|EU<wRcKpYBUXf7~PSTZzbWCSukFkoILg#iNvZw+Mw2sA)GLJtK4UnM;SYe@wIPel<AKTQh}M_msQ"
    "UqKNMTX-H200000"
)
EXPONENTIAL = base64.b85decode(
    "pdCNJ%+FX?Sk!m$cQ<fva5pz_Z*Vs_05<?Q05<?LGXMZLI5#*QKfuh-8W|e&O`1!e!NS3vpTWYxonZi-0G<Gy0P{020RLd1pP>I0"
    "CIAG6VVD2_umAu60{|5a|G*6JTv%6F)HlyF56^HnH*hyMa5pz_!}IU}H#cxMH*hx<4FA9knx+~V8uVb#GtbY#Vqn2y|6svlV8QeA"
    "@Bp3vV8LQw!JQQZCIGMlfglnR1cZP902Kht|G;<fTv%6F)Bpg$z&CL4Ffaf&H*hx<0L=f)O`4_}85;Ee4+G51|NsA=|33foGcW*R"
    "pZ`ApVif=cCIAZn0DuD!AOHXW0000000000000000000000000YI*<g#MuDw0002+"
)
PARTS = {
    "vertices": (VERTICES, 42, 8, "ATTRIBUTES", "NONE"),
    "triangles": (TRIANGLES, 240, 4, "TRIANGLES", "NONE"),
    "sequence": (SEQUENCE, 240, 4, "INDICES", "NONE"),
    "exponential": (EXPONENTIAL, 42, 12, "ATTRIBUTES", "EXPONENTIAL"),
}


def compressed_scene():
    """A sphere whose buffers are compressed, and quantized: the placeholder of the plain ones holds nothing."""
    parts, start = [], 0
    for data, count, stride, mode, filtered in (PARTS["vertices"], PARTS["triangles"]):
        packed = {"buffer": 0, "byteOffset": start, "byteLength": len(data), "byteStride": stride, "count": count}
        parts.append(packed | {"mode": mode, "filter": filtered})
        start += len(data)
    views = [
        {"buffer": 1, "byteLength": part["byteStride"] * part["count"], "extensions": {"EXT_meshopt_compression": part}}
        for part in parts
    ]
    views[0]["byteStride"] = 8
    tree = {
        "asset": {"version": "2.0"},
        "extensionsRequired": ["EXT_meshopt_compression", "KHR_mesh_quantization"],
        "buffers": [{"byteLength": start}, {"byteLength": 1296}],
        "bufferViews": views,
        "accessors": [
            {"bufferView": 0, "componentType": 5122, "count": 42, "type": "VEC3"},
            {"bufferView": 1, "componentType": 5125, "count": 240, "type": "SCALAR"},
        ],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1}]}],
        "nodes": [{"mesh": 0, "scale": [1 / 16384] * 3}],
    }
    return tree, VERTICES + TRIANGLES
