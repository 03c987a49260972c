"""What becomes of the numbers: terminal table and CSV; from the CSVs alone, README block and plots.

`python benchmarks/report.py` writes the block of README.md and its translation, and the plots; with --check
it only says whether the block is current.
"""

import argparse
import os
import re
import sys

import predicted
import start_report
import yolo_report
from evidence import coverage, read_all
from goals import by_row, geometric_mean, line_of, times, x_best, x_eager
from provenance import PROVENANCE, RESULTS, ROOT, environment, headline, heads, read, slug, write_table

__all__ = ("RESULTS", "ROOT", "environment", "headline", "read", "slug")  # what the benchmarks take from here

README = ROOT / "README.md"
BEGIN, END = "<!-- results -->", "<!-- /results -->"
COLUMNS = (
    "row", "kind", "case", "B", "C", "H", "W", "k", "dtype", "provider", "role", "status", "error_ratio",
    "ms", "ms_p20", "ms_p80", "rounds", "graph_ms", "call_ms", "saved_bytes", "peak_bytes",
    *PROVENANCE,
)  # fmt: skip
DEMO = "demo.csv"  # beside the operators' files; of other columns
DEMO_COLUMNS = (
    "module", "backend", "imgsz", "batch", "seconds", "seconds_p20", "seconds_p80", "steps", *PROVENANCE,
)  # fmt: skip
WORK = {
    "lska_cascade_fwd": "LSKA cascade, forward",
    "lska_fwd": "LSKA, forward",
    "lska_fwd_bwd": "LSKA, forward + backward",
    "lska_train": "LSKA, forward + backward, autocast, channels_last",
    "acmix_fwd": "ACmix, forward",
    "acmix_fwd_bwd": "ACmix, forward + backward",
    "acmix_train": "ACmix, forward + backward, autocast, channels_last",
}


# Terminal


def print_row(lines):
    found, best = times(lines), line_of(lines, "pytorch")
    print(f"  {'':<28} {'ms':>9} {'p20':>9} {'p80':>9} {'x eager':>8} {'x best':>7} {'% copy':>7} "
          f"{'saved':>9} {'peak':>9} {'error':>8}")  # fmt: skip
    for line in lines:
        if line["provider"] not in found:
            print(f"  {line['provider']:<28} {line['status']}")
            continue
        ms = found[line["provider"]]
        ratios = [found["eager"] / ms if "eager" in found else None, float(best["ms"]) / ms if best else None]
        if line["role"] not in ("ours", "pytorch"):
            ratios = [None, None]
        cells = [f"{line[name]:9.3f}" for name in ("ms", "ms_p20", "ms_p80")]
        cells += [
            f"{ratios[0]:8.2f}" if ratios[0] else " " * 8,
            f"{ratios[1]:7.2f}" if ratios[1] else " " * 7,
        ]
        cells += [f"{100 * found['copy'] / ms:7.1f}", *(_mb(line[n]) for n in ("saved_bytes", "peak_bytes"))]
        print(f"  {line['provider']:<28} {' '.join(cells)} {_number(line['error_ratio'])}", flush=True)


def _mb(value):
    return " " * 9 if value in ("", None) else f"{int(value) / 1e6:6.1f} MB"


def _number(value):
    return "" if value == "" else f"{value:8.2g}"


# CSV


def write(file, lines, order):
    """Puts rows into the CSV: a row's lines are replaced together, so that its ratios come from one run."""
    new = {(line["row"], line["dtype"]) for line in lines}
    kept = [line for line in read(file) if (line["row"], line["dtype"]) not in new] if file.exists() else []
    rank = {row: i for i, row in enumerate(order)}
    merged = sorted([*kept, *lines], key=lambda line: (line["dtype"], rank.get(line["row"], len(rank))))
    write_table(file, COLUMNS, merged)


def write_demo(file, lines):
    """The demo's whole file: its lines are measured together."""
    write_table(file, DEMO_COLUMNS, lines)


def devices(results):
    """{folder name: lines of the operators' CSVs}, of folders that have other CSVs of a device alone none."""
    names, found = ("lska.csv", "acmix.csv", DEMO, yolo_report.FILE), {}
    files = (file for file in results.glob("*/*.csv") if file.name in names)
    for file in sorted(files, key=lambda f: (f.parent.name, names.index(f.name))):
        found.setdefault(file.parent.name, []).extend(read(file) if file.name in names[:2] else [])
    return found


# README


def block(results=RESULTS):
    """The text between README.md's markers."""
    found = devices(results)
    parts = {folder: _parts(results, folder, lines) for folder, lines in found.items()}
    cpus = [folder for folder in found if not re.search(r"-sm-\d+$", folder)]  # see provenance.slug
    shown = max(cpus, key=lambda folder: "".join(parts[folder]).count("\n|"), default=None)
    text = []
    for folder in sorted(found, key=lambda folder: (folder in cpus, folder != shown, folder)):
        folded = folder in cpus and folder != shown
        text += _folded(folder, parts[folder]) if folded else parts[folder]
    measured = [_on_gpu(line) for lines in found.values() for line in lines]
    if not any(measured):
        text.append("GPU: not measured on a GPU yet.")
    if all(measured):
        text.insert(0, "CPU: not measured yet.")
    text += predicted.block(results)
    text += filter(None, map(coverage, read_all(results)))
    text += start_report.block(results)
    return "\n\n".join(text)


def _on_gpu(line):
    return line["isa"].startswith("sm_")


def _parts(results, folder, lines):
    """All that README has of one device."""
    return [
        *(_device(folder, lines) if lines else ()),
        *_demo(results / folder / DEMO),
        *yolo_report.block(results, folder),
    ]


def _folded(folder, parts):
    """Of CPUs README shows the one with most results; the others open at a click."""
    return [f"<details><summary>{folder}</summary>", *parts, "</details>"] if parts else []


def _demo(file):
    """The demo's seconds per step, ours beside the reference, where they were measured."""
    if not file.exists():
        return
    lines = read(file)
    yield from heads(lines)
    table = ["| `make demo` | backend | seconds per step | × reference |", "|---|---|---|---|"]
    seconds = {(line["module"], line["backend"]): float(line["seconds"]) for line in lines}
    for (module, backend), s in seconds.items():
        table.append(
            f"| yolo11n-{module}, batch {lines[0]['batch']}, {lines[0]['imgsz']} px | {backend} | {s:.3f} "
            f"| {seconds[module, 'reference'] / s:.2f} |"
        )
    yield "\n".join(table)


def _device(folder, lines):
    yield from heads(lines)
    groups = {}
    for row in by_row(lines).values():
        first = row[0]
        groups.setdefault((first["kind"], first["case"], first["B"], first["dtype"]), []).append(row)
    table = [
        "| work | map | B | dtype | sizes k | eager, ms | best PyTorch, ms | ours, ms | × eager | × best "
        "| % of a copy | peak memory, MB: eager → ours |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    table += [_line(*key, rows) for key, rows in groups.items()]
    yield "\n".join(table)
    where = f"benchmarks/results/{folder}"
    yield f"Every row: [{where}]({where})." + "".join(
        f" ![{name.replace('_', ' ')}]({where}/{name}.png)" for name in plots_of(lines)
    )


def _line(kind, case, B, dtype, rows):
    """One line for all k of a shape: geometric means."""
    C, H, W = (rows[0][0][name] for name in "CHW")
    sizes = ", ".join(sorted((row[0]["k"] for row in rows), key=int))
    wrong = any(line["role"] == "ours" and line["status"].startswith("WRONG") for row in rows for line in row)
    ours = _mean(rows, lambda row: _ms(line_of(row, "ours")), "{:.4g}")
    work = WORK[kind]
    if _on_gpu(rows[0][0]):  # what was measured on a GPU came about in several runs
        work += f" ({', '.join(sorted({row[0]['date'][:10] for row in rows}))})"
    cells = [
        work, f"{C}×{H}×{W} ({case})", B, dtype, sizes,
        _mean(rows, lambda row: times(row).get("eager"), "{:.4g}"),
        _mean(rows, lambda row: _ms(line_of(row, "pytorch")), "{:.4g}"),
        "WRONG" if wrong else ours,
        _mean(rows, x_eager, "{:.2f}"), _mean(rows, x_best, "{:.2f}"),
        _mean(rows, _percent_of_copy, "{:.0f}"),
        f"{_mean(rows, lambda row: _peak(row, 'eager'), '{:.1f}')} → "
        f"{_mean(rows, lambda row: _peak(row, (line_of(row, 'ours') or {}).get('provider')), '{:.1f}')}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _mean(rows, value, form):
    """Geometric mean over all rows, or a dash where one of them lacks it."""
    values = [value(row) for row in rows]
    return "—" if not all(values) else form.format(geometric_mean(values))


def _ms(line):
    return float(line["ms"]) if line else None


def _percent_of_copy(row):
    ours, copy = line_of(row, "ours"), times(row).get("copy")
    return 100 * copy / _ms(ours) if ours and copy else None


def _peak(row, provider):
    peak = next((line["peak_bytes"] for line in row if line["provider"] == provider), "")
    return int(peak) / 1e6 if peak else None


def plots_of(lines):
    """Names of the plots these lines have something for."""
    kinds = {line["kind"] for line in lines if line["ms"]}
    ours = any(line["role"] == "ours" and line["ms"] for line in lines)
    wanted = {
        "speedup": ours,
        "cost_by_k": "lska_cascade_fwd" in kinds,
        "memory": any("bwd" in k for k in kinds),
    }
    return [name for name, there in wanted.items() if there]


def with_block(text, new):
    """README text with the block replaced."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{README.name} has no {BEGIN} … {END}; write both, each on its own line")
    return f"{head}{BEGIN}\n\n{new}\n\n{END}{tail}"


def main(arguments=None, readme=README, results=RESULTS):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 if a README is not current"
    )
    args = parser.parse_args(arguments)
    new, stale = block(results), []
    for file in (readme, *sorted(readme.parent.glob("README.*.md"))):  # the others are its translations
        text = file.read_text(encoding="utf-8")
        current = with_block(text, new)
        if text == current:
            continue
        stale.append(file.name)
        if not args.check:
            file.write_text(current, encoding="utf-8")
    if args.check:
        if stale:
            names = " and ".join(stale)
            print(f"{names}: other results than in benchmarks/results; run `make table`", file=sys.stderr)
        return int(bool(stale))
    import plots

    drawn = []
    for folder, lines in devices(results).items():
        drawn += [plots.draw(name, lines, results / folder / f"{name}.png") for name in plots_of(lines)]
        if networks := yolo_report.measured(results / folder / yolo_report.FILE):
            drawn.append(plots.draw("networks", networks, results / folder / yolo_report.PLOT))
    if trainings := start_report.trainings(results):
        drawn.append(plots.draw_start(trainings, results / start_report.PLOT))
    for file in drawn:
        print(os.path.relpath(file))
    return 0


if __name__ == "__main__":
    sys.exit(main())
