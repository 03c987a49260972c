"""Which paths of the kernels a problem takes, by name: so that a test can say which ones no problem reaches.

What the compiled code decides is asked of it (``lska_ops._plan``); the rest is a matter of sizes. ``*_CPU`` and
``*_CUDA`` name all the paths there are.
"""

import torch

from lska_ops.testing import acmix

LANES = "channels that fill no vector"
TAIL = "a row's last vector partly beyond W"
BANDS = "several bands of rows"


def _names(first, *more):
    return (first, *(f"{first}, {part}" for part in more))


# The plane kernels of few taps, and those that are there for 64-byte vectors only.
FEW = ("plane 3-3-2", "plane 3-5-2", "plane 5-7-3")
MANY = ("plane 5-11-3", "plane 5-13-3", "plane 5-17-3")
_OF_PLANES = (TAIL, "no room behind any row", BANDS, "rows that dilation does not divide")
LSKA_CPU = (
    *FEW,
    *_names("plane of few taps", *_OF_PLANES),
    *_names("group of NCHW", LANES, TAIL, "several groups", "several strips"),
    *_names("group of channels_last", LANES, "several groups", "several strips"),
    "group with few taps of conv0",
    "group with other taps of conv0",
    "no dilated pair",
    "dilation beyond the map",
    *_names("backward of NCHW", LANES, TAIL, "several groups", "several strips"),
    *_names("backward of channels_last", LANES, "several groups", "several strips"),
    "backward of several images",
    "backward without dilated pair",
)
LSKA_CPU_64 = (
    *LSKA_CPU,
    *MANY,
    *_names("plane of many taps", *_OF_PLANES),
    "plane of few taps, 64-byte vectors",
    "plane of few taps, 32-byte vectors",
    "group of NCHW, 64-byte vectors",
    "group of NCHW, 32-byte vectors",
)


def _published(k0, k1, dilation):
    return f"plane {k0}-{k1}-{dilation}"


def _lska_size(problem):
    """As the launchers see it: no dilated pair is k1 = 0."""
    B, C, H, W = problem.tensors["x"].shape
    k0, pair = problem.tensors["conv0h"].shape[3], problem.tensors["conv_spatial_h"]
    k1 = 0 if pair is None else pair.shape[3]
    return dict(B=B, C=C, H=H, W=W, k0=k0, k1=k1, dilation=problem.options["dilation"])


def lska_cpu(problem, vector_bytes, backward):
    """The paths of LSKA's CPU kernels on a machine with vectors of so many bytes.

    ``backward``: the gradients are asked for too.
    """
    from lska_ops import _plan

    x, size = problem.tensors["x"], _lska_size(problem)
    B, C, H, W, k0, k1, d = size.values()
    last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    accumulate, far = 8 if problem.dtype == torch.float64 else 4, d > max(H, W)
    del size["B"]
    size["dilation"] = min(d, max(H, W))
    plan = _plan.lska_cpu(**size, channels_last=last, accumulate=accumulate, vector_bytes=vector_bytes)
    found = {"no dilated pair"} if k1 == 0 else set()
    found |= {"dilation beyond the map"} if far else set()
    if plan["kernel"] == "plane":
        kind = "plane of few taps" if plan["few_taps"] else "plane of many taps"
        tail = plan["beyond"] > 0
        so = (tail, tail and plan["spilled_rows"] >= H, H > plan["band"], H % d > 0)
        found |= {_published(k0, k1, d)} | _true(kind, _OF_PLANES, so)
    else:
        found |= _group("group", last, C, W, plan["lanes"], plan["strips"])
        kind = f"group of {'channels_last' if last else 'NCHW'}"
        found.add(f"group with {'few' if k0 in (3, 5, 7) else 'other'} taps of conv0")
    if vector_bytes == 64:  # narrow rows are better off with 32
        found.add(f"{kind}, {plan['vector_bytes']}-byte vectors")
    if backward:  # which always takes a group of channels at a time, with this machine's vectors
        found |= _group("backward", last, C, W, vector_bytes // accumulate, plan["backward_strips"])
        found |= {"backward of several images"} if B > 1 else set()
        found |= {"backward without dilated pair"} if k1 == 0 else set()
    return found & set(of_cpu("lska", vector_bytes))


def _true(kind, names, so):
    return {kind} | {f"{kind}, {name}" for name, true in zip(names, so, strict=True) if true}


def _group(what, channels_last, C, W, lanes, strips):
    kind = f"{what} of {'channels_last' if channels_last else 'NCHW'}"
    so = {LANES: C % lanes > 0, "several groups": C > lanes, "several strips": strips > 1}
    if not channels_last:
        so[TAIL] = W % lanes > 0
    return _true(kind, so, so.values())


_TURNS = ("stride", "dilation", "stride and dilation")
ACMIX_CPU = (
    *_names("attention", TAIL, *_TURNS, "runs of neighbouring pixels"),
    "attention, a window reflected more than once",
    "attention, a line of one pixel",
    "attention, one pixel of a window",
    "attention, a window of more taps than registers",
    "attention, dims that fill no block",
    "attention, rows of queries left over",
    *_names("attention backward", BANDS, "all rows at once", "several images"),
    *_names("shift", TAIL, "stride", "maps that fill no block"),
    *_names("shift backward", BANDS, "several images"),
    f"forward, {BANDS}",
    "forward, a last band of fewer rows",
)


def acmix_cpu(problem, vector_bytes, threads, backward):
    """The same of ACmix, of its core or of a half, with so many threads."""
    from lska_ops import _plan

    s, (B, _, H, W) = acmix.sizes(problem), problem.tensors["qkv"].shape
    stride, dilation, K, D, G = s["stride"], s["dilation"], s["kernel_att"], s["dims"], s["head"]
    attention, shift = problem.op != "shift_aggregate", s["kernel_conv"] is not None
    reach, Ho, Wo = K // 2 * dilation, -(-H // stride), -(-W // stride)
    plan = _plan.acmix_cpu(B=B, H=H, stride=stride, reach=reach, threads=threads)
    lanes = vector_bytes // (8 if problem.dtype == torch.float64 else 4)
    tail = Wo % lanes > 0
    found = {f"forward, {BANDS}"} if plan["band"] < Ho else set()
    if Ho % plan["band"]:
        found.add("forward, a last band of fewer rows")
    if attention:
        runs = stride == dilation == 1
        so = {
            TAIL: tail, "stride": stride > 1, "dilation": dilation > 1,
            "stride and dilation": min(stride, dilation) > 1,
            "runs of neighbouring pixels": runs,
            "a window reflected more than once": reach > min(H, W) - 1,
            "a line of one pixel": reach > 0 and min(H, W) == 1,
            "one pixel of a window": K == 1,
            "a window of more taps than registers": K > (7 if vector_bytes == 64 else 4),
            "dims that fill no block": D % 4 > 0,
            "rows of queries left over": runs and min(plan["band"], Ho) % plan["query_rows"] > 0,
        }  # fmt: skip
        found |= _true("attention", so, so.values())
        so = {
            BANDS: plan["grad_band"] < Ho,
            "all rows at once": plan["grad_band"] == Ho,
            "several images": B > 1,
        }
        found |= _true("attention backward", so, so.values()) if backward else set()
    if shift:
        so = {TAIL: tail, "stride": stride > 1, "maps that fill no block": G % 4 > 0}
        found |= _true("shift", so, so.values())
        so = {BANDS: Ho > plan["shift_rows"], "several images": B > 1}
        found |= _true("shift backward", so, so.values()) if backward else set()
    return found


def of_cpu(op, vector_bytes):
    """All paths of an op's CPU kernels, those of its problems' op alone: a half takes none of the other's."""
    if op == "lska":
        return LSKA_CPU_64 if vector_bytes == 64 else LSKA_CPU
    other = {"local_attention": "shift", "shift_aggregate": "attention"}.get(op)
    return tuple(path for path in ACMIX_CPU if other is None or not path.startswith(other))


_OF_CHANNELS = (
    "bands of rows", "strips of columns", "channels left over", "16 bytes at a time", "one at a time",
)  # fmt: skip
LSKA_CUDA = (
    *_names("forward: plane", "bands of rows", "several planes of a block"),
    *_names("forward: stream", "bands of rows", "strips of columns"),
    "forward: stages",
    *_names("backward: plane", "bands of rows", "strips of columns", "several planes of a block"),
    "backward: stages",
    *_names("forward of channels_last: plane", *_OF_CHANNELS),
    "forward of channels_last: stages",
    *_names("backward of channels_last: plane", *_OF_CHANNELS),
    "backward of channels_last: stages",
    "gate: 16 bytes of one channel",
    "gate: 16 bytes of several planes",
    "gate: no 16 bytes at a time",
    "gate of channels_last: 16 bytes of a thread's channels",
    "gate of channels_last: 16 bytes of any channels",
)


def lska_cuda(problem, shared_bytes, multiprocessors, backward):
    """The paths of LSKA's CUDA kernels on a GPU with these limits."""
    from lska_ops import _plan

    x, size = problem.tensors["x"], _lska_size(problem)
    last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    C, at_once = size["C"], 16 // x.element_size()
    found = {_gate(x, last, at_once)}
    for name in ("forward", "backward") if backward else ("forward",):
        plan = _plan.lska(
            name == "backward", **size, channels_last=last,
            shared_bytes=shared_bytes, multiprocessors=multiprocessors,
        )  # fmt: skip
        _, bands, strips = plan["grid"]
        vectors = C % at_once == plan["planes"] % at_once == 0
        so = {
            "bands of rows": bands > 1, "strips of columns": strips > 1,
            "several planes of a block": plan["planes"] > 1,
            "channels left over": C % plan["planes"] > 0,
            "16 bytes at a time": vectors, "one at a time": not vectors,
        }  # fmt: skip
        found |= _true(f"{name}{' of channels_last' if last else ''}: {plan['kernel']}", so, so.values())
    return found & set(LSKA_CUDA)


def _gate(x, last, at_once):
    """How the gate takes a map's elements."""
    if not last and x.is_contiguous() and x.storage_offset() % at_once:
        return "gate: no 16 bytes at a time"
    if last:
        whose = "any" if x.shape[1] % at_once else "a thread's"
        return f"gate of channels_last: 16 bytes of {whose} channels"
    return f"gate: 16 bytes of {'several planes' if x.shape[2] * x.shape[3] % at_once else 'one channel'}"


_PASSES = {"forward": "forward", "query": "query pass", "key": "key pass"}
_OF_PASS = ("windows by runs", "windows one by one", BANDS, "dims by dims", "several tiles")
ACMIX_CUDA = (
    "both halves at once, forward",
    "both halves one after the other, forward",
    "both halves at once, backward",
    "both halves one after the other, backward",
    "weight gradients by the query pass",
    "weight gradients by a kernel of their own",
    *(f"{name}, {part}" for name in _PASSES.values() for part in _OF_PASS),
    "attention alone",
    "shift alone",
)


def acmix_cuda(problem, shared_bytes, multiprocessors, backward, half=None):
    """The same of ACmix; ``half``: "attention" or "shift" where a problem of the core is asked for one alone."""
    from lska_ops import _plan

    s, (B, channels, H, W) = acmix.sizes(problem), problem.tensors["qkv"].shape
    half = half or {"local_attention": "attention", "shift_aggregate": "shift"}.get(problem.op)
    size = dict(
        B=B, C=channels // 3, H=H, W=W, head=s["head"], stride=s["stride"], dilation=s["dilation"],
        kernel_att=1 if half == "shift" else s["kernel_att"],
        kernel_conv=1 if half == "attention" else s["kernel_conv"],
        element=problem.dtype.itemsize, shared_bytes=shared_bytes, multiprocessors=multiprocessors,
    )  # fmt: skip
    calls = dict.fromkeys(("forward", "backward", "shift_grad"), False) if half else _plan.acmix_calls(**size)
    found = {f"{half} alone"} if half else _of_both(calls, backward)
    if backward and half != "attention":
        found.add(
            f"weight gradients by {'the query pass' if calls['shift_grad'] else 'a kernel of their own'}"
        )
    for which in _PASSES if backward else ("forward",):
        both = calls["forward" if which == "forward" else "backward"]
        for attention, shift in _launches(which, both, half):
            sums = which == "query" and calls["shift_grad"]
            plan = _plan.acmix(which, attention, shift, **size, shift_grad=sums)
            so = (
                plan["regular"], not plan["regular"], attention and plan["band"] < plan["rows"],
                plan["dims"] < s["dims"], plan["grid"][1] * plan["grid"][2] > 1,
            )  # fmt: skip
            found |= _true(_PASSES[which], _OF_PASS, so)
    return found & set(ACMIX_CUDA)


def _of_both(calls, backward):
    said = {True: "at once", False: "one after the other"}
    found = {f"both halves {said[calls['forward']]}, forward"}
    return found | ({f"both halves {said[calls['backward']]}, backward"} if backward else set())


def _launches(which, both, half):
    """(attention, shift) of each kernel that a pass starts; the shift alone has no query pass."""
    if both:
        return [(True, True)]
    alone = {"attention": [(True, False)], "shift": [(False, True)]}
    kernels = alone[half] if half else alone["attention"] + alone["shift"]
    return [kernel for kernel in kernels if which != "query" or kernel[0]]
