"""Command lines: jobschedd (the daemon) and jobsched (the client). Thin: they parse, call and print."""

from __future__ import annotations
