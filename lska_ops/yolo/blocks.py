"""Blocks built from ultralytics' own; the only file of the package that cannot be imported without it."""

import inspect

import torch
from ultralytics.nn.modules.block import SPPF

from .._calls import check_number
from ..lska import LSKA


class SPPF_LSKA(SPPF):
    """YOLO's SPPF whose concatenated maps pass through LSKA before the last 1x1 convolution.

    Args:
        c1: channels of the map.
        c2: channels of the result. In a model file both are filled in from the row before.
        k: side of the pooling window in pixels, odd.
        k_size: receptive field of the LSKA, in pixels.
        n: how often the map is pooled.
        shortcut: adds the map to the result, where c1 == c2.

    Raises:
        TypeError, ValueError: a channel count is no positive integer, k is not odd, or k_size does not split,
            see :class:`lska_ops.LSKA`; n or shortcut is given where ultralytics' SPPF, before 8.4, has none.
    """

    def __init__(self, c1, c2, k=5, k_size=11, n=3, shortcut=False):
        # SPPF halves c1 for its own convolutions.
        check_number("SPPF_LSKA", "c1", c1, at_least=2)
        check_number("SPPF_LSKA", "c2", c2)
        check_number("SPPF_LSKA", "k", k, odd=True)
        check_number("SPPF_LSKA", "n", n)
        more = {
            name: value
            for name, value, stock in (("n", n, 3), ("shortcut", shortcut, False))
            if value != stock
        }
        for name, value in more.items():
            if name not in inspect.signature(SPPF.__init__).parameters:
                raise ValueError(
                    f"SPPF_LSKA: {name} is {value}; expected the default, this ultralytics' SPPF has none"
                )
        super().__init__(c1, c2, k, **more)
        if not more:
            # Newer SPPFs have no activation behind the first convolution; in rows that give k alone, those of
            # all models before YOLO26, the parser puts it back, but knows only SPPF itself.
            self.cv1.act = self.cv2.act
        self.lska = LSKA(self.cv2.conv.in_channels, k_size)

    def forward(self, x):
        # SPPF's pooling count and shortcut came with 8.4; checkpoints and versions before have neither.
        maps = [self.cv1(x)]
        for _ in range(getattr(self, "n", 3)):
            maps.append(self.m(maps[-1]))
        y = self.cv2(self.lska(torch.cat(maps, 1)))
        return y + x if getattr(self, "add", False) else y
