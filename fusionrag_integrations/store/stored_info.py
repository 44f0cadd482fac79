"""What a store was made with, without opening more of it than that needs."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from fusionrag_integrations.errors import StoreNotFoundError
from fusionrag_integrations.store.generations import directory_of
from fusionrag_integrations.store.info import StoreInfo
from fusionrag_integrations.store.objects.opening import is_url, open_objects
from fusionrag_integrations.store.opening import open_catalog
from fusionrag_integrations.store.published.version_log import VersionLog


def is_store(place: str | Path) -> bool:
    """Whether there is a store, whose creation was completed. Raises as `stored_info` does."""
    try:
        stored_info(place)
    except StoreNotFoundError:
        return False
    return True


def stored_info(place: str | Path) -> StoreInfo:
    """What the store in a directory, or the newest version of the one at a URL, was made with.

    Raises as `Store.open` does.
    """
    if not is_url(place):
        with open_catalog(directory_of(place)) as catalog:
            return catalog.info
    with closing(open_objects(place)) as objects:
        newest = VersionLog(objects).newest()
    if newest is None:
        raise StoreNotFoundError(f"There is no store at {objects.url}.")
    return newest.store
