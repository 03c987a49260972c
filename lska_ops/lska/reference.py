"""LSKA in plain PyTorch: what every other backend has to agree with.

A convolution is handed over as a callable (an ``nn.Conv2d``, or ``F.conv2d`` with its arguments bound), so
that a module can also run its own submodules through these lines and have their hooks called.
"""


def cascade(x, conv0h, conv0v, conv_spatial_h=None, conv_spatial_v=None):
    """The depthwise stages in the published order; LSKA-trivial has no dilated pair."""
    s = conv0v(conv0h(x))
    if conv_spatial_h is not None:
        s = conv_spatial_v(conv_spatial_h(s))
    return s


def lska(x, conv0h, conv0v, conv_spatial_h, conv_spatial_v, conv1):
    return x * conv1(cascade(x, conv0h, conv0v, conv_spatial_h, conv_spatial_v))
