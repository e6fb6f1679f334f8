"""Requests to foreign servers: http and https alone, bounded answers, retries where a moment's wait may help.

A redirect never leads from https to http, nor to ``file:`` or ``ftp:``. Every failure is one sentence that names the address.
"""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

from ttd.config import UserError

RETRIES = 3
BACKOFF_S = 1.0
"""Before the first retry; twice as long before each further one."""
TIMEOUT_S = 60.0


class TransientError(Exception):
    """The same request may succeed in a moment."""


class PassingError(UserError):
    """No answer for a reason that may pass: the same command may succeed later."""


class NoRestError(UserError):
    """The server cannot give the rest of a file from where a transfer stopped (416)."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects, but never from https to http."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            raise UserError(f"{req.full_url}: redirected to {newurl}, which is not encrypted; refused")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def opener() -> urllib.request.OpenerDirector:
    """Speaks http and https and nothing else: a listing or a redirect cannot name ``file:`` or ``ftp:``."""
    director = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        _Redirects(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        director.add_handler(handler)
    return director


@contextmanager
def open_url(url: str, headers: dict[str, str] | None = None) -> Iterator[http.client.HTTPResponse]:
    """One request; errors are ``TransientError`` where a retry may help, else ``UserError``."""
    request = urllib.request.Request(
        url, headers={"User-Agent": "ttd", "Accept-Encoding": "identity", **(headers or {})}
    )
    try:
        with opener().open(request, timeout=TIMEOUT_S) as response:
            yield response
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in (408, 425, 429) or error.code >= 500:
            raise TransientError(f"the server answers {error.code} ({error.reason})") from error
        remedy = {
            401: "it asks for an account; get it by hand",
            403: "it does not give this file away; look at the study's page",
            404: "there is no such file; the study may have moved",
            416: "it cannot give the rest of the file",
        }.get(error.code, "look at the study's page")
        kind = NoRestError if error.code == 416 else UserError
        raise kind(f"{url}: the server answers {error.code} ({error.reason}): {remedy}") from error
    except urllib.error.URLError as error:
        if "unknown url type" in str(error.reason):
            raise UserError(f"{url}: not an http address; refused") from error
        raise TransientError(f"no connection ({error.reason})") from error
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, OSError) and error.filename:  # a disk's error, not the network's
            raise
        raise TransientError(f"the connection broke ({error or type(error).__name__})") from error


def with_retries(work: Callable[[], Any], about: str) -> Any:
    """Call ``work``, again after 1, 2 and 4 seconds where it failed for a passing reason.

    Raises:
        PassingError: it failed every time.
    """
    for attempt in range(RETRIES + 1):
        try:
            return work()
        except TransientError as error:
            if attempt == RETRIES:
                remedy = "try again later, the same command goes on from here"
                raise PassingError(f"{about}: {error}, {RETRIES + 1} times; {remedy}") from error
            time.sleep(BACKOFF_S * 2**attempt)


def read_small(url: str, limit: int = 64 << 20) -> bytes:
    """The whole of a listing.

    Raises:
        UserError: it cannot be had, or is larger than ``limit``.
    """

    def work() -> bytes:
        with open_url(url) as response:
            content = response.read(limit + 1)
            announced = response.headers.get("Content-Length")
        if len(content) > limit:
            raise UserError(f"{url}: more than {limit >> 20} MiB for a listing; refused")
        if announced is not None and len(content) < int(announced):
            raise TransientError("the connection broke")
        return content

    return with_retries(work, url)
