"""Pages in headless Chromium: what each control does, narrow screens, the dark, and that nothing is loaded."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from helpers.reports import IMAGES, TABLE, TEXT, Fake, comparison, data_of, entry, events
from loglik.recipes import build
from loglik.report import write_report

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
    """A comparison of images, a diffusion of images, a table and a text."""
    folder = tmp_path_factory.mktemp("pages")
    torch.manual_seed(0)
    diffusion = build("diffusion", IMAGES, kind="mlp", width=16, depth=1, steps=8)
    diffusion.initialise(events(IMAGES, 20))
    diffusion.spec = IMAGES
    table = [entry(Fake(TABLE), name, "exact", nats) for name, nats in (("independent", -30.0), ("flow", -28.0))]
    rows = {
        "images": (IMAGES, comparison()),
        "diffusion": (IMAGES, [entry(diffusion, "diffusion", "lower", -90.0)]),
        "table": (TABLE, table),
        "text": (TEXT, [entry(Fake(TEXT), "autoregressive", "exact", -50.0, bits_per_byte=3.0)]),
    }
    return {
        name: write_report(folder / f"{name}.html", data_of(spec), entries, title=name)
        for name, (spec, entries) in rows.items()
    }


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


@pytest.mark.parametrize("name", ["images", "diffusion", "table", "text"])
@pytest.mark.parametrize("width", [1280, 390])
def test_all_charts_are_drawn_and_no_page_is_wider_than_the_screen(opened, name, width):
    page = opened(name, width=width)
    charts = page.locator("figure.chart").count()
    assert charts == page.locator("figure.chart [role=graphics-document][aria-label]").count() > 0
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
