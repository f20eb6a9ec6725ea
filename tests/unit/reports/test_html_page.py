"""The page as a browser reads it: one file, no other resource, tables with headers, pictures with a text."""

import base64
import re
from html.parser import HTMLParser

import pytest
from entries import entry, report

from kdgan_compress.reports.charts import pareto_figure, svg_text
from kdgan_compress.reports.html_page import html_page
from kdgan_compress.reports.results import Picture

PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNkYAAAAAYAAjCB0C8AAAAASUVORK5CYII=")
VOID = {"meta", "img", "br", "link", "input"}


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.texts = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data.strip())

    def all(self, *names):
        return [attributes for tag, attributes in self.tags if tag in names]


@pytest.fixture
def page():
    entries = [
        entry("teacher", 0.978, ci95=0.0021, paper=0.975, size_bytes=20_000, by_class={"0": 0.99, "1": 0.966}),
        entry("②→③ <b>", 0.9613, best_auc=0.98, size_bytes=300, latency_us=26.4, by_class={"0": 0.95, "1": 0.97}),
        entry("PCA", 0.9, is_baseline=True, size_bytes=5000, complete=False),
    ]
    pictures = [
        Picture("AUC against cost", "Pareto", "Pareto", svg_text(pareto_figure(entries, "size_bytes"), "Pareto")),
        Picture("Reconstructions", "digits", "digits & scores", PNG),
    ]
    content = report(
        entries,
        variant="quick",
        problems=["runs/a: not finished & <more>"],
        pictures=pictures,
        commands={"teacher": "kdgan-compress train"},
        recipes={"teacher": "data:\n  source: mnist"},
    )
    return Page(html_page(content))


def test_the_page_is_well_formed_and_needs_nothing_else(page):
    assert page.open == []
    assert page.all("script", "link", "iframe", "object", "embed", "base", "form") == []
    links = [a[key] for _, a in page.tags for key in ("href", "src", "xlink:href", "poster", "action") if key in a]
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in links)
    style = " ".join(page.texts)
    assert "@import" not in style
    assert not re.search(r"url\((?!#)", style + " ".join(str(a.get("style")) for _, a in page.tags))
    targets = {a["id"] for _, a in page.tags if "id" in a}
    assert {a["href"][1:] for a in page.all("a")} <= targets


def test_pictures_have_a_text_and_tables_have_headers(page):
    assert [image["alt"] for image in page.all("img")] == ["digits & scores"]
    assert base64.b64decode(page.all("img")[0]["src"].partition(",")[2]) == PNG
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in page.all("svg"))
    assert len(page.all("svg")) == 1
    assert len(page.all("caption")) == len(page.all("table")) == 3
    assert all(header["scope"] in ("col", "row") for header in page.all("th"))
    assert page.all("html") == [{"lang": "en"}]


def test_the_page_fits_phones_and_both_themes(page):
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")
    assert {"name": "color-scheme", "content": "light dark"} in page.all("meta")
    assert "prefers-color-scheme: dark" in " ".join(page.texts)


def test_numbers_and_texts_are_there_and_escaped(page):
    assert {"97.80 ± 0.21", "97.50", "96.13", "98.00", "20,000", "90.00 *", "②→③ <b>"} <= set(page.texts)
    assert {"runs/a: not finished & <more>", "quick variant", "kdgan-compress report r", "seeds", "0, 1"} <= set(
        page.texts
    )
    assert page.all("b") == []
