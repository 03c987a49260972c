"""ACmix against PyTorch: `python benchmarks/bench_acmix.py [--quick]`."""

import pinned  # noqa: F401
import suite

if __name__ == "__main__":
    suite.main("acmix")
