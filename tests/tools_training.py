"""What becomes of a module in training: it is copied, saved, averaged, checkpointed, frozen; see tools.py."""

import copy
import io
import pickle

import pytest
import torch
from tools import after_backward, gradients, tool

# ---- copies and files


@tool(fuses=True)
def copied(module, x):
    return gradients(copy.deepcopy(copy.copy(module)), x)


@tool(fuses=True)
def pickled(module, x):
    return gradients(pickle.loads(pickle.dumps(module)), x)


@tool(fuses=True)
def saved_whole(module, x):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return gradients(torch.load(file, weights_only=False), x)


@tool(fuses=True)
def averaged(module, x):
    from torch.optim.swa_utils import AveragedModel

    average = AveragedModel(module)
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(1.5)
    average.update_parameters(module)
    average.update_parameters(module)
    return {
        f"{n} of {i}": t for i, m in enumerate((module, average.module)) for n, t in gradients(m, x).items()
    }


@tool(fuses=True)
def channels_last(module, x):
    module, x = (t.to(memory_format=torch.channels_last) for t in (module, x))
    return gradients(module, x)


# ---- training


@tool(fuses=True)
def checkpointed_by_reentering(module, x):
    return _checkpointed(module, x, True)


@tool(fuses=True)
def checkpointed(module, x):
    return _checkpointed(module, x, False)


def _checkpointed(module, x, reentrant):
    from torch.utils.checkpoint import checkpoint

    x = x.clone().requires_grad_()
    return after_backward(module, x, checkpoint(module, x, use_reentrant=reentrant))


@tool(fuses=True)
def checkpointed_selectively(module, x):
    from torch.utils import checkpoint

    if not hasattr(checkpoint, "create_selective_checkpoint_contexts"):
        pytest.skip("torch has no selective checkpoints; 2.4 has")
    keep = [torch.ops.aten.convolution.default]
    contexts = lambda: checkpoint.create_selective_checkpoint_contexts(keep)  # noqa: E731
    x = x.clone().requires_grad_()
    return after_backward(
        module, x, checkpoint.checkpoint(module, x, use_reentrant=False, context_fn=contexts)
    )


@tool(fuses=True)
def scaled_gradients(module, x):
    if not hasattr(torch.amp, "GradScaler"):
        pytest.skip("torch's GradScaler is for CUDA alone; 2.3 has one for every device")
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(module(x).square().mean()).backward()
    scaler.step(optimizer)
    scaler.update()
    return {n: p.detach() for n, p in module.named_parameters()}


@tool(fuses=True)
def frozen(module, x):
    module.requires_grad_(False)
    return gradients(module, x)


@tool(fuses=True)
def only_inference(module, x):
    with torch.inference_mode():
        return {"y": module(x)}


@tool(fuses=True)
def deterministic(module, x):
    torch.use_deterministic_algorithms(True)
    try:
        return gradients(module, x)
    finally:
        torch.use_deterministic_algorithms(False)
