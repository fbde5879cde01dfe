"""From the rows of ``bench/results``: the README's tables, a page and pictures of every device.

python -m bench.report            # write them
python -m bench.report --check    # exit status 1 if the README or a page is not what the rows give
"""

import argparse
import sys
from pathlib import Path

from bench import _rows
from bench._page import page
from bench._pictures import MissingExtraError, draw
from bench._readme import replaced, section, unexplained
from bench._table import Table, devices

README = _rows.ROOT / "README.md"


def texts() -> dict[Path, str]:
    """What the README and the page of every device should hold."""
    from bench.gpu_check import check_lines  # which imports this module

    rows = _rows.read()
    pages = {
        _rows.path_of(device).with_suffix(".md"): page(Table(rows, device), check_lines(device), _pictures(device))
        for device in devices(rows)
    }
    folder = _rows.RESULTS.relative_to(README.parent)
    readme = section(rows, lambda device: [f"{folder}/{name}" for name in _pictures(device)])
    return {README: replaced(README.read_text(), readme), **pages}


def stale() -> list[Path]:
    return [path for path, text in texts().items() if not path.exists() or path.read_text() != text]


def write() -> None:
    rows = _rows.read()
    for device in devices(rows):
        table = Table(rows, device)
        for line in unexplained(table):
            print(f"{device}: {line.label}, against {line.baseline}, is slower and bench/_lines.py gives no reason")
        try:
            draw(table, _rows.path_of(device).with_suffix(""))
        except MissingExtraError as error:
            print(f"no pictures: {error}", file=sys.stderr)
    for path, text in texts().items():
        path.write_text(text)


def _pictures(device: str) -> list[str]:
    return sorted(path.name for path in _rows.RESULTS.glob(f"{_rows.path_of(device).stem}-*.png"))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    if parser.parse_args(arguments).check:
        for path in (found := stale()):
            print(f"{path.relative_to(_rows.ROOT)} is not what the rows give: run python -m bench.report")
        return 1 if found else 0
    write()
    return 0


if __name__ == "__main__":
    sys.exit(main())
