"""What is known of a request once it has ended, for logs and metrics: no text, and no key."""

from __future__ import annotations

import json
import logging
import traceback
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from time import perf_counter
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from fusionrag_integrations.server.keys import Caller

if TYPE_CHECKING:
    from fusionrag_integrations.serving.answer import Answer

LOGGED = ("fusionrag_integrations", "uvicorn.error")

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Record:
    """One request. Times are in milliseconds since it came; None is what didn't happen.

    queued_ms: until it got its turn. ttft_ms: until the first text. finish_reason: None where there
    is no answer, or its client went away before its end. passed_on: whether another server answers
    it, and logs that.
    """

    request_id: str = field(default_factory=lambda: f"req_{uuid4().hex}")
    method: str = ""
    endpoint: str = ""
    caller: str = ""
    status: int = 0
    stream: bool = False
    queued_ms: float | None = None
    ttft_ms: float | None = None
    duration_ms: float = 0.0
    prompt_tokens: int = 0
    reused_tokens: int = 0
    recomputed_tokens: int = 0
    completion_tokens: int = 0
    finish_reason: str | None = None
    started: float = field(default_factory=perf_counter)
    who: Caller | None = None
    passed_on: bool = False

    def ms(self) -> float:
        """Since the request came."""
        return (perf_counter() - self.started) * 1000

    def note(self, answer: Answer) -> None:
        """Count what an answer took."""
        self.prompt_tokens = answer.usage.prompt_tokens
        self.reused_tokens = answer.usage.reused_tokens
        self.recomputed_tokens = answer.usage.recomputed_tokens
        self.completion_tokens = answer.usage.completion_tokens
        self.finish_reason = answer.finish_reason

    def log(self) -> None:
        """One line at the request's end."""
        shown = asdict(self)
        del shown["started"], shown["who"], shown["passed_on"]
        logger.info("request", extra={"fields": shown})

    def log_failure(self, error: BaseException) -> None:
        """Where an error arose that the client isn't told of; its message may hold texts."""
        frames = traceback.extract_tb(error.__traceback__)
        where = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
        fields = {"request_id": self.request_id, "error": type(error).__name__, "where": where}
        logger.error("failure", extra={"fields": fields})


class JsonLines(logging.Formatter):
    """Formats each record as one line of JSON, with the `fields` of requests beside its message."""

    def format(self, record: logging.LogRecord) -> str:
        """The line. An exception is named, without its message."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[0]:
            line["error"] = record.exc_info[0].__name__
        return json.dumps(line)


def log_as_json() -> None:
    """Write what a server of this process logs to standard error, a line of JSON each."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    for name in LOGGED:
        named = logging.getLogger(name)
        named.addHandler(handler)
        named.setLevel(logging.INFO)
