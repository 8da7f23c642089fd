"""TLS: with a certificate that is right everything works, with any other nothing does; it is never downgraded."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobschedd.config import RedisConfig
from jobschedd.errors import StoreUnavailable
from jobschedd.store.connect import check_server, connect
from ledger import judge
from redis_server import RedisServer, free_port, server_binary, wait_until

CA_SETTINGS = """
[ca]
default_ca = here
[here]
database = {0}/index.txt
new_certs_dir = {0}
rand_serial = yes
default_md = sha256
policy = any
unique_subject = no
[any]
commonName = supplied
"""
LEAF = """
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = {}
"""
KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


class Authority:
    """A certificate authority of one's own."""

    def __init__(self, directory: Path, name: str) -> None:
        self.directory = directory / name
        self.directory.mkdir()
        self.certificate = self.directory / "ca.crt"
        (self.directory / "index.txt").touch()
        (self.directory / "ca.cnf").write_text(CA_SETTINGS.format(self.directory))
        extensions = ("keyUsage=critical,keyCertSign,cRLSign", "basicConstraints=critical,CA:TRUE")
        more = [word for text in extensions for word in ("-addext", text)]
        out = ("-keyout", self.directory / "ca.key", "-out", self.certificate)
        self._openssl("req", "-x509", *KEY, "-days", "2", "-subj", f"/CN={name}", *out, *more)

    def issue(self, name: str, host: str, expired: bool = False) -> tuple[Path, Path]:
        """(certificate, key) for a host."""
        path = self.directory / name
        key, request, certificate, extensions = (path.with_suffix(end) for end in (".key", ".csr", ".crt", ".ext"))
        extensions.write_text(LEAF.format(f"DNS:{host}"))
        self._openssl("req", "-new", *KEY, "-subj", f"/CN={host}", "-keyout", key, "-out", request)
        dates = ("20200101000000Z", "20200201000000Z") if expired else ("20200101000000Z", "20450101000000Z")
        signer = ("-cert", self.certificate, "-keyfile", self.directory / "ca.key")
        when = ("-startdate", dates[0], "-enddate", dates[1])
        how = ("-batch", "-notext", "-config", self.directory / "ca.cnf", "-extfile", extensions)
        self._openssl("ca", *how, *signer, *when, "-in", request, "-out", certificate)
        return certificate, key

    def _openssl(self, *words: str | Path) -> None:
        subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True, timeout=30)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the certificates, is not installed")
    return Authority(tmp_path_factory.mktemp("tls"), "right")


class TlsServer:
    """A server with a plain port and one with TLS."""

    def __init__(self, certificate: tuple[Path, Path], ca: Path) -> None:
        self.tls_port = free_port()
        options = ("--tls-port", str(self.tls_port), "--tls-auth-clients", "no", "--tls-ca-cert-file", str(ca))
        files = ("--tls-cert-file", str(certificate[0]), "--tls-key-file", str(certificate[1]))
        self.server = RedisServer(*options, *files, tcp=True)
        self.url = f"rediss://localhost:{self.tls_port}/0"


@pytest.fixture
def serve(authority: Authority) -> Iterator[Any]:
    libraries = subprocess.run(["ldd", server_binary()], capture_output=True, text=True, check=False).stdout
    if "libssl" not in libraries:
        pytest.skip("this server was built without TLS")
    servers: list[RedisServer] = []

    def start(certificate: tuple[Path, Path]) -> TlsServer:
        made = TlsServer(certificate, authority.certificate)
        servers.append(made.server)
        made.server.start()
        return made

    yield start
    for server in servers:
        server.close()


def _check(url: str, ca: Path | None) -> None:
    check_server(connect(RedisConfig(url=url, ca_file=None if ca is None else str(ca)), "test"))


def test_a_fleet_over_tls(authority, serve, cluster, ledger, redis_server):
    """With output that does not fit into one TLS record, and connections that break in between."""
    tls = serve(authority.issue("fleet", "localhost"))
    how = {"url": tls.url, "ca_file": str(authority.certificate)}
    cluster.start("master", redis=how)
    cluster.start("slave", channels=2, redis=how)
    cluster.redis_url = tls.server.url  # the submitter comes by the socket
    with cluster.client() as client, tls.server.client(client_name="admin") as admin:
        ledger.submit(client, [ledger.item(seconds=0.02) for _ in range(30)])
        large = client.submit(["sh", "-c", "yes | head -c 300000"])
        ledger.submit(client, [ledger.item(seconds=1) for _ in range(2)])
        wait_until(lambda: large.state == "done", 20, f"it has ended\n{cluster.logs()}")
        assert large.outcome == "succeeded" and len(large.output()) > 60_000
        assert len({one["name"] for one in admin.client_list() if one["name"].startswith("jobschedd:node")}) >= 5
        admin.client_kill_filter(_type="normal", skipme=True)
        ledger.submit(client, [ledger.item() for _ in range(10)])
        judge(cluster, ledger, admin, within=20)


class TestRefused:
    def test_expired(self, authority, serve):
        tls = serve(authority.issue("expired", "localhost", expired=True))
        with pytest.raises(StoreUnavailable, match="certificate has expired"):
            _check(tls.url, authority.certificate)

    def test_of_another_host(self, authority, serve):
        tls = serve(authority.issue("other", "redis.example.org"))
        with pytest.raises(StoreUnavailable, match="Hostname mismatch"):
            _check(tls.url, authority.certificate)

    def test_of_an_unknown_authority(self, authority, serve, tmp_path):
        tls = serve(authority.issue("good", "localhost"))
        stranger = Authority(tmp_path, "stranger")
        for ca in (stranger.certificate, None):
            with pytest.raises(StoreUnavailable, match="certificate verify failed"):
                _check(tls.url, ca)
        _check(tls.url, authority.certificate)

    def test_a_plain_port_gets_no_plain_text(self, authority, serve):
        """Not even a login: what is meant for TLS is never sent in the clear."""
        tls = serve(authority.issue("good", "localhost"))
        with tls.server.client() as admin:
            before = int(admin.info("stats")["total_commands_processed"])
            with pytest.raises(StoreUnavailable, match=r"(?i)ssl|timeout"):
                _check(tls.server.tcp_url.replace("redis://127.0.0.1", "rediss://localhost"), authority.certificate)
            assert int(admin.info("stats")["total_commands_processed"]) == before + 1, "only our own INFO"

    def test_plain_text_to_the_tls_port(self, authority, serve, cluster):
        tls = serve(authority.issue("good", "localhost"))
        cluster.redis_url = tls.url.replace("rediss", "redis")
        typed = cluster.run("list")
        assert typed.returncode == 69 and typed.stderr.count("\n") == 1, typed.stderr

    def test_a_daemon_says_why_in_one_line_and_goes_on_when_it_is_mended(self, authority, serve, cluster):
        wrong, right = authority.issue("old", "localhost", expired=True), authority.issue("new", "localhost")
        tls = serve(wrong)
        slave = cluster.start("slave", channels=1, redis={"url": tls.url, "ca_file": str(authority.certificate)})
        wait_until(lambda: "certificate has expired" in slave.log(), 5, f"it says so\n{slave.log()}")
        with tls.server.client() as admin:
            admin.execute_command("CONFIG", "SET", "tls-cert-file", str(right[0]), "tls-key-file", str(right[1]))
        wait_until(lambda: "channel connected" in slave.log(), 8, f"it tries again\n{slave.log()}")
        assert slave.log().count("certificate has expired") == 1
        assert "Traceback" not in slave.log()
        assert os.path.exists(right[0])
