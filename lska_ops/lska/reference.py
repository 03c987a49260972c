"""LSKA in plain PyTorch: what every other backend has to agree with.

A convolution is handed over as a callable (an ``nn.Conv2d``, or ``F.conv2d`` with its arguments bound), so
that a module can also run its own submodules through these lines and have their hooks called.
"""


def cascade(x, *stages):
    """The depthwise stages, in their published order: conv0h, conv0v, conv_spatial_h, conv_spatial_v."""
    for stage in stages:
        x = stage(x)
    return x


def gate(x, conv1, *stages):
    return x * conv1(cascade(x, *stages))
