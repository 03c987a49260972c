"""Every tensor of a Triton kernel between pages that may not be touched: a step outside is a crash, not luck."""

import ctypes
import itertools
import mmap

import torch

PAGE = mmap.PAGESIZE
READ_WRITE, NOTHING, PRIVATE_ANONYMOUS = 3, 0, 0x22
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class Guarded:
    """A copy of a tensor without gaps that ends where a forbidden page begins, or begins where one ends."""

    def __init__(self, t, at_end):
        last = t.dim() == 4 and t.is_contiguous(memory_format=torch.channels_last)
        assert t.is_contiguous() or last, "a kernel was given a tensor with gaps"
        self.given, nbytes = t, t.numel() * t.element_size()
        inside = max(-(-nbytes // PAGE), 1) * PAGE
        self.size = inside + 2 * PAGE
        self.base = _libc.mmap(None, self.size, NOTHING, PRIVATE_ANONYMOUS, -1, 0)
        assert self.base not in (None, ctypes.c_void_p(-1).value), "no memory"
        assert _libc.mprotect(self.base + PAGE, inside, READ_WRITE) == 0
        memory = (ctypes.c_char * inside).from_address(self.base + PAGE)
        flat = torch.frombuffer(memory, dtype=torch.uint8)
        flat.fill_(255)  # NaN in every floating dtype
        at = inside - nbytes if at_end else 0
        self.tensor = flat[at : at + nbytes].view(t.dtype).as_strided(t.shape, t.stride()) if nbytes else t
        self.tensor.copy_(t)

    def give_back(self):
        self.given.data.copy_(self.tensor)  # no change that autograd would count
        _libc.munmap(self.base, self.size)


def guarding(launch):
    """`_triton.launch` whose kernels see guarded copies; the side that is guarded closely alternates."""
    count = itertools.count()

    def guarded(kernel, programs, *arguments, **options):
        at_end, copies = next(count) % 2 == 0, {}

        def copy(t):
            key = (t.data_ptr(), t.numel(), t.dtype) if t.numel() else id(t)
            return copies.setdefault(key, Guarded(t, at_end)).tensor

        launch(kernel, programs, *(copy(a) if torch.is_tensor(a) else a for a in arguments), **options)
        for c in copies.values():
            c.give_back()

    return guarded
