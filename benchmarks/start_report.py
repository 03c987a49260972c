"""What becomes of bench_start.py's trainings: a CSV, and from it README's table and the plot."""

from pathlib import Path
from typing import NamedTuple

from provenance import PROVENANCE, RESULTS, ROOT, read, write_table

FILE = Path("digits") / "start.csv"  # of no device: what is learned is no speed, and no load changes it
PLOT = FILE.with_suffix(".png")
ORDER = ("plain", "LSKA", "ACmix")
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
    lines.sort(key=lambda li: (ORDER.index(li["module"]), li["start"], int(li["seed"]), int(li["epoch"])))
    write_table(file, COLUMNS, lines)


class Trainings(NamedTuple):
    """What the CSV has."""

    plain: list  # mAP50 of the plain network, by epoch
    curves: dict  # {(module, start): {epoch: [mAP50 of each seed]}}
    tensors: dict  # {(module, start): {"how many/of how many" arrived: None}, more than one if seeds differ}
    title: str


def trainings(results):
    """Of the CSV, or None where there is none."""
    if not (results / FILE).exists():
        return None
    lines = read(results / FILE)
    curves, tensors = {}, {}
    for line in lines:
        key = line["module"], line["start"]
        curves.setdefault(key, {}).setdefault(int(line["epoch"]), []).append(float(line["map50"]))
        tensors.setdefault(key, {})[f"{line['tensors']}/{line['of']}"] = None
    plain = [value for values in curves.pop(("plain", "scratch"), {}).values() for value in values]
    first, dates = lines[0], sorted({line["date"][:10] for line in lines})
    commits = ", ".join(dict.fromkeys(line["commit"] for line in lines))
    dirty = " with uncommitted changes" if any(line["dirty"] == "yes" for line in lines) else ""
    title = (
        f"{first['device']}, {first['isa']}, torch {first['torch']}, ultralytics {first['ultralytics']}, "
        f"{' to '.join(dict.fromkeys((dates[0], dates[-1])))}, commit {commits}{dirty}"
    )
    return Trainings(plain, curves, tensors, title)


def block(results):
    """README's table, in parts."""
    found = trainings(results)
    if not found:
        return
    first = read(results / FILE)[0]
    yield (
        f"**mAP50 on the digits, fine-tuned from a plain yolo11n that has {found.plain[-1]:.3f} after "
        f"{len(found.plain) - 1} epochs, {first['scenes']} pictures of {first['imgsz']} px: {found.title}**"
    )
    last = max(epoch for by_epoch in found.curves.values() for epoch in by_epoch)
    table = [
        f"| network | start | tensors at their place | seeds | before | {' | '.join(_epochs(last))} |",
        "|---" * (last + 5) + "|",
    ]
    for (module, start), by_epoch in found.curves.items():
        cells = [
            f"yolo11n-{module}",
            start,
            " and ".join(found.tensors[module, start]),
            str(len(by_epoch[0])),
        ]
        cells += [_cell(by_epoch[epoch]) for epoch in sorted(by_epoch)]
        table.append(f"| {' | '.join(cells)} |")
    yield "\n".join(table)
    where = (results if results != RESULTS else RESULTS.relative_to(ROOT)) / FILE.parent
    yield (
        "Mean and range; *stock*: tensors matched by name as ultralytics does it, modules at random. "
        f"Every epoch: [{where}]({where}). ![mAP50 by epoch]({where}/{PLOT.name})"
    )


def _epochs(last):
    return ["epoch 1", *map(str, range(2, last + 1))]


def _cell(values):
    mean, low, high = sum(values) / len(values), min(values), max(values)
    return f"{mean:.3f}" if f"{low:.3f}" == f"{high:.3f}" else f"{mean:.3f} ({low:.3f} to {high:.3f})"
