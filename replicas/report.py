"""What neatd tells a person: lines in the instance's log, which is fd 2."""

from __future__ import annotations

import contextlib
import os
import time


def log(text: str) -> None:
    """One line. A full disk costs the line and stops nothing, so nothing is raised."""
    line = f"{time.strftime('%F %T')} neatd: {text}\n"
    # Not sys.stderr, which would keep what could not be written and raise again at the next line.
    with contextlib.suppress(OSError):
        os.write(2, line.encode("utf-8", "backslashreplace"))
