"""HTTP GET over asyncio in one file, with nothing but the standard library.

A GET is a few lines of text sent, a few lines and some bytes received. What makes a client
long is finding out where those bytes end, using the connection again, and getting through
networks and servers that were not made for it. This file does it in four parts, in the order
of the data. You may stop after any of them, and have then read a whole client.

I. One GET: what goes over the wire, and what Python does while it waits

    1. Errors                  how a failure is told
    2. URLs                    text to URL
    3. Request bytes           the head that is sent
    4. Response head           status line and fields
    5. Body framing            where the body ends
    6. Connection              one exchange over TCP and TLS, and one clock
    7. Response                what the caller holds

II. Many GETs: connections used again, and the loop around it all

    8. Decoding                gzip, deflate, zstd, charsets, lines
    9. Pool                    which connection a request gets, and who waits
    10. Redirects and retries  what a response leads to
    11. Settings               keywords, checked and merged; what they put into a request
    12. Session                one call after another, or a million

III. In somebody else's network: what a corporate machine adds

    13. Addresses and TLS      names with many addresses, certificates, errors in words
    14. Proxies                tunnels, SOCKS, NO_PROXY
    15. Cookies                RFC 6265bis: what may be kept, and who is told
    16. Passwords              in URLs and netrc

IV. Tools: on top of that, files and curl's flags

    17. Downloads              a file that is whole, or not there
    18. Timeline               a picture of where the time went
    19. Demo server            the same bytes from the other side
    20. Command line           python -m asyncget URL

One GET, with the sections that tell it:

    get("http://h/x")
        |  URL(origin=("http", "h", 80), target="/x")                        2
        v
    GET /x HTTP/1.1 \\r\\n Host: h \\r\\n \\r\\n          request bytes             3
        |
        |  Connection.exchange, over one of the pool's connections        6, 9
        v
    HTTP/1.1 200 OK \\r\\n Content-Length: 5 \\r\\n \\r\\n  response head            4
    hello                                           body: framing, coding    5, 8
        |
        v
    Response(200, content=b"hello")     or a redirect, or a retry        7, 10

Words, and what they look like here:

    origin    Origin("https", "h.test", 443)   who is asked, who sees a secret
    target    "/search?q=x"                    what is asked for
    field     ("Accept", "*/*")                one line of a head
    head      b"HTTP/1.1 200 OK\\r\\n...\\r\\n\\r\\n"  all up to the empty line
    framing   5, "chunked" or "close"          how the end of a body is known
    coding    "gzip"                           how a body was compressed
    route     Route(origin, tls, proxy, ...)   what must be equal to share a connection
    RFC       RFC 9112 6.3                     a standard, its section; 9110 and 9112 are HTTP

Users need `get`, `get_all`, `as_completed`, `stream`, `download` and `Session`.
"""

# SPDX-License-Identifier: MIT

from __future__ import annotations

if __name__ == "__main__":
    # Run as a program, this file imports nothing more from the current folder or its own: a
    # json.py may lie there, downloaded from a server that chose this name. (For __future__, above,
    # Python has looked there: nothing can stand before that line.)
    import sys
    if not sys.flags.isolated:  # else all there is Python's own, perhaps the current folder, too
        if not getattr(sys.flags, "safe_path", 0):
            del sys.path[0]
        from os.path import realpath
        try:  # PYTHONPATH may name it, too
            current = realpath("")
            sys.path[:] = [path for path in sys.path if realpath(path) != current]
        except OSError:  # it was deleted, so nothing is there
            pass

import asyncio
import base64
import codecs
import collections
import contextlib
import contextvars
import datetime
import errno
import functools
import inspect
import io
import itertools
import math
import os
import re
import select
import socket
import ssl
import sys
import threading
import time
import types
import weakref
import zlib
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
    Set,
    Sized,
    ValuesView,
)
from concurrent.futures import Future
from encodings.aliases import aliases
from os.path import (
    basename,
    dirname,
    exists,
    getmtime,
    getsize,
    isfile,
    islink,
    lexists,
    realpath,
)
from typing import (
    IO,
    TYPE_CHECKING,
    Any,
    NamedTuple,
    Protocol,
    TypedDict,
    TypeVar,
    Union,
    overload,
    runtime_checkable,
)

if sys.version_info >= (3, 11):
    from typing import Unpack
elif TYPE_CHECKING:
    from typing_extensions import Unpack  # known to each type checker, and never imported
else:
    Unpack = Union  # for typing.get_type_hints

__version__ = "0.2.0"
__all__ = [
    "get", "get_all", "as_completed", "stream", "download", "Session", "Response", "Headers",
    "AsyncGetError", "InvalidURL", "InvalidHeader", "ConnectError", "TLSError", "ProxyError",
    "TimedOut", "ProtocolError", "IncompleteBody", "DecodingError", "TooLarge",
    "TooManyRedirects", "StatusError",
]


# #### Part I. One GET #########################################################
# A client mostly waits, and waiting is what `asyncio` is for; here are its terms. Started by
# asyncio.run(main()), this program counts while a slow server thinks (`python -m asyncget --demo`
# shows it):
#
#     async def count():                         async def main():
#         while True:                                counter = asyncio.create_task(count())
#             await asyncio.sleep(1)                 response = await get("http://h.test/slow")
#             print("still counting")                counter.cancel()
#
#     seconds       0               1                 2                3
#     main()     send, await ...............................................  the answer is here
#     count()    await ...........  print, await ...  print, await .........  is cancelled
#     event loop       waits for all of them at once, and calls who is next
#
# A *coroutine* is a function that can stop half-way: `await` says "until this is there, let
# others run" (`async for` and `async with` await, too). The *event loop* decides who runs: in
# each *turn* it asks the operating system (the kernel) which sockets have bytes, sees which
# timers are due, and resumes the coroutines that wait for these. Usually one coroutine awaits
# another, that one a third; the innermost awaits a *future*, whose result is set later, when
# bytes have come, say. A *task* is a coroutine that the loop runs beside the others.
# *Cancelling* a task raises CancelledError in it, at the await where it stands. A *transport* is
# the loop's own end of a socket: it sends what we write, as fast as the kernel takes it, and
# hands what comes to a *protocol*, which keeps it until we read. asyncio.open_connection makes
# both, and gives us a *stream* to use them by: a reader and a writer.
# All of it is one thread: between two awaits nobody else runs. So no coroutine becomes faster,
# and while one computes, all others wait. But a thousand that only wait cost hardly more than one.

# ==== 1. Errors ===============================================================
# Every failure of a server, a network or a URL is raised as one of the exceptions below. Every
# size that a stranger could choose has a limit, a keyword or a name in capitals at the head of a
# section.

MAX_SHOWN_BYTES = 100            # of a server's bytes in an error text
_FOREVER = float("inf")


class AsyncGetError(Exception):
    """Whatever goes wrong is one of these; its text says what, and often what to do about it.

    `url` is what was asked for, without user and password, or the URL of `response`, where there
    is one. `exit_code` is curl's for it, and our command line's.
    """

    url: str = ""
    response: Response | None = None
    exit_code: int = 2

    def __init__(self, message: str = "", **facts: Any) -> None:
        super().__init__(message)
        vars(self).update(facts)
        if self.response:
            self.url = self.response.url


class InvalidURL(AsyncGetError, ValueError):
    """Not a URL that can be asked for, a caller's or a redirect's; nothing was sent to it."""

    exit_code = 3


class InvalidHeader(AsyncGetError, ValueError):
    """A header, cookie or credential that cannot be sent as a field; nothing was sent."""

    exit_code = 43


class ConnectError(AsyncGetError, ConnectionError):
    """No connection: the name, the address or the way there. The request was not sent."""

    exit_code = 7
    errno: int | None = None  # the system's


class TLSError(ConnectError):
    """The certificate is not trusted, or TLS (https encryption) failed.

    With TLS 1.3, the refusal of a client's certificate may come after the request was sent.
    """

    exit_code = 35


class ProxyError(ConnectError):
    """The proxy would not, or could not, let us through."""

    exit_code = 97
    status: int | None = None  # of its answer to CONNECT


class TimedOut(AsyncGetError, TimeoutError):
    """The wait for `phase`, or the whole call, took longer than `seconds`; a retry may help."""

    exit_code = 28
    phase: str = ""
    seconds: float = 0.0


class ProtocolError(AsyncGetError):
    """The server's bytes are not a proper response; the text says what is wrong."""

    exit_code = 8


class IncompleteBody(ProtocolError):
    """The connection ended too early: `received` of `expected` body bytes (None: unknown)."""

    exit_code = 18
    expected: int | None = None
    received: int = 0


class DecodingError(AsyncGetError, ValueError):
    """The body is not in the coding, charset or JSON that it claims, or its coding is unknown."""

    exit_code = 61


class TooLarge(AsyncGetError):
    """More than `limit` bytes, or characters of a line, would have to be held."""

    exit_code = 63
    limit: int = 0


class TooManyRedirects(AsyncGetError):
    """`history` holds the responses on the way."""

    exit_code = 47
    history: list[Response] = []


class StatusError(AsyncGetError):
    """From raise_for_status, for 400 and above; from a download, for any answer but the file."""

    response: Response
    exit_code = 22


def shown(data: bytes | bytearray) -> str:
    r"""Bytes of a stranger, fit for an error text: short, and harmless to a terminal.

    >>> shown(b"HTP/1.1\x1b[2J")
    "b'HTP/1.1\\x1b[2J'"
    """
    tail = "…" if len(data) > MAX_SHOWN_BYTES else ""
    return repr(bytes(data[:MAX_SHOWN_BYTES])) + tail


def printable(text: str) -> str:
    r"""Text of a stranger, fit for a terminal: controls and direction marks escaped.

    >>> printable("a\x1b]0;owned\x07")
    'a\\x1b]0;owned\\x07'
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


# ==== 2. URLs =================================================================
# A URL is cut into parts by this section alone, and these parts decide who is asked: many
# published attacks begin where two parsers disagree about the host. What is asked for goes out
# byte for byte; only the segments "." and ".." are resolved, and what cannot be on a request line
# (blanks, non-ASCII) is percent-encoded.

DEFAULT_PORTS = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}  # SOCKS: section 14
# Here and below, expressions that GETs often need are compiled on import, the others by `re` when
# they are first used.
# What may not go out in a field's value or a URL: ASCII controls except the tab, and surrogates
# (halves of characters) except those that stand for single bytes: octets_text, section 4.
_BAD = "\0-\x08\x0a-\x1f\x7f\ud800-\udc7f\udd00-\udfff"
_VALUE = re.compile(f"[^{_BAD}]*")
_URL = re.compile(  # scheme, user and password, host and port, and the rest; and no tab
    rf"([^:/?#\t{_BAD}]*)://(|[A-Za-z0-9._~!$&'()*+,;=:%@-]*@)([^/?#@\t{_BAD}]*)(?![^/?#])"
    rf"([^\t{_BAD}]*)")
# A port may begin with zeros.
_HOST_PORT = re.compile(r"(\[[^\[\]:]*:[^\[\]]*\]|[^\[\]:]*)(?::0{0,9}?([0-9]{0,5}))?")
# 255 characters at most; "h.test." is the full name, up to the DNS root.
_HOST = r"(?!.{256})(?:[a-z0-9_-]{1,63}\.)*[a-z0-9_-]{1,63}\.?"
_NUMBERS = r"(?:(?:[0-9]+|0x[0-9a-f]*)(?:\.|$))+"
_ADDRESS = r"[0-9A-Fa-f:.]+(?:%(?:25)?[A-Za-z0-9._~-]{1,63})?"  # with a zone: RFC 9844


def bracketed(host: str) -> str:
    """A host as it stands in a URL: IPv6 in brackets, its zone after %25, as most parse it."""
    return "[" + host.replace("%", "%25") + "]" if ":" in host else host


def without_zone(host: str) -> str:
    """A host as others know it: fe80::1%eth0 is a name for it on this machine alone."""
    return host.partition("%")[0]


class Origin(NamedTuple):
    """Who is asked (RFC 6454). What another origin is not told: next_request (section 10)."""

    scheme: str  # "http" or "https"
    host: str    # as it is looked up: lower case, punycode, IPv6 without brackets
    port: int

    @property
    def authority(self) -> str:
        """The Host field: the port only where it is not the scheme's own, and no zone.

        >>> Origin("https", "fe80::1%eth0", 8443).authority
        '[fe80::1]:8443'
        """
        return bracketed(without_zone(self.host)) + self.port_suffix

    @property
    def port_suffix(self) -> str:
        """":8443", or nothing where the scheme says it."""
        return "" if self.port == DEFAULT_PORTS[self.scheme] else f":{self.port}"


class URL(NamedTuple):
    """The parts of a URL; str() and repr() put them together without the userinfo."""

    origin: Origin
    target: str    # path and query, from "/" on
    fragment: str  # stays here, is never sent
    userinfo: str  # "user:password", still percent-encoded

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition("?")[0]

    def __repr__(self) -> str:
        scheme, host, _ = self.origin
        fragment = "#" + self.fragment if self.fragment else ""
        return f"{scheme}://{bracketed(host)}{self.origin.port_suffix}{self.target}{fragment}"


def masked(text: str) -> str:
    """A URL's text, fit for an error: no userinfo, no controls, not too long.

    >>> masked("http://me:secret@h:x/")
    "'http://***@h:x/'"
    """
    text = re.sub(r"(?is)^([a-z]+:/{0,2})?.*@", r"\1***@", text)
    return repr(text[:MAX_SHOWN_BYTES])


def parse_address(text: str) -> str:
    """An IP address in its one canonical spelling.

    >>> parse_address("FE80:0::1%25eth0")
    'fe80::1%eth0'
    """
    import ipaddress
    if re.fullmatch(_ADDRESS, text):
        with contextlib.suppress(ValueError):
            return str(ipaddress.ip_address(text.replace("%25", "%")))
    raise InvalidURL(f"not an IP address: {masked(text)}")


def parse_host(text: str) -> str:
    """A host in the one spelling that is looked up, certified, sent and compared.

    >>> parse_host("BÜCHER.example")
    'xn--bcher-kva.example'

    Raises InvalidURL, also for 127.1 and 0x7f.0.0.1: getaddrinfo would take them for 127.0.0.1.
    A name may still end in a number: Docker Swarm calls a task web.1. (punycode: section 13.)
    """
    if text.startswith("["):
        return parse_address(text[1:-1])
    host = text.lower() if text.isascii() else punycode(text) if len(text) < 256 else ""
    if not re.fullmatch(_HOST, host):
        raise InvalidURL(f"not a host: {masked(text)}")
    return parse_address(text) if re.fullmatch(_NUMBERS, host) else host


def is_address(host: str) -> bool:
    """Whether a host, as parse_host gives it, is an IP address."""
    return ":" in host or not host.strip("0123456789.")


@functools.lru_cache(maxsize=1024)
def parse_origin(scheme: str, host_port: str) -> Origin:
    """The origin of a URL; remembered, as most URLs of a program share a few.

    >>> parse_origin("HTTP", "[::0:1]:080")
    Origin(scheme='http', host='::1', port=80)
    """
    scheme = scheme.lower()
    match = _HOST_PORT.fullmatch(host_port)
    if match is None or int(match[2] or 0) > 65535:
        # http://me:p/w@h arrives here as "me:p", part of a password: hence the mask.
        host = re.sub(r"^(\[[^]]*\]|[^:]*):.*", r"\1:***", host_port)
        raise InvalidURL(f"not a host and port (0 to 65535): {masked(host)}; in a password write "
                         "%23 for #, %2F for /, %3F for ?")
    return Origin(scheme, parse_host(match[1]), int(match[2] or DEFAULT_PORTS[scheme]))


def parse_url(text: str, schemes: Iterable[str] = ("http", "https")) -> URL:
    """Cut an absolute URL of one of these schemes into its parts (RFC 3986, RFC 9110 4.2).

    >>> tuple(parse_url("http://me:pw@H.test:81?q=a b#top"))
    (Origin(scheme='http', host='h.test', port=81), '/?q=a%20b', 'top', 'me:pw')
    >>> str(parse_url("https://straße.test/a/../%2F"))
    'https://xn--strae-oqa.test/%2F'

    Blanks around it are dropped, as browsers do. Bytes that are not UTF-8 keep their values: see
    octets_text (section 4).
    Raises InvalidURL, with exit code 1 for a scheme that is not in `schemes`.
    """
    text = text.strip(" \t\r\n\f")
    match = _URL.fullmatch(text)
    # Control characters are refused: deleting them, as urllib.parse does, makes another URL.
    if match is None:
        raise InvalidURL(f"not an absolute URL: {masked(text)}; write http://host/path, and "
                         "percent-encode control characters, and in user and password all but "
                         "letters, digits and -._~!$&'()*+,;=")
    scheme, userinfo, host_port, rest = match.groups()
    if scheme.lower() not in schemes:
        raise InvalidURL(f"unsupported scheme {scheme[:20]!r} in {masked(text)}: "
                         f"only {', '.join(schemes)}", exit_code=1)
    if not rest.isascii() or " " in rest:
        from string import punctuation
        from urllib.parse import quote
        rest = quote(rest, safe=punctuation, errors="surrogateescape")
    target, _, fragment = rest.partition("#")
    if target[:1] != "/":
        target = "/" + target
    if "/." in target:
        target = remove_dots(target)
    return URL(parse_origin(scheme, host_port), target, fragment, userinfo[:-1])


def remove_dots(target: str) -> str:
    """Take the segments "." and ".." out of a path (RFC 3986 5.2.4, 6.2.2.3).

    >>> remove_dots("/a/./b/../../c"), remove_dots("/../a/..?/.."), remove_dots("/a//...")
    ('/c', '/?/..', '/a//...')
    """
    path, mark, query = target.partition("?")
    if path.endswith(("/.", "/..")):
        path += "/"
    segments: list[str] = []
    for segment in path.split("/")[1:]:
        if segment == "..":
            del segments[-1:]
        elif segment != ".":
            segments.append(segment)
    return "/" + "/".join(segments) + mark + query


# ==== 3. Request bytes ========================================================
# A server is sent nothing but heads, and this section makes their lines. Text from a caller or a
# redirect could smuggle in a line of its own. So the grammar is checked here, on what goes out:
# what does not fit is refused, never mended.

Fields = tuple[tuple[str, str], ...]  # the (name, value) pairs of a head, in order
TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"  # RFC 9110 5.6.2
MAX_TARGET_CHARS = 65_536  # hyper (Rust): 65,534; RFC 9110 4.1 asks for 8,000 at least
_TARGET = re.compile(f"[!-~]{{1,{MAX_TARGET_CHARS}}}")  # visible ASCII
_NAME = re.compile(TOKEN)
_HOST_VALUE = r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?"
PLAIN_FIELDS = (
    ("Host", ""),  # empty: filled in with the authority of each URL
    ("User-Agent", f"asyncget/{__version__}"),
    ("Accept", "*/*"),
)


def render_fields(fields: Fields, origin: Origin) -> bytes:
    r"""The lines of a head and its end.

    >>> render_fields((("Host", ""), ("Accept", "*/*")), Origin("http", "h", 81))
    b'Host: h:81\r\nAccept: */*\r\n\r\n'

    Raises InvalidHeader; values that may be secret are not in its text.
    """
    lines: list[str] = []
    for name, value in fields:
        if not _NAME.fullmatch(name):
            raise InvalidHeader("not a field name, which has no blanks and no colon: "
                                f"{name.partition(':')[0]!r:.100}")
        if not _VALUE.fullmatch(value):
            raise InvalidHeader(f"the value of {name} has control characters, or is not Unicode")
        if name.lower() == "host":
            value = value or origin.authority  # only one (RFC 9112 3.2), and first (9110 7.2)
            if lines or not re.fullmatch(_HOST_VALUE, value):
                raise InvalidHeader(f"not a value for Host, or a second one: {value!r:.100}")
        lines.append(f"{name}: {value}\r\n")
    return "".join([*lines, "\r\n"]).encode("utf-8", "surrogateescape")


def render_request(target: str, lines: bytes) -> bytes:
    r"""The head of a GET. The first line of a request has one of these forms (RFC 9112 3.2):

        GET /path?query HTTP/1.1          origin-form, to the server itself
        GET http://h/path HTTP/1.1        absolute-form, to a proxy
        CONNECT h:443 HTTP/1.1            authority-form, for a tunnel: section 14

    >>> render_request("/x", render_fields((("Host", ""),), Origin("http", "h", 80)))
    b'GET /x HTTP/1.1\r\nHost: h\r\n\r\n'
    """
    if not _TARGET.fullmatch(target):
        raise InvalidURL(f"not a request target of up to {MAX_TARGET_CHARS} characters: "
                         f"{masked(target)}")
    return b"GET %b HTTP/1.1\r\n%b" % (target.encode("ascii"), lines)


# ==== 4. Response head ========================================================
# One regular expression says what a head may look like; a whole head is matched in one go. It is
# strict where lenient clients were attacked (NUL, a CR without LF, a blank before the colon). It
# is lenient where real servers need it: an LF alone ends a line; the reason ("OK") may be missing;
# a line that begins with a blank ("folded") continues the line before; a value may hold control
# bytes (but not a Content-Length or a coding). Only the few fields that we need of each response
# are looked up now; the others are parsed when somebody asks for them.

# One head, counted while it arrives (Connection.exchange, section 6). A line has no limit of its
# own. curl takes heads of 300 KB, aiohttp lines of 8 KB.
MAX_HEAD_BYTES = 131_072
_TEXT = rb"[^\x00\r\n]*"
_STATUS_LINE = rb"HTTP/1\.[0-9] [1-9][0-9]{2}(?: %b)?\r?\n" % _TEXT
_FIELD_LINE = re.compile(  # without the ^, it would find one in "HTTP/1.1 200 not: this"
    rb"^(%b):(%b)\r?\n" % (TOKEN.encode(), _TEXT), re.M)
_HEAD = re.compile(_STATUS_LINE + rb"(?:%b:%b\r?\n)*\r?\n" % (TOKEN.encode(), _TEXT))
_DECISIVE = re.compile(rb"\n(connection|content-encoding|content-length|set-cookie"
                       rb"|transfer-encoding):([^\r\n]*)")
_FOLD = rb"\r?\n[ \t]+"  # RFC 9112 5.2
_HEAD_END = re.compile(rb"\n\r?\n")
_ELEMENT = re.compile(rb"[^, \t](?:[^,]*[^, \t])?")


class Head(NamedTuple):
    """A response head that parse_head has checked."""

    raw: bytes     # to the empty line; as received, but unfolded, and one blank before the status
    status: int    # 100 to 999
    # What _DECISIVE finds: in lower case, blanks not stripped, repeats joined with commas
    # (RFC 9110 5.3).
    fields: dict[bytes, bytes]


def parse_list(value: bytes) -> list[bytes]:
    """The elements of a field that is a list, empty ones dropped (RFC 9110 5.6.1.2).

    >>> parse_list(b",, close ,x")
    [b'close', b'x']
    """
    return _ELEMENT.findall(value)


def check_fields(block: bytes) -> bytes:
    """Unfold field lines, the last one empty; raise ProtocolError with what is not a field line.

    Only for trailers (fields after a body: section 5), and for heads that _HEAD did not match.
    """
    block = re.sub(_FOLD, b" ", block)
    left = _FIELD_LINE.sub(b"", block)
    if left not in (b"\r\n", b"\n"):
        raise ProtocolError(f"not a field line: {shown(left)}")
    return block


def parse_head(raw: bytes) -> Head:
    r"""Check a whole head, with its empty line, and take it apart.

    >>> head = parse_head(b"HTTP/1.1 404 Not Found\r\nServer: X\r\nConnection: Close\r\n\r\n")
    >>> head.status, head.fields
    (404, {b'connection': b' close'})

    Raises ProtocolError with what does not fit (RFC 9112 sections 2 to 5).
    """
    if not _HEAD.fullmatch(raw):  # it has folds, blanks too many, or a fault
        # Routers and a PLC write "HTTP/1.1  200 OK"; RFC 9112 section 4 allows to take that.
        line, end, block = re.sub(rb"(?<=^HTTP/1\..) +", b" ", raw).partition(b"\n")
        if not re.fullmatch(_STATUS_LINE, line + end):
            raise ProtocolError(f"response head: not an HTTP/1 status line: {shown(line)}",
                                exit_code=1)
        raw = line + end + check_fields(block)
    fields: dict[bytes, bytes] = {}
    for name, value in _DECISIVE.findall(raw.lower()):
        fields[name] = fields[name] + b"," + value if name in fields else value
    return Head(raw, int(raw[9:12]), fields)


def octets_text(raw: bytes, name: str) -> list[str]:
    r"""The values of a field in a head, as text that can be turned back into the same bytes.

    >>> octets_text(b"HTTP/1.1 302 Found\r\nLocation: /caf\xe9\r\n\r\n", "location")
    ['/caf\udce9']

    Bytes ("octets") that are not UTF-8 become surrogates (surrogateescape), and encoding in the
    same way makes the same bytes again. So a Location or a cookie in Latin-1 goes back as it came.
    """
    return [value.strip(b" \t").decode("utf-8", "surrogateescape")
            for value in re.findall(rb"(?im)^%b:(%b)" % (name.encode(), _TEXT), raw)]


def field_text(value: bytes) -> str:
    """A value as text, to be read, not sent again: UTF-8 if it is that, else latin-1."""
    value = value.strip(b" \t\r")
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.decode("latin-1")


def status_reason(raw: bytes) -> str:
    """The reason phrase of a head: for people, and often empty (RFC 9112 section 4)."""
    return field_text(raw.partition(b"\n")[0][13:])


class Headers(Mapping[str, str]):
    """The fields of a message: names in any case, order and repeats kept, immutable.

    >>> headers = Headers([("Vary", "a"), ("X", "1"), ("vary", "b")])
    >>> headers["VARY"], headers.get_all("vary"), list(headers)
    ('a, b', ['a', 'b'], ['Vary', 'X'])
    """

    def __init__(self, pairs: Iterable[tuple[str, str]] = ()) -> None:
        self.pairs = tuple(pairs)  # all fields, as sent
        self._values: dict[str, list[str]] = {}  # {"vary": ["Vary", "a", "b"]}: name, then values
        for name, value in self.pairs:
            self._values.setdefault(name.lower(), [name]).append(value)

    @classmethod
    def parse(cls, block: bytes) -> Headers:
        r"""The fields of a head, or of trailers, already checked.

        >>> Headers.parse(b"HTTP/1.1 200 OK\r\nA: 1\r\nB:\t2 \r\n\r\n")
        Headers([('A', '1'), ('B', '2')])
        """
        return cls((name.decode("ascii"), field_text(value))
                   for name, value in _FIELD_LINE.findall(block))

    def get_all(self, name: str) -> list[str]:
        """The values of a field, each on its own: Set-Cookie must not be joined (RFC 9110 5.3)."""
        return self._values.get(name.lower(), [])[1:]

    def __getitem__(self, name: str) -> str:
        return ", ".join(self._values[name.lower()][1:])

    def __iter__(self) -> Iterator[str]:
        return (name for name, *_ in self._values.values())

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Headers({list(self.pairs)!r})"


# ==== 5. Body framing =========================================================
# TCP is a stream: nothing in it says where one response stops and the next one starts. The
# head does, in one of three ways: it gives the length of the body; or the body comes in chunks,
# each after its own length; or it ends when the server closes. Read it wrong by a byte, and
# the next answer on this connection goes to the wrong question.
#
# Body (section 7) counts down a length, and sees the connection end. The parser of chunks is a
# generator: it is sent what arrived, and yields the payload in it (the body without the lengths).
# It stops at a `yield`, between any two bytes, and goes on there with what arrives next.

MAX_REMEMBERED = 1000            # entries in a dictionary like _sizes
MAX_EXTENSION_BYTES = 16_384     # notes on chunk lengths, ";name=value", or trailers; as hyper
Framing = Union[int, str]
_BORDER = re.compile(rb"\r\n([0-9A-Fa-f]{1,16})[ \t]*(?:;[^\x00-\x08\x0a-\x1f\x7f]*)?\r\n")
_sizes: dict[bytes, int] = {}  # {b"\r\n1F\r\n": 31}: many chunks have the same size
_LENGTH = re.compile(rb"[ \t]*([0-9]{1,18})[ \t]*(?:,[ \t]*\1[ \t]*)*")  # "5, 5" says 5


def body_framing(head: Head) -> Framing:
    r"""Say how the body ends: its length in bytes, "chunked", or "close".

    >>> body_framing(parse_head(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"))
    5

    The comments number the rules as RFC 9112 section 6.3 does: 2 is for CONNECT (section 14), 7
    for requests. Raises ProtocolError where the fields are malformed or contradict each other.
    """
    if head.status < 200 or head.status in (204, 304):
        return 0                                         # 1: whatever the fields say
    transfer, length = head.fields.get(b"transfer-encoding"), head.fields.get(b"content-length")
    # "identity" was HTTP's word for no coding until 2014; some event streams still have it.
    if transfer is not None and transfer.strip(b" \t") != b"identity":
        if length is not None:                           # 3: a proxy may believe the other one
            raise ProtocolError("both Transfer-Encoding and Content-Length")
        if parse_list(transfer) != [b"chunked"]:         # 4: we asked for no other
            raise ProtocolError(f"Transfer-Encoding is {shown(transfer)}, not just chunked")
        return "chunked"
    if length is not None:
        match = _LENGTH.fullmatch(length)
        if match is None:                                # 5
            raise ProtocolError(f"Content-Length is {shown(length)}")
        return int(match[1])                             # 6
    return "close"                                       # 8: all until the server closes


def may_reuse(head: Head, framing: Framing) -> bool:
    """Whether the connection stays open after this response (RFC 9112 9.3)."""
    options = parse_list(head.fields.get(b"connection", b""))
    if framing == "close" or b"close" in options:
        return False
    # No body is allowed, but the fields promise one, and it may come (RFC 9112 6.1, 9110 8.6).
    if framing == 0 and (b"transfer-encoding" in head.fields or head.status == 204
                         and head.fields.get(b"content-length", b"0").strip() != b"0"):
        return False
    # HTTP/1.0 closes unless it says otherwise, and does not know chunks (RFC 9112 6.1).
    return (head.raw[:8] != b"HTTP/1.0"
            or b"keep-alive" in options and framing != "chunked")


def remember(known: dict[Any, Any], key: Any, value: Any) -> None:
    """Put a value into a dictionary, which is emptied first if it is full."""
    if len(known) >= MAX_REMEMBERED:
        known.clear()
    known[key] = value


def parse_border(border: bytes) -> int:
    r"""The size of a chunk, from the bytes before it: the CRLF of the chunk before, then its line.

    >>> parse_border(b"\r\n1F ;name=value\r\n")
    31

    int(line, 16) alone would take "+5", "0x5" and "0_5"; read(size) no more than sys.maxsize.
    """
    match = _BORDER.fullmatch(border)
    if match is None or len(border) > MAX_EXTENSION_BYTES or int(match[1], 16) > sys.maxsize:
        raise ProtocolError(f"not a CRLF and a chunk size: {shown(border)}")
    return int(match[1], 16)


def read_chunked() -> Generator[bytes, bytes, Any]:
    r"""Take chunks until the empty one, then trailers: fields after the body (RFC 9112 7.1).

        [CRLF] 5;extension CRLF    hello      CRLF 0 CRLF    Trailer: x CRLF CRLF
        border                     payload    border         trailers

    Returns the last payload, the bytes after the body, and the trailer lines. Chunks that arrive
    together are yielded as one payload. Raises ProtocolError when it is sent the next bytes, or
    b"", after the payload that was right.

    >>> parser = read_chunked()
    >>> next(parser), parser.send(b"5\r\nhello\r\n6\r\n wor")
    (b'', b'hello wor')
    """
    arrived = io.BytesIO(b"\r\n")  # so that the first line, too, has a CRLF before it
    pieces: list[bytes] = []       # payload that was not yielded yet
    left = extensions = 0
    try:
        while True:
            payload = arrived.read(left)
            pieces.append(payload)
            border = arrived.read(2) + arrived.readline()
            size = _sizes.get(border)
            if size is None:
                if (b"\r\n".startswith(border[:2]) and not border[2:].endswith(b"\n")
                        and len(border) <= MAX_EXTENSION_BYTES):
                    left -= len(payload)  # the chunk, or this border, is not all here yet
                    arrived = io.BytesIO(border + (yield b"".join(pieces)))
                    pieces = []
                    continue
                size = parse_border(border)
                if len(border) <= 20:  # CRLF, 16 digits, CRLF: too short to count again
                    remember(_sizes, border, size)
                # The size of the chunk is taken off: large chunks may have long extensions, but
                # many long ones on small chunks reach the limit.
                extensions = max(0, extensions + len(border) - size)
                if extensions > MAX_EXTENSION_BYTES:
                    raise ProtocolError(f"chunk extensions: over {MAX_EXTENSION_BYTES} bytes")
            if size == 0:
                break
            left = size
        # The CRLF of the line "0" is put back: then CRLF CRLF is the end, with trailers or without.
        data = b"\r\n" + arrived.read()
        while (end := data.find(b"\r\n\r\n", 0, MAX_EXTENSION_BYTES)) < 0:
            if len(data) >= MAX_EXTENSION_BYTES:
                raise ProtocolError(f"more than {MAX_EXTENSION_BYTES} bytes of trailers")
            data += yield b"".join(pieces)
            pieces = []
        trailers = check_fields(data[2:end + 4])  # they never join the head's fields
    except ProtocolError as error:
        error.exit_code = 56    # as curl has it for chunks
        yield b"".join(pieces)  # what was right so far is handed out first
        raise
    return b"".join(pieces), data[end + 4:], trailers


# ==== 6. Connection ===========================================================
# One TCP connection, from the first packet to the last. For https, TLS encrypts it and proves
# who the server is; TCP and TLS each begin with a handshake, packets to and fro. Here is what a
# connection is for (Route), its one clock, and how it is opened and carries request and response.
#
#     new --open--> busy --exchange, read--> idle --exchange--> busy ...   closed
#
# A new and a busy connection belong to one call, an idle one to the pool (section 9), which
# uses it again and so saves the handshakes. A connection becomes idle only if the body is
# whole and did not end by closing, nothing came after it, and neither side said Connection:
# close (HTTP/1.0 must say keep-alive: `may_reuse`, section 5). It is closed if a body is given
# up or breaks off, and when the clock runs out.

READ_BYTES = 262_144             # asked of a stream at once; asyncio receives as much
MAX_INTERIM = 10                 # 1xx responses before the real one
LATE_SECONDS = 0.05              # if a timer rings later than this, the program was busy
LAST_TURNS = 12                  # of the loop: enough to bring in what the kernel has, TLS too
# A bug of asyncio raises these for an error of TLS inside TLS (mended in 3.11.8 and 3.12.2).
_TLS_IN_TLS_ERRORS = (TypeError, AttributeError)
_STREAM_ERRORS = (OSError, *_TLS_IN_TLS_ERRORS)
Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]
if sys.version_info < (3, 11):  # there `except asyncio.TimeoutError` would miss ours
    TimedOut.__bases__ += (asyncio.TimeoutError,)


class Route(NamedTuple):
    """All that must be equal for two requests to share a connection.

        asked for                          route
        http://h/                          origin
        https://h/, verify=..., cert=...   origin, the SSLContext's identity
        either through a proxy             and the proxy, with its credentials and SSLContext
        unix_socket=..., resolve=...       and the address
    """

    origin: Origin
    tls: ssl.SSLContext | None  # Python's settings for TLS
    proxy: Proxy | None
    address: str | None  # where to connect instead of looking the host up; or "unix:" and a path
    proxy_tls: ssl.SSLContext | None = None  # for an https proxy: without cert=
    verify: Any = True   # whom certificates have to be from, for the error texts

    def __str__(self) -> str:
        """The host, and the way to it, for errors and traces."""
        return (f"{bracketed(self.origin.host)}:{self.origin.port}"
                + (f" at {self.address}" if self.address else "")
                + (f" through {self.proxy}" if self.proxy else ""))


class Deadline:
    """When a call must be over, with all of its redirects and tries."""

    def __init__(self, started: float = 0.0, seconds: float = _FOREVER) -> None:
        self.started = started    # when the call began
        self.seconds = seconds    # that it may take
        self.until = _FOREVER     # the moment of its end; set by the call's first Clock.watch

    async def breathe(self, seconds: float = 0.0) -> None:
        """Let other tasks run amid long work, for a turn or some seconds; may raise TimedOut.

        For decoding and lines (section 8), and for the command line's --limit-rate.
        """
        left = self.until - asyncio.get_running_loop().time()
        await asyncio.sleep(min(seconds, left))
        if seconds >= left:  # not by the clock: on Windows a sleep may end early
            raise TimedOut("the body was not finished within the whole call's deadline",
                           phase="more of the body", seconds=self.seconds)

    @contextlib.contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Give a `with` block that many seconds; drop its AsyncGetError (section 12: discard)."""
        until = self.until
        self.until = min(until, asyncio.get_running_loop().time() + seconds)
        try:
            yield
        except AsyncGetError:
            pass
        finally:
            self.until = until


_NEVER = Deadline()  # of a connection that no call uses


class Clock:
    """One timer for a connection's whole life, which watches one wait after another.

        wait 1   =====)                            the answer came, long before this was due
        wait 2         ====)                       the next, too: only its due moment is noted
        wait 3               ====================| due, and nothing came
        timer    --------------(rings, set anew)-(rings, `close`)

    For a new wait we usually just note its later end, and leave the timer alone: it rings too
    early, sees the new end and is set to that. A task for each wait (asyncio.wait_for, before
    Python 3.12) would cost nearly half a small GET, a timer for each a tenth. A wait whose time
    is over is ended by `close`, which Connection extends.
    """

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.phase = "connection"     # what is waited for
        self.since = 0.0              # the moment when that began
        self.seconds = _FOREVER       # how long that may take
        self.due = _FOREVER           # when that is over; never, while the caller is busy
        self.deadline = _NEVER        # of the call that uses the connection
        self.expired = False
        self.timer: asyncio.Handle | None = None
        self.wakes_at = _FOREVER      # when it rings

    def watch(self, phase: str, seconds: float = 0.0) -> None:
        """Give `phase` that many seconds from now (0: as many as the one before).

        The deadline limits it, too, and starts to run with its call's first wait.
        """
        deadline, now = self.deadline, self.loop.time()
        if deadline.until == _FOREVER:
            deadline.until = now + deadline.seconds
        self.phase, self.since = phase, now
        self.seconds = seconds or self.seconds
        self.due = now + self.seconds
        until = min(self.due, deadline.until)
        if until < self.wakes_at:
            self.set_timer(until)

    def set_timer(self, moment: float) -> None:
        """Have the timer ring at a moment, and not at the one that it was set to."""
        if self.timer is not None:
            self.timer.cancel()
        self.wakes_at = moment
        if math.isfinite(moment):
            self.timer = self.loop.call_at(moment, self._wake)

    def _wake(self, turns: int = LAST_TURNS) -> None:
        """The timer rings: end what is waited for, if its time is over.

            late    the program was busy, and we could not do our part of a handshake:
                    once for each wait, give back the time that was lost
            early   a newer wait ends later: set the timer again
            else    the answer may lie in the kernel already: give the loop LAST_TURNS turns
                    to bring it in, then end the wait
        """
        now = self.loop.time()
        late = now - self.due
        if late > LATE_SECONDS and self.due == self.since + self.seconds:  # not moved yet
            self.due = now + min(late, self.seconds)
        until = min(self.due, self.deadline.until)
        if now < until:
            self.set_timer(until)
        elif turns:
            self.wakes_at = -_FOREVER  # so that `watch` sets no second timer meanwhile
            self.timer = self.loop.call_soon(self._wake, turns - 1)
        else:
            self.expired = True
            self.close()

    def close(self) -> None:
        """Watch nothing any more."""
        self.set_timer(-_FOREVER)  # so that `watch` does not set it again


def tls_options(host: str) -> dict[str, Any]:
    """TLS keywords: the host without a final dot (RFC 6066 3); the time limit is our Clock's."""
    return {"server_hostname": without_zone(host).rstrip("."), "ssl_handshake_timeout": 1e6}


class Connection(Clock):
    """A connection on a route, with its clock.

    Its owner, usually the pool, has the `connector` that opens streams, and is told by `opened`
    that they are there, by `keep` that the connection is idle, by `forget` that it is closed.
    """

    def __init__(self, route: Route, owner: Any) -> None:
        super().__init__()
        self.route = route
        self.owner = owner
        self.trace: Any = None        # told what is sent and what comes: a setting of the call
        self.reader: Any = None       # asyncio's streams, or a caller's own
        self.writer: Any = None
        self.outer: Any = None        # the writer to the proxy, below the one in its tunnel
        self.addresses: Any = None    # the remote one and ours
        self.closed = False
        self.exchanges = 0            # requests sent so far
        self.request_bytes = 0        # in the last of them
        self.interim = 0              # 1xx responses before the last real one
        self.silent = True            # no byte of the current response has come
        self.opener: asyncio.Task[Any] | None = None  # while it is opened
        self.rest = b""               # received, not used yet

    # ---- opening

    async def open(self, timeout: float) -> None:
        """Connect, through the proxy if there is one, and encrypt for https.

        Raises our errors; then the caller closes.
        """
        self.watch("connection", timeout)
        route = self.route
        # A task of its own, so that `close` can cancel it. Its CancelledError, awaited here, would
        # look as if our caller were cancelled; gather returns it as a value. If our caller really
        # is cancelled, gather cancels the task, too, and waits until it has ended. (create_task may
        # start it before `opener` is set, by which `failure` tells opening from an exchange.)
        self.opener = asyncio.Task(
            pass_proxy(self, route.proxy) if route.proxy else
            self.connect(route.origin, route.address, route.tls), name=self.phase)
        try:
            await asyncio.gather(self.opener, return_exceptions=True)
            if self.closed:  # by the clock, or with the session
                raise why_closed(self)
            self.opener.result()
        except AsyncGetError:  # ours already, from the proxy, say: `failure` would reword it
            raise
        except Exception as error:
            raise failure(self, error) from error
        finally:  # only now, since `failure` looks at it
            self.opener = None
        if self.trace:
            for note in connection_notes(self):
                self.trace("*", note)

    async def connect(self, server: Origin | Proxy, address: str | None,
                      tls: ssl.SSLContext | None) -> None:
        """Open a stream to the origin or a proxy, or to `address` instead; over TLS if asked."""
        where = address or server.host
        options = {**tls_options(server.host), "ssl": tls} if tls else {}
        connector, place = self.owner.connector, [where, server.port]
        if where.startswith("unix:"):
            connector, place = getattr(asyncio, "open_unix_connection", None), [where[5:]]
            if connector is None:
                raise OSError("no unix sockets on this system")
        elif connector is asyncio.open_connection and ("," in where or not is_address(where)):
            connector = open_first  # a name may have many addresses: section 13
        self.reader, self.writer = await connector(*place, **options)
        info = self.writer.get_extra_info
        with contextlib.suppress(OSError, AttributeError):  # reset already; a test's fake
            # So that, even without a timeout, we notice that a server is gone.
            info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self.owner.opened(self)
        if self.closed:  # meanwhile, and the connector ignored that it was cancelled
            self.writer.transport.abort()
        self.addresses = info("peername"), info("sockname")  # uvloop's raises after a reset

    # ---- one exchange

    async def exchange(self, request: bytes, timeout: float, phase: str = "response head") -> Head:
        """Send a head and read the head that answers it; interim ones (1xx) are skipped.

        Response (section 7) reads the body, whose end keeps the connection. After an error the
        caller must close it.
        """
        if self.trace:
            self.trace(">", request)
        self.exchanges += 1
        self.request_bytes = len(request)
        self.silent = True
        self.watch(phase, timeout)
        try:
            # Once TLS has failed (it has no version then), asyncio before Python 3.11 would write
            # for ever, and the loop stand still. `receive` reports why.
            tls: Any = sys.version_info < (3, 11) and self.writer.get_extra_info("ssl_object")
            if not tls or tls.version():
                self.writer.write(request)  # it is short: no wait (`drain`) until it is sent
        except _STREAM_ERRORS as error:
            raise failure(self, error) from error
        except RuntimeError as error:  # uvloop's, after a reset
            raise failure(self, ConnectionResetError(str(error))) from error
        for self.interim in range(MAX_INTERIM + 1):  # Call.exchange (section 12) reads it
            data, start = self.rest or await self.receive(), 0
            while not (end := _HEAD_END.search(data, start)) and len(data) <= MAX_HEAD_BYTES:
                if data[:7] != b"HTTP/1."[:len(data)]:
                    parse_head(data)  # which raises: this begins no status line
                arrived = await self.receive()
                if not arrived and not data:
                    raise IncompleteBody(f"empty reply from {self.route}", exit_code=52)
                if not arrived:
                    raise IncompleteBody(f"the connection ended inside the head: {shown(data)}")
                start = max(0, len(data) - 2)  # its end may have begun already
                data += arrived
            if not end or end.end() > MAX_HEAD_BYTES:
                raise ProtocolError(f"response head: more than {MAX_HEAD_BYTES} bytes",
                                    exit_code=56)
            data, self.rest = data[:end.end()], data[end.end():]
            if self.trace:
                self.trace("<", data)
            head = parse_head(data)
            if head.status >= 200:
                return head
            if head.status == 101:
                raise ProtocolError("101 Switching Protocols, which was not asked for")
        raise ProtocolError(f"more than {MAX_INTERIM} interim responses")

    async def receive(self) -> bytes:
        """The next bytes, b"" at the end. Raises our errors, TimedOut if the clock ran out."""
        try:
            data: bytes = await self.reader.read(READ_BYTES)
        except _STREAM_ERRORS as error:
            raise failure(self, error) from error
        if self.closed:  # by the clock or another task; what came just then is not handed out
            raise why_closed(self)
        if data:
            self.silent = False
        return data

    def ended_cleanly(self) -> bool:
        """Whether this end was meant: TLS tells (RFC 9112 9.8); without TLS it counts as meant."""
        tls = self.writer.get_extra_info("ssl_object")
        if tls is None:
            return True
        try:
            tls.read(1)
        except ssl.SSLZeroReturnError:  # close_notify came
            return True
        except ssl.SSLError:
            pass
        return False

    def close(self) -> None:
        """Close at once, waiting for nobody."""
        if self.closed:
            return
        self.closed = True
        if self.loop.is_closed():
            return  # all that was open went with it
        super().close()
        if self.opener is not None:
            self.opener.cancel()
        with contextlib.suppress(*_STREAM_ERRORS):  # AttributeError: there is none
            self.writer.close()            # says close_notify (RFC 9112 9.8),
            self.writer.transport.abort()  # and does not wait for the answer
        # The TLS inside may have closed it already; after a second close, abort does nothing.
        with contextlib.suppress(*_STREAM_ERRORS):
            self.outer.transport.abort()
        if hasattr(self.reader, "feed_eof"):
            self.reader.feed_eof()  # ends a read, whatever the transport does
        # Left in a cycle of references, they would be freed in any order, and asyncio may then
        # log an error. Dropped here, they are freed at once, the inner one first.
        self.writer = self.outer = None
        self.owner.forget(self)


def far_end(connection: Connection) -> Route | Proxy:
    """Whom we speak to, for error texts: the route, or the proxy alone until it is reached."""
    route = connection.route
    return route.proxy if route.proxy and connection.phase == "connection" else route


def why_closed(connection: Connection) -> AsyncGetError:
    """The error for a connection that its clock or another task has closed."""
    if not connection.expired:
        return AsyncGetError(f"the connection to {connection.route} was closed on our side")
    deadline, seconds, what = connection.deadline, connection.seconds, connection.phase
    if connection.opener and what == "connection":  # open_first (section 13) says more
        what = connection.opener.get_name()
    if connection.due >= deadline.until:
        seconds, what = deadline.seconds, f"{what} (the whole call's deadline)"
    return TimedOut(f"no {what} within {seconds:g} s: {far_end(connection)}",
                    phase=connection.phase, seconds=seconds)


# ==== 7. Response =============================================================
# What the caller holds. A response keeps its head as bytes, and parses of it only what is asked
# for: beside head and body it needs only a kilobyte. It is handed a connection (section 6) and
# asks that for the bytes of the body; at the end it has the connection kept for the next request,
# or closes it. Codings, charsets and lines are for section 8.


class Timing(NamedTuple):
    """Seconds from the start of the call to each step; `reused`: a kept connection was used.

    `connected` and `sent` are equal: the request goes out as soon as there is a connection.
    """

    connected: float
    sent: float
    head: float
    done: float
    reused: bool


class Body:
    """The body of a response, not decoded yet; at its end it lets go of its connection."""

    received = 0           # bytes of payload so far
    _chunks: Any = None    # the parser of chunks, which says where they end
    _ready = b""           # payload that has come and was not asked for yet
    _trailers = b""
    _done_at = 0.0         # on the loop's clock, as are _sent_at and _head_at

    def __init__(self, connection: Connection, head: Head, keep: bool) -> None:
        self._connection: Any = connection  # None: the body is here, or was given up
        self._deadline = connection.deadline
        self.started = self._deadline.started  # when the call began
        framing = body_framing(head)
        # Both sides must want it: `keep` is False where our request said Connection: close.
        self._reusable = keep and may_reuse(head, framing)
        self._length = framing if isinstance(framing, int) else None  # as the head has it
        if framing == "chunked":
            self._chunks = read_chunked()
            next(self._chunks)  # to its first `yield`
        # The wait for the head (`since`) began when the request was sent.
        self._sent_at, self._head_at = connection.since, connection.loop.time()
        self._reused = connection.exchanges > 1
        self._take(connection.rest)  # often all of it came with the head
        connection.rest = b""

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and copy."""
        if self._connection is not None:  # two would read from it
            raise TypeError("a response can be copied or pickled once it is read or closed")
        return self.__dict__

    async def _read_piece(self) -> bytes:
        """The next bytes of the body as sent, b"" at its end."""
        while not self._ready and self._connection is not None:
            self._take(b"")  # raises, if the parser has found a fault after what was read
            self._connection.watch("more of the body")
            data = await self._connection.receive()
            if data:
                self._take(data)
            # The connection has ended: only a "close" body is whole, if TLS agrees.
            elif self._chunks or self._length is not None:
                raise IncompleteBody(f"the connection ended after {self.received} bytes of the "
                                     f"body, which has {self._length or 'more'}")
            elif not self._connection.ended_cleanly():
                raise IncompleteBody("TLS was cut off, not closed: the body may be incomplete")
            else:
                self._let_go(b"")
        piece, self._ready = self._ready, b""
        return piece

    def _take(self, data: bytes) -> None:
        """Put the payload in `data` into _ready; at the end of the body let the connection go."""
        self._connection.due = _FOREVER  # no limit (section 6) while the caller is busy
        try:
            if self._chunks:
                self._ready = self._chunks.send(data)
            elif self._length is None:
                self._ready = data
            else:
                left = self._length - self.received
                self._ready = data[:left]
                if len(data) >= left:
                    self._let_go(data[left:])
        except StopIteration as end:  # with what the parser returned
            self._ready, rest, self._trailers = end.value
            self._let_go(rest)
        self.received += len(self._ready)

    def _let_go(self, rest: bytes) -> None:
        """The body is whole: keep the connection, unless anything came after it."""
        connection, self._connection, self._chunks = self._connection, None, None
        self._done_at = connection.loop.time()
        if self._reusable and not rest:
            connection.owner.keep(connection)
        else:
            connection.close()


# Why there is no `content`. Compared with ==: in a response that was pickled they are copies.
_UNREAD = "the body was not read: await response.read()"
_IN_PIECES = "the body was handed out in pieces, and is not kept: read() it instead"
_AS_LINES = "the body was begun as lines: go on with iter_lines()"
_GIVEN_UP = "the body was given up, or handed out in pieces: nothing is left to read"


class Response(Body):
    """A response. After `get` its body is in `content`; in `stream` it is read as asked.

        before read()               content, text and json() raise, and say what to await
        iter_bytes(), iter_lines()  you may leave a loop; the next of its kind goes on from there
        once a piece is handed out  content and read() raise: the whole is not kept
        after get() or read()       all of them work, as often as you like
    """

    _encoding = ""
    _content: Any = b""               # the whole body, once it was read
    _missing = _UNREAD                # why it is not there; "" when it is
    _busy = False                     # a task reads it
    _decoder: Decoder | None = None   # while there is something to decode
    _cutter: LineCutter | None = None  # holds what iter_lines has not handed out yet

    def __init__(self, head: Head, url: URL, connection: Connection, keep: bool = False,
                 decode: bool = False) -> None:
        super().__init__(connection, head, keep)
        self.status = self.status_code = head.status  # as aiohttp and requests call it
        self.raw_head = head.raw
        self.history: list[Response] = []
        self.addresses = connection.addresses  # the remote one and ours
        self.proxied = connection.route.proxy is not None
        self.request_bytes = connection.request_bytes  # sent for it
        # The coding to undo, b"" for none; a download keeps one that belongs to the file.
        self.coding = head.fields.get(b"content-encoding", b"") if decode else b""
        self._url = url

    # ---- the head

    @property
    def reason(self) -> str:
        """The reason phrase."""
        return status_reason(self.raw_head)

    @property
    def http_version(self) -> str:
        """"HTTP/1.1", or what the server called it."""
        return self.raw_head[:8].decode("ascii")

    @property
    def url(self) -> str:
        """The URL that this response answers, without credentials."""
        return str(self._url)

    @functools.cached_property
    def headers(self) -> Headers:
        """The fields of the head."""
        return Headers.parse(self.raw_head)

    @property
    def ok(self) -> bool:
        """Whether the status is below 400."""
        return self.status_code < 400

    def raise_for_status(self) -> Response:
        """Return self, or raise StatusError for a status of 400 and above."""
        if not self.ok:
            status = f"{self.status_code} {printable(self.reason[:MAX_SHOWN_BYTES])}".rstrip()
            raise StatusError(f"{status} for {self.url}", response=self)
        return self

    @property
    def cookies(self) -> dict[str, str]:
        """The cookies that this response set, by name."""
        pairs = (line.partition(";")[0].partition("=") for line in
                 octets_text(self.raw_head, "set-cookie") if _VALUE.fullmatch(line))
        return {name.strip(): value.strip() for name, equals, value in pairs if equals}

    @property
    def links(self) -> dict[str, dict[str, str]]:
        """The Link fields by their rel, as requests gives them (RFC 8288).

        `Link: </p?2>; rel="next"` gives `{"next": {"url": "/p?2", "rel": "next"}}`.
        """
        return parse_links(", ".join(octets_text(self.raw_head, "link")))

    # ---- the body

    @property
    def content(self) -> bytes:
        """The body, decoded."""
        if self._missing:
            raise AsyncGetError(self._missing, response=self)
        return bytes(self._content)

    @property
    def encoding(self) -> str:
        """The charset that `text` uses: the server's, or utf-8; may be set."""
        return self._encoding or charset_of(self.headers.get("content-type", ""))

    @encoding.setter
    def encoding(self, name: str) -> None:
        self._encoding = charset_of(f";charset={name}")

    @property
    def text(self) -> str:
        """The body as text; what does not decode is replaced."""
        return self.content.decode(self.encoding, "replace")

    def json(self, **options: Any) -> Any:
        """The body as JSON: in UTF-8, -16 or -32, or in the charset that was set as `encoding`.

        The options are those of json.loads. Raises DecodingError if it is not JSON.
        """
        import json
        try:
            return json.loads(self.content.decode(self._encoding).removeprefix("\ufeff")
                              if self._encoding else self.content, **options)
        except (ValueError, ArithmeticError, RecursionError) as error:
            raise DecodingError(f"not JSON ({printable(str(error))}): {shown(self.content)}",
                                response=self) from None

    async def read(self, limit: int | None = None) -> bytes:
        """Read the body into `content`; raise TooLarge beyond limit."""
        if self._missing != _UNREAD:
            return self.content
        if self._connection is None and not self.coding:  # it came with the head: no copies
            self._content = self._ready
            self._check_size(len(self._content), limit)
        else:
            # Not in a local variable: an error's traceback would keep it.
            self._content, size = bytearray(), -1
            while size < len(self._content):
                size = len(self._content)
                self._check_size(size, limit)
                self._content += await self._next_piece()
        self._content = content = bytes(self._content)
        self._missing = ""
        return content

    def _check_size(self, size: int, limit: int | None,
                    what: str = "bytes of body: raise max_size, or stream it") -> None:
        if limit is not None and size > limit:
            self.close()  # what was read is lost anyway
            raise TooLarge(f"more than {limit} {what}", limit=limit, response=self)

    async def iter_bytes(self) -> AsyncIterator[bytes]:
        """Yield the body, decoded, in pieces as they arrive."""
        if not self._missing:
            if self._content:
                yield self._content
            return
        if self._cutter:  # what has come of the body is in there, as text
            raise AsyncGetError(_AS_LINES, response=self)
        while piece := await self._next_piece():
            yield piece

    def iter_lines(self) -> AsyncIterator[str]:
        r"""Yield the body's lines as text, without their \n or \r\n."""
        return lines_of(self)

    def close(self) -> None:
        """Give up what is left of the body, if anything is, and close its connection."""
        if self._missing:
            self._missing, self._content = _GIVEN_UP, b""
        if self._connection is not None:
            self._connection.close()
            self._connection = self._chunks = None
        self._decoder = self._cutter = None
        self._ready, self._busy = b"", False

    async def _next_piece(self, turn: bool = False) -> Any:
        """The next bytes of the body, decoded; b"" at its end. With `turn`, only let others run."""
        try:
            if self._busy:  # it would get a part of the body, and take that for the whole
                raise AsyncGetError("another task reads this response already")
            self._busy = True
            piece = await (self._deadline.breathe() if turn else
                           decoded_piece(self) if self.coding else self._read_piece())
            if self._missing == _GIVEN_UP:  # b"" would make a body cut short look whole
                raise AsyncGetError(_GIVEN_UP)
            self._busy = False
        except BaseException as error:  # cancelled, too: the rest is lost
            self.close()
            if isinstance(error, AsyncGetError):
                error.url, error.response = self.url, self
            if isinstance(error, IncompleteBody):
                error.expected, error.received = self._length, self.received
            raise
        if piece:
            self._missing = _IN_PIECES
        return piece

    @property
    def trailers(self) -> Headers:
        """The fields after a chunked body, once it is read."""
        return Headers.parse(self._trailers)

    # ---- the clock

    @property
    def timing(self) -> Timing:
        """When each step was done, in seconds since the call began; 0 for one that was not."""
        sent, head, done = (max(0.0, moment - self.started)
                            for moment in (self._sent_at, self._head_at, self._done_at))
        return Timing(sent, sent, head, done, self._reused)

    @property
    def elapsed(self) -> datetime.timedelta:
        """From the call to the end of the body; to the head, while there is more to come."""
        return datetime.timedelta(seconds=max(self.timing[:4]))

    def __repr__(self) -> str:
        return f"<Response {self.status_code} {self.url}>"


# ---- all of this part in one place

async def fetch(url: str, timeout: float = 30.0) -> Response:
    """One GET of at most 64 MiB over a connection of its own."""
    parts = parse_url(url)
    tls = ssl.create_default_context() if parts.origin.scheme == "https" else None
    route = Route(parts.origin, tls, None, None)
    # The owner need not be told anything: id() takes one argument and changes nothing.
    owner = types.SimpleNamespace(connector=asyncio.open_connection, opened=id, forget=id)
    connection = Connection(route, owner)
    connection.deadline = Deadline(connection.loop.time())
    with contextlib.closing(connection):
        await connection.open(timeout)
        lines = render_fields(PLAIN_FIELDS, parts.origin)
        head = await connection.exchange(render_request(parts.target, lines), timeout)
        response = Response(head, parts, connection)
        await response.read(64 * 2**20)
        return response


# You may stop here. You have read a whole client for one GET from an address. (Section 13 tells
# how a name gets its addresses, and an error its words.) The rest makes it a client for many
# GETs, for other people's networks, and for the shell. The later parts are reached from this
# one at `decoded_piece`, `charset_of` and `lines_of` (section 8), `parse_links` (10), `punycode`,
# `open_first`, `connection_notes` and `failure` (13), `pass_proxy` (14).

# #### Part II. Many GETs ######################################################
# How a client is fast, and no burden to servers. Bodies come compressed. Connections are used
# again; rules say who gets one, and when it is closed. A call follows redirects and tries again.

# ==== 8. Decoding =============================================================
# How a body's bytes become content: codings (compression) are undone, the charset is found,
# text is cut into lines. A coding is undone in small steps, so that a bomb (a megabyte that
# becomes a gigabyte of zeros) is noticed early. A compressed stream that is cut short is an
# error even if the framing (section 5) was whole. The framing only says that all is here that
# the server sent; the stream's own end says that the content is whole.

MAX_CODINGS = 5                  # content codings of one body; curl and urllib3 allow 5, too
MAX_DECODED_STEP_BYTES = 65_536  # in one step, at most: bytes taken in, and bytes made
MAX_PIECES = 10                  # decoded before other tasks may run: some 3 ms
MAX_LINE_CHARS = 16_777_216      # one line of a body
MAX_LINES = 1000                 # handed out before other tasks may run
MAX_CODED_BYTES = 1_048_576      # taken in by all stages, plus 100 for each byte that arrives
# The codings that we undo. A body in gzip or zstd may consist of several compressed members (in
# zstd, "frames": RFC 1952 2.2, RFC 8878 3.1). At each: the bytes a further one may begin with.
_CODINGS = {b"gzip": b"\x1f", b"deflate": b""}
if sys.version_info >= (3, 14):
    from importlib.util import find_spec
    if find_spec("_zstd"):  # not every build has it
        _CODINGS[b"zstd"] = b"(PQRSTUVWXYZ[\\]^_"
ACCEPT_ENCODING = b", ".join(_CODINGS).decode()
_WAY_OUT = "; decode=False (--no-compressed) gives the bytes as sent"
# What servers call a coding, too, though it needs no undoing: charsets, types, MIME's encodings,
# and what was for Amazon's servers alone (aws-chunked: of an upload to S3).
_NO_CODINGS = {*(
    b"identity none null undefined utf-8 utf8 us-ascii iso-8859-1 windows-1252 7bit 8bit binary "
    b"base64 quoted-printable chunked aws-chunked amz-1.0 text/plain text/html application/json"
    ).split()}


def decompressor(coding: bytes, first: int) -> Any:
    """A new decompressor, with .decompress, .eof and .unused_data; `first` is the first byte.

    Before a first byte none is needed, so an empty body is whole in any coding. Raises
    DecodingError for a coding that the standard library cannot undo (br): its bytes, handed
    out as they are, would pass for the content.
    """
    if coding not in _CODINGS:  # we asked for no other
        raise DecodingError(f"content coding {shown(coding)} cannot be undone here{_WAY_OUT}")
    if coding == b"zstd":
        from compression import zstd  # type: ignore[import-not-found, unused-ignore]
        window: dict[int, int] = {zstd.DecompressionParameter.window_log_max: 23}
        return zstd.ZstdDecompressor(options=window)  # 2**23 bytes: RFC 9659
    if coding == b"gzip":
        return zlib.decompressobj(31)  # 16: gzip's header; 15: the largest window
    # "deflate" is zlib's format (RFC 9110 8.4.1.2), where the low half of the first byte is 8;
    # some servers send it without header and checksum, which is what a negative number means.
    return zlib.decompressobj(15 if first & 15 == 8 else -15)


class Decoder:
    """Undo the codings of a body; the one applied last is undone first (RFC 9110 8.4).

        arrived  ->  undo gzip  ->  undo deflate  ->  pieces

    Each stage is a generator that asks the one before it for more when it has nothing left.

    >>> import gzip
    >>> decoder = Decoder(b"gzip")
    >>> first, decoder.arrived = next(decoder.pieces), gzip.compress(b"hello")
    >>> first, next(decoder.pieces)
    ((1, None), (2, b'hello'))
    """

    budget = MAX_CODED_BYTES  # bytes that the stages may still take in
    arrived = b""             # the caller sets it when `pieces` gives None; b"": the end

    def __init__(self, coding: bytes) -> None:
        pieces = self.arriving()
        for name in reversed(content_codings(coding)):
            pieces = self.undo(name, pieces)
        # Content, b"" if a step made none, None to ask for more: counted, as each is some work.
        self.pieces = enumerate(pieces, start=1)

    def arriving(self) -> Iterator[bytes | None]:
        """What has arrived, in slices: after each member zlib copies what is left of its input."""
        yield None
        while self.arrived:
            self.budget += 100 * len(self.arrived)
            for at in range(0, len(self.arrived), MAX_DECODED_STEP_BYTES):
                yield self.arrived[at:at + MAX_DECODED_STEP_BYTES]
            yield None

    def undo(self, coding: bytes, pieces: Iterator[bytes | None]) -> Iterator[bytes | None]:
        """Undo one coding: gzip of any number of members, deflate in both dialects, zstd.

        What follows a whole stream and is not a further member is dropped (a line end, say, from a
        server's template): the content ended where the stream did. Raises DecodingError for
        bytes that do not decode, and if the body ends inside a stream.
        """
        stream: Any = None
        over = full = False  # no member follows any more; the last step may have more to give
        for data in pieces:
            if data is None:
                yield None
                continue
            self.budget -= len(data)
            if self.budget < 0:  # coded repeatedly, 700 bytes can be 2 GB of empty members
                raise DecodingError("far more bytes between the codings than have arrived")
            while full or data and not over:
                if stream and stream.eof:
                    over, stream = data[:1] not in _CODINGS[coding], None
                    continue
                stream = stream or decompressor(coding, data[0])
                try:
                    piece = stream.decompress(data, MAX_DECODED_STEP_BYTES)
                except Exception as error:  # zlib.error or ZstdError, which share no other base
                    raise DecodingError(f"not {coding.decode()}: {error}{_WAY_OUT}") from None
                data = (stream.unused_data if stream.eof else
                        getattr(stream, "unconsumed_tail", b""))  # zstd's keeps it inside
                full = len(piece) == MAX_DECODED_STEP_BYTES and not stream.eof
                yield piece
            yield b""
        if stream and not stream.eof:
            raise DecodingError(f"the {coding.decode()} stream ends too early: "
                                "the content is cut short")


async def decoded_piece(response: Response) -> bytes:
    """The next bytes of a response's content, b"" at its end; amid long work others may run."""
    decoder = response._decoder = response._decoder or Decoder(response.coding)
    for count, piece in decoder.pieces:
        if not count % MAX_PIECES:
            await response._deadline.breathe()
        if piece:
            return piece
        if piece is None:  # it asks for more
            decoder.arrived = await response._read_piece()
    response._decoder = None
    return b""


def content_codings(value: bytes) -> list[bytes]:
    r"""The codings that a Content-Encoding (in lower case) names, first applied first.

    >>> content_codings(b"deflate, identity, x-gzip, none")
    [b'deflate', b'gzip']
    """
    codings = [coding.removeprefix(b"x-") for coding in parse_list(value)
               if coding not in _NO_CODINGS]
    if len(codings) > MAX_CODINGS:
        raise DecodingError(f"{len(codings)} content codings: at most {MAX_CODINGS} are undone")
    return codings


# The codecs that may decode a text, as Python's modules are called. Others are slow on hostile
# input (punycode, idna), or not charsets at all (rot13, unicode_escape, undefined). EBCDIC (cp037,
# cp500 and such) is left out: its line ends become "\x85", where no line is cut. And iso2022_jp_2
# raises RuntimeError for some bytes ("\x1b.J\x1bN.").
_TEXT_CODEC = (
    r"ascii|latin_1|utf_8(_sig)?|utf_(16|32)(_[bl]e)?|iso8859_([2-9]|1[013-6])|cp(437|720|737|775"
    r"|85[025-8]|86[0-69]|874|932|949|950|1006|1125|125[0-8])|koi8_[rtu]|big5(hkscs)?|johab"
    r"|gb(2312|k|18030)|euc_(kr|jp|jis_2004|jisx0213)|shift_jis(_2004|x0213)?|tis_620|kz1048"
    r"|iso2022_(kr|jp(_[13]|_2004|_ext)?)|ptcp154"
    r"|mac_(arabic|croatian|cyrillic|farsi|greek|iceland|latin2|roman|romanian|turkish)")
# Charsets that we decode as a larger one, as browsers do: servers name a Chinese, Japanese or
# Korean standard, and send characters that only its extensions have. The last four names
# are unknown to Python, or to an older one.
_WEB_CODECS = {"gb2312": "gb18030", "gbk": "gb18030", "shift_jis": "cp932", "euc_kr": "cp949",
               "big5": "cp950", "windows_31j": "cp932", "windows_949": "cp949",
               "windows_874": "cp874", "iso_8859_8_i": "iso8859_8"}


def charset_of(content_type: str) -> str:
    """The codec for a Content-Type: its charset if that is one of text, else utf-8.

    >>> charset_of("text/html; charset=ISO-8859-1"), charset_of("text/html; charset=rot13")
    ('iso8859-1', 'utf-8')
    >>> charset_of("text/html; charset=x-sjis"), charset_of("text/html; charset=windows-874")
    ('cp932', 'cp874')
    """
    match = re.search(r";\s*charset\s*=\s*[\"']?(?:x-)?([A-Za-z0-9._:+-]{1,40})", content_type,
                      re.I)
    name = re.sub("[^a-z0-9]+", "_", match[1].lower()) if match else "utf_8"
    codec = aliases.get(name, name)
    codec = _WEB_CODECS.get(codec, codec)
    # Only what is known is looked up: `lookup` would cache each name that a server invents.
    return codecs.lookup(codec).name if re.fullmatch(_TEXT_CODEC, codec) else "utf-8"


class LineCutter:
    r"""Cut a text into lines as its bytes arrive.

    >>> cutter = LineCutter("utf-16")
    >>> for data in (b"\xff\xfeh\0i", b"\0\r\0\n\0x", b"\0", b""):
    ...     cutter.add(data)
    >>> list(cutter.lines)
    ['hi', 'x']
    """

    def __init__(self, encoding: str) -> None:
        self.encoding = encoding
        self.decoder = codecs.getincrementaldecoder(encoding)("replace")
        self.begun = io.StringIO()               # a line without its end; tell() is its length
        self.lines = collections.deque[str]()    # to be handed out

    def add(self, data: bytes) -> None:
        r"""Put the lines that end in data into `lines`, without \n or \r\n; b"" ends the text."""
        last = not data
        try:
            text = self.decoder.decode(data, last)
        except UnicodeError:
            # UTF-16 or -32 without a byte order mark: as in browsers, the low byte is first. Or
            # ISO-2022 ends in an escape: what has come is decoded as if nothing followed.
            low = "-le" if self.encoding.startswith("utf") else ""
            data = self.decoder.getstate()[0] + data
            self.decoder = codecs.getincrementaldecoder(self.encoding + low)("replace")
            text = self.decoder.decode(data, last or not low)
        if last and (text or self.begun.tell()):
            text += "\n"  # the last line may lack its end
        self.begun.write(text)
        if "\n" in text:
            *lines, rest = self.begun.getvalue().split("\n")
            self.lines.extend(line.removesuffix("\r") for line in lines)
            self.begun = io.StringIO()
            self.begun.write(rest)


async def lines_of(response: Response) -> AsyncIterator[str]:
    """The lines of a body that was read, or that arrives; for Response.iter_lines."""
    cutter, at = response._cutter or LineCutter(response.encoding), 0
    piece, streamed = None, response._missing != ""
    if streamed:
        response._cutter = cutter
    while cutter.lines or piece != b"":
        while cutter.lines:
            if streamed and not len(cutter.lines) % MAX_LINES:
                await response._next_piece(turn=True)
            line = cutter.lines.popleft()
            response._check_size(len(line), MAX_LINE_CHARS, "characters in a line")
            yield line
        response._check_size(cutter.begun.tell(), MAX_LINE_CHARS, "characters in a line")
        piece = (await response._next_piece() if streamed else
                 response._content[at:at + READ_BYTES])
        at += READ_BYTES
        cutter.add(piece)
    response._cutter = None  # some decoders do not pickle


# ==== 9. Pool =================================================================
# Which connection a request gets is decided without waiting: one that was kept on its route,
# or a new one if the limits allow (the one idle for longest may be closed for it), or none
# yet. Only then does the request wait, in the queue of its route. A connection that comes free
# is handed to the request that is next in turn. If that were only woken, one that has just come
# could take the connection first, again and again. A new connection is handed over unopened;
# the request that gets it opens it. (Section 6 tells when a connection may be kept.)
# An idle one is closed if a byte or the end comes from the server, after IDLE_SECONDS, when its
# place is needed, or when another of its route was found dead. If the server closed it while our
# request was on its way, Call.exchange (section 12) asks once more on a new one.
#
#     keep      one came free    \
#     forget    one was closed    >  serve: who is next?  decide: a kept one, a new one, none yet
#     _resume   `rate` allows it /
#
# Each route has a Lane: its connections, and who waits for one. asyncio's streams do not tell
# when something comes that nobody reads; an Inbox, first below, does.

INBOX_BYTES = 524_288            # unread; beyond that (asyncio: twice its limit) we stop receiving
IDLE_SECONDS = 60.0              # how long one is kept idle; nginx keeps 75 s, Apache 5 s
UNACKED_SECONDS = 5.0            # or a third of `timeout`: Pool.keep tells what for
# By so much asyncio's timers may be early: 16 ms on Windows, up to Python 3.12.
TICK_SECONDS = time.get_clock_info("monotonic").resolution
# One that was idle for longer is looked at before use (Call.exchange); below 0: each is.
IDLE_MOMENT_SECONDS = 0.001 - TICK_SECONDS
TURN_EXCHANGES = 10              # of one connection, before another route may get its place


class Inbox(asyncio.Protocol):
    """What has come on a connection, until it is read: asyncio's StreamReader in its simplest form.

    A transport calls data_received, eof_received and connection_lost. Unlike a StreamReader, an
    Inbox does not copy what came in one piece, hands out the bytes that came before an error, and
    can tell the pool when something comes that nobody asked for.
    """

    transport: Any = None  # in a tunnel it is not known yet when the first bytes come
    replaced: Any = None  # asyncio's protocol: StreamWriter.wait_closed waits for its end
    size = 0              # bytes in `pieces`
    ended = False
    error: Exception | None = None
    waiter: asyncio.Future[None] | None = None      # what `read` awaits, or has awaited
    on_unasked: Callable[[], object] | None = None  # called when anything comes, once

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.pieces: list[bytes] = []

    def data_received(self, data: bytes) -> None:
        """Bytes have come. If nobody reads them, no more are taken: TCP makes the server wait."""
        self.pieces.append(data)
        self.size += len(data)
        if self.size > INBOX_BYTES and self.transport:
            self.transport.pause_reading()
        self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        """It is closed, by us or, with an error, by the network."""
        self.error = error
        self.feed_eof()
        if self.replaced:
            self.replaced.connection_lost(None)  # the error is told by `read`
            self.replaced = None

    def feed_eof(self) -> None:
        """Nothing more will come; the name is StreamReader's."""
        self.ended = True
        self._wake()

    eof_received = feed_eof  # from the server; the transport then closes itself

    def _wake(self) -> None:
        on_unasked, self.on_unasked = self.on_unasked, None  # so a closed one refers to nobody
        if on_unasked:
            on_unasked()
        elif self.waiter and not self.waiter.done():
            self.waiter.set_result(None)

    async def read(self, _: int) -> bytes:
        """All that has come, b"" at the end; raises the connection's error after the last byte."""
        if not self.pieces and not self.ended:
            self.waiter = self.loop.create_future()  # raises if awaited in another loop
            await self.waiter
        data = b"".join(self.pieces)
        self.pieces.clear()
        if self.size > INBOX_BYTES and not self.ended:
            with contextlib.suppress(AttributeError):  # up to Python 3.10, if TLS just ended
                self.transport.resume_reading()
        self.size = 0
        if not data and self.error:
            raise self.error
        return data


class Lane:
    """One route: its connections, and who waits for one."""

    open = 0          # how many connections, those in use as well
    served_at = 0.0   # on the loop's clock: when one who waited was last served
    paused = False    # `rate` allows no request yet
    asked: Any = None  # what Call.render was last asked for there, and `lines`, its bytes
    lines = b""

    def __init__(self, route: Route) -> None:
        self.route = route
        self.idle: dict[Connection, None] = {}  # the one used last stands last
        self.waiting = collections.OrderedDict[asyncio.Future[Connection], None]()  # oldest first


class Pool:
    """A session's connections; a new one counts before it is open."""

    closed = False
    served_at = 0.0  # when one who waited on any route was last served
    agent: Fields    # the session's User-Agent, if it has one: for proxies that look at it

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.limit = settings["limit"] or _FOREVER
        self.limit_per_host = settings["limit_per_host"] or _FOREVER
        self.connector = settings["open_connection"]
        # Seconds between two requests on one route.
        self.interval = 1 / (settings["rate"] or _FOREVER)
        self.all: dict[Connection, Lane] = {}  # the one added or kept last stands last
        # Weak: a lane goes when nobody uses it; until then it is the only one of its route.
        self.lanes = weakref.WeakValueDictionary[Route, Lane]()
        self.eligible = collections.OrderedDict[Lane, None]()  # lanes that may be served, in turn

    def __repr__(self) -> str:
        return "closed" if self.closed else f"{len(self.all)} of {self.limit} connections"

    def opened(self, connection: Connection) -> None:
        """Put an Inbox in the place of asyncio's StreamReader, if nothing has come to that yet.

        Connection.connect calls it. To see whether something has come, we run a read by hand:
        send(None) runs a coroutine up to where it must wait; if it need not wait, it ends, and
        StopIteration holds what it returns.
        """
        reader, transport, protocol = connection.reader, connection.writer.transport, None
        with contextlib.suppress(AttributeError, NotImplementedError):  # a test's fake, say
            protocol = transport.get_protocol()
        # A reader that the caller feeds stays: its bytes may not be the transport's. asyncio's own
        # is known by its protocol's weak reference to it, which goes when the connection is lost.
        if (type(protocol) is not asyncio.StreamReaderProtocol
                or type(reader) is not asyncio.StreamReader or not weakref.getweakrefcount(reader)):
            return
        early = reader.read(READ_BYTES)
        try:
            early.send(None)
        except StopIteration as end:
            connection.rest = end.value
        except _STREAM_ERRORS:
            pass  # it will be raised again
        else:
            connection.reader = inbox = Inbox()
            inbox.transport, inbox.replaced = transport, protocol
            transport.set_protocol(inbox)
        early.close()

    # ---- which connection a request gets

    def decide(self, lane: Lane) -> Connection | None:
        """The connection for a request, or None while it has to wait."""
        if self.closed:
            raise AsyncGetError("the session is closed")
        if lane.idle and not lane.paused:
            connection, _ = lane.idle.popitem()
            # It is promised now: if the server closes it, on_unasked would give its place to the
            # next in turn. Call.exchange sees whether it is alive.
            connection.reader.on_unasked = None
        elif self.is_full(lane):
            return None
        else:
            if len(self.all) >= self.limit:
                unused = next((one for one, other in self.all.items() if one in other.idle), None)
                if unused is None:
                    return None
                self.drop(unused)
            connection = self.add(lane)
        if self.interval:
            lane.paused = True
            connection.loop.call_later(self.interval + TICK_SECONDS, self._resume, lane)
        return connection

    def add(self, lane: Lane) -> Connection:
        """A new connection on a lane; its caller has seen that there is a place."""
        connection = Connection(lane.route, self)
        self.all[connection] = lane
        lane.open += 1
        return connection

    def is_full(self, lane: Lane) -> bool:
        """Whether a route has all that it may have: connections, or requests by `rate`."""
        return lane.paused or lane.open >= self.limit_per_host

    def drop(self, connection: Connection) -> Lane:
        """Close a connection, unless it is closed; its place is for the caller to give away."""
        lane = self.all.pop(connection)  # first: `forget` then does nothing
        lane.idle.pop(connection, None)
        lane.open -= 1
        connection.close()
        return lane

    def drop_idle(self, lane: Lane) -> None:
        """Close what is kept on a route."""
        for kept in [*lane.idle]:
            self.drop(kept)

    # ---- who waits

    async def acquire(self, lane: Lane, deadline: Deadline, timeout: float) -> Connection:
        """Wait in the queue of a route, when `decide` had None, until `serve` hands one over.

        Raises TimedOut if for `timeout` seconds (or what the deadline leaves) no connection came
        free that could serve this route. As long as those ahead are served, the wait goes on.
        It does not count against the call's deadline if a connection comes.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Connection] = loop.create_future()
        lane.waiting[future] = None
        self.eligible.setdefault(lane)
        came = loop.time()
        patience = max(0.0, min(timeout, deadline.until - came))
        allowed = left = patience + self.interval  # a pause for `rate` is not a standstill
        looks = 0  # at `future`, since time was up
        try:
            while not future.done():
                if looks == LAST_TURNS:  # turns of the loop, in which one might come free
                    raise TimedOut(f"no free connection within {patience:g} s (timeout, or what "
                                   f"the deadline left): {lane.open} to this host and "
                                   f"{len(self.all)} in all are in use",
                                   phase="free connection", seconds=patience)
                await asyncio.wait([future], timeout=left)
                # A full route waits for its own connections; any other waits for a place in the
                # pool, as all routes do.
                served_at = max(came, (lane if self.is_full(lane) else self).served_at)
                left = served_at + allowed - loop.time()
                looks = 0 if left > 0 else looks + 1
                if looks == 1 and left < -LATE_SECONDS:  # the program was busy: see Clock._wake
                    left = min(-left, allowed)
        except BaseException:
            if not future.done():
                del lane.waiting[future]
                if not lane.waiting:
                    self.eligible.pop(lane, None)
            elif not future.exception():  # cancelled when one was handed over: nobody will use it
                future.result().close()
            raise
        deadline.until += loop.time() - came
        return future.result()

    # ---- who is next

    def keep(self, connection: Connection) -> None:
        """A connection has finished an exchange: it may serve another, if the server is silent."""
        reader = connection.reader
        if not isinstance(reader, Inbox) or reader.pieces or reader.ended:
            connection.close()  # something has come; or a caller's reader, which cannot tell
            return
        reader.on_unasked = connection.close
        if sys.platform == "linux" and connection.exchanges == 1:
            # A router (NAT) may have forgotten an idle connection, and drop our request. With this
            # the kernel reports a loss if no packet confirms it (ACK) for so long, and
            # Call.exchange sends it anew.
            with contextlib.suppress(OSError, AttributeError):
                connection.writer.get_extra_info("socket").setsockopt(
                    socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT,
                    int(min(connection.seconds / 3, UNACKED_SECONDS) * 1000))
        connection.deadline = _NEVER
        connection.watch("idle", IDLE_SECONDS)
        lane = self.all[connection] = self.all.pop(connection)  # now the last
        lane.idle[connection] = None
        self.serve(lane, connection.exchanges)

    def forget(self, connection: Connection) -> None:
        """A connection was closed, by its user, its Inbox or its clock: its place is free."""
        if connection in self.all:
            lane = self.drop(connection)
            # A kept one that fell silent: the network may have forgotten the others, too.
            if connection.expired and connection.silent and connection.exchanges > 1:
                self.drop_idle(lane)
            self.serve(lane)

    def _resume(self, lane: Lane) -> None:
        lane.paused = False
        self.serve(lane)

    def serve(self, lane: Lane, exchanges: int = 0) -> None:
        """A connection of a route, or the place of one, came free: hand it to who is next.

        On one route, that is who has waited longest. Among routes, that of a kept connection goes
        first again: serving another means closing it and opening one, which costs all who wait
        more time than it saves one of them. But after every TURN_EXCHANGES `exchanges` (every
        `limit`, if that is less: then many wait for each connection), and if it was closed (0),
        the others have their turn. A full route leaves `eligible` until something of its own
        comes free: else the work here would grow with the number of routes that wait.
        """
        if lane.waiting:
            self.eligible.setdefault(lane)
            if exchanges % min(self.limit, TURN_EXCHANGES):
                self.eligible.move_to_end(lane, last=False)
        while self.eligible:
            lane = next(iter(self.eligible))
            connection = self.decide(lane)
            if connection is None and not self.is_full(lane):
                return  # all connections are in use
            del self.eligible[lane]
            if connection is not None:
                lane.served_at = self.served_at = connection.loop.time()
                future, _ = lane.waiting.popitem(last=False)
                future.set_result(connection)
                if lane.waiting:
                    self.eligible[lane] = None

    async def close(self) -> None:
        """Close all connections, those in use as well, and wait until their sockets are closed."""
        self.closed = True
        self.eligible.clear()
        for lane in self.lanes.values():
            while lane.waiting:
                future, _ = lane.waiting.popitem()
                future.set_exception(AsyncGetError("the session was closed"))
        opening = [connection.opener for connection in self.all if connection.opener]
        for connection in list(self.all):
            connection.close()
        await asyncio.gather(*opening, return_exceptions=True)
        await asyncio.sleep(0)  # asyncio closes the sockets in the next turn of the loop


# ==== 10. Redirects and retries ===============================================
# What a request is, and what its response leads to: where a redirect goes and what may come along,
# whether and when to try again. Here it is only decided; Call (section 12) does it.

MAX_HISTORY_BYTES = 262_144      # heads of one call's redirects, which are kept; two of the longest
MAX_RETRY_AFTER_SECONDS = 60.0   # a longer wait is the caller's to decide
# Fields that frame a message, or are for the next machine on the way alone (RFC 9110 7.6.1).
# _FRAMING_FIELDS would mislead the server about our GET, or show it the proxy's password: they are
# refused, unless empty or 0.
# The others, copied from a browser, say, add nothing, and are dropped, except for "close".
_FRAMING_FIELDS = {"content-length", "expect", "proxy-authorization", "trailer",
                   "transfer-encoding", "upgrade"}
_HOP_FIELDS = {"connection", "keep-alive", "proxy-connection", "te", *_FRAMING_FIELDS}
CLOSE_FIELD = ("Connection", "close")  # we, too, close after the response (RFC 9112 9.6)
Pairs = Sequence[tuple[Any, Any]]      # names and values, of cookies or parameters


def merge_fields(base: Fields, headers: Any) -> Fields:
    """Lay headers, a mapping or pairs, over `base`: names match whatever their case.

    A value of None removes a field. Raises InvalidHeader.

    >>> merge_fields((("Accept", "*/*"), ("X", "1")), {"accept": "text/html", "x": None})
    (('accept', 'text/html'),)
    >>> merge_fields((), {"Connection": "keep-alive", "TE": "trailers"})
    ()
    """
    extra = []
    named = set()
    for name, value in headers.items() if isinstance(headers, Mapping) else headers:
        if not isinstance(name, str) or not isinstance(value, (str, type(None))):
            raise InvalidHeader("headers must be a mapping, or pairs, of text: not the value of "
                                f"{name!r:.100}")
        lower = name.lower()
        named.add(lower)
        if value is None:
            continue
        if lower in _FRAMING_FIELDS and value not in ("", "0"):
            raise InvalidHeader(f"{lower} is not a caller's to set: it is between us and the "
                                "next hop (a proxy's credentials go into the proxy's URL)")
        if lower == "connection" and "close" in value.lower():
            extra.append(CLOSE_FIELD)
        elif lower not in _HOP_FIELDS:
            extra.append((name, value))
    kept = [pair for pair in base if pair[0].lower() not in named] + extra
    return tuple(sorted(kept, key=lambda pair: pair[0].lower() != "host"))  # RFC 9110 7.2: first


class Request(NamedTuple):
    """One hop of a call (a redirect makes another): whom to ask for what, with which fields."""

    url: URL
    fields: Fields
    # The call's own, only for its first origin; None keeps back the jar's of that name, too.
    cookies: Mapping[str, str | None] = {}
    cert: Any = None  # the client's certificate

    def __repr__(self) -> str:
        return f"<Request {self.url}>"

    def with_cookies(self, cookies: Pairs) -> Request:
        """The same request with all its cookies in one field (RFC 6265 5.4).

        First what the field has, then the call's own, then `cookies`; each hides later namesakes.

        >>> Request(parse_url("http://h"), (("Cookie", "a=1"),)).with_cookies(
        ...     [("a", "old"), ("b", "2")]).fields
        (('Cookie', 'a=1; b=2'),)
        """
        own = Headers(self.fields).get_all("cookie")
        named = re.findall(r"(?:^|;)\s*([^;=]+)", ";".join(own))
        others = [pair for pair in cookies if pair[0] not in self.cookies]
        text = render_cookies([(name, value) for name, value in [*self.cookies.items(), *others]
                               if value is not None and name not in named])
        return self.adding("Cookie", "; ".join([*own, text])) if text else self

    def adding(self, name: str, value: str | None) -> Request:
        """The same request with this field in place of all of that name; None just removes them."""
        return self._replace(fields=merge_fields(self.fields, {name: value}))


# ---- redirects

def join_url(base: URL, reference: str) -> URL:
    """Resolve what a Location says against the URL that was asked (RFC 3986 5.2).

    >>> base = parse_url("http://h/a/b?q#top")
    >>> [join_url(base, r).target for r in ("c", "../c", "/c?x", "?y", "")]
    ['/a/c', '/c', '/c?x', '/a/b?y', '/a/b?q']

    urllib.parse.urljoin is not used: it drops empty segments and a bare "?".
    """
    if reference.startswith("//"):
        reference = f"{base.origin.scheme}:{reference}"
    if not re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", reference):  # no scheme
        path = base.path
        folder = path[:path.rindex("/") + 1]
        # How much of the base stays, by what the reference begins with.
        kept = {"/": "", "?": path, "#": base.target, "": base.target}.get(reference[:1], folder)
        reference = str(base._replace(target=kept, fragment="")) + reference
    url = parse_url(reference)
    return url if "#" in reference else url._replace(fragment=base.fragment)  # RFC 9110 10.2.2


def without_secrets(fields: Fields, secret_headers: Iterable[str]) -> Fields:
    """The fields that another origin may see: no credentials, and not the caller's Host."""
    secret = ("Authorization", "Cookie", *secret_headers)
    return merge_fields(fields, {**dict.fromkeys(secret), "Host": ""})


def next_request(request: Request, response: Response,
                 settings: Mapping[str, Any]) -> Request | None:
    """The request that a response leads to, if any (RFC 9110 15.4); its `history` has those before.

        301 302 303 307 308 with Location   followed: a GET stays a GET; octets in it that
                                            are not UTF-8 are asked for as they came
        300 304 305 306, or no Location     not followed: the response is the caller's; an
                                            empty Location is none
        to another origin                   (another scheme or port is another origin, too)
          Authorization (auth=, or user     dropped, and so are the fields Cookie,
          and password of the URL)          secret_headers, and Host
          cookies= of the call, cert=       dropped, too
          the jar's cookies (each Session   asked for anew at each hop, by Call.render: what
          has one, with its cookies=)       fits is told by domain, without one by origin
          netrc (section 16)                asked for the new host, if scheme and port are
                                            those of the first request
        user and password in Location       ignored (RFC 9110 4.2.4)

    What was dropped stays dropped, even if a later redirect leads back. With the setting
    trust_redirects only Host is dropped. Raises InvalidURL, ProtocolError for two different
    Locations, TooManyRedirects, and TooLarge, since the heads of all responses are kept.
    """
    locations = set(octets_text(response.raw_head, "location"))
    if (not settings["follow_redirects"] or not any(locations)
            or response.status_code not in (301, 302, 303, 307, 308)):
        return None
    if len(locations) > 1:
        raise ProtocolError("a redirect to several places: "
                            + ", ".join(map(masked, sorted(locations))))
    url = join_url(request.url, locations.pop())._replace(userinfo="")
    if url.origin.scheme not in settings["redirect_schemes"]:
        raise InvalidURL(f"a redirect to {url}, whose scheme is not among redirect_schemes "
                         "(--proto-redir)", exit_code=1)
    hops, limit = [*response.history, response], settings["max_redirects"]
    if sum(len(hop.raw_head) for hop in hops) > MAX_HISTORY_BYTES:
        raise TooLarge(f"redirects with heads of more than {MAX_HISTORY_BYTES} bytes",
                       limit=MAX_HISTORY_BYTES)
    if limit is not None and len(hops) > limit:
        raise TooManyRedirects(f"more than {limit} redirects", history=hops)
    following = request._replace(url=url)
    if url.origin == request.url.origin:
        return following
    if "%" in url.origin.host:  # a server must not choose among this machine's networks
        raise InvalidURL(f"a redirect to a zone of this machine: {masked(str(url))}")
    if settings["trust_redirects"]:  # all but the caller's Host, which was the first origin's
        return following.adding("Host", "")
    return Request(url, without_secrets(request.fields, settings["secret_headers"]))


def parse_links(value: str) -> dict[str, dict[str, str]]:
    """The URL and the parameters in Link fields, by rel (RFC 8288 section 3).

    >>> parse_links('</p?2>; rel="next"; title=more')
    {'next': {'url': '/p?2', 'rel': 'next', 'title': 'more'}}
    """
    links = []
    pattern = r'<([^<>]*)>|;\s*([^\s=;,"<>]+)(?:\s*=\s*(?:"([^"]*)"|([^\s";,]+)))?'
    for url, name, quoted, token in re.findall(pattern, value):
        if not name:
            links.append({"url": url.strip()})
        elif links:
            links[-1].setdefault(name.lower(), quoted or token.strip("'"))
    return {rel: link for link in links for rel in link.get("rel", "").split()}


# ---- retries

_LOSSES = (OSError, EOFError, IncompleteBody)  # causes of a ConnectError that may pass


def retry_delay(attempt: int, outcome: Response | AsyncGetError,
                retries: int) -> float | None:
    """Seconds to wait before trying again; None: `attempt` (1 is the first) was the last.

        408 429 500 502 503 504             again; also in a proxy's answer to CONNECT
        no connection, or none came free    again, also if it was lost in a handshake
        silence or an end before the head   again: a GET may be repeated (RFC 9110 9.2.2)
        the same in the body                again, for get and download
        TLS or a proxy refused, ...         not again: it would only repeat

    The wait doubles, from half a second to 32 s. Up to half of it is taken off at random, so that
    clients that failed together do not come back together. Retry-After can make it longer; if it
    asks for more than MAX_RETRY_AFTER_SECONDS, or cannot be read, this was the last try.
    """
    status, cause = getattr(outcome, "status", None), getattr(outcome, "__cause__", None)
    lost = (isinstance(outcome, ConnectError) and isinstance(cause, _LOSSES)
            and not isinstance(cause, ssl.SSLError))
    if attempt > retries or not (lost or status in (408, 429, 500, 502, 503, 504)
                                 or type(outcome) in (ConnectError, TimedOut, IncompleteBody)):
        return None
    delay = 0.5 * 2.0 ** min(attempt - 1, 6) * (1 - os.urandom(1)[0] / 512)
    said = getattr(outcome, "headers", {}).get("retry-after") or "0"
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", said):
        asked = float(said)
    else:  # a date (RFC 9110 10.2.3)
        when = parse_date(said)
        asked = _FOREVER if when is None else when - time.time()
    return max(asked, delay) if asked <= MAX_RETRY_AFTER_SECONDS else None


# ==== 11. Settings ============================================================
# The keywords of a session and of a call. Each is written down once, with its type: editors
# show that line, type checkers read it, and `checked` compares with it what a caller gives.
# Below: what they put into a request.

class CookieStore:
    """A store of cookies, which calls use by pairs_for() and store(): section 15 has two kinds."""

    home: Origin | None = None  # the origin that gets the cookies without a domain


@runtime_checkable
class Jar(Protocol):
    """What a caller's own jar must have; http.cookiejar.CookieJar and requests' jar have it."""

    def add_cookie_header(self, request: Any) -> object: ...
    def extract_cookies(self, response: Any, request: Any) -> object: ...


class RequestSettings(TypedDict, total=False):
    """The keywords of every call; given to a Session, they hold for all of its calls."""

    params: Mapping[str, Any] | Iterable[tuple[str, Any]] | None  # over the session's; None removes
    headers: Mapping[str, str | None] | Iterable[tuple[str, str | None]] | None  # likewise
    auth: str | tuple[str, str] | None      # (user, password), or a bearer token
    cookies: bool | Mapping[str, str | None] | CookieStore | Jar | None  # False: none
    timeout: float | None                   # seconds of silence
    deadline: float | None                  # seconds for the whole call
    follow_redirects: bool
    max_redirects: int | None
    retries: int | Callable[[int, Outcome], float | None]  # further tries, or a rule instead
    verify: bool | str | os.PathLike[str] | ssl.SSLContext
    cert: str | os.PathLike[str] | tuple[Any, ...] | None  # path, (cert, key[, password])
    proxy: str | None                       # a URL; None or "" for none
    trust_env: bool                         # take the proxy from the environment
    max_size: int | None                    # bytes of a decoded body in memory
    decode: bool
    secret_headers: str | Iterable[str]     # further fields that other origins are not sent
    unix_socket: str | os.PathLike[str] | None
    resolve: Mapping[str, str] | None       # {"host:port": "address"}
    netrc: bool | str | os.PathLike[str]
    redirect_schemes: str | Iterable[str]   # that a redirect may lead to
    trust_redirects: bool                   # credentials go to other origins, too
    trace: Callable[[str, str | bytes], object] | None  # told (">", sent), ("<", came), ("*", note)


class DownloadSettings(RequestSettings, total=False):
    """The keywords of a download."""

    progress: Callable[[int, int | None], object] | None  # told the bytes so far, and in all
    resume: bool                            # go on from what an earlier call has left
    overwrite: bool                         # replace a file of that name
    any_status: bool                        # save the page of an error, too
    on_response: Callable[[Response], object] | None  # it and progress may be async


class ClientSettings(RequestSettings, total=False):
    """The keywords that only a session has, without `limit`: get_all has one of its own."""

    base_url: str
    limit_per_host: int | None
    rate: float | None                      # requests a second to one host
    open_connection: Callable[..., Awaitable[Stream]]  # in place of asyncio.open_connection


class SessionSettings(ClientSettings, total=False):
    """The keywords of a Session."""

    limit: int | None                       # connections open at once


class LoneDownloadSettings(SessionSettings, DownloadSettings, total=False):
    """The keywords of a download with a session of its own."""


# What is not named here is None by default. `proxy` and `deadline` have no default: where they
# are not given, the environment and the kind of call decide, while None means that there is none.
DEFAULTS: dict[str, Any] = {
    **dict.fromkeys(LoneDownloadSettings.__annotations__.keys() - {"proxy", "deadline"}),
    "params": (), "headers": (), "cookies": True, "timeout": 30.0, "follow_redirects": True,
    "max_redirects": 20, "retries": 0, "verify": True, "trust_env": True, "max_size": 64 * 2**20,
    "decode": True, "secret_headers": (), "netrc": False, "redirect_schemes": ("http", "https"),
    "trust_redirects": False, "resume": True, "overwrite": True, "any_status": False,
    "base_url": "", "open_connection": asyncio.open_connection, "limit": 100}
# 0 is refused, as other libraries take a timeout of 0 for "none", or for "at once".
_ABOVE_ZERO = {"timeout", "deadline", "limit", "limit_per_host", "rate"}
_HINTS = {"proxy": "; for several kinds, leave it to the environment's http_proxy and no_proxy",
          "params": ", of texts, numbers, or lists of them; a finished query goes into the URL",
          "timeout": ": seconds of silence; deadline= is for the whole call",
          "resolve": ': {"host:port": "address"}',
          "cert": ": a path, (cert, key) or (cert, key, password)"}


@functools.cache
def kinds_of(annotation: str) -> Any:
    """The classes that an annotation names, as isinstance takes them: what a keyword may be.

    >>> kinds_of("bool | Mapping[str, str | None] | None")
    (<class 'bool'>, <class 'collections.abc.Mapping'>, <class 'NoneType'>)
    """
    names = re.sub(r"\[.*?\](?= \||$)", "", annotation)  # items are not checked
    names = names.replace("None", "type(None)").replace("float", "float | int").replace("|", ",")
    return eval(names)  # our own text, never a caller's


# What gives several values for one parameter; other iterables (a Flag, a network) are one value.
_SEVERAL = (list, tuple, Set, range, ValuesView, Iterator)


def plain(value: Any) -> Any:
    """Text as plain str: an Enum's may show its name in an f-string. TypeError for a mapping."""
    if isinstance(value, Mapping):
        raise TypeError
    return str.__str__(value) if isinstance(value, str) else value


def checked(options: Mapping[str, Any], allowed: type = RequestSettings) -> dict[str, Any]:
    """Keywords, checked and as calls use them; TypeError or ValueError says what was expected.

    >>> checked({"max_redirects": 5, "headers": {"a": "b"}, "secret_headers": "a"})
    {'max_redirects': 5, 'headers': (('a', 'b'),), 'secret_headers': ('a',)}

    What can be read only once, a generator of headers, say, is read here: retries, and other
    calls of a get_all, need it again.
    """
    settings = {}
    for name, value in options.items():
        if name == "allow_redirects":  # as requests calls it
            name = "follow_redirects"
        if name not in allowed.__annotations__:
            raise TypeError(f"unknown keyword {name!r}; there are "
                            + ", ".join(allowed.__annotations__)
                            + "; a GET has no body, and stream() is another function")
        annotation = allowed.__annotations__[name].__forward_arg__
        try:
            if not isinstance(value, kinds_of(annotation)):
                raise TypeError
            if name in ("params", "headers"):
                pairs = value.items() if isinstance(value, Mapping) else value or ()
                value = tuple(
                    (plain(key), [*map(plain, item)] if isinstance(item, _SEVERAL) else plain(item))
                    for key, item in pairs)
            elif name in ("secret_headers", "redirect_schemes"):
                value = (value,) if isinstance(value, str) else tuple(value)
                "".join(value)  # TypeError for what is not text
            elif name == "cookies" and isinstance(value, Jar):  # requests' is a mapping, too
                value = OthersJar(value)
            elif name == "cert":
                hash(value)  # or TypeError: contexts are remembered by it
            elif name == "resolve" and value:
                "".join([*value, *value.values()])
        except (TypeError, ValueError):
            raise TypeError(f"{name} must be {annotation}{_HINTS.get(name, '')}: "
                            f"not {type(value).__name__}") from None
        above = name in _ABOVE_ZERO
        if isinstance(value, (int, float)) and not value >= 0 or above and value == 0:  # or nan
            raise ValueError(f"{name} must be {'above' if above else 'at least'} 0: "
                             f"not {value!r:.50}")
        settings[name] = value
    return settings


Function = TypeVar("Function", bound=Callable[..., Any])


def spelled_out(function: Function) -> Function:
    """Show the keywords behind a function's ** to help() and to editors."""
    signature = inspect.signature(function)
    *shown, options = signature.parameters.values()
    settings = globals()[options.annotation[len("Unpack["):-1]]
    for name, annotation in settings.__annotations__.items():
        shown.append(inspect.Parameter(
            name, options.KEYWORD_ONLY, default=DEFAULTS.get(name, ...),
            annotation=annotation.__forward_arg__))
    function.__signature__ = signature.replace(parameters=shown)  # type: ignore[attr-defined]
    return function


# ---- what they put into a request

OUR_CODINGS = ("Accept-Encoding", "?")  # filled in by with_codings, as Host is by render_fields
DEFAULT_FIELDS = (*PLAIN_FIELDS, OUR_CODINGS)


def add_params(url: URL, params: Pairs) -> URL:
    """Append parameters to the query that is there; those that are None are left out.

    >>> add_params(parse_url("http://h/?a=1"), (("b", [2, 3]), ("c", None), ("d", True))).target
    '/?a=1&b=2&b=3&d=true'
    """
    from urllib.parse import urlencode
    pairs = [(name, str(item).lower() if isinstance(item, bool) else item)
             for name, value in params
             for item in (value if isinstance(value, list) else [value])
             if item is not None]
    try:
        query = urlencode(pairs)
    except UnicodeError:
        raise InvalidURL("the name or the value of a parameter is not Unicode") from None
    path, _, given = url.target.partition("?")
    query = "&".join(filter(None, [given, query]))
    return url._replace(target=f"{path}?{query}") if query else url


def render_auth(auth: str | tuple[str, str]) -> str:
    """The value of Authorization: Basic (RFC 7617) for a pair, Bearer (RFC 6750) for text.

    >>> render_auth(("Aladdin", "open sesame"))
    'Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=='
    """
    if isinstance(auth, str):
        return "Bearer " + auth  # no f-string: see `plain`
    try:
        user, password = auth
        if ":" in user or not _VALUE.fullmatch(user + password):
            raise ValueError
        pair = (user + ":" + password).encode("utf-8", "surrogateescape")
    except (TypeError, ValueError):
        raise InvalidHeader("auth is (user, password), or a bearer token as text; a user has no "
                            "':', and neither has control characters") from None
    return "Basic " + base64.b64encode(pair).decode("ascii")


def fields_of(base: Fields, options: Mapping[str, Any]) -> Fields:
    """The fields of a request: what `headers` and `auth` ask for, laid over base."""
    if "headers" in options:
        base = merge_fields(base, options["headers"])
    if "auth" in options:  # None takes the session's away
        auth = options["auth"]
        base = merge_fields(base, {"Authorization": render_auth(auth) if auth else None})
    return base


def with_codings(fields: Fields, decode: bool) -> Fields:
    """The fields; with `decode` they ask for no coding that we cannot undo ("identity": for none).

    >>> with_codings((("Accept-Encoding", "gzip;q=0.5, br, *"),), decode=True)
    (('Accept-Encoding', 'gzip;q=0.5'),)
    """
    headers = Headers(fields)
    asked = wanted = headers.get("accept-encoding")
    if asked == "?":  # all that we can undo; but with a Range none: a part of a gzip is no gzip
        wanted = ("identity" if "range" in headers else ACCEPT_ENCODING) if decode else None
    elif asked and decode:
        kept = [item.strip() for item in asked.split(",")
                if item.partition(";")[0].strip().lower() in ACCEPT_ENCODING.split(", ")]
        wanted = ", ".join(kept) or "identity"
    return fields if wanted == asked else merge_fields(fields, {"Accept-Encoding": wanted})


# ==== 12. Session =============================================================
# The loop around it all. Call.run is one call: it makes a request, follows redirects to the
# last response, does with that what the caller wants (mostly, reads it), and begins again if
# the rule for retries says so. Call.exchange gets one response for one request. The session's
# settings remember the lane of each origin (section 9), and a lane the bytes of the fields that
# it sent last: that saves a small GET a fifth of its time.

GET_DEADLINE_SECONDS = 300.0     # a whole get(), with redirects and retries; aiohttp's figure
MAX_DISCARD_BYTES = 65_536       # of an unwanted body, which we read to keep its connection
MAX_DISCARD_SECONDS = 1.0        # that this may take
# A rule for retries is asked about statuses from 400 on, and errors of the server or the way to it.
_MAY_PASS = (Response, ConnectError, TimedOut, ProtocolError, DecodingError)
# The keywords, beside cert, that change a route; a call without them uses the session's lanes.
_ROUTING = {"verify", "proxy", "trust_env", "unix_socket", "resolve"}
Settled = dict[str, Any]  # all settings of a call; under "own" those that it was called with
Outcome = Union[Response, AsyncGetError]
Outcomes = AsyncGenerator[tuple[str, Outcome], None]  # each with the URL that it is of
Urls = Union[Iterable[str], AsyncIterable[str]]


class Anew(Exception):
    """Raised within `finish`, to have the call begin once more at once; no retry is counted.

    The response is not what was asked for: the rest of another file, say (section 17).
    """


class Call:
    """One call of the caller's: its settings, and its one deadline over all hops and tries.

    This is what `get` does; the other kinds, Streaming and Download, begin or finish otherwise.
    """

    default_deadline = GET_DEADLINE_SECONDS  # where neither session nor call has a deadline=

    def __init__(self, session: Session, url: str, settled: Settled) -> None:
        if not isinstance(url, str):
            raise InvalidURL(f"a URL is text, not {type(url).__name__}")
        self.session = session
        self.url = url                                # as the caller gave it
        self.settings = settled
        self.trace: Any = settled["trace"]
        self.cookies = {**self.settings["own_cookies"]}  # a response that sets one takes it out

    async def run(self) -> Response:
        """Send a request, follow redirects, finish the response; try again if the rule says so."""
        seconds = self.settings.get("deadline", self.default_deadline) or _FOREVER
        self.deadline = Deadline(self.session._time(), seconds)
        attempt = 1
        while True:
            request: Request | None = None
            response: Response | None = None
            try:
                request = self.first_request()
                response = await self.exchange(request)
                while response.status_code // 100 == 3 and (following := next_request(
                        request, response, self.settings)):
                    history = [*response.history, response]
                    response.history = []  # else each would hold a list of all before it
                    await discard(response)
                    request, response = following, None
                    response = await self.exchange(request)
                    response.history = history
                delay = self.retry_delay(attempt, response) if response.status_code >= 400 else None
                if delay is None:
                    await self.finish(response)
                    return response
                await discard(response)
            except Anew:
                continue
            except BaseException as error:
                if response is not None:  # its Location is not a URL, say: nobody will read it
                    response.close()
                if not isinstance(error, AsyncGetError):
                    raise
                if not error.url:  # else it has its response, or is of a listener's own call
                    error.url = str(request.url) if request else masked(self.url)[1:-1]
                    error.response = response
                delay = self.retry_delay(attempt, error)
                if delay is None:
                    raise
            await asyncio.sleep(delay)
            attempt += 1

    def retry_delay(self, attempt: int, outcome: Outcome) -> float | None:
        """Seconds to wait before trying again, None for no more."""
        rule = self.settings["retries"]
        if not isinstance(outcome, _MAY_PASS):
            return None
        delay = (rule(attempt, outcome) if callable(rule) else
                 retry_delay(attempt, outcome, rule))
        if delay is None:
            return None
        if not (isinstance(delay, (int, float)) and delay >= 0):
            raise ValueError(f"a rule for retries gives seconds, or None: not {delay!r}")
        if self.session._time() + delay >= self.deadline.until:  # which may be never
            return None
        if self.trace:
            self.trace("*", f"trying again in {delay:.1f} s: {outcome}")
        return delay

    def first_request(self) -> Request:
        """The first request of a call, with all that the caller wants in it."""
        session, settings, options = self.session, self.settings, self.settings["own"]
        base = session._base
        url = join_url(base, self.url.strip()) if base else parse_url(self.url)
        fields = session._fields
        self.first, cert = url.origin, settings["cert"]  # first: for with_password
        if base and url.origin != base.origin:  # the session's secrets are for base_url alone
            fields = without_secrets(fields, settings["secret_headers"])
            cert = options.get("cert")
        elif base and not url.userinfo and "auth" not in options:
            url = url._replace(userinfo=base.userinfo)
        if settings["params"]:
            url = add_params(url, settings["params"])
        if options:
            fields = fields_of(fields, options)
        for name, value in self.cookies.items():
            check_cookie(name, "" if value is None else value)
        request = Request(url, fields, self.cookies, cert)
        return with_password(self, request) if url.userinfo else request

    async def exchange(self, request: Request) -> Response:
        """A response for one request over one connection.

        The server may have closed a kept connection while our request was on its way. If no byte
        of a response came back (an alert of TLS, or a 408 that closes, counts as none), the
        request goes out once more, on a new one (RFC 9112 9.3.1), whatever `retries` says.
        """
        session, settings = self.session, self.settings
        pool, lane = session._pool, session._lane(request, settings)
        timeout = settings["timeout"] or self.deadline.seconds
        data = self.render(request, lane)
        latest = next(reversed(lane.idle), None)
        if latest and latest.loop.time() - latest.since > IDLE_MOMENT_SECONDS:
            # The server may have closed it while the loop was busy elsewhere: in two turns
            # asyncio asks the kernel and receives that.
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        kept = False
        while True:
            connection = pool.decide(lane) or await pool.acquire(lane, self.deadline, timeout)
            if connection.closed:  # since it was handed over; the next in turn has its place
                continue
            reader = connection.reader  # None: it is new
            if reader and (kept or reader.pieces or reader.ended):
                # A kept one has just failed, or this has ended since it was handed over. close()
                # would give its place away; drop() leaves it to us, and `rate` has counted us.
                connection = pool.add(pool.drop(connection))
            connection.deadline, connection.trace = self.deadline, self.trace
            kept = connection.exchanges > 0
            try:
                if not kept:
                    await connection.open(session.connect_timeout or timeout)
                head = await connection.exchange(data, timeout)
                if b"set-cookie" in head.fields:
                    self.keep_cookies(request, head)  # whatever becomes of the body
                if not (kept and head.status == 408 and not connection.interim
                        and not may_reuse(head, 1)):  # 1: whatever its body
                    return Response(head, request.url, connection,
                                    CLOSE_FIELD not in request.fields, settings["decode"])
            except BaseException as error:
                if not (kept and connection.silent
                        and isinstance(error, (IncompleteBody, TLSError))):
                    connection.close()
                    raise
            connection.close()
            pool.drop_idle(lane)  # ended, too, perhaps; trying each would count for `rate`
            if connection.trace:
                connection.trace("*", "the kept connection ended unanswered: again, on a new one")

    def keep_cookies(self, request: Request, head: Head) -> None:
        """Give the jar the cookies that a response sets; they replace the call's of that name."""
        jar = self.settings["cookies"]
        if jar is not False:
            for name in jar.store(request.url, octets_text(head.raw, "set-cookie")):
                self.cookies.pop(name, None)

    def render(self, request: Request, lane: Lane) -> bytes:
        """The bytes of a request as they go over a route, with cookies and netrc's password."""
        origin, target, jar = request.url.origin, request.url.target, self.settings["cookies"]
        cookies = jar.pairs_for(request.url) if jar is not False else ()
        if cookies or request.cookies:
            request = request.with_cookies(cookies)
        if self.settings["netrc"]:
            request = with_password(self, request)
        fields, proxy = request.fields, lane.route.proxy
        if proxy and origin.scheme == "http" and not proxy.scheme.startswith("socks"):
            target = f"http://{origin.authority}{target}"
            fields = (*fields, *proxy_fields(proxy))
        asked = fields, self.settings["decode"]
        if asked != lane.asked:  # else they were rendered before
            lane.lines = render_fields(with_codings(*asked), origin)
            lane.asked = asked
        return render_request(target, lane.lines)

    async def finish(self, response: Response) -> None:
        """Do with the last response what the caller wants: read it."""
        await response.read(self.settings["max_size"])


class Streaming(Call):
    """A call of `stream`: within `async with` the caller reads the response.

    Not made with a generator (asynccontextmanager): if a caller's generator that uses it were
    left early, asyncio would at the end of the loop close both at once, and log an error.
    """

    default_deadline = _FOREVER
    response: Any = None

    async def __aenter__(self) -> Response:
        if hasattr(self, "deadline"):  # it runs already: nobody would close the first response
            raise TypeError("a stream is entered once; call stream() for each")
        try:
            return await self.run()
        except BaseException:
            await self.__aexit__()
            raise

    async def __aexit__(self, _: object = None, error: object = None, __: object = None) -> None:
        try:
            if isinstance(error, StatusError) and error.response == self.response:
                with self.deadline.within(MAX_DISCARD_SECONDS):  # it says why, if it is short
                    await self.response.read(MAX_DISCARD_BYTES)
        finally:
            if self.response:
                self.response.close()
            if self.session._lone:
                await self.session.close()

    async def finish(self, response: Response) -> None:
        """Leave its body to the caller."""
        self.response = response


async def cancel(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """End tasks and wait until they have cleaned up."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def discard(response: Response) -> None:
    """Give up a response; read a short rest, undecoded, to use its connection again."""
    if response._reusable and (response._length or 0) <= MAX_DISCARD_BYTES:
        with response._deadline.within(MAX_DISCARD_SECONDS):
            while response._connection and response.received <= MAX_DISCARD_BYTES:
                await response._read_piece()
    response.close()


class Session:
    """GETs that share connections, cookies and settings.

        async with Session(base_url="https://api.test/v1/", auth="token") as session:
            response = await session.get("users/7", params={"full": True})

    The keywords are those of SessionSettings. Its attribute `cookies` is the jar: read, set,
    delete, iterate. A session belongs to the event loop in which it is first used.
    """

    tls_version: ssl.TLSVersion | None = None  # the lowest allowed
    connect_timeout: float | None = None  # None: as `timeout`
    proxy_userinfo = ""  # for whichever proxy the environment names
    _lone = False  # made for one call, which closes it
    _loop: asyncio.AbstractEventLoop | None = None
    _base: URL | None = None

    if not TYPE_CHECKING:  # a checker would take it as leave to set anything
        def __setattr__(self, name: str, value: object) -> None:
            """Refuse `session.verify = False`: nobody would look at it."""
            if hasattr(self, "_pool") and name in {*SessionSettings.__annotations__, "proxies"}:
                raise AttributeError(f"{name} is not set so: it is a keyword of Session and calls")
            super().__setattr__(name, value)

    @spelled_out
    def __init__(self, **keywords: Unpack[SessionSettings]) -> None:
        own = checked(keywords, SessionSettings)
        settings = {**DEFAULTS, **own}
        if settings["base_url"]:
            base = parse_url(settings["base_url"])
            self._base = base._replace(target=base.path.removesuffix("/") + "/")
        self._fields = fields_of(DEFAULT_FIELDS, own)
        jar = settings["cookies"]
        if jar is not False and not isinstance(jar, CookieStore):
            jar = Cookies(None if jar is True else jar)  # section 15
        self.cookies: Any = None if jar is False else getattr(jar, "jar", jar)
        # "lanes": by origin and certificate, for all calls whose settings share this dictionary.
        self.settings = {**settings, "cookies": jar, "own": {}, "own_cookies": {}, "lanes": {}}
        # Remembered, since a route compares contexts by identity. The lambda looks up tls_context
        # (section 13) only for https.
        self._contexts = functools.lru_cache(MAX_REMEMBERED)(lambda *how: tls_context(*how))
        self._pool = Pool(settings)
        self._pool.agent = tuple(one for one in self._fields if one[0].lower() == "user-agent")
        # asyncio receives into a new block of 256 KiB each time. glibc takes such a block from the
        # kernel, and gives it back at once, until a larger one was freed; so one is freed here.
        # Without that a small GET may take half as long again.
        bytes(4 * READ_BYTES)

    async def __aenter__(self) -> Session:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections, those in use as well."""
        if self._loop is None or not self._loop.is_closed():  # else all went with it
            self._time()
            await self._pool.close()

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._pool.closed

    def _time(self) -> float:
        """The time of the loop that all calls of the session run in; raises in another loop."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            if self._loop:
                raise AsyncGetError("this Session belongs to another event loop: make one in each")
            self._loop = loop
        return loop.time()

    def __repr__(self) -> str:
        return f"<Session {getattr(self, '_pool', 'closed')}>"  # no pool, if __init__ has raised

    # ---- what users call

    @spelled_out
    async def get(self, url: str, **options: Unpack[RequestSettings]) -> Response:
        """GET a URL and read its body. Whatever the server does, only AsyncGetError is raised."""
        return await Call(self, url, self._settled(options)).run()

    @spelled_out
    def stream(self, url: str, **options: Unpack[RequestSettings]) -> Streaming:
        """GET a URL and hand out the response with its body unread.

            async with session.stream(url) as response:
                async for piece in response.iter_bytes(): ...
        """
        return Streaming(self, url, self._settled(options))

    @overload
    async def get_all(self, urls: Urls, *, limit: int = ...,
                      **options: Unpack[RequestSettings]) -> list[Response]: ...

    @overload
    async def get_all(self, urls: Urls, *, limit: int = ..., return_exceptions: bool,
                      **options: Unpack[RequestSettings]) -> list[Outcome]: ...

    @spelled_out
    async def get_all(self, urls: Urls, *, limit: int = 20, return_exceptions: bool = False,
                      **options: Unpack[RequestSettings]) -> Any:
        """GET many URLs, `limit` at once; return the responses in the order of the URLs.

        The first failure cancels the rest and is raised; with return_exceptions each
        AsyncGetError stands in the list in its place instead.
        """
        outcomes: dict[int, Outcome] = {}

        async def deliver(number: int, url: str, outcome: Outcome) -> None:
            if isinstance(outcome, AsyncGetError) and not return_exceptions:
                raise outcome
            outcomes[number] = outcome

        await self._get_each(urls, limit, self._settled(options), deliver)
        return [outcomes[number] for number in sorted(outcomes)]

    @spelled_out
    def as_completed(self, urls: Urls, *, limit: int = 20,
                     **options: Unpack[RequestSettings]) -> Outcomes:
        """GET many URLs, `limit` at once; yield (url, Response or AsyncGetError) as they finish.

        Beyond `limit`, a URL is taken only when you have taken an outcome: so a million URLs from
        a generator need no more memory than a hundred. The `async for` may be left at any time;
        what is under way is then cancelled.
        """
        return self._outcomes(urls, limit, self._settled(options))

    async def _outcomes(self, urls: Urls, limit: int, settled: Settled) -> Outcomes:
        """What as_completed gives.

        The functions of that name return this, not a generator around it that closes it: were
        that left early, asyncio would close both at once, and fail at one.
        """
        finished = asyncio.Queue[Any]()
        taken = asyncio.Semaphore(0)

        async def deliver(_: int, url: str, outcome: Outcome) -> None:
            finished.put_nowait((url, outcome))
            await taken.acquire()

        getting = asyncio.create_task(self._get_each(urls, limit, settled, deliver))
        getting.add_done_callback(finished.put_nowait)
        try:
            while (item := await finished.get()) is not getting:
                taken.release()
                yield item
            await getting
        finally:
            await cancel([getting])

    async def _get_each(self, urls: Any, limit: int, settled: Settled,
                        deliver: Callable[..., Awaitable[object]]) -> None:
        """Have `limit` workers GET URLs from one iterator; what `deliver` raises ends them all."""
        if isinstance(urls, (str, bytes)):
            raise TypeError("urls are a list of URLs, or another iterable of them, not one")
        checked({"limit": limit or 0}, SessionSettings)  # None is for a Session alone
        source: Any = urls.__aiter__() if isinstance(urls, AsyncIterable) else iter(urls)
        numbers, lock = itertools.count(), asyncio.Lock()

        async def work() -> None:
            while True:
                try:
                    async with lock:  # an async generator cannot be asked by two at once
                        url = (await source.__anext__() if isinstance(urls, AsyncIterable)
                               else next(source))
                        number = next(numbers)
                except (StopIteration, StopAsyncIteration):
                    return
                try:  # the command line (section 20) makes its calls itself
                    call = url if isinstance(url, Call) else Call(self, url, settled)
                    outcome: Outcome = await call.run()
                except AsyncGetError as error:
                    outcome = error
                await deliver(number, url, outcome)

        count = min(limit, len(urls)) if isinstance(urls, Sized) else limit
        workers = [asyncio.create_task(work()) for _ in range(count)]
        try:
            await asyncio.gather(*workers)
        finally:
            try:
                await cancel(workers)
            finally:  # we may be cancelled twice
                if self._lone:  # here, since asyncio may cancel _outcomes amid its `finally`
                    await self.close()

    @spelled_out
    async def download(self, url: str, path: FilePath | PathRule,
                       **options: Unpack[DownloadSettings]) -> Response:
        """GET a URL into a file, which gets its name when it is whole, and return the response.

            await session.download(url, "big.iso", progress=lambda size, total: ...)

        Whatever ends the program, kill -9 as well, leaves big.iso.part. The next call, or the
        next try of this one, gets only the rest if the server can tell that the file is still
        the same. The response is then a 206, or a 416 if all was there.

        `path` may be a function that gets the response and returns the path; then no earlier
        call is resumed. `on_response` is called with a response before its body is read, unless
        it is followed or tried again; an error that it raises ends the call. `overwrite=False`
        never replaces a file. A status that is no success raises StatusError; with `any_status`
        its body is saved, as curl does, but not in place of a partial file. A coding that the
        file's name announces (a.tar.gz) is kept. An error of the file system is an
        AsyncGetError with exit code 23.
        """
        return await Download(self, url, self._settled(options, DownloadSettings), path).run()

    # ---- what its calls share

    def _settled(self, options: Mapping[str, object], allowed: type = RequestSettings) -> Settled:
        """The settings of calls with these options, merged and checked once for all of them."""
        if not options:
            return self.settings
        own = checked(options, allowed)
        cookies = own.pop("cookies", None)
        settings = {**self.settings, **own, "own": own}
        params = own.get("params", ())
        named = dict(params)  # these names replace the session's
        settings["params"] = (
            *(pair for pair in self.settings["params"] if pair[0] not in named), *params)
        if not _ROUTING.isdisjoint(own):
            settings["lanes"] = {}
        if cookies is False or isinstance(cookies, CookieStore):
            settings["cookies"] = cookies
        elif isinstance(cookies, Mapping):  # they go out beside the jar's
            settings["own_cookies"] = cookies
        return settings

    def _lane(self, request: Request, settings: Settled) -> Lane:
        """The lane for a request of a call with these settings; remembered in them."""
        origin, cert, lanes = request.url.origin, request.cert, settings["lanes"]
        lane: Lane | None = lanes.get((origin, cert))
        if lane is not None:
            return lane
        jar = self.settings["cookies"]
        if jar is not False:  # its cookies without a domain are for the first origin of all
            jar.home = jar.home or (self._base or request.url).origin
        path, verify = settings["unix_socket"], settings["verify"]
        proxy: Proxy | None = None
        given = settings.get("proxy", settings["trust_env"])  # True: ask the environment
        if given and not path:
            proxy = choose_proxy(origin) if given is True else parse_proxy(given, "proxy=")
        if proxy and self.proxy_userinfo:
            proxy = proxy._replace(userinfo=self.proxy_userinfo)
        tls = self._context(verify, cert) if origin.scheme == "https" else None
        # A proxy may be sent a password: it is verified even if verify=False.
        trusted = verify or True
        proxy_tls = self._context(trusted) if proxy and proxy.scheme == "https" else None
        here = proxy is None or proxy.scheme == "socks5"  # other proxies look names up
        address = resolved(settings["resolve"], origin) if settings["resolve"] and here else None
        if path:
            address = f"unix:{path}"
        route = Route(origin, tls, proxy, address, proxy_tls, trusted)
        lane = self._pool.lanes.setdefault(route, Lane(route))
        remember(lanes, (origin, cert), lane)
        return lane

    def _context(self, verify: Any, cert: Any = None) -> ssl.SSLContext:
        """The TLS settings for `verify` and `cert`."""
        if isinstance(verify, ssl.SSLContext) and not cert:
            return verify
        return self._contexts(verify, cert, self.tls_version)


class LoneSession(Session):
    """One that its only call closes."""

    _lone = True


@spelled_out
async def get(url: str, **settings: Unpack[SessionSettings]) -> Response:
    """GET a URL and read its body, with a session of its own."""
    async with Session(**settings) as session:
        return await session.get(url)


@spelled_out
def stream(url: str, **settings: Unpack[SessionSettings]) -> Streaming:
    """GET a URL and hand out the response unread: see Session.stream."""
    return LoneSession(**settings).stream(url)


@overload
async def get_all(urls: Urls, *, limit: int = ...,
                  **settings: Unpack[ClientSettings]) -> list[Response]: ...


@overload
async def get_all(urls: Urls, *, limit: int = ..., return_exceptions: bool,
                  **settings: Unpack[ClientSettings]) -> list[Outcome]: ...


@spelled_out
async def get_all(urls: Urls, *, limit: int = 20, return_exceptions: bool = False,
                  **settings: Unpack[ClientSettings]) -> Any:
    """GET many URLs, `limit` at once, in their order: see Session.get_all."""
    return await LoneSession(limit=limit, **settings).get_all(
        urls, limit=limit, return_exceptions=return_exceptions)


@spelled_out
def as_completed(urls: Urls, *, limit: int = 20, **settings: Unpack[ClientSettings]) -> Outcomes:
    """GET many URLs, `limit` at once, as they finish: see Session.as_completed."""
    return LoneSession(limit=limit, **settings).as_completed(urls, limit=limit)


# You may stop here, too: with cookies=False, trust_env=False and an SSLContext of your own all
# of this works for IP addresses, without the parts to come. They are reached from this one at
# `resolved` and `tls_context` (section 13), `choose_proxy`, `parse_proxy` and `proxy_fields` (14),
# `Cookies`, `OthersJar`, `check_cookie`, `render_cookies` and `parse_date` (15), `with_password`
# (16), and `Download` (17).

# #### Part III. In somebody else's network ####################################
# This part shows what stands between a program and a server in a corporate network: names with
# many addresses, private certificates, proxies that must be asked first; and which secrets
# (cookies, passwords) are kept, and who gets them.

# ==== 13. Addresses and TLS ===================================================
# How a host's name becomes ASCII, and a connection to one of its addresses; which certificates are
# trusted there; and how a failure of the system, asyncio or TLS becomes one of our errors.

MAX_LOOK_UPS = 1000              # at once; each holds a thread until a name server answers
MAX_ADDRESSES = 32               # of one name that are tried; each try may hold a socket
HAPPY_EYEBALLS_SECONDS = 0.25    # until the next address is tried as well (RFC 8305 5)
_asked: dict[Any, Future[Any]] = {}  # look-ups under way


def punycode(host: str) -> str:
    """A host in ASCII: each label in lower case, and in punycode where needed, as curl does.

    >>> punycode("www.Straße.test")
    'www.xn--strae-oqa.test'

    The idna codec is not used: it turns ß into ss, which is another host.
    """
    from unicodedata import normalize
    labels = []
    for label in host.split("."):
        # Letter by letter: in a whole word, "Σ" may become "ς". Phones write U+FE0F after emoji.
        letters = (c.lower() for c in label if c not in "\u034f\ufe0e\ufe0f")
        lower = normalize("NFC", "".join(letters))
        # Refused: full-width '．', '／', '１' and the Kelvin sign (a 'k'), which others read as
        # ASCII; '。', which some read as a dot; what is invisible (a soft hyphen, bytes that are
        # not UTF-8).
        if not label.isascii() and (
                normalize("NFKC", lower) != lower or lower.isascii() or len(label) > 63
                or "。" in lower or not lower.isprintable()):
            raise InvalidURL(f"not a host label: {masked(label)}")
        labels.append(lower if lower.isascii() else f"xn--{lower.encode('punycode').decode()}")
    return ".".join(labels)


def in_thread(function: Callable[..., Any], *arguments: Any) -> Future[Any]:
    """Call a function that may take seconds, in a thread of its own: the loop goes on meanwhile.

    asyncio has few threads, and the program needs them, too: with a name server down, a few
    look-ups would hold them all. And Python waits for those when it exits, but not for a daemon
    thread.
    """
    answer = Future[Any]()
    answer.set_running_or_notify_cancel()  # so that nobody who gives up cancels it for all

    def work() -> None:
        try:
            answer.set_result(function(*arguments))
        except BaseException as error:  # of any kind: somebody waits
            answer.set_exception(error)

    for daemon in (True, False):  # subinterpreters allow no daemons
        with contextlib.suppress(RuntimeError):
            threading.Thread(target=work, daemon=daemon).start()
            return answer
    work()  # no thread left, as some containers limit them: then the loop waits
    return answer


def ask_system(host: str, family: int) -> Future[Any]:
    """getaddrinfo for a name; all who ask while it runs share the answer."""
    key = os.getpid(), host, family  # the pid: a forked process has none of its parent's threads
    answer = _asked.get(key)
    if answer is None:
        if len(_asked) >= MAX_LOOK_UPS:
            raise socket.gaierror(socket.EAI_AGAIN, f"{MAX_LOOK_UPS} other look-ups hang")
        answer = _asked[key] = in_thread(socket.getaddrinfo, host, 0, family, socket.SOCK_STREAM)
        # None: if two loops asked at once, the other one may have removed it.
        answer.add_done_callback(lambda _: _asked.pop(key, None))
    return answer


def name_task(what: str) -> None:
    """Name the running task by what it waits for: why_closed says "no TLS handshake within 5 s"."""
    if task := asyncio.current_task():
        task.set_name(what)


async def look_up(host: str, family: int = 0) -> list[str]:
    """The addresses of a name, IPv6 and IPv4 alternating (RFC 8305 section 4).

    Addresses come back as they are: "::1", or several, which `resolve` may give: "10.0.0.1,::1".
    But with a `family` (-4, -6) a single one is looked up, and so refused if it is of the other.
    """
    if "," in host or is_address(host) and not family:
        return host.split(",")
    if host.endswith(".localhost"):  # all of them are this machine (RFC 6761 6.3)
        host = "localhost"
    name_task("address found")
    try:
        found = await asyncio.wrap_future(ask_system(host, family))
    except OSError as error:  # shared by all callers, and raising changes it: so raise a copy
        raise type(error)(*error.args) from None
    ahead = {}  # {address: how many of its kind come before it}
    met = collections.Counter[int]()
    for kind, _, _, _, address in found:  # getnameinfo keeps the zone of fe80::1%eth0
        name, _ = socket.getnameinfo(address, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)
        ahead[name] = met[kind]
        met[kind] += 1
    if not ahead:
        raise socket.gaierror(socket.EAI_NONAME, "it has no addresses")
    return sorted(ahead, key=ahead.__getitem__)[:MAX_ADDRESSES]


async def connect_to(address: str, port: int) -> socket.socket:
    """A socket connected to one address; closed, if that fails or is cancelled."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    # Unless the protocol is given, asyncio does not set TCP_NODELAY: a request over TLS would wait
    # for the server's ACK.
    made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        made.setblocking(False)
        more = (0, 0) if ":" in address else ()  # else Windows' loop would expect IPv4
        await asyncio.get_running_loop().sock_connect(made, (address, port, *more))
    except BaseException:
        made.close()
        raise
    return made


async def connect_first(todo: list[str], port: int) -> socket.socket:
    """A socket to one of the addresses: the next is tried if one fails, or after a moment.

    If none answers, the error says what was wrong with each.
    """
    attempts: set[asyncio.Future[socket.socket]] = set()
    errors = []
    try:
        while todo or attempts:
            if todo:
                attempts.add(asyncio.create_task(connect_to(todo.pop(0), port)))
            done, _ = await asyncio.wait(attempts, return_when=asyncio.FIRST_COMPLETED,
                                         timeout=HAPPY_EYEBALLS_SECONDS if todo else None)
            if not done:
                continue
            attempt = done.pop()
            attempts.remove(attempt)
            try:
                return attempt.result()
            except OSError as error:
                errors.append(error)
        failed = type(errors[0])("; ".join(dict.fromkeys(map(str, errors))))
        failed.errno = errors[0].errno
        raise failed
    finally:  # no await here: cancelled in it, we would leave sockets open
        for attempt in attempts:
            if not (attempt.cancel() or attempt.cancelled() or attempt.exception()):
                attempt.result().close()  # too late: it has connected in this turn


async def open_first(host: str, port: int, **options: Any) -> Stream:
    """asyncio.open_connection to whichever of a name's addresses answers first (RFC 8305).

    TLS begins only then: if it fails, no other address is tried, as with curl. asyncio's own
    happy_eyeballs_delay does the same, but may leave a socket open when cancelled, and uvloop
    does not have it.
    """
    addresses = await look_up(host)
    name_task("connection")
    connected = await connect_first(addresses, port)
    name_task("TLS handshake")
    try:
        return await asyncio.open_connection(sock=connected, **options)
    except BaseException:  # asyncio would wait until the server has closed TLS, too
        with contextlib.suppress(OSError):
            connected.shutdown(socket.SHUT_RDWR)
        raise


def resolved(resolve: Mapping[str, str], origin: Origin) -> str | None:
    """The address, or several with commas, that `resolve` has for an origin; else None.

    "*" stands for any host, as in curl.

    >>> resolved({"*:443": "[::1]"}, Origin("https", "h.test", 443))
    '::1'
    """
    for key, address in resolve.items():
        if not re.search(":[0-9]{1,5}$", key):
            raise InvalidURL(f"resolve: {key!r} is not host:port")
        if parse_origin(origin.scheme, key.replace("*", bracketed(origin.host))) == origin:
            return re.sub(r"[][\s]", "", address)
    return None


# ---- whom to trust

def new_context(verify: Any, cert: Any = None,
                minimum: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    """A new SSLContext for `verify`, `cert` and a version; TLSError if they cannot be used.

    True trusts the system's store, or SSL_CERT_FILE and SSL_CERT_DIR; a file or a folder is
    trusted in their place. OpenSSL checks that a certificate is for the host.
    """
    # We load no cert into a caller's context, which would show it to every server.
    if isinstance(verify, ssl.SSLContext):
        raise TLSError("cert= goes with verify= as a path; load it into your SSLContext",
                       exit_code=58)
    authorities = {}
    used, exit_code = f"verify={verify!r} (--cacert)", 77
    try:
        if not isinstance(verify, bool):
            authorities["capath" if os.path.isdir(verify) else "cafile"] = verify
        elif not verify:
            # A folder that need not exist, so that the system's store is not read: up to Python
            # 3.12, one broken certificate in Windows' raises.
            authorities["capath"] = "-"
        context = ssl.create_default_context(**authorities)
        if context.post_handshake_auth is False:  # some servers ask for `cert` only at some paths
            context.post_handshake_auth = True
        if verify is False:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        elif ssl.HAS_NEVER_CHECK_COMMON_NAME:  # RFC 9110 4.3.4: a common name is not a host
            context.hostname_checks_common_name = False
        if cert:
            path, key, password = (*(cert if isinstance(cert, tuple) else [cert]), None, None)[:3]
            used, exit_code = f"the client certificate {path!r}, key {key!r}", 58
            # Without a password OpenSSL would ask the terminal for one.
            context.load_cert_chain(path, key, password or "")
        if minimum:  # TLS 1.3 is unknown to the LibreSSL of macOS's own Python
            used, exit_code = "that version of TLS", 4
            context.minimum_version = minimum
    except (OSError, ValueError, TypeError) as error:
        raise TLSError(f"cannot use {used}: {error}", exit_code=exit_code) from None
    return context


@functools.lru_cache(maxsize=1)
def system_context(*paths: str | None) -> ssl.SSLContext:
    """What verify=True trusts. It takes 15 ms or more to read: anew only if the paths change."""
    return new_context(True)


def tls_context(verify: Any, cert: Any = None,
                minimum: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    """The TLS settings for `verify`, `cert` and the lowest version of TLS allowed."""
    if verify is True and not cert and not minimum:
        return system_context(os.getenv("SSL_CERT_FILE"), os.getenv("SSL_CERT_DIR"))
    return new_context(verify, cert, minimum)


def certificate_hint(error: ssl.SSLCertVerificationError, verify: Any) -> str:
    """What to do about a certificate that was refused."""
    code = getattr(error, "verify_code", 0)
    if code in range(80, 95):  # OpenSSL's codes for VERIFY_X509_STRICT's checks
        return ("; this is one of the strict checks that are on since Python 3.13: to relax just "
                "these, pass verify=context with context.verify_flags &= ~ssl.VERIFY_X509_STRICT "
                "(-k trusts any server)")
    # Not yet or no longer valid, or for another host: no other store would help.
    if code in (9, 10, 62, 64):
        return ""
    if verify is not True:
        return (f"; only those in {verify!r} (verify=, --cacert) are trusted; if it is a folder, "
                "under the names that `openssl rehash` gives")
    paths = ssl.get_default_verify_paths()
    return (f"; only those in SSL_CERT_FILE ({paths.cafile or 'no such file'}) and SSL_CERT_DIR "
            f"({paths.capath or 'no such folder'}) are trusted; a private CA's file goes "
            "into the first, or verify= (--cacert; -k trusts any server, but no proxy)")


def handshake_hint(reason: str) -> str:
    """What to do about a handshake that failed, by OpenSSL's reason."""
    if re.search("WRONG_VERSION_NUMBER|LENGTH_TOO_LONG|RECORD_LAYER_FAILURE|HTTP_REQUEST"
                 "|UNKNOWN_PROTOCOL", reason):
        return "; that port does not speak TLS: should the URL begin with http://?"
    # TLS 1.2 does not say which of them; servers in Go call a certificate bad that is missing.
    if re.search("CERTIFICATE_REQUIRED|BAD_CERTIFICATE|HANDSHAKE_FAILURE", reason):
        return "; perhaps a client certificate is wanted (cert=, or -E), or no cipher is shared"
    return ""


# ---- what is told

_SHORT_NAMES = {"commonName": "CN", "countryName": "C", "organizationName": "O"}  # RFC 4514


def connection_notes(connection: Connection) -> Iterator[str]:
    """What a trace is told of a new connection: in curl's words, as scripts look for them."""
    remote = connection.addresses[0]
    where = f" ({remote[0]})" if isinstance(remote, tuple) else ""
    yield f"Connected to {connection.route}{where}"
    info = connection.writer.get_extra_info
    cipher, cert = info("cipher"), info("peercert")
    if not cipher:
        return
    # If the server has refused us by now, TLS knows no version any more, and getpeercert raises.
    yield f"SSL connection using {info('ssl_object').version() or 'TLS'} / {cipher[0]}"
    if cert:  # Python tells nothing of one that was not verified
        subject, issuer = ("; ".join(f"{_SHORT_NAMES.get(kind, kind)}={printable(text)}"
                                     for pairs in cert[name] for kind, text in pairs)
                           for name in ("subject", "issuer"))
        yield f" subject: {subject}"
        yield f" start date: {cert['notBefore']}"
        yield f" expire date: {cert['notAfter']}"
        yield f" issuer: {issuer}"


def after(connection: Connection) -> str:
    """How long the last step of opening took, for the error texts."""
    seconds = connection.loop.time() - connection.since
    return f" (after {seconds:.2f} s)" if connection.opener else ""


def failure(connection: Connection, error: BaseException) -> BaseException:
    """Our error for what the system, asyncio or TLS says: at which hop, and what to do."""
    if connection.closed:
        return why_closed(connection)
    route, phase, where = connection.route, connection.phase, far_end(connection)
    if route.proxy_tls and isinstance(error, _TLS_IN_TLS_ERRORS):
        error = error.__context__ or ConnectionResetError("closed in the handshake")
    # OverflowError: --connect-to, port 99999. Up to Python 3.10 asyncio.TimeoutError is no OSError.
    if not isinstance(error, (OSError, ValueError, EOFError, OverflowError, asyncio.TimeoutError)):
        raise error  # a bug in the caller's own streams (returned, it would be its own cause)
    proxy = where if isinstance(where, Proxy) else None
    asked, took = proxy or route.origin, after(connection)
    text = str(error) or type(error).__name__
    if isinstance(error, ssl.SSLCertVerificationError):
        refused = getattr(error, "verify_message", text)  # missing if a caller's code raised it
        return TLSError(f"certificate of {where} refused: {refused}{took}"
                        + certificate_hint(error, route.verify), exit_code=60)
    number = getattr(error, "errno", None)
    if isinstance(error, (socket.gaierror, UnicodeError)):
        return (ProxyError if proxy else ConnectError)(
            f"cannot resolve {asked.host!r}, for {where}: {text}{took}",
            exit_code=5 if proxy else 6, errno=number)
    if phase == "answer of the proxy":  # TLS, too, with a proxy that wants a client's certificate
        return ProxyError(f"closed the connection: {text}")  # pass_proxy says which
    in_tls = isinstance(error, ssl.SSLError)
    # TLS 1.3 refuses a client after the handshake; but damage within a body is a loss.
    if not (connection.opener or in_tls and connection.silent):
        return IncompleteBody(f"connection to {where} lost: {text}", exit_code=56)
    # The port took the connection before it broke: so for https it broke in the handshake.
    broken = isinstance(error, (BrokenPipeError, ConnectionResetError, ConnectionAbortedError))
    if in_tls or asked.scheme == "https" and broken:
        what = "TLS handshake" if connection.opener else "TLS"
        reason = getattr(error, "reason", None) or text
        return TLSError(f"{what} with {where} failed: {reason}{took}{handshake_hint(reason)}")
    # asyncio leaves out the system's words, which people know, and scripts look for. (Windows'
    # numbers have five digits: strerror has no words for them.)
    text = re.sub(r"\[Errno ([0-9]{1,4})\] Connect call failed",
                  lambda found: os.strerror(int(found[1])), text)
    return ConnectError(f"cannot connect to {where}: {text}{took}", errno=number)


# ==== 14. Proxies =============================================================
# For an http:// URL an HTTP proxy is sent the request itself, with the whole URL in its first
# line. For https://, and with SOCKS, a proxy is asked for a tunnel: a connection to the
# origin, over which we then speak as if there were no proxy. The caller or the environment
# names the proxy.

class Proxy(NamedTuple):
    """A proxy, and where its name came from, for the error texts."""

    scheme: str    # "http", "https", "socks5" or "socks5h" (the proxy resolves names)
    host: str
    port: int
    userinfo: str  # for the proxy alone; never in an error text
    source: str    # "proxy=", "http_proxy or -x" or "the system's settings", say

    def __repr__(self) -> str:
        return f"proxy {self.scheme}://{bracketed(self.host)}:{self.port} (from {self.source})"


def parse_proxy(text: str, source: str) -> Proxy:
    """A proxy's URL; without a scheme it is http.

    >>> print(parse_proxy("me:secret@proxy.corp:3128", "http_proxy"))
    proxy http://proxy.corp:3128 (from http_proxy)

    Raises ProxyError, also for an unknown scheme: going directly might show the server, or the
    network, what the proxy is there to hide.
    """
    try:
        url = parse_url(text if "://" in text else f"http://{text.strip()}", DEFAULT_PORTS)
    except InvalidURL as error:
        raise ProxyError(f"{source}: {error}", exit_code=7 if error.exit_code == 1 else 5) from None
    return Proxy(*url.origin, url.userinfo, source)


def domain_match(host: str, domain: str) -> bool:
    """Whether a host is a domain or below it (RFC 6265 5.1.3); nothing is below an IP address.

    >>> [domain_match(h, "h.test") for h in ("h.test", "www.h.test", "noth.test")]
    [True, True, False]
    """
    return host == domain or host.endswith("." + domain) and not is_address(host)


def bypasses_proxy(no_proxy: str, origin: Origin) -> bool:
    """Whether NO_PROXY, a list separated by commas or blanks, exempts an origin.

        *                                everything, wherever it stands in the list
        corp.test .corp.test *.corp.test that domain and all below it, not notcorp.test
        10.0.0.0/8  fd00::/8  ::1        addresses and networks, compared as numbers
        corp.test:8080  [::1]:443        only with that port; https://[::1]/ has port 443
    """
    import ipaddress
    host = origin.host.rstrip(".")
    for name, port in re.findall(r"(\[[^\]\s,]*\]|[^:\s,]+|[^\s,]+)"          # the last: bare IPv6
                                 r"(?::([0-9]{1,5}))?(?![^\s,])", no_proxy.lower()):
        exempt = name == "*" or domain_match(host, name.removeprefix("*.").strip("."))
        with contextlib.suppress(ValueError):  # one of them is a name
            network = ipaddress.ip_network(name.strip("[]"), strict=False)
            exempt = ipaddress.ip_address(host) in network
        if exempt and int(port or origin.port) == origin.port:
            return True
    return False


def choose_proxy(origin: Origin) -> Proxy | None:
    """The proxy that the environment names for an origin.

        http_proxy, HTTP_PROXY     for http; the second not under CGI, where a visitor's
                                   field "Proxy: x" sets it (CVE-2016-1000110)
        https_proxy, HTTPS_PROXY   for https
        all_proxy, ALL_PROXY       for both, if those are not set
        no_proxy, NO_PROXY         no proxy for these: see bypasses_proxy

    Lower case wins, even if empty: then the proxy counts as not set. If none is set, macOS and
    Windows are asked for the system's settings.
    """
    if sys.platform not in ("darwin", "win32") and not any(
            name.lower().endswith("_proxy") for name in os.environ):
        return None  # before urllib.request is imported: that takes as long as 100 GETs
    from urllib.request import getproxies, getproxies_environment, proxy_bypass
    named = getproxies_environment()
    found = named or getproxies()
    kind = origin.scheme if origin.scheme in found else "all"
    # proxy_bypass last: up to Python 3.12.2 it may look the host up, and the loop stands still.
    if kind not in found or (bypasses_proxy(found.get("no", ""), origin) if named else
                             proxy_bypass(origin.host)):
        return None
    return parse_proxy(found[kind], f"{kind}_proxy or -x" if named else "the system's settings")


# ---- through it
# What its errors say begins with the name of the proxy: pass_proxy puts that before it.

def split_userinfo(userinfo: str) -> tuple[str, str]:
    """User and password of a URL, percent-decoded: nothing else of a URL ever is."""
    from urllib.parse import unquote
    user, _, password = (unquote(part, errors="surrogateescape")
                         for part in userinfo.partition(":"))
    return user, password


def proxy_fields(proxy: Proxy) -> Fields:
    """The field with a proxy's own credentials, if any; it goes to nobody else."""
    if not proxy.userinfo:
        return ()
    return (("Proxy-Authorization", render_auth(split_userinfo(proxy.userinfo))),)


async def ask_for_tunnel(connection: Connection, proxy: Proxy) -> None:
    """Ask an HTTP proxy for a tunnel (RFC 9110 9.3.6); of the URL it learns only host and port."""
    origin = connection.route.origin
    target = f"{bracketed(without_zone(origin.host))}:{origin.port}"
    fields = (("Host", target), *connection.owner.agent, *proxy_fields(proxy))
    request = f"CONNECT {target} HTTP/1.1\r\n".encode("ascii") + render_fields(fields, origin)
    try:
        head = await connection.exchange(request, connection.seconds, "answer of the proxy")
    except ProtocolError as error:
        raise ProxyError(f"did not answer CONNECT {target}: {error}") from error
    connection.exchanges = 0  # none with the origin yet
    if head.status // 100 != 2:
        text = f"refused a tunnel to {target}: {head.status} {status_reason(head.raw):.100}"
        if head.status in (401, 407):  # 401 is an older tinyproxy's
            asked = ", ".join(octets_text(head.raw, "proxy-authenticate"))
            state = "were refused" if proxy.userinfo else "are wanted"
            text += f" (user and password in its URL {state}; it asks for {asked!r:.100})"
        said = re.sub(rb"(<[^<>]*>|\s)+", b" ", connection.rest).strip()  # its error page
        raise ProxyError(printable(text) + (f"; it says {shown(said)}" if said else ""),
                         status=head.status)


async def read_exactly(connection: Connection, size: int) -> bytes:
    """The next `size` bytes from a proxy; what came after them stays in `rest`."""
    while len(connection.rest) < size:
        arrived = await connection.receive()
        if not arrived:  # the cause makes it a loss, which retry_delay may try again
            raise ProxyError(f"closed the connection: {len(connection.rest)} of {size} bytes came"
                             ) from EOFError()
        connection.rest += arrived
    data, connection.rest = connection.rest[:size], connection.rest[size:]
    return data


_SOCKS_REPLIES = dict(enumerate((
    "general failure", "not allowed by its rules", "network unreachable", "host unreachable",
    "connection refused", "expired on the way", "command not supported",
    "address type not supported"), start=1))


async def ask_socks(connection: Connection, proxy: Proxy) -> None:
    """Ask a SOCKS5 proxy for the connection (RFC 1928, password RFC 1929).

    We send the version (5) and how we can log in (0: not at all, 2: with user and password); the
    proxy chooses. Then command 1, connect, and an address of kind 1 (IPv4), 4 (IPv6), 3 (a name).
    """
    import ipaddress
    origin = connection.route.origin
    read = functools.partial(read_exactly, connection)

    def write(data: bytes) -> None:
        with contextlib.suppress(RuntimeError):  # uvloop's, once it is closed: `read` reports it
            connection.writer.write(data)

    write(b"\x05\x02\x00\x02" if proxy.userinfo else b"\x05\x01\x00")
    version, method = start = await read(2)
    if version != 5:
        raise ProxyError(f"is not a SOCKS5 proxy: it answers {shown(start)}")
    if method == 2 and proxy.userinfo:
        user, password = (text.encode("utf-8", "surrogateescape")
                          for text in split_userinfo(proxy.userinfo))
        if max(len(user), len(password)) > 255:
            raise ProxyError("takes no user or password of more than 255 bytes")
        write(b"\x01%c%b%c%b" % (len(user), user, len(password), password))
        if (await read(2))[1]:
            raise ProxyError("refused the user and password in its URL")
    elif method:
        raise ProxyError("wants credentials that are not in its URL")
    host = origin.host
    address = b"\x03%c%b" % (len(host), host.encode("ascii"))
    if proxy.scheme == "socks5":  # the name is looked up here, not by the proxy
        host = (await look_up(connection.route.address or host))[0]
    if is_address(host):
        address = (b"\x04" if ":" in host else b"\x01") + ipaddress.ip_address(host).packed
    write(b"\x05\x01\x00" + address + origin.port.to_bytes(2, "big"))
    _, reply, _, kind = await read(4)
    if reply:
        raise ProxyError(f"cannot connect to {bracketed(origin.host)}:{origin.port}: "
                         + _SOCKS_REPLIES.get(reply, f"reply {reply}"))
    # Read away the address and port that it connects from: what follows is from the origin.
    size = {1: 4, 4: 16}.get(kind) or (await read(1))[0]  # before a name stands its length
    await read(size + 2)


async def start_tls(connection: Connection, tls: ssl.SSLContext) -> None:
    """Begin TLS inside a tunnel, with a fresh Inbox.

    StreamWriter.start_tls (3.11) keeps the old reader, and until 2026 handed out plain bytes
    that a proxy slipped in as if they had come encrypted (as in CVE-2021-22947).
    Here nobody reads them. loop.start_tls exists in Python 3.9, too.
    """
    loop = connection.loop
    connection.outer = outer = connection.writer  # unreferenced, it would close the transport
    connection.writer = None  # for `close`: asyncio, if this fails, closes the outer one
    connection.reader = inbox = Inbox()
    transport = await loop.start_tls(outer.transport, inbox, tls,
                                     **tls_options(connection.route.origin.host))
    if transport is None or transport.is_closing():  # the connection ended meanwhile
        raise ConnectionResetError("closed during the handshake")
    inbox.transport = transport
    connection.writer = asyncio.StreamWriter(transport, inbox, None, loop)


async def pass_proxy(connection: Connection, proxy: Proxy) -> None:
    """Connect to a proxy, and have it connect us to the origin. Raises ProxyError.

    For http:// an HTTP proxy is asked nothing here: it is sent the request (Call.render).
    """
    route = connection.route
    try:
        if route.proxy_tls and route.tls and sys.version_info < (3, 11):
            raise ProxyError("needs Python 3.11 for TLS inside its own; an http:// proxy tunnels "
                             "https, too")
        await connection.connect(proxy, None, route.proxy_tls)
        if proxy.scheme.startswith("socks"):
            connection.watch("answer of the proxy")
            await ask_socks(connection, proxy)
        elif route.tls:
            await ask_for_tunnel(connection, proxy)
        if route.tls and connection.rest:  # they would pass for encrypted: CVE-2021-22947
            raise ProxyError("sent bytes before the tunnel was in use: " + shown(connection.rest))
    except ProxyError as error:  # put the proxy's name before all of these texts
        error.args = (f"{proxy} {error}{after(connection)}",)
        if not proxy.scheme.startswith("socks"):
            error.exit_code = 56  # curl's 97 is for SOCKS alone
        raise
    if route.tls:
        connection.watch("TLS handshake")
        await start_tls(connection, route.tls)


# ==== 15. Cookies =============================================================
# Which cookies are kept, for how long, and with which requests they go out: the rules of
# section 5 of RFC 6265bis (the draft after RFC 6265), below just "6265bis". A cookie's bytes go
# back as they came: octets_text (section 4) decodes them so that this is possible, nothing is
# unquoted or repaired, and lengths are counted in bytes.

MAX_SET_COOKIES = 50             # of one response; curl's figure
MAX_COOKIE_BYTES = 4096          # name and value of one; 6265bis 5.6
MAX_ATTRIBUTE_BYTES = 1024       # value of one attribute; 6265bis 5.6
MAX_SITE_COOKIES = 180           # kept of one site; Chrome's figure, 6265bis 6.1 asks for 50
MAX_COOKIES = 3000               # kept in all; 6265bis 6.1 asks for at least that
MAX_COOKIE_SECONDS = 34_560_000  # the longest life of one: 400 days; 6265bis 5.5
MAX_COOKIE_FIELD_BYTES = 8190    # the Cookie field that we send; curl's figure
# Each part of a date is the first token left that looks like it (6265bis 5.1.1). Without the "a",
# "i" would take "ſep" for September, and \d other digits than ours.
_MONTHS = "jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec"
_DATE_PARTS = (
    f"(?ia)({_MONTHS})",
    r"(?a)(\d{1,2}):(\d{1,2}):(\d{1,2})(?!\d)",  # hour, minute, second
    r"(?a)(\d{1,2})(?!\d)",                      # day of the month
    r"(?a)(\d{2,4})(?!\d)",                      # year
)
# A suffix (com, co.uk) and the label before it. Anybody can have a domain below a suffix, so a
# cookie for the whole suffix would go to strangers. The list of all suffixes is long and changes
# every week; here are a few, as in http.cookiejar. "1" is not one: it ends an IP address.
_SITE = r"(?<![^.])[^.]+\.((ac|co|com|edu|gov|mil|net|org)\.[a-z]{2}|[^.0-9][^.]*)\.?$"


def parse_date(text: str) -> float | None:
    """The seconds since 1970 of a date in almost any spelling; None if it is not one.

    >>> parse_date("Sunday, 06-Nov-94 08:49:37 GMT"), parse_date("6 November 1994")
    (784111777.0, None)

    The rules are those for cookies (RFC 6265bis 5.1.1); HTTP's three formats (RFC 9110 5.6.7),
    as in Retry-After, pass them. A zone is not looked at: all times are in UTC.
    """
    tokens = re.findall(r"[^\t -/;-@\[-`{-~]+", text)  # what stands between delimiters
    found: list[str] = []
    try:
        for part in _DATE_PARTS:
            match = next(filter(None, (re.match(part, token) for token in tokens)))
            tokens.remove(match.string)
            found.extend(match.groups())
        month, *numbers = found
        hour, minute, second, day, year = map(int, numbers)
        if year < 100:
            year += 2000 if year < 70 else 1900
        when = datetime.datetime(year, _MONTHS.index(month.lower()) // 4 + 1, day, hour, minute,
                                 second, tzinfo=datetime.timezone.utc)
    except (StopIteration, ValueError):  # a part is missing, or it is 30 February or 24:00:00
        return None
    return when.timestamp() if year >= 1601 else None


def byte_count(text: str) -> int:
    """The length of a server's text in bytes, as it was on the wire."""
    return len(text.encode("utf-8", "replace"))  # a surrogate was one byte, and becomes "?"


def site_of(host: str) -> str:
    """A host's site, the suffix and one label more; a cookie goes to no other site.

    >>> site_of("www.h.test"), site_of("a.b.co.uk"), site_of("10.0.0.1")
    ('h.test', 'b.co.uk', '10.0.0.1')
    """
    match = re.search(_SITE, host)
    return match[0] if match else host


def is_safe(origin: Origin) -> bool:
    """Whether nobody on the way can listen: https, or this machine itself, as curl has it."""
    return origin.scheme == "https" or origin.host in ("localhost", "127.0.0.1", "::1")


def path_match(path: str, folder: str) -> bool:
    """Whether a path is a cookie's path or below it (6265bis 5.1.4).

    >>> [path_match(p, "/any") for p in ("/any", "/any/x", "/anybad")]
    [True, True, False]
    """
    return path == folder or path.startswith(folder.removesuffix("/") + "/")


class Cookie(NamedTuple):
    """A cookie as it is kept (6265bis 5.7)."""

    name: str               # "" where a server sent only a value
    value: str
    domain: str             # without a leading dot; "": for the jar's home origin (Cookies)
    path: str = "/"
    host_only: bool = True  # else for all hosts below the domain, too
    secure: bool = False    # for https alone
    http_only: bool = False  # hidden from scripts in pages; here only kept
    expires: float | None = None  # seconds since 1970; None: with the session

    @property
    def key(self) -> tuple[object, ...]:
        """What distinguishes cookies: of those with one key, the last is kept (6265bis 5.7)."""
        return self.name, self.domain, self.path, self.host_only

    def lives(self) -> bool:
        """Whether it has not expired."""
        return self.expires is None or self.expires > time.time()

    def belongs(self, url: URL) -> bool:
        """Whether it goes out with a request (6265bis 5.8.3)."""
        host = url.origin.host
        fits = self.domain in ("", host) if self.host_only else domain_match(host, self.domain)
        return (self.lives() and fits and (is_safe(url.origin) or not self.secure)
                and path_match(url.path, self.path))


def keeps_prefix(cookie: Cookie) -> bool:
    """Whether a cookie is what the prefix of its name promises (6265bis 5.4, 5.7).

    Without a name, the value counts: sent as "__Host-a=1", it would look to the
    server like a cookie of that name.
    """
    start = (cookie.name or cookie.value).lower()
    fits = cookie.name != "" and cookie.secure
    if start.startswith("__host-"):
        return fits and cookie.host_only and cookie.path == "/"
    return fits or not start.startswith("__secure-")


def parse_set_cookie(line: str, url: URL, now: float) -> Cookie | None:
    """The cookie that a response to a URL sets; None if it may not be set (6265bis 5.6, 5.7).

    >>> parse_set_cookie("a=1; Domain=h.test; Max-Age=9", parse_url("http://www.h.test/x/y"), 50.0)
    ... # doctest: +NORMALIZE_WHITESPACE
    Cookie(name='a', value='1', domain='h.test', path='/x', host_only=False, secure=False,
           http_only=False, expires=59.0)
    """
    parts = [[text.strip(" \t") for text in part.partition("=")] for part in line.split(";")]
    name, mark, value = parts[0]
    if not mark:
        name, value = "", name
    attributes = collections.defaultdict(str, {  # of several, the last counts
        key.lower(): text for key, _, text in parts[1:] if byte_count(text) <= MAX_ATTRIBUTE_BYTES})
    expires = parse_date(attributes["expires"])
    if re.fullmatch("-?[0-9]+", attributes["max-age"]):
        expires = now + float(attributes["max-age"])
    if expires is not None:
        expires = min(expires, now + MAX_COOKIE_SECONDS)
    domain = attributes["domain"].removeprefix(".").lower()
    host = url.origin.host
    cookie = Cookie(name, value, domain or host, attributes["path"], not domain,
                    "secure" in attributes, "httponly" in attributes, expires)
    if not (_VALUE.fullmatch(line) and (name or value)
            and byte_count(name + value) <= MAX_COOKIE_BYTES
            and domain_match(host, cookie.domain) and site_of(host) == site_of(cookie.domain)
            and keeps_prefix(cookie) and (is_safe(url.origin) or not cookie.secure)):
        return None
    if cookie.path[:1] != "/":  # then it is the folder that the target lies in (5.1.4)
        cookie = cookie._replace(path=url.path.rpartition("/")[0] or "/")
    return cookie


def overlays(new: Cookie, old: Cookie) -> bool:
    """Whether a cookie that came by http would hide a Secure one (6265bis 5.7).

    If that were allowed, anyone on the way could log the user in to another account.
    """
    return (old.secure and old.name == new.name and path_match(new.path, old.path)
            and (domain_match(old.domain, new.domain) or domain_match(new.domain, old.domain)))


def check_cookie(name: str, value: str) -> None:
    """Raise InvalidHeader for a caller's cookie that would not arrive as it is.

    RFC 6265 4.1.1 allows only tokens as names, but servers set others, too: PHP's "user[name]".
    """
    if not (isinstance(name, str) and re.fullmatch("[!-:<>-~]+", name)
            and isinstance(value, str) and _VALUE.fullmatch(value) and ";" not in value
            and byte_count(f"{name}={value}") <= MAX_COOKIE_FIELD_BYTES):
        raise InvalidHeader("a cookie's name (in ASCII, no blanks, no '=') and value are text of "
                            f"{MAX_COOKIE_FIELD_BYTES} bytes at most, without ';' and controls: "
                            f"not those of {name!r:.100}")


def render_cookies(pairs: Pairs) -> str:
    """The value of the Cookie field (6265bis 5.8.3): the first pairs, as many as the limit allows.

    >>> render_cookies([("a", "1"), ("", "nameless"), ("b", "")])
    'a=1; nameless; b='
    """
    text = ""
    for name, value in pairs:
        pair = name + "=" + value if name else value  # no f-string: see `plain`
        longer = text + "; " + pair if text else pair
        if byte_count(longer) > MAX_COOKIE_FIELD_BYTES:
            break
        text = longer
    return text


class Cookies(CookieStore):
    """The cookies of a session: those that servers set, and yours.

    >>> cookies = Cookies({"sid": "7"})
    >>> cookies["lang"] = "de"
    >>> cookies.set("a", "1", domain="h.test")
    >>> cookies["sid"], "b" in cookies, [cookie.domain for cookie in cookies]
    ('7', False, ['', '', 'h.test'])
    >>> cookies
    <Cookies ['sid', 'lang', 'a']>

    A cookie that you set without a domain goes to one origin, scheme and port included, the
    home origin: the session's base_url, or else the first that it asks. It goes out instead of
    any other with its name, until a response of that origin sets one of this name.
    Iterating gives Cookie tuples; cookies[name] is the last value of that name.
    """

    def __init__(self, cookies: Mapping[str, str] | None = None) -> None:
        # {site: {Cookie.key: cookie}}. All that a host may get are in its site's dict, in the order
        # in which they were first set. The site that was last to set one comes last. Under "" are
        # the caller's own, for the home origin.
        self._sites: dict[str, dict[Any, Cookie]] = {}
        self.update(cookies or {})

    def store(self, url: URL, lines: Sequence[str]) -> list[str]:
        """Keep the cookies of a response's Set-Cookie fields; return their names.

        If a site has more than MAX_SITE_COOKIES, its oldest are removed, those without Secure
        first. If the jar has more than MAX_COOKIES, it loses all cookies of the site that has
        set none for the longest time. So endless subdomains push out only their own site's.
        """
        site = site_of(url.origin.host)
        names = []
        kept = {key: old for key, old in self._sites.pop(site, {}).items() if old.lives()}
        for line in lines[:MAX_SET_COOKIES]:
            cookie = parse_set_cookie(line, url, time.time())
            if cookie and (is_safe(url.origin)
                           or not any(overlays(cookie, old) for old in kept.values())):
                kept[cookie.key] = cookie  # even if expired: that is how a server deletes one
                names.append(cookie.name)
        # Http must not push out what only https may set.
        for cookie in sorted(kept.values(), key=lambda one: one.secure)[:-MAX_SITE_COOKIES]:
            del kept[cookie.key]
        own = self._sites.pop("", {})
        if url.origin == self.home:
            own = {key: cookie for key, cookie in own.items() if cookie.name not in names}
        if kept:
            self._sites[site] = kept
        if own:
            self._sites[""] = own  # put in last, dropped last
        while sum(map(len, self._sites.values())) > MAX_COOKIES:
            del self._sites[next(iter(self._sites))]
        return names

    def pairs_for(self, url: URL) -> Pairs:
        """The names and values that a request is sent with, longest path first (6265bis 5.8.3)."""
        self.home = self.home or url.origin
        if not self._sites:
            return []
        own = self._sites.get("", {}).values() if url.origin == self.home else ()
        hidden = {cookie.name for cookie in own}
        kept = self._sites.get(site_of(url.origin.host), {}).values()
        found = [*own, *(cookie for cookie in kept if cookie.name not in hidden)]
        found.sort(key=lambda cookie: -len(cookie.path))
        return [(cookie.name, cookie.value) for cookie in found if cookie.belongs(url)]

    def add(self, cookie: Cookie) -> None:
        """Put a cookie in as it is; one without a domain is the home origin's."""
        self._sites.setdefault(site_of(cookie.domain), {})[cookie.key] = cookie

    def set(self, name: str, value: str, *, domain: str = "", path: str = "/") -> None:
        """Set a cookie for a domain and all below it; without one, for the home origin.

        Raises InvalidHeader, or InvalidURL for the domain.
        """
        check_cookie(name, value)
        host = domain and parse_host(domain.removeprefix("."))
        self.add(Cookie(name, value, host, "/" + path.removeprefix("/"), host_only=not host))

    __setitem__ = set

    def update(self, cookies: Mapping[str, str]) -> None:
        """Set several for the home origin."""
        for name, value in cookies.items():
            self.set(name, value)

    def clear(self) -> None:
        """Delete all."""
        self._sites.clear()

    def _values(self) -> dict[str, str]:
        return {cookie.name: cookie.value for cookie in self}  # of several, the last

    def get(self, name: str, default: str | None = None) -> str | None:
        """The value of a cookie; of several, the last."""
        return self._values().get(name, default)

    def __getitem__(self, name: str) -> str:
        return self._values()[name]

    def __delitem__(self, name: str) -> None:
        if name not in self:
            raise KeyError(name)
        for cookie in self:
            if cookie.name == name:
                del self._sites[site_of(cookie.domain)][cookie.key]

    def __contains__(self, name: object) -> bool:
        return name in self._values()

    def __iter__(self) -> Iterator[Cookie]:
        return iter([cookie for kept in self._sites.values() for cookie in kept.values()
                     if cookie.lives()])

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:  # no values: they are secrets
        return f"<Cookies {[*self._values()]}>"


class OthersJar(CookieStore):
    """The caller's own jar (of http.cookiejar, requests or the like), asked as ours is."""

    def __init__(self, jar: Any) -> None:
        self.jar = jar

    def _request(self, url: URL) -> Any:
        import urllib.request
        return urllib.request.Request(str(url).partition("?")[0])  # urlsplit would cache the query

    def pairs_for(self, url: URL) -> Pairs:
        """The names and values that a request is sent with."""
        request = self._request(url)
        self.jar.add_cookie_header(request)
        return re.findall("(?:^|; )(?=.)(?:([^=;]+)=)?([^;]*)", request.get_header("Cookie", ""))

    def store(self, url: URL, lines: Sequence[str]) -> list[str]:
        """Put in what a response's Set-Cookie fields set; no names: such a jar reports none."""
        fit = [line for line in lines[:MAX_SET_COOKIES]
               if byte_count(line) <= MAX_COOKIE_BYTES and _VALUE.fullmatch(line)]
        # A response, as far as extract_cookies looks at it.
        headers = types.SimpleNamespace(get_all={"Set-Cookie": fit}.get)
        self.jar.extract_cookies(types.SimpleNamespace(info=lambda: headers), self._request(url))
        return []


# ==== 16. Passwords ===========================================================
# A URL may have a user and a password. A netrc file, usually ~/.netrc, holds them by host; it is
# read as curl reads it, but for `default`. For what becomes of any password when a redirect leads
# to another origin, see the table of next_request (section 10).

_KEYWORD = "machine|login|password|account"
_QUOTED = r'(?:[^"\\\n]|\\.)*'
_ESCAPES = str.maketrans("nrt", "\n\r\t")
_NETRC = (
    r"(?i)#.*|macdef[ \t](?:.*\S.*(?:\n|\Z))*"  # a comment; commands for ftp, up to an empty line
    # A keyword and its value, with comments between them; else what is wrong, or another word.
    rf'|({_KEYWORD})[ \t\n](?:[ \t\n]|#.*(?!.))*(?:"({_QUOTED})"|([^#" \t\n][^ \t\n]*))'
    rf'|"{_QUOTED}"|((?:{_KEYWORD})(?![^ \t\n])|")|[^ \t\n]+')


def netrc_entries(text: str) -> Iterator[dict[str, str]]:
    r"""The entries of a netrc file; the first is what stands before any `machine`, usually {}.

    >>> list(netrc_entries('machine h login me password "a \\"b"  # mine\n'))[1]
    {'machine': 'h', 'login': 'me', 'password': 'a "b'}

    A `default` entry has no machine, so it fits no host. Unknown words are skipped: one that
    was written for another program must not make every use of the file fail.
    """
    entry: dict[str, str] = {}
    for word in re.finditer(_NETRC, text):
        keyword, quoted, bare, wrong = word.groups()
        if wrong:
            line = text.count("\n", 0, word.start()) + 1  # never the file's own text
            raise AsyncGetError(f"netrc, line {line}: a value is missing, or a quote is not closed",
                                exit_code=26)
        name = (keyword or word[0]).lower()
        if name in ("machine", "default"):
            yield entry
            entry = {}
        if keyword:
            entry[name] = bare or re.sub(
                r"\\(.)", lambda escape: escape[1].translate(_ESCAPES), quoted)
    yield entry


def read_text(name: str) -> str:
    """The text of a file, or of stdin for "-"; bytes that are not UTF-8 go out as they came.

    Stdin is read for nothing else: in a shell's loop `while read url` it holds the next URLs.
    """
    try:
        with open(0 if name == "-" else name, "rb", closefd=name != "-") as file:
            return file.read().decode("utf-8-sig", "surrogateescape")
    except (OSError, ValueError) as error:
        raise AsyncGetError(f"cannot read {printable(name)}: {getattr(error, 'strerror', error)}",
                            exit_code=26) from error


def netrc_auth(path: bool | str | os.PathLike[str], host: str,
               user: str = "") -> tuple[str, str] | None:
    """User and password of a netrc file's first entry for exactly this host (and `user`), or None.

    Its `default` entry is not used: every server that is asked would get that password. Nor
    is the standard library's reader: it fails at an unknown word, and reads backslashes,
    comments and a host's second entry differently from curl.
    """
    name = os.path.expanduser("~/.netrc" if isinstance(path, bool) else path)
    text = read_text(os.path.join(".", name))  # so that "-" is a file
    for entry in netrc_entries(re.sub("\r\n?", "\n", text)):
        login, password = entry.get("login", user), entry.get("password", "")
        if (entry.get("machine", "").lower() == host and user in ("", login)
                and (password or login and not user)):  # a given `user` needs a password
            return login, password
    return None


def with_password(call: Call, request: Request) -> Request:
    """The request with the user and password of its URL, or those that netrc has for its host.

    Call.first_request calls it if the URL has a user, and Call.render for each hop if netrc= is
    set. The file is asked only if scheme and port are those of the first request: a password
    for https must not go out over http, or to another port. Nor is it asked if the call has
    an auth= of its own (None is one; asyncget.get's is its session's), or the URL has a password.
    URL and netrc both yield to an Authorization in the headers, and to one of None there.
    """
    url, netrc = request.url, call.settings["netrc"]
    request = request._replace(url=url._replace(userinfo=""))
    asked = *call.session.settings["headers"], *call.settings["headers"]
    if ("authorization" in Headers(request.fields) or any(
            name.lower() == "authorization" and value is None for name, value in asked)):
        return request
    user, password = split_userinfo(url.userinfo)
    auth = (user, password) if url.userinfo else None
    same = call.first._replace(host=url.origin.host) == url.origin
    if netrc and same and ":" not in url.userinfo and "auth" not in call.settings["own"]:
        auth = netrc_auth(netrc, url.origin.host, user) or auth
    return request.adding("Authorization", render_auth(auth)) if auth else request


# #### Part IV. Tools ##########################################################
# This part shows how a file gets to the disk whole, and how a library becomes a program. One
# thing about HTTP is new: how to ask for the rest of a file (section 17).

# ==== 17. Downloads ===========================================================
# If a download broke off, only the rest is asked for. HTTP's words for that:
#
#     ETag: "v1"                          the server's name for a version of the file
#     Range: bytes=5-                     send what comes after the first 5 bytes,
#     If-Range: "v1"                      but all of it, if the version has changed
#     206, Content-Range: bytes 5-10/11   here is that rest, of 11 bytes in all
#     416, Content-Range: bytes */5       there is no rest: the file has 5 bytes
#
# On the disk a download is three files. PATH.part collects the bytes; its sidecar,
# PATH.part.meta, says which version of the file they are of; and PATH is what PATH.part
# is renamed to when it is whole. The order of the steps lets it survive a kill:
#
#     empty PATH.part   PATH.part.meta   the body   fsync   rename   PATH.part.meta away
#
# Whichever step was the last, there is a whole PATH, or bytes with the name of their version
# beside them, or nothing that a later run would trust. A PATH.part that has bytes but no
# sidecar was not made here: it is left alone, and the download ends with an error. First below
# comes the decision what to trust, from values alone; then the disk.

SETTLED_SECONDS = 60.0           # from Last-Modified to Date: RFC 7232's; 1 in RFC 9110 8.8.2.2
# A validator names a version: a strong ETag, which stands for just these bytes (RFC 9110 8.8.3;
# a weak one begins with W/), or the date of the last change.
_VALIDATOR = (r'"[\x21\x23-\x7e]{0,500}"'
              r"|[A-Z][a-z]{2}, [0-9]{2} [A-Z][a-z]{2} [0-9]{4} [0-9:]{8} GMT")
_SIDECAR = rf"({_VALIDATOR}|)\n([0-9]{{1,18}}|None)\n([0-9a-f]{{64}})\n"
SIDECAR_BYTES = 1024             # read of a sidecar; ours have at most 587
# How a file system says that it cannot do a thing, at all or with this file.
_CANNOT = errno.EPERM, errno.EBUSY, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP


class Partial(NamedTuple):
    """What is on the disk of a file: the size of PATH.part, and what the sidecar says."""

    size: int             # bytes in PATH.part; 0 where there is none
    validator: str        # '"v1"', or 'Sun, 06 Nov 1994 08:49:37 GMT'; '': only -C goes on
    length: str           # of the whole file: '11', or 'None' if unknown
    source: str           # which URLs it is from: see source_of; '' (with -C): any


def strong_validator(headers: Headers) -> str:
    """The validator of a response, "" if none is strong enough (RFC 9110 8.8, 13.1.5).

    >>> strong_validator(Headers([("ETag", '"v1"'), ("Last-Modified", "...")]))
    '"v1"'
    >>> strong_validator(Headers([("ETag", 'W/"v1"')]))
    ''

    Dates have whole seconds, and a file may change twice in one; also, clocks differ. So
    Last-Modified counts only without an ETag, and if it is SETTLED_SECONDS before the Date.
    """
    validator = headers.get("etag")
    if validator is None:
        validator = headers.get("last-modified", "")
        now = parse_date(headers.get("date", "")) or 0
        if now - (parse_date(validator) or now) < SETTLED_SECONDS:
            return ""
    return validator if re.fullmatch(_VALIDATOR, validator) else ""


def source_of(response: Response) -> str:
    """A digest of the URL that was asked for and of the one that answered.

    Two files can have the same ETag, "1" say, so their URLs count, too. The URL that answered
    loses its query: release servers redirect to a link that is signed for this request alone.
    A digest, since a query may hold a password, which the sidecar must not show.
    """
    import hashlib
    asked, answered = [*response.history, response][0].url, response.url.partition("?")[0]
    return hashlib.sha256(f"{asked} {answered}".encode()).hexdigest()


_OWN_CODINGS = {  # endings, and types, that announce a coding
    b"gzip": r"(?im)\.(gz|tgz|svgz)$"
             r"|^application/(x-)?(gzip|tar|tgz|tar-gz|gtar|compressed-tar)\s*(;|$)",
    b"zstd": r"(?im)\.t?zst$|^application/(x-)?zstd\s*(;|$)"}


def leave_own_coding(response: Response, path: str) -> None:
    """Do not undo a coding that belongs to the file, as its name or type says.

    Many servers send a.tar.gz as a tar with Content-Encoding: gzip. If that were undone,
    the file called a.tar.gz would be a tar.
    """
    own = _OWN_CODINGS.get(response.coding.strip().removeprefix(b"x-"))
    told = f"{path}\n{response._url.path}\n{response.headers.get('content-type', '')}"
    if own and response.status_code < 300 and re.search(own, told):
        response.coding = b"identity"


def ask_own_coding(request: Request) -> Request:
    """The request, asking for no coding if the URL is of a file that has its own, a.tar.gz.

    A server that codes all that it may would code it twice, and leave_own_coding would leave
    both. It is for what the command line writes in place: other downloads ask for no coding.
    """
    path = request.url.path
    if OUR_CODINGS in request.fields and any(
            re.search(own, path) for own in _OWN_CODINGS.values()):
        return request.adding("Accept-Encoding", "identity")
    return request


def is_coded(response: Response) -> bool:
    """Whether the bytes on the wire are compressed, even if decode=False leaves them so.

    The file's own coding does not count: leave_own_coding marks it as "identity".
    """
    codings = parse_list(response.headers.get("content-encoding", "").lower().encode())
    return response.coding != b"identity" and not _NO_CODINGS.issuperset(codings)


def body_length(response: Response) -> int | None:
    """How many bytes of the file the head announces; None if it does not, or they are coded."""
    return None if is_coded(response) else response._length


def length_of_rest(response: Response, partial: Partial) -> int | None:
    """How many bytes follow ours, as a 206 says; 0 for a 416; None if the response does not fit.

    A server that is bad at ranges, or mixes up versions, would put wrong bytes after ours. So
    if anything does not fit, nothing is written, and the whole file is asked for (RFC 9110 14.4,
    15.3.7, 15.5.17). Only a date may be missing, and in a 416 the ETag. Only one
    Content-Range is right. We compare with it and parse none: `5-4/11` or `+5-10/11` cannot pass.
    """
    length = {206: body_length(response), 416: 0}.get(response.status_code)
    if length is None:  # without one, the rest could end anywhere, and look whole
        return None
    end, validator, headers = partial.size + length, partial.validator, response.headers
    right = f"bytes {partial.size}-{end - 1}/{end}" if length else f"bytes */{end}"
    field = "etag" if validator.startswith('"') else "last-modified"
    if_missing = "" if field == "etag" and length else validator  # a 206 must have its ETag
    fits = (headers.get("content-range", "").lower() == right
            and partial.length in ("None", str(end))
            and partial.source in ("", source_of(response))
            and (not validator or headers.get(field, if_missing) == validator))
    return length if fits else None


# ---- on the disk

@contextlib.contextmanager
def disk_errors(path: str) -> Iterator[None]:
    """Turn what the file system raises into an AsyncGetError, with curl's exit code."""
    try:
        yield
    except (OSError, ValueError) as error:  # the second: NUL, or what the locale lacks
        reason = getattr(error, "strerror", None) or error
        raise AsyncGetError(f"cannot write {printable(path)}: {reason}", exit_code=23) from error


def write_all(stream: Any, data: bytes | bytearray) -> None:
    """Write all of data to an unbuffered stream, so that a pipe's reader need not wait.

    The kernel may take a part of it, or, where a full pipe does not block, nothing: then
    `select` waits until there is room.
    """
    unwritten = memoryview(data)
    while unwritten:
        count = stream.write(unwritten)
        if count:
            unwritten = unwritten[count:]
        else:
            select.select([], [stream], [])


def part_of(path: str) -> str:
    """PATH.part, with a shorter name if that of its sidecar would be too long."""
    folder, name = os.path.split(path)
    if 245 < len(os.fsencode(name)) <= 255:  # bytes that a name may have; .part.meta has 10
        name = f"{name[:50]}.{zlib.crc32(os.fsencode(name)):08x}"
    return os.path.join(folder, name + ".part")


def open_ours(name: str, flags: int) -> int:
    """An `opener` for files that should be ours: follows no link, and does not wait at a pipe."""
    if sys.platform != "win32":
        flags |= os.O_NOFOLLOW | os.O_NONBLOCK
    return os.open(name, flags, 0o666)


def check_ours(file: IO[bytes]) -> int:
    """Raise OSError unless an open file is ours, and this its only name; return its size.

    Others who may write to the folder can guess the name, and put a link there, so that
    we write into another file of ours; or a file of theirs, which they can change afterwards.
    """
    found = os.fstat(file.fileno())
    theirs = sys.platform != "win32" and found.st_uid != os.geteuid()
    if theirs:  # some mounts show another owner than us: then also for a new file of ours
        from tempfile import TemporaryFile
        with TemporaryFile(dir=dirname(file.name) or ".") as ours:
            theirs = found.st_uid != os.fstat(ours.fileno()).st_uid
    if (not os.path.samestat(found, os.lstat(file.name))
            or theirs or found.st_nlink > 1 or not isfile(file.name)):
        raise OSError(f"{basename(file.name)} is a link, no plain file, or somebody else's")
    return found.st_size


def read_sidecar(part: str) -> Partial | None:
    """What is on the disk of a file; None unless its sidecar is ours and well-formed."""
    with contextlib.suppress(OSError), open(part + ".meta", "rb", opener=open_ours) as sidecar:
        check_ours(sidecar)
        match = re.fullmatch(_SIDECAR, sidecar.read(SIDECAR_BYTES).decode("latin-1"))
        if match:
            return Partial(getsize(part) if exists(part) else 0, *match.groups())
    return None


def is_plain(path: str) -> bool:
    """Whether there is a file, and not a link to one: a rename would leave its target alone."""
    return isfile(path) and not islink(path)


def check_target(path: str, overwrite: bool) -> None:
    """Raise OSError for a PATH that must not be replaced: a folder, a device, a write-protected
    file; without `overwrite`, any file.
    """
    if exists(path) and not isfile(path) or not basename(path):
        raise OSError("not the name of a file")
    if lexists(path) and not overwrite:
        raise OSError("it exists")
    if is_plain(path) and not os.access(path, os.W_OK):
        raise OSError("it is write-protected")


def check_part(part: str) -> None:
    """Raise OSError for a .part or a .part.meta that we have not made.

    Ours has a valid sidecar. Beside an empty .part any sidecar is allowed: a kill may have come
    before it was written, or in the middle.
    """
    used = getsize(part) if isfile(part) else lexists(part + ".meta")
    if used and read_sidecar(part) is None:
        raise OSError(f"{basename(part)} or its .meta is not of our making: "
                      "move it away, or choose another name")


def claim_part(file: io.FileIO, partial: Partial | None) -> None:
    """Lock an open .part; OSError if it is not ours, or not what `partial` says.

    The lock keeps other downloads off, and ends with our process.
    """
    busy: type[OSError] = BlockingIOError
    try:
        if sys.platform == "win32":
            import msvcrt
            busy = PermissionError
            file.seek(2**31 - 1)  # the byte that is locked; writing appends wherever this is
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except busy:
        raise OSError("another download is writing it") from None
    except OSError:  # a file system without locks
        pass
    # `partial` was read before the lock was ours: another download may have had the lock
    # meanwhile, and have added to the file, or renamed it.
    check_ours(file)
    if partial not in (None, read_sidecar(file.name)):
        raise OSError("another download has changed what there was")


def copy_rights(descriptor: int, path: str) -> None:
    """Let nobody read a .part, an open file, who may not read the PATH that it will replace.

    By its descriptor, since at its name others may have put a link to another file of ours.
    """
    if sys.platform == "win32" or not is_plain(path):
        return
    mode = os.stat(path).st_mode & 0o777
    if os.stat(descriptor).st_mode & 0o777 != mode:  # some mounts refuse any change
        os.chmod(descriptor, mode)
    if sys.platform == "linux":
        acl = "system.posix_acl_access"  # the group bits are just a mask of this list
        try:  # the old list is not removed first: without one, the mask is the group's rights
            os.setxattr(descriptor, acl, os.getxattr(path, acl))
        except OSError:
            with contextlib.suppress(OSError):
                os.removexattr(descriptor, acl)  # what the folder gives to new files


def write_sidecar(part: str, response: Response) -> None:
    """Write the sidecar of a .part, before the first byte of the response's body is in it.

    It has no validator if the rest of this body could not be asked for later.
    """
    whole = response.status_code == 200 and not is_coded(response)
    validator = strong_validator(response.headers) if whole else ""
    with open(part + ".meta", "ab", opener=open_ours) as sidecar:
        check_ours(sidecar)
        sidecar.truncate(0)
        sidecar.write(f"{validator}\n{body_length(response)}\n{source_of(response)}\n".encode())


def sync(file: io.FileIO) -> None:
    """Wait until all that was written is on the disk, if the file system can do that.

    Otherwise a power cut could leave a PATH whose bytes never got there.
    """
    try:
        os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in _CANNOT:
            file.truncate(0)  # some of it is lost, and the next fsync would not say so again
            raise


def publish_part(file: IO[bytes], path: str, size: int, overwrite: bool) -> None:
    """Rename a .part to PATH, if it is still the file that we have written.

    Without `overwrite` os.link does it: a rename would replace a file that has come meanwhile.
    """
    part = file.name
    if check_ours(file) != size:
        raise OSError("its .part was changed by somebody else meanwhile")
    if sys.platform == "win32":
        file.close()  # Windows cannot rename an open file
    elif is_plain(path):
        old = os.stat(path)
        for owner in ((-1, old.st_gid), (old.st_uid, -1)):
            with contextlib.suppress(OSError):  # a service's file stays its own if root renews it
                os.chown(file.fileno(), *owner)
    try:
        if overwrite:
            os.replace(part, path)
        else:
            os.link(part, path)
            os.unlink(part)
    except OSError as error:
        check_target(path, overwrite)  # something may be there by now: this says so
        if overwrite and (islink(path) or error.errno not in _CANNOT):
            raise
        # Perhaps the file system just has no links. Or PATH is a mount of one file, as in
        # containers, or somebody else's, in a folder like /tmp: then this copies.
        from shutil import copyfile, move
        move(part, path, copyfile)
    with contextlib.suppress(OSError):  # harmless; on Windows a virus scanner may hold it
        os.unlink(part + ".meta")


# ---- from the wire to the disk

FilePath = Union[str, "os.PathLike[str]"]
PathRule = Callable[[Response], FilePath]


async def inform(listener: Callable[..., object] | None, *facts: object) -> None:
    """Call a function of the caller's, if there is one; await what it returns, if one can."""
    outcome = listener(*facts) if listener else None
    if isinstance(outcome, Awaitable):
        await outcome


class Download(Call):
    """One call of `download`. Call.run (section 12) calls first_request and finish in each try."""

    default_deadline = _FOREVER
    partial: Partial | None  # what is on the disk, if this try asks for the rest of it
    asked_rest = False     # whether any try has done so
    ranged: bool           # the caller's own headers ask for a range: then that is the file
    size = 0               # of the file so far
    file: Any = io.BytesIO()  # what `write` writes to: PATH.part, once that is open
    in_place = False       # without a .part, and in any coding: see Transfer (section 20)
    validator = ""         # of what was written in place

    def __init__(self, session: Session, url: str, settled: Settled,
                 path: FilePath | PathRule) -> None:
        super().__init__(session, url, settled)
        self.resume, self.overwrite = settled["resume"], settled["overwrite"]
        self.progress = settled["progress"]
        self.path: Any = path if callable(path) else os.fsdecode(path)

    def look(self) -> Partial | None:
        """What is on the disk to go on from, if we know the name."""
        if callable(self.path):
            return None
        with disk_errors(self.path):
            check_target(self.path, self.overwrite)
            partial = read_sidecar(part_of(self.path))
        useful = partial and partial.size and partial.validator and self.resume and not self.ranged
        return partial if useful else None

    def first_request(self) -> Request:
        """The request for the rest of a file, or for all of it if nothing is there to go on from.

        If-Range makes the server send all of it if it has changed. No coding is asked for (but for
        one in headers= with decode=False): a range would be of coded bytes, and coding a file
        twice need not give the same bytes.
        """
        request = super().first_request()
        self.ranged = "range" in Headers(request.fields)
        self.partial = self.look()
        self.size = self.partial.size if self.partial else 0
        if not self.in_place and (self.settings["decode"] or OUR_CODINGS in request.fields):
            request = request.adding("Accept-Encoding", "identity")
        if self.partial:
            self.asked_rest = True
            request = request.adding("Range", f"bytes={self.size}-")
            if self.partial.validator:
                request = request.adding("If-Range", self.partial.validator)
        return request

    async def finish(self, response: Response) -> None:
        """Save the body of a response; if it is a rest that does not fit, ask for all (Anew)."""
        await inform(self.settings["on_response"], response)
        if callable(self.path):
            self.path = os.fsdecode(self.path(response))
        leave_own_coding(response, self.path)
        status, expected = response.status_code, body_length(response)
        no_file = status >= 300 or status in (204, 205)
        if self.partial and (status in (206, 416) or status < 300 and self.in_place):
            rest = length_of_rest(response, self.partial)
            if rest is None:  # what is there stays until a 200 comes
                response.close()
                self.resume = False
                raise Anew
            expected = self.size + rest
            if not rest:  # the page of a 416 must not hold the connection
                await discard(response)
        elif (status == 206 and not (self.ranged or self.in_place)  # a piece nobody has asked for
                or no_file and (self.asked_rest or not self.settings["any_status"])):
            raise StatusError(f"{status} for {response.url}: this is not the file")
        else:
            # This begins at the start: it replaces what is there, if anything.
            self.partial, self.size = None, 0
        self.resume = True  # for a next try: our bytes fit, or this response wrote them
        if self.in_place and not (self.partial and self.partial.validator):
            self.validator = strong_validator(response.headers)
        async with self.saving(response):
            await inform(self.progress, self.size, expected)
            if self.size != expected:  # else there is nothing to read: this was a 416, say
                # The loop stands still while a piece is written: usually 256 KiB, which the
                # kernel takes in 0.1 ms. A thread for each would cost more.
                async for piece in response.iter_bytes():
                    self.write(piece)
                    self.size += len(piece)
                    await inform(self.progress, self.size, expected)

    def write(self, data: bytes) -> None:
        """Write a piece of the body."""
        with disk_errors(self.path):
            write_all(self.file, data)

    @contextlib.asynccontextmanager
    async def saving(self, response: Response) -> AsyncIterator[None]:
        """Open PATH.part, to go on after our bytes or anew; when it is whole, publish it."""
        if self.in_place:
            yield
            return
        path = self.path
        # Unbuffered: what has arrived is with the kernel at once, so that a kill loses none of it.
        with disk_errors(path):
            check_target(path, self.overwrite)
            part = part_of(path)
            check_part(part)  # only now: a 304, say, writes nothing
            self.file = file = open(part, "ab", buffering=0, opener=open_ours)
        try:
            with disk_errors(path):
                claim_part(file, self.partial)
                copy_rights(file.fileno(), path)
                if self.partial is None and getsize(part):
                    # Of an empty one, too, it would make ext4 write all that comes out in `close`,
                    # while the loop stands still.
                    file.truncate(0)
                if self.partial is None:
                    write_sidecar(part, response)
            yield  # outside of disk_errors: what `progress` raises is not a disk error
            with disk_errors(path):
                # In a thread, as the disk may need seconds for a GiB.
                await asyncio.wrap_future(in_thread(sync, file))
                publish_part(file, path, self.size, self.overwrite)
        finally:
            with contextlib.suppress(OSError):  # network file systems report errors here, too
                file.close()


@spelled_out
async def download(url: str, path: FilePath | PathRule,
                   **settings: Unpack[LoneDownloadSettings]) -> Response:
    """GET a URL into a file, with a session of its own: see Session.download."""
    options: dict[str, Any] = {**settings}
    names = SessionSettings.__annotations__.keys() & options
    async with Session(**{name: options.pop(name) for name in names}) as session:
        return await session.download(url, path, **options)


# ==== 18. Timeline ============================================================
# Where the time went, drawn to scale: a row for each request, all on one clock. Where bars overlap
# in time, the requests were waited for together, which is all that asyncio gains. Left out: name
# look-up and TLS as phases: a response has one moment for the end of both, `connected`.

class Bar(NamedTuple):
    """One row of the drawing: moments in seconds, on a clock that all rows share."""

    label: str
    started: float
    connected: float
    head: float
    done: float
    reused: bool = False
    size: int = 0


def response_bars(response: Response) -> Iterator[Bar]:
    """The bars of a response and of the redirects that led to it, each after the other."""
    begun = response.started
    for hop in (*response.history, response):
        moments = [begun, *(hop.started + seconds for seconds in hop.timing[:4])]
        # A step that never came is 0 in `timing`: max gives it the moment of the step before.
        _, connected, _, head, done = itertools.accumulate(moments, max)
        yield Bar(f"{hop.status_code} {hop.url.partition('://')[2]}", begun, connected, head, done,
                  hop.timing.reused, hop.received)
        begun = done


def render_size(count: float) -> str:
    """A number of bytes in eight columns or less; in nine, if it rounds to 1000.0.

    >>> render_size(80), render_size(1536), render_size(3 * 10**9)
    ('80 B', '1.5 kB', '3.0 GB')
    """
    if count < 1000:
        return f"{count:.0f} B"
    power = min(4, (len(f"{count:.0f}") - 1) // 3)
    return f"{count / 1000**power:.1f} {' kMGT'[power]}B"


def render_timeline(bars: Sequence[Bar], width: int = 80) -> str:
    """Draw requests over time, and say what they would have cost one after another.

    >>> print(render_timeline([
    ...     Bar("200 h/slow", 0.0, 0.1, 0.9, 1.0, size=1536),
    ...     Bar("200 h/next", 0.2, 0.2, 0.5, 0.6, reused=True, size=80)], width=60))
    200 h/slow |==.......................### |   1.5 kB   1.00 s
    200 h/next |     >........##             |     80 B   0.40 s
    = connect   . wait   # receive   > on a kept connection
    1.00 s in all; one after another 1.40 s
    """
    first, last = min(bar.started for bar in bars), max(bar.done for bar in bars)
    width = max(width, 40) - 21  # for borders, size and time
    label_width = min(max(len(bar.label) for bar in bars), width // 2)
    columns = width - label_width
    scale = (columns - 1) / ((last - first) or 1.0)
    rows = []
    for bar in bars:
        started, connected, head, done = (int((moment - first) * scale) for moment in bar[1:5])
        drawing = ("=" * (connected - started) + "." * (head - connected) + "#" * (done - head)
                   or "#")  # too short for the scale, yet it took place
        if bar.reused:
            drawing = ">" + drawing[1:]
        label = bar.label
        if len(label) > label_width:  # the status, and the end of the URL
            label = label[:4] + "..." + label[7 - label_width:]
        rows.append(f"{label:{label_width}} |{' ' * started + drawing:{columns}}| "
                    f"{render_size(bar.size):>8} {bar.done - bar.started:6.2f} s")
    in_a_row = sum(bar.done - bar.started for bar in bars)
    return "\n".join([*rows, "= connect   . wait   # receive   > on a kept connection",
                      f"{last - first:.2f} s in all; one after another {in_a_row:.2f} s"])


# ==== 19. Demo server =========================================================
# The same bytes, seen from the other side. A server is a loop, too: it reads a head and
# writes one. Then the demo, which shows with this server, at an address that only this
# machine reaches, what asyncio is for. Left out: limits on time and size, which a server
# for strangers needs.

DEMO_PAGES = {  # what goes over the wire, to the byte
    "length": b"HTTP/1.1 200 OK\r\nContent-Length: 22\r\n\r\nI end after 22 bytes.\n",
    "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
               b"6\r\nI end \r\n19\r\nwith a chunk of 0 bytes.\n\r\n0\r\n\r\n",
    "close": b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nI end when I hang up.\n",
    "delay": b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nI thought about it.\n",
    "redirect": b"HTTP/1.1 302 Found\r\nLocation: /length\r\nContent-Length: 0\r\n\r\n",
    "users": b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 24\r\n\r\n"
             b'{"id": 7, "name": "Ada"}',
}


async def serve_demo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer one GET after another on a connection; /delay/N thinks for N seconds first."""
    name = ""
    # IndexError comes from a first line without a blank, ValueError from /delay/soon,
    # LimitOverrunError from a head of over 64 KiB, and the cancellation from the end of the
    # program, where asyncio would print it.
    with contextlib.closing(writer), contextlib.suppress(
            OSError, EOFError, IndexError, ValueError, asyncio.LimitOverrunError,
            asyncio.CancelledError):
        while name != "close":
            request = await reader.readuntil(b"\r\n\r\n")
            name, _, seconds = request.split(b" ", 2)[1].decode().strip("/").partition("/")
            if name == "delay":
                await asyncio.sleep(float(seconds))
            writer.write(DEMO_PAGES.get(
                name, b"HTTP/1.1 404 Not Found\r\nContent-Length: 14\r\n\r\nNo such page.\n"))


def add_two_numbers(first: int, second: int) -> int:
    """Stands for the rest of a program: ordinary functions, without async and await."""
    return first + second


async def count_seconds() -> None:
    """Count aloud, once a second, until somebody cancels."""
    for second in itertools.count(1):
        await asyncio.sleep(1)
        print(f"   {second} s ... still waiting, still counting")


async def demo(port: str = "") -> None:
    """Show in seven seconds what asyncio is for, with a server; given a port, only serve there."""
    try:
        server = await asyncio.start_server(serve_demo, "127.0.0.1", port)
    except (OSError, ValueError, OverflowError) as error:
        raise AsyncGetError(f"--demo takes a port that is free: {error}") from None
    origin = "http://{}:{}".format(*server.sockets[0].getsockname())
    drawings = ["\nWhat 2 and 3 looked like, to scale"]
    async with server, Session(base_url=origin, trust_env=False) as session:
        print(f"A small server answers on {origin}; nothing leaves this machine.")
        if port:
            print("Its pages:", *DEMO_PAGES, "(/delay/3 takes 3 seconds); Ctrl-C ends it.")
            await server.serve_forever()
        print("\n1. One slow page, and a counter that runs while we wait for it")
        counter = asyncio.create_task(count_seconds())
        response = await session.get("/delay/3.2")
        counter.cancel()
        print(f"   {response.status_code} {response.reason}: {response.text.strip()}")
        for title, limit in (("2. Ten pages of 0.3 s each, gathered: one wait for all of them", 10),
                             ("3. The same ten in a row: ten waits", 1)):
            print("\n" + title)
            pages = await session.get_all(["/delay/0.3"] * 10, limit=limit)
            drawn = render_timeline([bar for page in pages for bar in response_bars(page)])
            drawings.append(f"{title}\n{drawn}")
            print("   " + drawn.splitlines()[-1])
        print("\n4. Where does a body end? The server tells, in one of three ways")
        for url in ("/length", "/chunked", "/close"):
            response = await session.get(url)
            print(f"   {response.raw_head.splitlines()[1].decode():28} {response.text.strip()}")
    print("\n5. Then the next line of the program runs, an ordinary function")
    print(f"   add_two_numbers(2, 3) = {add_two_numbers(2, 3)}")
    print(*drawings, sep="\n\n")


# ==== 20. Command line ========================================================
# curl's flags and exit codes, so that hands and scripts know them. In this order: the
# flags and their values; the settings that they become; names of files, and how these are
# written; one URL, from its request to its report; and the run: all URLs at once, printed
# in the order given. Left out: what needs another method than GET, and curl's config files.

HELD_BYTES = 1_048_576   # of a body that waits for its turn on stdout; 50 at once hold 50 MiB
REDRAW_SECONDS = 0.1     # between two states of the progress line; a Ctrl-C may wait as long
SILENCE_SECONDS = 30.0   # without a byte, then we give up; as `timeout`
MAX_GLOB = 100_000       # URLs that one argument may stand for: all are made before one is sent
SECRET_NAMES = (  # of fields whose values are secrets
    r"(?i)(proxy-)?authentication-info$|(set-)?cookie2?$|.*(auth(orization)?$|token|secret|jwt"
    r"|passw(or)?d|pwd$|credential"
    r"|(api|auth|access|functions|master|private|subscription|signature)[-_]?key)")
WIPE = "\r\x1b[K"  # takes the progress line off a terminal
BINARY = "binary output could upset the terminal; use -o FILE, or -o - to see it all the same"
# A line is a flag's definition as well as its help: `known_flags` reads FLAGS and MORE_FLAGS. The
# word in capitals is the kind of its value, as in VALUES; after three dots, all values of the flag
# count, not just the last. A line that begins with three spaces says what to do without that flag.
FLAGS = """\
usage: asyncget [flags] URL...      (--help all: the other flags)

  -A --user-agent NAME        call yourself NAME
  -H --header LINE...         "Name: value"; "Name:" removes, "Name;" is empty; @FILE
  -b --cookie DATA...         "a=1; b=2", or a cookie file to read
  -c --cookie-jar FILE        write all cookies to it at the end
  -u --user NAME:PASSWORD     log in (Basic); a password left out is asked for
  --oauth2-bearer TOKEN       log in (Bearer)
  -n --netrc                  log in with what ~/.netrc has for the host
  -r --range RANGE            a part only: 0-499, or -500 for the last
  -L --location               follow redirects (on; --no-location: not)
  --compressed                ask for compressed bodies and unpack them (on)
  -x --proxy URL              http://, https://, socks5:// or socks5h://
  --noproxy HOSTS             go straight to these: a,b.c; * is all
  -k --insecure               trust any server
  --cacert FILE               trust these authorities
  -E --cert FILE:PASSWORD     client certificate, and its password if it has one
  --key FILE                  and its key
  -m --max-time SECONDS       for the whole of one try
  --connect-timeout SECONDS   to connect
  --retry NUMBER              further tries, where they may help
  -o --output FILE...         one for each URL; - is stdout; #1 is what {a,b} put in
  -O --remote-name            name the file as the URL does
  -J --remote-header-name     with -O: as the server says; never overwrites
  --output-dir FOLDER         for -o and -O
  --create-dirs               make folders that are missing
  -C --continue-at POSITION   -C - goes on where the last run stopped
  -i --include                the heads, too
  -I --head                   the heads alone: hang up after them
  -D --dump-header FILE       write the heads there
  -f --fail                   for a status of 400 or above: no body, exit code 22
  -s --silent                 no progress, no errors
  -S --show-error             with -s: errors all the same
  -v --verbose                the wire: > sent, < received, * notes
  -w --write-out TEXT         a report at the end: %{http_code} %{time_total} %{json}
  --url TARGET...             one more; @FILE or @- has one per line, saved as by -O
  --waterfall                 draw the requests over time
  --demo                      asyncio in seven seconds; PORT: just its server
  -V --version
  -h --help
"""
MORE_FLAGS = """\
request
  -e --referer LINK           say where the link was
  --netrc-file FILE           as --netrc, from another file
  --netrc-optional            as --netrc
  -G --get                    put the data into the URL
  -d --data TEXT...           with -G: data as it is, or @FILE
  --data-ascii TEXT...        the same
  --data-binary CONTENT...    the same, with its line ends
  --data-raw STRING...        the same, with @ taken literally
  --data-urlencode FIELD...   with -G, encoded: TEXT, NAME=TEXT, @FILE, NAME@FILE
  --url-query QUERY...        the same without -G; +TEXT is taken as it is
  -X --request GET            it is the only method
  -z --time-cond TIME         only if newer than a date or a file; -TIME: older
  --etag-save FILE            write the ETag there
  --etag-compare FILE         only if the ETag differs from the one there
  -g --globoff                {a,b} and [1-9] are taken literally
redirects
  --max-redirs LIMIT          at most this many (50); -1 for any number
  --location-trusted          with the password to any host they lead to
  --proto LIST                schemes that may be used: =https
  --proto-redir LIST          the same for redirects
network
  -U --proxy-user USER:PASSWORD  log in at the proxy
  --socks5 HOST               a SOCKS5 proxy
  --socks5-hostname HOST      the same; it resolves names, too
  --resolve HOST:PORT:ADDRESS...  the address of a host, or several
  --connect-to HOST1:PORT1:HOST2:PORT2...  where to connect instead
  --unix-socket FILE          connect there
  -4 --ipv4                   over IPv4 only
  -6 --ipv6                   over IPv6 only
TLS
  --capath FOLDER             trust the authorities in it
  --tlsv1.2                   version 1.2 at least
  --tlsv1.3                   version 1.3 at least
time
  -y --speed-time SECONDS     the longest silence (30, or -m if longer); 0: no limit
  -Y --speed-limit BYTES      at least this many a second, over that time
  --limit-rate BYTES          at most this many a second
  --rate NUMBER/UNIT          at most this many to one host: 10/s, 30/m
  --retry-delay SECONDS       between two tries
  --retry-max-time SECONDS    no try begins later than that
  --retry-all-errors          whatever the error
  --retry-connrefused         (on)
output
  --remote-name-all           -O for each URL
  --out-null                  throw it away; counts as an -o
  --no-clobber                write FILE.1 rather than overwrite FILE
  -R --remote-time            give the file the server's date
  --remove-on-error           (on: what broke off is FILE.part; not with -i, -I)
  --max-filesize BYTES        no more than this (1k, 2M, 3G)
  --fail-with-body            as -f, with the body
  -# --progress-bar           the progress line, as always
  --no-progress-meter         no progress line
many
  -Z --parallel               all URLs at once (on)
  --parallel-max NUMBER       at most this many at once (50)
  --fail-early                end at the first failure
accepted, but not needed
  -N --no-buffer
  -q --disable
  -l --list-only
  --http1.1
  --http2
  --basic
  --keepalive
  --keepalive-time SECONDS
  --tcp-nodelay
  --tcp-fastopen
  --alpn
  --sessionid
  --ssl-no-revoke
  --cert-type PEM
  --key-type PEM
  --styled-output
  --happy-eyeballs-timeout-ms NUMBER
  --parallel-immediate
  -1 --tlsv1
  --tlsv1.0
  --tlsv1.1
curl's, but not here
   -K --config                write the flags on the command line
   --interface                the system's routes decide
   --stderr                   the shell does it: 2>FILE
   --trace --trace-ascii      -v shows the wire
   --ciphers --tls13-ciphers --tls-max  OpenSSL's settings decide
   --pass                     -E FILE:PASSWORD
   --proxy-insecure --proxy-cacert  --cacert is for a proxy, too; -k is not
   --path-as-is               dot segments are removed, as in browsers
   -F --form -T --upload-file --json  GET is the only method
   -: --next                  all flags are for all URLs
   -O- -qO-                   wget's; here stdout is the default
   -P -t --no-check-certificate --spider  wget's; here --output-dir, --retry, -k, -I
   -0 --http1.0 --http2-prior-knowledge --http3  HTTP/1.1 is spoken
   --digest --ntlm --negotiate --anyauth  -u is Basic, --oauth2-bearer is Bearer
"""
Options = types.SimpleNamespace  # an attribute for each flag


# ---- what a value may be

def read_lines(name: str) -> list[str]:
    """The lines of read_text(name), without blanks around; no empty ones, no comments (#)."""
    return re.findall(r"(?m)^[^\S\n]*([^#\s](?:.*\S)?)", read_text(name))


def encode_data(text: str) -> str:
    """A value of --data-urlencode in any of its forms, its content percent-encoded.

    >>> encode_data("a b"), encode_data("=a&b"), encode_data("n=a=b"), encode_data("é")
    ('a+b', 'a%26b', 'n=a%3Db', '%C3%A9')
    """
    from urllib.parse import quote_plus
    name, mark, content = text.partition("=" if "=" in text else "@")
    if mark == "@":
        content = read_text(content)
    elif not mark:
        name, content = "", text
    return (name and name + "=") + quote_plus(content, errors="surrogateescape")


def header_fields(at_sign: str, text: str) -> Iterator[tuple[str, str | None]]:
    """The headers of one -H, or those in its file, read as curl does; None removes one.

    >>> [*header_fields("", "X: 1"), *header_fields("", "Accept:"), *header_fields("", "X;")]
    [('X', '1'), ('Accept', None), ('X', '')]
    """
    for line in read_lines(text) if at_sign else [text]:
        name, colon, value = line.partition(":")
        if colon:
            yield name, value.strip() or None
        elif line.endswith(";"):
            yield line[:-1], ""
        elif line and ";" not in line:
            raise AsyncGetError("-H needs a colon")  # not shown: it may be a secret, or a file's


def condition(minus: str, text: str) -> dict[str, str | None]:
    """The header for -z: newer than a date, or than a file; with "-" before it, not newer.

    >>> condition("", "1 Jan 2020"), condition("-", "2 Jan 2020 01:00:00 +0100")
    ... # doctest: +NORMALIZE_WHITESPACE
    ({'If-Modified-Since': 'Wed, 01 Jan 2020 00:00:00 GMT'},
     {'If-Unmodified-Since': 'Thu, 02 Jan 2020 00:00:00 GMT'})
    >>> condition("", "no file yet")
    {}
    """
    from email.utils import formatdate, mktime_tz, parsedate_tz
    name = "If-Unmodified-Since" if minus else "If-Modified-Since"
    with contextlib.suppress(ValueError, OverflowError, OSError):  # in a year that no calendar has
        if exists(text):
            text = formatdate(getmtime(text))
        date = (parsedate_tz(text) or parsedate_tz(text + " GMT")
                or parsedate_tz(text + " 00:00:00 GMT"))
        # parsedate_tz takes other names (IST, PM) for UTC, "2026 Jan 5" for the year 2010. Then the
        # file is asked for without a date.
        if date and date[2] < 32 and not re.search(
                r"(?i):\d\d +(?!GMT|UTC?|Z|[AECMP][SD]T)[A-Z]", text):
            return {name: formatdate(mktime_tz(date), usegmt=True)}
    return {}


def credentials(user: str, colon: str, password: str) -> tuple[str, str]:
    """-u as a pair; a password left out is asked for, where somebody can answer."""
    if not colon:
        if not sys.stdin.isatty():
            raise AsyncGetError("-u has no password, and nobody is there to ask; write NAME:")
        from getpass import getpass
        password = getpass(f"Password of {printable(user)}: ", sys.stderr)
    return user, password


# For each kind of value, the pattern of its text, and what makes a value from the pattern's groups,
# or raises ValueError. A kind that is not here is any text, as it is.
VALUES: dict[str, Any] = {
    "SECONDS": (r"([0-9]*\.?[0-9]+)", float),
    "NUMBER": ("([0-9]{1,18})", int),
    "LIMIT": ("(-1|[0-9]{1,18})", int),
    "BYTES": (r"([0-9]{1,18}(?:\.[0-9]+)?)([bBkKmMgG]?)",
              lambda number, unit: int(float(number) * 1024 ** "bkmg".index(unit.lower()))),
    "NUMBER/UNIT": (  # as requests a second; without a unit, an hour, as in curl
        "([1-9][0-9]{,9})(?:/([1-9][0-9]{,9})?([smhd]))?", lambda number, units, unit:
        int(number) / int(units or 1) / {"s": 1, "m": 60, "d": 86400}.get(unit, 3600)),
    "RANGE": ("(?=.)([0-9]*)(.*)", lambda first, rest: f"bytes={first}{rest or '-'}"),
    "POSITION": ("(-|[0-9]{1,18})", str),
    "GET": ("(GET)", str),
    "LINK": ("(?s)(.*?)(?:;auto.*)?", str),  # ;auto asks to follow, as we do
    "PEM": ("(?i)(PEM)", str),
    "FILE": ("(?s)(.+)", str),
    "TEXT": ("(?s)(@?)(.*)", lambda at_sign, text:
             re.sub("[\r\n]", "", read_text(text)) if at_sign else text),
    "CONTENT": ("(?s)(@?)(.*)", lambda at_sign, text: read_text(text) if at_sign else text),
    "FIELD": ("(?s)(.*)", encode_data),
    "TARGET": ("(?s)(@?)(.*)", lambda at_sign, text: read_lines(text) if at_sign else text),
    "LINE": ("(?s)(@?)(.*)", header_fields),
    "NAME:PASSWORD": ("(?s)([^:]*)(:?)(.*)", credentials),
    "FILE:PASSWORD": (  # the file may begin with a Windows drive
        r"(?s)((?:[A-Za-z]:(?=[\\/]))?[^:]+):?(.*)", lambda *parts: parts),
    "TIME": ("(?s)(-?)(.*)", condition),
    "QUERY": (r"(?s)(\+?)(.*)", lambda plus, text: text if plus else encode_data(text)),
    "HOST:PORT:ADDRESS": (  # -HOST:PORT takes back an earlier one: it has no address
        r"-(.+:[0-9]{1,5})|\+?((?:\[[^]]*\]|[^:]+):[0-9]{1,5}):(.+)", lambda gone, host, text:
        ((gone or host).lower(), ",".join(map(parse_address, re.findall(r"[^][,\s]+", text))))),
    "HOST1:PORT1:HOST2:PORT2": (
        r"(\[[^]]*\]|[^:]*):?([0-9]{,5}):?(\[[^]]*\]|[^:]*):?([0-9]{,5})", lambda *parts: parts),
}


class Flag(NamedTuple):
    """What one spelling of a flag means."""

    name: str        # of the attribute in Options
    value: str       # the kind of its value, "" if it has none
    repeats: bool
    on: bool = True  # what is stored if it has no value: False for --no-X


def known_flags() -> dict[str, Flag]:
    """The flag of each spelling; a flag --X without a value has a --no-X, too.

    >>> known_flags()["-m"]
    Flag(name='max_time', value='SECONDS', repeats=False, on=True)
    """
    flags = {}
    for short, name, data, value, dots in re.findall(
            r"(?m)^  (?:(-\S) )?(--(data)?\S+) ?([A-Z0-9:/]*)(\.\.\.)?", FLAGS + MORE_FLAGS):
        # All of --data-X share one name, so that their values stay in the order given.
        flag = Flag(data or re.sub("[-.]", "_", name[2:]), value, bool(dots))
        flags[short or name] = flags[name] = flag
        if not value:
            opposite = f"--no-{name[2:]}".replace("--no-no-", "--")
            flags[opposite] = flag._replace(on=False)
    return flags


def store_flag(options: Options, flag: Flag, text: str) -> None:
    """Put a flag into the options, after its earlier values or in their place."""
    value: Any = flag.on
    if flag.value:
        shape, make = VALUES.get(flag.value, ("(?s)(.*)", str))
        match = re.fullmatch(shape, text)
        try:
            if match is None:
                raise ValueError
            value = make(*match.groups(""))
        except ValueError:
            raise AsyncGetError(
                f"--{flag.name.replace('_', '-')} needs {flag.value}, "
                f"not {'***' if 'PASSWORD' in flag.value else text!r:.100}",
                exit_code=49 if "PORT" in flag.value else 2) from None
    if flag.repeats:
        getattr(options, flag.name).append(value)
    else:
        setattr(options, flag.name, value)
    outputs = {"remote_name": None, "out_null": os.devnull}
    if flag.name in outputs and flag.on:
        options.output.append(outputs[flag.name])  # of these and -o, the n-th is for the n-th URL


def parse_arguments(arguments: Sequence[str]) -> Options:
    """Turn arguments into options, an attribute for each flag.

    >>> options = parse_arguments(["--no-location", "-sSm5", "x.org/a", "-o", "f", "-O"])
    >>> options.location, options.silent, options.max_time, options.url, options.output
    (False, True, 5.0, ['x.org/a'], ['f', None])

    A value is taken as it is, even one that looks like a flag: -r -500 asks for the last
    500 bytes. argparse would refuse that; getopt would not, but it returns flags and bare URLs
    separately, and so loses the order of these and --url.
    """
    flags = known_flags()
    options = Options(max_redirs=50, time_cond={})
    for known in flags.values():
        vars(options).setdefault(known.name, [] if known.repeats else None)
    words = list(arguments)
    while words:
        word = words.pop(0)
        if word == "--":
            options.url += words
            break
        if word[:1] != "-" or word == "-":
            options.url.append(word)
            continue
        spelling, equals, stuck = word[:2], "", word[2:]
        if spelling == "--":
            spelling, equals, stuck = word.partition("=")
        flag = flags.get(spelling)
        if flag and not flag.value and stuck[:1] == "-":  # -sO- is not -s, -O and --
            flag, spelling = None, word
        if flag is None or equals and not flag.value:
            from difflib import get_close_matches
            hints = [line.strip() for line in MORE_FLAGS.splitlines() if spelling in line.split()]
            hints += [f"try {near}" for near in get_close_matches(spelling, flags, 1, 0.8)]
            hints.append("try --help all")
            raise AsyncGetError(f"there is no flag {spelling}{equals}; {hints[0]}")
        if equals or stuck:  # -ofile is -o file, and -sSf is -s -Sf
            words.insert(0, stuck if flag.value else "-" + stuck)
        if flag.value and not words:
            raise AsyncGetError(f"{spelling} needs a value: {flag.value}")
        store_flag(options, flag, words.pop(0) if flag.value else "")
    return options


def check_options(options: Options) -> None:
    """Refuse flags that cannot be meant together, before anything is sent."""
    if options.data and not options.get:
        raise AsyncGetError("data would make it a POST; with -G it goes into the URL")
    if options.remote_header_name and (options.include or options.continue_at):
        raise AsyncGetError("-J goes neither with -i, which would put heads into its file, nor "
                            "with -C, which has to know the name before the server tells it")
    if options.continue_at == "-" and (options.include or options.head):
        raise AsyncGetError("-C - goes on where a file ends: with -i or -I heads are in it, too")
    if len(options.url) > 1 and (options.etag_save or options.etag_compare):
        raise AsyncGetError("--etag-save and --etag-compare are for one URL")
    if options.continue_at and options.range:
        raise AsyncGetError("-C and -r both ask for a range")


# ---- flags to settings

def complete_url(text: str, added: Iterable[str] = ()) -> str:
    """The URL with the scheme that was left out, and what is added to its query.

    >>> complete_url("x.org/a#b", ["q=1+2"])
    'http://x.org/a?q=1+2#b'
    """
    url, hash_sign, fragment = text.partition("#")
    for query in filter(None, added):
        url += ("" if url[-1:] in ("?", "&") else "&" if "?" in url else "?") + query
    url = re.sub("(?i)^(https?:)/{1,3}(?=[^/])", r"\1//", url)  # as curl and browsers have it
    return re.sub("^(?![A-Za-z0-9+.-]+://)", "http://", url) + hash_sign + fragment


_GLOB = (r"(?<!\\)(\{[^{}]+\}|\[(?:[0-9]{1,18}-[0-9]{1,18}|[A-Za-z]-[A-Za-z])"
         r"(?::0*[1-9][0-9]{0,17})?\])")


def glob_values(pattern: str) -> Sequence[str]:
    """What a {list} or [range] stands for.

    >>> glob_values("{a,b}"), glob_values("[08-10]"), glob_values("[a-e:2]")
    (['a', 'b'], ['08', '09', '10'], ['a', 'c', 'e'])
    """
    if pattern[0] == "{":
        return pattern[1:-1].split(",")
    first, last, step, *_ = [*re.findall("[0-9A-Za-z]+", pattern), "1"]
    number_of, shape = (int, f"0{len(first)}") if first.isdigit() else (ord, "c")
    numbers = range(number_of(first), number_of(last) + 1, int(step))
    return [format(number, shape) for number in numbers[:MAX_GLOB + 1]]


def expand_glob(text: str) -> Iterator[tuple[str, dict[str, str]]]:
    """The URLs that one with {a,b} or [1-9] stands for, each with what was put in.

    >>> list(expand_glob("h/{a,b}[08-09:2]"))
    [('h/a08', {'#1': 'a', '#2': '08'}), ('h/b08', {'#1': 'b', '#2': '08'})]
    """
    pieces = re.split(_GLOB, text)
    choices = [*map(glob_values, pieces[1::2])]
    # Brackets that are no glob: [::1] as host, [] anywhere, and what stands after a backslash.
    literal = r"(([^/]*//)?\[[0-9A-Fa-f:.]*(%[^][{}]*)?\])?(\\[][{}]|[^][{}]|\[\])*"
    if (not 0 < math.prod(map(len, choices)) <= MAX_GLOB
            or not re.fullmatch(literal, " ".join(pieces[::2]))):
        raise AsyncGetError(f"not 1 to {MAX_GLOB} URLs, or a bracket or brace without its end: "
                            f"{masked(text)}; -g takes it as it is", exit_code=3)
    for values in itertools.product(*choices):
        pieces[1::2] = values
        url = re.sub(r"\\([][{}])", r"\1", "".join(pieces))
        yield url, {f"#{number}": value for number, value in enumerate(values, 1)}


def allows(text: str | None, scheme: str) -> bool:
    """Whether --proto allows a scheme: "=https" is that alone, "-http" all but it, "+http" it, too.

    >>> allows("=https", "http"), allows("-all,https", "https"), allows("http", "https")
    (False, True, True)
    """
    for entry in reversed((text or "").lower().split(",")):  # the last to mention it decides
        if entry.lstrip("=+-") in (scheme, "all"):
            return entry[0] != "-"
        if entry[:1] == "=":
            return False
    return True


# The Transfer (below) of the running task: the library tells `open_by_flags` a host and a port,
# but not which URL they are for.
TRANSFER: contextvars.ContextVar[Transfer] = contextvars.ContextVar("TRANSFER")


async def open_by_flags(host: str, port: int, **how: Any) -> Any:
    """asyncio.open_connection as -4, -6 and --connect-to want it; it times the look-up, for -w."""
    transfer = TRANSFER.get()
    options = transfer.options
    family = socket.AF_INET if options.ipv4 else 0
    if options.ipv6:
        family = socket.AF_INET6
    for old_host, old_port, new_host, new_port in options.connect_to:
        if old_host.lower() in ("", bracketed(host)) and old_port in ("", str(port)):
            host, port = new_host.strip("[]") or host, int(new_port or port)
            break
    began = time.monotonic()
    addresses = await look_up(host, family)
    transfer.looked_up = time.monotonic() - began
    return await open_first(",".join(addresses), port, **how)


def set_proxies(options: Options) -> None:
    """Set -x and --noproxy as environment variables: the library reads them for each origin."""
    proxy = options.proxy
    if options.socks5:
        proxy = f"socks5://{options.socks5}"
    if options.socks5_hostname:
        proxy = f"socks5h://{options.socks5_hostname}"
    if proxy is not None:
        os.environ.update(dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), proxy))
    noproxy = "*" if proxy == "" else options.noproxy  # "*": not the system's either
    if noproxy is not None:
        os.environ["no_proxy"] = noproxy


_CELL = r"[^\0-\x1f\x7f]*"
_COOKIE_LINE = (  # domain, below it too?, path, secure?, expires, name, value
    rf"(?im)^(#HttpOnly_)?\.?(?![\t#.])({_CELL})\t(?:(TRUE)|{_CELL})\t(?:(/{_CELL})|{_CELL})"
    rf"\t(?:(TRUE)|{_CELL})\t([0-9]{{0,18}}(?:\.[0-9]{{0,18}})?)\t({_CELL})(?:\t({_CELL}))?\r?$")


def parse_cookie_file(text: str) -> Iterator[Cookie]:
    r"""The cookies in a Netscape file, as curl reads it; other lines are skipped.

    >>> list(parse_cookie_file("#HttpOnly_.h.test\tTRUE\t/\tFALSE\t0\tid\t7"))
    ... # doctest: +NORMALIZE_WHITESPACE
    [Cookie(name='id', value='7', domain='h.test', path='/', host_only=False, secure=False,
            http_only=True, expires=None)]
    """
    for (http_only, domain, below, path, secure, expires, name,
         value) in re.findall(_COOKIE_LINE, text):
        cookie = Cookie(name, value, domain.lower(), path or "/", below == "", secure != "",
                        http_only != "", float(f"0{expires}") or None)  # 0 or "" is no end
        if (name or value) and keeps_prefix(cookie):
            yield cookie


def render_cookie_file(cookies: Iterable[Cookie], before: str = "") -> str:
    """A cookie file as curl writes it, with those that do not expire, too (as 0).

    Lines of `before`, the old file, that are not cookies are kept: comments, other programs' lines.
    """
    lines = ["# Netscape HTTP Cookie File", "# https://curl.se/docs/http-cookies.html", ""]
    lines += [line for line in re.split("\r?\n", before)
              if line not in lines and not list(parse_cookie_file(line))]
    for cookie in cookies:
        http_only = "#HttpOnly_" if cookie.http_only else ""
        dot, below = ("", "FALSE") if cookie.host_only else (".", "TRUE")
        secure, expires = str(cookie.secure).upper(), int(cookie.expires or 0)
        line = (f"{http_only}{dot}{cookie.domain}\t{below}\t{cookie.path}\t{secure}\t{expires}"
                f"\t{cookie.name}\t{cookie.value}")
        if list(parse_cookie_file(line)):  # else it has a tab, or only a home origin (section 15)
            lines.append(line)
    return "\n".join(lines) + "\n"


def open_jar(options: Options) -> Cookies | bool:
    """The cookie jar that -c or -b FILE asks for; without these there is none, as in curl."""
    names = [name for name in options.cookie if "=" not in name]
    jar = Cookies()
    for name in names:
        if name == "-" or exists(name):  # on a first run it may not exist yet
            for cookie in parse_cookie_file(read_text(name)):
                jar.add(cookie)
    return jar if names or options.cookie_jar else False


def open_session(options: Options) -> Session:
    """A Session as the flags say, except -H, which is each call's, and so wins."""
    headers = {
        "Referer": options.referer or None,
        "Cookie": "; ".join(text for text in options.cookie if "=" in text) or None,
        "Range": options.range,
        **options.time_cond,
    }
    if options.user_agent is not None:
        headers["User-Agent"] = options.user_agent or None
    if options.etag_compare and exists(options.etag_compare):
        headers["If-None-Match"] = read_text(options.etag_compare).strip() or '""'
    silence = options.speed_time
    if silence is None:
        silence = max(SILENCE_SECONDS, options.max_time or 0)
    netrc = options.netrc_file or (options.netrc or options.netrc_optional) and "~/.netrc"
    session = Session(
        headers=headers,
        cookies=open_jar(options),
        auth=options.oauth2_bearer or options.user,
        # That the file is missing is an error only if --netrc-file names it.
        netrc=netrc if options.netrc_file and not options.netrc_optional
        or netrc and exists(os.path.expanduser(netrc)) else False,
        timeout=silence or None,
        # Who asks -w for %{redirect_url}, where a redirect leads, does not want to go there.
        follow_redirects=options.location_trusted or "%{redirect_url}" not in str(options.write_out)
        if options.location is None else options.location,
        max_redirects=options.max_redirs if options.max_redirs >= 0 else None,
        redirect_schemes=[scheme for scheme in DEFAULTS["redirect_schemes"]
                          if allows(options.proto, scheme) and allows(options.proto_redir, scheme)],
        trust_redirects=bool(options.location_trusted),
        secret_headers=[name for name, _ in options.header if re.match(SECRET_NAMES, name)],
        verify=not options.insecure and (
            options.cacert or options.capath or os.getenv("CURL_CA_BUNDLE") or True),
        cert=options.cert and (options.cert[0], options.key, options.cert[1]),
        # -H Accept-Encoding wants the bytes as they come; a part of a gzip does not unpack; and -I
        # should show the file's own length.
        decode=(options.compressed or options.compressed is None and not options.head
                and not Headers(options.header).get_all("accept-encoding")
                ) and not options.range,
        unix_socket=options.unix_socket, resolve=dict(options.resolve),
        open_connection=open_by_flags, rate=options.rate, limit=options.parallel_max or 50,
    )
    session.connect_timeout = options.connect_timeout
    if options.proxy_user:
        from urllib.parse import quote
        # "%" stays: curl, too, takes it for percent-encoding here.
        session.proxy_userinfo = quote(os.fsencode(options.proxy_user), safe=":%")
    session.tls_version = (options.tlsv1_3 and ssl.TLSVersion.TLSv1_3
                           or options.tlsv1_2 and ssl.TLSVersion.TLSv1_2 or None)
    return session


# ---- files

def safe_name(name: str, typed: bool) -> str:
    """The name, if it names a file in this very folder; `typed`: by the user, not by a server."""
    strange = r"(?i)\.{0,2}$"
    if not typed:  # no server may make a hidden file, a sidecar that we trust later,
        # or a module, types.py say, that the next `python -m asyncget` here would execute
        strange += r"|\.|.*\.(part(\.meta)?|py[cdw]?|so)$"
    if os.name == "nt":  # Windows' drives, streams and devices, and endings that it drops
        strange += r'|.*[:*?"<>|]|.*[. ]$|(con|prn|aux|nul|(com|lpt)[\d¹²³]|con(in|out)\$) *(\.|$)'
    with contextlib.suppress(UnicodeError):  # the locale has no such letters
        if name.isprintable() and not re.match(strange, name) and len(os.fsencode(name)) < 256:
            return name
    raise AsyncGetError(f"not a safe file name: {name!r:.80}; use -o", exit_code=23)


def name_from_url(url: str) -> str:
    """The file name for -O: the end of the URL's path, as it was typed.

    >>> [name_from_url(f"http://h.test{path}") for path in ("/a/b.txt?q", "/a/", "")]
    ['b.txt', 'a', 'curl_response']

    The last two are what curl does from 8.10 on; before, it refused.
    """
    parts = re.findall(r"[^/\\]+", re.split("[?#]", url)[0])[2:]  # after the scheme and the host
    return safe_name(["curl_response", *parts][-1], typed=True)


def name_from_header(disposition: str) -> str | None:
    r"""The file name for -J: what Content-Disposition says (RFC 6266 4.3), None for nothing.

    >>> name_from_header("attachment; filename=a; filename*=UTF-8''na%C3%AFve")
    'naïve'
    >>> name_from_header(r'attachment; filename="C:\temp\..%2Fa%20b"')
    'a b'

    It is decoded first and then cut to its last part, so that %2F leads to no other folder.
    """
    from urllib.parse import unquote
    found = {name.strip().lower(): value.strip() for name, value in re.findall(
        r';([^;=]*)=\s*("(?:[^"\\]|\\.)*"?|[^;]*)', ";" + disposition)}
    coded = re.fullmatch("(?i)utf-8'[^']*'(.*)", found.get("filename*", ""))
    name = coded[1] if coded else found.get("filename")
    if name is None:
        return None
    name = re.sub(r"\\([\"\\])", r"\1", name.strip('"'))
    with contextlib.suppress(UnicodeError):  # many send UTF-8 where Latin-1 is due
        name = name.encode("latin-1").decode()
    return safe_name(re.split(r"[/\\]", unquote(name))[-1], typed=False)


def written_in_place(path: str) -> bool:
    """Whether a path must be written in place: a device, a pipe or a descriptor, which a rename
    would replace; or a file in a folder where we cannot make a .part.
    """
    return exists(path) and (
        bool(re.match("/dev(/fd)?$|/proc/", realpath(dirname(path))))
        or not isfile(path)
        or not os.access(dirname(realpath(path)), os.W_OK))


def fit_for(stream: Any, data: bytes) -> bytes:
    """What a server sent, fit for a stream: on a terminal, control characters are made harmless."""
    if not stream.isatty():
        return data
    text = data.decode("utf-8", "backslashreplace").replace("\r\n", "\n")
    return re.sub(r"[^\t\n]+", lambda part: printable(part[0]), text).encode()


def write_named(name: str, data: bytes | bytearray, mode: str = "wb", fit: bool = False) -> None:
    """Write to a file that a flag names, `fit` for it; for "-" to stdout, past Python's buffer."""
    shown, file = ("stdout", sys.stdout.fileno()) if name == "-" else (name, name)
    with disk_errors(shown), open(file, mode, 0, closefd=name != "-") as stream:
        write_all(stream, fit_for(stream, bytes(data)) if fit else data)


def save_jar(jar: Cookies, name: str) -> None:
    """Write the cookies for -c, readable by nobody else; an old file stays until all is written."""
    before = read_text(name) if name != "-" and isfile(name) else ""
    data = render_cookie_file(jar, before).encode("utf-8", "surrogateescape")
    if name == "-" or written_in_place(name):
        write_named(name, data, fit=True)
        return
    from tempfile import NamedTemporaryFile, TemporaryDirectory
    path = realpath(name)
    with TemporaryDirectory(dir=dirname(path), prefix=".asyncget-") as folder, NamedTemporaryFile(
            dir=folder, buffering=0, delete=False) as file:  # its owner's alone
        write_all(file, data)
        publish_part(file, path, len(data), overwrite=True)


# ---- one URL

def without_userinfo(text: str) -> str:
    """A URL as it was typed, without user and password; if it is not one, nothing before "@".

    >>> without_userinfo("http://me:pw@h/@b"), without_userinfo("http://me:p/w@h/")
    ('http://h/@b', 'http://***@h/')
    """
    try:
        userinfo = parse_url(text).userinfo
    except InvalidURL:
        return masked(text)[1:-1]
    return text.replace(f"://{userinfo}@", "://", 1)


# One field of a head, for -v, which shows it without secrets.
_FIELD = r"(?m)^([^\s:]+)[ \t]*:([^\r\n]*(?:\r?\n[ \t][^\r\n]*)*)"


def mask_field(match: re.Match[str]) -> str:
    """A field as -v shows it: no secrets, and no user and password in a Location."""
    name, value = match.groups()
    if re.match(SECRET_NAMES, name):
        return f"{name}: ***"
    userinfo = r"([/\\])[^/\\\s?#<>@]*@"
    if name.lower() == "location":  # a password in it may have any character, even a slash
        userinfo = r"(?s)^([^/\\]*[/\\]{1,2}).*@"
    return f"{name}:" + re.sub(userinfo, r"\1***@", value)


class Enough(Exception):
    """Ends the run early: a URL has failed with --fail-early, and is reported; or all that is left
    would go into a closed pipe.
    """


# Stands for the response if none has come: -w needs its attributes. In its timing `reused` is
# True, so that -w counts no connection for it.
NO_RESPONSE: Any = types.SimpleNamespace(
    started=0.0, history=[], timing=Timing(0.0, 0.0, 0.0, 0.0, True), addresses=(None, None),
    proxied=False, raw_head=b"", status_code=0, http_version="HTTP/0", headers=Headers(),
    received=0, request_bytes=0, url="")


class Transfer(Download):
    """One URL, from its flags to its report: where its body goes, what has become of it.

    Most files are written to a .part first, as in `download`. Written in place, as by curl, are
    stdout; what `written_in_place` is true of, /dev/null say; a file that begins with the head
    (-i, -I); with -C, what has its final name already.
    """

    number: int            # its place in the order given
    path: str              # of the file; "" for stdout, and for -J while no head has come
    response: Response = NO_RESPONSE
    error: Any = None      # the AsyncGetError of the last try, if that failed
    started = ended = looked_up = 0.0  # two moments, and the seconds of the last name look-up
    retries = 0
    changed = _FOREVER     # when the file that -C - goes on from was last changed

    def __init__(self, command: Command, url: str, output: str | None) -> None:
        super().__init__(command.session, url, command.settled, "")
        self.trace, self.progress = self.show, self.advance
        self.command = command
        self.options = options = command.options
        self.shown_url = printable(without_userinfo(url))
        self.output = output         # the name from -o; None: -O; "": neither, so stdout
        self.turn = asyncio.Event()  # set when all before it are reported: stdout is free
        self.held = bytearray()      # what came for stdout before that
        self.resume = options.continue_at is not None
        self.overwrite = not (options.no_clobber or options.remote_header_name and not output)
        # Where in the body the next try has to go on, so that nothing goes out twice.
        self.offset = int((options.continue_at or "").strip("-") or 0)
        try:
            if output is None and not options.remote_header_name:
                output = name_from_url(url)
            if output and output != "-":
                with disk_errors(output):
                    self.place(output)
        except AsyncGetError as failed:
            if failed.exit_code == 2:  # two URLs for one file: then nothing at all is sent
                raise
            self.error = failed
        self.to_stdout = self.output in ("", "-")

    # ---- where its bytes go

    def place(self, name: str) -> None:
        """Make a name our path, which no other URL of this run may have; "" if it is stdout's."""
        options, claimed = self.options, self.command.claimed
        path = os.path.join(options.output_dir or "", name)
        # /dev/stdout, say. (For Windows all pipes and devices are one file, with the number 0.)
        if exists(path) and os.stat(path).st_ino and os.path.samefile(path, 1):
            self.output = "-"
            return
        # Several URLs may go to a device or a pipe that -o names. A link means its target.
        if not self.output or not exists(path) or isfile(path):
            if self.output and islink(path) and not written_in_place(path):
                path = realpath(path)
            wanted, number = path, 0
            while options.no_clobber and (lexists(path) or realpath(path) in claimed):
                number += 1
                path = f"{wanted}.{number}"
            for taken in (path, part_of(path), part_of(path) + ".meta"):
                if claimed.setdefault(realpath(taken), self) is not self:
                    raise AsyncGetError(f"two URLs would be written to {printable(taken)}")
            if options.create_dirs:
                os.makedirs(dirname(path) or ".", exist_ok=True)
        self.path = path

    def write(self, data: bytes) -> None:
        """Write to the .part, or in place: to the file, or to stdout."""
        if not self.path:
            self.put_out(data)
            return
        if self.file.closed:
            with disk_errors(self.path):
                self.file = open(self.path, "ab" if self.partial else "wb", 0,
                                 opener=None if self.output else open_ours)  # -o: or a pipe, a link
        super().write(data)

    def put_out(self, data: bytes) -> None:
        """Write to stdout, where data may have to wait for its turn."""
        if b"\0" in data and self.output == "" and sys.stdout.isatty():
            raise AsyncGetError(BINARY, exit_code=23)
        self.held += data
        if self.turn.is_set():
            if not self.size:
                self.command.wipe()
            held, self.held = self.held, bytearray()  # what fails is not tried again
            write_named("-", held)

    # ---- what it does differently from a Download

    async def run(self) -> Response:
        """Fetch it, by as many tries as it takes; an error becomes its outcome."""
        TRANSFER.set(self)
        self.started = time.monotonic()
        try:
            if not self.error:
                await super().run()
        except AsyncGetError as error:
            self.error = error
            self.response = error.response or NO_RESPONSE  # not that of an earlier try
        finally:
            with contextlib.suppress(OSError):
                self.file.close()
        self.ended = time.monotonic()
        return self.response

    async def exchange(self, request: Request) -> Response:
        """As a Call does, if --proto allows it. With --connect-to, refuse a proxy: the connection
        to that could be led elsewhere, and the proxy's password with it.
        """
        origin = request.url.origin
        if not allows(self.options.proto, origin.scheme):
            raise AsyncGetError(f"{origin.scheme} is not allowed by --proto", exit_code=1)
        if self.options.connect_to and choose_proxy(origin):
            raise AsyncGetError("--connect-to is not for what goes by a proxy; -x '' goes without")
        return await super().exchange(ask_own_coding(request))

    def look(self) -> Partial | None:
        """What a try goes on from: a .part, what was put out before, or, with -C -, the file.

        Each try asks this first: so its time for -m begins here.
        """
        options, path, offset = self.options, self.path, self.offset
        with disk_errors(path):
            self.file.close()
        self.deadline = Deadline(self.session._time(), options.max_time or _FOREVER)
        self.in_place = bool(
            self.to_stdout or options.include or options.head
            or options.continue_at not in (None, "-") or self.output and written_in_place(path))
        if path and not self.in_place and (partial := super().look()):
            return partial
        if options.continue_at == "-" and isfile(path):
            offset, self.changed = getsize(path), getmtime(path)
        if offset and self.resume:
            self.in_place = True
            return Partial(offset, self.validator, "None", "")
        if offset and self.in_place:
            self.resume = True  # a next try asks again
            raise AsyncGetError("the server does not send just this rest: without -C it sends all",
                                exit_code=33, response=self.response)
        return None

    def retry_delay(self, attempt: int, outcome: Outcome) -> float | None:
        """Seconds until the next try, as the --retry flags say; None for no more.

        None, too, if a part of the body is out already and no -C allows us to go on after it,
        or if the trouble is on this side (23): nobody reads our output, say, or the disk is full.
        """
        options = self.options
        if (options.retry_all_errors and isinstance(outcome, AsyncGetError)
                and outcome.exit_code != 23):
            outcome = ConnectError(str(outcome))  # one for which `retry_delay` tries again
        delay = retry_delay(attempt, outcome, options.retry or 0)
        if delay is None or self.offset and not options.continue_at:
            return None
        if options.retry_delay and "retry-after" not in getattr(outcome, "headers", ""):
            delay = options.retry_delay
        if time.monotonic() + delay - self.started > (options.retry_max_time or _FOREVER):
            return None
        self.retries = attempt
        self.trace("*", f"trying again in {delay:.1f} s: {outcome}")
        return delay

    def show(self, kind: str, data: Any) -> None:
        """Its `trace`: show everything for -v; put out heads as they come, for -i, -I, -D."""
        options = self.options
        text = data if isinstance(data, str) else data.decode("utf-8", "backslashreplace")
        if options.verbose:
            for line in re.sub(_FIELD, mask_field, text).removesuffix("\r\n").split("\r\n"):
                self.command.say(f"{kind} {line}")
        if kind != "<":
            return
        head = fit_for(sys.stdout, data)
        if options.include or options.head:
            self.write(b"")  # opens the file, which may be /dev/tty
            self.write(fit_for(self.file, data) if self.path else head)
        if options.dump_header == "-":
            self.put_out(head)
        elif options.dump_header:
            with disk_errors(options.dump_header):
                write_all(self.command.heads, fit_for(self.command.heads, data))

    async def finish(self, response: Response) -> None:
        """Look at a head, save the body if that is wanted, and do what is due after it."""
        options, headers, self.response = self.options, response.headers, response
        status, modified = response.status_code, parse_date(headers.get("last-modified", "")) or 0
        unwanted = status == 304 or status == 200 and modified and any(  # a server may ignore -z
            (modified > (parse_date(date) or 0)) == (name == "If-Unmodified-Since")
            for name, date in options.time_cond.items())
        if unwanted:  # a file that is there stays
            response.status_code = 304  # for -w, as in curl
            await discard(response)
            return
        complete = status == 416 and self.partial  # if it fits: Download.finish checks
        if options.fail and not complete:
            response.raise_for_status()
        self.window = time.monotonic(), 0  # with the bytes by then: speed is measured from there
        if not self.path and not self.in_place:
            disposition = headers.get("content-disposition", "")
            name = name_from_header(disposition) or name_from_url(self.url)
            with disk_errors(name):
                self.place(name)
        if status == 206 and self.in_place and modified > self.changed:  # ours is older
            self.resume = False
            response.close()
            raise Anew
        await self.advance(self.size, body_length(response))
        if options.head:
            response.close()
        else:
            await super().finish(response)
        with disk_errors(self.path):
            if self.in_place:
                self.write(b"")  # an empty body makes a file, too
            self.file.close()  # some file systems report only now that there was no room
            if options.remote_time and isfile(self.path) and modified:
                with contextlib.suppress(OSError):  # not every mount lets us; the file is whole
                    os.utime(self.path, (modified, modified))
        if options.etag_save and status == 200:
            write_named(options.etag_save, printable(headers.get("etag", "")).encode() + b"\n")
        if options.fail_with_body and not complete:
            response.raise_for_status()

    async def advance(self, size: int, expected: int | None) -> None:
        """Its `progress`: note how much of a body is out; slow it or end it, as the flags say."""
        options, now = self.options, time.monotonic()
        if self.in_place and (self.partial or self.file.closed or not self.file.seekable()):
            self.offset = size  # any other file is emptied by the next try
        if options.max_filesize and max(size, expected or 0) > options.max_filesize:
            raise TooLarge(f"larger than --max-filesize, {options.max_filesize} bytes")
        since, before = self.window
        came = self.response.received - before
        span = options.speed_time or SILENCE_SECONDS
        if options.speed_limit and now - since >= span:
            if came < options.speed_limit * span:
                raise TimedOut(f"slower than --speed-limit, {options.speed_limit} bytes a second, "
                               f"for {span:g} s")
            self.window = now, before + came
        if options.limit_rate and size:  # never past -m; a negative wait is none
            await self.deadline.breathe(since + came / options.limit_rate - now)
        if len(self.held) > HELD_BYTES:
            self.deadline.until = _FOREVER  # not the server's fault; the next wait sets it anew
            await self.turn.wait()
            self.window = time.monotonic(), self.response.received


def plan_transfers(command: Command) -> Iterator[Transfer]:
    """The URLs, each with its -o or -O; those from an @FILE are saved as by -O, as in curl."""
    options = command.options
    outputs, added = iter(options.output), options.data + options.url_query
    for entry in options.url:
        listed = isinstance(entry, list)  # the lines of a file
        for text in entry if listed else [entry]:
            output = next(outputs, None if listed or options.remote_name_all else "")
            for url, put_in in [(text, {})] if listed or options.globoff else expand_glob(text):
                name = output and "".join(
                    put_in.get(part, part) for part in re.split("(#[0-9]+)", output))
                yield Transfer(command, complete_url(url, added), name)


# ---- -w

def redirect_url(response: Response) -> str | None:
    """Where a redirect that was not followed would have led."""
    locations = octets_text(response.raw_head, "location")
    if response.status_code // 100 != 3 or not any(locations):
        return None
    with contextlib.suppress(AsyncGetError):
        return str(join_url(response._url, locations[0]))
    return re.sub("//[^/?#]*@", "//", locations[0])  # myapp://code?x, say


_URL_PARTS = (r"(?s)((?P<scheme>[^:/?#]*)://([^/?#]*@)?(?P<host>\[[^]]*\]|[^:/?#]*)"
              r"(:(?P<port>[0-9]*))?)?(?P<path>[^?#]*)(\?(?P<query>[^#]*))?(#(?P<fragment>.*))?")


def url_parts(url: str, prefix: str) -> dict[str, str]:
    """A URL's parts as -w names them; the password is not among them.

    >>> list(url_parts("HTTP://me@[::1]:81?b#c", "url").values())
    ['http', '[::1]', '81', '/', 'b', 'c']
    """
    found = next(re.finditer(_URL_PARTS, url)).groupdict("")
    found["scheme"] = found["scheme"].lower()
    found["port"] = found["port"] or str(DEFAULT_PORTS.get(found["scheme"], ""))
    found["path"] = found["path"] or "/"
    return {f"{prefix}.{name}": value for name, value in found.items()}


def write_out_values(transfer: Transfer) -> dict[str, Any]:
    """What -w can report, under curl's names: times in seconds, sizes in bytes."""
    response, error = transfer.response, transfer.error
    hops, bars = [*response.history, response], [*response_bars(response)]
    connect = sum(bar.connected - bar.started for bar in bars)
    remote, local = (address if isinstance(address, tuple) else (None, 0)
                     for address in response.addresses)
    url, seconds = response.url or transfer.shown_url, transfer.ended - transfer.started
    return {
        "content_type": response.headers.get("content-type"),
        "curl_version": f"asyncget {__version__}",
        "errormsg": str(error) if error else None,
        "exitcode": error.exit_code if error else 0,
        "filename_effective": transfer.path or None,
        "http_code": response.status_code, "response_code": response.status_code,
        "http_version": response.http_version[5:],
        "local_ip": local[0], "local_port": local[1],
        "method": "GET",
        "num_connects": sum(not hop.timing.reused for hop in hops),
        "num_headers": len(response.headers.pairs), "num_redirects": len(response.history),
        "num_retries": transfer.retries,
        "proxy_used": int(response.proxied),
        "redirect_url": redirect_url(response),
        "referer": transfer.options.referer,
        "remote_ip": remote[0], "remote_port": remote[1],
        "scheme": url.partition("://")[0],
        "size_delivered": transfer.size,
        "size_download": response.received,
        "size_header": sum(len(hop.raw_head) for hop in hops),
        "size_request": sum(hop.request_bytes for hop in hops),
        "size_upload": 0, "speed_upload": 0, "tls_earlydata": 0,
        "speed_download": int(response.received / (seconds or 1)),
        "ssl_verify_result": getattr(error and error.__cause__, "verify_code", 0),
        "time_appconnect": connect if url[:6] == "https:" else 0.0,
        "time_connect": connect, "time_pretransfer": connect,
        "time_namelookup": transfer.looked_up,
        "time_queue": transfer.started - transfer.command.began,
        "time_redirect": bars[-1].started - bars[0].started,
        "time_starttransfer": sum(bar.head - bar.started for bar in bars),
        "time_total": seconds,
        "url": transfer.shown_url, "url_effective": url,
        "urlnum": transfer.number,
        **url_parts(transfer.shown_url, "url"),
        **url_parts(url, "urle"),
    }


def render_write_out(template: str, values: Mapping[str, Any],
                     headers: Headers) -> list[list[str]]:
    r"""A -w template filled in: texts, each after its place: "-" (stdout), "stderr" or a file.

    >>> values = {"http_code": 7, "time_total": 0.5, "exitcode": 0}
    >>> render_write_out(r"%{http_code}\t%{time_total}%{stderr}%header{x}%%%output{f}.%{onerror}!",
    ...                  values, Headers([("X", "y")]))
    [['-', '007\t0.500000'], ['stderr', 'y%'], ['f', '.']]
    """
    import json
    fields = {name.lower(): headers.get_all(name) for name in headers}
    known = {r"\n": "\n", r"\r": "\r", r"\t": "\t", "%%": "%", "%{onerror}": "",
             "%{json}": json.dumps(values), "%{header_json}": json.dumps(fields)}
    for name, value in values.items():
        shape = ".6f" if isinstance(value, float) else "03" if "_code" in name else ""
        known[f"%{{{name}}}"] = "" if value is None else printable(format(value, shape))
    streams = {"%{stdout}": "-", "%{stderr}": "stderr"}
    pieces = [["-", ""]]
    for text, kind, name in re.findall(
            r"(?s)(%\{[\w.]+\}|%(header|output)\{([^{}]+)\}|\\[nrt]|%%|.[^%\\]*)", template):
        if text == "%{onerror}" and not values["exitcode"]:
            break
        if kind == "output" or text in streams:
            pieces.append([name or streams[text], ""])
        else:  # a name that we do not know stays visible
            pieces[-1][1] += printable(headers.get(name, "")) if kind else known.get(text, text)
    return pieces


# ---- what stderr shows

def render_progress(transfers: Sequence[Transfer]) -> str:
    """How far the transfers are: "3.0 MB of 12.0 MB   25%   1.5 MB/s   0:06 left"."""
    received = sum(transfer.response.received for transfer in transfers)
    rate = received / (time.monotonic() - transfers[0].started)
    size, speed = render_size(received), render_size(rate) + "/s"
    if len(transfers) > 1:
        ended = sum(transfer.ended > 0 for transfer in transfers)
        return f"{ended}/{len(transfers)} done   {size}   {speed}"
    expected = rate and body_length(transfers[0].response)
    if not expected:
        return f"{size}   {speed}"
    minutes, left = divmod(int((expected - received) / rate), 60)
    return (f"{size} of {render_size(expected)}   {100 * received // expected}%   {speed}   "
            f"{minutes}:{left:02} left")


def terminal_width() -> int:
    """Columns of stderr; shutil would ask stdout, which may well be a file."""
    with contextlib.suppress(OSError):
        return os.get_terminal_size(2).columns or 80
    return 80


def tell(text: str) -> None:
    """Write to stderr; trouble there must not end a download."""
    try:
        print(text, end="", file=sys.stderr, flush=True)
    except (OSError, ValueError):
        sys.stderr = open(os.devnull, "w")  # on exit Python flushes it: the old one would fail


# ---- the run

def bars_of(transfer: Transfer) -> Iterable[Bar]:
    """The rows of --waterfall; without a response it was all one wait."""
    if transfer.response is not NO_RESPONSE:
        return response_bars(transfer.response)
    label = f"({transfer.error.exit_code}) {transfer.shown_url}"
    return [Bar(label, transfer.started, transfer.started, transfer.ended, transfer.ended)]


class Command:
    """One run: its transfers, the session that they share, and what stderr shows of them."""

    code = 0               # of the first URL that has failed
    drawn = False          # whether there is a progress line
    unread = False         # nobody reads stdout any more
    heads: Any = io.BytesIO()  # the file of -D

    def __init__(self, options: Options) -> None:
        self.options = options
        self.began = time.monotonic()
        self.claimed: dict[str, Transfer] = {}  # {name that is written to: whose it is}
        set_proxies(options)
        options.header = [*itertools.chain(*options.header)]
        self.session = open_session(options)
        self.settled = self.session._settled({  # of each call, so that -H wins; shared by them all
            "headers": options.header, "any_status": True}, DownloadSettings)
        self.transfers = [*plan_transfers(self)]
        if not self.transfers:
            raise AsyncGetError("no URL given; try --help")
        mixed = sys.stdout.isatty() and any(transfer.to_stdout for transfer in self.transfers)
        self.shown = sys.stderr.isatty() and os.getenv("TERM") != "dumb" and not (
            mixed or options.silent or options.no_progress_meter)
        if self.shown and sys.platform == "win32":
            os.system("")  # from then on the console understands WIPE
        if options.dump_header not in (None, "-"):
            with disk_errors(options.dump_header):
                self.heads = open(options.dump_header, "ab", buffering=0)
                if isfile(options.dump_header):
                    self.heads.truncate(0)

    # ---- stderr: messages, and below them the progress line while somebody can see it

    def redraw(self) -> None:
        """Bring the progress line up to date, from now on ten times a second.

        It goes on even where no line is shown: a Ctrl-C that came just before the loop began
        to wait is seen only when something wakes the loop, and this does.
        """
        asyncio.get_running_loop().call_later(REDRAW_SECONDS, self.redraw)
        if self.shown and self.transfers[0].started:
            tell(WIPE + render_progress(self.transfers)[:terminal_width() - 1])
            self.drawn = True

    def wipe(self) -> None:
        """Take off the progress line, if we drew one: else what is there may be from `| cat`."""
        if self.drawn:
            tell(WIPE)
            self.drawn = False

    def say(self, line: str) -> None:
        """A line on stderr, with its control characters made harmless."""
        self.wipe()
        tell(printable(line) + "\n")

    # ---- its transfers

    def fail(self, error: AsyncGetError, of: str = "") -> None:
        """Report an error; the first one's code is the run's. A closed pipe ends quietly."""
        self.code = self.code or error.exit_code
        closed = getattr(error.__cause__, "errno", None) in (errno.EPIPE, errno.EINVAL)  # Windows'
        if closed and "write stdout" in str(error):
            self.unread = True
        elif self.options.show_error or self.options.verbose or not self.options.silent:
            self.say(f"asyncget: ({error.exit_code}) {error}{of}")

    def report(self, transfer: Transfer) -> None:
        """Put out what comes after the body: what was held, the error, and what -w asks for."""
        self.wipe()
        template, of = self.options.write_out, f" [{transfer.shown_url}]"
        try:
            transfer.put_out(b"")
        except AsyncGetError as error:
            transfer.error = transfer.error or error
        if transfer.error:
            self.fail(transfer.error, of)
        if not template:
            return
        try:
            for where, text in render_write_out(template, write_out_values(transfer),
                                                transfer.response.headers):
                if where == "stderr":
                    tell(text)
                else:  # %output{>>FILE} appends
                    write_named(where.removeprefix(">>"), text.encode("utf-8", "surrogateescape"),
                                "ab" if where[:2] == ">>" else "wb")
        except AsyncGetError as error:
            self.fail(error, of)

    # ---- all of them

    async def run(self) -> int:
        """Fetch all and report all; return the exit code."""
        options, transfers = self.options, self.transfers
        turns = iter(transfers)
        next(turns).turn.set()
        self.redraw()

        async def deliver(number: int, transfer: Any, _: object) -> None:
            transfer.number = number
            over = options.fail_early and transfer.error
            if not over:  # no other begins until it is printed, so that few bodies are held
                await transfer.turn.wait()
            self.report(transfer)
            if over or self.unread and all(other.to_stdout for other in transfers[number + 1:]):
                raise Enough
            next(turns, transfer).turn.set()

        async with self.session:
            with contextlib.suppress(Enough):
                await self.session._get_each(
                    transfers, options.parallel_max or 50, self.settled, deliver)
        self.wipe()
        self.shown = False
        try:
            with disk_errors(options.dump_header):
                self.heads.close()
            if options.cookie_jar:
                with disk_errors(options.cookie_jar):
                    save_jar(self.session.cookies, options.cookie_jar)
        except AsyncGetError as error:
            self.fail(error)
        if options.waterfall:
            bars = [bar for transfer in transfers if transfer.ended for bar in bars_of(transfer)]
            tell(render_timeline(bars, terminal_width() - 1) + "\n")
        return self.code


async def run_command(options: Options) -> int:
    """What the flags ask for, inside an event loop."""
    if options.demo:
        # What it prints goes past Python's buffer, so that a closed pipe is an error at once.
        unbuffered: Any = types.SimpleNamespace(
            fileno=sys.stdout.fileno, write=lambda text: write_named("-", text.encode()))
        with contextlib.redirect_stdout(unbuffered):
            await demo(*options.url[:1])
        return 0
    check_options(options)
    return await Command(options).run()


def interrupted(*_: object) -> None:
    """Die by the signal, so that a shell's loop ends, too; all that has come is written already."""
    import signal
    if sys.stderr.isatty():
        os.write(2, WIPE.encode())  # the prompt belongs on a line of its own
    if sys.platform == "win32":
        os._exit(0xC000013A - 2**32)  # Ctrl-C's own code; the signal's would be 3, for a bad URL
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.raise_signal(signal.SIGINT)
    os._exit(130)  # in a container's first process, which this signal does not end


def fill_descriptors() -> None:
    """Put something in the place of standard streams that are closed (`>&-`).

    Else the next file or socket would get the number of stdout, and what is printed would go
    into it. What is put there is the end of a pipe that can only be read, and is empty: so
    printing fails, as it should.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            reading, writing = os.pipe()  # the first of them has the lowest number that is free
            os.close(writing)
            setattr(sys, name, open(reading, "w" if number else "r", closefd=False))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: do what the arguments say, and return curl's exit code.

    Without arguments given, it takes those of the process, and ends that. Call it in a process
    of its own: -x sets environment variables, and from then on Ctrl-C ends the process at once.
    """
    import signal
    if arguments is None:
        fill_descriptors()
        sys.exit(main(sys.argv[1:]))
    try:
        options = parse_arguments(arguments)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, interrupted)
        if options.version:
            write_named("-", f"asyncget {__version__} ({ssl.OPENSSL_VERSION}, "
                             f"Python {sys.version.split()[0]})\n".encode())
        elif options.help:
            write_named("-", (FLAGS + MORE_FLAGS if "all" in options.url else FLAGS).encode())
        else:
            return asyncio.run(run_command(options))
    except (KeyboardInterrupt, EOFError):  # from getpass, which has switched the echo on again
        interrupted()
    except AsyncGetError as error:
        if not isinstance(error.__cause__, BrokenPipeError):
            tell(f"asyncget: ({error.exit_code}) {printable(str(error))}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    main()
