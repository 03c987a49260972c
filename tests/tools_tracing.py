"""Tools that trace or transform a module, quantise it, or run it in several places; see tools.py."""

import copy
import importlib
import inspect
import tempfile
import warnings

import pytest
import torch
from tools import after_backward, convolutions, gradients, replaced, tool
from torch import nn

from lska_ops import LSKA, unregister
from lska_ops._watchers import COMPILES_OURS


def is_fx_leaf(module):
    """ACmix is one node of torch.fx's graph; what calls its convolutions cannot be traced at all."""
    return hasattr(module, "rate1")


def is_ours(module):
    return hasattr(module, "_published")


class Network(nn.Module):
    """The module between two others, as users trace it."""

    def __init__(self, module):
        super().__init__()
        self.before, self.module, self.behind = nn.Identity(), module, nn.ReLU()

    def forward(self, x):
        return self.behind(self.module(self.before(x)))


# ---- tracers


@tool(fuses=("ACmix",))
def fx_trace(module, x):
    network = Network(module)
    if is_fx_leaf(module) and not is_ours(module):
        return gradients(network, x)
    traced = torch.fx.symbolic_trace(network)
    calls = [node.target for node in traced.graph.nodes if node.op == "call_module"]
    own = (
        ["module"]
        if is_fx_leaf(module)
        else [n for n, m in network.named_modules() if isinstance(m, nn.Conv2d)]
    )
    assert set(own) <= set(calls)
    return gradients(traced, x)


@tool(fuses=("ACmix",))
def fx_features(module, x):
    pytest.importorskip("torchvision")
    from torchvision.models.feature_extraction import create_feature_extractor

    network = Network(module)
    if is_fx_leaf(module) and not is_ours(module):
        return {"y": network(x).detach()}
    return {"y": create_feature_extractor(network, ["behind"])(x)["behind"].detach()}


@tool(fuses=("ACmix",))  # which refuses, and goes on working
def jit_script(module, x):
    if is_fx_leaf(module):  # the published one cannot be scripted either
        network = nn.Sequential(LSKA(4), module)
        if is_ours(module):
            with pytest.raises(
                TypeError, match="torch.jit.script: ACmix .* use torch.jit.trace or torch.export"
            ):
                torch.jit.script(network)
        assert type(network[0]) is LSKA
        return gradients(module, x)
    if hasattr(module, "lska"):  # ultralytics' SPPF cannot be scripted
        module, x = module.lska, x.repeat(1, 8 // x.shape[1], 1, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(module)
    assert scripted.state_dict().keys() == module.state_dict().keys()
    network = nn.Sequential(module).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(network)
    assert network[0] is module and not module.training  # scripting leaves the network as it was
    return gradients(scripted, x)


@tool()
def jit_trace(module, x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(module, x, check_trace=False)
    assert "lska_ops::" not in str(traced.inlined_graph)
    return gradients(traced, x)


@tool()
def make_fx(module, x):
    from torch.fx.experimental.proxy_tensor import make_fx

    graph = make_fx(module)(x)
    assert str(graph.graph).count("aten.convolution.default") >= len(convolutions(module))
    return {"y": graph(x).detach()}


@tool()
def exported(module, x):
    found = {}
    for strict in (False, True):
        if "strict" in inspect.signature(torch.export.export).parameters:
            program = torch.export.export(module.eval(), (x,), strict=strict)
        else:
            program = torch.export.export(module.eval(), (x,))
        graphs = [m.graph for m in program.graph_module.modules() if hasattr(m, "graph")]
        assert not any("lska_ops" in str(node.target) for graph in graphs for node in graph.nodes)
        found[f"y, strict {strict}"] = program.module()(x).detach()
    return found


@tool()
def compiled_in_a_network_with_dynamic_shapes(module, x):
    from torch._dynamo.backends.debugging import aot_eager

    from lska_ops import _compiled

    torch._dynamo.reset()
    graphs, found = [], {}

    def backend(graph, inputs):
        graphs.append(graph.print_readable(print_output=False))
        return aot_eager(graph, inputs)

    compiled = torch.compile(Network(module), fullgraph=True, dynamic=True, backend=backend)
    for side in (x.shape[2], x.shape[2] + 3):
        larger = x.new_tensor(range(x[:, :, :1].numel())).view_as(x[:, :, :1]).expand(-1, -1, side, -1).cos()
        found |= {f"{name} {side}": t for name, t in gradients(compiled, larger).items()}
    fused = any("torch.ops.lska_ops" in graph for graph in graphs)
    ours = is_ours(getattr(module, "lska", module))
    assert graphs and fused == (ours and COMPILES_OURS and _compiled.problem is None)
    return {name.replace("_orig_mod.", ""): t for name, t in found.items()}


# ---- torch.func


@tool()
def vmap(module, x):
    maps = torch.stack([x, 2 * x])
    return _vmapped(module.eval(), maps)


@tool()
def vmap_frozen(module, x):
    return _vmapped(module.eval().requires_grad_(False), torch.stack([x, 2 * x]))


def _vmapped(module, maps):
    maps = maps.clone().requires_grad_()
    return after_backward(module, maps, torch.vmap(module)(maps))


def _parameters(module):
    return {n: p.detach() for n, p in module.named_parameters()}


def _loss(module):
    return lambda parameters, x: torch.func.functional_call(module, parameters, (x,)).square().sum()


@tool()
def gradients_of_a_functional_call(module, x):
    return torch.func.grad(_loss(module.eval()))(_parameters(module), x)


@tool()
def gradients_per_sample(module, x):
    one = _loss(module.eval())
    per_sample = torch.vmap(torch.func.grad(lambda p, x: one(p, x[None])), (None, 0))
    return per_sample(_parameters(module), x)


@tool()
def ensemble(module, x):
    twins = [copy.deepcopy(module).eval() for _ in range(2)]
    parameters, buffers = torch.func.stack_module_state(twins)
    call = lambda p, b, x: torch.func.functional_call(twins[0], (p, b), (x,))  # noqa: E731
    return {"y": torch.vmap(call, (0, 0, None))(parameters, buffers, x).detach()}


@tool()
def jvp(module, x):
    y, tangent = torch.func.jvp(module.eval(), (x,), (x.cos(),))
    return {"y": y.detach(), "tangent": tangent.detach()}


@tool()
def forward_mode(module, x):
    from torch.autograd import forward_ad

    with forward_ad.dual_level():
        y, tangent = forward_ad.unpack_dual(module.eval()(forward_ad.make_dual(x, x.cos())))
    return {"y": y.detach(), "tangent": tangent.detach()}


@tool()
def jacobian_backward(module, x):
    return {"J": torch.func.jacrev(lambda x: module.eval()(x).sum((2, 3)))(x).detach()}


@tool()
def jacobian_forward(module, x):
    return {"J": torch.func.jacfwd(lambda x: module.eval()(x).sum((2, 3)))(x[:1, :, :3, :3]).detach()}


@tool()
def hessian(module, x):
    return {"H": torch.func.hessian(lambda x: module.eval()(x).square().sum())(x[:1, :, :3, :2]).detach()}


# ---- quantisation and pruning


def _calibrated(prepared, x):
    prepared(x)
    prepared(x.cos())


@tool(fuses=("ACmix",))
def quantised_by_fx(module, x):
    fx = pytest.importorskip("torch.ao.quantization.quantize_fx")
    from torch.ao.quantization import get_default_qconfig_mapping

    if is_fx_leaf(module) and not is_ours(module):
        return {"y": Network(module)(x).detach()}
    network, x = Network(module).eval(), x
    mapping = get_default_qconfig_mapping("x86")
    if is_fx_leaf(module):
        mapping.set_global(None)  # the node is called as it is, in a network of which nothing is quantised
    else:
        network, x = network.float(), x.float()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepared = fx.prepare_fx(network, mapping, (x,))
        _calibrated(prepared, x)
        quantised = fx.convert_fx(prepared)
    count = sum("quantized" in type(m).__module__ for m in quantised.modules())
    assert is_fx_leaf(module) or count >= len(convolutions(module))
    return {"y": quantised(x).detach()}


@tool(fuses=("ACmix",))
def trained_quantised_by_fx(module, x):
    fx = pytest.importorskip("torch.ao.quantization.quantize_fx")
    from torch.ao.quantization import get_default_qat_qconfig_mapping

    network = Network(module).train()
    if is_fx_leaf(module) and not is_ours(module):
        return {"y": network(x).detach()}
    mapping = get_default_qat_qconfig_mapping("x86")
    if is_fx_leaf(module):
        mapping.set_global(None)  # the node is called as it is, in a network of which nothing is quantised
    else:
        network, x = network.float(), x.float()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepared = fx.prepare_qat_fx(network, mapping, (x,))
        y = prepared(x)
    assert is_fx_leaf(module) or any("qat" in type(m).__module__ for m in prepared.modules())
    return {"y": y.detach()}


@tool()
def quantised_after_export(module, x):
    pt2e = pytest.importorskip("torchao.quantization.pt2e.quantize_pt2e")
    quantizers = pytest.importorskip("torchao.quantization.pt2e.quantizer.x86_inductor_quantizer")

    quantizer = quantizers.X86InductorQuantizer().set_global(
        quantizers.get_default_x86_inductor_quantization_config()
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(Network(module).float().eval(), (x.float(),)).module()
        prepared = pt2e.prepare_pt2e(program, quantizer)
        _calibrated(prepared, x.float())
        quantised = pt2e.convert_pt2e(prepared)
    assert "quantize_per" in str(quantised.graph)
    return {"y": quantised(x.float()).detach()}


@tool()
def quantised_by_modelopt(module, x):
    mtq = pytest.importorskip("modelopt.torch.quantization")
    network, x = Network(module).float().eval(), x.float()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mtq.quantize(network, copy.deepcopy(mtq.INT8_DEFAULT_CFG), lambda m: _calibrated(m, x))
    assert all("Quant" in type(m).__name__ for m in convolutions(module))
    return {"y": network(x).detach()}


@tool(fuses=True)
def half_of_the_channels_pruned(module, x):
    tp = pytest.importorskip("torch_pruning")
    if is_fx_leaf(module):
        pytest.skip("torch-pruning does not end on the published ACmix, whose channels are split into heads")
    C = x.shape[1]
    torch.manual_seed(3)
    network = nn.Sequential(nn.Conv2d(C, C, 1), module, nn.Conv2d(C, C, 1)).to(x.dtype)
    importance = tp.importance.MagnitudeImportance(p=2)
    pruner = tp.pruner.MagnitudePruner(network, x, importance, pruning_ratio=0.5, ignored_layers=[network[2]])
    pruner.step()
    assert network[0].out_channels == C // 2
    return gradients(network, x)


@tool()
def lora_by_peft(module, x):
    peft = pytest.importorskip("peft")
    network = Network(module)
    names = [n for n, m in network.named_modules() if isinstance(m, nn.Conv2d) and m.groups == 1]
    torch.manual_seed(4)
    adapted = peft.get_peft_model(
        network, peft.LoraConfig(r=2, target_modules=names, init_lora_weights=False)
    )
    return {name.replace("base_model.model.", ""): t for name, t in gradients(adapted.to(x.dtype), x).items()}


# ---- counters by hooks


@tool()
def counted_by_thop(module, x):
    thop = pytest.importorskip("thop")
    unregister()  # register() teaches it more
    return {"macs": torch.tensor(thop.profile(Network(module), (x,), verbose=False)[0])}


@tool()
def counted_by_fvcore(module, x):
    fvcore = pytest.importorskip("fvcore.nn")
    analysis = fvcore.FlopCountAnalysis(Network(module).eval(), x)
    analysis.unsupported_ops_warnings(False)
    analysis.uncalled_modules_warnings(False)
    by_module = analysis.by_module_and_operator()
    return {"flops": torch.tensor(sum(of.get("conv", 0) for name, of in by_module.items() if name == ""))}


# ---- several places


@tool(fuses=True)
def replicas_of_data_parallel(module, x):
    """As nn.DataParallel makes them, on one device: what it sends to GPUs is here given to each replica."""
    replicate = importlib.import_module("torch.nn.parallel.replicate")  # which is also a function

    def to_each(tensors, devices, detach):
        return [[t.detach() if detach else t * 1 for t in tensors] for _ in devices]

    with replaced(replicate, "_broadcast_coalesced_reshape", to_each):
        with replaced(replicate, "_get_device_index", lambda device, *_: device):
            first, second = replicate.replicate(module, [0, 1])
    x = x.clone().requires_grad_()
    return after_backward(module, x, torch.cat([first(x[:1]), second(x[1:])]))


@tool(fuses=True)
def sharded(module, x):
    """FSDP2's fully_shard, one process."""
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    if not hasattr(fsdp, "fully_shard") or not hasattr(torch.cpu.Stream, "record_event"):
        pytest.skip(f"torch {torch.__version__} cannot fully_shard on a CPU; newer ones can")
    from torch import distributed

    with tempfile.TemporaryDirectory() as folder:
        distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        try:
            mesh = distributed.init_device_mesh("cpu", (1,))
            network = fsdp.fully_shard(Network(module), mesh=mesh)
            return {n: getattr(t, "to_local", lambda t=t: t)() for n, t in gradients(network, x).items()}
        finally:
            distributed.destroy_process_group()
