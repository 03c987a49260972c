"""What is measured of one call: time in interleaved rounds, bytes saved for backward, peak memory."""

import ctypes
import gc
import random
import re
import statistics
import time
from pathlib import Path

import numpy as np
import torch

TURN = 0.01  # seconds; a call that takes longer has a turn of its own
FLUSH_BYTES = 256 << 20  # more than the L2 of any GPU we know
PEAK_RUNS = 5
QUEUE_CYCLES = 5_000_000  # about 3 ms, in which the CPU launches all of a call's kernels
GRAPH_CALLS = 10  # of a short run in one graph


def interleave(runs, rounds, seconds, turn, clock=time.perf_counter):
    """Lets every run have one turn a round, until both `rounds` rounds and `seconds` are over.

    What disturbs the machine for a while so disturbs all of them. The order changes from round to round, for
    nobody should always come after the one that leaves the caches worst.

    Returns:
        dict: ``{name: [seconds a call, one per round]}``.
    """
    samples, order, shuffle, start = (
        {name: [] for name in runs},
        list(runs),
        random.Random(0).shuffle,
        clock(),
    )
    done = 0
    while runs and (done < rounds or clock() - start < seconds):
        shuffle(order)
        for name in order:
            samples[name].append(turn(runs[name]))
        done += 1
    return samples


def cpu_turn(run, clock=time.perf_counter):
    """Seconds of one call. A short one is repeated for TURN; its first, on foreign caches, is left out."""
    times, start = [], clock()
    while not times or clock() - start < TURN:
        before = clock()
        run()
        times.append(clock() - before)
    return statistics.median(times[1:] or times)


def summary(samples):
    """Median, 20th and 80th percentile."""
    low, median, high = np.percentile(samples, (20, 50, 80))
    return float(median), float(low), float(high)


class CudaTurn:
    """Seconds the GPU works on one call; a cold one finds nothing in L2."""

    def __init__(self, cold=True):
        self.flush = torch.empty(FLUSH_BYTES if cold else 0, dtype=torch.int8, device="cuda")
        self.events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]

    def __call__(self, run):
        start, end = self.events
        self.flush.zero_()
        torch.cuda._sleep(
            QUEUE_CYCLES
        )  # otherwise short kernels wait for their launches, and those are timed
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000


def call_turn(run):
    """Seconds of one call on a GPU as the caller waits for it: launches, dispatch and all."""
    torch.cuda.synchronize()
    before = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - before


def graphed(run, calls=1):
    """`calls` times `run` as one CUDA graph's replay: between two of them the GPU waits for no launch.

    Its caches are warm: the inputs were just read.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            run()  # what it returns is given up, and the next call's takes its place
    return graph.replay


def saved_bytes(forward, parameters):
    """Bytes that autograd keeps from `forward` for backward, each storage once, parameters not counted."""
    own = {p.untyped_storage().data_ptr() for p in parameters}
    sizes, kept = {}, []

    def pack(t):
        storage = t.untyped_storage()
        kept.append(storage)  # alive until we have counted, so that no address comes twice
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return t.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        forward()
    return sum(sizes.values())


def peak_bytes(run, device, runs=PEAK_RUNS):
    """Largest extra memory while `run` runs, its results included; None where it cannot be measured.

    On a CPU it is the high-water mark of the resident set: unlike PyTorch's own memory events it also sees
    what libraries and compiled code allocate behind its back (oneDNN's scratchpads and reordered maps). Heap
    that is free but still resident would hide what comes next, so it is given back before; writing 5 to
    clear_refs resets the mark. Pages and per-thread counters make it good to some 100 KB, what the allocator
    keeps of freed heap within a run to some MB: hence the median of several runs.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        return None
    peaks = []
    for _ in range(runs):
        ctypes.CDLL(None).malloc_trim(0)
        reset.write_text("5", encoding="utf-8")
        before = _resident("VmRSS")
        run()
        peaks.append(max(0, _resident("VmHWM") - before))
    return int(statistics.median(peaks))


def _resident(field):
    return (
        int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))[1])
        * 1024
    )
