"""What each layer of a network gives for one picture, and which one does not take what it is given."""

import inspect

import torch

PICTURE = -1  # what the first row reads
SIDE = 256  # pixels; a picture of a side that every stride divides


class MapError(ValueError):
    """A row does not take what the rows give that it reads."""


def maps_of(layers, channels):
    """One result a layer for a picture of SIDE pixels; without storage where the layers have none.

    A layer whose result no single picture tells (it reads a text) gives None, and so does the head, which is
    not asked.

    Args:
        layers: what ultralytics' parser made of the rows, in eval mode.
        channels: of the picture.

    Raises:
        MapError: a layer does not take what it reads.
    """
    device = next((p.device for p in layers.parameters()), torch.device("cpu"))
    maps = []
    with torch.device(device), torch.inference_mode():
        picture = torch.zeros(1, channels, SIDE, SIDE)
        for layer in layers[:-1]:
            read = [picture if j == PICTURE else maps[j] for j in _reads(layer)]
            try:
                maps.append(_result(layer, read if isinstance(layer.f, list) else read[0]))
            except (RuntimeError, ValueError) as error:
                raise MapError(_does_not_take(layers, layer, read, error)) from error
    return [*maps, None]


def _reads(layer):
    """Numbers of the rows that a layer reads."""
    written = layer.f if isinstance(layer.f, list) else [layer.f]
    return [j if j >= 0 else layer.i + j for j in written]


def _result(layer, read):
    parameters = inspect.signature(layer.forward).parameters
    if any(x is None for x in read) if isinstance(read, list) else read is None:
        return None
    if "text" in parameters:  # YOLO-World's pooling of pictures into texts: no map
        return None
    if "guide" in parameters:  # the embedded texts that YOLO-World's blocks look at
        return layer(read, torch.zeros(1, 1, layer.attn.gl.in_features))
    return layer(read)


def _does_not_take(layers, layer, read, error):
    reads, name = _reads(layer), _name(layer)
    give = f"row{'s' * (len(reads) > 1)} {', '.join(map(str, reads))} give{'s' * (len(reads) == 1)}"
    given = " and ".join(_size(x) for x in read)
    sides = {x.shape[2:] for x in read if isinstance(x, torch.Tensor)}
    why = (
        "expected maps of one size"
        if name == "Concat" and len(sides) > 1
        else (str(error) or repr(error)).splitlines()[0]
    )
    above = [layers[i] for i in sorted(_above(layers, layer))]
    strided = [f"; row {m.i} ({_name(m)}) has stride {_stride(m)}" for m in above if _stride(m) != 1]
    what = f"row {layer.i} ({name}) does not take what {give}"
    return f"{what}, {given} of a picture of {SIDE} px: {why}{''.join(strided)}"


def _above(layers, layer):
    """Numbers of the rows that what a layer reads is made of."""
    found, todo = set(), _reads(layer)
    while todo:
        i = todo.pop()
        if i != PICTURE and i not in found:
            found.add(i)
            todo += _reads(layers[i])
    return found


def _stride(layer):
    """Of a row of ours; 1 for others, whose strides are their author's."""
    module = first_of(layer)
    return getattr(module, "stride", 1) if is_ours(module) else 1


def is_ours(module):
    return type(module).__module__.startswith("lska_ops.")


def first_of(layer):
    """The module of a row; of one that repeats the first."""
    return layer[0] if isinstance(layer, torch.nn.Sequential) else layer


def _name(layer):
    return layer.type.rpartition(".")[2]


def _size(x):
    """ "16×64×64": channels and sides."""
    return "×".join(map(str, x.shape[1:])) if isinstance(x, torch.Tensor) else "no single map"
