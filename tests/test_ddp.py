"""Training on several devices: two processes, launched as ultralytics does, have the gradients of one."""

import socket
import subprocess
import sys

import pytest
import torch

# What each process runs. Its half of the batch goes through the model that ultralytics' trainer would wrap.
WORKER = """
import sys
import torch
import torch.distributed as dist
from torch import nn
import lska_ops
from ultralytics.nn import tasks

module, static, out = sys.argv[1], sys.argv[2] == "static", sys.argv[3]


def build():
    torch.manual_seed(0)
    model = tasks.DetectionModel(f"yolo11n-{module}.yaml", nc=3, verbose=False).train()
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.eval()  # or each process would have statistics of its own half
    model.model[-1].dfl.conv.weight.requires_grad_(False)
    return model


def loss(y):
    y = y["one2many"] if isinstance(y, dict) and "one2many" in y else y
    maps = [v for v in y.values() if isinstance(v, torch.Tensor)] if isinstance(y, dict) else y
    return sum(v.square().sum() for v in maps)


lska_ops.register()
torch.set_num_threads(1)
dist.init_process_group("gloo")
rank = dist.get_rank()
x = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
options = dict(static_graph=True) if static else dict(find_unused_parameters=True)
model = nn.parallel.DistributedDataParallel(build(), **options)
for _ in range(2):  # a static graph is learnt in the first step and used in the second
    model.zero_grad()
    loss(model(x[rank : rank + 1])).backward()
alone = build()
((loss(alone(x[:1])) + loss(alone(x[1:]))) / 2).backward()
pairs = list(zip(model.module.named_parameters(), alone.named_parameters()))
missing = [name for (name, p), (_, q) in pairs if (p.grad is None) != (q.grad is None)]
other = [name for (name, p), (_, q) in pairs if p.grad is not None and not torch.equal(p.grad, q.grad)]
ours = [name for name, p in alone.named_parameters() if name.startswith(("model.17.", "model.21.", "model.25."))]
zero = [name for name in ours if not dict(alone.named_parameters())[name].grad.any() and "conv_p.bias" not in name]
torch.save(dict(missing=missing, other=other, zero=zero, ours=len(ours), compared=len(pairs)), f"{out}/{rank}.pt")
dist.destroy_process_group()
"""


@pytest.mark.parametrize("graph", ["dynamic", "static"])
@pytest.mark.parametrize("module, tensors", [("LSKA", 30), ("ACmix", 36)])
def test_ddp_gradients_of_two_processes_are_those_of_one(tmp_path, module, tensors, graph):
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("this torch was built without gloo; install another one")
    script = tmp_path / "worker.py"
    script.write_text(WORKER, encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
    words = [sys.executable, *launcher, str(script), module, graph, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert found.pop("ours") == tensors and found.pop("compared") > 200
        assert found == dict(missing=[], other=[], zero=[])
