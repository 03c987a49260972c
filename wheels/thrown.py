"""Runs in an environment with torch: what Python hears when the op of throws.cpp throws.

python thrown.py LIBRARY: one line of JSON.
"""

import json
import sys

import torch

torch.set_num_threads(2)  # so that a thread of torch's throws, too
torch.ops.load_library(sys.argv[1])
answers = {}
for what in ("sentence", "number", "memory", "nothing"):
    try:
        answers[what] = torch.ops.lska_ops_throws.throws(what)
    except Exception as error:
        answers[what] = f"{type(error).__name__}: {error}".partition("\n")[0]
print(json.dumps(answers))
