"""Correctness before speed: each result against the reference in float64, by lska_ops.testing's bound.

ACmix's bound holds for its whole call, but what the projections in front may lose, at worst in every logit,
leaves room at the benchmark's sizes: in fp32, measured as norms, for 0.4 % in y and 1 % in the gradients of
x and of a projection at P5. So a backend of ours is also judged from q, k, v on, where the bound allows
0.01 % in y and 0.004 % in the gradient of q, k, v. Gradients that are sums over all pixels in which nearly
everything cancels stay loose in both: conv_p's, fc's and those of the rates.

Its float64 truth takes several maps of all windows. Of a batch for which that is too much the last images are
judged, y and the gradients; for these grad_y is zero in the others, which then add exactly nothing.
"""

import torch

from lska_ops.testing import bound_ratio, error_ratio
from lska_ops.testing.acmix import core_tensors, whole_call
from lska_ops.testing.lska import roundings
from lska_ops.testing.problems import Problem as CoreProblem
from lska_ops.testing.problems import ratios, solve

# How often plain PyTorch rounds a value to its dtype on the way to a result; ours, see
# lska_ops.testing.lska.roundings. ACmix's bound follows the steps by itself.
STAGES = {"lska_cascade_fwd": 4, "lska_fwd": 6, "lska_fwd_bwd": 6, "lska_train": 6}


MOST = 1 << 27  # values of all windows of one map: a gigabyte in float64


def images_judged(problem, most=None):
    B, *image = problem.x.shape
    if problem.row.op == "lska":
        return B
    windows = problem.row.k**2 * torch.Size(image).numel()
    return max(1, min(B, (most or MOST) // windows))


class Gate:
    """The float64 truth of one problem, and the verdict on others' results."""

    def __init__(self, problem, most=None):
        self.images, self.batch = images_judged(problem, most), len(problem.x)
        if self.images < self.batch:
            problem = problem.last(self.images)
        if problem.row.train:
            problem = problem.like(dtype=problem.x.dtype)  # weights as autocast hands them over
        self.problem, self.row, self.names = problem, problem.row, problem.names()
        self.acmix = {}  # {ours: {name: (value, what may be lost)}}, once somebody asks
        if self.row.op == "lska":
            exact = problem.like(dtype=torch.float64)
            self.exact = [t.detach() for t in exact.runner(exact.plain)()]
            positive = exact.absolute()
            self.A = [t.detach() for t in positive.runner(positive.plain)()]
            self.operations = lska_operations(problem)

    def answers(self, own, run):
        """What `run`, a call of the whole batch of `own`, returns for :meth:`worst`."""
        if self.images == self.batch or not self.row.backward:
            return run()
        whole = own.grad_y
        own.grad_y = whole.clone()
        own.grad_y[: -self.images] = 0
        try:
            return run()
        finally:
            own.grad_y = whole

    def _of_judged(self, results):
        """Of y and the gradient of x the judged images, or None where the others cannot be right."""
        if self.images == self.batch:
            return results
        y, *grads = results
        if not y.isfinite().all() or any(g[: -self.images].any() for g in grads[:1]):
            return None
        return [t[-self.images :] for t in (y, *grads[:1])] + grads[1:]

    def worst(self, results, ours=None):
        """(name, part of the allowed error it uses) of the worst of `results`; more than 1 is wrong.

        ours: the name of the backend of ours that computed them; None for plain PyTorch.
        """
        if len(results) != len(self.names):
            return "number of results", float("inf")
        if any(len(t) != self.batch for t in results[: 1 + self.row.backward]):
            return "number of images", float("inf")
        results = self._of_judged(results)
        if results is None:
            return "an image that is not judged", float("inf")
        if self.row.train:  # gradients of float32 weights come from 16 bits
            results = [*results[:2], *(t.to(self.problem.x.dtype) for t in results[2:])]
        judge = self._acmix if self.row.op == "acmix" else self._lska
        found = dict(zip(self.names, judge(results, ours), strict=True))
        if self.row.op == "acmix" and ours:
            found |= self._core(ours)
        return max(found.items(), key=lambda item: item[1])

    def _lska(self, results, ours):
        whole = self.row.kind != "lska_cascade_fwd"
        rows = zip(self.names, results, self.exact, self.A, self.operations, strict=False)
        for name, out, r, A, n in rows:
            answer = "y" if name == "y" else f"grad_{name.replace('.weight', '').replace('.', '_')}"
            rounded = (roundings(ours, out.dtype, answer) if whole else 1) if ours else STAGES[self.row.kind]
            yield _same_shape(out, r) or error_ratio(out, r, A, n, rounded)

    def _acmix(self, results, backend):
        ours = backend is not None
        if ours not in self.acmix:
            exact = self.problem.like(dtype=torch.float64)
            grad_y = exact.grad_y if self.row.backward else None
            dtype, options = self.problem.x.dtype, self.problem.options()
            self.acmix[ours] = whole_call(exact.tensors(), options, dtype, grad_y, plain=not ours)
        for name, out in zip(self.names, results, strict=True):
            r, lost = self.acmix[ours][name]
            yield _same_shape(out, r) or bound_ratio(out, r, lost)

    def _core(self, backend):
        """The backend from q, k, v on, judged on the very q, k, v it gets."""
        p = self.problem
        with torch.no_grad():
            tensors = core_tensors(p.tensors())
        core = CoreProblem("acmix", 0, p.x.dtype, "contiguous", tensors, p.options(), p.grad_y)
        found = ratios(core, solve(core, backend, self.row.backward), backend)
        return {f"{name} from q, k, v on": ratio for name, ratio in found.items()}


def _same_shape(out, r):
    return 0 if out.shape == r.shape else float("inf")


def lska_operations(problem):
    """Operations on the longest path to each result, in the order of `problem.names()`.

    A gradient's path goes through the stages at most twice (recomputed forward, then backward); a parameter's
    also through the sum over all pixels.
    """
    m, x = problem.module, problem.x
    convs = (m.conv0h, m.conv0v, m.conv_spatial_h, m.conv_spatial_v)
    forward = sum(c.weight[0].numel() + 1 for c in convs)
    if problem.row.kind != "lska_cascade_fwd":
        forward += x.shape[1] + 2  # the 1x1 product, its bias, the gate
    pixels = x.shape[0] * x.shape[2] * x.shape[3]
    return [forward, 2 * forward, *(2 * forward + pixels for _ in m.parameters())]
