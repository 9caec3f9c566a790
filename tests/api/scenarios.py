"""Scenarios of the socket API. Each prints what it saw; kernel and neatsock must print the same.

Run by test_api.py: `python scenarios.py SUBJECT NAME`, SUBJECT being a file scenarios_SUBJECT.py.
Nothing in those knows of neatsock. No ports, no times, no descriptor numbers are printed: they may
differ.
"""

from __future__ import annotations

import importlib
import signal
import sys
from pathlib import Path


def main(subject: str, name: str) -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    importlib.import_module(f"tests.api.scenarios_{subject}")
    signal.alarm(40)
    importlib.import_module("tests.api.tools").SCENARIOS[name]()


if __name__ == "__main__":
    main(*sys.argv[1:])
