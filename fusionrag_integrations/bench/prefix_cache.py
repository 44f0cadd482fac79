"""The prefix-cache baseline: only the KV of the ingest prefix is kept, and all else is computed."""

from __future__ import annotations

from functools import cached_property

from fusionrag_integrations.execution.chunk_kv import place_at, prefill_prefix
from fusionrag_integrations.execution.decoding import TokenChooser
from fusionrag_integrations.execution.executor import Executor
from fusionrag_integrations.execution.hf.model import CausalModel
from fusionrag_integrations.execution.sampling import SamplingParams
from fusionrag_integrations.prompt import encode, ingest_prefix
from fusionrag_integrations.prompt.assemble import equal_at_start
from fusionrag_integrations.prompt.messages import Prompt
from fusionrag_integrations.serving.answer import Answer, PromptTrace
from fusionrag_integrations.serving.request import PartialAnswer
from fusionrag_integrations.serving.text_stream import TextStream
from fusionrag_integrations.serving.timing import Stopwatch
from fusionrag_integrations.serving.usage import Usage
from fusionrag_integrations.store.kv.types import ChunkKV


class PrefixCache:
    """Answers with one model, which has prefilled the ingest prefix."""

    def __init__(self, model: CausalModel) -> None:
        self._executor = Executor(model)

    def answer(self, prompt: Prompt, sampling: SamplingParams) -> Answer:
        """The prompt's answer. The last token is always computed: its logits give the first one.

        Raises as `render` does.
        """
        executor, prefix = self._executor, self._prefix
        model = executor.model
        watch = Stopwatch(model.device)
        encoded = encode(model.tokenizer, prompt)
        ids = encoded.token_ids
        generation = model.generation(ids, sampling)
        watch.lap("encode")
        shared = equal_at_start(prefix.token_ids, ids[:-1])
        buffer = executor.new_buffer(max(len(ids) + sampling.max_tokens, len(prefix.token_ids)))
        place_at(model, buffer, prefix, 0)  # what isn't shared is overwritten
        watch.lap("place")
        (logits,) = executor.forward_rows(ids[shared:], range(shared, len(ids)), buffer)
        watch.lap("prefill")
        step = executor.appender(buffer, len(ids))
        chooser = TokenChooser(generation, model.device)
        output = PartialAnswer(chooser, TextStream(model.tokenizer, ()))
        output.add_token(logits)
        watch.lap("first_token")
        while output.finish_reason is None:
            output.add_token(step(output.token_ids[-1]))
        fresh, answered = len(ids) - shared, len(output.token_ids)
        work = fresh * model.num_layers
        return Answer(
            text=output.text,
            token_ids=tuple(output.token_ids),
            finish_reason=output.finish_reason,
            usage=Usage(len(ids), shared, 0, fresh, 0, answered, work, prefix_tokens=shared),
            ttft=watch.breakdown(),
            full_reason="" if shared else "it doesn't begin with the ingest prefix.",
            trace=PromptTrace(encoded.text, encoded.offsets),
        )

    @cached_property
    def _prefix(self) -> ChunkKV:
        tokenizer = self._executor.model.tokenizer
        ids = tokenizer(ingest_prefix(tokenizer), add_special_tokens=False).input_ids
        return prefill_prefix(self._executor, ids)
