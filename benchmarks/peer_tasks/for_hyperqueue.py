"""HyperQueue: its package holds a server and workers, but not the program ``hq``; so all are in this one process.

``python -m peer_tasks.for_hyperqueue COUNT AT_A_TIME`` prints how many seconds the last of COUNT /bin/true took to end.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path

from hyperqueue import Job, LocalCluster
from hyperqueue.cluster import WorkerConfig


def main(count: int, at_a_time: int) -> None:
    """Its own wait looks once a second; so the last task, which waits for some before it, leaves a file behind."""
    with tempfile.TemporaryDirectory() as directory:
        last = Path(directory) / "ended"
        with LocalCluster(directory, WorkerConfig(cores=at_a_time)) as cluster:
            job = Job(default_workdir=directory)
            tasks = [job.program(["/bin/true"], stdout=None, stderr=None) for _ in range(count)]
            job.program(["/bin/touch", str(last)], stdout=None, stderr=None, deps=tasks[-at_a_time:])
            began = time.perf_counter()
            cluster.client().submit(job)
            while not last.exists():
                time.sleep(0.002)
            print(json.dumps(time.perf_counter() - began), flush=True)
        os._exit(0)  # its threads take their time to end


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
