"""The slave: one process per dispatch channel that runs jobs and reports their results."""

from __future__ import annotations
