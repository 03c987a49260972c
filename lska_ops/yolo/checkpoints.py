"""Checkpoints and modules of others whose LSKA or ACmix is the published one: ours take their place.

A checkpoint holds whole modules by the name of their class, which a fork of ultralytics keeps wherever its
author put it. The names are read first; for the load alone, and at those places alone, ours stand in.
"""

import collections
import contextlib
import copy
import importlib
import os
import pickletools
import sys
import threading
import types
import zipfile
from pathlib import Path

import torch
from torch import nn

from .registration import NAMES, register

# SPPF_LSKA is ultralytics' SPPF with a module of ours inside: nobody published it as a class of its own.
PUBLISHED = tuple(name for name in NAMES if name != "SPPF_LSKA")
_NO_WEIGHTS = ("pad_att", "unfold", "softmax")  # of the published ACmix, which ours does without
_KEPT = (
    "in_channels",
    "out_channels",
    "kernel_size",
    "stride",
    "padding",
    "dilation",
    "groups",
    "padding_mode",
)
_lock = threading.RLock()  # sys.modules is one for all threads


class CheckpointError(ValueError):
    """A checkpoint, or a module in it, is not what its name says. Nothing was written or changed."""


def swap(model, verbose=True):
    """Turns every published LSKA, LKA and ACmix in a network into ours, in place, with its weights.

    They are found by the name of their class; their shapes are checked, and one map is sent through copies of
    both, whose hooks do not run.

    Args:
        model: any ``nn.Module``, of ultralytics or not: VAN, a ResNet with ACmix ...
        verbose: whether a line on stderr says what was found.

    Returns:
        list of str: names of the modules that are ours now, as in ``model.named_modules()``.

    Raises:
        CheckpointError: a class only shares the name. Nothing is changed then. It is a ValueError.
        TypeError: model is no module.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"swap: model is {type(model).__name__}; expected a torch.nn.Module")
    found = {}
    for name, module in model.named_modules():
        cls = modules_of_ours().get(type(module).__name__)
        if cls is not None and not isinstance(module, cls):
            where = f"swap: {name or 'the model'} ({type(module).__module__}.{type(module).__name__})"
            state = _as_ours(cls, module.__dict__, where)
            _check_same(cls, module, state, where)
            found[name] = module, cls, state
    for module, cls, state in found.values():
        module.__class__ = cls
        module.__dict__ = state
    if verbose:
        print(f"lska_ops: swap: {_swapped(model, found)}", file=sys.stderr)
    return list(found)


def _swapped(model, found):
    """ "2 LSKA and 1 ACmix are ours now: stages.0.1, ..."; where there was none, whether some are ours."""
    if found:
        count = _counted(cls for _, cls, _ in found.values())
        names = ", ".join(name or "the model itself" for name in found)
        return f"{count} {'is' if len(found) == 1 else 'are'} ours now: {names}"
    classes = tuple(modules_of_ours().values())
    ours = _counted(type(m) for m in model.modules() if isinstance(m, classes))
    beside = f"; it has {ours} of ours" if ours else ""
    return f"{type(model).__name__} has no {', '.join(PUBLISHED[:-1])} or {PUBLISHED[-1]} of others{beside}"


def _counted(classes):
    """ "2 LSKA and 1 ACmix"."""
    counts = collections.Counter(cls.__name__ for cls in classes)
    return " and ".join(f"{n} {name}" for name, n in counts.items())


def convert(source, out):
    """Writes a fork's checkpoint again with our classes in it, so that any ultralytics loads it.

    Args:
        source: a .pt file.
        out: the .pt file to write, which must not exist.

    Returns:
        list of str: the classes that were replaced, by their path in the fork.

    Raises:
        CheckpointError: `source` is no checkpoint or names no class to replace, or `out` cannot be written.
    """
    from ultralytics.nn import tasks

    source, out = Path(source), Path(out)
    for name, path in (("source", source), ("out", out)):
        if path.suffix != ".pt":
            raise CheckpointError(f"convert: {name} is {path}; expected a file that ends in .pt")
    if out.exists() or not out.absolute().parent.is_dir():
        raise CheckpointError(
            f"convert: out is {out}, {'which exists' if out.exists() else 'whose folder does not exist'}; "
            "expected a new file in a folder that exists"
        )
    names = foreign_names(source)
    register()
    if not names:
        raise CheckpointError(
            f"{source.name}: names no {', '.join(PUBLISHED[:-1])} or {PUBLISHED[-1]} of a fork, so there is "
            "nothing to convert; expected a checkpoint that stock ultralytics cannot open"
        )
    checkpoint, _ = tasks.torch_safe_load(str(source))
    part = out.with_name(out.name + ".part")
    try:
        torch.save(checkpoint, part)
        os.replace(part, out)
    finally:
        part.unlink(missing_ok=True)
    return [".".join(pair) for pair in names]


def load(original, weight, *args, **kwargs):
    """``torch_safe_load`` of ultralytics, wrapped."""
    path = Path(str(weight))
    names = foreign_names(path) if path.is_file() and zipfile.is_zipfile(path) else []
    if not names:
        return original(weight, *args, **kwargs)
    with _lock, _standing_in(names, path.name):
        return original(weight, *args, **kwargs)


def foreign_names(path):
    """[(module, class)] in a checkpoint that are called like ours and are not ours, sorted.

    Raises:
        CheckpointError: the file is no checkpoint.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            pickles = [name for name in archive.namelist() if name.endswith("data.pkl")]
            found = {pair for name in pickles[:1] for pair in _globals(archive.read(name))}
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: does not exist; expected a checkpoint") from error
    except (OSError, zipfile.BadZipFile, ValueError, KeyError) as error:
        raise _no_checkpoint(path, error) from error
    if not pickles:
        raise _no_checkpoint(path, "it has no data.pkl")
    return sorted((m, n) for m, n in found if n in PUBLISHED and not m.startswith("lska_ops"))


def _no_checkpoint(path, why):
    return CheckpointError(f"{path}: is no checkpoint ({why}); expected a file that torch.save wrote")


def _globals(data):
    """Every (module, name) that a pickle refers to, without running it."""
    strings, memo = [], {}
    for op, argument, _ in pickletools.genops(data):
        if op.name == "GLOBAL":
            yield tuple(argument.split(" ", 1))
            strings.append(None)
        elif op.name == "STACK_GLOBAL":
            yield tuple(strings[-2:])
            strings.append(None)
        elif op.name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = strings[-1] if strings else None
        elif op.name == "MEMOIZE":
            memo[len(memo)] = strings[-1] if strings else None
        elif op.name in ("BINGET", "LONG_BINGET"):
            strings.append(memo.get(argument))
        else:
            strings.append(argument if isinstance(argument, str) else None)


@contextlib.contextmanager
def _standing_in(names, file):
    """For the block, each (module, class) names a class that checks what it is given and turns into ours."""
    made, replaced = [], []
    try:
        for module, name in names:
            for part in _parts(module):
                if part not in sys.modules and not _importable(part):
                    sys.modules[part] = types.ModuleType(part)
                    sys.modules[part].__path__ = []
                    made.append(part)
            there = sys.modules[module]
            before = there.__dict__.get(name)
            if before is None or before is modules_of_ours()[name]:  # a fork's own class keeps its place
                setattr(there, name, _stand_in(name, f"{file}: {module}.{name}"))
                replaced.append((there, name, before))
                _allow(getattr(there, name), f"{module}.{name}")
        yield
    finally:
        for there, name, before in replaced:
            setattr(there, name, before) if before is not None else delattr(there, name)
        for part in made:
            del sys.modules[part]


def _parts(module):
    words = module.split(".")
    return [".".join(words[: i + 1]) for i in range(len(words))]


def _importable(module):
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True


def _stand_in(name, where):
    cls = modules_of_ours()[name]

    class StandIn(cls):
        def __setstate__(self, state):
            nn.Module.__setstate__(self, state)
            self.__dict__ = _as_ours(cls, self.__dict__, where)
            self.__class__ = cls

    return StandIn


def _allow(cls, path):
    """For loads with weights_only, where torch has a list of the classes they may build."""
    if hasattr(torch.serialization, "get_unsafe_globals_in_checkpoint"):  # takes names as well, from 2.6 on
        torch.serialization.add_safe_globals([(cls, path)])


def modules_of_ours():
    import lska_ops  # the operators alone need no ultralytics

    return {name: getattr(lska_ops, name) for name in PUBLISHED}


def _as_ours(cls, state, where):
    """The ``__dict__`` of a module of ours with the weights, hooks and stamps of a published one."""
    children = state.get("_modules", {})
    try:
        with torch.device("meta"):
            twin = _twin(cls, children, state)
    except (AttributeError, KeyError, TypeError, ValueError, IndexError, ZeroDivisionError) as error:
        raise _refused(cls, children, state, where) from error
    extra = {name for name in children if name not in twin._modules}
    if not extra <= set(_NO_WEIGHTS) or state["_parameters"].keys() != twin._parameters.keys():
        raise _refused(cls, children, state, where)
    for name, wanted in twin._modules.items():
        if not _same_convolution(children.get(name), wanted):
            raise _refused(cls, children, state, where)
    own = {
        name: value for name, value in vars(twin).items() if not name.startswith("_") and name != "training"
    }
    for name, conv in twin._modules.items():
        own.setdefault("_modules", {})[name] = _without_zero_bias(children[name], conv)
    return {**state, **own}


def _twin(cls, children, state):
    """A module of ours of the options that the published one's convolutions tell."""
    if cls.__name__ == "ACmix":
        conv1, dep_conv = children["conv1"], children["dep_conv"]
        heads, taps = children["fc"].in_channels // 3, dep_conv.kernel_size[0]
        options = heads, taps, dep_conv.stride[0], state.get("dilation", 1)
        return cls(conv1.in_channels, conv1.out_channels, state["kernel_att"], *options)
    first = next(iter(children.values()))
    if "Trivial" in cls.__name__:
        return cls(first.in_channels, max(first.kernel_size))
    dilated = children["conv_spatial_h" if "conv_spatial_h" in children else "conv_spatial"]
    d = max(dilated.dilation)
    return cls(first.in_channels, max(first.kernel_size) + (max(dilated.kernel_size) - 1) * d, d)


def _same_convolution(conv, wanted):
    if type(conv) is not nn.Conv2d or any(getattr(conv, name) != getattr(wanted, name) for name in _KEPT):
        return False
    # Some copies of ACmix keep a bias that its author set to zero.
    has_bias = conv.bias is not None and (wanted.bias is not None or conv.bias.any().item())
    return has_bias == (wanted.bias is not None) and conv.weight.shape == wanted.weight.shape


def _without_zero_bias(conv, wanted):
    if conv.bias is None or wanted.bias is not None:
        return conv
    twin = copy.copy(conv)
    twin._parameters = {**conv._parameters, "bias": None}
    return twin


def _refused(cls, children, state, where):
    shapes = [f"{name} {list(p.shape)}" for name, p in state["_parameters"].items() if p is not None]
    for name, child in children.items():
        shapes += [f"{name}.{key} {list(value.shape)}" for key, value in child.state_dict().items()]
    shown = ", ".join(shapes[:8]) + (f" and {len(shapes) - 8} more" if len(shapes) > 8 else "")
    with torch.device("meta"):
        wanted = ", ".join(cls(64).state_dict())
    return CheckpointError(
        f"{where} only shares the name: it has {shown or 'no tensor'}; expected those of the published "
        f"{cls.__name__}: {wanted}"
    )


def _without_hooks(module):
    """A copy to try in float32: hooks are their owner's, who counts on every call, and may not be copied."""
    kinds = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
    none = {id(vars(m)[kind]): collections.OrderedDict() for m in module.modules() for kind in kinds}
    return copy.deepcopy(module, none).cpu().float().eval()


def _check_same(cls, module, state, where):
    """One map through both: equal shapes do not say what a forward makes of them."""
    theirs, ours = _without_hooks(module), cls.__new__(cls)
    ours.__dict__ = _as_ours(cls, _without_hooks(module).__dict__, where)
    side = 2 * getattr(ours, "kernel_att", getattr(ours, "k_size", 7))
    with torch.no_grad(), torch.device("cpu"):  # theirs makes tensors of its own, on torch's default device
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(1, ours._modules["conv1"].in_channels, side, side, generator=generator)
        expected, got = theirs(x), ours(x)
    if not isinstance(expected, torch.Tensor) or expected.shape != got.shape:
        raise CheckpointError(
            f"{where} gives something else than one map; expected the published {cls.__name__}"
        )
    # Both round a few hundred sums in float32; another formula differs in the first digits.
    difference, largest = (expected - got).abs().max().item(), expected.abs().max().item()
    if not difference <= 1e-3 * largest:
        raise CheckpointError(
            f"{where} computes something else: it differs by {difference:.3g} where the largest value is "
            f"{largest:.3g}; expected the published {cls.__name__}"
        )
