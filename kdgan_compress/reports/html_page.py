"""A report as one HTML page that needs no other file and no network."""

import base64

from kdgan_compress.reports.results import Picture, Report
from kdgan_compress.reports.tables import INTERVAL_NOTE, class_tables, cost_table, results_tables

TEMPLATE = "report.html"


def html_page(report: Report) -> str:
    """Render the page; all text of the report is escaped, except the SVG of its pictures."""
    import jinja2

    loader = jinja2.PackageLoader("kdgan_compress.reports", "templates")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["png"] = _data_uri
    sections: dict[str, list[Picture]] = {}
    for picture in report.pictures:
        sections.setdefault(picture.section, []).append(picture)
    return environment.get_template(TEMPLATE).render(
        report=report,
        results=results_tables(report),
        classes=class_tables(report),
        cost=cost_table(report),
        note=INTERVAL_NOTE,
        sections=sections,
        incomplete=any(not entry.auc.is_complete for entry in report.entries),
    )


def _data_uri(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"
