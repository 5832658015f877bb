"""push and hf://: a run to the hub and back, against a hub in this process, with what goes wrong."""

import subprocess
import sys

import numpy as np
import pytest
import torch

import loglik
from helpers.commands import refused, well
from helpers.fake_hub import TOKEN, serving
from loglik.export import card, prepare
from loglik.hub import HubRun
from loglik.recipes import build
from loglik.runs import Run, read_config

hub_library = pytest.importorskip("huggingface_hub")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of a table in a file, with a label-like column of names."""
    folder = tmp_path_factory.mktemp("home") / "ada lovelace"
    folder.mkdir()
    random = np.random.default_rng(0)
    rows = "\n".join(f"{a:.2f},{'red|*' if a > 0 else '<b>'}" for a in random.normal(size=120))
    (folder / "secret.csv").write_text(f"size,colour\n{rows}\n", encoding="utf-8")
    return loglik.fit("mixture", folder / "secret.csv", max_steps=3, out=folder / "run", progress=False)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub, which the client of this process uses with an empty cache."""
    from huggingface_hub import constants

    with serving() as (hub, address):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


def pushed(hub, run, repository="ada/flow"):
    with prepare(run, repository) as files:
        files.folder.joinpath("README.md").read_text(encoding="utf-8")
        hub.files.setdefault((files.address.repository, files.address.revision or "main"), {}).update(
            {f"{files.address.folder}/{p.name}".lstrip("/"): p.read_bytes() for p in files.folder.iterdir()}
        )


# ---- addresses


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("hf://ada/flow", HubRun("ada/flow")),
        ("hf:/ada/flow@v1", HubRun("ada/flow", revision="v1")),
        ("hf://ada/flow/a/b@refs/pr/1", HubRun("ada/flow", "a/b", "refs/pr/1")),
        ("runs/flow", None),
        ("hf:digits", None),
    ],
)
def test_addresses(text, want):
    assert HubRun.parse(text) == want
    assert want is None or HubRun.parse(str(want)) == want


@pytest.mark.parametrize("text", ["hf://ada", "hf://ada/flow@", "hf://ada/../x", "hf://ada/flow//x", "hf://a b/c"])
def test_wrong_addresses(text):
    with pytest.raises(ValueError, match=r"a run on the hub is hf://OWNER/NAME"):
        HubRun.parse(text)


# ---- the files


def test_a_folder_has_a_run_that_loads_and_says_nothing_of_this_machine(run, tmp_path):
    with prepare(run, "ada/flow", to=tmp_path / "to", license="mit") as files:
        lines = "\n".join(files.describe())
    assert "names of 2 columns, 2 names of categories" in lines and "quantiles" in lines
    loaded = loglik.load(tmp_path / "to")
    x = torch.tensor([[0.1, 0.0], [0.2, 1.0]])
    assert torch.equal(loaded.density.log_prob(x), run.density.log_prob(x))
    assert loaded.history == run.history
    assert read_config(tmp_path / "to")["source"] is None and read_config(run.path)["source"] is not None
    for path in (tmp_path / "to").iterdir():
        assert b"lovelace" not in path.read_bytes()


def test_the_card_is_one_that_the_hub_reads(run, tmp_path):
    with prepare(run, "ada/flow", to=tmp_path / "to", license="mit"):
        pass
    read = hub_library.ModelCard.load(tmp_path / "to" / "README.md")
    assert (read.data.library_name, read.data.license) == ("loglik", "mit")
    results = {found.metric_type: found for found in read.data.eval_results}
    assert results["nats"].metric_value == pytest.approx(loglik.evaluate(run).nats)
    assert "standard error" in results["nats"].metric_name and results["nats"].dataset_split == "test"
    assert "`log_prob` is log p(x) exactly" in read.text and "![nats" in read.text
    assert 'loglik.load("hf://ada/flow")' in read.text and "<b>" not in read.text.replace("\\<b", "")
    assert (tmp_path / "to" / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_the_card_of_a_classifier_says_how_it_is_called():
    density = build("classifier", spec := loglik.DataSpec(kind="array", event_shape=(2,), classes=("a", "b")))
    config = {"model": "classifier", "training": {"seed": 0}}
    text = card(Run(density, spec, config), None, "ada/x", curve=False)
    assert "run.density.log_prob(y, x)\n" in text and "`loglik predict hf://ada/x DATA`" in text
    text = card(Run(density, spec, {**config, "model": "autoregressive"}), None, "ada/x", curve=False)
    assert "An autoregressive model of" in text and "- The file config.yaml has the names of 2 classes" in text


def test_a_card_without_a_score_says_so():
    density = loglik.StandardNormal((2,))
    spec = loglik.DataSpec(kind="array", event_shape=(2,))
    text = card(Run(density, spec, {"training": {"seed": 0}}), None, "ada/x", curve=False)
    assert "was not scored" in text and "licence of the data and of the weights is unknown" in text
    assert hub_library.ModelCard(text).data.license == "unknown"


# ---- the hub


def test_a_run_goes_to_the_hub_and_back(hub, run, tmp_path):
    out = well("push", run.path, "ada/flow/small@v1", "--yes")
    assert "pushed: http" in out and "note: the file config.yaml has the names" in out
    assert hub.tokens and set(hub.tokens) == {TOKEN}
    files = hub.files["ada/flow", "v1"]
    assert {"small/config.yaml", "small/model.safetensors", "small/README.md"} <= files.keys()
    assert not any(TOKEN.encode() in content or b"lovelace" in content for content in files.values())
    loaded = loglik.load("hf://ada/flow/small@v1")
    x = torch.tensor([[0.1, 0.0]])
    assert torch.equal(loaded.density.log_prob(x), run.density.log_prob(x))
    assert "3 samples" in well("sample", "hf://ada/flow/small@v1", "-n", "3", "--out", tmp_path / "x.csv")


def test_a_revision_is_its_own_and_the_cache_serves_without_a_connection(hub, run, monkeypatch):
    pushed(hub, run)
    assert loglik.load("hf://ada/flow").steps == run.steps
    assert "there is no revision 'v9'" in refused("sample", "hf://ada/flow@v9")
    monkeypatch.setattr(hub_library.constants, "HF_HUB_OFFLINE", True)
    assert loglik.load("hf://ada/flow").steps == run.steps
    assert "is not in the cache" in refused("sample", "hf://ada/other")


def test_what_is_missing_or_damaged_is_one_line(hub, run, monkeypatch):
    assert "no such repository, or it is private" in refused("sample", "hf://ada/none")
    hub.files["ada/empty", "main"] = {"README.md": b"hello"}
    assert "hf://ada/empty is not a run: it has no config.yaml" in refused("sample", "hf://ada/empty")
    pushed(hub, run, "ada/damaged")
    files = hub.files["ada/damaged", "main"]
    files["model.safetensors"] = files["model.safetensors"][:-4] + b"abcd"
    assert "is damaged or was changed" in refused("sample", "hf://ada/damaged")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "the hub refused" in refused("push", run.path, "ada/flow", "--yes")


def test_nothing_is_uploaded_unasked(hub, run, tmp_path):
    assert "pass --yes" in refused("push", run.path, "ada/flow")
    out = well("push", run.path, "ada/flow", "--dry-run")
    assert "library_name: loglik" in out and "nothing was uploaded" in out
    assert "nothing was uploaded" in well("push", run.path, "ada/flow", "--to", tmp_path / "to")
    assert "is not empty" in refused("push", run.path, "ada/flow", "--to", tmp_path / "to")
    assert not hub.files and not hub.tokens


def test_a_density_built_by_hand_is_refused(tmp_path):
    run = Run(loglik.StandardNormal((2,)), loglik.DataSpec(kind="array", event_shape=(2,)), {"model": None})
    with pytest.raises(ValueError, match="built by hand cannot be loaded by others"), prepare(run, "ada/x"):
        pass


def test_importing_loglik_imports_no_hub():
    code = "import loglik, loglik.runs, sys; assert 'huggingface_hub' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
