"""neatd: ports, attach, listen, status. Never in the data path (see docs/architecture.md)."""
