"""What two networks are compared by: the rows that are not ours, in order, and what each of them reads."""

from .registration import NAMES
from .rules import sources

INSERTED = tuple(name for name in NAMES if name != "SPPF_LSKA")  # a row of its own; that one has SPPF's place


class Outline:
    """The rows of a network that are not ours, in order, and ours by the place they stand at."""

    def __init__(self, d):
        self.plain = []  # (number, module name, what it reads as places in this list)
        self.inserted = {}  # (place behind which, name, how many of that name before): number
        self.rows = [*d["backbone"], *d["head"]]
        place_of = {}  # row number: its place, for ours that of what they read; -1 is the picture
        for i, (_, _, name, *_) in enumerate(self.rows):
            reads = [place_of.get(j, -1) for j in self.reads(i)]
            if name in INSERTED:
                place_of[i] = reads[0]
                before = sum((at, other) == (reads[0], name) for at, other, _ in self.inserted)
                self.inserted[reads[0], name, before] = i
            else:
                place_of[i] = len(self.plain)
                self.plain.append((i, "SPPF" if name == "SPPF_LSKA" else name, reads))

    def written(self, i):
        """What row i reads as its author wrote it, as a list."""
        return sources(self.rows[i])

    def reads(self, i):
        """The same as numbers of rows; -1 is the picture."""
        return [j if j >= 0 else i + j for j in self.written(i)]

    def number(self, place, before):
        """The row in front of row `before` that gives the map of a place: of ours behind it the last."""
        if place < 0:
            return place
        ours = (i for (at, *_), i in self.inserted.items() if at == place and i < before)
        return max([self.plain[place][0], *ours])

    def differences(self, other):
        """What keeps the two from being one network but for our rows and the head, in words."""
        if len(self.plain) != len(other.plain):
            return [f"it has {len(self.plain)} rows beside ours, here are {len(other.plain)}"]
        found = []
        for (i, name, _), (j, here, _) in zip(self.plain[:-1], other.plain[:-1], strict=True):
            if name != here:
                found.append(f"its row {i} is {name}, row {j} here is {here}")
        return found

    def other_reads(self, other):
        """Rows that read something else than their counterpart does."""
        pairs = zip(self.plain, other.plain, strict=True)
        return [f"row {j} ({name})" for (_, _, there), (j, name, here) in pairs if there != here]


def few(problems):
    """The first three in one sentence."""
    more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
    return "; ".join(problems[:3]) + more
