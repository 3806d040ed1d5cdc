"""A certificate authority and server certificates for regions that have none of their own."""

import datetime
import ipaddress
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from deploy.processes import write_private

RENEW_BEFORE = datetime.timedelta(days=30)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _write(folder: Path, name: str, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
    encoded = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write_private(folder / f"{name}.key", encoded.decode())
    (folder / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def _still_good(certificate: Path) -> bool:
    if not certificate.exists():
        return False
    return x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc - _now() > RENEW_BEFORE


def ensure_authority(folder: Path) -> Path:
    """The authority's certificate `ca.pem` in `folder`, made with its key when missing or soon to expire."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (_still_good(folder / "ca.pem") and (folder / "ca.key").exists()):
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name("Regis demo authority")
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(_now() - datetime.timedelta(minutes=5))
            .not_valid_after(_now() + datetime.timedelta(days=3650))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        for old in folder.glob("*.pem"):
            old.unlink()
        _write(folder, "ca", key, certificate)
    return folder / "ca.pem"


def ensure_certificate(folder: Path, name: str, addresses: Sequence[str] = ()) -> tuple[Path, Path]:
    """Certificate and key of a server on this machine, signed by the authority in `folder`.

    `addresses` are IPv4 addresses that it is reached by besides 127.0.0.1.
    """
    certificate_file, key_file = folder / f"{name}.pem", folder / f"{name}.key"
    if not (_still_good(certificate_file) and key_file.exists()):
        authority = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
        authority_key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
        if not isinstance(authority_key, ec.EllipticCurvePrivateKey):
            raise TypeError(f"{folder / 'ca.key'} holds another kind of key than Regis makes")
        key = ec.generate_private_key(ec.SECP256R1())
        usage = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
        names = [
            x509.DNSName("localhost"),
            x509.DNSName(name),
            *(x509.IPAddress(ipaddress.IPv4Address(address)) for address in ("127.0.0.1", *addresses)),
        ]
        certificate = (
            x509.CertificateBuilder()
            .subject_name(_name(name))
            .issuer_name(authority.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(_now() - datetime.timedelta(minutes=5))
            .not_valid_after(_now() + datetime.timedelta(days=397))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False
            )
            .sign(authority_key, hashes.SHA256())
        )
        _write(folder, name, key, certificate)
    return certificate_file, key_file
