"""Makes the stock ultralytics know our modules in a model YAML, and our model files by bare name.

ultralytics has no hook for modules of others. Its parser leaves an unknown module's arguments alone and takes
its output to have as many channels as its input; an ``nn.BatchNorm2d`` row is built with the channel count of
the row it reads from. Both hold from 8.3.0 on. So the parser runs twice: first on rows where ours are
``nn.Identity`` and BatchNorm2d probes behind them tell the channel counts, then on the rows with those counts
filled in.
"""

import ast
import copy
import functools
import inspect
import sys
import threading
from pathlib import Path

import torch

CFG = Path(__file__).parent / "cfg"
NAMES = ("LSKA", "LSKATrivial", "LKA", "LKATrivial", "ACmix", "SPPF_LSKA")
CHANNEL_COUNTS = {"ACmix": 2, "SPPF_LSKA": 2}  # input and output; the others take one

_lock = threading.RLock()  # whoever returns from register() finds all of it done
_undo = []  # what takes the registration back, in the order it was made
# A wrapper works while this is the registration it was made by; else it passes everything through.
_registration = None
_unregistered_by_user = False
_identity_start = True
_missed = None  # the YAML that was last looked for in vain


def register(identity_start=None):
    """Teaches ultralytics to read the six module names in model YAMLs and to find ours by bare name.

    After it, ``YOLO("yolo11n-LSKA.yaml")`` and rows such as ``- [-1, 1, LSKA, []]`` work, on several GPUs
    too; ``.load("yolo11n.pt")`` and ``train(pretrained=...)`` transfer every tensor, and what stands between
    the source's layers begins as the identity. Nothing of ultralytics is written to disk. Where it fails,
    nothing is changed; calling it again changes `identity_start` alone.

    Args:
        identity_start: False keeps the published initial values of inserted modules, True starts them as the
            identity. None leaves it as the last call said, at first and after :func:`unregister` True: a
            checkpoint that opens, the start-up hook and libraries register as well, and must not undo what
            you chose.

    Raises:
        ImportError: ultralytics is not installed.
        TypeError: identity_start is something else; nothing is changed.
    """
    global _registration, _unregistered_by_user, _identity_start
    from . import checkpoints, transfer

    if not (identity_start is None or isinstance(identity_start, bool)):
        raise TypeError(f"register: identity_start is {identity_start!r}; expected True, False or None")
    try:
        from ultralytics import nn
        from ultralytics.nn import tasks
        from ultralytics.utils import dist
    except ImportError as error:
        raise ImportError('register: ultralytics cannot be imported; pip install "lska_ops[yolo]"') from error
    classes = modules()
    with _lock:
        _unregistered_by_user = False
        _identity_start = _identity_start if identity_start is None else identity_start
        if _registration is not None:
            return
        _registration = object()
        try:
            _add_names(tasks, classes)
            _allow_safe_loading(classes)
            _wrap(tasks, "parse_model", _parse_model, also=nn)
            _wrap(tasks, "check_yaml", _check_yaml)
            _wrap(tasks.BaseModel, "load", transfer.load)
            _wrap(tasks, "torch_safe_load", checkpoints.load)
            _wrap(dist, "generate_ddp_file", _generate_ddp_file)
        except BaseException:
            _take_back()
            raise


def unregister():
    """Restores ultralytics exactly as it was before :func:`register`; without it, does nothing.

    torch's list of classes that loads with weights_only may build keeps ours.
    """
    global _unregistered_by_user, _identity_start
    with _lock:
        _unregistered_by_user, _identity_start = True, True
        _take_back()


def _take_back():
    global _registration
    _registration = None
    while _undo:
        _undo.pop()()


def identity_start():
    return _identity_start


def register_after_unpickling():
    """A model of ours was loaded in a process that did not register; respects an explicit unregister()."""
    if not _unregistered_by_user:
        register()


def modules():
    """``{YAML name: class}`` of everything register() adds."""
    import lska_ops

    return {name: getattr(lska_ops, name) for name in NAMES}


def _add_names(tasks, classes):
    """Our classes as globals of the parser's module; a fork's own class of the same name keeps its rows."""
    for name, cls in classes.items():
        if not hasattr(tasks, name):
            setattr(tasks, name, cls)
            _undo.append(functools.partial(delattr, tasks, name))
        elif getattr(tasks, name) is not cls:
            tasks.LOGGER.warning(
                f"lska_ops: ultralytics has a module {name} of its own, which is left in place"
            )


def _allow_safe_loading(classes):
    """Loads with weights_only, which ULTRALYTICS_SAFE_LOAD=1 asks for, may build our classes from here on."""
    if hasattr(torch.serialization, "add_safe_globals"):
        torch.serialization.add_safe_globals(list(classes.values()))


def _wrap(module, name, wrapper, also=None):
    """Replaces module.name by `wrapper`, which gets the original first."""
    original, made_by = getattr(module, name), _registration

    @functools.wraps(original)
    def wrapped(*args, **kwargs):
        return wrapper(original, *args, **kwargs) if _registration is made_by else original(*args, **kwargs)

    for place in filter(None, (module, also)):
        if getattr(place, name) is original:
            setattr(place, name, wrapped)
            _undo.append(functools.partial(_restore, place, name, wrapped, original))


def _restore(place, name, wrapped, original):
    # Where somebody has wrapped our wrapper since, it stays underneath and passes everything through.
    if getattr(place, name) is wrapped:
        setattr(place, name, original)


def _check_yaml(original, file, suffix=(".yaml", ".yml"), hard=True):
    global _missed
    ours = CFG / Path(str(file)).name
    if str(file) == ours.name and ours.is_file() and not original(file, suffix, hard=False):
        return str(ours)
    try:
        found = original(file, suffix, hard=hard)
    except FileNotFoundError as error:
        from .hints import hint_for, without_scale

        # Newer versions look for the name as it was given, softly, and then for it without its scale.
        asked = _missed if _missed and without_scale(_missed) == str(file) else file
        if hint := hint_for(asked):
            raise FileNotFoundError(f"{error}{hint}") from error
        raise
    if not found:
        _missed = str(file)
    return found


def _generate_ddp_file(original, trainer):
    """The script of one process per GPU: it starts from the YAML's name, so it has to register as well."""
    file = original(trainer)
    # The search path as later versions of ultralytics set it themselves: the script lies in another folder.
    head = (
        'if __name__ == "__main__":\n'
        f"    import sys\n    sys.path = {sys.path!r}\n"
        f"    import lska_ops\n    lska_ops.register(identity_start={_identity_start})\n"
    )
    script = Path(file)
    script.write_text(head + script.read_text(encoding="utf-8"), encoding="utf-8")
    return file


def _parse_model(original, d, ch, verbose=True):
    from ultralytics.nn import tasks

    from . import wiring

    ours = {name: cls for name, cls in modules().items() if getattr(tasks, name) is cls}
    rows = [list(row) if isinstance(row, (list, tuple)) else row for row in [*d["backbone"], *d["head"]]]
    file = Path(str(d.get("yaml_file") or "model YAML")).name
    try:
        _fill_in_channels(file, rows, d, ch, ours, original)
        cut = len(d["backbone"])
        parsed = original({**d, "backbone": rows[:cut], "head": rows[cut:]}, ch, verbose)
    except KeyError as error:
        # Only the parser can tell that a name is unknown: other wrappers of it may supply names of their own.
        if problem := _unknown_name(error, rows, tasks):
            raise ValueError(f"{file}: {problem}") from error
        raise
    if any(isinstance(row, list) and _names_one_of(ours, row) for row in rows):
        wiring.warn(file, d)
    return parsed


def _unknown_name(error, rows, tasks):
    """What to say where the parser did not know a module's name; None for any other KeyError."""
    from .hints import near_names

    for i, row in enumerate(rows):
        name = row[2] if isinstance(row, list) and len(row) > 2 else None
        if isinstance(name, str) and error.args == (name,) and not hasattr(tasks, name):
            near = near_names(name, [n for n in vars(tasks) if n[:1].isupper()])
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            return f"row {i} names {name!r}, which neither ultralytics nor lska_ops has{hint}"
    return None


def _fill_in_channels(file, rows, d, ch, ours, parse):
    """Writes the channel counts in front of the arguments of our rows, once each has proved to build."""
    mine = [i for i, row in enumerate(rows) if isinstance(row, list) and _names_one_of(ours, row)]
    for i in mine:
        _check_row(file, i, rows[i])
    channels, values = _probe(rows, mine, d, ch, parse)
    for i in mine:
        name, written = rows[i][2], rows[i][3]
        counts = [channels[i]] * CHANNEL_COUNTS.get(name, 1)
        _try_building(f"{file}: row {i}", ours[name], counts, written, values[i])
        rows[i][3] = counts + list(written)


def _names_one_of(ours, row):
    return len(row) > 2 and isinstance(row[2], str) and row[2] in ours


def _check_row(file, i, row):
    if len(row) != 4:
        raise ValueError(
            f"{file}: row {i} is {row}; expected from, repeats, module, arguments: [-1, 1, {row[2]}, []]"
        )
    f, repeats, name, args = row
    where = f"{file}: row {i} ({name})"
    if not isinstance(f, int) or isinstance(f, bool):
        raise ValueError(f"{where} reads from {f}; expected one row, it takes one map")
    if not -max(i, 1) <= f < i:
        before = f"a row before it, 0 to {i - 1} or -{i} to -1" if i else "-1, the picture"
        raise ValueError(f"{where} reads from {f}; expected {before}")
    if not isinstance(repeats, (int, float)) or isinstance(repeats, bool):
        raise TypeError(f"{where} has repeats {repeats!r}; expected a number")
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
