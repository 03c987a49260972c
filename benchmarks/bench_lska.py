"""LSKA against PyTorch: `python benchmarks/bench_lska.py [--quick]`."""

import suite

if __name__ == "__main__":
    suite.main("lska")
