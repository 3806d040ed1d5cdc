"""The demo refuses what cannot work in one sentence, and plans a region whose parts do not meet."""

import shutil
import socket
import ssl
import stat
import threading
from pathlib import Path

import pytest

from deploy import demo as demo_module
from deploy.certificates import ensure_authority, ensure_certificate
from deploy.demo import Demo, DemoError
from deploy.processes import free_port, port_is_free
from deploy.region import NODES, PEOPLE, SITES, Ports, Secrets, document, seed


def free_base() -> int:
    """The first of fifty ports nobody uses."""
    while True:
        base = min(free_port(), 60_000)
        if all(port_is_free(port) for port in Ports(base).all().values()):
            return base


def test_no_two_servers_of_a_region_share_a_port() -> None:
    ports = Ports(8000).all()
    assert len(set(ports.values())) == len(ports)
    assert set(ports.values()) <= set(range(8000, 8050))


def test_a_port_in_use_is_named_with_the_way_out(tmp_path: Path) -> None:
    base = free_base()
    sentence = rf"^Port {base + 12} \(archive dicom\) is in use: .*--port-base\.$"
    with socket.create_server(("127.0.0.1", base + 12)), pytest.raises(DemoError, match=sentence):
        Demo(tmp_path, base).prepare()


def test_a_directory_where_a_demo_runs_is_refused(tmp_path: Path) -> None:
    base = free_base()
    first = Demo(tmp_path, base)
    first.prepare()
    with pytest.raises(DemoError, match=r"^Another demo runs in .*: stop it, or choose another --dir\.$"):
        Demo(tmp_path, base).prepare()


def test_a_nearly_full_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_module, "NEEDED_BYTES", shutil.disk_usage(tmp_path).total * 2)
    with pytest.raises(DemoError, match="needs 1 GB"):
        Demo(tmp_path, free_base()).prepare()


def test_ports_beyond_the_last_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DemoError, match="lower --port-base"):
        Demo(tmp_path, 65_530).prepare()


def test_secrets_are_made_once_and_readable_by_their_owner_only(tmp_path: Path) -> None:
    first = Secrets.of(tmp_path)
    assert Secrets.of(tmp_path) == first
    assert Secrets.of(tmp_path / ".." / tmp_path.name) == first
    assert stat.S_IMODE((tmp_path / "secrets.json").stat().st_mode) == 0o600


def test_the_seed_names_only_sites_and_nodes_that_it_has(tmp_path: Path) -> None:
    content = seed(Secrets.of(tmp_path))
    sites = {site["code"] for site in content["sites"]}
    nodes = {node["name"] for node in content["nodes"]}
    assert {node["site"] for node in content["nodes"]} <= sites
    assert {device["node"] for device in content["devices"]} <= nodes
    assert {user["site"] for user in content["users"]} <= sites
    assert {person.role for person in PEOPLE} == {
        "radiologist",
        "expert",
        "registrar",
        "clerk",
        "engineer",
        "administrator",
    }
    assert len({site["accession_prefix"] for site in SITES}) == len(SITES)
    titles = [node.aet for node in NODES] + [device.aet for node in NODES for device in node.modalities]
    assert len(set(titles)) == len(titles)
    assert all(len(title) <= 16 for title in titles)


def test_the_region_document_keeps_its_contract(tmp_path: Path) -> None:
    told = document(Ports(8000), Secrets.of(tmp_path), tmp_path / "ca.pem", {"centre-web": 7})
    assert told["centre"]["url"] == "http://127.0.0.1:8000"
    assert told["centre"]["hl7"] == {"host": "127.0.0.1", "port": 8002}
    assert told["centre"]["api_token"]
    assert [node["kind"] for node in told["nodes"]] == ["archive", "clinic", "clinic", "gateway"]
    for node in told["nodes"]:
        assert set(node) >= {"name", "kind", "url", "https_url", "aet", "host", "dicom_port", "modalities"}
        assert all(set(device) >= {"aet", "charset"} for device in node["modalities"])
    assert all(set(user) == {"username", "password", "role", "site"} for user in told["users"])
    assert told["pids"] == {"centre-web": 7}
    assert told["ca"] == str(tmp_path / "ca.pem")


def test_a_certificate_proves_a_server_of_this_machine_to_those_who_trust_the_authority(tmp_path: Path) -> None:
    authority = ensure_authority(tmp_path)
    certificate, key = ensure_certificate(tmp_path, "centre")
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert ensure_certificate(tmp_path, "centre") == (certificate, key)
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(certificate, key)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with server.wrap_socket(connection, server_side=True) as secure:
                secure.sendall(b"hello")

        thread = threading.Thread(target=serve)
        thread.start()
        client = ssl.create_default_context(cafile=str(authority))
        plain = socket.create_connection(listener.getsockname())
        with client.wrap_socket(plain, server_hostname="127.0.0.1") as secure:
            assert secure.recv(10) == b"hello"
        thread.join()


def test_join_codes_of_the_demo_are_never_taken_for_an_option(tmp_path: Path) -> None:
    for number in range(50):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert all(code.isalnum() for code in Secrets.of(folder).join_codes.values())
