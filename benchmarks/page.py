"""docs/performance.md from what was measured: tables with ratios, and plots beside it.

The page's own words stay: only what stands between the marks of a section is written, and a section of which nothing
was measured says so.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from math import isnan
from pathlib import Path
from typing import Any

from benchmarks import plot
from benchmarks.environments import ROOT
from benchmarks.results import FAILED, Figures, Results

PAGE = ROOT / "docs" / "performance.md"
OURS = "jobschedd"
NOT_MEASURED = "Not measured yet: `make bench` writes this."


def write(results: Results, page: Path = PAGE) -> None:
    """Every section of the page; plots go into the directory of its name."""
    plots = page.with_suffix("")
    text = page.read_text() if page.exists() else PAGE.read_text()
    made = Page(results)
    for name, section in made.sections().items():
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        found = re.findall(f"{re.escape(begin)}.*?{re.escape(end)}", text, flags=re.DOTALL)
        assert len(found) == 1, f"{page} must hold {begin} and {end}, once"
        text = text.replace(found[0], f"{begin}\n\n{section() or NOT_MEASURED}\n\n{end}")
    for name, picture in made.plots.items():
        plots.mkdir(parents=True, exist_ok=True)
        (plots / f"{name}.svg").write_text(picture)
    page.write_text(text)
    print(f"written: {page}" + f", and {len(made.plots)} plots in {plots}" * bool(made.plots))


class Page:
    """The sections, one method each; an empty text means that nothing was measured."""

    def __init__(self, results: Results) -> None:
        self.results = results
        self.plots: dict[str, str] = {}
        units = dict(results.matching("peer-"))
        self.peers = {name: peer for name, peer in units.items() if "error" not in peer}
        self.failed = {name.removesuffix(FAILED): peer["error"] for name, peer in units.items() if "error" in peer}
        self.here = {name: peer for name, peer in self.peers.items() if "not_here" not in peer}
        if OURS in self.here:
            self.here = {OURS: self.here[OURS], **self.here}

    def sections(self) -> dict[str, Callable[[], str]]:
        """Mark -> what to write between the marks."""
        return {
            "about": self.about,
            "throughput": self.throughput,
            "latency": self.latency,
            "commands": self.commands,
            "cost": self.cost,
            "idle": self.idle,
            "settings": self.settings,
            "alone": self.alone,
            "processes": self.processes,
            "moves": self.moves,
            "journey": self.journey,
            "growth": self.growth,
        }

    # -- how it was measured ------------------------------------------------------------------------------------

    def about(self) -> str:
        """Machine, versions, settings; the yardsticks before and after."""
        about = self.results.about()
        if not about:
            return ""
        words = [f"{name} {about[name]}" for name in ("jobschedd", "commit", "Python", "redis-py", "server", "kernel")]
        words += [about["processors"], about["memory"]]
        settings = ", ".join(f"{name} {value:,}" for name, value in about["settings"].items())
        until = about.get("ended") or "broken off"
        told = f"{about['begun']} to {until}: {'; '.join(words)}. Settings of the run: {settings}."
        elsewhere = [
            f"{name} ({unit['commit']})"
            for name, unit in self.results.matching("")
            if unit.get("commit", about["commit"]) != about["commit"]
        ]
        if elsewhere:
            told += f" Measured with another state of the code: {', '.join(elsewhere)}."
        busy = [percent for _, unit in self.results.matching("") for percent in unit.get("others_percent", ())]
        if busy:
            told += (
                f" Whatever else ran on the machine used {statistics.median(busy):.0f} % of one processor (median of "
                f"{len(busy)} looks between measurements; at most {max(busy):.0f} %)."
            )
        return f"{told}\n\n{self._yardsticks()}" if self._yardsticks() else told

    def _yardsticks(self) -> str:
        before, after = self.results.get("yardsticks-before"), self.results.get("yardsticks-after")
        if before is None:
            return ""
        names = {
            "ping_per_s": "redis-benchmark PING, 50 clients, no pipeline, per s",
            "spawn_2_per_s": "bare posix_spawn + wait of /bin/true, 2 in flight, per s",
            "spawn_4_per_s": "the same, 4 in flight",
            "pubsub_p50_ms": "raw pub/sub round trip, p50, ms",
            "pubsub_p99_ms": "the same, p99",
        }
        rows = [[text, _spread(before[key]), _spread(after[key]) if after else "-"] for key, text in names.items()]
        return _table(["yardstick", "before", "after"], rows)

    def settings(self) -> str:
        """Versions and settings of everybody; who could not be had."""
        rows = []
        for peer in self.here.values():
            versions = ", ".join(f"{name} {version}" for name, version in peer["versions"].items())
            rows.append([peer["title"], versions, peer["settings"]])
        told = _table(["scheduler", "versions", "settings"], rows, "lll") if rows else ""
        absent = [f"- {name}: {peer['not_here']}" for name, peer in self.peers.items() if "not_here" in peer]
        absent += [f"- {name}: {error}" for name, error in self.failed.items()]
        if absent:
            told += "\n\nNot in the tables:\n\n" + "\n".join(absent)
        return told

    # -- side by side -------------------------------------------------------------------------------------------

    def throughput(self) -> str:
        """A."""
        those = {name: peer for name, peer in self.here.items() if "noop" in peer}
        if not those:
            return ""
        ours = those.get(OURS)
        rows = []
        for peer in _best_first(those, lambda peer: _median(peer["noop"]["per_s"])):
            noop = peer["noop"]
            share = [rate / ping for rate, ping in zip(noop["per_s"], noop["ping_per_s"], strict=True)]
            rows.append(
                [
                    peer["title"],
                    _spread(noop["per_s"]),
                    _figure(_median(share)),
                    _times(ours, peer, lambda each: _median(each["noop"]["per_s"])),
                    _spread(noop["submit_per_s"]),
                    _times(ours, peer, lambda each: _median(each["noop"]["submit_per_s"])),
                    _spread(noop["start_s"]),
                    peer["survives"],
                ]
            )
        self.plots["throughput"] = plot.bars(
            "No-op jobs a second", "jobs a second", self._ranges(those, lambda peer: peer["noop"]["per_s"]), OURS
        )
        head = ["scheduler", "drained per s", "of PING", "ours is", "submitted per s", "ours is"]
        head += ["start to first result, s", "a job whose worker is killed"]
        drained = _standing(those, lambda peer: _median(peer["noop"]["per_s"]), "drained")
        submitted = _standing(those, lambda peer: _median(peer["noop"]["submit_per_s"]), "submitted")
        return f"{_table(head, rows, 'lrrrrrrl')}\n\n{drained} {submitted}\n\n![throughput](performance/throughput.svg)"

    def latency(self) -> str:
        """B."""
        those = {name: peer for name, peer in self.here.items() if "latency_ms" in peer}
        if not those:
            return ""
        ours, raw = those.get(OURS), self.results.get("yardsticks-before")
        bare = _median(raw["pubsub_p50_ms"]) if raw else float("nan")
        rows = []
        for peer in _best_first(those, lambda peer: -_median(peer["latency_ms"])):
            times = peer["latency_ms"]
            rows.append(
                [
                    peer["title"],
                    _figure(_median(times)),
                    _figure(_quantile(times, 0.99)),
                    _figure(_median(times) / bare),
                    _times(peer, ours, lambda each: _median(each["latency_ms"])),
                    peer["waits"],
                ]
            )
        shown = plot.Axis("milliseconds from the submit to the result", most=self._longest(those))
        curves = {_plain(peer["title"]): plot.distribution(peer["latency_ms"]) for peer in those.values()}
        share = plot.Axis("percent of the jobs that took no longer", most=100.0)
        self.plots["latency"] = plot.lines("Latency of a lone job on an idle system", shown, share, curves, dots=False)
        head = [
            "scheduler",
            "p50 ms",
            "p99 ms",
            "p50, in raw pub/sub round trips",
            "times ours",
            "how the submitter waits",
        ]
        standing = _standing(those, lambda peer: 1 / _median(peer["latency_ms"]), "quickest")
        return f"{_table(head, rows, 'lrrrrl')}\n\n{standing}\n\n![latency](performance/latency.svg)"

    @staticmethod
    def _longest(those: dict[str, Figures]) -> float:
        medians = sorted(_median(peer["latency_ms"]) for peer in those.values())
        return plot.round_up(min(2.5 * medians[len(medians) // 2], 2 * medians[-1]))

    def commands(self) -> str:
        """C."""
        those = {name: peer for name, peer in self.here.items() if "commands" in peer}
        if not those:
            return ""
        ours = those.get(OURS)
        share = lambda peer: _median(peer["commands"]["2"]["share_of_spawn"])  # noqa: E731
        rows = []
        for peer in _best_first(those, share):
            two, four = peer["commands"]["2"], peer["commands"]["4"]
            rows.append(
                [
                    peer["title"],
                    _spread(two["per_s"]),
                    _spread(two["share_of_spawn"]),
                    _times(ours, peer, share),
                    _spread(four["per_s"]),
                    _spread(four["share_of_spawn"]),
                ]
            )
        ranges = self._ranges(those, lambda peer: peer["commands"]["2"]["share_of_spawn"])
        self.plots["commands"] = plot.bars(
            "/bin/true, two at a time", "share of a bare posix_spawn loop (two in flight)", ranges, OURS
        )
        head = [
            "scheduler",
            "2 at a time, per s",
            "of bare spawn",
            "ours is",
            "4 at a time, per s",
            "of bare spawn (2)",
        ]
        told = _table(head, rows)
        return f"{told}\n\n{_standing(those, share, 'of bare spawn')}\n\n![commands](performance/commands.svg)"

    def cost(self) -> str:
        """D."""
        those = {name: peer for name, peer in self.here.items() if "cost" in peer}
        if not those:
            return ""
        total = lambda peer, key: peer["cost"]["submit"][key] + peer["cost"]["run"][key]  # noqa: E731
        rows = []
        for peer in _best_first(those, lambda peer: -total(peer, "redis_us")):
            cost = peer["cost"]
            most = ", ".join(f"{name} {count:g}" for name, count in list(cost["run"]["most"].items())[:5])
            rows.append(
                [
                    peer["title"],
                    _figure(total(peer, "redis_us")),
                    f"{_figure(cost['submit']['commands'])} + {_figure(cost['run']['commands'])}",
                    _figure(total(peer, "script_calls")),
                    _figure(total(peer, "bytes_in")),
                    _figure(total(peer, "bytes_out")),
                    _figure(cost["bytes_queued"]),
                    _figure(cost["bytes_finished"]),
                    most,
                ]
            )
        head = [
            "scheduler",
            "Redis, us",
            "commands (submit + run)",
            "script calls",
            "bytes to Redis",
            "bytes from Redis",
        ]
        head += ["kept per queued job", "per finished job", "most (run)"]
        told = _table(head, rows, "lrrrrrrrl")
        return f"{told}\n\n{_standing(those, lambda peer: 1 / total(peer, 'redis_us'), 'cheapest for Redis')}"

    def idle(self) -> str:
        """E."""
        those = {name: peer for name, peer in self.here.items() if "idle" in peer}
        rows = []
        for peer in _best_first(those, lambda peer: -peer["idle"]["pss_mib"]):
            keys = ("processes", "pss_mib", "rss_mib", "cpu_percent", "redis_cpu_percent", "redis_commands_per_s")
            rows.append([peer["title"], *(_figure(peer["idle"][key]) for key in keys)])
        if not rows:
            return ""
        head = ["scheduler", "processes", "PSS MiB", "RSS MiB", "CPU %", "Redis CPU %", "Redis commands per s"]
        return f"{_table(head, rows)}\n\n{_standing(those, lambda peer: 1 / peer['idle']['pss_mib'], 'smallest')}"

    @staticmethod
    def _ranges(
        those: dict[str, Figures], values: Callable[[Figures], list[float]]
    ) -> dict[str, tuple[float, float, float]]:
        named = {OURS if name == OURS else _plain(peer["title"]): values(peer) for name, peer in those.items()}
        return {name: (_median(each), min(each), max(each)) for name, each in named.items()}

    # -- by itself ----------------------------------------------------------------------------------------------

    def alone(self) -> str:
        """What jobschedd does, beside the yardsticks."""
        rows = []
        for part, text in ALONE:
            unit = self.results.get(part)
            for key, values in (unit or {}).items():
                if isinstance(values, list) and key != "others_percent":
                    rows.append([part, text.get(key, key.replace("_", " ")), _spread(values)])
        return _table(["part", "figure", "median (range)"], rows, "llr") if rows else ""

    def processes(self) -> str:
        """Processor time of each process per job."""
        profile = self.results.get("profile")
        if not profile:
            return ""
        keys = [key for key in profile["commands"] | profile["functions"] if key.endswith("_us") and key != "script_us"]
        rows = []
        for key in keys:
            name = {"redis_us": "Redis", "client_us": "client (submit)"}.get(key, key.removesuffix("_us"))
            rows.append([name, *(_spread(profile[kind].get(key, [0.0])) for kind in ("functions", "commands"))])
        for key, name in (
            ("script_us", "of Redis: inside scripts, wall clock"),
            ("commands", "Redis commands"),
            ("script_calls", "script calls"),
            ("bytes_in", "bytes to Redis"),
            ("bytes_out", "bytes from Redis"),
            ("jobs_per_s", "jobs per s meanwhile, submit included"),
        ):
            rows.append([name, *(_spread(profile[kind][key]) for kind in ("functions", "commands"))])
        return _table(["us of a processor per job (where nothing else is said)", "functions", "commands"], rows)

    def moves(self) -> str:
        """The server's work."""
        profile = self.results.get("profile")
        if not profile:
            return ""
        rows = []
        for move, cost in profile["moves"].items():
            keys = ("commands", "bytes_in", "bytes_out")
            rows.append([move, _spread(cost["us"]), *(_figure(cost[key]) for key in keys)])
        total = sum(_median(cost["us"]) for cost in profile["moves"].values())
        rows.append(["**all**", _figure(total), "", "", ""])
        return _table(["move", "us of the server per job", "commands", "bytes to Redis", "bytes from Redis"], rows)

    def journey(self) -> str:
        """A lone job."""
        profile = self.results.get("profile")
        if not profile:
            return ""
        rows = []
        for step, times in profile["journey"].items():
            rows.append([step, _figure(_median(times)), _figure(_quantile(times, 0.99))])
        rows.append(["**all**", _figure(sum(_median(times) for times in profile["journey"].values())), ""])
        return _table(["until it is", "us, p50", "p99"], rows)

    # -- growth -------------------------------------------------------------------------------------------------

    def growth(self) -> str:
        """A plot and a table of each series."""
        parts = []
        for name, (title, across, keys) in GROWTH.items():
            unit = self.results.get(f"growth-{name}")
            if not unit:
                continue
            if "not_here" in unit:
                parts.append(f"### {title}\n\nNot measured: {unit['not_here']}.")
                continue
            points = unit["points"]
            rows = [
                [f"{point['size']:,}", *(_figure(point.get(key, float("nan"))) for key in keys)] for point in points
            ]
            drawn = {
                text: [(p["size"], p[key]) for p in points if key in p] for key, text in keys.items() if key in DRAWN
            }
            drawn = {text: line for text, line in drawn.items() if line}
            if drawn:
                up = plot.Axis("microseconds per job")
                self.plots[f"growth-{name}"] = plot.lines(title, plot.Axis(across, logarithmic=True), up, drawn)
            picture = f"\n\n![{title}](performance/growth-{name}.svg)" if drawn else ""
            parts.append(f"### {title}\n\n{_table([across, *keys.values()], rows)}{picture}")
        return "\n\n".join(parts)


_PER_JOB = {
    "jobs_per_s": "jobs per s",
    "redis_us": "Redis us",
    "dispatcher_us": "dispatcher us",
    "collector_us": "collector us",
    "channels_us": "channels us",
}
DRAWN = ("redis_us", "dispatcher_us", "collector_us", "channels_us", "row_us")
#: Series -> title, what grows, figures of a point.
GROWTH: dict[str, tuple[str, str, dict[str, str]]] = {
    "backlog": (
        "Jobs that wait",
        "jobs that wait elsewhere",
        {
            **_PER_JOB,
            "ratio": "rate, of that with 10,000",
            "same_line_jobs_per_s": "jobs per s with so many in the same line",
            "same_line_ratio": "of that with 10,000",
            "rehashing_jobs_per_s": "jobs per s while the server moves its keys",
            "rehashing_redis_us": "Redis us meanwhile",
        },
    ),
    "channels": (
        "Channels",
        "simulated channels",
        {
            **{key: text for key, text in _PER_JOB.items() if key != "channels_us"},
            "ratio": "rate, of that with 4",
            "idle_redis_percent": "idle: Redis %",
            "idle_dispatcher_percent": "idle: dispatcher %",
            "idle_collector_percent": "idle: collector %",
            "idle_commands_per_s": "idle: commands per s",
            "connections": "connections",
        },
    ),
    "payload": ("Size of the arguments", "bytes", _PER_JOB),
    "array": (
        "Size of an array",
        "tasks",
        {"submit_ms": "submit ms", "bytes_before_start": "bytes in Redis before it starts", **_PER_JOB},
    ),
    "history": ("The history", "rows", {"row_us": "us per new row", "row_bytes": "bytes per row"}),
}
ALONE: tuple[tuple[str, dict[str, str]], ...] = (
    ("noop", {"jobs_per_s": "no-op functions drained per s", "ratio": "of PING"}),
    (
        "submitting",
        {"bulk_per_s": "submitted in bulk per s", "singly_per_s": "one by one per s", "ratio": "one by one, of PING"},
    ),
    ("latency", {"ratio": "function p50, in raw pub/sub round trips"}),
    ("commands", {"ratio": "one channel of two slots, of bare spawn"}),
    (
        "startup",
        {
            "submit_ms": "jobsched submit, the whole process, ms",
            "check_ms": "jobschedd check, ms",
            "ratio": "submit, of a bare Python",
        },
    ),
    ("idle", {}),
    ("control", {"ratio": "cancelled per s, of PING"}),
    ("delayed", {}),
    ("history", {}),
)


def _best_first(those: dict[str, Figures], value: Callable[[Figures], float]) -> Iterable[Figures]:
    return sorted(those.values(), key=lambda peer: -value(peer))


def _times(above: Figures | None, below: Figures | None, value: Callable[[Figures], float]) -> str:
    if above is None or below is None or above is below or not value(below):
        return "-"
    return f"{_figure(value(above) / value(below))} x"


def _standing(those: dict[str, Figures], value: Callable[[Figures], float], what: str) -> str:
    """Whether ours is first; if not, by how much who is ahead."""
    if OURS not in those or len(those) == 1:
        return ""
    ours = value(those[OURS])
    ahead = {peer["title"]: value(peer) / ours for name, peer in those.items() if name != OURS and value(peer) > ours}
    if not ahead:
        return f"{what.capitalize()}: ours is first."
    return (
        f"{what.capitalize()}: ahead of ours {_and(f'{title} ({_figure(ratio)} x)' for title, ratio in ahead.items())}."
    )


def _and(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else f"is {last}"


def _plain(title: str) -> str:
    return title.replace("*", "")


def _median(values: Sequence[float]) -> float:
    return float(statistics.median(values))


def _quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return float(ordered[min(len(ordered) - 1, int(share * len(ordered)))])


def _spread(values: Any) -> str:
    """The median, with the range where there are several."""
    if len(values) == 1:
        return _figure(values[0])
    return f"{_figure(_median(values))} ({_figure(min(values))}–{_figure(max(values))})"


def _figure(value: float) -> str:
    """Three figures that matter."""
    return "-" if value is None or isnan(value) else f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], align: str = "") -> str:
    align = align or "l" + "r" * (len(head) - 1)
    rule = "".join("---|" if side == "l" else "--:|" for side in align)
    return "\n".join([f"| {' | '.join(head)} |", f"|{rule}", *(f"| {' | '.join(row)} |" for row in rows)])
