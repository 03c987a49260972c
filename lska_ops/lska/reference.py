"""LSKA in plain PyTorch: what every other backend has to agree with.

A convolution is handed over as a callable (an ``nn.Conv2d``, or ``F.conv2d`` with its arguments bound), so
that a module can also run its own submodules through these lines and have their hooks called.
"""


def gate(x, conv1, *stages):
    """``x * conv1(stages(x))``, the depthwise stages in their published order."""
    s = x
    for stage in stages:
        s = stage(s)
    return x * conv1(s)
