"""Kernel sockets and neatsock on the same work, alternating in one run."""
