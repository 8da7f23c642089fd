"""The means by which other tests find what is left of a cluster."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cluster import Cluster
from redis_server import wait_until


@pytest.fixture
def bare() -> Cluster:
    cluster = Cluster("unix:///nowhere")
    yield cluster
    cluster.close()


class TestLeftovers:
    def test_nothing_at_first(self, bare):
        assert bare.processes() == []

    def test_a_process_with_the_token_is_found_and_ended(self, bare):
        process = subprocess.Popen(["sleep", "60"], env=bare.environment())
        wait_until(lambda: [found.pid for found in bare.processes()] == [process.pid], 5, "it is found")
        with pytest.raises(pytest.fail.Exception, match="sleep 60"):
            bare.assert_nothing_left(within=0.1)
        assert process.wait(5) == -9
        bare.assert_nothing_left()

    def test_a_job_with_the_node_s_token_is_found(self, bare):
        process = subprocess.Popen(["sleep", "60"], env={"TEST_TOKEN": bare.token})
        wait_until(bare.processes, 5, "it is found")
        process.kill()
        process.wait()

    def test_a_process_in_its_directory_is_found(self, bare):
        process = subprocess.Popen(["sleep", "60"], env={}, cwd=bare.directory)
        wait_until(bare.processes, 5, "it is found")
        process.kill()
        process.wait()

    def test_a_process_title_does_not_hide_it(self, bare):
        code = "import setproctitle, time; setproctitle.setproctitle('jobschedd: channel 1'); time.sleep(60)"
        process = subprocess.Popen([sys.executable, "-c", code], env=bare.environment())
        wait_until(lambda: "jobschedd" in " ".join(bare.processes()[0].cmdline()[:1]), 5, "the title is set")
        assert [found.pid for found in bare.processes()] == [process.pid]
        process.kill()
        process.wait()

    def test_a_zombie_is_not_left(self, bare):
        process = subprocess.Popen(["true"], env=bare.environment())
        wait_until(lambda: not bare.processes(), 5, "it has ended")
        process.wait()


def test_a_written_configuration_is_valid(bare):
    from jobschedd.config import load

    path = bare.configure(["master", "slave"], node="n1", channels=[{"name": "gpu", "slots": 2}])
    config = load(str(path))
    assert (config.node, config.slave.channels[0].slots, config.timing.lease) == ("n1", 2, 1.5)
    assert config.warnings == ()
