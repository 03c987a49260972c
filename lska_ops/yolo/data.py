"""Checks a detection data set before hours are spent on it."""

from pathlib import Path


def check_data(data):
    """The pictures of a YOLO detection data set, once every label file has been read and holds together.

    Expects ``…/images/….jpg`` with ``…/labels/….txt`` beside it, one line per box: class, then x and y of the
    centre, width and height, as parts of the picture (0 to 1); or class and the x, y of a polygon's corners.
    A picture without a label file shows background.

    Args:
        data: path of the data YAML with ``train``, ``val`` and ``names``; ultralytics itself reads it.

    Returns:
        dict: ``{"train": [Path, ...], "val": [Path, ...]}``, the pictures in order.

    Raises:
        FileNotFoundError: the YAML, a folder or the labels are missing.
        ValueError: the YAML lacks a key, or a label line does not hold together; the message names file and
            line.
    """
    from ultralytics.data.utils import check_det_dataset

    data = Path(data)
    if not data.is_file():
        raise FileNotFoundError(f"data: {data} is not a file; expected a data YAML")
    try:
        config = check_det_dataset(str(data.resolve()), autodownload=False)
    except (SyntaxError, KeyError) as error:  # how ultralytics says that a key is missing or empty
        raise ValueError(f"data: {data}: {error.args[0]}; expected the keys train, val and names") from error
    return {split: _check_split(split, config[split], len(config["names"])) for split in ("train", "val")}


def _check_split(split, places, classes):
    from ultralytics.data.utils import img2label_paths

    places = places if isinstance(places, list) else [places]
    pictures = [picture for place in places for picture in _pictures(split, Path(place))]
    labels = [Path(label) for label in img2label_paths([str(p) for p in pictures])]
    present = [label for label in labels if label.is_file()]
    if not present:
        raise FileNotFoundError(
            f"data: none of the {len(pictures)} {split} pictures has a label file; "
            f"expected for example {labels[0]}"
        )
    for label in present:
        _check_labels(label, classes)
    return pictures


def _pictures(split, place):
    """The pictures under a folder, or those that a text file lists."""
    from ultralytics.data.utils import IMG_FORMATS

    if place.is_dir():
        files = sorted(place.rglob("*"))
    elif place.is_file():
        files = [place.parent / line.strip() for line in place.read_text().splitlines() if line.strip()]
    else:
        raise FileNotFoundError(
            f"data: {split} is {place}, which does not exist; expected a folder of pictures"
        )
    pictures = [file for file in files if file.suffix[1:].lower() in IMG_FORMATS]
    if not pictures:
        raise FileNotFoundError(f"data: {split} is {place}, which holds no picture")
    return pictures


def _check_labels(label, classes):
    for number, line in enumerate(label.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        where = f"data: {label} line {number} is {line.strip()[:60]!r}"
        try:
            cls, *place = (float(word) for word in line.split())
        except ValueError:
            raise ValueError(f"{where}; expected numbers: class x y width height") from None
        if len(place) != 4 and (len(place) < 6 or len(place) % 2):
            raise ValueError(f"{where}, {len(place) + 1} numbers; expected 5: class x y width height")
        if cls != int(cls) or not 0 <= cls < classes:
            raise ValueError(f"{where}; expected a class from 0 to {classes - 1}")
        if not all(0 <= value <= 1 for value in place):
            raise ValueError(f"{where}; expected x, y, width and height as parts of the picture, from 0 to 1")
