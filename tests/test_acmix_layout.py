"""acmix answers in the memory format of x, as PyTorch's convolutions do."""

import pytest
import torch

from lska_ops import ACmix
from lska_ops.testing import PUBLISHED, relative_error

FORMATS = (torch.contiguous_format, torch.channels_last)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_acmix_layout_follows_x(backend, stride, monkeypatch):
    monkeypatch.setenv("LSKA_OPS_BACKEND", backend)
    torch.manual_seed(0)
    m, x = ACmix(8, 12, stride=stride).double(), torch.randn(2, 8, 6, 7, dtype=torch.float64)
    answers = []
    for layout in FORMATS:
        given = x.clone(memory_format=layout).requires_grad_()
        y = m(given)
        assert y.is_contiguous(memory_format=layout)
        answers.append(
            [y, *torch.autograd.grad(y.square().sum(), [given, *m.parameters()], allow_unused=True)]
        )
    for one, other in zip(*answers, strict=True):
        assert (
            one is other is None or relative_error(one, other) <= PUBLISHED or other.abs().max() <= PUBLISHED
        )
