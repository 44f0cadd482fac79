"""The versions of a store in order. Whoever creates the next number has published it.

versions/000000000007.json   a version, never changed; from the oldest on there is no gap
newest                       the number of a late version, from which later ones are looked for

A storage needs only one promise for this: that of several writers that create the same name, one
succeeds. So nothing is swapped: creating the name is the swap.
"""

from __future__ import annotations

from fusionrag_integrations.errors import StoreBusyError, StoreError
from fusionrag_integrations.store.objects.base import Objects
from fusionrag_integrations.store.published.version import Version

FOLDER = "versions"
_NEWEST = "newest"


class VersionLog:
    """All methods raise `StoreUnreachableError` where the storage can't be reached."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def newest(self) -> Version | None:
        """The last version that was published; None where there is none yet.

        Raises `StoreError` where it is damaged.
        """
        number = self._noted()
        if number and self._objects.existing([_name(number)]):
            while self._objects.existing([_name(number + 1)]):  # published since, or not noted
                number += 1
        else:  # the note is lost, old, or another's
            number = max(self.numbers(), default=0)
        return self.read(number) if number else None

    def read(self, number: int) -> Version:
        """Raises `StoreError` where it is missing or damaged."""
        name = f"{self._objects.url}/{_name(number)}"
        try:
            return Version.from_bytes(self._objects.read(_name(number)), name)
        except FileNotFoundError:
            raise StoreError(f"{name} is missing: its versions were collected.") from None

    def publish(self, version: Version) -> None:
        """Add a version. Raises `StoreBusyError` where another writer has added this number, even
        if that was collected since.
        """
        name = _name(version.number)
        created = self._objects.create(name, version.to_bytes())
        if created and max(self.numbers()) > version.number:
            self._objects.delete([name])
            created = False
        if not created:
            raise StoreBusyError(
                f"Another writer has published version {version.number} of {self._objects.url} "
                "meanwhile. What this one changed isn't in it: do it again."
            )
        self._objects.write(_NEWEST, [str(version.number).encode()])

    def numbers(self) -> list[int]:
        """The numbers of all versions that are still there, ascending."""
        names = [entry.name for entry in self._objects.entries(FOLDER)]
        stems = (name.removeprefix(f"{FOLDER}/").removesuffix(".json") for name in names)
        return sorted(int(stem) for stem in stems if stem.isdecimal())

    def delete_below(self, number: int) -> int:
        """Delete older versions, and return how many; numbers have no gaps, or `newest` stops at
        one.
        """
        older = [other for other in self.numbers() if other < number]
        self._objects.delete(map(_name, older))
        return len(older)

    def _noted(self) -> int:
        try:
            noted = self._objects.read(_NEWEST).decode(errors="replace")
        except FileNotFoundError:
            return 0
        return int(noted) if noted.isdecimal() else 0


def _name(number: int) -> str:
    return f"{FOLDER}/{number:012d}.json"
