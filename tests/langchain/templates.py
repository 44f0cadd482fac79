"""Chat templates with words for tools, in the manner of those that models are published with.

Each does with tools, their calls and their results what the family's own does, as far as a prompt
shows it, and refuses what that refuses.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

WITH_TOOLS = (
    "{{ bos_token }}{% if tools %}<|system|>\nTools: {{ tools | tojson }}<|end|>\n{% endif %}"
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] | trim }}"
    "{% for c in m['tool_calls'] or [] %}<tool_call>{{ c['function'] | tojson }}</tool_call>"
    "{% endfor %}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)

_NINE = (
    "{%- macro nine(id) -%}{%- if id is not defined or id | length != 9 -%}"
    "{{- raise_exception('Ids of tool calls are nine letters and digits.') -}}{%- endif -%}"
    "{{- id -}}{%- endmacro -%}"
)
_ALTERNATE = (
    "{%- set said = namespace(count=0) -%}{%- for m in messages -%}"
    "{%- if m.role in ('user', 'assistant') and m.tool_calls is not defined -%}"
    "{%- if (m.role == 'user') != (said.count % 2 == 0) -%}"
    "{{- raise_exception('user and assistant must take turns.') -}}{%- endif -%}"
    "{%- set said.count = said.count + 1 -%}{%- endif -%}{%- endfor -%}"
)
_TOLD = (
    "{%- if m.role == 'user' -%}{%- if tools and loop.last -%}"
    "[AVAILABLE_TOOLS] {{ tools | tojson }}[/AVAILABLE_TOOLS]{%- endif -%}"
    "[INST] {{ m.content }}[/INST]"
)
_LISTED = (
    "{%- elif m.tool_calls is defined -%}[TOOL_CALLS] ["
    '{%- for c in m.tool_calls -%}{{ (c.function | tojson)[:-1] }}, "id": "{{ nine(c.id) }}"}'
    "{%- if not loop.last -%}, {% endif -%}{%- endfor -%}]</s>"
)
_SAID = "{%- elif m.role == 'assistant' -%} {{ m.content }}</s>"
_RESULT = (
    "{%- elif m.role == 'tool' -%}[TOOL_RESULTS] {\"content\": {{ m.content | tojson }}, "
    '"call_id": "{{ nine(m.tool_call_id) }}"}[/TOOL_RESULTS]{%- endif -%}{%- endfor -%}'
)
_BEGIN = "{{- bos_token -}}{%- for m in messages -%}"
_MISTRAL_LISTED = _NINE + _ALTERNATE + _BEGIN + _TOLD + _LISTED + _SAID + _RESULT
_MISTRAL_WITH_ID = (
    _NINE + _BEGIN + _TOLD + "{%- elif m.tool_calls is defined -%}{%- for c in m.tool_calls -%}"
    "[TOOL_CALLS]{{ c.function.name }}[CALL_ID]{{ nine(c.id) }}[ARGS]"
    "{{ c.function.arguments | tojson }}{%- endfor -%}</s>"
    + _SAID
    + "{%- elif m.role == 'tool' -%}[TOOL_RESULTS]{{ nine(m.tool_call_id) }}[TOOL_CONTENT]"
    "{{ m.content }}[/TOOL_RESULTS]{%- endif -%}{%- endfor -%}"
)
_MISTRAL_NAMED = (
    _BEGIN + _TOLD + "{%- elif m.tool_calls is defined -%}{%- for c in m.tool_calls -%}"
    "[TOOL_CALLS]{{ c.function.name }}[ARGS]{{ c.function.arguments | tojson }}"
    "{%- endfor -%}</s>"
    + _SAID
    + "{%- elif m.role == 'tool' -%}[TOOL_RESULTS]{{ m.content }}[/TOOL_RESULTS]"
    "{%- endif -%}{%- endfor -%}"
)
_LLAMA = (
    "{{- bos_token -}}{%- if tools is not none and tools is defined -%}"
    "<|system|>Answer by JSON for a call.{%- for t in tools -%}{{ t | tojson }}{%- endfor -%}"
    "<|end|>{%- endif -%}{%- for m in messages -%}{%- if 'tool_calls' in m -%}"
    "{%- if m.tool_calls | length != 1 -%}{{- raise_exception('Only one call at once.') -}}"
    "{%- endif -%}{%- set f = m.tool_calls[0].function -%}"
    '<|assistant|>{"name": "{{ f.name }}", "parameters": {{ f.arguments | tojson }}}<|end|>'
    "{%- elif m.role == 'tool' -%}<|ipython|>{{ m.content | tojson }}<|end|>"
    "{%- else -%}<|{{ m.role }}|>{{ m.content | trim }}<|end|>{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
)
_QWEN = (
    "{%- if tools -%}<|system|>\n<tools>{%- for t in tools -%}\n{{ t | tojson }}{%- endfor -%}"
    "\n</tools><|end|>\n{%- endif -%}{%- for m in messages -%}"
    "{%- if m.role == 'tool' -%}<|user|>\n<tool_response>\n{{ m.content }}\n</tool_response>"
    "{%- else -%}<|{{ m.role }}|>\n{{ m.content }}{%- for c in m.tool_calls or [] -%}"
    "{%- if c.function -%}{%- set c = c.function -%}{%- endif -%}\n<tool_call>\n"
    '{"name": "{{ c.name }}", "arguments": {{ c.arguments | tojson }}}\n</tool_call>'
    "{%- endfor -%}{%- endif -%}<|end|>\n{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|assistant|>\n{%- endif -%}"
)
_GLM = (
    "{%- if tools -%}<|system|>\n{%- for t in tools -%}\n## {{ t.function.name }}\n\n"
    "{{ t.function | tojson }}{%- endfor -%}{%- endif -%}{%- for m in messages -%}"
    "{%- if m.role == 'tool' -%}<|observation|>\n{{ m.content }}"
    "{%- elif m.tool_calls -%}{%- for c in m.tool_calls -%}<|assistant|>{{ c.function.name }}\n"
    "{{ c.function.arguments | tojson }}{%- endfor -%}"
    "{%- else -%}<|{{ m.role }}|>\n{{ m.content }}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
)

# Of families that know tools: none, or only where a system message brings them.
_PHI = (
    "{%- for m in messages -%}<|{{ m.role }}|>{{ m.content }}"
    "{%- if m.role == 'system' and m.tools is defined -%}<|tool|>{{ m.tools }}<|/tool|>"
    "{%- endif -%}<|end|>{%- endfor -%}"
)
_GEMMA = (
    "{%- for m in messages -%}{%- if (m.role == 'user') != (loop.index0 % 2 == 0) -%}"
    "{{- raise_exception('user and assistant must take turns.') -}}{%- endif -%}"
    "<start_of_turn>{{ m.role }}\n{{ m.content | trim }}<end_of_turn>\n{%- endfor -%}"
)
WITHOUT_TOOLS = {"phi-4-mini": _PHI, "gemma-3": _GEMMA}

Call = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class Family:
    """template: one, or several by name. write: calls in the form that it teaches the model.

    at_once: how many there may be.
    """

    template: str | dict[str, str]
    write: Callable[[list[Call]], str]
    at_once: int = 2


def _json(calls: list[Call], arguments: str = "arguments") -> list[str]:
    return [json.dumps({"name": name, arguments: given}) for name, given in calls]


def _tagged(calls: list[Call]) -> str:
    return "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in _json(calls))


def _named(calls: list[Call]) -> str:
    return "".join(f"[TOOL_CALLS]{name}[ARGS]{json.dumps(given)}" for name, given in calls)


def _with_ids(calls: list[Call]) -> str:
    return "".join(
        f"[TOOL_CALLS]{name}[CALL_ID]CallNo{number:03}[ARGS]{json.dumps(given)}"
        for number, (name, given) in enumerate(calls)
    )


FAMILIES = {
    "mistral-v3": Family(
        _MISTRAL_LISTED, lambda calls: f"[TOOL_CALLS] [{', '.join(_json(calls))}]"
    ),
    "mistral-v7": Family(_MISTRAL_LISTED, lambda calls: f"[TOOL_CALLS][{', '.join(_json(calls))}]"),
    "mistral-v11": Family(_MISTRAL_WITH_ID, _with_ids),
    "mistral-v13": Family(_MISTRAL_NAMED, _named),
    "llama-3.1": Family(_LLAMA, lambda calls: _json(calls, "parameters")[0], at_once=1),
    "qwen-2.5": Family(_QWEN, _tagged),
    "hermes": Family({"default": _GEMMA, "tool_use": _QWEN}, _tagged),
    "glm-4": Family(_GLM, lambda calls: f"{calls[0][0]}\n{json.dumps(calls[0][1])}", at_once=1),
}
