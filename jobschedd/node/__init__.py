"""Process supervision on one machine. Knows nothing of jobs, configuration or Redis."""

from __future__ import annotations
