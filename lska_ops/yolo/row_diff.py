"""What a change of a model file means: its rows before and after, parameters and GFLOPs."""

import contextlib

from .rules import as_yaml

# The model class of ultralytics by the module in the last row; others are detectors.
_MODELS = {
    "RTDETRDecoder": "RTDETRDetectionModel",
    "WorldDetect": "WorldModel",
    "YOLOEDetect": "YOLOEModel",
    "YOLOESegment": "YOLOESegModel",
    "Segment": "SegmentationModel",
    "Pose": "PoseModel",
    "OBB": "OBBModel",
    "Classify": "ClassificationModel",
    "SemanticSegment": "SemanticSegmentationModel",
    "Depth": "DepthModel",
}


def row_diff(plan):
    """The lines to print for a :class:`lska_ops.yolo.insertion.Plan`."""
    lines = [plan.title, ""]
    rows = [("old", "new", "from", "n", "module", "arguments", "parameters")]
    counts = [sum(p.numel() for p in layer.parameters()) for layer in plan.new_layers]
    before = [sum(p.numel() for p in layer.parameters()) for layer in plan.old_layers]
    last = -1
    for i, row in enumerate(plan.new.rows):
        old = plan.was.get(i)
        if old is None:
            rows.append(("+", i, *_cells(row), f"{counts[i]:+,}"))
            continue
        rows += _gone(plan, before, last + 1, old)
        last, was = old, plan.old.rows[old]
        change = f"{counts[i] - before[old]:+,}" if counts[i] != before[old] else ""
        both = zip(_cells(was), _cells(row), strict=True)
        rows.append((old, i, *(a if a == b else f"{a} → {b}" for a, b in both), change))
    rows += _gone(plan, before, last + 1, len(plan.old.rows))
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(7)]
    for row in cells:
        numbers = [row[column].rjust(widths[column]) for column in (0, 1)]
        texts = [row[column].ljust(widths[column]) for column in (2, 3, 4, 5)]
        lines.append("  ".join([*numbers, *texts, row[6].rjust(widths[6])]).rstrip())
    return [*lines, "", *_totals(plan, sum(before), sum(counts))]


def _cells(row):
    """A row's `from`, repeats, module and arguments, as a YAML has them."""
    return (
        as_yaml(row.written if row.several else row.written[0]),
        as_yaml(row.repeats),
        row.name,
        as_yaml(row.args),
    )


def _gone(plan, counts, start, stop):
    for old in range(start, stop):
        yield old, "-", *_cells(plan.old.rows[old]), f"{-counts[old]:+,}"


def _totals(plan, before, after):
    scale = plan.old.values_with_scale["scale"]
    at = f"at scale {scale} and " if scale else "at "
    nc = plan.old.values.get("nc", "the YAML's")
    flops = [_gflops(model) for model in (plan.old, plan.new)]
    yield f"{at}{nc} classes:"
    yield f"  parameters  {before:,} → {after:,} ({after - before:+,})"
    if all(flops):
        yield f"  GFLOPs      {flops[0]:.2f} → {flops[1]:.2f} ({flops[1] - flops[0]:+.2f}) at 640 px"
    else:
        yield "  GFLOPs      not counted: thop is missing, or a YAML alone does not build this model"


def _gflops(model):
    """As ultralytics counts them; 0.0 where it cannot."""
    from ultralytics.nn import tasks
    from ultralytics.utils.torch_utils import get_flops

    head = model.rows[-1].name
    kind = _MODELS.get(head) or _MODELS.get(head.removesuffix("26"), "DetectionModel")
    if not hasattr(tasks, kind):
        return 0.0
    with contextlib.suppress(AttributeError, TypeError):  # of models that need more than a picture
        return get_flops(getattr(tasks, kind)(model.values_with_scale, ch=3, verbose=False), 640)
    return 0.0
