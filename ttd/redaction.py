"""Secrets out of everything that is written or sent: keys of the environment and netrc, tokens, passwords in URLs, secret fields.

A tracker, a log or an error message may quote what it was given; what goes there passes through ``redact`` first.
"""

from __future__ import annotations

import netrc
import os
import re
import sys
import threading
import traceback
from collections.abc import Mapping
from functools import lru_cache
from types import TracebackType
from typing import Any
from urllib.parse import quote

REDACTED = "[redacted]"
SECRET_NAME = re.compile(r"(?i)(^|_)(token|secret)$|(password|passwd|passphrase)$|_pwd$|_key$|^apikey$")
"""Names of variables and fields whose text is a secret: WANDB_API_KEY, HF_TOKEN, AWS_SECRET_ACCESS_KEY, PGPASSWORD."""
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
    (
        re.compile(
            r"(?<![A-Za-z0-9])(?:hf_[A-Za-z0-9]{30,}|gh[opsu]_[A-Za-z0-9]{30,}|github_pat_\w{30,}|glpat-[\w-]{16,}"
            r"|AKIA[A-Z0-9]{16}|sk-[\w-]{30,}|xox[abpr]-[\w-]{20,}|wandb_v\d_\w{20,}|eyJ[\w-]{4,}\.[\w-]{8,}\.[\w-]{8,})"
        ),
        REDACTED,
    ),  # tokens that say by their beginning whose they are: Hugging Face, GitHub, GitLab, AWS, OpenAI, Slack, W&B, JWT
)


@lru_cache
def _of_netrc() -> frozenset[str]:
    """Passwords of ``~/.netrc``, where W&B, git and curl keep theirs."""
    try:
        hosts = netrc.netrc(
            os.environ.get("NETRC") or os.path.expanduser("~/.netrc")
        ).hosts  # named: whoever may read it
    except (OSError, netrc.NetrcParseError, UnicodeDecodeError):
        return frozenset()
    return frozenset(password for _, _, password in hosts.values() if password)


def _secrets() -> list[str]:
    """Secret values of the environment and of netrc, as they are and as a URL writes them; longest first."""
    values = {value for name, value in os.environ.items() if SECRET_NAME.search(name)} | _of_netrc()
    values = {value for value in values if len(value) >= SHORTEST}
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

    Removed are the values of environment variables with secret names, passwords of netrc, the user part of URLs, ``token=...``
    and its like in any text, bearer tokens and others that are known by their shape, and text under a secret name in a mapping.
    Numbers stay; sequences become lists, anything else its text.
    """
    return _redact(value, _secrets())


def redact_tracebacks() -> None:
    """From now on an exception that ends the process, or a thread, is shown without secrets; otherwise as Python shows it."""

    def show(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
        sys.stderr.write(redact("".join(traceback.format_exception(kind, error, trace))))
        sys.stderr.flush()

    def show_of_thread(given: threading.ExceptHookArgs) -> None:
        if given.exc_type is not SystemExit:
            name = given.thread.name if given.thread else "of unknown name"
            sys.stderr.write(f"Exception in thread {name}:\n")
            show(given.exc_type, given.exc_value, given.exc_traceback)

    sys.excepthook, threading.excepthook = show, show_of_thread
