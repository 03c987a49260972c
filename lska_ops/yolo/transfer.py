"""Pretrained weights into a network with our modules in between, which then begins as exactly that detector.

ultralytics matches tensors by name, and a name holds the layer's number: behind an inserted row nothing would
fit. Here layers are matched by their place among the rows that are not ours, and its own loading is given the
source with its layers at those numbers.
"""

import collections
from pathlib import Path

import torch
from torch import nn

from .maps import first_of, is_ours
from .outline import INSERTED, Outline, few
from .registration import identity_start, modules


def load(original, model, weights, verbose=True):
    """``BaseModel.load`` of ultralytics, wrapped; for networks without our modules, that itself."""
    source = (weights.get("ema") or weights.get("model")) if isinstance(weights, dict) else weights
    if not _has_rows(model):
        return original(model, weights, verbose)
    if _has_ours(model) and (not isinstance(source, nn.Module) or _is_yolo(source)):
        got = (
            f"a dict with {type(source).__name__} as its model"
            if isinstance(weights, dict)
            else type(weights).__name__
        )
        expected = "expected the path of a checkpoint, or a network (YOLO(...).model)"
        raise TypeError(f"load: weights is {got}; {expected}")
    if not isinstance(source, nn.Module) or not (_has_ours(source) or _has_ours(model)):
        return original(model, weights, verbose)
    if not _has_rows(source):
        original(model, weights, verbose)
        text = f"{_name(source)} is no network of ultralytics ({type(source).__name__})"
        text += f"; tensors are taken by name alone{_at_random(_not_in(source, model))}"
        return _say("warning", verbose, text)
    match = Match(source, model)
    if problems := match.there.differences(match.here):
        text = f"{_does_not_fit(match, problems)}; tensors are taken by name alone"
        _say("warning", verbose, text + _at_random(_not_in(source, model)))
        return original(model, weights, verbose)
    match.pair()
    problems = match.other_tensors()
    started, reasons = _start_as_identity(match.new) if identity_start() and not problems else ([], [])
    original(model, match.renumbered(), verbose)
    if problems:
        _say("warning", verbose, _does_not_fit(match, problems) + _at_random(match.new.values()))
    if others := match.there.other_reads(match.here):
        _say("warning", verbose, f"not wired as in {_name(source)}: {few(others)}")
    if problems or not match.same():
        _say("info", verbose, _summary(match, started, reasons))


class Match:
    """Which layer of a source is which of a model."""

    def __init__(self, source, model):
        self.source, self.model = source, model
        self.there, self.here = Outline(source.yaml), Outline(model.yaml)

    def pair(self):
        """Finds `pairs` [(number in the source, number in the model)], `new` {number: layer of the model
        without a counterpart} and `left`, layers of the source without one."""
        source, model, there, here = self.source.model, self.model.model, self.there, self.here
        self.plain = [(i, j) for (i, *_), (j, *_) in zip(there.plain, here.plain, strict=True)]
        same = {key for key in there.inserted.keys() & here.inserted.keys()
                if _shapes(source[there.inserted[key]]) == _shapes(model[here.inserted[key]])}  # fmt: skip
        self.pairs = self.plain + [(there.inserted[key], here.inserted[key]) for key in same]
        self.new = {j: model[j] for key, j in here.inserted.items() if key not in same}
        self.new |= {j: model[j] for i, j in self.plain if is_ours(model[j]) and not is_ours(source[i])}
        self.left = [source[i] for key, i in there.inserted.items() if key not in same]
        self.left += [source[i] for i, j in self.plain if is_ours(source[i]) and not is_ours(model[j])]

    def same(self):
        return not self.new and not self.left and all(i == j for i, j in self.pairs)

    def renumbered(self):
        """The source with its layers at the model's numbers; it shares everything, and stays as it is."""
        layers = list(self.model.model)  # a new layer keeps what it has
        for i, j in self.pairs:
            layers[j] = self.source.model[i]
        twin = self.source.__class__.__new__(self.source.__class__)
        twin.__dict__ = dict(self.source.__dict__)
        twin.__dict__["_modules"] = {**self.source._modules, "model": nn.Sequential(*layers)}
        return twin

    def other_tensors(self):
        """Rows whose tensors have other names or shapes, in words. The head's follow the classes, the first
        row's the channels of a picture."""
        found = []
        for i, j in self.plain[1:-1]:
            layers = self.source.model[i], self.model.model[j]
            a, b = ({k: s for k, s in _shapes(m).items() if not k.startswith("lska.")} for m in layers)
            if key := next((key for key in [*a, *b] if a.get(key) != b.get(key)), None):
                got, expected = (list(s[key]) if key in s else "no such tensor" for s in (a, b))
                found.append(f"its row {i} has {key} {got}, row {j} ({_kind(layers[1])}) here {expected}")
        return found

    def transferred(self):
        """(tensors of the source that the model now has, all of them but those of layers left out)."""
        now, count, total = self.model.state_dict(), 0, 0
        for i, j in self.pairs:
            ours = is_ours(self.source.model[i]) and not is_ours(self.model.model[j])
            for key, value in self.source.model[i].state_dict().items():
                if not (ours and key.startswith("lska.")):
                    mine = now.get(f"model.{j}.{key}")
                    total += 1
                    count += (
                        mine is not None and mine.shape == value.shape and torch.equal(mine, value.to(mine))
                    )
        return count, total


def _does_not_fit(match, problems):
    """ "yolo11s.pt does not fit: its row 0 has ...; it is of scale s, this model of scale n"."""
    text = f"{_name(match.source)} does not fit: {few(problems)}"
    for key, its, ours in (("scale", "of scale", "of scale"), ("yaml_file", "made from", "from")):
        there, here = (Path(str(m.yaml.get(key) or "")).name for m in (match.source, match.model))
        if there and here and there != here:
            return f"{text}; it is {its} {there}, this model {ours} {here}"
    return text


def _at_random(layers):
    layers = list(layers)
    return f"; {_count(layers)} start{'s' * (len(layers) == 1)} at random" if layers else ""


def _not_in(source, model):
    """Layers of ours that find no tensors of their names and shapes."""
    theirs = {key: value.shape for key, value in source.state_dict().items()}
    mine = model.state_dict()
    for j, layer in enumerate(model.model):
        keys = [key for key in mine if key.startswith(f"model.{j}.")]
        if _has_ours(layer) and any(theirs.get(key) != mine[key].shape for key in keys):
            yield layer


def _summary(match, started, reasons):
    """ "499/499 tensors of yolo11n.pt, 3 LSKA layers start as identity"."""
    count, total = match.transferred()
    text = f"{count}/{total} tensors of {_name(match.source)}"
    classes, here = (getattr(m.model[-1], "nc", None) for m in (match.source, match.model))
    if count < total and classes != here:
        text += f" (it has {classes} classes, here are {here})"
    parts = [text]
    if started:
        parts.append(f"{_count(started)} start{'s' * (len(started) == 1)} as identity")
    parts += reasons
    if match.left:
        parts.append(f"its {_count(match.left)} left out")
    return ", ".join(parts)


def _start_as_identity(new):
    """({number: module name} of layers that now are the identity, sentences about those that cannot be)."""
    started, reasons = [], []
    for j, layer in new.items():
        ours = [m for m in layer.modules() if isinstance(m, tuple(_classes_of_gates()))]
        why = [why for m in ours if (why := start_as_identity(m))]
        if why or not ours:
            reasons.append(f"row {j} starts at random{': ' + why[0] if why else ''}")
        else:
            started.append(layer)
    return started, reasons


def _classes_of_gates():
    return [cls for name, cls in modules().items() if name in INSERTED]


@torch.no_grad()
def start_as_identity(module):
    """Sets the weights so that the module gives its input back, bit for bit, and every weight learns.

    A gate is x · (0 · stages + 1). ACmix switches its attention off, whose own weights then learn as soon as
    its rate has, and passes every channel through one tap of the convolution: conv3 reorders the channels
    from heads times dims to dims times heads, tap h of fc takes v of head h, and dep_conv puts it in place.
    The taps left over keep their shifts, so that fc can reach them.

    Returns:
        str | None: why it cannot be the identity; nothing is changed then.
    """
    from lska_ops import ACmix

    if not isinstance(module, ACmix):
        module.conv1.weight.zero_()
        module.conv1.bias.fill_(1)
        return None
    heads, dims, taps = module.head, module.head_dim, module.kernel_conv**2
    if module.in_planes != module.out_planes or module.stride != 1:
        return "ACmix changes the shape of its map"
    if heads > taps:
        return f"ACmix has {heads} heads and {taps} taps; expected no more heads than kernel_conv squared"
    module.reset_parameters()
    module.rate1.zero_()
    module.rate2.fill_(1)
    for weight in (module.conv3.weight, module.conv3.bias, module.fc.weight):
        weight.zero_()
    centre = module.kernel_conv // 2
    for h in range(heads):
        for d in range(dims):
            module.conv3.weight[h * dims + d, d * heads + h] = 1
        module.fc.weight[h, 2 * heads + h] = 1
    shifts = module.dep_conv.weight.view(dims, heads, taps, module.kernel_conv, module.kernel_conv)
    shifts[:, :, :heads] = 0
    for h in range(heads):
        shifts[:, h, h, centre, centre] = 1
    return None


def _has_rows(model):
    d = getattr(model, "yaml", None)
    return isinstance(d, dict) and "backbone" in d and "head" in d and hasattr(model, "model")


def _is_yolo(module):
    """ultralytics' YOLO is a module around the network, which its own loading does not look into."""
    from ultralytics.engine.model import Model

    return isinstance(module, Model)


def _has_ours(model):
    return any(map(is_ours, model.modules()))


def _shapes(layer):
    return {key: tuple(value.shape) for key, value in layer.state_dict().items()}


def _count(layers):
    """ "3 LSKA layers"."""
    counts = collections.Counter(_kind(layer) for layer in layers)
    return " and ".join(f"{n} {name} layer{'s' * (n > 1)}" for name, n in counts.items())


def _kind(layer):
    return type(first_of(layer)).__name__


def _name(source):
    path = getattr(source, "pt_path", None)
    return Path(str(path)).name if path else "the source"


def _say(kind, verbose, text):
    from ultralytics.utils import LOGGER, RANK

    if verbose and RANK in (-1, 0):
        getattr(LOGGER, kind)(f"lska_ops: {text}")
