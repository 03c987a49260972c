"""Around ultralytics' parser of model YAMLs: our rows are built, and one that does not hold is named.

ultralytics has no hook for modules of others. Its parser leaves an unknown module's arguments alone and takes
its output to have as many channels as its input; an ``nn.BatchNorm2d`` row is built with the channel count of
the row it reads from. Both hold from 8.3.0 on. So the parser runs twice: first on rows where ours are
``nn.Identity`` and BatchNorm2d probes behind them tell the channel counts, then on the rows with those counts
filled in.
"""

import ast
import copy
import inspect
import math
from pathlib import Path

import torch

from . import rules, wiring
from .hints import did_you_mean, near_names
from .maps import MapError, maps_of
from .registration import NAMES, modules

CHANNEL_COUNTS = {"ACmix": 2, "SPPF_LSKA": 2}  # input and output; the others take one
# What ultralytics' parser, and the modules that it builds, raise for rows that they do not take.
PARSER_ERRORS = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError),
    *(RuntimeError, SyntaxError, TypeError, ValueError),
)


def build_detector(original, model, *args, **kwargs):
    """``DetectionModel.__init__``, which sends a picture through the network it has built."""
    try:
        original(model, *args, **kwargs)
    except (RuntimeError, ValueError) as failed:
        if type(failed) not in (RuntimeError, ValueError):  # memory that ran out, an operator that is missing
            raise
        d, layers = getattr(model, "yaml", None), getattr(model, "model", None)
        if layers is None or not any(_names_one_of(NAMES, row) for row in _rows_of(d)):
            raise
        if problem := rules.first_problem(d):
            raise ValueError(f"{_file_of(d)}: {problem}") from failed
        try:
            maps_of(layers.eval(), d.get("channels", d.get("ch", 3)))  # "ch" in older versions
        except MapError as error:
            raise ValueError(f"{_file_of(d)}: {error}") from error
        raise


def parse_model(original, d, ch, verbose=True):
    from ultralytics.nn import tasks

    ours = {name: cls for name, cls in modules().items() if getattr(tasks, name) is cls}
    file = _file_of(d)
    try:
        rows = [list(row) if isinstance(row, (list, tuple)) else row for row in copy.deepcopy(_rows_of(d))]
        _fill_in_channels(file, rows, d, ch, ours, original)
        cut = len(d["backbone"])
        parsed = original({**d, "backbone": rows[:cut], "head": rows[cut:]}, ch, verbose)
    except PARSER_ERRORS as error:
        # One that names the file is ours; where no row is meant as ours, ultralytics' errors stay its own.
        if str(error).startswith(f"{file}: ") or not _means_ours(d):
            raise
        if said := explained(error, d, ch, original):
            raise ValueError(f"{file}: {said}") from error
        raise
    if any(_names_one_of(ours, row) for row in rows):
        wiring.warn(file, d, ours)
    return parsed


def _file_of(d):
    return Path(str(d.get("yaml_file") or "model YAML")).name


def _rows_of(d):
    return [*d["backbone"], *d["head"]]


def _means_ours(d):
    """Whether a row names a module of ours, well formed or not, or nearly does."""
    if rules.mention_ours(d) or rules.first_problem(d):
        return rules.mention_ours(d)
    return any(_unknown(name) and near_names(_bare(name), NAMES) for _, _, name, _ in _rows_of(d))


def _bare(name):
    return name.removeprefix("nn.")


def _unknown(name):
    """Whether the parser knows no such module."""
    from ultralytics.nn import tasks

    return not (hasattr(tasks, name) if _bare(name) == name else hasattr(torch.nn, _bare(name)))


def explained(error, d, ch, parse):
    """What the parser did not take, in a sentence that names the row; None where it was no row.

    Asked once it has refused: other wrappers of the parser may supply names of their own.
    """
    from ultralytics.nn import tasks

    if problem := rules.first_problem(d):
        return problem
    i = _refused_row(d, ch, parse)
    if i is None:
        return None
    name, args = _rows_of(d)[i][2:]
    if _unknown(name):
        hint = did_you_mean(_bare(name), [known for known in vars(tasks) if known[:1].isupper()])
        return f"row {i} names {name!r}, which neither ultralytics nor lska_ops has{hint}"
    if "nc" in (args if isinstance(args, list) else [args]) and not isinstance(d.get("nc"), int):
        got = rules.as_yaml(d.get("nc"))
        return f"row {i} ({name}) takes nc, which is {got}; expected the number of classes"
    return f"row {i} ({name}) does not take {rules.as_yaml(args)}: {str(error) or repr(error)}"


def _refused_row(d, ch, parse):
    """The number of the first row that the parser does not take; None if it takes all of them, or none."""
    rows = [[*row[:2], "nn.Identity" if row[2] in NAMES else row[2], row[3]] for row in _rows_of(d)]

    def taken(count):
        try:
            parse_quietly(parse, _with_scale({**d, "backbone": rows[:count], "head": []}), ch)
        except PARSER_ERRORS:
            return False
        return True

    if not taken(0) or taken(len(rows)):
        return None
    low, high = 0, len(rows)  # so many are taken, so many are not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if taken(middle) else (low, middle)
    return low


def _with_scale(d):
    """With the scale that the parser would choose and warn of, which should be said once."""
    return {**d, "scale": next(iter(d["scales"]))} if d.get("scales") and not d.get("scale") else d


def _fill_in_channels(file, rows, d, ch, ours, parse):
    """Writes the channel counts in front of the arguments of our rows, once each has proved to build."""
    mine = [i for i, row in enumerate(rows) if _names_one_of(ours, row)]
    for i in mine:
        _check_row(file, i, rows[i])
    channels, values = _probe(rows, mine, d, ch, parse)
    for i in mine:
        name, written = rows[i][2], rows[i][3]
        counts = [channels[i]] * CHANNEL_COUNTS.get(name, 1)
        _try_building(f"{file}: row {i}", ours[name], counts, written, values[i])
        rows[i][3] = counts + list(written)


def _names_one_of(names, row):
    return isinstance(row, (list, tuple)) and len(row) > 2 and isinstance(row[2], str) and row[2] in names


def _check_row(file, i, row):
    """What holds of our rows, beyond what does of any."""
    if problem := rules.row_problem(i, row):
        raise ValueError(f"{file}: {problem}")
    f, repeats, name, args = row
    where = f"{file}: row {i} ({name})"
    if not isinstance(f, int):
        raise ValueError(f"{where} reads from {f}; expected one row, it takes one map")
    if not isinstance(repeats, (int, float)) or isinstance(repeats, bool) or not math.isfinite(repeats):
        raise TypeError(f"{where} has repeats {repeats!r}; expected a number")
    if repeats < 1:
        raise ValueError(
            f"{where} has repeats {repeats}; expected 1 or more: from, repeats, module, arguments"
        )
    if not isinstance(args, (list, tuple)):
        raise TypeError(f"{where} has arguments {args!r}; expected a list, [] for none")


def _probe(rows, mine, d, ch, parse):
    """({row: channel count of its input}, {row: its arguments as the parser evaluates them}) of our rows."""
    if not mine:
        return {}, {}
    probed = copy.deepcopy(rows[: mine[-1] + 1])
    sources, probes = {}, {}
    for i in mine:
        f, args = rows[i][0], rows[i][3]
        sources[i] = f if f >= 0 else i + f
        # nn.Identity takes any arguments; names such as nc are known to the parser alone.
        probed[i] = [f, 1, "nn.Identity", [a if _is_name(a) else None for a in args]]
    for i, source in sources.items():
        if source >= 0:
            probes[i] = len(probed)
            probed.append([source, 1, "nn.BatchNorm2d", []])
    layers, parsed = parse_quietly(parse, _with_scale({**d, "backbone": probed, "head": []}), ch)
    counts = {i: getattr(layers[probe], "num_features", None) for i, probe in probes.items()}
    if not all(isinstance(count, int) for count in counts.values()):
        import ultralytics

        raise RuntimeError(
            f"lska_ops: the parser of ultralytics {ultralytics.__version__} no longer tells channel counts; "
            "use a version that `python -m lska_ops doctor` names, and please report this"
        )
    values = {
        i: [
            named if _is_name(a) else _evaluated(a) for a, named in zip(rows[i][3], parsed[i][3], strict=True)
        ]
        for i in mine
    }
    return {i: counts.get(i, ch) for i in mine}, values


def parse_quietly(parse, d, ch):
    """The layers, built without storage where every row allows it, and the rows as the parser leaves them.

    The random state is left as it was.
    """
    parsed = copy.deepcopy(d)
    try:
        with torch.device("meta"):
            return parse(parsed, ch, False)[0], parsed["backbone"]
    except RuntimeError:  # NotImplementedError is one
        parsed = copy.deepcopy(d)
        with torch.random.fork_rng(devices=[]):
            return parse(parsed, ch, False)[0], parsed["backbone"]


def _try_building(where, cls, counts, written, values):
    """Builds the module once without storage, so that a wrong option is reported with its row."""
    first = values[0] if values else None
    # No window is that wide, but many a row of other modules begins with the channels of its output.
    hint = "; channel counts are filled in, leave them out" if isinstance(first, int) and first >= 32 else ""
    parameters = list(inspect.signature(cls.__init__).parameters)[1 + len(counts) :]
    if len(values) > len(parameters):
        raise ValueError(
            f"{where} ({cls.__name__}) has arguments {list(written)}; "
            f"expected at most {len(parameters)}: {parameters}{hint}"
        )
    try:
        with torch.device("meta"):
            cls(*counts, *values)
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{where}: {error}{hint}") from error


def _is_name(argument):
    return isinstance(argument, str) and argument.isidentifier()


def _evaluated(argument):
    """A string as the parser evaluates it: a number in quotes is a number."""
    try:
        return ast.literal_eval(argument) if isinstance(argument, str) else argument
    except (SyntaxError, ValueError):
        return argument
