"""ultralytics' GFLOPs of a network with ACmix have the products of its attention."""

import importlib

import pytest
import torch
from torch import nn

from lska_ops import ACmix
from lska_ops.yolo import gflops

pytestmark = pytest.mark.versions


@pytest.fixture
def thop():
    pytest.importorskip("thop")
    return importlib.import_module("thop.profile")  # thop.profile is also a function


def test_gflops_have_the_products_of_attention(thop, registered):
    from ultralytics.nn.tasks import DetectionModel
    from ultralytics.utils.torch_utils import get_flops

    network, products = DetectionModel("yolo11n-ACmix.yaml", verbose=False), 0
    ours = [m for m in network.modules() if isinstance(m, ACmix)]

    def add(
        m, args, y
    ):  # a product a query, key and dim, and one a weight, value and dim; each with an addition
        nonlocal products
        products += 2 * 2 * m.kernel_att**2 * y.numel()

    hooks = [m.register_forward_hook(add) for m in ours]
    with torch.no_grad():
        network.eval()(torch.zeros(1, 3, 640, 640))
    for hook in hooks:
        hook.remove()
    counted, rule = get_flops(network), thop.register_hooks.pop(ACmix)
    without = get_flops(network)
    thop.register_hooks[ACmix] = rule
    assert len(ours) == 3 and products > 0
    assert round(1e9 * (counted - without)) == products


def test_gflops_rule_is_taken_back(thop, registered):
    import lska_ops

    assert ACmix in thop.register_hooks
    lska_ops.unregister()
    assert ACmix not in thop.register_hooks
    mine = thop.register_hooks[ACmix] = lambda m, args, y: None  # a user's own stays
    try:
        lska_ops.register()
        lska_ops.unregister()
        assert thop.register_hooks[ACmix] is mine
    finally:
        del thop.register_hooks[ACmix]


@pytest.mark.parametrize("stands_for_its_submodules", [False, True])
def test_gflops_count_submodules_once(thop, monkeypatch, stands_for_its_submodules):
    """Up to thop 2.1.2 a module's rule stands for its submodules too; a network's total is the same."""

    def profile(model, inputs, custom_ops=None, verbose=False):
        custom, found = custom_ops or {}, {}

        def total(m):
            below = sum(total(child) for child in m.children())
            return found[m] if type(m) in custom and stands_for_its_submodules else found.get(m, 0) + below

        for m in model.modules():
            found[m] = 1 if isinstance(m, nn.Conv2d) else 0
        return total(model), 0

    monkeypatch.setattr(thop, "profile", profile)
    take_back = gflops.add_rule()
    try:
        m, y = ACmix(8), torch.zeros(1, 8, 2, 3)
        m.total_ops = 0
        for child in m.children():
            child.total_ops = 10
        thop.register_hooks[ACmix](m, (y,), y)
    finally:
        take_back()
    products = 2 * 7 * 7 * 8 * 2 * 3
    assert m.total_ops == products + (10 * 6 if stands_for_its_submodules else 0)
