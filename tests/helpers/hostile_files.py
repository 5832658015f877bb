"""Hostile weights, metrics and checkpoints: mutations of a good run."""

import json
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from helpers.hostile_configs import WEIGHTS, Mutation, folder, inf, link, nan, pipe, put, seal, sparse, values


def header(entries: Any, data: bytes = b"", size: int | None = None) -> bytes:
    content = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(content) if size is None else size) + content + data


def tensors(change: Callable[[dict[str, torch.Tensor], str], dict[str, torch.Tensor]]) -> Mutation:
    """Write the weights after a change; the second argument is the name of the largest."""

    def mutate(path: Path) -> None:
        found = load_file(path / WEIGHTS)
        largest = max(found, key=lambda name: found[name].numel() * found[name].is_floating_point())
        save_file(change(found, largest), path / WEIGHTS)
        seal(path / WEIGHTS)

    return mutate


def one(**changes: Any) -> bytes:
    return header({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}, b"\0" * 8)


OF_WEIGHTS = [
    ("empty", put(WEIGHTS, b"")),
    ("short", put(WEIGHTS, b"\1\0\0")),
    ("zeros", put(WEIGHTS, b"\0" * 1000)),
    ("text", put(WEIGHTS, "weights " * 100)),
    ("pickle", put(WEIGHTS, pickle.dumps({"w": [1.0]}))),
    ("no header", put(WEIGHTS, header({}))),
    ("header beyond the end", put(WEIGHTS, header({}, size=10**6))),
    ("header of 2^63", put(WEIGHTS, header({}, size=2**63))),
    ("header of 2^64", put(WEIGHTS, header({}, size=2**64 - 1))),
    ("header of 20 MB", put(WEIGHTS, header(b"{" + b" " * 20_000_000 + b"}"))),
    ("header not JSON", put(WEIGHTS, header(b"{w}"))),
    ("header not UTF-8", put(WEIGHTS, header(b'{"\xff": 1}'))),
    ("header a list", put(WEIGHTS, header([1]))),
    ("header deep", put(WEIGHTS, header(b'{"w": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"))),
    ("dtype", put(WEIGHTS, one(dtype="F33"))),
    ("shape", put(WEIGHTS, one(shape=[3]))),
    ("negative shape", put(WEIGHTS, one(shape=[-2]))),
    ("shape of 10^18", put(WEIGHTS, one(shape=[10**18]))),
    ("shape that overflows", put(WEIGHTS, one(shape=[2**33, 2**33]))),
    ("offsets beyond", put(WEIGHTS, one(data_offsets=[0, 10**12]))),
    ("offsets reversed", put(WEIGHTS, one(data_offsets=[8, 0]))),
    ("offsets negative", put(WEIGHTS, one(data_offsets=[-8, 0]))),
    ("no offsets", put(WEIGHTS, header({"w": {"dtype": "F32", "shape": [2]}}))),
    ("10^5 empty tensors", put(WEIGHTS, header(
        {f"w{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(100_000)}
    ))),
    ("sizes 0 and 10^12", put(WEIGHTS, header({"w": {"dtype": "F32", "shape": [0, 10**12], "data_offsets": [0, 0]}}))),
    ("missing", tensors(lambda t, w: {k: v for k, v in t.items() if k != w})),
    ("unknown", tensors(lambda t, w: {**t, "\x1b[2J\u202e": t[w].clone()})),
    ("long name", tensors(lambda t, w: {**t, "x\n" * 10_000: t[w].clone()})),
    ("renamed", tensors(lambda t, w: {k + "." * (k == w): v for k, v in t.items()})),
    *((f"values {name}", tensors(lambda t, w, change=change: {**t, w: change(t[w])})) for name, change in [
        ("nan", lambda v: v * nan),
        ("inf", lambda v: v + inf),
        ("one nan", lambda v: torch.where(torch.arange(v.numel()).view(v.shape) == 0, nan, v)),
        ("complex", lambda v: v.to(torch.complex64)),
        ("half", lambda v: v.half()),
        ("bfloat16", lambda v: v.bfloat16()),
        ("double", lambda v: v.double()),
        ("float8", lambda v: v.to(torch.float8_e4m3fn)),
        ("integers", lambda v: v.long()),
        ("bool", lambda v: v > 0),
        ("flat", lambda v: v.flatten()),
        ("scalar", lambda v: v.sum()),
        ("empty", lambda v: v[:0]),
        ("larger", lambda v: torch.cat([v, v])),
    ]),
    ("1 TB of zeros", lambda path: ((path / "model.sha256").unlink(), sparse(WEIGHTS, 2**40)(path))),
    ("pipe", pipe(WEIGHTS)),
    ("folder", folder(WEIGHTS)),
    ("device", link(WEIGHTS, "/dev/zero")),
    ("link to itself", link(WEIGHTS, WEIGHTS)),
    ("checksum", lambda path: (path / "model.sha256").write_text("0" * 64)),
    ("checksum pipe", pipe("model.sha256")),
]  # fmt: skip

HEAD = "step,time,train_nats,validation_nats,learning_rate,gradient_norm\n"
METRICS = [
    (f"metrics {name}", put("metrics.csv", content))
    for name, content in [
        ("empty", ""),
        ("without head", "1,2,3,4,5,6\n"),
        ("of another head", "step,loss\n1,2\n"),
        ("binary", b"\xff\0" * 100),
        ("in UTF-16", HEAD.encode("utf-16")),
        ("with a cell less", HEAD + "1,2,3,4,5\n"),
        ("with a cell more", HEAD + "1,2,3,4,5,6,7\n"),
        ("of words", HEAD + "1,2,3,four,5,6\n"),
        ("of no step", HEAD + ",2,3,4,5,6\n"),
        ("of a broken step", HEAD + "1.5,2,3,4,5,6\n"),
        ("of a negative step", HEAD + "-1,2,3,4,5,6\n"),
        ("that go back", HEAD + "2,2,3,4,5,6\n1,2,3,4,5,6\n"),
        ("that stand", HEAD + "2,2,3,4,5,6\n2,2,3,4,5,6\n"),
        ("with underscores", HEAD + "1_0,2,3,4,5,6\n"),
        ("with blanks", HEAD + " 1, 2, 3, 4, 5, 6\n"),
        ("hexadecimal", HEAD + "0x1,2,3,4,5,6\n"),
        ("quoted", HEAD + '"1","2","3","4","5","6"\n'),
        ("with an open quote", HEAD + '"1,2,3,4,5,6\n' * 1000),
        ("with CRLF", HEAD.replace("\n", "\r\n") + "1,2,3,4,5,6\r\n"),
        ("with an empty line", HEAD + "\n1,2,3,4,5,6\n"),
        ("of digits", HEAD + "1" * 10**6 + ",2,3,4,x,6\n"),
        ("of one line", "x" * 5_000_000),
        ("of exponents", HEAD + "1,1e,3,4,5,6\n"),
    ]
] + [
    ("metrics of 1 TB", lambda path: ((path / "metrics.sha256").unlink(), sparse("metrics.csv", 2**40)(path))),
    ("metrics pipe", pipe("metrics.csv")),
    ("metrics folder", folder("metrics.csv")),
    ("metrics device", link("metrics.csv", "/dev/zero")),
    ("metrics checksum", lambda path: (path / "metrics.sha256").write_text("0")),
]  # fmt: skip


def state(change: Callable[[dict[str, Any]], Any] | bytes) -> Mutation:
    """Change the trainer's state in both checkpoints; the state as bytes is written as it is."""

    def mutate(path: Path) -> None:
        for file in (path / "checkpoints").glob("*.safetensors"):
            with safe_open(file, "pt") as opened:
                whole = json.loads(opened.metadata()["state"])
                found = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            text = change.decode() if isinstance(change, bytes) else json.dumps(change(whole))
            save_file(found, file, {"state": text})
            seal(file)

    return mutate


def trainer(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], suffix: str = "") -> Mutation:
    """Change the tensors of both checkpoints."""

    def mutate(path: Path) -> None:
        for file in (path / "checkpoints").glob("*.safetensors"):
            with safe_open(file, "pt") as opened:
                metadata = opened.metadata()
                found = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            save_file(change(found), file, metadata)
            seal(file)

    return mutate


def only(prefix: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Mutation:
    return trainer(lambda t: {k: change(v).contiguous() if k.startswith(prefix) else v for k, v in t.items()})


def without(prefix: str) -> Mutation:
    return trainer(lambda t: {k: v for k, v in t.items() if not k.startswith(prefix)})


def set_state(**changes: Any) -> Mutation:
    return state(lambda whole: {**whole, **changes})


def checkpoints(content: bytes) -> Mutation:
    def mutate(path: Path) -> None:
        for file in (path / "checkpoints").glob("*.safetensors"):
            file.write_bytes(content)
            seal(file)

    return mutate


RESUMED = [
    ("state null", state(b"null")),
    ("state list", state(b"[]")),
    ("state empty", state(b"")),
    ("state not JSON", state(b"{step: 1}")),
    ("state deep", state(b"[" * 100_000)),
    ("state of digits", state(b'{"step": ' + b"9" * 10**5 + b"}")),
    ("state without a field", state(lambda s: {k: v for k, v in s.items() if k != "worse"})),
    *((f"state {key}={value}", set_state(**{key: value})) for key, value in [
        ("step", -1), ("step", "4"), ("step", 4.0), ("step", True), ("step", 10**30), ("step", None), ("step", 3),
        ("elapsed", -1), ("elapsed", nan), ("elapsed", inf), ("elapsed", "1"), ("elapsed", None),
        ("best_step", 10**6), ("best_step", -2), ("best_step", 1.5), ("best_nats", "x"), ("best_train", []),
        ("worse", -1), ("worse", 0.5), ("history", None), ("history", "x"), ("history", [1]), ("history", [{}]),
        ("history", [{"step": 1}]), ("other", 1),
    ]),
    ("no tensors", checkpoints(header({"__metadata__": {"state": "{}"}}))),
    ("checkpoint empty", checkpoints(b"")),
    ("checkpoint text", checkpoints(b"text" * 100)),
    ("checkpoint header", checkpoints(header({}, size=2**63))),
    ("no model", without("model.")),
    ("no average", without("average.")),
    ("no scores", without("best_scores")),
    ("no sums", without("sums")),
    ("a tensor more", trainer(lambda t: {**t, "model.other": torch.zeros(1)})),
    ("average more", trainer(lambda t: {**t, "average.other": torch.zeros(1)})),
    ("model flat", only("model.", lambda v: v.flatten()[None])),
    ("average scalar", only("average.", lambda v: v.sum()[None])),
    ("sums of one", only("sums", lambda v: v[:2])),
    ("optimizer's name", trainer(lambda t: {**t, "optimizer.0.x.y": torch.zeros(1)})),
    ("optimizer's short name", trainer(lambda t: {**t, "optimizer.0.1": torch.zeros(1)})),
    ("checkpoints lost", lambda path: shutil.rmtree(path / "checkpoints")),
    ("checkpoints a file", lambda path: (shutil.rmtree(path / "checkpoints"), put("checkpoints", "x")(path))),
    *((f"settings {name}", mutate) for key, others in {
        "training.other": [1],
        "training.learning_rate": ["x", None, -1, nan],
        "training.batch_size": [0, 1.5, "x"],
        "training.optimizer": ["other", 3],
        "training.warmup": [-1, "x"],
        "training.precision": ["other"],
        "training.ema_decay": [1.0, "x"],
        "training.seed": [1],
        "options.width": [10**9, 16],
        "options.depth": [10**9],
        "options.other": [1],
        "spec.event_shape": [[10**9]],
        "model": ["vae", "gan", None],
        "data": ["other"],
    }.items() for name, mutate in values(key, *others)),
    ("metrics", put("metrics.csv", "x")),
    ("lock a folder", lambda path: (path / ".lock").mkdir()),
    ("lock a link", lambda path: (path / ".lock").symlink_to(path.parent / "mine")),
]  # fmt: skip
