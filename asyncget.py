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
import stat
import sys
import types
import zlib
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Container,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
    Sized,
)
from typing import TYPE_CHECKING, Any, NamedTuple, Optional, Union

if TYPE_CHECKING:
    import io
    from datetime import datetime, timedelta
    from http.cookiejar import Cookie, CookieJar

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
MAX_FIELDS = 128                 # in one head; hyper and http.client 100, aiohttp 128
MAX_LIST_BYTES = 8192            # of a field that is a list, such as Connection
MAX_INTERIM = 10                 # 1xx responses before the real one
MAX_CHUNK_LINE_BYTES = 4096      # size and extensions of one chunk
MAX_EXTENSION_BYTES = 16_384     # of all chunk extensions of a body; hyper's figure
MAX_CODINGS = 5                  # stacked content codings; curl and urllib3 allow 5, too
MAX_DISCARD_BYTES = 65_536       # of an unwanted body read to keep its connection
MAX_DISCARD_SECONDS = 1.0        # that this may take
MAX_LINE_CHARS = 16_777_216      # one line of iter_lines
MAX_SET_COOKIES = 50             # of one response; curl's figure
MAX_COOKIE_BYTES = 4096          # one Set-Cookie field; RFC 6265 6.1 asks for as much
MAX_DOMAIN_COOKIES = 180         # kept; RFC 6265 6.1 asks for 50 of a domain
MAX_COOKIE_SITES = 3000          # of which a session keeps cookies; 6.1 asks for 3,000 cookies
MAX_COOKIE_FIELD_BYTES = 8190    # the Cookie field that we send; curl's figure
MAX_SHOWN_BYTES = 100            # of a server's bytes in an error text
MAX_RETRY_AFTER_SECONDS = 60.0   # a longer wait is the caller's to decide
GET_DEADLINE_SECONDS = 300.0     # get(), all in all; aiohttp's figure
SETTLED_SECONDS = 60.0           # unchanged for so long: a date tells versions apart (9110 8.8.2.2)
IDLE_SECONDS = 60.0              # a kept connection; nginx keeps 75 s, Apache 5 s
IDLE_MOMENT_SECONDS = 0.001      # idle for longer: look into the kernel before use
REFUSAL_SECONDS = 1.0            # for a proxy to say why there is no tunnel
HAPPY_EYEBALLS_SECONDS = 0.25    # RFC 8305 section 5: then try the next address, too
READ_BYTES = 262_144             # asked of the stream at once; asyncio receives as much
INFLATE_BYTES = 16_384           # decoded at once, so that many members stay linear
MAX_DECODED_STEP_BYTES = 262_144  # made of that at once, so that a bomb shows early
MAX_VAIN_BYTES = 4_194_304       # between stacked codings beyond what came out of the last


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


def bracketed(host: str) -> str:
    """A host as it stands in a URL: IPv6 in brackets (RFC 3986 3.2.2)."""
    return f"[{host}]" if ":" in host else host


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


def masked(text: str) -> str:
    """A URL's text, fit for an error: no userinfo, no controls, not too long.

    >>> masked("http://me:secret@h:x/")
    "'http://***@h:x/'"
    """
    text = re.sub(r"^([a-z]+:/{0,2})?.*@", r"\1***@", text, flags=re.I | re.S)
    return shown(text[:MAX_SHOWN_BYTES + 1].encode("utf-8", "backslashreplace"))[1:]


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


def parse_address(text: str, version: int) -> str:
    """An IP address in its one canonical spelling; a zone (%eth0) is refused."""
    import ipaddress
    try:
        if "%" not in text:
            return str((ipaddress.IPv4Address if version == 4 else ipaddress.IPv6Address)(text))
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
    if labels[-1] == "":  # the DNS root: "h.test."
        labels.pop()
    if not all(map(_LABEL.fullmatch, labels)) or sum(map(len, labels)) + len(labels) > 255:
        raise InvalidURL(f"not a host: {masked(text)}")
    if _NUMERIC.fullmatch(labels[-1]):
        return parse_address(text, 4)
    return ".".join(labels) + ("." if text.endswith(".") else "")


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


def join_target(base: str, reference: str) -> str:
    """Resolve path and query, dot segments removed (RFC 3986 5.2.4)."""
    path, mark, query = reference.partition("?")
    base_path = base.partition("?")[0]
    if not path:
        return base_path + mark + query if mark else base
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
        relative, _, fragment = percent_encode(reference).partition("#")
        target = join_target(base.target, relative)
        if len(target) > MAX_URL_CHARS:
            raise InvalidURL(f"a target of {len(target)} characters: at most {MAX_URL_CHARS} "
                             "are sent")
        url = URL(base.origin, target, fragment, "")
    return url if "#" in reference else url._replace(fragment=base.fragment)  # RFC 9110 10.2.2


Params = Union[Mapping[str, Any], Iterable["tuple[str, Any]"]]


def add_params(url: URL, params: Params) -> URL:
    """Append parameters to the query that is there.

    >>> add_params(parse_url("http://h/?a=1"), {"b": [2, 3], "c": None, "d": True}).target
    '/?a=1&b=2&b=3&d=true'
    """
    from urllib.parse import urlencode
    if isinstance(params, str):
        raise InvalidURL("params are a mapping, or pairs; a query that is ready goes into the URL")
    pairs = [(name, str(item).lower() if isinstance(item, bool) else item)
             for name, value in (params.items() if isinstance(params, Mapping) else params)
             for item in (value if isinstance(value, (list, tuple)) else [value])
             if item is not None]
    try:
        query = urlencode(pairs)
    except UnicodeError:
        raise InvalidURL(f"a parameter is not Unicode: {pairs!r:.60}") from None
    glue = "" if not query or url.target[-1] in "?&" else "&" if "?" in url.target else "?"
    return url._replace(target=url.target + glue + query)


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
# These frame messages or belong to one connection; a GET that carries them opens
# a second reading of the same bytes for whoever stands between (RFC 9110 7.6.1).
_OURS = {"connection", "content-length", "expect", "keep-alive", "proxy-authorization",
         "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"}

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
def render_fields(fields: Fields, origin: Origin) -> bytes:
    r"""The lines of a head and its end; remembered, as most requests send the same.

    >>> render_fields((("Host", ""), ("Accept", "*/*")), Origin("http", "h", 81))
    b'Host: h:81\r\nAccept: */*\r\n\r\n'

    Raises InvalidHeader; values that may be secret are not in its text.
    """
    lines: list[str] = []
    for name, value in fields:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InvalidHeader(f"not a field name: {str(name).partition(':')[0]!r:.100}")
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


def render_request(target: str, fields: Fields, origin: Origin) -> bytes:
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
        pair = ":".join([user, password])
        token = base64.b64encode(pair.encode()).decode("ascii")
    except (TypeError, ValueError):
        raise InvalidHeader("auth is (user, password), or a bearer token as text") from None
    if ":" in user or not _VALUE.fullmatch(pair):
        raise InvalidHeader("a user name has no ':', and neither it nor a password controls")
    return f"Basic {token}"


def split_userinfo(userinfo: str) -> tuple[str, str]:
    """User and password of a URL, percent-decoded, which nothing else ever is."""
    from urllib.parse import unquote
    user, _, password = userinfo.partition(":")
    return unquote(user), unquote(password)


# ==== 4. Response head ========================================================
# One expression says what a head may look like, and it is asked once, about the whole
# head. It is strict where laxity has been exploited (NUL, bare CR, a blank before the
# colon) and lenient where servers need it: a bare LF ends a line, the reason may be
# missing, a folded line is unfolded. Of the fields only the few that decide what we do
# next are looked up at once; what users read is made when they ask for it.

_TEXT = rb"[^\x00-\x08\x0a-\x1f\x7f]*"
_STATUS_LINE = rb"HTTP/1\.([0-9]) ([1-9][0-9]{2})(?: " + _TEXT + rb")?\r?\n"
_FIELD_LINE = re.compile(  # the ^ is what forbids a blank before a name
    rb"^(" + TOKEN.encode() + rb"):(" + _TEXT + rb")\r?\n", re.M)
_HEAD = re.compile(_STATUS_LINE + rb"(?:" + TOKEN.encode() + rb":" + _TEXT + rb"\r?\n)*\r?\n")
_DECISIVE = re.compile(rb"\n(connection|content-encoding|content-length|set-cookie"
                       rb"|transfer-encoding):([^\r\n]*)")
_FOLD = re.compile(rb"\r?\n[ \t]+")


class Head:
    """A response head that passed. `fields` are those that we decide from, in lower case."""

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
    if len(value) > MAX_LIST_BYTES:  # lest 256 of them be remembered
        raise ProtocolError(f"response head: a list of {len(value)} bytes: {shown(value)}")
    elements = (element.strip(b" \t") for element in value.split(b","))
    return tuple(element for element in elements if element)


def find_head_end(data: bytes | bytearray, start: int = 0) -> int:
    r"""The index behind the first empty line, or 0.

    >>> find_head_end(b"HTTP/1.1 200 OK\r\n\r\nhello"), find_head_end(b"HTTP/1.1 200 OK\r\n")
    (19, 0)
    """
    end = data.find(b"\n\r\n", start)
    bare = data.find(b"\n\n", start, end + 1 if end >= 0 else len(data))
    return bare + 2 if bare >= 0 else end + 3 if end >= 0 else 0


def check_fields(block: bytes, what: str) -> None:
    """Raise for the line that is no field, in a block that ends in an empty line."""
    lines = block.split(b"\n")[:-2]
    if len(lines) > MAX_FIELDS:
        raise ProtocolError(f"{what}: more than {MAX_FIELDS} fields")
    for line in lines:
        if not _FIELD_LINE.fullmatch(line + b"\n"):
            raise ProtocolError(f"{what}: not a field line: {shown(line)}")


def unfold(block: bytes) -> bytes:
    """Join folded lines with a blank (RFC 9112 5.2); the first line cannot be folded."""
    return _FOLD.sub(b" ", block)


def parse_head(raw: bytes) -> Head:
    r"""Check a whole head, with its empty line, and take it apart.

    >>> head = parse_head(b"HTTP/1.1 404 Not Found\r\nServer: X\r\nConnection: Close\r\n\r\n")
    >>> head.status, head.fields
    (404, {b'connection': b' close'})

    Raises ProtocolError with the line that does not fit (RFC 9112 sections 2 to 5).
    """
    match = _HEAD.fullmatch(raw)
    if match is None or raw.count(b"\n") - 2 > MAX_FIELDS:
        first = raw.find(b"\n") + 1
        if not re.fullmatch(_STATUS_LINE, raw[:first]):
            raise ProtocolError(f"response head: not an HTTP/1 status line: {shown(raw[:first])}",
                                exit_code=8 if raw.startswith(b"HTTP/1.") else 1)
        raw = raw[:first] + unfold(raw[first:])
        check_fields(raw[first:], "response head")
        match = _HEAD.fullmatch(raw)
        assert match is not None  # as both of its parts have passed
    pairs = _DECISIVE.findall(raw.lower())
    fields = dict(pairs)
    if len(fields) < len(pairs):
        fields = {name: b",".join(v for n, v in pairs if n == name) for name in fields}
    return Head(raw, int(match[1]), int(match[2]), fields)


def field_text(value: bytes) -> str:
    """A field's value as text: UTF-8 where it is that, else its bytes as latin-1."""
    value = value.strip(b" \t")
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.decode("latin-1")


def parse_fields(block: bytes) -> list[tuple[str, str]]:
    r"""The (name, value) pairs of field lines that passed.

    >>> parse_fields(b"A: 1\r\nB:\t2 \r\n\r\n")
    [('A', '1'), ('B', '2')]
    """
    return [(name.decode("ascii"), field_text(value)) for name, value in _FIELD_LINE.findall(block)]


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


def more(pieces: list[bytes], rest: bytes) -> Generator[bytes, bytes, bytes]:
    """Hand out the payload so far and return what is not used yet, with what arrives."""
    payload = b"".join(pieces)
    pieces.clear()
    arrived = yield payload
    if not arrived:
        raise IncompleteBody("the connection ended inside a chunked body")
    return rest + arrived if rest else arrived


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
        while (end := data.find(b"\r\n", at)) < 0 and len(data) - at <= MAX_CHUNK_LINE_BYTES + 1:
            data, at = (yield from more(pieces, data[at:])), 0
        size = parse_chunk_size(data[at:end] if end >= 0 else data[at:])
        line, at = b"\r\n" + data[at:end + 2], end + 2
        if size == 0:
            break
        if len(line) > 20:  # more than digits
            extensions += len(line)
            if extensions > MAX_EXTENSION_BYTES:
                raise ProtocolError(f"more than {MAX_EXTENSION_BYTES} bytes of chunk extensions")
        else:  # chunks are mostly alike: the end of one and the size of the next, compared as one
            while data.startswith(line, at + size):
                pieces.append(data[at:at + size])
                at += size + len(line)
        while len(data) < (stop := at + size) + 2:  # it goes on in what is still to come
            pieces.append(data[at:stop])
            size -= len(pieces[-1])
            data, at = (yield from more(pieces, data[stop:])), 0
        if data[stop:stop + 2] != b"\r\n":
            raise ProtocolError(f"no CRLF behind a chunk, but {shown(data[stop:stop + 20])}")
        pieces.append(data[at:stop])
        at = stop + 2
    # With the CRLF behind the 0 the trailer section ends in two, even if there are no trailers.
    block, searched = bytearray(data[at - 2:]), 0
    while (end := block.find(b"\r\n\r\n", searched)) < 0 and len(block) - 2 <= MAX_HEAD_BYTES:
        searched = max(0, len(block) - 3)
        block += yield from more(pieces, b"")
    if not 0 <= end <= MAX_HEAD_BYTES - 2:
        raise ProtocolError(f"more than {MAX_HEAD_BYTES} bytes of trailers")
    trailers = unfold(bytes(block[2:end + 4]))  # they never join the head's fields
    check_fields(trailers, "trailers")
    return b"".join(pieces), bytes(block[end + 4:]), trailers


def read_until_close() -> BodyParser:
    """Take all until the connection ends."""
    data = yield b""
    while data:
        data = yield data
    return b"", b"", b""


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


def body_parser(framing: Framing) -> BodyParser:
    """The parser for a framing, started: send it what arrives."""
    parser = (read_chunked() if framing == "chunked" else
              read_until_close() if framing == "close" else read_sized(int(framing)))
    next(parser)
    return parser


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
                if self.coding == b"deflate":  # the others may have members
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
        self.vain = 0  # bytes made by the stages, less what came out, which each had to make

    def feed(self, data: bytes, stage: int = 0) -> Iterator[bytes]:
        """Yield what data decodes to."""
        if stage == len(self.stages):
            self.vain -= stage * len(data)
            yield data
            return
        for piece in self.stages[stage].feed(data):
            self.vain += len(piece)
            if self.vain > MAX_VAIN_BYTES:  # 300 bytes can say "a terabyte of nothing"
                raise DecodingError(f"{self.vain} bytes between codings, and nothing comes of them")
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
        if coding not in parse_list(ACCEPT_ENCODING.encode()):  # we asked for no other
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
        """The next bytes of the body as sent; with the last of them `done` is set."""
        raise NotImplementedError

    def hurry(self, seconds: float) -> None:
        """Allow the rest of the body so many seconds at most."""

    def abort(self) -> None:
        """Give up the rest of the body, and the connection with it."""


_IN_USE = ("_source", "_coded", "_decoder", "_decoded")  # only while the body is read


class Response:
    """A response. After `get` its body is in `content`; in `stream` it is read as asked."""

    started = 0.0                          # the loop's clock when the call began
    peer: Any = None                       # the remote address
    request_bytes = 0                      # sent for this hop
    _marks = (0.0, 0.0, 0.0)               # connected, sent, head, on the loop's clock
    _reused = False
    _headers: Headers | None = None
    _encoding = ""
    _source: BodySource | None = None      # until the body is there, or given up
    _coded: Head | None = None             # until the first bytes of a coded body
    _decoder: Decoder | None = None
    _decoded: Iterator[bytes] = iter(())   # what has come and was not asked for yet
    _content: bytes | None = None
    _lost = False                          # given up before the end of the body
    _end = (b"", 0, 0.0)                   # the source's trailers, received and done_at

    def __init__(self, head: Head, url: URL, source: BodySource, decode: bool = True) -> None:
        self.status_code = head.status
        self.sets_cookies = b"set-cookie" in head.fields
        self.raw_head = head.raw           # as received, without folds
        self.history: list[Response] = []
        self._url = url
        self._source = source
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
            status = f"{self.status_code} {printable(self.reason[:MAX_SHOWN_BYTES])}".rstrip()
            raise StatusError(f"{status} for {self.url}", url=self.url, response=self)
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
            while piece := await self._next_piece():
                pieces.append(piece)
                size += len(piece)
                self._check_size(size, limit, "bytes of body: raise max_size, or stream it")
            self._content = b"".join(pieces)
        self._check_size(len(self._content), limit, "bytes of body: raise max_size, or stream it")
        return self._content

    def _check_size(self, size: int, limit: int | None, what: str) -> None:
        if limit is not None and size > limit:
            self.close()
            self._lost = self._content is None  # the pieces before are gone
            raise TooLarge(f"more than {limit} {what}", limit=limit, url=self.url, response=self)

    async def iter_bytes(self) -> AsyncIterator[bytes]:
        """Yield the body, decoded, in pieces as they arrive."""
        if self._content is not None:
            yield self._content
        while piece := await self._next_piece():
            yield piece

    async def iter_lines(self) -> AsyncIterator[str]:
        r"""Yield the body's lines as text, without their \n or \r\n."""
        decoder = codecs.getincrementaldecoder(self.encoding)("replace")
        parts: list[str] = []  # of a line that has not ended yet
        size = 0
        async for piece in self.iter_bytes():
            *lines, rest = decoder.decode(piece).split("\n")
            for line in lines:
                yield "".join([*parts, line]).removesuffix("\r")
                parts, size = [], 0
            parts.append(rest)
            size += len(rest)
            self._check_size(size, MAX_LINE_CHARS, "characters in a line")
        last = "".join([*parts, decoder.decode(b"", True)])
        if last:
            yield last.removesuffix("\r")

    async def discard(self) -> None:
        """Read a short rest, undecoded, so that the connection can be used again."""
        source, self._coded = self._source, None
        if source:
            source.hurry(MAX_DISCARD_SECONDS)
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
        """The next bytes of the body, decoded; b"" at its end."""
        try:
            if self._lost:  # lest what was cut short look whole
                raise AsyncGetError("the body was given up: nothing is left to read")
            while not (piece := next(self._decoded, b"")) and (source := self._source):
                data, source.ready = source.ready, b""
                if not data and not source.done:
                    data = await source.read_piece()
                self._decoded = self._decode(data, source.done)
                if source.done:
                    self._finish(source)
            return piece
        except BaseException as error:  # cancelled, too: the rest is lost
            self.close()
            self._lost = True
            if isinstance(error, AsyncGetError):
                error.url, error.response = self.url, self
            raise

    def _decode(self, data: bytes, last: bool) -> Iterator[bytes]:
        """Yield what data decodes to; with the last of it the coding must end, too."""
        if self._coded and data:  # an empty body is whole, even in a coding that we do not know
            self._decoder, self._coded = Decoder(content_codings(self._coded)), None
        if self._decoder is None:
            yield data
        else:
            yield from filter(None, self._decoder.feed(data))
            if last:
                self._decoder.finish()

    def _finish(self, source: BodySource) -> None:
        self._source, self._end = None, (source.trailers, source.received, source.done_at)

    @property
    def received(self) -> int:
        """Bytes of the body on the wire so far."""
        return self._source.received if self._source else self._end[1]

    @property
    def trailers(self) -> Headers:
        """The fields behind a chunked body, once it is read."""
        return Headers(parse_fields(self._end[0]))

    # ---- the clock

    @property
    def timing(self) -> Timing:
        """When what was done, in seconds since the call began; 0 for what is not."""
        connected, sent, head, done = (max(0.0, mark - self.started)
                                       for mark in (*self._marks, self._end[2]))
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
        return {**state, "_url": self._url._replace(userinfo="")}


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


async def cancel(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """End tasks and wait until they have cleaned up."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def open_first(host: str, port: int, family: int = 0, **options: Any) -> tuple[
        asyncio.StreamReader, asyncio.StreamWriter]:
    """asyncio.open_connection to that of a name's addresses which answers first (RFC 8305).

    With happy_eyeballs_delay asyncio does it, too, but loses a socket when it is cancelled
    at the wrong moment; and uvloop does not.
    """
    found = await asyncio.get_running_loop().getaddrinfo(host, port, family=family,
                                                         type=socket.SOCK_STREAM)
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
            wanted = head.status in (401, 407)  # 401 is tinyproxy's word for it
            hint = " (give user and password in the proxy's URL)" if wanted else ""
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
                exit_code=5 if proxy else 6)
        if not isinstance(error, (OSError, ValueError, EOFError)):
            return error  # a fault of ours, or of the caller's open_connection
        if self.phase == "answer of the proxy":
            return self.proxy_error(f"closed the connection: {text}")
        if self.phase == "TLS handshake" or tls and isinstance(error, _BROKEN):
            return TLSError(f"TLS handshake with {hop} failed: {text}{self.after()}")
        return ConnectError(f"cannot connect to {hop}: {text}{self.after()}")

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
        begun, self.reading = self.reading, None
        reading = begun[0] if begun else self.reader.read(READ_BYTES)
        try:
            arrival = begun[1] if begun else reading.send(None)
            while True:  # as `await reading` would, from where begin_read left it
                arrival = reading.send((yield arrival))
        except StopIteration as end:
            data: bytes = end.value
        except (OSError, *_STUMBLES) as error:
            raise self.lost(error) from error
        finally:
            reading.close()
        if data:
            self.silent = False
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
        """Wait for the next exchange, for a while."""
        self.phase, self.idle_at = "idle", now
        self.deadline, self.limit = _FOREVER, now + IDLE_SECONDS
        if self.limit < self.wakes_at:  # else it wakes before, and finds the new limit
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
        if self.loop.is_closed():
            return  # all that was open went with it
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

    def hurry(self, seconds: float) -> None:
        """Allow the rest of the body so many seconds at most."""
        if self.connection is not None:
            self.connection.deadline = min(self.connection.deadline,
                                           self.connection.loop.time() + seconds)

    def abort(self) -> None:
        """Give up the rest of the body, and the connection with it."""
        if self.connection is not None:
            self.connection.close()
            self.connection = None


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


# ==== 9. Pool =================================================================
# Which connection a request gets is decided without waiting: one kept on its route,
# or a new one if the limits allow, or none yet. Only in the last case is there a
# queue, and whatever comes free is handed to whoever has stood there longest. A
# connection handed out is not open yet when it is new: opening is the caller's.

class Pool:
    """The connections of one session; a new one counts from before it is opened."""

    def __init__(self, limit: int, limit_per_host: int | None, connector: Connector,
                 trace: Trace | None) -> None:
        self.limit = limit
        self.limit_per_host = limit_per_host
        self.connector = connector
        self.trace = trace
        self.closed = False
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
            if connection.has_rested():
                idle[connection] = None  # acquire looks into the kernel first
            elif connection.begin_read():
                return connection
            else:  # its bytes are taken out by now: nobody would notice them a second time
                connection.close()
        return None

    async def acquire(self, route: Route, deadline: float, fresh: bool = False) -> Connection:
        """A connection on the route: a kept one that is alive, or one still to be opened."""
        while True:
            connection = self.decide(route, fresh) or await self._queue(route, deadline, fresh)
            if connection.writer is None:
                return connection
            if connection.has_rested():
                try:  # two turns of the loop bring in what the kernel has received
                    await asyncio.sleep(0)
                    await asyncio.sleep(0)
                except BaseException:  # cancelled
                    connection.close()
                    raise
            if not connection.closed and connection.begin_read():
                return connection
            connection.close()
            connection.note("the kept connection was closed meanwhile")

    def decide(self, route: Route, fresh: bool) -> Connection | None:
        """The connection for a request, or None while it has to wait."""
        idle = self.idle.get(route)
        if idle and not fresh:
            return idle.popitem()[0]
        host_full = self.limit_per_host and self.per_host[route.origin] >= self.limit_per_host
        if host_full or len(self.all) >= self.limit:  # another must go: the longest idle one
            unused = min((kept for idle in self.idle.values() for kept in idle
                          if not host_full or kept.route.origin == route.origin),
                         key=lambda kept: kept.idle_at, default=None)
            if unused is None:
                return None
            self.strike(unused)  # first: its place is taken already
            unused.close()
        if self.closed:
            raise AsyncGetError("the session is closed")
        connection = Connection(route, self.connector, self.trace, self.keep, self.forget)
        self.all.add(connection)
        self.per_host[route.origin] += 1
        return connection

    async def _queue(self, route: Route, deadline: float, fresh: bool) -> Connection:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Connection] = loop.create_future()
        self.waiting.append((future, route, fresh))
        timer = loop.call_at(deadline, self._too_late, future) if deadline < _FOREVER else None
        try:
            return await future
        except asyncio.CancelledError:
            if not future.cancelled() and not future.exception():  # given one a moment ago
                connection = future.result()
                if connection.writer is None:
                    connection.close()
                elif not connection.closed:
                    connection.rest_in_pool(connection.loop.time())
            raise
        finally:
            if timer is not None:
                timer.cancel()

    @staticmethod
    def _too_late(future: asyncio.Future[Connection]) -> None:
        if not future.done():  # serve passes by it then
            future.set_exception(TimedOut("no free connection for the next hop within the whole "
                                          "call's deadline", phase="free connection"))

    def keep(self, connection: Connection) -> None:
        """A connection has finished an exchange and may serve another."""
        self.idle.setdefault(connection.route, {})[connection] = None
        if self.waiting:
            self.serve()

    def forget(self, connection: Connection) -> None:
        """A connection was closed: its place is free."""
        if connection in self.all:
            self.strike(connection)
            if self.waiting:
                self.serve()

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
            if connection := self.decide(route, fresh):
                future.set_result(connection)
            else:
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

    def with_cookies(self, cookies: str) -> Request:
        """The same request with these cookies behind its own (RFC 6265 5.4: in one field)."""
        if not cookies:
            return self
        own = [value for name, value in self.fields if name.lower() == "cookie"]
        field = {"Cookie": "; ".join([*own, cookies])}
        return self._replace(fields=merge_fields(self.fields, field))

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
    return Request(url, without_secrets(request.fields, secret_headers))


# ---- retries

RetryRule = Callable[[int, Union[Response, AsyncGetError]], Optional[float]]


def parse_date(text: str) -> datetime | None:
    """The moment that an HTTP date names, None for what is no date (RFC 9110 5.6.7)."""
    from datetime import timezone
    from email.utils import parsedate_to_datetime
    try:
        when = parsedate_to_datetime(text)
        return when if when.tzinfo else when.replace(tzinfo=timezone.utc)
    except (TypeError, ValueError, IndexError, OverflowError):  # differs by version
        return None


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
    delay = min(0.5 * 2.0 ** min(attempt - 1, 6), 30.0)
    return delay * random.uniform(0.5, 1.0)  # apart from others


# ---- cookies

def cookie_jar() -> CookieJar:
    """A jar under a strict policy: host-only unless a Domain says otherwise (RFC 6265)."""
    from http.cookiejar import CookieJar, DefaultCookiePolicy

    class StrictPolicy(DefaultCookiePolicy):
        def set_ok_domain(self, cookie: Cookie, request: Any) -> bool:
            domain = cookie.domain.lstrip(".")
            if cookie.domain_specified and (domain.endswith(".") or _NUMERIC.fullmatch(
                    domain.rpartition(".")[2]) or ":" in domain):
                return domain == parse_url(request.full_url).origin.host  # 5.1.3: addresses
            return bool(super().set_ok_domain(cookie, request))

    return CookieJar(StrictPolicy(
        strict_domain=True, strict_ns_domain=DefaultCookiePolicy.DomainStrictNonDomain))


# RFC 6265 5.2 says to ignore these; http.cookiejar would ignore the cookie.
_IGNORED_ATTRIBUTES = re.compile(
    r";\s*(?:version\s*=|port\s*=|path(?!\s*=\s*/)|max-age(?!\s*=\s*-?[0-9]{1,18}\s*(?:;|$))"
    r"|expires(?!\s*=[^;]*(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[ -]))[^;]*", re.I)


def store_cookies(jar: CookieJar, response: Response) -> None:
    """Put what a response sets into the jar, as far as it is allowed to."""
    from email.message import Message
    from types import SimpleNamespace
    from urllib.request import Request as CookieRequest
    message = Message()
    for line in response.headers.get_all("set-cookie")[:MAX_SET_COOKIES]:
        if len(line) <= MAX_COOKIE_BYTES:
            message["Set-Cookie"] = _IGNORED_ATTRIBUTES.sub("", line)
    source: Any = SimpleNamespace(info=lambda: message)
    jar.extract_cookies(source, CookieRequest(response.url))
    by_domain: dict[str, list[Any]] = {}
    for cookie in jar:
        by_domain.setdefault(cookie.domain, []).append(cookie)  # a site may be all of co.uk
    for cookies in by_domain.values():
        for cookie in cookies[:-MAX_DOMAIN_COOKIES]:
            jar.clear(cookie.domain, cookie.path, cookie.name)


def site_of(host: str) -> str:
    """The last two labels of a host: what no cookie crosses, as a Domain has two at least.

    >>> site_of("www.h.test")
    'h.test'
    """
    return ".".join(host.strip(".").split(".")[-2:])


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
        if not isinstance(name, str) or not isinstance(value, str):
            raise InvalidHeader(f"a cookie's name and value are text, unlike those of {name!r:.99}")
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
    is_address = ":" in host or _NUMERIC.fullmatch(host.rpartition(".")[2]) is not None
    for entry in re.split(r"[\s,]+", no_proxy.lower()):
        match = re.fullmatch(r"(\[[^\]]*\]|[^:]*):([0-9]{1,5})", entry)
        name, port = match.groups() if match else (entry, None)
        if port is not None and int(port) != origin.port:
            continue
        below = f".{host}".endswith("." + name.removeprefix("*.").strip("."))
        if name == "*" or (in_network(host, name.strip("[]")) if is_address else below):
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


def netrc_auth(path: bool | str | os.PathLike[str], host: str) -> Auth | None:
    """The user and password that a netrc file has for exactly this host.

    Its `default` entry is not used: it would give a password to everybody who asks.
    """
    import netrc
    name = os.path.expanduser("~/.netrc") if isinstance(path, bool) else os.fspath(path)
    try:
        hosts = {key.lower(): entry for key, entry in netrc.netrc(name).hosts.items()}
    except (OSError, UnicodeError, netrc.NetrcParseError) as error:
        # A parser's text may quote a password: of its error only the line is told.
        why = f"line {error.lineno}" if isinstance(error, netrc.NetrcParseError) else error
        raise AsyncGetError(f"cannot read {name!r}: {why}", exit_code=26) from None
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
    timeout: float | None = 30.0            # seconds of silence
    deadline: Any = ...                     # seconds; ...: GET_DEADLINE_SECONDS for get
    follow_redirects: bool = True
    max_redirects: int = 20
    retries: int | RetryRule = 0            # further tries, or a rule as retry_delay is one
    verify: bool | str | ssl.SSLContext = True
    cert: Any = None                        # path, (cert, key) or (cert, key, password)
    proxy: Any = ...                        # a URL, None or ""; ...: from the environment
    trust_env: bool = True
    limit: int = 100
    limit_per_host: int | None = None
    max_size: int | None = 64 * 2**20       # bytes of a decoded body in memory
    decode: bool = True
    secret_headers: Iterable[str] = ()
    unix_socket: str | None = None
    resolve: Mapping[str, str] | None = None
    netrc: bool | str | os.PathLike[str] = False
    open_connection: Connector = asyncio.open_connection
    trace: Trace | None = None              # called with ">", "<" or "*" and what it is

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

    def __init__(self, settings: Settings, started: float, usual: float | None) -> None:
        self.settings = settings
        self.started = started
        seconds = usual if settings.deadline is ... else settings.deadline
        self.seconds = _FOREVER if seconds is None else seconds
        self.deadline = _FOREVER  # until there is a connection: queueing is not counted


# What the numbers must be at least. A timeout of 0 means "none" to some, "at once" to others.
_LEAST = {"timeout": 1e-6, "deadline": 1e-6, "max_redirects": 0, "max_size": 0, "limit": 1,
          "limit_per_host": 1}


def settings_of(base: Settings, options: Mapping[str, Any],
                forbidden: Iterable[str] = ()) -> Settings:
    """The settings with options laid over them; allow_redirects is requests' name for one."""
    options = {"follow_redirects" if name == "allow_redirects" else name: value
               for name, value in options.items()}
    wrong = [name for name in options if name not in Settings._fields or name in forbidden]
    if wrong:
        raise TypeError(f"unknown keyword {wrong[0]!r}; there are "
                        + ", ".join(name for name in Settings._fields if name not in forbidden))
    if "secret_headers" in options:  # asked at each redirect; and a name is not its letters
        names = options["secret_headers"]
        options["secret_headers"] = (names,) if isinstance(names, str) else tuple(names)
    for name, least in _LEAST.items():
        number = options.get(name)
        if number not in (None, ...) and not (isinstance(number, (int, float))
                                              and number >= least):  # as nan is not
            raise ValueError(f"{name} must be a number, at least {least}, or None: not {number!r}")
        if number is None and name in options and name in ("limit", "max_redirects"):
            options[name] = sys.maxsize  # they are compared
    return base._replace(**options)


def fields_of(base: Fields, options: Mapping[str, Any]) -> Fields:
    """The fields of a request: over base what `decode`, `headers` and `auth` ask for."""
    if not options.get("decode", True):
        base = merge_fields(base, {"Accept-Encoding": None})
    if options.get("headers"):
        base = merge_fields(base, options["headers"])
        if ("Accept-Encoding", ACCEPT_ENCODING) in base and any(
                name.lower() == "range" for name, _ in base):  # no part of a gzip unpacks
            base = merge_fields(base, {"Accept-Encoding": "identity"})
    if options.get("auth"):
        base = merge_fields(base, {"Authorization": render_auth(options["auth"])})
    return base


class SharedIterator:
    """One iterator for many workers, over an iterable of either kind."""

    def __init__(self, items: Iterable[str] | AsyncIterable[str]) -> None:
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
    if limit < 1:
        raise ValueError("limit must be at least 1: it is how many are fetched at once")
    return min(limit, len(urls)) if isinstance(urls, Sized) else limit


class Session:
    """GETs that share connections, cookies and settings.

        async with Session(base_url="https://api.test/v1/", auth="token") as session:
            response = await session.get("users/7", params={"full": True})

    The keywords are those of Settings. Belongs to the event loop that it is first used in.
    """

    def __init__(self, **settings: Any) -> None:
        self.settings = settings_of(Settings(), settings)
        self._base: URL | None = None
        if self.settings.base_url:
            base = parse_url(self.settings.base_url)
            path = base.target.partition("?")[0]
            self._base = base._replace(target=path.removesuffix("/") + "/")
        self._fields = fields_of(DEFAULT_FIELDS, settings)
        self._jars: dict[str, CookieJar] = {}  # by site: in a large jar every look takes long
        self._cookie_origin = self._base.origin if self._base else None
        self._routes: dict[Origin, Route] = {}
        self._contexts: dict[Any, ssl.SSLContext] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pool = Pool(self.settings.limit, self.settings.limit_per_host,
                          self.settings.open_connection, self.settings.trace)
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
            await self._pool.close()

    def __repr__(self) -> str:
        return f"<Session {'closed' if self._pool.closed else repr(self._pool)}>"

    # ---- what users call

    async def get(self, url: str, **options: Any) -> Response:
        """GET a URL and read its body. Raises AsyncGetError, and nothing else."""
        settings = settings_of(self.settings, options, _SESSION_ONLY) if options else self.settings
        response = await self._send(url, settings, GET_DEADLINE_SECONDS, options)
        await response.read(settings.max_size)
        return response

    @contextlib.asynccontextmanager
    async def stream(self, url: str, **options: Any) -> AsyncIterator[Response]:
        """GET a URL and hand out the response with its body unread.

            async with session.stream(url) as response:
                async for piece in response.iter_bytes(): ...
        """
        settings = settings_of(self.settings, options, _SESSION_ONLY)
        response = await self._send(url, settings, None, options)
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

    async def download(self, url: str, path: FilePath | PathRule, *,
                       progress: Progress | None = None, resume: bool = True,
                       overwrite: bool = True, any_status: bool = False,
                       **options: Any) -> Response:
        """GET a URL into a file that gets its name when it is whole: see section 12."""
        return await download_to(self, url, path, progress=progress, resume=resume,
                                 overwrite=overwrite, any_status=any_status, **options)

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
            except BaseException:
                if not leaving:  # else nobody takes from the queue
                    await finished.put(None)
                raise
            await finished.put(None)

        leaving = False
        workers = [asyncio.ensure_future(work()) for _ in range(worker_count(urls, limit))]
        end = asyncio.ensure_future(work_all())
        try:
            while (item := await finished.get()) is not None:
                yield item
            await end
        finally:
            leaving = True
            await cancel([end, *workers])

    # ---- one call

    async def _send(self, url: str, settings: Settings, usual_deadline: float | None,
                    options: Mapping[str, Any]) -> Response:
        """Follow a call to its last response, whose body is unread."""
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise AsyncGetError("this Session belongs to another event loop: make one in each")
        call = Call(settings, loop.time(), usual_deadline)
        history: list[Response] = []
        request = response = None
        try:
            request = self._request(url, settings, options)
            while True:
                response = await (self._attempt(request, call) if settings.retries else
                                  self._exchange(request, call))
                if response.sets_cookies and settings.cookies is not False:
                    jar = self._jar_for(settings, request.url.origin)
                    if jar is None:
                        jar = self._new_jar(request.url.origin)
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
        except BaseException as error:
            if response is not None:  # whose Location, say, is no URL: nobody will read it
                response.close()
            if isinstance(error, AsyncGetError) and not error.url:
                error.url = str(request.url) if request else masked(str(url))[1:-1]
            raise

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
        if self._base and url.origin != self._base.origin:  # the session's secrets are the base's
            fields = without_secrets(fields, settings.secret_headers)
        request = Request(url, fields_of(fields, options) if options else fields)
        if settings.cookies not in (True, False, None) and not hasattr(
                settings.cookies, "extract_cookies"):  # requests' jar is a mapping, too
            if not isinstance(settings.cookies, Mapping):
                raise InvalidHeader("cookies are a mapping, a CookieJar, True or False")
            self._cookie_origin = self._cookie_origin or url.origin
            if "cookies" in options or url.origin == self._cookie_origin:
                request = request.with_cookies(render_cookies(settings.cookies))
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
            try:
                delay = call.settings.retry_delay(attempt, outcome)
            except BaseException:  # the rule is the caller's
                if isinstance(outcome, Response):
                    outcome.close()
                raise
            if delay is None or asyncio.get_running_loop().time() + delay > call.deadline:
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
        connection = self._pool.take(route) or await self._pool.acquire(route, call.deadline)
        while True:
            connected = connection.loop.time()
            # The first connection's is the earliest: from then on the call's time runs.
            call.deadline = connection.deadline = min(call.deadline, connected + call.seconds)
            connection.call_seconds = call.seconds
            try:
                if connection.writer is None:
                    await connection.open(call.settings.timeout)
                    connected = connection.loop.time()
                head = await connection.exchange(data, call.settings.timeout)
                head_at = connection.loop.time()
                response = Response(head, request.url, Body(connection, head),
                                    call.settings.decode)
                response.started, response.peer = call.started, connection.peer
                response.request_bytes = len(data)
                response._marks = connected, connection.sent_at, head_at
                response._reused = connection.exchanges > 1
                return response
            except BaseException as error:
                stale = connection.exchanges > 1 and connection.silent
                connection.close()
                if not stale or not isinstance(error, (IncompleteBody, TLSError)):
                    raise
            connection.note("the kept connection ended unanswered: once more on a new one")
            connection = await self._pool.acquire(route, call.deadline, fresh=True)

    def _render(self, request: Request, route: Route, settings: Settings) -> bytes:
        """The bytes of a request as they go over a route."""
        origin, target = request.url.origin, request.url.target
        jar = (self._jar_for(settings, origin) if self._jars or settings.cookies is not True
               else None)
        if jar is not None:
            request = request.with_cookies(cookie_field(jar, request.url))
        if settings.netrc and not request.has("authorization"):
            auth = netrc_auth(settings.netrc, origin.host)
            if auth:
                request = request.adding("Authorization", render_auth(auth))
        fields = request.fields
        if route.proxy and origin.scheme == "http" and not route.proxy.scheme.startswith("socks"):
            target = f"http://{origin.authority}{target}"
            fields = (*fields, *proxy_fields(route.proxy))
        return render_request(target, fields, origin)

    def _jar_for(self, settings: Settings, origin: Origin) -> CookieJar | None:
        """The jar that a request uses: the session's, one of the caller's, or none."""
        if settings.cookies is False:
            return None
        own: CookieJar | None = settings.cookies
        return own if hasattr(own, "extract_cookies") else self._jars.get(site_of(origin.host))

    def _new_jar(self, origin: Origin) -> CookieJar:
        if len(self._jars) >= MAX_COOKIE_SITES:
            del self._jars[next(iter(self._jars))]  # the oldest
        jar = self._jars[site_of(origin.host)] = cookie_jar()
        return jar

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


# ==== 12. Downloads ===========================================================
# A download is three files. PATH.part collects the bytes, PATH.part.meta says of
# which version of the file they are, and PATH is what PATH.part is renamed to when
# it is whole. It survives a kill by the order in which they are written:
#
#     empty PATH.part   PATH.part.meta   the body   fsync   rename   PATH.part.meta away
#
# Between any two of these there is a whole PATH, or bytes and the name of their
# version, or nothing that a later run would trust. What to trust is decided first,
# from values alone; the disk comes after that.

_STRONG_ETAG = r'"[\x21\x23-\x7e]*"'  # RFC 9110 8.8.3; a weak one begins with W/
_DATE = r"[A-Z][a-z]{2}, [0-9]{2} [A-Z][a-z]{2} [0-9]{4} [0-9:]{8} GMT"
_SIDECAR = re.compile(rf"({_STRONG_ETAG}|{_DATE})\n([0-9]{{1,18}}|\?)\n([0-9a-f]{{64}})\n")


class Partial(NamedTuple):
    """A PATH.part to go on from: its size, and what its sidecar says of the whole file."""

    size: int             # bytes that we have
    validator: str        # '"v1"', or 'Sun, 06 Nov 1994 08:49:37 GMT'
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
        return etag if re.fullmatch(_STRONG_ETAG, etag) else None
    then, now = parse_date(changed), parse_date(headers.get("date", ""))
    if then is None or now is None or not re.fullmatch(_DATE, changed):
        return None
    return changed if (now - then).total_seconds() >= SETTLED_SECONDS else None


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


def is_coded(response: Response) -> bool:
    """Whether the bytes on the wire are not the file's own."""
    return response.headers.get("content-encoding", "identity").lower() != "identity"


def body_length(response: Response) -> int | None:
    """How long the head says that the body is, None where it does not or a coding hides it."""
    framing = body_framing(parse_head(response.raw_head))
    return framing if isinstance(framing, int) and not is_coded(response) else None


def render_sidecar(response: Response) -> bytes:
    """What to remember of a response, b"" when its middle could not be asked for."""
    validator, total = strong_validator(response.headers), body_length(response)
    if validator is None or response.status_code != 200 or is_coded(response):
        return b""
    return f"{validator}\n{'?' if total is None else total}\n{source_of(response)}\n".encode()


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
    total = known.size + (length or 0)
    span = f"{known.size}-{total - 1}" if length else "*"
    field = "etag" if known.validator.startswith('"') else "last-modified"
    fits = (headers.get("content-range", "").lower() == f"bytes {span}/{total}"
            and known.total in (None, total)
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


def check_target(path: str, overwrite: bool) -> None:
    """Refuse what no file can be renamed to; a device or a pipe would be lost by it."""
    with disk_errors(path):
        special = os.path.exists(path) and not os.path.isfile(path)
        if special or not os.path.basename(path) or "\0" in path:
            raise OSError("not the name of a file")
        if not overwrite and os.path.lexists(path):
            raise OSError("it exists")


def read_partial(path: str) -> Partial | None:
    """What there is of PATH to go on from; writing will tell what is wrong with it, if so."""
    try:
        size = os.stat(path + ".part").st_size
        with open(path + ".part.meta", "rb") as sidecar:
            return parse_sidecar(sidecar.read(), size) if size else None
    except (OSError, ValueError):
        return None


def open_part(path: str) -> io.FileIO:
    """Open PATH.part to append to it; nobody may read it who may not read PATH.

    Unbuffered: what has arrived is the kernel's at once, and no kill takes it back.
    """
    mode = os.stat(path).st_mode & 0o777 | 0o200 if os.path.exists(path) else 0o666

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NOFOLLOW", 0), mode)

    return open(path + ".part", "ab", buffering=0, opener=opener)


def claim_part(file: io.FileIO, part: str) -> None:
    """Make sure that an open PATH.part is ours alone, from now on and before.

    The lock keeps other downloads off, and dies with us. In a folder where all may
    write, others can foretell the name, and put a link to a file of ours there, or a
    file that remains theirs. And a second link may be PATH itself: see publish_part.
    """
    try:
        import fcntl
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OSError("another download is writing it") from None
    except (ImportError, OSError):  # Windows, and file systems without locks
        pass
    found, shared = os.fstat(file.fileno()), os.stat(os.path.dirname(part) or ".")
    theirs = shared.st_mode & stat.S_ISVTX and found.st_uid != os.geteuid()
    if theirs or found.st_nlink != 1 or not os.path.samestat(found, os.lstat(part)):
        raise OSError("its .part is a link, or somebody else's")


def restart_part(file: io.FileIO, path: str, sidecar: bytes) -> None:
    """Make PATH.part the beginning of another version: no name, no bytes, a new name."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path + ".part.meta")
    file.truncate(0)
    if sidecar:
        with open(path + ".part.meta", "xb") as meta:  # x: follows no link that was planted
            meta.write(sidecar)


def publish_part(file: io.FileIO, path: str, overwrite: bool) -> None:
    """Give PATH.part its name. A rename replaces what bears it, a link does not."""
    if os.name == "nt":
        file.close()  # Windows renames no open file
    if overwrite:
        os.replace(path + ".part", path)
    else:
        os.link(path + ".part", path)
        os.unlink(path + ".part")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path + ".part.meta")


# ---- from the wire to the disk

FilePath = Union[str, "os.PathLike[str]"]
PathRule = Callable[[Response], FilePath]
Progress = Callable[[int, Optional[int]], object]


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
        unwritten = memoryview(piece)
        while unwritten:  # a disk that is nearly full takes a part
            unwritten = unwritten[file.write(unwritten):]
        if progress:
            progress(size, expected)
    return size


async def save_body(response: Response, path: str, plan: str, known: Partial | None,
                    overwrite: bool, progress: Progress | None) -> None:
    """Carry out a plan, and give the file its name when it is whole."""
    check_target(path, overwrite)
    with disk_errors(path, url=response.url, response=response):
        with open_part(path) as file:
            claim_part(file, path + ".part")
            size = known.size if known and plan != "restart" else 0
            if plan == "restart":
                restart_part(file, path, render_sidecar(response))
            elif read_partial(path) != known:
                raise OSError("another download has changed what there was")
            if plan != "done":
                size = await write_body(response, file, size, progress)
            # Else a power cut could leave the name on a file whose bytes never got to
            # the disk. In a thread, as the disk may need seconds for a GiB.
            await asyncio.to_thread(os.fsync, file.fileno())
            if os.fstat(file.fileno()).st_size != size:  # where there are no locks
                raise OSError("another download has written to it")
            publish_part(file, path, overwrite)


async def download_once(session: Session, url: str, places: list[FilePath | PathRule],
                        resume: bool, any_status: bool, finish: Callable[..., Awaitable[None]],
                        options: Mapping[str, Any]) -> Response:
    """Go on from what is there, or ask for all when the answer does not fit it."""
    fields = list(options["headers"])  # pairs: download_to has made them so
    own_range = any(name.lower() == "range" for name, _ in fields)  # then the piece is the file
    path, known = places[-1], None
    if resume and not own_range and not callable(path):
        known = read_partial(os.fsdecode(path))
    fields += resume_request(known).items()
    async with session.stream(url, **{**options, "headers": fields}) as response:
        plan = resume_plan(response, known)
        if plan == "restart":
            check_status(response, any_status and known is None, own_range)
        if plan != "again":
            chosen = path(response) if callable(path) else path
            places.append(chosen)  # where a later try finds what this one leaves
            await finish(response, os.fsdecode(chosen), plan, known)
            return response
    return await download_once(session, url, places, False, any_status, finish, options)


async def download_to(session: Session, url: str, path: FilePath | PathRule, *,
                      progress: Progress | None = None, resume: bool = True,
                      overwrite: bool = True, any_status: bool = False,
                      **options: Any) -> Response:
    """GET a URL into a file, which gets its name when it is whole, and return the response.

        await session.download(url, "big.iso", progress=lambda size, total: ...)

    What this call, or an earlier one, has left in big.iso.part is gone on from where the
    server can tell that the file is still the same. Whatever ends us, kill -9 as well,
    leaves it for the next time. The response is then a 206, or a 416 if all was there.

    `path` may be a function of the response, for names that the server chooses; what an
    earlier call has left is not resumed then. `overwrite=False` never replaces a file. A
    status that is no success raises StatusError; with `any_status` its body is saved, as
    curl does, though not in the place of a partial file. `retries` count for bodies that
    break off, too. What the file system refuses is an AsyncGetError with exit code 23.
    """
    settings = settings_of(session.settings, options, _SESSION_ONLY)
    headers = options.get("headers") or ()  # read once: there may be several tries
    pairs = list(headers.items() if isinstance(headers, Mapping) else headers)
    merge_fields((), pairs)  # says what is wrong with them
    options["headers"] = [pair for pair in pairs if pair[0].lower() != "accept-encoding"]
    if not callable(path):
        check_target(os.fsdecode(path), overwrite)
    loop = asyncio.get_running_loop()
    end = _FOREVER if settings.deadline in (..., None) else loop.time() + settings.deadline
    finish = functools.partial(save_body, overwrite=overwrite, progress=progress)
    places: list[FilePath | PathRule] = [path]
    attempt = 1
    while True:
        options["deadline"] = max(end - loop.time(), 0.001)
        try:
            return await download_once(session, url, places, resume, any_status, finish, options)
        except (IncompleteBody, TimedOut) as error:
            # The session tries again up to the head. Behind it, what came is kept, so that
            # the rule is asked as if nothing had come.
            delay = settings.retry_delay(attempt, type(error)(str(error)))
            if error.response is None or delay is None or loop.time() + delay > end:
                raise
            if settings.trace:
                settings.trace("*", f"going on in {delay:.1f} s: {error}")
        await asyncio.sleep(delay)
        attempt, resume = attempt + 1, True  # what is there now, this call has put there


async def download(url: str, path: FilePath | PathRule, *,
                   progress: Progress | None = None, resume: bool = True,
                   overwrite: bool = True, any_status: bool = False, **settings: Any) -> Response:
    """GET a URL into a file, with a session of its own: see Session.download."""
    async with Session(**settings) as session:
        return await session.download(url, path, progress=progress, resume=resume,
                                      overwrite=overwrite, any_status=any_status)


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
# another method than GET, curl's config files, and its globs ([1-9] and {a,b}).

SPOOL_BYTES = 1_048_576  # of a body that waits for its turn on stdout; the rest goes to disk
REDRAW_SECONDS = 0.1     # between two states of the progress line
SILENCE_SECONDS = 30.0   # without a byte, and we give up
SECRETS = re.compile(r"(?im)^((?:proxy-)?authorization|(?:set-)?cookie):[^\r\n]*"
                     r"(?:\r?\n[ \t][^\r\n]*)*")  # not for -v
BINARY = "binary output could upset the terminal; use -o FILE, or -o - to see it all the same"

# A line is a flag's definition as well as its help. A word in capitals is its value, and
# those in NUMBERS are checked; with three dots, it may be given repeatedly.
FLAGS = """\
usage: asyncget [flags] URL...

request
  -A --user-agent NAME        call yourself NAME
  -H --header LINE...         "Name: value"; "Name:" removes, "Name;" is empty; or @FILE
  -e --referer URL            say where the link was
  -b --cookie DATA            "a=1; b=2", or a cookie file to read
  -c --cookie-jar FILE        write all cookies to it at the end
  -u --user NAME:PASSWORD     log in (Basic); without the password, it is asked for
  --oauth2-bearer TOKEN       log in (Bearer)
  -n --netrc                  log in with what ~/.netrc has for the host
  --netrc-file FILE           the same from another file
  -r --range RANGE            a part only: 0-499, or -500 for the last
  --compressed                ask for compressed bodies and unpack them (on)
  -G --get                    take data into the URL
  -d --data TEXT...           with -G: data as it is
  --data-urlencode TEXT...    with -G: TEXT, NAME=TEXT, @FILE or NAME@FILE, encoded
  --url-query TEXT...         the same without -G; +TEXT is taken as it is
  --url URL...                one more; @FILE or @- has one a line, each saved as by -O
  -X --request METHOD         GET is the only one
redirects
  -L --location               follow them (on)
  --max-redirs LIMIT          so many at most (50); -1 for any number
network
  -x --proxy URL              http://, https://, socks5:// or socks5h://
  -U --proxy-user NAME:PASSWORD  log in at the proxy
  --noproxy HOSTS             go straight to these: a,b.c; * is all
  --resolve HOST:PORT:ADDRESS...  the address of a host
  --unix-socket FILE          connect there
  -4 --ipv4                   over IPv4 only
  -6 --ipv6                   over IPv6 only
TLS
  -k --insecure               believe any server
  --cacert FILE               believe these authorities
  -E --cert FILE              client certificate; FILE:PASSWORD if it has one
  --key FILE                  and its key
time
  -m --max-time SECONDS       for one URL, all in all
  --connect-timeout SECONDS   to connect
  -y --speed-time SECONDS     the longest silence (30, or -m)
  --retry NUMBER              further tries, where they may help
  --retry-delay SECONDS       between two tries
  --retry-max-time SECONDS    no try begins later than that
output
  -o --output FILE...         one for each URL; - is stdout
  -O --remote-name            name the file as the URL does
  --remote-name-all           -O for each URL
  -J --remote-header-name     with -O: as the server says; never overwrites
  --output-dir FOLDER         for -o and -O
  --create-dirs               make folders that are missing
  -C --continue-at POSITION   -C - goes on where the last run stopped
  --no-clobber                rather FILE.1 than overwrite FILE
  -i --include                the heads, too
  -D --dump-header FILE       the heads, there
  --max-filesize BYTES        no more than so many (1k, 2M, 3G)
  -f --fail                   from status 400 on: no body, exit code 22
  --fail-with-body            the same, with the body
talk
  -s --silent                 no progress, no errors
  -S --show-error             errors all the same
  -v --verbose                the wire: > sent, < received, * notes
  -# --progress-bar           the progress line, as ever
  --no-progress-meter         no progress line
  -w --write-out FORMAT       a report behind the body: %{http_code} %{time_total} %{json}
  --waterfall                 draw the requests over time
  --demo                      what asyncio is for, told in seven seconds
  -V --version
  -h --help
many
  -Z --parallel               all URLs at once (on)
  --parallel-max NUMBER       so many at once (50)
  --fail-early                end at the first failure
taken, and not needed
  -g --globoff
  -N --no-buffer
  -q --disable
  --http1.1
  --path-as-is
"""
NOT_HERE = """-F --form -I --head -T --upload-file -K --config -: --next -0 --http1.0 --http2
    --http2-prior-knowledge --http3 --data-raw --data-binary --data-ascii --json --digest
    --ntlm --negotiate --anyauth""".split()  # curl's, but more than a GET over HTTP/1.1

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
    pattern = r"^  (?:(-\S) )?--(\S+)(?: ([A-Z:]+)(\.\.\.)?)?(?:  .*)?$"
    for short, name, value, dots in re.findall(pattern, FLAGS, re.M):
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
    if word in NOT_HERE:
        raise AsyncGetError(f"curl has {word}, a client for GET over HTTP/1.1 has not")
    from difflib import get_close_matches
    nearest = get_close_matches(word, flags, 1, 0.5) or ["--help"]
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
        return int(text.rstrip("kKmMgG")) << 10 * max(0, " kmg".find(text[-1].lower()))
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
    if flag.name == "remote_name":
        options.output.append("")  # -o and -O are paired with the URLs in one order


def parse_arguments(arguments: Sequence[str]) -> Options:
    """Turn arguments into options, an attribute for each flag.

    >>> options = parse_arguments(["--no-location", "-sSm5", "x.org/a", "-o", "f", "-O"])
    >>> options.location, options.silent, options.max_time, options.url, options.output
    (False, True, 5.0, ['x.org/a'], ['f', ''])

    A value is taken as it is, even one that looks like a flag: -r -500 asks for the last
    500 bytes. argparse, with its own opinion on that, would not take curl's command lines.
    """
    flags = known_flags()
    options = Options(**{flag.name: [] if flag.repeats else None if flag.value else False
                         for flag in flags.values()})
    options.location = options.compressed = True
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
        ((options.data or options.data_urlencode) and not options.get,
         "data would make it a POST; with -G it goes into the URL"),
        (options.include and options.remote_header_name, "-i would put heads into -J's file"),
        (options.continue_at not in (None, "-"), "-C takes - only: the file tells the position"),
        (any(entry.count(":") < 2 for entry in options.resolve), "--resolve: HOST:PORT:ADDRESS"),
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
        raise AsyncGetError(f"cannot read {name}: {error.strerror}", exit_code=26) from error


def read_lines(name: str) -> list[str]:
    """The lines of such a file, without the blanks around them, and without empty ones."""
    lines = read_named(name).decode(errors="replace").split("\n")
    return [line.strip() for line in lines if line.strip()]


def parse_header(line: str) -> tuple[str, str | None]:
    """One -H, read as curl does; None removes a header.

    >>> parse_header("X: 1"), parse_header("Accept:"), parse_header("X;")
    (('X', '1'), ('Accept', None), ('X', ''))
    """
    name, colon, value = line.partition(":")
    if not colon and not line.endswith(";"):
        raise AsyncGetError(f"-H needs a colon: {line!r}")
    return (name, value.strip() or None) if colon else (line[:-1], "")


def request_headers(options: Options) -> list[tuple[str, str | None]]:
    """All headers that the flags ask for."""
    cookie = options.cookie if options.cookie and "=" in options.cookie else None
    headers: list[tuple[str, str | None]] = []
    for text in options.header:
        lines = read_lines(text[1:]) if text[:1] == "@" else [text]
        headers += map(parse_header, lines)
    given = {name.lower() for name, _ in headers}  # -H has the last word
    named = (("User-Agent", options.user_agent), ("Referer", options.referer), ("Cookie", cookie),
             ("Range", options.range and f"bytes={options.range}"))
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


def complete_url(text: str, options: Options) -> str:
    """The URL with the scheme that was left out, and the query that the flags add.

    >>> complete_url("x.org/a#b", parse_arguments(["--url-query", "q=1 2"]))
    'http://x.org/a?q=1+2#b'
    """
    url, hash_sign, fragment = text.partition("#")
    queries = [*options.data, *map(encode_data, options.data_urlencode)]
    queries += [q[1:] if q[:1] == "+" else encode_data(q) for q in options.url_query]
    for query in queries:
        url += ("&" if "?" in url else "?") + query
    return ("" if re.match("[A-Za-z0-9+.-]+://", url) else "http://") + url + hash_sign + fragment


def retry_rule(options: Options) -> int | Callable[[int, Any], float | None]:
    """--retry as Session takes it: a number, or a function when more is asked for."""
    tries, fixed, latest = options.retry or 0, options.retry_delay, options.retry_max_time
    if fixed is None and latest is None:
        return tries
    clock = asyncio.get_running_loop().time
    started = clock()

    def rule(attempt: int, outcome: Any) -> float | None:
        delay = retry_delay(attempt, outcome, tries)
        delay = fixed if delay is not None and fixed else delay
        over = delay is not None and latest and clock() + delay - started > latest
        return None if over else delay

    return rule


def connector(options: Options) -> Connector:
    """open_connection as -4, -6 and --connect-timeout want it."""
    family = socket.AF_INET if options.ipv4 else socket.AF_INET6 if options.ipv6 else 0
    limit = options.connect_timeout or None

    async def connect(host: str, port: int, **how: Any) -> Any:
        try:
            return await asyncio.wait_for(open_first(host, port, family, **how), limit)
        except asyncio.TimeoutError:
            raise TimedOut(f"no connection to {host} within {limit:g} s") from None

    return connect


def proxy_environment(options: Options) -> dict[str, str]:
    """-x, -U and --noproxy as the variables that the library obeys: it decides for each hop."""
    variables = {} if options.noproxy is None else {"no_proxy": options.noproxy}
    if options.proxy is not None:
        from urllib.parse import quote
        scheme, mark, address = options.proxy.rpartition("://")
        user = quote(os.fsencode(options.proxy_user), safe=":") + "@" if options.proxy_user else ""
        url = address and f"{scheme}{mark}{user}{address}"
        variables.update(http_proxy=url, https_proxy=url)
    return variables


def credentials(text: str) -> tuple[str, str]:
    """-u as a pair; a password left out is asked for, where somebody can answer."""
    user, colon, password = text.partition(":")
    if not colon and sys.stdin.isatty():
        from getpass import getpass
        password = getpass(f"Password of {printable(user)}: ", sys.stderr)
    return user, password


def session_settings(options: Options) -> dict[str, Any]:
    """The flags as keywords of Session."""
    certificate, _, password = (options.cert or "").partition(":")
    redirects = 50 if options.max_redirs is None else options.max_redirs
    return {
        "headers": request_headers(options),
        "auth": options.oauth2_bearer or options.user and credentials(options.user),
        "netrc": options.netrc_file or options.netrc and os.path.exists(
            os.path.expanduser("~/.netrc")),
        "timeout": options.speed_time or max(SILENCE_SECONDS, options.max_time or 0),
        "deadline": options.max_time or None,
        "retries": retry_rule(options),
        "follow_redirects": options.location,
        "max_redirects": redirects if redirects >= 0 else sys.maxsize,
        "verify": not options.insecure and (options.cacert or True),
        "cert": options.cert and (certificate, options.key, password or None),
        "decode": options.compressed and not options.range,  # no part of a gzip unpacks
        "unix_socket": options.unix_socket,
        "resolve": {f"{host}:{port}": address for host, port, address in (
            entry.lower().split(":", 2) for entry in options.resolve)},
        "open_connection": connector(options),
        "limit": options.parallel_max or 50,
    }


def parse_cookie_file(text: str) -> Iterator[Cookie]:
    """The cookies of a Netscape file; lines that are none are skipped.

    >>> [(c.domain, c.name, c.value) for c in parse_cookie_file(
    ...     "# a comment\\n#HttpOnly_h.test\\tFALSE\\t/\\tFALSE\\t0\\tid\\t7\\n")]
    [('h.test', 'id', '7')]
    """
    from http.cookiejar import Cookie
    for line in text.split("\n"):  # splitlines would part a value at U+2028, too
        fields = line.rstrip("\r").removeprefix("#HttpOnly_").split("\t")
        if (line.startswith("# ") or len(fields) != 7
                or not re.fullmatch("[0-9]{1,18}", fields[4])):
            continue
        domain, below, path, secure, expires, name, value = fields
        if "." not in domain:
            domain += ".local"  # as http.cookiejar calls such a host
        yield Cookie(0, name, value, None, False, domain, below == "TRUE", domain[0] == ".",
                     path, True, secure == "TRUE", int(expires) or None, expires == "0",
                     None, None, {"HttpOnly": ""} if line.startswith("#") else {})


def render_cookie_file(jar: CookieJar) -> str:
    """A jar as curl writes it, cookies without an end included."""
    lines = ["# Netscape HTTP Cookie File", "# https://curl.se/docs/http-cookies.html", ""]
    for cookie in jar:
        domain = "localhost" if cookie.domain == "localhost.local" else cookie.domain
        flags = [str(flag).upper() for flag in (cookie.domain_initial_dot, cookie.secure)]
        prefix = "#HttpOnly_" if cookie.has_nonstandard_attr("HttpOnly") else ""
        fields = (prefix + domain, flags[0], cookie.path, flags[1],
                  str(cookie.expires or 0), cookie.name, cookie.value or "")
        if all(map(str.isprintable, fields)):  # a tab or line end would make a cookie of its own
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
            or not encoded or len(encoded) > 245):  # of 255, less .part.meta
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
    pattern = r"""([\w!#$&+.^`|~*-]+)\s*=\s*("(?:[^"\\]|\\.)*"|[^;]*)"""
    found = {name.lower(): value.strip() for name, value in re.findall(pattern, disposition)}
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


def free_name(path: str, taken: Container[str]) -> str:
    """The name that --no-clobber gives: path, or the first of path.1, path.2 ... not taken."""
    for suffix in ("", *(f".{number}" for number in range(1, 100))):
        if path + suffix not in taken and not os.path.lexists(path + suffix):
            return path + suffix
    raise AsyncGetError(f"{path} to {path}.99 exist already", exit_code=23)


def write_through(stream: Any, data: bytes) -> None:
    """Write at once: whoever reads the pipe should not wait for us."""
    stream.write(data)
    stream.flush()


def write_stdout(data: bytes) -> None:
    """Write to stdout, past Python's own layers."""
    write_through(sys.stdout.buffer, data)


def write_named(name: str, data: bytes, mode: str = "wb") -> None:
    """Write to a file that a flag names, or to stdout for "-"."""
    if name == "-":
        write_stdout(data)
        return
    with disk_errors(name), open(name, mode) as file:
        file.write(data)


class Transfer:
    """One URL on its way: where its body goes, and what has become of it."""

    def __init__(self, number: int, url: str, output: str | None) -> None:
        self.number = number
        self.url = url
        self.shown_url = printable(re.sub("(?<=://)[^/?#]*@", "", url))  # without the password
        self.output = output  # None is stdout, "-" too, even for binary, "" is -O, else a name
        self.to_stdout = output in (None, "-")
        self.path = ""        # of the file
        self.response: Response | None = None
        self.error: AsyncGetError | None = None
        self.started = self.ended = 0.0
        self.received = 0
        self.expected: int | None = None
        self.turn = asyncio.Event()  # set when stdout is ours
        self.spool: Any = None       # what comes before that

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
        """Write to stdout if it is our turn, else keep the data till then."""
        if self.turn.is_set():
            self.flush()
            write_stdout(data)
            return
        if self.spool is None:
            from tempfile import SpooledTemporaryFile
            self.spool = SpooledTemporaryFile(SPOOL_BYTES)
        self.spool.write(data)

    def flush(self) -> None:
        """Write what was kept; our turn has come."""
        if self.spool is not None:
            self.spool.seek(0)
            while data := self.spool.read(READ_BYTES):
                write_stdout(data)
            self.close()

    def close(self) -> None:
        """Let go of what was kept."""
        if self.spool is not None:
            self.spool.close()
            self.spool = None


def plan_transfers(options: Options) -> list[Transfer]:
    """The URLs, each with its -o or -O; those of a list are saved as by -O, as curl does."""
    urls: list[tuple[str, str | None]] = []
    for text in options.url:
        if text.startswith("@"):
            urls += [(line, "") for line in read_lines(text[1:]) if line[0] != "#"]
        else:
            urls.append((text, "" if options.remote_name_all else None))
    if not urls:
        raise AsyncGetError("there is no URL in the list")
    outputs = iter(options.output)
    return [Transfer(number, complete_url(url, options), next(outputs, output))
            for number, (url, output) in enumerate(urls)]


def redirect_url(response: Response) -> str | None:
    """Where a redirect that was not followed would have led."""
    if response.status_code // 100 == 3 and "location" in response.headers:
        with contextlib.suppress(AsyncGetError):
            return str(join_url(parse_url(response.url), response.headers["location"]))
    return None


WRITE_OUT: dict[str, Callable[[Response], Any]] = {  # curl's names; what only a response can tell
    "content_type": lambda r: r.headers.get("content-type"),
    "http_code": lambda r: r.status_code,
    "http_version": lambda r: r.http_version[5:],
    "num_connects": lambda r: sum(not hop.timing.reused for hop in (*r.history, r)),
    "num_headers": lambda r: len(r.headers.pairs),
    "num_redirects": lambda r: len(r.history),
    "redirect_url": redirect_url,
    "remote_ip": lambda r: r.peer[0] if isinstance(r.peer, tuple) else None,
    "remote_port": lambda r: r.peer[1] if isinstance(r.peer, tuple) else 0,
    "response_code": lambda r: r.status_code,
    "size_download": lambda r: r.received,
    "size_header": lambda r: sum(len(hop.raw_head) for hop in (*r.history, r)),
    "size_request": lambda r: sum(hop.request_bytes for hop in (*r.history, r)),
    "time_namelookup": lambda r: 0.0,  # is not measured by itself
    "time_connect": lambda r: round(r.timing.connected, 6),
    "time_appconnect": lambda r: round(r.timing.connected, 6) if r.url[:6] == "https:" else 0.0,
    "time_pretransfer": lambda r: round(r.timing.connected, 6),
    "time_redirect": lambda r: round(r.history[-1].timing.done, 6) if r.history else 0.0,
    "time_starttransfer": lambda r: round(r.timing.head, 6),
}


def write_out_values(transfer: Transfer) -> dict[str, Any]:
    """All that -w can tell: times in seconds, sizes in bytes."""
    response, seconds = transfer.response, transfer.ended - transfer.started
    blank = {"content_type": None, "redirect_url": None, "remote_ip": None, "http_version": "0"}
    values: dict[str, Any] = {
        name: read(response) if response else blank.get(name, 0.0 if "time" in name else 0)
        for name, read in WRITE_OUT.items()}
    url = response.url if response else transfer.shown_url
    return {
        **values,
        "errormsg": str(transfer.error) if transfer.error else None,
        "exitcode": transfer.exit_code,
        "filename_effective": transfer.path or None,
        "method": "GET",
        "scheme": url.partition("://")[0],
        "speed_download": int(values["size_download"] / seconds) if seconds else 0,
        "time_total": round(seconds, 6),
        "url": transfer.shown_url,
        "url_effective": url,
        "urlnum": transfer.number,
    }


def render_write_out(template: str, values: Mapping[str, Any],
                     headers: Headers) -> list[tuple[str, str]]:
    r"""A -w template filled in; each piece with the stream that it is for.

    >>> values, headers = {"http_code": 7, "time_total": 0.5}, Headers([("X", "y")])
    >>> render_write_out(r"%{http_code}\t%{time_total}%{stderr}%header{x} %%", values, headers)
    [('stdout', '007\t0.500000'), ('stderr', 'y %')]
    """
    escapes = {r"\n": "\n", r"\r": "\r", r"\t": "\t", "%%": "%"}

    def fill(match: re.Match[str]) -> str:
        variable, header, escape = match.groups()
        if escape or header is not None:
            return escapes[escape] if escape else printable(headers.get(header, ""))
        if variable in ("json", "header_json"):
            import json
            fields = {name.lower(): headers.get_all(name) for name in headers}
            return json.dumps(values if variable == "json" else fields)
        value = values.get(variable, match[0])  # one that we do not know stays visible
        shape = ".6f" if isinstance(value, float) else "03d" if isinstance(
            value, int) and "_code" in variable else ""
        return printable("" if value is None else format(value, shape))

    pattern = r"%\{(\w+)\}|%header\{([^}]*)\}|(\\[nrt]|%%)"
    pieces = re.split(r"%\{(stdout|stderr)\}", template)
    return [(stream, re.sub(pattern, fill, text))
            for stream, text in zip(("stdout", *pieces[1::2]), pieces[::2])]


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


def render_heads(response: Response) -> bytes:
    """The heads of a response and its redirects: to a terminal without their controls."""
    raw = b"".join(hop.raw_head for hop in (*response.history, response))
    if not sys.stdout.isatty():
        return raw
    return "".join(printable(line) + "\n" for line in raw.splitlines()).encode()


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
        line = render_progress(
            sum(transfer.received for transfer in self.transfers),
            self.transfers[0].expected if count == 1 else None, now - self.began,
            f"{sum(transfer.ended > 0 for transfer in self.transfers)}/{count}" * (count > 1),
            sum(transfer.error is not None for transfer in self.transfers))[:terminal_width() - 1]
        print("\r" + line.ljust(self.width), end="", file=sys.stderr, flush=True)
        self.width = len(line)

    def wipe(self) -> None:
        """Take the progress line away."""
        if self.width:
            print("\r" + " " * self.width, end="\r", file=sys.stderr, flush=True)
            self.width = 0

    def say(self, *words: str) -> None:
        """A line on stderr, with the controls in it made harmless."""
        self.wipe()
        print(*map(printable, words), file=sys.stderr, flush=True)

    def show_wire(self, kind: str, data: str | bytes) -> None:
        """What Session traces, as -v shows it: > sent, < received, * a note."""
        text = data if isinstance(data, str) else data.decode("latin-1").removesuffix("\n")
        for line in SECRETS.sub(r"\1: ***", text).split("\n"):
            self.say(kind, line.removesuffix("\r"))


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
        self.jar = self.open_jar()
        os.environ.update(proxy_environment(options))
        self.settings = session_settings(options)
        self.session = Session(trace=self.screen.show_wire if options.verbose else None,
                               cookies=False if self.jar is None else self.jar, **self.settings)

    def open_jar(self) -> CookieJar | None:
        """The cookie jar that -c and -b FILE ask for; as in curl there is none without."""
        name = self.options.cookie
        reads = name is not None and "=" not in name
        if not reads and self.options.cookie_jar is None:
            return None
        jar = cookie_jar()
        if reads and os.path.exists(name):  # a first run may well name a file to come
            for cookie in parse_cookie_file(read_named(name).decode(errors="replace")):
                jar.set_cookie(cookie)
        return jar

    def meet(self, transfer: Transfer, response: Response) -> None:
        """Look at a head, before its body is read: for -D, -f and --max-filesize."""
        transfer.response = response
        transfer.expected = body_length(response)
        if self.options.dump_header == "-":
            transfer.write(render_heads(response))
        if self.options.fail:
            response.raise_for_status()
        self.advance(transfer, 0, transfer.expected)

    def advance(self, transfer: Transfer, received: int, expected: int | None) -> None:
        """Note how far a body is; raise TooLarge behind --max-filesize."""
        transfer.received, transfer.expected = received, expected
        self.screen.redraw()
        limit = self.options.max_filesize
        if limit is not None and max(received, expected or 0) > limit:
            raise TooLarge(f"{transfer.shown_url} is larger than --max-filesize, {limit} bytes",
                           limit=limit)

    async def stream(self, transfer: Transfer, write: Callable[[bytes], object]) -> None:
        """Hand on a body as it comes: to stdout, and with -i to a file."""
        wary = transfer.output is None and sys.stdout.isatty()
        async with self.session.stream(transfer.url) as response:
            if self.options.include:
                write(render_heads(response))
            self.meet(transfer, response)
            async for piece in response.iter_bytes():
                if wary and b"\0" in piece:
                    raise AsyncGetError(BINARY, exit_code=23)
                wary = False  # the first piece tells, as it does for curl
                write(piece)
                self.advance(transfer, transfer.received + len(piece), transfer.expected)

    async def save(self, transfer: Transfer) -> None:
        """Take a body to a file, which appears under its name when it is whole.

        Not so a device such as /dev/null, nor what begins with a head.
        """
        options = self.options
        transfer.path = self.place(transfer.output or name_from_url(transfer.url), transfer)
        if options.include or os.path.exists(transfer.path) and not os.path.isfile(transfer.path):
            with disk_errors(transfer.path):
                file = open(transfer.path, "wb")
            with file:
                await self.stream(transfer, functools.partial(write_through, file))
            return

        def choose(response: Response) -> str:
            self.meet(transfer, response)
            if options.remote_header_name and transfer.output == "":
                name = name_from_header(response.headers.get("content-disposition", ""))
                transfer.path = self.place(name, transfer) if name else transfer.path
            return transfer.path

        transfer.response = await self.session.download(
            transfer.url,
            transfer.path if options.continue_at else choose,  # what is there must be known first
            progress=functools.partial(self.advance, transfer), resume=bool(options.continue_at),
            overwrite=not options.remote_header_name, any_status=not options.fail,
            retries=self.settings["retries"], headers=self.settings["headers"])

    def place(self, name: str, transfer: Transfer) -> str:
        """The path for a file name, its folders made if --create-dirs says so."""
        path = os.path.join(self.options.output_dir or "", name)
        if self.options.create_dirs and os.path.dirname(path):
            with disk_errors(path):
                os.makedirs(os.path.dirname(path), exist_ok=True)
        if self.options.no_clobber:
            others = {other.path for other in self.transfers if other is not transfer}
            path = free_name(path, others)
        return path

    async def fetch(self, transfer: Transfer) -> None:
        """Carry out a transfer; an error becomes its outcome."""
        transfer.started = self.screen.clock()
        try:
            if transfer.to_stdout:
                await self.stream(transfer, transfer.write)
            else:
                await self.save(transfer)
            if self.options.fail_with_body and transfer.response:
                transfer.response.raise_for_status()
        except AsyncGetError as error:
            transfer.error = error
            transfer.response = transfer.response or error.response
        transfer.ended = self.screen.clock()
        self.screen.redraw()

    def report(self, transfer: Transfer) -> None:
        """Say what has become of a transfer: all that its flags ask for behind the body."""
        self.screen.wipe()
        transfer.flush()
        options, response = self.options, transfer.response
        if transfer.error and (options.show_error or not options.silent):
            which = f" [{transfer.shown_url}]" if len(self.transfers) > 1 else ""
            self.screen.say(f"asyncget: ({transfer.exit_code}) {transfer.error}{which}")
        if response and options.dump_header not in (None, "-"):
            write_named(options.dump_header, render_heads(response), "ab")
        template = options.write_out or ""
        if template.startswith("@"):
            template = read_named(template[1:]).decode(errors="replace")
        headers = response.headers if response else Headers()
        for stream, text in render_write_out(template, write_out_values(transfer), headers):
            if stream == "stdout":
                write_stdout(text.encode(errors="surrogateescape"))
            else:
                print(text, end="", file=sys.stderr, flush=True)

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
            for following in self.transfers[transfer.number + 1:transfer.number + 2]:
                following.turn.set()

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
                for transfer in self.transfers:
                    transfer.close()
        if self.options.waterfall:
            bars = [bar for transfer in self.transfers if transfer.ended for bar in transfer.bars()]
            print(render_timeline(bars, terminal_width() - 1), file=sys.stderr)
        if self.jar is not None and self.options.cookie_jar:
            write_named(self.options.cookie_jar, render_cookie_file(self.jar).encode())
        return next((t.exit_code for t in self.transfers if t.error), 0)


async def run_command(options: Options) -> int:
    """What the flags ask for, inside an event loop."""
    if options.demo:
        await demo()
        return 0
    check_options(options)
    if options.dump_header not in (None, "-"):
        write_named(options.dump_header, b"")
    code = await Command(options).run()
    # Name look-ups sit in threads, and nothing cancels those: -m is not to wait for one.
    threads = asyncio.ensure_future(asyncio.get_running_loop().shutdown_default_executor())
    ended, _ = await asyncio.wait([threads], timeout=0.2)
    if not ended:
        os._exit(code)
    return code


def interrupted(*_: object) -> None:
    """End as if by the signal itself, without a word: what has been received is written."""
    if sys.stderr.isatty():
        os.write(2, b"\n")  # the prompt belongs on a line of its own
    os._exit(130)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: returns curl's exit code, leaves files and output behind."""
    import signal
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupted)
    try:
        options = parse_arguments(sys.argv[1:] if arguments is None else arguments)
        if options.help or options.version:
            print(FLAGS if options.help else f"asyncget {__version__} ({ssl.OPENSSL_VERSION}, "
                  f"Python {sys.version.split()[0]})")
            code = 0
        else:
            code = asyncio.run(run_command(options))
        sys.stdout.flush()
        return code
    except AsyncGetError as error:
        print(f"asyncget: ({error.exit_code}) {printable(str(error))}", file=sys.stderr)
        return error.exit_code
    except OSError as error:  # of stdout: a pipe that is closed, a disk that is full
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # it is flushed once more
        if not isinstance(error, BrokenPipeError):
            print(f"asyncget: (23) cannot write: {error.strerror}", file=sys.stderr)
        return 23


if __name__ == "__main__":
    sys.exit(main())
