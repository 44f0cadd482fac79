"""One question under all settings, at a pass each.

Full attention answers once. KV of a kind is placed once and probed once, and all settings over it
recompute their tokens in copies of it. What is answered is what the engine answers; how long that
takes can't be seen here, since most of the work is shared.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import get_args

from fusionrag_integrations.documents.handles import KVKind
from fusionrag_integrations.engine import FusionEngine
from fusionrag_integrations.errors import PromptTooLongError
from fusionrag_integrations.execution.fidelity import FullAnswer, ReusedPrompt, answer_fully
from fusionrag_integrations.prompt import encode
from fusionrag_integrations.prompt.messages import Prompt
from fusionrag_integrations.selectors import make_selector
from fusionrag_integrations.serving.settings import AnswerSettings
from fusionrag_integrations.serving.text_stream import text_pieces


@dataclass(frozen=True, slots=True)
class Answered:
    """What is answered under some settings, and what is made there of full attention's answer.

    text: of all tokens but special ones. divergence, greedy: of each token of full attention's
    answer; see `Followed`. recomputed: chunk tokens. work: token-layers before the first token over
    full attention's.
    """

    text: str
    token_ids: tuple[int, ...]
    divergence: tuple[float, ...]
    greedy: tuple[int, ...]
    recomputed: int
    work: float


def answer_all(
    engine: FusionEngine, prompt: Prompt, runs: Sequence[AnswerSettings], max_tokens: int
) -> dict[AnswerSettings, Answered]:
    """What is answered, greedily, under full attention and under settings that reuse chunks' KV.

    Raises `PromptTooLongError` where the model's window has no room for the answer.
    """
    ids = encode(engine.model.tokenizer, prompt).token_ids
    if len(ids) + max_tokens > engine.context_window:
        raise PromptTooLongError(
            f"The prompt has {len(ids)} tokens and its answer up to {max_tokens}; the context of "
            f"{engine.model_name} holds {engine.context_window}. Ask over fewer or shorter chunks."
        )
    full = answer_fully(engine.executor, ids, max_tokens)
    fully = [run for run in runs if run.kv == "none"]
    answers = dict.fromkeys(fully, _full_answer(engine, full.token_ids))
    for alike in alike_placed(runs):
        answers |= _answer_reusing(engine, prompt, alike, full, max_tokens)
    return answers


def alike_placed(runs: Iterable[AnswerSettings]) -> list[list[AnswerSettings]]:
    """Settings that reuse chunks' KV, in groups that place the same."""
    groups: dict[tuple[str, bool], list[AnswerSettings]] = {}
    for run in runs:
        kv = run.kv or "fused"
        if kv in get_args(KVKind):
            groups.setdefault((kv, run.corrected), []).append(run)
    return list(groups.values())


def _full_answer(engine: FusionEngine, token_ids: tuple[int, ...]) -> Answered:
    """Full attention's, which is no distance from itself."""
    return Answered(
        text=_text(engine, token_ids),
        token_ids=token_ids,
        divergence=(0.0,) * len(token_ids),
        greedy=token_ids,
        recomputed=0,
        work=1.0,
    )


def _answer_reusing(
    engine: FusionEngine,
    prompt: Prompt,
    runs: Sequence[AnswerSettings],
    full: FullAnswer,
    max_tokens: int,
) -> dict[AnswerSettings, Answered]:
    """What is answered under settings that place the same KV."""
    loaded = engine.load(prompt, runs[0])
    reused = ReusedPrompt(
        engine.executor,
        loaded.prompt,
        loaded.kvs,
        full,
        max_tokens,
        corrected=runs[0].corrected,
    )
    work = len(loaded.prompt) * engine.model.num_layers
    answers: dict[AnswerSettings, Answered] = {}
    for run in runs:
        followed = reused.follow(make_selector(run.selector, run.ratio, engine.calibration))
        token_ids = reused.own_answer(followed)
        answers[run] = Answered(
            text=_text(engine, token_ids),
            token_ids=token_ids,
            divergence=tuple(followed.divergence.tolist()),
            greedy=followed.greedy,
            recomputed=len(followed.selection),
            work=followed.token_layers / work,
        )
    return answers


def _text(engine: FusionEngine, token_ids: Iterable[int]) -> str:
    return "".join(text_pieces(engine.model.tokenizer, token_ids))
