"""Which file is used, where a client connects, and what a reload takes for a change."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from jobschedd.config import Config, client_settings, default_state_dir, find, load
from jobschedd.config.places import SYSTEM_STATE
from jobschedd.errors import ConfigError

TEXT = "role: master\nredis: {url: 'redis://u:p@from-file:7/1'}\nnamespace: fleet\n"


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """A folder to stand in, a user's folder of settings and the system's, all empty."""
    for name in ("here", "user", "system"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "user"))
    monkeypatch.setattr("jobschedd.config.places.SYSTEM_FOLDER", str(tmp_path / "system"))
    return {
        "here": tmp_path / "here/etc/jobsched.yaml",
        "user": tmp_path / "user/jobschedd/jobsched.yaml",
        "system": tmp_path / "system/jobsched.yaml",
    }


def write(path: Path, text: str = TEXT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o600)
    return path


class TestFind:
    def test_the_nearest_wins(self, places: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
        with pytest.raises(ConfigError, match="no configuration file: give --config FILE") as caught:
            find()
        assert str(places["system"]) in str(caught.value)

        write(places["system"])
        assert find() == str(places["system"])
        write(places["user"])
        assert find() == str(places["user"])
        write(places["here"])
        assert os.path.abspath(find()) == str(places["here"])
        monkeypatch.setenv("JOBSCHED_CONFIG", "/named/by/environment")
        assert find() == "/named/by/environment"
        assert find("/named/by/option") == "/named/by/option"

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root is protected from other users' files, and can make one")
    def test_root_takes_no_file_that_another_user_put_where_it_stands(self, places: dict[str, Path]):
        write(places["here"])
        os.chown(places["here"], 1234, 1234)
        with pytest.raises(ConfigError, match="belongs to user 1234"):
            find()
        assert find(str(places["here"])) == str(places["here"])


class TestStateDir:
    def test_systemd_says(self):
        assert default_state_dir("x.yaml", {"STATE_DIRECTORY": "/var/lib/a:/var/lib/b"}) == "/var/lib/a"

    def test_a_user_has_an_own_one(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        assert default_state_dir("x.yaml", {"XDG_STATE_HOME": "/s"}) == "/s/jobschedd"
        assert default_state_dir("x.yaml", {}) == os.path.expanduser("~/.local/state/jobschedd")

    def test_the_system_s_file_means_the_system_s_state_for_everybody(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        assert default_state_dir("/etc/jobschedd/jobsched.yaml", {}) == SYSTEM_STATE

    def test_an_instance_of_the_service_has_its_own(self):
        unit = (Path(__file__).parents[2] / "systemd/jobschedd@.service").read_text()
        assert "StateDirectory=jobschedd-%i\n" in unit
        assert "--config /etc/jobschedd/%i.yaml\n" in unit
        assert default_state_dir("/etc/jobschedd/gpu.yaml", {}) == "/var/lib/jobschedd-gpu"

    def test_root(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        assert default_state_dir("x.yaml", {}) == SYSTEM_STATE


class TestClientSettings:
    def test_option_then_environment_then_file(self, places: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
        write(places["user"])
        redis, namespace = client_settings()
        assert (redis.url, redis.username, redis.secret(), namespace) == ("redis://from-file:7/1", "u", "p", "fleet")

        monkeypatch.setenv("JOBSCHED_REDIS_URL", "redis://:x@from-env")
        redis, namespace = client_settings()
        assert (redis.url, redis.secret(), namespace) == ("redis://from-env", "x", "main")

        redis, namespace = client_settings("redis://from-option", "mine")
        assert (redis.url, redis.secret(), namespace) == ("redis://from-option", None, "mine")

    def test_an_option_overrides_the_file_s_namespace(self, places: dict[str, Path]):
        write(places["user"])
        assert client_settings(None, "mine")[1] == "mine"

    def test_embedded_is_found_by_its_socket(self, places: dict[str, Path]):
        write(places["user"], "role: master\nredis: {url: embedded}\nstate_dir: /s\n")
        assert client_settings()[0].url == "unix:///s/redis.sock"
        assert client_settings("embedded", None, {"STATE_DIRECTORY": "/t"})[0].url == "unix:///t/redis.sock"

    def test_nothing_says_where(self, places: dict[str, Path]):
        with pytest.raises(ConfigError, match=r"no Redis is named: give --redis URL, set \$JOBSCHED_REDIS_URL"):
            client_settings()

    @pytest.mark.parametrize(("url", "namespace", "origin"), [("h:1", None, "--redis"), ("redis://h", "a/b", "--name")])
    def test_mistakes_name_the_option(self, url: str, namespace: str | None, origin: str):
        with pytest.raises(ConfigError, match=origin):
            client_settings(url, namespace)

    def test_mistakes_name_the_variable(self):
        with pytest.raises(ConfigError, match=r"\$JOBSCHED_REDIS_URL: is no URL") as caught:
            client_settings(None, None, {"JOBSCHED_REDIS_URL": "http://:hunter2@h"})
        assert "hunter2" not in str(caught.value)


FLEET = """\
role: [master, slave]
redis: {url: 'redis://:p@h'}
state_dir: /s
slave:
  channels:
    - name: a
    - {name: b, slots: 2}
"""


class TestFingerprints:
    @pytest.fixture
    def config(self, tmp_path: Path) -> Config:
        return load(str(write(tmp_path / "jobsched.yaml", FLEET)))

    def changed(self, tmp_path: Path, before: Config, old: str, new: str) -> set[str]:
        """What a reload after this edit takes for changed."""
        assert old in FLEET
        after = load(str(write(tmp_path / "jobsched.yaml", FLEET.replace(old, new))))
        changed = {name for name in "ab" if before.channel_fingerprint(name) != after.channel_fingerprint(name)}
        return changed | ({"master"} if before.master_fingerprint() != after.master_fingerprint() else set())

    @pytest.mark.parametrize(
        ("old", "new", "expected"),
        [
            ("slots: 2", "slots: 2", ""),
            ("role: [master, slave]", "# a comment\nrole:\n- slave\n- master", ""),
            ("slots: 2", "slots: 3", "b"),
            ("- name: a", "- name: x\n    - name: a", ""),
            ("slave:\n", "slave:\n  env: {A: '1'}\n", "ab"),
            ("slave:\n", "master: {placement: random}\nslave:\n", "master"),
            (":p@h", ":q@h", "ab master"),
            ("state_dir: /s", "state_dir: /t", "ab master"),
            ("state_dir: /s", "state_dir: /s\ntiming: {block: 2s}", "ab master"),
        ],
    )
    def test_only_what_matters_counts(self, tmp_path: Path, config: Config, old: str, new: str, expected: str):
        names = set(expected.replace("master", "")) - {" "} | ({"master"} if "master" in expected else set())
        assert self.changed(tmp_path, config, old, new) == names

    def test_unknown_channel(self, config: Config):
        with pytest.raises(KeyError):
            config.channel_fingerprint("c")

    def test_the_config_is_frozen(self, config: Config):
        with pytest.raises(AttributeError):
            config.node = "x"  # type: ignore[misc]
        assert isinstance(config, msgspec.Struct)
