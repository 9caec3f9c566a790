"""Limits of this process that an instance could not live with: told before it starts, by name."""

from __future__ import annotations

import resource

# Each program takes some 15 descriptors of the keeper, each replica 10; poll() of all children 135.
FILES_LEAST = 512


def problem(files: int, file_size: int, memory: int) -> str | None:
    """What is wrong with these hard limits, for a person. RLIM_INFINITY = none.

    `file_size` and `memory` are soft limits, in bytes: nothing raises them later.
    """
    infinite = resource.RLIM_INFINITY
    if files != infinite and files < FILES_LEAST:
        return (
            f"the hard limit of open files is {files} (ulimit -Hn), "
            f"an instance needs at least {FILES_LEAST}"
        )
    if file_size != infinite:
        return (
            f"files may have at most {file_size} bytes (ulimit -f), and shared memory counts as "
            "files; an instance needs ulimit -f unlimited"
        )
    if memory != infinite:
        return (
            f"a process may map at most {memory} bytes (ulimit -v); buffers are mapped where they "
            "could grow to, so an instance needs ulimit -v unlimited"
        )
    return None


def of_this_process() -> str | None:
    return problem(
        resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        resource.getrlimit(resource.RLIMIT_FSIZE)[0],
        resource.getrlimit(resource.RLIMIT_AS)[0],
    )
