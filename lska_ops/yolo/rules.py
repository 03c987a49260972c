"""What has to hold of the lists and rows of a model YAML, for the parser and for changes of files."""

from .registration import NAMES


def first_problem(values):
    """What is wrong with the lists and rows of a model YAML, in a sentence; None if nothing is."""
    expected = "; expected a model YAML with lists backbone and head"
    if values is None:
        return f"is empty{expected}"
    if not isinstance(values, dict):
        return f"has no keys{expected}"
    if missing := [name for name in ("backbone", "head") if not isinstance(values.get(name), list)]:
        return f"has no list {' and no list '.join(missing)}{expected}"
    rows = enumerate([*values["backbone"], *values["head"]])
    return next((said for i, row in rows if (said := row_problem(i, row))), None)


def mention_ours(values):
    """Whether the rows of a model YAML, well formed or not, name a module of ours."""
    return bool(_ours_in([values.get("backbone"), values.get("head")]))


def _ours_in(value):
    """Names of ours in nested lists."""
    if isinstance(value, (list, tuple)):
        return [name for each in value for name in _ours_in(each)]
    return [value] if isinstance(value, str) and value in NAMES else []


def row_problem(i, row):
    """What is wrong with row i, in a sentence; None if nothing is."""
    if not isinstance(row, (list, tuple)) or len(row) != 4 or not isinstance(row[2], str):
        mine = _ours_in([row])
        example = f"[-1, 1, {mine[0]}, []]" if mine else "[-1, 1, Conv, [64, 3, 2]]"
        return f"row {i} is {as_yaml(row)}; expected from, repeats, module, arguments: {example}"
    if not sources(row):
        return f"row {i} ({row[2]}) reads from []; expected at least one row"
    return next((said for f in sources(row) if (said := _source_problem(i, row[2], f))), None)


def _source_problem(i, name, f):
    if isinstance(f, int) and not isinstance(f, bool) and -max(i, 1) <= f < i:
        return None
    before = f"a row before it, 0 to {i - 1} or -{i} to -1" if i else "-1, the picture"
    return f"row {i} ({name}) reads from {as_yaml(f)}; expected {before}"


def sources(row):
    """What a row reads, as its author wrote it, as a list."""
    return list(row[0]) if isinstance(row[0], (list, tuple)) else [row[0]]


def as_yaml(value):
    """A value as one writes it into a row."""
    import yaml

    try:
        return yaml.safe_dump([value], default_flow_style=True, width=10**6).strip()[1:-1]
    except yaml.YAMLError:  # of a network that Python made, not a file
        return repr(value)
