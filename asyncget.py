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
    12. Timeline               a picture of where the time went
    13. Demo server            the same bytes from the other side
    14. Command line           python -m asyncget URL

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

from __future__ import annotations

import asyncio
import base64
import codecs
import collections
import contextlib
import functools
import itertools
import os
import re
import socket
import ssl
import sys
import types
import zlib
from collections.abc import (AsyncIterable, AsyncIterator, Awaitable, Callable,
                             Generator, Iterable, Iterator, Mapping, Sized)
from typing import TYPE_CHECKING, Any, NamedTuple, Optional, Union

if TYPE_CHECKING:
    from datetime import datetime, timedelta
    from http.cookiejar import CookieJar

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
MAX_HEAD_BYTES = 131_072         # one head or trailer section; curl 300 KB, http.client 64 KB a line
MAX_FIELDS = 128                 # in one head; hyper and http.client 100, aiohttp 128
MAX_INTERIM = 10                 # 1xx responses before the real one
MAX_CHUNK_LINE_BYTES = 4096      # size and extensions of one chunk
MAX_EXTENSION_BYTES = 16_384     # of all chunk extensions of a body; hyper's figure
MAX_CODINGS = 5                  # stacked content codings; curl and urllib3 allow 5, too
MAX_DISCARD_BYTES = 65_536       # of an unwanted body read to keep its connection
MAX_LINE_CHARS = 16_777_216      # one line of iter_lines
MAX_SET_COOKIES = 50             # of one response; curl's figure, as the next two
MAX_COOKIE_BYTES = 4096          # one Set-Cookie field
MAX_HOST_COOKIES = 180           # kept for one domain; RFC 6265 6.1 asks for 50
MAX_COOKIE_FIELD_BYTES = 8190    # the Cookie field that we send
MAX_SHOWN_BYTES = 100            # of a server's bytes in an error text
MAX_RETRY_AFTER_SECONDS = 60.0   # a longer wait is the caller's to decide
GET_DEADLINE_SECONDS = 300.0     # get(), all in all; aiohttp's figure
IDLE_SECONDS = 60.0              # a kept connection; nginx keeps 75 s, Apache 5 s
IDLE_MOMENT_SECONDS = 0.001      # idle for longer: look into the kernel before use
REFUSAL_SECONDS = 1.0            # for a proxy to say why there is no tunnel
HAPPY_EYEBALLS_SECONDS = 0.25    # RFC 8305 section 5: then try the next address, too
READ_BYTES = 262_144             # asked of the stream at once; asyncio receives as much
INFLATE_BYTES = 16_384           # decoded at once, so that many members stay linear
MAX_DECODED_STEP_BYTES = 262_144  # made of that at once, so that a bomb shows early


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
        self.__dict__.update(facts)


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
_HOST_PORT = re.compile(r"(\[[^\[\]]*\]|[^\[\]:]*)(?::([0-9]{0,5}))?")
_USERINFO = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:%@-]*")
_LABEL = re.compile(r"[a-z0-9_-]{1,63}")
_NUMERIC = re.compile(r"[0-9]+|0x[0-9a-f]*")
_ASCII = "".join(map(chr, range(0x21, 0x7F)))


class Origin(NamedTuple):
    """Who is asked, and the border that no credential crosses (RFC 6454)."""

    scheme: str  # "http" or "https"
    host: str    # as on the wire: lower case, punycode, IPv6 without brackets
    port: int

    @property
    def authority(self) -> str:
        """The Host field: the port only where it is not the scheme's own.

        >>> Origin("https", "::1", 8443).authority
        '[::1]:8443'
        """
        port = "" if self.port == DEFAULT_PORTS[self.scheme] else f":{self.port}"
        return bracketed(self.host) + port


class URL(NamedTuple):
    """The parts of a URL; str() and repr() put them together without the userinfo."""

    origin: Origin
    target: str    # origin-form: path and query, from "/" on
    fragment: str  # stays here, is never sent
    userinfo: str  # "user:password", still percent-encoded

    def __repr__(self) -> str:
        return f"<URL {self}>"

    def __str__(self) -> str:
        fragment = "#" + self.fragment if self.fragment else ""
        return f"{self.origin.scheme}://{self.origin.authority}{self.target}{fragment}"


def bracketed(host: str) -> str:
    """A host as it stands in a URL: IPv6 in brackets (RFC 3986 3.2.2)."""
    return f"[{host}]" if ":" in host else host


def masked(text: str) -> str:
    """A URL's text, fit for an error: no userinfo, no controls, not too long.

    >>> masked("http://me:secret@h:x/")
    "'http://***@h:x/'"
    """
    text = re.sub(r"^([a-z]+:/*)?.*@", r"\1***@", text, flags=re.I | re.S)
    return shown(text[:MAX_SHOWN_BYTES + 1].encode("utf-8", "backslashreplace"))[1:]


def parse_url(text: str) -> URL:
    """Cut an absolute http or https URL into its parts (RFC 3986, RFC 9110 4.2).

    >>> tuple(parse_url("http://me:pw@H.test:81?q=a b#top"))
    (Origin(scheme='http', host='h.test', port=81), '/?q=a%20b', 'top', 'me:pw')
    >>> str(parse_url("https://straße.test/%2F"))
    'https://xn--strae-oqa.test/%2F'

    Raises InvalidURL, with exit code 1 for a scheme that is not ours.
    """
    if len(text) > MAX_URL_CHARS:
        raise InvalidURL(f"a URL of {len(text)} characters: at most {MAX_URL_CHARS} are sent")
    if not text.isprintable():
        refuse_controls(text)
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
    return URL(parse_origin(scheme, host_port), target, fragment, userinfo)


def refuse_controls(text: str) -> None:
    """Raise for control bytes: urllib.parse deletes them, and so asks for something else."""
    control = re.search(r"[\x00-\x1f\x7f]", text)
    if control:
        raise InvalidURL(f"control character {control[0]!r} in URL {masked(text)}")


def percent_encode(text: str) -> str:
    """Encode what may not stand on a request line; what is encoded already stays."""
    from urllib.parse import quote
    try:
        return quote(text, safe=_ASCII)
    except UnicodeError:
        raise InvalidURL(f"not Unicode: {masked(text)}") from None


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


def parse_host(text: str) -> str:
    """A host in the one spelling that is looked up, certified, sent and compared.

    >>> parse_host("BÜCHER.example")
    'xn--bcher-kva.example'

    What getaddrinfo would take for another address is refused: 127.1, 0x7f.0.0.1.
    """
    if text.startswith("["):
        return parse_address(text[1:-1], 6)
    if not 0 < len(text) <= 255:
        raise InvalidURL(f"no host, or one of more than 255 characters: {masked(text)}")
    labels = [ascii_label(label) for label in text.split(".")]
    if labels[-1] == "" and len(labels) > 1:  # the DNS root: "h.test."
        labels.pop()
    for label in labels:
        if not _LABEL.fullmatch(label):
            raise InvalidURL(f"not a host: {masked(text)}")
    if _NUMERIC.fullmatch(labels[-1]):
        return parse_address(text, 4)
    return ".".join(labels) + ("." if text.endswith(".") else "")


def parse_address(text: str, version: int) -> str:
    """An IP address in its one canonical spelling; a zone (%eth0) is refused."""
    import ipaddress
    try:
        if version == 4:
            return str(ipaddress.IPv4Address(text))
        if "%" not in text:
            return str(ipaddress.IPv6Address(text))
    except ValueError:
        pass
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
    if normalize("NFKC", lower) != lower or lower.isascii() or len(label) > 63:
        raise InvalidURL(f"not a host label: {masked(label)}")
    return "xn--" + lower.encode("punycode").decode("ascii")


def join_url(base: URL, reference: str) -> URL:
    """Resolve what a Location says against the URL that was asked (RFC 3986 5.2).

    >>> base = parse_url("http://h/a/b?q#top")
    >>> [join_url(base, r).target for r in ("c", "../c", "/c?x", "?y", "")]
    ['/a/c', '/c', '/c?x', '/a/b?y', '/a/b?q']

    urllib.parse.urljoin is not used: it drops empty segments and a bare "?".
    """
    refuse_controls(reference)
    if reference.startswith("//"):
        reference = f"{base.origin.scheme}:{reference}"
    if _SCHEME.match(reference):
        url = parse_url(reference)
    else:
        if not reference.isascii() or " " in reference:
            reference = percent_encode(reference)
        relative, _, fragment = reference.partition("#")
        target = join_target(base.target, relative) if relative else base.target
        if len(target) > MAX_URL_CHARS:
            raise InvalidURL(f"a redirect to {len(target)} characters: at most {MAX_URL_CHARS}")
        url = URL(base.origin, target, fragment, "")
    if "#" not in reference:
        url = url._replace(fragment=base.fragment)  # RFC 9110 10.2.2
    return url


def join_target(base: str, reference: str) -> str:
    """Resolve path and query, dot segments removed (RFC 3986 5.2.4)."""
    path, mark, query = reference.partition("?")
    base_path = base.partition("?")[0]
    if not path:
        return base_path + mark + query
    if not path.startswith("/"):
        path = base_path[:base_path.rindex("/") + 1] + path
    segments: list[str] = []
    for segment in path.split("/")[1:]:
        if segment == "..":
            del segments[-1:]
        elif segment != ".":
            segments.append(segment)
    if path.endswith(("/.", "/..")):
        segments.append("")
    return "/" + "/".join(segments) + mark + query


Params = Union[Mapping[str, Any], Iterable["tuple[str, Any]"]]


def add_params(url: URL, params: Params) -> URL:
    """Append parameters to the query that is there.

    >>> add_params(parse_url("http://h/?a=1"), {"b": [2, 3], "c": None, "d": True}).target
    '/?a=1&b=2&b=3&d=true'
    """
    from urllib.parse import quote_plus
    pairs = []
    for name, value in params.items() if isinstance(params, Mapping) else params:
        for item in value if isinstance(value, (list, tuple)) else [value]:
            if item is not None:
                text = str(item).lower() if isinstance(item, bool) else item
                pairs.append(f"{_quoted(quote_plus, name)}={_quoted(quote_plus, text)}")
    if not pairs:
        return url
    glue = "?" if "?" not in url.target else "" if url.target[-1] in "?&" else "&"
    return url._replace(target=url.target + glue + "&".join(pairs))


def _quoted(quote: Callable[[Any], str], item: object) -> str:
    try:
        return quote(item if isinstance(item, bytes) else str(item))
    except UnicodeError:
        raise InvalidURL(f"a parameter is not Unicode: {item!r:.60}") from None


# ==== 3. Request bytes ========================================================
# All that we ever send is one head, and this section is the only place where one
# is made. Text that a caller or a redirect supplied could smuggle in a line of its
# own, so the grammar is checked here, on the finished text, and nothing is mended.

Fields = "tuple[tuple[str, str], ...]"  # a head's (name, value) pairs, in order
HeaderItems = Union[Mapping[str, Optional[str]], Iterable["tuple[str, str | None]"]]

TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"  # RFC 9110 5.6.2
_NAME = re.compile(TOKEN)
_VALUE = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]*")
_HOST_VALUE = re.compile(r"[A-Za-z0-9._-]+(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?")
# These frame messages or belong to one connection; a GET that carries them opens
# a second reading of the same bytes for whoever stands between (RFC 9110 7.6.1).
_OURS = {"connection", "content-length", "expect", "keep-alive", "proxy-authorization",
         "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"}

HAS_ZSTD = sys.version_info >= (3, 14)  # compression.zstd
ACCEPT_ENCODING = "gzip, deflate, zstd" if HAS_ZSTD else "gzip, deflate"
DEFAULT_FIELDS = (
    ("Host", ""),  # empty: filled in with the authority of each URL
    ("User-Agent", f"asyncget/{__version__}"),
    ("Accept", "*/*"),
    ("Accept-Encoding", ACCEPT_ENCODING),
)


def merge_fields(base: tuple[tuple[str, str], ...],
                 headers: HeaderItems) -> tuple[tuple[str, str], ...]:
    """Lay the caller's headers over others; a value of None removes (RFC 9110 5.1).

    >>> merge_fields((("Accept", "*/*"), ("X", "1")), {"accept": "text/html", "x": None})
    (('accept', 'text/html'),)
    """
    try:
        extra = list(headers.items() if isinstance(headers, Mapping) else headers)
        named = {name.lower() for name, _ in extra}
        hash(tuple(value for _, value in extra))  # a list is no text
    except (AttributeError, TypeError, ValueError):
        raise InvalidHeader("headers must be a mapping, or pairs, of text") from None
    ours = named & _OURS
    if ours:
        raise InvalidHeader(f"{ours.pop()} is not a caller's to set: it is between us and the next "
                            "hop (a proxy's credentials go into the proxy's URL)")
    kept = [pair for pair in base if pair[0].lower() not in named]
    kept += [(name, value) for name, value in extra if value is not None]
    return tuple(sorted(kept, key=lambda pair: pair[0].lower() != "host"))  # 7.2: Host first


@functools.lru_cache(maxsize=256)
def render_fields(fields: tuple[tuple[str, str], ...], origin: Origin) -> bytes:
    r"""The lines of a head and its end; remembered, as most requests send the same.

    >>> render_fields((("Host", ""), ("Accept", "*/*")), Origin("http", "h", 81))
    b'Host: h:81\r\nAccept: */*\r\n\r\n'

    Raises InvalidHeader; values that may be secret are not in its text.
    """
    lines: list[str] = []
    for name, value in fields:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InvalidHeader(f"not a field name: {name!r:.100}")
        if not isinstance(value, str) or not _VALUE.fullmatch(value):
            raise InvalidHeader(f"the value of {name} is no text, or has control characters")
        if name.lower() == "host":
            value = value or origin.authority
            if lines or not _HOST_VALUE.fullmatch(value):  # RFC 9112 3.2: there is but one
                raise InvalidHeader(f"not a value for Host, or a second one: {value!r:.100}")
        lines.append(f"{name}: {value}\r\n")
    try:
        return "".join([*lines, "\r\n"]).encode("utf-8")
    except UnicodeError:
        raise InvalidHeader("a header's value is not Unicode") from None


def render_request(target: str, fields: tuple[tuple[str, str], ...], origin: Origin) -> bytes:
    r"""The head of a GET (RFC 9112 section 3). The first line has one of three forms:

        GET /path?query HTTP/1.1          origin-form, to the server itself
        GET http://h/path HTTP/1.1        absolute-form, to a proxy
        CONNECT h:443 HTTP/1.1            authority-form, for a tunnel: section 8

    >>> render_request("/x", (("Host", ""),), Origin("http", "h", 80))
    b'GET /x HTTP/1.1\r\nHost: h\r\n\r\n'
    """
    if not target.isascii() or not target.isprintable() or " " in target:
        raise InvalidURL(f"not a request target: {masked(target)}")
    return b"GET %b HTTP/1.1\r\n%b" % (target.encode("ascii"), render_fields(fields, origin))


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
        if ":" in user or not _VALUE.fullmatch(user + password):
            raise InvalidHeader("a user name has no ':', and neither it nor a password controls")
        return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode("ascii")
    except (TypeError, ValueError) as error:
        if isinstance(error, InvalidHeader):
            raise
        raise InvalidHeader("auth is (user, password), or a bearer token as text") from None


def split_userinfo(userinfo: str) -> tuple[str, str]:
    """User and password of a URL, percent-decoded, which nothing else ever is."""
    from urllib.parse import unquote
    user, _, password = userinfo.partition(":")
    return unquote(user), unquote(password)


# ==== 4. Response head ========================================================
# One expression says what a head may look like, and it is asked once, about the
# whole head. It is strict where laxity has been exploited (NUL, bare CR, a blank
# before the colon) and lenient where servers need it: a bare LF ends a line, the
# reason may be missing, a folded line is unfolded. Values are looked up in the
# bytes when somebody asks; most fields of most heads are never asked for.

_STATUS_LINE = re.compile(
    rb"HTTP/1\.([0-9]) ([1-9][0-9]{2})(?: ([^\x00-\x08\x0a-\x1f\x7f]*))?\r?\n")
_FIELD_LINE = re.compile(  # the ^ is what forbids a blank before a name
    rb"^(" + TOKEN.encode() + rb"):([^\x00-\x08\x0a-\x1f\x7f]*)\r?\n", re.M)
_FOLD = re.compile(rb"\r?\n[ \t]+")


class Head:
    """A response head that passed. What we decide from are lower-case `fields`."""

    __slots__ = ("raw", "minor", "status", "fields")

    def __init__(self, raw: bytes, minor: int, status: int, fields: dict[bytes, bytes]) -> None:
        self.raw = raw        # as received, but unfolded, with the empty line
        self.minor = minor    # HTTP/1.minor
        self.status = status  # 100 to 999
        self.fields = fields  # name: value, repeats joined with commas (RFC 9110 5.3)


@functools.lru_cache(maxsize=256)
def parse_list(value: bytes) -> tuple[bytes, ...]:
    """The elements of a field that is a list, empty ones dropped (RFC 9110 5.6.1.2).

    >>> parse_list(b",, close ,x")
    (b'close', b'x')
    """
    elements = (element.strip(b" \t") for element in value.split(b","))
    return tuple(element for element in elements if element)


def find_head_end(data: bytes | bytearray, start: int = 0) -> int:
    r"""The index behind the first empty line, or 0.

    >>> find_head_end(b"HTTP/1.1 200 OK\r\n\r\nhello"), find_head_end(b"HTTP/1.1 200 OK\r\n")
    (19, 0)
    """
    end = data.find(b"\n\r\n", start)
    bare = data.find(b"\n\n", start, end if end >= 0 else len(data))
    return bare + 2 if bare >= 0 else end + 3 if end >= 0 else 0


def parse_head(raw: bytes) -> Head:
    r"""Check a whole head, with its empty line, and take it apart.

    >>> head = parse_head(b"HTTP/1.1 404 Not Found\r\nServer: X\r\n\r\n")
    >>> head.status, head.fields
    (404, {b'server': b' x'})

    Raises ProtocolError with the line that does not fit (RFC 9112 sections 2 to 5).
    """
    first = raw.find(b"\n") + 1
    match = _STATUS_LINE.fullmatch(raw, 0, first)
    if match is None:
        raise ProtocolError(f"response head: not an HTTP/1 status line: {shown(raw[:first])}")
    pairs = _FIELD_LINE.findall(raw[first:].lower())
    if len(pairs) != raw.count(b"\n") - 2:
        raw = raw[:first] + unfold(raw[first:])
        pairs = parse_lines(raw[first:].lower(), "response head")
    elif len(pairs) > MAX_FIELDS:
        raise ProtocolError(f"response head: more than {MAX_FIELDS} fields")
    fields = dict(pairs)
    if len(fields) < len(pairs):
        fields = {name: b",".join(v for n, v in pairs if n == name) for name in fields}
    return Head(raw, int(match[1]), int(match[2]), fields)


def unfold(block: bytes) -> bytes:
    """Join folded lines with a blank (RFC 9112 5.2); the first line cannot be folded."""
    return _FOLD.sub(b" ", block)


def parse_lines(block: bytes, what: str) -> list[tuple[bytes, bytes]]:
    """The fields of a block that ends in an empty line; raise for the line that is none."""
    pairs = _FIELD_LINE.findall(block)
    lines = block.split(b"\n")[:-2]
    if len(pairs) != len(lines):
        wrong = (line for line in lines if not _FIELD_LINE.fullmatch(line + b"\n"))
        raise ProtocolError(f"{what}: not a field line: {shown(next(wrong, b''))}")
    if len(pairs) > MAX_FIELDS:
        raise ProtocolError(f"{what}: more than {MAX_FIELDS} fields")
    return pairs


def parse_fields(block: bytes) -> list[tuple[str, str]]:
    r"""The (name, value) pairs of field lines that passed.

    >>> parse_fields(b"A: 1\r\nB:\t2 \r\n\r\n")
    [('A', '1'), ('B', '2')]
    """
    return [(name.decode("ascii"), field_text(value)) for name, value in _FIELD_LINE.findall(block)]


def field_text(value: bytes) -> str:
    """A field's value as text: UTF-8 where it is that, else its bytes as latin-1."""
    value = value.strip(b" \t")
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.decode("latin-1")


def status_reason(raw: bytes) -> str:
    """The reason phrase of a head: for people, and often empty (RFC 9112 section 4)."""
    return field_text(raw.partition(b"\n")[0][13:].rstrip(b"\r"))


class Headers(Mapping[str, str]):
    """The fields of a message: names in any case, order and repeats kept, immutable.

    >>> headers = Headers([("Vary", "a"), ("X", "1"), ("vary", "b")])
    >>> headers["VARY"], headers.get_all("vary"), list(headers)
    ('a, b', ['a', 'b'], ['Vary', 'X'])
    """

    __slots__ = ("_values", "pairs")

    def __init__(self, pairs: Iterable[tuple[str, str]] = ()) -> None:
        self.pairs = tuple(pairs)  # all fields, as sent
        self._values: dict[str, list[str]] = {}
        for name, value in self.pairs:
            self._values.setdefault(name.lower(), []).append(value)

    def get_all(self, name: str) -> list[str]:
        """Each value of a field on its own: commas do not part Set-Cookie (RFC 9110 5.3)."""
        return list(self._values.get(name.lower(), ()))

    def __getitem__(self, name: str) -> str:
        return ", ".join(self._values[name.lower()])

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.lower() in self._values

    def __iter__(self) -> Iterator[str]:
        first = {name.lower(): name for name, _ in reversed(self.pairs)}
        return (first[key] for key in self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Headers({list(self.pairs)!r})"


# ==== 5. Body framing =========================================================
# TCP is a stream: nothing in it says where one response stops and the next one
# starts. The head does, in one of three ways. Read it wrong by a byte, and the
# next answer on this connection goes to the wrong question.
#
# A parser here is a generator: it is sent what arrived (b"" when the connection
# ended) and yields the payload in it; when the body is whole it returns the last
# payload, what lies behind the body, and the trailer lines. Its place in the code
# is its state, and it can be left and taken up again at any byte.

Framing = Union[int, str]
BodyParser = Generator[bytes, bytes, "tuple[bytes, bytes, bytes]"]
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*(?:;[^\x00-\x08\x0a-\x1f\x7f]*)?")
_LENGTH = re.compile(rb"[0-9]{1,18}")


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
        if parse_list(transfer) != (b"chunked",):        # 4: we asked for no other
            raise ProtocolError(f"Transfer-Encoding is {shown(transfer)}, not just chunked")
        return "chunked"
    if length is not None:
        same = set(parse_list(length))                   # 5: "5, 5" says 5
        if len(same) != 1 or not _LENGTH.fullmatch(length := same.pop()):
            raise ProtocolError(f"Content-Length is {shown(length)}")
        return int(length)                               # 6
    return "close"                                       # 8: all until the server closes


def may_reuse(head: Head, framing: Framing) -> bool:
    """Whether the connection stays open behind this response (RFC 9112 9.3)."""
    options = parse_list(head.fields.get(b"connection", b""))
    if framing == "close" or b"close" in options:
        return False
    return head.minor >= 1 or (b"keep-alive" in options and framing != "chunked")  # 6.1


def body_parser(framing: Framing) -> BodyParser:
    """The parser for a framing, started: send it what arrives."""
    parser = (read_chunked() if framing == "chunked" else
              read_until_close() if framing == "close" else read_sized(int(framing)))
    next(parser)
    return parser


def read_sized(length: int) -> BodyParser:
    """Take `length` bytes."""
    data, missing = (yield b""), length
    while len(data) < missing:
        if not data:
            raise IncompleteBody(f"the connection ended {missing} bytes before the end of a body "
                                 f"of {length}", expected=length, received=length - missing)
        missing -= len(data)
        data = yield data
    return data[:missing], data[missing:], b""


def read_until_close() -> BodyParser:
    """Take all until the connection ends."""
    data = yield b""
    while data:
        data = yield data
    return b"", b"", b""


def read_chunked() -> BodyParser:
    r"""Take chunks until the empty one, then the trailer section (RFC 9112 7.1).

        5;extension CRLF hello CRLF  0 CRLF  Trailer: x CRLF  CRLF

    Chunks that arrive together are yielded as one payload: their borders mean nothing.

    >>> body_parser("chunked").send(b"5\r\nhello\r\n6\r\n wor")
    b'hello wor'
    """
    data, at, extensions = b"", 0, 0
    pieces: list[bytes] = []
    while True:
        while (end := data.find(b"\r\n", at)) < 0 and len(data) - at <= MAX_CHUNK_LINE_BYTES:
            data, at = (yield from more(pieces, data[at:])), 0
        size = parse_chunk_size(data[at:end] if end >= 0 else data[at:])
        if end - at > 16:  # more than digits
            extensions += end - at
            if extensions > MAX_EXTENSION_BYTES:
                raise ProtocolError(f"more than {MAX_EXTENSION_BYTES} bytes of chunk extensions")
        at = end + 2
        if size == 0:
            break
        while len(data) < (stop := at + size) + 2:  # it goes on in what is still to come
            pieces.append(data[at:stop])
            size -= len(pieces[-1])
            data, at = (yield from more(pieces, data[stop:])), 0
        if data[stop:stop + 2] != b"\r\n":
            raise ProtocolError(f"no CRLF behind a chunk, but {shown(data[stop:stop + 20])}")
        pieces.append(data[at:stop])
        at = stop + 2
    block, searched = bytearray(data[at:]), 0
    while block[:2] != b"\r\n" and (end := block.find(b"\r\n\r\n", searched)) < 0:
        if len(block) > MAX_HEAD_BYTES:
            raise ProtocolError(f"more than {MAX_HEAD_BYTES} bytes of trailers")
        searched = max(0, len(block) - 3)
        block += yield from more(pieces, b"")
    size = 2 if block[:2] == b"\r\n" else end + 4
    return b"".join(pieces), bytes(block[size:]), check_trailers(bytes(block[:size]))


def more(pieces: list[bytes], rest: bytes) -> Generator[bytes, bytes, bytes]:
    """Hand out the payload so far and return what is not used yet, with what arrives."""
    payload = b"".join(pieces)
    pieces.clear()
    arrived = yield payload
    if not arrived:
        raise IncompleteBody("the connection ended inside a chunked body")
    return rest + arrived if rest else arrived


@functools.lru_cache(maxsize=256)
def parse_chunk_size(line: bytes) -> int:
    """The size in a chunk's first line; remembered, as chunks of a body are alike.

    >>> parse_chunk_size(b"1F ;name=value")
    31

    int(line, 16) alone would take "+5", "0x5" and "0_5".
    """
    match = _CHUNK_SIZE.fullmatch(line)
    if match is None or len(line) > MAX_CHUNK_LINE_BYTES:
        raise ProtocolError(f"not a chunk size: {shown(line)}")
    return int(match[1], 16)


def check_trailers(block: bytes) -> bytes:
    """Trailer lines obey the grammar of a head's; they are never merged into it."""
    block = unfold(block)
    parse_lines(block, "trailers")
    return block


# ==== 6. Decoding =============================================================
# A coding is undone in small steps, so that a bomb (a kilobyte that says "a
# gigabyte of zeros") is seen while it is small. A stream cut short is an error
# even where the framing was whole: the length says that the bytes are all there,
# only the coding says that the content is.

_CHARSET = re.compile(r";\s*charset\s*=\s*[\"']?([A-Za-z0-9._:+-]{1,40})", re.I)
# Text codecs alone: the rest of Python's codecs are slow on purpose-made input
# (punycode, idna), or no charsets at all (rot13, unicode_escape, undefined).
_TEXT_CODEC = re.compile(r"ascii|utf-(8|16|32)(-[a-z]+)?|iso8859-\d+|cp\d+|koi8-[rtu]|big5(hkscs)?"
                         r"|gb(2312|k|18030)|euc_\w+|shift_jis\w*|iso2022_\w+|mac-\w+|tis-620"
                         r"|kz1048|ptcp154|johab|hz")


class Inflater:
    """Undo one coding: gzip of any number of members, deflate in both dialects, zstd."""

    def __init__(self, coding: bytes) -> None:
        self.coding = coding
        self.start = b""          # of a deflate stream, until its dialect is known
        self.stream: Any = None   # a decompressor: .decompress, .eof, .unused_data

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield what data decodes to, in pieces of at most MAX_DECODED_STEP_BYTES."""
        if self.stream is None:
            data = self.start = self.start + data
            if len(data) < 2:
                return
            self.stream = self.open(data)
        for at in range(0, len(data), INFLATE_BYTES):
            yield from self.inflate(data[at:at + INFLATE_BYTES])

    def inflate(self, data: bytes) -> Iterator[bytes]:
        """Decode a slice so small that copying what is unused of it costs nothing."""
        full = False  # whether the last step stopped for want of room
        while data or full:
            if self.stream.eof:
                data = data.lstrip(b"\0")  # padding, as gzip(1) takes it
                if not data:
                    return
                if self.coding != b"gzip" and self.coding != b"zstd":
                    raise DecodingError(f"{shown(data)} behind the end of a deflate stream")
                self.stream = self.open(data)
            try:
                piece = self.stream.decompress(data, MAX_DECODED_STEP_BYTES)
            except Exception as error:  # zlib.error or ZstdError: no common base
                raise DecodingError(f"not {self.coding.decode()}: {error}") from None
            data = (self.stream.unused_data if self.stream.eof else
                    getattr(self.stream, "unconsumed_tail", b""))  # zstd keeps it itself
            full = len(piece) == MAX_DECODED_STEP_BYTES and not self.stream.eof
            yield piece

    def open(self, start: bytes) -> Any:
        """A decompressor for what begins with start (two bytes or more)."""
        if self.coding == b"zstd":
            from compression import zstd  # type: ignore[import-not-found, unused-ignore]
            window = {zstd.DecompressionParameter.window_log_max: 23}  # RFC 9659: 8 MiB
            return zstd.ZstdDecompressor(options=window)
        if self.coding == b"gzip":
            return zlib.decompressobj(31)
        # "deflate" is zlib's format (RFC 9110 8.4.1.2); some send it without the wrapping.
        wrapped = start[0] & 15 == 8 and int.from_bytes(start[:2], "big") % 31 == 0
        return zlib.decompressobj(15 if wrapped else -15)

    def finish(self) -> None:
        """Raise if the stream is cut short; an empty body is whole in any coding."""
        if self.start and not (self.stream and self.stream.eof):
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

    def feed(self, data: bytes, stage: int = 0) -> Iterator[bytes]:
        """Yield what data decodes to."""
        for piece in self.stages[stage].feed(data):
            if stage + 1 == len(self.stages):
                yield piece
            else:
                yield from self.feed(piece, stage + 1)

    def finish(self) -> None:
        """Raise DecodingError if any of the codings is cut short."""
        for stage in self.stages:
            stage.finish()


def content_codings(head: Head) -> list[bytes]:
    r"""The codings to undo, in the order in which they were applied.

    >>> content_codings(parse_head(b"HTTP/1.1 200\r\nContent-Encoding: deflate, X-GZIP\r\n\r\n"))
    [b'deflate', b'gzip']

    Raises DecodingError for what we cannot undo: br, for one, is not in the
    standard library, and handing out the coded bytes would be a silent lie.
    """
    codings = [coding[2:] if coding == b"x-gzip" else coding
               for coding in parse_list(head.fields.get(b"content-encoding", b""))
               if coding != b"identity"]
    if len(codings) > MAX_CODINGS:
        raise DecodingError(f"{len(codings)} content codings: at most {MAX_CODINGS} are undone")
    for coding in codings:
        if coding not in (b"gzip", b"deflate") and not (coding == b"zstd" and HAS_ZSTD):
            raise DecodingError(f"content coding {shown(coding)} cannot be undone here; "
                                "decode=False gives the bytes as sent")
    return codings


def charset_of(content_type: str) -> str:
    """The codec for a Content-Type: its charset if that is one of text, else utf-8.

    >>> charset_of("text/html; charset=ISO-8859-1"), charset_of("text/html; charset=rot13")
    ('iso8859-1', 'utf-8')
    """
    match = _CHARSET.search(content_type)
    try:
        codec = codecs.lookup(match[1]).name if match else "utf-8"
    except LookupError:
        return "utf-8"
    return codec if _TEXT_CODEC.fullmatch(codec) else "utf-8"


# ==== 7. Response =============================================================
# What the caller holds. It keeps the head as bytes and takes out of it what is
# asked for: a hundred thousand responses kept are then mostly their bodies. Where
# the body comes from it does not know; it was handed a source to await.

class Timing(NamedTuple):
    """Seconds since the start of the call; `reused`: on a kept connection."""

    connected: float
    sent: float
    head: float
    done: float
    reused: bool


class BodySource:
    """What a Response awaits its body from; section 8 makes it a connection's."""

    ready = b""    # payload that is here already
    done = False   # whether that was the last of it
    trailers = b""
    received = 0   # body bytes on the wire so far
    done_at = 0.0  # when the last one came

    async def read_piece(self) -> bytes:
        """The next bytes of the body as sent, b"" at its end."""
        raise NotImplementedError

    def abort(self) -> None:
        """Give up the rest of the body, and the connection with it."""


_IN_USE = ("_coded", "_decoder", "_decoded", "_source")  # only while the body is read


class Response:
    """A response. After `get` its body is in `content`; in `stream` it is read as asked."""

    started = 0.0                          # the loop's clock when the call began
    peer: Any = None                       # the remote address
    request_bytes = 0                      # sent for this hop
    _marks = (0.0, 0.0, 0.0)               # connected, sent, head, on the loop's clock
    _done_at = 0.0
    _reused = False
    _coded: Head | None = None             # until the body begins
    _decoder: Decoder | None = None
    _decoded: Iterator[bytes] | None = None
    _content: bytes | None = None
    _headers: Headers | None = None
    _encoding = ""
    _trailers = b""
    _received = 0
    _lost = False                          # closed before the end of the body

    def __init__(self, head: Head, url: URL, source: BodySource, decode: bool = True) -> None:
        self.status_code = head.status
        self.sets_cookies = b"set-cookie" in head.fields
        self.raw_head = head.raw           # as received, without folds
        self.history: list[Response] = []
        self._url = url
        self._source: BodySource | None = source  # None once the body is read or given up
        if decode and b"content-encoding" in head.fields:
            self._coded = head
        elif source.done:
            self._content = source.ready
            self._finish(source)

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
            self._headers = Headers(parse_fields(self.raw_head))
        return self._headers

    @property
    def ok(self) -> bool:
        """Whether the status is below 400."""
        return self.status_code < 400

    def raise_for_status(self) -> Response:
        """Return self, or raise StatusError for a status of 400 and above."""
        if not self.ok:
            raise StatusError(f"{self.status_code} {printable(self.reason)}".rstrip()
                              + f" for {self.url}", url=self.url, response=self)
        return self

    @property
    def cookies(self) -> dict[str, str]:
        """The cookies that this response set, by name."""
        pairs = (line.partition(";")[0].partition("=") for line in
                 self.headers.get_all("set-cookie"))
        return {name.strip(): value.strip() for name, equals, value in pairs if equals}

    @property
    def links(self) -> dict[str, dict[str, str]]:
        """The Link fields by their rel, as requests gives them (RFC 8288).

        `Link: </p?2>; rel="next"` gives `{"next": {"url": "/p?2", "rel": "next"}}`.
        """
        links: dict[str, dict[str, str]] = {}
        link: dict[str, str] = {}
        pattern = r'<([^<>]*)>|;\s*([^\s=;,"<>]+)(?:\s*=\s*(?:"([^"]*)"|([^\s";,]+)))?'
        for url, name, quoted, token in re.findall(pattern, self.headers.get("link", "")):
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
            raise AsyncGetError("the body was not read: await response.read()", url=self.url)
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
        """The body as JSON. Raises DecodingError where it is none."""
        import json
        try:
            return json.loads(self.content)
        except (ValueError, RecursionError) as error:
            raise DecodingError(f"not JSON ({error}): {shown(self.content)}",
                                url=self.url, response=self) from None

    async def read(self, limit: int | None = None) -> bytes:
        """Read what is left of the body into `content`; raise TooLarge beyond limit."""
        if self._content is None:
            pieces, size = [], 0
            while self._source or self._decoded or self._lost:
                pieces.append(await self._next_piece())
                size += len(pieces[-1])
                self._check_size(size, limit)
            self._content = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self._check_size(len(self._content), limit)
        return self._content

    def _check_size(self, size: int, limit: int | None) -> None:
        if limit is not None and size > limit:
            self.close()
            raise TooLarge(f"the body has more than {limit} bytes: raise max_size, or stream it",
                           limit=limit, url=self.url, response=self)

    async def iter_bytes(self) -> AsyncIterator[bytes]:
        """Yield the body, decoded, in pieces as they arrive."""
        if self._content is not None:
            yield self._content
        while piece := await self._next_piece():
            yield piece

    async def iter_lines(self) -> AsyncIterator[str]:
        r"""Yield the body's lines as text, without their \n or \r\n."""
        decoder = codecs.getincrementaldecoder(self.encoding)("replace")
        parts, size = [""], 0
        async for piece in self.iter_bytes():
            *lines, rest = decoder.decode(piece).split("\n")
            for line in lines:
                yield "".join([*parts, line]).removesuffix("\r")
                parts, size = [""], 0
            parts.append(rest)
            size += len(rest)
            if size > MAX_LINE_CHARS:
                self.close()
                raise TooLarge(f"a line of more than {MAX_LINE_CHARS} characters",
                               limit=MAX_LINE_CHARS, url=self.url, response=self)
        last = "".join([*parts, decoder.decode(b"", True)])
        if last:
            yield last.removesuffix("\r")

    async def discard(self) -> None:
        """Read a short rest, undecoded, so that the connection can be used again."""
        source, self._coded = self._source, None
        with contextlib.suppress(AsyncGetError):  # nobody wants it: a broken one does no harm
            while source and source.received <= MAX_DISCARD_BYTES and await self._next_piece():
                pass
        self.close()

    def close(self) -> None:
        """Give up what is left of the body; closes the connection if something is."""
        if self._source is not None:
            self._lost = True
            self._source.abort()
            self._finish(self._source)

    async def _next_piece(self) -> bytes:
        try:
            while True:
                for piece in self._decoded or ():
                    if piece:
                        return piece
                self._decoded, source = None, self._source
                if source is None:
                    if self._lost:  # lest what was cut short look whole
                        raise AsyncGetError("the body was given up: nothing is left to read")
                    if self._decoder:
                        self._decoder.finish()
                    return b""
                if source.done or source.ready:
                    data, source.ready = source.ready, b""
                else:
                    data = await source.read_piece()
                if data and (self._coded or self._decoder):
                    self._decoded = self._decode(data)
                if source.done or not data:
                    self._finish(source)
                if not self._decoded and (data or not self._decoder):
                    return data
        except BaseException as error:  # cancelled, too: the rest is lost
            self.close()
            self._lost = True
            if isinstance(error, AsyncGetError):
                error.url, error.response = self.url, self
            raise

    def _decode(self, data: bytes) -> Iterator[bytes]:
        if self._coded is not None:
            codings, self._coded = content_codings(self._coded), None
            self._decoder = Decoder(codings) if codings else None
        return self._decoder.feed(data) if self._decoder else iter((data,))

    def _finish(self, source: BodySource) -> None:
        self._source = None
        self._trailers, self._received = source.trailers, source.received
        self._done_at = source.done_at

    @property
    def received(self) -> int:
        """Bytes of the body on the wire so far."""
        return self._received if self._source is None else self._source.received

    @property
    def trailers(self) -> Headers:
        """The fields behind a chunked body, once it is read."""
        return Headers(parse_fields(self._trailers))

    # ---- the clock

    @property
    def timing(self) -> Timing:
        """When what was done, in seconds since the call began; 0 for what is not."""
        connected, sent, head, done = (max(0.0, mark - self.started)
                                       for mark in (*self._marks, self._done_at))
        return Timing(connected, sent, head, done, self._reused)

    @property
    def elapsed(self) -> timedelta:
        """From the call to the end of what was read."""
        from datetime import timedelta
        return timedelta(seconds=max(self.timing[:4]))

    def __repr__(self) -> str:
        return f"<Response {self.status_code} {self.url}>"

    def __getstate__(self) -> dict[str, Any]:
        if self._source is not None:
            raise TypeError("a Response whose body was not read cannot be pickled")
        state = {name: value for name, value in self.__dict__.items() if name not in _IN_USE}
        return {**state, "_source": None, "_url": self._url._replace(userinfo="")}


# ==== 8. Connection ===========================================================
# One TCP connection, from the first packet to the last: how it is opened (straight,
# over TLS, through a proxy), how one request and its response go over it, and the
# one clock that watches it. The clock is a single timer handle for the connection's
# whole life: a new limit is mostly just a number moved further away, which the timer
# finds when it wakes. wait_for, or a timer for each read, would cost a task or a
# handle a time; that is half the price of a small GET.

_STRICT_X509 = range(80, 95)  # OpenSSL's codes for what VERIFY_X509_STRICT adds
_FOREVER = float("inf")
_ADDRESS = re.compile(r"[0-9.]+|.*:.*")  # what is no name to look up
_BROKEN = (BrokenPipeError, ConnectionResetError, ConnectionAbortedError)
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


async def open_first(host: str, port: int, **options: Any) -> tuple[
        asyncio.StreamReader, asyncio.StreamWriter]:
    """asyncio.open_connection to that of a name's addresses which answers first (RFC 8305).

    With happy_eyeballs_delay asyncio does it, too, but loses a socket when it is cancelled
    at the wrong moment; and uvloop does not.
    """
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    first, second = ([str(address[0]) for family, _, _, _, address in found
                      if (family == found[0][0]) == preferred] for preferred in (True, False))
    todo = [address for pair in itertools.zip_longest(first, second) for address in pair
            if address]  # section 4: families by turns
    if len(todo) == 1:
        return await asyncio.open_connection(todo[0], port, **options)
    attempts: dict[asyncio.Future[Any], str] = {}
    error: BaseException | None = None
    try:
        while todo or attempts:
            if todo:
                address = todo.pop(0)
                attempts[asyncio.ensure_future(
                    asyncio.open_connection(address, port, **options))] = address
            done, _ = await asyncio.wait(attempts, return_when=asyncio.FIRST_COMPLETED,
                                         timeout=HAPPY_EYEBALLS_SECONDS if todo else None)
            for attempt in done:
                del attempts[attempt]
                if not (failure := attempt.exception()):
                    opened: tuple[asyncio.StreamReader, asyncio.StreamWriter] = attempt.result()
                    return opened
                error = error or failure
        raise error or OSError(f"{host} has no address")
    finally:
        error = None
        await cancel(attempts)
        for attempt in attempts:  # it won as well, or while we were cancelled
            if not attempt.cancelled() and not attempt.exception():
                attempt.result()[1].transport.abort()


async def cancel(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """End tasks and wait until they have cleaned up."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class Connection(BodySource):
    """A connection on a route: made by the pool, opened, used, kept or closed."""

    def __init__(self, route: Route, connector: Connector, trace: Trace | None,
                 on_idle: Callable[[Connection], None],
                 on_close: Callable[[Connection], None]) -> None:
        self.route = route
        self.connector = connector
        self.trace = trace
        self.on_idle, self.on_close = on_idle, on_close
        self.loop = asyncio.get_running_loop()
        self.reader: Any = None       # asyncio.StreamReader and StreamWriter, or doubles
        self.writer: Any = None
        self.outer: Any = None        # the writer to the proxy, below the one in its tunnel
        self.peer: Any = None
        self.closed = False
        self.exchanges = 0            # requests sent so far
        self.silent = True            # no byte of the current response has come
        # the clock
        self.phase = "connect"        # what is waited for
        self.seconds = _FOREVER       # how long that may take
        self.limit = _FOREVER         # the moment when that is over
        self.deadline = _FOREVER      # the moment when the whole call is
        self.call_seconds = 0.0       # how long that was
        self.expired = False
        self.timer: asyncio.TimerHandle | None = None
        self.wakes_at = _FOREVER      # when it rings
        self.opener: asyncio.Task[Any] | None = None
        # the response being read
        self.rest = b""               # received, not used yet
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

    def _wake(self) -> None:
        self.timer, self.wakes_at = None, _FOREVER
        if self.loop.time() < self.limit:
            self._set_timer()
        elif self.phase == "idle":
            self.close()
        else:
            self.expired = True
            if self.opener is not None:
                self.opener.cancel()
            else:
                self.writer.transport.abort()  # ends every wait on this connection

    def timed_out(self) -> TimedOut:
        """The error for a clock that ran out."""
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
        self.timeout = timeout
        self.opener = task = asyncio.current_task()
        cancels = task.cancelling() if task and hasattr(task, "cancelling") else 0  # 3.11
        self.opened_at = self.watch("connection", timeout)
        try:
            await self._dial()
            if self.route.proxy:
                await self._pass_proxy(self.route.proxy)
        except asyncio.CancelledError:
            self.close()
            if not self.expired or task is None or (
                    hasattr(task, "uncancel") and task.uncancel() > cancels):
                raise  # somebody else's cancellation, too
            raise self.timed_out() from None
        except AsyncGetError:
            self.close()
            raise
        except Exception as error:
            self.close()
            raise self.open_error(error) from error
        finally:
            self.opener = None
        self.peer = self.writer.get_extra_info("peername")
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
        races = self.connector is asyncio.open_connection and not _ADDRESS.fullmatch(host)
        self.reader, self.writer = await (open_first if races else self.connector)(
            host, port, **options)

    def _tls_options(self, host: str) -> dict[str, Any]:
        """The name to certify, without the dot of the root (RFC 6066 3); and no clock but ours."""
        return {"server_hostname": host.rstrip("."), "ssl_handshake_timeout": self.timeout or 3600}

    async def _pass_proxy(self, proxy: Proxy) -> None:
        """Have the proxy connect us to the origin; for http it is just asked, later on."""
        if proxy.scheme.startswith("socks"):
            self.watch("answer of the proxy", self.timeout)
            await self._socks(proxy)
        elif self.route.tls:
            await self._connect_tunnel(proxy)
        if self.route.tls:
            self.watch("TLS handshake", self.timeout)
            await self._start_tls(self.route.tls)

    async def _connect_tunnel(self, proxy: Proxy) -> None:
        """Ask an HTTP proxy for a tunnel (RFC 9110 9.3.6); nothing of the request is told."""
        origin = self.route.origin
        target = f"{bracketed(origin.host)}:{origin.port}"
        fields = (("Host", target), ("User-Agent", f"asyncget/{__version__}"),
                  *proxy_fields(proxy))
        request = b"CONNECT %b HTTP/1.1\r\n%b" % (target.encode("ascii"),
                                                  render_fields(fields, target))
        try:
            head = await self.exchange(request, self.timeout, "answer of the proxy")
        except ProtocolError as error:
            raise self.proxy_error(f"did not answer CONNECT {target}: {error}") from error
        self.exchanges = 0  # none with the origin
        if head.status // 100 != 2:
            hint = " (give user and password in the proxy's URL)" if head.status == 407 else ""
            raise self.proxy_error(f"refused a tunnel to {target}: {head.status} "
                                   + printable(status_reason(head.raw)) + hint
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
        origin, read, write = self.route.origin, self.reader.readexactly, self.writer.write
        write(b"\x05\x02\x00\x02" if proxy.userinfo else b"\x05\x01\x00")
        version, method = start = await read(2)
        if version != 5:
            raise self.proxy_error(f"is no SOCKS5 proxy: its answer begins with {shown(start)}")
        if method == 2 and proxy.userinfo:
            user, password = (text.encode() for text in split_userinfo(proxy.userinfo))
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

    async def _socks_address(self, proxy: Proxy) -> bytes:
        """The origin's host as SOCKS has it: an address, or a name for socks5h."""
        import ipaddress
        host = self.route.address or self.route.origin.host
        if not _ADDRESS.fullmatch(host):
            if proxy.scheme == "socks5h":
                return b"\x03%c%b" % (len(host), host.encode("ascii"))
            found = await self.loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            host = str(found[0][4][0])
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
        transport = await self.loop.start_tls(self.outer.transport, protocol, tls,
                                              **self._tls_options(self.route.origin.host))
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
                exit_code=5 if proxy else 6)
        if self.phase == "answer of the proxy":
            return self.proxy_error(f"closed the connection: {text}")
        if self.phase == "TLS handshake" or tls and isinstance(error, _BROKEN):
            return TLSError(f"TLS handshake with {hop} failed: {text}{self.after()}")
        if isinstance(error, (OSError, ValueError, EOFError)):
            return ConnectError(f"cannot connect to {hop}: {text}{self.after()}")
        return error

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
        for _ in range(MAX_INTERIM + 1):
            data = self.rest or await self.receive()
            end = find_head_end(data)
            if not end:
                data, end = await self._read_long_head(bytearray(data))
            if end > MAX_HEAD_BYTES:
                raise ProtocolError(f"response head: more than {MAX_HEAD_BYTES} bytes")
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
        reading, self.reading = self.reading, None
        if reading is None:
            reading = self.reader.read(READ_BYTES), None
        reading, arrival = reading
        try:
            while True:  # as `await reading` would, from where begin_read left it
                arrival = reading.send((yield arrival) if arrival else None)
        except StopIteration as end:
            data: bytes = end.value
        except OSError as error:
            raise self.lost(error) from error
        finally:
            reading.close()
        if data:
            self.silent = False
        elif self.expired:
            raise self.timed_out()
        return data

    def lost(self, error: OSError) -> AsyncGetError:
        """Our error for a connection that broke."""
        if self.expired:
            return self.timed_out()
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
        """Wait for the next exchange, for a while."""
        self.phase, self.idle_at = "idle", now
        self.deadline, self.limit = _FOREVER, now + IDLE_SECONDS
        if self.timer is None:  # else it wakes within a timeout, and finds the new limit
            self._set_timer()
        self.on_idle(self)

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
        if self.timer is not None:
            self.timer.cancel()
        if self.reading is not None:
            self.reading[0].close()
        for writer in (self.writer, self.outer):
            if writer is not None:
                writer.close()            # says close_notify (RFC 9112 9.8),
                writer.transport.abort()  # and does not wait for the answer
        self.on_close(self)


class Body(BodySource):
    """The body of one response on a connection, which it lets go of at its end."""

    def __init__(self, connection: Connection, head: Head) -> None:
        framing = body_framing(head)
        self.connection: Connection | None = connection
        self.until_close = framing == "close"
        self.reusable = may_reuse(head, framing)
        data, connection.rest = connection.rest, b""
        if isinstance(framing, int) and len(data) >= framing:  # all has come with the head
            self.ready, self.received = data[:framing], framing
            self._let_go(connection, data[framing:])
            return
        connection.limit = connection.deadline  # while the caller thinks
        self.parser = body_parser(framing)
        if data:
            self.ready = self._take(connection, data)

    async def read_piece(self) -> bytes:
        """The next bytes of the body as sent, b"" at its end."""
        piece = b""
        while not piece and (connection := self.connection) is not None:
            connection.watch("more of the body", connection.timeout)
            data = await connection.receive()
            connection.limit = connection.deadline  # while the caller thinks
            if not data and self.until_close and not connection.ended_cleanly():
                raise IncompleteBody("TLS was cut off, not closed: the body may be incomplete",
                                     received=self.received)
            piece = self._take(connection, data)
        return piece

    def _take(self, connection: Connection, data: bytes) -> bytes:
        try:
            piece = self.parser.send(data)
        except StopIteration as end:
            piece, rest, self.trailers = end.value
            self._let_go(connection, rest)
        except IncompleteBody as error:
            error.received = self.received
            raise
        self.received += len(piece)
        return piece

    def _let_go(self, connection: Connection, rest: bytes) -> None:
        """The body is whole: keep the connection if all agree."""
        self.done, self.connection = True, None
        self.done_at = connection.loop.time()
        if self.reusable and not rest and not connection.expired:
            connection.rest_in_pool(self.done_at)
        else:
            connection.close()

    def abort(self) -> None:
        """Give up the rest of the body, and the connection with it."""
        if self.connection is not None:
            self.connection.close()
            self.connection = None


def proxy_fields(proxy: Proxy) -> list[tuple[str, str]]:
    """What a proxy, and nobody else, is told of its own credentials."""
    if not proxy.userinfo:
        return []
    return [("Proxy-Authorization", render_auth(split_userinfo(proxy.userinfo)))]


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


def handshake_hint(reason: str) -> str:
    """What to do about a handshake that failed."""
    if reason in ("WRONG_VERSION_NUMBER", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE",
                  "HTTP_REQUEST", "UNKNOWN_PROTOCOL"):
        return "; no TLS is spoken there: does the URL begin with http://, not https://?"
    if "CERTIFICATE_REQUIRED" in reason:
        return "; a client certificate is wanted: cert="
    return ""


# ==== 9. Pool =================================================================
# Which connection a request gets is decided without waiting: one kept on its route,
# or a new one if the limits allow, or none yet. Only in the last case is there a
# queue, and whatever comes free is handed to whoever has stood there longest. A
# connection handed out is not open yet when it is new: opening is the caller's.

class Pool:
    """The connections of one session, open ones counted from before they are opened."""

    def __init__(self, limit: int, limit_per_host: int | None,
                 make: Callable[[Route, Callable[[Connection], None],
                                 Callable[[Connection], None]], Connection]) -> None:
        self.limit = limit
        self.limit_per_host = limit_per_host
        self.make = make
        self.all: set[Connection] = set()
        self.idle: dict[Route, dict[Connection, None]] = {}  # the latest used last
        self.per_host: collections.Counter[Origin] = collections.Counter()
        self.waiting: collections.deque[
            tuple[asyncio.Future[Connection], Route, bool]] = collections.deque()

    def __repr__(self) -> str:
        idle = sum(map(len, self.idle.values()))
        return f"<Pool {len(self.all)} of {self.limit}, {idle} idle, {len(self.waiting)} waiting>"

    def take(self, route: Route) -> Connection | None:
        """A connection that was in use a moment ago, if there is one: no waiting at all."""
        idle = self.idle.get(route)
        if idle:
            connection, _ = idle.popitem()
            if not connection.has_rested() and connection.begin_read():
                return connection
            idle[connection] = None
        return None

    async def acquire(self, route: Route, fresh: bool = False) -> Connection:
        """A connection on the route: a kept one that is alive, or one still to be opened."""
        while True:
            connection = self.decide(route, fresh) or await self._queue(route, fresh)
            if connection.writer is None:
                return connection
            if connection.has_rested():
                await self._look(connection)
            if not connection.closed and connection.begin_read():
                return connection
            connection.note("the kept connection was closed meanwhile")
            connection.close()

    async def _look(self, connection: Connection) -> None:
        """Give the loop two turns, to bring in what the kernel has received."""
        try:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        except BaseException:  # cancelled
            connection.close()
            raise

    def decide(self, route: Route, fresh: bool) -> Connection | None:
        """The connection for a request, or None while it has to wait."""
        idle = self.idle.get(route)
        if idle and not fresh:
            return idle.popitem()[0]
        if self.limit_per_host and self.per_host[route.origin] >= self.limit_per_host:
            if not idle:
                return None
            self.evict(next(iter(idle)))
        elif len(self.all) >= self.limit:
            unused = next((kept for idle in self.idle.values() for kept in idle), None)
            if unused is None:
                return None
            self.evict(unused)
        connection = self.make(route, self.keep, self.forget)
        self.all.add(connection)
        self.per_host[route.origin] += 1
        return connection

    async def _queue(self, route: Route, fresh: bool) -> Connection:
        future: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()
        self.waiting.append((future, route, fresh))
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self.give_back(future.result())
            raise

    def give_back(self, connection: Connection) -> None:
        """Take back a connection that was handed out and not used."""
        if connection.writer is None or connection.closed:
            connection.close()
        else:
            connection.rest_in_pool(connection.loop.time())

    def keep(self, connection: Connection) -> None:
        """A connection has finished an exchange and may serve another."""
        idle = self.idle.get(connection.route)
        if idle is None:
            idle = self.idle[connection.route] = {}
        idle[connection] = None
        if self.waiting:
            self.serve()

    def forget(self, connection: Connection) -> None:
        """A connection was closed: its place is free."""
        if connection in self.all:
            self.strike(connection)
            if self.waiting:
                self.serve()

    def evict(self, connection: Connection) -> None:
        """Close an idle connection, whose place is taken already."""
        self.strike(connection)
        connection.close()

    def strike(self, connection: Connection) -> None:
        """Take a connection off the books."""
        route = connection.route
        self.all.discard(connection)
        self.per_host[route.origin] -= 1
        if not self.per_host[route.origin]:
            del self.per_host[route.origin]
        idle = self.idle.get(route, {})
        idle.pop(connection, None)
        if not idle:
            self.idle.pop(route, None)

    def serve(self) -> None:
        """Give what is free to those who wait, the longest waiting first."""
        passed = []
        while self.waiting:
            future, route, fresh = self.waiting.popleft()
            if future.done():  # cancelled
                continue
            connection = self.decide(route, fresh)
            if connection is not None:
                future.set_result(connection)
                continue
            passed.append((future, route, fresh))
            if not self.limit_per_host:
                break  # who comes behind would fare no better
        self.waiting.extendleft(reversed(passed))

    async def close(self) -> None:
        """Close all connections, those in use as well, and see their sockets closed."""
        while self.waiting:
            future = self.waiting.popleft()[0]
            if not future.done():
                future.set_exception(AsyncGetError("the session was closed"))
        writers = [connection.writer for connection in self.all if connection.writer]
        for connection in list(self.all):
            connection.close()
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
    fields: tuple[tuple[str, str], ...]

    def __repr__(self) -> str:
        return f"<Request {self.url}>"

    def has(self, name: str) -> bool:
        """Whether a field of this name (in lower case) is there."""
        return any(key.lower() == name for key, _ in self.fields)

    def adding(self, name: str, value: str) -> Request:
        """The same request with one more field."""
        return self._replace(fields=(*self.fields, (name, value)))


# ---- redirects

_CREDENTIALS = {"authorization", "cookie", "proxy-authorization"}


def next_request(request: Request, response: Response,
                 secret_headers: Iterable[str] = ()) -> Request | None:
    """The request that a redirect asks for, None where the response is none (RFC 9110 15.4).

        301 302 303 307 308 with Location   followed: a GET stays a GET
        300 304 305 306, or no Location     the caller's
        to another origin                   without Authorization, Cookie, Proxy-Authorization,
                                            the caller's Host and secret_headers: another
                                            scheme or port is another origin, and what was
                                            dropped stays dropped for the rest of the way
        user and password in Location       ignored (RFC 9110 4.2.4)
    """
    if response.status_code not in (301, 302, 303, 307, 308):
        return None
    locations = set(response.headers.get_all("location"))
    if len(locations) > 1:
        raise ProtocolError("a redirect to several places: "
                            + shown(", ".join(sorted(locations)).encode()))
    if not locations:
        return None
    url = join_url(request.url, locations.pop())._replace(userinfo="")
    if url.origin == request.url.origin:
        return Request(url, request.fields)
    secret = _CREDENTIALS.union(name.lower() for name in secret_headers)
    kept = (pair for pair in request.fields if pair[0].lower() not in secret)
    return Request(url, tuple(("Host", "") if name.lower() == "host" else (name, value)
                              for name, value in kept))


# ---- retries

RetryRule = Callable[[int, Union[Response, AsyncGetError]], Optional[float]]


def retry_delay(attempt: int, outcome: Response | AsyncGetError,
                retries: int) -> float | None:
    """Seconds to wait before trying again; None: attempt (1 is the first) was the last.

        408 429 500 502 503 504             again, when Retry-After says if that is soon
        no connection, or none to be had    again
        silence or the end before a head    again: GET is idempotent (RFC 9110 9.2.2)
        TLS refused, a body cut short, ...  not again: it would only repeat
    """
    if attempt > retries:
        return None
    if isinstance(outcome, Response):
        if outcome.status_code not in (408, 429, 500, 502, 503, 504):
            return None
        asked = retry_after(outcome.headers.get("retry-after", ""))
        if asked is not None:
            return asked if asked <= MAX_RETRY_AFTER_SECONDS else None
    elif (outcome.response is not None or isinstance(outcome, (TLSError, ProxyError))
          or not isinstance(outcome, (ConnectError, TimedOut, IncompleteBody))):
        return None
    import random
    return min(0.5 * 2.0 ** (attempt - 1), 30.0) * random.uniform(0.5, 1.0)  # apart from others


def retry_after(text: str) -> float | None:
    """The seconds that a Retry-After asks for, as a number or a date (RFC 9110 10.2.3).

    >>> retry_after("120"), retry_after("Fri, 31 Dec 1999 23:59:59 GMT"), retry_after("soon")
    (120.0, 0.0, None)
    """
    if re.fullmatch(r"[0-9]{1,9}", text):
        return float(text)
    from datetime import datetime, timezone
    when = parse_date(text)
    return max(0.0, (when - datetime.now(timezone.utc)).total_seconds()) if when else None


def parse_date(text: str) -> datetime | None:
    """The moment that an HTTP date names, None for what is no date (RFC 9110 5.6.7)."""
    from datetime import timezone
    from email.utils import parsedate_to_datetime
    try:
        when = parsedate_to_datetime(text)
        return when if when.tzinfo else when.replace(tzinfo=timezone.utc)
    except (TypeError, ValueError, IndexError, OverflowError):  # differs by version
        return None


# ---- cookies

def cookie_jar() -> CookieJar:
    """A jar under a strict policy: host-only unless a Domain says otherwise (RFC 6265)."""
    from http.cookiejar import Cookie, CookieJar, DefaultCookiePolicy

    class StrictPolicy(DefaultCookiePolicy):
        def set_ok_domain(self, cookie: Cookie, request: Any) -> bool:
            domain = cookie.domain.lstrip(".")
            if cookie.domain_specified and (domain.endswith(".") or _NUMERIC.fullmatch(
                    domain.rpartition(".")[2]) or ":" in domain):
                return domain == parse_url(request.full_url).origin.host  # 5.1.3: addresses
            return bool(super().set_ok_domain(cookie, request))

    return CookieJar(StrictPolicy(
        strict_domain=True, strict_ns_domain=DefaultCookiePolicy.DomainStrictNonDomain))


def store_cookies(jar: CookieJar, response: Response) -> None:
    """Put what a response sets into the jar, as far as it is allowed to."""
    from email.message import Message
    from types import SimpleNamespace
    from urllib.request import Request as CookieRequest
    message = Message()
    for line in response.headers.get_all("set-cookie")[:MAX_SET_COOKIES]:
        if len(line) <= MAX_COOKIE_BYTES:
            message["Set-Cookie"] = line
    source: Any = SimpleNamespace(info=lambda: message)
    jar.extract_cookies(source, CookieRequest(response.url))
    by_domain: dict[str, list[Any]] = {}
    for cookie in jar:
        by_domain.setdefault(cookie.domain, []).append(cookie)
    for cookies in by_domain.values():
        for cookie in cookies[:-MAX_HOST_COOKIES]:
            jar.clear(cookie.domain, cookie.path, cookie.name)


def cookie_field(jar: CookieJar, url: URL) -> str:
    """The Cookie field for a URL, "" for none; cut between cookies where too long."""
    from urllib.request import Request as CookieRequest
    request = CookieRequest(str(url))
    jar.add_cookie_header(request)
    field = request.get_header("Cookie", "") or ""
    return field if len(field) <= MAX_COOKIE_FIELD_BYTES else (
        field[:MAX_COOKIE_FIELD_BYTES].rpartition("; ")[0])


def render_cookies(cookies: Mapping[str, str]) -> str:
    """A Cookie field of the caller's (RFC 6265 4.2.1).

    >>> render_cookies({"a": "1", "b": "2"})
    'a=1; b=2'
    """
    for name, value in cookies.items():
        if not _NAME.fullmatch(name) or ";" in value:
            raise InvalidHeader(f"not a cookie's name, or a value with a ';': {name!r:.100}")
    return "; ".join(f"{name}={value}" for name, value in cookies.items())


# ---- proxies and passwords

def parse_proxy(text: str, source: str) -> Proxy:
    """A proxy's URL; without a scheme it is http.

    >>> print(parse_proxy("me:secret@proxy.corp:3128", "http_proxy"))
    http://proxy.corp:3128 (from http_proxy)

    An unknown kind of proxy is an error: going there directly might be the leak that
    the proxy is there to prevent.
    """
    scheme, mark, rest = text.partition("://")
    scheme, rest = (scheme.lower(), rest) if mark else ("http", text)
    ports = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}
    if scheme not in ports:
        raise ProxyError(f"{source}: proxies are http://, https://, socks5:// or socks5h://, "
                         f"not {masked(text)}")
    try:
        url = parse_url("http://" + rest)
    except InvalidURL as error:
        raise ProxyError(f"{source}: {error}") from None
    if max(len(part.encode()) for part in split_userinfo(url.userinfo)) > 255:
        raise ProxyError(f"{source}: user and password have at most 255 bytes each")  # RFC 1929
    has_port = re.search(r":[0-9]+$", re.split("[/?#]", rest)[0])
    return Proxy(scheme, url.origin.host, url.origin.port if has_port else ports[scheme],
                 url.userinfo, source)


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


def bypasses_proxy(no_proxy: str, origin: Origin) -> bool:
    """Whether NO_PROXY, a list parted by commas or blanks, exempts an origin.

        *                                everything, wherever it stands in the list
        corp.test .corp.test *.corp.test that domain and all below it, not notcorp.test
        10.0.0.0/8  fd00::/8  ::1        addresses and networks, compared as such
        corp.test:8080  [::1]:443        with that port alone, the scheme's own filled in
    """
    host = origin.host.rstrip(".")
    is_address = ":" in host or _NUMERIC.fullmatch(host.rpartition(".")[2]) is not None
    for entry in re.split(r"[\s,]+", no_proxy.lower()):
        match = re.fullmatch(r"(\[[^\]]*\]|[^:]*):([0-9]{1,5})", entry)
        name, port = match.groups() if match else (entry, None)
        if port is not None and int(port) != origin.port:
            continue
        if name == "*" or (is_address and in_network(host, name.strip("[]"))):
            return True
        name = name[1:] if name.startswith("*.") else name
        name = name.strip(".")
        if name and not is_address and (host == name or host.endswith("." + name)):
            return True
    return False


def in_network(address: str, network: str) -> bool:
    """Whether an address lies in a network, or is the one named."""
    import ipaddress
    try:
        return ipaddress.ip_address(address) in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False


def netrc_auth(path: bool | str | os.PathLike[str], host: str) -> Auth | None:
    """The user and password that a netrc file has for exactly this host.

    Its `default` entry is not used: it would give a password to everybody who asks.
    """
    import netrc
    name = os.path.expanduser("~/.netrc") if isinstance(path, bool) else os.fspath(path)
    try:
        hosts = {key.lower(): entry for key, entry in netrc.netrc(name).hosts.items()}
    except (OSError, UnicodeError) as error:
        raise AsyncGetError(f"cannot read {name!r}: {error}", exit_code=26) from None
    except netrc.NetrcParseError as error:  # its text may quote a password
        raise AsyncGetError(f"cannot read {name!r}: line {error.lineno}", exit_code=26) from None
    entry = hosts.get(host) if host != "default" else None
    return (entry[0], entry[2] or "") if entry and (entry[0] or entry[2]) else None


def resolved(resolve: Mapping[str, str], origin: Origin) -> str | None:
    """The address that `resolve` has for an origin; the host "*" is any, as in curl.

    >>> resolved({"*:443": "[::1]"}, Origin("https", "h.test", 443))
    '::1'
    """
    for key, address in resolve.items():
        host, _, port = key.rpartition(":")
        if not re.fullmatch("[0-9]{1,5}", port):
            raise InvalidURL(f"resolve: {key!r} is not host:port")
        if int(port) == origin.port and (
                host == "*" or parse_origin(origin.scheme, host).host == origin.host):
            return address.strip("[]")
    return None


# ==== 11. Session =============================================================
# The loop around it all. `_exchange` gets one response for one request, `_attempt`
# tries that again where it may help, `_send` goes on where a redirect leads. A
# request that has nothing of its own to say takes the session's rendered fields and
# its route for the origin from a dictionary: most of the price of a small GET is
# what one does not do here.

class Settings(NamedTuple):
    """The keywords of Session and, as far as they fit one request, of each call."""

    base_url: str = ""
    params: Params | None = None
    headers: HeaderItems | None = None
    auth: Auth | None = None
    cookies: Any = True                     # True, False, a mapping or a CookieJar
    timeout: float | None = 30.0         # seconds of silence
    deadline: Any = ...                     # seconds; ...: GET_DEADLINE_SECONDS for get
    follow_redirects: bool = True
    max_redirects: int = 20
    retries: Union[int, RetryRule] = 0      # further tries, or a rule as retry_delay is one
    verify: bool | str | ssl.SSLContext = True
    cert: Any = None                        # path, (cert, key) or (cert, key, password)
    proxy: Any = ...                        # a URL, None or ""; ...: from the environment
    trust_env: bool = True
    limit: int = 100
    limit_per_host: int | None = None
    max_size: int | None = 64 * 2**20    # bytes of a decoded body in memory
    decode: bool = True
    secret_headers: Iterable[str] = ()
    unix_socket: str | None = None
    resolve: Mapping[str, str] | None = None
    netrc: bool | str | os.PathLike[str] = False
    open_connection: Connector = asyncio.open_connection
    trace: Trace | None = None           # called with ">", "<" or "*" and what it is

    def __repr__(self) -> str:
        defaults = self._field_defaults  # names alone: passwords are among the values
        return f"<Settings {[n for n in self._fields if getattr(self, n) is not defaults[n]]}>"


    def retry_delay(self, attempt: int, outcome: Response | AsyncGetError) -> float | None:
        """Seconds to wait before trying again, None for no more."""
        if callable(self.retries):
            return self.retries(attempt, outcome)
        return retry_delay(attempt, outcome, self.retries)


# What is the session's alone: each would need a pool or a jar of its own.
_SESSION_ONLY = {"base_url", "limit", "limit_per_host", "open_connection", "trace"}


class Call:
    """One call of the caller's: its clock, over all redirects and retries."""

    __slots__ = ("settings", "started", "seconds", "deadline")

    def __init__(self, settings: Settings, started: float, seconds: float | None) -> None:
        self.settings = settings
        self.started = started
        self.seconds = _FOREVER if seconds is None else seconds
        self.deadline = 0.0  # set with the first connection: queueing is not counted

    def deadline_from(self, now: float) -> float:
        """The moment when the call's time is over, which starts to run at the first asking."""
        if not self.deadline:
            self.deadline = now + self.seconds
        return self.deadline


class Session:
    """GETs that share connections, cookies and settings.

        async with Session(base_url="https://api.test/v1/", auth="token") as session:
            response = await session.get("users/7", params={"full": True})

    The keywords are those of Settings. Belongs to the event loop that it is first used in.
    """

    def __init__(self, **settings: Any) -> None:
        self.settings = settings_of(Settings(), settings)
        if self.settings.limit < 1:
            raise ValueError("limit must be at least 1: it is how many connections may be open")
        self._base: URL | None = None
        if self.settings.base_url:
            base = parse_url(self.settings.base_url)
            path = base.target.partition("?")[0]
            self._base = base._replace(target=path if path.endswith("/") else path + "/")
        self._fields = fields_of(DEFAULT_FIELDS, self.settings)
        self._jar: CookieJar | None = None
        self._cookie_origin = self._base.origin if self._base else None
        self._routes: dict[Origin, Route] = {}
        self._contexts: dict[Any, ssl.SSLContext] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._pool = Pool(self.settings.limit, self.settings.limit_per_host, self._connection)
        # asyncio receives into a fresh 256 KiB each time, which a young process of glibc
        # maps and unmaps. One larger block, freed, ends that: half the time of a small GET.
        bytes(4 * READ_BYTES)

    async def __aenter__(self) -> Session:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections, those in use as well."""
        self._closed = True
        await self._pool.close()

    def __repr__(self) -> str:
        return f"<Session {'closed' if self._closed else self._pool!r}>"

    # ---- what users call

    async def get(self, url: str, **options: Any) -> Response:
        """GET a URL and read its body. Raises AsyncGetError, and nothing else."""
        settings = settings_of(self.settings, options, _SESSION_ONLY) if options else self.settings
        deadline = GET_DEADLINE_SECONDS if settings.deadline is ... else settings.deadline
        response = await self._send(url, settings, deadline, options)
        await response.read(settings.max_size)
        return response

    @contextlib.asynccontextmanager
    async def stream(self, url: str, **options: Any) -> AsyncIterator[Response]:
        """GET a URL and hand out the response with its body unread.

            async with session.stream(url) as response:
                async for piece in response.iter_bytes(): ...
        """
        settings = settings_of(self.settings, options, _SESSION_ONLY)
        deadline = None if settings.deadline is ... else settings.deadline
        response = await self._send(url, settings, deadline, options)
        try:
            yield response
        finally:
            response.close()

    async def get_all(self, urls: Iterable[str] | AsyncIterable[str], *, limit: int = 20,
                      return_exceptions: bool = False, **options: Any) -> list[Any]:
        """GET many URLs, `limit` at once; return the responses in the order of the URLs.

        The first failure cancels the rest and is raised; with return_exceptions each
        AsyncGetError stands in the list in its place instead.
        """
        outcomes: list[Any] = []
        pull = SharedIterator(urls)

        async def work() -> None:
            async for url in pull:
                index = len(outcomes)
                outcomes.append(None)
                try:
                    outcomes[index] = await self.get(url, **options)
                except AsyncGetError as error:
                    if not return_exceptions:
                        raise
                    outcomes[index] = error

        workers = [asyncio.ensure_future(work()) for _ in range(worker_count(urls, limit))]
        try:
            await asyncio.gather(*workers)
        finally:
            await cancel(workers)
        return outcomes

    async def as_completed(self, urls: Iterable[str] | AsyncIterable[str], *, limit: int = 20,
                           **options: Any) -> AsyncIterator[tuple[str, Response | AsyncGetError]]:
        """GET many URLs, `limit` at once; yield (url, Response or AsyncGetError) as they finish.

        URLs are taken as places come free, and no more outcomes are held than `limit`: a
        million URLs from a generator take no more memory than a hundred.
        """
        finished: asyncio.Queue[Any] = asyncio.Queue(limit)
        pull = SharedIterator(urls)

        async def work() -> None:
            async for url in pull:
                try:
                    outcome: Any = await self.get(url, **options)
                except AsyncGetError as error:
                    outcome = error
                await finished.put((url, outcome))

        async def work_all() -> None:
            try:
                await asyncio.gather(*workers)
            finally:
                await finished.put(None)

        workers = [asyncio.ensure_future(work()) for _ in range(worker_count(urls, limit))]
        end = asyncio.ensure_future(work_all())
        try:
            while (item := await finished.get()) is not None:
                yield item
            await end
        finally:
            await cancel([end, *workers])

    # ---- one call

    async def _send(self, url: str, settings: Settings, seconds: float | None,
                    options: Mapping[str, Any]) -> Response:
        """Follow a call to its last response, whose body is unread."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._bind(loop)
        if self._closed:
            raise AsyncGetError("the session is closed")
        call = Call(settings, loop.time(), seconds)
        history: list[Response] = []
        request = None
        try:
            request = self._request(url, settings, options)
            while True:
                response = await (self._attempt(request, call) if settings.retries else
                                  self._exchange(request, call))
                if response.sets_cookies and settings.cookies is not False:
                    jar = self._jar_for(settings)
                    if jar is None:
                        jar = self._jar = cookie_jar()
                    store_cookies(jar, response)
                following = (next_request(request, response, settings.secret_headers)
                             if settings.follow_redirects and response.status_code // 100 == 3
                             else None)
                if following is None:
                    response.history = history
                    return response
                await response.discard()
                history.append(response)
                if len(history) > settings.max_redirects:
                    raise TooManyRedirects(f"more than {settings.max_redirects} redirects",
                                           history=history, response=response)
                request = following
        except AsyncGetError as error:
            if not error.url:
                error.url = str(request.url) if request else masked(url)[1:-1]
            raise

    def _bind(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._loop is not None:
            raise AsyncGetError("this Session belongs to another event loop: make one in each")
        self._loop = loop

    def _request(self, text: str, settings: Settings, options: Mapping[str, Any]) -> Request:
        """The first request of a call, with all that the caller wants in it."""
        if not isinstance(text, str):
            raise InvalidURL(f"a URL is text, not {type(text).__name__}")
        url = join_url(self._base, text) if self._base else parse_url(text)
        if self._base and not url.userinfo and url.origin == self._base.origin:
            url = url._replace(userinfo=self._base.userinfo)
        if settings.params:
            url = add_params(url, settings.params)
        fields = self._fields
        if options:
            fields = fields_of(fields, settings._replace(
                headers=options.get("headers"), auth=options.get("auth"),
                decode=options.get("decode", True)))
        request = Request(url, fields)
        if settings.cookies is not True and isinstance(settings.cookies, Mapping):
            own = "cookies" in options
            self._cookie_origin = self._cookie_origin or url.origin
            if own or url.origin == self._cookie_origin:
                request = request.adding("Cookie", render_cookies(settings.cookies))
        if url.userinfo and not request.has("authorization"):
            request = request.adding("Authorization", render_auth(split_userinfo(url.userinfo)))
        return request

    async def _attempt(self, request: Request, call: Call) -> Response:
        """A response for one request, tried again as the settings say."""
        attempt = 1
        while True:
            try:
                outcome: Response | AsyncGetError = await self._exchange(request, call)
            except AsyncGetError as error:
                outcome = error
            delay = call.settings.retry_delay(attempt, outcome)
            if delay is None or asyncio.get_running_loop().time() + delay > (
                    call.deadline or _FOREVER):
                if isinstance(outcome, Response):
                    return outcome
                try:
                    raise outcome
                finally:
                    del outcome  # else its traceback would hold itself
            if isinstance(outcome, Response):
                await outcome.discard()
            if call.settings.trace:
                call.settings.trace("*", f"trying again in {delay:.1f} s: {outcome}")
            await asyncio.sleep(delay)
            attempt += 1

    async def _exchange(self, request: Request, call: Call) -> Response:
        """A response for one request over one connection.

        A kept connection may have been closed by the server while our request was on its
        way: if not a byte came back, the request goes once more, on a new one (RFC 9112
        9.3.1), whatever `retries` says.
        """
        route = self._route(request.url.origin, call.settings)
        data = self._render(request, route, call.settings)
        connection = self._pool.take(route) or await self._pool.acquire(route)
        while True:
            connected = connection.loop.time()
            connection.deadline = call.deadline_from(connected)
            connection.call_seconds = call.seconds
            try:
                if connection.writer is None:
                    await connection.open(call.settings.timeout)
                    connected = connection.loop.time()
                head = await connection.exchange(data, call.settings.timeout)
                head_at = connection.loop.time()
                response = Response(head, request.url, Body(connection, head),
                                    call.settings.decode)
            except BaseException as error:
                stale = connection.exchanges > 1 and connection.silent
                connection.close()
                if not stale or not isinstance(error, (IncompleteBody, TLSError)):
                    raise
            else:
                response.started, response.peer = call.started, connection.peer
                response.request_bytes = len(data)
                response._marks = connected, connection.sent_at, head_at
                response._reused = connection.exchanges > 1
                return response
            connection.note("the kept connection ended unanswered: once more on a new one")
            connection = await self._pool.acquire(route, fresh=True)

    def _render(self, request: Request, route: Route, settings: Settings) -> bytes:
        """The bytes of a request as they go over a route."""
        origin, target = request.url.origin, request.url.target
        jar = self._jar if settings.cookies is True else self._jar_for(settings)
        if jar is not None:
            field = cookie_field(jar, request.url)
            if field:
                own = [value for name, value in request.fields if name.lower() == "cookie"]
                request = Request(request.url, merge_fields(
                    request.fields, {"Cookie": "; ".join([*own, field])}))
        if settings.netrc and not request.has("authorization"):
            auth = netrc_auth(settings.netrc, origin.host)
            if auth:
                request = request.adding("Authorization", render_auth(auth))
        fields = request.fields
        if route.proxy and origin.scheme == "http" and not route.proxy.scheme.startswith("socks"):
            target = f"http://{origin.authority}{target}"
            fields = (*fields, *proxy_fields(route.proxy))
        return render_request(target, fields, origin)

    def _jar_for(self, settings: Settings) -> CookieJar | None:
        """The jar that a request uses: the session's, one of the caller's, or none."""
        if settings.cookies is False:
            return None
        own: CookieJar | None = getattr(settings.cookies, "jar", settings.cookies)
        return own if hasattr(own, "extract_cookies") else self._jar

    # ---- routes

    def _route(self, origin: Origin, settings: Settings) -> Route:
        """The route to an origin; remembered for the session's own settings."""
        if settings is self.settings:
            route = self._routes.get(origin)
            if route is not None:
                return route
        proxy, verify = self._proxy(origin, settings), settings.verify
        tls = self._context(verify, settings.cert) if origin.scheme == "https" else None
        proxy_tls = self._context(verify) if proxy and proxy.scheme == "https" else None
        here = proxy is None or proxy.scheme == "socks5"  # the others look names up themselves
        address = resolved(settings.resolve, origin) if settings.resolve and here else None
        route = Route(origin, tls, proxy, settings.unix_socket, address, proxy_tls, verify)
        if settings is self.settings:
            if len(self._routes) >= 1000:  # of a crawl over many hosts
                self._routes.clear()
            self._routes[origin] = route
        return route

    def _proxy(self, origin: Origin, settings: Settings) -> Proxy | None:
        if settings.unix_socket or not settings.proxy:
            return None
        if settings.proxy is not ...:
            return parse_proxy(settings.proxy, "proxy=")
        return choose_proxy(origin, os.environ) if settings.trust_env else None

    def _context(self, verify: Any, cert: Any = None) -> ssl.SSLContext:
        key = (verify, tuple(cert) if isinstance(cert, list) else cert)
        if key not in self._contexts:
            self._contexts[key] = tls_context(verify, cert)
        return self._contexts[key]

    def _connection(self, route: Route, keep: Callable[[Connection], None],
                    forget: Callable[[Connection], None]) -> Connection:
        return Connection(route, self.settings.open_connection, self.settings.trace, keep, forget)


def settings_of(base: Settings, options: Mapping[str, Any],
                forbidden: Iterable[str] = ()) -> Settings:
    """The settings with options laid over them; allow_redirects is requests' name for one."""
    options = {"follow_redirects" if name == "allow_redirects" else name: value
               for name, value in options.items()}
    wrong = [name for name in options if name not in Settings._fields or name in forbidden]
    if wrong:
        raise TypeError(f"unknown keyword {wrong[0]!r}; there are "
                        + ", ".join(name for name in Settings._fields if name not in forbidden))
    return base._replace(**options)


def fields_of(base: tuple[tuple[str, str], ...], settings: Settings) -> tuple[
        tuple[str, str], ...]:
    """The fields of a request: base, then those of the headers and of the credentials."""
    fields = base
    if not settings.decode:
        fields = merge_fields(fields, {"Accept-Encoding": None})
    if settings.headers:
        fields = merge_fields(fields, settings.headers)
    if settings.auth:
        fields = merge_fields(fields, {"Authorization": render_auth(settings.auth)})
    return fields


class SharedIterator:
    """One iterator for many workers, over an iterable of either kind."""

    def __init__(self, items: Iterable[str] | AsyncIterable[str]) -> None:
        self.plain = None if isinstance(items, AsyncIterable) else iter(items)
        self.other = items.__aiter__() if isinstance(items, AsyncIterable) else None
        self.lock = asyncio.Lock()  # an async generator cannot be asked by two at once

    def __aiter__(self) -> SharedIterator:
        return self

    async def __anext__(self) -> str:
        if self.plain is not None:
            for item in self.plain:
                return item
            raise StopAsyncIteration
        assert self.other is not None
        async with self.lock:
            return await self.other.__anext__()


def worker_count(urls: object, limit: int) -> int:
    """How many workers to start: no more than there are URLs, where that is known."""
    return min(limit, len(urls)) if isinstance(urls, Sized) else limit


async def get(url: str, **settings: Any) -> Response:
    """GET a URL and read its body, with a session of its own."""
    async with Session(**settings) as session:
        return await session.get(url)


@contextlib.asynccontextmanager
async def stream(url: str, **settings: Any) -> AsyncIterator[Response]:
    """GET a URL and hand out the response unread: see Session.stream."""
    async with Session(**settings) as session, session.stream(url) as response:
        yield response


async def get_all(urls: Iterable[str] | AsyncIterable[str], *, limit: int = 20,
                  return_exceptions: bool = False, **settings: Any) -> list[Any]:
    """GET many URLs, `limit` at once, in their order: see Session.get_all."""
    async with Session(limit=limit, **settings) as session:
        return await session.get_all(urls, limit=limit, return_exceptions=return_exceptions)


async def as_completed(urls: Iterable[str] | AsyncIterable[str], *, limit: int = 20,
                       **settings: Any) -> AsyncIterator[tuple[str, Response | AsyncGetError]]:
    """GET many URLs, `limit` at once, as they finish: see Session.as_completed."""
    async with Session(limit=limit, **settings) as session:
        async for item in session.as_completed(urls, limit=limit):
            yield item
