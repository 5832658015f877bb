"""Hostile config.yaml files: mutations of a good run, each with the right SHA-256."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from loglik import schema

Mutation = Callable[[Path], None]
WEIGHTS = "model.safetensors"
nan, inf = float("nan"), float("inf")


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
