"""What becomes of bench_yolo.py's numbers: terminal table and CSV, and from the CSV README's table."""

from goals import above_plain, by_row, x_reference
from provenance import PROVENANCE, heads, read, write_table

FILE, PLOT = "yolo.csv", "networks.png"
COLUMNS = (
    "row", "kind", "case", "module", "role", "backend", "B", "side", "dtype", "status", "error_ratio",
    "difference", "ms", "ms_p20", "ms_p80", "rounds", "images_per_s", "peak_bytes", "parameters", "gflops",
    "ultralytics", *PROVENANCE,
)  # fmt: skip


def of_module(lines, module):
    """Of a row's lines those of a module, and the plain network's beside them."""
    return [line for line in lines if line["module"] in ("plain", module)]


def print_row(lines):
    print(f"  {'':<24} {'ms':>9} {'p20':>9} {'p80':>9} {'images/s':>9} {'peak MB':>9} {'error':>8}")
    for line in lines:
        name = f"{line['module']} {line['role'] if line['module'] != 'plain' else ''} {line['backend']}"
        if line["ms"] == "":
            print(f"  {name:<24} {line['status']}")
            continue
        cells = [f"{line[name]:9.1f}" for name in ("ms", "ms_p20", "ms_p80", "images_per_s")]
        cells.append("        -" if line["peak_bytes"] is None else f"{line['peak_bytes'] / 1e6:9.1f}")
        cells.append(f"{line['error_ratio']:8.3f}" if line["error_ratio"] != "" else "")
        print(f"  {name:<24} {' '.join(cells)}")


def write(file, lines, order):
    """Merges a row's lines into the CSV: what was measured again replaces what was there."""
    new = {(line["row"], line["dtype"]) for line in lines}
    kept = [line for line in read(file) if (line["row"], line["dtype"]) not in new] if file.exists() else []
    rank = {row: i for i, row in enumerate(order)}
    merged = sorted([*kept, *lines], key=lambda line: (line["dtype"], rank.get(line["row"], len(rank))))
    write_table(file, COLUMNS, merged)


def measured(file):
    """The CSV's lines, of rows alone whose plain network has a time."""
    if not file.exists():
        return []
    rows = by_row(read(file)).values()
    return [line for row in rows if any(li["role"] == "plain" and li["ms"] for li in row) for line in row]


def block(results, folder):
    """README's table of a device, in parts."""
    lines = measured(results / folder / FILE)
    if not lines:
        return
    yield from heads(lines)
    table = [
        "| work | network | parameters | GFLOPs | PyTorch | ours | × PyTorch "
        "| peak memory, MB: PyTorch → ours | above plain: ours / PyTorch |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in by_row(lines).values():
        for module in dict.fromkeys(line["module"] for line in row):
            table.append(_line(of_module(row, module), module))
    yield "\n".join(table)
    where = f"benchmarks/results/{folder}"
    yield f"Every network: [{where}/{FILE}]({where}/{FILE}). ![networks]({where}/{PLOT})"


def _line(lines, module):
    by_role = {line["role"]: line for line in lines}
    theirs = by_role["plain" if module == "plain" else "reference"]
    ours = by_role.get("ours") if module != "plain" else None
    network = theirs["case"] + ("" if module == "plain" else f"-{module}")
    work = "training step, s" if theirs["kind"] == "train" else "inference, images/s"
    ratio, above = (f(lines) if ours else None for f in (x_reference, above_plain))
    peaks = [
        f"{int(line['peak_bytes']) / 1e6:.1f}" if line and line["peak_bytes"] else "—"
        for line in (theirs, ours)
    ]
    cells = [
        f"{work}; batch {theirs['B']}, {theirs['side']} px, {theirs['dtype']}", network,
        f"{int(theirs['parameters']):,}", f"{float(theirs['gflops']):.1f}", _speed(theirs), _speed(ours),
        f"{ratio:.2f}" if ratio else "—", peaks[0] if module == "plain" else " → ".join(peaks),
        f"{above:.3f}" if above is not None else "—",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _speed(line):
    if line is None or not line["ms"]:
        return "WRONG" if line and line["status"].startswith("WRONG") else "—"
    return (
        f"{float(line['ms']) / 1000:.3f}" if line["kind"] == "train" else f"{float(line['images_per_s']):.2f}"
    )
