"""The report and the sample files, from densities made up here."""

import csv
import dataclasses
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.reports import (
    COLOURS,
    CUBES,
    IMAGES,
    TABLE,
    TEXT,
    VECTORS,
    Fake,
    FakeClassifier,
    comparison,
    data_of,
    entry,
    events,
    spec_of,
)
from loglik.comparison import Row
from loglik.data.dataset import Data, Split
from loglik.data.spec import Column
from loglik.evaluation.result import Result
from loglik.report import write_report, write_samples
from loglik.report.samples import image_grid, text_of
from loglik.tasks import draw


def written(tmp_path, data: Data, entries: list[Row], **options) -> str:
    """The page without its scripts, after checks of what any page must be."""
    path = write_report(tmp_path / "report.html", data, entries, **{"title": "A title", **options})
    page = path.read_text(encoding="utf-8")
    assert path.stat().st_size < 2 * 2**20
    for chart in charts(page):
        assert chart["description"] and "url" not in json.dumps(chart)
    body = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert "://" not in body
    assert not re.search(r"<(link|iframe)", body)
    assert not re.search(r"""\b(src|href)=["'](?!data:image/)""", body)
    check_tags(body)
    return body


def charts(page: str) -> list[dict]:
    """The specifications of a page's charts."""
    return [json.loads(text) for text in re.findall(r'<script type="application/json">(.*?)</script>', page)]


def described(page: str) -> list[str]:
    return [chart["description"] for chart in charts(page)]


class Tags(HTMLParser):
    """Raises where an element is not closed where it should be, and where two attributes have the same name."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        assert len({name for name, _ in attrs}) == len(attrs), (tag, attrs)
        assert tag != "img" or dict(attrs).get("alt"), attrs
        if tag not in ("meta", "img", "br", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, (tag, self.getpos())


def check_tags(page: str) -> None:
    tags = Tags()
    tags.feed(page)
    assert not tags.open


def words(page: str) -> str:
    """The text of a page, without its marks and with single spaces."""
    body = re.sub(r"<script.*?</script>|<select.*?</select>", " ", page[page.index("<main>") :], flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body))


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
    best = re.findall(r'<tr class="best">\s*<td data-value="1"><span class="rank">1</span> (.*?)</td>', page)
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
    assert charts(page)[0]["data"]["columns"]["name"] == ["1  xz", "2  vae", "3  independent", "4  flow"]


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
    drawn = described(page)
    assert [text.split(" ")[0] for text in drawn] == ["the", "training", "vae:", "vae:"]  # single examples, latents
    assert len(charts(page)[-1]["layer"][1]["data"]["columns"]["image"]) == 60


def test_a_classifier_alone(tmp_path):
    page = written(tmp_path, data_of(IMAGES), comparison()[3:4])
    assert "Log-likelihood" not in page
    assert "Classification" in page
    assert [text.split(" ")[0] for text in described(page)] == ["confusion", "reliability", "training"]
    assert sum(charts(page)[0]["data"]["columns"]["count"]) == 60


def test_colour_images(tmp_path):
    page = written(tmp_path, data_of(COLOURS), [entry(Fake(COLOURS), "flow", "lower", -200.0)])
    assert page.count("data:image/png;base64,") == 2 + 16  # data, samples; the most and the least likely
    assert "image-rendering: pixelated" in page


def test_table(tmp_path):
    entries = [entry(Fake(TABLE), name, "exact", nats) for name, nats in (("independent", -30.0), ("flow", -28.0))]
    page = written(tmp_path, data_of(TABLE), entries)
    assert "table of 4 columns, 3 discrete" in page
    assert "bits/dim" not in page
    drawn = described(page)
    assert drawn[2:4] == ["training of independent: nats per example against seconds or steps", drawn[3]]
    assert drawn[4:] == [
        "two columns: rows of the data and samples",
        "rank correlations of the columns, of the data and of the samples",
        *(f"{name}: data and samples" for name in ("age", "income <$>", "species", "smoker")),
    ]
    pairs = charts(page)[4]
    assert set(pairs["data"]["columns"]["s"]) == {"data", "independent", "flow"}
    assert (pairs["encoding"]["x"]["title"], pairs["encoding"]["y"]["title"]) == ("age", "income <$>")
    assert pairs["params"][0]["value"] == "flow"  # the best
    assert "columns are shown" not in words(page)  # all of them are


def test_a_wide_table_says_how_many_columns_are_shown(tmp_path):
    spec = spec_of("array", 30)
    page = written(tmp_path, data_of(spec), [entry(Fake(spec), "flow", "exact", -40.0)])
    assert "The first 24 of 30 columns are shown." in words(page)
    assert len(charts(page)) == 2 + 2 + 24


def test_a_page_of_500_columns_is_limited(tmp_path):
    columns = tuple(Column(name=f"c{i} </script><b>", type="numeric") for i in range(500))
    spec = spec_of("table", 500, columns=columns)
    density = Fake(spec)
    density.sample = lambda n, context=None: torch.randn(n, 500)
    data = Data("wide", spec, *(Split(torch.randn(80, 500)) for _ in range(3)))
    page = written(tmp_path, data, [entry(density, "flow", "exact", -40.0)])
    assert "The first 24 of 500 columns are shown." in words(page)
    assert "The first 12 of 500 columns are shown." in words(page)  # of the most and the least likely rows
    assert "</script><b>" not in page and "c0 &lt;/script&gt;&lt;b&gt;" in page


def test_a_page_of_1000_classes_is_limited(tmp_path):
    spec = spec_of("image", 1, 4, 4, levels=4, classes=tuple(f"class {i}" for i in range(1000)))
    y = torch.arange(2000) % 1000
    data = Data("many", spec, *(Split(torch.randint(4, (2000, 1, 4, 4), dtype=torch.uint8), y) for _ in range(3)))
    classifier = FakeClassifier(spec)
    classifier.probabilities = lambda x: torch.eye(1000)[(x.flatten(1).sum(1).long() * 37) % 1000]
    rows = [
        entry(Fake(spec, conditional=True), "diffusion", "lower", -20.0),
        entry(classifier, "classifier", "exact", -6.0, event="y", accuracy=0.1, calibration_error=0.2),
    ]
    page = written(tmp_path, data, rows)
    text = words(page)
    assert "a class in each column: class 0, class 1" in text and "class 9, of 1,000 classes" in text
    assert "The 30 classes with the most errors, of 1,000, are shown." in text


def test_text(tmp_path):
    data = data_of(TEXT)
    data.test.x[:] = torch.tensor(list(b"<b>caf\xc3\xa9\x00 \xff............."))
    page = written(tmp_path, data, [entry(Fake(TEXT), "autoregressive", "exact", -50.0, bits_per_byte=3.0056)])
    assert page.count("<pre>") == 8 + 6  # data, samples; the most and the least likely
    assert "&lt;b&gt;café� �..." in page
    assert "bits/byte" in page
    assert "bits/dim" not in page


def test_the_bytes_of_one_character_are_one_cell_with_the_sum_of_their_nats(tmp_path):
    data, density = data_of(TEXT), Fake(TEXT)
    data.test.x[:] = torch.tensor(list("caf\u00e9 </pre>.............".encode()))[:24]
    density.token_log_probs = lambda x, context=None: -torch.arange(24.0).expand(len(x), -1)
    page = written(tmp_path, data, [entry(density, "autoregressive", "exact", -50.0)])
    assert re.search(r'<span style="--u:0\.\d+" title="−7.00 nats">é</span>', page)  # −3 and −4
    assert "exact, each given those before it" in words(page) and "</span><span" in page
    assert page.count("</pre>") == 8 + 6


@pytest.mark.parametrize(("spec", "plots"), [(VECTORS, 3), (CUBES, 8)])
def test_arrays(tmp_path, spec, plots):
    density = Fake(spec)
    page = written(tmp_path, data_of(spec), [entry(density, "flow", "exact", -4.0)])
    assert len(charts(page)) == 4 + plots  # single examples, training, pairs, correlations


def test_samples_and_numbers_that_are_not_finite(tmp_path):
    density = Fake(VECTORS)
    density.sample = lambda n, context=None: torch.full((n, 3), math.nan)
    entries = [entry(Fake(VECTORS), "independent", "exact", -4.0), entry(density, "flow", "exact", -math.inf)]
    assert "−∞" in words(written(tmp_path, data_of(VECTORS), entries))


def test_no_rows(tmp_path):
    with pytest.raises(ValueError, match="at least one row"):
        write_report(tmp_path / "report.html", data_of(VECTORS), [], title="none")


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
