"""Artifacts of the stand-in for W&B's server: versions, aliases, files, what logged and used them, and links to a registry.

What is modelled is what W&B documents: a version is identified by its digest within its collection, a version exists when it is
committed, an alias belongs to one version of a collection at a time, and using an artifact twice is using it once.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

REGISTRY_PREFIX = "wandb-registry-"
_ORGANIZATION = {"name": "company", "orgEntity": {"name": "company_org"}}


@dataclass
class Version:
    """One version of an artifact.

    Attributes:
        id: its id at the server.
        path: entity, project and collection.
        type: its type, such as ``dataset``.
        digest: W&B's digest of its manifest.
        logged_by: id of the run that made it.
        metadata: what the client stored with it.
        number: 0 is ``v0``; ``None`` until it is committed.
        named: the aliases that its client gave it.
        used_by: ids of the runs that declared it as their input.
        manifest: its manifest: path to entry.
    """

    id: str
    path: tuple[str, str, str]
    type: str
    digest: str
    logged_by: str
    metadata: dict[str, Any]
    number: int | None = None
    named: list[str] = field(default_factory=list)
    used_by: set[str] = field(default_factory=set)
    manifest: dict[str, Any] = field(default_factory=dict)


class ArtifactStore:
    """The artifacts that the server has.

    Attributes:
        versions: all versions, in the order in which they were created.
        aliases: entity, project, collection and alias to a version's id; those of a registry are links.
        files: storage key to content.
    """

    def __init__(self) -> None:
        self.url = ""
        self.versions: list[Version] = []
        self.aliases: dict[tuple[str, str, str, str], str] = {}
        self.files: dict[str, bytes] = {}

    def graph(self) -> set[tuple[str, str, str]]:
        """Return the edges of the lineage: a run, ``logged`` or ``used``, and an artifact as ``collection:digest``."""
        edges = set()
        for version in self.committed():
            name = f"{version.path[2]}:{version.metadata.get('digest', version.digest)}"
            edges |= {(version.logged_by, "logged", name)} | {(run, "used", name) for run in version.used_by}
        return edges

    def committed(self) -> list[Version]:
        """Return the versions that exist."""
        return [version for version in self.versions if version.number is not None]

    def linked(self) -> dict[str, str]:
        """Return the aliases in registries, as ``project/collection:alias``, to the digests of their artifacts."""
        by_id = {version.id: version for version in self.versions}
        return {
            f"{project}/{collection}:{alias}": by_id[found].metadata["digest"]
            for (_, project, collection, alias), found in self.aliases.items()
            if project.startswith(REGISTRY_PREFIX)
        }

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any] | None:
        """Return the ``data`` of a GraphQL answer; ``None`` if the operation is none of artifacts."""
        answers: dict[str, Callable[[dict[str, Any]], Any]] = {
            "CreateArtifact": lambda given: {"createArtifact": {"artifact": self._create(given)}},
            "CreateArtifactManifest": lambda given: {"createArtifactManifest": self._manifest(given["artifactID"])},
            "UpdateArtifactManifest": lambda given: {"updateArtifactManifest": self._manifest(given["artifactManifestID"])},
            "CreateArtifactFiles": self._artifact_files,
            "CommitArtifact": lambda given: {"commitArtifact": {"artifact": self._commit(self._by_id(given["artifactID"]))}},
            "UseArtifact": self._use,
            "ArtifactByID": lambda given: {"artifact": self._fragment(self._by_id(given["id"]))},
            "ArtifactMembershipByName": lambda given: {"project": {"artifactCollectionMembership": self._member(given)}},
            "ArtifactType": self._type,
            "FetchArtifactDigestAlgorithm": lambda _: {"project": None},
            "LinkArtifact": lambda given: {"result": {"versionIndex": 0, "artifactMembership": self._link(given)}},
            "FetchArtifactManifest": lambda given: {"artifact": {"currentManifest": self._manifest_url(given["id"])}},
            "AddAliases": self._add_aliases,
            "UpdateArtifact": lambda given: {"result": {"artifact": self._update(self._by_id(given["artifactID"]), given)}},
            "GetArtifactMembershipFileUrls": lambda given: {"project": {"artifactCollection": self._urls(given)}},
            "FetchOrgInfoFromEntity": lambda _: {"entity": {"organization": _ORGANIZATION, "user": None}},
        }
        answer = answers.get(operation)
        return None if answer is None else dict(answer(variables.get("input") or variables))

    def receive(self, key: str, content: bytes) -> None:
        """Keep an uploaded file."""
        self.files[key] = content
        owner, _, name = key.partition("/")
        if name == "manifest":
            self._by_id(owner).manifest = json.loads(content)["contents"]

    def _by_id(self, wanted: str) -> Version:
        return next(version for version in self.versions if version.id == wanted)

    def _create(self, given: dict[str, Any]) -> dict[str, Any]:
        path = (given["entityName"], given["projectName"], given["artifactCollectionName"])
        same = [version for version in self.committed() if version.path == path and version.digest == given["digest"]]
        if same:
            found = same[0]
        else:
            metadata = json.loads(given.get("metadata") or "{}")
            found = Version(
                f"artifact{len(self.versions)}", path, given["artifactTypeName"], given["digest"], given["runName"], metadata
            )
            self.versions.append(found)
        found.named = [alias["alias"] for alias in given.get("aliases") or ()]
        if same:
            self._commit(found)
        latest = self.aliases.get((*path, "latest"))
        state = "PENDING" if found.number is None else "COMMITTED"
        return {"id": found.id, "state": state, "artifactSequence": {"latestArtifact": latest and {"id": latest}}}

    def _commit(self, found: Version) -> dict[str, Any]:
        if found.number is None:
            found.number = sum(version.path == found.path for version in self.committed())
        for alias in (f"v{found.number}", *found.named):
            self.aliases[(*found.path, alias)] = found.id
        return {"id": found.id, "digest": found.digest}

    def _update(self, found: Version, given: dict[str, Any]) -> dict[str, Any]:
        found.metadata = json.loads(given["metadata"])
        return self._fragment(found)

    def _manifest(self, owner: str) -> dict[str, Any]:
        file = {"id": f"{owner}/manifest", "uploadUrl": f"{self.url}/storage/{owner}/manifest", "uploadHeaders": []}
        return {"artifactManifest": {"id": owner, "file": file}}

    def _manifest_url(self, owner: str) -> dict[str, Any]:
        return {"file": {"directUrl": f"{self.url}/storage/{owner}/manifest"}}

    def _use(self, given: dict[str, Any]) -> dict[str, Any]:
        found = self._by_id(given["artifactID"])
        found.used_by.add(given["runName"])
        return {"useArtifact": {"artifact": self._fragment(found)}}

    def _type(self, given: dict[str, Any]) -> dict[str, Any]:
        found = self._member(given)
        return {"project": {"artifact": found and {"artifactType": found["artifact"]["artifactType"]}}}

    def _add_aliases(self, given: dict[str, Any]) -> dict[str, Any]:
        for alias in given["aliases"]:
            key = (alias["entityName"], alias["projectName"], alias["artifactCollectionName"], alias["alias"])
            self.aliases[key] = given["artifactID"]
        return {"result": {"success": True}}

    def _artifact_files(self, given: dict[str, Any]) -> dict[str, Any]:
        nodes = [self._artifact_file(file) for file in given["artifactFiles"]]
        return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}

    def _artifact_file(self, file: dict[str, Any]) -> dict[str, Any]:
        key = f"{file['artifactID']}/files/{file['name']}"
        upload = {"uploadUrl": f"{self.url}/storage/{key}", "uploadHeaders": [], "uploadMultipartUrls": None}
        return {"name": file["name"], "storagePath": key, **upload, "artifact": {"id": file["artifactID"]}}

    def _member(self, given: dict[str, Any]) -> dict[str, Any] | None:
        collection, _, alias = given["name"].partition(":")
        found = self.aliases.get((given["entity"], given["project"], collection, alias))
        return None if found is None else self._membership(self._by_id(found), given["entity"], given["project"], collection)

    def _membership(self, found: Version, entity: str, project: str, collection: str) -> dict[str, Any]:
        names = [key[3] for key, owner in self.aliases.items() if owner == found.id and key[:3] == (entity, project, collection)]
        return {
            "__typename": "ArtifactCollectionMembership",
            "id": f"{found.id}-in-{collection}",
            "versionIndex": found.number,
            "createdAt": "2026-01-01T00:00:00Z",
            "aliases": [_alias(name) for name in names if not name.removeprefix("v").isdigit()],
            "artifactCollection": _collection(entity, project, collection),
            "artifact": self._fragment(found),
        }

    def _fragment(self, found: Version) -> dict[str, Any]:
        collection = _collection(*found.path)
        names = [key[3] for key, owner in self.aliases.items() if owner == found.id and key[:3] == found.path]
        return {
            "__typename": "Artifact",
            "id": found.id,
            "artifactSequence": collection,
            "versionIndex": found.number,
            "artifactType": {"name": found.type},
            "description": None,
            "metadata": json.dumps(found.metadata),
            "ttlDurationSeconds": -2,
            "ttlIsInherited": True,
            "tags": [],
            "historyStep": None,
            "state": "PENDING" if found.number is None else "COMMITTED",
            "size": sum(entry.get("size", 0) for entry in found.manifest.values()),
            "digest": found.digest,
            "digestAlgorithm": "MANIFEST_MD5",
            "commitHash": found.id,
            "fileCount": len(found.manifest),
            "createdAt": "2026-01-01T00:00:00Z",
            "updatedAt": None,
            "aliases": [{**_alias(name), "artifactCollection": collection} for name in names],
        }

    def _urls(self, given: dict[str, Any]) -> dict[str, Any]:
        owner = self.aliases[(given["entity"], given["project"], given["collection"], given["alias"])]
        nodes = [
            {"__typename": "File", "name": name, "directUrl": f"{self.url}/storage/{owner}/files/{name}"}
            for name in self._by_id(owner).manifest
        ]
        page = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
        files = {"pageInfo": page, "edges": [{"node": node} for node in nodes]}
        return {"__typename": "ArtifactSequence", "artifactMembership": {"files": files}}

    def _link(self, given: dict[str, Any]) -> dict[str, Any]:
        found = self._by_id(given["artifactID"])
        target = (given["entityName"], given["projectName"], given["artifactPortfolioName"])
        for alias in given["aliases"]:
            self.aliases[(*target, alias["alias"])] = found.id
        self.aliases[(*target, "latest")] = found.id
        return self._membership(found, *target)


def _alias(name: str) -> dict[str, str]:
    return {"__typename": "ArtifactAlias", "id": name, "alias": name}


def _collection(entity: str, project: str, name: str) -> dict[str, Any]:
    facts = {"id": project, "internalId": project, "name": project, "entity": {"name": entity}}
    return {"__typename": "ArtifactSequence", "name": name, "project": facts}
