"""Make the README's section, a page and pictures of every device from the rows of ``bench/results``.

python -m bench.report            # write them
python -m bench.report --check    # exit status 1 if the README or a page is not what the rows give
python -m bench.report --bars     # exit status 1 if a recorded ratio misses its bar
python -m bench.report --relabel  # first give the rows the labels and reasons that their suites now have
"""

import argparse
import sys

from bench.harness import rows
from bench.report import build
from bench.report.bars import bars, unmet
from bench.report.table import Table, devices


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    parser.add_argument("--bars", action="store_true", help="compare the rows with the bars, write nothing")
    parser.add_argument("--relabel", action="store_true", help="update the listing fields of the rows")
    args = parser.parse_args(arguments)
    if args.check:
        for path in (found := build.stale()):
            print(f"{path.relative_to(rows.ROOT)} is not what the rows give: run python -m bench.report")
        return 1 if found else 0
    if args.bars:
        found = rows.read()
        missed = [f"{device}: {text}" for device in devices(found) for text in unmet(bars(Table(found, device)))]
        print("\n".join(missed) or "every bar is met")
        return 1 if missed else 0
    if args.relabel:
        from bench.report.relabel import relabel  # imports every suite

        relabel()
    build.write()
    return 0


if __name__ == "__main__":
    sys.exit(main())
