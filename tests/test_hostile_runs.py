"""Runs from strangers: each is refused in one line with exit status 2, in little time and memory, and writes nothing.

A mutation changes a good run as an attacker could, with right SHA-256s, since these protect against accidents only.
"""

import hashlib
import json
import os
import pickle
import resource
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from helpers.commands import refused, well
from loglik import schema
from loglik.training import fit

WEIGHTS = "model.safetensors"
CPU_SECONDS, BYTES = 2.0, 2**30
Mutation = Callable[[Path], None]
nan, inf = float("nan"), float("inf")


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> tuple[Path, list]:
    """A flow of a table with a category, with two checkpoints, and the command that resumes it."""
    root = tmp_path_factory.mktemp("hostile")
    rows = [f"{i % 17 * 0.37:.2f},{'xyz'[i % 3]}" for i in range(60)]
    (root / "t.csv").write_text("\n".join(["a,k", *rows]))
    fit("flow", root / "t.csv", out=root / "run", max_steps=4, width=8, depth=1, validate_every=2)
    return root / "run", ["fit", root / "t.csv", "--model", "flow", "--resume", "--out"]


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    """A Transformer of a text."""
    root = tmp_path_factory.mktemp("hostile-text")
    (root / "t.txt").write_text("the cat sat on the mat. " * 60)
    options = {"max_steps": 1, "width": 16, "depth": 1, "window": 16, "tokenizer": "characters"}
    fit("autoregressive", root / "t.txt", out=root / "run", **options)
    return root / "run"


def seal(file: Path) -> None:
    """Write the SHA-256 beside a file."""
    line = f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n"
    file.with_suffix(".sha256").write_text(line if "step-" not in file.name else line[:64])


def put(name: str, content: bytes | str) -> Mutation:
    def mutate(path: Path) -> None:
        (path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        seal(path / name)

    return mutate


def config(text: bytes | str) -> Mutation:
    return put("config.yaml", text)


def pipe(name: str) -> Mutation:
    def mutate(path: Path) -> None:
        (path / name).unlink()
        os.mkfifo(path / name)

    return mutate


def folder(name: str) -> Mutation:
    def mutate(path: Path) -> None:
        (path / name).unlink()
        (path / name).mkdir()

    return mutate


def link(name: str, target: str) -> Mutation:
    def mutate(path: Path) -> None:
        (path / name).unlink()
        (path / name).symlink_to(target)

    return mutate


def sparse(name: str, size: int) -> Mutation:
    def mutate(path: Path) -> None:
        with (path / name).open("wb") as file:
            file.truncate(size)

    return mutate


def values(key: str, *others: Any) -> list[tuple[str, Mutation]]:
    """Mutations of config.yaml that put each value at a key such as `spec.levels`; `...` deletes the key."""

    def mutation(value: Any) -> Mutation:
        def mutate(path: Path) -> None:
            whole = yaml.load((path / "config.yaml").read_text(), Loader=schema.Loader)
            *parents, last = key.split(".")
            inner = whole
            for parent in parents:
                inner = inner[int(parent) if parent.isdigit() else parent]
            if value is ...:
                del inner[last]
            else:
                inner[int(last) if last.isdigit() else last] = value
            config(yaml.dump(whole, Dumper=schema.Dumper))(path)

        return mutate

    return [(f"{key}={str(value)[:30]}", mutation(value)) for value in others]


def doubling(n: int, first: str = "97 97") -> str:
    return " ".join([first, *(f"{256 + i} {256 + i}" for i in range(n))])


CONFIG = [
    *(case for key in ("format", "model", "options", "data", "source", "label", "spec", "training", "versions")
      for case in values(key, ...)),
    *(case for key in ("kind", "event_shape", "levels", "classes", "columns", "label")
      for case in values(f"spec.{key}", ...)),
    *values("format", 0, -1, 2, 1.5, "1", True, None, [1], 10**30),
    *values("model", 3, [], "gan", "", "flow:", "flow:other", "vae", "independent", "a" * 70_000, "../../etc", None),
    *values("options", None, [], "x", 3, {}, {"size": "large"}, {1: 2}, {"other": 1}, {"x" * 10**5: 1}),
    *values("options.width", 10**9, 10**30, -1, 0, 1.5, nan, "8", [8], {}, None, True, 9, 30_000, 65_536),
    *values("options.depth", 10**5, 10**9, 10**30, -1, 0, 2, 200),
    *values("options.bins", 10**9, 60_000, -1, "x"),
    *values("options.size", "huge", 3, None),
    *values("options.dropout", nan, inf, -1, 1.0, "x"),
    *values("data", None, 3, [], {}),
    *values("source", "~", "~root", "relative/file.csv", ".", "..", "", 3, [], {"a": 1}),
    *values("label", 3, [], True),
    *values("text", "x", [], 3, {"tokenizer": "gpt"}, {"vocabulary": "many"}, {"other": 1}, {"window": 0}),
    *values("text", {"window": [1]}, {"split": "50/50/50"}),
    *values("spec", None, [], {}, "x", 3),
    *values("spec.kind", "video", 3, None, "text", "image", []),
    *values("spec.event_shape", [], "ab", 3, None, [0], [-1], [1.5], [True], [10**9], [10**9] * 8, [2] * 100),
    *values("spec.event_shape", [2**31 - 1] * 2, [10**30], [[2]], [3], [1, 2], ["2"], [2**24], [70_000]),
    *values("spec.levels", 0, -1, 10**30, "x", 1.5, nan, True, 2**24),
    *values("spec.classes", "abc", [1], None, [["a"]], {}),
    *values("spec.columns", None, [], [1], [{}], [{"name": "a"}], "ab", {}),
    *values("spec.columns.0.name", 3, None, "a" * 70_000),
    *values("spec.columns.0.type", "other", 3, None, "categorical"),
    *values("spec.columns.1.categories", "xyz", 3, None, [1], [], list("ab"), [str(i) for i in range(20_000)]),
    *values("spec.columns.0.other", 1),
    *values("spec.tokenizer", 3, [], {}, {"kind": "other"}, {"kind": "bytes", "other": 1}, "bytes"),
    *values("spec.padded", "yes", 3, None),
    *values("spec.other", 1),
    *values("other", 1),
    *values("training", None, [], {}, "x", 3),
    *values("training.seed", ..., -1, "0", 1.5, 10**30, None, [], True),
    *values("training.precision", ..., None, 3, []),
    *values("training.batch_size", [], {}),
    *values("versions", None, [], "x", {"loglik": 3}),
    *values("steps", -1, "x", 1.5, 10**30, None, []),
    *values("train_seconds", -1, nan, inf, "x", None),
    ("empty", config("")),
    ("null", config("null")),
    ("list", config("[]")),
    ("text", config("hello")),
    ("unclosed", config("a: [1")),
    ("binary", config(b"\xff\xfe\x00\x01")),
    ("utf-16", config("format: 1".encode("utf-16"))),
    ("nul", config(b"format: 1\0")),
    ("escape", config("\x1b]0;owned\x07: 1")),
    ("bidi", config("'\u202eowned': 1")),
    ("zeros", config(b"\0" * 10**6)),
    ("laughs", config("k0: &k0 [x]\n" + "".join(f"k{i + 1}: &k{i + 1} [*k{i}, *k{i}]\n" for i in range(40)))),
    ("loop", config("&a [*a]")),
    ("loop of keys", config("&a {b: *a}")),
    ("deep lists", config("[" * 100_000)),
    ("deep mappings", config("{a: " * 100_000)),
    ("deep and closed", config("a: " + "[" * 5000 + "]" * 5000)),
    ("deep by indent", config("\n".join(" " * i + "a:" for i in range(1000)))),
    ("tag", config("format: !!python/object/apply:os.getcwd []")),
    ("tag of a name", config("format: !!python/name:os.system")),
    ("binary tag", config("format: !!binary aGVsbG8=")),
    ("set", config("!!set {format, model}")),
    ("own tag", config("!run {format: 1}")),
    ("long scalar", config("format: " + "9" * 10**6)),
    ("long key", config("x" * 10**6 + ": 1")),
    ("complex key", config("? [a, b]\n: 1")),
    ("key of mapping", config("? {a: b}\n: 1")),
    ("two documents", config("format: 1\n---\nformat: 1\n")),
    ("directive", config("%YAML 9.9\n---\nformat: 1\n")),
    ("tab", config("a:\n\t- b")),
    ("date", config("format: 2026-13-45")),
    ("sexagesimal", config("format: " + ":".join(["1"] * 1000))),
    ("hexadecimal", config("format: 0x" + "f" * 10**5)),
    ("merge", config("<<: 1")),
    ("numbers", config("[" + "1," * 200_000 + "1]")),
    ("many keys", config("\n".join(f"k{i}: 1" for i in range(100_000)))),
    ("8 MB", sparse("config.yaml", 2**23 + 1)),
    ("1 TB", sparse("config.yaml", 2**40)),
    ("pipe", pipe("config.yaml")),
    ("folder", folder("config.yaml")),
    ("device", link("config.yaml", "/dev/zero")),
    ("broken link", link("config.yaml", "absent")),
    ("link to itself", link("config.yaml", "config.yaml")),
    ("another's file", link("config.yaml", "/etc/hostname")),
    ("own checksum", lambda path: (path / "config.sha256").write_text("0" * 64)),
    ("empty checksum", lambda path: (path / "config.sha256").write_text("")),
    ("large checksum", sparse("config.sha256", 2**40)),
    ("checksum pipe", pipe("config.sha256")),
    ("checksum folder", folder("config.sha256")),
]  # fmt: skip

TOKENIZERS = [
    *values("spec.tokenizer.characters", "", "aa", "ba", 3, None, [], "a" * 70_000, "abc"),
    *values("spec.tokenizer.kind", "other", 3, None, "bytes", "bpe"),
    *values("spec.tokenizer", {"kind": "characters"}, {"kind": "bpe", "merges": 3}),
    *(
        (f"merges {name}", values("spec.tokenizer", {"kind": "bpe", "merges": merges})[0][1])
        for name, merges in [
            ("that double", doubling(40)),
            ("that double once more", doubling(10_000)),
            ("ahead", "256 256"),
            ("negative", "-1 3"),
            ("odd", "1 2 3"),
            ("of words", "a b"),
            ("of many digits", "9" * 10**6 + " 1"),
            ("in another script", "٣ ٣"),
            ("too many", "1 2 " * 70_000),
            ("few", "97 98"),
        ]
    ),
    *values("spec.event_shape", [10**9], [2**24], [0], [16, 16]),
    *values("spec.levels", None, 2**24, 10**30, 3),
    *values("spec.padded", True),
    *values("options.heads", 10**9, 7, 0, 60_000),
    *values("options.width", 10**9, 65_536, 17),
    *values("options.depth", 10**9, 60_000),
]


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


def snapshot(root: Path, but: Path) -> dict[Path, bytes | None]:
    """The files and folders below a root, without a folder's."""
    return {p: p.read_bytes() if p.is_file() else None for p in root.rglob("*") if but != p and but not in p.parents}


@pytest.fixture
def refuse(tmp_path, monkeypatch) -> Callable[..., str]:
    """Copy a run, mutate it and run a command, which must refuse it."""
    for name in ("home", "cache", "here"):
        (tmp_path / name).mkdir()
    (tmp_path / "mine").write_text("mine")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LOGLIK_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path / "here")
    path = tmp_path / "run"

    def check(good: Path, mutate: Mutation, *words: object) -> str:
        shutil.copytree(good, path)
        mutate(path)
        before, peak = snapshot(tmp_path, path), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.process_time()
        line = refused(*words, path)
        assert time.process_time() - start < CPU_SECONDS
        assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * 1024 < BYTES
        assert snapshot(tmp_path, path) == before
        assert line[:-1].isprintable() and len(line) < 1200
        return line

    return check


def cases(table: list[tuple[str, Mutation]]) -> Any:
    return pytest.mark.parametrize("mutate", [pytest.param(mutate, id=name) for name, mutate in table])


@cases([*CONFIG, *OF_WEIGHTS, *METRICS])
def test_a_hostile_run_is_refused(mutate, table, refuse) -> None:
    refuse(table[0], mutate, "sample", "-n", 1)


@cases(TOKENIZERS)
def test_a_hostile_text_run_is_refused(mutate, text, refuse) -> None:
    refuse(text, mutate, "sample", "-n", 1)


@cases(RESUMED)
def test_a_hostile_run_is_not_resumed(mutate, table, refuse) -> None:
    refuse(table[0], mutate, *table[1])


def test_the_good_runs_are_read(table, text, tmp_path) -> None:
    for good in (table[0], text):
        well("sample", shutil.copytree(good, tmp_path / good.parent.name), "-n", 1)


def test_the_errors_name_the_key(table, refuse, tmp_path) -> None:
    for key, value, words in [
        ("spec.event_shape", [2**40], "at spec.event_shape[0]: Expected 'int' <= 2147483648"),
        ("steps", "x", "at steps: Expected 'int', got 'str'"),
        ("spec.columns.1.type", 3, "at spec.columns[1].type"),
        ("other", 1, "it contains unknown field 'other'"),
    ]:
        line = refuse(table[0], values(key, value)[0][1], "sample")
        assert words in line
        shutil.rmtree(tmp_path / "run")
