"""The time of training steps with a tangent over that of the plain step of the same model, timed in the same rounds."""

from bench.harness.case import PLAIN_STEP
from bench.report import markdown
from bench.report.markdown import decimals
from bench.report.table import Table

_HEAD = ("step", "batch", "implementation", "over the plain step")


def steps_over_plain(table: Table) -> list[str]:
    """Return the page's section as Markdown lines, none without rows."""
    body = [
        (row["mode"], row["shape"][0], other["implementation"], decimals(other["ms"] / row["ms"]))
        for row in table.rows
        if (row["implementation"], row["launch"]) == (PLAIN_STEP, "eager")
        for other in table.ways(row)
        if other is not row
    ]
    if not body:
        return []
    text = "Times as long as fastflow's step of the same model without a tangent (CFM), in the same run."
    return ["## Training steps over the plain step", "", text, "", *markdown.table(_HEAD, body, _HEAD[::2]), ""]
