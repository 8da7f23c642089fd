"""The only code that talks to Redis: keys, connections, moves and inspection."""

from __future__ import annotations
