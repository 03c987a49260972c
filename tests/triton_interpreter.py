"""Solves random problems by Triton's interpreter, each kernel between guard pages; tests/test_triton.py runs it.

    python tests/triton_interpreter.py TASK ...

A task is OP:forward:FIRST:COUNT, OP:backward:FIRST:COUNT or OP:edges. Prints each problem's command before it is
solved, so that after a crash the last line says which it was; the exit status is 1 where an answer is wrong.
"""

import os

os.environ["TRITON_INTERPRET"] = "1"

import contextlib  # noqa: E402
import dataclasses  # noqa: E402
import importlib  # noqa: E402
import itertools  # noqa: E402
import sys  # noqa: E402
from unittest import mock  # noqa: E402

import torch  # noqa: E402
import triton_guard  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from lska_ops import _triton  # noqa: E402
from lska_ops.testing import acmix  # noqa: E402
from lska_ops.testing.problems import LAYOUTS, OPS, random_problem, ratios, solve  # noqa: E402

MOST_PLANES, MOST_PIXELS, FEW_PIXELS = 4, 70, 35  # a program takes 20 ms and more here
MOST_STEPS = 80  # see steps_of
REPEATED = 10  # every so many are solved twice


def round_as_a_gpu_does(interpreter):
    """Triton's interpreter cuts float32 to bfloat16; every GPU rounds it to the nearest."""
    theirs = interpreter._convert_float

    def convert(values, given, wanted, mode):
        if given.is_fp32() and wanted.is_bf16():
            bits = torch.from_numpy(values.copy()).bfloat16().view(torch.int16)
            return bits.numpy().view("uint16").reshape(values.shape)
        return theirs(values, given, wanted, mode)

    interpreter._convert_float = convert


def small(op, first, most_pixels=FEW_PIXELS):
    """Problems that the interpreter solves quickly, in the dtypes that the kernels take."""
    seed = first
    while True:
        problem = random_problem(op, seed)
        B, C, H, W = next(iter(problem.tensors.values())).shape
        few = B * C <= MOST_PLANES if op == "lska" else steps_of(problem) <= MOST_STEPS
        few &= problem.options.get("kernel_att") != 1 or seed % 8 == 0  # most say nothing of attention
        if problem.dtype != torch.float64 and few and H * W <= most_pixels:
            yield problem
        seed += 1


def steps_of(problem):
    """How many pairs of a block's queries and keys, and taps of the shift, a problem of ACmix has."""
    (B, _, *sides), s = problem.tensors["qkv"].shape, acmix.sizes(problem)
    span = s["kernel_att"] // 2 * 2 * s["dilation"] + 1
    pairs = max(s["kernel_att"] ** 2, min(span, sides[0]) * min(span, sides[1]))
    return B * s["head"] * (pairs + s["dims"] * (s["kernel_conv"] or 0) ** 2)


def wrong(problem, backward, again):
    """What is wrong with the answers, or None."""
    kept = {n: t.clone() for n, t in problem.tensors.items() if t is not None}
    answers = solve(problem, "triton", backward)
    found = ratios(problem, answers, "triton")
    worst = max(found, key=found.get)
    if not found[worst] <= 1:  # NaN too: of what was not written
        return f"{worst} is {found[worst]:.3g} times the bound"
    if not all(torch.equal(problem.tensors[n].nan_to_num(), t.nan_to_num()) for n, t in kept.items()):
        return "an input was written to"
    if again:
        repeated = solve(problem, "triton", backward)
        if not all(torch.equal(answers[n], repeated[n]) for n in answers):
            return "another result than before"
    return None


def same(ours, theirs):
    return all(torch.equal(ours[n], theirs[n]) for n in theirs)


def smallest(problems):
    """Of the first ten with more than one channel, row and column in what they give: in these, layouts differ."""
    several = (p for p in problems if min(p.grad_y.shape[1:]) > 1)
    return min(itertools.islice(several, 10), key=lambda p: p.grad_y.numel())


def takes_any_layout(op):
    problem = smallest(p for p in small(op, 720_000) if p.layout == "contiguous")
    first, given = first_of(problem), problem.grad_y
    problem.tensors[first] = LAYOUTS["expanded"](problem.tensors[first]).contiguous()
    expected = solve(problem, "triton")
    for layout, laid_out in LAYOUTS.items():
        of_map = {**problem.tensors, first: laid_out(problem.tensors[first])}
        y = solve(dataclasses.replace(problem, tensors=of_map), "triton", False)["y"]
        assert torch.equal(y, expected["y"]), layout
        if layout == "channels_last":
            assert y.is_contiguous(memory_format=torch.channels_last)
    for layout in ("channels_last", "sliced"):
        problem.grad_y = LAYOUTS[layout](given)
        assert same(solve(problem, "triton"), expected), f"grad_y in {layout}"


def answers_in_the_layout_of_the_map(op):
    """Forward and backward within the bound, whatever grad_y's layout is."""
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        problem = smallest(p for p in small(op, 780_000) if p.dtype == dtype)
        first = first_of(problem)
        for layout, of_gradient in itertools.product(("contiguous", "channels_last"), repeat=2):
            problem.tensors[first] = LAYOUTS[layout](problem.tensors[first])
            problem.grad_y = LAYOUTS[of_gradient](problem.grad_y)
            assert wrong(problem, backward=True, again=False) is None, (dtype, layout, of_gradient)
            x = problem.tensors[first].detach().requires_grad_()
            y = OPS[op].call({**problem.tensors, first: x}, problem.options, "triton")
            (grad,) = torch.autograd.grad(y, x, problem.grad_y)
            last = layout == "channels_last"
            for t in (y, grad):
                assert t.is_contiguous(memory_format=torch.channels_last) == last != t.is_contiguous()


def answers_an_empty_batch(op):
    problem = next(small(op, 730_000))
    first = first_of(problem)
    problem.tensors[first], problem.grad_y = problem.tensors[first][:0], problem.grad_y[:0]
    answers = solve(problem, "triton")
    assert answers["y"].shape == problem.grad_y.shape
    assert all(not g.any() for n, g in answers.items() if n != "y")
    if op == "lska":
        from lska_ops.lska import compiled, triton_launch

        for keep_product in (False, True):
            options = (problem.tensors[first], *[None] * 10, 1, keep_product)
            shapes = ([t.shape for t in make(*options)] for make in (triton_launch.fwd, compiled._fwd_gpu))
            assert next(shapes) == next(shapes)


def passes_nan_and_infinity_on_like_pytorch(op):
    problems = small(op, 740_000)
    for value, dtype in itertools.product((torch.nan, torch.inf), (torch.float32, torch.bfloat16)):
        problem = next(p for p in problems if p.dtype == dtype and p.layout != "expanded")
        x = problem.tensors[first_of(problem)]
        x[tuple(min(2, side - 1) for side in x.shape)] = value
        ours, theirs = solve(problem, "triton", False)["y"], solve(problem, "reference", False)["y"]
        assert torch.equal(ours.isfinite(), theirs.isfinite()), problem.repro("triton")


def follows_autocast(op):
    op = "local_attention" if op == "acmix" else op  # a problem of acmix is one behind the public function
    problem = next(p for p in small(op, 750_000) if p.dtype == torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = solve(problem, "triton", False)["y"]
    tensors = {n: None if t is None else t.bfloat16() for n, t in problem.tensors.items()}
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, solve(dataclasses.replace(problem, tensors=tensors), "triton", False)["y"])


def is_registered_as_torch_wants(op):
    """opcheck, of what one forward and backward call; and torch.compile without a graph break."""
    calls = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.namespace == "lska_ops":
                calls.append((func, tuple(a.detach() if torch.is_tensor(a) else a for a in args)))
            return func(*args, **(kwargs or {}))

    problem = smallest(small(op, 760_000))
    with Recorder():
        expected = solve(problem, "triton")
    assert len(calls) == 2 and all(func.name().endswith("_triton") for func, _ in calls)
    for func, arguments in calls:
        # What they compute under torch.compile is what follows; the other checks are of schema and fakes.
        torch.library.opcheck(func, arguments, test_utils=("test_schema", "test_faketensor"))
    for dynamic in (False, True):
        torch._dynamo.reset()
        run = torch.compile(lambda t: OPS[op].call(t, problem.options, "triton"), backend="aot_eager",
                            fullgraph=True, dynamic=dynamic)  # fmt: skip
        given = {n: None if t is None else t.detach().requires_grad_() for n, t in problem.tensors.items()}
        y = run(given)
        inputs = [t for t in given.values() if t is not None]
        grads = torch.autograd.grad(y, inputs, problem.grad_y)
        assert all(torch.equal(a, b) for a, b in zip((y, *grads), expected.values(), strict=True))


def spans_several_tiles(op):
    """Of LSKA, along either axis and in the 1x1 product's channels; the random problems are too small for it."""
    if op != "lska":
        return
    from lska_ops.lska import triton_launch

    tile = (16, 16, 16, 4, 2)  # as small as tl.dot takes it, for few channels
    with mock.patch.multiple(triton_launch, GATE_TILE=tile, EXACT_GATE_TILE=tile, MIX_TILE=tile):
        _spans_several_tiles(op)


def _spans_several_tiles(op):
    for shape, dtype, backward in (
        ((1, 1, 40, 2), torch.float32, True),
        ((1, 1, 2, 70), torch.bfloat16, True),
        ((1, 17, 1, 2), torch.float32, True),
        ((1, 17, 1, 1), torch.float16, False),
    ):
        C, k0, k1 = shape[1], 3, 5
        problem = next(p for p in small(op, 770_000) if p.dtype == dtype)
        kernels = ((C, 1, 1, k0), (C, 1, k0, 1), (C, 1, 1, k1), (C, 1, k1, 1), (C, C, 1, 1))
        problem.tensors = {"x": torch.randn(shape).to(dtype)}
        for name, kernel in zip(OPS[op].NAMES, kernels, strict=True):
            problem.tensors[name] = (torch.randn(kernel) / (kernel[1] * kernel[2] * kernel[3]) ** 0.5).to(
                dtype
            )
            problem.tensors[f"{name}_bias"] = torch.randn(C).to(dtype)
        problem.options, problem.grad_y = {"dilation": 2}, torch.randn(shape).to(dtype)
        assert wrong(problem, backward, again=False) is None, (shape, dtype)


EDGES = (
    spans_several_tiles,
    takes_any_layout,
    answers_in_the_layout_of_the_map,
    answers_an_empty_batch,
    passes_nan_and_infinity_on_like_pytorch,
    follows_autocast,
    is_registered_as_torch_wants,
)


def first_of(problem):
    return next(iter(problem.tensors))


def main(*tasks):
    torch.use_deterministic_algorithms(True)  # with it torch.empty is filled with NaN
    _triton.launch = triton_guard.guarding(_triton.launch)
    round_as_a_gpu_does(importlib.import_module("triton.runtime.interpreter"))
    return int(any(failed(*task.split(":")) for task in tasks))


def several_images_a_part():
    """As in a batch of more images than LSKA's sums have parts."""
    return mock.patch.object(importlib.import_module("lska_ops.lska.triton_launch"), "MOST_PARTS", 1)


def failed(op, what, first=0, count=0):
    if what == "edges":
        for edge in EDGES:
            print(edge.__name__, flush=True)
            edge(op)
        print(f"{op}: edges as expected", flush=True)
        return False
    problems = small(op, int(first), FEW_PIXELS if what == "backward" else MOST_PIXELS)
    for i in range(int(count)):
        problem = next(problems)
        one_part = op == "lska" and i % 3 == 1
        print(problem.repro("triton"), "# with MOST_PARTS = 1" * one_part, flush=True)
        with several_images_a_part() if one_part else contextlib.nullcontext():
            said = wrong(problem, what == "backward", i % REPEATED == REPEATED - 1)
        if said:
            print(said)
            return True
    print(f"{op}: {count} {what} problems within the bound", flush=True)
    return False


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
