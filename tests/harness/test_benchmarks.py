"""What ``make bench`` does with what it measures: it keeps it, goes on, writes the page; and that it runs at all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks import page, plot
from benchmarks.results import Results

ROOT = Path(__file__).parents[2]
SETTINGS = {"runs": 3, "scale": 1.0}


def peer(title: str, rate: float, latency: float, share: float) -> dict:
    cost = {
        "commands": 4.0,
        "script_calls": 0.1,
        "bytes_in": 700.0,
        "bytes_out": 500.0,
        "redis_us": 1e6 / rate,
        "most": {},
    }
    commands = {"per_s": [share * 2000] * 3, "share_of_spawn": [share] * 3}
    idle = ("processes", "pss_mib", "rss_mib", "cpu_percent", "redis_cpu_percent", "redis_commands_per_s")
    return {
        "title": title,
        "settings": "two at a time",
        "waits": "polling",
        "survives": "kept",
        "versions": {"package": "1.2.3"},
        "noop": {
            "per_s": [rate, 0.9 * rate, 1.1 * rate],
            "ping_per_s": [80_000.0] * 3,
            "submit_per_s": [3 * rate] * 3,
            "start_s": [0.5] * 3,
        },
        "latency_ms": [latency * (1 + number / 100) for number in range(100)],
        "commands": {"2": commands, "4": commands},
        "cost": {"submit": cost, "run": cost, "bytes_queued": 300.0, "bytes_finished": 400.0},
        "idle": dict.fromkeys(idle, 3.0),
    }


@pytest.fixture
def results(tmp_path) -> Results:
    results = Results(tmp_path / "results")
    results.begin(False, SETTINGS)
    return results


def written(results: Results, tmp_path: Path) -> str:
    target = tmp_path / "performance.md"
    page.write(results, target)
    return target.read_text()


class TestGoingOn:
    def test_a_run_that_was_broken_off_keeps_what_it_has(self, results):
        results.put("noop", {"jobs_per_s": [1.0]})
        results.begin(False, SETTINGS)
        assert results.has("noop")

    @pytest.mark.parametrize("why", ["complete", "asked for", "other settings"])
    def test_else_a_run_begins_anew(self, results, why):
        results.put("noop", {"jobs_per_s": [1.0]})
        if why == "complete":
            results.complete()
        results.begin(why == "asked for", SETTINGS | {"scale": 0.5} if why == "other settings" else SETTINGS)
        assert not results.has("noop")

    def test_what_failed_is_missing_until_it_was_measured(self, results):
        results.put_failure("peer-huey", "it broke")
        assert not results.has("peer-huey")
        results.put("peer-huey", {"title": "Huey"})
        assert [name for name, _ in results.matching("peer-")] == ["huey"]


class TestPage:
    def test_of_nothing_measured_every_section_says_so(self, tmp_path):
        text = written(Results(tmp_path / "none"), tmp_path)
        assert text.count(page.NOT_MEASURED) == len(page.Page(Results(tmp_path / "none")).sections())

    def test_ours_stands_beside_the_peers_with_ratios(self, results, tmp_path):
        results.put("peer-jobschedd", peer("**jobschedd**", 20_000, 1.0, 0.8))
        results.put("peer-huey", peer("Huey", 5000, 0.5, 0.6))
        text = written(results, tmp_path)
        assert "| **jobschedd** | 20,000 (18,000–22,000) | 0.25 | - |" in text
        assert "| Huey | 5,000 (4,500–5,500) | 0.0625 | 4 x |" in text
        assert "Drained: ours is first." in text
        assert "Quickest: ahead of ours is Huey (2 x)." in text

    def test_who_is_not_here_is_told(self, results, tmp_path):
        results.put("peer-jobschedd", peer("**jobschedd**", 20_000, 1.0, 0.8))
        results.put("peer-bullmq", {"not_here": "node and npm are not installed"})
        results.put_failure("peer-celery", "RuntimeError: it broke")
        text = written(results, tmp_path)
        assert "- bullmq: node and npm are not installed" in text
        assert "- celery: RuntimeError: it broke" in text

    def test_its_own_words_and_what_was_not_measured_again_stay(self, results, tmp_path):
        target = tmp_path / "performance.md"
        target.write_text(page.PAGE.read_text().replace("# Performance", "# How fast"))
        results.put("noop", {"jobs_per_s": [1234.0, 1300.0]})
        page.write(results, target)
        assert target.read_text().startswith("# How fast")
        assert "1,267 (1,234–1,300)" in target.read_text()

    def test_plots_are_well_formed(self, results, tmp_path):
        results.put("peer-jobschedd", peer("**jobschedd**", 20_000, 1.0, 0.8))
        results.put("peer-huey", peer("Huey & sons", 5000, 0.5, 0.6))
        points = [{"size": 10**power, "redis_us": 20.0 + power, "dispatcher_us": 0.0} for power in range(3, 7)]
        results.put("growth-backlog", {"points": points})
        text = written(results, tmp_path)
        pictures = {path.stem: path.read_text() for path in (tmp_path / "performance").glob("*.svg")}
        assert set(pictures) == {"throughput", "latency", "commands", "growth-backlog"}
        for name, picture in pictures.items():
            ElementTree.fromstring(picture)
            assert f"performance/{name}.svg" in text


def test_an_axis_ends_at_a_round_number():
    assert [plot.round_up(value) for value in (0.9, 1.2, 17, 31, 60)] == [1, 1.5, 20, 50, 75]


def test_the_share_of_a_distribution_that_does_not_exceed_a_value():
    assert plot.distribution([3.0, 1.0]) == [(1.0, 50.0), (3.0, 100.0)]


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=100, check=False)


def test_an_unknown_peer_is_refused():
    done = bench("peers", "--only", "cron")
    assert done.returncode == 1
    assert "cron is unknown; known are jobschedd, huey" in done.stderr


@pytest.mark.slow
def test_a_part_runs_and_is_kept(tmp_path):
    done = bench("noop", "profile", "--runs", "1", "--scale", "0.01", "--results", str(tmp_path))
    assert done.returncode == 0, done.stderr
    results = Results(tmp_path)
    assert results.get("noop")["jobs_per_s"][0] > 0
    profile = results.get("profile")
    assert 7 < profile["functions"]["commands"][0] < 20
    assert list(profile["moves"]) == ["submit", "dispatch", "receive", "report", "read", "collect", "forget"]
    assert all(min(times) > 0 for times in profile["journey"].values())
