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
from pathlib import Path

import torch

from . import rows as rules
from . import wiring
from .hints import near_names
from .maps import MapError, maps_of
from .registration import NAMES, modules

CHANNEL_COUNTS = {"ACmix": 2, "SPPF_LSKA": 2}  # input and output; the others take one


def build_detector(original, model, *args, **kwargs):
    """``DetectionModel.__init__``, which sends a picture through the network it has built."""
    try:
        original(model, *args, **kwargs)
    except RuntimeError as failed:
        if type(failed) is not RuntimeError:  # memory that ran out, an operator that is missing
            raise
        d, layers = getattr(model, "yaml", None), getattr(model, "model", None)
        if layers is None or not any(_names_one_of(NAMES, row) for row in _rows_of(d)):
            raise
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
        rows = [list(row) if isinstance(row, (list, tuple)) else row for row in _rows_of(d)]
        _fill_in_channels(file, rows, d, ch, ours, original)
        cut = len(d["backbone"])
        parsed = original({**d, "backbone": rows[:cut], "head": rows[cut:]}, ch, verbose)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        if problem := _explained(error, d, tasks):
            raise ValueError(f"{file}: {problem}") from error
        raise
    if any(_names_one_of(ours, row) for row in rows):
        wiring.warn(file, d)
    return parsed


def _file_of(d):
    return Path(str(d.get("yaml_file") or "model YAML")).name


def _rows_of(d):
    return [*d["backbone"], *d["head"]]


def _explained(error, d, tasks):
    """What the parser did not take, in a sentence; None where no row is ours, or it cannot be told.

    Asked once it has refused: other wrappers of the parser may supply names of their own.
    """
    if problem := rules.problem(d):
        return problem if rules.mention_ours(d) else None
    return _unknown_name(error, _rows_of(d), tasks)  # which may be a misspelt one of ours


def _unknown_name(error, rows, tasks):
    """What to say where the parser did not know a module's name; None for any other error."""
    for i, (_, _, name, _) in enumerate(rows):
        unknown = isinstance(error, KeyError) and error.args == (name,) and not hasattr(tasks, name)
        bare = name.removeprefix("nn.")
        if unknown or bare != name and not hasattr(torch.nn, bare):
            near = near_names(bare, [n for n in vars(tasks) if n[:1].isupper()])
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            return f"row {i} names {name!r}, which neither ultralytics nor lska_ops has{hint}"
    return None


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
    if problem := rules.problem_of(i, row):
        raise ValueError(f"{file}: {problem}")
    f, repeats, name, args = row
    where = f"{file}: row {i} ({name})"
    if not isinstance(f, int):
        raise ValueError(f"{where} reads from {f}; expected one row, it takes one map")
    if not isinstance(repeats, (int, float)) or isinstance(repeats, bool):
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
    d = {**d, "backbone": probed, "head": []}
    if d.get("scales") and not d.get("scale"):
        d["scale"] = next(iter(d["scales"]))  # the parser's own choice, whose warning should come once
    layers, parsed = parse_quietly(parse, d, ch)
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
    except (NotImplementedError, RuntimeError):
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
