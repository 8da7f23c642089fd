"""Limits, weights and resources in the configuration: what is read, and what is refused where."""

from __future__ import annotations

import pytest

from jobschedd.config import load
from jobschedd.errors import ConfigError

HEAD = 'role: [master, slave]\nredis: {url: "redis://127.0.0.1/0"}\n'
CHANNELS = 'slave: {channels: [{name: "1", resources: {%s}}, {name: "2", resources: {%s}}]}\n'


def loaded(tmp_path, text: str):
    file = tmp_path / "config.yaml"
    file.write_text(HEAD + text)
    return load(str(file))


def test_limits_and_weights(tmp_path):
    text = 'master: {limits: {db: 3, api: 10/m, "group:a": 0}, groups: {a: 3, default: 1}, ageing: 10m,'
    text += " keep_channel_after: 0}\n"
    config = loaded(tmp_path, text + 'slave: {channels: ["1"]}\n')
    assert config.master.limits == {"db": "3", "api": "10/m", "group:a": "0"}
    assert config.master.groups == {"a": 3, "default": 1}
    assert config.master.ageing == 600
    assert config.master.keep_channel_after == 0


def test_resources(tmp_path):
    config = loaded(tmp_path, CHANNELS % ("cpus: 1.5, memory: 16G, gpus: 2", "gpus: [4, GPU-7]"))
    first, second = config.slave.channels
    assert first.amounts == {"cpus": 1500, "memory": 16 << 30, "gpus": 2} and first.gpus == ("0", "1")
    assert second.amounts == {"gpus": 2} and second.gpus == ("4", "GPU-7")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("master: {limits: {db: many}}\n", "is no limit"),
        ("master: {limits: {db: -1}}\n", "is no limit"),
        ('master: {limits: {"a b": 1}}\n', "no key of a limit"),
        ("master: {limits: {db: 1/y}}\n", "is no rate"),
        ("master: {groups: {a: 0}}\n", "between 1 and 1000"),
        ("master: {ageing: 0}\n", "at least 1ms"),
        (CHANNELS % ("cpus: x", ""), "no number of processors"),
        (CHANNELS % ("Big: 1", ""), "no name of a resource"),
        (CHANNELS % ("slots: 2", ""), "set slots of the channel itself"),
        (CHANNELS % ("gpus: [0, 0]", ""), "more than once"),
        (CHANNELS % ("gpus: 2", "gpus: [1]"), "GPU 1 belongs to channel '1' already"),
    ],
)
def test_what_is_refused(tmp_path, text, says):
    with pytest.raises(ConfigError) as refused:
        loaded(tmp_path, text if "slave" in text else text + 'slave: {channels: ["1"]}\n')
    assert says in str(refused.value)
    assert "config.yaml:" in str(refused.value)
