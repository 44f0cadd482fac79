"""What makes each message of docs/troubleshooting.md appear, by the section that tells of it."""

from tests.provocations import (
    asking,
    damage,
    documents,
    frameworks,
    importing,
    indexes,
    measuring,
    models,
    ray_ingest,
    replicas,
    reuse,
    servers,
    settings,
    shared,
    stores,
)
from tests.provocations.world import Provocation, Seen, World, see

__all__ = ["PROVOCATIONS", "Provocation", "Seen", "World", "see"]

PROVOCATIONS: list[tuple[str, Provocation]] = [
    pair
    for part in (
        importing,
        models,
        stores,
        indexes,
        shared,
        documents,
        ray_ingest,
        asking,
        settings,
        frameworks,
        servers,
        replicas,
        damage,
        reuse,
        measuring,
    )
    for pair in part.provoked.pairs
]
"""Messages as the page has them, each with what provokes it; some are provoked in several ways."""
