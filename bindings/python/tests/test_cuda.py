"""Runs simulated_cuda.py in a process of its own: one that has loaded the simulation has GPUs, and other tests need one without."""

import os
import pathlib
import subprocess
import sys

import pytest

TESTS = pathlib.Path(__file__).with_name("simulated_cuda.py")
SIMULATED = pathlib.Path(
    os.environ.get("KVC_SIMULATED_CUDA") or TESTS.parents[3] / "build/developer/plugin/libkvc_cuda.so.0"
)


@pytest.mark.skipif(not SIMULATED.exists(), reason=f"there is no {SIMULATED}")
def test_simulated_gpus():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(TESTS)]
    environment = dict(os.environ, KVC_SIMULATED_CUDA=str(SIMULATED))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and " skipped" not in done.stdout, done.stdout + done.stderr
