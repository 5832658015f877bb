"""A run's files and its commands under random damage: a run, or one line that names the file, and never another error.

The files have right SHA-256s, since these protect against accidents only.
"""

import hashlib
import shutil
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import loglik
from helpers.commands import run as command
from helpers.fuzz import EDITS, damaged, long_search, searching
from loglik import schema
from loglik.training import checkpoint, fit

FILES = ("config.yaml", "metrics.csv", "model.safetensors", "checkpoints/step-000000004.safetensors")
VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-(10**20), 10**20), st.floats(), st.text(st.characters(codec="utf-8"))
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("fuzz")
    rows = [f"{i % 17 * 0.37:.2f},{'xyz'[i % 3]}" for i in range(60)]
    (root / "t.csv").write_text("\n".join(["a,k", *rows]))
    fit("flow", root / "t.csv", out=root / "run", max_steps=4, width=8, depth=1, validate_every=2)
    return root / "run"


@pytest.fixture
def path(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


def put(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    file.with_suffix(".sha256").write_text(digest if "step-" in file.name else f"{digest}  {file.name}\n")


def read(path: Path) -> None:
    """Load the run and its newest checkpoint, which succeeds, or is a ValueError of one line that names the file."""
    try:
        loglik.load(path)
        checkpoint.load_newest(path / "checkpoints")
    except ValueError as error:
        assert "\n" not in str(error) and len(str(error)) < 1500 and str(path) in str(error), error


@pytest.mark.parametrize("name", FILES)
@searching(25)
@given(edits=EDITS)
def test_a_damaged_file_is_a_run_or_one_line(name, edits, path, made) -> None:
    put(path / name, damaged((made / name).read_bytes(), edits))
    read(path)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_a_long_search(name, path, made) -> None:
    """About four minutes in all; LOGLIK_FUZZ multiplies it."""
    content = (made / name).read_bytes()

    @long_search(3000)
    @given(edits=EDITS)
    def search(edits):
        put(path / name, damaged(content, edits))
        read(path)

    search()


def places(value: object, here: tuple = ()) -> list[tuple]:
    """The keys and indices of everything within a value."""
    pairs = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    return [p for key, inner in pairs for p in [(*here, key), *places(inner, (*here, key))]]


def changed(path: Path, made: Path, place: float, value: object) -> None:
    """Put a value somewhere in config.yaml, and read the run."""
    config = yaml.load((made / "config.yaml").read_text(), Loader=schema.Loader)
    every = places(config)
    *parents, last = every[int(place * (len(every) - 1))]
    inner = config
    for key in parents:
        inner = inner[key]
    inner[last] = value
    put(path / "config.yaml", yaml.safe_dump(config).encode())
    read(path)


@searching(30)
@given(place=st.floats(0, 1), value=VALUES)
def test_any_value_in_a_configuration_is_a_run_or_one_line(place, value, path, made) -> None:
    changed(path, made, place, value)


@pytest.mark.slow
def test_a_long_search_of_values(path, made) -> None:
    @long_search(4000)
    @given(place=st.floats(0, 1), value=VALUES)
    def search(place, value):
        changed(path, made, place, value)

    search()


CELLS = st.one_of(st.floats().map(repr), st.integers().map(str), st.text(max_size=4), st.just(""))


@searching(30)
@given(rows=st.lists(st.lists(CELLS, min_size=5, max_size=7), max_size=4))
def test_any_history_is_a_run_or_one_line(rows, path, made) -> None:
    header = (made / "metrics.csv").read_text().splitlines()[0]
    put(path / "metrics.csv", "\n".join([header, *map(",".join, rows)]).encode(errors="surrogatepass"))
    read(path)


WORDS = st.one_of(
    st.sampled_from(["--json", "--seed", "--split", "--samples", "-n", "--device", "all", "test", "cpu", "t.csv"]),
    st.text(st.characters(exclude_categories=("Cs",)), max_size=8),
    st.integers(-3, 9).map(str),
    st.floats().map(str),
)


@pytest.mark.slow
def test_commands_on_a_run_end_in_one_line(path, made, monkeypatch) -> None:
    monkeypatch.chdir(path.parent)
    shutil.copy(made.parent / "t.csv", path.parent)

    @long_search(400)
    @given(name=st.sampled_from(["evaluate", "sample", "encode", "fill"]), words=st.lists(WORDS, max_size=4))
    def search(name, words):
        if any(word.startswith(("digits", "hf:", "wine", "/", "~", "..")) for word in words):
            return
        done = command(name, "run", *words)
        assert done.status in (0, 2), (name, words, done)
        assert done.status == 0 or done.err.rstrip("\n").count("\n") == 0, (name, words, done)

    search()
