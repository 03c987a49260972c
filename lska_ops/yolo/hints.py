"""What a message says to whoever asked for a module or a model YAML by a name that is not there."""

import difflib
import re
from pathlib import Path

from .registration import CFG, NAMES


def hint_for(file):
    """What helps whoever asked for a model YAML by a bare name that is not there.

    Args:
        file: the name.

    Returns:
        str: the end of a message, with the name that it nearly is, or with the command that writes it, as for
        yolo12n-LSKA.yaml; "" where neither is known.
    """
    from ultralytics.nn import tasks

    path = Path(str(file))
    # Only a bare name is searched for: ultralytics would look for a path in the network as well.
    if path.name != str(file) or path.suffix not in (".yaml", ".yml"):
        return ""
    if tasks.check_yaml(path.name, hard=False):  # refused since it is there twice
        return ""
    near = near_model(path)
    if not (near and _letters(near) == _letters(f"{path.stem}.yaml")) and (command := _writing(path.stem)):
        return f"; `python -m lska_ops insert {command}` writes it"
    return f"; did you mean {near}?" if near else ""


def _writing(stem):
    """The words behind `insert` that write a model of that name, where it is another model's with the name of
    one of our modules in it; None for any other."""
    from .model_file import ModelFile

    words, named = stem.split("-"), {_letters(name): name for name in NAMES}
    word = next((word for word in words if _letters(word) in named), None)
    if not word:
        return None
    plain = "-".join(each for each in words if each != word) + ".yaml"
    try:
        *rows, head = ModelFile(plain).rows
    except ValueError:  # InsertError, there is no such model; or it has no row
        return None
    name = named[_letters(word)]
    if name == "SPPF_LSKA":
        after = "SPPF" if any(row.name == "SPPF" for row in rows) else None
    elif not head.several:
        after = "backbone"
    else:
        after = "P3 P4 P5" if len(head.reads) == 3 else " ".join(map(str, head.reads))
    return after and f"{plain} {name} --after {after} -o {stem}.yaml"


def did_you_mean(name, known):
    """The end of a message on a name that is none of `known`; "" where none is near."""
    near = near_names(name, known)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def near_model(file):
    """The name of a shipped model YAML that a bare name nearly is, its scale kept; None for any other."""
    path = Path(str(file))
    if path.name != str(file):
        return None
    before, scale, behind = re.fullmatch(r"(.*?\d+)([nslmx]?)(?![a-z])(.*)|.*", path.stem).groups("")
    shipped = {each.stem: each.name for each in CFG.glob("*.yaml")}
    near = near_names(before + behind, shipped, cutoff=0.9)
    return shipped[near[0]].replace("-", f"{scale}-", 1) if near else None


def near_names(name, known, cutoff=0.6):
    """The names that differ from `name` in case or punctuation alone; if there are none, similar ones."""
    letters = {}
    for each in known:
        letters.setdefault(_letters(each), []).append(each)
    asked = _letters(name)
    near = [asked] if asked in letters else difflib.get_close_matches(asked, letters, n=3, cutoff=cutoff)
    return [each for key in near for each in letters[key]]


def without_scale(name):
    """As ultralytics takes the letter of the scale out of a name."""
    return re.sub(r"(\d+)([nslmx])(.+)?$", r"\1\3", name)


def _letters(text):
    return re.sub(r"[\W_]", "", text).lower()
