"""The report and the sample files, from densities made up here."""

import base64
import csv
import dataclasses
import math
import re

import numpy as np
import pytest
import torch
from PIL import Image

from loglik.comparison import Row
from loglik.data.dataset import Data, Split
from loglik.data.spec import Column, DataSpec
from loglik.density import Bound, Density
from loglik.evaluation.result import Result
from loglik.recipes import build
from loglik.report import figures, print_comparison, write_report, write_samples
from loglik.report.figures import Bar, bars
from loglik.report.numbers import number, plus_minus, unit_of
from loglik.report.samples import image_grid, text_of
from loglik.runs import Run
from loglik.tasks import draw

COLUMNS = (
    Column(name="age", type="integer"),
    Column(name="income <$>", type="numeric"),
    Column(name="species", type="categorical", categories=("setosa", "versicolor & co", "virginica")),
    Column(name="smoker", type="boolean", categories=("no", "yes")),
)
HISTORY = [
    {"step": 10.0 * i, "time": 0.5 * i, "train_nats": -90.0 + i, "validation_nats": -91.0 + i} for i in range(9)
] + [{"step": 100.0, "time": 5.0, "train_nats": math.nan}]


def spec_of(kind: str, *shape: int, **known) -> DataSpec:
    return DataSpec(kind=kind, event_shape=shape, **known)


IMAGES = spec_of("image", 1, 8, 8, levels=17, classes=tuple("0123456789"))
COLOURS = spec_of("image", 3, 5, 4, levels=256)
TABLE = spec_of("table", 4, columns=COLUMNS)
TEXT = spec_of("text", 24, levels=256)
VECTORS = spec_of("array", 3)
CUBES = spec_of("array", 2, 2, 2, levels=3)


def events(spec: DataSpec, n: int) -> torch.Tensor:
    """Random data of a spec."""
    if spec.columns:
        columns = [
            torch.randint(90, (n,)),
            1e4 * torch.rand(n),
            torch.randint(3, (n,)),
            torch.randint(2, (n,)),
        ]
        return torch.stack([c.float() for c in columns], 1)
    if spec.kind == "text":
        return torch.randint(32, 127, (n, *spec.event_shape))
    if spec.levels:
        return torch.randint(spec.levels, (n, *spec.event_shape), dtype=torch.uint8)
    return torch.randn(n, *spec.event_shape)


class Fake(Density):
    """Draws random events, and notes how it was asked."""

    def __init__(self, spec: DataSpec, conditional: bool = False) -> None:
        super().__init__()
        self.spec, self.event_shape, self.conditional = spec, spec.event_shape, conditional
        self.asked: list[tuple[int, bool, torch.Tensor | None]] = []

    def log_prob(self, x, context=None, *, samples=1):
        return torch.zeros(len(x))

    def sample(self, n, context=None):
        self.asked.append((n, self.training or torch.is_grad_enabled(), context))
        return events(self.spec, n)


class FakeClassifier(Fake):
    event = "y"

    @property
    def bound(self):
        return Bound.EXACT

    def probabilities(self, x):
        return torch.eye(10)[x[:, 0, 0, 0].long() % 10] * 0.9 + 0.01


def data_of(spec: DataSpec, name: str = "made up", n: int = 60) -> Data:
    def split() -> Split:
        return Split(events(spec, n), torch.randint(len(spec.classes), (n,)) if spec.classes else None)

    torch.manual_seed(0)
    return Data(name, spec, split(), split(), split())


def entry(density: Fake, model: str, bound: str, nats: float, **more) -> Row:
    spec = density.spec
    bits = -nats / (spec.dims * math.log(2)) if all(spec.discrete_dims) else None
    known = {"stderr": 0.5, "n": 60, "params": 12_345, "train_seconds": 5.0, "steps": 100} | more
    result = Result(model=model, bound=bound, nats=nats, bits_per_dim=bits, **known)
    return Row(result, Run(density, spec, history=list(HISTORY)))


def written(tmp_path, data: Data, entries: list[Row], **options) -> str:
    path = write_report(tmp_path / "report.html", data, entries, **{"title": "A title", **options})
    page = path.read_text(encoding="utf-8")
    for svg in svgs(page):  # an address that names a format is not fetched; no other may be there
        assert not re.search(r"https?://(?!www\.w3\.org/(2000/svg|1999/xlink))", svg)
        assert "<metadata" not in svg
    assert "://" not in page
    assert not re.search(r"<(script|link|iframe)", page)
    assert not re.search(r"""(src|href)=["'](?!data:image/)""", page)
    return page


def svgs(page: str) -> list[str]:
    return [base64.b64decode(code).decode() for code in re.findall(r"data:image/svg\+xml;base64,([^\"]+)", page)]


def words(page: str) -> str:
    """The text of a page, without its marks and with single spaces."""
    body = page[page.index("<main>") :]
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body))


def small_vae() -> Density:
    torch.manual_seed(5)
    vae = build("vae", IMAGES, width=8, latent=2, network="mlp")
    vae.initialise(events(IMAGES, 20))
    vae.spec = IMAGES
    return vae


def comparison() -> list[Row]:
    return [
        entry(Fake(IMAGES), "independent", "exact", -129.25, steps=0, samples_per_second=251_234.0),
        entry(
            small_vae(),
            "vae",
            "lower",
            -92.5,
            samples=64,
            terms={"reconstruction": -72.25, "-KL": -25.75, "tightening (K = 64)": 5.5},
            notes=("undertrained: it made 100 steps, 0.5 of an epoch",),
            gain=36.75,
            gain_stderr=0.25,
        ),
        entry(Fake(IMAGES, conditional=True), "diffusion", "estimate", -88.0, samples=8),
        entry(
            FakeClassifier(IMAGES),
            "classifier",
            "exact",
            -0.125,
            event="y",
            accuracy=0.9,
            accuracy_interval=(0.799, 0.953),
            calibration_error=0.02,
        ),
        Row(Result(model="xz", bound="exact", nats=-160.0, bits_per_dim=3.61, gain=-30.75, n=60)),
    ]


def test_comparison_of_images(tmp_path):
    entries = comparison()
    text = words(written(tmp_path, data_of(IMAGES), entries))
    assert "images 1×8×8, 17 levels, 10 classes" in text
    assert (
        "1 vae lower bound 64 samples, undertrained 2.085 ± 0.011 −92.50 ± 0.50 +36.75 ± 0.25 12.3 k 5.0 s 100 –"
        in text
    )
    assert "diffusion estimate given the label, 8 samples 1.984" in text
    assert "2 independent exact 2.914 ± 0.011 −129.25 ± 0.50 – 12.3 k 5.0 s – 251,000" in text
    assert "3 xz code length 3.61 −160.00 −30.75 – – – –" in text
    assert "reconstruction −72.25 -KL −25.75 tightening (K = 64) 5.50 sum −92.50" in text
    assert "classifier 90.0 % (79.9 to 95.3 %) −0.12 ± 0.50 2.0 %" in text
    assert "vae , undertrained: it made 100 steps, 0.5 of an epoch." in text
    for section in (
        "Training",
        "Samples",
        "Latents",
        "reconstructions",
        "Classification",
        "Code length",
        "Given the label",
    ):
        assert section in text


def test_the_best_row_is_of_the_unconditional_densities_of_the_data(tmp_path):
    page = written(tmp_path, data_of(IMAGES), comparison())
    best = re.findall(r'<tr class="best">\s*<td><span class="rank">1</span> (.*?)</td>', page)
    assert best == ["vae"]
    assert "The best density by nats is vae (lower bound, 64 samples, undertrained) with 2.085" in words(page)
    assert "better:" not in words(page)


def test_rows_stand_best_first_and_a_better_compressor_is_named(tmp_path):
    """The page ranks what is given in the order of training: here the baseline, xz, and two densities."""
    spec = IMAGES
    entries = [
        entry(Fake(spec), "independent", "exact", -120.0),
        Row(Result(model="xz", bound="exact", nats=-80.0, bits_per_dim=1.8, n=60)),
        entry(Fake(spec), "flow", "lower", -130.0),
        entry(Fake(spec), "vae", "lower", -100.0),
    ]
    page = written(tmp_path, data_of(spec), entries)
    rows = re.findall(r'<span class="rank">(\d)</span> (\w+)</td>', page)
    assert rows == [("1", "xz"), ("2", "vae"), ("3", "independent"), ("4", "flow")]
    text = words(page)
    assert "The best density by nats is vae (lower bound, 1 sample) with 2.25" in text
    assert "A compressor is better: xz with 1.80 bits/dim." in text
    names = re.findall(r"(\d  ?\w+)", " ".join(re.findall(r">([^<>]*)</text>", svgs(page)[0])))
    assert [name.split()[-1] for name in names if name[0] in "1234" and not name.split()[-1].isdigit()] == [
        "xz",
        "vae",
        "independent",
        "flow",
    ]


def drawn_bars(rows: list[Bar], monkeypatch, **options):
    """The axes of `bars`."""
    from matplotlib.figure import Figure

    axes = Figure().add_subplot()
    monkeypatch.setattr(figures, "panel", lambda width, height, draw: draw(axes) or "")
    bars(rows, **options)
    return axes


def test_the_winner_s_bar_is_whole_and_only_a_compressor_s_breaks(monkeypatch):
    """A density far ahead of the rest was cut, with its whisker, by a rule for PNG."""
    rows = [Bar("flow", -5.0, 1.0), Bar("vae", -24.8, 1.0), Bar("independent", -25.0, 1.0)]
    axes = drawn_bars(rows, monkeypatch, unit="nats", baseline=-25.0, from_zero=False)
    assert [bar.get_width() for bar in axes.patches[:3]] == pytest.approx([20.0, 0.2, 0.0])
    assert axes.get_xlim()[1] > -4 and len(axes.patches) == 3  # no gap
    assert [text.get_text() for text in axes.texts] == ["−5.00", "−24.80", "−25.00"]

    rows = [Bar("vae", 1.8, 0.1), Bar("xz", 2.9, 0.0, may_break=True), Bar("png", 14.0, 0.3, may_break=True)]
    axes = drawn_bars([*rows, Bar("independent", 2.4, 0.1)], monkeypatch, unit="bits", baseline=2.4, from_zero=True)
    vae, xz, png, independent, *gaps = (bar for bar in axes.patches)
    assert [bar.get_width() for bar in (vae, xz, independent)] == pytest.approx([1.8, 2.9, 2.4])
    assert 2.9 < png.get_width() < 5 and len(gaps) == 2  # in its bar and in the axis
    assert axes.texts[2].get_text() == "14.00" and max(axes.get_xticks()) < png.get_width()


def test_drawing_is_in_evaluation_mode_once_a_model_and_leaves_no_trace(tmp_path):
    entries, data = comparison(), data_of(IMAGES)
    state = torch.random.get_rng_state()
    written(tmp_path, data, entries)
    assert torch.equal(state, torch.random.get_rng_state())
    densities = [e.run.density for e in entries if e.run]
    assert densities[1].training
    for density in (densities[0], densities[2]):
        [(n, disturbed, _)] = density.asked
        assert (n, disturbed, density.training) == (60, False, True)
    assert densities[2].asked[0][2][:12].tolist() == [*range(10), 0, 1]
    assert densities[3].asked == []


def test_the_same_seed_gives_the_same_page(tmp_path):
    data = data_of(IMAGES)
    pages = [written(tmp_path, data, comparison(), seed=seed) for seed in (1, 1, 2)]
    assert pages[0] == pages[1] != pages[2]


def test_names_are_escaped(tmp_path):
    spec = dataclasses.replace(IMAGES, classes=("<a>", "&b", *"23456789"))
    entries = [entry(Fake(spec), "<script>x</script>", "exact", -90.0)]
    page = written(tmp_path, data_of(spec, name="<i>name"), entries, title="a < b & c")
    assert "<title>a &lt; b &amp; c</title>" in page
    assert "&lt;i&gt;name" in page
    assert "&lt;script&gt;x" in page


def test_a_single_run_has_no_baseline_and_no_bars(tmp_path):
    page = written(tmp_path, data_of(IMAGES), comparison()[1:2])
    text = words(page)
    assert "gain over" not in text
    assert "Best is" not in text
    assert "Latents" in text and "dimensions active" in text
    assert len(svgs(page)) == 3  # its training curve, its latents' KL, and where they lie


def test_a_classifier_alone(tmp_path):
    page = written(tmp_path, data_of(IMAGES), comparison()[3:4])
    assert "Log-likelihood" not in page
    assert "Classification" in page
    assert len(svgs(page)) == 3
    assert ">predicted<" in svgs(page)[0]


def test_colour_images(tmp_path):
    page = written(tmp_path, data_of(COLOURS), [entry(Fake(COLOURS), "flow", "lower", -200.0)])
    assert page.count("data:image/png;base64,") == 2
    assert "image-rendering: pixelated" in page


def test_table(tmp_path):
    entries = [entry(Fake(TABLE), name, "exact", nats) for name, nats in (("independent", -30.0), ("flow", -28.0))]
    page = written(tmp_path, data_of(TABLE), entries)
    assert "table of 4 columns, 3 discrete" in page
    assert "bits/dim" not in page
    assert len(svgs(page)) == 1 + 2 + 2 * (4 + 1)
    assert any("virginica" in svg for svg in svgs(page))
    assert any("income &lt;$&gt;" in svg for svg in svgs(page))
    assert "4 of 4 columns are drawn." in words(page)


def test_a_wide_table_says_how_many_columns_are_drawn(tmp_path):
    spec = spec_of("array", 30)
    page = written(tmp_path, data_of(spec), [entry(Fake(spec), "flow", "exact", -40.0)])
    assert "24 of 30 columns are drawn, the first." in words(page)
    assert len(svgs(page)) == 1 + 24 + 1


def test_a_column_of_many_categories_says_how_many_are_drawn():
    column = Column(name="letter", type="categorical", categories=tuple("abcdefghij"))
    codes = np.arange(10.0).repeat(3)
    assert "the 8 commonest of 10" in figures.marginal(column, codes, codes)


def test_text(tmp_path):
    data = data_of(TEXT)
    data.test.x[:] = torch.tensor(list(b"<b>caf\xc3\xa9\x00 \xff............."))
    page = written(tmp_path, data, [entry(Fake(TEXT), "autoregressive", "exact", -50.0, bits_per_byte=3.0056)])
    assert page.count("<pre>") == 8
    assert "&lt;b&gt;café� �..." in page
    assert "bits/byte" in page
    assert "bits/dim" not in page


@pytest.mark.parametrize(("spec", "plots"), [(VECTORS, 3 + 1), (CUBES, 8 + 1)])
def test_arrays(tmp_path, spec, plots):
    density = Fake(spec)
    page = written(tmp_path, data_of(spec), [entry(density, "flow", "exact", -4.0)])
    assert len(svgs(page)) == 1 + plots


def test_samples_and_numbers_that_are_not_finite(tmp_path):
    density = Fake(VECTORS)
    density.sample = lambda n, context=None: torch.full((n, 3), math.nan)
    entries = [entry(Fake(VECTORS), "independent", "exact", -4.0), entry(density, "flow", "exact", -math.inf)]
    assert "−∞" in words(written(tmp_path, data_of(VECTORS), entries))


def test_no_entries(tmp_path):
    with pytest.raises(ValueError, match="at least one entry"):
        write_report(tmp_path / "report.html", data_of(VECTORS), [], title="none")


def test_numbers():
    assert plus_minus(-3.14159, 0.0123) == "−3.142 ± 0.012"
    assert plus_minus(1234.5, 25.0, signed=True) == "+1,234 ± 25"
    assert plus_minus(-2.0, None) == "−2.00"
    assert plus_minus(1.0, 0.0) == "1.00" and plus_minus(0.0, 2e-7) == "0.00000 ± 2e-07"  # never ± 0
    assert (number(None), number(math.nan), number(math.inf)) == ("–", "–", "∞")
    results = [Result(model=m, bound="exact", nats=v, stderr=s, n=9) for m, v, s in [("a", 1.0, 3.0), ("b", 5.0, 4.0)]]
    assert unit_of(VECTORS, results).name == "nats per example"
    assert unit_of(IMAGES, results).per_nat == pytest.approx(-1 / (64 * math.log(2)))


def test_image_grid_places_images_and_scales_levels():
    x = torch.tensor([0, 8, 16], dtype=torch.uint8).reshape(3, 1, 1, 1).expand(3, 1, 24, 24)
    grid = image_grid(x, IMAGES, columns=2)
    assert grid.shape == (48 * 2 + 3, 48 * 2 + 3)
    assert [grid[0, 0], grid[0, -1], grid[-1, 0], grid[-1, -1]] == [0, 128, 255, 255]
    assert grid[0, 49] == 255  # the gap


def test_image_samples_as_files(tmp_path):
    write_samples(events(COLOURS, 10), COLOURS, tmp_path / "samples.png")
    with Image.open(tmp_path / "samples.png") as image:
        assert image.mode == "RGB"
    write_samples(events(IMAGES, 1), IMAGES, tmp_path / "one.png")
    with Image.open(tmp_path / "one.png") as image:
        assert (image.mode, image.size) == ("L", (48, 48))


def test_table_samples_as_files(tmp_path):
    x = torch.tensor([[31.0, 1234.5, 1.0, 0.0], [7.0, 0.1, 2.0, 1.0]])
    write_samples(x, TABLE, tmp_path / "samples.csv")
    with (tmp_path / "samples.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["age", "income <$>", "species", "smoker"]
    assert rows[1:] == [["31", "1234.5", "versicolor & co", "no"], ["7", "0.1", "virginica", "yes"]]


def test_text_and_array_samples_as_files(tmp_path):
    write_samples(torch.tensor([list(b"abc"), list(b"d\ne")]), TEXT, tmp_path / "samples.txt")
    assert (tmp_path / "samples.txt").read_text() == "--- sample 1 ---\nabc\n--- sample 2 ---\nd\ne\n"
    x = events(VECTORS, 4)
    for spec in (VECTORS, TABLE, TEXT, IMAGES):
        write_samples(x, spec, tmp_path / "samples.npy")
        assert np.array_equal(np.load(tmp_path / "samples.npy"), x.numpy())


@pytest.mark.parametrize(("spec", "name"), [(IMAGES, "x.csv"), (TABLE, "x.png"), (VECTORS, "x.txt"), (TEXT, "x")])
def test_a_suffix_that_does_not_fit(tmp_path, spec, name):
    with pytest.raises(ValueError, match=re.escape(f"got '{name}'")):
        write_samples(events(spec, 2), spec, tmp_path / name)


def test_images_of_other_channels_need_npy(tmp_path):
    spec = spec_of("image", 2, 4, 4, levels=256)
    with pytest.raises(ValueError, match=r"use \.npy"):
        write_samples(events(spec, 2), spec, tmp_path / "x.png")


def test_tokens_beyond_bytes_are_shown_as_numbers():
    assert text_of(torch.tensor([5, 999]), spec_of("text", 2, levels=1000)) == "5 999"


def test_draw_is_seeded():
    a, b, c = (draw(Fake(VECTORS), VECTORS, 5, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_the_terminal_s_table_stands_best_first_with_notes(capsys):
    entries = comparison()
    entries.insert(2, Row(Result(model="png", bound="exact", nats=-60.0, bits_per_dim=1.35, n=60)))
    print_comparison(entries, data_of(IMAGES))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].strip() == "made up: log-likelihood of 60 test examples, best first"
    assert [line.split()[:2] for line in lines[2:7]] == [
        ["1", "png"],
        ["diffusion", "-88.00"],  # given the label: not ranked
        ["2", "vae"],
        ["3", "independent"],
        ["4", "xz"],
    ]
    assert "lower, K=64 *" in lines[4] and "*" not in lines[5]
    assert lines[7] == "png, a compressor, is better than vae, the best density"
    assert lines[8].startswith("classifier, p(label | data): accuracy 90.0% (95% interval 79.9% to 95.3%), -0.125")
    assert lines[9:] == ["* vae, undertrained: it made 100 steps, 0.5 of an epoch"]


def test_an_error_that_is_small_or_unknown_is_not_shown_as_0(capsys):
    row = Result(model="flow", bound="exact", nats=-2.0, stderr=0.00021, n=10**6)
    certain = Result(model="c", bound="exact", nats=0.0, n=9, event="y", accuracy=1.0, calibration_error=0.0)
    print_comparison([Row(row), Row(certain)], data_of(VECTORS))
    out = capsys.readouterr().out
    assert "-2.00000 0.00021" in out and "± 0.0" not in out
