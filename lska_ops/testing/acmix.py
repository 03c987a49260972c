"""Random ACmix problems and their error bound.

A problem starts from q, k, v: the projections in front are one convolution of PyTorch's, with its own
rounding.
"""

import torch
import torch.nn.functional as F

from ..acmix.op import core
from ..acmix.reference import coordinates, shift_aggregate, windows
from . import UNIT, bound_ratio, gamma

NAMES = ("qkv", "conv_p", "conv_p_bias", "fc", "dep_conv", "rate1", "rate2")


def draw(choice, generator):
    """Windows 3 to 9 in most problems, else any; maps from one pixel up; few or many dims a head."""
    G, D = choice.choice((1, 2, 3, 4, 8)), choice.choice((1, 2, 3, 5, 8, 12, 16))
    K = choice.choice((3, 5, 7, 7, 7, 9, 1, 11))
    K_c = choice.choice((3, 3, 3, 1, 5))
    stride, dilation = choice.choice((1, 1, 1, 2, 3)), choice.choice((1, 1, 1, 2, 3))
    B, C = choice.choice((1, 2)), G * D
    H, W = (choice.choice((1, 2, 3, 4, 5, 8, 9, 13, 17, 24)) for _ in range(2))

    def normal(*shape, scale=1.0):
        return torch.randn(shape, generator=generator, dtype=torch.float64) * scale

    tensors = {
        "qkv": normal(B, 3 * C, H, W, scale=10 ** choice.uniform(-1, 0.3)),
        "conv_p": normal(D, 2, 1, 1),
        "conv_p_bias": None if choice.random() < 0.5 else normal(D),
        "fc": normal(K_c * K_c, 3 * G, 1, 1, scale=(3 * G) ** -0.5),
        "dep_conv": normal(C, K_c * K_c, K_c, K_c, scale=1 / K_c),
        "rate1": normal(1),
        "rate2": normal(1),
    }
    options = dict(head=G, kernel_att=K, stride=stride, dilation=dilation)
    return tensors, options, normal(B, C, -(-H // stride), -(-W // stride))


def call(tensors, options, backend):
    return core(*(tensors[n] for n in NAMES), backend=backend, **options)


def ratios(answers, exact, options, grad_y):
    """See :func:`lska_ops.testing.problems.ratios`; what may be lost is computed by :class:`Loss`."""
    inputs = {n: t.requires_grad_(grad_y is not None) for n, t in exact.items() if t is not None}
    y = call(exact, options, "reference")
    r = {"y": y.detach()}
    if grad_y is not None:
        grads = torch.autograd.grad(y, list(inputs.values()), grad_y)
        r.update({f"grad_{n}": g for n, g in zip(inputs, grads, strict=True)})
    dtype = torch.promote_types(answers["y"].dtype, torch.float32)
    loss = Loss(
        {n: None if t is None else t.detach() for n, t in exact.items()}, options, UNIT[dtype], grad_y
    )
    found = {n: bound_ratio(out, r[n], loss.of[n]) for n, out in answers.items() if n != "grad_conv_p_bias"}
    if "grad_conv_p_bias" in answers:  # a constant shift of all positions changes nothing
        found["grad_conv_p_bias"] = torch.inf if answers["grad_conv_p_bias"].any() else 0.0
    return found


class Loss:
    """What a kernel may lose in every output that sums in ``unit`` (2^-24, or 2^-53 for float64) before its
    one
    rounding: n operations in a row on terms whose absolute values sum to A lose ``gamma(n) A``, and the
    softmax passes a logit's absolute error on as a relative error of its weight (two ulp more for exp).
    """

    def __init__(self, tensors, options, unit, grad_y):
        self.unit, self.options = unit, options
        q, k, v = tensors["qkv"].chunk(3, 1)
        B, C, H, W = q.shape
        self.G, self.taps, self.stride = options["head"], options["kernel_att"] ** 2, options["stride"]
        self.D = C // self.G
        self.window = (options["kernel_att"], options["stride"], options["dilation"])
        self.rate1, self.rate2 = tensors["rate1"].abs(), tensors["rate2"].abs()
        self.out_shape = (B, C, -(-H // self.stride), -(-W // self.stride))
        # Sums over pixels run in as many strands as the narrowest vectors have lanes.
        self.lanes = 2 if unit < 2**-30 else 4
        self.of = {"y": self.rate1 * self._attention(q, k, v, tensors["conv_p"])}
        self._shift(tensors)
        if grad_y is not None:
            self._attention_grads(grad_y, k, v)
            self._shift_grads(grad_y)

    def gamma(self, n):
        return gamma(n, self.unit)

    def _heads(self, t):
        B, C, H, W = t.shape
        return t.reshape(B * self.G, self.D, H, W)

    def _attention(self, q, k, v, conv_p):
        """Loss of the attention's output; keeps the softmax weights and their relative loss for backward."""
        H, W = q.shape[-2:]
        self.q = self._heads(q)[:, :, None, :: self.stride, :: self.stride]
        self.k, self.v = (windows(self._heads(t), *self.window) for t in (k, v))
        loc = coordinates(H, W, torch.float64, q.device)
        offsets = loc[:, :, None, :: self.stride, :: self.stride] - windows(loc, *self.window)
        p = torch.einsum("dc,bckhw->bdkhw", conv_p[:, :, 0, 0], offsets)
        # The float64 reference subtracts positions of up to 1: beside float64 kernels its own loss counts.
        self.offsets = offsets.abs() + 2 * 2**-53 / self.unit
        self.p = torch.einsum("dc,bckhw->bdkhw", conv_p[:, :, 0, 0].abs(), self.offsets)
        logits = self.D**-0.5 * (self.q * (self.k + p)).sum(1)
        A = self.D**-0.5 * (self.q.abs() * (self.k.abs() + self.p)).sum(1)
        lse, top = logits.logsumexp(1, keepdim=True), logits.amax(1, keepdim=True)
        self.weights = (logits - lse).exp()
        # A logit: D products (or D for a slope, two for the coordinates), two sums, the scale and its own
        # rounding.
        of_logit = self.gamma(self.D + 8) * A
        of_weight = of_logit + self.unit * (logits - top).abs()
        mean = (self.weights * of_weight).sum(1, keepdim=True)
        of_lse = (
            mean + self.gamma(self.taps + 4) + 3 * self.unit * (top.abs() + lse - top) + self.unit * lse.abs()
        )
        self.of_recomputed = of_logit + self.unit * (logits - lse).abs() + of_lse + 3 * self.unit
        # The sums above and below the fraction line, exp, division, product; then the rate and the sum with
        # shift.
        A = self.weights[:, None] * self.v.abs()
        loss = (A * (of_weight + mean)[:, None]).sum(2) + self.gamma(2 * self.taps + 6) * A.sum(2)
        return (loss + self.gamma(3) * A.sum(2)).reshape(self.out_shape)

    def _shift(self, tensors):
        self.positive = [tensors[n].abs().requires_grad_() for n in ("qkv", "fc", "dep_conv")]
        qkv, fc, dep_conv = self.positive
        self.K_c2 = fc.shape[0]
        convolve = dict(padding=dep_conv.shape[-1] // 2, stride=self.stride, groups=self.D)
        self.shift_A = shift_aggregate(
            *qkv.chunk(3, 1),
            lambda maps: F.conv2d(maps, fc),
            lambda maps: F.conv2d(maps, dep_conv, **convolve),
            head=self.G,
        )
        steps = self.K_c2 + 3 * self.G * self.K_c2 + 5
        self.of["y"] = self.of["y"] + self.rate2 * self.gamma(steps) * self.shift_A.detach()

    def _attention_grads(self, grad_y, k, v):
        B, C, H_out, W_out = self.out_shape
        grad = self._heads(grad_y)[:, :, None]
        scale, P, lost = self.D**-0.5, self.weights, self.of_recomputed
        dP, A_dP = (grad * self.v).sum(1), (grad.abs() * self.v.abs()).sum(1)
        delta = (P * dP).sum(1, keepdim=True)
        of_delta = (P * A_dP * (lost + self.gamma(self.taps + self.D + 1))).sum(1, keepdim=True)
        dS = self.rate1 * scale * P * (dP - delta).abs()
        of_dS = dS * (lost + self.gamma(5))
        of_dS = of_dS + self.rate1 * scale * P * (self.gamma(self.D + 1) * A_dP + of_delta)
        heard = self.gamma(
            4 * self.taps + 8
        )  # a key hears at most so often from the queries around, folds included
        of_q = ((of_dS + self.gamma(self.taps + 6) * dS)[:, None] * (self.k.abs() + self.p)).sum(2)
        of_k = self._to_keys((of_dS + heard * dS)[:, None] * self.q.abs(), k)
        of_v = self._to_keys((self.rate1 * P * (lost + heard))[:, None] * grad.abs(), v)
        full_q = torch.zeros_like(self._heads(k))
        full_q[..., :: self.stride, :: self.stride] = of_q
        self.of["grad_qkv"] = torch.cat([t.reshape(k.shape) for t in (full_q, of_k, of_v)], 1)
        steps = H_out * -(-W_out // self.lanes) + self.lanes + B * self.G
        slope = ((of_dS + self.gamma(self.taps + 4) * dS)[:, None] * self.offsets).sum(2)
        A_slope = (dS[:, None] * self.offsets).sum(2)
        lost = slope + self.gamma(steps) * A_slope
        of_conv_p = torch.einsum("bdhw,bchw->dc", self.q[:, :, 0].abs(), lost)
        self.of["grad_conv_p"] = of_conv_p[:, :, None, None]
        self.of["grad_rate1"] = (of_delta.sum() + self.gamma(steps) * (P * A_dP).sum()).reshape(1)

    def _to_keys(self, sent, like):
        """Sums over the windows that a key is in: the transpose of ``windows``."""
        x = torch.zeros_like(self._heads(like), requires_grad=True)
        sent = sent.expand(*x.shape[:2], *sent.shape[2:])
        return torch.autograd.grad(windows(x, *self.window), x, sent)[0]

    def _shift_grads(self, grad_y):
        grads = torch.autograd.grad(self.shift_A, self.positive, self.rate2 * grad_y.abs(), retain_graph=True)
        B, C, H_out, W_out = self.out_shape
        pixels = B * H_out * -(-W_out // self.lanes) + self.lanes
        qkv, fc, dep_conv = grads
        K_c2, G = self.K_c2, self.G
        self.of["grad_qkv"] = self.of["grad_qkv"] + self.gamma(K_c2 + G * K_c2 + 5) * qkv
        self.of["grad_fc"] = self.gamma(pixels + G * K_c2 + self.D + 3) * fc
        self.of["grad_dep_conv"] = self.gamma(pixels + 3 * G + 3) * dep_conv
        A = (grad_y.abs() * self.shift_A.detach()).sum()
        self.of["grad_rate2"] = (self.gamma(pixels + K_c2 + 3 * G * G * K_c2 + self.D) * A).reshape(1)
