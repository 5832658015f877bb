"""A run on disk: it comes back the same, reads no pickle, and says in one line what is wrong with it."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import loglik
from loglik import runs
from loglik.flows import Elementwise, Spline
from loglik.training import fit

RNG = np.random.default_rng(0)
REAL = RNG.normal(3.0, 2.0, size=(60, 2))
WHOLE = RNG.integers(0, 3, size=(60, 4))
SETTINGS = {"max_steps": 3, "validate_every": 2, "batch_size": 16}


def by_hand() -> loglik.Flow:
    return loglik.Flow([Elementwise(2, Spline(4, 4.0))], loglik.StandardNormal((2,)))


@pytest.fixture(scope="module")
def hand_run(tmp_path_factory) -> runs.Run:
    return fit(by_hand(), REAL, out=tmp_path_factory.mktemp("hand") / "run", **SETTINGS)


@pytest.fixture
def run(tmp_path) -> runs.Run:
    return fit("vae", REAL, out=tmp_path / "run", width=8, **SETTINGS)


FAMILIES = [
    ("independent", REAL, {}),
    ("independent", WHOLE, {}),
    ("classifier", (REAL, WHOLE[:, 0]), {"width": 8, "smoothing": 0.1}),
    ("autoregressive", WHOLE, {"width": 8, "depth": 1}),
    ("flow", REAL, {"width": 8, "depth": 2}),
    ("vae", WHOLE, {"width": 8, "latent": 3}),
    ("diffusion", REAL, {"width": 8, "depth": 1, "steps": 3}),
    ("diffusion", (WHOLE, WHOLE[:, 0]), {"width": 8, "depth": 1, "conditional": True}),
]


@pytest.mark.parametrize(("name", "data", "options"), FAMILIES)
def test_a_run_comes_back_the_same_and_no_pickle_is_read(name, data, options, tmp_path, monkeypatch) -> None:
    run = fit(name, data, out=tmp_path / "run", **options, **SETTINGS)
    monkeypatch.setattr(torch, "load", None)
    monkeypatch.setattr("pickle.load", None)
    monkeypatch.setattr("pickle.loads", None)
    monkeypatch.setattr("pickle.Unpickler", None)
    loaded = loglik.load(str(tmp_path / "run"))
    assert (loaded.model, loaded.steps, loaded.path) == (name, run.steps, tmp_path / "run")
    assert loaded.spec == run.spec
    assert loaded.history == run.history
    assert loaded.config == run.config
    assert not loaded.density.training
    torch.manual_seed(1)
    a = loglik.evaluate(run, data, samples=2)
    b = loglik.evaluate(loaded, data, samples=2)
    assert (a.nats, a.stderr, a.terms) == (b.nats, b.stderr, b.terms)
    x = torch.as_tensor(data[0] if isinstance(data, tuple) else data)[:10]
    x = x.float() if x.is_floating_point() else x.to(torch.uint8)
    y = torch.as_tensor(data[1])[:10] if isinstance(data, tuple) else None
    event, context = (y, x) if name == "classifier" else (x, y)
    scores = []
    for density in (run.density, loaded.density):
        torch.manual_seed(2)
        scores.append(density.log_prob(event, context))
    assert torch.equal(*scores)
    assert torch.isfinite(scores[0]).all()


def test_what_is_in_the_folder(run) -> None:
    config = yaml.safe_load((run.path / "config.yaml").read_text())
    assert config["model"] == "vae"
    assert config["options"] == {"width": 8}
    assert config["versions"] == {
        "loglik": loglik.__version__,
        "torch": torch.__version__,
        "python": config["versions"]["python"],
    }
    assert config["training"]["max_steps"] == 3
    assert config["steps"] == 3
    lines = (run.path / "metrics.csv").read_text().splitlines()
    assert lines[0] == "step,time,train_nats,validation_nats,learning_rate,gradient_norm"
    assert [line.split(",")[0] for line in lines[1:]] == ["2", "3"]
    assert not list(run.path.rglob("*.partial"))


def test_a_density_built_by_hand_takes_its_weights_back(hand_run) -> None:
    with pytest.raises(ValueError, match=r"holds a density built by hand: .*load\(path, density=\.\.\.\)") as error:
        loglik.load(hand_run.path)
    assert "\n" not in str(error.value)
    other = by_hand()
    x = torch.from_numpy(REAL[:5]).float()
    loaded = loglik.load(hand_run.path, density=other)
    assert loaded.density is other
    assert loaded.model == "flow"
    assert torch.equal(other.log_prob(x), hand_run.density.log_prob(x))
    bigger = loglik.Flow([Elementwise(2, Spline(8, 4.0))], loglik.StandardNormal((2,)))
    with pytest.raises(ValueError, match=r"model\.safetensors does not fit config\.yaml or is damaged") as error:
        loglik.load(hand_run.path, density=bigger)
    assert "\n" not in str(error.value)


def rewrite(path: Path, **changes) -> None:
    file = path / "config.yaml"
    config = yaml.safe_load(file.read_text())
    for name, value in changes.items():
        if value is None:
            del config[name]
        else:
            config[name] = value
    file.write_text(yaml.safe_dump(config))
    (path / "config.sha256").unlink()


def change(path: Path, content: str | bytes) -> None:
    """Write a config.yaml as a stranger could, without its SHA-256."""
    (path / "config.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    (path / "config.sha256").unlink()


def no_config(path: Path) -> None:
    (path / "config.yaml").unlink()


def no_weights(path: Path) -> None:
    (path / "model.safetensors").unlink()


def cut_weights(path: Path) -> None:
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:200])


def pickled_weights(path: Path) -> None:
    torch.save({"w": torch.ones(1)}, path / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (no_config, r"is not a run \(it has no config.yaml\): a run is a folder that `loglik fit` wrote"),
        (no_weights, r"has no model.safetensors yet: its training has not reached a validation"),
        (cut_weights, r"model.safetensors is damaged or was changed: its SHA-256 is not the one in model.sha256"),
        (pickled_weights, r"model.safetensors is damaged or was changed"),
        (
            lambda p: rewrite(p, format=2, versions={"loglik": "9.9"}),
            r"made by a newer loglik \(9.9, run format 2; .*\)",
        ),
        (lambda p: rewrite(p, format=3, versions=None), r"made by a newer loglik \(unknown, run format 3"),
        (lambda p: rewrite(p, format="new"), r"config.yaml is not a run's configuration at format: Expected 'int'"),
        (lambda p: rewrite(p, format=None), r"configuration: it lacks the required field 'format'"),
        (lambda p: rewrite(p, spec=None), r"configuration: it lacks the required field 'spec'"),
        (
            lambda p: rewrite(p, spec={"kind": "table"}),
            r"at spec: it lacks the required field 'event_shape'",
        ),
        (lambda p: rewrite(p, options=None), r"config.yaml is not a run's configuration"),
        (lambda p: rewrite(p, model="gan"), r"unknown model 'gan': use independent, classifier"),
        (lambda p: rewrite(p, options={"wide": 3}), r"vae has no option 'wide'"),
        (lambda p: rewrite(p, options={"width": 16}), r"model.safetensors does not fit config.yaml or is damaged"),
        (lambda p: change(p, "a: [1"), r"config.yaml is not a run's configuration"),
        (lambda p: change(p, "- 1"), r"config.yaml is not a run's configuration"),
        (lambda p: change(p, b"\xff\xfe\x00"), r"config.yaml is not a run's configuration"),
        (
            lambda p: change(p, "format: !!python/object/apply:os.getcwd []"),
            r"config.yaml is not a run's configuration",
        ),
    ],
)
def test_a_damaged_run_is_one_clear_line(run, damage, words) -> None:
    damage(run.path)
    with pytest.raises((ValueError, FileNotFoundError), match=words) as error:
        loglik.load(run.path)
    assert "\n" not in str(error.value)
    assert str(run.path) in str(error.value) or "gan" in words or "wide" in words


def test_no_run_at_all(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="absent does not exist"):
        loglik.load(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="is not a run"):
        loglik.load(tmp_path)


def test_nothing_is_overwritten(run, tmp_path) -> None:
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    with pytest.raises(FileExistsError, match="exists and is not empty: choose another out=, or pass resume=True"):
        fit("vae", REAL, out=run.path, width=8, **SETTINGS)
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError):
        fit("vae", REAL, out=tmp_path / "file", width=8, **SETTINGS)
    (tmp_path / "empty").mkdir()
    runs.new_folder(tmp_path / "empty")
    runs.new_folder(tmp_path / "deep" / "er")
    assert (tmp_path / "deep" / "er").is_dir()
