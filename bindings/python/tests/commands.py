"""Runs the programs of examples/python, as users do."""

import os
import pathlib
import subprocess
import sys

import kvc

PACKAGES = os.path.dirname(os.path.dirname(os.path.abspath(kvc.__file__)))
FOLDER = pathlib.Path(__file__).resolve().parents[3] / "examples" / "python"


def run(program, *arguments, **environment):
    """The program must never print a traceback."""
    result = subprocess.run(
        [sys.executable, str(FOLDER / program), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": PACKAGES, "PYTHONDONTWRITEBYTECODE": "1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "Traceback" not in result.stderr, result.stderr
    return result


def refused(program, *arguments, code=1, **environment):
    """The message of a run that must fail."""
    result = run(program, *arguments, **environment)
    assert result.returncode == code, result
    message = result.stderr.strip().splitlines()[-1]
    assert message.startswith(f"{program}: error: ")
    return message
