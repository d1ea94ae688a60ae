"""HTTP GET over asyncio in one file, with nothing but the standard library.

A GET is four lines of text sent, a few lines and some bytes received. All that
makes a client long is to find out where those bytes end, to use the connection
again, and to believe nobody. This file does it in the order of the data:

    get("http://h/x")
        |                                             the section that tells it
        |  URL(origin=("http", "h", 80), target="/x")                        2
        v
    GET /x HTTP/1.1 \\r\\n Host: h \\r\\n \\r\\n          request bytes             3
        |
        |  Connection.exchange, over one of the pool's connections        8, 9
        v
    HTTP/1.1 200 OK \\r\\n Content-Length: 5 \\r\\n \\r\\n  response head            4
    hello                                           body: framing, coding    5, 6
        |
        v
    Response(200, content=b"hello")     or a redirect, or a retry         7, 10

Sections 1 to 7 are plain functions of bytes: no socket, no clock, no asyncio.

    1. Limits and errors       what is too much, and how it is said
    2. URLs                    text to URL, references, parameters
    3. Request bytes           fields, credentials, the head that is sent
    4. Response head           status line and fields
    5. Body framing            where the body ends
    6. Decoding                gzip, deflate, zstd, charsets
    7. Response                what the caller holds
    8. Connection              TCP, TLS, tunnels, one exchange, one clock
    9. Pool                    connections kept and shared
    10. Policy                 redirects, retries, cookies, proxies: pure choices
    11. Session                the loop around it all, one GET or a million
    12. Downloads              a file that is whole, or not there
    13. Timeline               a picture of where the time went
    14. Demo server            the same bytes from the other side
    15. Command line           python -m asyncget URL

Words, and what they look like here:

    origin    Origin("https", "h.test", 443)   who is asked, who sees a secret
    target    "/search?q=x"                    what is asked for
    field     ("Accept", "*/*")                one line of a head
    head      b"HTTP/1.1 200 OK\\r\\n...\\r\\n\\r\\n"  all up to the empty line
    framing   5, "chunked" or "close"          how the end of a body is told
    coding    "gzip"                           how a body was compressed
    route     Route(origin, tls, proxy, ...)   what must be equal to share a connection

Users need `get`, `get_all`, `as_completed`, `stream`, `download` and `Session`.
"""

# SPDX-License-Identifier: MIT

from __future__ import annotations

if __name__ == "__main__":
    # As a program it imports nothing from the folder that it is run in, nor from the one it
    # lies in: a server may have named its file json.py, and it was saved there.
    import sys
    if not (sys.flags.isolated or getattr(sys.flags, "safe_path", False)):
        del sys.path[0]
        import os
        try:
            sys.path[:] = [path for path in sys.path if os.path.abspath(path) != os.getcwd()]
        except OSError:  # it was deleted, so nothing is there
            pass

import asyncio
import base64
import codecs
import collections
import contextlib
import contextvars
import errno
import functools
import heapq
import inspect
import io
import itertools
import os
import re
import select
import socket
import ssl
import stat
import sys
import time
import types
import zlib
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Container,
    Coroutine,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
    Sized,
)
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    NamedTuple,
    Optional,
    Protocol,
    TypedDict,
    TypeVar,
    Union,
    overload,
)

if sys.version_info >= (3, 11):
    from typing import Unpack
elif TYPE_CHECKING:
    from typing_extensions import Unpack  # known to each type checker, and never imported
if TYPE_CHECKING:
    from datetime import timedelta

__version__ = "0.1.0"
__all__ = [
    "get", "get_all", "as_completed", "stream", "download", "Session", "Response", "Headers",
    "AsyncGetError", "InvalidURL", "InvalidHeader", "ConnectError", "TLSError", "ProxyError",
    "TimedOut", "ProtocolError", "IncompleteBody", "DecodingError", "TooLarge",
    "TooManyRedirects", "StatusError",
]

# ==== 1. Limits and errors ====================================================
# Whatever a stranger sends is bounded here, by name: a server that talks for
# ever meets one of these first. Beside each stands what others chose.

MAX_URL_CHARS = 65_536           # as hyper; RFC 9110 4.1 asks for 8,000 at least
MAX_HEAD_BYTES = 131_072         # one head or trailer section; curl 300 KB, aiohttp 8 KB a line
MAX_INTERIM = 10                 # 1xx responses before the real one
MAX_SIZES = 4096                 # of chunks, remembered
MAX_EXTENSION_BYTES = 16_384     # of all chunk extensions of a body; hyper's figure
MAX_CODINGS = 5                  # stacked content codings; curl and urllib3 allow 5, too
MAX_DISCARD_BYTES = 65_536       # of an unwanted body read to keep its connection
MAX_DISCARD_SECONDS = 1.0        # that this may take
MAX_LINE_BYTES = 16_777_216      # one line of iter_lines
MAX_SET_COOKIES = 50             # of one response; curl's figure
MAX_COOKIE_BYTES = 4096          # name and value of one; RFC 6265bis 5.6
MAX_ATTRIBUTE_BYTES = 1024       # value of one attribute; 6265bis 5.6
MAX_DOMAIN_COOKIES = 180         # kept of one site; Chrome's figure, 6265bis 6.1 asks for 50
MAX_COOKIES = 3000               # kept in sum; 6265bis 6.1 asks for as many
MAX_COOKIE_SECONDS = 34_560_000  # that one is kept at most: 400 days; 6265bis 5.5
MAX_COOKIE_FIELD_BYTES = 8190    # the Cookie field that we send; curl's figure
MAX_SHOWN_BYTES = 100            # of a server's bytes in an error text
MAX_RETRY_AFTER_SECONDS = 60.0   # a longer wait is the caller's to decide
GET_DEADLINE_SECONDS = 300.0     # get(), all in all; aiohttp's figure
SETTLED_SECONDS = 60.0           # unchanged for so long: a date tells versions apart (9110 8.8.2.2)
IDLE_SECONDS = 60.0              # a kept connection; nginx keeps 75 s, Apache 5 s
IDLE_MOMENT_SECONDS = 0.001      # idle for longer: look into the kernel before use
LATE_SECONDS = 0.05              # a clock that rings later than this: the loop stood still
LAST_TURNS = 12                  # of the loop, before a clock is believed; connecting takes most
REFUSAL_SECONDS = 1.0            # for a proxy to say why there is no tunnel
HAPPY_EYEBALLS_SECONDS = 0.25    # RFC 8305 section 5: then try the next address, too
READ_BYTES = 262_144             # asked of the stream at once; asyncio receives as much
INFLATE_BYTES = 16_384           # decoded at once, so that many members stay linear
MAX_DECODED_STEP_BYTES = 262_144  # made of that at once, so that a bomb shows early
MAX_BETWEEN_BYTES = 1_048_576    # made between stacked codings; and 100 for each that arrived
MAX_WORK_BYTES = 2_097_152       # decoded before the loop has a turn: some 10 ms
STEP_BYTES = 1024                # that a step of decoding costs beside what it makes
MAX_HISTORY_BYTES = 262_144      # heads of the redirects of one call
MAX_ADDRESSES = 32               # of a name that are tried


_FOREVER = float("inf")


class AsyncGetError(Exception):
    """Whatever goes wrong is one of these; its text says what to do about it.

    `url` is what was asked for, without credentials. `response` is there where one
    had begun. `exit_code` is curl's, which the command line returns.
    """

    url: str = ""
    response: Response | None = None
    exit_code: int = 2

    def __init__(self, message: str = "", **facts: Any) -> None:
        super().__init__(message)
        for name, value in facts.items():
            setattr(self, name, value)


class InvalidURL(AsyncGetError, ValueError):
    """Not a URL that can be asked for; nothing was sent."""

    exit_code = 3


class InvalidHeader(AsyncGetError, ValueError):
    """A header, cookie or credential that cannot be sent as a field; nothing was sent."""

    exit_code = 43


class ConnectError(AsyncGetError, ConnectionError):
    """No connection: the name, the address or the way there. Nothing was sent."""

    exit_code = 7


class TLSError(ConnectError):
    """The handshake failed, or the certificate is not to be trusted."""

    exit_code = 35


class ProxyError(ConnectError):
    """The proxy would not, or could not, let us through."""

    exit_code = 97


class TimedOut(AsyncGetError, TimeoutError):
    """`phase` took longer than `seconds`; a retry may help."""

    exit_code = 28
    phase: str = ""
    seconds: float = 0.0


class ProtocolError(AsyncGetError):
    """The server's bytes are not a response; they stand in the text."""

    exit_code = 8
    payload: bytes = b""  # of the body, from just before the fault


class IncompleteBody(ProtocolError):
    """The connection ended first: `received` of `expected` body bytes (None: unknown)."""

    exit_code = 18
    expected: int | None = None
    received: int = 0


class DecodingError(AsyncGetError):
    """The body is whole, but not in the coding, charset or JSON that it claims."""

    exit_code = 61


class TooLarge(AsyncGetError):
    """More than `limit` bytes would have to be held."""

    exit_code = 63
    limit: int = 0


class TooManyRedirects(AsyncGetError):
    """`history` holds the responses on the way."""

    exit_code = 47
    history: list[Response] = []


class StatusError(AsyncGetError):
    """raise_for_status met a status of 400 or above."""

    exit_code = 22


def shown(data: bytes | bytearray) -> str:
    r"""Bytes of a stranger, fit for an error text: short, and harmless to a terminal.

    >>> shown(b"HTP/1.1\x1b[2J")
    "b'HTP/1.1\\x1b[2J'"
    """
    tail = "…" if len(data) > MAX_SHOWN_BYTES else ""
    return repr(bytes(data[:MAX_SHOWN_BYTES])) + tail


def printable(text: str | bytes) -> str:
    r"""Text of a stranger, fit for a terminal: controls and direction marks escaped.

    >>> printable("a\x1b]0;owned\x07")
    'a\\x1b]0;owned\\x07'
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode()
                   for c in text)


# ==== 2. URLs =================================================================
# A URL is cut into parts once, by this section alone, and never put together
# again for another parser to read: most published leaks begin where two parsers
# disagree about the host. What is asked for goes out byte for byte; only what
# cannot be on a request line (blanks, non-ASCII) is percent-encoded.

DEFAULT_PORTS = {"http": 80, "https": 443}
_URL = re.compile(r"([^:/?#]*)://([^/?#]*)(.*)")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_HOST_PORT = re.compile(r"(\[[^\[\]]*\]|[^\[\]:]*)(?::0{0,9}?([0-9]{0,5}))?")
_USERINFO = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:%@-]*")
_HOST = re.compile(r"(?:[a-z0-9_-]{1,63}\.)*[a-z0-9_-]{1,63}\.?")  # the last: the DNS root
_NUMBERS = re.compile(r"(?:(?:[0-9]+|0x[0-9a-f]*)(?:\.|$))+")
_ADDRESS = re.compile(r"[0-9A-Fa-f:.]+(?:%25[A-Za-z0-9._~-]{1,63})?")  # its zone: RFC 6874


def bracketed(host: str) -> str:
    """A host as it stands in a URL: IPv6 in brackets, its zone behind %25 (RFC 6874)."""
    return "[" + host.replace("%", "%25") + "]" if ":" in host else host


def without_zone(host: str) -> str:
    """A host as others know it: fe80::1%eth0 is a name for it on this machine alone."""
    return host.partition("%")[0]


class Origin(NamedTuple):
    """Who is asked, and the border that no credential crosses (RFC 6454)."""

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
    target: str    # origin-form: path and query, from "/" on
    fragment: str  # stays here, is never sent
    userinfo: str  # "user:password", still percent-encoded

    def __repr__(self) -> str:
        return f"<URL {self}>"

    def __str__(self) -> str:
        scheme, host, _ = self.origin
        fragment = "#" + self.fragment if self.fragment else ""
        return f"{scheme}://{bracketed(host)}{self.origin.port_suffix}{self.target}{fragment}"


def masked(text: str) -> str:
    """A URL's text, fit for an error: no userinfo, no controls, not too long.

    >>> masked("http://me:secret@h:x/")
    "'http://***@h:x/'"
    """
    text = re.sub(r"^([a-z]+:/{0,2})?.*@", r"\1***@", text, flags=re.I | re.S)
    return shown(text[:MAX_SHOWN_BYTES + 1].encode("utf-8", "backslashreplace"))[1:]


def without_userinfo(text: str) -> str:
    """A URL as it was written, but for user and password; all before an "@" if it is none.

    >>> without_userinfo("http://me:pw@h/@b"), without_userinfo("http://me:p/w@h/")
    ('http://h/@b', 'http://***@h/')
    """
    try:
        userinfo = parse_url(text).userinfo
    except InvalidURL:
        return masked(text)[1:-1]
    return text.replace(userinfo + "@", "", 1) if userinfo else text


def percent_encode(text: str) -> str:
    r"""Encode what may not stand on a request line; what is encoded already stays.

    >>> percent_encode(b"/caf\xe9 \xc3\xa9".decode("utf-8", "surrogateescape"))
    '/caf%E9%20%C3%A9'

    Octets that were no UTF-8 go out as they came (RFC 9110 5.5): see octets_text.
    """
    from string import punctuation
    from urllib.parse import quote
    try:
        return quote(text, safe=punctuation, errors="surrogateescape")
    except UnicodeError:
        raise InvalidURL(f"not Unicode: {masked(text)}") from None


def parse_address(text: str, version: int) -> str:
    """An IP address in its one canonical spelling.

    >>> parse_address("FE80:0::1%25eth0", 6)
    'fe80::1%eth0'
    """
    import ipaddress
    kind = ipaddress.IPv4Address if version == 4 else ipaddress.IPv6Address
    if _ADDRESS.fullmatch(text):
        with contextlib.suppress(ValueError):
            return str(kind(text.replace("%25", "%")))
    raise InvalidURL(f"not an IPv{version} address: {masked(text)}")


def ascii_label(label: str) -> str:
    """One label of a host: lower case, and punycode where needed, as curl does.

    The idna codec is not used: it turns ß into ss, which is another host.
    """
    if label.isascii():
        return label.lower()
    from unicodedata import normalize
    lower = normalize("NFC", label.lower())
    # Full-width '．', '／', '１' and the Kelvin sign, which is a 'k', would be other hosts.
    if (normalize("NFKC", lower) != lower or lower.isascii()
            or re.search("[\ud800-\udfff]", label)):  # octets that are no UTF-8
        raise InvalidURL(f"not a host label: {masked(label)}")
    return "xn--" + lower.encode("punycode").decode("ascii")


def parse_host(text: str) -> str:
    """A host in the one spelling that is looked up, certified, sent and compared.

    >>> parse_host("BÜCHER.example")
    'xn--bcher-kva.example'

    What getaddrinfo would take for another address is refused: 127.1, 0x7f.0.0.1. A name
    may end in a number all the same: web.1 is how Docker Swarm calls a task.
    """
    if text.startswith("["):
        return parse_address(text[1:-1], 6)
    if not 0 < len(text) <= 255:
        raise InvalidURL(f"no host, or one of more than 255 characters: {masked(text)}")
    host = ".".join(map(ascii_label, text.split(".")))
    if not _HOST.fullmatch(host) or len(host) > 255:  # punycode makes it longer
        raise InvalidURL(f"not a host: {masked(text)}")
    return parse_address(text, 4) if _NUMBERS.fullmatch(host) else host


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
    if scheme not in DEFAULT_PORTS:
        raise InvalidURL(f"unsupported scheme {printable(scheme[:20])!r}: only http and https",
                         exit_code=1)
    match = _HOST_PORT.fullmatch(host_port)
    if match is None or int(match[2] or 0) > 65535:  # or a password with a "/" in it
        host = re.sub(r":[^:\]]*$", ":***", host_port)
        raise InvalidURL(f"not a host and port (0 to 65535): {masked(host)}")
    return Origin(scheme, parse_host(match[1]), int(match[2] or DEFAULT_PORTS[scheme]))


def parse_url(text: str) -> URL:
    """Cut an absolute http or https URL into its parts (RFC 3986, RFC 9110 4.2).

    >>> tuple(parse_url("http://me:pw@H.test:81?q=a b#top"))
    (Origin(scheme='http', host='h.test', port=81), '/?q=a%20b', 'top', 'me:pw')
    >>> str(parse_url("https://straße.test/a/../%2F"))
    'https://xn--strae-oqa.test/%2F'

    Blanks around it are passed over, as browsers do. Raises InvalidURL, with exit code 1
    for a scheme that is not ours.
    """
    text = text.strip(" \t\r\n\f")
    if len(text) > MAX_URL_CHARS:
        raise InvalidURL(f"a URL of {len(text)} characters: at most {MAX_URL_CHARS} are sent")
    # urllib.parse deletes control bytes, and so asks for something else.
    control = None if text.isprintable() else re.search(r"[\x00-\x1f\x7f]", text)
    if control:
        raise InvalidURL(f"control character {control[0]!r} in URL {masked(text)}")
    match = _URL.fullmatch(text)
    if match is None:
        raise InvalidURL(f"not an absolute URL: {masked(text)}; write http://host/path")
    scheme, authority, rest = match.groups()
    userinfo, _, host_port = authority.rpartition("@")
    if userinfo and not _USERINFO.fullmatch(userinfo):
        raise InvalidURL("user and password in a URL must be percent-encoded where they hold "
                         "other than letters, digits and -._~!$&'()*+,;=")
    if not rest.isascii() or " " in rest:
        rest = percent_encode(rest)
    target, _, fragment = rest.partition("#")
    if target[:1] != "/":
        target = "/" + target
    if "/." in target:
        path, mark, query = target.partition("?")
        target = remove_dots(path) + mark + query
    return URL(parse_origin(scheme, host_port), target, fragment, userinfo)


def remove_dots(path: str) -> str:
    """Take the segments "." and ".." out of a path (RFC 3986 5.2.4, 6.2.2.3).

    >>> remove_dots("/a/./b/../../c"), remove_dots("/../a/.."), remove_dots("/a//...")
    ('/c', '/', '/a//...')
    """
    segments: list[str] = []
    for segment in path.split("/")[1:]:
        if segment == "..":
            del segments[-1:]
        elif segment != ".":
            segments.append(segment)
    if path.endswith(("/.", "/..")):
        segments.append("")
    return "/" + "/".join(segments)


def join_url(base: URL, reference: str) -> URL:
    """Resolve what a Location says against the URL that was asked (RFC 3986 5.2).

    >>> base = parse_url("http://h/a/b?q#top")
    >>> [join_url(base, r).target for r in ("c", "../c", "/c?x", "?y", "")]
    ['/a/c', '/c', '/c?x', '/a/b?y', '/a/b?q']

    urllib.parse.urljoin is not used: it drops empty segments and a bare "?".
    """
    if reference.startswith("//"):
        reference = f"{base.origin.scheme}:{reference}"
    if not _SCHEME.match(reference):
        path = base.target.partition("?")[0]
        folder = path[:path.rindex("/") + 1]
        kept = {"/": "", "?": path, "#": base.target, "": base.target}.get(reference[:1], folder)
        reference = str(base._replace(target=kept, fragment="")) + reference
    url = parse_url(reference)
    return url if "#" in reference else url._replace(fragment=base.fragment)  # RFC 9110 10.2.2


Params = Union[Mapping[str, Any], Iterable["tuple[str, Any]"]]


def merge_params(base: Iterable[tuple[Any, Any]], params: Params) -> tuple[tuple[Any, Any], ...]:
    """Lay a call's parameters over the session's, name by name; a value of None removes.

    >>> merge_params([("key", "k"), ("page", 1)], {"page": None, "q": [1, 2]})
    (('key', 'k'), ('page', None), ('q', [1, 2]))
    """
    extra = list(params.items() if isinstance(params, Mapping) else params)
    named = {name for name, _ in extra}
    return (*(pair for pair in base if pair[0] not in named), *extra)


def add_params(url: URL, params: Params) -> URL:
    """Append parameters to the query that is there.

    >>> add_params(parse_url("http://h/?a=1"), {"b": [2, 3], "c": None, "d": True}).target
    '/?a=1&b=2&b=3&d=true'
    """
    from urllib.parse import urlencode
    pairs = [(name, str(item).lower() if isinstance(item, bool) else item)
             for name, value in merge_params((), params)
             for item in (value if isinstance(value, (list, tuple)) else [value])
             if item is not None]
    try:
        query = urlencode(pairs)
    except UnicodeError:
        raise InvalidURL("the name or the value of a parameter is not Unicode") from None
    if not query:
        return url
    target = url.target if "?" in url.target else url.target + "?"
    glue = "" if target.endswith(("?", "&")) else "&"
    return url._replace(target=target + glue + query)


# ==== 3. Request bytes ========================================================
# All that we ever send is one head, and this section is the only place where one
# is made. Text that a caller or a redirect supplied could smuggle in a line of its
# own, so the grammar is checked here, on the finished text, and nothing is mended.

Fields = tuple[tuple[str, str], ...]  # the (name, value) pairs of a head, in order
HeaderItems = Union[Mapping[str, Optional[str]], Iterable["tuple[str, str | None]"]]

TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"  # RFC 9110 5.6.2
_NAME = re.compile(TOKEN)
_VALUE = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]*")
_HOST_VALUE = re.compile(r"[A-Za-z0-9._-]+(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?")
# These frame messages, or are for the next hop alone (RFC 9110 7.6.1): with them a GET could be
# read in a second way by whoever stands between. The others say, as browsers and other clients
# send them, nothing new, and are dropped; only "close" goes out.
_FRAMING_FIELDS = {"content-length", "expect", "proxy-authorization", "trailer",
                   "transfer-encoding", "upgrade"}
_HOP_FIELDS = {"connection", "keep-alive", "proxy-connection", "te", *_FRAMING_FIELDS}
CLOSE_FIELD = ("Connection", "close")  # our end, too, closes behind the response (RFC 9112 9.6)

HAS_ZSTD = False
if sys.version_info >= (3, 14):  # compression.zstd, which not every build has
    from importlib.util import find_spec
    HAS_ZSTD = find_spec("_zstd") is not None

ACCEPT_ENCODING = "gzip, deflate, zstd" if HAS_ZSTD else "gzip, deflate"
DEFAULT_FIELDS = (
    ("Host", ""),  # empty: filled in with the authority of each URL
    ("User-Agent", f"asyncget/{__version__}"),
    ("Accept", "*/*"),
    ("Accept-Encoding", ACCEPT_ENCODING),
)


def merge_fields(base: Fields, headers: HeaderItems) -> Fields:
    """Lay the caller's headers over others; a value of None removes (RFC 9110 5.1).

    >>> merge_fields((("Accept", "*/*"), ("X", "1")), {"accept": "text/html", "x": None})
    (('accept', 'text/html'),)
    >>> merge_fields((), {"Connection": "keep-alive", "TE": "trailers"})
    ()
    """
    extra: list[tuple[str, str]] = []
    named: set[str] = set()
    for name, value in headers.items() if isinstance(headers, Mapping) else headers:
        if not isinstance(name, str) or not isinstance(value, (str, type(None))):
            raise InvalidHeader("headers must be a mapping, or pairs, of text: not the value of "
                                f"{name!r:.100}")
        lower = name.lower()
        named.add(lower)
        if lower in _FRAMING_FIELDS and value not in (None, "", "0"):
            raise InvalidHeader(f"{lower} is not a caller's to set: it is between us and the "
                                "next hop (a proxy's credentials go into the proxy's URL)")
        if lower == "connection" and "close" in (value or "").lower():
            extra.append(CLOSE_FIELD)
        elif value is not None and lower not in _HOP_FIELDS:
            extra.append((name, value))
    kept = [pair for pair in base if pair[0].lower() not in named] + extra
    return tuple(sorted(kept, key=lambda pair: pair[0].lower() != "host"))  # 7.2: it stands first


def acceptable(accept_encoding: str) -> str:
    """Of an Accept-Encoding, what can be undone here.

    >>> acceptable("gzip, deflate;q=0.5, br, *"), acceptable("br")
    ('gzip, deflate;q=0.5', 'identity')
    """
    ours = {"identity", "x-gzip", *ACCEPT_ENCODING.split(", ")}
    kept = [item.strip() for item in accept_encoding.split(",")
            if item.partition(";")[0].strip().lower() in ours]
    return ", ".join(kept) or "identity"


def render_fields(fields: Fields, origin: Origin) -> bytes:
    r"""The lines of a head and its end.

    >>> render_fields((("Host", ""), ("Accept", "*/*")), Origin("http", "h", 81))
    b'Host: h:81\r\nAccept: */*\r\n\r\n'

    Raises InvalidHeader; values that may be secret are not in its text.
    """
    lines: list[str] = []
    for name, value in fields:
        if not _NAME.fullmatch(name):
            raise InvalidHeader(f"not a field name: {name.partition(':')[0]!r:.100}")
        if not _VALUE.fullmatch(value):
            raise InvalidHeader(f"the value of {name} has control characters")
        if name.lower() == "host":
            value = value or origin.authority
            if lines or not _HOST_VALUE.fullmatch(value):  # RFC 9112 3.2: there is but one
                raise InvalidHeader(f"not a value for Host, or a second one: {value!r:.100}")
        lines.append(f"{name}: {value}\r\n")
    try:
        return "".join([*lines, "\r\n"]).encode("utf-8", "surrogateescape")
    except UnicodeError:
        raise InvalidHeader("a header's value is not Unicode") from None


def render_request(target: str, lines: bytes) -> bytes:
    r"""The head of a GET (RFC 9112 section 3). The first line has one of three forms:

        GET /path?query HTTP/1.1          origin-form, to the server itself
        GET http://h/path HTTP/1.1        absolute-form, to a proxy
        CONNECT h:443 HTTP/1.1            authority-form, for a tunnel: section 8

    >>> render_request("/x", render_fields((("Host", ""),), Origin("http", "h", 80)))
    b'GET /x HTTP/1.1\r\nHost: h\r\n\r\n'
    """
    if not target.isascii() or not target.isprintable() or " " in target:
        raise InvalidURL(f"not a request target: {masked(target)}")
    return b"GET %b HTTP/1.1\r\n%b" % (target.encode("ascii"), lines)


Auth = Union[str, "tuple[str, str]"]


def render_auth(auth: Auth) -> str:
    """The value of Authorization: Basic (RFC 7617) for a pair, Bearer (RFC 6750) for text.

    >>> render_auth(("Aladdin", "open sesame"))
    'Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=='
    """
    if isinstance(auth, str):
        return f"Bearer {auth}"
    try:
        user, password = auth
        pair = ":".join([user, password])
        token = base64.b64encode(pair.encode("utf-8", "surrogateescape")).decode("ascii")
    except (TypeError, ValueError):
        raise InvalidHeader("auth is (user, password), or a bearer token as text") from None
    if ":" in user or not _VALUE.fullmatch(pair):
        raise InvalidHeader("a user name has no ':', and neither it nor a password controls")
    return f"Basic {token}"


def split_userinfo(userinfo: str) -> tuple[str, str]:
    """User and password of a URL, percent-decoded, which nothing else ever is."""
    from urllib.parse import unquote
    user, _, password = (unquote(part, errors="surrogateescape")
                         for part in userinfo.partition(":"))
    return user, password


# ==== 4. Response head ========================================================
# One expression says what a head may look like, and it is asked once, about the whole
# head. It is strict where laxity has been exploited (NUL, bare CR, a blank before the
# colon) and lenient where servers need it: a bare LF ends a line, the reason may be
# missing, a folded line is unfolded, a value may hold control bytes (a length or a coding
# with one of them is none). Of the fields only the few that decide what we do next are
# looked up at once; what users read is made when they ask for it.

_TEXT = rb"[^\x00\r\n]*"
_STATUS_LINE = rb"HTTP/1\.[0-9] [1-9][0-9]{2}(?: " + _TEXT + rb")?\r?\n"
_FIELD_LINE = re.compile(  # the ^ is what forbids a blank before a name
    rb"^(" + TOKEN.encode() + rb"):(" + _TEXT + rb")\r?\n", re.M)
_HEAD = re.compile(_STATUS_LINE + rb"(?:" + TOKEN.encode() + rb":" + _TEXT + rb"\r?\n)*\r?\n")
_DECISIVE = re.compile(rb"\n(connection|content-encoding|content-length|set-cookie"
                       rb"|transfer-encoding):([^\r\n]*)")
_FOLD = re.compile(rb"\r?\n[ \t]+")  # RFC 9112 5.2
_HEAD_END = re.compile(rb"\n\r?\n")


class Head(NamedTuple):
    """A response head that passed. `fields` are those that we decide from, in lower case."""

    raw: bytes     # as received, but unfolded, with the empty line
    minor: int     # HTTP/1.minor
    status: int    # 100 to 999
    fields: dict[bytes, bytes]  # name: value, repeats joined with commas (RFC 9110 5.3)


def parse_list(value: bytes) -> list[bytes]:
    """The elements of a field that is a list, empty ones dropped (RFC 9110 5.6.1.2).

    >>> parse_list(b",, close ,x")
    [b'close', b'x']
    """
    elements = (element.strip(b" \t") for element in value.split(b","))
    return [element for element in elements if element]


def find_head_end(data: bytes | bytearray, start: int = 0) -> int:
    r"""The index behind the first empty line, or 0.

    >>> find_head_end(b"HTTP/1.1 200 OK\r\n\r\nhello"), find_head_end(b"HTTP/1.1 200 OK\r\n")
    (19, 0)
    """
    match = _HEAD_END.search(data, start)
    return match.end() if match else 0


def check_fields(block: bytes, what: str) -> None:
    """Raise for the line that is no field, in a block that ends in an empty line."""
    for line in block.split(b"\n")[:-2]:
        if not _FIELD_LINE.fullmatch(line + b"\n"):
            raise ProtocolError(f"{what}: not a field line: {shown(line)}")


def parse_head(raw: bytes) -> Head:
    r"""Check a whole head, with its empty line, and take it apart.

    >>> head = parse_head(b"HTTP/1.1 404 Not Found\r\nServer: X\r\nConnection: Close\r\n\r\n")
    >>> head.status, head.fields
    (404, {b'connection': b' close'})

    Raises ProtocolError with the line that does not fit (RFC 9112 sections 2 to 5).
    """
    if not _HEAD.fullmatch(raw):
        first = raw.find(b"\n") + 1
        if not re.fullmatch(_STATUS_LINE, raw[:first]):
            raise ProtocolError(f"response head: not an HTTP/1 status line: {shown(raw[:first])}",
                                exit_code=1)
        raw = raw[:first] + _FOLD.sub(b" ", raw[first:])  # the first line cannot be folded
        check_fields(raw[first:], "response head")
    fields: dict[bytes, bytes] = {}
    for name, value in _DECISIVE.findall(raw.lower()):
        fields[name] = fields[name] + b"," + value if name in fields else value
    return Head(raw, int(raw[7:8]), int(raw[9:12]), fields)


def octets_text(raw: bytes, name: str) -> list[str]:
    r"""The values of a field as text from which its octets can be had back.

    >>> octets_text(b"HTTP/1.1 302 Found\r\nLocation: /caf\xe9\r\n\r\n", "location")
    ['/caf\udce9']

    What came in Latin-1 or GBK is to be sent back, in a target or a cookie, as it came.
    """
    return [value.strip(b" \t").decode("utf-8", "surrogateescape")
            for key, value in _FIELD_LINE.findall(raw) if key.decode("ascii").lower() == name]


def field_text(value: bytes) -> str:
    """A value as text: UTF-8 where it is that, else its bytes as latin-1."""
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

    __slots__ = ("_values", "pairs")

    def __init__(self, pairs: Iterable[tuple[str, str]] = ()) -> None:
        self.pairs = tuple(pairs)  # all fields, as sent
        self._values: dict[str, list[str]] = {}  # of each field, behind its name as first sent
        for name, value in self.pairs:
            self._values.setdefault(name.lower(), [name]).append(value)

    @classmethod
    def parse(cls, block: bytes) -> Headers:
        r"""The fields in a head, or in trailers, that passed.

        >>> Headers.parse(b"HTTP/1.1 200 OK\r\nA: 1\r\nB:\t2 \r\n\r\n")
        Headers([('A', '1'), ('B', '2')])
        """
        return cls((name.decode("ascii"), field_text(value))
                   for name, value in _FIELD_LINE.findall(block))

    def get_all(self, name: str) -> list[str]:
        """Each value of a field on its own: commas do not part Set-Cookie (RFC 9110 5.3)."""
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
# TCP is a stream: nothing in it says where one response stops and the next one
# starts. The head does, in one of three ways. Read it wrong by a byte, and the
# next answer on this connection goes to the wrong question.
#
# A parser here is a generator: it is sent what arrived and yields the payload in
# it; when the body is whole it returns the last payload, what lies behind the body,
# and the trailer lines. Its place in the code is its state, and it can be left and
# taken up again at any byte. That the connection has ended is seen by who reads it.

Framing = Union[int, str]
BodyParser = Generator[bytes, bytes, "tuple[bytes, bytes, bytes]"]
_BORDER = re.compile(rb"\r\n([0-9A-Fa-f]{1,16})[ \t]*(?:;[^\x00-\x08\x0a-\x1f\x7f]*)?\r\n")
_sizes: dict[bytes, int] = {}  # of chunks, by what stands before them: many are alike
_LENGTH = re.compile(rb"[ \t]*([0-9]{1,18})[ \t]*(?:,[ \t]*\1[ \t]*)*")  # "5, 5" says 5


def body_framing(head: Head) -> Framing:
    r"""Say how the body ends: its length in bytes, "chunked", or "close".

    >>> body_framing(parse_head(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"))
    5

    The comments number the rules as RFC 9112 section 6.3 does. Rule 2, on CONNECT, is
    the tunnel's own (section 8). Raises ProtocolError when the fields contradict.
    """
    if head.status < 200 or head.status in (204, 304):
        return 0                                         # 1: whatever the fields say
    transfer, length = head.fields.get(b"transfer-encoding"), head.fields.get(b"content-length")
    if transfer is not None:
        if length is not None:                           # 3: somebody is being fooled
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
    """Whether the connection stays open behind this response (RFC 9112 9.3)."""
    options = parse_list(head.fields.get(b"connection", b""))
    if framing == "close" or b"close" in options:
        return False
    return head.minor >= 1 or (b"keep-alive" in options and framing != "chunked")  # 6.1


def parse_border(border: bytes) -> int:
    r"""The size of a chunk, from what stands before it: the CRLF of the last one, then its line.

    >>> parse_border(b"\r\n1F ;name=value\r\n")
    31

    int(line, 16) alone would take "+5", "0x5" and "0_5".
    """
    if not border.startswith(b"\r\n"):
        raise ProtocolError(f"no CRLF behind a chunk, but {shown(border[:20])}")
    match = _BORDER.fullmatch(border)
    if match is None or len(border) > MAX_EXTENSION_BYTES or int(match[1], 16) > sys.maxsize:
        raise ProtocolError(f"not a chunk size: {shown(border[2:])}")
    return int(match[1], 16)


def read_chunked() -> BodyParser:
    r"""Take chunks until the empty one, then the trailer section (RFC 9112 7.1).

        5;extension CRLF hello CRLF  0 CRLF  Trailer: x CRLF  CRLF

    Chunks that arrive together are yielded as one payload: their borders mean nothing.

    >>> body_parser("chunked").send(b"5\r\nhello\r\n6\r\n wor")
    b'hello wor'
    """
    arrived = io.BytesIO(b"\r\n")  # so that the first line, too, has a CRLF before it
    pieces: list[bytes] = []       # payload that was not yielded yet
    extensions = 0
    try:
        while True:
            border = arrived.read(2) + arrived.readline()
            size = _sizes.get(border)
            if size is None:
                while (b"\r\n".startswith(border[:2]) and not border[2:].endswith(b"\n")
                        and len(border) <= MAX_EXTENSION_BYTES):  # it may become one
                    arrived = io.BytesIO(border + (yield b"".join(pieces)))
                    border, pieces = arrived.read(2) + arrived.readline(), []
                size = parse_border(border)
                if len(border) <= 20:
                    if len(_sizes) >= MAX_SIZES:
                        _sizes.clear()
                    _sizes[border] = size
                else:  # more than digits; what payload comes with it is to its credit
                    extensions = max(0, extensions + len(border) - size)
                    if extensions > MAX_EXTENSION_BYTES:
                        raise ProtocolError(f"chunk extensions: over {MAX_EXTENSION_BYTES} bytes")
            if size == 0:
                break
            payload = arrived.read(size)
            while len(payload) < size:  # it goes on in what is still to come
                size -= len(payload)
                arrived = io.BytesIO((yield b"".join([*pieces, payload])))
                payload, pieces = arrived.read(size), []
            pieces.append(payload)
        # With the CRLF behind the 0 the trailer section ends in two, even if there are none.
        block, searched = bytearray(b"\r\n" + arrived.read()), 0
        while (end := block.find(b"\r\n\r\n", searched)) < 0 and len(block) - 2 <= MAX_HEAD_BYTES:
            searched = max(0, len(block) - 3)
            block += yield b"".join(pieces)
            pieces = []
        if not 0 <= end <= MAX_HEAD_BYTES - 2:
            raise ProtocolError(f"more than {MAX_HEAD_BYTES} bytes of trailers")
        trailers = _FOLD.sub(b" ", block[2:end + 4])  # they never join the head's fields
        check_fields(trailers, "trailers")
    except ProtocolError as error:
        error.payload = b"".join(pieces)  # what was right so far is handed out first
        error.exit_code = 56              # as curl has it for chunks
        raise
    return b"".join(pieces), bytes(block[end + 4:]), trailers


def read_sized(length: int) -> BodyParser:
    """Take `length` bytes."""
    data = yield b""
    while len(data) < length:
        length -= len(data)
        data = yield data
    return data[:length], data[length:], b""


def body_parser(framing: Framing) -> BodyParser:
    """The parser for a framing, started: send it what arrives."""
    if framing == "chunked":
        parser = read_chunked()
    else:  # until the connection closes: as many as come
        parser = read_sized(sys.maxsize if framing == "close" else int(framing))
    next(parser)
    return parser


# ==== 6. Decoding =============================================================
# A coding is undone in small steps, so that a bomb (a kilobyte that says "a
# gigabyte of zeros") is seen while it is small. A stream cut short is an error
# even where the framing was whole: the length says that the bytes are all there,
# only the coding says that the content is.

_CHARSET = re.compile(r";\s*charset\s*=\s*[\"']?([A-Za-z0-9._:+-]{1,40})", re.I)
# Text codecs alone: the rest of Python's codecs are slow on purpose-made input (punycode, idna),
# or no charsets at all (rot13, unicode_escape, undefined). No EBCDIC either (cp037, cp500 and
# such): lines are cut at the byte 0x0A, which there is no line end.
_TEXT_CODEC = re.compile(
    r"ascii|utf-(8|16|32)(-[a-z]+)?|iso8859-\d+|cp(437|720|737|775|8[56]\d|874|9[345]\d|1006|1125"
    r"|125\d)|koi8-[rtu]|big5(hkscs)?|gb(2312|k|18030)|euc_\w+|shift_jis\w*|iso2022_\w+|mac-\w+"
    r"|tis-620|kz1048|ptcp154|johab")
# The web's names that Python has not: by rule where there is one. Then what is to be decoded as
# more than it says, since browsers do so and servers count on it: under the names of the Chinese,
# Japanese and Korean standards go texts with the characters that Windows added to these.
_WEB_NAMES = ((r"^(x-)+|-[ei]$", ""), (r"^(windows|win|dos|cp)-?(?=\d+$)", "cp"),
              (r"^iso8859(?=\d)", "iso8859-"))
_WEB_CODECS = {name: codec for codec, names in {
    "mac-roman": "mac", "mac-cyrillic": "mac-ukrainian", "koi8-r": "koi8", "koi8-u": "koi8-ru",
    "big5": "cn-big5", "iso8859-8": "visual logical", "utf-16-le": "ucs-2 unicode",
    "cp932": "windows-31j shift_jis", "cp949": "ksc_5601 ks_c_5601-1989 cseuckr euc_kr",
    "gb18030": "gb_2312 gb_2312-80 csgb2312 gb2312 gbk",
}.items() for name in names.split()}


# How a further member may begin, which goes on where one has ended (RFC 1952, RFC 8878 3.1).
_MEMBER = {b"gzip": b"\x1f", b"deflate": b"", b"zstd": b"(PQRSTUVWXYZ[\\]^_"}


class Inflater:
    """Undo one coding: gzip of any number of members, deflate in both dialects, zstd.

    What lies behind a whole stream and is no further member (a line end, a comment, as
    servers' templates leave it) is passed over: the stream's own check says that the content
    is whole.
    """

    def __init__(self, coding: bytes) -> None:
        self.coding = coding
        self.stream: Any = None   # a decompressor: .decompress, .eof, .unused_data
        self.over = False         # what is still to come is no member

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield what data decodes to, in pieces of at most MAX_DECODED_STEP_BYTES."""
        for at in range(0, len(data), INFLATE_BYTES):
            yield from self.inflate(data[at:at + INFLATE_BYTES])

    def inflate(self, data: bytes) -> Iterator[bytes]:
        """Decode a slice so small that copying what is unused of it costs nothing."""
        full = False  # whether the last step stopped for want of room
        while data or full:
            if self.stream and self.stream.eof:
                data = data.lstrip(b"\0")  # padding, as gzip(1) takes it
                self.over = self.over or data[:1] not in _MEMBER[self.coding]
                if self.over or not data:
                    return
                self.stream = None
            self.stream = self.stream or self.open(data[0])
            try:
                piece = self.stream.decompress(data, MAX_DECODED_STEP_BYTES)
            except Exception as error:  # zlib.error or ZstdError: no common base
                raise DecodingError(f"not {self.coding.decode()}: {error}") from None
            data = (self.stream.unused_data if self.stream.eof else
                    getattr(self.stream, "unconsumed_tail", b""))  # zstd keeps it itself
            full = len(piece) == MAX_DECODED_STEP_BYTES and not self.stream.eof
            yield piece

    def open(self, first: int) -> Any:
        """A decompressor for what begins with this byte."""
        if self.coding == b"zstd":
            from compression import zstd  # type: ignore[import-not-found, unused-ignore]
            window = {zstd.DecompressionParameter.window_log_max: 23}  # RFC 9659: 8 MiB
            return zstd.ZstdDecompressor(options=window)
        if self.coding == b"gzip":
            return zlib.decompressobj(31)
        # "deflate" is zlib's format (RFC 9110 8.4.1.2); some send it without the wrapping.
        return zlib.decompressobj(15 if first & 15 == 8 else -15)

    def finish(self) -> None:
        """Raise if the stream is cut short; an empty body is whole in any coding."""
        if self.stream and not self.stream.eof:
            raise DecodingError(f"the {self.coding.decode()} stream ends too early: "
                                "the content is cut short")


class Decoder:
    """Undo the codings of a body, the last one applied first (RFC 9110 8.4).

    >>> import gzip
    >>> decoder = Decoder([b"gzip"])
    >>> b"".join(decoder.feed(gzip.compress(b"hello")))
    b'hello'
    >>> decoder.finish()
    """

    def __init__(self, codings: list[bytes]) -> None:
        self.stages = [Inflater(coding) for coding in reversed(codings)]
        self.budget = MAX_BETWEEN_BYTES  # that may yet be made between the stages
        self.work = 0                    # done so far, in bytes; whoever gives turns sets it back

    def feed(self, data: bytes, depth: int = 0) -> Iterator[bytes]:
        """Yield what data decodes to, and nothing now and then, for the work to be looked at."""
        if depth == len(self.stages):
            yield data
            return
        if depth == 0:
            self.budget = min(self.budget, 4 * MAX_BETWEEN_BYTES) + 100 * len(data)
        for piece in self.stages[depth].feed(data):
            self.work += STEP_BYTES + len(piece)
            if depth < len(self.stages) - 1:
                yield b""
                self.budget -= len(piece)
                if self.budget < 0:  # 300 bytes can say "a terabyte of nothing"
                    raise DecodingError("far more bytes between the codings than have arrived")
            yield from self.feed(piece, depth + 1)

    def finish(self) -> None:
        """Raise DecodingError if any of the codings is cut short."""
        for stage in self.stages:
            stage.finish()


def applied_codings(value: bytes) -> list[bytes]:
    r"""What a Content-Encoding, in lower case, says that was done to the bytes.

    >>> applied_codings(b"deflate, identity, x-gzip, none")
    [b'deflate', b'gzip']
    """
    return [b"gzip" if coding == b"x-gzip" else coding for coding in parse_list(value)
            if coding not in (b"identity", b"none")]


def content_codings(value: bytes) -> list[bytes]:
    """The codings to undo, in the order in which they were applied; value is in lower case.

    Raises DecodingError for what we cannot undo: br, for one, is not in the
    standard library, and handing out the coded bytes would be a silent lie.
    """
    codings = applied_codings(value)
    if len(codings) > MAX_CODINGS:
        raise DecodingError(f"{len(codings)} content codings: at most {MAX_CODINGS} are undone")
    for coding in codings:
        if coding not in parse_list(ACCEPT_ENCODING.encode()):  # we asked for no other
            raise DecodingError(f"content coding {shown(coding)} cannot be undone here; "
                                "decode=False gives the bytes as sent")
    return codings


def charset_of(content_type: str) -> str:
    """The codec for a Content-Type: its charset if that is one of text, else utf-8.

    >>> charset_of("text/html; charset=ISO-8859-1"), charset_of("text/html; charset=rot13")
    ('iso8859-1', 'utf-8')
    >>> charset_of("text/html; charset=x-sjis"), charset_of("text/html; charset=windows-874")
    ('cp932', 'cp874')
    """
    match = _CHARSET.search(content_type)
    name = match[1].lower() if match else "utf-8"
    for pattern, python in _WEB_NAMES:
        name = re.sub(pattern, python, name)
    try:
        codec = codecs.lookup(_WEB_CODECS.get(name, name)).name
    except LookupError:
        return "utf-8"
    codec = _WEB_CODECS.get(codec, codec)
    return codec if _TEXT_CODEC.fullmatch(codec) else "utf-8"


class LineCutter:
    r"""Lines out of the bytes of a text, as they come.

    >>> cutter = LineCutter("utf-16", "\ufeffé\nx".encode("utf-16-be"))
    >>> cutter.decode(cutter.take(False)), cutter.take(False), cutter.decode(cutter.take(True))
    ('é\n', b'', 'x')

    A line ends at the byte 0x0A, which in all codecs here is nothing else; or, where characters
    are wider, at that byte among zeros, in either order: U+0A00 is no character. So each line
    can be decoded by itself, but in ISO 2022 and behind a byte order mark.
    """

    def __init__(self, encoding: str, data: bytes = b"") -> None:
        self.encoding = encoding
        self.pending = bytearray(data)
        self.searched = 0
        self.width = {"utf-16": 2, "utf-32": 4}.get(encoding[:6], 1)  # of a line end
        self.decoder = (codecs.getincrementaldecoder(encoding)("replace")
                        if self.width > 1 or encoding.startswith("iso2022") else None)

    def take(self, last: bool) -> bytes:
        """The next line with its end, b"" for none yet; with `last`, what is left is one, too."""
        size = len(self.pending) if last else 0
        found = self.pending.find(b"\n", self.searched)
        while found >= 0:
            end = found - found % self.width + self.width
            character = b"\n" if self.width == 1 else self.pending[end - self.width:end]
            if end <= len(self.pending) and character.strip(b"\0") == b"\n":
                size = end
                break
            found = self.pending.find(b"\n", end)
        self.searched = 0 if size else max(0, len(self.pending) - self.width)
        line = bytes(self.pending[:size])
        del self.pending[:size]
        return line

    def decode(self, line: bytes) -> str:
        """A line as text; what does not decode is replaced."""
        if self.decoder is None:
            return line.decode(self.encoding, "replace")
        try:
            return self.decoder.decode(line, True)
        except UnicodeError:  # UTF-16 or UTF-32 without a mark
            self.decoder = codecs.getincrementaldecoder(self.encoding + "-le")("replace")
            return self.decoder.decode(line, True)


# ==== 7. Response =============================================================
# What the caller holds. It keeps the head as bytes and takes out of it what is
# asked for: a hundred thousand responses kept are then mostly their bodies. The
# body comes off a connection, which is handed in: it is asked for what arrives,
# and told when the body is over.

class Timing(NamedTuple):
    """Seconds since the start of the call; `reused`: on a kept connection."""

    connected: float
    sent: float
    head: float
    done: float
    reused: bool


class Body:
    """The body of one response on a connection, which it lets go of at its end."""

    __slots__ = ("connection", "framing", "reusable", "parser", "ready", "fault", "done",
                 "received", "done_at", "trailers", "deadline", "seconds", "turn")

    def __init__(self, connection: Connection, head: Head, keep: bool = True) -> None:
        self.connection: Connection | None = connection
        self.framing = body_framing(head)
        self.reusable = keep and may_reuse(head, self.framing)
        self.parser: BodyParser | None = None
        self.ready = b""     # payload that is here already
        self.fault: ProtocolError | None = None  # what comes behind that
        self.done = False    # whether `ready` is the last of it
        self.received = 0    # bytes of payload so far
        self.done_at = 0.0   # on the loop's clock
        self.trailers = b""
        self.deadline, self.seconds = connection.deadline, connection.call_seconds
        self.turn = connection.turn  # gives the loop one, and the time
        data, connection.rest = connection.rest, b""
        if isinstance(self.framing, int) and len(data) >= self.framing:  # it came with the head
            self.ready, self.received = data[:self.framing], self.framing
            self._let_go(connection, data[self.framing:])
            return
        connection.limit = connection.deadline  # while the caller thinks
        self.parser = body_parser(self.framing)
        if data:
            self.ready = self._take(connection, self.parser, data)

    def __getstate__(self) -> Any:
        if self.connection is not None or self.ready:
            raise TypeError("a Response whose body was not read cannot be pickled")
        return None, {name: getattr(self, name) for name in self.__slots__ if name != "turn"}

    async def read_piece(self) -> bytes:
        """The next bytes of the body as sent, b"" at its end; with the last, `done` is set."""
        piece, self.ready = self.ready, b""
        while not piece and (connection := self.connection) is not None and self.parser:
            if self.fault:
                raise self.fault
            connection.watch("more of the body", connection.timeout)
            data = await connection.receive()
            connection.limit = connection.deadline  # while the caller thinks
            if data:
                piece = self._take(connection, self.parser, data)
            else:
                self._ended(connection)
        return piece

    def _take(self, connection: Connection, parser: BodyParser, data: bytes) -> bytes:
        try:
            piece = parser.send(data)
        except StopIteration as end:
            piece, rest, self.trailers = end.value
            self._let_go(connection, rest)
        except ProtocolError as error:  # handed out is first what was right
            piece, self.fault = error.payload, error
        self.received += len(piece)
        return piece

    def _ended(self, connection: Connection) -> None:
        """The connection has ended: that is an end of the body, too, or it is an error."""
        if self.framing != "close":
            length = self.framing if isinstance(self.framing, int) else None
            raise IncompleteBody(
                f"the connection ended behind {self.received} bytes of the body"
                + ("" if length is None else f", which has {length}"),
                expected=length, received=self.received)
        if not connection.ended_cleanly():
            raise IncompleteBody("TLS was cut off, not closed: the body may be incomplete",
                                 received=self.received)
        self._let_go(connection, b"")

    def _let_go(self, connection: Connection, rest: bytes) -> None:
        """The body is whole: keep the connection if all agree."""
        self.done, self.connection, self.parser = True, None, None
        self.done_at = connection.loop.time()
        if self.reusable and not rest and not connection.expired:
            connection.rest_in_pool(self.done_at)
        else:
            connection.close()

    async def breathe(self) -> None:
        """Give the loop a turn amid long work; raise when the call's time is over."""
        if await self.turn() > self.deadline:
            raise TimedOut("no end of decoding within the whole call's deadline",
                           phase="more of the body", seconds=self.seconds)

    async def hurry(self, seconds: float) -> None:
        """Allow the rest of the body so many seconds at most."""
        connection = self.connection
        now = await self.turn() if connection is None else connection.loop.time()
        self.deadline = min(self.deadline, now + seconds)
        if connection is not None:
            connection.deadline = self.deadline

    def abort(self) -> None:
        """Give up the rest of the body, and the connection with it."""
        if self.connection is not None:
            self.connection.close()
            self.connection = self.parser = None
        self.ready = b""


# Why there is no `content`, whatever the timing was (== compares them: pickling makes others).
_UNREAD = "the body was not read: await response.read()"
_IN_PIECES = "the body was handed out in pieces, and is not kept: read() it instead"
_GIVEN_UP = "the body was given up: nothing is left to read"


class Response:
    """A response. After `get` its body is in `content`; in `stream` it is read as asked.

        before it was read          content, text and json() raise, and say what to await
        iter_bytes(), iter_lines()  may be left, and go on later where they stopped
        once a piece was handed out content and read() raise: the whole is not kept
        after get() or read()       all of them work as often as one likes
    """

    started = 0.0                          # the loop's clock when the call began
    peer: Any = None                       # the remote address
    local: Any = None                      # ours
    proxied = False                        # by way of a proxy
    request_bytes = 0                      # sent for this hop
    _marks = (0.0, 0.0, 0.0)               # connected, sent, head, on the loop's clock
    _reused = False
    _headers: Headers | None = None
    _encoding = ""
    _content: bytes | None = None          # the whole body, once it was read
    _missing = _UNREAD                     # why it is not there
    _ended = False                         # the last of the body is in _decoded
    _decoder: Decoder | None = None
    _decoded: Iterator[bytes] = iter(())   # what has come and was not handed out yet
    _cutter: LineCutter | None = None      # the same, of a line that is not whole

    def __init__(self, head: Head, url: URL, body: Body, decode: bool = True) -> None:
        self.status_code = head.status
        self.raw_head = head.raw           # as received, without folds
        self.history: list[Response] = []
        self._url = url._replace(userinfo="") if url.userinfo else url
        self._body = body
        # What is to be undone; for one that is the file's own a download makes it "identity".
        self.coding = head.fields.get(b"content-encoding", b"") if decode else b""

    # ---- the head

    @property
    def status(self) -> int:
        """The status code, as aiohttp names it."""
        return self.status_code

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

    @property
    def headers(self) -> Headers:
        """The fields of the head."""
        if self._headers is None:
            self._headers = Headers.parse(self.raw_head)
        return self._headers

    @property
    def ok(self) -> bool:
        """Whether the status is below 400."""
        return self.status_code < 400

    def raise_for_status(self) -> Response:
        """Return self, or raise StatusError for a status of 400 and above."""
        if not self.ok:
            status = f"{self.status_code} {printable(self.reason[:MAX_SHOWN_BYTES])}".rstrip()
            raise StatusError(f"{status} for {self.url}", url=self.url, response=self)
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
        links: dict[str, dict[str, str]] = {}
        link: dict[str, str] = {}
        pattern = r'<([^<>]*)>|;\s*([^\s=;,"<>]+)(?:\s*=\s*(?:"([^"]*)"|([^\s";,]+)))?'
        for url, name, quoted, token in re.findall(
                pattern, ", ".join(octets_text(self.raw_head, "link"))):
            if not name:
                link = {"url": url}
            elif link and name.lower() not in link:
                link[name.lower()] = quoted or token
                if name.lower() == "rel":
                    links.update((rel, link) for rel in (quoted or token).split())
        return links

    # ---- the body

    @property
    def content(self) -> bytes:
        """The body, decoded."""
        if self._content is None:
            raise AsyncGetError(self._missing, url=self.url, response=self)
        return self._content

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

    def json(self) -> Any:
        """The body as JSON: in UTF-8, -16 or -32, or in the charset that was set as `encoding`.

        Raises DecodingError where it is none.
        """
        import json
        try:
            return json.loads(self.content.decode(self._encoding).removeprefix("\ufeff")
                              if self._encoding else self.content)
        except (ValueError, RecursionError) as error:
            raise DecodingError(f"not JSON ({error}): {shown(self.content)}",
                                url=self.url, response=self) from None

    async def read(self, limit: int | None = None) -> bytes:
        """Read the body into `content`; raise TooLarge beyond limit."""
        if self._content is None:
            if self._missing != _UNREAD:
                raise AsyncGetError(self._missing, url=self.url, response=self)
            content: bytes | bytearray = b""
            while piece := await self._next_piece():
                if not content:
                    content = piece  # mostly it is all there is
                else:
                    content = bytearray(content) if isinstance(content, bytes) else content
                    content += piece
                self._check_size(len(content), limit,
                                 "bytes of body: raise max_size, or stream it")
            self._content = bytes(content)
        return self._content

    def _check_size(self, size: int, limit: int | None, what: str) -> None:
        if limit is not None and size > limit:
            self.close()  # the pieces before are gone
            raise TooLarge(f"more than {limit} {what}", limit=limit, url=self.url, response=self)

    async def iter_bytes(self) -> AsyncIterator[bytes]:
        """Yield the body, decoded, in pieces as they arrive."""
        if self._content is not None:
            if self._content:
                yield self._content
            return
        while piece := self._take_pending() or await self._next_piece():
            self._missing = _IN_PIECES
            yield piece

    def _take_pending(self) -> bytes:
        """What iter_lines has left of a piece."""
        cutter, self._cutter = self._cutter, None
        return bytes(cutter.pending) if cutter else b""

    async def iter_lines(self) -> AsyncIterator[str]:
        r"""Yield the body's lines as text, without their \n or \r\n.

        What is left when the loop is left is there for the next one, of either kind.
        """
        if self._content is not None:
            cutter, more = LineCutter(self.encoding, self._content), False
        else:
            cutter = self._cutter = self._cutter or LineCutter(self.encoding)
            more = True
        while True:
            while line := cutter.take(not more):
                self._check_size(len(line) - 1, MAX_LINE_BYTES, "bytes in a line")
                if self._content is None:
                    self._missing = _IN_PIECES
                yield cutter.decode(line).removesuffix("\n").removesuffix("\r")
            if not more:
                return
            self._check_size(len(cutter.pending), MAX_LINE_BYTES, "bytes in a line")
            piece = await self._next_piece()
            cutter.pending += piece
            more = bool(piece)

    async def discard(self) -> None:
        """Read a short rest, undecoded, so that the connection can be used again."""
        body = self._body
        long = isinstance(body.framing, int) and body.framing > MAX_DISCARD_BYTES
        if body.reusable and not long:
            await body.hurry(MAX_DISCARD_SECONDS)
            with contextlib.suppress(AsyncGetError):  # nobody wants it: a broken one does no harm
                while not body.done and body.received <= MAX_DISCARD_BYTES:
                    await body.read_piece()
        self.close()

    async def keep_short(self) -> None:
        """Read a body that is short, and comes at once, for the error that will hold it."""
        if self._content is None and self._missing == _UNREAD:
            await self._body.hurry(MAX_DISCARD_SECONDS)
            with contextlib.suppress(AsyncGetError):
                await self.read(MAX_DISCARD_BYTES)

    async def stand_by(self, something: Awaitable[object]) -> None:
        """Await what the server has no part in: meanwhile the call's clock stands still."""
        body, connection = self._body, self._body.connection
        left = body.deadline - await body.turn()
        body.deadline = _FOREVER
        if connection is not None:
            connection.deadline = connection.limit = _FOREVER
        try:
            await something
        finally:
            body.deadline = await body.turn() + left
            if connection is not None:
                connection.deadline = connection.limit = body.deadline

    def close(self) -> None:
        """Give up what is left of the body; closes the connection if something is."""
        whole = self._ended and self._decoder is None and not (
            self._cutter and self._cutter.pending)
        if self._content is None and not (whole and self._missing == _IN_PIECES):
            self._missing = _GIVEN_UP
        self._decoder, self._decoded = None, iter(())
        self._cutter = None
        self._body.abort()

    async def _next_piece(self) -> bytes:
        """The next bytes of the body, decoded; b"" at its end."""
        try:
            if self._missing == _GIVEN_UP:  # lest what was cut short look whole
                raise AsyncGetError(_GIVEN_UP)
            while True:
                for piece in self._decoded:
                    if self._decoder and self._decoder.work > MAX_WORK_BYTES:
                        self._decoder.work = 0
                        await self._body.breathe()
                    if piece:
                        return piece
                self._decoded = iter(())  # for pickle, which takes no generator
                if self._ended:
                    return b""
                piece = await self._body.read_piece()
                self._ended = self._body.done
                if not self.coding:
                    return piece
                self._decoded = self._decode(piece, self._ended)
        except BaseException as error:  # cancelled, too: the rest is lost
            self.close()
            if isinstance(error, AsyncGetError):
                error.url, error.response = self.url, self
            raise

    def _decode(self, data: bytes, last: bool) -> Iterator[bytes]:
        """Yield what data decodes to; with the last of it the coding must end, too."""
        if self._decoder is None and data:  # an empty body is whole, even in a coding unknown
            self._decoder = Decoder(content_codings(self.coding))
        if self._decoder is not None:
            yield from self._decoder.feed(data)
            if last:
                self._decoder.finish()
                self._decoder = None

    @property
    def received(self) -> int:
        """Bytes of the body on the wire so far."""
        return self._body.received

    @property
    def trailers(self) -> Headers:
        """The fields behind a chunked body, once it is read."""
        return Headers.parse(self._body.trailers)

    # ---- the clock

    @property
    def timing(self) -> Timing:
        """When what was done, in seconds since the call began; 0 for what is not."""
        connected, sent, head, done = (max(0.0, mark - self.started)
                                       for mark in (*self._marks, self._body.done_at))
        return Timing(connected, sent, head, done, self._reused)

    @property
    def elapsed(self) -> timedelta:
        """From the call to the end of what was read."""
        from datetime import timedelta
        return timedelta(seconds=max(self.timing[:4]))

    def __repr__(self) -> str:
        return f"<Response {self.status_code} {self.url}>"


# ==== 8. Connection ===========================================================
# One TCP connection, from the first packet to the last: how it is opened (straight,
# over TLS, through a proxy), how one request and its response go over it, and the
# one clock that watches it. The clock is a single timer handle for the connection's
# whole life: a new limit is mostly just a number moved further away, which the timer
# finds when it wakes. wait_for, or a timer for each read, would cost a task or a
# handle a time; that is half the price of a small GET.

_STRICT_X509 = range(80, 95)  # OpenSSL's codes for what VERIFY_X509_STRICT adds
_BROKEN = (BrokenPipeError, ConnectionResetError, ConnectionAbortedError)
_STUMBLES = (TypeError, AttributeError)  # asyncio's, over an error in TLS in TLS, until 3.12.2
_SOCKS_REPLIES = {1: "general failure", 2: "not allowed by its rules", 3: "network unreachable",
                  4: "host unreachable", 5: "connection refused", 6: "expired on the way",
                  7: "command not supported", 8: "address type not supported"}

Connector = Callable[..., Awaitable["tuple[asyncio.StreamReader, asyncio.StreamWriter]"]]
Trace = Callable[[str, Union[str, bytes]], object]


class Proxy(NamedTuple):
    """A proxy, and where its name came from, for the error texts."""

    scheme: str    # "http", "https", "socks5" or "socks5h" (the proxy resolves names)
    host: str
    port: int
    userinfo: str  # for the proxy alone; never in a text
    source: str    # "proxy=", or the variable's name

    def __str__(self) -> str:
        return f"{self.scheme}://{bracketed(self.host)}:{self.port} (from {self.source})"

    def __repr__(self) -> str:
        return f"<Proxy {self}>"


class Route(NamedTuple):
    """All that must be equal for two requests to share a connection.

        asked for                          route
        http://h/                          origin
        https://h/, verify=..., cert=...   origin, the SSLContext's identity
        either through a proxy             and the proxy, with its credentials and SSLContext
        unix_socket=..., resolve=...       and the address
    """

    origin: Origin
    tls: ssl.SSLContext | None
    proxy: Proxy | None
    unix_socket: str | None
    address: str | None  # where to connect instead of looking the host up
    proxy_tls: ssl.SSLContext | None = None  # the client's certificate is not in it
    verify: Any = True   # as the caller gave it, for the error texts


async def turn_of_loop() -> float:
    """Let others run; then the time on the loop's clock."""
    await asyncio.sleep(0)
    return asyncio.get_running_loop().time()


async def cancel(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """End tasks and wait until they have cleaned up."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def error_of_all(errors: Sequence[BaseException]) -> BaseException:
    """The error when no address of a name would do: TLS's word, else what each one said."""
    for error in errors:
        if isinstance(error, ssl.SSLError) or not isinstance(error, OSError):
            return error
    told = OSError("; ".join(dict.fromkeys(map(str, errors))) or "the name has no address")
    told.errno = errors[0].errno if errors and isinstance(errors[0], OSError) else None
    return told


async def open_first(host: str, port: int, family: int = 0, **options: Any) -> tuple[
        asyncio.StreamReader, asyncio.StreamWriter]:
    """asyncio.open_connection to that of a name's addresses which answers first (RFC 8305)."""
    return await open_any(await look_up(host, port, family), port, **options)


async def look_up(host: str, port: int, family: int = 0) -> list[str]:
    """The addresses of a name, families by turns (RFC 8305 section 4), or of a list "a,b"."""
    if "," in host:
        return host.split(",")
    found = await asyncio.get_running_loop().getaddrinfo(host, port, family=family,
                                                         type=socket.SOCK_STREAM)
    by_family: dict[int, list[str]] = {}
    for kind, _, _, _, address in found:
        zone = f"%{address[3]}" if len(address) == 4 and address[3] else ""  # of fe80::1%eth0
        by_family.setdefault(kind, []).append(without_zone(str(address[0])) + zone)
    names = [name for names in itertools.zip_longest(*by_family.values()) for name in names if name]
    return names[:MAX_ADDRESSES]


async def open_any(addresses: Iterable[str], port: int, **options: Any) -> tuple[
        asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to that address which answers first; each has a start on the next one.

    With happy_eyeballs_delay asyncio does it, too, but loses a socket when it is cancelled
    at the wrong moment; and uvloop does not.
    """
    todo = list(addresses)
    if len(todo) == 1:
        return await asyncio.open_connection(todo[0], port, **options)
    attempts: set[asyncio.Future[Any]] = set()
    errors: list[BaseException] = []
    try:
        while todo or attempts:
            if todo:
                attempts.add(asyncio.ensure_future(
                    asyncio.open_connection(todo.pop(0), port, **options)))
            done, _ = await asyncio.wait(attempts, return_when=asyncio.FIRST_COMPLETED,
                                         timeout=HAPPY_EYEBALLS_SECONDS if todo else None)
            for attempt in done:
                attempts.remove(attempt)
                if not attempt.exception():
                    opened: tuple[asyncio.StreamReader, asyncio.StreamWriter] = attempt.result()
                    return opened
                errors.append(attempt.exception() or OSError())
        raise error_of_all(errors)
    finally:
        errors.clear()  # else their tracebacks would hold us, and we them
        for attempt in attempts:
            attempt.add_done_callback(drop_opened)  # it won as well, or while we were cancelled
        await cancel(attempts)


def drop_opened(attempt: asyncio.Future[Any]) -> None:
    """Close a connection that nobody waits for any more."""
    if not attempt.cancelled() and not attempt.exception():
        attempt.result()[1].transport.abort()


def proxy_fields(proxy: Proxy) -> list[tuple[str, str]]:
    """What a proxy, and nobody else, is told of its own credentials."""
    if not proxy.userinfo:
        return []
    return [("Proxy-Authorization", render_auth(split_userinfo(proxy.userinfo)))]


def trusted(verify: Any) -> str:
    """Where the trusted certificates come from, for the error texts."""
    if isinstance(verify, ssl.SSLContext):
        return "the SSLContext that is verify="
    if verify is not True:
        named = ", under the names that `openssl rehash` gives" if os.path.isdir(verify) else ""
        return f"verify={os.fspath(verify)!r}{named}"
    paths = ssl.get_default_verify_paths()
    found = []
    for variable, usual in ((paths.openssl_cafile_env, paths.openssl_cafile),
                            (paths.openssl_capath_env, paths.openssl_capath)):
        path = os.environ.get(variable, usual)
        missing = "" if os.path.exists(path) else ", which is not there"
        found.append(f"{variable} ({path}{missing})")
    return " and ".join(found) + "; a private CA's file goes into the first, or verify="


def certificate_hint(error: ssl.SSLCertVerificationError, context: ssl.SSLContext | None,
                     verify: Any) -> str:
    """What to do about a certificate that did not pass."""
    strict = getattr(ssl, "VERIFY_X509_STRICT", 0)
    if context and context.verify_flags & strict and error.verify_code in _STRICT_X509:
        return ("; this is one of the strict checks that are on since Python 3.13: to relax just "
                "these, pass verify=context with context.verify_flags &= ~ssl.VERIFY_X509_STRICT")
    if error.verify_code in (9, 10, 62, 64):  # not yet or no longer valid, host name, IP address
        return ""
    return f"; trusted are those in {trusted(verify)}"


def handshake_hint(reason: str) -> str:
    """What to do about a handshake that failed."""
    if reason in ("WRONG_VERSION_NUMBER", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE",
                  "HTTP_REQUEST", "UNKNOWN_PROTOCOL"):
        return "; no TLS is spoken there: does the URL begin with http://, not https://?"
    if "CERTIFICATE_REQUIRED" in reason:
        return "; a client certificate is wanted: cert="
    if "HANDSHAKE_FAILURE" in reason:  # all that TLS 1.2 has for it
        return "; perhaps a client certificate is wanted (cert=), or no cipher is shared"
    return ""


class Connection:
    """A connection on a route: made by the pool, opened, used, kept or closed."""

    def __init__(self, route: Route, connector: Connector,
                 on_idle: Callable[[Connection], None],
                 on_close: Callable[[Connection], None]) -> None:
        self.route = route
        self.connector = connector
        self.trace: Trace | None = None  # of the call that uses it
        self.on_idle, self.on_close = on_idle, on_close
        self.loop = asyncio.get_running_loop()
        self.turn = turn_of_loop
        self.reader: Any = None       # asyncio.StreamReader and StreamWriter, or doubles
        self.writer: Any = None
        self.outer: Any = None        # the writer to the proxy, below the one in its tunnel
        self.peer: Any = None
        self.local: Any = None
        self.closed = False
        self.exchanges = 0            # requests sent so far
        self.silent = True            # no byte of the current response has come
        self.interim = 0              # 1xx responses ahead of it
        # the clock
        self.phase = "connect"        # what is waited for
        self.seconds = _FOREVER       # how long that may take
        self.limit = _FOREVER         # the moment when that is over
        self.deadline = _FOREVER      # the moment when the whole call is
        self.call_seconds = 0.0       # how long that was
        self.expired = False
        self.timer: asyncio.Handle | None = None
        self.wakes_at = _FOREVER      # when it rings
        self.excused = 0.0            # a limit that was moved, as the loop had stood still
        self.opener: asyncio.Task[Any] | None = None
        # the response being read
        self.rest = b""               # received, not used yet
        self.broken: Exception | None = None  # told by the socket behind the last byte
        self.reading: Any = None      # a read begun before the request was sent
        self.timeout: float | None = None
        self.opened_at = self.sent_at = self.idle_at = 0.0

    def __repr__(self) -> str:
        state = "closed" if self.closed else self.phase if self.writer else "new"
        return f"<Connection {self.route.origin.authority} {state}, {self.exchanges} requests>"

    def note(self, text: str) -> None:
        """Tell whoever traces what is going on."""
        if self.trace:
            self.trace("*", text)

    # ---- the clock

    def watch(self, phase: str, seconds: float | None) -> float:
        """Allow phase so many seconds from now, within the deadline; return now."""
        now = self.loop.time()
        self.phase = phase
        self.seconds = _FOREVER if seconds is None else seconds
        self.limit = limit = min(now + self.seconds, self.deadline)
        if limit < self.wakes_at:
            self._set_timer()
        return now

    def _set_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
        self.wakes_at = self.limit
        self.timer = self.loop.call_at(self.limit, self._wake) if self.limit < _FOREVER else None

    def _wake(self, turns: int = LAST_TURNS) -> None:
        """The clock rings. It may have been moved on; if not, whatever waits is ended.

        But not at once: while the program was busy elsewhere the answer may have come, and
        lie in the kernel. So the loop has its turns to bring it in, before the clock is
        believed. If it rings late, we were away for so long and could not take our part in a
        handshake: that time, once, is given back, within the deadline.
        """
        self.timer, self.wakes_at = None, _FOREVER
        late = self.loop.time() - self.limit
        if late < 0:
            self._set_timer()
        elif self.phase == "idle":
            self.close()
        elif late > LATE_SECONDS and self.limit < self.deadline and self.limit != self.excused:
            self.excused = self.limit = min(self.loop.time() + min(late, self.seconds),
                                            self.deadline)
            self._set_timer()
        elif turns:
            self.wakes_at = -_FOREVER  # this look is all that is due: no timer beside it
            self.timer = self.loop.call_soon(self._wake, turns - 1)
        else:
            self.expired = True
            if self.opener is not None:
                self.opener.cancel()
            else:
                self.writer.transport.abort()  # ends every wait on this connection

    def ended(self) -> AsyncGetError:
        """The error for a clock that ran out, or a session closed by someone else."""
        if not self.expired:
            return AsyncGetError(f"the connection to {self.where()} was closed on our side")
        seconds, what = self.seconds, self.phase
        if self.limit >= self.deadline:
            seconds, what = self.call_seconds, f"{self.phase} (the whole call's deadline)"
        return TimedOut(f"no {what} within {seconds:g} s: {self.hop()}",
                        phase=self.phase, seconds=seconds)

    def where(self) -> str:
        """Which address this is, and by which way, for error texts."""
        route = self.route
        origin = route.origin
        address = f"unix:{route.unix_socket}" if route.unix_socket else (
            f"{bracketed(origin.host)}:{origin.port}"
            + (f" at {route.address}" if route.address else ""))
        return address + (f" through proxy {route.proxy}" if route.proxy else "")

    def hop(self) -> str:
        """The same, but the proxy alone while we are not even there."""
        proxy = self.route.proxy
        return f"proxy {proxy}" if proxy and self.phase == "connection" else self.where()

    # ---- opening

    async def open(self, timeout: float | None) -> None:
        """Connect, through the proxy if there is one, and encrypt if the origin asks.

        Raises ConnectError, TLSError, ProxyError or TimedOut; then nothing is left open.
        """
        if self.closed:
            raise self.ended()
        self.timeout = timeout
        self.opener = task = asyncio.current_task()
        cancels = task.cancelling() if task and hasattr(task, "cancelling") else 0  # 3.11
        self.opened_at = self.watch("connection", timeout)
        try:
            await self._dial()
            if self.route.proxy:
                await self._pass_proxy(self.route.proxy)
        except asyncio.CancelledError:
            ours = self.expired or self.closed
            self.close()
            if not ours or task is None or (
                    hasattr(task, "uncancel") and task.uncancel() > cancels):
                raise  # somebody else's cancellation, too
            raise self.ended() from None
        except AsyncGetError:
            self.close()
            raise
        except Exception as error:
            self.close()
            raise self.open_error(error) from error
        finally:
            self.opener = None
        self.peer = self.writer.get_extra_info("peername")
        self.local = self.writer.get_extra_info("sockname")
        self.note(f"connected to {self.where()}")

    async def _dial(self) -> None:
        """Open the stream to the first hop: the origin, its stand-in, or the proxy."""
        route, proxy = self.route, self.route.proxy
        host, port = (proxy.host, proxy.port) if proxy else (route.origin.host, route.origin.port)
        tls = route.proxy_tls if proxy else route.tls
        if tls and proxy and route.tls and sys.version_info < (3, 11):
            raise ProxyError(f"{self.hop()}: TLS inside the TLS of an https:// proxy needs "
                             "Python 3.11; an http:// proxy tunnels https, too")
        options: dict[str, Any] = {"limit": READ_BYTES}
        if tls:
            options.update(self._tls_options(host), ssl=tls)
        if route.unix_socket:
            if not hasattr(asyncio, "open_unix_connection"):
                raise ConnectError(f"no unix sockets on {sys.platform}: {route.unix_socket!r}")
            self.reader, self.writer = await asyncio.open_unix_connection(
                route.unix_socket, **options)
            return
        if not proxy and route.address:
            host = route.address
        races = self.connector is asyncio.open_connection and (
            "," in host or not is_address(host))
        self.reader, self.writer = await (open_first if races else self.connector)(
            host, port, **options)

    def _tls_options(self, host: str) -> dict[str, Any]:
        """The name to certify, without the dot of the root (RFC 6066 3); and no clock but ours."""
        return {"server_hostname": without_zone(host).rstrip("."), "ssl_handshake_timeout": 1e6}

    async def _pass_proxy(self, proxy: Proxy) -> None:
        """Have the proxy connect us to the origin; for http it is just asked, later on."""
        if proxy.scheme.startswith("socks"):
            self.watch("answer of the proxy", self.timeout)
            await self._socks(proxy)
            if self.rest:
                raise self.proxy_error(f"sent bytes before it was asked: {shown(self.rest)}", 56)
        elif self.route.tls:
            await self._connect_tunnel(proxy)
        if self.route.tls:
            self.watch("TLS handshake", self.timeout)
            await self._start_tls(self.route.tls)

    async def _connect_tunnel(self, proxy: Proxy) -> None:
        """Ask an HTTP proxy for a tunnel (RFC 9110 9.3.6); nothing of the request is told."""
        origin = self.route.origin
        target = f"{bracketed(without_zone(origin.host))}:{origin.port}"
        fields = (("Host", target), ("User-Agent", f"asyncget/{__version__}"),
                  *proxy_fields(proxy))
        request = b"CONNECT %b HTTP/1.1\r\n%b" % (target.encode("ascii"),
                                                  render_fields(fields, origin))
        try:
            head = await self.exchange(request, self.timeout, "answer of the proxy")
        except ProtocolError as error:
            raise self.proxy_error(f"did not answer CONNECT {target}: {error}") from error
        self.exchanges = 0  # none with the origin
        if head.status // 100 != 2:
            hint = ""
            if head.status in (401, 407):  # 401 is tinyproxy's word for it
                hint = " (give user and password in the proxy's URL)"
            if hint and proxy.userinfo:
                asked = [value.split(" ")[0] for value in
                         octets_text(head.raw, "proxy-authenticate")]
                wants = printable(", ".join(asked))[:MAX_SHOWN_BYTES]
                hint = (" (the user and password in its URL were refused"
                        + (f"; it asks for {wants})" if wants else ")"))
            raise self.proxy_error(f"refused a tunnel to {target}: {head.status} "
                                   + printable(status_reason(head.raw)[:MAX_SHOWN_BYTES]) + hint
                                   + await self._refusal(head), 56)

    async def _refusal(self, head: Head) -> str:
        """What the proxy says about it: the first line of text in a body that may be to come.

        Not by way of Body, which might keep the connection as if it were the origin's.
        """
        text = b""
        try:
            framing = body_framing(head)
            if framing != 0:
                data = self.rest or await asyncio.wait_for(self.receive(), REFUSAL_SECONDS)
                text = body_parser(framing).send(data)
        except StopIteration as end:
            text = end.value[0]
        except (AsyncGetError, asyncio.TimeoutError):
            pass
        lines = re.sub(rb"<[^<>]*>", b"", text).split(b"\n")
        return next((f"; it says {shown(line.strip())}" for line in lines if line.strip()), "")

    async def _socks(self, proxy: Proxy) -> None:
        """Ask a SOCKS5 proxy for the connection (RFC 1928, password RFC 1929)."""
        origin, read, write = self.route.origin, self._read_exactly, self.writer.write
        write(b"\x05\x02\x00\x02" if proxy.userinfo else b"\x05\x01\x00")
        version, method = start = await read(2)
        if version != 5:
            raise self.proxy_error(f"is no SOCKS5 proxy: its answer begins with {shown(start)}")
        if method == 2 and proxy.userinfo:
            user, password = (text.encode("utf-8", "surrogateescape")
                              for text in split_userinfo(proxy.userinfo))
            write(b"\x01%c%b%c%b" % (len(user), user, len(password), password))
            if (await read(2))[1]:
                raise self.proxy_error("refused the user and password in its URL")
        elif method:
            raise self.proxy_error("wants something else than the password in its URL"
                                   if proxy.userinfo else "wants a user and password in its URL")
        write(b"\x05\x01\x00%b%b" % (await self._socks_address(proxy),
                                     origin.port.to_bytes(2, "big")))
        version, reply, _, kind = start = await read(4)
        if version != 5 or reply == 0 and kind not in (1, 3, 4):
            raise self.proxy_error(f"is no SOCKS5 proxy: it answers {shown(start)}")
        if reply:
            raise self.proxy_error(f"cannot connect to {bracketed(origin.host)}:{origin.port}: "
                                   + _SOCKS_REPLIES.get(reply, f"reply {reply}"))
        size = {1: 4, 4: 16}.get(kind) or (await read(1))[0]
        await read(size + 2)  # the address that it connects from

    async def _read_exactly(self, count: int) -> bytes:
        """So many of the proxy's next bytes."""
        while len(self.rest) < count:
            try:
                data = await self.receive()
            except IncompleteBody as error:
                raise self.proxy_error(f"closed the connection: {error}") from error
            if not data:
                raise self.proxy_error(f"closed the connection behind {shown(self.rest)}")
            self.rest += data
        data, self.rest = self.rest[:count], self.rest[count:]
        return data

    async def _socks_address(self, proxy: Proxy) -> bytes:
        """The origin's host as SOCKS has it: an address, or a name for socks5h."""
        import ipaddress
        host = self.route.address or self.route.origin.host
        if "," in host or not is_address(host):
            if proxy.scheme == "socks5h":
                return b"\x03%c%b" % (len(host), host.encode("ascii"))
            host = (await look_up(host, self.route.origin.port))[0]
        address = ipaddress.ip_address(host)
        return (b"\x01" if address.version == 4 else b"\x04") + address.packed

    async def _start_tls(self, tls: ssl.SSLContext) -> None:
        """Begin TLS inside a tunnel, on a fresh reader.

        StreamWriter.start_tls (3.11) would keep the old reader, and hand out plain bytes
        that a proxy slipped in as if they had come encrypted (as in CVE-2021-22947).
        loop.start_tls does for 3.9, too.
        """
        if self.rest or not self.begin_read():
            raise self.proxy_error("ended the tunnel, or sent bytes before it was in use: "
                                   + shown(self.rest), 56)
        self.reading[0].close()
        self.reading = None
        self.outer, self.writer = self.writer, None  # collected, it would close the transport
        self.reader = asyncio.StreamReader(limit=READ_BYTES, loop=self.loop)
        protocol = asyncio.StreamReaderProtocol(self.reader, loop=self.loop)
        try:
            transport = await self.loop.start_tls(self.outer.transport, protocol, tls,
                                                  **self._tls_options(self.route.origin.host))
        except _STUMBLES as error:
            raise error.__context__ or ConnectionResetError("closed in the handshake") from None
        if transport is None or transport.is_closing():  # the connection ended meanwhile
            raise ConnectionResetError("closed during the handshake")
        protocol.connection_made(transport)
        self.writer = asyncio.StreamWriter(transport, protocol, self.reader, self.loop)

    def proxy_error(self, text: str, exit_code: int = 97) -> ProxyError:
        """The error for what a proxy said, or did not say."""
        return ProxyError(f"proxy {self.route.proxy} {text}{self.after()}", exit_code=exit_code)

    def after(self) -> str:
        """How long opening took, for the error texts."""
        return f" (after {self.loop.time() - self.opened_at:.2f} s)"

    def open_error(self, error: Exception) -> Exception:
        """Our error for what went wrong on the way: at which hop, and what to do about it."""
        route, hop = self.route, self.hop()
        proxy = route.proxy if self.phase == "connection" else None
        tls, text = route.proxy_tls if proxy else route.tls, str(error) or type(error).__name__
        if isinstance(error, ssl.SSLCertVerificationError):
            return TLSError(f"certificate of {hop} refused: {error.verify_message}{self.after()}"
                            + certificate_hint(error, tls, route.verify), exit_code=60)
        if isinstance(error, ssl.SSLError):
            return TLSError(f"TLS handshake with {hop} failed: {error.reason or text}"
                            + self.after() + handshake_hint(error.reason or ""))
        if isinstance(error, (socket.gaierror, UnicodeError)):
            return (ProxyError if proxy else ConnectError)(
                f"cannot resolve {(proxy or route.origin).host!r}, for {hop}: {text}{self.after()}",
                exit_code=5 if proxy else 6, errno=getattr(error, "errno", None))
        if not isinstance(error, (OSError, ValueError, EOFError)):
            return error  # a fault of ours, or of the caller's open_connection
        if self.phase == "answer of the proxy":
            return self.proxy_error(f"closed the connection: {text}")
        if self.phase == "TLS handshake" or tls and isinstance(error, _BROKEN):
            return TLSError(f"TLS handshake with {hop} failed: {text}{self.after()}")
        return ConnectError(f"cannot connect to {hop}: {text}{self.after()}",
                            errno=getattr(error, "errno", None))

    # ---- one exchange

    async def exchange(self, request: bytes, timeout: float | None,
                       phase: str = "response head") -> Head:
        """Send a head and read the head that answers it, past any interim ones.

        Its body is Body's to read. After an error the caller closes: only a body read to
        its end keeps a connection.
        """
        if self.trace:
            self.trace(">", request)
        self.exchanges += 1
        self.silent, self.timeout = True, timeout
        self.sent_at = self.watch(phase, timeout)
        self.writer.write(request)  # no drain: there is no more to come, and little of it
        for self.interim in range(MAX_INTERIM + 1):
            data = self.rest or await self.receive()
            end = find_head_end(data)
            if not end:
                data, end = await self._read_long_head(bytearray(data))
            if end > MAX_HEAD_BYTES:
                raise ProtocolError(f"response head: more than {MAX_HEAD_BYTES} bytes",
                                    exit_code=56)
            self.rest = data[end:]
            if self.trace:
                self.trace("<", data[:end])
            head = parse_head(data[:end])
            if head.status >= 200:
                return head
            if head.status == 101:
                raise ProtocolError("101 Switching Protocols, which was not asked for")
        raise ProtocolError(f"more than {MAX_INTERIM} interim responses")

    async def _read_long_head(self, data: bytearray) -> tuple[bytes, int]:
        """Read on to the end of a head that did not come at once."""
        end = 0
        while not end and len(data) <= MAX_HEAD_BYTES:
            if data[:7] != b"HTTP/1."[:len(data)]:
                raise ProtocolError(f"not an HTTP/1 response: {shown(data)}", exit_code=1)
            arrived = await self.receive()
            if not arrived and not data:
                raise IncompleteBody(f"empty reply from {self.where()}", exit_code=52)
            if not arrived:
                raise IncompleteBody(f"the connection ended inside the head: {shown(data)}")
            searched = max(0, len(data) - 2)
            data += arrived
            end = find_head_end(data, searched)
        return bytes(data), end or MAX_HEAD_BYTES + 1

    @types.coroutine
    def receive(self) -> Generator[Any, None, bytes]:
        """The next bytes, b"" at the end; errors are ours, and so is a clock that ran out."""
        begun, self.reading = self.reading, None
        reading = begun[0] if begun else self.reader.read(READ_BYTES)
        try:
            arrival = begun[1] if begun else reading.send(None)
            while True:  # as `await reading` would, from where begin_read left it
                arrival = reading.send((yield arrival))
        except StopIteration as end:
            data: bytes = end.value
        except (OSError, *_STUMBLES) as error:
            if self.broken or not isinstance(self.reader, asyncio.StreamReader):
                raise self.lost(error) from error
            # The reader tells of an error before it hands out what came ahead of it: a whole
            # response, say, behind which the server reset the connection.
            self.broken = error
            self.reader.set_exception(None)  # type: ignore[arg-type]
            self.reader.feed_eof()
            data = yield from self.reader.read(READ_BYTES)
        finally:
            reading.close()
        if data:
            self.silent = False
        elif self.broken:
            raise self.lost(self.broken) from self.broken
        elif self.expired or self.closed:
            raise self.ended()
        return data

    def lost(self, error: BaseException) -> AsyncGetError:
        """Our error for a connection that broke."""
        if isinstance(error, _STUMBLES):
            error = error.__context__ or error
        if self.expired:
            return self.ended()
        if isinstance(error, ssl.SSLError):  # TLS 1.3 refuses a client this late
            return TLSError(f"TLS with {self.where()} failed: {error.reason or error}"
                            + handshake_hint(error.reason or ""))
        return IncompleteBody(f"connection to {self.where()} lost: {error}", exit_code=56)

    def ended_cleanly(self) -> bool:
        """Whether the end that was read was meant: TLS says so, lest somebody cut it (9.8)."""
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

    # ---- between exchanges

    def rest_in_pool(self, now: float) -> None:
        """Wait for the next exchange, for a while; end as soon as the server says anything."""
        if self.reading is None and not self.begin_read():
            self.close()
            return
        if asyncio.isfuture(self.reading[1]):
            self.reading[1].add_done_callback(self._spoke)
        self.phase, self.idle_at = "idle", now
        self.deadline, self.limit = _FOREVER, now + IDLE_SECONDS
        if self.limit < self.wakes_at:  # else it wakes before, and finds the new limit
            self._set_timer()
        self.on_idle(self)

    def _spoke(self, _: object) -> None:
        """Bytes, or the end, while nothing was asked: no request may go out here any more."""
        self.close()

    def is_quiet(self) -> bool:
        """Whether an idle connection can be used; from now on its end is for who uses it."""
        if self.closed:
            return False
        future = self.reading[1]
        if not asyncio.isfuture(future):
            return True
        future.remove_done_callback(self._spoke)
        return not future.done()

    def has_rested(self) -> bool:
        """Whether it was idle for so long that a look into the kernel is due."""
        return self.loop.time() - self.idle_at > IDLE_MOMENT_SECONDS

    def begin_read(self) -> bool:
        """Begin to read what is to come; False if there is something already.

        What lies there before we asked would be taken for the answer (CVE-2026-6733),
        and an end would be found too late. A coroutine can be stepped by hand: if a
        read has to wait, it hands us the future that it waits for.
        """
        reading: Any = self.reader.read(READ_BYTES)
        try:
            self.reading = reading, reading.send(None)
        except (StopIteration, OSError):  # bytes, the end, or an error
            return False
        return True

    def close(self) -> None:
        """Close at once, waiting for nobody."""
        if self.closed:
            return
        self.closed = True
        if self.loop.is_closed():
            return  # all that was open went with it
        if self.timer is not None:
            self.timer.cancel()
        if self.reading is not None:
            reading, future = self.reading
            if asyncio.isfuture(future) and future.done() and not future.cancelled():
                future.exception()  # it is known: asyncio is not to complain of it
            reading.close()
        for writer in (self.writer, self.outer):
            if writer is not None:
                writer.close()            # says close_notify (RFC 9112 9.8),
                writer.transport.abort()  # and does not wait for the answer
        self.on_close(self)


def tls_context(verify: Any, cert: Any = None) -> ssl.SSLContext:
    """The TLS settings for `verify` and `cert`.

    True checks against the system's store, or SSL_CERT_FILE and SSL_CERT_DIR; a file or a
    folder takes its place. Host matching is OpenSSL's: nobody should write that again.
    """
    if isinstance(verify, ssl.SSLContext):
        if cert:  # loaded into yours, it would be shown to others whom you ask with it
            raise TLSError("cert= goes with verify= as a path; load it into your SSLContext",
                           exit_code=58)
        return verify
    try:
        if isinstance(verify, bool):
            context = ssl.create_default_context()
        elif os.path.isdir(verify):
            context = ssl.create_default_context(capath=verify)
        else:
            context = ssl.create_default_context(cafile=verify)
        if verify is False:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        elif ssl.HAS_NEVER_CHECK_COMMON_NAME:  # RFC 9110 4.3.4: the common name is no host
            context.hostname_checks_common_name = False
    except (OSError, ValueError, TypeError) as error:
        raise TLSError(f"cannot use verify={verify!r}: {error}", exit_code=77) from None
    if cert:
        path, key, password = (*([cert] if isinstance(cert, (str, os.PathLike)) else cert),
                               None, None)[:3]
        try:  # without a password OpenSSL would ask the terminal for one
            context.load_cert_chain(path, key, password or "")
        except (OSError, ValueError, TypeError) as error:
            raise TLSError(f"cannot use the client certificate {path!r}, key {key!r}: {error}; "
                           "cert= is a path, (cert, key) or (cert, key, password)",
                           exit_code=58) from None
    return context


# ==== 9. Pool =================================================================
# Which connection a request gets is decided without waiting: one kept on its route,
# or a new one if the limits allow, or none yet. Only in the last case is there a
# queue, one for each origin; whatever comes free is given to whoever has waited longest
# among those whom it can serve. A connection handed out is not open yet when it is new:
# opening is the caller's.

class Waiter:
    """A call that waits for a connection, and how long it may stand still."""

    __slots__ = ("number", "route", "fresh", "future", "patience", "joined", "timer")

    def __init__(self, number: int, route: Route, fresh: bool, patience: float) -> None:
        loop = asyncio.get_running_loop()
        self.number = number      # of its arrival
        self.route = route
        self.fresh = fresh        # a kept connection will not do
        self.future: asyncio.Future[Connection] = loop.create_future()
        self.patience = patience  # seconds
        self.joined = loop.time()
        self.timer: asyncio.Handle | None = None


class Host:
    """What the pool knows of one origin."""

    __slots__ = ("open", "waiting", "in_turn", "moved_at", "next_at")

    def __init__(self) -> None:
        self.open = 0            # connections
        self.waiting: collections.OrderedDict[Waiter, None] = collections.OrderedDict()
        self.in_turn = False     # whether it is in Pool.turns
        self.moved_at = 0.0      # when one of its connections came free
        self.next_at = 0.0       # when `rate` allows the next request; 0: now

    def first(self) -> Waiter | None:
        """Who has waited longest, of those who have not left."""
        for waiter in list(itertools.takewhile(lambda one: one.future.done(), self.waiting)):
            del self.waiting[waiter]
        return next(iter(self.waiting), None)


class Pool:
    """The connections of one session; a new one counts from before it is opened."""

    def __init__(self, limit: int, limit_per_host: int | None, connector: Connector,
                 rate: float | None = None) -> None:
        self.limit = limit
        self.interval = 1 / rate if rate else 0.0  # seconds between two requests to one host
        self.limit_per_host = sys.maxsize if limit_per_host is None else limit_per_host
        self.connector = connector
        self.closed = False
        self.all: set[Connection] = set()
        self.idle: dict[Route, dict[Connection, None]] = {}  # the latest used last
        self.hosts: dict[Origin, Host] = {}       # with connections, or with who waits for one
        self.turns: list[tuple[int, Origin]] = []  # a heap: the first to wait at each, by arrival
        self.arrivals = 0
        self.left = 0                              # of turns, those for nobody, about
        self.moved_at = 0.0                        # when any connection came free

    def __repr__(self) -> str:
        idle = sum(map(len, self.idle.values()))
        waiting = sum(len(host.waiting) for host in self.hosts.values())
        return f"<Pool {len(self.all)} of {self.limit}, {idle} idle, {waiting} waiting>"

    def take(self, route: Route) -> Connection | None:
        """A connection that was in use a moment ago, if there is one: no waiting at all."""
        idle = self.idle.get(route)
        if idle and not self.interval:
            connection, _ = idle.popitem()
            if connection.has_rested():
                idle[connection] = None  # acquire looks into the kernel first
            elif connection.is_quiet():
                return connection
            else:
                connection.close()
        return None

    async def acquire(self, route: Route, patience: float, fresh: bool = False) -> Connection:
        """A connection on the route: a kept one that is alive, or one still to be opened.

        Raises TimedOut when none that could serve came free for `patience` seconds; while
        others are served, one may wait as long as it takes.
        """
        number = 0
        while True:
            connection = self.decide(route, fresh)
            if connection is None:
                number = number or self.arrivals + 1
                connection = await self._queue(route, patience, fresh, number)
            if connection.writer is None:
                return connection
            if connection.is_quiet() and connection.has_rested():
                try:  # two turns of the loop bring in what the kernel has received
                    await asyncio.sleep(0)
                    await asyncio.sleep(0)
                except BaseException:  # cancelled
                    connection.close()
                    raise
            if connection.is_quiet():
                return connection
            if not connection.closed:
                self.strike(connection)  # the server has hung up: the place stays ours
                connection.close()
                return self.add(route)

    def add(self, route: Route) -> Connection:
        """A new connection on the books; to open it is for who gets it."""
        if self.closed:
            raise AsyncGetError("the session is closed")
        connection = Connection(route, self.connector, self.keep, self.forget)
        self.all.add(connection)
        self.hosts.setdefault(route.origin, Host()).open += 1
        return connection

    def decide(self, route: Route, fresh: bool) -> Connection | None:
        """The connection for a request, or None while it has to wait."""
        host, idle = self.hosts.get(route.origin), self.idle.get(route)
        if host and host.next_at:  # `rate` says: not yet
            return None
        if idle and not fresh:
            connection = idle.popitem()[0]
        else:
            host_full = host is not None and host.open >= self.limit_per_host
            if host_full or len(self.all) >= self.limit:  # another must go: the longest idle one
                unused = min((kept for idle in self.idle.values() for kept in idle
                              if not host_full or kept.route.origin == route.origin),
                             key=lambda kept: kept.idle_at, default=None)
                if unused is None:
                    return None
                self.strike(unused)  # first: its place is taken already
                unused.close()
            connection = self.add(route)
        if self.interval:
            next_at = connection.loop.time() + self.interval
            self.hosts[route.origin].next_at = next_at
            connection.loop.call_at(next_at, self._resume, route.origin)
        return connection

    def _resume(self, origin: Origin) -> None:
        if host := self.hosts.get(origin):
            host.next_at = 0.0
            self.serve(origin)
            self._tidy(origin)

    def is_held(self, origin: Origin) -> bool:
        """Whether an origin has all that it may have: connections, or requests by `rate`."""
        host = self.hosts.get(origin)
        return host is not None and (host.open >= self.limit_per_host or host.next_at > 0)

    async def _queue(self, route: Route, patience: float, fresh: bool, number: int) -> Connection:
        host = self.hosts.setdefault(route.origin, Host())
        waiter = Waiter(number, route, fresh, patience)
        host.waiting[waiter] = None
        if number <= self.arrivals:  # it waits again, for what it was given was no good
            host.waiting.move_to_end(waiter, last=False)
        self.arrivals = max(number, self.arrivals)
        self._enter(route.origin, host)
        self._look(waiter)
        try:
            return await waiter.future
        except asyncio.CancelledError:
            if not waiter.future.cancelled() and not waiter.future.exception():
                connection = waiter.future.result()  # given one a moment ago
                if connection.writer is None:
                    connection.close()
                elif not connection.closed:
                    connection.rest_in_pool(connection.loop.time())
            raise
        finally:
            if waiter.timer is not None:
                waiter.timer.cancel()
            host.waiting.pop(waiter, None)
            if not host.waiting and host.in_turn:
                self._leave()
            self._tidy(route.origin)

    def _leave(self) -> None:
        """Nobody waits at an origin that is in turn: forget such turns when they are many."""
        self.left += 1
        if self.left > 64 and 2 * self.left > len(self.turns):
            self.left, turns = 0, self.turns
            self.turns = [turn for turn in turns if self.hosts[turn[1]].waiting]
            heapq.heapify(self.turns)
            for _, origin in turns:
                if not self.hosts[origin].waiting:
                    self.hosts[origin].in_turn = False
                    self._tidy(origin)

    def _look(self, waiter: Waiter, turns: int = LAST_TURNS) -> None:
        """End the waiting of who stands still; look again later while it may yet move."""
        if waiter.future.done():
            return
        loop, host = waiter.future.get_loop(), self.hosts[waiter.route.origin]
        moved_at = host.moved_at if self.is_held(waiter.route.origin) else self.moved_at
        end = max(waiter.joined, moved_at, host.next_at) + waiter.patience
        if loop.time() < end:
            waiter.timer = loop.call_at(end, self._look, waiter) if end < _FOREVER else None
        elif turns:  # a connection may come free in what lies in the kernel
            waiter.timer = loop.call_soon(self._look, waiter, turns - 1)
        else:
            waiter.future.set_exception(TimedOut(
                f"no free connection within {waiter.patience:g} s: {host.open} to this host and "
                f"{len(self.all)} in all are in use", phase="free connection",
                seconds=waiter.patience))

    def _enter(self, origin: Origin, host: Host) -> None:
        """Let the first who waits at an origin take part in what comes free."""
        if host.waiting and not host.in_turn:
            heapq.heappush(self.turns, (next(iter(host.waiting)).number, origin))
            host.in_turn = True

    def _tidy(self, origin: Origin) -> None:
        host = self.hosts.get(origin)
        if host and not (host.open or host.waiting or host.in_turn or host.next_at):
            del self.hosts[origin]

    def keep(self, connection: Connection) -> None:
        """A connection has finished an exchange and may serve another."""
        self.idle.setdefault(connection.route, {})[connection] = None
        self.moved_at = connection.loop.time()
        self.serve(connection.route.origin)

    def forget(self, connection: Connection) -> None:
        """A connection was closed: its place is free."""
        if connection in self.all:
            self.strike(connection)
            self.moved_at = connection.loop.time()
            self.serve(connection.route.origin)

    def strike(self, connection: Connection) -> None:
        """Take a connection off the books."""
        route = connection.route
        self.all.discard(connection)
        idle = self.idle.get(route, {})
        idle.pop(connection, None)
        if not idle:
            self.idle.pop(route, None)
        host = self.hosts[route.origin]
        host.open -= 1
        self._tidy(route.origin)

    def serve(self, origin: Origin) -> None:
        """A connection of an origin came free, or its place: give it to who has waited longest.

        Only those are looked at who could gain by it: of each origin the first, and none of
        an origin that has all that it may have. A kept connection is first offered to its own
        origin, unless somebody else has come more than `limit` places earlier: to close one
        and to open another for each who waits would cost more than their turns are worth.
        """
        if host := self.hosts.get(origin):
            host.moved_at = self.moved_at
            self._enter(origin, host)
            waiter = host.first()
            if (waiter and waiter.route in self.idle
                    and waiter.number < self.turns[0][0] + self.limit):
                self._give(waiter, host)
        while self.turns:
            number, origin = self.turns[0]
            host = self.hosts[origin]
            waiter = host.first()
            if (waiter and waiter.number == number  # else who stood here has left
                    and not self._give(waiter, host) and not self.is_held(origin)):
                return  # all are in use, and nobody can gain
            heapq.heappop(self.turns)
            host.in_turn = False
            if not self.is_held(origin):
                self._enter(origin, host)
            self._tidy(origin)

    def _give(self, waiter: Waiter, host: Host) -> bool:
        connection = self.decide(waiter.route, waiter.fresh)
        if connection is None:
            return False
        del host.waiting[waiter]
        waiter.future.set_result(connection)
        return True

    async def close(self) -> None:
        """Close all connections, those in use as well, and see their sockets closed."""
        for host in self.hosts.values():
            for waiter in host.waiting:
                if not waiter.future.done():
                    waiter.future.set_exception(AsyncGetError("the session was closed"))
        writers = [connection.writer for connection in self.all if connection.writer]
        for connection in list(self.all):
            connection.close()
            if connection.opener:
                connection.opener.cancel()
        for writer in writers:
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        await asyncio.sleep(0)  # for those that were closed just before


# ==== 10. Policy ==============================================================
# What to do next, decided from values alone: where a redirect leads and what may
# come along, whether and when to try again, which cookies to keep, which proxy to
# take. Nothing here awaits; the loop that obeys is the next section.

class Request(NamedTuple):
    """One hop of a call: whom to ask for what, and with which fields."""

    url: URL
    fields: Fields

    def __repr__(self) -> str:
        return f"<Request {self.url}>"

    def has(self, name: str) -> bool:
        """Whether a field of this name (in lower case) is there."""
        return any(key.lower() == name for key, _ in self.fields)

    def with_cookies(self, cookies: Iterable[tuple[str, str]]) -> Request:
        """The same request with cookies behind its own, in one field (RFC 6265 5.4).

        >>> Request(parse_url("http://h"), (("Cookie", "a=1"),)).with_cookies(
        ...     [("a", "old"), ("b", "2")]).fields
        (('Cookie', 'a=1; b=2'),)
        """
        own = "; ".join(value for name, value in self.fields if name.lower() == "cookie")
        named = {pair.partition("=")[0].strip() for pair in own.split(";")}
        text = render_cookies(pair for pair in cookies if pair[0] not in named)
        if not text:
            return self
        return self._replace(fields=merge_fields(
            self.fields, {"Cookie": f"{own}; {text}" if own else text}))

    def adding(self, name: str, value: str) -> Request:
        """The same request with one more field."""
        return self._replace(fields=(*self.fields, (name, value)))


# ---- redirects

_CREDENTIALS = {"authorization", "cookie", "proxy-authorization"}


def without_secrets(fields: Fields, secret_headers: Iterable[str]) -> Fields:
    """The fields that another origin may see: no credentials, and not the caller's Host."""
    secret = _CREDENTIALS.union(name.lower() for name in secret_headers)
    return tuple(("Host", "") if name.lower() == "host" else (name, value)
                 for name, value in fields if name.lower() not in secret)


def next_request(request: Request, response: Response,
                 secret_headers: Iterable[str] = (), trusted: bool = False) -> Request | None:
    """The request that a redirect asks for, None where the response is none (RFC 9110 15.4).

        301 302 303 307 308 with Location   followed: a GET stays a GET; octets in it that
                                            are no UTF-8 are asked for as they came
        300 304 305 306, or no Location     the caller's, as with an empty one
        to another origin                   without Authorization, Cookie, Proxy-Authorization,
                                            the caller's Host and secret_headers: another
                                            scheme or port is another origin, and what was
                                            dropped stays dropped for the rest of the way
        user and password in Location       ignored (RFC 9110 4.2.4)
    """
    if response.status_code not in (301, 302, 303, 307, 308):
        return None
    locations = set(octets_text(response.raw_head, "location"))
    if len(locations) > 1:
        raise ProtocolError("a redirect to several places: " + printable(
            ", ".join(map(masked, sorted(locations)))))
    if not any(locations):
        return None
    url = join_url(request.url, locations.pop())._replace(userinfo="")
    if "%" in url.origin.host and url.origin != request.url.origin:
        raise InvalidURL(f"a redirect to a zone of this machine: {masked(str(url))}")
    if url.origin == request.url.origin:
        return Request(url, request.fields)
    if trusted:  # the caller says that all of them are one
        return Request(url, merge_fields(request.fields, {"Host": ""}))
    return Request(url, without_secrets(request.fields, secret_headers))


# ---- retries

RetryRule = Callable[[int, Union[Response, AsyncGetError]], Optional[float]]


def retry_after(text: str) -> float | None:
    """The seconds that a Retry-After asks for (RFC 9110 10.2.3), None where there is none.

    >>> retry_after("120"), retry_after("Fri, 31 Dec 1999 23:59:59 GMT"), retry_after("")
    (120.0, 0.0, None)
    >>> retry_after("soon")  # not understood is not "at once"
    inf
    """
    if not text:
        return None
    if re.fullmatch("[0-9]+", text):
        return float(text)
    when = parse_date(text)
    return _FOREVER if when is None else max(0.0, when - time.time())


def retry_delay(attempt: int, outcome: Response | AsyncGetError,
                retries: int) -> float | None:
    """Seconds to wait before trying again; None: attempt (1 is the first) was the last.

        408 429 500 502 503 504             again, when Retry-After says if that is soon
        no connection, or none to be had    again
        silence, or the end, before a head  again: GET is idempotent (RFC 9110 9.2.2)
        the same amid the body              again, for get and download
        TLS refused, malformed bytes, ...   not again: it would only repeat
    """
    if attempt > retries:
        return None
    if isinstance(outcome, Response):
        if outcome.status_code not in (408, 429, 500, 502, 503, 504):
            return None
        asked = retry_after(outcome.headers.get("retry-after", ""))
        if asked is not None:
            return asked if asked <= MAX_RETRY_AFTER_SECONDS else None
    elif (isinstance(outcome, (TLSError, ProxyError))
          or not isinstance(outcome, (ConnectError, TimedOut, IncompleteBody))):
        return None
    import random
    delay = min(0.5 * 2.0 ** min(attempt - 1, 6), 30.0)
    return delay * random.uniform(0.5, 1.0)  # apart from others


# ---- cookies

# RFC 6265bis section 5, "6265bis" from here on. Text of a server's was decoded as UTF-8 with
# surrogateescape, so that a cookie's bytes go back as they came: nothing in it is decoded,
# unquoted or mended, and lengths count in octets.


def octets(text: str) -> int:
    """The length of a server's text as it was on the wire."""
    return len(text.encode("utf-8", "surrogateescape"))


# A token is what stands between delimiters (6265bis 5.1.1). Each part of a date is the first
# token that looks like it and was no part before; re.A: else "ſep" would be September.
_DATE_TOKEN = re.compile(r"[^\t -/;-@\[-`{-~]+")
_DATE_PARTS = tuple(re.compile(pattern, re.I | re.A) for pattern in (
    r"([0-9]{1,2}):([0-9]{1,2}):([0-9]{1,2})(?![0-9])",        # time
    r"([0-9]{1,2})(?![0-9])",                                  # day of the month
    r"(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)",
    r"([0-9]{2,4})(?![0-9])"))                                 # year
_MONTHS = "janfebmaraprmayjunjulaugsepoctnovdec"


def parse_date(text: str) -> float | None:
    """The seconds since 1970 of a date in about any spelling, None for none (6265bis 5.1.1).

    >>> parse_date("Sunday, 06-Nov-94 08:49:37 GMT"), parse_date("6 November 1994")
    (784111777.0, None)

    HTTP's own three formats (RFC 9110 5.6.7) are among them; a zone is not looked at.
    """
    from datetime import datetime, timezone
    found: dict[int, re.Match[str]] = {}
    for token in _DATE_TOKEN.findall(text):
        for part, pattern in enumerate(_DATE_PARTS):
            match = None if part in found else pattern.match(token)
            if match:
                found[part] = match
                break
    if len(found) < 4:
        return None
    year = int(found[3][1])
    year += 1900 if 70 <= year <= 99 else 2000 if year <= 69 else 0
    month = _MONTHS.index(found[2][1].lower()) // 3 + 1
    hour, minute, second = map(int, found[0].groups())
    try:
        when = datetime(year, month, int(found[1][1]), hour, minute, second, tzinfo=timezone.utc)
    except ValueError:  # 30 February, 24:00:00
        return None
    return when.timestamp() if year >= 1601 else None


_LOOPBACK = {"localhost", "127.0.0.1", "::1"}  # on no wire: as curl and browsers have it

# Under these everyone has a domain, and so no cookie is for all of them. The list of all
# public suffixes is long and changes by the week; http.cookiejar has the same few.
_SUFFIX = re.compile(r"[^.]*|(?:ac|co|com|edu|gov|mil|net|org)\.[a-z]{2}")


def is_suffix(domain: str) -> bool:
    """Whether a domain is no single owner's: "com", "com.", "co.uk"."""
    return bool(_SUFFIX.fullmatch(domain.rstrip(".")))


@functools.lru_cache(maxsize=1024)
def site_of(host: str) -> str:
    """What no cookie crosses: a host's last labels, one more than those of its suffix.

    >>> site_of("www.h.test"), site_of("a.b.co.uk"), site_of("10.0.0.1")
    ('h.test', 'b.co.uk', '10.0.0.1')
    """
    labels = host.rstrip(".").split(".")
    return host if is_address(host) else ".".join(
        labels[-3 if is_suffix(".".join(labels[-2:])) else -2:])


def domain_match(host: str, domain: str) -> bool:
    """Whether a host is a domain or below it (6265bis 5.1.3).

    >>> [domain_match(h, "h.test") for h in ("h.test", "www.h.test", "noth.test")]
    [True, True, False]
    """
    return host == domain or (host.endswith("." + domain) and not is_address(host))


def parse_domain(text: str) -> str:
    """A Domain as the host that it is compared to (6265bis 5.6.3); IPv6 without brackets, too.

    >>> parse_domain(".BÜCHER.example"), parse_domain("0::1")
    ('xn--bcher-kva.example', '::1')
    """
    return parse_host(f"[{text.strip('[]')}]" if ":" in text else text.removeprefix("."))


def default_path(target: str) -> str:
    """The folder that a target lies in (6265bis 5.1.4).

    >>> default_path("/a/b?c=/d"), default_path("/a")
    ('/a', '/')
    """
    path = target.partition("?")[0]
    return path[:path.rindex("/")] or "/"


def path_match(path: str, folder: str) -> bool:
    """Whether a path is a cookie's path or below it (6265bis 5.1.4).

    >>> [path_match(p, "/any") for p in ("/any", "/any/x", "/anybad")]
    [True, True, False]
    """
    return path == folder or path.startswith(folder if folder[-1:] == "/" else folder + "/")


class Cookie(NamedTuple):
    """A cookie as it is kept (6265bis 5.7)."""

    name: str               # "" for one that is but a value
    value: str
    domain: str             # as a host, without a dot before it; "": of an origin yet unknown
    path: str = "/"
    host_only: bool = True  # else for all hosts below the domain, too
    secure: bool = False
    http_only: bool = False
    expires: float | None = None  # seconds since 1970; None: with the session
    port: int | None = None       # the only one that it goes to; servers' cookies have none
    created: int = 0              # the jar's running number

    @property
    def key(self) -> tuple[str, str, str, bool]:
        """What no two cookies of a jar have in common (6265bis 5.7)."""
        return self.name, self.domain, self.path, self.host_only

    def lives(self, now: float) -> bool:
        """Whether it has not expired."""
        return self.expires is None or self.expires > now

    def belongs(self, url: URL) -> bool:
        """Whether it goes out with a request (6265bis 5.8.3), its time apart."""
        scheme, host, port = url.origin
        return ((host == self.domain if self.host_only else domain_match(host, self.domain))
                and path_match(url.target.partition("?")[0], self.path)
                and (not self.secure or scheme == "https" or host in _LOOPBACK)
                and self.port in (None, port))


def parse_attributes(parts: Iterable[str]) -> dict[str, str]:
    """What follows a cookie's value; the last of a name counts (6265bis 5.6).

    >>> parse_attributes([" Path=/a", "MAX-AGE = 9", "max-age=soon", "Secure"])
    {'path': '/a', 'max-age': '9', 'secure': ''}

    One that makes no sense is as if it were not there, and so leaves an earlier one in force.
    """
    found: dict[str, str] = {}
    for part in parts:
        name, _, value = part.partition("=")
        name, value = name.strip(" \t").lower(), value.strip(" \t")
        if not (octets(value) > MAX_ATTRIBUTE_BYTES
                or (name == "domain" and value in ("", "."))
                or (name == "expires" and parse_date(value) is None)
                or (name == "max-age" and not re.fullmatch(r"-?[0-9]+", value))):
            found[name] = value
    return found


def keeps_prefix(cookie: Cookie, has_path: bool = True) -> bool:
    """Whether a cookie is what the prefix of its name promises (6265bis 4.1.3, 5.7).

    A nameless "__Host-a=1" would look to the server like a cookie of that name.
    """
    start = (cookie.name or cookie.value).lower()
    if not start.startswith(("__secure-", "__host-")):
        return True
    return cookie.name != "" and cookie.secure and (
        start.startswith("__secure-") or (cookie.host_only and cookie.path == "/" and has_path))


def parse_set_cookie(line: str, url: URL, now: float) -> Cookie | None:
    """The cookie that a response to a URL sets, None for what may not be (6265bis 5.6, 5.7).

    >>> parse_set_cookie("a=1; Domain=h.test; Max-Age=9", parse_url("http://www.h.test/x/y"), 50.0)
    ... # doctest: +NORMALIZE_WHITESPACE
    Cookie(name='a', value='1', domain='h.test', path='/x', host_only=False, secure=False,
           http_only=False, expires=59.0, port=None, created=0)
    """
    pair, *parts = line.split(";")
    name, value = (text.strip(" \t") for text in
                   (pair.split("=", 1) if "=" in pair else ("", pair)))
    if (not _VALUE.fullmatch(line) or not (name or value)
            or octets(name) + octets(value) > MAX_COOKIE_BYTES):
        return None
    found = parse_attributes(parts)
    expires = parse_date(found.get("expires", ""))
    if "max-age" in found:
        expires = now + max(0, min(int(found["max-age"]), MAX_COOKIE_SECONDS))
    if expires is not None:
        expires = min(expires, now + MAX_COOKIE_SECONDS)
    domain = host = url.origin.host
    if "domain" in found:
        try:
            domain = parse_domain(found["domain"])
        except InvalidURL:
            return None
    alone = is_suffix(domain) or is_address(domain)
    if domain != host and (alone or not domain_match(host, domain)):
        return None
    path = found.get("path", "")
    cookie = Cookie(name, value, domain, path if path[:1] == "/" else default_path(url.target),
                    alone or "domain" not in found, "secure" in found, "httponly" in found, expires)
    refused = cookie.secure and url.origin.scheme != "https"
    return None if refused or not keeps_prefix(cookie, "path" in found) else cookie


def overlays(new: Cookie, old: Cookie) -> bool:
    """Whether a cookie that came by http would hide a Secure one (6265bis 5.7).

    If it might, then anyone on the way could put a session of their own in place of yours.
    """
    return (old.secure and old.name == new.name and path_match(new.path, old.path)
            and (domain_match(old.domain, new.domain) or domain_match(new.domain, old.domain)))


def check_cookie(name: str, value: str) -> None:
    """Raise InvalidHeader for a caller's cookie that would not arrive as it is (RFC 6265 4.2.1)."""
    if not isinstance(name, str) or not isinstance(value, str):
        raise InvalidHeader(f"a cookie's name and value are text, unlike those of {name!r:.99}")
    if not _NAME.fullmatch(name) or ";" in value or not _VALUE.fullmatch(value):
        raise InvalidHeader("not a cookie's name, or a value with a ';' or control characters: "
                            f"{name!r:.100}")
    try:
        fits = octets(f"{name}={value}") <= MAX_COOKIE_FIELD_BYTES
    except UnicodeError:
        fits = False
    if not fits:
        raise InvalidHeader(f"the cookie {name:.100} is not Unicode, or more than "
                            f"{MAX_COOKIE_FIELD_BYTES} bytes")


def render_cookies(pairs: Iterable[tuple[str, str]]) -> str:
    """The Cookie field (6265bis 5.8.3): as many cookies, from the first on, as one may hold.

    >>> render_cookies([("a", "1"), ("", "nameless"), ("b", "")])
    'a=1; nameless; b='
    """
    sent, room = [], MAX_COOKIE_FIELD_BYTES + len("; ")
    for name, value in pairs:
        text = f"{name}={value}" if name else value
        room -= octets(text) + len("; ")
        if room < 0:
            break
        sent.append(text)
    return "; ".join(sent)


_Kept = dict[tuple[str, str, str, bool], Cookie]  # by Cookie.key


class Cookies:
    """The cookies of a session: what servers set, and what you do.

    >>> cookies = Cookies({"sid": "7"})
    >>> cookies["lang"] = "de"
    >>> cookies.set("a", "1", domain="h.test")
    >>> cookies["sid"], "b" in cookies, [cookie.domain for cookie in cookies]
    ('7', False, ['', '', 'h.test'])
    >>> cookies
    <Cookies sid (first origin), lang (first origin), a (h.test)>

    A cookie that you set without a domain goes to one origin, scheme and port included: the
    session's base_url, or else the first that it asks. It is a guess at what that server would
    set: of your cookie and the server's of one name on that host, whatever their paths, the
    later takes the other's place. Iterating gives Cookie tuples, the oldest first.
    """

    def __init__(self, cookies: Mapping[str, str | None] | None = None) -> None:
        self._home: Origin | None = None
        self._created = 0
        self._seeded = False  # whether there is a cookie of the caller's for one port
        # All that a host may be told is in its site's dict; no other is looked at. Both levels
        # are in the order in which they were last set, so the first to go stand first.
        self._sites: dict[str, _Kept] = {}
        self.update(cookies or {})

    # ---- what servers set and are told

    def store(self, url: URL, lines: Iterable[str], now: float | None = None) -> list[str]:
        """Put in what a response's Set-Cookie fields set; the names of those that it may.

        Past MAX_DOMAIN_COOKIES of a site, its cookie that was set longest ago makes room; past
        MAX_COOKIES in sum, one of the site that has set none for longest: endless subdomains
        of one site push out nobody else's.
        """
        now = time.time() if now is None else now
        site, names = site_of(url.origin.host), []
        kept = {cookie.key: cookie for cookie in self._sites.pop(site, {}).values()
                if cookie.lives(now)}
        for line in itertools.islice(lines, MAX_SET_COOKIES):
            cookie = parse_set_cookie(line, url, now)
            if cookie is None or (url.origin.scheme != "https"
                                  and any(overlays(cookie, old) for old in kept.values())):
                continue
            self._put(cookie, url.origin.host, kept)
            names.append(cookie.name)
            if not cookie.lives(now):  # this is how a server deletes
                del kept[cookie.key]
        # Those that http has set go first: it must not push out what only https may set.
        for cookie in sorted(kept.values(), key=lambda one: one.secure)[:-MAX_DOMAIN_COOKIES]:
            del kept[cookie.key]
        if kept:
            self._sites[site] = kept
        for _ in range(sum(map(len, self._sites.values())) - MAX_COOKIES):
            self._remove(next(iter(next(iter(self._sites.values())).values())))
        return names

    def _put(self, cookie: Cookie, host: str, kept: _Kept) -> None:
        """Put a cookie that a host set, or the caller for it, last of those of its site."""
        old = kept.pop(cookie.key, None)
        self._created += 1
        self._seeded = self._seeded or cookie.port is not None
        for other in list(kept.values()) if self._seeded else ():  # else: "sid=old; sid=new"
            if (other.name == cookie.name and other.domain == host
                    and (other.port is None) != (cookie.port is None)):
                del kept[other.key]
        # Set again it keeps its number, for the order in which they are sent.
        kept[cookie.key] = cookie._replace(created=old.created if old else self._created)

    def _remove(self, cookie: Cookie) -> None:
        site = site_of(cookie.domain)
        del self._sites[site][cookie.key]
        if not self._sites[site]:
            del self._sites[site]

    def pairs_for(self, url: URL) -> list[tuple[str, str]]:
        """The names and values that a request is sent with, in their order (6265bis 5.8.3)."""
        kept = self._sites.get(site_of(url.origin.host)) if self._sites else None
        if not kept:
            return []
        now = time.time()
        found = [cookie for cookie in kept.values() if cookie.lives(now) and cookie.belongs(url)]
        found.sort(key=lambda cookie: (-len(cookie.path), cookie.created))
        return [(cookie.name, cookie.value) for cookie in found]

    # ---- what the caller sets and reads

    def home(self, origin: Origin) -> None:
        """Say whose the cookies without a domain are; only the first call counts."""
        if self._home is None:
            self._home = origin
            for cookie in self._sites.pop("", {}).values():
                self.add(cookie)

    def add(self, cookie: Cookie) -> None:
        """Put a cookie in as it is; one without a domain is the home origin's."""
        if self._home and not cookie.domain:
            scheme, host, port = self._home
            cookie = cookie._replace(domain=host, host_only=True, port=port,
                                     secure=cookie.secure or scheme == "https")
        site = site_of(cookie.domain)
        kept = self._sites.pop(site, {})
        self._put(cookie, cookie.domain, kept)
        self._sites[site] = kept

    def set(self, name: str, value: str, *, domain: str = "", path: str = "/",
            secure: bool = False, expires: float | None = None) -> None:
        """Set a cookie: for a domain and all below it, or without one for the home origin.

        `expires` is in seconds since 1970. Raises InvalidHeader, or InvalidURL for the domain.
        """
        check_cookie(name, value)
        if not isinstance(path, str) or path[:1] != "/" or not _VALUE.fullmatch(path):
            raise InvalidHeader(f"a cookie's path begins with '/', unlike {path!r:.100}")
        if not isinstance(expires, (int, float, type(None))) or not isinstance(domain, str):
            raise TypeError("a cookie's domain is text, and it expires at a number of seconds")
        self.add(Cookie(name, value, domain and parse_domain(domain), path,
                        not domain, secure, False, expires))

    def update(self, cookies: Mapping[str, str | None] | Iterable[tuple[str, str | None]]) -> None:
        """Set several for the home origin; a value of None deletes."""
        for name, value in dict(cookies).items():
            if value is None:
                self.delete(name)
            else:
                self.set(name, value)

    def delete(self, name: str, domain: str | None = None, path: str | None = None) -> int:
        """Delete all of a name, or those of one domain or path; how many there were."""
        gone = [cookie for cookie in self if cookie.name == name
                and domain in (None, cookie.domain, "." + cookie.domain)
                and path in (None, cookie.path)]
        for cookie in gone:
            self._remove(cookie)
        return len(gone)

    def clear(self) -> None:
        """Delete all."""
        self._sites.clear()

    def get(self, name: str, default: str | None = None) -> str | None:
        """The value of a cookie; of several the home origin's, and of those the youngest."""
        home = self._home.host if self._home else ""
        found = [cookie for cookie in self if cookie.name == name]
        found.sort(key=lambda cookie: cookie.domain == home)
        return found[-1].value if found else default

    def __getitem__(self, name: str) -> str:
        value = self.get(name)
        if value is None:
            raise KeyError(name)
        return value

    def __setitem__(self, name: str, value: str) -> None:
        self.set(name, value)

    def __delitem__(self, name: str) -> None:
        if not self.delete(name):
            raise KeyError(name)

    def __contains__(self, name: object) -> bool:
        return any(cookie.name == name for cookie in self)

    def __iter__(self) -> Iterator[Cookie]:
        now = time.time()
        return iter(sorted((cookie for kept in self._sites.values() for cookie in kept.values()
                            if cookie.lives(now)), key=lambda cookie: cookie.created))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:  # no values: they are secrets
        return printable("<Cookies " + ", ".join(
            f"{cookie.name} ({cookie.domain or 'first origin'})" for cookie in self) + ">")


def ask_jar(jar: Any, url: URL) -> list[tuple[str, str]]:
    """What a jar of the caller's has for a URL: http.cookiejar's, requests', or a like one."""
    from urllib.request import Request as CookieRequest
    request = CookieRequest(str(url).partition("?")[0])  # urllib would remember the query
    jar.add_cookie_header(request)
    pairs = (pair.partition("=") for pair in request.get_header("Cookie", "").split("; ")
             if pair and _VALUE.fullmatch(pair))
    return [(name, value) for name, _, value in pairs]


def fill_jar(jar: Any, response: Response) -> None:
    """Put what a response sets into such a jar."""
    from urllib.request import Request as CookieRequest
    lines = [line for line in octets_text(response.raw_head, "set-cookie")[:MAX_SET_COOKIES]
             if octets(line) <= MAX_COOKIE_BYTES and _VALUE.fullmatch(line)]
    headers = types.SimpleNamespace(
        get_all=lambda name, default: lines if name.lower() == "set-cookie" else default)
    url = response.url.partition("?")[0]
    jar.extract_cookies(types.SimpleNamespace(info=lambda: headers), CookieRequest(url))


# ---- proxies and passwords

def parse_proxy(text: str, source: str) -> Proxy:
    """A proxy's URL; without a scheme it is http.

    >>> print(parse_proxy("me:secret@proxy.corp:3128", "http_proxy"))
    http://proxy.corp:3128 (from http_proxy)

    An unknown kind of proxy is an error: going there directly might be the leak that
    the proxy is there to prevent.
    """
    scheme, mark, rest = text.strip().partition("://")
    scheme, rest = (scheme.lower(), rest) if mark else ("http", scheme)
    ports = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}
    if scheme not in ports:
        raise ProxyError(f"{source}: proxies are http://, https://, socks5:// or socks5h://, "
                         f"not {masked(text)}", exit_code=7)
    try:
        url = parse_url("http://" + rest)
    except InvalidURL as error:
        raise ProxyError(f"{source}: {error}", exit_code=5) from None
    if max(map(octets, split_userinfo(url.userinfo))) > 255:
        raise ProxyError(f"{source}: user and password have at most 255 bytes each")  # RFC 1929
    has_port = re.search(r":[0-9]+$", re.split("[/?#]", rest)[0])
    return Proxy(scheme, url.origin.host, url.origin.port if has_port else ports[scheme],
                 url.userinfo, source)


def in_network(address: str, network: str) -> bool:
    """Whether an address lies in a network, or is the one named."""
    import ipaddress
    try:
        return ipaddress.ip_address(address) in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False


def bypasses_proxy(no_proxy: str, origin: Origin) -> bool:
    """Whether NO_PROXY, a list parted by commas or blanks, exempts an origin.

        *                                everything, wherever it stands in the list
        corp.test .corp.test *.corp.test that domain and all below it, not notcorp.test
        10.0.0.0/8  fd00::/8  ::1        addresses and networks, compared as such
        corp.test:8080  [::1]:443        with that port alone, the scheme's own filled in
    """
    host = origin.host.rstrip(".")
    for entry in re.split(r"[\s,]+", no_proxy.lower()):
        match = re.fullmatch(r"(\[[^\]]*\]|[^:]*):([0-9]{1,5})", entry)
        name, port = match.groups() if match else (entry, None)
        if port is not None and int(port) != origin.port:
            continue
        below = f".{host}".endswith("." + name.removeprefix("*.").strip("."))
        if name == "*" or (in_network(host, name.strip("[]")) if is_address(host) else below):
            return True
    return False


def choose_proxy(origin: Origin, environ: Mapping[str, str]) -> Proxy | None:
    """The proxy that the environment names for an origin.

        http_proxy, HTTP_PROXY     for http; upper case not under CGI, where a request's
                                   "Proxy:" field would set it (CVE-2016-1000110)
        https_proxy, HTTPS_PROXY   for https
        all_proxy, ALL_PROXY       for both, where those are not set
        no_proxy, NO_PROXY         none for these: see bypasses_proxy

    Lower case wins; an empty value means none. Where nothing is set, macOS and Windows
    are asked for the settings of the system.
    """
    for name in (f"{origin.scheme}_proxy", "all_proxy"):
        if name not in environ:
            name = name.upper()
        if name in environ and not (name == "HTTP_PROXY" and "REQUEST_METHOD" in environ):
            no_proxy = environ.get("no_proxy", environ.get("NO_PROXY", ""))
            if not environ[name] or bypasses_proxy(no_proxy, origin):
                return None
            return parse_proxy(environ[name], name)
    if sys.platform in ("darwin", "win32"):
        from urllib.request import getproxies, proxy_bypass
        found = getproxies().get(origin.scheme)
        if found and not proxy_bypass(origin.host):
            return parse_proxy(found, "the system's settings")
    return None


_NETRC_WORD = re.compile(r'"((?:[^"\\\n]|\\.)*)"|([^" \t\n][^ \t\n]*)|"')
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t"}


def netrc_entries(lines: Iterable[str]) -> Iterator[dict[str, str]]:
    r"""What stands between one `machine` and the next, as curl reads it.

    >>> list(netrc_entries(['machine h login me password "a \\"b"  # mine\n']))[1]
    {'machine': 'h', 'login': 'me', 'password': 'a "b'}

    An entry of `default` has no machine, so that it fits nobody. Words unknown here are passed
    over: one of them, written for another program, must not make every use of the file fail.
    """
    entry: dict[str, str] = {}
    wanted, since, in_macro = "", 0, False
    for number, line in enumerate(lines, 1):
        if in_macro:  # its lines are commands for ftp, up to an empty one
            in_macro = bool(line.strip())
            continue
        for match in _NETRC_WORD.finditer(line):
            quoted, plain = match.groups()
            if quoted is None and plain is None:
                raise ValueError(f"line {number}: a quote is not closed")
            keyword = (plain or "").lower()  # in quotes it would be no keyword
            if keyword.startswith("#") and not (wanted and since == number):
                break  # a comment; but behind `password`, on its line, it is the password
            if wanted:
                entry[wanted] = plain or re.sub(
                    r"\\(.)", lambda escape: _ESCAPES.get(escape[1], escape[1]), quoted)
                wanted = ""
                continue
            if keyword in ("machine", "default", "macdef"):
                yield entry
                entry = {}
            if keyword == "macdef":
                in_macro = True
                break
            if keyword in ("machine", "login", "password", "account"):
                wanted, since = keyword, number
    if wanted:
        raise ValueError(f"line {since}: nothing follows {wanted!r}")
    yield entry


def netrc_auth(path: bool | str | os.PathLike[str], host: str,
               user: str = "") -> tuple[str, str] | None:
    """The user and password of a netrc file's first entry for exactly this host, and this user.

    Its `default` entry is not used: it would give a password to everybody who asks.
    Not the standard library's reader: that one fails over a word it does not know, and what it
    makes of backslashes, comments and a host's second entry is not what curl makes of them.
    """
    name = os.path.expanduser("~/.netrc") if isinstance(path, bool) else os.fspath(path)
    try:
        # Bytes that are no UTF-8 stay what they are; a byte order mark would hide `machine`.
        with open(name, encoding="utf-8-sig", errors="surrogateescape") as file:
            for entry in netrc_entries(file):
                login, password = entry.get("login"), entry.get("password")
                # With a user asked for, an entry without a password has nothing to say.
                if host.lower() == entry.get("machine", "").lower() != "" and (
                        password is not None and login in (user, None) if user else
                        login or password):
                    return login or user, password or ""
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error  # never the file's own text
        raise AsyncGetError(f"cannot read {name!r}: {why}", exit_code=26) from None
    return None


def resolved(resolve: Mapping[str, str], origin: Origin) -> str | None:
    """The address that `resolve` has for an origin, or several, parted by commas.

    The host "*" is any, as in curl.

    >>> resolved({"*:443": "[::1]"}, Origin("https", "h.test", 443))
    '::1'
    """
    for key, address in resolve.items():
        host, _, port = key.rpartition(":")
        if not re.fullmatch("[0-9]{1,5}", port):
            raise InvalidURL(f"resolve: {key!r} is not host:port")
        if int(port) == origin.port and (
                host == "*" or parse_origin(origin.scheme, host).host == origin.host):
            return re.sub(r"[][\s]", "", address)
    return None


# ==== 11. Session =============================================================
# The loop around it all. `_run` is one call: a request is begun and followed to its last
# response, what the caller wants of that is done, and if need be all of it again.
# `_exchange` gets one response for one request. A request that has nothing of its own to
# say takes the session's rendered fields and its route for the origin from a dictionary:
# most of the price of a small GET is what one does not do here.

class Jar(Protocol):
    """What is asked of a jar of the caller's: http.cookiejar.CookieJar has it, and requests'."""

    def add_cookie_header(self, request: Any) -> object: ...
    def extract_cookies(self, response: Any, request: Any) -> object: ...


class RequestSettings(TypedDict, total=False):
    """The keywords of every call; given to a Session, they hold for all of its calls."""

    params: Params | None                   # laid over the session's; None removes
    headers: HeaderItems | None             # likewise
    auth: Auth | None                       # (user, password), or a bearer token
    cookies: bool | Mapping[str, str | None] | Cookies | Jar | None
    timeout: float | None                   # seconds of silence
    deadline: float | None                  # seconds for the whole call
    follow_redirects: bool
    max_redirects: int | None
    retries: int | RetryRule                # further tries, or a rule as retry_delay is one
    verify: bool | str | os.PathLike[str] | ssl.SSLContext
    cert: str | os.PathLike[str] | Sequence[Any] | None  # path, (cert, key), (cert, key, password)
    proxy: str | None                       # a URL; None or "" for none
    trust_env: bool
    max_size: int | None                    # bytes of a decoded body in memory
    decode: bool
    secret_headers: str | Iterable[str]
    unix_socket: str | os.PathLike[str] | None
    resolve: Mapping[str, str] | None       # {"host:port": "address"}
    netrc: bool | str | os.PathLike[str]
    redirect_schemes: Iterable[str]         # that a redirect may lead to
    trust_redirects: bool                   # with the credentials for the first origin
    trace: Trace | None                     # called with ">", "<" or "*" and what it is


class ClientSettings(RequestSettings, total=False):
    """What is the session's alone, since each would need a pool of its own; limit apart."""

    base_url: str
    limit_per_host: int | None
    rate: float | None                      # requests a second to one host
    open_connection: Connector


class SessionSettings(ClientSettings, total=False):
    """The keywords of a Session."""

    limit: int | None                       # connections open at once


_NONE = type(None)
_PATH = (str, os.PathLike)
_PAIRS = (Mapping, Iterable)
# What a keyword is by default, of what types it may be, and how that is said. Of `proxy` and
# `deadline` there is no default: not given, the environment and the kind of call decide.
SETTINGS: dict[str, tuple[Any, tuple[Any, ...], str]] = {
    "params": ((), (*_PAIRS, _NONE), "a mapping, or pairs; a finished query goes into the URL"),
    "headers": (None, (*_PAIRS, _NONE), "a mapping, or pairs, of text"),
    "auth": (None, (str, tuple, list, _NONE), "(user, password), or a bearer token as text"),
    "cookies": (True, (bool, Mapping, Cookies, _NONE), "a mapping, a jar, True or False"),
    "timeout": (30.0, (int, float, _NONE), "a number of seconds, or None"),
    "deadline": (..., (int, float, _NONE), "a number of seconds, or None"),
    "follow_redirects": (True, (bool,), "True or False"),
    "max_redirects": (20, (int, _NONE), "a number, or None"),
    "retries": (0, (int, Callable), "a number, or a rule (attempt, outcome) -> seconds or None"),
    "verify": (True, (bool, *_PATH, ssl.SSLContext),
               "True, False, a CA file or folder, or an ssl.SSLContext"),
    "cert": (None, (*_PATH, tuple, list, _NONE), "a path, (cert, key) or (cert, key, password)"),
    "proxy": (..., (str, _NONE), "one URL, or None for none; for several kinds, leave it to the "
              "environment's http_proxy, https_proxy and no_proxy"),
    "trust_env": (True, (bool,), "True or False"),
    "max_size": (64 * 2**20, (int, _NONE), "a number of bytes, or None"),
    "decode": (True, (bool,), "True or False"),
    "secret_headers": ((), (str, Iterable), "names of headers"),
    "unix_socket": (None, (*_PATH, _NONE), "a path"),
    "resolve": (None, (Mapping, _NONE), 'a mapping {"host:port": "address"}'),
    "netrc": (False, (bool, *_PATH), "True, False, or a path"),
    "redirect_schemes": (("http", "https"), (Iterable,), "some of http and https"),
    "trust_redirects": (False, (bool,), "True or False"),
    "trace": (None, (Callable, _NONE), "a function of a kind and a text"),
    "base_url": ("", (str,), "a URL"),
    "limit_per_host": (None, (int, _NONE), "a number, or None"),
    "rate": (None, (int, float, _NONE), "requests a second, or None"),
    "open_connection": (asyncio.open_connection, (Callable,), "what asyncio.open_connection is"),
    "limit": (100, (int, _NONE), "a number, or None"),
}
# What a number must be at least. A timeout of 0 means "none" to some, "at once" to others.
_LEAST = {"timeout": 1e-6, "deadline": 1e-6, "max_redirects": 0, "max_size": 0, "retries": 0,
          "limit": 1, "limit_per_host": 1, "rate": 1e-6}


def checked(options: Mapping[str, object], allowed: type = RequestSettings) -> dict[str, Any]:
    """Settings as they are carried, or an error that says what was expected.

    >>> checked({"allow_redirects": False, "headers": {"a": "b"}})
    {'follow_redirects': False, 'headers': (('a', 'b'),)}

    What can be read but once is read here. allow_redirects is requests' name for one of them.
    """
    settings: dict[str, Any] = {}
    for name, value in options.items():
        name = "follow_redirects" if name == "allow_redirects" else name
        if name not in allowed.__annotations__:
            raise TypeError(f"unknown keyword {name!r}; there are "
                            + ", ".join(allowed.__annotations__))
        _, types_, expected = SETTINGS[name]
        fits = isinstance(value, types_) and (bool in types_ or not isinstance(value, bool))
        if name == "cookies":  # a jar is known by the two calls that all such jars have
            fits = fits or hasattr(value, "extract_cookies")
        elif name in ("params", "headers"):
            fits = fits and not isinstance(value, (str, bytes))
        if not fits:
            raise TypeError(f"{name} must be {expected}: not {type(value).__name__}")
        if (isinstance(value, (int, float)) and name in _LEAST  # nan is not at least anything
                and not (value >= _LEAST[name] and value < 1e18 or value == _FOREVER)):
            raise ValueError(f"{name} must be at least {_LEAST[name]}: not {value!r:.50}")
        settings[name] = value
    for name in settings.keys() & {"params", "headers"}:
        value = settings[name] or ()
        pairs = value.items() if isinstance(value, Mapping) else value
        try:
            settings[name] = tuple((key, item) for key, item in pairs)
            hash(tuple(key for key, _ in settings[name]))  # a name is text, or a number
        except (TypeError, ValueError):
            raise TypeError(f"{name} must be {SETTINGS[name][2]}") from None
    if "secret_headers" in settings:
        names = settings["secret_headers"]
        settings["secret_headers"] = (names,) if isinstance(names, str) else tuple(names)
    resolve, cert = settings.get("resolve") or {}, settings.get("cert") or ()
    for name, parts, kinds in (
            ("secret_headers", settings.get("secret_headers", ()), (str,)),
            ("resolve", [*resolve, *resolve.values()], (str,)),
            ("cert", cert if isinstance(cert, (tuple, list)) else (), (*_PATH, bytes, _NONE))):
        if not all(isinstance(part, kinds) for part in parts):
            raise TypeError(f"{name} must be {SETTINGS[name][2]}")
    if isinstance(cert, list):
        settings["cert"] = tuple(cert)
    for name in settings.keys() & {"limit", "max_redirects"}:
        settings[name] = sys.maxsize if settings[name] is None else settings[name]
    return settings


def fields_of(base: Fields, options: Mapping[str, Any]) -> Fields:
    """The fields of a request: over base what `headers` and `auth` ask for."""
    if options.get("headers"):
        base = merge_fields(base, options["headers"])
    if "auth" in options:  # None takes the session's away
        auth = options["auth"]
        base = merge_fields(base, {"Authorization": render_auth(auth) if auth else None})
    return base


def with_codings(fields: Fields, decode: bool) -> Fields:
    """The fields with those codings asked for that will be undone.

    >>> with_codings((("Accept-Encoding", "gzip, br"),), decode=True)
    (('Accept-Encoding', 'gzip'),)
    """
    names = {name.lower() for name, _ in fields}
    if ("Accept-Encoding", ACCEPT_ENCODING) in fields:  # ours, so nobody insists on it
        ranged = "range" in names  # no part of a gzip unpacks
        return fields if decode and not ranged else merge_fields(
            fields, {"Accept-Encoding": "identity" if decode else None})
    if not decode or "accept-encoding" not in names:
        return fields
    return tuple((name, acceptable(value) if name.lower() == "accept-encoding" else value)
                 for name, value in fields)


def is_jar(cookies: object) -> bool:
    """Whether `cookies` is a jar of any kind, not a mapping (though requests' is that, too)."""
    return isinstance(cookies, Cookies) or hasattr(cookies, "extract_cookies")


Function = TypeVar("Function", bound=Callable[..., Any])


def spelled_out(settings: type) -> Callable[[Function], Function]:
    """Show the keywords behind a function's ** to help() and to editors.

    Type checkers know them from the TypedDict; so they are written down only there.
    """
    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)
        shown = [parameter for parameter in signature.parameters.values()
                 if parameter.kind is not parameter.VAR_KEYWORD]
        for name, kind in settings.__annotations__.items():
            shown.append(inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=SETTINGS[name][0],
                annotation=getattr(kind, "__forward_arg__", kind)))
        function.__signature__ = signature.replace(parameters=shown)  # type: ignore[attr-defined]
        return function

    return decorate


# What the server, or the way to it, did; a rule for retries is asked about nothing else.
_MAY_PASS = (ConnectError, TimedOut, ProtocolError, DecodingError)
# What a call may say about the way; without any of these it goes by the session's routes.
_ROUTING = {"verify", "cert", "proxy", "trust_env", "unix_socket", "resolve"}


class Call:
    """One call of the caller's: its settings, and its clock over all redirects and retries."""

    __slots__ = ("url", "settings", "options", "cert", "first", "cookies", "replaced", "started",
                 "seconds", "deadline")

    def __init__(self, url: str, settings: Mapping[str, Any], options: Mapping[str, Any],
                 usual: float | None) -> None:
        self.url = url            # as the caller gave it
        self.settings = settings  # the session's and the call's
        self.options = options    # the call's own
        self.cert: Any = None     # the client's certificate, while it is where it belongs
        self.first: Origin | None = None
        self.cookies: dict[str, str | None] = {}  # the call's own, while it is at its first origin
        self.replaced: set[str] = set()  # names of those that the server has set anew
        self.started = asyncio.get_running_loop().time()
        seconds = settings.get("deadline", usual)
        self.seconds = _FOREVER if seconds is None else seconds
        self.deadline = _FOREVER  # until there is a connection: queueing is not counted

    def retry_delay(self, attempt: int, outcome: Response | AsyncGetError) -> float | None:
        """Seconds to wait before trying again, None for no more."""
        if isinstance(outcome, AsyncGetError) and not isinstance(outcome, _MAY_PASS):
            return None
        rule = self.settings["retries"]
        delay = (rule(attempt, outcome) if callable(rule) else
                 retry_delay(attempt, outcome, rule))
        if delay is not None and not (isinstance(delay, (int, float)) and delay >= 0):
            raise ValueError(f"a rule for retries gives seconds, or None: not {delay!r}")
        late = delay is not None and (
            delay == _FOREVER or asyncio.get_running_loop().time() + delay > self.deadline)
        return None if late else delay


Urls = Union[Iterable[str], AsyncIterable[str]]


class SharedIterator:
    """One iterator for many workers, over an iterable of either kind."""

    def __init__(self, items: Urls) -> None:
        self.items = items.__aiter__() if isinstance(items, AsyncIterable) else iter(items)
        self.lock = asyncio.Lock()  # an async generator cannot be asked by two at once

    def __aiter__(self) -> SharedIterator:
        return self

    async def __anext__(self) -> str:
        if isinstance(self.items, AsyncIterator):
            async with self.lock:
                return await self.items.__anext__()
        for item in self.items:
            return item
        raise StopAsyncIteration


def worker_count(urls: object, limit: int) -> int:
    """How many workers to start: no more than there are URLs, where that is known."""
    if isinstance(urls, (str, bytes)):
        raise TypeError("urls are a list of URLs, or another iterable of them, not one")
    if not isinstance(limit, int) or limit < 1:
        raise ValueError("limit must be at least 1: it is how many are fetched at once")
    return min(limit, len(urls)) if isinstance(urls, Sized) else limit


async def work_together(work: Callable[[SharedIterator], Coroutine[Any, Any, None]],
                        urls: Urls, limit: int) -> None:
    """Let `limit` workers take URLs from one iterator; the first failure ends them all."""
    shared = SharedIterator(urls)
    workers = [asyncio.ensure_future(work(shared)) for _ in range(worker_count(urls, limit))]
    try:
        await asyncio.gather(*workers)
    finally:
        await cancel(workers)


async def read_whole(response: Response, call: Call) -> Response:
    """How `get` finishes a response."""
    await response.read(call.settings["max_size"])
    return response


Finish = Callable[[Response, Call], Awaitable[Optional[Response]]]
Settled = tuple[dict[str, Any], dict[str, Any]]  # a call's settings in all, and those of its own
Outcome = Union[Response, AsyncGetError]


class Session:
    """GETs that share connections, cookies and settings.

        async with Session(base_url="https://api.test/v1/", auth="token") as session:
            response = await session.get("users/7", params={"full": True})

    The keywords are those of SessionSettings. `cookies` is the jar: read, set, delete,
    iterate. Belongs to the event loop that it is first used in.
    """

    @spelled_out(SessionSettings)
    def __init__(self, **settings: Unpack[SessionSettings]) -> None:
        own = checked(settings, SessionSettings)
        self.settings: dict[str, Any] = {
            name: default for name, (default, *_) in SETTINGS.items() if default is not ...}
        self.settings.update(own)
        self._base: URL | None = None
        if self.settings["base_url"]:
            base = parse_url(self.settings["base_url"])
            path = base.target.partition("?")[0]
            self._base = base._replace(target=path.removesuffix("/") + "/")
        self._base_fields = fields_of(DEFAULT_FIELDS, own)
        self._fields = with_codings(self._base_fields, self.settings["decode"])  # a plain GET's
        given = self.settings["cookies"]
        self.cookies: Any = given if is_jar(given) else Cookies(
            given if isinstance(given, Mapping) else None)
        if self._base and isinstance(self.cookies, Cookies):
            self.cookies.home(self._base.origin)
        self._routes: dict[tuple[Origin, Any], Route] = {}
        self._lines: dict[Origin, bytes] = {}  # the session's own fields, as they are sent
        self._contexts: dict[Any, ssl.SSLContext] = {}
        self.tls_version: ssl.TLSVersion | None = None  # at least
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pool = Pool(self.settings["limit"], self.settings["limit_per_host"],
                          self.settings["open_connection"], self.settings["rate"])
        # asyncio receives into a fresh 256 KiB each time, which a young process of glibc
        # maps and unmaps. One larger block, freed, ends that: half the time of a small GET.
        bytes(4 * READ_BYTES)

    async def __aenter__(self) -> Session:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections, those in use as well."""
        self._pool.closed = True
        if self._loop is not None and not self._loop.is_closed():
            self._check_loop()
            await self._pool.close()

    def _check_loop(self) -> None:
        if self._loop is not asyncio.get_running_loop():
            raise AsyncGetError("this Session belongs to another event loop: make one in each")

    def __repr__(self) -> str:
        pool = getattr(self, "_pool", None)  # none, where the settings were refused
        return f"<Session {'closed' if pool is None or pool.closed else repr(pool)}>"

    # ---- what users call

    @spelled_out(RequestSettings)
    async def get(self, url: str, **options: Unpack[RequestSettings]) -> Response:
        """GET a URL and read its body. What the server does can raise AsyncGetError alone."""
        call = self._call(url, self._settled(options), GET_DEADLINE_SECONDS)
        return await self._run(call, read_whole)

    @spelled_out(RequestSettings)
    @contextlib.asynccontextmanager
    async def stream(self, url: str, **options: Unpack[RequestSettings]) -> AsyncIterator[Response]:
        """GET a URL and hand out the response with its body unread.

            async with session.stream(url) as response:
                async for piece in response.iter_bytes(): ...
        """
        response = await self._run(self._call(url, self._settled(options), None))
        try:
            yield response
        except StatusError as error:
            if error.response is response:  # an error's body says why, and is mostly short
                await response.keep_short()
            raise
        finally:
            response.close()

    @overload
    async def get_all(self, urls: Urls, *, limit: int = ...,
                      return_exceptions: Literal[False] = ...,
                      **options: Unpack[RequestSettings]) -> list[Response]: ...

    @overload
    async def get_all(self, urls: Urls, *, limit: int = ..., return_exceptions: bool,
                      **options: Unpack[RequestSettings]) -> list[Outcome]: ...

    @spelled_out(RequestSettings)
    async def get_all(self, urls: Urls, *, limit: int = 20, return_exceptions: bool = False,
                      **options: Unpack[RequestSettings]) -> Any:
        """GET many URLs, `limit` at once; return the responses in the order of the URLs.

        The first failure cancels the rest and is raised; with return_exceptions each
        AsyncGetError stands in the list in its place instead.
        """
        outcomes: list[Any] = []
        settled = self._settled(options)

        async def work(urls: SharedIterator) -> None:
            async for url in urls:
                index = len(outcomes)
                outcomes.append(None)
                try:
                    call = self._call(url, settled, GET_DEADLINE_SECONDS)
                    outcomes[index] = await self._run(call, read_whole)
                except AsyncGetError as error:
                    if not return_exceptions:
                        raise
                    outcomes[index] = error

        await work_together(work, urls, limit)
        return outcomes

    @spelled_out(RequestSettings)
    def as_completed(self, urls: Urls, *, limit: int = 20, **options: Unpack[RequestSettings]
                     ) -> AsyncGenerator[tuple[str, Outcome], None]:
        """GET many URLs, `limit` at once; yield (url, Response or AsyncGetError) as they finish.

        URLs are taken as places come free, and a place comes free when an outcome is taken:
        a million URLs from a generator take no more memory than a hundred. The loop may be
        left at any time: what is under way is cancelled, and waits for nobody.
        """
        return self._outcomes(urls, limit, self._settled(options))

    async def _outcomes(self, urls: Urls, limit: int, settled: Settled,
                        close: bool = False) -> AsyncGenerator[tuple[str, Outcome], None]:
        """What as_completed gives; with `close` its end is the session's.

        Not one generator around another: asyncio would close both at once, which fails.
        """
        finished: asyncio.Queue[Any] = asyncio.Queue()
        taken = asyncio.Semaphore(0)

        async def work(urls: SharedIterator) -> None:
            async for url in urls:
                try:
                    call = self._call(url, settled, GET_DEADLINE_SECONDS)
                    outcome: Outcome = await self._run(call, read_whole)
                except AsyncGetError as error:
                    outcome = error
                finished.put_nowait((url, outcome))
                await taken.acquire()

        async def work_together_and_close() -> None:
            try:
                await work_together(work, urls, limit)
            finally:  # not in the generator's: asyncio may end it without a word
                if close:
                    await self.close()

        workers = asyncio.ensure_future(work_together_and_close())
        workers.add_done_callback(lambda _: finished.put_nowait(None))
        try:
            while (item := await finished.get()) is not None:
                taken.release()
                yield item
            await workers
        finally:
            await cancel([workers])

    @spelled_out(RequestSettings)
    async def download(self, url: str, path: FilePath | PathRule, *,
                       progress: Progress | None = None, resume: bool = True,
                       overwrite: bool = True, any_status: bool = False,
                       on_response: OnResponse | None = None,
                       **options: Unpack[RequestSettings]) -> Response:
        """GET a URL into a file that gets its name when it is whole: see section 12."""
        for name, function in (("progress", progress), ("on_response", on_response)):
            if function is not None and not callable(function):
                raise TypeError(f"{name} must be a function: not {type(function).__name__}")
        call = self._call(url, self._settled(options), None)
        return await download_to(self, call, path, progress=progress, resume=resume,
                                 overwrite=overwrite, any_status=any_status,
                                 on_response=on_response)

    # ---- one call

    def _settled(self, options: Mapping[str, object]) -> Settled:
        """The settings of calls with these options, and the options, checked, by themselves."""
        if not options:
            return self.settings, {}
        own = checked(options)
        settings = {**self.settings, **own}
        settings["params"] = merge_params(self.settings["params"], own.get("params", ()))
        if not is_jar(own.get("cookies")) and isinstance(own.get("cookies"), Mapping):
            settings["cookies"] = self.settings["cookies"]  # the call's own go beside its jar's
        return settings, own

    def _call(self, url: str, settled: Settled, usual: float | None) -> Call:
        """One call, on the loop that all of the session's are on."""
        self._loop = self._loop or asyncio.get_running_loop()
        self._check_loop()
        if not isinstance(url, str):
            raise InvalidURL(f"a URL is text, not {type(url).__name__}")
        return Call(url, *settled, usual)

    async def _run(self, call: Call, finish: Finish | None = None,
                   begin: Callable[[Call], Request] | None = None) -> Response:
        """Begin a request, follow it, finish its response; all of it again as the rule says."""
        begin, retries, attempt = begin or self._request, call.settings["retries"], 1
        while True:
            response, outcome = None, ""
            try:
                response = await self._follow(begin(call), call)
                delay = call.retry_delay(attempt, response) if retries and not response.ok else None
                if delay is None:
                    finished = await finish(response, call) if finish else response
                    if finished is None:  # it was not what begin had asked for: ask anew
                        continue
                    return finished
                await response.discard()
                outcome = repr(response)
            except BaseException as error:
                if response is not None:
                    response.close()
                if not isinstance(error, AsyncGetError):
                    raise
                error.url = error.url or masked(call.url)[1:-1]
                delay = call.retry_delay(attempt, error) if retries else None
                if delay is None:
                    raise
                outcome = str(error)
            if call.settings["trace"]:
                call.settings["trace"]("*", f"trying again in {delay:.1f} s: {outcome}")
            await asyncio.sleep(delay)
            attempt += 1

    async def _follow(self, request: Request, call: Call) -> Response:
        """The response that a request leads to, over all redirects; its body is unread."""
        settings, response = call.settings, None
        history: list[Response] = []
        try:
            while True:
                response = await self._exchange(request, call)
                following = (next_request(request, response, settings["secret_headers"],
                                          settings["trust_redirects"])
                             if settings["follow_redirects"] and response.status_code // 100 == 3
                             else None)
                if following is None:
                    response.history = history
                    return response
                if following.url.origin.scheme not in settings["redirect_schemes"]:
                    raise InvalidURL(f"a redirect to {following.url}, whose scheme is not among "
                                     "redirect_schemes", exit_code=1)
                await response.discard()
                history.append(response)
                if sum(len(hop.raw_head) for hop in history) > MAX_HISTORY_BYTES:
                    raise TooLarge(f"redirects with heads of more than {MAX_HISTORY_BYTES} bytes",
                                   limit=MAX_HISTORY_BYTES, response=response)
                if len(history) > settings["max_redirects"]:
                    response.history = history[:-1]
                    raise TooManyRedirects(f"more than {settings['max_redirects']} redirects",
                                           history=history, response=response)
                if following.url.origin != request.url.origin and not settings["trust_redirects"]:
                    call.cookies, call.cert = {}, None
                request = following
        except BaseException as error:
            if response is not None:  # whose Location, say, is no URL: nobody will read it
                response.close()
            if isinstance(error, AsyncGetError) and not error.url:
                error.url = str(request.url)
            raise

    def _request(self, call: Call, extra: HeaderItems = ()) -> Request:
        """The first request of a call, with all that the caller wants in it."""
        settings, options, base = call.settings, call.options, self._base
        url = join_url(base, call.url.strip()) if base else parse_url(call.url)
        fields = self._base_fields if options else self._fields
        call.first, call.cert = url.origin, settings["cert"]
        if base and url.origin != base.origin:  # the session's secrets are the base's
            fields = without_secrets(fields, settings["secret_headers"])
            call.cert = options.get("cert")
        elif base and not url.userinfo and "auth" not in options:
            url = url._replace(userinfo=base.userinfo)
        if settings["params"]:
            url = add_params(url, settings["params"])
        if options:
            fields = with_codings(fields_of(fields, options), settings["decode"])
        request = Request(url, merge_fields(fields, extra) if extra else fields)
        if self._base is None and isinstance(self.cookies, Cookies):
            self.cookies.home(url.origin)
        cookies = options.get("cookies")
        if isinstance(cookies, Mapping) and not is_jar(cookies):
            for name, value in cookies.items():
                check_cookie(name, "" if value is None else value)
            call.cookies = {name: value for name, value in cookies.items()
                            if name not in call.replaced}
        if url.userinfo and not request.has("authorization"):
            user, password = split_userinfo(url.userinfo)
            known = (netrc_auth(settings["netrc"], url.origin.host, user)
                     if settings["netrc"] and ":" not in url.userinfo else None)
            request = request.adding("Authorization", render_auth(known or (user, password)))
        return request

    async def _exchange(self, request: Request, call: Call) -> Response:
        """A response for one request over one connection.

        A kept connection may have been closed by the server while our request was on its
        way: if not a byte came back, or no more than 408 and goodbye, the request goes once
        more, on a new one (RFC 9112 9.3.1), whatever `retries` says.
        """
        settings = call.settings
        route = self._route(request.url.origin, call)
        data = self._render(request, route, call)
        connection = self._pool.take(route) or await self._acquire(route, call)
        while True:
            connected = connection.loop.time()
            # The first connection's is the earliest: from then on the call's time runs.
            call.deadline = connection.deadline = min(call.deadline, connected + call.seconds)
            connection.call_seconds, connection.trace = call.seconds, settings["trace"]
            try:
                if connection.writer is None:
                    await connection.open(settings["timeout"])
                    connected = connection.loop.time()
                head = await connection.exchange(data, settings["timeout"])
                stale = (head.status == 408 and connection.exchanges > 1
                         and not connection.interim and not may_reuse(head, 0))
                if not stale:
                    head_at = connection.loop.time()
                    body = Body(connection, head, CLOSE_FIELD not in request.fields)
                    response = Response(head, request.url, body, settings["decode"])
                    response.started, response.proxied = call.started, bool(route.proxy)
                    response.peer, response.local = connection.peer, connection.local
                    response.request_bytes = len(data)
                    response._marks = connected, connection.sent_at, head_at
                    response._reused = connection.exchanges > 1
                    if b"set-cookie" in head.fields:
                        self._keep_cookies(response, call)
                    return response
            except BaseException as error:
                stale = (connection.exchanges > 1 and connection.silent
                         and isinstance(error, (IncompleteBody, TLSError)))
                if not stale:
                    connection.close()
                    raise
            connection.close()
            connection.note("the kept connection ended unanswered: once more on a new one")
            connection = await self._acquire(route, call, fresh=True)

    async def _acquire(self, route: Route, call: Call, fresh: bool = False) -> Connection:
        """A connection; what one waits for it is not the call's time, as long as others move."""
        loop, timeout = asyncio.get_running_loop(), call.settings["timeout"]
        came = loop.time()
        left, patience = call.deadline - came, call.seconds if timeout is None else timeout
        try:
            connection = await self._pool.acquire(route, min(left, patience), fresh)
        except TimedOut as error:
            if left > patience:
                raise
            raise TimedOut(f"{error} (what the whole call's deadline left)", phase=error.phase,
                           seconds=call.seconds) from None
        call.deadline += loop.time() - came
        return connection

    def _render(self, request: Request, route: Route, call: Call) -> bytes:
        """The bytes of a request as they go over a route."""
        origin, target = request.url.origin, request.url.target
        jar = self._jar(call.settings)
        cookies = [] if jar is None else (jar.pairs_for(request.url) if isinstance(jar, Cookies)
                                          else ask_jar(jar, request.url))
        if cookies or call.cookies:
            own = [(name, value) for name, value in call.cookies.items() if value is not None]
            others = [pair for pair in cookies if pair[0] not in call.cookies]
            request = request.with_cookies([*own, *others])  # cut, if at all, at the end
        # A password that was meant for https is not for whoever listens to http (or another port).
        same = call.first is not None and call.first._replace(host=origin.host) == origin
        if (call.settings["netrc"] and same and "auth" not in call.options
                and not request.has("authorization")):
            auth = netrc_auth(call.settings["netrc"], origin.host)
            if auth:
                request = request.adding("Authorization", render_auth(auth))
        fields = request.fields
        if route.proxy and origin.scheme == "http" and not route.proxy.scheme.startswith("socks"):
            target = f"http://{origin.authority}{target}"
            fields = (*fields, *proxy_fields(route.proxy))
        if fields is not self._fields:
            return render_request(target, render_fields(fields, origin))
        lines = self._lines.get(origin)
        if lines is None:
            if len(self._lines) >= 1000:  # of a crawl over many hosts
                self._lines.clear()
            lines = self._lines[origin] = render_fields(fields, origin)
        return render_request(target, lines)

    def _jar(self, settings: Mapping[str, Any]) -> Any:
        """The jar of a call: the session's, one of the caller's, or None."""
        given = settings["cookies"]
        return given if is_jar(given) else None if given is False else self.cookies

    def _keep_cookies(self, response: Response, call: Call) -> None:
        """Put what a response sets into the jar; it replaces what the call brought along."""
        jar = self._jar(call.settings)
        if isinstance(jar, Cookies):
            names = jar.store(response._url, octets_text(response.raw_head, "set-cookie"))
            call.replaced.update(names)
            for name in names:
                call.cookies.pop(name, None)
        elif jar is not None:
            fill_jar(jar, response)

    # ---- routes

    def _route(self, origin: Origin, call: Call) -> Route:
        """The route to an origin; remembered for the session's own settings."""
        shared, key = call.options.keys().isdisjoint(_ROUTING), (origin, call.cert)
        if shared:
            route = self._routes.get(key)
            if route is not None:
                return route
        settings = call.settings
        proxy, verify = self._proxy(origin, settings), settings["verify"]
        tls = self._context(verify, call.cert) if origin.scheme == "https" else None
        proxy_tls = self._context(verify) if proxy and proxy.scheme == "https" else None
        here = proxy is None or proxy.scheme == "socks5"  # the others look names up themselves
        address = resolved(settings["resolve"], origin) if settings["resolve"] and here else None
        path = settings["unix_socket"]
        route = Route(origin, tls, proxy, path and os.fspath(path), address, proxy_tls, verify)
        if shared:
            if len(self._routes) >= 1000:  # of a crawl over many hosts
                self._routes.clear()
            self._routes[key] = route
        return route

    def _proxy(self, origin: Origin, settings: Mapping[str, Any]) -> Proxy | None:
        if settings["unix_socket"] or "proxy" in settings and not settings["proxy"]:
            return None
        if "proxy" in settings:
            return parse_proxy(settings["proxy"], "proxy=")
        return choose_proxy(origin, os.environ) if settings["trust_env"] else None

    def _context(self, verify: Any, cert: Any = None) -> ssl.SSLContext:
        if isinstance(verify, ssl.SSLContext):  # made anew for each call, they would pile up
            return tls_context(verify, cert)
        key = (verify, cert)
        if key not in self._contexts:
            if len(self._contexts) >= 100:
                self._contexts.clear()
            self._contexts[key] = tls_context(verify, cert)
            if self.tls_version is not None:
                self._contexts[key].minimum_version = self.tls_version
        return self._contexts[key]


@spelled_out(SessionSettings)
async def get(url: str, **settings: Unpack[SessionSettings]) -> Response:
    """GET a URL and read its body, with a session of its own."""
    async with Session(**settings) as session:
        return await session.get(url)


@spelled_out(SessionSettings)
@contextlib.asynccontextmanager
async def stream(url: str, **settings: Unpack[SessionSettings]) -> AsyncIterator[Response]:
    """GET a URL and hand out the response unread: see Session.stream."""
    async with Session(**settings) as session, session.stream(url) as response:
        yield response


@overload
async def get_all(urls: Urls, *, limit: int = ..., return_exceptions: Literal[False] = ...,
                  **settings: Unpack[ClientSettings]) -> list[Response]: ...


@overload
async def get_all(urls: Urls, *, limit: int = ..., return_exceptions: bool,
                  **settings: Unpack[ClientSettings]) -> list[Outcome]: ...


@spelled_out(ClientSettings)
async def get_all(urls: Urls, *, limit: int = 20, return_exceptions: bool = False,
                  **settings: Unpack[ClientSettings]) -> Any:
    """GET many URLs, `limit` at once, in their order: see Session.get_all."""
    async with Session(limit=limit, **settings) as session:
        return await session.get_all(urls, limit=limit, return_exceptions=return_exceptions)


@spelled_out(ClientSettings)
def as_completed(urls: Urls, *, limit: int = 20, **settings: Unpack[ClientSettings]
                 ) -> AsyncGenerator[tuple[str, Outcome], None]:
    """GET many URLs, `limit` at once, as they finish: see Session.as_completed."""
    session = Session(limit=limit, **settings)
    return session._outcomes(urls, limit, session._settled({}), close=True)


# ==== 12. Downloads ===========================================================
# A download is three files. PATH.part collects the bytes, PATH.part.meta says of
# which version of the file they are, and PATH is what PATH.part is renamed to when
# it is whole. It survives a kill by the order in which they are written:
#
#     empty PATH.part   PATH.part.meta   the body   fsync   rename   PATH.part.meta away
#
# Between any two of these there is a whole PATH, or bytes and the name of their
# version, or nothing that a later run would trust. A PATH.part that has bytes but no
# such sidecar is not of our making, and is left alone. What to trust is decided first,
# from values alone; the disk comes after that.

_STRONG_ETAG = r'"[\x21\x23-\x7e]*"'  # RFC 9110 8.8.3; a weak one begins with W/
_DATE = r"[A-Z][a-z]{2}, [0-9]{2} [A-Z][a-z]{2} [0-9]{4} [0-9:]{8} GMT"
_SIDECAR = re.compile(rf"({_STRONG_ETAG}|{_DATE}|\?)\n([0-9]{{1,18}}|\?)\n([0-9a-f]{{64}})\n")
SIDECAR_BYTES = 1024  # at most; a longer ETag is not noted


class Partial(NamedTuple):
    """A PATH.part to go on from: its size, and what its sidecar says of the whole file."""

    size: int             # bytes that we have
    validator: str        # '"v1"', or 'Sun, 06 Nov 1994 08:49:37 GMT'; '?': cannot be resumed
    total: int | None     # bytes of the whole, where the server told
    source: str           # of which URL: see source_of


def strong_validator(headers: Headers) -> str | None:
    """What names exactly these bytes, if anything does (RFC 9110 8.8, 13.1.5).

    >>> strong_validator(Headers([("ETag", '"v1"'), ("Last-Modified", "...")]))
    '"v1"'
    >>> strong_validator(Headers([("ETag", 'W/"v1"')]))

    Dates have a grain of a second, in which a file may change twice. So one counts
    only when the file had been left alone for a while, and where there is no ETag.
    """
    etag, changed = headers.get("etag"), headers.get("last-modified", "")
    if etag is not None:
        return etag if re.fullmatch(_STRONG_ETAG, etag) and len(etag) < 512 else None
    then, now = parse_date(changed), parse_date(headers.get("date", ""))
    if then is None or now is None or not re.fullmatch(_DATE, changed):
        return None
    return changed if now - then >= SETTLED_SECONDS else None


def source_of(response: Response) -> str:
    """A digest of the URL that was asked for and of the one that answered.

    Two files can have the ETag "1", so it takes both to tell a file. The second one
    goes without its query: release servers redirect to a link signed for this request
    alone. A digest, since a query may be a key, and the sidecar lies about on the disk.
    """
    import hashlib
    asked = response.history[0].url if response.history else response.url
    answered = response.url.partition("?")[0]
    return hashlib.sha256(f"{asked} {answered}".encode("utf-8", "replace")).hexdigest()


_OWN_CODINGS: dict[bytes, tuple[tuple[str, ...], tuple[str, ...]]] = {  # ends of names, and types
    b"gzip": ((".gz", ".tgz", ".svgz"), ("gzip", "tar", "tgz", "tar-gz", "gtar", "compressed-tar")),
    b"zstd": ((".zst", ".tzst"), ("zstd",)),
}


def is_own_coding(response: Response, path: str) -> bool:
    """Whether a coding belongs to the file: a.tar.gz that is said to be a tar, coded in gzip.

    So Apache's usual settings have it; undone, it would leave a tar under that name.
    """
    codings = applied_codings(response.coding)
    known = len(codings) == 1 and response.status_code < 300
    ends, types_ = _OWN_CODINGS.get(codings[0], ((), ())) if known else ((), ())
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    url = re.split("[?#]", response.url)[0]
    return (path.lower().endswith(ends) or url.lower().endswith(ends)
            or kind.removeprefix("application/").removeprefix("x-") in types_)


def is_coded(response: Response) -> bool:
    """Whether the bytes on the wire are not the file's own."""
    coding = response.headers.get("content-encoding", "").lower().encode("utf-8")
    return response.coding != b"identity" and applied_codings(coding) != []


def body_length(response: Response) -> int | None:
    """How long the head says that the body is, None where it does not or a coding hides it."""
    framing = body_framing(parse_head(response.raw_head))
    return framing if isinstance(framing, int) and not is_coded(response) else None


def render_sidecar(response: Response) -> bytes:
    """What to remember of a response; "?" for a validator whose middle cannot be asked for."""
    validator, total = strong_validator(response.headers), body_length(response)
    if response.status_code != 200 or is_coded(response):
        validator = None
    length = "?" if total is None else total
    return f"{validator or '?'}\n{length}\n{source_of(response)}\n".encode()


def parse_sidecar(data: bytes, size: int) -> Partial | None:
    r"""What a sidecar says, None when a byte is missing or strange.

    >>> parse_sidecar(b'"v1"\n11\n' + b"5e1f" * 16 + b"\n", 5).total
    11
    """
    match = _SIDECAR.fullmatch(data.decode("latin-1"))
    if match is None:
        return None
    return Partial(size, match[1], None if match[2] == "?" else int(match[2]), match[3])


def resume_request(known: Partial | None) -> dict[str, str]:
    """The fields that ask for the rest of a file, or for all of it if it has changed.

    >>> resume_request(Partial(5, '"v1"', 11, "..."))
    {'Accept-Encoding': 'identity', 'Range': 'bytes=5-', 'If-Range': '"v1"'}

    Identity, since a range would be one of the coded bytes, and those vary.
    """
    fields = {"Accept-Encoding": "identity"}
    if known is not None:
        fields.update({"Range": f"bytes={known.size}-", "If-Range": known.validator})
    return fields


def range_of_rest(start: int, length: int) -> str:
    """The one right Content-Range for so many bytes up to the end, or for none: a 416.

    >>> range_of_rest(5, 6), range_of_rest(5, 0)
    ('bytes 5-10/11', 'bytes */5')
    """
    end = start + length
    return f"bytes {start}-{end - 1}/{end}" if length else f"bytes */{end}"


def resume_plan(response: Response, known: Partial | None) -> str:
    """What a response means to the bytes that we have.

        append     206 with all that comes after our bytes, and nothing else
        done       416, as nothing comes after them
        restart    another status: its body is the file, or tells of an error
        again      a 206 or 416 that is not exactly that: ask for all of the file

    A server that is bad at ranges must not cost us the file, and one that mixes up
    versions must not get into it. So each doubt means "again", which touches nothing on
    the disk (RFC 9110 14.4, 15.3.7, 15.5.17). A 206 of N bytes has one right Content-Range,
    and comparing leaves nothing to parse: no `5-4/11`, no `+5-10/11`.
    """
    headers, status = response.headers, response.status_code
    if known is None or status not in (206, 416):
        return "restart"
    length = body_length(response) if status == 206 else None  # None: it could end anywhere
    rest = length or 0
    field = "etag" if known.validator.startswith('"') else "last-modified"
    fits = (headers.get("content-range", "").lower() == range_of_rest(known.size, rest)
            and known.total in (None, known.size + rest)
            and headers.get(field, known.validator) == known.validator
            and not headers.get("content-type", "").lower().startswith("multipart/byteranges")
            and source_of(response) == known.source)
    if not fits or status == 206 and not length:
        return "again"
    return "append" if length else "done"


def check_status(response: Response, any_status: bool, own_range: bool) -> None:
    """Refuse a body that is not the file: an error's, a redirect's, or a piece not asked for."""
    piece = response.status_code == 206 and not own_range
    if piece or response.status_code >= 300 and not any_status:
        response.raise_for_status()
        raise StatusError(f"{response.status_code} for {response.url}: this is not the file",
                          url=response.url, response=response)


# ---- on the disk

@contextlib.contextmanager
def disk_errors(path: str, **facts: Any) -> Iterator[None]:
    """Make an error of ours, with curl's code, out of what the file system says."""
    try:
        yield
    except AsyncGetError:  # the network's, of which some are an OSError, too
        raise
    except OSError as error:
        raise AsyncGetError(f"cannot write {printable(path)}: {error.strerror or error}",
                            exit_code=23, **facts) from error


def write_all(stream: Any, data: bytes | bytearray) -> None:
    """Write all of data, and at once: whoever reads a pipe should not wait for us.

    A raw file may take a part of it, a pipe that does not block may take nothing yet.
    """
    unwritten = memoryview(data)
    while unwritten:
        try:
            count = stream.write(unwritten)
        except BlockingIOError as error:
            count = error.characters_written
        if not count:
            select.select([], [stream], [])
        unwritten = unwritten[count or 0:]
    while True:
        try:
            stream.flush()
            return
        except BlockingIOError:
            select.select([], [stream], [])


def check_target(path: str, overwrite: bool) -> None:
    """Refuse what no file can be renamed to; a device or a pipe would be lost by it."""
    with disk_errors(path):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, ValueError):
            os.lstat(path)  # a name that is too long
        special = os.path.exists(path) and not os.path.isfile(path)
        if special or not os.path.basename(path) or "\0" in path:
            raise OSError("not the name of a file")
        if not overwrite and os.path.lexists(path):
            raise OSError("it exists")


def part_of(path: str) -> str:
    """PATH.part; shortened where no name is so long, or its sidecar's would be."""
    folder, name = os.path.split(os.fsencode(path))
    if len(name) > 245:  # of 255, less .part.meta
        import hashlib
        name = name[:180] + b"." + hashlib.sha256(name).hexdigest().encode()
    return os.fsdecode(os.path.join(folder, name + b".part"))


def open_ours(name: str, flags: int) -> int:
    """Open a plain file of our own, and of one name, or make one; OSError for any other.

    Where others may write, too, they can foretell the name, and put there a link to a file
    of ours, a file that remains theirs, or a pipe that would hold us for ever.
    """
    flags |= (getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
              | getattr(os, "O_BINARY", 0))
    if flags & os.O_CREAT:
        with contextlib.suppress(FileExistsError):
            return os.open(name, flags | os.O_EXCL, 0o666)
    number = os.open(name, flags)
    found = os.fstat(number)
    theirs = hasattr(os, "geteuid") and found.st_uid != os.geteuid()
    if theirs or found.st_nlink > 1 or not stat.S_ISREG(found.st_mode):
        os.close(number)
        raise OSError(f"{os.path.basename(name)} is a link, no plain file, or somebody else's")
    return number


def read_sidecar(part: str) -> Partial | None:
    """What there is of a file; None where it is not ours to go on from."""
    try:
        size = os.lstat(part).st_size
        number = open_ours(part + ".meta", os.O_RDONLY)
        try:
            return parse_sidecar(os.read(number, SIDECAR_BYTES + 1), size)
        finally:
            os.close(number)
    except (OSError, ValueError):
        return None


def read_partial(path: str) -> Partial | None:
    """What there is of PATH to go on from; writing will tell what is wrong with it, if so."""
    known = read_sidecar(part_of(path))
    return known if known and known.size and known.validator != "?" else None


def open_part(part: str) -> io.FileIO:
    """Open a .part to append to it, ours alone from now on and before.

    Unbuffered: what has arrived is the kernel's at once, and no kill takes it back. The
    lock keeps other downloads off, and dies with us.
    """
    new = not os.path.lexists(part)
    file = open(part, "ab", buffering=0, opener=open_ours)
    try:
        with contextlib.suppress(ImportError):  # Windows
            import fcntl
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise OSError("another download is writing it") from None
            except OSError:  # a file system without locks
                pass
        if not os.path.samestat(os.fstat(file.fileno()), os.lstat(part)):
            raise OSError("another download is writing it")  # it had the lock before us
        theirs = os.fstat(file.fileno()).st_size and read_sidecar(part) is None
        if new and os.path.lexists(part + ".meta"):
            found = os.lstat(part + ".meta")  # a link is just taken away
            theirs = (stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and found.st_size
                      and read_sidecar(part) is None)
            if theirs:
                os.unlink(part)
        if theirs:
            raise OSError(f"{os.path.basename(part)}{'.meta' if new else ''} is not of our making: "
                          "move it away, or choose another name")
    except BaseException:
        file.close()
        raise
    return file


def restart_part(file: io.FileIO, part: str, sidecar: bytes) -> None:
    """Make a .part the beginning of another version: no bytes, a new sidecar."""
    file.truncate(0)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(part + ".meta")
    with open(part + ".meta", "xb") as meta:  # x: follows no link that was planted
        meta.write(sidecar)


def take_mode(part: str, path: str, more: int) -> None:
    """Let nobody read a .part who may not read what it will replace."""
    if os.path.isfile(path) and not os.path.islink(path):
        os.chmod(part, os.stat(path).st_mode & 0o777 | more)


def publish_part(file: io.FileIO, path: str, size: int, overwrite: bool) -> None:
    """Give a .part its name, if that is the file which we wrote, whole and alone.

    A rename replaces what bears the name, a link does not.
    """
    part, found = part_of(path), os.fstat(file.fileno())
    if (not os.path.samestat(found, os.lstat(part)) or found.st_nlink > 1
            or found.st_size != size):
        raise OSError("its .part was changed by somebody else meanwhile")
    take_mode(part, path, 0)
    if os.name == "nt":
        file.close()  # Windows renames no open file
    try:
        if overwrite:
            os.replace(part, path)
        else:
            os.link(part, path)
            os.unlink(part)
    except FileExistsError:
        raise
    except OSError as error:
        if overwrite and error.errno != errno.EBUSY:
            raise
        if overwrite:  # a mount of one file, as containers have them: nothing can take its place
            import shutil
            shutil.copyfile(part, path)
            os.unlink(part)
        else:  # a file system without links: take the name, then fill it
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            try:
                os.replace(part, path)
            except OSError:
                os.unlink(path)
                raise
    with contextlib.suppress(FileNotFoundError):
        os.unlink(part + ".meta")


# ---- from the wire to the disk

FilePath = Union[str, "os.PathLike[str]"]
PathRule = Callable[[Response], FilePath]
OnResponse = Callable[[Response], object]  # awaited, if it gives something to await
Progress = Callable[[int, Optional[int]], object]  # awaited, if it gives something to await


async def write_body(response: Response, file: io.FileIO, start: int,
                     progress: Progress | None) -> int:
    """Write a body as it arrives, behind the `start` bytes there are; return how many then.

    This blocks the loop, in pieces of 256 KiB at most, which the kernel takes in 0.1 ms;
    to hand each to a thread costs more, and makes a slow disk no faster.
    """
    size, length = start, body_length(response)
    expected = None if length is None else start + length
    async for piece in response.iter_bytes():
        size += len(piece)
        write_all(file, piece)
        if progress:
            step = progress(size, expected)
            if isinstance(step, Awaitable):
                await step
    return size


async def save_body(response: Response, path: str, plan: str, known: Partial | None,
                    overwrite: bool, progress: Progress | None) -> None:
    """Carry out a plan, and give the file its name when it is whole."""
    check_target(path, overwrite)
    part = part_of(path)
    with disk_errors(path, url=response.url, response=response):
        with open_part(part) as file:
            take_mode(part, path, 0o200)  # it has to be opened again to go on
            size = known.size if known and plan != "restart" else 0
            if plan == "restart":
                restart_part(file, part, render_sidecar(response))
            elif read_partial(path) != known:
                raise OSError("another download has changed what there was")
            if plan != "done":
                size = await write_body(response, file, size, progress)
            # Else a power cut could leave the name on a file whose bytes never got to
            # the disk. In a thread, as the disk may need seconds for a GiB.
            await asyncio.to_thread(os.fsync, file.fileno())
            publish_part(file, path, size, overwrite)


async def download_to(session: Session, call: Call, path: FilePath | PathRule, *,
                      progress: Progress | None, resume: bool, overwrite: bool,
                      any_status: bool, on_response: OnResponse | None) -> Response:
    """GET a URL into a file, which gets its name when it is whole, and return the response.

        await session.download(url, "big.iso", progress=lambda size, total: ...)

    What this call, or an earlier one, has left in big.iso.part is gone on from where the
    server can tell that the file is still the same. Whatever ends us, kill -9 as well,
    leaves it for the next time. The response is then a 206, or a 416 if all was there.

    `path` may be a function of the response, for names that the server chooses; what an
    earlier call has left is not resumed then. `on_response` sees each response before its body
    is read; what it raises ends the call. `overwrite=False` never replaces a file. A
    status that is no success raises StatusError; with `any_status` its body is saved, as
    curl does, though not in the place of a partial file. A coding that the file's name or
    type announces (a.tar.gz) stays as it is. What the file system refuses is an
    AsyncGetError with exit code 23.
    """
    place = None if callable(path) else os.fsdecode(path)
    if place is not None:
        check_target(place, overwrite)
    known, own_range, wrote = None, False, False

    def begin(call: Call) -> Request:
        nonlocal known, own_range
        request = session._request(call)
        own_range = request.has("range")  # then the piece is the file
        known = read_partial(place) if resume and place is not None and not own_range else None
        return request._replace(fields=merge_fields(request.fields, resume_request(known)))

    async def finish(response: Response, call: Call) -> Response | None:
        nonlocal place, resume, wrote
        met = on_response(response) if on_response else None
        if isinstance(met, Awaitable):
            await met
        if not wrote:
            place = os.fsdecode(path(response) if callable(path) else path)
        assert place is not None
        if is_own_coding(response, place):
            response.coding = b"identity"
        plan = resume_plan(response, known)
        if plan == "again":
            response.close()
            resume = False
            return None
        if plan == "restart":
            check_status(response, any_status and known is None, own_range)
        resume = wrote = True  # what is there from now on, this call has put there
        await save_body(response, place, plan, known, overwrite, progress)
        return response

    return await session._run(call, finish, begin)


@spelled_out(SessionSettings)
async def download(url: str, path: FilePath | PathRule, *,
                   progress: Progress | None = None, resume: bool = True,
                   overwrite: bool = True, any_status: bool = False,
                   on_response: OnResponse | None = None,
                   **settings: Unpack[SessionSettings]) -> Response:
    """GET a URL into a file, with a session of its own: see Session.download."""
    async with Session(**settings) as session:
        return await session.download(
            url, path, progress=progress, resume=resume, overwrite=overwrite,
            any_status=any_status, on_response=on_response)


# ==== 13. Timeline ============================================================
# Where the time went, drawn to scale: one row a request, all rows on one clock. Rows
# that stand above each other were waited for together; that is the whole gain of
# asyncio, for everybody to see. It knows numbers only. Left out: name look-up and TLS
# as phases of their own, as one mark, "connected", ends both.

class Bar(NamedTuple):
    """One row of the drawing: moments in seconds, on a clock that all rows share."""

    label: str
    started: float
    connected: float
    head: float
    done: float
    reused: bool = False
    size: int = 0


def response_bars(response: Response) -> list[Bar]:
    """The bars of a response and of the redirects that led to it, each after the other."""
    bars: list[Bar] = []
    for hop in (*response.history, response):
        marks = [bars[-1].done if bars else hop.started]
        for seconds in (hop.timing.connected, hop.timing.head, hop.timing.done):
            marks.append(max(marks[-1], hop.started + seconds))  # 0 is for what never came
        label = f"{hop.status_code} {hop.url.partition('://')[2]}"
        bars.append(Bar._make((label, *marks, hop.timing.reused, hop.received)))
    return bars


def render_size(count: float) -> str:
    """A number of bytes in eight columns or less.

    >>> render_size(80), render_size(1536), render_size(3 * 10**9)
    ('80 B', '1.5 kB', '3.0 GB')
    """
    if count < 1000:
        return f"{count:.0f} B"
    power = min(4, (len(f"{count:.0f}") - 1) // 3)
    return f"{count / 1000**power:.1f} {' kMGT'[power]}B"


def shorten(text: str, width: int) -> str:
    """Cut the middle out of a long text: a URL says most at its ends.

    >>> shorten("example.com/a/long/way/to/page", 20)
    'example.c...to/page'
    """
    half = width // 2
    return text if len(text) <= width else text[:half - 1] + "..." + text[3 - half:]


def draw_bar(bar: Bar, column: Callable[[float], int]) -> str:
    """One bar as text; `column` says where a moment lies."""
    started, connected, head, done = map(column, bar[1:5])
    drawing = "=" * (connected - started) + "." * (head - connected) + "#" * (done - head)
    drawing = drawing or "#"  # too short for the scale, and yet it took place
    return " " * started + (">" + drawing[1:] if bar.reused else drawing)


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
    label_width = min(max(len(bar.label) for bar in bars), max(8, (width - 21) // 2))
    columns = max(8, width - 21 - label_width)  # 21 for borders, size and time
    scale = (columns - 1) / ((last - first) or 1.0)
    rows = [f"{shorten(bar.label, label_width):{label_width}} "
            f"|{draw_bar(bar, lambda moment: int((moment - first) * scale)):{columns}}| "
            f"{render_size(bar.size):>8} {bar.done - bar.started:6.2f} s" for bar in bars]
    in_a_row = sum(bar.done - bar.started for bar in bars)
    return "\n".join([*rows, "= connect   . wait   # receive   > on a kept connection",
                      f"{last - first:.2f} s in all; one after another {in_a_row:.2f} s"])


# ==== 14. Demo server =========================================================
# The same bytes, seen from the other side. A server is a loop, too: it reads a head and
# writes one. Behind it the demo, which tells on this server, on loopback, what asyncio
# is for. Left out: all that makes a server fit for strangers.

DEMO_PAGES = {  # what goes over the wire, to the byte
    "length": b"HTTP/1.1 200 OK\r\nContent-Length: 22\r\n\r\nI end after 22 bytes.\n",
    "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
               b"6\r\nI end \r\n19\r\nwith a chunk of 0 bytes.\n\r\n0\r\n\r\n",
    "close": b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nI end when I hang up.\n",
    "drip": b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\ndrip drop\n",
}


def render_answer(body: bytes, *fields: str, status: str = "200 OK") -> bytes:
    r"""An answer whose length is told in front: head, empty line, body.

    >>> render_answer(b"hello")
    b'HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello'
    """
    head = (f"HTTP/1.1 {status}", *fields, f"Content-Length: {len(body)}", "", "")
    return "\r\n".join(head).encode() + body


async def demo_page(name: str, argument: str) -> bytes:
    """The whole answer to /name/argument; /delay/N thinks for N seconds first."""
    if name == "delay":
        await asyncio.sleep(float(argument))
        return render_answer(f"I thought for {argument} s.\n".encode())
    if name == "redirect" and int(argument):
        return render_answer(b"", f"Location: /redirect/{int(argument) - 1}", status="302 Found")
    if name == "redirect":
        return render_answer(b"You have arrived.\n")
    if name == "gzip":
        import gzip
        return render_answer(gzip.compress(b"I was squeezed.\n" * 99), "Content-Encoding: gzip")
    return DEMO_PAGES.get(name) or render_answer(b"No such page.\n", status="404 Not Found")


async def serve_demo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer one GET after another on a connection, until somebody hangs up."""
    name = ""
    with contextlib.suppress(OSError, EOFError, ValueError):  # ValueError: /delay/soon
        while name != "close":
            request = await reader.readuntil(b"\r\n\r\n")
            name, _, argument = request.split(b" ", 2)[1].decode().strip("/").partition("/")
            answer = await demo_page(name, argument)
            step = 1 if name == "drip" else len(answer)
            for start in range(0, len(answer), step):
                writer.write(answer[start:start + step])
                await asyncio.sleep(0.02 if name == "drip" else 0)
    writer.close()


def add_two_numbers(first: int, second: int) -> int:
    """The rest of a program: it neither knows nor cares what was awaited before."""
    return first + second


async def count_seconds() -> None:
    """Count aloud, once a second, until somebody cancels."""
    second = 0
    while True:
        await asyncio.sleep(1)
        second += 1
        print(f"   {second} s ... still waiting, still counting", flush=True)


async def demo_waiting(session: Session) -> tuple[list[Response], list[Response]]:
    """One slow page, and a counter meanwhile; then ten of them, at once and in a row."""
    clock = asyncio.get_running_loop().time
    print("\n1. One slow page, and a counter that runs while we wait for it", flush=True)
    counter = asyncio.create_task(count_seconds())
    response = await session.get("/delay/3.2")
    counter.cancel()
    print(f"   {response.status_code} {response.reason}: {response.text.strip()}")
    urls = ["/delay/0.3"] * 10
    print("\n2. Ten pages of 0.3 s each, gathered: one wait for all of them", flush=True)
    started = clock()
    gathered = await asyncio.gather(*map(session.get, urls))
    print(f"   {clock() - started:.1f} s\n\n3. The same ten in a row: ten waits", flush=True)
    started = clock()
    in_a_row = [await session.get(url) for url in urls]
    print(f"   {clock() - started:.1f} s")
    return gathered, in_a_row


async def demo() -> None:
    """Tell in seven seconds what asyncio is for, on a server of our own."""
    server = await asyncio.start_server(serve_demo, "127.0.0.1", 0)
    origin = "http://{}:{}".format(*server.sockets[0].getsockname())
    print(f"A small server answers on {origin}; nothing leaves this machine.")
    async with Session(base_url=origin, trust_env=False) as session:
        gathered, in_a_row = await demo_waiting(session)
        print("\n4. Where does a body end? The server tells, in one of three ways")
        for url in ("/length", "/chunked", "/close"):
            response = await session.get(url)
            print(f"   {response.raw_head.splitlines()[1].decode():28} {response.text.strip()}")
    server.close()
    print("\n5. Then the next line of the program runs, an ordinary function")
    print(f"   add_two_numbers(2, 3) = {add_two_numbers(2, 3)}")
    for title, responses in (("gathered", gathered), ("in a row", in_a_row)):
        bars = [response_bars(response)[0]._replace(label=f"page {number}")
                for number, response in enumerate(responses, 1)]
        print(f"\nThe ten {title}:\n{render_timeline(bars)}")


# ==== 15. Command line ========================================================
# curl's flags and exit codes, so that hands and scripts know them. First what only
# decides (flags to settings, URL to file name, response to report), then what writes,
# and last the run: all URLs at once, printed in the order given. Left out: what needs
# another method than GET, and curl's config files.

HELD_BYTES = 1_048_576   # of a body that waits for its turn on stdout; then the server waits, too
REDRAW_SECONDS = 0.1     # between two states of the progress line
SILENCE_SECONDS = 30.0   # without a byte, and we give up
MAX_GLOB = 100_000       # URLs that one argument may stand for
_FIELD = re.compile(r"^([^\s:]+):([^\r\n]*(?:\r?\n[ \t][^\r\n]*)*)", re.M)
SECRET_NAMES = re.compile(  # not for -v
    r"(proxy-)?auth(orization|entication-info)$|(set-)?cookie2?$|.*(token|secret|passw(or)?d"
    r"|credential|(api|auth|access|subscription|signature)[-_]?key)", re.I)
BINARY = "binary output could upset the terminal; use -o FILE, or -o - to see it all the same"

# A line is a flag's definition as well as its help. A word in capitals is its value, and
# those in NUMBERS are checked; with three dots, it may be given repeatedly.
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
  -k --insecure               believe any server
  --cacert FILE               believe these authorities
  -E --cert FILE              client certificate; FILE:PASSWORD if it has one
  --key FILE                  and its key
  -m --max-time SECONDS       for one try, all in all
  --connect-timeout SECONDS   to connect
  --retry NUMBER              further tries, where they may help
  -o --output FILE...         one for each URL; - is stdout; #1 what {a,b} put in
  -O --remote-name            name the file as the URL does
  -J --remote-header-name     with -O: as the server says; never overwrites
  --output-dir FOLDER         for -o and -O
  --create-dirs               make folders that are missing
  -C --continue-at POSITION   -C - goes on where the last run stopped
  -i --include                the heads, too
  -I --head                   the heads alone: hang up behind them
  -D --dump-header FILE       the heads, there
  -f --fail                   from status 400 on: no body, exit code 22
  -s --silent                 no progress, no errors
  -S --show-error             errors all the same
  -v --verbose                the wire: > sent, < received, * notes
  -w --write-out FORMAT       a report at the end: %{http_code} %{time_total} %{json}
  --url URL...                one more; @FILE or @- has one a line, saved as by -O
  --waterfall                 draw the requests over time
  --demo                      what asyncio is for, told in seven seconds
  -V --version
  -h --help
"""
MORE_FLAGS = """\
request
  -e --referer URL            say where the link was
  --netrc-file FILE           as --netrc, from another file
  --netrc-optional            as --netrc
  -G --get                    take data into the URL
  -d --data TEXT...           with -G: data as it is, or @FILE
  --data-ascii TEXT...        the same
  --data-binary TEXT...       the same, with its line ends
  --data-raw TEXT...          the same, and @ is just a letter
  --data-urlencode TEXT...    with -G, encoded: TEXT, NAME=TEXT, @FILE, NAME@FILE
  --url-query TEXT...         the same without -G; +TEXT is taken as it is
  -X --request METHOD         GET is the only one
  -z --time-cond TIME         only if younger than a date or a file; -TIME: older
  --etag-save FILE            note the ETag there
  --etag-compare FILE         only if the ETag is another than the one there
  -g --globoff                {a,b} and [1-9] are just letters
redirects
  --max-redirs LIMIT          so many at most (50); -1 for any number
  --location-trusted          with the password to any host they lead to
  --proto LIST                schemes that may be used: =https
  --proto-redir LIST          the same for redirects
network
  -U --proxy-user NAME:PASSWORD  log in at the proxy
  --socks5 HOST               a SOCKS5 proxy
  --socks5-hostname HOST      the same; it resolves names, too
  --resolve HOST:PORT:ADDRESS...  the address of a host, or several
  --connect-to HOST1:PORT1:HOST2:PORT2...  where to connect instead
  --unix-socket FILE          connect there
  -4 --ipv4                   over IPv4 only
  -6 --ipv6                   over IPv6 only
TLS
  --capath FOLDER             believe the authorities in it
  --tlsv1.2                   version 1.2 at least
  --tlsv1.3                   version 1.3 at least
time
  -y --speed-time SECONDS     the longest silence (30, or -m); 0 is no limit
  -Y --speed-limit BYTES      so many a second at least, over that time
  --limit-rate BYTES          so many a second at most
  --rate RATE                 so many requests to one host: 10/s, 30/m
  --retry-delay SECONDS       between two tries
  --retry-max-time SECONDS    no try begins later than that
  --retry-all-errors          whatever the error
  --retry-connrefused         (on)
output
  --remote-name-all           -O for each URL
  --out-null                  throw away what has no -o
  --no-clobber                rather FILE.1 than overwrite FILE
  -R --remote-time            give the file the server's date
  --max-filesize BYTES        no more than so many (1k, 2M, 3G)
  --fail-with-body            as -f, with the body
  -# --progress-bar           the progress line, as ever
  --no-progress-meter         no progress line
many
  -Z --parallel               all URLs at once (on)
  --parallel-max NUMBER       so many at once (50)
  --fail-early                end at the first failure
taken, and not needed
  -N --no-buffer
  -q --disable
  --http1.1
  --http2
  --basic
  --keepalive
  --tcp-nodelay
  --parallel-immediate
  --remove-on-error
  -1 --tlsv1
"""
NOT_HERE = {  # curl's, and what to do instead
    "-K --config": "write the flags on the command line",
    "--interface": "the system's routes decide",
    "--stderr": "the shell does it: 2>FILE",
    "--trace --trace-ascii": "-v shows the wire",
    "--ciphers --tls13-ciphers": "OpenSSL's settings decide",
    "--path-as-is": "dot segments are taken out, as browsers do",
    "-F --form -T --upload-file --json -: --next -0 --http1.0 --http2-prior-knowledge --http3 "
    "--digest --ntlm --negotiate --anyauth": "this is a client for GET over HTTP/1.1",
}
NUMBERS = {"SECONDS": r"[0-9]*\.?[0-9]+", "NUMBER": "[0-9]+", "LIMIT": "-1|[0-9]+",
           "BYTES": "[0-9]+[kKmMgG]?"}
Options = types.SimpleNamespace  # an attribute for each flag


class Flag(NamedTuple):
    """One flag: its name in the options, and what its value is, "" if it has none."""

    name: str
    value: str
    repeats: bool


def known_flags() -> dict[str, Flag]:
    """Each spelling in FLAGS.

    >>> known_flags()["-m"]
    Flag(name='max_time', value='SECONDS', repeats=False)
    """
    flags = {}
    pattern = r"^  (?:(-\S) )?--(\S+)(?: ([A-Z0-9:]+)(\.\.\.)?)?(?:  .*)?$"
    for short, name, value, dots in re.findall(pattern, FLAGS + MORE_FLAGS, re.M):
        flag = Flag(re.sub("[-.]", "_", name), value, bool(dots))
        flags[short or "--" + name] = flags["--" + name] = flag
    return flags


def find_flag(word: str, flags: Mapping[str, Flag]) -> tuple[Flag, bool]:
    """The flag that a word spells, and whether it turns it on: --no-X turns X off."""
    opposite = "--" + word[5:] if word.startswith("--no-") else "--no-" + word[2:]
    if word in flags:
        return flags[word], True
    if opposite in flags and not flags[opposite].value:
        return flags[opposite], False
    for spellings, instead in NOT_HERE.items():
        if word in spellings.split():
            raise AsyncGetError(f"{word} of curl's is not here: {instead}")
    from difflib import get_close_matches
    nearest = get_close_matches(word, flags, 1, 0.8) or ["--help all"]
    raise AsyncGetError(f"there is no flag {word}; try {nearest[0]}")


def parse_value(flag: Flag, text: str) -> str | int | float:
    """The value of a flag as the type that FLAGS says.

    >>> parse_value(Flag("max_filesize", "BYTES", False), "2k")
    2048
    """
    if flag.value not in NUMBERS:
        return text
    if not re.fullmatch(NUMBERS[flag.value], text):
        raise AsyncGetError(f"--{flag.name.replace('_', '-')} needs a number, not {text!r}")
    if flag.value == "BYTES":
        unit = {"k": 2**10, "m": 2**20, "g": 2**30}.get(text[-1].lower(), 1)
        return int(text.rstrip("kKmMgG")) * unit
    return float(text) if flag.value == "SECONDS" else int(text)


def split_flag(word: str) -> tuple[str, str | None]:
    """A flag and what is stuck to it.

    >>> split_flag("--output=f"), split_flag("-of"), split_flag("-s")
    (('--output', 'f'), ('-o', 'f'), ('-s', None))
    """
    if word.startswith("--"):
        spelling, equals, value = word.partition("=")
        return spelling, value if equals else None
    return word[:2], word[2:] or None


def store_flag(options: Options, flag: Flag, value: str, on: bool) -> None:
    """Put a flag into the options, behind its earlier values or in their place."""
    if flag.repeats:
        getattr(options, flag.name).append(value)
    else:
        setattr(options, flag.name, parse_value(flag, value) if flag.value else on)
    if flag.name == "output" and not value:
        raise AsyncGetError("-o needs the name of a file")
    if flag.name.startswith("data"):
        options.sent.append((flag.name, value))
    if flag.name == "remote_name" and on:
        options.output.append(None)  # -o and -O are paired with the URLs in one order


def parse_arguments(arguments: Sequence[str]) -> Options:
    """Turn arguments into options, an attribute for each flag.

    >>> options = parse_arguments(["--no-location", "-sSm5", "x.org/a", "-o", "f", "-O"])
    >>> options.location, options.silent, options.max_time, options.url, options.output
    (False, True, 5.0, ['x.org/a'], ['f', None])

    A value is taken as it is, even one that looks like a flag: -r -500 asks for the last
    500 bytes. argparse, with its own opinion on that, would not take curl's command lines.
    """
    flags = known_flags()
    options = Options(**{flag.name: [] if flag.repeats else None if flag.value else False
                         for flag in flags.values()})
    options.location = options.compressed = True
    options.sent = []  # what the data flags say, in their order
    words = list(reversed(arguments))
    while words:
        word = words.pop()
        if word.startswith("@"):  # a URL may come from anywhere: it must not read a file
            raise AsyncGetError(f"a list of URLs goes behind --url: {word}")
        if word == "-" or not word.startswith("-"):
            options.url.append(word)
            continue
        if word == "--":
            options.url += [f"./{url}" if url[:1] == "@" else url for url in reversed(words)]
            break
        spelling, value = split_flag(word)
        flag, on = find_flag(spelling, flags)
        if flag.value and value is None:
            if not words:
                raise AsyncGetError(f"{spelling} needs a value: {flag.value}")
            value = words.pop()
        elif value is not None and not flag.value:
            if spelling.startswith("--"):
                raise AsyncGetError(f"{spelling} takes no value")
            words.append("-" + value)  # -sSf is -s -Sf
        store_flag(options, flag, value or "", on)
    return options


def check_options(options: Options) -> None:
    """Refuse what cannot be meant; nothing has been sent yet."""
    for wrong, reason in (
        (options.request not in (None, "GET"), "-X: this client only GETs"),
        (options.sent and not options.get,
         "data would make it a POST; with -G it goes into the URL"),
        (options.include and options.remote_header_name, "-i would put heads into -J's file"),
        (not re.fullmatch("-|[0-9]+", options.continue_at or "-"), "-C takes - or a number"),
        (options.continue_at and options.remote_header_name,
         "-C has to know the name of the file, which with -J only the server knows"),
        (options.continue_at and options.range, "-C and -r both ask for a range"),
        (not options.url, "no URL given; try --help"),
    ):
        if wrong:
            raise AsyncGetError(reason)


def read_named(name: str) -> bytes:
    """What stands behind an "@": a file, or stdin, which is touched for nothing else."""
    try:
        with open(0 if name == "-" else name, "rb", closefd=name != "-") as file:
            return file.read()
    except OSError as error:
        raise AsyncGetError(f"cannot read {printable(name)}: {error.strerror}",
                            exit_code=26) from error


def read_text(name: str) -> str:
    """The same as text; bytes that are no UTF-8 go out as they came."""
    return read_named(name).removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape")


def read_lines(name: str) -> list[str]:
    """Its lines, without the blanks around them, and without empty ones."""
    return [line.strip() for line in read_text(name).split("\n") if line.strip()]


def parse_header(line: str) -> list[tuple[str, str | None]]:
    """One -H, read as curl does; None removes a header.

    >>> parse_header("X: 1"), parse_header("Accept:"), parse_header("X;"), parse_header("X; y")
    ([('X', '1')], [('Accept', None)], [('X', '')], [])
    """
    name, colon, value = line.partition(":")
    if colon:
        return [(name, value.strip() or None)]
    if line and ";" not in line:
        raise AsyncGetError(f"-H needs a colon: {line!r:.100}")
    return [(line[:-1], "")] if line.endswith(";") else []


def condition(text: str) -> list[tuple[str, str | None]]:
    """The header for -z: a date, or a file whose date is meant; "-" before it turns it about.

    >>> condition("1 Jan 2020"), condition("2 Jan 2020 01:00:00 +0100"), condition("no file yet")
    ... # doctest: +NORMALIZE_WHITESPACE
    ([('If-Modified-Since', 'Wed, 01 Jan 2020 00:00:00 GMT')],
     [('If-Modified-Since', 'Thu, 02 Jan 2020 00:00:00 GMT')], [])
    """
    from email.utils import formatdate
    name = "If-Unmodified-Since" if text.startswith("-") else "If-Modified-Since"
    text, zone, minutes = text.removeprefix("-"), re.search(r"([-+][0-9]{2})([0-9]{2})$", text), 0
    if os.path.exists(text):
        return [(name, formatdate(os.stat(text).st_mtime, usegmt=True))]
    if zone:
        minutes = 60 * int(zone[1]) + int(zone[1][0] + zone[2])
    found = [when for rest in ("", " 00:00:00", ":00") if (when := parse_date(text + rest))]
    return [(name, formatdate(found[0] - 60 * minutes, usegmt=True))] if found else []


def request_headers(options: Options) -> list[tuple[str, str | None]]:
    """All headers that the flags ask for."""
    headers: list[tuple[str, str | None]] = []
    for text in options.header:
        for line in read_lines(text[1:]) if text[:1] == "@" else [text]:
            headers += [] if line[:1] == "#" else parse_header(line)
    given = {name.lower() for name, _ in headers}  # -H has the last word
    cookies = "; ".join(text for text in options.cookie if "=" in text)
    wanted = options.range and re.sub("^[0-9]+$", r"\g<0>-", options.range)  # -r 5 is 5-
    named: list[tuple[str, str | None]] = [
        ("User-Agent", options.user_agent), ("Referer", options.referer),
        ("Cookie", cookies or None), ("Range", wanted and f"bytes={wanted}")]
    if options.etag_compare and os.path.exists(options.etag_compare):
        named.append(("If-None-Match", read_text(options.etag_compare).strip() or '""'))
    if options.time_cond:
        named += condition(options.time_cond)
    return headers + [(name, value or None) for name, value in named
                      if value is not None and name.lower() not in given]


def encode_data(text: str) -> str:
    """The forms of --data-urlencode, percent-encoded.

    >>> encode_data("a b"), encode_data("=a&b"), encode_data("n=a=b"), encode_data("é")
    ('a+b', 'a%26b', 'n=a%3Db', '%C3%A9')
    """
    from urllib.parse import quote_plus
    name, equals, content = text.partition("=")
    data = os.fsencode(content)
    if not equals:
        name, at, file = text.partition("@")
        name, data = (name, read_named(file)) if at else ("", os.fsencode(text))
    return (name and name + "=") + quote_plus(data)


def queries(options: Options) -> list[str]:
    """What the flags add to each URL's query."""
    found: list[str] = []
    for flag, text in options.sent:
        if flag == "data_urlencode":
            text = encode_data(text)
        elif flag != "data_raw" and text[:1] == "@":
            text = read_text(text[1:])
            text = text if flag == "data_binary" else re.sub("[\r\n]", "", text)
        found.append(text)
    return found + [q[1:] if q[:1] == "+" else encode_data(q) for q in options.url_query]


def complete_url(text: str, added: Iterable[str] = ()) -> str:
    """The URL with the scheme that was left out, and what is added to its query.

    >>> complete_url("x.org/a#b", ["q=1+2"])
    'http://x.org/a?q=1+2#b'
    """
    url, hash_sign, fragment = text.partition("#")
    for query in added:
        url += ("&" if "?" in url else "?") + query
    return ("" if re.match("[A-Za-z0-9+.-]+://", url) else "http://") + url + hash_sign + fragment


_GLOB = re.compile(r"\{([^{}]*)\}|\[(?:([0-9]+)-([0-9]+)|([A-Za-z])-([A-Za-z]))(?::([0-9]+))?\]")


def expand_glob(text: str) -> list[tuple[str, list[str]]]:
    """The URLs that one with {a,b} or [1-9] stands for, each with what was put in.

    >>> expand_glob("h/{a,b}[08-10:2]")
    [('h/a08', ['a', '08']), ('h/a10', ['a', '10']), ('h/b08', ['b', '08']), ('h/b10', ['b', '10'])]
    """
    choices: list[Sequence[str]] = []
    for listed, first, last, start, end, step in _GLOB.findall(text):
        each = range(int(first or ord(start or "a")), int(last or ord(end or "a")) + 1,
                     int(step or 1) or 1)
        empty = not (listed or first or start) or step and not int(step)
        if empty or not 0 < len(each) <= MAX_GLOB:
            raise AsyncGetError(f"a range of none, or of too many URLs: {text!r:.100}; -g takes "
                                "it as it is", exit_code=3)
        choices.append([chr(n) for n in each] if start else
                       [f"{n:0{len(first)}}" for n in each] if first else listed.split(","))
    if functools.reduce(lambda product, found: product * len(found), choices, 1) > MAX_GLOB:
        raise AsyncGetError(f"more than {MAX_GLOB} URLs: {text!r:.100}", exit_code=3)
    fixed = _GLOB.split(text)[::7]
    if re.search(r"[][{}]", re.sub(r"^([^/]*//)?\[[0-9A-Fa-f:.%]*\]|\[\]", "", " ".join(fixed))):
        raise AsyncGetError(f"a bracket or brace without its end: {text!r:.100}; -g takes it as it "
                            "is", exit_code=3)
    return [("".join(itertools.chain(*itertools.zip_longest(fixed, found, fillvalue=""))),
             list(found)) for found in itertools.product(*choices)]


def schemes(text: str | None, base: Iterable[str] = ("http", "https")) -> list[str]:
    """What --proto leaves of the schemes: "=https" that alone, "-http" without, "+http" with.

    >>> schemes("=https"), schemes("-all,https"), schemes(None)
    (['https'], ['https'], ['http', 'https'])
    """
    found = set(base)
    for entry in (text or "").lower().split(","):
        sign, name = (entry[0], entry[1:]) if entry[:1] in ("=", "-", "+") else ("+", entry)
        named = {"http", "https"} & ({"http", "https"} if name == "all" else {name})
        found = named if sign == "=" else found - named if sign == "-" else found | named
    return sorted(found)


def parse_resolve(entries: Iterable[str]) -> dict[str, str]:
    """--resolve as Session takes it.

    >>> parse_resolve(["+H:80:1.2.3.4,[::1]", "h:81:::1", "-h:81"])
    {'h:80': '1.2.3.4,[::1]'}
    """
    found: dict[str, str] = {}
    for entry in entries:
        match = re.fullmatch(r"([-+]?)(\[[^]]*\]|[^:]+):([0-9]{1,5})(?::(.+))?", entry.lower())
        if match is None or not match[4] and match[1] != "-":
            raise AsyncGetError(f"--resolve is HOST:PORT:ADDRESS, not {entry!r:.100}", exit_code=49)
        for address in match[4].split(",") if match[4] else []:
            try:
                parse_address(address.strip("[] "), 6 if ":" in address else 4)
            except InvalidURL as error:
                raise AsyncGetError(f"--resolve: {error}", exit_code=49) from None
        if match[1] == "-":
            found.pop(f"{match[2]}:{match[3]}", None)
        else:
            found[f"{match[2]}:{match[3]}"] = match[4]
    return found


def parse_rate(text: str | None) -> float | None:
    """--rate as requests a second; without a unit, curl means an hour.

    >>> parse_rate("30/m"), parse_rate("7200")
    (0.5, 2.0)
    """
    if not text:
        return None
    match = re.fullmatch("([0-9]+)(?:/([0-9]*)([smhd]))?", text)
    if match is None or not int(match[1]):
        raise AsyncGetError(f"--rate is a number and a unit, 10/s or 30/m, not {text!r:.50}")
    seconds = {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[3] or "h"] * int(match[2] or 1)
    return int(match[1]) / seconds


TRANSFER: contextvars.ContextVar[Transfer] = contextvars.ContextVar("TRANSFER")


def connector(options: Options) -> Connector:
    """open_connection as -4, -6, --connect-to and --connect-timeout want it."""
    family = socket.AF_INET if options.ipv4 else socket.AF_INET6 if options.ipv6 else 0
    limit = options.connect_timeout or None
    elsewhere = {}
    for entry in options.connect_to:
        match = re.fullmatch(r"(\[[^]]*\]|[^:]*):([0-9]*):(\[[^]]*\]|[^:]*):([0-9]*)", entry)
        if match is None:
            raise AsyncGetError(f"--connect-to is HOST1:PORT1:HOST2:PORT2, not {entry!r:.100}",
                                exit_code=49)
        elsewhere[match[1].strip("[]").lower(), match[2]] = match[3].strip("[]"), match[4]

    async def connect(host: str, port: int, **how: Any) -> Any:
        for name, number in itertools.product((host, ""), (str(port), "")):
            if (name, number) in elsewhere:
                new = elsewhere[name, number]
                host, port = new[0] or host, int(new[1] or port)
                break
        began = asyncio.get_running_loop().time()
        addresses = await look_up(host, port, family)
        TRANSFER.get().looked_up = asyncio.get_running_loop().time() - began
        return await open_any(addresses, port, **how)

    async def connect_in_time(host: str, port: int, **how: Any) -> Any:
        opening = asyncio.ensure_future(connect(host, port, **how))
        try:
            await asyncio.wait([opening], timeout=limit)
            for _ in range(LAST_TURNS):  # as with every clock: see Connection
                await asyncio.sleep(0)
            if not opening.done():
                raise TimedOut(f"no connection to {host} within {limit:g} s", phase="connection",
                               seconds=limit)
            return await opening
        finally:
            await cancel([opening])

    return connect_in_time if limit else connect


def proxy_environment(options: Options, environ: Mapping[str, str]) -> dict[str, str]:
    """-x, -U and --noproxy as the variables that the library obeys: it decides for each hop."""
    from urllib.parse import quote
    found = {} if options.noproxy is None else {"no_proxy": options.noproxy}
    url = options.proxy
    for kind, address in (("socks5", options.socks5), ("socks5h", options.socks5_hostname)):
        url = f"{kind}://{address}" if address else url
    names = {name: environ.get(name, environ.get(name.upper(), ""))
             for name in ("http_proxy", "https_proxy", "all_proxy")} if url is None else {
                 "http_proxy": url, "https_proxy": url}
    user = options.proxy_user and quote(os.fsencode(options.proxy_user), safe=":") + "@"
    for name, text in names.items():
        scheme, mark, address = text.rpartition("://")
        if text and user:
            found[name] = f"{scheme}{mark}{user}{address.rpartition('@')[2]}"
        elif url is not None:
            found[name] = text
    return found


def credentials(text: str) -> tuple[str, str]:
    """-u as a pair; a password left out is asked for, where somebody can answer."""
    user, colon, password = text.partition(":")
    if not colon:
        if not sys.stdin.isatty():
            raise AsyncGetError("-u has no password, and nobody is there to ask; write NAME:")
        import signal
        from getpass import getpass
        with_interrupts = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:  # Ctrl-C has to turn the terminal's echo on again
            password = getpass(f"Password of {printable(user)}: ", sys.stderr)
        finally:
            signal.signal(signal.SIGINT, with_interrupts)
    return user, password


def tls_settings(options: Options) -> dict[str, Any]:
    """What the flags say about TLS, as `verify` and `cert`."""
    certificate, _, password = (options.cert or "").partition(":")
    cert = (certificate, options.key, password or None) if options.cert else None
    verify = not options.insecure and (options.cacert or options.capath or True)
    return {"verify": verify, "cert": cert}


def session_settings(options: Options) -> dict[str, Any]:
    """The flags as keywords of Session."""
    redirects = 50 if options.max_redirs is None else options.max_redirs
    silence = options.speed_time
    if silence is None:
        silence = max(SILENCE_SECONDS, options.max_time or 0)
    asked = options.netrc or options.netrc_optional
    return {
        "headers": request_headers(options),
        "auth": options.oauth2_bearer or (credentials(options.user) if options.user else None),
        "netrc": options.netrc_file or asked and os.path.exists(os.path.expanduser("~/.netrc")),
        "timeout": silence or None,
        "deadline": options.max_time or None,
        "follow_redirects": options.location,
        "max_redirects": redirects if redirects >= 0 else None,
        "redirect_schemes": schemes(options.proto_redir, schemes(options.proto)),
        "trust_redirects": options.location_trusted,
        **tls_settings(options),
        "decode": options.compressed and not options.range,  # no part of a gzip unpacks
        "unix_socket": options.unix_socket,
        "resolve": parse_resolve(options.resolve),
        "open_connection": connector(options),
        "rate": parse_rate(options.rate),
        "limit": options.parallel_max or 50,
    }


COOKIE_FILE_HEAD = ["# Netscape HTTP Cookie File", "# https://curl.se/docs/http-cookies.html"]


def parse_cookie_line(line: str) -> Cookie | None:
    r"""The cookie in a line of a Netscape file, as curl reads it; None where there is none.

    >>> parse_cookie_line("#HttpOnly_.h.test\tTRUE\t/\tFALSE\t0\tid\t7")
    ... # doctest: +NORMALIZE_WHITESPACE
    Cookie(name='id', value='7', domain='h.test', path='/', host_only=False, secure=False,
           http_only=True, expires=None, port=None, created=0)
    """
    line = line.removesuffix("\r")
    fields = line.removeprefix("#HttpOnly_").split("\t")
    if (not 6 <= len(fields) <= 7 or fields[0][:1] == "#" or not _VALUE.fullmatch(line)
            or not re.fullmatch(r"[0-9]{0,18}(\.[0-9]{0,18})?", fields[4])):
        return None
    domain, below, path, secure, expires, name, value = (fields + [""])[:7]
    cookie = Cookie(name, value, domain.removeprefix(".").lower(),
                    path if path[:1] == "/" else "/", below.upper() != "TRUE",
                    secure.upper() == "TRUE", line[:1] == "#",
                    float(f"0{expires}") or None)  # "" from http.cookiejar: with the session
    return cookie if cookie.domain and (name or value) and keeps_prefix(cookie) else None


def parse_cookie_file(text: str) -> tuple[list[Cookie], list[str]]:
    """The cookies of such a file, and the lines that are neither these nor what we write."""
    cookies, unknown = [], []
    for line in text.split("\n"):  # splitlines would part a value at U+2028, too
        cookie = parse_cookie_line(line)
        if cookie:
            cookies.append(cookie)
        elif line.strip() and line.strip() not in COOKIE_FILE_HEAD:
            unknown.append(line)
    return cookies, unknown


def render_cookie_file(cookies: Iterable[Cookie], unknown: Iterable[str] = ()) -> str:
    """Cookies as curl writes them, those without an end included, the caller's guesses not."""
    lines = [*COOKIE_FILE_HEAD, "", *unknown]
    for cookie in cookies:
        fields = ("#HttpOnly_" * cookie.http_only + "." * (not cookie.host_only) + cookie.domain,
                  str(not cookie.host_only).upper(), cookie.path, str(cookie.secure).upper(),
                  str(int(cookie.expires or 0)), cookie.name, cookie.value)
        # A tab or line end would make a cookie of its own; a port has no column.
        if cookie.domain and cookie.port is None and not re.search(r"[\x00-\x1f\x7f]",
                                                                   "".join(fields)):
            lines.append("\t".join(fields))
    return "\n".join(lines) + "\n"


def safe_name(name: str, hidden: bool) -> str:
    """The name, if it is one of a file in this very folder."""
    encoded = b""
    with contextlib.suppress(UnicodeError):  # of a locale without it
        encoded = os.fsencode(name)
    theirs = not hidden and (  # a server's: nor what we ourselves read later, as ours
        name.startswith(".") or name.lower().endswith((".part", ".part.meta")))
    windows = os.name == "nt" and re.search(  # a drive, a stream, a device, or an end it drops
        r'[:*?"<>|]|[. ]$|^(con|prn|aux|nul|com\d|lpt\d) *(\.|$)', name, re.I)
    if (name in ("", ".", "..") or printable(name) != name or theirs or windows
            or not encoded or len(encoded) > 255):
        raise AsyncGetError(f"not a safe file name: {name!r:.80}; use -o", exit_code=23)
    return name


def name_from_url(url: str) -> str:
    """The file name for -O: the end of the URL's path, as it was typed.

    >>> [name_from_url(f"http://h.test{path}") for path in ("/a/b.txt?q", "/a/", "")]
    ['b.txt', 'a', 'curl_response']

    The last two are what curl does from 8.10 on; before, it refused.
    """
    pieces = re.split(r"[/\\]", re.split("[?#]", url)[0].partition("://")[2])[1:]
    return safe_name(next(filter(None, reversed(pieces)), "curl_response"), hidden=True)


def name_from_header(disposition: str) -> str | None:
    r"""The file name for -J: what Content-Disposition says (RFC 6266 4.3), None for nothing.

    >>> name_from_header("attachment; filename=a; filename*=UTF-8''na%C3%AFve")
    'naïve'
    >>> name_from_header(r'attachment; filename="C:\temp\..%2Fa%20b"')
    'a b'

    It is decoded first and then cut to its last part: %2F climbs out of no folder.
    """
    from urllib.parse import unquote
    found: dict[str, str] = {}
    for part in re.findall(r'(?:[^;"]|"(?:[^"\\]|\\.)*"?)+', disposition):
        name, _, value = part.partition("=")
        found[name.strip().lower()] = value.strip()
    charset, _, coded = found.get("filename*", "").partition("'")
    if charset.lower() in ("utf-8", "iso-8859-1"):
        name = unquote(coded.partition("'")[2], charset)
    elif "filename" in found:
        name = re.sub(r"\\([\"\\])", r"\1", found["filename"].strip('"'))
        with contextlib.suppress(UnicodeError):  # many send UTF-8 where Latin-1 is due
            name = name.encode("latin-1").decode()
        name = unquote(name)
    else:
        return None
    return safe_name(re.split(r"[/\\]", name)[-1], hidden=False)


def key_of(path: str) -> str:
    """One spelling for each file: two names may lead to the same folder."""
    folder, name = os.path.split(path)
    return os.path.join(os.path.realpath(folder), name)


def free_name(path: str, taken: Container[str]) -> str:
    """The name that --no-clobber gives: path, or the first of path.1, path.2 ... not taken."""
    for suffix in ("", *(f".{number}" for number in range(1, 100))):
        if key_of(path + suffix) not in taken and not os.path.lexists(path + suffix):
            return path + suffix
    raise AsyncGetError(f"{path} to {path}.99 exist already", exit_code=23)


def is_direct(path: str) -> bool:
    """Whether a name of -o's can only be written to as it is: a device, a pipe, a descriptor,
    or a file in a folder where no other can be made.
    """
    last = path
    for _ in range(40):  # as many links as Linux follows
        if not os.path.islink(last) or last.startswith(("/dev/fd/", "/proc/")):
            break
        last = os.path.join(os.path.dirname(last), os.readlink(last))
    real = os.path.realpath(path)
    return os.path.abspath(last).startswith(("/dev/fd/", "/proc/")) or os.path.exists(real) and (
        not os.path.isfile(real) or not os.access(os.path.dirname(real), os.W_OK))


def is_stdout(path: str) -> bool:
    """Whether a name leads to what stdout is, such as /dev/stdout."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(sys.stdout.fileno()))
    except (OSError, ValueError):
        return False


def write_stdout(data: bytes | bytearray) -> None:
    """Write to stdout, past Python's text layer."""
    write_all(sys.stdout.buffer, data)


def write_named(name: str, data: bytes, mode: str = "wb") -> None:
    """Write to a file that a flag names, or to stdout for "-"."""
    if name == "-":
        write_stdout(data)
        return
    with disk_errors(name), open(name, mode) as file:
        write_all(file, data)


def write_secret(name: str, data: bytes) -> None:
    """Write a file that nobody else is to read; what was there stays until all is written."""
    if name == "-" or is_direct(name):
        write_named(name, data)
        return
    with disk_errors(name):
        path = os.path.realpath(name)
        from tempfile import mkstemp
        number, temporary = mkstemp(prefix=".asyncget-", dir=os.path.dirname(path))
        try:
            with open(number, "wb") as file:  # mkstemp's files are their owner's alone
                write_all(file, data)
            os.replace(temporary, path)
        except BaseException as error:
            os.unlink(temporary)
            if getattr(error, "errno", None) != errno.EBUSY:
                raise
            write_named(path, data)  # a mount of one file: nothing can take its place


class Transfer:
    """One URL on its way: where its body goes, and what has become of it."""

    def __init__(self, number: int, url: str, output: str | None = None,
                 saved: bool = False) -> None:
        self.number = number
        self.url = url
        self.shown_url = printable(without_userinfo(url))
        self.output = output  # what -o said, if anything
        self.to_stdout = not saved
        self.path = ""        # of the file
        self.response: Response | None = None
        self.error: AsyncGetError | None = None
        self.started = self.ended = self.looked_up = 0.0
        self.tries = 0
        self.received = 0
        self.expected: int | None = None
        self.window = 0.0, 0         # for --speed-limit: since when, from how many bytes on
        self.turn = asyncio.Event()  # set when stdout is ours
        self.held = bytearray()      # what came before that
        self.wrote = False           # bytes of this URL are out, and cannot be taken back
        self.file: Any = None        # where heads and body go, if not to stdout or a .part
        self.mode = ""               # how it is opened, at the first byte: "wb", or "ab" to go on
        self.appended = 0            # bytes that -C NUMBER has put behind others

    @property
    def exit_code(self) -> int:
        """curl's code for the outcome."""
        return self.error.exit_code if self.error else 0

    def bars(self) -> list[Bar]:
        """The rows of --waterfall; without a response it was all one wait."""
        if self.response is not None:
            return response_bars(self.response)
        label = f"({self.exit_code}) {self.shown_url.partition('://')[2]}"
        return [Bar(label, self.started, self.started, self.ended, self.ended)]

    def write(self, data: bytes) -> None:
        """Write to the file, or to stdout if it is our turn; else keep the data till then."""
        if self.mode:
            with disk_errors(self.path):
                if self.file is None:
                    flags = 0 if self.output else getattr(os, "O_NOFOLLOW", 0)
                    self.file = open(self.path, self.mode, opener=lambda name, how: os.open(
                        name, how | flags, 0o666))
                write_all(self.file, data)
            self.appended += len(data)
            return
        if not self.turn.is_set():
            self.held += data
            return
        self.flush()
        write_stdout(data)

    def close(self) -> None:
        """Close the file, if there is one."""
        if self.file is not None:
            with disk_errors(self.path):
                self.file.close()
        self.file, self.mode = None, ""

    def flush(self) -> None:
        """Write what was kept; our turn has come."""
        held, self.held = self.held, bytearray()
        write_stdout(held)


def plan_transfers(options: Options) -> list[Transfer]:
    """The URLs, each with its -o or -O; those of a list are saved as by -O, as curl does."""
    transfers: list[Transfer] = []
    outputs, added = iter(options.output), queries(options)
    for text in options.url:
        listed = text.startswith("@")
        found: list[tuple[str, list[str]]] = (
            [(line, []) for line in read_lines(text[1:]) if line[0] != "#"] if listed else
            [(text, [])] if options.globoff else expand_glob(text))
        output: str | None = ""
        for number, (url, put_in) in enumerate(found):
            if listed or number == 0:
                output = next(outputs, "")  # "" is none, None is -O
            name = output or ""
            for index, value in enumerate(put_in, 1):
                name = re.sub(f"#{index}(?![0-9])", value.replace("\\", r"\\"), name)
            if output == "" and options.out_null:
                name = os.devnull
            saved = output is None or not name and (listed or options.remote_name_all)
            transfers.append(Transfer(len(transfers), complete_url(url, added), name or None,
                                      saved or name not in ("", "-")))
    if not transfers:
        raise AsyncGetError("there is no URL in the list")
    return transfers


def redirect_url(response: Response) -> str | None:
    """Where a redirect that was not followed would have led."""
    location = "".join(octets_text(response.raw_head, "location")[:1])
    if response.status_code // 100 != 3 or not location:
        return None
    try:
        return str(join_url(parse_url(response.url), location))
    except AsyncGetError:  # not one of ours
        return location


def url_parts(url: str, prefix: str) -> dict[str, Any]:
    """A URL's parts as -w names them; the password is not among them.

    >>> list(url_parts("http://me@[::1]:81?b#c", "url").values())
    ['http', '[::1]', '81', '/', 'b', 'c']
    """
    from urllib.parse import urlsplit
    try:
        parts = urlsplit(url)
    except ValueError:  # what was asked for is no URL
        parts = urlsplit("")
    host = parts.netloc.rpartition("@")[2]
    port = re.search(":([0-9]*)$", host)  # [::1] has none
    return {f"{prefix}.{name}": value for name, value in (
        ("scheme", parts.scheme), ("host", host[:port.start()] if port else host),
        ("port", port and port[1] or str(DEFAULT_PORTS.get(parts.scheme, ""))),
        ("path", parts.path or "/"), ("query", parts.query), ("fragment", parts.fragment))}


def response_values(response: Response) -> dict[str, Any]:
    """What only a response can tell, under curl's names."""
    hops = (*response.history, response)
    (peer, peer_port), (local, local_port) = (
        (address[0], address[1]) if isinstance(address, tuple) else (None, 0)
        for address in (response.peer, response.local))
    timing = response.timing
    return {
        "content_type": response.headers.get("content-type"),
        "http_code": response.status_code,
        "http_version": response.http_version[5:],
        "local_ip": local,
        "local_port": local_port,
        "num_connects": sum(not hop.timing.reused for hop in hops),
        "num_headers": len(response.headers.pairs),
        "num_redirects": len(response.history),
        "proxy_used": int(response.proxied),
        "redirect_url": redirect_url(response),
        "remote_ip": peer,
        "remote_port": peer_port,
        "response_code": response.status_code,
        "size_download": response.received,
        "size_header": sum(len(hop.raw_head) for hop in hops),
        "size_request": sum(hop.request_bytes for hop in hops),
        "time_appconnect": timing.connected if response.url[:6] == "https:" else 0.0,
        "time_connect": timing.connected,
        "time_pretransfer": timing.connected,
        "time_redirect": response.history[-1].timing.done if response.history else 0.0,
        "time_starttransfer": timing.head,
        "url_effective": response.url,
    }


NO_RESPONSE = {  # the same, where there was none
    "content_type": None, "http_code": 0, "http_version": "0", "local_ip": None, "local_port": 0,
    "num_connects": 0, "num_headers": 0, "num_redirects": 0, "proxy_used": 0, "redirect_url": None,
    "remote_ip": None, "remote_port": 0, "response_code": 0, "size_download": 0, "size_header": 0,
    "size_request": 0, "time_appconnect": 0.0, "time_connect": 0.0, "time_pretransfer": 0.0,
    "time_redirect": 0.0, "time_starttransfer": 0.0}


def write_out_values(transfer: Transfer, began: float, referer: str | None) -> dict[str, Any]:
    """All that -w can tell: times in seconds, sizes in bytes."""
    response, seconds = transfer.response, transfer.ended - transfer.started
    values = {"url_effective": transfer.shown_url,
              **(response_values(response) if response else NO_RESPONSE)}
    cause = getattr(transfer.error, "__cause__", None)
    return {
        **{name: round(value, 6) if isinstance(value, float) else value
           for name, value in values.items()},
        "errormsg": str(transfer.error) if transfer.error else None,
        "exitcode": transfer.exit_code,
        "filename_effective": transfer.path or None,
        "method": "GET",
        "num_retries": transfer.tries - 1,
        "referer": referer,
        "scheme": values["url_effective"].partition("://")[0],
        "size_delivered": transfer.received,
        "size_download": values["size_download"] if transfer.received else 0,
        "size_upload": 0,
        "speed_download": int(values["size_download"] / seconds) if seconds else 0,
        "speed_upload": 0,
        "ssl_verify_result": getattr(cause, "verify_code", 0),
        "time_namelookup": round(transfer.looked_up, 6),
        "time_queue": round(max(0.0, transfer.started - began), 6),
        "time_total": round(seconds, 6),
        "tls_earlydata": 0,
        "url": transfer.shown_url,
        "urlnum": transfer.number,
        **url_parts(transfer.shown_url, "url"),
        **url_parts(values["url_effective"], "urle"),
    }


def render_write_out(template: str, values: Mapping[str, Any],
                     headers: Headers) -> list[tuple[str, str]]:
    r"""A -w template filled in; each piece with where it goes: "stdout", "stderr" or a file.

    >>> values = {"http_code": 7, "time_total": 0.5, "exitcode": 0}
    >>> render_write_out(r"%{http_code}\t%{time_total}%{stderr}%header{x}%%%output{f}.%{onerror}!",
    ...                  values, Headers([("X", "y")]))
    [('stdout', '007\t0.500000'), ('stderr', 'y%'), ('f', '.')]
    """
    escapes = {r"\n": "\n", r"\r": "\r", r"\t": "\t", "%%": "%"}
    pieces: list[tuple[str, list[str]]] = [("stdout", [])]
    for match in re.finditer(r"%\{([\w.]+)\}|%(header|output)\{([^{}]*)\}|(\\[nrt]|%%)|.[^%\\]*",
                             template, re.S):
        variable, kind, name, escape = match.groups()
        if variable in ("stdout", "stderr") or kind == "output":
            pieces.append((variable or name, []))
        elif variable == "onerror":
            if not values["exitcode"]:
                break
        else:
            pieces[-1][1].append(escapes[escape] if escape else
                                 printable(headers.get(name, "")) if kind else
                                 write_out_value(variable, values, headers, match[0]) if variable
                                 else match[0])
    return [(where, "".join(texts)) for where, texts in pieces if texts]


def write_out_value(name: str, values: Mapping[str, Any], headers: Headers, as_is: str) -> str:
    """One variable of -w as text; one that we do not know stays visible."""
    if name in ("json", "header_json"):
        import json
        fields = {field.lower(): headers.get_all(field) for field in headers}
        return json.dumps({**values, "curl_version": f"asyncget {__version__}"}
                          if name == "json" else fields)
    value = values.get(name, as_is)
    shape = ".6f" if isinstance(value, float) else "03d" if isinstance(
        value, int) and "_code" in name else ""
    return printable("" if value is None else format(value, shape))


def render_progress(received: int, expected: int | None, seconds: float, done: str = "",
                    failed: int = 0) -> str:
    """How far the bytes are; `done` is "3/10" for many URLs.

    >>> render_progress(3_000_000, 12_000_000, 2.0)
    '3.0 MB of 12.0 MB   25%   1.5 MB/s   0:06 left'
    >>> render_progress(3_000_000, None, 2.0, "3/10", 1)
    '3/10 done   1 failed   3.0 MB   1.5 MB/s'
    """
    rate = received / (seconds or 1)
    parts = [f"{done} done"] if done else []
    parts += [f"{failed} failed"] if failed else []
    parts += [render_size(received) + (f" of {render_size(expected)}" if expected else "")]
    parts += [f"{100 * received // expected}%"] if expected else []
    parts += [render_size(rate) + "/s"]
    if expected and rate:
        parts.append("{}:{:02} left".format(*divmod(int((expected - received) / rate), 60)))
    return "   ".join(parts)


def terminal_width() -> int:
    """Columns of stderr; shutil would ask stdout, which may well be a file."""
    with contextlib.suppress(OSError):
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    return 80


def mask_field(match: re.Match[str]) -> str:
    """A field as -v shows it: no secrets, and no user and password in a Location."""
    name, value = match.groups()
    if SECRET_NAMES.match(name):
        return f"{name}: ***"
    if name.lower() == "location":  # whose password may have any character
        before, _, behind = value.rpartition("@")
        begin = re.match(r"[^/\\]*[/\\]+", before)
        value = f"{begin[0]}***@{behind}" if begin else value
    return f"{name}:" + re.sub(r"([/\\])[^/\\\s?#<>@]*@", r"\1***@", value)


def for_terminal(data: bytes) -> bytes:
    """A head as a terminal may show it: without its controls."""
    return "".join(printable(line) + "\n" for line in data.splitlines()).encode()


def tell(text: str) -> None:
    """Write to stderr; trouble there must not end a download."""
    try:
        print(text, end="", file=sys.stderr, flush=True)
    except (OSError, ValueError):
        sys.stderr = open(os.devnull, "w")  # Python would stumble over the old one at the end


class Screen:
    """stderr: messages, and below them the progress line while somebody can see it."""

    def __init__(self, transfers: Sequence[Transfer], shown: bool) -> None:
        self.transfers = transfers
        self.shown = shown
        self.clock = asyncio.get_running_loop().time
        self.began = self.drawn = self.clock()
        self.width = 0  # of what is drawn now

    def redraw(self) -> None:
        """Bring the progress line up to date, ten times a second at most."""
        now, count = self.clock(), len(self.transfers)
        if not self.shown or now - self.drawn < REDRAW_SECONDS:
            return
        self.drawn = now
        ended = sum(transfer.ended > 0 for transfer in self.transfers)
        line = render_progress(
            sum(transfer.received for transfer in self.transfers),
            self.transfers[0].expected if count == 1 else None, now - self.began,
            f"{ended}/{count}" if count > 1 else "",
            sum(transfer.error is not None for transfer in self.transfers))[:terminal_width() - 3]
        tell("\r" + line.ljust(self.width))
        self.width = len(line)

    def wipe(self) -> None:
        """Take the progress line away."""
        if self.width:
            tell("\r" + " " * self.width + "\r")
            self.width = 0

    def say(self, *words: str) -> None:
        """A line on stderr, with the controls in it made harmless."""
        self.wipe()
        tell(" ".join(map(printable, words)) + "\n")

    def show_wire(self, kind: str, data: str | bytes) -> None:
        """What a call traces, as -v shows it: > sent, < received, * a note."""
        text = data if isinstance(data, str) else data.decode("utf-8", "backslashreplace")
        for line in _FIELD.sub(mask_field, text.removesuffix("\n")).split("\n"):
            self.say(kind, line.removesuffix("\r"))


class Changed(AsyncGetError):
    """The server's file is not the one that there is a part of."""


class TryAgain(Exception):
    """Ends a try whose answer --retry does not take; after so many seconds comes the next."""


class Unchanged(Exception):
    """Ends a try whose answer is 304: what is there, stays, and that is a success."""


class EarlyEnd(Exception):
    """Ends all transfers for --fail-early; the one that failed has been reported."""


class Command:
    """One run: its transfers, the session that they share, the screen that shows them."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.transfers = plan_transfers(options)
        mixed = sys.stdout.isatty() and any(transfer.to_stdout for transfer in self.transfers)
        quiet = options.silent or options.no_progress_meter
        self.screen = Screen(self.transfers, sys.stderr.isatty() and not mixed and not quiet)
        self.claimed: dict[str, int] = {}  # each name that is written to, and by which URL
        self.unknown_lines: list[str] = []  # of the cookie file
        self.jar = self.open_jar()
        os.environ.update(proxy_environment(options, os.environ))
        self.settings = session_settings(options)
        self.session = Session(cookies=False if self.jar is None else self.jar, **self.settings)
        if options.tlsv1_3 or options.tlsv1_2:
            self.session.tls_version = (ssl.TLSVersion.TLSv1_3 if options.tlsv1_3 else
                                        ssl.TLSVersion.TLSv1_2)
        allowed = schemes(options.proto)
        for transfer in self.transfers:
            try:
                scheme = transfer.url.partition("://")[0].lower()
                if scheme in DEFAULT_PORTS and scheme not in allowed:
                    raise AsyncGetError(f"--proto does not allow {scheme}", exit_code=1)
                if transfer.output and is_stdout(os.path.join(
                        options.output_dir or "", transfer.output)):
                    transfer.output, transfer.to_stdout = "-", True
                if not transfer.to_stdout and (transfer.output or not options.remote_header_name):
                    transfer.path = self.place(transfer.output or name_from_url(transfer.url),
                                               transfer)
            except AsyncGetError as error:
                if error.exit_code == 2:  # it cannot be meant
                    raise
                transfer.error = error

    def open_jar(self) -> Cookies | None:
        """The cookie jar that -c and -b FILE ask for; as in curl there is none without."""
        names = [name for name in self.options.cookie if "=" not in name]
        if not names and self.options.cookie_jar is None:
            return None
        jar, own = Cookies(), self.options.cookie_jar
        for name in names:
            if name == "-" or os.path.exists(name):  # a first run may well name a file to come
                for cookie in parse_cookie_file(read_text(name))[0]:
                    jar.add(cookie)
        if own and own != "-" and os.path.isfile(own):
            self.unknown_lines = parse_cookie_file(read_text(own))[1]
        return jar

    def place(self, name: str, transfer: Transfer) -> str:
        """The path for a file name, which no other URL of this run may have."""
        path = os.path.join(self.options.output_dir or "", name)
        if transfer.output and is_direct(path) and not os.path.isfile(path):
            return path
        if transfer.output and os.path.islink(path):
            path = os.path.realpath(path)  # who named it means what it leads to
        if self.options.no_clobber:
            path = free_name(path, self.claimed)
        part = part_of(path)
        for taken in (path, part, part + ".meta"):
            if self.claimed.setdefault(key_of(taken), transfer.number) != transfer.number:
                raise AsyncGetError(f"two URLs would be written to {printable(taken)}")
        return path

    # ---- one URL

    def trace(self, transfer: Transfer, kind: str, data: str | bytes) -> None:
        """What a call tells: for -v, and each head as it comes for -i, -I and -D."""
        options = self.options
        if options.verbose:
            self.screen.show_wire(kind, data)
        if kind == "<" and isinstance(data, bytes):
            shown = for_terminal(data) if sys.stdout.isatty() else data
            if options.include or options.head:
                transfer.write(data if transfer.mode else shown)
            if options.dump_header == "-":
                transfer.write(data if transfer.mode else shown)
            elif options.dump_header:
                write_named(options.dump_header, data, "ab")

    async def meet(self, transfer: Transfer, response: Response) -> None:
        """Look at a head, before its body is read."""
        options, transfer.response = self.options, response
        transfer.expected = body_length(response)
        delay = self.retry_in(transfer, response)
        if delay is not None:
            await response.discard()
            raise TryAgain(delay)
        if response.status_code == 304:
            raise Unchanged
        if options.fail:
            response.raise_for_status()
        if options.etag_save and response.status_code == 200:
            write_named(options.etag_save, response.headers.get("etag", "").encode() + b"\n")
        transfer.window = self.screen.clock(), 0
        await self.advance(transfer, 0, transfer.expected)

    async def advance(self, transfer: Transfer, received: int, expected: int | None) -> None:
        """Note how far a body is; hold it up, or give it up, as the flags say."""
        options, now = self.options, self.screen.clock()
        transfer.received, transfer.expected = received, expected
        self.screen.redraw()
        if options.max_filesize and max(received, expected or 0) > options.max_filesize:
            raise TooLarge(f"{transfer.shown_url} is larger than --max-filesize, "
                           f"{options.max_filesize} bytes", limit=options.max_filesize)
        since, before = transfer.window
        span = options.speed_time or SILENCE_SECONDS
        if options.speed_limit and now - since >= span:
            if received - before < options.speed_limit * span:
                raise TimedOut(f"slower than --speed-limit, {options.speed_limit} bytes a second, "
                               f"for {span:g} s", phase="more of the body", seconds=span)
            transfer.window = now, received
        if options.limit_rate and transfer.response:
            begun = transfer.started + transfer.response.timing.head
            await asyncio.sleep(max(0.0, begun + received / options.limit_rate - now))

    def call_settings(self, transfer: Transfer, *headers: tuple[str, str]) -> dict[str, Any]:
        """What a call of this URL's has of its own."""
        return {"trace": functools.partial(self.trace, transfer),
                "headers": [*self.settings["headers"], *headers]}

    async def stream(self, transfer: Transfer, offset: int = 0) -> None:
        """Hand on a body as it comes: to stdout, and to what no .part can stand for.

        With an offset it is gone on from there, as curl does.
        """
        wary = transfer.output is None and not transfer.mode and sys.stdout.isatty()
        fields = [("Range", f"bytes={offset}-"), ("Accept-Encoding", "identity")] if offset else []
        async with self.session.stream(
                transfer.url, **self.call_settings(transfer, *fields)) as response:
            await self.meet(transfer, response)
            if offset and not self.goes_on(transfer, response, offset):
                return
            if is_own_coding(response, transfer.path):
                response.coding = b"identity"
            if self.options.head:
                return
            async for piece in response.iter_bytes():
                if wary and b"\0" in piece:
                    raise AsyncGetError(BINARY, exit_code=23)
                wary = False  # the first piece tells, as it does for curl
                transfer.write(piece)
                transfer.wrote = not transfer.mode
                await self.advance(transfer, transfer.received + len(piece), transfer.expected)
                if len(transfer.held) > HELD_BYTES:
                    await response.stand_by(transfer.turn.wait())

    def goes_on(self, transfer: Transfer, response: Response, offset: int) -> bool:
        """Whether a response goes on at an offset; False where nothing is to come.

        Raises Changed where the server's file is not the one that we have a part of.
        """
        told, length = response.headers.get("content-range", "").lower(), body_length(response)
        if response.status_code == 416 and told == range_of_rest(offset, 0):
            return False
        given = self.options.continue_at != "-"
        if response.status_code != 416 or given:
            response.raise_for_status()
        fits = response.status_code == 206 and length and told == range_of_rest(offset, length)
        changed = parse_date(response.headers.get("last-modified", ""))
        if fits and (given or changed is None or changed <= os.path.getmtime(transfer.path)):
            return True
        raise Changed("the server does not go on in the middle: -C is not for it", exit_code=33)

    async def save(self, transfer: Transfer) -> None:
        """Take a body to a file, which appears under its name when it is whole.

        Not so a device such as /dev/null, nor what begins with a head, nor, with -C, a file
        that bears its final name: these are gone on with where they are.
        """
        options, path = self.options, transfer.path
        if options.create_dirs and os.path.dirname(path):
            with disk_errors(path):
                os.makedirs(os.path.dirname(path), exist_ok=True)
        in_place = options.include or options.head or transfer.output and is_direct(path)
        offset = 0
        if options.continue_at == "-":
            ours = not in_place and read_partial(path)
            followed = transfer.output or not os.path.islink(path)
            offset = os.path.getsize(path) if (
                os.path.isfile(path) and followed and not ours) else 0
        elif options.continue_at:
            offset = int(options.continue_at) + transfer.appended
        if in_place or offset:
            transfer.mode = "ab" if offset else "wb"
            try:
                await self.stream(transfer, offset)
                if in_place and not transfer.file:
                    transfer.write(b"")
                self.touch(transfer)
                return
            except Changed:
                if options.continue_at != "-" or in_place:
                    raise
            finally:
                transfer.close()
        await self.download(transfer)

    async def download(self, transfer: Transfer) -> None:
        """The same by way of a .part."""
        options = self.options
        resume = options.continue_at == "-" or transfer.tries > 1

        def choose(response: Response) -> str:
            name = name_from_header(response.headers.get("content-disposition", ""))
            transfer.path = self.place(name or name_from_url(transfer.url), transfer)
            return transfer.path

        transfer.response = await self.session.download(
            transfer.url, transfer.path or choose,  # what is there must be known first
            on_response=functools.partial(self.meet, transfer),
            progress=functools.partial(self.advance, transfer), resume=resume,
            overwrite=not options.remote_header_name, any_status=not options.fail,
            **self.call_settings(transfer))
        self.touch(transfer)

    def touch(self, transfer: Transfer) -> None:
        """Give a file the server's date, for -R."""
        headers = transfer.response.headers if transfer.response else {}
        changed = parse_date(headers.get("last-modified", ""))
        if self.options.remote_time and changed is not None:
            with disk_errors(transfer.path):
                os.utime(transfer.path, (changed, changed))

    def retry_in(self, transfer: Transfer, outcome: Outcome) -> float | None:
        """Seconds until the next try of a URL, None for none: what the --retry flags say."""
        options = self.options
        if transfer.tries > (options.retry or 0) or transfer.wrote:
            return None
        delay = retry_delay(transfer.tries, outcome, options.retry)
        failed = isinstance(outcome, AsyncGetError) or options.fail and not outcome.ok
        if delay is None and options.retry_all_errors and failed:
            delay = retry_delay(transfer.tries, ConnectError(), options.retry)
        if delay is None:
            return None
        delay = options.retry_delay or delay
        late = self.screen.clock() + delay - transfer.started
        return None if options.retry_max_time and late > options.retry_max_time else delay

    async def fetch(self, transfer: Transfer) -> None:
        """Carry out a transfer, by as many tries as it takes; an error becomes its outcome."""
        TRANSFER.set(transfer)
        transfer.started = self.screen.clock()
        delay: float | None = 0.0 if transfer.error is None else None
        while delay is not None:
            await asyncio.sleep(delay)
            delay, transfer.error = None, None
            transfer.tries += 1
            try:
                if transfer.to_stdout:
                    given = (self.options.continue_at or "-").replace("-", "0")
                    await self.stream(transfer, int(given))
                else:
                    await self.save(transfer)
                if self.options.fail_with_body and transfer.response:
                    transfer.response.raise_for_status()
            except Unchanged:
                pass
            except TryAgain as again:
                delay = again.args[0]
            except AsyncGetError as error:
                transfer.error = error
                transfer.response = error.response or transfer.response
                status = isinstance(error, StatusError) and error.response
                delay = self.retry_in(transfer, status or error)
            if delay is not None and self.options.verbose:
                why = transfer.error or transfer.response
                self.screen.say("*", f"trying again in {delay:.1f} s: {why}")
        transfer.ended = self.screen.clock()
        self.screen.redraw()

    # ---- all of them

    def report(self, transfer: Transfer) -> None:
        """Say what has become of a transfer: all that its flags ask for behind the body."""
        self.screen.wipe()
        transfer.flush()
        options, response = self.options, transfer.response
        if transfer.error and (options.show_error or not options.silent):
            which = f" [{transfer.shown_url}]" if len(self.transfers) > 1 else ""
            self.screen.say(f"asyncget: ({transfer.exit_code}) "
                            f"{in_flags(str(transfer.error))}{which}")
        if not (template := options.write_out):
            return
        if template.startswith("@"):
            template = re.sub("[\r\n]", "", read_text(template[1:]))
        values = write_out_values(transfer, self.screen.began, options.referer)
        headers = response.headers if response else Headers()
        for where, text in render_write_out(template, values, headers):
            data = text.encode("utf-8", "surrogateescape")
            if where == "stderr":
                tell(text)
            elif where == "stdout":
                write_stdout(data)
            else:
                write_named(where.removeprefix(">>"), data, "ab" if where[:2] == ">>" else "wb")

    async def work(self, queue: Iterator[Transfer]) -> None:
        """Take one transfer after another off the queue that all workers share."""
        for transfer in queue:
            await self.fetch(transfer)
            early = self.options.fail_early and transfer.error
            if not early:
                await transfer.turn.wait()  # holding our place, so that few bodies wait
            self.report(transfer)
            if early:
                raise EarlyEnd
            if transfer.number + 1 < len(self.transfers):
                self.transfers[transfer.number + 1].turn.set()

    async def run(self) -> int:
        """Fetch all and report all; the exit code is that of the first failure in their order."""
        self.transfers[0].turn.set()
        queue = iter(self.transfers)
        workers = [asyncio.ensure_future(self.work(queue))
                   for _ in self.transfers[:self.options.parallel_max or 50]]
        async with self.session:
            try:
                with contextlib.suppress(EarlyEnd):
                    await asyncio.gather(*workers)
            finally:
                await cancel(workers)
                self.screen.wipe()
        if self.options.waterfall:
            bars = [bar for transfer in self.transfers if transfer.ended for bar in transfer.bars()]
            tell(render_timeline(bars, terminal_width() - 1) + "\n")
        if self.jar is not None and self.options.cookie_jar:
            text = render_cookie_file(self.jar, self.unknown_lines)
            write_secret(self.options.cookie_jar, text.encode("utf-8", "surrogateescape"))
        return next((t.exit_code for t in self.transfers if t.error), 0)


def in_flags(text: str) -> str:
    """The library's advice, in the words of the command line.

    >>> in_flags("a private CA's file goes into the first, or verify=")
    "a private CA's file goes into the first, or --cacert (-k believes any server)"
    """
    for keyword, flag in (
            ("pass verify=context with context.verify_flags &= ~ssl.VERIFY_X509_STRICT",
             "use Python's own API, or -k, which believes any server"),
            (", or verify=", ", or --cacert (-k believes any server)"), ("verify=", "--cacert "),
            ("wanted: cert=", "wanted: -E"), ("(cert=)", "(-E)")):
        text = text.replace(keyword, flag)
    return text


async def run_command(options: Options) -> int:
    """What the flags ask for, inside an event loop."""
    if options.demo:
        await demo()
        return 0
    check_options(options)
    command = Command(options)
    if options.dump_header not in (None, "-"):
        write_named(options.dump_header, b"")
    code = await command.run()
    # Name look-ups sit in threads, and nothing cancels those: -m is not to wait for one.
    threads = asyncio.ensure_future(asyncio.get_running_loop().shutdown_default_executor())
    ended, _ = await asyncio.wait([threads], timeout=0.2)
    if not ended:
        os._exit(code)
    return code


def interrupted(*_: object) -> None:
    """Die by the signal, so that a shell's loop ends, too: what has come is written already."""
    import signal
    if sys.stderr.isatty():
        os.write(2, b"\r\x1b[K")  # the prompt belongs on a line of its own
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGINT)
    os._exit(130)  # the first process of a container: it outlives the signal


def fill_descriptors() -> None:
    """Put something in the place of closed standard streams.

    Else the next file or socket becomes stdout, and what is meant for one goes to the other.
    Writing to such a stdout fails, as it should.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_WRONLY if number == 2 else os.O_RDONLY)  # the lowest one free
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, closefd=False))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: returns curl's exit code, leaves files and output behind.

    Without arguments it is the program itself, and ends it.
    """
    import signal
    if arguments is None:
        fill_descriptors()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupted)
    try:
        options = parse_arguments(sys.argv[1:] if arguments is None else arguments)
        if options.help or options.version:
            version = (f"asyncget {__version__} ({ssl.OPENSSL_VERSION}, "
                       f"Python {sys.version.split()[0]})")
            print(version if options.version else
                  FLAGS + MORE_FLAGS if "all" in options.url else FLAGS, flush=True)
            code = 0
        else:
            code = asyncio.run(run_command(options))
        sys.stdout.flush()
    except KeyboardInterrupt:  # while the password was asked for
        interrupted()
    except AsyncGetError as error:
        tell(f"asyncget: ({error.exit_code}) {printable(str(error))}\n")
        code = error.exit_code
    except OSError as error:  # of stdout: a pipe that is closed, a disk that is full
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # it is flushed once more
        if not isinstance(error, BrokenPipeError):
            tell(f"asyncget: (23) cannot write: {error.strerror}\n")
        code = 23
    if arguments is None:
        sys.exit(code)
    return code


if __name__ == "__main__":
    main()
