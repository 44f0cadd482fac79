"""Full attention by transformers' continuous batching."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from itertools import count
from threading import Thread
from typing import Any

from transformers import ContinuousBatchingConfig, GenerationConfig

from fusionrag_integrations.bench.throughput.load import Ask, StoppedError, TokenTimes
from fusionrag_integrations.bench.throughput.workload import Asked
from fusionrag_integrations.errors import FusionRAGError

_NO_END = -1  # no token has this id
_LOOK_S = 0.2  # how often a request that waits looks whether the run has ended


@contextmanager
def continuous_batching(model: Any, tokens: int, at_once: int, prompt_tokens: int) -> Iterator[Ask]:
    """A manager with room for the KV of so many requests at once; all else is its own default, but
    that it keeps SDPA attention, as all have here.

    It is warm once it answers, and given up afterwards, since it holds memory for all its KV. Where
    it can't be made, each request fails with the reason.
    """
    try:
        manager = _manager(model, tokens, at_once, prompt_tokens)
    except Exception as error:  # noqa: BLE001 of many kinds: a model that it can't run, no memory
        reason = f"transformers' continuous batching can't begin: {type(error).__name__}: {error}"

        def refuse(asked: Asked, times: TokenTimes) -> Sequence[int]:
            raise FusionRAGError(reason)

        yield refuse
        return
    results: dict[str, Future[Any]] = {}
    numbers = count()
    manager.start()
    deliverer = Thread(target=_deliver, args=(manager, results), name="fusionrag-continuous")
    deliverer.start()

    def ask(asked: Asked, times: TokenTimes) -> Sequence[int]:
        name = str(next(numbers))
        result: Future[Any] = Future()
        results[name] = result
        added = manager.add_request(
            list(asked.token_ids),
            request_id=name,
            max_new_tokens=tokens,
            record_timestamps=True,
            eos_token_id=_NO_END,
        )
        if added is None:
            raise FusionRAGError("transformers' continuous batching takes no requests any more.")
        output = _wait(manager, name, result, times)
        if output.error is not None:
            raise FusionRAGError(f"transformers' continuous batching failed: {output.error}")
        for at in output.timestamps:
            times.add(at)
        return list(output.generated_tokens)

    try:
        yield ask
    finally:
        manager.stop(hard_stop=True)
        deliverer.join()
        manager.destroy()


def _manager(model: Any, tokens: int, at_once: int, prompt_tokens: int) -> Any:
    """One that has its memory, and on CUDA its graphs."""
    config = ContinuousBatchingConfig(auto_switch_to_flash=False)
    config.num_blocks = at_once * (-(-(prompt_tokens + tokens) // config.page_size) + 1)
    manager = model.init_continuous_batching(
        generation_config=GenerationConfig(
            max_new_tokens=tokens, do_sample=False, eos_token_id=_NO_END
        ),
        continuous_batching_config=config,
    )
    manager.warmup()
    return manager


def _deliver(manager: Any, results: dict[str, Future[Any]]) -> None:
    """Give each finished answer to who waits for it, as long as the manager runs."""
    for output in manager:
        if output.is_finished() and output.request_id in results:
            results.pop(output.request_id).set_result(output)


def _wait(manager: Any, name: str, result: Future[Any], times: TokenTimes) -> Any:
    """The answer to a request; cancels it where the run is ended."""
    while True:
        try:
            return result.result(timeout=_LOOK_S)
        except TimeoutError:
            try:
                times.check()
            except StoppedError:
                manager.cancel_request(name)
                raise
            if not manager.is_running():
                raise FusionRAGError("transformers' continuous batching has ended.") from None
