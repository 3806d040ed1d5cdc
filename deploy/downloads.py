"""Verified downloads through the package registries this machine is set up for. Standard library only."""

import base64
import configparser
import errno
import hashlib
import html.parser
import json
import os
import re
import shutil
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

PUBLIC_PYTHON_INDEX = "https://pypi.org/simple/"
PUBLIC_NPM_REGISTRY = "https://registry.npmjs.org/"


class SetupError(Exception):
    """Set-up cannot go on; the message is one sentence for a person."""


def say(text: str) -> None:
    """One line of progress."""
    print(f"regis: {text}", flush=True)


def size_text(count: int) -> str:
    """A byte count as people read it."""
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def full_disk(folder: Path) -> SetupError:
    """What to say when the disk below `folder` is full."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    return SetupError(f"The disk of {folder} is full ({size_text(free)} free): make room and start again.")


def pip_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """The [global] section of pip's configuration files, the later ones winning."""
    files = ["/etc/pip.conf", "/etc/xdg/pip/pip.conf"]
    home = environment.get("HOME")
    if home:
        config_home = environment.get("XDG_CONFIG_HOME") or f"{home}/.config"
        files += [f"{home}/.pip/pip.conf", f"{config_home}/pip/pip.conf"]
    if environment.get("PIP_CONFIG_FILE"):
        files.append(environment["PIP_CONFIG_FILE"])
    parser = configparser.RawConfigParser()
    parser.read(files, encoding="utf-8")
    return dict(parser["global"]) if parser.has_section("global") else {}


def python_index(environment: Mapping[str, str] = os.environ) -> str:
    """The Python package index that this machine is set up for."""
    for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL"):
        if environment.get(name):
            return environment[name].rstrip("/") + "/"
    return pip_settings(environment).get("index-url", PUBLIC_PYTHON_INDEX).rstrip("/") + "/"


def npm_registry(environment: Mapping[str, str] = os.environ) -> str:
    """The npm registry that this machine is set up for."""
    for name in ("npm_config_registry", "NPM_CONFIG_REGISTRY"):
        if environment.get(name):
            return environment[name].rstrip("/") + "/"
    files = [Path("/etc/npmrc"), Path("/usr/etc/npmrc")]
    if environment.get("HOME"):
        files.append(Path(environment["HOME"], ".npmrc"))
    if environment.get("NPM_CONFIG_USERCONFIG"):
        files.append(Path(environment["NPM_CONFIG_USERCONFIG"]))
    found = PUBLIC_NPM_REGISTRY
    for file in files:
        if file.is_file():
            for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
                key, _, value = line.partition("=")
                if key.strip() == "registry" and value.strip():
                    found = value.strip().strip("\"'")
    return found.rstrip("/") + "/"


def certificate_file(environment: Mapping[str, str] = os.environ) -> str | None:
    """A file of authorities that this machine trusts, if one is set up for downloads."""
    for name in ("SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE"):
        if environment.get(name):
            return environment[name]
    return pip_settings(environment).get("cert")


def _open(url: str, accept: str = "*/*") -> IO[bytes]:
    authorities = certificate_file()
    context = ssl.create_default_context(cafile=authorities)
    if authorities:
        context.load_default_certs()
    request = urllib.request.Request(url, headers={"Accept": accept, "User-Agent": "regis-setup"})  # noqa: S310
    try:
        return urllib.request.urlopen(request, timeout=60, context=context)  # type: ignore[no-any-return]  # noqa: S310
    except urllib.error.HTTPError as error:
        raise SetupError(f"{_plain(url)} answered {error.code} {error.reason}.") from error
    except (urllib.error.URLError, TimeoutError) as error:
        raise no_network(url, error) from error


def _plain(url: str) -> str:
    """The address without a user's name and password."""
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def no_network(url: str, error: Exception | str) -> SetupError:
    """What to say when a registry cannot be reached."""
    reason = getattr(error, "reason", error)
    return SetupError(
        f"Cannot reach {_plain(url)} ({reason}): Regis needs the network once, to set itself up; "
        "connect this machine or point it at a mirror, and start again."
    )


def download(url: str, expected: set[str], target: Path) -> int:
    """Fetch a file and keep it only if one of its digests is expected; returns its size in bytes.

    Args:
        url: where it is.
        expected: digests written `sha256:hex` or, as npm does, `sha512-base64`.
        target: the file to write, whole or not at all.

    Raises:
        SetupError: no network, a full disk, or other bytes than expected.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    sha256, sha512, count = hashlib.sha256(), hashlib.sha512(), 0
    try:
        with _open(url) as answer, part.open("wb") as file:
            for block in _blocks(answer, url):
                sha256.update(block)
                sha512.update(block)
                count += len(block)
                file.write(block)
    except OSError as error:
        part.unlink(missing_ok=True)
        if error.errno == errno.ENOSPC:
            raise full_disk(target.parent) from error
        raise
    seen = {f"sha256:{sha256.hexdigest()}", f"sha512-{base64.b64encode(sha512.digest()).decode()}"}
    if not seen & expected:
        part.unlink()
        raise SetupError(f"{_plain(url)} is not the file Regis was built with (its digest differs): not used.")
    part.replace(target)
    return count


def _blocks(answer: IO[bytes], url: str) -> Iterator[bytes]:
    while True:
        try:
            block = answer.read(1 << 18)
        except (TimeoutError, ConnectionError, ssl.SSLError) as error:
            raise no_network(url, error) from error
        if not block:
            return
        yield block


class _Links(html.parser.HTMLParser):
    """The addresses on a page of a simple index."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value for name, value in attrs if tag == "a" and name == "href" and value]


def index_files(index: str, project: str) -> dict[str, str]:
    """File name → address of everything the index holds of a project (HTML or JSON simple API)."""
    url = f"{index}{project}/"
    with _open(url, "application/vnd.pypi.simple.v1+json, text/html;q=0.5") as answer:
        body = answer.read()
        kind = answer.headers.get_content_type()  # type: ignore[attr-defined]
    if kind.endswith("json"):
        addresses = [entry["url"] for entry in json.loads(body)["files"]]
    else:
        page = _Links()
        page.feed(body.decode("utf-8", errors="replace"))
        addresses = page.addresses
    found = {}
    for address in addresses:
        absolute = urllib.parse.urljoin(url, address).partition("#")[0]
        found[urllib.parse.unquote(absolute.rpartition("/")[2])] = absolute
    return found


def locked(lock_text: str, project: str) -> tuple[str, set[str]]:
    """The version and the digests that a requirements lock gives a project.

    Raises:
        SetupError: the lock does not name it.
    """
    match = re.search(rf"^{re.escape(project)}==(\S+)((?:.*\\\n)*.*)", lock_text, re.MULTILINE)
    if match is None:
        raise SetupError(f"requirements.lock does not name {project}.")
    return match[1], {f"sha256:{digest}" for digest in re.findall(r"--hash=sha256:([0-9a-f]{64})", match[2])}


class Timer:
    """How long a step took."""

    def __init__(self) -> None:
        self._begun = time.monotonic()

    def __str__(self) -> str:
        return f"{time.monotonic() - self._begun:.1f} s"
