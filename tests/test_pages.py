"""Pages in headless Chromium: what each control does, narrow screens, the dark, and that nothing is loaded."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from helpers.reports import (
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
    small_vae,
    spec_of,
)
from loglik.comparison import evaluate_run
from loglik.data.dataset import Data, Split
from loglik.data.spec import Column
from loglik.density import Density, StandardNormal
from loglik.inspection import inspect
from loglik.inspection import write_page as write_inspection
from loglik.recipes import build
from loglik.report import write_report
from loglik.runs import Run
from loglik.verification import verify
from loglik.verification import write_page as write_verification

MAX_BYTES = 2_000_000
WIDE = spec_of("table", 500, columns=tuple(Column(name=f"measurement {d}", type="numeric") for d in range(500)))
CLASSES = spec_of("image", 1, 8, 8, levels=17, classes=tuple(f"species {k}" for k in range(1000)))


def built(family: str, **options) -> Density:
    torch.manual_seed(0)
    density = build(family, IMAGES, **options)
    density.initialise(events(IMAGES, 40))
    density.spec = IMAGES
    return density.eval()


class ManyClasses(FakeClassifier):
    def probabilities(self, x):
        p = torch.full((len(x), 1000), 1e-6)
        p[torch.arange(len(x)), torch.arange(len(x)) % 7] = 1.0
        return p / p.sum(1, keepdim=True)


class Wide(Fake):
    def sample(self, n, context=None):
        return torch.randn(n, 500)


playwright = pytest.importorskip("playwright.sync_api", reason="the extra `pages` is not installed")


@pytest.fixture(scope="module")
def browser():
    installed = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with playwright.sync_playwright() as driver:
        try:
            chromium = driver.chromium.launch(executable_path=installed, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"no browser: {str(error).splitlines()[0]}")
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    """Pages of comparisons, of families by themselves, of large data, of a density from elsewhere, and the others."""
    folder = tmp_path_factory.mktemp("pages")
    torch.manual_seed(0)
    table = [entry(Fake(TABLE), name, "exact", nats) for name, nats in (("independent", -30.0), ("flow", -28.0))]
    diffusion = built("diffusion", kind="mlp", width=16, depth=1, steps=8)
    classes = data_of(CLASSES)
    for split in (classes.train, classes.validation, classes.test):
        split.y[:] = torch.randint(1000, (60,))
    wide = Data("made up", WIDE, *(Split(torch.randn(60, 500), None) for _ in range(3)))
    data = {name: data_of(spec) for name, spec in PAGES.items()} | {"classes": classes, "wide": wide}
    rows = {
        "images": comparison(),
        "diffusion": [entry(diffusion, "diffusion", "lower", -90.0)],
        "flow": [entry(built("flow", width=8, depth=1), "flow", "lower", -90.0)],
        "vae": [entry(small_vae(), "vae", "lower", -90.0)],
        "table": table,
        "text": [entry(Fake(TEXT), "autoregressive", "exact", -50.0, bits_per_byte=3.0)],
        "wide": [entry(Wide(WIDE), "flow", "exact", -50.0)],
        "classes": [entry(ManyClasses(CLASSES), "classifier", "exact", -2.0, event="y", accuracy=0.5)],
        "elsewhere": [evaluate_run(Run(StandardNormal((3,)), VECTORS), data["elsewhere"])],
    }
    files = {
        name: write_report(folder / f"{name}.html", data[name], entries, title=name) for name, entries in rows.items()
    }
    classifier = build("classifier", IMAGES, network="vit", width=16).eval()
    files["inspection"] = write_inspection(folder / "inspection.html", inspect(classifier, data["images"]))
    found = verify(small_vae(), data["images"], only=["closed-kl", "elbo-terms", "causal"])
    files["verification"] = write_verification(folder / "verification.html", found)
    return files


PAGES = dict.fromkeys(("images", "diffusion", "flow", "vae"), IMAGES) | {
    "table": TABLE, "text": TEXT, "wide": WIDE, "classes": CLASSES, "elsewhere": VECTORS
}  # fmt: skip
NAMES = [*PAGES, "inspection", "verification"]


@pytest.fixture
def opened(browser, pages):
    """Open a page, and fail at the end if it wrote to the console or asked for anything."""
    contexts, wrong = [], []

    def open_page(name: str, *, width: int = 1280, scheme: str = "light"):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: wrong.append(request.url) if _is_elsewhere(request.url) else None)
        page.goto(pages[name].as_uri())
        page.wait_for_selector("html[data-ready]", state="attached")
        return page

    def _is_elsewhere(url: str) -> bool:
        return not url.startswith("data:") and url not in {path.as_uri() for path in pages.values()}

    yield open_page
    for context in contexts:
        context.close()
    assert not wrong


def drawn(page) -> list[str]:
    """The drawings of a page's charts, as SVG."""
    return page.eval_on_selector_all("figure.chart svg.marks", "all => all.map(one => one.outerHTML)")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_all_charts_are_drawn_and_no_page_is_wider_than_the_screen(opened, pages, name, width, scheme):
    assert pages[name].stat().st_size < MAX_BYTES
    page = opened(name, width=width, scheme=scheme)
    charts = page.locator("figure.chart").count()
    assert charts == page.locator("figure.chart [role=graphics-document][aria-label]").count()
    assert charts > 0 or name == "verification"
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    clipped = page.eval_on_selector_all(
        "figure.chart", "all => all.filter(one => one.querySelector('svg.marks').clientWidth > one.clientWidth).length"
    )
    assert clipped == 0


def test_the_dark_changes_charts(opened):
    page = opened("images")
    light = drawn(page)
    page.emulate_media(color_scheme="dark")
    page.wait_for_function("[...document.querySelectorAll('figure.chart')].every(one => one.dataset.drawn === '2')")
    dark = drawn(page)
    assert len(light) == len(dark) and all(a != b for a, b in zip(light, dark, strict=True))
    assert "#0072B2" in light[0] and "#0072B2" not in dark[0] and "#56B4E9" in dark[0]
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(22, 24, 29)"


def test_a_table_is_sorted_by_click_and_by_keyboard(opened):
    page = opened("images")
    first = "table.sortable tbody tr:first-child td:first-child"
    assert "vae" not in page.locator(first).first.inner_text()  # given the label and not ranked: diffusion is first
    head = page.locator("table.sortable").first.locator("th").filter(has_text="nats per example").first
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert "xz" in page.locator(first).first.inner_text()
    assert page.locator("[role=status]").inner_text() == "Sorted by nats per example, ascending."
    head.locator("button").press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert "diffusion" in page.locator(first).first.inner_text()
    other = page.locator("table.sortable").first.locator("th").filter(has_text="Model")
    other.locator("button").press("Space")
    assert (head.get_attribute("aria-sort"), other.get_attribute("aria-sort")) == ("none", "ascending")
    assert "vae" in page.locator(first).first.inner_text()  # rank 1


def test_a_narrow_screen_sorts_by_a_list(opened):
    page = opened("images", width=390)
    listed = page.get_by_label("Sort by").first
    listed.select_option(label="samples/s, descending")
    assert "independent" in page.locator("table.sortable tbody tr:first-child td:first-child").first.inner_text()


def test_training_curves_are_drawn_against_steps(opened):
    page = opened("table")
    curve = page.locator('figure.chart[data-groups="curves"]').first
    assert "seconds" in curve.inner_text()
    page.get_by_role("combobox", name="Against", exact=True).select_option(label="steps")
    curve.locator("text=steps").wait_for()
    assert "seconds" not in curve.locator("svg.marks").text_content()


def test_any_two_columns_and_any_model_are_shown(opened):
    page = opened("table")
    pair = page.locator('figure.chart[data-groups="samples pairs"]')
    assert "income <$>" in pair.inner_text()
    before = pair.locator("svg.marks").inner_html()
    page.get_by_role("combobox", name="Up", exact=True).select_option(label="species")
    pair.locator("text=versicolor").first.wait_for()
    assert "income <$>" not in pair.inner_text()
    others = page.locator('figure.chart[data-groups="samples"]')
    panels = [one.inner_html() for one in others.locator("svg.marks").all()]
    page.get_by_role("combobox", name="Model", exact=True).select_option(label="independent")
    page.wait_for_function(
        "[...document.querySelectorAll('figure.chart[data-groups=samples]')].every(one => one.dataset.drawn === '2')"
    )
    assert all(one.inner_html() != old for one, old in zip(others.locator("svg.marks").all(), panels, strict=True))
    assert pair.locator("svg.marks").inner_html() != before


def test_the_slider_goes_from_noise_to_samples(opened):
    page = opened("diffusion")
    slider, output = page.get_by_role("slider", name="Noise level"), page.locator(".frames output")
    shown = page.locator(".frame:not([hidden]) img")
    last, at_last = shown.get_attribute("src"), output.inner_text()
    slider.focus()
    page.keyboard.press("ArrowLeft")
    assert shown.get_attribute("src") != last and output.inner_text() != at_last
    page.keyboard.press("Home")
    assert shown.count() == 1 and shown.get_attribute("src") != last
    assert output.inner_text().startswith("log-SNR −") and output.inner_text() != at_last
    assert slider.get_attribute("aria-valuetext") == output.inner_text()


def test_hovering_gives_nats_error_and_bound_and_a_latent_its_image(opened):
    page = opened("images")
    chart = page.locator("figure.chart").first
    chart.locator("path[aria-roledescription=bar]").first.hover()
    tip = page.locator("#vg-tooltip-element")
    tip.locator("text=standard error").wait_for()
    assert "lower bound" in tip.inner_text() or "estimate" in tip.inner_text()
    points = (
        page.locator("figure.chart").filter(has_text="Hover over a point").locator("path[aria-roledescription=point]")
    )
    points.last.hover(force=True)
    tip.locator("img").wait_for()
    assert tip.locator("img").get_attribute("src").startswith("data:image/png")


@pytest.mark.parametrize(("name", "words"), [("table", "training of"), ("table", "two columns"), ("vae", "Latents")])
def test_a_chart_is_zoomed_and_moved_by_buttons_by_keys_and_by_the_mouse(opened, name, words):
    page = opened(name)
    figure = page.locator("figure.chart").filter(has=page.locator(f'[aria-label*="{words}"]')).first
    zoom, element = figure.get_by_role("group", name=words), figure.element_handle()
    labels = "[...one.querySelectorAll('svg.marks .role-axis-label text')].map(t => t.textContent).sort().join()"
    first = page.evaluate(f"one => {labels}", element)
    page.set_default_timeout(10_000)
    figure.scroll_into_view_if_needed()
    box = figure.locator("svg.marks").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def changes_and_returns(act, back) -> None:
        act()
        page.wait_for_function(f"([one, first]) => {labels} !== first", arg=[element, first])
        page.wait_for_timeout(50)  # the axes of one change are drawn one after the other
        back()
        page.wait_for_function(f"([one, first]) => {labels} === first", arg=[element, first])

    def wheel() -> None:
        page.mouse.move(x, y)
        page.keyboard.down("Control")
        page.mouse.wheel(0, -300)
        page.keyboard.up("Control")

    def drag() -> None:
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x + 150, y + 60, steps=5)
        page.mouse.up()

    reset, out = (zoom.get_by_role("button", name=label) for label in ("Reset zoom", "Zoom out"))
    changes_and_returns(zoom.get_by_role("button", name="Zoom in").click, reset.click)
    changes_and_returns(lambda: out.press("Enter"), lambda: out.press("0"))
    changes_and_returns(lambda: [out.press("ArrowRight") for _ in range(4)], lambda: reset.press("Space"))
    changes_and_returns(wheel, lambda: page.mouse.dblclick(x, y))
    changes_and_returns(drag, reset.click)


def test_a_latent_is_reached_by_keyboard_with_its_image_in_words(opened):
    page = opened("vae")
    slider = page.get_by_role("slider", name="Example")
    picker = page.locator(".picker")
    image, said = picker.locator("img"), picker.locator("output")
    at, where = image.get_attribute("src"), said.inner_text()
    assert where.startswith("class ") and "z1" in where and "z2" in where
    assert image.get_attribute("alt").startswith("the example at z")
    ring = "figure.chart path[stroke-width='2.5'][stroke='#22252c']"
    assert page.locator(ring).count() == 1
    slider.focus()
    page.keyboard.press("End")
    assert slider.get_attribute("aria-valuetext") == said.inner_text() != where
    page.keyboard.press("ArrowLeft")
    assert image.get_attribute("src") != at or said.inner_text() != where
    page.wait_for_selector(ring, state="attached")
    assert page.locator(ring).count() == 1


def test_heat_maps_have_a_scale_and_the_nats_of_each_term(opened):
    page = opened("flow")
    example = page.locator(".thumbs figure").first
    assert [one.get_attribute("alt") for one in example.locator("img").all()][1:] == [
        f"nats of its pixels, {name}" for name in ("sum", "base", "log-determinant")
    ]
    assert "log-determinant" in example.locator("small").inner_text()
    assert page.locator(".scale").count() == 3 and "Yellow is unlikely" in page.locator("main").inner_text()


def test_the_nats_of_cells_are_shown_by_a_box(opened, pages, tmp_path, browser):
    torch.manual_seed(0)
    mixture = build("mixture", TABLE, components=2)
    mixture.initialise(events(TABLE, 60))
    mixture.spec = TABLE
    pages["mixture"] = write_report(
        tmp_path / "mixture.html", data_of(TABLE), [entry(mixture, "mixture", "exact", -30.0)], title="mixture"
    )
    page = opened("mixture")
    cell = page.locator("table.cells td[data-nats]").first
    nats = "one => getComputedStyle(one, '::after').content"
    assert cell.evaluate(nats) == "none"
    page.get_by_label("Show the nats of each cell").press("Space")
    assert cell.evaluate(nats) == f'"{cell.get_attribute("data-nats")}"'


def test_the_legend_of_latents_names_the_classes(opened):
    page = opened("vae", width=390)
    legend = page.locator("figure.chart svg.marks .role-legend-label text")
    assert set(legend.all_text_contents()) <= set("0123456789") and legend.count() >= 8


def test_a_page_of_500_columns_shows_some_and_says_so(opened):
    page = opened("wide", width=390)
    assert "The first 24 of 500 columns are shown." in page.locator("main").inner_text()
    assert "12 of 500 columns are shown." in page.locator("main").inner_text()
    assert page.get_by_role("combobox", name="Across").locator("option").count() == 24


def test_a_page_of_1000_classes_shows_those_with_the_most_errors(opened):
    page = opened("classes", width=390)
    assert "The 30 classes with the most errors, of 1,000, are shown." in page.locator("main").inner_text()
    matrix = page.locator("figure.chart").first
    labels = matrix.locator("svg.marks .role-axis-label text").all_text_contents()
    assert labels and all(label.startswith("species ") for label in labels)


def test_a_density_from_elsewhere_has_a_page_without_training(opened):
    page = opened("elsewhere")
    words = page.locator("main").inner_text()
    assert "standardnormal scores" in words and "Training" not in page.locator("h2").all_text_contents()
    assert page.locator("figure.chart").count() > 3


def test_an_inspection_is_hovered_over_and_its_tables_are_sorted(opened):
    page = opened("inspection", scheme="dark")
    chart = page.locator("figure.chart").filter(has=page.locator('[aria-label*="gradient norms"]'))
    chart.locator("path[aria-roledescription=point]").first.hover()
    tip = page.locator("#vg-tooltip-element")
    tip.locator("text=layer").first.wait_for()
    assert page.evaluate("getComputedStyle(document.querySelector('.card')).backgroundColor") == "rgb(31, 34, 41)"
    head = page.locator("table.sortable").first.locator("th").last
    head.locator("button").press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert page.locator("table.maps img[alt*=head]").count() == 4
