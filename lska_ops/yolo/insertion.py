"""Puts our modules anywhere into a model YAML, or takes them out, with every row number moved along."""

import dataclasses
import inspect
import re
from pathlib import Path

import torch

from .hints import did_you_mean
from .maps import PICTURE, SIDE, MapError, first_of, maps_of
from .model_file import InsertError, ModelFile, encoded
from .parsing import CHANNEL_COUNTS, PARSER_ERRORS, explained, parse_quietly
from .registration import NAMES, modules, register


def insert(source, module, after, *, out=None, **options):
    """A model YAML with `module` put behind rows of it, as text.

    Whatever read such a row reads the new one instead, the inputs of the head included. Comments stay, and
    the numbers that those of rows begin with move along; only those behind a scale that count its parameters
    go, which no longer hold.

    Args:
        source: path of a model YAML, or a name such as "yolo11n.yaml".
        module: "LSKA", "LSKATrivial", "LKA", "LKATrivial", "ACmix" or "SPPF_LSKA".
        after: where, one or a list of: "P2" to "P7", the head's input of stride 4 to 128 pixels; "backbone",
            its last row; "SPPF"; the number of a row. With "SPPF", LSKA and SPPF_LSKA replace that row by
            SPPF_LSKA.
        out: a file to write, which must not exist.
        options: of the module's row by name, such as k_size=23 or head=8.

    Returns:
        str: the text of the new YAML. Bytes that are not UTF-8, as in comments of a file saved as GBK, are
            surrogate escapes (PEP 383); `out` gets the bytes.

    Raises:
        InsertError: the file, a place, the module or an option does not hold; nothing is written. It is a
            ValueError.
        FileExistsError: `out` exists.
    """
    return write(plan_insert(source, module, after, options), out)


def remove(source, what, *, out=None):
    """A model YAML without rows of ours, as text; what read such a row reads the one before it.

    Args:
        source: path of a model YAML, or a name such as "yolo11n-LSKA.yaml".
        what: a module's name for all of its rows, or one or a list of row numbers. SPPF_LSKA turns into SPPF.
        out: a file to write, which must not exist.

    Returns, Raises: as :func:`insert`.
    """
    return write(plan_remove(source, what), out, "remove")


@dataclasses.dataclass
class Plan:
    """A change of a model file: both files as parsed, and which row of the new one is which of the old."""

    title: str
    old: ModelFile
    new: ModelFile
    was: dict  # {new row number: old row number}
    old_layers: list
    new_layers: list


def plan_insert(source, module, after, options):
    if module not in NAMES:
        expected = f"one of {', '.join(NAMES)}{did_you_mean(str(module), NAMES)}"
        raise InsertError(f"insert: module is {module!r}; expected {expected}")
    register()  # the rows are parsed to know strides and to try the result
    old = ModelFile(source)
    layers, maps = _trace(old)
    places = _places(old, maps, after)
    inserted, replaced = {}, {}
    for i, place in places.items():
        if module == "SPPF_LSKA" and old.rows[i].name != "SPPF":
            raise InsertError(
                f"{old.name}: row {i} ({old.rows[i].name}) cannot become SPPF_LSKA; expected a row SPPF"
            )
        if place == "SPPF" and module in ("LSKA", "SPPF_LSKA") or module == "SPPF_LSKA":
            replaced[i] = "SPPF_LSKA", _sppf_arguments(old, i, layers[i], options)
        else:
            _check_one_map(old, i, maps[i])
            inserted[i] = module, _arguments(module, options), _comment(maps[i])
    new, was = old.changed(inserted, replaced)
    where = ", ".join(f"row {i}" if place == i else f"{place} (row {i})" for i, place in places.items())
    names = sorted({name for name, *_ in [*inserted.values(), *replaced.values()]})
    title = f"{old.name}: {' and '.join(names)} {'behind' if inserted else 'in place of SPPF at'} {where}"
    return Plan(title, old, new, was, layers, _trace(new)[0])


def plan_remove(source, what):
    register()
    old = ModelFile(source)
    mine = {i: row.name for i, row in enumerate(old.rows) if row.name in NAMES}
    asked = list(what) if isinstance(what, (list, tuple)) else [what]
    rows = sorted({i for each in asked for i in _asked_to_go(old, mine, each)})
    if not rows:
        raise InsertError("remove: what is empty; expected a module's name or row numbers")
    layers, maps = _trace(old)
    for i in rows:
        read = maps[old.rows[i].reads[0]] if old.rows[i].reads[0] != PICTURE else None
        if read is not None and read.shape != maps[i].shape:
            raise InsertError(
                f"{old.name}: row {i} ({mine[i]}) gives {list(maps[i].shape)} from {list(read.shape)}; "
                "expected a row that keeps its map's shape"
            )
    replaced = {i: ("SPPF", _plain_sppf(old, i, maps)) for i in rows if mine[i] == "SPPF_LSKA"}
    new, was = old.changed(replaced=replaced, removed={i for i in rows if i not in replaced})
    new_layers, new_maps = _trace(new)
    for i, n in ((old_row, new_row) for new_row, old_row in was.items() if old_row in replaced):
        if maps[i].shape != new_maps[n].shape:
            raise InsertError(
                f"{old.name}: row {i} (SPPF_LSKA) has no SPPF of the same channels at scale {old.scale}"
            )
    title = f"{old.name}: without {', '.join(f'row {i} ({mine[i]})' for i in rows)}"
    return Plan(title, old, new, was, layers, new_layers)


def _asked_to_go(model, mine, what):
    """The rows of ours that a name or a number means."""
    ours = ", ".join(f"{i} ({name})" for i, name in mine.items()) or "there is none"
    if isinstance(what, str) and not what.isdecimal():
        rows = [i for i, name in mine.items() if name == what]
        if not rows:
            raise InsertError(f"{model.name}: has no row {what}; expected one of ours: {ours}")
        return rows
    if isinstance(what, bool) or not isinstance(what, (int, str)):
        raise InsertError(f"remove: what is {what!r}; expected a module's name or a row number")
    if int(what) not in mine:
        is_none = int(what) not in range(len(model.rows))
        got = f"has no row {what}" if is_none else f"row {what} is {model.rows[int(what)].name}"
        raise InsertError(f"{model.name}: {got}; expected one of ours: {ours}")
    return [int(what)]


def write(plan, out=None, word="insert"):
    """The new text; written to `out` where one is named."""
    if out is not None:
        check_output(out, word)
        with open(out, "xb") as file:
            file.write(encoded(plan.new.text))
    return plan.new.text


def check_output(out, word):
    """Raises unless `out` can be a new model YAML; `word` is what was asked for it."""
    path = Path(out)
    if path.suffix not in (".yaml", ".yml"):
        raise InsertError(f"{word}: out is {out}; expected a name that ends in .yaml")
    if not path.absolute().parent.is_dir():
        raise InsertError(f"{word}: out is {out}; expected a file in a folder that exists")
    if path.exists():
        raise FileExistsError(f"{word}: out is {out}, which exists; expected a new name")


def _trace(model):
    """The layers of a model file, and what each of them gives, see :func:`lska_ops.yolo.maps.maps_of`."""
    from ultralytics.nn import tasks

    d = model.values_with_scale
    channels = d.get("channels", 3)
    try:
        layers = parse_quietly(tasks.parse_model, d, channels)[0].eval()
        return list(layers), maps_of(layers, channels)
    except MapError as error:
        raise InsertError(f"{model.name}: {error}") from error
    except PARSER_ERRORS as error:
        said, named = str(error), f"{model.name}: "
        if not said.startswith(named):
            said = named + (explained(error, d, channels, tasks.parse_model) or said or repr(error))
        raise InsertError(said) from error


def _places(model, maps, after):
    """{row number: the place it was asked for by}."""
    asked = list(after) if isinstance(after, (list, tuple)) else [after]
    if not asked:
        raise InsertError("insert: after is empty; expected P3, backbone, SPPF or row numbers")
    places = {}
    for place in asked:
        for i in _rows_of(model, maps, place):
            if i in places:
                raise InsertError(
                    f"{model.name}: row {i} is asked for by {places[i]} and by {place}; expected one"
                )
            places[i] = i if not isinstance(place, str) or place.isdecimal() else place
    return dict(sorted(places.items()))


def _rows_of(model, maps, place):
    if place == "backbone":
        if not model.sections["backbone"]:
            raise InsertError(f"{model.name}: the backbone has no row; expected a row number")
        return [model.sections["backbone"][-1]]
    if place == "SPPF":
        rows = [i for i, row in enumerate(model.rows) if row.name == "SPPF"]
        if not rows:
            raise InsertError(f"{model.name}: has no row SPPF; expected P3, backbone or a row number")
        return rows
    if isinstance(place, str) and re.fullmatch(r"P\d+", place):
        levels = _levels(model, maps)
        if place not in levels:
            have = ", ".join(
                f"{level} (row {', '.join(map(str, rows))})" for level, rows in sorted(levels.items())
            )
            raise InsertError(f"{model.name}: the head reads no {place}; expected one of {have}")
        return levels[place]
    return [_number(model, place)]


def _levels(model, maps):
    """{"P3": the rows with a map of stride 8 that the head reads}."""
    head = model.rows[-1] if model.rows else None
    if head is None or not head.several or head.name == "Concat":
        last = f"the last row, {len(model.rows) - 1}, is {head.name}" if head else "there is no row"
        raise InsertError(
            f"{model.name}: the head is not found, {last}; expected one that reads a list of "
            "rows, such as Detect; name row numbers instead"
        )
    levels = {}
    for i in head.reads:
        if maps[i] is None:
            raise InsertError(
                f"{model.name}: the stride of row {i} is not known; expected its row number, {i}"
            )
        levels.setdefault(f"P{_level(maps[i])}", []).append(i)
    return levels


def _level(x):
    return (SIDE // x.shape[-1]).bit_length() - 1


def _number(model, place):
    last = len(model.rows) - 1
    if isinstance(place, str) and place.isdecimal():
        place = int(place)
    if isinstance(place, bool) or not isinstance(place, int):
        raise InsertError(
            f"{model.name}: place is {place!r}; expected P2 to P7, backbone, SPPF or a row number "
            f"from 0 to {last - 1}"
        )
    if not 0 <= place < last:
        hint = "; nothing reads the head" if place == last else ""
        raise InsertError(f"{model.name}: place is row {place}; expected 0 to {last - 1}{hint}")
    return place


def _check_one_map(model, i, x):
    if x is None or not isinstance(x, torch.Tensor) or x.dim() != 4:
        got = "a list of maps" if isinstance(x, (list, tuple)) else "no map"
        raise InsertError(f"{model.name}: row {i} ({model.rows[i].name}) gives {got}; expected one map")


def _comment(x):
    stride = SIDE // x.shape[-1]
    return f" (P{_level(x)}/{stride})"


def options_of(module):
    """{option: its default} of a module's row."""
    parameters = inspect.signature(modules()[module].__init__).parameters
    skip = 1 + CHANNEL_COUNTS.get(module, 1)  # self, and what the parser fills in
    return {name: p.default for name, p in list(parameters.items())[skip:]}


def _arguments(module, options):
    """The arguments of a row, up to the last one that is not the default."""
    known = options_of(module)
    for name in options:
        if name not in known:
            raise InsertError(f"insert: {module} has no option {name!r}; expected {', '.join(known)}")
    values = {**known, **options}
    while values and next(reversed(values)) not in options:
        values.popitem()
    return list(values.values())


def _sppf_arguments(model, i, layer, options):
    """Those of SPPF_LSKA that keep what the row says of its pooling."""
    pooled = dict(zip(("k", "n", "shortcut"), model.rows[i].args[1:], strict=False))
    layer = first_of(layer)
    c1, c2 = layer.cv1.conv.in_channels, layer.cv2.conv.out_channels
    if c1 != c2:
        raise InsertError(f"{model.name}: row {i} (SPPF) makes {c2} channels of {c1}; expected as many")
    known = options_of("SPPF_LSKA")
    kept = {name: value for name, value in pooled.items() if value != known.get(name)}
    return _arguments("SPPF_LSKA", {**kept, **options})


def _plain_sppf(model, i, maps):
    """SPPF's arguments; its channel count as the YAML counts it is that of the row whose map it reads."""
    values = dict(zip(options_of("SPPF_LSKA"), model.rows[i].args, strict=False))
    j = model.rows[i].reads[0]
    while j != PICTURE and maps[j].shape[1] == maps[i].shape[1]:
        args = model.rows[j].args
        if model.rows[j].name not in NAMES and args and isinstance(args[0], int):
            pooling = {**options_of("SPPF_LSKA"), **values}
            tail = [pooling["k"], pooling["n"], pooling["shortcut"]]
            return [args[0], *(tail if tail[1:] != [3, False] else tail[:1])]
        j = model.rows[j].reads[0]
    raise InsertError(f"{model.name}: row {i} (SPPF_LSKA) reads no row that names its channels; expected one")
