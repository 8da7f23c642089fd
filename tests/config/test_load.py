"""From a file to a Config: what is understood, and what is said about each mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobschedd.config import Config, Secret, load
from jobschedd.errors import ConfigError

SLAVE = """\
role: slave
redis: {url: "redis://h:6379/0"}
slave:
  channels: [{name: "1"}]
"""


class Yaml:
    """Writes a configuration and loads it, on a machine called ``web-07`` with an environment of its own."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "jobsched.yaml"
        self.environ: dict[str, str] = {"STATE_DIRECTORY": str(folder / "state")}
        self.hostname = "web-07"

    def load(self, text: str | bytes, mode: int = 0o600) -> Config:
        self.file.write_bytes(text if isinstance(text, bytes) else text.encode())
        self.file.chmod(mode)
        return load(str(self.file), self.environ, self.hostname)

    def mistakes(self, text: str | bytes) -> list[str]:
        """What load() complains about, as ``LINE: PATH: MESSAGE`` without the file's name."""
        with pytest.raises(ConfigError) as caught:
            self.load(text)
        assert caught.value.exit_code == 78
        lines = str(caught.value).splitlines()
        assert len(lines) == len(caught.value.problems)
        assert all(line.startswith(f"{self.file}:") for line in lines)
        return [line.removeprefix(f"{self.file}:").strip() for line in lines]


@pytest.fixture
def yaml(tmp_path: Path) -> Yaml:
    return Yaml(tmp_path)


class TestGoodFiles:
    def test_a_small_file_gets_every_default(self, yaml: Yaml, tmp_path: Path):
        config = yaml.load(SLAVE)

        assert config.roles == ("slave",)
        assert config.is_slave
        assert not config.is_master
        assert config.node == "web-07"
        assert config.namespace == "main"
        assert config.transport == "stream"
        assert config.state_dir == str(tmp_path / "state")
        assert config.slave.workdir == str(tmp_path / "state/jobs")
        assert config.master.history == str(tmp_path / "state/history.db")
        assert (config.master.keep.succeeded.age, config.master.keep.failed.age) == (3600, 7 * 86400)
        assert config.master.keep.failed.size == 0
        assert config.slave.umask == 0o022
        assert config.timing.lease == 15
        assert config.source == str(yaml.file)
        assert config.warnings == ()

    def test_roles_have_one_order(self, yaml: Yaml):
        assert yaml.load(SLAVE.replace("slave\n", "[slave, master]\n", 1)).roles == ("master", "slave")

    def test_units_shorthand_and_umask(self, yaml: Yaml):
        config = yaml.load(
            SLAVE.replace('[{name: "1"}]', '["1", {name: gpu, slots: 2, labels: [gpu, fast]}]')
            + "  drain_timeout: 2m\n  output_limit: 1MiB\n  umask: 027\n  runner_memory: 1000000\n"
            "  env: {A: '1', B: yes, C: 007, D: 12:30}\n"
        )

        assert [(c.name, c.slots, c.labels) for c in config.slave.channels] == [
            ("1", 1, ()),
            ("gpu", 2, ("gpu", "fast")),
        ]
        assert config.slave.drain_timeout == 120
        assert config.slave.output_limit == 1024 * 1024
        assert config.slave.runner_memory == 1_000_000
        assert config.slave.umask == 0o027
        # YAML 1.1 would make true, 7 and 750 of these.
        assert config.slave.env == {"A": "1", "B": "yes", "C": "007", "D": "12:30"}

    def test_what_is_kept_has_an_age_and_maybe_a_size(self, yaml: Yaml):
        keep = yaml.load(
            SLAVE.replace("slave\n", "[slave, master]\n", 1)
            + "master: {keep: {succeeded: {age: 2h, size: 200MB}, failed: {size: 10%}}}\n"
        ).master.keep
        assert (keep.succeeded.age, keep.succeeded.size) == (7200, 200_000_000)
        assert (keep.failed.age, keep.failed.size) == (7 * 86400, 0.1)
        short = yaml.load(SLAVE + "master: {keep: {succeeded: 90, failed: 2d}}\n").master.keep
        assert (short.succeeded.age, short.failed.age, short.failed.size) == (90, 2 * 86400, 0)

    def test_relative_paths_start_at_the_file(self, yaml: Yaml, tmp_path: Path):
        config = yaml.load(SLAVE + "  python_path: [app, /srv/app, ../x]\n")

        assert config.slave.python_path == (str(tmp_path / "app"), "/srv/app", str(tmp_path.parent / "x"))

    def test_an_empty_section_means_its_defaults(self, yaml: Yaml):
        assert yaml.load(SLAVE + "timing:\nlog:\n").timing.lease == 15

    def test_variables(self, yaml: Yaml):
        yaml.environ |= {"SLOTS": "4", "EMPTY": "", "PIN": "0123"}
        config = yaml.load(
            "role: ${ROLE:-slave}\n"
            "node: n-${hostname}\n"
            "redis: {url: 'redis://${HOST:-h}/${DB:-2}', password: '${PIN}'}\n"
            "slave:\n  channels:\n    - {name: a, slots: '${SLOTS}'}\n    - name: b\n      slots: ${EMPTY:-3}\n"
            "  allow: {shell: '${SHELL_OK:-false}'}\n"
            "  env: {PLAIN: '$${HOME} $5', EMPTY: '${EMPTY}'}\n"
        )

        assert config.roles == ("slave",)
        assert config.node == "n-web-07"
        assert config.redis.url == "redis://h/2"
        assert config.redis.password == Secret("0123")
        assert [channel.slots for channel in config.slave.channels] == [4, 3]
        assert config.slave.allow.shell is False
        assert config.slave.env == {"PLAIN": "${HOME} $5", "EMPTY": ""}

    def test_a_login_moves_out_of_the_url(self, yaml: Yaml):
        config = yaml.load(SLAVE.replace("redis://h:6379/0", "redis://app:p%40ss@h:6379/0"))

        assert config.redis.url == "redis://h:6379/0"
        assert config.redis.username == "app"
        assert config.redis.secret() == "p@ss"

    def test_a_password_file_is_read_when_asked(self, yaml: Yaml, tmp_path: Path):
        (tmp_path / "secret").write_text("hunter2\n")
        config = yaml.load(SLAVE.replace('0"}', '0", password_file: secret}'))
        assert config.redis.secret() == "hunter2"

        (tmp_path / "secret").write_text("changed\n")
        assert config.redis.secret() == "changed"

    def test_embedded_connects_to_its_socket(self, yaml: Yaml, tmp_path: Path):
        config = yaml.load("role: master\nredis: {url: embedded}\nstate_dir: s p\n")

        assert config.redis.embedded
        assert config.connection.url == f"unix://{tmp_path}/s%20p/redis.sock"

    @pytest.mark.parametrize(
        "url",
        [
            "redis://h",
            "redis://h:65535/",
            "redis://[::1]:7000/3",
            "rediss://h:6380",
            "unix:///run/redis.sock?db=2",
            "sentinel://a:1,b,[::1]:3/mymaster/2",
        ],
    )
    def test_urls(self, yaml: Yaml, url: str):
        assert yaml.load(SLAVE.replace("redis://h:6379/0", url)).redis.url == url


class TestSecrets:
    TEXTS = (
        SLAVE.replace("redis://h:6379/0", "redis://app:hunter2@h:6379/0"),
        SLAVE.replace('0"}', '0", password: hunter2}'),
    )

    @pytest.mark.parametrize("text", TEXTS)
    def test_never_shown(self, yaml: Yaml, text: str):
        config = yaml.load(text, mode=0o644)

        assert config.redis.secret() == "hunter2"
        assert "hunter2" not in repr(config)
        assert "hunter2" not in str(config.warnings)
        assert "hunter2" not in config.channel_fingerprint("1")

    @pytest.mark.parametrize("text", TEXTS)
    def test_a_readable_file_is_a_warning(self, yaml: Yaml, text: str):
        assert yaml.load(text, mode=0o640).warnings == ()
        (warning,) = yaml.load(text, mode=0o644).warnings
        assert warning.startswith(f"{yaml.file}:2: redis.")
        assert "chmod o-r" in warning

    def test_a_password_from_outside_the_file_is_not(self, yaml: Yaml):
        yaml.environ["PW"] = "hunter2"
        for text in self.TEXTS:
            assert (
                yaml.load(text.replace("hunter2}", '"${PW}"}').replace("hunter2", "${PW}"), mode=0o644).warnings == ()
            )

    @pytest.mark.parametrize(
        "url",
        [
            "redis://:hunter2@",
            "redis://:hun/ter2@h",
            "redis://:hunter2@h:99999",
            "redis://:hunter2@h/x",
            "http://:hunter2@h",
            "redis://u:hunter2@[h",
            "redis://:hunter2@h/0?hunter2=1",
        ],
    )
    def test_a_bad_url_is_not_repeated(self, yaml: Yaml, url: str):
        (mistake,) = yaml.mistakes(SLAVE.replace("redis://h:6379/0", url))
        assert mistake.startswith("2: redis.url: ")
        assert "hun" not in mistake
        assert "ter2" not in mistake

    def test_a_world_writable_file_is_a_warning(self, yaml: Yaml):
        (warning,) = yaml.load(SLAVE, mode=0o602).warnings
        assert "chmod o-w" in warning


def test_every_mistake_at_once(yaml: Yaml):
    mistakes = yaml.mistakes(
        "role: slav\n"
        "redis:\n"
        "  url: redis//h\n"
        "  pasword: x\n"
        "slave:\n"
        "  channels:\n"
        "    - {name: gpu, slots: 0}\n"
        "    - {name: gpu, labels: [a b, 'c/d']}\n"
        "    - name: 3\n"
        "  drain_timeout: 10:30\n"
        "  allow: {shell: no}\n"
        "  env: {OK: fine, A: 1, B: '${NOPE}', B-C: x, JOBSCHED_X: y}\n"
        "timing: {lease: 9s}\n"
        "transport: streem\n"
        "transport: stream\n"
    )

    assert [tuple(mistake.split(": ")[:2]) for mistake in mistakes] == [
        ("1", "role"),
        ("3", "redis.url"),
        ("4", "redis.pasword"),
        ("7", "slave.channels[0].slots"),
        ("8", "slave.channels[1].labels[0]"),
        ("8", "slave.channels[1].labels[1]"),
        ("8", "slave.channels[1].name"),
        ("9", "slave.channels[2].name"),
        ("10", "slave.drain_timeout"),
        ("11", "slave.allow.shell"),
        ("12", "slave.env.B"),
        ("12", "slave.env.A"),
        ("12", "slave.env.B-C"),
        ("12", "slave.env.JOBSCHED_X"),
        ("13", "timing.lease"),
        ("14", "transport"),
        ("15", "transport"),
    ]
    assert mistakes[0].endswith("did you mean 'slave'?")
    assert mistakes[2].endswith("did you mean 'password'?")
    assert mistakes[9].endswith("write false")


MASTER = "role: master\nredis: {url: 'redis://h'}\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # one key
        ("", "is empty"),
        ("# nothing\n", "is empty"),
        ("null\n", "is empty"),
        ("[]\n", "is empty"),
        ("just text\n", "1: expected a mapping of settings, got 'just text'"),
        ("- a\n", "1: expected a mapping of settings, got a list"),
        ("redis: {url: embedded}\n", "1: role: is missing"),
        ("role: master\n", "1: redis: is missing"),
        ("role: master\nredis: {}\n", "2: redis.url: is missing"),
        ("role: []\nredis: {url: 'redis://h'}\n", "1: role: expected master, slave or [master, slave]"),
        ("role: [master, master]\nredis: {url: 'redis://h'}\n", "1: role: a role is listed more than once"),
        (MASTER + "rolle: x\n", "3: rolle: unknown key; did you mean 'role'?"),
        (MASTER + "master: {lease: 9s}\n", "3: master.lease: unknown key here; it belongs to timing.lease"),
        (MASTER + "url: 'redis://h'\n", "3: url: unknown key here; it belongs to redis.url"),
        (MASTER + "drain_timeout: 1h\n", "3: drain_timeout: unknown key here; it belongs to slave.drain_timeout"),
        (MASTER + "xyz: 1\n", "3: xyz: unknown key; known here: log, master, namespace"),
        (MASTER + "source: x\n", "3: source: unknown key"),
        (MASTER + "roles: [master]\n", "3: roles: unknown key; did you mean 'role'?"),
        (MASTER + "? {a: 1}\n: 2\n", "3: a key must be plain text"),
        (MASTER + '"a\\nb": 1\n', "3: 'a\\nb': unknown key"),
        (MASTER + "node: -x\n", "3: node: '-x' is no valid name"),
        (MASTER + f"node: {'x' * 65}\n", "is no valid name"),
        (MASTER + "namespace: 7\n", '3: namespace: a name is text: write it in quotes, "7"'),
        (MASTER + "transport: pubsubb\n", "3: transport: expected stream or pubsub, got 'pubsubb'; did you mean"),
        (MASTER + "transport: [stream]\n", "3: transport: expected stream or pubsub, got a list"),
        (MASTER + "state_dir: ''\n", "3: state_dir: must not be empty"),
        (MASTER + "state_dir: 5\n", "3: state_dir: expected text, got the number 5; put it in quotes"),
        (MASTER + "state_dir: ~nobodyatall/x\n", "3: state_dir: '~nobodyatall/x': no such user"),
        (MASTER + 'state_dir: "/a\\0b"\n', "3: state_dir: text must not contain a NUL"),
        (MASTER + "master: {result_timeout: 0}\n", "3: master.result_timeout: must be at least 1ms"),
        (MASTER + "master: {keep: {failed: -1}}\n", "3: master.keep.failed.age: this number is out of range"),
        (MASTER + "master: {keep: {failed: {size: much}}}\n", "3: master.keep.failed.size: "),
        (MASTER + "master: {keep: {failed: {ages: 1h}}}\n", "3: master.keep.failed.ages: unknown key"),
        (MASTER + "master: {keep: {failed: .inf}}\n", "3: master.keep.failed.age: '.inf' is no duration"),
        (MASTER + "master: {keep: {failed: 1e300}}\n", "is out of range"),
        (MASTER + f"master: {{keep: {{failed: {'9' * 5000}}}}}\n", "3: master.keep.failed.age: "),
        (MASTER + "master: {max_payload: 1 MB}\nmaster: {}\n", "4: master: is given twice; the first is in line 3"),
        (MASTER + "master: {max_payload: 1Mb, max_payload: 2MiB}\n", "max_payload: is given twice"),
        (MASTER + "master: {max_payload: 5}\n", "3: master.max_payload: must be a whole number of bytes between"),
        (MASTER + "master: {max_payload: 5k}\n", "3: master.max_payload: '5k' is no size; write bytes, or 64KiB"),
        (MASTER + "master: {max_payload: true}\n", "expected a size such as 64KiB or 1MiB, got true"),
        (MASTER + "master: {channels: 1}\n", "3: master.channels: expected a list, such as [a, b], got the number 1"),
        (MASTER + "master: {channels: [a, b, a]}\n", "3: master.channels: 'a' is listed more than once"),
        (MASTER + "master: [x]\n", "3: master: expected a mapping of settings, got a list"),
        (MASTER + "log: {level: warn}\n", "3: log.level: expected debug or info or warning or error, got 'warn'"),
        # a slave's keys
        (SLAVE + "  umask: 18\n", '5: slave.umask: expected octal text such as "022", got the number 18'),
        (SLAVE + "  umask: '089'\n", "5: slave.umask: '089' is no umask"),
        (SLAVE + "  runner_recycle: 010\n", "5: slave.runner_recycle: expected a whole number, got the text '010'"),
        (SLAVE + "  runner_recycle: true\n", "5: slave.runner_recycle: expected a whole number, got true"),
        (SLAVE + "  runner_recycle: 1.5\n", "5: slave.runner_recycle: expected a whole number, got the number 1.5"),
        (SLAVE + "  env: [A]\n", "5: slave.env: expected a mapping of names to text, got a list"),
        (SLAVE + "  allow: {commands: '*'}\n", "5: slave.allow.commands: expected a list, such as [a, b], got '*'"),
        (SLAVE + "  allow: {commands: ['']}\n", "5: slave.allow.commands[0]: must not be empty"),
        (SLAVE.replace('"1"}', '"1", slots: 1000000}'), "4: slave.channels[0].slots: must be between 1 and 1024"),
        (SLAVE.replace('"1"}', '"1", slots: -1}'), "4: slave.channels[0].slots: must be between 1 and 1024"),
        (SLAVE.replace('"1"}', '"1", handler: echo}'), "4: slave.channels[0].handler: expected a list"),
        (SLAVE.replace('"1"}', '"1", handler: [""]}'), "4: slave.channels[0].handler: the first item"),
        (SLAVE.replace('{name: "1"}', "{slots: 1}"), "4: slave.channels[0].name: is missing"),
        (SLAVE.replace('{name: "1"}', "[x]"), "4: slave.channels[0]: expected a mapping of settings, got a list"),
        # between keys
        ("role: slave\nredis: {url: 'redis://h'}\n", "1: slave.channels: role slave needs at least one channel"),
        (SLAVE.replace('{name: "1"}', ""), "4: slave.channels: role slave needs at least one channel"),
        (SLAVE.replace("redis://h:6379/0", "embedded"), "2: redis.url: embedded needs role master"),
        (MASTER + "transport: pubsub\n", "3: master.channels: a master with transport: pubsub must be told"),
        (MASTER + "timing: {heartbeat: 8s}\n", "3: timing.lease: must be more than twice heartbeat (8s)"),
        (MASTER + "timing: {block: 5s}\n", "3: timing.leader_lease: must be more than twice block (5s)"),
        (
            SLAVE.replace('{name: "1"}', "a, {name: a}"),
            "4: slave.channels[1].name: channel 'a' exists already, in line 4",
        ),
        (MASTER.replace("'redis://h'", "'redis://h', ca_file: /dev/null"), "2: redis.ca_file: is for TLS only"),
        (MASTER.replace("'redis://h'", "'rediss://h', ca_file: x"), "2: redis.ca_file: '"),
        (MASTER.replace("'redis://h'", "'rediss://h', cert_file: /dev/null"), "2: redis.cert_file: cert_file and key"),
        (MASTER.replace("'redis://h'", "'redis://h', password: a, password_file: /dev/null"), "not both"),
        (MASTER.replace("'redis://h'", "'redis://:a@h', password: b"), "2: redis.url: holds a password, and there is"),
        (MASTER.replace("'redis://h'", "'redis://a@h', username: b"), "2: redis.url: holds a user name, and there is"),
        (
            MASTER.replace("'redis://h'", "embedded") + f"state_dir: /{'x' * 100}\n",
            "3: state_dir: is too long for a Unix",
        ),
        # variables
        (MASTER + "node: ${NOPE}\n", "3: node: environment variable NOPE is not set (${NOPE:-default} sets a default)"),
        (MASTER + "node: ${no pe}\n", "3: node: '${' starts a variable"),
        (MASTER + "node: ${\n", "3: node: '${' starts a variable"),
        # URLs
        *(
            (MASTER.replace("redis://h", url), "2: redis.url: ")
            for url in (
                "h:6379",
                "redis:h",
                "redis:///0",
                "redis://h/x",
                "redis://h:0",
                "redis://h:65536",
                "redis://h:x",
                "redis://",
                "REDIS://h",
                "redis://h?x=1",
                "redis://h h",
                "redis://h#1",
                "unix://run/x.sock",
                "unix:///",
                "sentinel://h:1",
                "sentinel:///m",
                "redis://[::1",
                "",
            )
        ),
        # YAML itself
        (MASTER + "node: !!python/name:os.system x\n", "3: node: tags ('!...') are not allowed"),
        (MASTER + "node: !x y\n", "3: node: tags ('!...') are not allowed"),
        (MASTER + "node: &a b\n", "3: node: anchors ('&...') are not allowed"),
        (MASTER + "master: &a\n  keep: {}\n", "3: master: anchors"),
        (MASTER + "node: */5 * * * *\n", "starts with '*' must be quoted: \"*/5 * * * *\""),
        (MASTER + "node: * * * * *\n", "starts with '*' must be quoted: \"* * * * *\""),
        (MASTER + "node: @daily\n", "starts with '@' must be quoted: \"@daily\""),
        (MASTER + "master:\n\tkeep: {}\n", "4: not valid YAML: "),
        (MASTER + "master:\n\tkeep: {}\n", "indent with spaces, not tabs"),
        (
            MASTER + "node: a: b\n",
            "3: not valid YAML: mapping values are not allowed in this context; text that contains",
        ),
        (MASTER + "master: {channels: [a, b}\nnode: x\n", "3: not valid YAML"),
        (MASTER + "log: {file: ${X:-y}}\n", "3: not valid YAML: did not find expected ',' or '}'; inside [ ] and { }"),
        (MASTER + "---\n" + MASTER, "3: a second document starts here"),
        (MASTER + "node: " + "[" * 30 + "]" * 30 + "\n", "3: nested deeper than 20 levels"),
        (MASTER + "node: " + "[" * 50_000 + "\n", "3: nested deeper than 20 levels"),
        ("\ufeff" + MASTER, "1: starts with a byte order mark"),
        (MASTER.encode("utf-16"), "1: is UTF-16"),
        (MASTER.encode() + b"node: \xff\n", "3: byte 0xff is not UTF-8"),
        (MASTER + "node: a\x00\n", "3: control character U+0000 is not allowed"),
        (MASTER + "node: a\x1b[31m\n", "3: control character U+001B is not allowed"),
        (b"# " + b"x" * 1024 * 1024, "is larger than 1024 KiB"),
    ],
)
def test_one_mistake(yaml: Yaml, text: str | bytes, expected: str):
    mistakes = yaml.mistakes(text)
    assert len(mistakes) == 1 or "given twice" in expected
    assert expected in mistakes[-1]


def test_aliases_cannot_blow_up(yaml: Yaml):
    lines = ["a: &a [x,x,x,x,x,x,x,x,x]"]
    lines += [f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)]

    mistakes = yaml.mistakes("\n".join(lines))

    assert any(mistake.startswith("2: b[0]: aliases are not allowed") for mistake in mistakes)
    assert len(mistakes) < 200


def test_a_host_name_that_is_no_name(yaml: Yaml):
    yaml.hostname = "my host"
    assert yaml.load(SLAVE + "node: mine\n").node == "mine"
    (mistake,) = yaml.mistakes(SLAVE)
    assert "node: the host name 'my host' is no valid name: set node" in mistake


HOOK = "{name: a, on: [failure], command: [echo]}"


@pytest.mark.parametrize(
    ("hooks", "expected"),
    [
        (f"[{HOOK}, {HOOK}]", "master.hooks[1].name: hook 'a' exists already"),
        ("[{name: a, on: [], command: [echo]}]", "master.hooks[0].on: needs at least one of success"),
        ("[{name: a, on: [doom], command: [echo]}]", "master.hooks[0].on[0]: "),
        ("[{name: a, on: [failure]}]", "master.hooks[0].command: give exactly one of command, webhook, job"),
        ("[{name: a, on: [failure], command: [echo], job: [echo]}]", "hooks[0].command: give exactly one"),
        ("[{name: a, on: [late], command: [echo]}]", "hooks[0].on: late, and start_within or end_within, belong"),
        ("[{name: a, on: [failure], start_within: 5m, command: [echo]}]", "hooks[0].on: late, and start_within"),
        ("[{name: a, on: [failure], webhook: ftp://x}]", "hooks[0].webhook: must be a URL that begins with https://"),
        (
            "[{name: a, on: [failure], webhook: http://x, token: t, token_file: f}]",
            "token_file: give token or token_file",
        ),
        ("[{name: a, on: [failure], command: [echo], retries: 101}]", "hooks[0].retries: must be between 0 and 100"),
        ("[{on: [failure], command: [echo]}]", "master.hooks[0].name: is missing"),
    ],
)
def test_hooks_that_cannot_be(yaml: Yaml, hooks: str, expected: str):
    mistakes = yaml.mistakes(MASTER + f"master: {{hooks: {hooks}}}\n")
    assert any(mistake.startswith("3: master.hooks") and expected in mistake for mistake in mistakes), mistakes


def test_a_webhook_keeps_its_secrets(yaml: Yaml):
    url = "https://chat.example/s3cret"
    config = yaml.load(MASTER + f"master: {{hooks: [{{name: a, on: [failure], webhook: '{url}', token: t0ken}}]}}\n")
    (hook,) = config.master.hooks
    assert hook.webhook is not None and hook.webhook.reveal() == url
    assert "s3cret" not in repr(config) and "t0ken" not in repr(config)
    assert config.master_fingerprint() != yaml.load(MASTER).master_fingerprint()


def test_the_history_outlives_the_records(yaml: Yaml):
    (mistake,) = yaml.mistakes(MASTER + "master: {history_keep: 1d}\n")
    assert mistake.startswith("3: master.history_keep: is shorter than records stay in Redis (keep: 7d)")
    assert yaml.load(MASTER + "master: {history_keep: 0, history_max_size: 1MiB}\n").master.history_keep == 0


def test_what_has_no_effect_is_a_warning(yaml: Yaml):
    config = yaml.load(SLAVE.replace('"1"}', '"1", handler: [echo]}') + "master: {on_no_receiver: fail}\n")

    assert config.warnings == (
        f"{yaml.file}:5: master.on_no_receiver: has no effect with transport: stream",
        f"{yaml.file}:4: slave.channels[0].handler: has no effect with transport: stream",
    )


@pytest.mark.parametrize("path", ["/nonexistent/x.yaml", "/", "", "a\0b"])
def test_a_file_that_cannot_be_read(path: str):
    with pytest.raises(ConfigError, match="cannot be read"):
        load(path)
