"""jobschedd: a job scheduler for a fleet that has Redis and nothing else."""

from __future__ import annotations

__version__ = "0.1.0"
