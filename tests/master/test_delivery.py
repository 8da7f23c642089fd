"""Webhooks over TLS, and who is told of what."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from faults.test_tls import Authority
from jobschedd.config import HookConfig, Secret
from jobschedd.job import Outcome
from jobschedd.master.delivery import Deliverer, DeliveryFailed
from jobschedd.master.hooks import FAILURES, Story, matches, wanted


def hook(**fields: Any) -> HookConfig:
    return HookConfig(**({"name": "a", "on": ("failure",)} | fields))


class Accepts(BaseHTTPRequestHandler):
    heard: list[bytes] = []  # noqa: RUF012 - of all requests of a test

    def do_POST(self) -> None:
        self.heard.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "ours")


@pytest.fixture
def url(authority: Authority) -> Iterator[str]:
    """An endpoint with a certificate for localhost."""
    certificate, key = authority.issue("localhost", "localhost")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = HTTPServer(("127.0.0.1", 0), Accepts)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Accepts.heard.clear()
    yield f"https://localhost:{server.server_port}/s3cret"
    server.shutdown()
    server.server_close()


def post(url: str, **fields: Any) -> None:
    Deliverer(hook(webhook=Secret(url), timeout=5, **fields), None).deliver("1-1", b"{}")  # type: ignore[arg-type]


class TestTls:
    def test_with_the_authority_it_is_taken(self, url: str, authority: Authority):
        post(url, ca_file=str(authority.certificate))
        assert Accepts.heard == [b"{}"]

    def test_without_it_nothing_is_told(self, url: str):
        with pytest.raises(DeliveryFailed, match="reached: unable to get local issuer certificate"):
            post(url)
        assert Accepts.heard == []

    def test_for_another_name_nothing_is_told(self, url: str, authority: Authority):
        with pytest.raises(DeliveryFailed, match="IP address mismatch"):
            post(url.replace("localhost", "127.0.0.1"), ca_file=str(authority.certificate))
        assert Accepts.heard == []

    @pytest.mark.parametrize(
        ("address", "fields"),
        [
            ("http://127.0.0.1:1/s3cret", {}),
            ("http://no.such.host.invalid/s3cret", {}),
            ("http://127.0.0.1:notaport/s3cret", {}),
            ("https://127.0.0.1:1/s3cret", {"ca_file": "/no/such/s3cret.pem"}),
            ("http://127.0.0.1:1/x", {"token_file": "/no/such/file"}),
            ("http://127.0.0.1:1/x", {"token": Secret("s3cret\nX: y")}),
        ],
    )
    def test_what_goes_wrong_tells_no_secret(self, address: str, fields: dict[str, Any]):
        with pytest.raises(DeliveryFailed) as failure:
            post(address, **fields)
        assert "s3cret" not in str(failure.value) and failure.value.__cause__ is None


@pytest.mark.parametrize(
    ("fields", "story", "told"),
    [
        ({}, Story("failure"), True),
        ({}, Story("success"), False),
        ({}, Story(""), False),
        ({"jobs": "etl-*"}, Story("failure", name="etl-1"), True),
        ({"jobs": "etl-*"}, Story("failure", name="ETL-1"), False),
        ({"jobs": "etl-*"}, Story("failure"), False),
        ({"on": ("late",)}, Story("late", hook="a"), True),
        ({"on": ("late",)}, Story("late", hook="b"), False),
        ({"on": ("node_down",), "nodes": "web-*", "jobs": "x"}, Story("node_down", node="web-1"), True),
        ({"on": ("node_down",), "nodes": "web-*"}, Story("node_down", node="db-1"), False),
        ({"on": ("node_down",)}, Story("node_up", node="db-1"), False),
    ],
)
def test_who_is_told(fields: dict[str, Any], story: Story, told: bool):
    assert matches(hook(**fields), story) is told


def test_what_ends_are_events():
    assert wanted([]) == wanted([hook(on=("late", "node_up"))]) == set()
    assert wanted([hook(), hook(on=("success",))]) == {Outcome.SUCCEEDED, *FAILURES}
    assert Outcome.CANCELLED not in FAILURES
