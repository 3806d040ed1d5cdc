"""Set-up takes only what the locks name, from where the machine is told to look."""

import hashlib
import http.server
import io
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.downloads import SetupError, download, index_files, locked, npm_registry, python_index
from deploy.processes import free_port
from deploy.vendor import unpack

WHEEL = b"not really a wheel"


class _Index(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        pages = {
            "/simple/uv/": b'<a href="../../files/uv-1.0-py3-none-any.whl#sha256=00">uv</a>',
            "/files/uv-1.0-py3-none-any.whl": WHEEL,
        }
        body = pages.get(self.path)
        self.send_response(200 if body else 404)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def index() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Index) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/simple/"
        server.shutdown()


def test_a_wheel_is_found_on_an_index_page_and_kept_when_its_digest_is_locked(index: str, tmp_path: Path) -> None:
    address = index_files(index, "uv")["uv-1.0-py3-none-any.whl"]
    digest = f"sha256:{hashlib.sha256(WHEEL).hexdigest()}"
    assert download(address, {digest}, tmp_path / "uv.whl") == len(WHEEL)
    assert (tmp_path / "uv.whl").read_bytes() == WHEEL


def test_other_bytes_than_the_lock_names_are_not_kept(index: str, tmp_path: Path) -> None:
    address = index_files(index, "uv")["uv-1.0-py3-none-any.whl"]
    with pytest.raises(SetupError, match="digest differs"):
        download(address, {f"sha256:{'0' * 64}"}, tmp_path / "uv.whl")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_network_is_told_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"^Cannot reach http://127\.0\.0\.1:\d+/x .*start again\.$"):
        download(f"http://127.0.0.1:{free_port()}/x", set(), tmp_path / "x")


def test_a_password_in_an_address_is_never_told(tmp_path: Path) -> None:
    with pytest.raises(SetupError) as told:
        download(f"http://someone:secret@127.0.0.1:{free_port()}/x", set(), tmp_path / "x")
    assert "secret" not in str(told.value)


def test_the_index_of_the_environment_wins_over_files(tmp_path: Path) -> None:
    (tmp_path / "pip.conf").write_text("[global]\nindex-url = https://mirror.example/simple\n")
    files = {"PIP_CONFIG_FILE": str(tmp_path / "pip.conf")}
    assert python_index(files) == "https://mirror.example/simple/"
    assert python_index({**files, "PIP_INDEX_URL": "https://other.example/s"}) == "https://other.example/s/"
    assert python_index({"PIP_INDEX_URL": "https://b.example", "UV_DEFAULT_INDEX": "https://a.example"}) == (
        "https://a.example/"
    )


def test_the_npm_registry_comes_from_the_environment_or_the_user_s_file(tmp_path: Path) -> None:
    (tmp_path / ".npmrc").write_text("fund=false\nregistry = https://npm.example/r\n")
    assert npm_registry({"HOME": str(tmp_path)}) == "https://npm.example/r/"
    assert npm_registry({"HOME": str(tmp_path), "npm_config_registry": "https://x.example"}) == "https://x.example/"


def test_the_lock_gives_a_version_and_every_digest() -> None:
    a, b, c = (f"    --hash=sha256:{letter * 64}" for letter in "abc")
    text = f"tqdm==4\nuv==1.0 \\\n{a} \\\n{b}\nvine==2 \\\n{c}\n"
    assert locked(text, "uv") == ("1.0", {f"sha256:{'a' * 64}", f"sha256:{'b' * 64}"})
    with pytest.raises(SetupError, match="does not name"):
        locked(text, "flask")


def _tarball(path: Path, *members: tuple[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
        link = tarfile.TarInfo("package/dist/link.js")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    return path


def test_only_kept_files_are_unpacked_and_links_never(tmp_path: Path) -> None:
    archive = _tarball(tmp_path / "a.tgz", ("package/dist/a.js", b"a"), ("package/src/b.js", b"b"))
    unpack(archive, {"dist/": ""}, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.js"]


@pytest.mark.parametrize("name", ["package/../../evil.js", "/tmp/evil.js", "package/dist/..\\evil.js"])
def test_a_path_that_leaves_its_folder_is_refused(tmp_path: Path, name: str) -> None:
    archive = _tarball(tmp_path / "a.tgz", (name, b"evil"))
    with pytest.raises(SetupError, match="not used"):
        unpack(archive, {"dist/": ""}, tmp_path / "out")


def test_a_package_that_lost_a_file_is_refused_by_name(tmp_path: Path) -> None:
    archive = _tarball(tmp_path / "a.tgz", ("package/dist/a.js", b"a"))
    with pytest.raises(SetupError, match=r"lacks dist/b\.js"):
        unpack(archive, {"dist/b.js": "b.js"}, tmp_path / "out")
