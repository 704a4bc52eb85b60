"""NIP-05 against a local HTTPS server: what is believed, and what a hostile domain can not do."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from market.errors import Refused, Unreachable
from market.node.nip05 import MAX_ANSWER, UnknownName, look_up, parse_name
from market.swarm import AddressPolicy
from market.trust import NotAPerson

KEY = "7e7e9c42a91bfef19fa929e5fda1b72e0ebc1a4c1141673e2794234d86addf4e"
LOCAL = AddressPolicy(allow_private=True)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-keyout", str(key), "-out", str(cert), "-days", "2", "-subj", "/CN=ada.example"),
            *("-addext", "subjectAltName=DNS:ada.example"),
        ],
        check=True,
        capture_output=True,
    )
    return cert, key


class Domain:
    """An HTTPS server that says what a test wants said, once for each connection."""

    def __init__(self, certificate: tuple[Path, Path]) -> None:
        self.answer = b""
        self.asked: list[bytes] = []
        self.slowly = 0.0
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.load_cert_chain(*certificate)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def says(self, body: bytes, status: str = "200 OK", **headers: str) -> None:
        more = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self.answer = f"HTTP/1.1 {status}\r\n{more}Content-Length: {len(body)}\r\n\r\n".encode() + body

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()

    def _serve(self) -> None:
        while True:
            try:
                plain, _ = self._socket.accept()
            except OSError:
                return
            try:
                with self._tls.wrap_socket(plain, server_side=True) as sock:
                    self.asked.append(sock.recv(4096))
                    if not self.slowly:
                        sock.sendall(self.answer)
                    for byte in self.answer if self.slowly else b"":
                        sock.sendall(bytes([byte]))
                        time.sleep(self.slowly)  # the hostile server's own dawdling, not the test's
            except OSError:
                continue


@pytest.fixture
def domain(certificate: tuple[Path, Path]) -> Iterator[Domain]:
    server = Domain(certificate)
    yield server
    server.close()


@pytest.fixture
def ask(domain: Domain, certificate: tuple[Path, Path]) -> Callable[..., str]:
    def resolve(host: str, port: int) -> list[tuple[Any, ...]]:
        assert host == "ada.example"
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", port))]

    def asked(text: str = "ada@ada.example", addresses: AddressPolicy = LOCAL, **more: Any) -> str:
        tls = ssl.create_default_context(cafile=str(certificate[0]))
        return look_up(text, addresses, **{"resolve": resolve, "tls": tls, "port": domain.port, **more})

    return asked


def names(**named: object) -> bytes:
    return json.dumps({"names": named}).encode()


def test_a_name_is_looked_up_over_https_and_only_that_name_is_asked_for(
    domain: Domain, ask: Callable[..., str]
) -> None:
    domain.says(names(ada=KEY, eve="11" * 32))
    assert ask("Ada@Ada.Example") == f"nostr:{KEY}"
    assert domain.asked[0].startswith(b"GET /.well-known/nostr.json?name=ada HTTP/1.1\r\n")


def test_a_domain_that_leads_to_a_private_address_is_not_spoken_to(domain: Domain, ask: Callable[..., str]) -> None:
    with pytest.raises(Refused, match="no public address"):
        ask(addresses=AddressPolicy())
    assert domain.asked == []


def test_a_redirect_is_not_followed(domain: Domain, ask: Callable[..., str]) -> None:
    domain.says(b"", "302 Found", Location="https://other.example/")
    with pytest.raises(UnknownName, match="redirects are not followed"):
        ask()
    assert len(domain.asked) == 1


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'{"names":[]}',
        names(),
        names(ada=None),
        names(ada="npub1"),
        names(ada="FF" * 32),
        b"[" * 60_000,
    ],
)
def test_an_answer_that_names_no_key_names_nobody(domain: Domain, ask: Callable[..., str], body: bytes) -> None:
    domain.says(body)
    with pytest.raises(UnknownName):
        ask()


def test_an_endless_answer_is_cut_off(domain: Domain, ask: Callable[..., str]) -> None:
    domain.says(b" " * (MAX_ANSWER + 1))
    with pytest.raises(Refused, match="more than"):
        ask()


def test_a_slow_drip_ends_at_the_deadline(domain: Domain, ask: Callable[..., str]) -> None:
    domain.says(names(ada=KEY))
    domain.slowly = 0.05
    began = time.monotonic()
    with pytest.raises(Unreachable):
        ask(deadline=0.4)
    assert time.monotonic() - began < 5


def test_another_domains_certificate_is_no_answer(domain: Domain, ask: Callable[..., str]) -> None:
    domain.says(names(ada=KEY))
    rows = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", domain.port))]
    with pytest.raises(Unreachable, match="certificate"):
        ask("ada@eve.example", resolve=lambda host, port: rows)


def test_what_is_not_http_is_refused(domain: Domain, ask: Callable[..., str]) -> None:
    domain.answer = b"SSH-2.0-OpenSSH_9.2\r\n\r\n"
    with pytest.raises(Refused, match="not HTTP"):
        ask()


@pytest.mark.parametrize(
    "text", ["ada@", "@x.example", "ada@localhost", "ada@127.0.0.1", "a da@x.example", "ada@x.example:8080"]
)
def test_what_is_no_name_is_refused_before_anything_is_asked(text: str) -> None:
    with pytest.raises(NotAPerson):
        parse_name(text)
