"""LSKA against PyTorch: `python benchmarks/bench_lska.py [--quick]`."""

import pinned  # noqa: F401
import suite

if __name__ == "__main__":
    suite.main("lska")
