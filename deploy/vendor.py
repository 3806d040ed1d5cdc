"""`var/vendor/`: what browsers get from npm packages, and the compiled translations.

npm packages are plain tarballs; each is taken by name, version and integrity from npm.lock.json, and of each only the
files that `keep` names are unpacked. OHIF is built to live at `/` and is rewritten to live at `/viewer/`.
"""

import errno
import gzip
import json
import re
import shutil
import sys
import tarfile
from pathlib import Path, PurePosixPath

from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po

from deploy.bootstrap import translations, vendor_state
from deploy.downloads import SetupError, Timer, download, full_disk, npm_registry, say, size_text

ROOT = Path(__file__).parent.parent
PREFIX = "/viewer/"

_OHIF_UNUSED = re.compile(
    r"^(ort/|dicom-microscopy-viewer/|customizations/|assets/apple-touch-startup-image|google\.js$|oidc-client|sw\.js$"
    r"|app-config\.js$|_headers$|_redirects$|serve\.json$|polyfill\.min\.js$|es6-shim\.min\.js$|silent-refresh)|\.map$"
)
_COMPRESSED = {".js", ".css", ".html", ".json", ".svg", ".wasm"}


def unpack(archive: Path, keep: dict[str, str], folder: Path) -> None:
    """Unpack the kept files of an npm tarball into a folder that does not exist yet.

    Args:
        archive: the tarball; its files lie below one folder, usually `package/`.
        keep: path inside the package → path inside `folder`; a key that ends with "/" keeps everything below it.
        folder: made here.

    Raises:
        SetupError: a path leaves the folder, or a kept file is missing.
    """
    found = set()
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            if not member.isfile():  # links and devices have no business in a package
                continue
            path = PurePosixPath(member.name)
            if path.is_absolute() or ".." in path.parts or "\\" in member.name:
                raise SetupError(f"{archive.name} holds the path {member.name!r}: not used.")
            inside = "/".join(path.parts[1:])
            key = next((key for key in keep if inside == key or (key.endswith("/") and inside.startswith(key))), None)
            if key is None:
                continue
            found.add(key)
            target = folder / (keep[key] + inside.removeprefix(key) if key.endswith("/") else keep[key])
            target.parent.mkdir(parents=True, exist_ok=True)
            content = tar.extractfile(member)
            if content is None:
                raise SetupError(f"{archive.name}: {member.name} cannot be read.")
            with content, target.open("wb") as file:
                shutil.copyfileobj(content, file)
    missing = {key for key in keep if not key.startswith("LICEN")} - found
    if missing:
        raise SetupError(f"{archive.name} lacks {', '.join(sorted(missing))}.")


def rewrite_ohif(folder: Path) -> None:
    """Make OHIF's build live at `/viewer/`, without what Regis does not use, compressed beforehand.

    `app-config.js` is left out: centre and nodes serve their own at `/viewer/app-config.js`.

    Raises:
        SetupError: the build is not shaped as this knows it.
    """
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        if _OHIF_UNUSED.search(path.relative_to(folder).as_posix()):
            path.unlink()
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
    rewritten = 0
    for path in folder.glob("*.js"):
        text = path.read_text(encoding="utf-8")
        changed = text.replace('__webpack_require__.p = "/"', f'__webpack_require__.p = "{PREFIX}"')
        if changed != text:
            rewritten += 1
            path.write_text(changed, encoding="utf-8")
    index = folder / "index.html"
    page = index.read_text(encoding="utf-8")
    page = page.replace('window.PUBLIC_URL="/"', f'window.PUBLIC_URL="{PREFIX}"')
    page = re.sub(r'<link rel="apple-touch-startup-image"[^>]*>', "", page)
    page = re.sub(r'\b(href|src|content)="/(?!/)', rf'\1="{PREFIX}', page)
    index.write_text(page, encoding="utf-8")
    for path in folder.rglob("*.css"):
        text = path.read_text(encoding="utf-8")
        path.write_text(re.sub(r"url\((['\"]?)/(?!/)", rf"url(\1{PREFIX}", text), encoding="utf-8")
    for path in [*folder.rglob("*.json"), *folder.rglob("*.xml"), *folder.rglob("*.webapp")]:
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace('"/', f'"{PREFIX}'), encoding="utf-8")
    if not rewritten or f'src="{PREFIX}app-config.js"' not in page or f'PUBLIC_URL="{PREFIX}"' not in page:
        raise SetupError("This build of OHIF is not shaped as Regis knows it: it cannot be moved to /viewer/.")
    for path in [path for path in folder.rglob("*") if path.suffix in _COMPRESSED]:
        packed = gzip.compress(path.read_bytes(), compresslevel=6, mtime=0)
        if len(packed) < path.stat().st_size * 0.95:
            path.with_name(f"{path.name}.gz").write_bytes(packed)


def install_packages(root: Path) -> None:
    """Bring `var/vendor/` to what npm.lock.json says."""
    vendor = root / "var" / "vendor"
    vendor.mkdir(parents=True, exist_ok=True)
    registry = npm_registry()
    for package in json.loads((root / "npm.lock.json").read_text(encoding="utf-8"))["packages"]:
        timer = Timer()
        name, version, folder = package["name"], package["version"], vendor / package["folder"]
        label = f"{version} {package['integrity']} {json.dumps(package['keep'], sort_keys=True)}"
        if package["folder"] == "ohif":
            label += vendor_state(root)
        mark = vendor / f".{package['folder']}"
        if folder.is_dir() and mark.is_file() and mark.read_text(encoding="utf-8") == label:
            continue
        address = f"{registry}{name}/-/{name.rpartition('/')[2]}-{version}.tgz"
        archive = root / "var" / "cache" / "npm" / f"{package['folder']}-{version}.tgz"
        count = download(address, {package["integrity"]}, archive)
        fresh = vendor / f".{package['folder']}.new"
        shutil.rmtree(fresh, ignore_errors=True)
        unpack(archive, package["keep"], fresh)
        if package["folder"] == "ohif":
            rewrite_ohif(fresh)
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)
        mark.write_text(label, encoding="utf-8")
        archive.unlink()
        say(f"fetched {name} {version} ({size_text(count)}) in {timer}")
    (vendor / "stamp").write_text(vendor_state(root), encoding="utf-8")


def compile_translations(root: Path) -> None:
    """Compile every .po file that is newer than its .mo."""
    for source in translations(root):
        target = source.with_suffix(".mo")
        if target.exists() and target.stat().st_mtime >= source.stat().st_mtime:
            continue
        with source.open("rb") as file:
            catalogue = read_po(file, locale=source.parent.parent.name)
        with target.open("wb") as file:
            write_mo(file, catalogue)


def main() -> None:
    """Bring vendor files and translations up to date."""
    try:
        install_packages(ROOT)
        compile_translations(ROOT)
    except SetupError as error:
        sys.exit(f"regis: {error}")
    except OSError as error:
        if error.errno == errno.ENOSPC:
            sys.exit(f"regis: {full_disk(ROOT)}")
        raise


if __name__ == "__main__":
    main()
