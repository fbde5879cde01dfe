"""The README and the pages say what the rows say, and nothing else."""

import json
import re

import pytest

from bench.harness import rows as results
from bench.harness.case import PLAIN_STEP
from bench.harness.slope import slope
from bench.report import build as report
from bench.report.__main__ import main
from bench.report.bars import bars
from bench.report.markdown import number
from bench.report.pictures import draw
from bench.report.readme import BEGIN, END, NO_GPU, NOTHING
from bench.report.relabel import missing, relabel
from bench.report.table import SUITES, Table, devices, is_gpu
from bench.suites.entries import entries
from bench.suites.test_attention import TVM

CPU, GPU = "Some CPU, 2 threads", "NVIDIA H100"
JOINT, GPU_JOINT = (
    next(e for e in entries(cuda) if e.op == "attention" and e.mode == TVM and e.readme) for cuda in (False, True)
)


def row(device, entry, implementation, ms, **fields):
    return {
        **entry.key,
        **entry.listing,
        "baseline": next(iter(entry.baselines), "math"),
        **{"implementation": implementation, "launch": "eager"},
        **{"ms": ms, "ms_p20": 0.9 * ms, "ms_p80": 1.1 * ms, "rounds": 7, "times_as_fast": round(100 / ms, 3)},
        **{"tflops": 12.5, "gbps": 250.0, "roof_share": 0.25, "bound": "flops", "roof_tflops": 50.0, "roof_gbps": 1e3},
        **{"peak_mb": 8.0 if implementation == "fastflow" else 64.0, "error": 3e-7, "note": ""},
        **{"device": device, "driver": "none", "python": "3.12.1", "torch": "2.11.0", "triton": "3.6.0"},
        **{"commit": "abc", "date": "2026-01-02"},
        **fields,
    }


def pair(device, line, ms=40.0, **fields):
    return [row(device, line, name, time, **fields) for name, time in ((line.baselines[0], 100.0), ("fastflow", ms))]


def scaling(device):
    for n in (256, 512, 1024):
        for name, power in (("math", 2), ("fastflow", 1)):
            fields = {"op": "scaling attention", "mode": "forward + jvp + joint backward", "shape": [1, 4, n, 64]}
            fields |= {"label": "attention's joint backward", "baselines": [], "readme": []}
            yield row(device, JOINT, name, 1e-3 * n**2, peak_mb=1e-2 * n**power, **fields)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A repository of a README with the marks and no rows."""
    path = tmp_path / "bench" / "results"
    path.mkdir(parents=True)
    monkeypatch.setattr(results, "ROOT", tmp_path)
    monkeypatch.setattr(results, "RESULTS", path)
    monkeypatch.setattr(report, "README", tmp_path / "README.md")
    monkeypatch.setattr(report, "draw", lambda table, stem: [])
    report.README.write_text(f"# before\n{BEGIN}\nold\n{END}\nafter\n")
    return tmp_path


def readme_for(rows):
    results.append(rows)
    report.write()
    return report.README.read_text()


def line_of(text, label):
    (found,) = (line for line in text.splitlines() if line.startswith(f"| {label} |"))
    return found


def test_the_readme_and_the_pages_are_what_the_rows_give():
    assert report.stale() == [], "run python -m bench.report"


def test_without_rows_nothing_is_claimed(folder):
    assert readme_for([]) == f"# before\n{BEGIN}\n{NOTHING}\n{END}\nafter\n"


def test_the_table_names_the_ratio_the_memory_the_command_and_the_machine(folder):
    text = readme_for(pair(CPU, JOINT))
    assert (
        line_of(text, JOINT.label)
        == f"| {JOINT.label} | math | 2.50 | 0.12 (8.00 / 64.0 MiB) | `pytest bench/suites/test_attention.py` |"
    )
    assert (
        f"**{CPU}**; PyTorch 2.11.0, Triton 3.6.0, Python 3.12.1; 2026-01-02, commit abc. Medians of 7 or more" in text
    )
    assert NO_GPU in text
    assert text.startswith("# before\n")
    assert text.endswith("\nafter\n")


def test_a_figure_edited_by_hand_is_seen(folder, capsys):
    text = readme_for(pair(CPU, JOINT))
    assert main(["--check"]) == 0
    report.README.write_text(text.replace("2.50", "3.50"))
    assert main(["--check"]) == 1
    assert "README.md is not what the rows give" in capsys.readouterr().out


def test_a_page_edited_or_missing_is_seen(folder):
    readme_for(pair(CPU, JOINT))
    page = results.path_of(CPU).with_suffix(".md")
    assert report.stale() == []
    page.write_text(page.read_text().replace("40.0", "39.0"))
    assert report.stale() == [page]
    page.unlink()
    assert report.stale() == [page]


def test_a_new_row_replaces_the_old_one_everywhere(folder):
    readme_for(pair(CPU, JOINT, ms=40))
    text = readme_for(pair(CPU, JOINT, ms=200))
    assert "| 0.50 |" in line_of(text, JOINT.label)
    assert f"Below 1 ({JOINT.label}) because {JOINT.reason}." in text


def test_a_gpu_has_its_own_table_with_roof_graphs_and_flash(folder):
    plain = {"mode": "forward + backward", "baseline": "flash"}
    rows = [
        *pair(CPU, JOINT),
        *pair(GPU, GPU_JOINT, driver="550.1"),
        *pair(GPU, GPU_JOINT, ms=20.0, launch="graph", roof_share=0.5),
        row(GPU, GPU_JOINT, "flash", 8.0, launch="graph", **plain),
        row(GPU, GPU_JOINT, "flash", 9.0, **plain),
    ]
    text = readme_for(rows)
    assert NO_GPU not in text
    assert text.index(GPU) < text.index(CPU)
    assert "driver 550.1" in text
    assert line_of(text, GPU_JOINT.label).startswith(f"| {GPU_JOINT.label} | math | 2.50 | 5.00 | 2.50 | 50% |")
    assert report.stale() == []


def test_a_baseline_that_is_not_the_rows_own_is_compared_by_medians(folder):
    rows = [row(CPU, JOINT, "other", 100.0), *pair(CPU, JOINT)]
    for r in rows:
        r["baseline"] = "other"
    rows[1]["ms"] = 80.0
    assert "| 2.00 |" in line_of(readme_for(rows), JOINT.label)


def test_the_page_has_every_row_the_roofs_and_the_growth(folder):
    readme_for([*pair(CPU, JOINT), *scaling(CPU)])
    page = results.path_of(CPU).with_suffix(".md").read_text()
    assert "| float32 | 50.0 | 1000 |" in page
    assert "| math | eager | 100 | 90.0 – 110 | 1.00 | 12.5 | 250 | 25% of flops | 64.0 | 3e-07 |" in page
    assert re.search(r"joint backward \| math \| 256 … 1024 \| 2.00 \| 2.00 \|", page)
    assert re.search(r"joint backward \| fastflow \| 256 … 1024 \| 2.00 \| 1.00 \|", page)
    assert len(re.findall(r"\| eager \|", page)) == 2 + 6


def test_the_readme_tells_how_memory_grows(folder):
    graphs = [{**r, "launch": "graph", "peak_mb": 1.0} for r in scaling(CPU)]
    text = readme_for([*pair(CPU, JOINT), *scaling(CPU), *graphs])
    assert "From N = 256 to 1024, the peak memory of attention's joint backward" in text
    assert "grows as N^2.00 in math and as N^1.00 in fastflow" in text


def test_the_largest_batches_stand_in_the_readme_and_on_the_page(folder):
    fields = {"op": "largest batch", "mode": "DiT-B/2, tangent", "shape": [4, 32, 32], "images_per_second": 900}
    largest = [row(GPU, GPU_JOINT, *way, **fields) for way in (("math", 9.0), ("fastflow", 8.0))]
    for r, batch in zip(largest, (96, 320)):
        r["batch"] = batch
        for name in GPU_JOINT.listing:
            del r[name]
        del r["times_as_fast"], r["roof_share"], r["roof_tflops"], r["peak_mb"]  # as test_training.py writes it
    text = readme_for([*pair(GPU, GPU_JOINT), *largest])
    assert "Largest batch that fits, DiT-B/2, tangent: 96 with math, 320 with fastflow." in text
    page = results.path_of(GPU).with_suffix(".md").read_text()
    assert "| DiT-B/2, tangent | fastflow | 320 | 900 |" in page


def test_steps_stand_on_the_page_over_the_plain_step_of_their_own_case(folder):
    step = next(e for e in entries(False) if e.mode == "DiT-S/2, tangent")
    times = {"PyTorch": 100.0, PLAIN_STEP: 25.0, "fastflow": 60.0}
    other = {"mode": "DiT-S/2, MeanFlow", "times_as_fast": 1.0}
    readme_for([*(row(CPU, step, *x) for x in times.items()), row(CPU, step, "fastflow", 1.0, **other)])
    page = results.path_of(CPU).with_suffix(".md").read_text().partition("## Training steps over the plain step")[2]
    size = step.shape[0]
    assert f"| DiT-S/2, tangent | {size} | PyTorch | 4.00 |" in page
    assert f"| DiT-S/2, tangent | {size} | fastflow | 2.40 |" in page
    assert "MeanFlow |" not in page


def test_bars_are_held_to_the_rows(folder, capsys):
    step, over = (
        next(e for e in entries(False) if e.mode == mode) for mode in ("DiT-S/2, tangent", "digits DiT, exact")
    )
    times = {"PyTorch": 150.0, PLAIN_STEP: 50.0, "fastflow": 100.0}
    other = {"64 VJPs, one graph": 100.0, "fastflow forward": 95.0, "fastflow reverse": 91.0}
    rows = [row(CPU, e, *x) for e, ways in ((step, times), (over, other)) for x in ways.items()]
    found = {bar.name: bar for bar in bars(Table(rows, CPU))}
    first = found["DiT-S/2, tangent loss, batch 1: times as fast as PyTorch"]
    assert (first.measured, first.is_met) == (1.5, True)
    assert found["DiT-S/2, tangent loss, batch 1: peak memory"].measured == 8 / 64
    assert found["DiT-S/2, tangent loss, batch 1: over the plain step"].measured == 2.0
    exact = found["64 products, best mode: time over 64 VJPs, one graph"]
    assert (exact.measured, exact.is_met) == (0.91, False)
    unmeasured = found["16 products, best mode: time over 16 VJPs"]
    assert (unmeasured.measured, unmeasured.is_met) == (None, False)
    assert bars(Table(rows, GPU)) == []
    page = (readme_for(rows), results.path_of(CPU).with_suffix(".md").read_text())[1]
    assert f"| {first.name} | 1.50 | ≥ 1.40 | yes |" in page
    assert f"| {exact.name} | 0.91 | ≤ 0.90 | no |" in page
    assert main(["--bars"]) == 1
    assert f"{CPU}: {exact.name}: 0.91, must be at most 0.90" in capsys.readouterr().out


@pytest.mark.parametrize(("again", "own", "met"), [(104.0, 103.0, True), (96.0, 104.0, True), (101.0, 103.0, False)])
def test_a_plain_step_may_be_slower_by_the_noise(again, own, met):
    step = next(e for e in entries(False) if e.mode == "DiT-S/2, CFM")
    times = {"PyTorch": 100.0, "PyTorch again": again, "fastflow": own}
    found = bars(Table([row(CPU, step, *x) for x in times.items()], CPU))
    assert next(bar for bar in found if "CFM" in bar.name).is_met == met


def test_checks_stand_on_the_page(folder):
    check = {
        "check": "same bits",
        "verdict": "PASS",
        "tried": 3,
        "faults": 0,
        "worst": "",
        "remarks": [],
        "seconds": 1.0,
    }
    results.append([{**row(CPU, JOINT, "x", 1.0), **check, "torch": "2.11.0"}])
    with results.path_of(CPU).open() as file:
        rows = [json.loads(line) for line in file]
    del rows[0]["implementation"]
    results.path_of(CPU).write_text(json.dumps(rows[0]) + "\n")
    readme_for(pair(CPU, JOINT))
    assert "same bits" in results.path_of(CPU).with_suffix(".md").read_text()


def test_pictures_are_drawn_and_shown(folder, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(report, "draw", draw)
    text = readme_for([*pair(CPU, JOINT), *scaling(CPU)])
    for name in ("bars", "scaling"):
        picture = folder / "bench" / "results" / f"some-cpu-2-threads-{name}.png"
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert f"](bench/results/{picture.name})" in text


def test_without_matplotlib_the_rest_is_written(folder, monkeypatch, capsys):
    def absent(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(report, "draw", draw)
    monkeypatch.setattr("importlib.import_module", absent)
    text = readme_for(pair(CPU, JOINT))
    assert "pip install 'fastflow[train]'" in capsys.readouterr().err
    assert JOINT.label in text
    assert ".png" not in text


def test_a_readme_without_marks_is_refused(folder):
    report.README.write_text(f"{END} {BEGIN}")
    with pytest.raises(ValueError, match="marks"):
        report.texts()


def test_gpus_come_first_then_the_newest():
    rows = [{"device": d, "date": date} for d, date in ((CPU, "2026-03-01"), ("a", "2026-01-01"), (GPU, "2026-02-01"))]
    assert devices(rows) == [GPU, "a", CPU]


@pytest.mark.parametrize("cuda", [False, True], ids=["CPU", "GPU"])
def test_every_case_is_listed_once_and_six_in_the_readme(cuda):
    found = {json.dumps(e.key): e for e in entries(cuda)}
    listed = [e for e in found.values() if e.label]
    compared = [e.label for e in listed if e.baselines]
    assert len(set(compared)) == len(compared), "one label, two cases"
    assert {e.op for e in found.values()} <= set(SUITES)
    assert sum(len(e.readme) for e in listed) == 6
    assert all(set(e.readme) <= set(e.baselines) for e in listed)
    assert all(len(set(e.baselines)) == len(e.baselines) for e in listed)


def test_every_listed_row_is_that_of_a_case_and_every_listed_case_has_its_row():
    rows = results.read()
    for device in devices(rows):
        found = missing((row for row in rows if row["device"] == device), is_gpu(device))
        assert found == [], "measure again, or run python -m bench.report --relabel"


@pytest.mark.parametrize("field", ["mode", "label", "op", "dtype", "reason", "baselines", "readme", "yardstick"])
def test_a_case_that_is_renamed_is_seen(field):
    rows = [row(CPU, e, "fastflow", 1.0) for e in entries(False)]
    assert missing(rows, False) == []
    index = next(i for i, e in enumerate(entries(False)) if e == JOINT)
    rows[index][field] = "another"
    assert len(missing(rows, False)) == 2


def test_rows_are_relabelled_and_their_measurements_kept(folder):
    old = [{name: value for name, value in r.items() if name not in JOINT.listing} for r in pair(CPU, JOINT)]
    results.append(old)
    assert missing(results.read(), False) != []
    relabel()
    assert results.read() == [r | JOINT.listing for r in old]


def test_the_readme_shows_six_rows_of_a_device_and_the_page_all(folder):
    rows = [row(CPU, e, name, 1.0) for e in entries(False) if e.label for name in ("fastflow", *e.baselines)]
    text, page = readme_for(rows), results.path_of(CPU).with_suffix(".md").read_text()
    labels = {e.label: bool(e.readme) for e in entries(False) if e.baselines}
    assert {label: f"| {label} |" in text for label in labels} == labels
    assert all(f"| {label} |" in page for label in labels)
    assert len([line for line in text.splitlines() if line.endswith("` |")]) == 6


def test_the_readme_shows_attention_first_and_the_flow_step_last(folder):
    text = readme_for(
        [row(CPU, e, name, 1.0) for e in entries(False) if e.label for name in ("fastflow", *e.baselines)]
    )
    whats = [line.split(" | ")[0].strip("| ") for line in text.splitlines() if line.endswith("` |")]
    assert [what.split(",")[0] for what in whats] == [
        *("attention", "divergence", "training step", "training step", "flow step", "flow step"),
    ]


def test_slower_without_a_reason_is_told(folder, capsys):
    entry = next(e for e in entries(False) if e.baselines and not e.reason)
    results.append(pair(CPU, entry, ms=200.0))
    report.write()
    assert f"{entry.label} is slower than {entry.baselines[0]}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "0.00"),
        (0.00123, "0.00123"),
        (1.0, "1.00"),
        (123.4, "123"),
        (999.6, "1000"),
        (12345.0, "12345"),
    ],
)
def test_numbers_have_three_digits(value, text):
    assert number(value) == text


def test_the_slope_is_the_exponent():
    assert slope([1, 2, 4, 8], [3, 24, 192, 1536]) == pytest.approx(3)
