"""Stages of a long run: each has its own time limit, and its result is in a JSON file as soon as it ends."""

import json
import os
import signal
import subprocess
import threading
import time
from collections import deque

TAIL = 40  # last lines of a stage's output that are kept


class Failed(Exception):
    """A stage's result is that it failed; the message says why in one line, `result` what there is of it."""

    def __init__(self, why, **result):
        super().__init__(why)
        self.result = result


class Stages:
    """Runs one stage after the other; `data` is what the file holds."""

    def __init__(self, file, total, clock=time.monotonic, say_limits=True):
        self.file, self.total, self.clock, self.begun = file, total, clock, clock()
        self.say_limits = say_limits
        self.data = {"stages": {}}

    def left(self):
        return self.total - (self.clock() - self.begun)

    def write(self):
        if self.file is None:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        partial = self.file.with_name(self.file.name + ".partial")
        partial.write_text(json.dumps(self.data, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, self.file)  # whoever is killed while writing leaves the old one

    def run(self, name, limit, work, *, optional=False):
        """The result of `work(seconds)`, a dict, or None where it failed or nothing of the time was left."""
        seconds = min(limit, self.left())
        if self.say_limits:
            print(f"\n== {name} ({max(0, seconds):.0f} s at most)", flush=True)
        if seconds <= 0:
            return self._record(name, "not run: out of time", 0, {}, optional)
        self.data["stages"][name] = {"status": "running"}
        self.write()
        start, status, result = self.clock(), "ok", {}
        try:
            result = work(seconds)
        except Failed as error:
            status, result = f"failed: {error}", error.result
        except Exception as error:  # one stage must not take what the others found with it
            status = f"failed: {type(error).__name__}: {error}"
        return self._record(name, status, self.clock() - start, result, optional)

    def _record(self, name, status, seconds, result, optional):
        status = result.pop("status", status) if status == "ok" else status
        self.data["stages"][name] = {
            "status": status, "seconds": round(seconds, 1), "optional": optional, **result,
        }  # fmt: skip
        self.write()
        print(f"== {name}: {status} ({seconds:.1f} s)", flush=True)
        return result if status == "ok" else None

    def problems(self):
        """The stages that have to be ok and are not."""
        return [
            f"{name}: {stage['status']}"
            for name, stage in self.data["stages"].items()
            if stage["status"] != "ok"
            and not (stage["optional"] and not stage["status"].startswith("failed"))
        ]


def call(command, seconds, *, env=None, cwd=None, say=True):
    """(exit status, output); the status is None where it took longer, and then all of it was ended."""
    env = {**(env or os.environ), "PYTHONUNBUFFERED": "1"}  # a process that is ended has said what it did
    process = subprocess.Popen(
        [str(word) for word in command], env=env, cwd=cwd, text=True, errors="replace",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    lines = []

    def listen():
        for line in process.stdout:
            lines.append(line)
            if say:
                print(line, end="", flush=True)

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        pass
    finally:  # also where we are told to stop
        code = process.poll()
        if code is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    listener.join(timeout=5)
    return code, "".join(lines)


def tail(text):
    return list(deque(text.splitlines(), maxlen=TAIL))
