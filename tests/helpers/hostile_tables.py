"""Damaged, lying and oversized tables."""

import bz2
import gzip
import io
import struct

import numpy as np
import polars as pl

from helpers.hostile_arrays import ROWS, archive, cuts, flip, image_bytes

__all__ = ["binary_tables", "csv_files", "json_files", "small_frame", "table_bytes"]


ZSTANDARD = b"\x28\xb5\x2f\xfd"


def table_bytes(kind: str, frame: pl.DataFrame | None = None, **options) -> bytes:
    out = io.BytesIO()
    frame = small_frame() if frame is None else frame
    getattr(frame, f"write_{kind}")(out, **options)
    return out.getvalue()


def small_frame() -> pl.DataFrame:
    return pl.DataFrame({"a": range(ROWS), "b": [i / 7 for i in range(ROWS)], "c": ["x", "y", "z"] * (ROWS // 3)})


def csv_files() -> dict[str, bytes]:
    rows = b"a,b\n" + b"1,2\n" * ROWS
    texts = [f"{i} is a text of its own" for i in range(ROWS)]
    files = {
        "nothing": b"",
        "newline": b"\n",
        "newlines": b"\n" * 1000,
        "spaces": b"   \n  \n",
        "zero": b"\0",
        "zeros": bytes(1000),
        "header": b"a,b\n",
        "header-only": b"a,b",
        "numbers": b"1,2\n3,4\n5,6\n",
        "ragged": b"a,b\n1,2\n1,2,3\n",
        "ragged-late": rows + b"1,2,3,4\n",
        "distinct": b"a\n" + b"".join(b"%s\n" % text.encode() for text in texts),
        "missing-all": b"a,b\n" + b",\n" * ROWS,
        "twice": b"a,a\n" + b"1,2\n" * ROWS,
        "latin": b"a,b\n" + b"caf\xe9,2\n" * ROWS,
        "utf-16": rows.decode().encode("utf-16"),
        "utf-16-le": rows.decode().encode("utf-16-le"),
        "utf-32": rows.decode().encode("utf-32"),
        "surrogates": b"a,b\n" + b"\xed\xa0\x80,2\n" * ROWS,
        "bom": b"\xef\xbb\xbf",
        "boms": b"\xef\xbb\xbf" * 9,
        "zero-inside": b"a,b\n" + b"1,\x002\n" * ROWS,
        "zero-header": b"a\0,b\n" + b"1,2\n" * ROWS,
        "quote": b'a,b\n"1,2\n' * ROWS,
        "quote-header": b'"a,b\n' + b"1,2\n" * ROWS,
        "quotes": b'"' * 999,
        "returns": b"a,b\r1,2\r3,4\r",
        "return-inside": b"a\rb,c\n1,2\n",
        "wide-header": b"a" * 8_000_000 + b",b\n1,2\n",
        "many-columns": b",".join(b"c%d" % i for i in range(1_000_000)) + b"\n1\n",
        "commas": b"," * 8_000_000,
        "wide-field": b"a\n" + b"1\n" * ROWS + b"x" * 5_000_000 + b"\n",
        "wide-text": b"a\n" + b"x" * 5_000_000 + b"\n" + b"y\n",
        "numbers-as-text": b"a,b\n" + b"1,2\n" * ROWS + b"oops,2\n" + b"".join(b"%d,2\n" % i for i in range(99)),
        "infinity": rows + b"inf,2\n",
        "beyond-float32": rows + b"1e300,2\n",
        "beyond-float64": rows + b"1e999,2\n",
        "long-number": rows + b"9" * 5000 + b",2\n",
        "thousands": b"a;b\n" + b"1,234;2\n" * ROWS,
        "separators": b"a,b\n" + b'"1,234",2\n"2,345",3\n' * ROWS,
        "decimals": b"a;b\n" + b"1,5;2\n1,234.5;2\n" * ROWS,
        "escape-codes": b"a,\x1b]0;owned\x07\n" + b"".join(b"1,%d\n" % i for i in range(99)) + b"1,oops\n",
        "escape-values": b"a,b\n"
        + b"1,2\n" * 9 * ROWS
        + b"\x1b[31mred\x1b[0m,3\n"
        + b"".join(b"%d,2\n" % i for i in range(99)),
        "png": image_bytes(),
        "gzip": gzip.compress(rows),
        "zip": archive({"a.csv": rows}),
        "json": b'[{"a": 1}]',
        "html": b"<html><body>404</body></html>",
        "few": b"a,b\n1,2\n3,4\n",
    }
    packed = {
        "cut.csv.gz": gzip.compress(rows)[:-9],
        "header.csv.gz": gzip.compress(rows)[:5],
        "sum.csv.gz": gzip.compress(rows)[:-8] + bytes(8),
        "body.csv.gz": flip(gzip.compress(rows * 50), 20, b"\xff" * 9),
        "plain.csv.gz": rows,
        "nothing.csv.gz": b"",
        "empty.csv.gz": gzip.compress(b""),
        "bomb.csv.gz": gzip.compress(bytes(34_000_000), 1),
        "bombs.csv.gz": gzip.compress(b"a,b\n" + b"1,2\n" * 10**7, 1),
        "plain.csv.bz2": rows,
        "cut.csv.bz2": bz2.compress(rows)[:-9],
        "bomb.csv.bz2": bz2.compress(bytes(10**7)) * 4,
        "plain.csv.zst": rows,
        "nothing.csv.zst": b"",
        "magic.csv.zst": ZSTANDARD,
        "rle.csv.zst": zst_bomb(2000),
        "plain.json.gz": b"[]",
        "cut.jsonl.gz": gzip.compress(b'{"a": 1}\n' * 99)[:-20],
        "double.csv.gz.gz": gzip.compress(gzip.compress(rows)),
    }
    return {f"{name}.csv": content for name, content in files.items()} | packed


def zst_bomb(blocks: int) -> bytes:
    """A Zstandard frame whose blocks are each one byte, repeated 128 KiB times."""
    block = lambda last: ((2**17 << 3) | (1 << 1) | last).to_bytes(3, "little") + b"0"  # noqa: E731
    return ZSTANDARD + bytes([0x00, 0x70]) + block(0) * (blocks - 1) + block(1)


def json_files() -> dict[str, bytes]:
    many = b",".join(b'{"k%d": 1}' % i for i in range(3_000))
    files = {
        "nothing": b"",
        "list": b"[]",
        "records-none": b"[{}, {}]",
        "cut": b'[{"a": 1}, {"a": ',
        "comma": b'[{"a": 1},]',
        "nan": b'[{"a": NaN}]',
        "nested": b'[{"a": {"b": 1}}, {"a": {"b": 2}}]',
        "mixed": b'[{"a": 1}, {"a": "x"}, {"a": [1]}]',
        "null-values": b'[{"a": null}, {"a": null}]',
        "deep": b'[{"a":' + b"[" * 1000 + b"]" * 1000 + b"}]",
        "deeper": b'[{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}]",
        "deep-objects": b'[{"a":' * 500 + b"1" + b"}]" * 500,
        "zeros": bytes(99),
        "latin": b'[{"a": "caf\xe9"}]',
        "long": b'[{"a": ' + b"9" * 5000 + b"}]",
        "sparse": b"[" + many + b"]",
    }
    lines = {
        "nothing": b"",
        "cut": b'{"a": 1}\n{"a":',
        "deep": b'{"a":' * 1000 + b"1" + b"}" * 1000,
        "deeper": b'{"a":' * 100_000,
        "mixed": b'{"a": 1}\n{"a": [1]}\n',
        "nested": b'{"a": {"b": 1}}\n' * 9,
        "zeros": bytes(99),
        "latin": b'{"a": "caf\xe9"}\n',
    }
    return {f"{k}.json": v for k, v in files.items()} | {f"{k}.jsonl": v for k, v in lines.items()}


def binary_tables() -> dict[str, bytes]:
    parquet, arrow, stream = table_bytes("parquet"), table_bytes("ipc"), table_bytes("ipc_stream")
    foot = len(parquet) - 8 - int.from_bytes(parquet[-8:-4], "little")
    files = {f"{name}.parquet": content for name, content in cuts(parquet, 4).items()}
    files |= {f"{name}.feather": content for name, content in cuts(arrow, 4).items()}
    files |= {f"ones-{at}.parquet": flip(parquet, at, b"\xff" * 4) for at in (foot + 2, foot + 9, len(parquet) - 8)}
    files |= {f"lying-{at}.parquet": flip(parquet, at, b"\xff\xff\xff\xff\x7f") for at in (foot + 4, foot + 30)}
    equal = pl.DataFrame({"a": np.zeros(20_000_000), "b": pl.repeat("x", 20_000_000, eager=True)})
    long = pl.DataFrame({"a": pl.repeat("x" * 10**6, 100, eager=True)})
    return files | {
        "length.parquet": b"PAR1" + b"\xff" * 4 + b"PAR1",
        "thrift.parquet": b"PAR1" + b"\x1c" * 5000 + struct.pack("<I", 5000) + b"PAR1",
        "lists.parquet": b"PAR1" + b"\x19\xfc\xff\xff\xff\xff\x0f" * 99 + struct.pack("<I", 693) + b"PAR1",
        "length.arrow": flip(stream, 4, b"\xff\xff\xff\x7f"),
        "lying.arrow": flip(arrow, len(arrow) - 10, b"\xff\xff\xff\x7f"),
        "rows.parquet": table_bytes("parquet", small_frame().head(0)),
        "few.parquet": table_bytes("parquet", small_frame().head(2)),
        "nulls.parquet": table_bytes("parquet", pl.DataFrame({"a": [None] * 9})),
        "lists-column.parquet": table_bytes("parquet", pl.DataFrame({"a": [[1, 2]] * 40})),
        "records.arrow": table_bytes("ipc", pl.DataFrame({"a": [{"b": 1}] * 40})),
        "bytes.arrow": table_bytes("ipc", pl.DataFrame({"a": [b"x"] * 40})),
        "no-columns.arrow": table_bytes("ipc", pl.DataFrame()),
        "equal.parquet": table_bytes("parquet", equal),
        "long.parquet": table_bytes("parquet", long),
        "null-rows.parquet": table_bytes("parquet", pl.DataFrame({"a": pl.repeat(None, 10**7, eager=True)})),
    }
