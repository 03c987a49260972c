"""The operators' benchmarks on a CPU import this before torch: each thread then keeps a core of its own.

Without, two threads share a core now and then, and timings double. OpenMP reads the wish when torch is
loaded. Where that is too late it must not be made: the next library with an OpenMP of its own, scikit-learn
perhaps, would bind the thread that loads it, and with it every thread and process begun there, to one core.
Whole networks are measured as their users run them, not pinned.
"""

import os
import sys

if "torch" not in sys.modules:
    os.environ.setdefault("OMP_PROC_BIND", "true")
