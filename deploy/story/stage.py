"""What the chapters of the story share: the region, its people, and what has happened so far."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from deploy.people import Person
from deploy.region import RegionInfo
from deploy.simulator.populate import scanners
from deploy.simulator.scanner import Scanner
from deploy.story.browser import Eyes
from standards.errors import PermanentError

PATIENT = "Щёголев-Ящуржинский^Пётр^Ёжикович"


@dataclass
class Stage:
    """The running region and the story so far. ``eyes`` is None where there is no browser."""

    info: RegionInfo
    data: Path | None
    eyes: Eyes | None
    order: dict[str, Any] = field(default_factory=dict)
    sent: set[str] = field(default_factory=set)
    folder_studies: dict[str, int] = field(default_factory=dict)
    """Of --data: how many instances of each Study Instance UID the clinic's node took."""
    study_instance_uid: str = ""
    study: dict[str, Any] = field(default_factory=dict)
    _people: dict[str, Person] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """The centre."""
        return str(self.info.document["centre"]["url"])

    def user(self, username: str) -> dict[str, str]:
        """A person of region.json."""
        found = next((user for user in self.info.document["users"] if user["username"] == username), None)
        if found is None:
            raise PermanentError("no-such-person", username)
        return dict(found)

    def person(self, username: str) -> Person:
        """That person, logged in once."""
        if username not in self._people:
            self._people[username] = Person(self.url, username, self.user(username)["password"])
        return self._people[username]

    def node(self, name: str) -> dict[str, Any]:
        """A node of region.json."""
        return next(node for node in self.info.document["nodes"] if node["name"] == name)

    def scanner(self, ae_title: str) -> Scanner:
        """A device of the region."""
        return scanners(self.info.document)[ae_title]

    def node_client(self, name: str, *studies: str) -> httpx.Client:
        """A client of a node's DICOMweb with an image token for these studies, got as any program gets it."""
        headers = {"Authorization": f"Token {self.info.document['centre']['api_token']}"}
        asked = {"studies": list(studies)}
        answer = httpx.post(f"{self.url}/api/v1/image-tokens", json=asked, headers=headers, timeout=30)
        if answer.is_error:
            raise PermanentError("no-image-token", answer.text[:200])
        token = answer.json()["token"]
        return httpx.Client(
            base_url=f"{self.node(name)['url']}/dicom-web", headers={"Authorization": f"Bearer {token}"}, timeout=60
        )

    def studies(self, username: str, uid: str) -> list[dict[str, Any]]:
        """The catalogue's rows of a study as this person sees them."""
        found: list[dict[str, Any]] = self.person(username).json("/api/v1/studies", study_instance_uid=uid)["results"]
        return found
