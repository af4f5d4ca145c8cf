"""Which RepSync this is. `pyproject.toml` and the changelog say the same."""

from __future__ import annotations

VERSION = "0.1.0"
