"""What becomes of bench_yolo.py's numbers: terminal table and CSV, and from the CSV README's table."""

from provenance import PROVENANCE, read, write_table

FILE = "yolo.csv"
COLUMNS = (
    "row", "kind", "case", "module", "role", "backend", "B", "side", "dtype", "status", "error_ratio", "difference",
    "ms", "ms_p20", "ms_p80", "rounds", "images_per_s", "peak_bytes", "parameters", "gflops", "ultralytics",
    *PROVENANCE,
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
