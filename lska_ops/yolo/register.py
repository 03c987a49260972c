"""Makes the stock ultralytics know our modules in a model YAML, and our model files by bare name.

ultralytics has no hook for modules of others. Its parser leaves an unknown module's arguments alone and takes
its output to have as many channels as its input; an ``nn.BatchNorm2d`` row is built with the channel count of
the row it reads from. Both hold from 8.3.0 on. So the parser runs twice: first on rows where ours are
``nn.Identity`` and BatchNorm2d probes behind them tell the channel counts, then on the rows with those counts
filled in.
"""

import ast
import copy
import difflib
import functools
import inspect
from pathlib import Path

import torch

CFG = Path(__file__).parent / "cfg"
NAMES = ("LSKA", "LSKATrivial", "LKA", "LKATrivial", "ACmix", "SPPF_LSKA")
_CHANNEL_COUNTS = {"ACmix": 2, "SPPF_LSKA": 2}  # input and output; the others take one

_undo = []  # what takes the registration back, in the order it was made
_registration = (
    None  # a wrapper works while this is the registration it was made by; else it passes everything through
)
_unregistered_by_user = False


def register():
    """Teaches ultralytics to read the six module names in model YAMLs and to find ours by bare name.

    After it, ``YOLO("yolo11n-LSKA.yaml")`` and rows such as ``- [-1, 1, LSKA, []]`` work. Nothing of
    ultralytics is written to disk. Calling it again changes nothing.

    Raises:
        ImportError: ultralytics is not installed.
    """
    global _registration, _unregistered_by_user
    try:
        from ultralytics import nn
        from ultralytics.nn import tasks
    except ImportError as error:
        raise ImportError('register: ultralytics cannot be imported; pip install "lska_ops[yolo]"') from error
    _unregistered_by_user = False
    if _registration is None:
        _registration = object()
        _undo.extend(_add_names(tasks))
        _undo.extend(_wrap(tasks, "parse_model", _parse_model, also=nn))
        _undo.extend(_wrap(tasks, "check_yaml", _check_yaml))


def unregister():
    """Restores ultralytics exactly as it was before :func:`register`; without it, does nothing."""
    global _registration, _unregistered_by_user
    _unregistered_by_user = True
    _registration = None
    while _undo:
        _undo.pop()()


def register_after_unpickling():
    """A model of ours was loaded in a process that did not register; respects an explicit unregister()."""
    if not _unregistered_by_user:
        register()


def modules():
    """``{YAML name: class}`` of everything register() adds."""
    import lska_ops

    return {name: getattr(lska_ops, name) for name in NAMES}


def _add_names(tasks):
    """Our classes as globals of the parser's module; a fork's own class of the same name keeps its rows."""
    undo = []
    for name, cls in modules().items():
        if not hasattr(tasks, name):
            setattr(tasks, name, cls)
            undo.append(functools.partial(delattr, tasks, name))
        elif getattr(tasks, name) is not cls:
            tasks.LOGGER.warning(
                f"lska_ops: ultralytics has a module {name} of its own, which is left in place"
            )
    return undo


def _wrap(module, name, wrapper, also=None):
    """Replaces module.name by `wrapper`, which gets the original first; gives back what undoes that."""
    original, made_by = getattr(module, name), _registration

    @functools.wraps(original)
    def wrapped(*args, **kwargs):
        return wrapper(original, *args, **kwargs) if _registration is made_by else original(*args, **kwargs)

    undo = []
    for place in filter(None, (module, also)):
        if getattr(place, name) is original:
            setattr(place, name, wrapped)
            undo.append(functools.partial(_restore, place, name, wrapped, original))
    return undo


def _restore(place, name, wrapped, original):
    # Where somebody has wrapped our wrapper since, it stays underneath and passes everything through.
    if getattr(place, name) is wrapped:
        setattr(place, name, original)


def _check_yaml(original, file, suffix=(".yaml", ".yml"), hard=True):
    ours = CFG / Path(str(file)).name
    if str(file) == ours.name and ours.is_file() and not original(file, suffix, hard=False):
        return str(ours)
    return original(file, suffix, hard=hard)


def _parse_model(original, d, ch, verbose=True):
    from ultralytics.nn import tasks

    ours = {name: cls for name, cls in modules().items() if getattr(tasks, name) is cls}
    rows = [list(row) for row in [*d["backbone"], *d["head"]]]
    _check_names(rows, tasks)
    channels = _input_channels(rows, d, ch, ours, original)
    for i, count in channels.items():
        name, args = rows[i][2], rows[i][3]
        rows[i][3] = [count] * _CHANNEL_COUNTS.get(name, 1) + list(args)
        _try_building(i, ours[name], rows[i][3], args)
    cut = len(d["backbone"])
    return original({**d, "backbone": rows[:cut], "head": rows[cut:]}, ch, verbose)


def _check_names(rows, tasks):
    for i, row in enumerate(rows):
        name = row[2]
        if isinstance(name, str) and "." not in name and not hasattr(tasks, name):
            near = difflib.get_close_matches(name, [n for n in vars(tasks) if n[:1].isupper()], n=3)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise ValueError(
                f"model YAML: row {i} names {name!r}, which neither ultralytics nor lska_ops has{hint}"
            )


def _input_channels(rows, d, ch, ours, parse):
    """{row number: channel count of its input} for the rows that name our modules."""
    mine = [i for i, row in enumerate(rows) if row[2] in ours]
    if not mine:
        return {}
    probed = copy.deepcopy(rows[: mine[-1] + 1])
    sources, probes = {}, {}
    for i in mine:
        f = rows[i][0]
        if not isinstance(f, int):
            raise ValueError(
                f"model YAML: row {i} ({rows[i][2]}) reads from {f}; expected one row, it takes one map"
            )
        sources[i] = f if f >= 0 else i + f
        probed[i] = [f, 1, "nn.Identity", []]
    for i, source in sources.items():
        if source >= 0:
            probes[i] = len(probed)
            probed.append([source, 1, "nn.BatchNorm2d", []])
    d = {**d, "backbone": probed, "head": []}
    if d.get("scales") and not d.get("scale"):
        d["scale"] = next(iter(d["scales"]))  # the parser's own choice, whose warning should come once
    layers = _parse_quietly(parse, d, ch)
    counts = {i: getattr(layers[probe], "num_features", None) for i, probe in probes.items()}
    if not all(isinstance(count, int) for count in counts.values()):
        import ultralytics

        raise RuntimeError(
            f"lska_ops: the parser of ultralytics {ultralytics.__version__} no longer tells channel counts; "
            "use a version that `python -m lska_ops doctor` names, and please report this"
        )
    return {i: counts.get(i, ch) for i in mine}


def _parse_quietly(parse, d, ch):
    """The layers, built without storage where every row allows it; the random state is left as it was."""
    try:
        with torch.device("meta"):
            return parse(copy.deepcopy(d), ch, False)[0]
    except (NotImplementedError, RuntimeError):
        with torch.random.fork_rng(devices=[]):
            return parse(copy.deepcopy(d), ch, False)[0]


def _try_building(i, cls, args, written):
    """Builds the module once without storage, so that a wrong option is reported with its row."""
    if any(isinstance(a, str) and a.isidentifier() for a in written):
        return  # the parser knows names, such as nc, that we do not
    parameters = list(inspect.signature(cls.__init__).parameters)[1 + len(args) - len(written) :]
    if len(written) > len(parameters):
        raise ValueError(
            f"model YAML: row {i} ({cls.__name__}) has arguments {list(written)}; "
            f"expected at most {len(parameters)}: {parameters}"
        )
    try:
        with torch.device("meta"):
            cls(*map(_evaluated, args))
    except (TypeError, ValueError) as error:
        raise type(error)(f"model YAML: row {i}: {error}") from error


def _evaluated(argument):
    """A string as the parser evaluates it: a number in quotes is a number."""
    try:
        return ast.literal_eval(argument) if isinstance(argument, str) else argument
    except (SyntaxError, ValueError):
        return argument
