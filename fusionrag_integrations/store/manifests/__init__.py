"""What the catalog holds, once more as one file a document, from which it can be rebuilt.

<store>/store.json                  what the store was made with; there is a copy in documents/
<store>/documents/ab/abcd....json   a document with its chunks and links, named by a hash of its key
<store>/documents/deleted/          documents that are being deleted
<store>/documents/revision.json     which revision of which store's catalog they are of, at least
"""

from fusionrag_integrations.store.manifests.manifest import Manifest
from fusionrag_integrations.store.manifests.manifests import Manifests, aside_of

__all__ = ["Manifest", "Manifests", "aside_of"]
