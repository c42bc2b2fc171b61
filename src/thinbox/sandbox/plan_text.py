"""A plan as text: TOML that `plan_file` reads back as the same plan, with the reasons as comments of its rules.

Rules of this file: the same plan gives the same bytes; one rule a line, so that a refusal's line says something.
"""

import errno
import json
from collections.abc import Mapping
from typing import Any

from thinbox.sandbox.arguments import show_value, width_mask
from thinbox.sandbox.plan import Answer, Condition, Disposition, Phase, Plan, Rule
from thinbox.sandbox.plan_file import SCHEMA
from thinbox.syscalls.table import call_name


def render_plan(plan: Plan, comments: tuple[str, ...] = ()) -> str:
    """Return the plan as TOML; `comments` are lines for its head."""
    lines = [f"# {line}".rstrip() for line in comments]
    lines += [f"schema = {_text(SCHEMA)}", f"name = {_text(plan.name)}"]
    lines += [f"{key} = {_text(value)}" for key, value in (("source", plan.source), ("date", plan.date)) if value]
    lines += [f"default = {_text(show_answer(plan.default))}", f"compat = {_text(show_answer(plan.compat))}"]
    if plan.seed:
        lines.append(f"seed = {plan.seed}")
    if plan.marker:
        lines.append(f"phase_marker = {_list([_text(call_name(nr)) for nr in plan.marker])}")
    for file in plan.files:
        body = f"from = {_text(file.origin)}" if file.origin else f"text = {_text(file.data.decode())}"
        lines += ["", "[[file]]", f"path = {_text(file.path)}", body]
    lines += ["", "[calls]"]
    for nr in sorted(plan.rules):
        rules = plan.rules[nr]
        if len(rules) == 1:
            lines.append(f"{call_name(nr)} = {_rule(rules[0])}")
        else:
            lines.append(f"{call_name(nr)} = [")
            lines += [f"  {_rule(rule)}," for rule in rules]
            lines.append("]")
    return "\n".join(lines) + "\n"


def show_answer(answer: Answer) -> str:
    """Return an answer as a plan writes it: `isolate`, `deny:EPERM`."""
    if answer.disposition is Disposition.DENY:
        return f"deny:{errno.errorcode.get(answer.errno, answer.errno)}"
    return answer.disposition.value


def show_condition(rule: Rule, condition: Condition) -> str:
    """Return a condition in words: `family is AF_UNIX or AF_INET`, `no bits of clone_flags but …`."""
    others = _other_bits(rule, condition)
    if condition.values == (0,) and others is not None:
        return f"{condition.name} has no bits but {show_value(rule.name, condition.index, others)}"
    values = " or ".join(show_value(rule.name, condition.index, value) for value in condition.values)
    if condition.mask == width_mask(rule.nr, condition.index):
        return f"{condition.name} is {values}"
    return f"{condition.name} & {condition.mask:#x} is {values}"


def _other_bits(rule: Rule, condition: Condition) -> int | None:
    """Return the bits a condition leaves open, where it is one of the kind "no bits but these"."""
    width = width_mask(rule.nr, condition.index)
    return ~condition.mask & width if condition.mask > width >> 1 else None


def _rule(rule: Rule) -> str:
    answer, parts = rule.answer, []
    if answer.handler:
        parts.append(f"emulate = {_text(answer.handler)}")
    else:
        word = answer.disposition.value
        parts.append(f"do = {_text(word)}")
        if answer.disposition is Disposition.DENY:
            parts.append(f"errno = {_errno(answer.errno)}")
    if rule.when:
        parts.append("when = { " + ", ".join(_condition(rule, c) for c in rule.when) + " }")
    if rule.otherwise is not None:
        parts.append(f"otherwise = {_text(show_answer(rule.otherwise))}")
    if rule.phase is not Phase.ALWAYS:
        parts.append(f"phase = {_text(rule.phase.value)}")
    if rule.reason:
        parts.append(f"reason = {_text(rule.reason)}")
    if rule.evidence:
        parts.append(f"evidence = {_table(rule.evidence)}")
    return "{ " + ", ".join(parts) + " }"


def _errno(number: int) -> str:
    return _text(errno.errorcode[number]) if number in errno.errorcode else str(number)


def _condition(rule: Rule, condition: Condition) -> str:
    def show(value: int) -> str:
        shown = show_value(rule.name, condition.index, value)
        return shown if shown.isdigit() else _text(shown)

    values = [show(value) for value in condition.values]
    if condition.mask == width_mask(rule.nr, condition.index):
        return f"{condition.name} = {values[0] if len(values) == 1 else _list(values)}"
    others = _other_bits(rule, condition)
    mask = hex(condition.mask) if others is None else f"~{show_value(rule.name, condition.index, others)}"
    return f"{condition.name} = {{ mask = {_text(mask)}, is = {values[0] if len(values) == 1 else _list(values)} }}"


def _list(items: list[str]) -> str:
    return f"[{', '.join(items)}]"


def _text(value: str) -> str:
    # JSON's strings are TOML's basic strings, but for DEL and lone surrogates.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")


def _table(values: Mapping[str, Any]) -> str:
    return "{ " + ", ".join(f"{key} = {_value(value)}" for key, value in values.items()) + " }"


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return _table({key if key.isidentifier() else _text(key): inner for key, inner in value.items()})
    if isinstance(value, list | tuple):
        return _list([_value(inner) for inner in value])
    if isinstance(value, bool):
        return "true" if value else "false"
    return _text(value) if isinstance(value, str) else repr(value)
