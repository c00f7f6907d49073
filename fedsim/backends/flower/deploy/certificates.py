"""Certificates and keys of a federation: TLS for the SuperLink, and a key for the authentication of each SuperNode.

    ca.crt, ca.key           the federation's own certificate authority; ca.key only signs further servers
    server.pem, server.key   the SuperLink's certificate, for its host names and addresses, and its key
    node-0.key, node-0.pub   a key pair for each node: the private key goes to the node, the public one is registered

Elliptic curves throughout: P-256 for TLS, P-384 for nodes, as Flower requires.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from fedsim.errors import ConfigError, DeployError, how_to_install
from fedsim.record.files import private_folder
from fedsim.record.places import refusal

try:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import (
        SECP256R1,
        SECP384R1,
        EllipticCurvePrivateKey,
        EllipticCurvePublicKey,
        generate_private_key,
    )
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
except ImportError as error:
    raise DeployError(f"certificates need the package cryptography; {how_to_install('flower')}") from error

HERE = ("localhost", "127.0.0.1")
DAYS = 365
"""Validity of certificates."""
CLOCK_SKEW = timedelta(hours=1)
"""Tolerated lag of a node's clock."""
LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
NAME = re.compile(rf"(\*\.)?({LABEL}\.)*(?![0-9]+$){LABEL}")
"""A host name; its last label is not a number, unlike that of an IPv4 address."""


@dataclass(frozen=True)
class Credentials:
    """Certificate and key files of a federation.

    Attributes:
        folder: of the files.
        nodes: number of nodes with a key.
    """

    folder: Path
    nodes: int

    @property
    def ca(self) -> Path:
        """Certificate of the authority, needed on every machine."""
        return self.folder / "ca.crt"

    @property
    def server(self) -> tuple[Path, Path]:
        """Certificate and key of the SuperLink."""
        return self.folder / "server.pem", self.folder / "server.key"

    def node(self, i: int) -> Path:
        """Private key of a node; its public key has the suffix ``.pub``."""
        return self.folder / f"node-{i}.key"

    def check(self) -> None:
        """Raise DeployError, naming the first missing file, unless all exist."""
        keys = [path for i in range(self.nodes) for path in (self.node(i), self.node(i).with_suffix(".pub"))]
        for path in (self.ca, *self.server, *keys):
            if not path.is_file():
                raise DeployError(
                    f"{path} is missing; expected the certificates and keys of {self.nodes} nodes there. Make new ones"
                    f" in another folder: fedsim certificates --output FOLDER --nodes {self.nodes}"
                )


def make(folder: Path, nodes: int, hosts: Sequence[str] = HERE) -> Credentials:
    """Write new certificates and keys; private keys are readable by their owner only.

    Args:
        folder: created if missing.
        nodes: number of nodes, each with a key.
        hosts: names and addresses of the SuperLink, besides ``HERE``, at which its processes and Flower's commands
            reach it.

    Raises:
        ConfigError: there is no node, no host or an invalid one, or the folder holds certificates already.
        RunError: the folder cannot be written.
    """
    made = Credentials(folder, nodes)
    if nodes < 1:
        raise ConfigError(f"nodes is {nodes}; expected 1 or more")
    if not hosts:
        raise ConfigError("hosts is empty; expected names and addresses of the SuperLink")
    names = [_host(host) for host in dict.fromkeys([*hosts, *HERE])]
    if made.ca.exists():
        raise ConfigError(f"{made.ca} exists; certificates are never overwritten. Choose another folder, or remove it")
    ca_key, server_key = generate_private_key(SECP256R1()), generate_private_key(SECP256R1())
    ca = _authority(ca_key)
    try:
        private_folder(folder)
        _write_private(folder / "ca.key", _pem(ca_key))
        _write_private(made.server[1], _pem(server_key))
        made.server[0].write_bytes(_server(server_key, names, ca, ca_key).public_bytes(Encoding.PEM))
        for i in range(nodes):
            key = generate_private_key(SECP384R1())
            _write_private(made.node(i), key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
            public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
            made.node(i).with_suffix(".pub").write_bytes(public + b"\n")
        made.ca.write_bytes(ca.public_bytes(Encoding.PEM))  # last: marks a complete set
    except OSError as error:
        raise refusal(made.ca, error, "choose another folder") from error
    return made


def _authority(key: EllipticCurvePrivateKey) -> x509.Certificate:
    """Self-signed certificate of a new authority."""
    name = _name("fedsim federation")
    builder = _builder(name, name, key.public_key(), key)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    return builder.add_extension(_usage(signs=True), critical=True).sign(key, SHA256())


def _server(
    key: EllipticCurvePrivateKey,
    hosts: Sequence[x509.GeneralName],
    ca: x509.Certificate,
    ca_key: EllipticCurvePrivateKey,
) -> x509.Certificate:
    """Certificate of a server with the names and addresses ``hosts``."""
    builder = _builder(_name(str(hosts[0].value)[:64]), ca.subject, key.public_key(), ca_key)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(signs=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    builder = builder.add_extension(x509.SubjectAlternativeName(hosts), critical=False)
    return builder.sign(ca_key, SHA256())


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        if len(host) > 253 or not NAME.fullmatch(host):
            expected = "a name such as server.example.org, or an address"
            raise ConfigError(f"{host!r} is not a host; expected {expected}") from None
        return x509.DNSName(host)


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _builder(
    subject: x509.Name, issuer: x509.Name, public: EllipticCurvePublicKey, issuer_key: EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    """Builder with the fields common to both certificates."""
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(issuer, subject, public, x509.random_serial_number())
    builder = builder.not_valid_before(now - CLOCK_SKEW).not_valid_after(now + timedelta(days=DAYS))
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
    builder = builder.add_extension(identifier, critical=False)
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)


def _usage(signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=signs, crl_sign=signs, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _pem(key: EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _write_private(path: Path, data: bytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(data)
