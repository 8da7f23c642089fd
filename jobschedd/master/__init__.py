"""The master: dispatcher, placement, recovery, collector and history."""

from __future__ import annotations
