"""From register() to an export in a process that has no network at all."""

import os
import shutil
import subprocess
import sys

import pytest
from test_training import write

from lska_ops.yolo.digits import write_digits

JOB = """
import os, socket, sys
assert [name for _, name in socket.if_nameindex()] == ["lo"]
import lska_ops, torch
lska_ops.register()
from ultralytics import YOLO
plain, model, data = sys.argv[1:]
torch.save({"model": YOLO(plain).model, "train_args": {}, "epoch": -1, "ema": None}, "plain.pt")
model = YOLO(model).load("plain.pt")
options = dict(device="cpu", workers=0, imgsz=64, batch=2, plots=False, project=os.getcwd())
model.train(data=data, epochs=1, amp=False, **options)
model.val(data=data, **options)
model.predict(os.path.join(os.path.dirname(data), "dataset", "val", "images"), imgsz=64, save=True,
              project=os.getcwd(), name="shown")
print("exported", os.path.getsize(model.export(format="torchscript", imgsz=64)))
"""


@pytest.fixture
def without_network():
    """What a command begins with to run in a network namespace of its own, which has no way out."""
    words = ["unshare", "--map-root-user", "--net"]
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not installed; install util-linux")
    tried = subprocess.run([*words, "true"], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"this system makes no network namespace ({tried.stderr.strip()}); allow user namespaces")
    return words


@pytest.mark.versions
@pytest.mark.parametrize("module", ["LSKA", "ACmix"])
def test_offline_from_register_to_export(tmp_path, without_network, module):
    data = write_digits(tmp_path / "digits", train=4, val=2)
    env = {name: value for name, value in os.environ.items() if name != "YOLO_OFFLINE"}  # it has to find out
    env["YOLO_CONFIG_DIR"] = str(tmp_path)
    command = [*without_network, sys.executable, "-c", JOB, write(tmp_path), write(tmp_path, module), data]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"2 {module} layers start as identity" in done.stdout
    assert list(tmp_path.glob("train*/weights/best.pt")) and list(tmp_path.glob("shown/*.jpg"))
    assert int(done.stdout.rpartition("exported ")[2]) > 0
