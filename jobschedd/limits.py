"""Limits: how many jobs of a key may run at a time, and how many may start within a period. Pure.

A key is a name that jobs share (``db``), or a place or a group: ``group:science``, ``node:web-07``, ``channel:gpu`` (on
each node), ``channel:web-07/gpu``. Of one key, both a number and a rate may be set. Who has the last word: an operator
(``jobsched limit set``), then the master's configuration, then the job. A key for which nobody gave a number is
one at a time.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import msgspec

from jobschedd.durations import format_duration, parse_duration
from jobschedd.job import Target

MOST_AT_A_TIME = 1_000_000
#: Starts that a rate may allow: each is remembered for the length of its period.
MOST_STARTS = 10_000
LONGEST_PERIOD = 86_400.0
#: Keys that one job may name.
MOST_KEYS = 8

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
KEY = re.compile(rf"{_NAME}|(?:group|node):{_NAME}|channel:(?:{_NAME}/)?{_NAME}", re.ASCII)
JOB_KEY = re.compile(_NAME, re.ASCII)
_RATE = re.compile(r"(\d{1,6})/(\d*)\s*(ms|s|m|h|d)", re.ASCII)

JOB, DEFAULT, CONFIGURED, OPERATOR = "the job", "default", "master.limits", "jobsched limit set"


class Rate(msgspec.Struct, frozen=True):
    """At most ``count`` starts within any ``ms`` milliseconds, by the server's clock."""

    count: int
    ms: int

    def __str__(self) -> str:
        period = format_duration(self.ms / 1000).replace(" ", "")
        return f"{self.count}/{period.removeprefix('1') if period in ('1s', '1m', '1h', '1d') else period}"


def parse_rate(text: str) -> Rate:
    """``10/m``, ``5/30s``. Raises ValueError with a mendable message."""
    match = _RATE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text[:50]!r} is no rate; write STARTS/PERIOD, such as 10/m or 5/30s")
    seconds = parse_duration((match[2] or "1") + match[3])
    if not 1 <= int(match[1]) <= MOST_STARTS:
        raise ValueError(f"a rate allows 1 to {MOST_STARTS} starts")
    if not 0.001 <= seconds <= LONGEST_PERIOD:
        raise ValueError("the period of a rate is between 1ms and 1d")
    return Rate(int(match[1]), round(seconds * 1000))


def parse_limit(text: str | int) -> int | Rate:
    """``3`` (at a time; 0: none) or a rate. Raises ValueError with a mendable message."""
    if isinstance(text, str) and "/" in text:
        return parse_rate(text)
    if isinstance(text, bool) or not str(text).isascii() or not str(text).isdigit() or len(str(text)) > 9:
        raise ValueError(f"{str(text)[:50]!r} is no limit; write a number of jobs at a time, or a rate such as 10/m")
    if int(text) > MOST_AT_A_TIME:
        raise ValueError(f"at most {MOST_AT_A_TIME} jobs at a time can be counted")
    return int(text)


def group_key(group: str) -> str:
    """What counts the jobs of a group, and names it among what is paused."""
    return f"group:{group}"


def check_key(key: str) -> str:
    """``key``, if it is one. Raises ValueError with a mendable message."""
    if KEY.fullmatch(key) is None:
        forms = "a name, group:NAME, node:NAME, channel:NAME or channel:NODE/NAME"
        raise ValueError(f"{key[:100]!r} is no key of a limit: write {forms}")
    return key


class Setting(msgspec.Struct, frozen=True):
    """One number or rate in force, and whose word that is."""

    limit: int | Rate
    source: str


class Limits(msgspec.Struct, frozen=True):
    """What is set: by key, as an operator and as the configuration of the leading master say."""

    numbers: Mapping[str, Setting] = {}
    rates: Mapping[str, Setting] = {}

    @classmethod
    def read(cls, configured: Mapping[str, str], operator: Mapping[str, str]) -> Limits:
        """From the texts as stored (see ``stored``); what cannot be read is left out."""
        numbers: dict[str, Setting] = {}
        rates: dict[str, Setting] = {}
        for source, said in ((CONFIGURED, configured), (OPERATOR, operator)):
            for field_name, text in said.items():
                try:
                    limit = parse_limit(text)
                except ValueError:
                    continue
                if isinstance(limit, Rate):
                    rates[field_name.removeprefix("rate ")] = Setting(limit, source)
                else:
                    numbers[field_name] = Setting(limit, source)
        return cls(numbers, rates)

    def number(self, key: str, own: int = 0) -> Setting | None:
        """How many at a time. ``own``: the number that came with the job; None: no number at all."""
        return self.numbers.get(key) or (Setting(own, JOB) if own else None)

    def of_job(self, target: Target) -> tuple[list[tuple[str, Setting | None]], list[tuple[str, Setting]]]:
        """(by key the number in force, by key the rate in force) for the jobs of this class.

        None stands for no bound: such a job is counted all the same, for a limit may be set while it runs.
        """
        own_rates = {key: Rate(count, ms) for key, count, ms in target.rates}
        named = [*dict.fromkeys([key for key, _ in target.limits] + list(own_rates))]
        keys = [*named, *([group_key(target.group)] if target.group else [])]
        rates: list[tuple[str, Setting]] = []
        for key in keys:
            setting = self.rates.get(key) or (Setting(own_rates[key], JOB) if key in own_rates else None)
            if setting is not None:
                rates.append((key, setting))
        rated = {key for key, _ in rates}
        numbers: list[tuple[str, Setting | None]] = []
        for key in keys:
            own = dict(target.limits).get(key, 0)
            unset = None if key in rated or key not in named else Setting(1, DEFAULT)
            numbers.append((key, self.number(key, own) or unset))
        return numbers, rates


def stored(key: str, limit: int | Rate) -> tuple[str, str]:
    """The field and text that a limit is kept under."""
    return (f"rate {key}", f"{limit.count}/{limit.ms}ms") if isinstance(limit, Rate) else (key, str(limit))


class Terms(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the store has to see to when it dispatches (``store/lua/holding.lua``)."""

    l: tuple[tuple[str, int], ...] = ()  # noqa: E741 - names of the wire
    r: tuple[tuple[str, int, int], ...] = ()
    c: tuple[tuple[int, tuple[str, ...]], ...] = ()
    u: tuple[str, dict[str, int], dict[str, int]] | None = None
    g: tuple[int, ...] = ()
    s: int = 1

    def encoded(self) -> bytes:
        """Empty where there is nothing to see to: ordinary jobs pay nothing."""
        return b"" if self == _NOTHING else msgspec.json.encode(self)


_NOTHING = Terms()


def terms_of(
    target: Target,
    limits: Limits,
    places: Iterable[tuple[int, Iterable[str]]] = (),
    place: str = "",
    have: Mapping[str, int] | None = None,
) -> Terms:
    """``places``: limits of the channel and of its node, each with the streams that count. ``place``: the channel
    (node/name), which ``have`` says the resources of.
    """
    numbers, rates = limits.of_job(target)
    return Terms(
        l=tuple((key, -1 if setting is None else _number(setting)) for key, setting in numbers),
        r=tuple((key, rate.count, rate.ms) for key, setting in rates if isinstance(rate := setting.limit, Rate)),
        c=tuple((most, tuple(streams)) for most, streams in places),
        u=(place, dict(have or {}), amounts) if (amounts := target.amounts) else None,
        s=target.slots,
    )


def _number(setting: Setting) -> int:
    return setting.limit if isinstance(setting.limit, int) else -1
