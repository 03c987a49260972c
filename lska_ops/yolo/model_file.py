"""A model YAML as text whose rows can be moved: what is not a row number stays as its author wrote it."""

import codecs
import dataclasses
import os
import re
from pathlib import Path

from . import rules
from .hints import hint_for, without_scale
from .maps import PICTURE
from .registration import CFG

# What YAML takes in place of a character that it does not take.
STAND_IN = "\N{REPLACEMENT CHARACTER}"
NOT_UTF8 = re.compile(r"[\udc80-\udcff]")


class InsertError(ValueError):
    """A model file, or a change asked of it, does not hold. Nothing was written."""


@dataclasses.dataclass
class Row:
    """One row: the values, and where in the text they stand."""

    repeats: int
    name: str
    args: list
    written: list  # its `from`
    reads: list  # absolute row numbers, PICTURE for the picture
    several: bool  # its `from` is a list
    sources: list  # the YAML nodes of its `from`, in the order of `reads`
    start: int  # of the row's text
    end: int


class ModelFile:
    """The rows of a model YAML and its text, bytes that are not UTF-8 as surrogate escapes (PEP 383) in it.

    Args:
        source: a path, or a name that ultralytics or this package has, such as "yolo11n.yaml".

    Raises:
        InsertError: there is no such file, or it is no model YAML.
    """

    def __init__(self, source):
        if not isinstance(source, (str, os.PathLike)) or not str(source):
            got = repr(source) if isinstance(source, str) else f"a {type(source).__name__}"
            raise InsertError(f"model YAML: source is {got}; expected its path or name")
        self.name = Path(str(source)).name
        self.path = _find(source)
        self.text = _decoded(self.name, self.path.read_bytes())
        self.scale = _scale(self.name)
        self._read()

    def _read(self):
        import yaml

        readable = yaml.reader.Reader.NON_PRINTABLE.sub(STAND_IN, self.text)  # every mark stays at its place
        try:
            root = yaml.compose(readable, Loader=yaml.SafeLoader)
            self.values = yaml.safe_load(readable)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            line = f" (line {mark.line + 1}: {error.problem})" if mark else ""
            expected = f"a model YAML{', saved as UTF-8' if NOT_UTF8.search(self.text) else ''}"
            raise InsertError(f"{self.name}: is no YAML{line}; expected {expected}") from error
        except ValueError as error:  # a date that is none
            raise InsertError(f"{self.name}: is no YAML ({error}); expected a model YAML") from error
        if problem := rules.first_problem(self.values):
            raise InsertError(f"{self.name}: {problem}")
        self._nodes = {key.value: (key, value) for key, value in root.value}
        if missing := {"backbone", "head"} - self._nodes.keys():
            raise InsertError(
                f"{self.name}: has {missing.pop()} by a merge key (<<); expected it written out"
            )
        self.rows, self.sections = [], {}
        for section in ("backbone", "head"):
            nodes = self._nodes[section][1].value
            self.sections[section] = range(len(self.rows), len(self.rows) + len(nodes))
            for node, values in zip(nodes, self.values[section], strict=True):
                self.rows.append(self._row(len(self.rows), node, values))
        if len({row.start for row in self.rows}) < len(self.rows):
            raise InsertError(f"{self.name}: has a row by an alias (*name); expected every row written out")

    def _row(self, i, node, values):
        _, repeats, name, args = values
        several = isinstance(values[0], list)
        written = rules.sources(values)
        reads = [(f if f >= 0 else i + f) if i else PICTURE for f in written]
        sources = node.value[0].value if several else [node.value[0]]
        args = args if isinstance(args, list) else [args]
        return Row(repeats, name, args, written, reads, several, sources, node.start_mark.index, _end(node))

    @property
    def values_with_scale(self):
        """What ultralytics' parser is given."""
        scales = self.values.get("scales")
        scale = self.scale if scales and self.scale in scales else next(iter(scales)) if scales else ""
        return {**self.values, "scale": scale, "yaml_file": self.name}

    def changed(self, inserted=None, replaced=None, removed=()):
        """This file with other rows.

        Every row that read a row with a new one behind it reads the new one; what read a removed row reads
        the row that one read.

        Args:
            inserted: {row number: (module, arguments, comment behind the row's number)} to put behind it.
            replaced: {row number: (module, arguments)}.
            removed: numbers of rows that read one row.

        Returns:
            tuple: the new :class:`ModelFile`, and {new row number: old row number} of the rows that stayed.
        """
        inserted, replaced = inserted or {}, replaced or {}
        at, gives = self._new_numbers(inserted, removed)
        edits = []
        for i in range(len(self.rows)):
            if i in removed:
                edits.append((*self._whole_line(i), ""))
                continue
            edits += self._renumbered(i, at, gives)
            if i in replaced:
                name, args = replaced[i]
                edits.append((*self._name_and_arguments(i), f"{name}, {rules.as_yaml(args)}"))
            if i in inserted:
                edits.append(self._new_row(i, at[i] + 1, *inserted[i]))
        twin = object.__new__(ModelFile)
        twin.name, twin.path, twin.scale = self.name, self.path, self.scale
        twin.text = _edited(self.text, edits + self._scales())
        twin._read()
        return twin, {new: old for old, new in at.items()}

    def _new_numbers(self, inserted, removed):
        """({old row: its new number}, {old row or PICTURE: new number of what its readers read})."""
        at, gives, count = {}, {PICTURE: PICTURE}, 0
        for i, row in enumerate(self.rows):
            if i in removed:
                gives[i] = gives[row.reads[0]]
                continue
            at[i] = count
            count += 1 + (i in inserted)
            gives[i] = count - 1
        return at, gives

    def _renumbered(self, i, at, gives):
        """The edits of one row's `from` and of the number its comment begins with."""
        row, edits = self.rows[i], []
        for node, f, read in zip(row.sources, row.written, row.reads, strict=True):
            target = gives[read]
            if target == PICTURE and at[i] != 0:
                raise InsertError(
                    f"{self.name}: row {i} ({row.name}) would have to read the picture; "
                    "expected a row before it"
                )
            number = target - at[i] if f < 0 and target != PICTURE else target
            if number != f:
                edits.append((node.start_mark.index, node.end_mark.index, str(number)))
        comment = re.compile(rf"[^\n]*?#\s*({i})(?!\d)").match(self.text, row.end)
        if comment and self.text[row.end : comment.start(1)].strip(" ,]}#\t") == "":
            edits.append((*comment.span(1), str(at[i])))
        return edits

    def _name_and_arguments(self, i):
        name, args = self._nodes_of(i)[2:]
        return name.start_mark.index, _end(args)

    def _nodes_of(self, i):
        section, rows = next((s, r) for s, r in self.sections.items() if i in r)
        return self._nodes[section][1].value[i - rows.start].value

    def _section_of(self, i):
        return self._nodes[next(s for s, rows in self.sections.items() if i in rows)][1]

    def _new_row(self, i, number, name, args, comment):
        section, row = self._section_of(i), f"[-1, 1, {name}, {rules.as_yaml(args)}]"
        if section.flow_style:
            return self.rows[i].end, self.rows[i].end, f", {row}"
        newline = "\r\n" if "\r\n" in self.text else "\n"
        end = self._line_end(i)
        new = f"{' ' * section.start_mark.column}- {row} # {number}{comment}"
        return end, end, f"{newline}{new}"

    def _line_end(self, i):
        end = self.text.find("\n", self.rows[i].end)
        end = len(self.text) if end < 0 else end
        return end - 1 if self.text[end - 1 : end] == "\r" else end

    def _whole_line(self, i):
        """What goes with a removed row: its line, or in a list on one line its comma."""
        row = self.rows[i]
        if self._section_of(i).flow_style:
            comma = re.compile(r"\s*,\s*").match(self.text, row.end)
            before = re.search(r",\s*$", self.text[: row.start])
            start = before.start() if before and not comma else row.start
            return start, comma.end() if comma else row.end
        before = self.text.rfind("\n", 0, row.start)
        return before - (self.text[before - 1 : before] == "\r"), self._line_end(i)

    def _scales(self):
        """Comments that count the parameters of the old rows go; the scale of the file's name comes first,
        where ultralytics looks when the new file's name tells none."""
        if "scales" not in self._nodes or not self._nodes["scales"][1].value:
            return []
        pairs = self._nodes["scales"][1].value
        edits = []
        for _, value in pairs:
            comment = re.compile(r"[ \t]*#[^\n\r]*param[^\n\r]*").match(self.text, _end(value))
            if comment:
                edits.append((*comment.span(), ""))
        spans = {str(key.value): (key.start_mark.index, _end(value)) for key, value in pairs}
        first, asked = next(iter(spans)), self.scale
        if asked in spans and asked != first:
            for place, other in ((first, asked), (asked, first)):
                edits.append((*spans[place], self.text[slice(*spans[other])]))
        return edits


def _decoded(name, content):
    """A file's text, from which :func:`encoded` makes the same bytes, whatever its encoding."""
    if b"\0" in content or content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        wide = content.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE))
        encoding = "UTF-32" if wide else "UTF-16"
        raise InsertError(
            f"{name}: is {encoding} text; expected UTF-8, which ultralytics reads: save it as that"
        )
    return content.decode("utf-8", "surrogateescape")


def encoded(text):
    """The bytes of a model file's text."""
    return text.encode("utf-8", "surrogateescape")


def _find(source):
    """The file as ultralytics would find it: by its own name, then without the letter of the scale."""
    from ultralytics.nn import tasks

    path = Path(str(source))
    plain = path.with_name(without_scale(path.name)) if path.name else path
    for candidate in (path, plain, CFG / plain.name):
        if candidate.suffix in (".yaml", ".yml"):
            if candidate.is_file():
                return candidate
            # Only a bare name is searched for: ultralytics would look for a path in the network as well.
            if candidate == Path(candidate.name) and (found := tasks.check_yaml(str(candidate), hard=False)):
                return Path(found)
    if path.is_file():
        raise InsertError(f"{source}: is no YAML; expected a model's .yaml, as a checkpoint is made from one")
    if path.is_dir():
        raise InsertError(f"{source}: is a directory; expected a model's .yaml")
    hint = (
        f"; did you mean {source}.yaml?"
        if not path.suffix and _is_model(f"{source}.yaml")
        else hint_for(source)
    )
    raise InsertError(
        f"{source}: does not exist; expected the path of a model YAML, or a name that ultralytics has{hint}"
    )


def _is_model(source):
    try:
        return bool(_find(source))
    except InsertError:
        return False


def _scale(name):
    from ultralytics.nn import tasks

    return tasks.guess_model_scale(name)


def _end(node):
    """Where the text of a node ends; a block's own mark lies behind the comments that follow it."""
    if getattr(node, "flow_style", None) is False and node.value:
        last = node.value[-1]
        return _end(last[1] if isinstance(last, tuple) else last)
    return node.end_mark.index


def _edited(text, edits):
    for start, end, new in sorted(edits, reverse=True):
        text = text[:start] + new + text[end:]
    return text
