"""Fixtures for what runs jobs."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobschedd.slave import process
from jobschedd.slave.processtree import PR_SET_CHILD_SUBREAPER, Household, become_subreaper, children_of
from station import STRANGERS, Station


@pytest.fixture(autouse=True)
def _strangers() -> None:
    STRANGERS.clear()
    STRANGERS.update(children_of(os.getpid()))


@pytest.fixture
def station(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Station]:
    """A household of its own: the processes of other tests in this process are none of its business."""
    household = Household()
    monkeypatch.setattr(process, "household", household)
    become_subreaper()
    station = Station(tmp_path, household)
    yield station
    station.loop.close()
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
