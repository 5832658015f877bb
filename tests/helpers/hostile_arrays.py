"""Damaged, lying and oversized arrays and folders of images."""

import io
import struct
import zipfile
import zlib

import numpy as np
from PIL import Image

__all__ = ["archive", "cuts", "flip", "image_bytes", "image_folders", "npy", "npy_files", "npz_files", "saved"]

ROWS = 30


def saved(array, **options) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, np.asarray(array), **options)
    return out.getvalue()


def npy(header: str, body: bytes = b"", version: tuple[int, int] = (1, 0), length: int | None = None) -> bytes:
    """A file in NumPy's format with any header."""
    text = header.encode("latin-1")
    size = len(text) if length is None else length
    packed = struct.pack("<H" if version[0] == 1 else "<I", size)
    return b"\x93NUMPY" + bytes(version) + packed + text + body


def cuts(content: bytes, n: int) -> dict[str, bytes]:
    """The content cut at n places, the last before its last byte."""
    return {f"cut-{at}": content[:at] for at in sorted({*np.linspace(1, len(content) - 1, n).astype(int).tolist()})}


def flip(content: bytes, at: int, value: bytes) -> bytes:
    return content[:at] + value + content[at + len(value) :]


def archive(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as packed:
        for name, content in members.items():
            packed.writestr(name, content)
    return out.getvalue()


def image_bytes(shape=(8, 8), kind: str = "png", dtype=np.uint8, **options) -> bytes:
    out = io.BytesIO()
    values = np.arange(np.prod(shape)).reshape(shape) % 251
    Image.fromarray(values.astype(dtype)).save(out, kind, **options)
    return out.getvalue()


def blank_png(width: int, height: int, colour: int = 0) -> bytes:
    """A PNG of zeros, compressed row by row, without the pixels in memory."""
    packer, row = zlib.compressobj(1), bytes(1 + width * (3 if colour == 2 else 1))
    body = b"".join(packer.compress(row * 100) for _ in range(height // 100)) + packer.flush()

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def npy_files() -> dict[str, bytes]:
    real, ends = saved(np.ones((ROWS, 2))), "'fortran_order': False, 'shape': "
    of = lambda shape, kind="<f4", body=b"": npy(f"{{'descr': '{kind}', {ends}{shape}}}\n", body)  # noqa: E731
    files = {f"real-{name}": content for name, content in cuts(real, 12).items()}
    files |= {f"header-{i}": npy(text, b"\0" * 80) for i, text in enumerate(HEADERS)}
    files |= {
        "huge": of("(1000000000000,)"),
        "huge-2": of("(1000000, 1000000, 1000000)"),
        "overflow": of(f"({10**30}, 2)"),
        "no-values": of("(1000000000000, 0)"),
        "empty": of("(0,)"),
        "empty-2": of("(30, 0)"),
        "negative": of("(-1, -1)", body=b"\0" * 80),
        "scalar": of("()", body=b"\0" * 4),
        "no-bytes": of("(1000000000000,)", "|S0"),
        "no-bytes-u": of("(30,)", "<U0"),
        "void": of("(30,)", "|V4", b"\0" * 120),
        "complex": of("(30,)", "<c8", b"\0" * 240),
        "time": of("(30,)", "<M8[s]", b"\0" * 240),
        "object": of("(30,)", "|O", b"\0" * 240),
        "object-pickle": saved(np.array([{}, None] * 15, dtype=object), allow_pickle=True),
        "strings": saved(np.array(["x"] * ROWS)),
        "structured": saved(np.zeros(ROWS, dtype=[("a", "f4"), ("b", "i4")])),
        "version-3": npy(f"{{'descr': [('a', '<f4')], {ends}(3,)}}\n", bytes(12), version=(3, 0)),
        "nan": saved(np.full((ROWS, 2), np.nan)),
        "infinity": saved(np.full((ROWS, 2), np.inf)),
        "beyond-float32": saved(np.full((ROWS, 2), 1e300)),
        "levels": saved(np.full((ROWS, 2), 2**40)),
        "negative-integers": saved(np.full((ROWS, 2), -5)),
        "few": saved(np.ones((3, 2))),
        "version-9": flip(real, 6, b"\x09\x09"),
        "version-2-length": npy("{}", version=(2, 0), length=2**32 - 1),
        "header-length": npy("{}", length=65_535),
        "magic-only": b"\x93NUMPY",
        "zeros": bytes(1000),
        "nothing": b"",
        "text": b"a,b\n1,2\n",
        "png": image_bytes(),
    }
    return {f"{name}.npy": content for name, content in files.items()}


HEADERS = [
    "",
    "\n",
    "{",
    "{'descr'",
    "(" * 9000,
    "[" * 3000 + "]" * 3000,
    "{'a': 1}",
    "1",
    "'x'",
    "None",
    "lambda: 0",
    "\0\0\0",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (3.5,)}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': 3}",
    "{'descr': '<f4', 'fortran_order': 1, 'shape': (3,)}",
    "{'descr': 'nonsense', 'fortran_order': False, 'shape': (3,)}",
    "{'descr': ('<f4', (1000000, 1000000)), 'fortran_order': False, 'shape': (3,)}",
    "{'descr': 7, 'fortran_order': 0}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (True,)}",
    '"' * 101,
    "'''",
    "\\\n" * 50,
    "1" * 5000,
    "-" * 5000 + "1",
]


def npz_files() -> dict[str, bytes]:
    x, y = saved(np.ones((ROWS, 2))), saved(np.arange(ROWS) % 3)
    whole = archive({"x.npy": x, "y.npy": y})
    pair = lambda second: archive({"x.npy": x, "y.npy": saved(second)})  # noqa: E731
    entry = whole.index(b"PK\x01\x02")
    files = {f"pair-{name}": content for name, content in cuts(whole, 10).items()}
    zeros = npy("{'descr': '|u1', 'fortran_order': False, 'shape': (34000000,)}\n", bytes(34_000_000))
    files |= {
        "bomb": archive({"x.npy": zeros}),
        "lying-size": flip(whole, entry + 24, b"\xff\xff\xff\x7f"),
        "encrypted": flip(whole, entry + 8, b"\x01"),
        "method": flip(whole, entry + 10, b"\x63\x00"),
        "method-lzma": flip(whole, entry + 10, b"\x0e\x00"),
        "offset": flip(whole, entry + 42, b"\xff\xff\xff\x7f"),
        "checksum": flip(whole, entry + 16, b"\1\2\3\4"),
        "body": flip(whole, 60, b"\xff" * 8),
        "name": flip(whole, 30, b"zzz"),
        "no-members": archive({}),
        "other-keys": archive({f"key{i}" * 50 + ".npy": x for i in range(50)}),
        "escape": archive({"../../evil.npy": x, "/etc/evil.npy": x}),
        "not-npy": archive({"x.npy": b"hello", "y.npy": b"hello"}),
        "empty-member": archive({"x.npy": b""}),
        "huge-header": archive({"x.npy": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,)}\n")}),
        "one-too-long": archive({"x.npy": x, "y.npy": saved(np.arange(ROWS + 1))}),
        "scalars": archive({"x.npy": saved(1.0), "y.npy": saved(1)}),
        "scalar-train": archive({"x_train.npy": saved(1.0), "x_test.npy": saved(1.0)}),
        "shapes": archive({"x_train.npy": x, "x_test.npy": saved(np.ones((3, 9)))}),
        "empty-train": archive({"x_train.npy": saved(np.ones((0, 2))), "x_test.npy": x}),
        "types": archive({"x_train.npy": x, "x_test.npy": saved(np.array([["a", "b"]] * 3))}),
        "half-labels": archive({"x_train.npy": x, "x_test.npy": x, "y_train.npy": y}),
        "split-labels": archive(
            {"x_train.npy": x, "x_test.npy": x, "y_train.npy": y, "y_test.npy": saved(np.arange(ROWS) + 0.5)}
        ),
        "scalar-label": archive({"x_train.npy": x, "x_test.npy": x, "y_train.npy": saved(1), "y_test.npy": saved(1)}),
        "label-scalar": pair(1),
        "label-pairs": pair(np.zeros((ROWS, 2), int)),
        "label-cube": pair(np.zeros((ROWS, 1, 1), int)),
        "label-nan": pair(np.full(ROWS, np.nan)),
        "label-half": pair(np.arange(ROWS) + 0.5),
        "label-one": pair(np.zeros(ROWS, int)),
        "label-complex": pair(np.arange(ROWS) * 1j),
        "label-time": pair(np.arange(ROWS).astype("M8[s]")),
        "label-void": pair(np.arange(ROWS).astype(np.int32).view("V4")),
        "label-records": pair(np.zeros(ROWS, dtype=[("a", "f4")])),
        "label-floats": pair(np.arange(ROWS) * 1.0),
        "label-infinite": pair(np.full(ROWS, np.inf)),
    }
    return {f"{name}.npz": content for name, content in files.items()}


def image_folders() -> dict[str, dict[str, bytes]]:
    good = {f"{i}.png": image_bytes() for i in range(10)}
    kinds = {"png": "png", "jpg": "jpeg", "bmp": "bmp", "gif": "gif", "tif": "tiff", "webp": "webp", "ppm": "ppm"}
    bad = {
        f"{kind}-{part}": (f"x.{kind}", image_bytes((32, 32), name)[:part])
        for kind, name in kinds.items()
        for part in (10, 60)
    }
    bad |= {f"{kind}-text": (f"x.{kind}", b"hello, I am text\n" * 9) for kind in kinds}
    bad |= {f"{kind}-empty": (f"x.{kind}", b"") for kind in ("png", "jpg", "gif")}
    png = image_bytes()
    bad |= {
        "no-width": ("x.png", blank_png(0, 100)),
        "wide": ("x.png", flip(png, 16, b"\x7f\xff\xff\xff\x7f\xff\xff\xff")),
        "crc": ("x.png", flip(png, 29, b"\0\0\0\0")),
        "body": ("x.png", flip(png, 45, b"\xff" * 8)),
        "sixteen-bits": ("x.png", image_bytes(dtype=np.uint16)),
        "floats": ("x.tif", image_bytes(kind="tiff", dtype=np.float32)),
        "ppm-size": ("x.ppm", b"P6\n99999 99999\n255\n" + bytes(99)),
        "ppm-huge": ("x.ppm", b"P6\n" + b"9" * 50 + b" 1\n255\n"),
        "bmp-negative": ("x.bmp", flip(image_bytes(kind="bmp"), 18, b"\xff\xff\xff\xff\xff\xff\xff\x7f")),
        "class": ("one/x.png", png),
    }
    folders = {f"{name}": {**good, file: content} for name, (file, content) in bad.items()}
    large, colour = blank_png(13_000, 13_000), blank_png(3_000, 3_000, 2)
    return folders | {
        "bombs": {f"{i}.png": large for i in range(10)},
        "colour-bombs": {f"{i}.png": colour for i in range(10)},
        "bombs-of-classes": {f"{'ab'[i % 2]}/{i}.png": large for i in range(10)},
        "one-class": {f"a/{i}.png": png for i in range(10)},
        "only-damaged": {f"{i}.png": b"\x89PNG\r\n\x1a\n" for i in range(10)},
        "tables": {f"{i}.csv": b"a,b\n1,2\n" for i in range(3)},
        "binary": {"a.bin": b"\0\1\2", "b.dat": b"\0" * 9},
        "no-files": {},
        "hidden": {".a.png": png, ".b/c.png": png},
        "empty-text": {"a.txt": b"", "b.txt": b""},
        "short-text": {"a.txt": b"hello"},
        "empty-split": {"train/a.png": png, "test/notes": b"", "validation/a.txt": b"x"},
        "twice": {"train/a.png": png, "val/a.png": png, "validation/a.png": png},
    }
