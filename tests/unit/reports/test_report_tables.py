"""A report as Markdown and CSV, read back."""

import csv
import io

import pytest
from entries import entry, report

from kdgan_compress.reports.tables import class_tables, csv_text, markdown_text, results_tables


@pytest.fixture
def content():
    return report(
        [
            entry(
                "teacher|big", 0.97801, ci95=0.0021, paper=0.975, size_bytes=20_000, by_class={"0": 0.99, "1": 0.966}
            ),
            entry("PCA", 0.9, is_baseline=True, size_bytes=5000, by_class={"0": 0.9, "1": 0.9}),
        ],
        variant="full",
        problems=["one run is missing"],
    )


def rows_of(markdown, title):
    block = markdown.split(f"**{title}")[1].split("\n\n")[1]
    cells = [line.replace("\\|", "¦").strip("| ").split(" | ") for line in block.splitlines()]
    return [[cell.strip() for cell in row] for row in cells]


def test_markdown_has_the_results_the_command_and_what_is_missing(content):
    text = markdown_text(content)
    header, rule, teacher, pca = rows_of(text, "Results: mnist")
    assert header == ["structure", "AUC %", "paper", "runs", "bytes"]
    assert rule == ["---", "---:", "---:", "---:", "---:"]
    assert teacher == ["teacher¦big", "97.80 ± 0.21", "97.50", "1", "20,000"]
    assert pca == ["*PCA*", "90.00", "–", "–", "5,000"]
    assert "    kdgan-compress report r\n" in text
    assert "- one run is missing" in text
    assert "Variant: **full**." in text
    assert "- seeds: 0, 1" in text


def test_csv_has_a_line_per_entry(content):
    first, second = csv.DictReader(io.StringIO(csv_text(content)))
    assert first["structure"] == "teacher|big"
    assert (float(first["auc"]), float(first["ci95"]), float(first["paper_auc"])) == (0.97801, 0.0021, 0.975)
    assert (first["kind"], second["kind"]) == ("model", "baseline")
    assert (second["size_bytes"], second["latency_us"], second["ci95"]) == ("5000", "", "")


def test_several_columns_have_the_papers_figure_in_the_cell():
    entries = [
        entry("②", 0.9, column="mnist", paper=0.91, size_bytes=1200),
        entry("②", 0.7, column="cifar10", data="cifar10", best_auc=0.75, complete=False),
        entry("③", 0.8, column="mnist"),
    ]
    (table,) = results_tables(report(entries))
    assert table.header == ["structure", "mnist", "cifar10"]
    assert table.rows == [
        ["②", "90.00 (paper 91.00; 1,200 B)", "70.00 * (best epoch 75.00)"],
        ["③", "80.00", "–"],
    ]


def test_classes_are_rows_next_to_the_papers(content):
    (table,) = class_tables(content)
    assert table.header == ["class", "teacher|big", "PCA"]
    assert table.rows == [["0", "99.00", "90.00"], ["1", "96.60", "90.00"]]
    paper = entry("teacher", 0.9, by_class={"0": 0.9, "1": 0.8}, paper_by_class={"0": 0.95, "1": 0.85})
    (table,) = class_tables(report([paper]))
    assert table.header == ["class", "teacher", "teacher: paper"]
    assert table.rows == [["0", "90.00", "95.00"], ["1", "80.00", "85.00"]]
