"""python -m neatsock [-m MODULE | SCRIPT] ARGS...: run Python on neatsock; or a sub-command."""

from __future__ import annotations

import os
import sys

from neatsock import cli
from neatsock.instance import InstanceError, StartOptions

# Field of sys.flags -> the option that sets it, as often as its value says.
COUNTED = {
    "debug": "d",
    "interactive": "i",
    "optimize": "O",
    "dont_write_bytecode": "B",
    "no_site": "S",
    "verbose": "v",
    "bytes_warning": "b",
    "quiet": "q",
}
# Those that -I implies.
ISOLATING = {"ignore_environment": "E", "no_user_site": "s", "safe_path": "P"}


def interpreter_options() -> list[str]:
    """The options that make another interpreter behave as this one was told to."""
    flags = sys.flags
    out = [f"-{option * getattr(flags, field)}" for field, option in COUNTED.items()]
    if flags.isolated:
        out.append("-I")
    else:  # safe_path came with Python 3.11
        out += [f"-{option * getattr(flags, field, 0)}" for field, option in ISOLATING.items()]
    if getattr(sys.stdout, "write_through", False):
        out.append("-u")  # which has no field
    out += [f"-W{warning}" for warning in sys.warnoptions]
    for key, value in sys._xoptions.items():
        out.append(f"-X{key}" if value is True else f"-X{key}={value}")
    return [option for option in out if option != "-"]


def is_script(path: str) -> bool:
    """Python can run it: a file, or a directory with a __main__.py."""
    return os.path.isfile(path) or os.path.isfile(os.path.join(path, "__main__.py"))


def main(argv: list[str]) -> int:
    """Sub-command words win only if no script of that name exists."""
    if not argv or argv[0] in ("-h", "--help", "--version"):
        return cli.main(argv or ["--help"])
    if argv[0] in cli.COMMANDS and not is_script(argv[0]):
        return cli.main(argv)
    command = [sys.executable, *interpreter_options(), *argv]
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
