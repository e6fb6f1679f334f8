"""Secrets out of everything that is written or sent: keys of the environment, tokens and passwords in URLs, secret fields.

A tracker, a log or an error message may quote what it was given; what goes there passes through ``redact`` first.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

REDACTED = "[redacted]"
SECRET_NAME = re.compile(r"(?i)(^|_)(token|secret|password)$|_key$|^apikey$")
"""Names of variables and fields whose text is a secret: WANDB_API_KEY, HF_TOKEN, AWS_SECRET_ACCESS_KEY, db_password."""
SHORTEST = 6
"""Shorter values of such variables are no secrets; replacing them would spoil ordinary words and numbers."""
IN_TEXT = (
    (re.compile(r"(?<=://)[^/\s@]+(?=@)"), REDACTED),  # https://user:password@host, https://token@host
    (
        re.compile(
            r"(?i)([\w-]*(?:token|secret|password|api_?key|access_?key|signature)=)(?!(?:true|false|none|null|[\d.]{1,5})\b)[^&#\s\"']+"
        ),
        rf"\1{REDACTED}",
    ),
    (re.compile(r"(?i)(\bbearer\s+)[\w.~+/=-]{16,}"), rf"\1{REDACTED}"),
)


def _secrets() -> list[str]:
    """Values of the environment that are secrets, as they are and as a URL writes them; longest first."""
    values = {value for name, value in os.environ.items() if SECRET_NAME.search(name) and len(value) >= SHORTEST}
    return sorted(values | {quote(value, safe="") for value in values}, key=len, reverse=True)


def _redact(value: Any, secrets: list[str]) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {
            _redact(key, secrets): REDACTED
            if isinstance(inner, str) and SECRET_NAME.search(str(key))
            else _redact(inner, secrets)
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [_redact(inner, secrets) for inner in value]
    text = str(value)
    for secret in secrets:
        text = text.replace(secret, REDACTED)
    for pattern, instead in IN_TEXT:
        text = pattern.sub(instead, text)
    return text


def redact(value: Any) -> Any:
    """``value``, text or nested, without secrets and ready for JSON.

    Removed are the values of environment variables with secret names, the user part of URLs, ``token=...`` and its like in
    any text, bearer tokens, and text under a secret name in a mapping. Numbers stay; sequences become lists, anything else
    its text.
    """
    return _redact(value, _secrets())
