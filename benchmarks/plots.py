"""The plots, from a CSV's lines: speed-up by shape, cost against k, memory."""

import matplotlib
from goals import by_row, geometric_mean, times, x_best, x_eager

matplotlib.use("Agg")
from matplotlib import pyplot, ticker  # noqa: E402


def draw(name, lines, file):
    """Writes one plot of report.plots_of(lines); returns its file."""
    drawings = {"speedup": speedup, "cost_by_k": cost_by_k, "memory": memory, "networks": networks}
    figure = drawings[name](lines)
    facts = lines[0]
    title = f"{facts['device']}, {facts['isa']}, {facts['threads']} threads, torch {facts['torch']}"
    if any(line["quiet"] != "yes" for line in lines):
        title += " — not publishable: other work was running"
    return _save(figure, title, file)


def _save(figure, title, file):
    figure.suptitle(title, fontsize=9)
    figure.savefig(file, dpi=120, metadata={"Software": None})
    pyplot.close(figure)
    return file


def _groups(lines):
    """{"kind, shape, B, dtype": rows}, the rows differing in k alone."""
    groups = {}
    for row in by_row(lines).values():
        first = row[0]
        label = f"{first['kind']} {first['C']}×{first['H']}×{first['W']} B={first['B']} {first['dtype']}"
        groups.setdefault(label, []).append(row)
    return groups


def _log(axes):
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())


def speedup(lines):
    """How many times faster ours is, a pair of bars for each shape; geometric mean over k."""
    bars = {}
    for label, rows in _groups(lines).items():
        pairs = [(x_eager(row), x_best(row)) for row in rows]
        if all(e and b for e, b in pairs):
            bars[label] = [geometric_mean(side) for side in zip(*pairs, strict=True)]
    figure, axes = pyplot.subplots(figsize=(9, 1.5 + 0.4 * len(bars)), layout="constrained")
    for shift, side, name in ((-0.2, 0, "× eager NCHW"), (0.2, 1, "× best PyTorch provider")):
        widths = [b[side] - 1 for b in bars.values()]  # from 1 on: a log axis has no zero to start at
        axes.barh([i + shift for i in range(len(bars))], widths, 0.4, left=1, label=name)
    axes.set_yticks(range(len(bars)), bars, fontsize=8)
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=0.8)
    _log(axes)
    axes.set_xlabel("speed-up, log scale; left of the line ours is slower")
    axes.legend(fontsize=8)
    return figure


def cost_by_k(lines):
    """Milliseconds of the cascade against k, a panel for each shape."""
    groups = {label: rows for label, rows in _groups(lines).items() if label.startswith("lska_cascade_fwd")}
    figure, panels = pyplot.subplots(
        1, len(groups), figsize=(1 + 3.2 * len(groups), 3.6), layout="constrained", squeeze=False
    )
    for axes, (label, rows) in zip(panels[0], groups.items(), strict=True):
        rows = sorted(rows, key=lambda row: int(row[0]["k"]))
        for provider in dict.fromkeys(line["provider"] for row in rows for line in row):
            points = [(int(row[0]["k"]), times(row)[provider]) for row in rows if provider in times(row)]
            if points:
                axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=provider)
        axes.set(title=label.removeprefix("lska_cascade_fwd "), xlabel="k", yscale="log")
        axes.title.set_fontsize(9)
    panels[0][0].set_ylabel("ms, log scale")
    panels[0][0].legend(fontsize=7)
    return figure


def memory(lines):
    """Peak extra memory of forward+backward at the largest k, a dot for each provider."""
    rows = {label: rows[-1] for label, rows in _groups(lines).items() if "bwd" in label}
    names = list(dict.fromkeys(
        line["provider"] for row in rows.values() for line in row if line["role"] != "yardstick"
    ))  # fmt: skip
    figure, axes = pyplot.subplots(figsize=(9, 1.5 + 0.35 * len(rows)), layout="constrained")
    for name in names:
        found = [
            (int(line["peak_bytes"]) / 1e6, i)
            for i, row in enumerate(rows.values())
            for line in row
            if line["provider"] == name and line["peak_bytes"]
        ]
        if found:
            axes.plot(*zip(*found, strict=True), "o", label=name)
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    axes.invert_yaxis()
    axes.grid(alpha=0.3)
    _log(axes)
    axes.set_xlabel("peak extra memory of the largest k, MB, log scale")
    axes.legend(fontsize=8)
    return figure


def networks(lines):
    """How fast a network with one of our modules is beside the plain one: a pair of bars for each."""
    bars = {"ours": {}, "reference": {}}
    for row in by_row(lines).values():
        plain = next(float(line["ms"]) for line in row if line["role"] == "plain")
        for line in row:
            if line["role"] != "plain" and line["ms"]:
                work = f"{line['kind']} B={line['B']} {line['side']} px {line['dtype']}"
                label = f"{line['case']}-{line['module']} {work}"
                bars[line["role"]][label] = 100 * plain / float(line["ms"])
    labels = list(dict.fromkeys([*bars["ours"], *bars["reference"]]))
    figure, axes = pyplot.subplots(figsize=(9, 1.5 + 0.4 * len(labels)), layout="constrained")
    for shift, role in ((-0.2, "ours"), (0.2, "reference")):
        here = [i for i, label in enumerate(labels) if label in bars[role]]
        axes.barh([i + shift for i in here], [bars[role][labels[i]] for i in here], 0.4, label=role)
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.axvline(100, color="black", linewidth=0.8)
    axes.set_xlabel("speed, percent of the plain network's")
    axes.legend(fontsize=8)
    return figure


def draw_start(trainings, file):
    """mAP50 by epoch, mean and range over seeds, a panel for each module; the plain network's as a line."""
    curves, plain, title = trainings.curves, trainings.plain, trainings.title
    modules = list(dict.fromkeys(module for module, _ in curves))
    figure, panels = pyplot.subplots(
        1, len(modules), figsize=(1 + 4 * len(modules), 3.6), layout="constrained", squeeze=False, sharey=True
    )
    for axes, module in zip(panels[0], modules, strict=True):
        for start in dict.fromkeys(start for m, start in curves if m == module):
            by_epoch = curves[module, start]
            epochs, values = list(by_epoch), list(by_epoch.values())
            axes.plot(
                epochs, [sum(v) / len(v) for v in values], marker="o", markersize=3, label=f"{start} start"
            )
            axes.fill_between(epochs, [min(v) for v in values], [max(v) for v in values], alpha=0.25)
        if plain:
            axes.axhline(plain[-1], color="black", linestyle="--", linewidth=0.8, label="plain yolo11n")
        axes.set(title=f"yolo11n-{module}", xlabel="epochs of fine-tuning", ylim=(-0.02, 1.02))
        axes.title.set_fontsize(9)
    panels[0][0].set_ylabel("mAP50 on the digits")
    panels[0][0].legend(fontsize=8)
    return _save(figure, title, file)
