"""``jobschedd install-service``: unit files, service user, folders and a default configuration, where systemd looks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import click

from jobschedd.config import load
from jobschedd.config.places import SYSTEM_FOLDER, SYSTEM_STATE
from jobschedd.errors import ConfigError, JobschedError

#: How freely the daemon and its jobs may act: the units as they are, or with the drop-in of this name.
PROFILES = ("standard", "privileged", "strict")
USER = "jobschedd"
CONFIG = f"{SYSTEM_FOLDER}/jobsched.yaml"

_UNIT = "jobschedd.service"
_UNITS = (_UNIT, "jobschedd@.service")
_UNIT_FOLDER = "/etc/systemd/system"
_DROP_IN = "10-profile.conf"
_SYSUSERS = "/etc/sysusers.d/jobschedd.conf"
_TMPFILES = "/etc/tmpfiles.d/jobschedd.conf"
#: The units name the program as a distribution's package would have it.
_PACKAGED_PROGRAM = "/usr/bin/jobschedd"
#: Folders of which services of a profile see nothing (PrivateTmp, ProtectHome).
_HIDDEN = {
    "standard": ("/tmp", "/var/tmp"),  # noqa: S108
    "privileged": (),
    "strict": ("/tmp", "/var/tmp", "/home", "/root", "/run/user"),  # noqa: S108
}
_VENV_HINT = "python3 -m venv /opt/jobschedd && /opt/jobschedd/bin/pip install 'jobschedd[embedded]'"


@dataclass(frozen=True)
class _File:
    """A file to install; ``content`` None: one to remove. An existing file with ``keep`` is the administrator's."""

    path: str
    content: str | None
    keep: bool = False


def install_service(print_only: bool, *, root: str = "/", profile: str | None = None) -> int:
    """Install the service, or with ``print_only`` show the files and change nothing; the exit code.

    ``root``: a staging folder; then only files are written, for the system that will live there. ``profile``: one
    of PROFILES; None leaves the present one. An existing configuration is never touched; may be repeated.
    Raises JobschedError when it may not or cannot be installed.
    """
    program = _program()
    files = list(_files(program, profile))
    if print_only:
        _show(files)
        return 0
    staging = os.path.realpath(root) != "/"
    if not staging:
        _require_a_system()
        _require_visible(program, profile or _present_profile())
    _write_all(files, Path(root))
    if staging:
        click.echo(f"staged under {root}: no user made, nothing started")
        return 0
    _apply()
    code = _try_it(program)
    _next_steps(code)
    return code


# What is installed


def _files(program: str, profile: str | None) -> Iterator[_File]:
    for unit in _UNITS:
        text = _resource("systemd", unit).replace(_PACKAGED_PROGRAM, quoted(program))
        yield _File(f"{_UNIT_FOLDER}/{unit}", text)
        if profile is not None:
            drop_in = None if profile == "standard" else _resource("systemd", f"{profile}.conf")
            yield _File(f"{_UNIT_FOLDER}/{unit}.d/{_DROP_IN}", drop_in)
    yield _File(_SYSUSERS, _resource("systemd", "jobschedd.sysusers"))
    yield _File(_TMPFILES, _resource("systemd", "jobschedd.tmpfiles"))
    yield _File(CONFIG, _resource("etc", "jobsched.yaml"), keep=True)


def _resource(folder: str, name: str) -> str:
    return resources.files("jobschedd").joinpath("resources", folder, name).read_text(encoding="utf-8")


def quoted(program: str) -> str:
    """A path as the first word of a unit's command line."""
    text = program.replace("%", "%%")
    if any(each.isspace() or each in "\"'\\;" for each in text):
        text = '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return text


def _program() -> str:
    """The command of this installation, however it was called: beside its interpreter, where links do not count."""
    called = Path(sys.argv[0])
    candidates = [called] if called.name == "jobschedd" else []
    candidates.append(Path(sys.executable).with_name("jobschedd"))
    if found := shutil.which("jobschedd"):
        candidates.append(Path(found))
    for each in candidates:
        if each.is_file() and os.access(each, os.X_OK):
            return os.path.abspath(each)
    raise JobschedError(f"this installation has no jobschedd command beside {sys.executable}: {_VENV_HINT}")


def _show(files: Sequence[_File]) -> None:
    for file in files:
        if file.content is None:
            click.echo(f"# {file.path}: removed\n")
            continue
        click.echo(f"# {file.path}{' (only where there is none yet)' if file.keep else ''}")
        click.echo(file.content)
    click.echo("# and then")
    for command in _commands():
        click.echo(f"# {' '.join(command)}")


# Writing it


def _require_a_system() -> None:
    if os.geteuid() != 0:
        raise JobschedError(
            "installing a service needs root: run it with sudo, "
            "or look at the files with: jobschedd install-service --print"
        )
    if shutil.which("systemctl") is None:
        raise JobschedError(
            "there is no systemd on this machine: start 'jobschedd run' by what it has instead, "
            "or detached with 'jobschedd run --daemonize --pidfile FILE'"
        )


def _require_visible(program: str, profile: str) -> None:
    for path in (os.path.realpath(program), sys.prefix, os.path.realpath(sys.executable)):
        for hidden in _HIDDEN[profile]:
            if path.startswith(hidden + "/"):
                raise JobschedError(f"{path} lies under {hidden}, of which such a service sees nothing: {_VENV_HINT}")


def _present_profile() -> str:
    drop_in = Path(_UNIT_FOLDER, f"{_UNIT}.d", _DROP_IN)
    if drop_in.exists():
        text = drop_in.read_text(encoding="utf-8", errors="replace")
        for profile in PROFILES[1:]:
            if text == _resource("systemd", f"{profile}.conf"):
                return profile
    return "standard"


def _write_all(files: Sequence[_File], root: Path) -> None:
    targets = [(file, root / file.path.lstrip("/")) for file in files]
    for _, target in targets:
        if target.is_symlink():
            raise JobschedError(
                f"{target} is a link to {os.readlink(target)}, so somebody masked or replaced it: "
                f"remove it first (systemctl unmask {target.name})"
            )
    for file, target in targets:
        try:
            click.echo(f"{_write(file, target):10} {target}")
        except OSError as error:
            raise JobschedError(f"cannot write {target}: {error.strerror}") from error


def _write(file: _File, target: Path) -> str:
    """Bring one file to what it should be; what was done, in a word."""
    there = target.exists()
    if file.content is None:
        target.unlink(missing_ok=True)
        return "removed" if there else "absent"
    if there and file.keep:
        return "kept"
    if there and target.read_text(encoding="utf-8", errors="replace") == file.content:
        return "unchanged"
    _make_folders(target.parent)
    _replace(target, file.content)
    return "replaced" if there else "written"


def _make_folders(folder: Path) -> None:
    # The service user must get in, whatever umask root has.
    for each in reversed([folder, *folder.parents]):
        if not each.exists():
            each.mkdir()
            each.chmod(0o755)


def _replace(target: Path, content: str) -> None:
    # In one step: systemd may read it at any moment.
    descriptor, fresh = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(content)
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
        os.replace(fresh, target)
    except BaseException:
        os.unlink(fresh)
        raise


# Making it known


def _commands() -> list[list[str]]:
    return [
        ["systemd-sysusers", _SYSUSERS],
        ["systemd-tmpfiles", "--create", _TMPFILES],
        ["systemctl", "daemon-reload"],
    ]


def _apply() -> None:
    for command in _commands():
        if command[0] == "systemctl" and not _booted():
            click.echo(
                "not done   systemctl daemon-reload: systemd does not run here; it reads the units when it starts"
            )
            continue
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise JobschedError(f"{' '.join(command)}: {error}") from error
        if done.returncode != 0:
            raise JobschedError(f"{' '.join(command)} failed: {done.stderr.strip() or done.returncode}")
        click.echo(f"ran        {' '.join(command)}")


def _booted() -> bool:
    return os.path.isdir("/run/systemd/system")


def _try_it(program: str) -> int:
    """Check the configuration as the service will: as its user, who may not reach this installation at all."""
    command = [program, "check", "--config", CONFIG]
    user, group = (None, None) if _present_profile() == "privileged" else (USER, USER)
    environment = {"PATH": os.environ.get("PATH", os.defpath), "STATE_DIRECTORY": SYSTEM_STATE}
    try:
        done = subprocess.run(
            command,
            user=user,
            group=group,
            extra_groups=None if user is None else [],
            cwd="/",
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise JobschedError(_unreachable(program, str(error))) from error
    if done.returncode not in (0, ConfigError.exit_code):
        last = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise JobschedError(_unreachable(program, last))
    click.echo(done.stdout, nl=False)
    return done.returncode or _find_server(environment)


def _unreachable(program: str, problem: str) -> str:
    return (
        f"the user {USER} cannot run {program} ({problem}). Install jobschedd where everybody can read it: {_VENV_HINT}"
    )


def _find_server(environment: dict[str, str]) -> int:
    from jobschedd.store import embedded

    if load(CONFIG, environment).redis.embedded:
        embedded.server()
    return 0


def _next_steps(code: int) -> None:
    if code != 0:
        click.echo(f"Mend {CONFIG} first; the mistakes are above.")
        return
    click.echo("Next:")
    click.echo(f"  systemctl {'restart' if _active() else 'enable --now'} jobschedd")
    click.echo("  journalctl -fu jobschedd")
    click.echo("  jobsched run -- hostname")
    click.echo(f"Users who may submit through the embedded server:  usermod -aG {USER} NAME")


def _active() -> bool:
    return _booted() and subprocess.run(["systemctl", "is-active", "--quiet", _UNIT], check=False).returncode == 0
