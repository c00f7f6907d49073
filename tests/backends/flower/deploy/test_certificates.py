"""Certificates that TLS accepts for the named hosts alone, and keys that Flower reads."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from fedsim.backends.flower.deploy.certificates import Credentials, make
from fedsim.cli import main
from fedsim.errors import ConfigError, DeployError, PlaceError


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Credentials:
    return make(tmp_path_factory.mktemp("certificates") / "deep", 2, ["server.example.org"])


def shake_hands(made: Credentials, ca: Path, host: str) -> str | None:
    """The TLS version that a client which trusts ``ca`` agrees on with the server."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(*made.server)
    client = ssl.create_default_context(cafile=str(ca))
    ours, theirs = socket.socketpair()

    def serve() -> None:
        with contextlib.suppress(ssl.SSLError, OSError), server.wrap_socket(theirs, server_side=True) as connection:
            connection.recv(1)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client.wrap_socket(ours, server_hostname=host) as connection:
            connection.send(b"x")
            return connection.version()
    finally:
        ours.close()
        thread.join()
        theirs.close()


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "server.example.org"])
def test_the_server_is_trusted_under_its_names(made: Credentials, host: str) -> None:
    """Its own processes, and Flower's commands on its machine, reach it at 127.0.0.1, whatever its name is."""
    assert shake_hands(made, made.ca, host) == "TLSv1.3"


def test_and_under_no_other(made: Credentials, tmp_path: Path) -> None:
    for host in ("127.0.0.2", "example.org"):
        with pytest.raises(ssl.SSLCertVerificationError, match="not valid for"):
            shake_hands(made, made.ca, host)
    with pytest.raises(ssl.SSLCertVerificationError, match="certificate verify failed"):
        shake_hands(made, make(tmp_path, 1).ca, "localhost")


def test_every_node_has_a_key_of_its_own(made: Credentials) -> None:
    public = []
    for i in range(2):
        private = load_ssh_private_key(made.node(i).read_bytes(), None)
        known = load_ssh_public_key(made.node(i).with_suffix(".pub").read_bytes())
        assert isinstance(private, ec.EllipticCurvePrivateKey) and isinstance(private.curve, ec.SECP384R1)
        assert isinstance(known, ec.EllipticCurvePublicKey)
        assert private.public_key() == known
        public.append(known.public_numbers().x)
    assert public[0] != public[1]


def test_private_files_are_the_owners(made: Credentials) -> None:
    private = [made.folder / "ca.key", made.server[1], made.node(0), made.node(1)]
    assert [path.stat().st_mode & 0o777 for path in private] == [0o600] * 4


def test_nothing_is_overwritten_and_what_lacks_is_named(made: Credentials, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ca.crt exists; certificates are never overwritten"):
        make(made.folder, 2)
    made.check()
    with pytest.raises(DeployError, match=r"node-2.key is missing; .* fedsim certificates --output FOLDER --nodes 3"):
        Credentials(made.folder, 3).check()
    with pytest.raises(ConfigError, match="nodes is 0; expected 1 or more"):
        make(tmp_path, 0)
    with pytest.raises(ConfigError, match="hosts is empty; expected names"):
        make(tmp_path, 1, [])
    (tmp_path / "file").touch()
    with pytest.raises(PlaceError, match="file is no folder"):
        make(tmp_path / "file", 1)


@pytest.mark.parametrize("host", ["bad host!", "a..b", "-a", "a.org/x", "10.0.0.256", "1.2", "bücher.de", "a" * 64])
def test_what_is_no_host_is_refused(tmp_path: Path, host: str) -> None:
    with pytest.raises(ConfigError, match="is not a host; expected a name such as"):
        make(tmp_path / "c", 1, ["localhost", host])
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("host", ["::1", "a", "*.example.org", "3com.example.org", "my_server", "a-b.c-d", "a" * 63])
def test_names_and_addresses_are_hosts(tmp_path: Path, host: str) -> None:
    made = make(tmp_path / "c", 1, [host])
    assert shake_hands(made, made.ca, host.replace("*", "any")) == "TLSv1.3"


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["certificates", "--output", str(tmp_path / "c"), "--nodes", "1", "--hosts", "a.example.org, 10.0.0.1"]
    assert main(command) == 0
    assert "ca.crt for every machine" in capsys.readouterr().out
    assert shake_hands(Credentials(tmp_path / "c", 1), tmp_path / "c/ca.crt", "10.0.0.1")
    assert main(command) == 2
    assert "never overwritten" in capsys.readouterr().err
