"""The edge: sockets, HTTP, storage, configuration. The only place where the parts meet."""

VERSION = "0.1.0"
"""Of this server, as pyproject.toml has it."""
