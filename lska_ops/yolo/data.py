"""Checks a detection data set before hours are spent on it."""

import glob
import math
import os
from pathlib import Path


class DataError(ValueError):
    """The data set does not hold together; the message is one line: data, file, line, got, expected."""


def check_data(data):
    """The pictures of a YOLO detection data set, once every label file has been read and holds together.

    Expects ``…/images/….jpg`` with ``…/labels/….txt`` beside it, one line per box: class, then x and y of the
    centre, width and height, as parts of the picture (0 to 1); or class and the x, y of a polygon's corners.
    A picture without a label file shows background.

    Args:
        data: path of the data YAML with ``train``, ``val`` and ``names``; ultralytics finds the folders.

    Returns:
        dict: ``{"train": [Path, ...], "val": [Path, ...]}``, the pictures in order.

    Raises:
        DataError: a file or a key is missing, or a line does not hold together. It is a ValueError.
        TypeError: data is no path.
    """
    from ultralytics.data.utils import check_det_dataset

    if not isinstance(data, (str, os.PathLike)):
        raise TypeError(f"data: data is {data!r}; expected the path of a data YAML")
    data = Path(data)
    if not data.is_file():
        raise DataError(f"data: {data} is not a file; expected a data YAML")
    if data.suffix not in (".yaml", ".yml"):
        raise DataError(f"data: {data} does not end in .yaml; expected a data YAML")
    _check_yaml(data)
    try:
        config = check_det_dataset(str(data.resolve()), autodownload=False)
    except (FileNotFoundError, KeyError, SyntaxError, TypeError, ValueError) as error:
        said, _, _ = " ".join(str(error.args[0]).split()).partition(" Note dataset download directory")
        raise DataError(f"data: {data}: {said}") from error
    return {split: _check_split(split, config[split], len(config["names"])) for split in ("train", "val")}


def _read(file):
    """A file's lines; an old ultralytics would skip what it cannot read, byte-order marks included."""
    content = file.read_bytes()
    try:
        return content.decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        got = content[error.start : error.end]
        raise DataError(f"data: {file} line {line} has the bytes {got!r}; expected UTF-8 text") from error


def _check_yaml(data):
    """The types of what ultralytics reads; its own messages differ by version, and 8.3 has none."""
    import yaml

    text = "\n".join(_read(data))
    try:
        config, node = yaml.safe_load(text), yaml.compose(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{data} line {mark.line + 1}" if mark else data
        got = getattr(error, "problem", None) or "an unprintable character"
        raise DataError(
            f"data: {where} is no YAML ({got}); expected the keys train, val and names"
        ) from error
    if not isinstance(config, dict):
        kind = "empty" if config is None else f"a {type(config).__name__}"
        raise DataError(f"data: {data} is {kind}; expected a mapping with the keys train, val and names")
    lines = {key.value: key.start_mark.line + 1 for key, _ in node.value}

    def refuse(key, expected):
        raise DataError(
            f"data: {data} line {lines.get(key, 1)}: {key} is {config[key]!r}; expected {expected}"
        )

    val = "validation" if "validation" in config and "val" not in config else "val"
    for key in ("train", val):
        if key not in config:
            raise DataError(f"data: {data} has no key {key}; expected train, val and names")
        places = config[key] if isinstance(config[key], list) else [config[key]]
        if not places or not all(isinstance(place, str) and place for place in places):
            refuse(key, "a folder, a list file, or a list of these")
    if not isinstance(config.get("path", ""), str):
        refuse("path", "a folder")
    _check_names(data, config, refuse)


def _check_names(data, config, refuse):
    count = config.get("nc")
    if "nc" in config and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
        refuse("nc", "the number of classes")
    if "names" not in config:
        if "nc" not in config:
            raise DataError(f"data: {data} has no key names; expected train, val and names")
        return
    names = config["names"]
    if not isinstance(names, (list, dict)) or not names:
        refuse("names", "a list of class names, or a mapping from 0, 1, … to them")
    if isinstance(names, dict) and {str(key) for key in names} != {str(i) for i in range(len(names))}:
        refuse("names", f"the numbers 0 to {len(names) - 1} as keys")
    if count is not None and count != len(names):
        refuse("nc", f"{len(names)}, the number of names")


def _check_split(split, places, classes):
    from ultralytics.data.utils import img2label_paths

    places = places if isinstance(places, list) else [places]
    pictures = [picture for place in places for picture in _pictures(split, Path(place))]
    labels = [Path(label) for label in img2label_paths([str(p) for p in pictures])]
    present = [label for label in labels if label.is_file()]
    if not present:
        raise DataError(
            f"data: none of the {len(pictures)} {split} pictures has a label file; "
            f"expected for example {labels[0]}"
        )
    for label in present:
        _check_labels(label, classes)
    return pictures


def _pictures(split, place):
    """The pictures under a folder, or those that a text file lists, found the way ultralytics finds them."""
    from ultralytics.data.utils import IMG_FORMATS

    if place.is_dir():
        found = sorted(glob.glob(f"{glob.escape(str(place))}/**/*.*", recursive=True))
        pictures = [Path(file) for file in found if Path(file).suffix[1:].lower() in IMG_FORMATS]
    elif place.is_file():
        pictures = _listed(place, IMG_FORMATS)
    else:
        raise DataError(f"data: {split} is {place}, which does not exist; expected a folder of pictures")
    if not pictures:
        raise DataError(f"data: {split} is {place}, which holds no picture; expected at least one")
    return pictures


def _listed(place, formats):
    pictures = []
    for number, line in enumerate(_read(place), 1):
        # Only a leading ./ means the list's own folder; any other relative path starts where Python does.
        picture = place.parent / line[2:] if line.startswith("./") else Path(line)
        if picture.suffix[1:].lower() not in formats:
            continue
        if not picture.is_file():
            raise DataError(
                f"data: {place} line {number} is {line!r}, which does not exist; "
                "expected a picture (./ at the start stands for the list's folder)"
            )
        pictures.append(picture)
    return pictures


def _check_labels(label, classes):
    kinds = set()
    for number, line in enumerate(_read(label), 1):
        if not line.strip():
            continue
        where = f"data: {label} line {number} is {line.strip()[:60]!r}"
        try:
            cls, *place = (float(word) for word in line.split())
        except ValueError:
            raise DataError(f"{where}; expected numbers: class x y width height") from None
        if len(place) != 4 and (len(place) < 6 or len(place) % 2):
            raise DataError(f"{where}, {len(place) + 1} numbers; expected 5: class x y width height")
        if not math.isfinite(cls) or cls != int(cls) or not 0 <= cls < classes:
            raise DataError(f"{where}; expected a class from 0 to {classes - 1}")
        if not all(0 <= value <= 1 for value in place):  # nan is not either
            raise DataError(f"{where}; expected x, y, width and height as parts of the picture, from 0 to 1")
        xs, ys = place[::2], place[1::2]
        width, height = place[2:] if len(place) == 4 else (max(xs) - min(xs), max(ys) - min(ys))
        if width == 0 or height == 0:
            raise DataError(f"{where}, a box without area; expected width and height above 0")
        kinds.add(len(place) == 4)
        if len(kinds) == 2:  # ultralytics skips the file or reads the boxes as polygons
            raise DataError(f"{where} in a file of boxes and polygons; expected one kind in a file")
