"""ACmix in plain PyTorch: what every other backend has to agree with.

Like the published module it materialises the window: K*K copies of k and of v. The convolutions are handed
over as callables (an ``nn.Conv2d``, or ``F.conv2d`` with its arguments bound), so that a module can also run
its own submodules through these lines and have their hooks called.
"""

import torch
import torch.nn.functional as F


def coordinates(H, W, dtype, device):
    """``[1, 2, H, W]``: x, then y, each from -1 to 1 over the map; a side of one pixel stands at -1."""
    x = torch.arange(W, device=device).to(dtype) * 2 / _at_least_one(W - 1) - 1
    y = torch.arange(H, device=device).to(dtype) * 2 / _at_least_one(H - 1) - 1
    return torch.stack([x.expand(H, W), y[:, None].expand(H, W)])[None]


def _at_least_one(n):
    """max(n, 1); a tracer's n is a tensor, and the trace must not freeze which of the two it was."""
    return n + (n == 0) if isinstance(n, torch.Tensor) else max(n, 1)


def reflect_pad(x, reach):
    """Reflection padding by ``reach`` on all sides; it goes on reflecting where the map is smaller."""
    H, W = x.shape[-2:]
    # An exported graph has to serve maps of all sizes (is_exporting() does not tell, see _watchers.py); torch
    # 2.3 cannot reflect fp16 on a CPU; no GPU has a deterministic gradient of the reflection.
    exporting = torch.jit.is_tracing() or getattr(torch.compiler, "_is_exporting_flag", False)
    on_cpu = x.device.type == "cpu"
    by_index = x.dtype == torch.float16 if on_cpu else torch.are_deterministic_algorithms_enabled()
    if not exporting and not by_index and min(H, W) > reach:
        return F.pad(x, (reach, reach, reach, reach), mode="reflect")
    rows, columns = (_reflected(n, reach, x.device) for n in (H, W))
    return x.index_select(-2, rows).index_select(-1, columns)


def _reflected(n, reach, device):
    # Not with abs(): OpenVINO folds that of a constant integer to the integer itself.
    there_and_back = 2 * (n - 1)
    i = torch.arange(-reach, n + reach, device=device) % _at_least_one(there_and_back)
    return torch.minimum(i, there_and_back - i)


def windows(x, kernel_att, stride, dilation):
    """The reflected window of every stride-th pixel: ``[N, D, H, W]`` to ``[N, D, K*K, H_out, W_out]``."""
    N, D, H, W = x.shape
    padded = reflect_pad(x, (kernel_att // 2) * dilation)
    columns = F.unfold(padded, kernel_att, dilation=dilation, stride=stride)
    return columns.view(N, D, kernel_att * kernel_att, -(-H // stride), -(-W // stride))


def position_offsets(conv_p, H, W, window, dtype, device):
    """``p_i - p_j`` over the window, ``[1, D, K*K, H_out, W_out]``; only fp32 and wider resolve it."""
    p = conv_p(coordinates(H, W, torch.promote_types(dtype, torch.float32), device))
    stride = window[1]
    return (p[:, :, None, ::stride, ::stride] - windows(p, *window)).to(dtype)


def attention(q, k, v, conv_p, *, head, kernel_att, stride, dilation):
    """Softmax over the K*K window of ``D^-1/2 q_i . (k_j + p_i - p_j)``, head by head, as weights of v.

    conv_p: callable that maps the coordinates ``[1, 2, H, W]`` to p ``[1, D, H, W]``; None leaves p out.
    """
    B, C, H, W = q.shape
    D, window = int(C) // head, (kernel_att, stride, dilation)  # int: a tracer's C would make D**-0.5 float32
    q, k, v = (t.reshape(B * head, D, H, W) for t in (q, k, v))
    q, keys = q[:, :, None, ::stride, ::stride] * D**-0.5, windows(k, *window)
    if conv_p is not None:
        keys = keys + position_offsets(conv_p, H, W, window, q.dtype, q.device)
    weights = (q * keys).sum(1).softmax(1)
    out = (weights[:, None] * windows(v, *window)).sum(2)
    return out.reshape(B, C, *out.shape[-2:])


def shift_aggregate(q, k, v, fc, dep_conv, *, head):
    """fc mixes the 3G maps of each of the D dims into K_c*K_c; dep_conv shifts and sums them, dim by dim."""
    B, C, H, W = q.shape
    D = C // head
    maps = torch.cat([t.reshape(B, head, D, H * W) for t in (q, k, v)], 1)
    mixed = fc(maps).transpose(1, 2)
    return dep_conv(mixed.reshape(B, D * mixed.shape[2], H, W))


def acmix(x, conv1, conv2, conv3, conv_p, fc, dep_conv, rate1, rate2, *, head, kernel_att, stride, dilation):
    q, k, v = conv1(x), conv2(x), conv3(x)
    attended = attention(q, k, v, conv_p, head=head, kernel_att=kernel_att, stride=stride, dilation=dilation)
    return rate1 * attended + rate2 * shift_aggregate(q, k, v, fc, dep_conv, head=head)
