"""DICOM over TLS with certificates on both sides, by DCMTK and by a node against a node."""

import json
import socket
import ssl
import subprocess
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.sop_class import CTImageStorage, Verification

from deploy.processes import free_port, port_is_free, wait_until
from tests.factories.dicom import ct_series
from tests.node.conftest import AE_TITLE, NodeProcess, need

MakeNode = Callable[..., NodeProcess]


class Authority:
    """A certificate authority of the test's own."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = self._sign(self._name, self._key, is_authority=True)
        self.path = folder / f"{name}.pem"
        self.path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def _sign(self, subject: x509.Name, key: rsa.RSAPrivateKey, *, is_authority: bool) -> x509.Certificate:
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        )
        return builder.sign(self._key, hashes.SHA256())

    def issue(self, name: str) -> tuple[Path, Path]:
        """A key and a certificate for 127.0.0.1: (key file, certificate file)."""
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = self._sign(subject, key, is_authority=False)
        key_path, certificate_path = self._folder / f"{name}.key", self._folder / f"{name}.crt"
        key_path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
            )
        )
        certificate_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return key_path, certificate_path


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "site")


def tls_settings(authority: Authority, name: str) -> tuple[int, dict[str, str]]:
    port = free_port()
    key, certificate = authority.issue(name)
    return port, {
        "REGIS_NODE_DICOM_TLS_PORT": str(port),
        "REGIS_NODE_DICOM_TLS_KEY": str(key),
        "REGIS_NODE_DICOM_TLS_CERTIFICATE": str(certificate),
        "REGIS_NODE_DICOM_TLS_CA": str(authority.path),
    }


def dcmtk(tool: str, port: int, *words: str | Path) -> subprocess.CompletedProcess[bytes]:
    command = [need(tool), "-aet", "MODALITY", "-aec", AE_TITLE, *map(str, words[:-1]), "127.0.0.1", str(port)]
    return subprocess.run([*command, *([str(words[-1])] if words[-1] else [])], capture_output=True, timeout=120)


def test_dcmtk_stores_by_tls_with_a_certificate_of_the_site(
    make_node: MakeNode, authority: Authority, tmp_path: Path
) -> None:
    port, settings = tls_settings(authority, "node")
    node = make_node(**settings)
    key, certificate = authority.issue("modality")
    dataset = ct_series(1)[0]
    dataset.save_as(tmp_path / "one.dcm", enforce_file_format=True)
    done = dcmtk("storescu", port, "+tls", key, certificate, "+cf", authority.path, tmp_path / "one.dcm")
    assert done.returncode == 0, done.stderr
    assert [sop for sop, _, _ in node.held(str(dataset.StudyInstanceUID))] == [str(dataset.SOPInstanceUID)]
    assert dcmtk("echoscu", port, "+tls", key, certificate, "+cf", authority.path, "").returncode == 0


def test_a_peer_without_a_certificate_or_with_a_strangers_is_turned_away_and_shown(
    make_node: MakeNode, authority: Authority, tmp_path: Path
) -> None:
    port, settings = tls_settings(authority, "node")
    node = make_node(**settings)
    strangers = Authority(tmp_path, "strangers").issue("stranger")
    assert dcmtk("echoscu", port, "+tla", "+cf", authority.path, "").returncode != 0
    assert dcmtk("echoscu", port, "+tls", *strangers, "+cf", authority.path, "").returncode != 0
    assert dcmtk("echoscu", port, "").returncode != 0
    counted = "SELECT reason, attempts FROM clinic_refusedassociation"
    wait_until(lambda: node.sql(counted) == [("the TLS handshake failed", 3)], 120, "all three are counted")
    assert node.dcmtk(need("echoscu")).returncode == 0


def test_a_handshake_that_never_ends_keeps_nobody_waiting(make_node: MakeNode, authority: Authority) -> None:
    port, settings = tls_settings(authority, "node")
    node = make_node(**settings)
    key, certificate = authority.issue("modality")
    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]
    try:  # one after the other they would take 15 seconds each, and the client gives up before
        assert dcmtk("echoscu", port, "+tls", key, certificate, "+cf", authority.path, "").returncode == 0
    finally:
        for one in silent:
            one.close()
    assert node.dcmtk(need("echoscu")).returncode == 0


def test_old_versions_of_tls_are_refused(make_node: MakeNode, authority: Authority) -> None:
    port, settings = tls_settings(authority, "node")
    make_node(**settings)
    key, certificate = authority.issue("modality")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_cert_chain(certificate, key)
    context.load_verify_locations(authority.path)
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    with (
        socket.create_connection(("127.0.0.1", port), 60) as plain,
        pytest.raises(ssl.SSLError, match=r"ALERT|VERSION"),
    ):
        context.wrap_socket(plain, server_hostname="127.0.0.1")


def test_the_plain_port_can_be_switched_off(make_node: MakeNode, authority: Authority) -> None:
    port, settings = tls_settings(authority, "node")
    node = make_node(start=False, **settings)
    plain = node.dicom_port
    node.settings["REGIS_NODE_DICOM_PORT"] = "0"
    node.start()
    assert port_is_free(plain)
    key, certificate = authority.issue("modality")
    assert dcmtk("echoscu", port, "+tls", key, certificate, "+cf", authority.path, "").returncode == 0
    with urllib.request.urlopen(f"http://127.0.0.1:{node.http_port}/healthz") as answer:
        assert json.load(answer)["parts"]["dicom"] == "ok"
    assert node.sql("SELECT count(*) FROM clinic_refusedassociation") == [(0,)]


def test_a_missing_setting_is_named_and_nothing_is_served(make_node: MakeNode) -> None:
    node = make_node(start=False, REGIS_NODE_DICOM_TLS_PORT=str(free_port()))
    done = node.command("run", "pacs", check=False)
    assert done.returncode != 0
    assert "REGIS_NODE_DICOM_TLS_CERTIFICATE" in done.stderr


def test_the_node_sends_by_tls_to_an_entity_that_speaks_it(make_node: MakeNode, authority: Authority) -> None:
    here_port, here = tls_settings(authority, "here")
    there_port, there = tls_settings(authority, "there")
    clinic, archive = make_node(**here), make_node(REGIS_NODE_AE_TITLE="ARCHIVE", **there)
    clinic.admit("ARCHIVE", host="127.0.0.1", port=there_port, uses_tls=True)
    archive.admit(AE_TITLE, host="127.0.0.1", port=here_port, uses_tls=True)
    sets = ct_series(3)
    entity = AE(ae_title="MODALITY")
    entity.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
    entity.add_requested_context(Verification)
    association = entity.associate("127.0.0.1", clinic.dicom_port, ae_title=AE_TITLE)
    assert {association.send_c_store(dataset).Status for dataset in sets} == {0}
    association.release()
    uid = str(sets[0].StudyInstanceUID)
    done = clinic.dcmtk(
        need("movescu"), "-S", "-aem", "ARCHIVE", "-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={uid}"
    )
    assert done.returncode == 0, done.stderr
    assert len(archive.held(uid)) == 3
    for stored, sent in zip(clinic.files(uid), archive.files(uid), strict=True):
        assert stored.read_bytes()[-8192:] == sent.read_bytes()[-8192:]
    pairs = [(str(dataset.SOPClassUID), str(dataset.SOPInstanceUID)) for dataset in sets]
    clinic.python(f"from pacs_node.dimse.commitment import ask\nask('ARCHIVE', {pairs!r})")
    query = "SELECT status FROM dimse_commitment WHERE role = 'scu'"
    wait_until(lambda: clinic.sql(query) == [("done",)], 120, "commitment by TLS")


def test_the_node_does_not_send_to_who_shows_a_strangers_certificate(
    make_node: MakeNode, authority: Authority, tmp_path: Path
) -> None:
    _, here = tls_settings(authority, "here")
    there_port, there = tls_settings(Authority(tmp_path, "strangers"), "there")
    clinic, archive = make_node(**here), make_node(REGIS_NODE_AE_TITLE="ARCHIVE", **there)
    clinic.admit("ARCHIVE", host="127.0.0.1", port=there_port, uses_tls=True)
    archive.admit(AE_TITLE)
    dataset = ct_series(1)[0]
    entity = AE(ae_title="MODALITY")
    entity.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
    association = entity.associate("127.0.0.1", clinic.dicom_port, ae_title=AE_TITLE)
    assert association.send_c_store(dataset).Status == 0
    association.release()
    uid = str(dataset.StudyInstanceUID)
    done = clinic.dcmtk(
        need("movescu"),
        "-d",
        "-S",
        "-aem",
        "ARCHIVE",
        "-k",
        "QueryRetrieveLevel=STUDY",
        "-k",
        f"StudyInstanceUID={uid}",
    )
    assert b"0xa702" in (done.stdout + done.stderr).lower()
    assert archive.held(uid) == []
