"""`loglik inspect`: a run or a family, a table and a page that needs no network, and one line for what it cannot do."""

import io
import re
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from helpers.commands import run
from loglik.classification import Classifier
from loglik.classification.inputs import Levels
from loglik.data import from_arrays
from loglik.inspection import inspect, print_inspection, write_page

pytestmark = pytest.mark.usefixtures("own_folder")


def page_of(out: str) -> str:
    html = Path(out.strip().splitlines()[-1].removeprefix("page: ")).read_text(encoding="utf-8")
    html = re.sub(r"<script>.*?</script>", "", html, flags=re.DOTALL)
    assert not re.search(r"(src|href)=\"(?!data:)", html) and "@import" not in html and "url(" not in html
    return html


@pytest.mark.parametrize("model", ["independent", "classifier", "flow", "vae", "diffusion"])
def test_a_family_untrained_on_digits(model):
    status, out, err = run("inspect", model, "--out", "looked")
    assert (status, err) == (0, "")
    html = page_of(out)
    assert f"Inside {model}, untrained" in html
    assert "What does not apply" in html
    assert ("Receptive fields</h2>" in html) == (model == "classifier")
    assert "Cost against length</h2>" not in html and "Attention</h2>" not in html


def test_text_and_attention():
    Path("words.txt").write_text("to be or not to be, that is the question. " * 200)
    status, out, err = run("inspect", "autoregressive", "words.txt")
    assert (status, err) == (0, "")
    words = " ".join(out.split())
    assert "all weights of head are 0" in words and "p of memory" in words
    assert "saves a matrix of n² weights: 64.0 MiB of its 68.0 MiB" in words
    assert "saves no n×n matrix: 5.0 MiB" in words
    html = page_of(out)
    assert html.count("64.0 MiB of its 68.0 MiB") == 1 and "memory against length" in html
    assert "Cost against length</h2>" in html and "a mask or a convolution also depends on the order" in html
    assert "Attention</h2>" in html and "attention maps of each layer and head" in html


def test_a_run_and_a_table():
    rng = np.random.default_rng(0)
    rows = [f"{rng.normal():.4f},{rng.normal():.4f},{'yes' if i % 2 else 'no'}" for i in range(60)]
    Path("table.csv").write_text("\n".join(["a,b,won", *rows]))
    fitted = run("fit", "table.csv", "--model", "classifier", "--label", "won", "--max-steps", 2, "--out", "kept")
    assert fitted[0] == 0, fitted[2]
    status, out, err = run("inspect", "kept", "--out", "looked")
    assert (status, err) == (0, "")
    html = page_of(out)
    assert "Inside classifier, trained" in html and "a classifier of tables" in html
    assert run("inspect", "kept", "--out", "looked")[0] == 2  # nothing is overwritten
    Path("few.csv").write_text("\n".join(["a,b,won", *rows[:3]]))
    status, out, err = run("inspect", "kept", "few.csv")
    assert (status, err) == (0, "")
    assert "mean loss over 3 examples" in page_of(out)


def test_a_loss_that_differentiates_inside_itself():
    """A continuous flow takes the trace of its Jacobian by `torch.func`."""
    rng = np.random.default_rng(0)
    Path("table.csv").write_text("\n".join(["a,b", *(f"{a:.4f},{b:.4f}" for a, b in rng.normal(size=(60, 2)))]))
    status, out, err = run("inspect", "flow:continuous", "table.csv", "--out", "looked")
    assert (status, err) == (0, "")
    assert "not measured: the loss computes derivatives by torch.func" in " ".join(out.split())
    assert "unknown number of bytes" in page_of(out)


def test_a_classifier_of_images_by_convolutions(tmp_path):
    x = torch.randint(0, 256, (40, 3, 12, 12), dtype=torch.uint8)
    data = from_arrays(x.numpy(), (torch.arange(40) % 2).numpy())
    features = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 8, 3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    density = Classifier(features, nn.Linear(8, 2), 2, prepare=Levels(256))
    found = inspect(density, data, model="small", trained=False)
    assert found.fields is not None and found.agreement == len(found.fields)
    assert found.translation is not None and found.translation.inside < 1e-5
    assert found.parameters == sum(p.numel() for p in density.parameters())
    html = write_page(tmp_path / "page.html", found).read_text()
    assert (
        html.count('<svg class="field"') >= 2
        and html.count('class="chart"') >= 1
        and "whole image" in html
        and "dense / this" in html
    )
    with redirect_stdout(io.StringIO()) as out:
        print_inspection(found)
    assert "translation, without the border" in out.getvalue()


@pytest.mark.parametrize("word", ["no-such-thing", "folder"])
def test_neither_a_run_nor_a_model(word):
    Path("folder").mkdir()
    status, _, err = run("inspect", word)
    assert status == 2
    assert err.startswith(f"error: {word} is ") and err.count("\n") == 1 and "autoregressive" in err
