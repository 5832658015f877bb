"""The commands: what they write, and one clear line for what they cannot do."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import loglik
from helpers.commands import refused, run, well
from loglik.cli.options import settings_of
from loglik.recipes import RECIPES

RNG = np.random.default_rng(0)


pytestmark = pytest.mark.usefixtures("own_folder")


def images(folder: Path, classes: tuple[str, ...] = ("a", "b"), n: int = 12, size: int = 4) -> Path:
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(n):
            Image.fromarray(RNG.integers(0, 256, size=(size, size), dtype=np.uint8)).save(folder / name / f"{i}.png")
    return folder


def table(path: Path, n: int = 40) -> Path:
    rows = [f"{RNG.normal():.4f},{RNG.choice(['red', 'blue'])},{RNG.integers(9)},{'yes' if i % 2 else 'no'}"
            for i in range(n)]  # fmt: skip
    path.write_text("\n".join(["size,colour,count,sold", *rows]) + "\n")
    return path


class Places(NamedTuple):
    images: Path
    table: Path
    text: Path
    array: Path


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Places:
    root = tmp_path_factory.mktemp("data")
    (root / "prose.txt").write_text("the cat sat on the mat and looked at the moon\n" * 40)
    np.save(root / "points.npy", RNG.normal(size=(50, 2)))
    return Places(images(root / "pictures"), table(root / "things.csv"), root / "prose.txt", root / "points.npy")


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory) -> Places:
    """A baseline's run for each kind of data, through `fit`."""
    root = tmp_path_factory.mktemp("runs")
    made = Places(*(root / kind for kind in Places._fields))
    for source, out in zip(data, made, strict=True):
        text = well("fit", source, "--model", "independent", "--out", out)
        assert text.splitlines()[-2:] == [f"run: {out}", f"report: {out}/report.html"]
        assert "test split: independent:" in text
    return made


@pytest.fixture(scope="module")
def conditional(data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("conditional") / "run"
    changes = ("--set", "conditional=true", "--set", "width=8", "--set", "learning_rate=1e-3")
    well("fit", data.images, "--model", "vae", "--max-steps", 3, "--out", out, *changes)
    return out


SUFFIXES = list(zip(Places._fields, ("png", "csv", "txt", "npy"), strict=True))

# --- what is written -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "suffix"), SUFFIXES)
def test_fit_writes_a_run_with_samples_and_a_page(runs, kind, suffix) -> None:
    folder = getattr(runs, kind)
    assert {p.name for p in folder.iterdir()} == {
        "config.yaml", "model.safetensors", "metrics.csv", "config.sha256", "model.sha256", "metrics.sha256",
        "report.html", f"samples.{suffix}",
    }  # fmt: skip
    page = (folder / "report.html").read_text()
    assert page.startswith("<!DOCTYPE html>") and "http-equiv" not in page
    assert "src=\"http" not in page and "href=\"http" not in page  # fmt: skip


@pytest.mark.parametrize(("kind", "suffix"), SUFFIXES)
def test_sample_writes_what_the_data_are(runs, kind, suffix, tmp_path) -> None:
    folder = getattr(runs, kind)
    assert well("sample", folder, "-n", 5, "--out", f"a.{suffix}").endswith(f"5 samples: a.{suffix}\n")
    well("sample", folder, "-n", 5, "--out", f"b.{suffix}")
    well("sample", folder, "-n", 5, "--out", f"c.{suffix}", "--seed", 1)
    a, b, c = (Path(f"{name}.{suffix}").read_bytes() for name in "abc")
    assert a == b != c
    well("sample", folder, "-n", 3, "--out", "x.npy")
    x = np.load("x.npy")
    assert x.shape == (3, *loglik.load(folder).spec.event_shape)
    if kind == "table":
        lines = a.decode().splitlines()
        assert lines[0] == "size,colour,count,sold" and len(lines) == 6
        size, colour, number, sold = lines[1].split(",")
        assert float(size) == float(size) and colour in ("red", "blue") and number.lstrip("-").isdigit()
        assert sold in ("yes", "no")
    elif kind == "image":
        with Image.open(f"a.{suffix}") as picture:
            assert picture.mode == "L"
    elif kind == "text":
        assert a.decode().startswith("--- sample 1 ---\n")
    elif kind == "array":
        assert x.dtype == np.float32
    assert "samples of" in refused("sample", folder, "--out", f"x.{'csv' if suffix == 'png' else 'png'}")


def test_places_to_write_are_made_or_named(runs, data) -> None:
    assert well("sample", runs.array, "-n", 2, "--out", "new/a.npy") == "2 samples: new/a.npy\n"
    Path("folder").mkdir()
    assert refused("evaluate", runs.array, "--json", "folder") == "error: folder: is a directory\n"
    Path("folder/x").touch()
    said = refused("compare", data.array, "--models", "independent", "--out", "folder")
    assert said == "error: folder exists and is not empty: choose another --out\n"


def test_sample_goes_into_the_run_by_default(runs) -> None:
    assert well("sample", runs.array, "-n", 7) == f"7 samples: {runs.array}/samples.npy\n"
    assert np.load(runs.array / "samples.npy").shape == (7, 2)


def test_sample_from_a_label(conditional, runs, data) -> None:
    well("sample", conditional, "-n", 4, "--label", "b", "--out", "b.npy")
    well("sample", conditional, "-n", 4, "--out", "turns.npy")
    assert np.load("b.npy").shape == (4, 1, 4, 4)
    density = loglik.load(conditional).density
    for name, labels in (("b", [1, 1, 1, 1]), ("turns", [0, 1, 0, 1])):
        torch.manual_seed(0)
        with torch.no_grad():
            assert (np.load(f"{name}.npy") == density.sample(4, torch.tensor(labels)).numpy()).all()
    assert "no class 'c': the classes are a, b" in refused("sample", conditional, "--label", "c")
    assert "this density is not conditional" in refused("sample", runs.images, "--label", "a")
    well("fit", data.images, "--model", "classifier", "--max-steps", 1, "--set", "width=8", "--out", "classes")
    assert "is a classifier" in refused("sample", "classes")


def test_evaluate_the_runs_own_test_split_or_given_data(runs, data) -> None:
    own = well("evaluate", runs.table)
    assert own.startswith("4 examples, 1 sample each: independent: ")
    assert well("evaluate", runs.table, "--split", "all").startswith("40 examples")
    assert well("evaluate", runs.table, data.table).startswith("40 examples")
    given = well("evaluate", runs.table, data.table, "--split", "test")
    assert given.split(" nats")[0] == own.split(" nats")[0]
    well("evaluate", runs.images, "--json", "new/out.json")
    (row,) = json.loads(Path("new/out.json").read_text())
    assert row["model"] == "independent" and row["n"] == 2 and row["bits_per_dim"] > 0


def test_evaluate_writes_each_rows_score(runs, data) -> None:
    well("evaluate", runs.table, data.table, "--per-row", "scores.csv")
    lines = Path("scores.csv").read_text().splitlines()
    assert lines[0] == "row,nats,stderr" and [line.split(",")[0] for line in lines[1:]] == [
        str(i + 1) for i in range(40)
    ]
    assert "a text has no rows" in refused("evaluate", runs.text, "--per-row", "scores.csv")


def test_evaluate_prints_the_terms_of_a_bound(conditional) -> None:
    lines = well("evaluate", conditional, "--samples", 3).splitlines()
    assert lines[0].startswith("2 examples, 3 samples each: vae: ")
    terms = dict(line.strip().removesuffix(" nats").rsplit(": ", 1) for line in lines[1:])
    assert list(terms) == ["reconstruction", "-KL", "tightening (K = 3)"]
    nats = float(lines[0].split("vae: ")[1].split(" ")[0])
    assert sum(map(float, terms.values())) == pytest.approx(nats, abs=2e-3)


def test_rows_of_a_bound_say_how_many_draws_they_took(conditional) -> None:
    line = well("evaluate", conditional, "--per-row", "scores.csv").splitlines()[0]
    assert re.match(r"2 examples, \d+ samples each on average: vae: ", line)
    rows = [[float(v) for v in line.split(",")] for line in Path("scores.csv").read_text().splitlines()[1:]]
    assert f"vae: {sum(nats for _, nats, _ in rows) / 2:.3f} ± " in line and all(error > 0 for *_, error in rows)
    assert ", 3 samples each: " in well("evaluate", conditional, "--per-row", "scores.csv", "--samples", 3)


def test_compare_writes_table_json_and_page(data) -> None:
    changes = ("--set", "max_steps=2", "--set", "validate_every=1", "--set", "batch_size=16")
    text = well("compare", data.images, "--budget", "1m", "--json", "rows.json", "--samples", 2, *changes)
    lines = text.splitlines()
    assert lines[0] == "pictures: images 1×4×4, 256 levels, 2 classes; 20 to train on, 2 to test on"
    assert lines[-1] == "report: runs/compare-pictures/report.html"
    for name in ("independent", "xz", "png", "classifier", "autoregressive", "flow", "vae", "diffusion"):
        assert any(name in line for line in lines[1:-1])
    assert max(map(len, lines)) < 200
    folder = Path("runs/compare-pictures")
    assert (folder / "comparison.json").read_text() == Path("rows.json").read_text()
    assert {row["n"] for row in json.loads(Path("rows.json").read_text())} == {2}
    assert (folder / "report.html").is_file() and (folder / "vae" / "model.safetensors").is_file()
    assert "<h1>Five kinds of density on pictures</h1>" in (folder / "report.html").read_text()
    again = well("compare", data.images, "--models", "independent", *changes)
    assert "report: runs/compare-pictures-2/report.html" in again


def test_fit_resume_goes_on(data) -> None:
    words = ("fit", data.array, "--model", "flow", "--out", "run", "--set", "width=8", "--set", "depth=2")
    well(*words, "--max-steps", 2)
    assert "run exists and is not empty" in refused(*words, "--max-steps", 4)
    well(*words, "--max-steps", 4, "--resume")
    assert loglik.load("run").steps == 4
    assert "started with another options" in refused(*words[:-2], "--set", "depth=4", "--max-steps", 4, "--resume")
    assert "--resume needs --out RUN" in refused("fit", data.array, "--model", "flow", "--resume")
    other = ("--out", "other", "--max-steps", 2, "--resume")
    assert "nothing to resume: other is no run" in refused("fit", data.array, "--model", "flow", *other)


def test_lists() -> None:
    models = well("list", "models")
    for name in ("independent", "classifier", "autoregressive", "flow", "vae", "diffusion"):
        assert any(line.startswith(name) for line in models.splitlines())
    for variant in RECIPES["flow"].kinds:
        assert f"flow:{variant}" in models
    flow = well("list", "models", "flow:glow")
    for option in RECIPES["flow"].options.values():
        assert f"\n{option.name}=" in flow and option.values in flow and option.help.split(":")[0] in flow
    assert "\nconditional=false  (true or false)\n" in flow and "\nkind=glow  (auto, nsf, " in flow
    assert "unknown model 'gan': use independent, " in refused("list", "models", "gan")
    names = [line.split()[0] for line in well("list", "data").splitlines()]
    assert names == list(loglik.data.names())


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("1e-3", 0.001),
        ("0.5", 0.5),
        ("true", True),
        ("no", False),
        ("null", None),
        ("sde", "sde"),
        ("32-true", "32-true"),
        ("a=b", "a=b"),
    ],
)
def test_values_of_settings(text, value) -> None:
    (read,) = settings_of([f"key={text}"]).values()
    assert read == value and type(read) is type(value)


def test_settings_reach_the_run(conditional) -> None:
    config = yaml.safe_load((conditional / "config.yaml").read_text())
    assert config["options"] == {"conditional": True, "width": 8}
    assert config["training"]["learning_rate"] == 0.001
    assert config["training"]["max_steps"] == 3


def test_default_folders_are_never_shared(data) -> None:
    for name in ("runs/points-independent", "runs/points-independent-2"):
        assert f"run: {name}\n" in well("fit", data.array, "--model", "independent")
    Path("runs/points-independent-3").mkdir()
    assert "run: runs/points-independent-3\n" in well("fit", data.array, "--model", "independent")


# --- what is refused -------------------------------------------------------------------------------------------------


def corrupt(root: Path) -> Path:
    (images(root / "x") / "a" / "3.png").write_bytes(b"\x89PNG\r\n\x1a\nnot really")
    return root / "x"


def mixed_sizes(root: Path) -> Path:
    folder = images(root / "x")
    for i in range(1, 6):
        Image.new("L", (4 + i, 4)).save(folder / "b" / f"{i}.png")
    return folder


def lines(root: Path, *rows: str) -> Path:
    (root / "x.csv").write_text("\n".join(rows) + "\n")
    return root / "x.csv"


def numbers(n: int) -> list[str]:
    return [f"{i}.5,{i * i}" for i in range(n)]


def empty_folder(root: Path) -> Path:
    (root / "x").mkdir()
    return root / "x"


def text(root: Path, content: str) -> Path:
    (root / "x.txt").write_text(content)
    return root / "x.txt"


BAD_DATA = {
    "a missing path": (lambda root: root / "absent", "absent: no such file or folder, nor a known name"),
    "an empty folder": (empty_folder, "x: no images and no text files in this folder"),
    "a corrupt image": (corrupt, "a/3.png: not a readable image"),
    "images of mixed sizes": (mixed_sizes, "24 images of 6 sizes, 4×4 to 9×4 pixels"),
    "a text in a column of numbers": (
        lambda root: lines(root, "a,b", *numbers(20), "4.5,many"),
        "row 21 (line 22), column 'b': 'many' is not a number",
    ),
    "infinity in a table": (
        lambda root: lines(root, "a,b", *numbers(12), "inf,3", *numbers(3)),
        "row 13 (line 14), column 'a': inf is not a finite number in float32",
    ),
    "a single class": (lambda root: images(root / "x", ("only",)), "'only' is the only class"),
    "an empty text file": (lambda root: text(root, ""), "x.txt: the text is empty"),
    "a short text file": (lambda root: text(root, "too short"), "9 bytes are too short"),
    "an empty table": (lambda root: lines(root, "a,b"), "the table has no rows"),
    "a file of no known type": (lambda root: corrupt(root) / "a" / "3.png", "one image is not a data set"),
    "an unknown hub": (lambda root: "hf:nobody/nothing", "hf:nobody/nothing"),
}


@pytest.mark.parametrize("what", BAD_DATA)
@pytest.mark.parametrize("command", ["compare", "fit"])
def test_bad_data_are_one_clear_line(what, command, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)  # as if loglik[hub] were not installed
    make, words = BAD_DATA[what]
    options = ("--model", "independent") if command == "fit" else ()
    assert words in refused(command, make(tmp_path), *options, "--out", "out")
    assert not Path("out").exists()


def test_labels_that_are_not_there_or_say_nothing(data, tmp_path) -> None:
    said = refused("compare", data.table, "--label", "price")
    assert "no column 'price' for the label; the columns are size, colour, count, sold" in said
    same = lines(tmp_path, "a,kind", *(f"{i}.5,cat" for i in range(20)))
    assert "column 'kind': all labels are 'cat'" in refused("fit", same, "--model", "classifier", "--label", "kind")
    assert "is not a table, so it has no column 'a' for the label" in refused("compare", data.images, "--label", "a")
    assert "classifier needs labels" in refused("fit", data.array, "--model", "classifier")


def test_runs_that_exist_are_newer_or_are_none(data, runs, tmp_path) -> None:
    before = (runs.array / "config.yaml").read_bytes()
    for words in (("fit", data.array, "--model", "independent"), ("compare", data.array)):
        assert "exists and is not empty" in refused(*words, "--out", runs.array)
    assert (runs.array / "config.yaml").read_bytes() == before
    newer = yaml.safe_load(before)
    newer |= {"format": 99, "versions": {"loglik": "7.0"}}
    (tmp_path / "newer").mkdir()
    (tmp_path / "newer" / "config.yaml").write_text(yaml.safe_dump(newer))
    for command in ("evaluate", "sample"):
        assert "newer was made by a newer loglik (7.0, run format 99" in refused(command, "newer")
        assert "absent does not exist" in refused(command, "absent")
        assert "is not a run (it has no config.yaml)" in refused(command, data.images)


def test_data_that_the_run_cannot_take(runs, data) -> None:
    assert "this is text, but the model accepts images 1×4×4" in refused("evaluate", runs.images, data.text)
    assert "no split named 'dev'" in refused("evaluate", runs.images, "--split", "dev")
    assert "NaN" not in well("evaluate", runs.array, data.array)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--model", "gan"), "unknown model 'gan': use independent, classifier"),
        (("--model", "classifier"), "classifier needs labels"),
        (("--model", "flow", "--max-time", "soon"), "'soon' is not a time: write 45s, 5m or 1h"),
        (("--model", "flow", "--size", "huge"), "unknown size 'huge': use small, medium, large"),
        (("--model", "flow", "--set", "width"), "--set needs key=value, got 'width'"),
        (("--model", "flow", "--set", "=3"), "--set needs key=value, got '=3'"),
        (("--model", "flow", "--set", "wide=3"), "unknown option 'wide': flow has size, kind"),
        (("--model", "flow", "--set", "learning_rate=-1"), "learning_rate must be above 0, got -1"),
        (("--model", "flow", "--set", "width=[1"), "--set: '[1' is not a value"),
        (("--model", "flow", "--set", "seed=3"), "--set cannot set 'seed': use --seed"),
        (("--model", "flow", "--set", "out=x"), "--set cannot set 'out': use --out"),
        (("--model", "flow", "--set", "settings=x"), "--set cannot set 'settings'"),
        (
            ("--model", "flow", "--set", "precision=8-true"),
            "precision must be one of auto, 32-true, 64-true, bf16-mixed, 16-mixed",
        ),
        (("--model", "flow", "--set", "precision=bf16-true"), "precision must be one of auto, 32-true, 64-true, bf16"),
        (("--model", "flow", "--set", "accelerator=abacus"), "cannot train with accelerator=abacus"),
        (("--model", "flow", "--devices", "two"), "--devices must be a number above 0 or auto, got 'two'"),
        (("--model", "flow", "--set", "devices=2"), "--set cannot set 'devices': use --devices"),
        (("--model", "flow", "--set", "width=abc"), "width must be an integer above 0, got 'abc'"),
        (("--model", "flow", "--set", "depth=2.5"), "depth must be an integer above 0, got 2.5"),
        (("--model", "flow", "--set", "bins=0"), "bins must be an integer above 0, got 0"),
        (("--model", "vae", "--set", "kl_warmup=-1"), "kl_warmup must be an integer of at least 0, got -1"),
        (
            ("--model", "flow", "--set", "dropout=much"),
            "dropout must be a number of at least 0 and below 1, got ",
        ),
        (("--model", "flow", "--set", "conditional=maybe"), "conditional must be true or false, got 'maybe'"),
        (("--model", "flow", "--set", "size=3"), "unknown size 3: use small, medium, large"),
        (("--model", "flow", "--set", "conditional=true"), "--set conditional=true needs labels: class folders, --lab"),
    ],
)
def test_bad_settings_are_one_clear_line(words, said, data) -> None:
    assert said in refused("fit", data.array, *words, *(() if "--max-time" in words else ("--max-steps", 1)))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--models", "flow,gan"), "unknown model 'gan'"),
        (("--models", ","), "--models names no model"),
        (("--models", "classifier"), "none of classifier can take arrays 2"),
        (("--budget", "0s"), "'0s' is not a time"),
        (("--set", "max_time=3"), "--set cannot set 'max_time': use --max-time or --budget"),
    ],
)
def test_bad_comparisons_are_one_clear_line(words, said, data) -> None:
    assert said in refused("compare", data.array, *words)
    assert not any(Path("runs").glob("*/*"))


@pytest.mark.parametrize(
    "words",
    [
        ("train",),
        ("compare",),
        ("fit", "digits"),
        ("fit", "digits", "--model", "flow", "--max-steps", "few"),
        ("fit", "digits", "--model", "flow", "--max-steps", "0"),
        ("sample", "run", "-n", "0"),
        ("compare", "digits", "--seed", "-1"),
        ("list", "runs"),
        ("evaluate", "run", "--speed", "3"),
    ],
)
def test_mistakes_in_usage_end_with_2(words) -> None:
    done = run(*words)
    assert done.status == 2
    assert "Traceback" not in done.err
    assert done.out == "" and done.err.startswith("error: ") and done.err.count("\n") == 1
    assert done.err.endswith(" --help\n")


def test_debug_shows_the_traceback(data) -> None:
    with pytest.raises(FileNotFoundError, match="absent"):
        run("compare", "absent", "--debug")
    with pytest.raises(ValueError, match="unknown model"):
        run("--debug", "fit", data.array, "--model", "gan")


PLAIN = """
import sys
from loglik.cli import main
data, *settings = sys.argv[1:]
for setting in settings:
    sys.argv = ["loglik", "fit", data, "--model", "flow", "--set", setting]
    try:
        main()
    except SystemExit as end:
        print(end.code, file=sys.stderr)
"""


def test_settings_of_a_wrong_type_are_one_clear_line(data) -> None:
    # in a process of its own: here the checks on signatures would speak first
    settings = ["batch_size=many", "validate_every=2.5", "learning_rate=true", "max_epochs=[3]", "warmup=null"]
    command = [sys.executable, "-c", PLAIN, str(data.array), *settings]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == [
        "error: batch_size must be an integer, got 'many'",
        "2",
        "error: validate_every must be an integer, got 2.5",
        "2",
        "error: learning_rate must be a number, got True",
        "2",
        "error: max_epochs must be an integer, got [3]",
        "2",
        "error: warmup must be an integer, got None",
        "2",
    ]
    assert not Path("runs").exists()


def test_the_installed_command_prints_no_traceback() -> None:
    command = [sys.executable, "-m", "loglik", "compare", "no-such-thing"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no-such-thing: no such file or folder")
    assert done.stderr.count("\n") == 1 and done.stdout == ""


def test_the_shell_completes_commands() -> None:
    command = [sys.executable, "-c", "import sys; sys.argv = ['loglik']; from loglik.cli import main; main()"]
    asked = {"_LOGLIK_COMPLETE": "complete_bash", "COMP_WORDS": "loglik fi", "COMP_CWORD": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **asked})
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["fit", "fill"], "")
