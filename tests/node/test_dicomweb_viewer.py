"""The viewer at the node's own origin."""

from pathlib import Path
from typing import Any

import pytest
from django.test import Client

from pacs_node.config import NodeConfig
from pacs_node.dicomweb import viewer
from tests.node.dicomweb_node import join

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "vendor" / "ohif"
    folder.mkdir(parents=True)
    (folder / "index.html").write_text("<html>viewer</html>", encoding="utf-8")
    (folder / "app.bundle.0123456789abcdef.js").write_text("plain", encoding="utf-8")
    (folder / "app.bundle.0123456789abcdef.js.gz").write_bytes(b"packed")
    (tmp_path / "vendor" / "secret.txt").write_text("secret", encoding="utf-8")
    monkeypatch.setattr(viewer, "config", lambda: NodeConfig(vendor_dir=tmp_path / "vendor", name="clinic-a"))


def text(response: Any) -> bytes:
    return b"".join(response.streaming_content) if response.streaming else response.content


@pytest.mark.parametrize("path", ["", "viewer?StudyInstanceUIDs=1.2.3", "1.2.840.3"])
def test_every_address_of_the_application_gives_its_page(client: Client, path: str) -> None:
    join()
    page = client.get(f"/viewer/{path}")
    assert (page.status_code, text(page)) == (200, b"<html>viewer</html>")
    assert page["Cache-Control"] == "no-cache"
    assert page["Content-Security-Policy"] == "frame-ancestors 'self' https://centre.example"
    assert "X-Frame-Options" not in page
    assert page["Cross-Origin-Opener-Policy"] == "unsafe-none"


def test_files_with_a_digest_in_their_name_are_kept_for_ever_and_sent_compressed(client: Client) -> None:
    path = "/viewer/app.bundle.0123456789abcdef.js"
    plain = client.get(path)
    assert (text(plain), plain["Content-Type"]) == (b"plain", "text/javascript")
    assert "immutable" in plain["Cache-Control"]
    packed = client.get(path, headers={"Accept-Encoding": "gzip, br"})
    assert (text(packed), packed["Content-Encoding"]) == (b"packed", "gzip")
    assert client.get(path, headers={"If-None-Match": plain["ETag"]}).status_code == 304


@pytest.mark.parametrize("path", ["missing.js", "../secret.txt", "%2e%2e/secret.txt", "..%2fsecret.txt"])
def test_nothing_outside_the_viewer_is_given(client: Client, path: str) -> None:
    response = client.get(f"/viewer/{path}")
    assert response.status_code == 404
    assert b"secret" not in text(response)


def test_the_settings_name_the_node_and_are_never_kept(client: Client) -> None:
    join()
    settings = client.get("/viewer/app-config.js")
    assert b'"name": "clinic-a"' in settings.content
    assert b'"centre": "https://centre.example"' in settings.content
    assert settings["Cache-Control"] == "no-store"
