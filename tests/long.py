"""How long tests run that repeat something or draw at random.

NEATSOCK_LONG=N: N times as long as usual, every crash point instead of a sample, and the tests that
are left out otherwise because they take minutes. With 10 there are 20 rounds of scaling and 400
take-overs, with 30 neatd is stopped for a minute and a program is hostile for two.
"""

from __future__ import annotations

import os

LONG = bool(os.environ.get("NEATSOCK_LONG"))
TIMES = max(1, int(os.environ.get("NEATSOCK_LONG") or 1))
