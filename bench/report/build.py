"""Build the README's section, and a page and pictures for every device, from the rows of ``bench/results``."""

import sys
from pathlib import Path

from bench.harness import rows
from bench.report.comparison import unexplained
from bench.report.page import page
from bench.report.pictures import draw
from bench.report.readme import replaced, section
from bench.report.table import Table, devices

README = rows.ROOT / "README.md"


def texts() -> dict[Path, str]:
    """Return what the README and the page of every device should hold."""
    found = rows.read()
    pages = {_page_path(device): page_text(device) for device in devices(found)}
    folder = rows.RESULTS.relative_to(README.parent)
    readme = section(found, lambda device: [f"{folder}/{name}" for name in _pictures(device)])
    return {README: replaced(README.read_text(), readme), **pages}


def page_text(device: str) -> str:
    return page(Table(rows.read(device), device), rows.read_checks(device), _pictures(device))


def stale() -> list[Path]:
    return [path for path, text in texts().items() if not path.exists() or path.read_text() != text]


def write() -> None:
    """Write the README's section, the pages and the pictures."""
    found = rows.read()
    for device in devices(found):
        table = Table(found, device)
        for line in unexplained(table):
            print(f"{device}: {line.label} is slower than {line.baseline}, and its suite gives no reason")
        try:
            draw(table, rows.path_of(device).with_suffix(""))
        except ModuleNotFoundError as error:
            print(f"no pictures: {error}", file=sys.stderr)
    for path, text in texts().items():
        path.write_text(text)


def write_page(device: str) -> None:
    """Write the page of one device."""
    _page_path(device).write_text(page_text(device))


def _page_path(device: str) -> Path:
    return rows.path_of(device).with_suffix(".md")


def _pictures(device: str) -> list[str]:
    return sorted(path.name for path in rows.RESULTS.glob(f"{rows.path_of(device).stem}-*.png"))
