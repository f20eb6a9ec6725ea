"""Entries and reports with made-up numbers."""

from kdgan_compress.evaluation import ClassMean
from kdgan_compress.reports.results import Entry, Report


def entry(name, auc, *, column="", data="mnist", is_baseline=False, ci95=None, by_class=None, complete=True, **others):
    mean = ClassMean(auc, ci95, 1, 1, 1, complete)
    return Entry((name,), column, data, is_baseline, mean, by_class or {}, **others)


def report(entries, **others):
    columns = list(dict.fromkeys(each.column for each in entries))
    values = {
        "title": "Table 6",
        "description": "",
        "variant": "",
        "axes": ["structure"],
        "column_axes": ["data"],
        "columns": columns,
        "problems": [],
        "environment": [("seeds", "0, 1")],
        "command": "kdgan-compress report r",
    }
    return Report(entries=entries, **values | others)
