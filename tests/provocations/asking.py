"""Asking."""

from __future__ import annotations

from dataclasses import replace

from fusionrag_integrations import AnswerSettings
from fusionrag_integrations.prompt.messages import Prompt
from tests.conftest import nested
from tests.provocations.world import Provoked, Seen, World

provoked = Provoked()


def ask(world: World, prompt: Prompt) -> None:
    world.engine.answer(prompt, AnswerSettings(max_tokens=1))


@provoked.by("The store at ... holds no chunks...")
def empty_store(world: World) -> list[Seen]:
    world.open().store.search("Where is the fox?")
    return world.logged()


@provoked.by(
    "This model's tokenizer has no chat template, so messages can't be rendered for it. ..."
)
def no_template(world: World) -> None:
    world.patch.setattr(world.engine.model.tokenizer, "chat_template", None)
    ask(world, [{"role": "user", "content": "Where?"}])


@provoked.by("The model's chat template refuses these messages: .... Their roles are ...")
def refusing_template(world: World) -> None:
    template = "{{ raise_exception('Conversation roles must alternate') }}"
    world.patch.setattr(world.engine.model.tokenizer, "chat_template", template)
    ask(world, "Where?")


@provoked.by("The model's chat template changes the assistant's last message, ...")
def dropping_template(world: World) -> None:
    template = "{{ messages[0].content }}"
    world.patch.setattr(world.engine.model.tokenizer, "chat_template", template)
    begun = {"role": "assistant", "content": "It is"}
    ask(world, [{"role": "user", "content": "Where?"}, begun])


@provoked.by("The text holds all characters of Unicode's private use plane 16, ...")
def no_characters_left(world: World) -> None:
    ask(world, "".join(map(chr, range(0x100000, 0x110000))))


@provoked.by("This answer has no trace of its prompt; only an engine's have.")
def no_trace(world: World) -> None:
    replace(world.engine.answer("Where?", AnswerSettings(max_tokens=1)), trace=None).explain()


provoked.pairs += [
    ("The question is ...", lambda w: w.engine.store.search(" ")),
    ("The question is ...", lambda w: w.engine.store.search(None)),  # type: ignore[arg-type]
    (
        "The store at ... holds no chunks...",
        lambda w: w.run(
            *("ask", "Where?", "--store", w.store, "--model", w.model_dir, "--scope", "none")
        ),
    ),
    ("scopes is ...; give a ... of strings, or None...", lambda w: AnswerSettings(scopes="north")),  # type: ignore[arg-type]
    (
        "scopes is ...; give a ... of strings, or None...",
        lambda w: w.engine.store.search("Where?", scopes="north"),
    ),
    (
        "The filter ... can't be used: ...",
        lambda w: w.engine.store.search("Where?", where={"page": {"$near": 3}}),
    ),
    (
        "The filter ... can't be used: ...",
        lambda w: w.engine.store.search("Where?", where="page"),  # type: ignore[arg-type]
    ),
]


def written_to_a_full_disk(world: World) -> None:
    page = world.engine.answer("Where?", AnswerSettings(max_tokens=1)).explain()
    world.full_disk()
    page.save(world.tmp / "why.html")


provoked.each(
    {
        "The prompt is empty.": lambda w: ask(w, " "),
        "The prompt holds no messages.": lambda w: ask(w, []),
        "The prompt's messages are all empty.": lambda w: ask(
            w, [{"role": "user", "content": " "}]
        ),
        "A message must be a dictionary with the strings 'role' and 'content'; got ...": (
            lambda w: ask(w, [{"role": "user", "content": None}])  # type: ignore[typeddict-item]
        ),
        "A message's tool_calls are ...; give a list of dictionaries.": lambda w: ask(
            w,
            [{"role": "assistant", "content": "", "tool_calls": "f"}],  # type: ignore[typeddict-item]
        ),
        "The ... of a message is ...; give a string.": lambda w: ask(
            w,
            [{"role": "user", "content": "a", "name": 5}],  # type: ignore[typeddict-item]
        ),
        "Messages or tools are nested too deep; give some with less in them.": lambda w: ask(
            w,
            [{"role": "user", "content": "a", "more": nested()}],  # type: ignore[typeddict-unknown-key]
        ),
        "The prompt has ... tokens; the context of ... holds ..., and the answer needs ...": (
            lambda w: ask(w, "the river and the bridge " * 1000)
        ),
        "The prompt is ...; give a string, or a list of messages.": lambda w: ask(w, 5),
        "... is ..., and is left as it is; give the path of a file, or a new one.": lambda w: w.run(
            *("ask", "Where?", "--store", w.store, "--explain", w.tmp)
        ),
        "... can't be written: ....": written_to_a_full_disk,
        "k is ...; it must be at least 1.": lambda w: w.engine.store.search("Where?", 0),
        "The answer is there once its stream has been read to the end.": lambda w: (
            w.engine.stream("Where?").answer
        ),
        "There is no directory ... to write ... to.": lambda w: w.run(
            *("ask", "Where?", "--store", w.store, "--explain", w.tmp / "none" / "why.html")
        ),
    }
)
