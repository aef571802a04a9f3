"""Runs simulated_cuda.py in a process of its own: one that has loaded the simulation has GPUs, and other tests need one without."""

import pathlib
import subprocess
import sys


def test_simulated_gpus():
    tests = pathlib.Path(__file__).with_name("simulated_cuda.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
