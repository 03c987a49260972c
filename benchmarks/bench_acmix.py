"""ACmix against PyTorch: `python benchmarks/bench_acmix.py [--quick]`."""

import suite

if __name__ == "__main__":
    suite.main("acmix")
