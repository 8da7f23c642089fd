from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from node_harness import STRANGERS, Node, alive, descendants, wait_until

_PR_SET_CHILD_SUBREAPER = 36


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """A node not yet started. Whatever is left of it at the end is a failure (and killed)."""
    libc = ctypes.CDLL(None)
    STRANGERS.clear()
    STRANGERS.update(each.pid for each in descendants())
    assert libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    node = Node(tmp_path)
    try:
        yield node
    finally:
        if node.process is not None and node.process.poll() is None:
            node.process.kill()
            node.process.wait()
        left = descendants()
        # The node's children notice its death by themselves; five seconds is what is promised.
        with contextlib.suppress(AssertionError):
            wait_until(lambda: not any(map(alive, left)), 5)
        survivors = descendants()
        described = [_describe(each) for each in survivors]
        for each in survivors:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        for each in {*left, *survivors}:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(each.pid, 0)
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
        assert not described, f"left behind: {described}\n{node.text()}"


def _describe(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.NoSuchProcess):
        return f"{process.pid} {process.cmdline()}"
    return f"{process.pid} (gone)"
