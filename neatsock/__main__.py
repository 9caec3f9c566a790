"""python -m neatsock [-m MODULE | SCRIPT] ARGS...: run Python on neatsock; or a sub-command."""

from __future__ import annotations

import os
import sys

from neatsock import cli
from neatsock.instance import InstanceError, StartOptions


def main(argv: list[str]) -> int:
    """Sub-command words win only if no file of that name exists."""
    if not argv or argv[0] in ("-h", "--help", "--version"):
        return cli.main(argv or ["--help"])
    if argv[0] in cli.COMMANDS and not os.path.exists(argv[0]):
        return cli.main(argv)
    options = [
        f"-X{key}" if value is True else f"-X{key}={value}" for key, value in sys._xoptions.items()
    ]
    command = [sys.executable, *(f"-W{w}" for w in sys.warnoptions), *options, *argv]
    try:
        cli.run(cli.default_name(), StartOptions(auto=True), command)
    except cli.Refusal as refusal:
        cli.say(str(refusal))
        return refusal.code
    except InstanceError as err:
        cli.say(str(err))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
