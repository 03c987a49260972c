"""What becomes of bench_start.py's trainings: a CSV, and from it README's table and the plot."""

from pathlib import Path

from provenance import PROVENANCE, read, write_table

FILE = Path("digits") / "start.csv"  # of no device: what is learned is no speed, and no load changes it
COLUMNS = (
    "module", "start", "seed", "epoch", "map50", "tensors", "of", "scenes", "imgsz", "batch", "ultralytics",
    *(name for name in PROVENANCE if name not in ("load", "quiet")),
)  # fmt: skip


def write_run(file, run, maps, tensors, scenes, recipe, facts):
    """Adds a line for each epoch of a training; 0 is before the first step."""
    import ultralytics

    shared = dict(
        module=run.module, start=run.start, seed=run.seed, tensors=tensors[0], of=tensors[1], scenes=scenes,
        imgsz=recipe["imgsz"], batch=recipe["batch"], ultralytics=ultralytics.__version__,
    )  # fmt: skip
    shared |= {name: facts[name] for name in COLUMNS if name in facts}
    lines = read(file) if file.exists() else []
    lines += [{**shared, "epoch": epoch, "map50": float(value)} for epoch, value in enumerate(maps)]
    write_table(file, COLUMNS, lines)
