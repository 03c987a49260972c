"""Makes the stock ultralytics know our modules in a model YAML, and our model files by bare name."""

import functools
import sys
import threading
from pathlib import Path

import torch

CFG = Path(__file__).parent / "cfg"
NAMES = ("LSKA", "LSKATrivial", "LKA", "LKATrivial", "ACmix", "SPPF_LSKA")

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
    from . import checkpoints, gflops, parsing, transfer

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
            _wrap(tasks, "parse_model", parsing.parse_model, also=nn)
            _wrap(tasks, "check_yaml", _check_yaml)
            _wrap(tasks.DetectionModel, "__init__", parsing.build_detector)
            _wrap(tasks.BaseModel, "load", transfer.load)
            _wrap(tasks, "torch_safe_load", checkpoints.load)
            _wrap(dist, "generate_ddp_file", _generate_ddp_file)
            if take_back := gflops.add_rule():
                _undo.append(take_back)
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
