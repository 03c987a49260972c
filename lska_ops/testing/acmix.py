"""ACmix's error bound, for the core (from q, k, v on) and for the whole call; random problems of the core."""

import torch
import torch.nn.functional as F

from .._backends import choose
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


def sizes(problem):
    """The numbers of a problem, of the core or of a half, on which a backend may decline."""
    o, t = problem.options, problem.tensors
    return dict(
        head=o["head"], dims=t["qkv"].shape[1] // 3 // o["head"], kernel_att=o.get("kernel_att", 1),
        kernel_conv=t["dep_conv"].shape[-1] if "dep_conv" in t else None, stride=o["stride"],
        dilation=o.get("dilation", 1),
    )  # fmt: skip


def call(tensors, options, backend):
    if backend == "triton":  # its ops are registered when they are first chosen
        choose("acmix", backend, tensors["qkv"], head=options["head"])
    return core(*(tensors[n] for n in NAMES), backend=backend, **options)


def ratios(answers, exact, options, grad_y, backend):
    """See :func:`lska_ops.testing.problems.ratios`; what may be lost is computed by :class:`Loss`, for every
    backend."""
    dtype = answers["y"].dtype
    exact = {n: None if t is None else t.detach() for n, t in exact.items()}
    r = solve(call, exact, options, grad_y)
    loss = Loss(exact, options, dtype, grad_y).of
    return {n: bound_ratio(out, r[n], loss[n]) for n, out in answers.items()}


def solve(call, exact, options, grad_y):
    """The reference's answers to ``call``, this module's or another's that takes the same tensors."""
    inputs = {n: t.requires_grad_(grad_y is not None) for n, t in exact.items() if t is not None}
    y = call(exact, options, "reference")
    r = {"y": y.detach()}
    if grad_y is not None:
        grads = torch.autograd.grad(y, list(inputs.values()), grad_y)
        r.update({f"grad_{n}": g for n, g in zip(inputs, grads, strict=True)})
        for t in inputs.values():
            t.requires_grad_(False)
        if "grad_conv_p_bias" in r:  # a constant shift of all positions changes nothing
            r["grad_conv_p_bias"].zero_()
    return r


def whole_call(tensors, options, dtype, grad_y=None, plain=False):
    """``{result: (float64 value, what may be lost)}`` of a whole call, projections included.

    Args:
        tensors: in float64, "x" and by the names of ACmix's parameters ("conv1.weight") the weights; the bias
            of a projection may be None or missing.
        options: head, kernel_att, stride, dilation.
        dtype: of the results to be judged.
        grad_y: in float64; None judges y alone.
        plain: see :class:`Loss`.

    Returns:
        dict: "y", and with grad_y the gradients by the names in `tensors`.
    """
    u, unit = UNIT[dtype], UNIT[torch.promote_types(dtype, torch.float32)]
    x, names = tensors["x"], ("conv1", "conv2", "conv3")
    inputs = core_tensors(tensors)
    qkv, weight, pixels = inputs["qkv"], torch.cat([tensors[f"{n}.weight"] for n in names]), x.flatten(2)
    absolute = {n: None if t is None else t.abs() for n, t in tensors.items()}
    lost = gamma(x.shape[1] + 1, unit) * core_tensors(absolute)["qkv"]
    lost += u * (qkv.abs() + lost)  # q, k, v are stored in the dtype of x
    r = solve(call, inputs, options, grad_y)
    of = Loss(inputs, options, dtype, grad_y, lost, plain).of
    found = {"y": (r["y"], of["y"])}
    if grad_y is not None:
        found |= {_WHOLE[n]: (r[f"grad_{n}"], of[f"grad_{n}"]) for n in NAMES[1:] if f"grad_{n}" in r}
        grad, lost = (t.flatten(2) for t in (r["grad_qkv"], of["grad_qkv"]))
        lost = lost + u * (grad.abs() + lost)
        A, weight = grad.abs() + lost, weight.flatten(1)
        # Plain PyTorch rounds the gradients of three convolutions and two sums of them; ours one product.
        in_a_row = gamma(3 * weight.shape[0] + 2, unit) + (5 * u if plain else 0)
        of_x = weight.abs().mT @ lost + in_a_row * (weight.abs().mT @ A)
        found["x"] = (weight.mT @ grad).view_as(x), of_x.view_as(x)
        in_a_row = gamma(pixels.shape[0] * pixels.shape[2], unit) + u  # of each picture, then of all
        of_weight = torch.einsum("bon,bin->oi", lost + in_a_row * A, pixels.abs())
        r_weight = torch.einsum("bon,bin->oi", grad, pixels)
        r_bias, of_bias = grad.sum((0, 2)), (lost + in_a_row * A).sum((0, 2))
        for i, n in enumerate(names):
            found[f"{n}.weight"] = tuple(t.chunk(3)[i][:, :, None, None] for t in (r_weight, of_weight))
            if tensors.get(f"{n}.bias") is not None:
                found[f"{n}.bias"] = r_bias.chunk(3)[i], of_bias.chunk(3)[i]
    return found


def core_tensors(tensors):
    """The core's inputs by NAMES, from those of a whole call as :func:`whole_call` takes them."""
    projections = ((tensors[f"conv{i}.weight"], tensors.get(f"conv{i}.bias")) for i in (1, 2, 3))
    qkv = torch.cat([F.conv2d(tensors["x"], weight, bias) for weight, bias in projections], 1)
    return {"qkv": qkv, **{n: tensors.get(_WHOLE[n]) for n in NAMES[1:]}}


# What the core's inputs are called in the module.
_WHOLE = {n: f"{n}.weight" for n in ("conv_p", "fc", "dep_conv")} | {n: n for n in ("rate1", "rate2")}
_WHOLE["conv_p_bias"] = "conv_p.bias"


class Loss:
    """What may be lost in every result of the core before its one rounding: ``of[name]``, elementwise.

    n operations in a row on terms whose absolute values sum to A lose ``gamma(n) A``; a logit's absolute
    error becomes a relative error of its softmax weight (two ulp more for exp); what was lost in q, k, v
    before is carried through.

    Args:
        tensors: the core's inputs in float64, by NAMES.
        options: head, kernel_att, stride, dilation.
        dtype: of the results; sums are in float32, for float64 in float64.
        grad_y: in float64; None for y alone.
        lost: what q, k, v may be off by, like qkv; None for nothing.
        plain: judge plain PyTorch, which subtracts positions that it has computed on their own, sums
            gradients without strands, and in the half dtypes rounds after every step.
    """

    # Plain PyTorch rounds to the dtype at most so often between two of the values that are followed here.
    STORES = 8

    def __init__(self, tensors, options, dtype, grad_y, lost=None, plain=False):
        self.unit, self.options = UNIT[torch.promote_types(dtype, torch.float32)], options
        self.plain, self.stored = plain, UNIT[dtype] if plain and UNIT[dtype] > self.unit else 0.0
        qkv = tensors["qkv"]
        q, k, v = qkv.chunk(3, 1)
        B, C, H, W = q.shape
        self.G, self.K, self.stride = options["head"], options["kernel_att"], options["stride"]
        self.taps, self.D = self.K**2, C // self.G
        self.window = (options["kernel_att"], options["stride"], options["dilation"])
        self.rate1, self.rate2 = tensors["rate1"].abs(), tensors["rate2"].abs()
        self.out_shape = (B, C, -(-H // self.stride), -(-W // self.stride))
        # Sums over pixels run in as many strands as the narrowest vectors have lanes.
        self.lanes = 1 if plain else 2 if self.unit < 2**-30 else 4
        self.lost = torch.zeros_like(qkv) if lost is None else lost
        self._positions(tensors["conv_p"], tensors["conv_p_bias"], H, W)
        self.of = {"y": self.rate1 * self._attention(q, k, v)}
        self._shift(tensors)
        if grad_y is not None:
            self._attention_grads(grad_y, k)
            self._shift_grads(grad_y)

    def gamma(self, n, stores=STORES):
        """Part of A that n operations lose, of which plain PyTorch stores `stores` results."""
        return gamma(n, self.unit) + (gamma(stores, self.stored) if self.stored else 0)

    def _heads(self, t):
        B, C, H, W = t.shape
        return t.reshape(B * self.G, self.D, H, W)

    def _centres(self, t):
        return self._heads(t)[:, :, None, :: self.stride, :: self.stride]

    def _positions(self, conv_p, bias, H, W):
        """p = p_i - p_j and its A, the distance of coordinates, and what p may have lost."""
        weight, loc = conv_p[:, :, 0, 0], coordinates(H, W, torch.float64, conv_p.device)
        there, here = windows(loc, *self.window), loc[:, :, None, :: self.stride, :: self.stride]
        self.p = torch.einsum("dc,bckhw->bdkhw", weight, here - there)
        # The float64 reference subtracts positions of up to 1: beside float64 kernels its own loss counts.
        self.distance = (here - there).abs() + 2 * 2**-53 / self.unit
        self.p_A = torch.einsum("dc,bckhw->bdkhw", weight.abs(), self.distance)
        self.of_p, self.distance_A = torch.zeros_like(self.p), self.distance
        if self.plain:  # a coordinate is a part of 2, minus 1: its A is itself plus 2
            self.distance_A = here + there + 4
            self.of_p = torch.einsum("dc,bckhw->bdkhw", weight.abs(), self.distance_A)
            if bias is not None:
                self.of_p += 2 * bias.abs()[:, None, None, None]
            self.of_p = gamma(8, self.unit) * self.of_p + self.stored * (self.p.abs() + self.of_p)

    def _attention(self, q, k, v):
        """Loss of the attention's output; keeps the softmax weights and their relative loss for backward."""
        of_q, of_k, of_v = self.lost.chunk(3, 1)
        self.q, self.of_q = self._centres(q), self._centres(of_q)
        self.v, self.of_v = (windows(self._heads(t), *self.window) for t in (v, of_v))
        keys = windows(self._heads(k), *self.window)
        self.of_key = windows(self._heads(of_k), *self.window) + self.of_p
        self.key_A = keys.abs() + self.p_A
        keys = keys + self.p
        scale = self.D**-0.5
        logits = scale * (self.q * keys).sum(1)
        # A logit: D products (or D for a slope, two for the coordinates), two sums, the scale and its own
        # rounding.
        of_logit = self.gamma(self.D + 8) * scale * (self.q.abs() * self.key_A).sum(1)
        q_A = self.q.abs() + self.of_q
        of_logit += scale * (self.of_q * keys.abs() + q_A * self.of_key).sum(1)
        lse, top = logits.logsumexp(1, keepdim=True), logits.amax(1, keepdim=True)
        self.weights = (logits - lse).exp()
        of_weight = of_logit + self.unit * (logits - top).abs()
        mean = (self.weights * of_weight.expm1()).sum(1, keepdim=True).log1p()
        of_lse = (
            mean + self.gamma(self.taps + 4) + 3 * self.unit * (top.abs() + lse - top) + self.unit * lse.abs()
        )
        self.of_recomputed = of_logit + self.unit * (logits - lse).abs() + of_lse + 3 * self.unit
        self.of_recomputed = self.of_recomputed.expm1()
        # The sums above and below the fraction line, exp, division, product; then the rate and the sum with
        # shift.
        v_A = self.v.abs() + self.of_v
        A = (self.weights[:, None] * v_A).sum(2)
        relative = self.weights * (of_weight + mean).expm1()
        loss = (self.weights[:, None] * self.of_v + relative[:, None] * v_A).sum(2)
        loss = loss + self.gamma(2 * self.taps + 6) * (A + loss)
        return (loss + self.gamma(3) * (A + loss)).reshape(self.out_shape)

    def _shift(self, tensors):
        self.positive = [tensors[n].abs().requires_grad_() for n in ("qkv", "fc", "dep_conv")]
        qkv, fc, dep_conv = self.positive
        self.K_c2 = fc.shape[0]
        convolve = dict(padding=dep_conv.shape[-1] // 2, stride=self.stride, groups=self.D)
        self.shift_A, self.of_shift = (
            shift_aggregate(
                *maps.chunk(3, 1),
                lambda maps: F.conv2d(maps, fc),
                lambda maps: F.conv2d(maps, dep_conv, **convolve),
                head=self.G,
            )
            for maps in (qkv, self.lost)
        )
        A, lost = self.shift_A.detach(), self.of_shift.detach()
        # fc and then dep_conv, or both as one convolution.
        steps = (3 * self.G + self.K_c2**2 if self.plain else self.K_c2 + 3 * self.G * self.K_c2) + 5
        self.of["y"] = self.of["y"] + self.rate2 * (lost + self.gamma(steps) * (A + lost))

    def _attention_grads(self, grad_y, k):
        B, C = self.out_shape[:2]
        grad = self._heads(grad_y)[:, :, None]
        scale, P, lost = self.D**-0.5, self.weights, self.of_recomputed
        dP, A_dP = (grad * self.v).sum(1), (grad.abs() * self.v.abs()).sum(1)
        of_dP = (grad.abs() * self.of_v).sum(1)
        delta = (P * dP).sum(1, keepdim=True)
        of_delta = P * (A_dP * (lost + self.gamma(self.taps + self.D + 1)) + of_dP * (1 + lost))
        of_delta = of_delta.sum(1, keepdim=True)
        dS = self.rate1 * scale * P * (dP - delta).abs()
        of_dS = dS * (lost + self.gamma(5))
        of_dS = of_dS + self.rate1 * scale * P * (1 + lost) * (
            self.gamma(self.D + 1) * A_dP + of_dP + of_delta
        )
        # A key hears at most so often from the queries around, folds included. Plain PyTorch stores every
        # addition of fold, and of what is reflected.
        heard = self.gamma(4 * self.taps + 8, self.taps + 2 * self.K + 8)
        dS_A = dS + of_dS
        of_dq = of_dS + self.gamma(self.taps + 6) * dS_A
        of_q = (of_dq[:, None] * self.key_A + dS_A[:, None] * self.of_key).sum(2)
        of_k = self._to_keys((of_dS + heard * dS_A)[:, None] * self.q.abs() + dS_A[:, None] * self.of_q, k)
        of_v = self._to_keys((self.rate1 * P * (lost + heard * (1 + lost)))[:, None] * grad.abs(), k)
        full_q = torch.zeros_like(self._heads(k))
        full_q[..., :: self.stride, :: self.stride] = of_q
        self.of["grad_qkv"] = torch.cat([t.reshape(k.shape) for t in (full_q, of_k, of_v)], 1)
        self._position_grads(dS_A, of_dS, heard)
        steps = self._pixels(B * C) + 2 * self.taps + 8 if self.plain else self._pixels(B * self.G)
        A = (P * A_dP).sum()
        self.of["grad_rate1"] = (of_delta.sum() + self.gamma(steps) * (A + of_delta.sum())).reshape(1)

    def _pixels(self, maps):
        """Additions in a row of a sum over the pixels of `maps` maps: a map's in strands, or all together."""
        if self.plain:
            return maps * self.lost.shape[2] * self.lost.shape[3]
        return self.out_shape[2] * -(-self.out_shape[3] // self.lanes) + self.lanes + maps

    def _position_grads(self, dS_A, of_dS, heard):
        fold = heard if self.plain else self.gamma(self.taps + 4)
        steps = self.gamma(self._pixels(self.out_shape[0] * self.G))
        q_A = self.q.abs() + self.of_q
        lost = (of_dS[:, None] * self.distance + fold * dS_A[:, None] * self.distance_A).sum(2)
        A = (dS_A[:, None] * self.distance_A).sum(2)
        of_conv_p = torch.einsum("bdhw,bchw->dc", q_A[:, :, 0], lost + steps * (A + lost))
        exactly = (dS_A[:, None] * self.distance).sum(2)
        of_conv_p += torch.einsum("bdhw,bchw->dc", self.of_q[:, :, 0], exactly)
        self.of["grad_conv_p"] = of_conv_p[:, :, None, None]
        # A constant shift of all positions changes nothing; plain PyTorch finds that out by adding up.
        A = torch.einsum("bdhw,bkhw->d", q_A[:, :, 0], 2 * dS_A)
        self.of["grad_conv_p_bias"] = (fold + steps) * A if self.plain else torch.zeros_like(A)

    def _to_keys(self, sent, like):
        """Sums over the windows that a key is in: the transpose of ``windows``."""
        x = torch.zeros_like(self._heads(like), requires_grad=True)
        sent = sent.expand(*x.shape[:2], *sent.shape[2:])
        return torch.autograd.grad(windows(x, *self.window), x, sent)[0]

    def _shift_grads(self, grad_y):
        sent, (qkv, *weights) = self.rate2 * grad_y.abs(), self.positive
        qkv, fc, dep_conv = torch.autograd.grad(self.shift_A, [qkv, *weights], sent)
        of_fc, of_dep_conv = torch.autograd.grad(self.of_shift, weights, sent)
        B, C, H_out, W_out = self.out_shape
        K_c2, G = self.K_c2, self.G
        pixels = B * H_out * -(-W_out // self.lanes) + self.lanes
        of_dims, of_all = pixels + self.D, pixels + K_c2 + 3 * G * G * K_c2 + self.D
        if self.plain:
            of_dims, of_all = self._pixels(B * self.D), self._pixels(B * C) + 3 * G + K_c2**2
        self.of["grad_qkv"] = self.of["grad_qkv"] + self.gamma(K_c2 + G * K_c2 + 5) * qkv
        self.of["grad_fc"] = of_fc + self.gamma(of_dims + G * K_c2 + 3) * (fc + of_fc)
        self.of["grad_dep_conv"] = of_dep_conv + self.gamma(pixels + 3 * G + 3) * (dep_conv + of_dep_conv)
        A, lost = ((grad_y.abs() * t.detach()).sum() for t in (self.shift_A, self.of_shift))
        self.of["grad_rate2"] = (lost + self.gamma(of_all) * (A + lost)).reshape(1)
