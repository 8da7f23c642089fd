"""The record, its header and the messages: round trips, and nothing but ProtocolError for foreign bytes."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobschedd.errors import ProtocolError
from jobschedd.job import (
    HEADER_SIZE,
    TRANSITIONS,
    Captured,
    Flag,
    Header,
    Outcome,
    Report,
    ReportKind,
    Result,
    Spec,
    State,
    Target,
    decode_header,
    decode_record,
    decode_report,
    decode_result,
    decode_spec,
    encode,
)

U8, U32, U48 = st.integers(0, 255), st.integers(0, 2**32 - 1), st.integers(0, 2**48 - 1)
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,8}", fullmatch=True)
ENTRIES = st.just("") | st.builds(lambda time, number: f"{time}-{number}", st.integers(1, 2**48 - 1), U32)

HEADERS = st.builds(
    Header,
    state=st.sampled_from(State),
    outcome=st.sampled_from(Outcome),
    flags=st.integers(0, 2**16 - 1).map(Flag),
    priority=st.integers(-100, 100),
    tries=U8,
    crashes=U8,
    attempt=U32,
    job_class=U32,
    waiter=U32,
    submitted=U48,
    since=U48,
    expires=U48,
    incarnation=st.just("") | st.binary(min_size=8, max_size=8).filter(any).map(bytes.hex),
    entry=ENTRIES,
)


@given(HEADERS, st.binary(max_size=50), st.binary(max_size=50))
def test_a_record_comes_back_as_it_was_packed(header, spec, result):
    packed = header.pack(len(spec))
    assert len(packed) == HEADER_SIZE
    record = decode_record(packed + spec + result)
    assert (record.header, record.spec, record.result) == (header, spec, result)


@given(st.binary(max_size=120))
def test_foreign_bytes_are_a_protocol_error_or_a_header(data):
    try:
        header = decode_header(data)
    except ProtocolError:
        return
    assert header.pack(int.from_bytes(data[56:60], "little"))[:28] == data[:28]


@pytest.mark.parametrize(
    ("offset", "value"),
    [(0, 0), (0, 2), (24, 0), (24, 7), (25, 8)],
    ids=["version 0", "version 2", "state 0", "state 7", "outcome 8"],
)
def test_what_this_version_cannot_know_is_refused(offset, value):
    data = bytearray(Header(state=State.DONE).pack(0))
    data[offset] = value
    with pytest.raises(ProtocolError):
        decode_header(bytes(data))


def test_a_short_record_is_refused():
    with pytest.raises(ProtocolError, match="too short"):
        decode_header(Header(state=State.DONE).pack(0)[:-1])


SPECS = st.builds(
    Spec,
    command=st.none() | st.lists(st.text(), min_size=1).map(tuple),
    env=st.dictionaries(st.text(), st.text(), max_size=3),
    stdin=st.binary(),
    priority=st.integers(-100, 100),
    timeout=st.floats(0, 1e9),
    retry_on=st.none() | st.lists(st.text()).map(tuple),
)
RESULTS = st.builds(
    Result,
    outcome=st.sampled_from(Outcome),
    cause=st.text(),
    exit_code=st.none() | st.integers(-(2**31), 2**31),
    value=st.binary(),
    stdout=st.builds(Captured, head=st.binary(), tail=st.binary(), size=st.integers(0, 2**60)),
    duration=st.floats(0, 1e9),
)
REPORTS = st.builds(
    Report,
    kind=st.sampled_from(ReportKind),
    job=st.text(),
    attempt=U32,
    entry=ENTRIES,
    incarnation=st.text(),
    outcome=st.sampled_from(Outcome),
    result=st.binary(),
)


@pytest.mark.parametrize(
    ("values", "decode"), [(SPECS, decode_spec), (RESULTS, decode_result), (REPORTS, decode_report)]
)
def test_messages_come_back_as_they_were(values, decode):
    @given(values)
    def check(value):
        assert decode(encode(value)) == value

    check()


@pytest.mark.parametrize("decode", [decode_spec, decode_result, decode_report])
def test_foreign_messages_are_a_protocol_error(decode):
    @given(st.binary(max_size=100) | st.recursive(st.none() | st.integers(0, 9), st.lists).map(msgspec.msgpack.encode))
    def check(data):
        try:
            decode(data)
        except ProtocolError:
            pass

    check()


def test_unknown_fields_of_a_newer_minor_version_are_ignored():
    data = msgspec.msgpack.encode({"command": ["true"], "something_new": 1})
    assert decode_spec(data).command == ("true",)


class TestTransitions:
    def test_every_state_leads_on(self):
        assert {before for _, before, _ in TRANSITIONS} == {None, *State}

    def test_every_state_is_reached(self):
        assert {after for _, _, after in TRANSITIONS} == set(State)

    def test_only_a_users_retry_leaves_the_end(self):
        assert {move for move, before, _ in TRANSITIONS if before is State.DONE} == {"retry"}

    def test_the_end_is_in_reach_of_every_state(self):
        steps = {(before, after) for _, before, after in TRANSITIONS}
        for state in State:
            reached = {state}
            while more := {after for before, after in steps if before in reached} - reached:
                reached |= more
            assert State.DONE in reached


@given(NAMES | st.just(""), NAMES | st.just(""), st.lists(NAMES, max_size=3).map(tuple))
def test_a_target_comes_back_from_its_key(node, channel, labels):
    target = Target(channel=channel, node=node, labels=labels)
    assert Target.from_key(target.key()) == target


@pytest.mark.parametrize(
    ("target", "admitted"),
    [
        (Target(), True),
        (Target(node="n1"), True),
        (Target(node="n2"), False),
        (Target(channel="c1"), True),
        (Target(channel="c2"), False),
        (Target(node="n1", channel="c1", labels=("gpu",)), True),
        (Target(labels=("gpu", "big")), True),
        (Target(labels=("gpu", "small")), False),
    ],
)
def test_whom_a_target_admits(target, admitted):
    assert target.admits("n1", "c1", frozenset({"gpu", "big"})) is admitted


@pytest.mark.parametrize(
    ("captured", "truncated"),
    [(Captured(), False), (Captured(b"ab", b"cd", 4), False), (Captured(b"ab", b"cd", 5), True)],
)
def test_output_is_truncated_when_bytes_between_head_and_tail_are_missing(captured, truncated):
    assert captured.truncated is truncated
