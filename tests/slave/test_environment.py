"""What a job finds in its environment."""

from __future__ import annotations

import os
import pwd

import pytest

from jobschedd.job import Order, Spec
from jobschedd.slave import environment
from jobschedd.slave.environment import PATH, job_environment, node_environment
from jobschedd.slave.settings import ExecutionSettings

NAMES = {"PATH", "HOME", "USER", "LOGNAME", "LANG"}


def order(job: str = "17", **env: str) -> Order:
    return Order(job, 3, "1-0", Spec(command=("true",), env=env))


def settings(**env: str) -> ExecutionSettings:
    return ExecutionSettings(node="web-07", channel="gpu", workdir="/", env=env)


def test_it_is_built_from_nothing(monkeypatch):
    monkeypatch.setenv("SECRET", "x")
    monkeypatch.setenv("PATH", "/weird")
    found = job_environment(order(), settings())
    assert set(found) == NAMES | {
        "JOBSCHED_JOB_ID",
        "JOBSCHED_ATTEMPT",
        "JOBSCHED_CHANNEL",
        "JOBSCHED_NODE",
    }
    assert found["PATH"] == PATH
    account = pwd.getpwuid(os.geteuid())
    assert (found["HOME"], found["USER"], found["LOGNAME"]) == (account.pw_dir, account.pw_name, account.pw_name)


def test_who_it_is():
    found = job_environment(order("17_4"), settings())
    assert {name: value for name, value in found.items() if name.startswith("JOBSCHED_")} == {
        "JOBSCHED_JOB_ID": "17_4",
        "JOBSCHED_ATTEMPT": "3",
        "JOBSCHED_CHANNEL": "gpu",
        "JOBSCHED_NODE": "web-07",
        "JOBSCHED_ARRAY_ID": "17",
        "JOBSCHED_ARRAY_INDEX": "4",
    }


def test_the_job_wins_over_the_node_and_the_node_over_us():
    found = job_environment(order(A="job", PATH="/job"), settings(A="node", B="node", LANG="de_DE.UTF-8"))
    assert (found["A"], found["B"], found["PATH"], found["LANG"]) == ("job", "node", "/job", "de_DE.UTF-8")


def test_nobody_can_claim_to_be_another_job():
    lies = {"JOBSCHED_JOB_ID": "1", "JOBSCHED_ATTEMPT": "9", "JOBSCHED_ARRAY_INDEX": "5", "JOBSCHED_NODE": "x"}
    assert job_environment(order(**lies), settings(**lies)) == job_environment(order(), settings())


def test_a_name_of_ours_that_the_node_set_stays_the_node_s():
    node = settings(JOBSCHED_SITE="berlin")
    found = job_environment(order(JOBSCHED_SITE="mine", JOBSCHED_PAYLOAD="17"), node)
    assert (found["JOBSCHED_SITE"], found["JOBSCHED_PAYLOAD"]) == ("berlin", "17")


def test_a_user_without_an_account(monkeypatch):
    def nobody(uid: int) -> pwd.struct_passwd:
        raise KeyError(uid)

    environment._account.cache_clear()
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    found = node_environment(settings())
    environment._account.cache_clear()
    assert (found["HOME"], found["USER"]) == ("/", str(os.geteuid()))


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_basic_name_has_a_value(name, monkeypatch):
    monkeypatch.delenv("LANG", raising=False)
    assert node_environment(settings())[name]
