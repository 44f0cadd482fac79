"""What the beginnings of prompts have in common with earlier requests, whose KV is kept.

exact           what no stored chunk stands before: system prompts, tools, examples, whole prompts
                without chunks. Whatever begins with the same tokens uses it
conversations   a prompt with its answer, over chunks' KV. Only a prompt that goes on from there
                uses it: all of the tokens that were asked are the same

Both are apart by scopes. A conversation is also apart by the settings that its KV was computed by,
and by the store's revision: what was deleted since is in no KV that is used.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock

from fusionrag_integrations.execution.buffer import SequenceKV
from fusionrag_integrations.execution.known_start import NOTHING_KNOWN, KnownStart, KVPiece
from fusionrag_integrations.prompt.assemble import equal_at_start
from fusionrag_integrations.prompt.assembled import AssembledPrompt
from fusionrag_integrations.serving.prefix_tree import PrefixTree, Read
from fusionrag_integrations.serving.settings import AnswerSettings
from fusionrag_integrations.support.forks import Forkable

LEAST = 16  # tokens; looking after fewer isn't worth it


@dataclass(frozen=True, slots=True, eq=False)
class _Conversation:
    """token_ids: of the prompt, `asked` of them, and of its answer, as far as their KV is there."""

    token_ids: tuple[int, ...]
    asked: int
    piece: KVPiece


class KnownStarts(Forkable):
    """Kept beginnings of prompts, half of the budget for each kind. Thread-safe."""

    def __init__(self, budget: int) -> None:
        """budget: in bytes; 0 keeps nothing."""
        self._tree = PrefixTree(budget // 2)
        self._budget = budget // 2
        self._conversations: OrderedDict[tuple[object, ...], _Conversation] = OrderedDict()
        self._held = 0
        self.in_child()
        super().__init__()

    def in_child(self) -> None:
        """A thread of the parent may hold the lock."""
        self._lock = Lock()
        self._tree.clear()
        self._conversations.clear()
        self._held = 0

    @property
    def nbytes(self) -> int:
        """What is kept."""
        with self._lock:
            return self._tree.used + self._held

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._tree.clear()
            self._conversations.clear()
            self._held = 0

    def find(self, prompt: AssembledPrompt, settings: AnswerSettings, revision: int) -> KnownStart:
        """The most that is known of a prompt.

        Exact KV is used up to the first chunk: an answer shall not depend on what else was asked.
        The last token is always computed.
        """
        body = prompt.token_ids[:-1]
        first = prompt.spans[0].start if prompt.spans else len(body)
        with self._lock:
            exact = KnownStart(self._tree.find(_scopes(settings), body[:first]), exact=True)
            before = self._conversation(body, (*_origin(settings), revision))
        if before is not None and len(before) > len(exact):
            return before
        return exact if len(exact) >= LEAST else NOTHING_KNOWN

    def keep_exact(self, token_ids: Sequence[int], settings: AnswerSettings, read: Read) -> None:
        """Keep the KV of a beginning that was computed exactly."""
        if len(token_ids) >= LEAST and self._budget:
            with self._lock:
                self._tree.add(_scopes(settings), token_ids, read)

    def keep_conversation(
        self,
        token_ids: Sequence[int],
        asked: int,
        settings: AnswerSettings,
        revision: int,
        kv: SequenceKV,
    ) -> None:
        """Keep a prompt and its answer. asked: how many of the tokens are the prompt's.

        kv: theirs, which nothing changes any more.
        """
        ids = tuple(token_ids)
        piece = KVPiece(*kv.hand_over(len(ids)), len(ids)) if self._budget else None
        if piece is None or (nbytes := piece.keys.nbytes + piece.values.nbytes) > self._budget:
            return
        with self._lock:
            name = (*_origin(settings), revision, ids)
            self._forget(name)
            while self._held + nbytes > self._budget:
                self._forget(next(iter(self._conversations)))
            self._conversations[name] = _Conversation(ids, asked, piece)
            self._held += nbytes

    def _conversation(
        self, token_ids: Sequence[int], origin: tuple[object, ...]
    ) -> KnownStart | None:
        best: tuple[int, tuple[object, ...]] | None = None
        for name, one in self._conversations.items():
            if name[:-1] != origin:
                continue
            length = equal_at_start(one.token_ids, token_ids)
            if length >= one.asked and (best is None or length > best[0]):
                best = length, name
        if best is None:
            return None
        length, name = best
        self._conversations.move_to_end(name)
        piece = self._conversations[name].piece
        return KnownStart((KVPiece(piece.keys, piece.values, length),), exact=False)

    def _forget(self, name: tuple[object, ...]) -> None:
        one = self._conversations.pop(name, None)
        if one is not None:
            self._held -= one.piece.keys.nbytes + one.piece.values.nbytes


def _scopes(settings: AnswerSettings) -> object:
    return None if settings.scopes is None else frozenset(settings.scopes)


def _origin(settings: AnswerSettings) -> tuple[object, ...]:
    """What a conversation's KV depends on."""
    chosen = settings.kv, settings.corrected, settings.selector, settings.ratio
    return (_scopes(settings), *chosen)
