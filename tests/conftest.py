"""Fixtures for every test."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

pytest_plugins = ["redis_server", "cluster"]

# Two cores, several workers: hypothesis' own deadline would measure the neighbours. pytest-timeout bounds a test.
settings.register_profile("jobschedd", deadline=None)
settings.load_profile("jobschedd")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the machine or of the developer reaches a test."""
    for variable in list(os.environ):
        if variable.startswith("JOBSCHED_") or variable in (
            "STATE_DIRECTORY",
            "RUNTIME_DIRECTORY",
            "NOTIFY_SOCKET",
            "XDG_CONFIG_HOME",
            "XDG_STATE_HOME",
        ):
            monkeypatch.delenv(variable)
