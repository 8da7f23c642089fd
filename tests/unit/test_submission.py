"""From what a user wrote to a checked job: each field good, bad and at its limits; nothing but InvalidJob."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobschedd.durations import LONGEST
from jobschedd.errors import InvalidJob
from jobschedd.job import Flag, Overlap, Target, decode_spec
from jobschedd.submission import (
    _FIELDS,
    _TIMES,
    LARGEST_ARGV,
    LONGEST_ARGUMENT,
    MOST_LABELS,
    point_in_time,
    submission,
)

ARGUMENT = "x" * LONGEST_ARGUMENT


def spec_of(**item):
    return decode_spec(submission({"command": ["true"]} | item).spec)


def refused(field=None, base=None, **item):
    with pytest.raises(InvalidJob) as error:
        submission((base if base is not None else {"command": ["true"]}) | item)
    if field is not None:
        assert error.value.field == field
    assert len(str(error.value)) < 1000, "a message that no terminal holds"
    return str(error.value)


class TestWhatRuns:
    def test_a_command(self):
        assert spec_of(command=["echo", "hi", ""]).command == ("echo", "hi", "")

    def test_a_line_of_shell(self):
        assert decode_spec(submission({"shell": "echo $HOME; true"}).spec).shell == "echo $HOME; true"

    def test_a_function_with_arguments(self):
        spec = decode_spec(submission({"function": "a.b:C.d", "args": (1, [None]), "kwargs": {"k": "ä"}}).spec)
        assert (spec.function, spec.args, spec.kwargs) == ("a.b:C.d", b"[1,[null]]", '{"k":"ä"}'.encode())

    def test_none_means_not_given(self):
        assert spec_of(cwd=None, timeout=None, shell=None) == spec_of()

    @pytest.mark.parametrize(
        ("item", "field"),
        [
            ({}, "command"),
            ({"command": ["true"], "shell": "true"}, "shell"),
            ({"command": ["true"], "function": "a:b"}, "function"),
            ({"command": ["true"], "args": [1]}, "args"),
            ({"shell": "true", "kwargs": {"a": 1}}, "kwargs"),
            ({"function": "a:b", "stdin": "x"}, "stdin"),
            ({"command": ["true"], "colour": "red"}, "colour"),
            ({"command": ["true"], 7: "x", "colour": "red"}, "7"),
        ],
    )
    def test_one_thing_runs(self, item, field):
        refused(field, base=item)

    @pytest.mark.parametrize("item", [None, [], ["true"], "true", 7], ids=repr)
    def test_a_job_is_an_object(self, item):
        with pytest.raises(InvalidJob) as error:
            submission(item)
        assert error.value.field == "job"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("command", []),
        ("command", [""]),
        ("command", "echo hi"),
        ("command", b"echo"),
        ("command", {"echo": 1}),
        ("command", ["echo", 1]),
        ("command", ["echo", None]),
        ("command", ["a\0b"]),
        ("command", ["\ud800"]),
        ("command", ["true", ARGUMENT + "x"]),
        ("command", ["true"] + 25 * [ARGUMENT]),
        ("command", ["true"] + LARGEST_ARGV // 9 * ["x"]),
        ("name", 7),
        ("name", "x" * 201),
        ("name", "a\0"),
        ("channel", ""),
        ("channel", "a/b/c"),
        ("channel", "/a"),
        ("channel", "../x"),
        ("channel", "a b"),
        ("channel", "a\n"),
        ("channel", "{x}"),
        ("channel", "*"),
        ("channel", "ｇpu"),
        ("channel", "x" * 65),
        ("channel", "x" * 3_000_000),
        ("channel", True),
        ("channel", -1),
        ("channel", 10**5000),
        ("node", ""),
        ("node", ".hidden"),
        ("node", "a/b"),
        ("node", 7),
        ("labels", 7),
        ("labels", ["a+b"]),
        ("labels", [["a"]]),
        ("labels", [str(number) for number in range(MOST_LABELS + 1)]),
        ("priority", 101),
        ("priority", -101),
        ("priority", 1.0),
        ("priority", "5"),
        ("priority", True),
        ("priority", 10**5000),
        ("retries", -1),
        ("retries", 251),
        ("retry_delay", -1),
        ("retry_delay", "soon"),
        ("retry_max_delay", math.nan),
        ("retry_on", "exit"),
        ("retry_on", ["no_such_cause"]),
        ("retry_on", [["exit"]]),
        ("retry_on", 7),
        ("timeout", -1),
        ("timeout", math.inf),
        ("timeout", 10**400),
        ("timeout", []),
        ("timeout", True),
        ("lost_after", "1h30m"),
        ("overlap", "maybe"),
        ("overlap", []),
        ("retry_on_loss", 1),
        ("retry_on_loss", "yes"),
        ("max_crashes", 0),
        ("max_crashes", 251),
        ("env", ["A=1"]),
        ("env", {"A": 1}),
        ("env", {"A": "\0"}),
        ("env", {"A": "\udcff"}),
        ("env", {"1A": "x"}),
        ("env", {"A=B": "x"}),
        ("env", {"": "x"}),
        ("env", {7: "x"}),
        ("env", {"JOBSCHED_JOB_ID": "7"}),
        ("env", {"A": ARGUMENT[:-1]}),
        ("cwd", "relative"),
        ("cwd", ""),
        ("cwd", "/a\0"),
        ("cwd", "/" + "x" * 4096),
        ("stdin", 7),
        ("stdin", "\ud800"),
        ("submitter", "x" * 201),
        ("key", 7),
        ("key", "x" * 201),
        ("follow", "yes"),
        ("delay", "later"),
        ("delay", -1),
        ("delay", 10**400),
        ("expires", math.nan),
        ("at", "tomorrow"),
        ("at", math.nan),
        ("at", math.inf),
        ("at", 1e300),
        ("at", 10**5000),
        ("at", []),
        ("at", True),
        ("at", datetime.min),
    ],
    ids=lambda value: str(value)[:20] if not isinstance(value, int) else "number",
)
def test_a_bad_value_is_refused_and_its_field_named(field, value):
    message = refused(**{field: value})
    assert message.startswith(field)


@pytest.mark.parametrize("field", ["shell", "function"])
@pytest.mark.parametrize("value", ["\0", "\ud800", 7, ARGUMENT + "x"], ids=["NUL", "surrogate", "number", "too long"])
def test_a_bad_line_or_function_is_refused(field, value):
    refused(field, base={field: value})


@pytest.mark.parametrize("value", ["f", "a.b", ":f", "a:", "a b:c", "a:b()", "a:b;c", "../a:b", "1a:b"])
def test_no_function(value):
    refused("function", base={"function": value})


@pytest.mark.parametrize(
    "item",
    [
        {"args": {"a": 1}},
        {"args": "ab"},
        {"args": [object()]},
        {"args": ["\ud800"]},
        {"args": [math.nan]},
        {"args": [[{"deep": -math.inf}]]},
        {"kwargs": [1]},
        {"kwargs": {"x": math.inf}},
        {"kwargs": {("a", "b"): 1}},
    ],
    ids=range(9),
)
def test_arguments_that_are_no_json(item):
    refused(next(iter(item)), base={"function": "a:b"}, **item)


def test_arguments_that_hold_themselves():
    loop: list = []
    loop.append(loop)
    refused("args", base={"function": "a:b"}, args=loop)


def test_null_beside_numbers_is_fine():
    assert decode_spec(submission({"function": "a:b", "args": [None, 1.5]}).spec).args == b"[null,1.5]"


@pytest.mark.parametrize(
    ("field", "value", "kept"),
    [
        ("priority", 100, 100),
        ("priority", -100, -100),
        ("retries", 250, 250),
        ("max_crashes", 1, 1),
        ("timeout", "90", 90.0),
        ("timeout", "1m", 60.0),
        ("timeout", LONGEST, LONGEST),
        ("retry_delay", 0, 0.0),
        ("lost_after", "1d", 86400.0),
        ("overlap", "forbid", Overlap.FORBID),
        ("retry_on", ["exit", "timeout"], ("exit", "timeout")),
        ("retry_on", [], ()),
        ("labels", "gpu", ("gpu",)),
        ("labels", ["b", "a", "b"], ("a", "b")),
        ("env", {"A": "", "_b1": "x=y"}, {"A": "", "_b1": "x=y"}),
        ("env", {"A": ARGUMENT[:-2]}, {"A": ARGUMENT[:-2]}),
        ("command", ["true", ARGUMENT], ("true", ARGUMENT)),
        ("cwd", "/", "/"),
        ("stdin", "ä", "ä".encode()),
        ("stdin", b"\0\xff", b"\0\xff"),
        ("name", "x" * 200, "x" * 200),
        ("channel", 7, "7"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_good_value_is_kept(field, value, kept):
    assert getattr(spec_of(**{field: value}), field) == kept


def test_the_limits_of_the_system_are_ours(tmp_path):
    """Exactly what passes here can be started; one byte more is E2BIG."""
    import subprocess

    subprocess.run(["/bin/true", ARGUMENT], env={"A": ARGUMENT[:-2]}, check=True)
    with pytest.raises(OSError):
        subprocess.run(["/bin/true", ARGUMENT + "x"], check=False)
    with pytest.raises(OSError):
        subprocess.run(["/bin/true"], env={"A": ARGUMENT[:-1]}, check=False)
    most = (LARGEST_ARGV - 5 - 8) // 10
    assert spec_of(command=["true"] + most * ["x"]).command is not None
    subprocess.run(["/bin/true"] + most * ["x"], env={}, check=True)


class TestPayload:
    def test_the_packed_job_has_a_limit(self):
        submission({"command": ["true"], "stdin": "x" * 900}, max_payload=1000)
        with pytest.raises(InvalidJob) as error:
            submission({"command": ["true"], "stdin": "x" * 1000}, max_payload=1000)
        assert error.value.field == "job"


class TestTarget:
    def test_anywhere(self):
        assert submission({"command": ["true"]}).target == Target()

    def test_a_channel_of_a_node(self):
        assert submission({"command": ["true"], "channel": "web-07/gpu"}).target == Target(channel="gpu", node="web-07")

    def test_the_node_said_twice(self):
        item = {"command": ["true"], "channel": "web-07/gpu", "node": "web-07", "labels": ["b", "a"]}
        assert submission(item).target == Target(channel="gpu", node="web-07", labels=("a", "b"))

    def test_two_nodes_contradict(self):
        assert "web-08" in refused("channel", channel="web-07/gpu", node="web-08")


class TestFlags:
    def test_none(self):
        assert submission({"command": ["true"]}).flags is Flag.NONE

    def test_all(self):
        flags = submission({"command": ["true"], "follow": True, "key": "k", "retry_on_loss": False}).flags
        assert flags == Flag.FOLLOWED | Flag.KEYED | Flag.NO_RETRY_ON_LOSS


class TestTimes:
    def test_delay_and_at_exclude_each_other(self):
        refused("at", delay="5m", at="2030-01-01")

    def test_in_milliseconds(self):
        item = submission({"command": ["true"], "delay": "1.5s", "expires": "2m"})
        assert (item.delay_ms, item.at_ms, item.expires_ms) == (1500, 0, 120_000)

    def test_something_that_expires_at_once_expires(self):
        assert submission({"command": ["true"], "expires": 0}).expires_ms == 1

    @pytest.mark.parametrize(
        "value",
        [
            "2030-01-02T03:04:05+00:00",
            "2030-01-02T03:04:05Z",
            "2030-01-02T04:04:05+01:00",
            1893553445,
            datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC),
        ],
        ids=str,
    )
    def test_a_point_in_time(self, value):
        assert submission({"command": ["true"], "at": value}).at_ms == 1893553445_000

    def test_without_a_zone_it_is_local_time(self, monkeypatch):
        assert point_in_time("2030-01-02T03:04:05") == datetime(2030, 1, 2, 3, 4, 5).astimezone()


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())
    | st.binary()
    | st.datetimes()
    | st.sampled_from(["exit", "allow", "a:b", "n1/c1", "90s", "2030-01-01", "\0", "\ud800"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.integers(), inner, max_size=3),
    max_leaves=5,
)


@given(
    st.fixed_dictionaries({}, optional=dict.fromkeys((*_FIELDS, *_TIMES), JUNK))
    | st.builds(lambda name, value: {"command": ["true"], name: value}, st.sampled_from([*_FIELDS, *_TIMES]), JUNK)
    | st.builds(lambda name, value: {"function": "a:b", name: value}, st.sampled_from(["args", "kwargs"]), JUNK)
    | st.dictionaries(st.text() | st.integers(), JUNK, max_size=3)
)
def test_whatever_comes_it_is_taken_or_refused(item):
    try:
        taken = submission(item)
    except InvalidJob:
        return
    spec = decode_spec(taken.spec)
    assert sum(thing is not None for thing in (spec.command, spec.shell, spec.function)) == 1
