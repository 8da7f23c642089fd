"""What a limit is, how it is written, and whose word counts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobschedd.job import Target, decode_spec
from jobschedd.limits import Limits, Rate, check_key, parse_limit, parse_rate, stored, terms_of
from jobschedd.submission import submission

KEYS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,8}", fullmatch=True)
RATES = st.builds(Rate, count=st.integers(1, 10_000), ms=st.integers(1, 86_400_000))


class TestWords:
    @pytest.mark.parametrize(
        ("text", "limit"),
        [("3", 3), (3, 3), ("0", 0), ("10/m", Rate(10, 60_000)), ("5/30s", Rate(5, 30_000)), ("1/500ms", Rate(1, 500))],
    )
    def test_what_is_one(self, text, limit):
        assert parse_limit(text) == limit

    @pytest.mark.parametrize(
        "text", ["", "-1", "x", "1.5", True, "10/", "/m", "10/y", "0/m", "1/2d", "9999999999", "١"]
    )
    def test_what_is_none(self, text):
        with pytest.raises(ValueError, match=r"limit|rate|period|starts|counted"):
            parse_limit(text)

    @pytest.mark.parametrize("text", ["10/m", "5/30s", "1/h", "7/500ms", "3/d"])
    def test_a_rate_is_shown_as_it_is_written(self, text):
        assert str(parse_rate(text)) == text

    @given(key=KEYS, limit=st.integers(0, 1_000_000) | RATES)
    def test_what_is_stored_is_read_back(self, key, limit):
        limits = Limits.read({}, dict([stored(key, limit)]))
        found = (limits.rates if isinstance(limit, Rate) else limits.numbers)[key]
        assert found.limit == limit

    @pytest.mark.parametrize("key", ["db", "group:a", "node:web-07", "channel:gpu", "channel:web-07/gpu"])
    def test_a_key(self, key):
        assert check_key(key) == key

    @pytest.mark.parametrize("key", ["", "a b", "rate db", "group:", "node:a/b", "channel:a/b/c", "place:x", "db\n"])
    def test_no_key(self, key):
        with pytest.raises(ValueError, match="no key"):
            check_key(key)


class TestClass:
    @given(
        limits=st.dictionaries(KEYS, st.integers(0, 99), max_size=3),
        rates=st.dictionaries(KEYS, st.tuples(st.integers(1, 99), st.integers(1, 10**6)), max_size=3),
        group=st.just("") | KEYS,
        channel=st.just("") | KEYS,
        labels=st.lists(KEYS, max_size=2).map(tuple),
    )
    def test_it_survives_as_text(self, limits, rates, group, channel, labels):
        target = Target(
            channel=channel,
            labels=labels,
            group=group,
            limits=tuple(sorted(limits.items())),
            rates=tuple(sorted((key, *rate) for key, rate in rates.items())),
        )
        assert Target.from_key(target.key()) == target

    def test_that_of_an_ordinary_job_is_as_ever(self):
        assert Target(channel="c", node="n", labels=("a", "b")).key() == "n/c+a+b"

    def test_one_of_a_newer_version_is_refused(self):
        with pytest.raises(ValueError, match="newer"):
            Target.from_key("/?zz:1")


class TestOfAJob:
    @pytest.mark.parametrize("keys", [["db=3", "disk"], {"db": 3, "disk": None}, ("db=3", "disk")])
    def test_keys(self, keys):
        sent = submission({"command": ["true"], "limit_keys": keys})
        assert decode_spec(sent.spec).limits == {"db": 3, "disk": 0}
        assert sent.target.limits == (("db", 3), ("disk", 0))

    def test_rates(self):
        sent = submission({"command": ["true"], "rates": "api=10/m"})
        assert sent.target.rates == (("api", 10, 60_000),)

    @pytest.mark.parametrize(
        ("item", "says"),
        [
            ({"limit_keys": ["db=0"]}, "from 1"),
            ({"limit_keys": ["db=x"]}, "whole number"),
            ({"limit_keys": ["a b"]}, "is no name"),
            ({"limit_keys": ["group:a=3"]}, "set by an operator"),
            ({"limit_keys": ["db", "db=2"]}, "twice"),
            ({"limit_keys": [f"k{n}" for n in range(9)]}, "at most 8"),
            ({"limit_keys": 3}, "KEY=VALUE"),
            ({"limit_keys": {"db": True}}, "whole number"),
            ({"rates": ["10/m"]}, "who shares a rate"),
            ({"rates": {"api": 10}}, "STARTS/PERIOD"),
            ({"rates": ["api=10"]}, "is no rate"),
            ({"group": "a b"}, "is no name"),
        ],
    )
    def test_what_is_refused(self, item, says):
        from jobschedd.errors import InvalidJob

        with pytest.raises(InvalidJob, match=says):
            submission({"command": ["true"], **item})


class TestWhoWins:
    TARGET = Target(limits=(("db", 4),), rates=(("api", 9, 1000),), group="g")

    def number(self, configured, operator):
        numbers, _ = Limits.read(configured, operator).of_job(self.TARGET)
        return {key: setting and (setting.limit, setting.source) for key, setting in numbers}

    def test_the_job_where_nobody_else_says_anything(self):
        assert self.number({}, {}) == {"db": (4, "the job"), "api": None, "group:g": None}

    def test_the_configuration_over_the_job(self):
        assert self.number({"db": "3"}, {})["db"] == (3, "master.limits")

    def test_the_operator_over_both(self):
        assert self.number({"db": "3"}, {"db": "9"})["db"] == (9, "jobsched limit set")

    def test_a_key_without_any_number_is_one_at_a_time(self):
        numbers, _ = Limits().of_job(Target(limits=(("db", 0),)))
        assert [(key, setting.limit) for key, setting in numbers] == [("db", 1)]

    def test_unless_somebody_gave_it_a_rate(self):
        numbers, rates = Limits.read({}, dict([stored("db", Rate(3, 1000))])).of_job(Target(limits=(("db", 0),)))
        assert numbers == [("db", None)] and [(key, rate.limit) for key, rate in rates] == [("db", Rate(3, 1000))]

    def test_what_cannot_be_read_is_left_out(self):
        assert Limits.read({"db": "?"}, {}) == Limits()

    def test_ordinary_jobs_have_no_terms(self):
        assert terms_of(Target(channel="1"), Limits.read({"db": "1"}, {})).encoded() == b""
