"""Correctness before speed: each result against the reference in float64, by lska_ops.testing's bound."""

import torch

from lska_ops.acmix.reference import coordinates, shift_aggregate, windows
from lska_ops.testing import UNIT, error_ratio, relative_error

# How often plain PyTorch rounds a value to its dtype on the way to y; ours accumulate wide and round once.
STAGES = {"lska_cascade_fwd": 4, "lska_fwd": 6, "lska_fwd_bwd": 6, "acmix_fwd": 16, "acmix_fwd_bwd": 16}
# Until ACmix's gradients have a bound, and while that of y is loose: largest error of a result as a part of
# its largest magnitude, in unit roundoffs. In fp32, forward and backward at P3, PyTorch uses a ninth of it.
ACMIX_UNITS = 1024


class Gate:
    """The float64 truth of one problem, and the verdict on others' results."""

    def __init__(self, problem):
        self.problem, self.row, self.names = problem, problem.row, problem.names()
        exact = problem.like(dtype=torch.float64)
        self.exact = [t.detach() for t in exact.runner(exact.plain)()]
        if self.row.op == "lska":
            positive = exact.absolute()
            self.A = [t.detach() for t in positive.runner(positive.plain)()]
            self.operations = lska_operations(problem)
        else:
            A, operations = acmix_bound(exact)
            self.A, self.operations = [A], [operations]
            self.rate_sums = self._rate_sums(exact) if self.row.backward else {}

    def worst(self, results, ours):
        """(name, part of the allowed error it uses) of the worst of `results`; more than 1 is wrong."""
        roundings = 1 if ours else STAGES[self.row.kind]
        if len(results) != len(self.exact):
            return "number of results", float("inf")
        ratios = {}
        for name, out, r, A, n in zip(self.names, results, self.exact, self.A, self.operations, strict=False):
            ratios[name] = _same_shape(out, r) or error_ratio(out, r, A, n, roundings)
        if self.row.op == "acmix":
            ratios |= self._acmix_relative(results)
        return max(ratios.items(), key=lambda item: item[1])

    def _acmix_relative(self, results):
        """A convolution's weight and bias are judged as one: conv_p's bias has a gradient of exactly zero."""
        groups = {}
        for name, out, r in zip(self.names, results, self.exact, strict=True):
            groups.setdefault(name.split(".")[0], []).append((out, r))
        limit, ratios = ACMIX_UNITS * UNIT[results[0].dtype], {}
        for name, members in groups.items():
            out, r = (torch.cat([t.flatten() for t in side]).double() for side in zip(*members, strict=True))
            if out.shape != r.shape:
                ratio = float("inf")
            elif name in self.rate_sums:  # one number, in which millions of summands may cancel
                ratio = ((out - r).abs() / self.rate_sums[name]).item() / limit
            else:
                ratio = relative_error(out, r) / limit
            ratios[f"{name} as a whole"] = ratio if ratio == ratio else float("inf")
        return ratios

    def _rate_sums(self, exact):
        """The sum of magnitudes of what makes each rate's gradient: y is linear in the rates."""
        sums, m = {}, exact.like(dtype=torch.float64)
        with torch.no_grad():
            for name in ("rate1", "rate2"):
                m.module.rate1.fill_(name == "rate1")
                m.module.rate2.fill_(name == "rate2")
                sums[name] = (m.plain(m.x.detach()) * exact.grad_y).abs().sum()
        return sums


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


def acmix_bound(exact):
    """(A, operations) of ACmix's y for `error_ratio`, from its problem in float64. To first order.

    An error e_j of the logits changes a softmax weight p_j by at most ``2 p_j max_j e_j``, so A of attention
    is ``sum_j p_j (1 + 2 max_j A_logit_j) A_v_j``; elsewhere A is the graph on absolute values.
    """
    m, x = exact.module, exact.x.detach()
    positive = exact.absolute()
    with torch.no_grad():
        probabilities = _logits(m, x, [m.conv1(x), m.conv2(x)], minus=True).softmax(1)
        a, ax = positive.module, positive.x.detach()
        q, k, v = a.conv1(ax), a.conv2(ax), a.conv3(ax)
        largest = _logits(a, ax, [q, k], minus=False).amax(1, keepdim=True)
        weights = (probabilities * (1 + 2 * largest))[:, None]
        window = (m.kernel_att, m.stride, m.dilation)
        attended = (weights * windows(_heads(v, m), *window)).sum(2).view(x.shape)
        A = a.rate1 * attended + a.rate2 * shift_aggregate(q, k, v, a.fc, a.dep_conv, head=m.head)
    taps, D = m.kernel_att**2, m.head_dim
    attention = D + 6 + 2 * taps + 4  # logit; softmax's sum and the values' sum; exp, division, rate
    shift = 3 * m.head + m.dep_conv.weight[0].numel() + 2
    return A, x.shape[1] + 1 + max(attention, shift)


def _heads(t, m):
    B, C, H, W = t.shape
    return t.reshape(B * m.head, C // m.head, H, W)


def _logits(m, x, q_and_k, minus):
    """Attention's logits ``[B * G, K * K, H, W]``; minus=False adds positions up, for the absolute graph."""
    q, k = (_heads(t, m) for t in q_and_k)
    window = (m.kernel_att, m.stride, m.dilation)
    p = m.conv_p(coordinates(*x.shape[2:], x.dtype, x.device) if minus else _absolute_coordinates(x))
    offset = p[:, :, None] + (-1 if minus else 1) * windows(p, *window)
    return (q[:, :, None] * m.head_dim**-0.5 * (windows(k, *window) + offset)).sum(1)


def _absolute_coordinates(x):
    return coordinates(*x.shape[2:], x.dtype, x.device).abs()
