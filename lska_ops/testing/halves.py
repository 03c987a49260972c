"""Random problems of ACmix's halves: a problem of the whole core with the other half left out."""

from ..acmix import local_attention, shift_aggregate
from . import acmix, bound_ratio


class _Half:
    """What testing.problems asks of an op; q, k and v are the parts of one drawn map."""

    def __init__(self, names, options):
        self.NAMES, self.options = ("qkv", *names), options

    def draw(self, choice, generator):
        tensors, options, grad_y = acmix.draw(choice, generator)
        tensors = {n: tensors[n] for n in self.NAMES}
        return tensors, {n: options[n] for n in self.options}, grad_y

    def ratios(self, answers, exact, options, grad_y, backend):
        """See :func:`lska_ops.testing.problems.ratios`."""
        dtype, qkv = answers["y"].dtype, exact["qkv"].detach()
        given = {n: None if t is None else t.detach() for n, t in exact.items()}
        r = acmix.solve(self.call, given, options, grad_y)
        whole = {**self._nothing(qkv, options["head"]), **{n: t for n, t in given.items() if t is not None}}
        loss = acmix.Loss(whole, {"kernel_att": 1, "dilation": 1, **options}, dtype, grad_y).of
        return {n: bound_ratio(out, r[n], loss[n]) for n, out in answers.items()}

    def _nothing(self, qkv, head):
        """The core's other inputs, for a half that adds nothing beside one at rate 1."""
        C, zeros = qkv.shape[1] // 3, qkv.new_zeros
        nothing = {"conv_p": zeros(C // head, 2, 1, 1), "conv_p_bias": None}
        nothing |= {"fc": zeros(1, 3 * head, 1, 1), "dep_conv": zeros(C, 1, 1, 1)}
        attends = qkv.new_tensor([float("conv_p" in self.NAMES)])
        return {**nothing, "rate1": attends, "rate2": 1 - attends}


class _LocalAttention(_Half):
    def draw(self, choice, generator):
        tensors, options, grad_y = super().draw(choice, generator)
        if choice.random() < 0.25:  # no position term
            tensors["conv_p"] = tensors["conv_p_bias"] = None
        return tensors, options, grad_y

    def call(self, tensors, options, backend):
        conv_p = None if tensors["conv_p"] is None else (tensors["conv_p"], tensors["conv_p_bias"])
        return local_attention(*tensors["qkv"].chunk(3, 1), conv_p, **options, backend=backend)


class _ShiftAggregate(_Half):
    def call(self, tensors, options, backend):
        fc, dep_conv = (tensors["fc"], None), (tensors["dep_conv"], None)
        return shift_aggregate(*tensors["qkv"].chunk(3, 1), fc, dep_conv, **options, backend=backend)


LOCAL_ATTENTION = _LocalAttention(("conv_p", "conv_p_bias"), ("head", "kernel_att", "stride", "dilation"))
SHIFT_AGGREGATE = _ShiftAggregate(("fc", "dep_conv"), ("head", "stride"))
