"""The tests of asyncget, in the order of its sections, and then what crosses them.

    python -X dev -W error -m unittest            all but fuzz, loads and kills
    ASYNCGET_LONG=1 python -m unittest ...        these, too, as .ci/run does
    ASYNCGET_LONG=1 ASYNCGET_KILL_MIB=128 ASYNCGET_KILLS=20 python -m unittest -k Kill.test_kill

Tables of (name, wire, expected) first; from section 6 on raw bytes over loopback, on
connections held open, so that a client that reads too far hangs and is found. Servers of
others (nginx, squid, tinyproxy, microsocks) take part where they are installed.
"""

from __future__ import annotations

import ast
import asyncio
import atexit
import base64
import contextlib
import copy
import doctest
import encodings.aliases
import enum
import errno
import functools
import gc
import gzip
import hashlib
import http.cookiejar
import importlib.util
import inspect
import io
import ipaddress
import itertools
import json
import os
import pickle
import pkgutil
import py_compile
import random
import re
import select
import shlex
import shutil
import signal
import socket
import ssl
import stat
import struct
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import tokenize
import traceback
import types
import unittest
import warnings
import weakref
import zipapp
import zlib
from asyncio import ensure_future, gather, get_running_loop
from collections import Counter, UserString
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from email.utils import formatdate
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock
from unittest.mock import patch

import asyncget

from asyncget import (  # isort: skip
    AsyncGetError, ConnectError, Cookies, DecodingError, Headers, IncompleteBody, InvalidHeader,
    InvalidURL, Origin, ProtocolError, ProxyError, Request, Response, Session, StatusError,
    TimedOut, TLSError, TooLarge, join_url, merge_fields, next_request, parse_arguments,
    parse_url, render_fields, render_request, shown)

# ==== What the test classes share =============================================
# What the test classes share: a scripted server, a base class that finds leaks, certificates.
#
#     async with scripted([READ, b"HTTP/1.1 200 OK\r\n", 0.05, b"\r\n", HOLD]) as server:
#         await asyncget.get(server.url + "/x")


def optional(name: str) -> Any:
    """A module of the standard library, None where it is not: on Windows, with PyPy."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


fcntl, pty, resource, termios, tracemalloc = map(
    optional, ("fcntl", "pty", "resource", "termios", "tracemalloc"))


WINDOWS = sys.platform == "win32"
TICK = 0.016 * WINDOWS  # its clocks and timers go in such steps
POSIX_ROWS = re.compile(  # what `table` leaves out there: its asyncio sends FIN before a RST, and
    # has no unix sockets; http_proxy is HTTP_PROXY; open files keep their names; links need rights
    r"Do\.RESET|early-reset|unix_socket|(?i:(http|no)_proxy)=\S* (?i:\1_proxy)=|http_proxy=p:1 REQ|"
    r"function (unlink|rename|replace)|-o (link|dangling|here)|/here|/dev/stdout")
TEST_SECONDS = 60.0  # for one test method; a client that reads too far waits for ever
not_pypy = unittest.skipIf(  # it collects when it likes, counts no blocks, and is quick only later
    sys.implementation.name == "pypy", "not on PyPy: what CPython frees at once, or how fast it is")
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a shell's job in the background: no command
    signal.signal(signal.SIGINT, signal.default_int_handler)  # that we start would see a Ctrl-C
LONG = os.environ.get("ASYNCGET_LONG") == "1"  # fuzz, loads and kills, too
long = unittest.skipUnless(LONG, "long: ASYNCGET_LONG=1 python -m unittest runs it, too")


# What a script does besides sending bytes and pausing.
#
#     READ    wait for one whole request head and record it
#     LOOP    start the script again
#     HOLD    keep the connection open, answer nothing; also at the end of every script
#     CLOSE   close, over TLS with close_notify
#     CUT     FIN alone: TLS is not told
#     RESET   close with RST
Do = enum.Enum("Do", "READ LOOP HOLD CLOSE CUT RESET")
READ, LOOP, HOLD, CLOSE, CUT, RESET = Do
# Of Do, bytes to send, seconds to pause (0, or a float), a number of bytes to read, or a function
Script = Sequence[Any]  # of the last head, or of the bytes read last.


class Server:
    """What the tests see of a scripted server."""

    def __init__(self, scripts: tuple[Script, ...], again: bool) -> None:
        self.scripts, self.again = scripts, again
        self.url, self.port = "", 0      # without a slash at its end
        self.requests: list[bytes] = []  # heads, in the order in which they came
        self.connections = 0             # accepted so far
        self.open = self.most = 0        # now, and at most, at once
        self.tasks: set[asyncio.Task[Any]] = set()

    def targets(self) -> list[str]:
        """What was asked for: the second word of each request."""
        return [head.split(b" ")[1].decode() for head in self.requests]

    async def play(self, reader: Any, writer: Any) -> None:
        """Play the script of one connection; there is none for one too many."""
        task: Any = asyncio.current_task()
        self.tasks.add(task)
        number, self.connections = self.connections, self.connections + 1
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            if WINDOWS and (peer := writer.get_extra_info("socket")):  # Nagle's algorithm is on
                peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.again or number < len(self.scripts):
                await self.steps(self.scripts[min(number, len(self.scripts) - 1)], reader, writer)
        except (OSError, EOFError, asyncio.CancelledError):  # the client has gone, or the test
            pass
        finally:
            self.open -= 1
            self.tasks.discard(task)
            writer.close()
            with suppress(AttributeError):  # up to Python 3.11.2, if TLS has ended
                writer.transport.abort()
            # Else its future, if freed before its protocol, complains of the error that it has.
            with suppress(OSError, asyncio.CancelledError, asyncio.TimeoutError):
                await asyncio.wait_for(writer.wait_closed(), 1)  # on Windows, 3.9 forgets it

    async def steps(self, script: Script, reader: Any, writer: Any) -> None:
        """Do what a script says; a function in it gives a further step, or a list of them."""
        to_do: list[Any] = [HOLD, *reversed(script)]
        head = b""
        while to_do:
            step = to_do.pop()
            if callable(step):
                steps = step(head)
                to_do += reversed(steps) if isinstance(steps, list) else [steps]
            elif isinstance(step, bytes):
                writer.write(step)
                await writer.drain()
            elif isinstance(step, float) or step == 0:
                await asyncio.sleep(step)
            elif isinstance(step, int):
                head = await reader.readexactly(step)
            elif step is LOOP:
                to_do = [HOLD, *reversed(script)]
            elif step is CLOSE:
                writer.close()
                await writer.wait_closed()
                return
            elif step is RESET:
                if peer := writer.get_extra_info("socket"):  # none, where the client has gone
                    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return
            elif step is CUT:
                if peer := writer.get_extra_info("socket"):
                    peer.shutdown(socket.SHUT_WR)
            else:
                head = await reader.readuntil(b"\r\n\r\n")
                self.requests.append(head)
                to_do += [HOLD] if step is HOLD else []


@contextlib.asynccontextmanager
async def serving(server: Server, tls: ssl.SSLContext | None = None, url: str = "",
                  path: str = "") -> AsyncIterator[Any]:
    """Run a server, at a unix socket if there is a path; its URL ends with its port."""
    if path and not WINDOWS:
        listener = await asyncio.start_unix_server(server.play, path, ssl=tls)
    else:
        listener = await asyncio.start_server(server.play, "127.0.0.1", 0, ssl=tls)
        server.port = listener.sockets[0].getsockname()[1]
        server.url = f"{url or '127.0.0.1'}:{server.port}"
    try:
        yield server
    finally:
        listener.close()
        await asyncget.cancel(server.tasks)
        await listener.wait_closed()


def scripted(*scripts: Script, again: bool = False, tls: ssl.SSLContext | None = None,
             host: str = "127.0.0.1") -> Any:
    """A raw server whose n-th connection plays the n-th script; `again`: the last for all more."""
    return serving(Server(scripts, again), tls, f"http{'s' * bool(tls)}://{host}")


def always(*steps: Any, **how: Any) -> Any:
    """A raw server that does this behind each request, on as many connections as come."""
    return scripted([READ, *steps, LOOP], again=True, **how)


def answer(body: bytes = b"ok", *fields: str, status: str = "200 OK") -> bytes:
    """The bytes of a response with a Content-Length."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *fields, "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def bytewise(data: bytes) -> list[Any]:
    """Steps that send each byte alone."""
    return [step for i in range(len(data)) for step in (data[i:i + 1], 0)]


def field(head: bytes, name: str) -> list[str]:
    """The values of a field in a request head."""
    pairs = (line.partition(b": ") for line in head.split(b"\r\n")[1:])
    return [value.decode() for key, _, value in pairs if key.lower() == name.lower().encode()]


@contextmanager
def uncollected() -> Iterator[None]:
    """Without the garbage collector, where something is measured."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


async def until(condition: Callable[[], object]) -> None:
    """Wait until something is so; the time limit of the test is the limit of this."""
    while not condition():
        await asyncio.sleep(0.001)


async def pause(turns: int) -> None:
    """So many turns of the loop for all others."""
    for _ in range(turns):
        await asyncio.sleep(0)


def open_files() -> set[str]:
    """The descriptors of this process, where the system shows them."""
    fds = "/proc/self/fd"  # of Wine, where that runs us
    return set(os.listdir(fds)) if os.path.isdir(fds) and not WINDOWS else set()


def table(rows: Iterable[Any], *others: Iterable[Any]) -> Iterable[Any]:
    """Rows of all kinds of things, for a loop over them, or over each with each of the others."""
    rows = rows if not WINDOWS else [row for row in rows if not POSIX_ROWS.search(repr(row))]
    return itertools.product(rows, *others) if others else rows


def watched(owner: type, name: str) -> Any:
    """A method does what it does, and its calls are noted."""
    return patch.object(owner, name, autospec=True, side_effect=getattr(owner, name))


class Tables(unittest.TestCase):
    """Tests with rows."""

    def setUp(self) -> None:
        missing = re.search("Not on Windows: .*", getattr(self, self._testMethodName).__doc__ or "")
        if WINDOWS and missing:
            self.skipTest(missing[0])

    def alike(self, call: Callable[[Any], Any], rows: Iterable[Sequence[Any]]) -> None:
        """Check what a call makes of the first of each row: the second."""
        for given, expected in rows:
            with self.subTest(given):
                self.assertEqual(call(given), expected)

    def refuses(self, error: Any, said: str, call: Any, *args: Any, **facts: Any) -> Any:
        """Check that a call raises that error: this in its text, no secret, and these facts."""
        with self.assertRaises(error, msg=f"{said!r}, {args!r:.999}") as caught:
            call(*args)
        text = str(caught.exception)
        self.assertIn(said.lower(), text.lower())
        self.assertNotIn(SECRET, text)
        self.harmless(caught.exception)
        self.assertIs(type(caught.exception), error)
        self.assertEqual({name: getattr(caught.exception, name) for name in facts}, facts)
        return caught.exception

    def harmless(self, error: AsyncGetError) -> None:
        """An error's text is short and fit for a terminal."""
        self.assertLess(len(str(error)), 1000)
        self.assertTrue(str(error).isprintable(), str(error))

    def limit(self, name: str, most: int = 0) -> None:
        """Until the test ends this process may have so much of a resource; or again all of it."""
        if not resource:
            self.skipTest("no module resource here")
        what = getattr(resource, name)
        limits = resource.getrlimit(what)
        self.addCleanup(resource.setrlimit, what, limits)
        resource.setrlimit(what, (most or limits[1], limits[1]))

    @functools.cached_property
    def folder(self) -> str:
        """The path of an empty one, which goes with the test."""
        return self.empty_folder()

    def empty_folder(self) -> str:
        path = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, path)
        return path

    def read(self, name: str) -> Any:
        """What a file there holds; None if there is none."""
        path = Path(self.folder, name)
        return path.read_bytes() if path.exists() else None

    def write(self, name: str, data: bytes) -> str:
        Path(self.folder, name).write_bytes(data)
        return os.path.join(self.folder, name)

    def names(self) -> list[str]:
        return sorted(os.listdir(self.folder))

    def empty(self, **files: bytes) -> None:
        """The folder with these files alone; b"->x" is a link, b"=>x" another name, b"|" a pipe."""
        shutil.rmtree(self.folder)
        os.mkdir(self.folder)
        if WINDOWS and any(data[:2] == b"->" or data == b"|" for data in files.values()):
            self.skipTest("needs links, pipes with names")
        for name, data in files.items():
            path, other = os.path.join(self.folder, name), data[2:].decode("latin-1")
            if data[:2] == b"->":
                os.symlink(other, path)
            elif data[:2] == b"=>":
                os.link(os.path.join(self.folder, other), path)
            elif data == b"|":
                os.mkfifo(path)
            else:
                self.write(name, data)


class AsyncCase(Tables, unittest.IsolatedAsyncioTestCase):
    """Each test has a time limit, and fails if it leaves anything behind."""

    seconds = TEST_SECONDS

    def setUp(self) -> None:
        super().setUp()
        environ = patch.dict(os.environ, environment(), clear=True)
        environ.start()
        self.addCleanup(environ.stop)

    @contextmanager
    def subTest(self, msg: Any = "", **params: Any) -> Iterator[None]:
        """As unittest's, which would swallow the end of the time limit."""
        cancelled = None
        with super().subTest(msg, **params):
            try:
                yield
            except asyncio.CancelledError as error:
                cancelled = error
                raise  # so that the row is told
        if cancelled:
            raise cancelled

    async def raised(self, kind: Any, call: Any, said: str = "", **facts: Any) -> Any:
        """The error that a call ends with: of this kind, with this in its text, and these facts."""
        with self.assertRaisesRegex(kind, said) as caught:
            await call
        self.assertEqual({name: getattr(caught.exception, name) for name in facts}, facts)
        return caught.exception

    def __init_subclass__(cls) -> None:
        for name, test in list(vars(cls).items()):
            if name.startswith("test") and inspect.iscoroutinefunction(test):
                setattr(cls, name, guarded(test))


def guarded(test: Callable[..., Any]) -> Callable[..., Any]:
    """A test under a time limit, then a look at what it left: tasks, sockets, complaints."""
    @functools.wraps(test)
    async def run(self: AsyncCase) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()  # what the threads of other tests have left is not this one's
        loop = get_running_loop()
        loop.set_debug(False)  # a stack per callback: half of all the time
        tasks, files, complaints = asyncio.all_tasks(), open_files(), []
        loop.set_exception_handler(lambda _, context: complaints.extend(
            [repr(context)] if "incoming" not in context["message"] else []))  # of the server
        with warnings.catch_warnings(), patch(
                "sys.unraisablehook", lambda what: complaints.append(repr(what))):
            warnings.simplefilter("error")
            await asyncio.wait_for(test(self), self.seconds)
            for _ in range(100):  # what was aborted needs a few turns
                if open_files() == files and asyncio.all_tasks() == tasks:
                    break
                await asyncio.sleep(0.001)
            gc.collect()
            await asyncio.sleep(0)
        self.assertEqual(asyncio.all_tasks() - tasks, set(), "tasks left")
        self.assertLessEqual(len(open_files()), len(files), "files or sockets left open")
        self.assertEqual(complaints, [])
    return run


# ---- certificates, all of one P-256 key, made by `openssl ca`, valid from 2020 to 2120

PEMS = {
    "ca": "MIIBYDCCAQagAwIBAgIUFV4nkeKlGZKOTmjR1pdU+5T/080wCgYIKoZIzj0EAwIwDTELMAkGA1UEAwwCY2EwIBcNMjAwMTAxMDAwMDAwWhgPMjEyMDAxMDEwMDAwMDBaMA0xCzAJBgNVBAMMAmNhMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEnTuwYvIaU5mD7AZHf5WduHv8gyGMi0lkgvAyCDmTBKMp5vPMeC1oSj9BJLl5vtSOCuvz5uMF++aRgdyVK2gIBKNCMEAwDwYDVR0TAQH/BAUwAwEB/zAOBgNVHQ8BAf8EBAMCAgQwHQYDVR0OBBYEFGZKTJnmWQgX+tTPPEURQ2vRJJ+0MAoGCCqGSM49BAMCA0gAMEUCIFcvu04UuQWWoQYD2B6lOSn7mJoWrwa6vxzs+iDLq5RtAiEAokH0kCJuWqRAkjWkNYWfXc59+ZjYOEAsEtos/na7j0o=",
    "key": "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQggnpAVRgYEAIK2PZ8s0zosdymL3R4CqIu+LrpSNYDoyChRANCAASBIUJSFLsdQ/GvrbcziUtkOIlRYHSliD02rjpM6Wi8ZZjcoflUQJ3zhpEAazNuJw5cDl3XeSRH1vabh5A8pSwB",
    # the same key; its password is "secret"
    "encrypted_key": "MIHsMFcGCSqGSIb3DQEFDTBKMCkGCSqGSIb3DQEFDDAcBAhVa2URxNHlAAICCAAwDAYIKoZIhvcNAgkFADAdBglghkgBZQMEASoEEFvATrzBUHuXELs2u6Cgsy8EgZBa40IOLywkDM4ixOS69Nuhs7zUYHZKZGryHLw/c+AHoFkN2bItyhprHvdxI3in67qQVAz3JoolT5QEvhp/wlCfq3mWNrUPUi5C13k7C9EvN7R2taqN4+dlH0GiSBRsnaqKHlznnl7j1oN1u5X5Rldw9N6xXij2nY2kww2AtMx1KyyN/QaS1l1ovD8KjDCdHAA=",
    # localhost, 127.0.0.1, ::1
    "leaf": "MIIBjDCCATOgAwIBAgIUDv8zGVAXMy7HGDRVrv1HhSogOEwwCgYIKoZIzj0EAwIwDTELMAkGA1UEAwwCY2EwIBcNMjAwMTAxMDAwMDAwWhgPMjEyMDAxMDEwMDAwMDBaMAwxCjAIBgNVBAMMAXgwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAASBIUJSFLsdQ/GvrbcziUtkOIlRYHSliD02rjpM6Wi8ZZjcoflUQJ3zhpEAazNuJw5cDl3XeSRH1vabh5A8pSwBo3AwbjAfBgNVHSMEGDAWgBRmSkyZ5lkIF/rUzzxFEUNr0SSftDAsBgNVHREEJTAjgglsb2NhbGhvc3SHBH8AAAGHEAAAAAAAAAAAAAAAAAAAAAEwHQYDVR0OBBYEFKd/7Gqcvn6WFDIPQqoafuRzbMs+MAoGCCqGSM49BAMCA0cAMEQCID/27PdW1/CKyCtI7MdmjpQJXcD/Wa1QNbt34Hq6sXQ0AiBFnxEnK0+0ihex7+PCqWKNEmyO2Jjio+zDFlb8mEVSYg==",
    # in 2020
    "expired": "MIIBizCCATGgAwIBAgIUb5derYi80u8o4vKcvdkqRL3pKqMwCgYIKoZIzj0EAwIwDTELMAkGA1UEAwwCY2EwHhcNMjAwMTAxMDAwMDAwWhcNMjAwMTAyMDAwMDAwWjAMMQowCAYDVQQDDAF4MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEgSFCUhS7HUPxr623M4lLZDiJUWB0pYg9Nq46TOlovGWY3KH5VECd84aRAGszbicOXA5d13kkR9b2m4eQPKUsAaNwMG4wHwYDVR0jBBgwFoAUZkpMmeZZCBf61M88RRFDa9Ekn7QwLAYDVR0RBCUwI4IJbG9jYWxob3N0hwR/AAABhxAAAAAAAAAAAAAAAAAAAAABMB0GA1UdDgQWBBSnf+xqnL5+lhQyD0KqGn7kc2zLPjAKBggqhkjOPQQDAgNIADBFAiBco1Qa9G41gb3QlFuAi+Ayj+0YNBPsYtwDGnoPaGv9vQIhAL+ycDHC2akN/43lmMBUEIihXX0eI4aTmD6D3J10zF1Y",
    # other.test
    "other": "MIIBdjCCARygAwIBAgIULMi9EtJBheeUIwHIR/Oqxra8H6MwCgYIKoZIzj0EAwIwDTELMAkGA1UEAwwCY2EwIBcNMjAwMTAxMDAwMDAwWhgPMjEyMDAxMDEwMDAwMDBaMAwxCjAIBgNVBAMMAXgwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAASBIUJSFLsdQ/GvrbcziUtkOIlRYHSliD02rjpM6Wi8ZZjcoflUQJ3zhpEAazNuJw5cDl3XeSRH1vabh5A8pSwBo1kwVzAfBgNVHSMEGDAWgBRmSkyZ5lkIF/rUzzxFEUNr0SSftDAVBgNVHREEDjAMggpvdGhlci50ZXN0MB0GA1UdDgQWBBSnf+xqnL5+lhQyD0KqGn7kc2zLPjAKBggqhkjOPQQDAgNIADBFAiEAj18lLMJDUjiDWDnr8Jg6tMCYBHD/4RY+Mty3NuWr6u0CIHMOFTcistBwrCJg+k0ehskDdbwBiAIsu/gRbek71WXK",
    # localhost, no Authority Key Identifier
    "no_aki": "MIIBSzCB86ADAgECAhREbX8RCy1DWcoF5FzEAkkvk3NSxDAKBggqhkjOPQQDAjANMQswCQYDVQQDDAJjYTAgFw0yMDAxMDEwMDAwMDBaGA8yMTIwMDEwMTAwMDAwMFowDDEKMAgGA1UEAwwBeDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABIEhQlIUux1D8a+ttzOJS2Q4iVFgdKWIPTauOkzpaLxlmNyh+VRAnfOGkQBrM24nDlwOXdd5JEfW9puHkDylLAGjMDAuMCwGA1UdEQQlMCOCCWxvY2FsaG9zdIcEfwAAAYcQAAAAAAAAAAAAAAAAAAAAATAKBggqhkjOPQQDAgNHADBEAiAl8CS56Rxe9E92Z6d9lQw9sGpJYys1B5R0CYQSCOd4TwIgDeH3v9ttuo4nirRd/uC38MhA5bPhe5BqIAwJS86Af6Y=",
    # localhost by its common name alone, signed by itself
    "common_name": "MIIBTDCB86ADAgECAhRdXQlIYeh1uoiulqOXXhrWcc4iTDAKBggqhkjOPQQDAjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwIBcNMjAwMTAxMDAwMDAwWhgPMjEyMDAxMDEwMDAwMDBaMBQxEjAQBgNVBAMMCWxvY2FsaG9zdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABIEhQlIUux1D8a+ttzOJS2Q4iVFgdKWIPTauOkzpaLxlmNyh+VRAnfOGkQBrM24nDlwOXdd5JEfW9puHkDylLAGjITAfMB0GA1UdDgQWBBSnf+xqnL5+lhQyD0KqGn7kc2zLPjAKBggqhkjOPQQDAgNIADBFAiEA8CH/Wg0bj4y/yKKUowPEFKLHlapgdE8b4jfTW8QTDfECICloH4R2ZWS05dpZTkn3Gu4v+yohU4+PTC+pJvBkiAB+",
}


@functools.cache
def pem(name: str) -> str:
    """The path of a file with one of PEMS; a certificate's has the key behind it, but "client"."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder)
    path = os.path.join(folder, name + ".pem")
    kind = {"key": "PRIVATE KEY", "encrypted_key": "ENCRYPTED PRIVATE KEY"}.get(name, "CERTIFICATE")
    wrapped = "\n".join(textwrap.wrap(PEMS["leaf" if name == "client" else name], 64))
    with open(path, "w", encoding="ascii") as file:
        file.write(f"-----BEGIN {kind}-----\n{wrapped}\n-----END {kind}-----\n")
        if kind == "CERTIFICATE" and name not in ("ca", "client"):
            with open(pem("key"), encoding="ascii") as key:
                file.write(key.read())
    return path


def server_tls(name: str = "leaf", client_ca: bool = False,
               newest: ssl.TLSVersion = ssl.TLSVersion.MAXIMUM_SUPPORTED) -> ssl.SSLContext:
    """A server's context with one of the certificates; client_ca: asks for a client's, too."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = newest
    context.load_cert_chain(pem(name))
    if client_ca:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(pem("ca"))
    return context


# ==== What only decides: bytes in, values out =================================
# Tests of asyncget's sections 1 to 6, and 8: bytes in, values out, no socket anywhere.
#
# A row or its comment names the rule: an RFC section, or the published fault of another client.


SECRET, HERE = "s3cret", Origin("http", "h", 80)
README = Path(asyncget.__file__).with_name("README.md")
with_readme = unittest.skipUnless(README.exists(), "README.md is not beside it")


def cuts(wire: bytes) -> Iterator[list[bytes]]:
    """The ways in which bytes can arrive: whole, each alone, in two parts cut anywhere."""
    yield [wire]
    yield [wire[at:at + 1] for at in range(len(wire))]
    for at in range(1, len(wire)):
        yield [wire[:at], wire[at:]]


def chunks() -> Any:
    """The parser of a chunked body, started."""
    parser = asyncget.read_chunked()
    next(parser)
    return parser


def take(pieces: Iterable[bytes]) -> tuple[bytes, bytes | None, bytes]:
    """What the parser of chunks makes of pieces: payload, what is left over, trailers.

    Nothing is left over, None, where more must come. A ProtocolError has all payload before it.
    """
    parser, rest = chunks(), itertools.chain(pieces, [b""])  # what was wrong is told at the next
    payload: list[bytes] = []
    try:
        for piece in rest:
            payload.append(parser.send(piece))
    except StopIteration as end:
        last, behind, trailers = end.value
        return b"".join(payload) + last, behind + b"".join(rest), trailers
    except ProtocolError as error:
        vars(error)["payload"] = b"".join(payload)
        raise
    return b"".join(payload), None, b""


def head(*fields: bytes, status: bytes = b"HTTP/1.1 200 OK") -> asyncget.Head:
    """A head of these field lines."""
    return asyncget.parse_head(b"\r\n".join([status, *fields, b"", b""]))


def decoded(codings: Iterable[bytes], pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The pieces that a decoder makes of those that arrive."""
    decoder, arriving = asyncget.Decoder(b",".join(codings)), filter(None, pieces)
    for _, piece in decoder.pieces:
        if piece is None:
            decoder.arrived = next(arriving, b"")
        else:
            yield piece


def decode(codings: Iterable[bytes], pieces: Iterable[bytes]) -> bytes:
    return b"".join(decoded(codings, pieces))


def raw_deflate(data: bytes) -> bytes:
    return zlib.compress(data)[2:-4]  # without the frame


class Section1Errors(Tables):
    """One root for all errors, curl's exit codes, and texts that harm no terminal."""

    def test_tree(self) -> None:
        root, any_ = AsyncGetError, Exception
        for error, code, base, builtin in table([
                (root, 2, any_, any_), (InvalidURL, 3, root, ValueError),
                (InvalidHeader, 43, root, ValueError), (ProxyError, 97, ConnectError, OSError),
                (ConnectError, 7, root, ConnectionError), (TLSError, 35, ConnectError, OSError),
                (TimedOut, 28, root, TimeoutError), (TimedOut, 28, root, asyncio.TimeoutError),
                (IncompleteBody, 18, ProtocolError, any_),
                *((kind, code, root, any_) for kind, code in (
                    (ProtocolError, 8), (StatusError, 22), (TooLarge, 63),
                    (asyncget.TooManyRedirects, 47))), (DecodingError, 61, root, ValueError)]):
            self.assertEqual((error, error.__bases__[0], error("x").exit_code), (error, base, code))
            self.assertTrue(issubclass(error, builtin) and error.__doc__)
            self.assertIn(error.__name__, asyncget.__all__)

    def test_facts_are_attributes_of_one_error_alone(self) -> None:
        error = IncompleteBody("cut", expected=5, received=3, url="http://h/", exit_code=56)
        for twin in (error, pickle.loads(pickle.dumps(error)), copy.copy(error)):
            self.assertEqual((type(twin), str(twin), twin.expected, twin.received, twin.url,
                              twin.exit_code), (IncompleteBody, "cut", 5, 3, "http://h/", 56))
        lost = pickle.loads(pickle.dumps(ConnectError("no", errno=111)))
        self.assertEqual((lost.errno, ConnectError().errno), (111, None))
        fresh = IncompleteBody()
        self.assertEqual((fresh.expected, fresh.received, fresh.url, fresh.exit_code,
                          fresh.response), (None, 0, "", 18, None))

    def test_shown(self) -> None:
        self.alike(shown, [(b"", "b''"), (bytearray(b"\xff\x9b\x07\r\n"), r"b'\xff\x9b\x07\r\n'"),
                           (b"a" * 100, f"b'{'a' * 100}'"), (b"a" * 101, f"b'{'a' * 100}'…")])

    def test_printable(self) -> None:  # CVE-2004-1488, GO-2026-5039
        self.alike(asyncget.printable, [
            ("", ""), ("naïve 日本 text", "naïve 日本 text"), ("a\x1b[2Jb", r"a\x1b[2Jb"),
            ("\r\n\t\0\x7f", r"\r\n\t\x00\x7f"), ("\x9b31m", r"\x9b31m"),  # C1 is an escape, too
            ("a\u202egpj.exe", r"a\u202egpj.exe"), ("\u2066\u200b", r"\u2066\u200b"),  # direction
            ("\ud800", r"\ud800")])


class Section2URLs(Tables):
    """A URL is cut once; nobody else would read another host in what we ask for."""

    def test_parts(self) -> None:
        def parts(text: str) -> str:
            (scheme, host, port), target, fragment, userinfo = url = parse_url(text)
            self.assertEqual(parse_url(str(url)), url._replace(userinfo=""))
            behind = f" #{fragment}" * bool(fragment) + f" {userinfo}@" * bool(userinfo)
            return f"{scheme}://{host}:{port} {target}{behind}"

        self.alike(parts, [
            ("http://h", "http://h:80 /"), ("HTTPS://H.Test", "https://h.test:443 /"),
            ("http://h?q#f", "http://h:80 /?q #f"),                               # 9112 3.2.1
            ("http://h/a?b?c#d#e", "http://h:80 /a?b?c #d#e"), ("http://h:/", "http://h:80 /"),
            ("http://u:p@h:81/", "http://h:81 / u:p@"),                           # 9110 7.2
            ("http://a@b@c/", "http://c:80 / a@b@"),
            ("http://a;b@c/", "http://c:80 / a;b@"),                              # CVE-2024-38428
            ("http://A#@B/", "http://a:80 / #@B/"),                               # bpo-30500
            ("http://A?@B/", "http://a:80 /?@B/"),                                # CVE-2016-8624
            ("http://A:@B/", "http://b:80 / A:@"),                                # CVE-2024-47081
            ("http://A%2f@B/%", "http://b:80 /% A%2f@"),                          # CVE-2022-27780
            ("http://h//B/x", "http://h:80 //B/x"),                               # CVE-2022-35949
            ("http://h/../a/./b", "http://h:80 /a/b"),                            # 3986 6.2.2.3
            ("http://h/a/.?/../#/./", "http://h:80 /a/?/../ #/./"),
            ("http://h/a/%2e%2E/.b/c../...", "http://h:80 /a/%2e%2E/.b/c../..."),
            ("http://h//..//a/./", "http://h:80 //a/"),
            (" \t\r\nhttp://h/x\f\n", "http://h:80 /x"),                         # as browsers
            ("http://h/\udce9\udc85 é", "http://h:80 /%E9%85%20%C3%A9"),          # octets
            ("http://h/%2F%0d%0a%zz", "http://h:80 /%2F%0d%0a%zz"),               # CVE-2012-0036
            ("http://h/a b?ü d#e\u202e", "http://h:80 /a%20b?%C3%BC%20d #e%E2%80%AE"),
            ("http://h/\\x\"<>`{|}^'", "http://h:80 /\\x\"<>`{|}^'"),
            ("http://h:00000008080/", "http://h:8080 /"), ("https://h:000/", "https://h:0 /"),
            ("http://h:65535", "http://h:65535 /"), ("https://[::1]:8443/", "https://::1:8443 /")])

    def test_hosts(self) -> None:
        hosts = {"h": "h", "H.TEST": "h.test", "h.test.": "h.test.", "a_b-c": "a_b-c",
            "127.0.0.1": "127.0.0.1", "1.example": "1.example", "web.1": "web.1",
            "1.web.2.": "1.web.2.", "0x7f.a.0x1": "0x7f.a.0x1", "1.2.3.4.com": "1.2.3.4.com",
            "[::]": "::", "[0:0:0:0:0:0:0:1]": "::1", "[FE80::1]": "fe80::1",
            "[FE80:0::1%25Eth0.1-a_~]": "fe80::1%Eth0.1-a_~", "[fe80::1%e]": "fe80::1%e",  # 9844
            "[::FFFF:1.2.3.4]": str(ipaddress.IPv6Address("::ffff:102:304")),
            "straße.test": "xn--strae-oqa.test",               # CVE-2016-8625: not strasse
            "BÜCHER.example": "xn--bcher-kva.example",
            "bu\u0308cher.example": "xn--bcher-kva.example",   # NFC
            "ΟΔΟΣ.gr": "xn--pxavbq.gr",                        # not with a ς at its end
            "日本.test": "xn--wgv71a.test", "XN--WGV71A.test": "xn--wgv71a.test",
            "i\u2764\ufe0f.test": "xn--i-7iq.test",            # an emoji as keyboards write it
            "i\u2764\ufe0e.test": "xn--i-7iq.test",            # or as a text
            "xn--example-.com": "xn--example-.com",            # RUSTSEC-2024-0421: opaque
            "a" * 63 + ".test": "a" * 63 + ".test"}
        self.alike(asyncget.parse_host, hosts.items())
        self.alike(lambda host: asyncget.parse_host(asyncget.bracketed(host)),
                   ((host, host) for host in hosts.values()))

    BAD = {  # by what is said about them
        "not an absolute URL": ["h/x", "", "http:/h/", "http:h",
            # CVE-2019-9740, -9947, -11236, -18348, CVE-2022-0391, CVE-2023-24329
            "http://h/x HTTP/1.1\r\nY: 2", "http://h/x\r\n\r\nGET /y", "http://h/?q=\n#",
            "http://h/#\nx", "http://u\n@h/", "http://h/a\tb", "http://h/\x7f", "http://h/\ud800",
            "http://h\r\nY: 2/", "ht\ntp://h", "\x01file://h", "\x0bhttp://h", "http://h\0/"],
        "not a host: ''": ["http:///x", "http://:80/", "http://u@/", "http://?q"],  # 9110 4.2.1
        # CVE-2023-24329, CVE-2011-1521, CVE-2019-9948, CVE-2009-0037
        "unsupported scheme ": [
            " file://h", "\xa0http://h", "file:///etc/passwd", "local_file://h/x", "scp://h/x",
            "httpſ://h", "https+unix://h", "://h"],
        "unsupported scheme 'app' in 'app://***@h/?code=1'": ["app://u:p@h/?code=1"],
        "percent-encode": ["http://A＃@B/", "http://A\\@B/"],  # CVE-2019-9636, aiohttp #12827
        "not a host label": [  # CVE-2019-9636, -10160 (NFKC: a/c), CVE-2022-42916, -43551
            "http://A＃B/", "http://A\u2100B/", "http://127．0．0．1/", "http://127｡0｡0｡1/",
            "http://１２７.0.0.1/", "http://\u212a/", "http://ſ/", "http://h\udce9/",
            f"http://{'ü' * 64}/", "http://例。テスト/", "http://a\u00adb/", "http://a\u200bb/",
            "http://a\u034fb/"], "not an IP address": [
            *[f"http://[{text}]/" for text in [  # CVE-2024-11168, CVE-2025-47912
                "fe80::1%", "fe80::1%25", "fe80::1%25a%25b", "fe80::1%25a%0d",
                "fe80::1%25" + "z" * 64, "::1.2.3.4%25eth0%25", ":%25eth0", "1.2.3.4:", ":h.test"]],
            *[f"http://{host}/" for host in [  # aiohttp #12827
                "2130706433", "127.1", "0x7f.1", "0x7F000001", "0177.0.0.1", "1.2.3.08", "1.0x",
                "256.1.1.1", "1.2.3.4."]]],
        "not a host and port": [  # CVE-2025-0938, CVE-2019-14809, CVE-2026-25679, CVE-2022-33124
            "http://x[::1]/", "http://[::1]x/", "http://[::1].evil:80", "http://[::1/",
            "http://fe80::1%25eth0/", "http://[1.2.3.4]/", "http://[h.test]/", "http://[]/",
            "http://[1.2.3.4%25eth0]/", "http://[%25eth0]/", *[f"http://h:{port}/" for port in [
                "80x", "+80", "-1", "8_0", "٨٠", "0x50", "1:2", "65536", "0065536", "100000"]]],
        "not a host: ": [f"http://{host}/" for host in [  # CVE-2017-6508, CVE-2022-27780, -45061
            "h%0d%0aY", "A%2f", "A\\B", "a" * 64, "ü" * 60 + "x", "a..b", ".a", ".", "a b", "a,b",
            "a." * 128, "ſ." * 128]]}  # too long for its labels to be looked at

    def test_bad_urls(self) -> None:
        """A redirect passes the same checks: CVE-2021-41945, CVE-2022-33124."""
        base = parse_url("http://h/a")
        for said, texts in self.BAD.items():
            for text in texts:
                code = 1 if "scheme" in said else 3
                self.refuses(InvalidURL, said, parse_url, text, exit_code=code)
                for start in re.findall("^http:(?=//)|^(?=[a-z]+:)", text):
                    self.refuses(InvalidURL, said, join_url, base, text[len(start):])
        for text in ("/x HTTP/1.1\r\nY: 2", "?\tx", "#\nx", "a\0", "\x7f", "\\\rx"):
            self.refuses(InvalidURL, "control character", join_url, base, text)
        for text in ("///x", "http:g", "javascript:alert(1)", "data:,x", "x:y/z?:"):
            self.refuses(InvalidURL, "", join_url, base, text)

    EXAMPLES = """g→/b/c/g ./g→/b/c/g g/→/b/c/g/ /g→/g ?y→/b/c/d;p?y g?y→/b/c/g?y #s→/b/c/d;p?q#s
        g#s→/b/c/g#s g?y#s→/b/c/g?y#s ;x→/b/c/;x g;x→/b/c/g;x g;x?y#s→/b/c/g;x?y#s →/b/c/d;p?q
        .→/b/c/ ./→/b/c/ ..→/b/ ../→/b/ ../g→/b/g ../..→/ ../../→/ ../../g→/g ../../../g→/g
        ../../../../g→/g /./g→/g /../g→/g g.→/b/c/g. .g→/b/c/.g g..→/b/c/g.. ..g→/b/c/..g
        ./../g→/b/g ./g/.→/b/c/g/ g/./h→/b/c/g/h g/../h→/b/c/h g;x=1/./y→/b/c/g;x=1/y
        g;x=1/../y→/b/c/y g?y/./x→/b/c/g?y/./x g?y/../x→/b/c/g?y/../x g#s/./x→/b/c/g#s/./x
        g#s/../x→/b/c/g#s/../x"""  # RFC 3986 5.4.1, 5.4.2, but for http:g

    def test_references(self) -> None:
        base = parse_url("http://a/b/c/d;p?q")
        self.alike(lambda reference: str(join_url(base, reference))[len("http://a"):], [
            *(pair.split("→") for pair in self.EXAMPLES.split()),
            # beyond the RFC's list: what is there stays there
            ("?", "/b/c/d;p?"), ("a//b", "/b/c/a//b"), ("/a//../b", "/a/b"),
            ("%2e%2e/g", "/b/c/%2e%2e/g"), ("/%2F", "/%2F"), ("é b", "/b/c/%C3%A9%20b"),
            ("./x:y", "/b/c/x:y"), ("/x:y", "/x:y"), ("?x:y", "/b/c/d;p?x:y"),
            ("\\\\evil/x", "/b/c/\\\\evil/x"), ("/caf\udce9", "/caf%E9"),
            ("\udc85?\udcff#\udce9", "/b/c/%85?%FF#%E9"), ("http://a/x/../g", "/g"),
            ("//a/./\udce9", "/%E9")])

    def test_params(self) -> None:
        for given, params, target in [
                ("/", {}, "/"), ("/?", {"a": 1}, "/?a=1"), ("/?a=1", {"a": 2}, "/?a=1&a=2"),
                ("/", {"a": None}, "/"), ("/", {"a": ""}, "/?a="), ("/#f", {"a": 1}, "/?a=1#f"),
                ("/?a=1&", [("b", 2)], "/?a=1&&b=2"), ("/a&", {"b": 2}, "/a&?b=2"),
                ("/", {"a": True, "b": False}, "/?a=true&b=false"),
                ("/", {"a": [1, "x", None]}, "/?a=1&a=x"), ("/", {"a": b"\xff"}, "/?a=%FF"),
                ("/", {"a": (True, .5)}, "/?a=true&a=0.5"), ("/", {"a": "\r\n"}, "/?a=%0D%0A"),
                ("/", {"a b": "c&d=e#f/é+"}, "/?a+b=c%26d%3De%23f%2F%C3%A9%2B")]:
            carried: Any = asyncget.checked({"params": params})["params"]
            made = asyncget.add_params(parse_url("http://h" + given), carried)
            self.assertEqual(str(made), "http://h" + target)
        self.refuses(InvalidURL, "not Unicode", asyncget.add_params, parse_url("http://h"),
                     (("a", "\ud800"),))


class Section3RequestBytes(Tables):
    """One head, checked as a whole: no text of a caller's becomes a line of its own."""

    def test_first_lines(self) -> None:
        """What is sent of good ones: test_the_request."""
        # CVE-2019-9740, CVE-2022-31150
        for target in ["/x HTTP/1.1\r\nY: 2", "/ ", "/\t", "/\0", "/\x7f", "/é", "/\u2028", "/\n"]:
            self.refuses(InvalidURL, "not a request target", render_request, target, b"\r\n")

    def test_merge(self) -> None:
        base = (("Host", ""), ("Accept", "*/*"), ("X", "1"))
        closing = (*base, asyncget.CLOSE_FIELD)
        self.alike(lambda headers: merge_fields(base, headers), [
            ({}, base), ([], base), ({"x": "2"}, (*base[:2], ("x", "2"))), ({"X": None}, base[:2]),
            ({"HOST": "b"}, (("HOST", "b"), *base[1:])), ({"host": None}, base[1:]),  # 9110 7.2
            ([("x", "2"), ("X", "3")], (*base[:2], ("x", "2"), ("X", "3"))),
            ([["Y", ""]], (*base, ("Y", ""))), ({"X": None, "x": "4"}, (*base[:2], ("x", "4"))),
            ([("Y", "close"), ("Host", "b")], (("Host", "b"), *base[1:], ("Y", "close"))),
            # what other clients send, and what is said about our end of the connection
            *[({name: value}, base) for name, value in [
                ("Connection", "keep-alive"), ("connection", "Keep-Alive, TE"),
                ("Keep-Alive", "timeout=5"), ("TE", "Trailers"), ("Proxy-Connection", "Keep-Alive"),
                ("CONTENT-LENGTH", "0"), ("Connection", "Upgrade"), ("TE", "gzip"),
                ("Keep-Alive", "a\r\nb: c"), ("Expect", "")]], *[({"connection": value}, closing)
              for value in ("close", " Close", "TE, close", "close, keep-alive", "close\r\nX: 1")]])
        self.alike(lambda value: merge_fields(closing, {"connection": value}),
                   [("keep-alive", base), (None, base), ("close", closing)])

    def test_codings_asked_for(self) -> None:
        self.alike(lambda asked: asyncget.with_codings((("accept-encoding", asked),), True)[0][1], [
            ("gzip, deflate", "gzip, deflate"), ("GZip;q=0.5 ,x-gzip, br", "GZip;q=0.5"),
            ("br;q=1.0, gzip;q=0.8, *;q=0.1", "gzip;q=0.8"), ("identity;q=1, br", "identity"),
            ("br", "identity"), ("", ""), (",,", "identity"), ("gzipp, xgzip, gzip2", "identity"),
            ("*", "identity"), ("?", ours := asyncget.ACCEPT_ENCODING)])
        given = ("accept-encoding", "gzip"), ("X", "1")  # name and place stay the caller's
        self.assertEqual(asyncget.with_codings(given, True), given)
        self.alike(lambda asked: dict(asyncget.with_codings((  # 9110 12.5.3: no part unpacks
            (name := "Accept-Encoding", asked), ("range", "bytes=0-4")), True))[name], [
                (ours, ours), ("?", "identity"), ("gzip", "gzip")])

    BAD: dict[str, list[Any]] = {  # by what is said about them
        "value of X has": [{"X": SECRET + end}  # CVE-2016-5699
                           for end in ("\r\nY: 2", "\n", "\r", "\0", "\x1b", "\x7f")],
        "not a field name": [{name: "1"}  # GHSA-86v3-rrw9-q5mg, 9110 5.1
                             for name in ("X\r\nY", "X:", "", "X ", " X", "é", "X(")],
        "headers must be": [{b"X": "1"}, {"X": SECRET.encode()}, {"X": 1}, {"X": ["1"]}, {1: "1"}],
        "not Unicode": [{"X": "\ud800"}],
        "value of Host has": [{"Host": "a\r\nX: 1"}],  # CVE-2023-29406
        "not a value for Host": [{"Host": host} for host in ("a b", "a/b", "u@h", "a:b", "é")],
        "second": [[("Host", "a"), ("host", "b")]],    # CVE-2026-1527; 9112 3.2
        "is not a caller's": [  # RUSTSEC-2020-0008
            {"Content-Length": "5"}, {"Content-Length": "0, 0"}, {"Expect": "100-continue"},
            {"Proxy-Authorization": SECRET}, {"Trailer": "x"}, {"Transfer-Encoding": "chunked"},
            {"UPGRADE": "h2c"}]}

    def test_bad_headers(self) -> None:
        for said, rows in self.BAD.items():
            for headers in rows:
                self.refuses(InvalidHeader, said, lambda headers: render_fields(
                    merge_fields(asyncget.DEFAULT_FIELDS, headers), HERE), headers)

    def test_good_values_go_out_as_given(self) -> None:
        self.alike(lambda field: render_fields((field,), HERE)[:-4], [
            (("X", ""), b"X: "), (("X", "a\tb  c"), b"X: a\tb  c"),
            (("X", "é\x85\u2028"), b"X: \xc3\xa9\xc2\x85\xe2\x80\xa8"),
            (("Cookie", "a=\udce9\udc85é"), b"Cookie: a=\xe9\x85\xc3\xa9"),  # octets as they came
            (("!#$%&'*+-.^_`|~9z", "1"), b"!#$%&'*+-.^_`|~9z: 1"), (("Host", ""), b"Host: h"),
            (("HOST", "a.test:81"), b"HOST: a.test:81"), (("Host", "[::1]:1"), b"Host: [::1]:1")])

    def test_auth(self) -> None:
        self.alike(asyncget.render_auth, [
            (("Aladdin", "open sesame"), "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="),  # 7617 2, 2.1
            (("test", "123\u00a3"), "Basic dGVzdDoxMjPCow=="), (["u", ""], "Basic dTo="),
            (("", "a:b"), "Basic OmE6Yg=="), ("tok.en", "Bearer tok.en")])
        self.alike(asyncget.split_userinfo, [
            ("u:p", ("u", "p")), ("u", ("u", "")), ("u:a:b", ("u", "a:b")), (":", ("", "")),
            ("a%40b:p%3A%C3%A9", ("a@b", "p:é"))])
        for bad in [(f"u:{SECRET}", "x"), ("u", f"{SECRET}\r"), (f"{SECRET}\0", ""), ("u",), None,
                    ("u", SECRET, "x"), (1, SECRET), (SECRET, None), (b"u", SECRET.encode()), 5,
                    ("u", f"{SECRET}\ud800"), asyncget.split_userinfo(f"u:{SECRET}%0d%0a")]:
            # CVE-2012-0036
            self.refuses(InvalidHeader, "", asyncget.render_auth, bad)
        self.refuses(InvalidHeader, "Authorization", render_fields,
                     (("Authorization", asyncget.render_auth(f"{SECRET}\r\nX: 1")),), HERE)

class Section4ResponseHead(Tables):
    """A head is read in one way, or refused with the line that does not fit.

    How long it may be is tested over the wire: Endless.
    """

    LINE = b"HTTP/1.1 200 OK\r\n"

    def test_status_lines(self) -> None:
        def parts(line: bytes) -> tuple[int, int, str]:
            parsed = asyncget.parse_head(line + b"\r\n\r\n")
            return int(parsed.raw[7:8]), parsed.status, asyncget.status_reason(parsed.raw)

        self.alike(parts, [(b"HTTP/1.0 404 Not Found", (0, 404, "Not Found")),
            (b"HTTP/1.1 200 ", (1, 200, "")), (b"HTTP/1.1 200", (1, 200, "")),  # 9112 4: no reason
            (b"HTTP/1.1 200 OK", (1, 200, "OK")), (b"HTTP/1.2 200 OK", (2, 200, "OK")),  # 9110 2.5
            (b"HTTP/1.1 299 x", (1, 299, "x")), (b"HTTP/1.1 999", (1, 999, "")),  # 9110 15
            (b"HTTP/1.1 200 O\x1bK", (1, 200, "O\x1bK")), (b"HTTP/1.1 200 \xe9", (1, 200, "é")),
            (b"HTTP/1.1  200 OK", (1, 200, "OK")), (b"HTTP/1.0   401  x", (0, 401, "x"))])
        for line in [  # 9112 2.3, 4, CVE-2025-69225
                b"http/1.1 200 OK", b"HTTP/1.10 200 OK", b"ICY 200 OK", b"HTTP/2 200", b"<html>",
                b"HTTP/2.0 200", b"HTTP/1.1 2000 OK", b"HTTP/1.1 20 OK", b"HTTP/1.1 +20 OK", b"",
                b"HTTP/1.1 099", "HTTP/1.1 ²²² OK".encode(), "HTTP/1.1 ٢٠٠".encode(), b"HTTP/1 200",
                b" HTTP/1.1 200", b"HTTP/1.1\t200 OK", b"HTTP/1.1 200OK", b"HTTP/1.1 2  00",
                b"HTTP/1.1 200 O\rK", b"HTTP/1.1 200 O\0K", b"HTTP/1.1 200 OK\r"]:
            self.refuses(ProtocolError, f"not an HTTP/1 status line: {shown(line + b'!')[:-2]}",
                         asyncget.parse_head, line + b"\r\n\r\n")

    def test_fields(self) -> None:
        def parts(fields: bytes) -> dict[str, str]:
            return dict(Headers.parse(asyncget.parse_head(self.LINE + fields + b"\r\n").raw))

        self.alike(parts, [
            (b"", {}), (b"A: 1\nB: 2\n", {"A": "1", "B": "2"}),                    # 9112 2.2: LF
            (b"X: 1\r\n 2\r\n\t 3\r\nY: 4\r\n", {"X": "1 2 3", "Y": "4"}),  # 9112 5.2: fold
            (b"X: 1\r\n \r\n", {"X": "1"}), (b"X: 1\r\n \x01\r\n 2\r\n", {"X": "1 \x01 2"}),
            (b"X:\t 1 2 \t\r\nY:\r\nZ:z\r\n", {"X": "1 2", "Y": "", "Z": "z"}),
            (b"X: \xff\x85\xe2\x80\xa8\r\n", {"X": "ÿ\x85â\x80¨"}),              # octets
            (b"X: 1\r\nY: 2\r\nx: 3\r\n", {"X": "1, 3", "Y": "2"}),              # 9110 5.3: repeats
            (b"X: a\x01\x0b\x0c\x7fb\x1b\r\n", {"X": "a\x01\x0b\x0c\x7fb\x1b"}),
            (b"Set-Cookie: u=a\x01b\n", {"Set-Cookie": "u=a\x01b"}),
            (b"!#$%&'*+-.^_`|~9: 1\r\n", {"!#$%&'*+-.^_`|~9": "1"})])
        self.assertEqual(asyncget.check_fields(b"X: 1\n 2\n\n"), b"X: 1 2\n\n")
        for before, bad, behind in [
                (b"", b" X: 1", b""), (b"", b"\tX: 1", b""), (b"A: 1\r\n", b"B", b""),
                (b"", b": 1", b""), (b"", b"X\x01: 1", b""), (b"", b"\x7fX: 1", b""),
                (b"", b"\xc3\xa9: 1", b""), (b"", b"X: 1\r", b""),
                (b"", b"X: a\0b", b""),                                            # CVE-2026-34520
                (b"", b"X: \rTransfer-Encoding: chunked", b""),                    # CVE-2023-30589
                (b"", b"X: a\rContent-Length: 0", b"Content-Length: 5\r\n"),       # 9112 2.2
                (b"", b" Content-Length: 3", b"Content-Length: 5\r\n"),
                (b"", b"Content-Length : 3", b""),                                 # CVE-2019-16276
                (b"", b"A B: 1", b""), (b"X: 1\r\n", b"\rY: 2", b"")]:  # CVE-2015-5740, -2022-32213
            self.refuses(ProtocolError, f"not a field line: {shown(bad)[:-1]}", asyncget.parse_head,
                         self.LINE + before + bad + b"\r\n" + behind + b"\r\n")

    def test_octets(self) -> None:  # 9110 5.5, 6265 5.4
        for line, text, target in [(b"location: /caf\xe9", "/caf\udce9", "/caf%E9"),
                (b"LOCATION:\t/\xd6\xd0 \x83\x65 ", "/\udcd6\udcd0 \udc83e", "/%D6%D0%20%83e"),
                ("Location: /é日".encode(), "/é日", "/%C3%A9%E6%97%A5"),
                (b"Location: ", "", "/a"), (b"location: x\r\n \xe9", "x \udce9", "/x%20%E9")]:
            raw = head(b"X-Location: no", line).raw
            self.assertEqual(asyncget.octets_text(raw, "location"), [text])
            self.assertEqual(join_url(parse_url("http://h/a"), text).target, target)
        twice = head(b"Set-Cookie: a=\xff", b"X: 1", b"set-cookie:b=2").raw
        self.alike(lambda name: asyncget.octets_text(twice, name),
                   [("set-cookie", ["a=\udcff", "b=2"]), ("cookie", [])])

        self.alike(asyncget.field_text, [
            (b" a\t", "a"), (b"caf\xc3\xa9", "café"), (b"caf\xe9", "café"), (b"", ""),
            (b"\xc2\xa0a\x85", "Â\xa0a\x85"), (b"\xff\xfe", "ÿþ")])

    def test_headers(self) -> None:
        headers = Headers([("Set-Cookie", "a=1, x"), ("X", ""), ("set-cookie", "b"), ("Vary", "c")])
        self.alike(headers.get_all, [("Set-cookie", ["a=1, x", "b"]), ("no", [])])
        self.alike(headers.get, [("SET-COOKIE", "a=1, x, b"), ("x", ""), ("nope", None)])
        self.assertEqual((list(headers), len(headers), headers.pairs[2]),
                         (["Set-Cookie", "X", "Vary"], 3, ("set-cookie", "b")))
        self.assertTrue("vARY" in headers and "y" not in headers)
        headers.get_all("vary").append("changed")
        self.assertEqual(dict(headers)["Vary"], "c")
        with self.assertRaises(TypeError):
            headers["x"] = "1"  # type: ignore[index]


class Section5BodyFraming(Tables):
    """A body ends where its head says: not a byte sooner, nor later, however it arrives."""

    def test_framing(self) -> None:  # 9112 6.3
        self.alike(lambda fields: asyncget.body_framing(head(*fields)), [
            ([], "close"), ([b"Content-Length: 5"], 5), ([b"Content-Length: 0"], 0),
            ([b"Content-Length: 005"], 5), ([b"Content-Length: " + b"9" * 18], 10**18 - 1),
            ([b"Content-Length: 5, 5"], 5),                                # 9112 6.3-5: equal
            ([b"Content-Length: 5", b"content-length: 5"], 5),             # CVE-2026-1525: equal
            ([b"Transfer-Encoding: CHUNKED"], "chunked"),                  # 9112 7
            ([b"transfer-encoding: , chunked,"], "chunked"),               # 9110 5.6.1.2
            ([b"TRANSFER-ENCODING:", b"Transfer-Encoding: chunked"], "chunked"),
            ([b"X-Content-Length: 5"], "close"), ([b"TE: chunked"], "close"),
            ([b"X: content-length: 5"], "close"), ([b"Transfer-Encoding: Identity\t"], "close"),
            ([b"Transfer-Encoding: identity", b"Content-Length: 5"], 5)])  # as curl reads it
        for status, field in table((b"100", b"103", b"204", b"304"), (
                b"X: 1", b"Content-Length: 5", b"Content-Length: x", b"Transfer-Encoding: y")):
            top = head(field, status=b"HTTP/1.1 " + status)  # 9112 6.3-1: no body
            self.assertEqual(asyncget.body_framing(top), 0, top)

    def test_bad_framing(self) -> None:
        length, transfer = b"Content-Length: ", b"Transfer-Encoding: "
        for said, rows in {
                "both": [[length + b"5", transfer + b"chunked"],           # CVE-2015-5739
                         [length + b"5", transfer + b"xchunked"]],         # CVE-2022-1705
                "Transfer-Encoding is b'": [                               # 9112 6.1, 6.3-4, 7
                    [transfer + b"chunked"] * 2,                           # RUSTSEC-2021-0020
                    *[[transfer + value] for value in [
                        b"chunked, gzip", b"gzip, chunked", b"chunked, chunked", b"xchunked", b"",
                        b"chunked123", b"chunked;q=1", b"identityx",       # CVE-2023-47641
                        b"chunked\x7f", b"\x0cchunked"]]],
                "Content-Length is b'": [                                  # CVE-2026-34525, -1525
                    [length + b"5", length + b"6"], [length + b"5", b"content-length: 6"],
                    [length + b"30", length], *[[length + value] for value in [
                        b"+5", b"5, 6", b"-1",                 # RUSTSEC-2021-0078, CVE-2026-53540
                        b"", b"5\x01", b"\x0c5", b"5, 5\x0b", b"5\r\n 0", b"1_0", b"0x5", b"5\x85",
                        "٥".encode(), b"\xa05", b"5.0", b"5e3", b"9" * 5000, b"18446744073709551621",
                        b"30,", b",30", b"30,,30", b",", b"30, ,30", b"5, 05"]]]}.items():
            for fields in rows:
                self.refuses(ProtocolError, said, asyncget.body_framing, head(*fields))

    def test_reuse(self) -> None:  # 9112 9.3, 9.6
        for minor, field, framing, reuse in table([
                (1, b"Connection: x\r\nConnection: close", 5, False), (1, b"X: 1", "chunked", True),
                (0, b"Connection: keep-alive, close", 5, False), (0, b"X: 1", 5, False),
                (0, b"Connection: keep-alive\x01", 5, False), (1, b"X: 1", 5, True),
                (1, b"Connection: foo, CLOSE", 5, False), (0, b"Connection: Keep-Alive", 5, True),
                (1, b"Connection: ,, close", 5, False), (9, b"X: 1", 5, True),
                (1, b"Connection: keep-alive", "close", False), (1, b"Connection: closed", 5, True),
                (0, b"Connection: keep-alive", "chunked", False)]):  # 6.1: faulty
            top = head(field, status=b"HTTP/1.%d 200" % minor)
            self.assertIs(asyncget.may_reuse(top, framing), reuse, (field, minor, framing))
        self.alike(lambda top: asyncget.may_reuse(top, asyncget.body_framing(top)), [
            (head(b"Content-Length: " + length, status=b"HTTP/1.1 204"), length == b"0")
            for length in (b"0", b"5")] + [  # a body that may not be there, and comes all the same
            (head(b"Transfer-Encoding: chunked", status=status), False)
            for status in (b"HTTP/1.1 204", b"HTTP/1.1 304")])

    CHUNKED = [  # what arrives, the payload, the trailers
        (b"5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n", b"hello!", b"\r\n"), (b"0\r\n\r\n", b"", b"\r\n"),
        (b"b\r\nhello world\r\n00B\r\nhello world\r\n000\r\n\r\n", b"hello world" * 2, b"\r\n"),
        (b"4\r\n\r\n\r\n\r\n2\r\n0\r\r\n0\r\n\r\n", b"\r\n\r\n0\r", b"\r\n"),
        (b"1f\r\n" + b"x" * 31 + b"\r\n00010\r\n" + b"y" * 16 + b"\r\n0\r\n\r\n",
         b"x" * 31 + b"y" * 16, b"\r\n"), (b"5\r\nhello\r\n0\r\n\r\n", b"hello", b"\r\n"),
        (b'5;a="b"\r\nhello\r\n0;x\r\n\r\n', b"hello", b"\r\n"),               # 9112 7.1.1
        (b"5 \t;a = b ; c\t\r\nhello\r\n0 \r\n\r\n", b"hello", b"\r\n"),
        (b"0000000000000001\r\nx\r\n0000000000000000\r\n\r\n", b"x", b"\r\n"),
        (b"0\r\nX-Evil: y\r\nZ:\r\n\r\n", b"", b"X-Evil: y\r\nZ:\r\n\r\n"),    # 9112 7.1.2
        (b"1\r\nx\r\n0\r\nHTTP: 1\r\n\r\n", b"x", b"HTTP: 1\r\n\r\n"),         # CVE-2025-53643
        (b"0\r\nX: 1\r\n 2\r\n\r\n", b"", b"X: 1 2\r\n\r\n"),
        (b"0\r\nX: \x01\x1b\r\n\r\n", b"", b"X: \x01\x1b\r\n\r\n")]

    def test_in_all_cuts(self) -> None:
        for wire, payload, trailers in table(self.CHUNKED):
            for extra in (b"", b"\n", b"0\r\n\r\n", OK + b"\r\n"):
                for pieces in cuts(wire + extra):
                    self.assertEqual(take(pieces), (payload, extra, trailers))
            for end in range(len(wire)):  # 9112 8: cut short
                (came, more, _), = {take(filter(None, pieces)) for pieces in cuts(wire[:end])}
                self.assertEqual((payload[:len(came)], more), (came, None))

    def test_bad_chunks(self) -> None:
        for said, wires in {"not a CRLF and a chunk size: b": [  # CVE-2025-43859
                    b"5\r\nhelloXX0\r\n\r\n", b"5\r\nhello!\r\n0\r\n\r\n", b"5\r\nhello\n0\r\n\r\n",
                    b"5\r\nhell\r\n0\r\n\r\n", *[line + b"\r\nhello\r\n0\r\n\r\n" for line in [
                    b"5;a\nb", b"5;a\0", b"5;a\rb", b"5;\x01", b"5;\x7f",       # CVE-2024-52304
                    b"5\nhello", b"5\x01", b"5\x7f", b"0\x01",                  # CVE-2025-22871
                    b"-1", b"+5", b"0x5", b"0_5", "٥".encode(), b"\x0b5", b" 5",  # CVE-2017-13089
                    b"", b"\n", b"hello", b";a", b"5 a", b"0" * 17,
                    b"10000000000000005", b"8000000000000000"]]],                # RUSTSEC-2021-0079
                "not a field line: b": [b"1\r\nx\r\n0\r\n" + lines + b"\r\n\r\n" for lines in [
                    b"X", b" X: 1", b"X : 1", b"X: \0", b"X\x01: 1", b"X\x7f: 1",
                    b"X: 1\n\nHTTP/1.1 200 OK", b"\nX: 1"]]}.items():  # CVE-2025-53643
            for wire in wires:
                errors = [self.refuses(ProtocolError, said if pieces == [wire] else "", take,
                                       pieces, exit_code=56) for pieces in cuts(wire)]
                self.assertEqual(len({vars(error)["payload"] for error in errors}), 1)
        # CVE-2025-13836: the largest size is no promise
        self.assertEqual(chunks().send(b"7FFFFFFFFFFFFFFF\r\nx"), b"x")

    def test_limits_are_the_same_in_any_cut(self) -> None:  # CVE-2026-34516, CVE-2023-39326
        line = b"1;%b\r\nx\r\n"
        with patch("asyncget.MAX_EXTENSION_BYTES", 64):
            for wire, said in [
                    (line % (b"e" * 58) + b"0\r\n\r\n", ""), (line % (b"e" * 59), "chunk size"),
                    (b"5;" + b"a" * 64, "chunk size"), (b"z" * 64, "chunk size"),
                    (b"0\r\nX: " + b"y" * 55 + b"\r\n\r\n", ""),
                    (b"0\r\nX: " + b"y" * 56 + b"\r\n\r\n", "64 bytes of trailers"),
                    *((line % (b"e" * size) * 5, "extensions: over 64") for size in (20, 40)),
                    ((b"14;" + b"e" * 20 + b"\r\n" + b"x" * 20 + b"\r\n") * 9 + b"0\r\n\r\n", "")]:
                for pieces in cuts(wire):
                    if said:
                        self.refuses(ProtocolError, said, take, pieces)
                    else:
                        self.assertEqual(take(pieces)[1], b"")

    def test_only_so_many_sizes_are_remembered(self) -> None:
        """And none with its long line."""
        with patch.dict(asyncget._sizes, clear=True), patch("asyncget.MAX_REMEMBERED", 9):
            for size, extension in table(range(1, 50), (b"", b";" + b"e" * 16_000)):
                chunks().send(b"%x%b\r\n" % (size, extension))
                self.assertLess(sum(map(len, asyncget._sizes)), 9 * 99)
            self.assertLessEqual(len(asyncget._sizes), 9)


class Section8Decoding(Tables):
    """A coding is undone step by step, to its very end, or the body is refused."""

    TEXT = b"hello, hello, hello"
    CODED = [([b"gzip"], gzip.compress(TEXT)), ([b"deflate"], zlib.compress(TEXT)),
        ([b"deflate"], raw_deflate(TEXT)), ([b"gzip"], gzip.compress(TEXT) + b"\0" * 12),
        ([b"gzip"], gzip.compress(TEXT[:5]) + gzip.compress(TEXT[5:])),
        ([b"gzip"], gzip.compress(b"") + gzip.compress(TEXT) + gzip.compress(b"")),
        ([b"deflate", b"gzip"], gzip.compress(zlib.compress(TEXT))),  # 9110 8.4: in reverse
        ([b"gzip", b"deflate"] * 2 + [b"gzip"],
         gzip.compress(zlib.compress(gzip.compress(raw_deflate(gzip.compress(TEXT))))))]

    def test_in_all_cuts_and_cut_short_anywhere(self) -> None:  # zlib itself is silent
        for codings, coded in self.CODED:
            for pieces in cuts(coded):
                self.assertEqual(decode(codings, pieces), self.TEXT, pieces)
            self.assertEqual(decode(codings, []), b"")
            whole = len(coded) - 12 * coded.endswith(b"\0" * 12)
            # A member less, and a byte behind it, is still a stream: only the framing could tell.
            members = {at for at in range(18, whole)
                       if coded[at:at + 2] == b"\x1f\x8b" and len(codings) == 1}
            for end in {*range(1, whole)} - members - {at + 1 for at in members}:
                for step in (1, end):
                    pieces = [coded[at:min(at + step, end)] for at in range(0, end, step)]
                    self.refuses(DecodingError, "too early", decode, codings, pieces)

    def test_behind_the_end(self) -> None:
        for (coding,), whole in self.CODED[:3]:
            for behind in (b"\r\n", b"<!-- 5 ms -->", b"\0\0\0", b"\0\n\0", b"\x8b\x1f",
                           b"\n" + whole, self.TEXT):
                for pieces in [*cuts(whole + behind), [whole + behind * 3000]]:
                    self.assertEqual(decode([coding], pieces), self.TEXT, behind)
        for pieces in cuts(gzip.compress(gzip.compress(self.TEXT) + b"\n") + b"\n"):  # in each
            self.assertEqual(decode([b"gzip"] * 2, pieces), self.TEXT)

    def test_not_what_it_claims(self) -> None:
        # The last byte comes when all is taken in.
        self.assertEqual(decode([b"deflate"], [raw_deflate(bytes(65_537))]), bytes(65_537))
        good = gzip.compress(self.TEXT)
        for coding, coded, said in [
                (b"gzip", b"hello", "--no-compressed"), (b"deflate", b"hello", "not deflate"),
                (b"gzip", zlib.compress(b"x"), "not gzip"), (b"deflate", good, "not deflate"),
                (b"gzip", good[:-5] + b"\xff" + good[-4:], "not gzip"),  # the checksum, the length
                (b"gzip", good[:-1] + b"\xff", "not gzip"), (b"gzip", good + good[:9], "too early"),
                (b"gzip", good + b"\x1f\x8bhello", "not gzip"),
                # a dictionary
                (b"deflate", b"\x78\xbb\0\0\0\1" + raw_deflate(b"x"), "not deflate")]:
            for pieces in cuts(coded):
                self.refuses(DecodingError, said if pieces == [coded] else "",
                             decode, [coding], pieces)

    def test_codings(self) -> None:
        def found(*fields: bytes) -> list[bytes]:
            return asyncget.content_codings(head(*fields).fields.get(b"content-encoding", b""))

        self.alike(lambda value: found(b"Content-Encoding: " + value), [
            (b"deflate\r\ncontent-encoding: , gzip", [b"deflate", b"gzip"]),
            *((name, []) for name in (b"", b"identity", b"None", b"UTF-8", b"binary", b"8bit",
                                      b"aws-chunked", b"ISO-8859-1", b"base64", b"text/plain")),
            (b"aws-chunked,gzip", [b"gzip"]), (b"GZIP", [b"gzip"]), (b"x-gzip", [b"gzip"]),
            (b"none, gzip,", [b"gzip"]), (b"gzip, identity,identity,gzip", [b"gzip", b"gzip"])])
        for value, said in [(b"br", "'br'"), (b"gzip, br", "'br'"), (b"compress", "'compress'"),
                (b"gzip;q=1", "gzip;q=1"), (b"gzip\x01", r"gzip\x01"), (b"\xff\x85", r"\xff\x85"),
                (b",".join([b"gzip"] * 6), "at most 5"),                        # CVE-2025-66418
                (b",".join([b"gzip"] * 1000), "1000 content codings"),          # CVE-2022-32206
                # CVE-2023-23916
                (b"\r\nContent-Encoding: ".join([b"gzip"] * 100), "100 content codings")]:
            self.refuses(DecodingError, said, lambda field: decode(found(field), [b"x"]),
                         b"Content-Encoding: " + value)

    @unittest.skipUnless("zstd" in asyncget.ACCEPT_ENCODING, "no zstd before 3.14")
    def test_zstd(self) -> None:
        from compression import zstd  # type: ignore[import-not-found, unused-ignore]
        coded, two = zstd.compress(self.TEXT), [self.TEXT[:5], self.TEXT[5:]]
        self.assertEqual(asyncget.content_codings(b"zstd"), [b"zstd"])
        for pieces in [*cuts(coded), *cuts(coded + b"\n<!-- -->"), [*map(zstd.compress, two)]]:
            self.assertEqual(decode([b"zstd"], pieces), self.TEXT)
        for end in range(1, len(coded)):
            self.refuses(DecodingError, "", decode, [b"zstd"], [coded[:end]])
        self.refuses(DecodingError, "not zstd", decode, [b"zstd"], [b"hello"])
        pieces = list(decoded([b"zstd"], [zstd.compress(bytes(1 << 22))]))
        self.assertLessEqual(max(map(len, pieces)), asyncget.MAX_DECODED_STEP_BYTES)
        self.assertEqual(sum(map(len, pieces)), 1 << 22)
        wide = {zstd.CompressionParameter.window_log: 27}  # RFC 9659: 8 MiB and no more
        self.refuses(DecodingError, "not zstd", decode, [b"zstd"],
                     [zstd.compress(random.Random(6).randbytes(1 << 25), options=wide)])

    # Of WHATWG's labels those that servers use, by the codec: what browsers take them for, but for
    # ascii, iso8859-1 and -9, whose C1 controls nobody misses. For some Python alone knows less.
    LABELS = {
        "utf-8": "utf8 UTF8", "utf-8-sig": "utf-8-sig", "utf-16-be": "utf-16be", "cp866": "866",
        "ascii": "us-ascii", "iso8859-8": "hebrew ISO-8859-8-I", "koi8-r": "cskoi8r",
        "mac-roman": "x-mac-roman", "mac-cyrillic": "x-mac-cyrillic", "iso8859-1": "latin1",
        "cp874": "windows-874 Windows-874", "cp1250": "windows-1250 x-cp1250",
        "cp1252": "windows-1252 x-cp1252", "iso8859-9": "iso-8859-9 l5", "cp950": "big5 x-big5",
        "gb18030": "chinese gb2312 gbk x-gbk gb18030", "cp949": "euc-kr windows-949 ks_c_5601-1987",
        "euc_jp": "euc-jp x-euc-jp", "iso2022_jp": "csiso2022jp", "iso8859-11": "iso-8859-11",
        "cp932": "csshiftjis ms932 shift-jis Shift_JIS sjis windows-31j x-sjis"}
    NO_TEXT = """rot13 hex base64 zlib mbcs punycode idna undefined unicode_escape utf-7 quopri uu
        oem charmap aliases x-x- x- windows-99999 cp65000 nonsense ../../x cp037 ibm037 iso-2022-jp-2"""

    def test_charsets(self) -> None:
        self.alike(asyncget.charset_of, [
            ("", "utf-8"), ("text/html", "utf-8"), ("text/html; charset=", "utf-8"),
            ("text/html ; x=y; CharSet = 'utf-16'", "utf-16"), ("a/b; charset=\xe9", "utf-8"),
            ("text/html; charset=windows-1252; x", "cp1252"), ("a/b; xcharset=latin-1", "utf-8")])
        for codec, labels in [*self.LABELS.items(), ("utf-8", self.NO_TEXT)]:
            for label in labels.split():
                for text in (f"a/b; charset={label}", f'a/b;x=y;CHARSET = "{label.upper()}"'):
                    self.assertEqual(asyncget.charset_of(text), codec, text)

    def test_every_charset_decodes_everything(self) -> None:
        junk = random.Random(6).getrandbits(8 * 4001).to_bytes(4001, "big")
        found = {asyncget.charset_of(f"a/b; charset={name}") for name in {
            *encodings.aliases.aliases, *encodings.aliases.aliases.values(), *self.LABELS}}
        self.assertGreater(len(found), 75)
        for codec in found:
            self.assertIsInstance(junk.decode(codec, "replace"), str)
            self.assertEqual("a\nb".encode(codec).count(b"\n"), 1, codec)  # iter_lines cuts there
            if not codec.startswith(("utf-16", "utf-32")):
                self.assertEqual(b"\n".decode(codec), "\n", codec)

    def test_a_server_cannot_fill_the_table_of_codecs(self) -> None:  # it keeps unknown names, too
        with patch("codecs.lookup") as lookup:
            for name in ("x" * 99_999, "iso8859" + "1" * 99_999, "x-" * 50_000, "iso_8859_77",
                         "x", "-"):
                self.assertEqual(asyncget.charset_of(f"a/b; charset={name}"), "utf-8")
        lookup.assert_not_called()


ROUTE = asyncget.Route(Origin("http", "h", 80), None, None, None)


class NoDeadline(asyncget.Deadline):
    """A deadline where there is no loop."""

    async def breathe(self, seconds: float = 0.0) -> None:
        """Nobody else is there."""

    def within(self, _: float) -> Any:
        """For as long as it takes."""
        return suppress(AsyncGetError)


class Source:
    """What a Body asks of a connection, on pieces that never wait. An exception is raised."""

    def __init__(self, *pieces: bytes | BaseException, rest: bytes = b"") -> None:
        self.pieces, self.rest = iter(pieces), rest
        self.asked = self.aborted = self.kept = 0
        self.addresses, self.route, self.owner = None, ROUTE, self
        self.exchanges, self.request_bytes = 1, 0
        self.deadline, self.expired, self.since = NoDeadline(), False, 0.0
        self.loop = types.SimpleNamespace(time=lambda: 9.0)

    def watch(self, phase: str) -> None:
        pass

    async def receive(self) -> bytes:
        self.asked += 1
        piece = next(self.pieces, b"")
        if isinstance(piece, BaseException):
            raise piece
        return piece

    def ended_cleanly(self) -> bool:
        return True

    def keep(self, _: object) -> None:
        self.kept += 1

    def close(self) -> None:
        self.aborted += 1


def run(coroutine: Any) -> Any:
    """The result of a coroutine that has nothing to wait for."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it waits")


def response(*pieces: bytes | BaseException, fields: Iterable[bytes] = (), url: str = "http://h/",
             status: bytes = b"HTTP/1.1 200 OK", read: bool = False, decode: bool = True,
             done: bool = False, source: Source | None = None) -> Response:
    """A Response on a connection that plays pieces; `done`: all came with the head."""
    fields, source = list(fields), source or Source(*pieces)
    if done:
        source = Source(rest=b"".join(pieces))  # type: ignore[arg-type]
        fields += [b"Content-Length: %d" % len(source.rest)]
    top = head(*fields, status=status)
    answer = Response(top, parse_url(url), source, True, decode)  # type: ignore[arg-type]
    if read:
        run(answer.read())
    return answer


async def listed(items: Any) -> list[Any]:
    return [item async for item in items]


GZIP = b"Content-Encoding: gzip"


def framed(body: bytes, framing: asyncget.Framing) -> tuple[list[bytes], bytes]:
    """The fields and the bytes of a body: sized, "chunked" (in uneven chunks) or "close"."""
    if framing == "chunked":
        wire = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk)
                        for chunk in (body[:1], body[1:6], body[6:]) if chunk)
        return [b"Transfer-Encoding: chunked"], wire + b"0\r\n\r\n"
    return [] if framing == "close" else [b"Content-Length: %d" % len(body)], body


def arrivals(wire: bytes) -> dict[str, partial[Source]]:
    """Connections on which the bytes behind a head come so or so."""
    half = len(wire) // 2
    ways = {"with the head": partial(Source, rest=wire), "late": partial(Source, wire),
            "half and half": partial(Source, wire[half:], rest=wire[:half])}
    if len(wire) < 1000:
        ways["byte by byte"] = partial(Source, *(bytes([byte]) for byte in wire))
    return ways


def perform(got: Response, program: Iterable[str]) -> tuple[bytes, list[str]]:
    """All that is handed out by what is called in turn, and what else comes of it.

        look, read              content (text and json alike), read()
        bytes, lines            all of an iteration
        piece, line             one step of it, then break
    """
    async def step(word: str) -> None:
        if word == "look":
            told.append(got.text if got.content == got.text.encode() else "different")
            if told[-1]:
                got.json()
        elif word == "read":
            told.append((await got.read()).decode())
        else:
            pieces: Any = got.iter_bytes() if word in ("bytes", "piece") else got.iter_lines()
            async for piece in pieces:
                handed.append(piece if isinstance(piece, bytes) else piece.encode() + b"\n")
                if word in ("piece", "line"):
                    break

    handed: list[bytes] = []
    told: list[str] = []
    for word in program:
        try:
            run(step(word))
        except AsyncGetError as error:
            told.append(f"{type(error).__name__}: {str(error)[:25]}")
    return b"".join(handed), told


class Section7Response(Tables):
    """What the caller holds is the head as sent and the body whole, or an error says why not."""

    def test_head(self) -> None:
        got = response(fields=[b"Vary: a", b"X: \xe9\r\n 2"], status=b"HTTP/1.0 404 F\xc3\xb6und",
                       url=f"http://u:{SECRET}@h:81/x?y#z")
        self.assertEqual((got.status, got.status_code, got.reason, got.http_version, got.url),
                         (404, 404, "Föund", "HTTP/1.0", "http://h:81/x?y#z"))
        self.assertEqual((dict(got.headers), got.history), ({"Vary": "a", "X": "é 2"}, []))
        self.assertIs(got.headers, got.headers)
        self.assertEqual(repr(got), "<Response 404 http://h:81/x?y#z>")
        self.assertNotIn(SECRET, repr(got._url) + str(got._url))

    def test_raise_for_status(self) -> None:
        for status in (200, 399, 400, 999):
            reason = b"\x9b\xe2\x80\xae!" + b"A" * 100_000  # GO-2025-4155
            got = response(status=b"HTTP/1.1 %d %b" % (status, reason), url=f"http://u:{SECRET}@h/")
            self.assertIs(got.ok, status < 400)
            if got.ok:
                self.assertIs(got.raise_for_status(), got)
            else:
                self.refuses(StatusError, str(status), got.raise_for_status,
                             url="http://h/", response=got)

    def test_an_error_that_is_kept_keeps_no_body(self) -> None:
        """It holds its frames, and these hold their variables."""
        for limit in (None, 900):  # IncompleteBody, TooLarge
            got = response(fields=[b"Content-Length: 2000"], source=Source(b"x" * 500, b"x" * 499))
            with suppress(AsyncGetError):  # assertRaises would clear the frames
                try:
                    run(got.read(limit))
                finally:
                    for frame, _ in traceback.walk_tb(sys.exc_info()[2]):
                        held = frame.f_locals.get("content"), frame.f_locals.get("piece")
                        self.assertIn(held, [(None, None), (b"", b"")])

    def test_read_and_close(self) -> None:
        coded, source = gzip.compress(b"hello"), Source(b"a", b"b")
        self.alike(lambda got: (got.content, got.received), [
            (response(coded, fields=[GZIP], read=True), (b"hello", len(coded))),
            (response(coded, fields=[GZIP], decode=False, read=True), (coded, len(coded))),
            (response(fields=[b"Content-Encoding: br"], read=True), (b"", 0))])  # whole even so
        got, whole, long = response(source=source), response(b"ab", read=True), response(b"abc")
        for each in (got, got, whole):
            each.close()
        self.refuses(AsyncGetError, "given up", lambda: got.content, response=got)
        self.refuses(TooLarge, "more than 2", lambda: run(long.read(2)), response=long, limit=2)
        self.assertEqual((source.aborted, run(whole.read())), (1, b"ab"))

    BODY = b'[1,\n"two",\n3]\n'
    FRAMINGS: tuple[asyncget.Framing, ...] = (0, "chunked", "close")
    UNREAD = "AsyncGetError: the body was not read: aw"
    PIECES = "AsyncGetError: the body was handed out i"
    LINES = "AsyncGetError: the body was begun as lin"
    GIVEN_UP = "AsyncGetError: the body was given up, or"

    def test_programs(self) -> None:
        """Whatever is called in whatever order: the same for all timings, framings, codings."""
        body, text = self.BODY, self.BODY.decode()
        expected: dict[str, tuple[bytes, list[str]]] = {**dict.fromkeys([
                "", "bytes", "bytes bytes", "lines lines", "piece", "piece piece line", "line",
                "line line", "bytes line", "lines piece"], (body, [])),
            **dict.fromkeys(["line bytes", "line line piece"], (body, [self.LINES])),
            **dict.fromkeys(["piece look read", "line read look"], (body, [self.PIECES] * 2)),
            **dict.fromkeys(["bytes read", "lines look"], (body, [self.PIECES])),
            "look": (body, [self.UNREAD]), "look read look": (body, [self.UNREAD, *[text] * 2]),
            "read bytes lines": (body * 3, [text]), "read line line": (body[:4] * 2 + body, [text])}
        words = ("look", "read", "bytes", "lines", "piece", "line")
        programs = {*expected, *map(" ".join, itertools.product(words, repeat=2))}
        outcomes = {(body, program): outcome for program, outcome in expected.items()}
        codings: dict[bytes, Any] = {
            b"identity": bytes, b"deflate, gzip": lambda data: gzip.compress(raw_deflate(data))}
        for content, coding, framing in table((body, b""), codings, self.FRAMINGS):
            fields, wire = framed(codings[coding](content), framing)
            fields += [b"Content-Encoding: " + coding]
            for (when, source), program in table(arrivals(wire).items(), programs):
                got = response(fields=fields, source=source())
                rest = "lines" if "line" in program else "bytes"
                outcome = perform(got, [*program.split(), rest])
                self.assertEqual(outcome, outcomes.setdefault((content, program), outcome),
                                 (program, fields, when))

    def test_what_came_is_handed_out_before_the_error(self) -> None:
        sized, chunked = [b"Content-Length: 99"], [b"Transfer-Encoding: chunked"]
        coded = gzip.compress(b"hello\nx")
        for fields, wire, handed, error, said in [
                (sized, b"hello\nx", b"hello\nx", IncompleteBody, "7 bytes of the body, which has 99"),
                (chunked, b"6\r\nhello\n\r\n9\r\nx", b"hello\nx", IncompleteBody, "7 bytes of the body"),
                (chunked, b"7\r\nhello\nx\r\n0\r\n", b"hello\nx", IncompleteBody, "7 bytes"),
                (sized, b"", b"", IncompleteBody, "0 bytes of the body, which has 99"),
                (chunked, b"6\r\nhello\n\r\n1\r\nxxx", b"hello\nx", ProtocolError, "not a CRLF"),
                ([GZIP], coded[:-1], b"hello\nx", DecodingError, "too early"),
                ([GZIP, *sized], coded[:-1], b"hello\nx", IncompleteBody, "which has 99"),
                ([GZIP], coded + b"\x1f\x8bxxxxxxx", b"hello\nx", DecodingError, "not gzip"),
                ([GZIP], b"hello", b"", DecodingError, "not gzip"),
                ([b"Content-Encoding: br"], b"hello", b"", DecodingError, "'br'")]:
            for pieces, came in table(cuts(wire), (0, 1)):
                with self.subTest(said, pieces=pieces, came=came):
                    for word, part in [("bytes", handed), ("lines", handed[:6]), ("read", b"")]:
                        got = response(fields=fields, source=Source(
                            *filter(None, pieces[came:]), rest=b"".join(pieces[:came])))
                        outcome, told = perform(got, [word, "look", "read", "bytes", "lines"])
                        self.assertEqual(outcome, part)
                        self.assertTrue(told[0].startswith(error.__name__ + ":"), told)
                        self.assertEqual([text[:40] for text in told[1:]], [self.GIVEN_UP] * 4)
            got = response(wire, fields=fields)
            caught = self.refuses(error, said, lambda: run(got.read()),  # noqa: B023
                                  response=got, url="http://h/")
            if error is IncompleteBody:
                self.assertEqual((caught.received, caught.expected),
                                 (got.received, 99 if "99" in said else None))

    def test_what_was_given_up_never_looks_whole(self) -> None:
        """Not after what ended a read amid the body, nor in a copy; not even where all has come."""
        async def close(got: Response) -> None:
            got.close()

        async def close_amid(pieces: Any) -> None:
            async for _ in pieces:
                got.close()

        for end, kind, got in table([*((end, kind, response(*pieces, done=len(pieces) == 1))
                  for pieces in ([b"hel", b"lo"], [b"hello"]) for end, kind in (
                      (lambda got: got.read(3), TooLarge), (close, None),
                      (lambda got: close_amid(got.iter_bytes()), AsyncGetError),
                      (lambda got: listed(got.iter_lines()), TooLarge))),
                (lambda got: close_amid(got.iter_lines()), AsyncGetError, response(b"a\n", b"b\n")),
                *((Response.read, type(error), response(b"he", error)) for error in (
                    KeyboardInterrupt(), asyncio.CancelledError(), ValueError("of a transport's"))),
                *((asyncget.discard, None, response(b"hello", done=done, fields=fields))
                  for done in (False, True) for fields in ([], [GZIP]))]):
            with patch("asyncget.MAX_LINE_CHARS", 3), \
                    self.assertRaises(kind) if kind else contextlib.nullcontext():
                run(end(got))
            self.assertIsNone(got._connection)
            for twin in (got, copy.deepcopy(got), pickle.loads(pickle.dumps(got))):
                self.assertEqual(perform(twin, ["look", "read", "bytes", "lines", "piece"]),
                                 (b"", [self.GIVEN_UP] * 5), (end, got))

    def test_a_short_body_behind_a_status_error(self) -> None:
        async def leave(got: Response) -> None:
            call = asyncget.Streaming(session, "", session.settings)
            call.response, call.deadline = got, NoDeadline()
            await call.__aexit__(None, StatusError(response=got))

        limit, session = asyncget.MAX_DISCARD_BYTES, Session()
        for (body, before, told), framing, coded in table([  # before: what was done
                *((self.BODY, before, self.BODY.decode()) for before in ([], ["read"])),
                (self.BODY, ["piece"], self.GIVEN_UP), (self.BODY, ["line"], self.GIVEN_UP),
                (b"", [], ""), (b"1" * limit, [], "1" * limit),
                (b"1" * (limit + 1), [], self.GIVEN_UP)], self.FRAMINGS, (0, 1)):
            fields, wire = framed(gzip.compress(body) if coded else body, framing)
            for when, source in arrivals(wire).items():
                with self.subTest(told[:50], before=before, framing=framing, when=when):
                    got = response(fields=[*fields, *[GZIP] * coded], source=source())
                    perform(got, before)
                    run(leave(got))
                    with patch.object(Response, "json", lambda _: 1):
                        self.assertEqual(perform(got, ["look"])[1], [told])
        broken = response(b"x", IncompleteBody("cut"))
        run(leave(broken))
        self.refuses(AsyncGetError, "given up", lambda: broken.content)

    def test_discard(self) -> None:
        """A short rest is read, undecoded; what cannot be kept is hung up on without a wait."""
        keep, close, bomb = b"X: y", b"Connection: close", gzip.compress(bytes(1 << 20))
        for body, framing, field, kept, asked in table([  # body, ..., kept, asked for more
                (b"x" * 9000, 0, keep, 1, 9), (b"", 0, keep, 1, 0), (b"hello", 0, keep, 1, 1),
                (b"x" * 900, "chunked", keep, 1, 1), (b"x" * 990_000, "chunked", keep, 0, 66),
                (b"x" * 990_000, 0, keep, 0, 0), (b"x", "close", keep, 0, 0), (bomb, 0, keep, 1, 2),
                (b"x" * 9000, 0, close, 0, 0), (b"x", "chunked", close, 0, 0),
                (b"", "broken", keep, 0, 1)]):
            fields, wire = framed(body, framing)
            if framing == "broken":
                fields, wire = [b"Transfer-Encoding: chunked"], b"x\r\n"
            source = Source(*(wire[at:at + 1000] for at in range(0, len(wire), 1000)))
            got = response(fields=[*fields, field, GZIP], source=source)
            with patch("asyncget.Decoder", side_effect=AssertionError("decoded")):
                run(asyncget.discard(got))
            self.assertEqual((source.kept, source.aborted, source.asked),
                             (kept, 1 - kept, asked), (body[:9], framing, field))

    @patch("asyncget.READ_BYTES", 2)
    def test_lines(self) -> None:
        def of(codec: str, *pieces: bytes, read: bool = False) -> Response:
            fields = [b"Content-Type: a; charset=" + codec.encode()]
            return response(*filter(None, pieces), read=read, fields=fields)

        mixed = ["日", "本", "", "語"]  # in some codecs a character's bytes are a line end
        native = "utf-16-" + sys.byteorder[0] + "e"
        for codec, wire, lines in [
                ("gb18030", b"\x81\x30\n\x81", ["\ufffd0", "\ufffd"]), ("utf-32", b"a", ["\ufffd"]),
                ("", "a\x85b\u2028c\n".encode(), ["a\x85b\u2028c"]), ("latin-1", b"\xe9\n", ["é"]),
                ("", b"a\rb\x0b\x0c\x1c\n", ["a\rb\x0b\x0c\x1c"]), ("", b"\n\n", ["", ""]),
                ("utf-16", "a\nb\n".encode(native), ["a", "b"]), ("utf-16", b"\0\xd8", ["\ufffd"]),
                ("", b"a\nb\r\n\r\nc", ["a", "b", "", "c"]), ("", b"a", ["a"]), ("", b"", []),
                ("", b"\xff\n\xc3", ["\ufffd", "\ufffd"]),
                *[(codec, "日\r\n本\n\n語".encode(codec), mixed) for codec in
                  "utf-16 utf-16-le utf-32-be shift_jis iso2022_jp gb18030 utf-8-sig".split()],
                ("utf-16-be", b"\x0a\x01\x0a\x0a\x00\x0a\x01", ["\u0a01\u0a0a", "\ufffd"]),
                ("utf-16", b"\xfe\xff\0a\0\nx", ["a", "\ufffd"])]:
            self.assertEqual(run(listed(of(codec, wire, read=True).iter_lines())), lines)
            for pieces in cuts(wire):
                self.assertEqual(run(listed(of(codec, *pieces).iter_lines())), lines, pieces)
                got = of(codec, *pieces)
                handed, _ = perform(got, [*["line"] * 2, "lines"])  # goes on where it was left
                self.assertEqual(handed.decode(), "".join(line + "\n" for line in lines))

    def test_long_lines(self) -> None:
        too_long = (b"1\n", ["TooLarge: more than 10 characters i"])
        with patch("asyncget.MAX_LINE_CHARS", 10):
            for wire, then, outcome in [(b"1\n1234567890\n1", [], (b"1\n1234567890\n1\n", [])),
                                        (b"1\n12345678901", [AssertionError()], too_long),
                                        (b"1\n12345678901\n1", [], too_long)]:
                for pieces in cuts(wire):
                    self.assertEqual(perform(response(*pieces, *then), ["lines"]), outcome, pieces)
        # So much of an escape is too much for the decoder.
        escape = response(b"\x1b$" + b"a" * 9, fields=[b"Content-Type: a; charset=iso-2022-jp"])
        self.assertEqual(len(run(listed(escape.iter_lines()))), 1)

    def test_text_and_json(self) -> None:
        text = ' {"a": [1, 2.5, null, true], "b": "é\\u00e9\\ud83d\\ude00"} \n'
        for codec in ("utf-8", "utf-16", "utf-32", "utf-8-sig"):  # RFC 7159 8.1 allowed them all
            self.assertEqual(response(text.encode(codec), read=True).json(), json.loads(text))
        latin = [b"Content-Type: a; charset=latin-1"]
        got = response(b"caf\xe9", fields=latin, read=True)
        self.assertEqual((got.encoding, got.text), ("iso8859-1", "café"))
        self.assertEqual(response(b"caf\xe9", read=True).text, "caf\ufffd")
        for body in [b"", b"<html>", b'"\xff"', b'{"a": ', b"1 2", b"[" * 200_000,
                     b'{"":' * 200_000, b'"\x1b[2J"', b"\x1b]0;x\x07", b"\0\0\0", b'["\xe9"]']:
            got = response(body, fields=latin, read=True)  # 8259 8.1: not the server's to say
            self.refuses(DecodingError, "not JSON", got.json, response=got, url="http://h/")
        for name, encoding, body, text in [  # what the caller says counts
                ("latin-1", "iso8859-1", b'"\xe9"', '"é"'), ("cp437", "cp437", b'"\xe9"', '"Θ"'),
                ("x-mac-roman", "mac-roman", b'"\xe9"', '"È"'), ("nonsense", "utf-8", b"1", "1"),
                ("utf-8", "utf-8", b"\xef\xbb\xbf1", "\ufeff1")]:
            got = response(body, fields=latin, read=True)
            got.encoding = name
            self.assertEqual((got.encoding, got.text), (encoding, text))
            self.assertEqual(got.json(), json.loads(text.lstrip("\ufeff")))
        self.assertEqual(response(b"[1.50]", read=True).json(parse_float=str), ["1.50"])
        with suppress(DecodingError):  # int() has a limit, but not in old ones
            self.assertEqual(response(b"9" * 5000, read=True).json() % 10, 9)

    def test_cookies(self) -> None:
        fields = [b"Set-Cookie: a=1; Path=/; Secure", b"set-cookie: b = x=y ;HttpOnly",
                  b"Set-Cookie: junk", b"Set-Cookie: a=2", b"Set-Cookie: c=%0d%0a",
                  b"Set-Cookie: d=\"q\"", b"Set-Cookie: e="]  # CVE-2026-9679: opaque
        self.assertEqual((response(fields=fields).cookies, response().cookies),
                         ({"a": "2", "b": "x=y", "c": "%0d%0a", "d": '"q"', "e": ""}, {}))

    def test_links(self) -> None:
        self.alike(lambda value: response(fields=[b"Link: " + value]).links, [  # RFC 8288
            (b'<a>; rel=next\r\nlink: <b>; rel="prev", <c>; rel=x', {rel: {"url": url, "rel": rel}
              for url, rel in (("a", "next"), ("b", "prev"), ("c", "x"))}),
            (b'<a,;b>;title="x, <y>; rel=z";REL = "last"',
             {"last": {"url": "a,;b", "title": "x, <y>; rel=z", "rel": "last"}}),
            (b'<a>; rel="first last"',
             {name: {"url": "a", "rel": "first last"} for name in ("first", "last")}),
            (b'<a>; rel=x; rel=y; url=z', {"x": {"url": "a", "rel": "x"}}),  # 3.3: once
            (b'<a>; rel=x; flag', {"x": {"url": "a", "rel": "x", "flag": ""}}),
            (b"< >; rel='self'", {"self": {"url": "", "rel": "self"}}),
            *((junk, {}) for junk in (b"<a>", b"", b"junk", b"; rel=next", b"<a; rel=x",
                                      b'<a>; title="rel=x', b'<a>; rel=""'))])

    def test_trailers(self) -> None:  # 9112 7.1.2: never merged into the headers
        wire, fields = b"1\r\nx\r\n0\r\nX-Sum: 1\r\n\r\n", [b"Transfer-Encoding: chunked"]
        for source in (Source(wire), Source(rest=wire)):
            got = response(fields=fields, source=source, read=True)
            self.assertEqual((got.trailers["x-sum"], "x-sum" in got.headers), ("1", False))
        self.assertEqual(len(response(b"x").trailers), 0)

    def test_pickle(self) -> None:
        got = response(b"4\r\ncaf\xe9\r\n0\r\nY: 2\r\n\r\n", status=b"HTTP/1.1 404 No", read=True,
                       url="http://h/#f", fields=[b"X: 1", b"Transfer-Encoding: chunked",
                                                  b"Content-Type: t; charset=latin-1"])
        hop = response(b"moved", url="http://g/")
        run(asyncget.discard(hop))
        got.history.append(hop)
        for twin in [copy.copy(got), *(pickle.loads(pickle.dumps(got, protocol))
                                       for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1))]:
            for name in ("status", "reason", "url", "headers", "content", "text", "encoding",
                         "trailers", "received", "timing"):
                self.assertEqual(getattr(twin, name), getattr(got, name), name)
            self.assertEqual((repr(twin), run(twin.read())), (repr(got), b"caf\xe9"))
            self.assertEqual(repr(twin.history), "[<Response 200 http://g/>]")
        error = self.refuses(StatusError, "404", got.raise_for_status)
        again = pickle.loads(pickle.dumps(error))
        self.assertEqual((str(again), again.response.content), (str(error), b"caf\xe9"))
        unread = response(b"x", fields=[b"Content-Length: 2"])
        for twin_of in (copy.copy, copy.deepcopy, pickle.dumps):  # two would read from it
            self.refuses(TypeError, "once it is read", twin_of, unread)
        self.assertRaises((TypeError, AttributeError, pickle.PicklingError),
                          pickle.dumps, response(b"x"))  # it is still to come
        packed = partial(response, gzip.compress(b"x\n"), fields=[GZIP])
        for waiting in (packed(read=True), packed(done=True), response(b"x\n", done=True)):
            self.assertEqual(run(pickle.loads(pickle.dumps(waiting)).read()), b"x\n")
        for got in (packed(done=True), response(b"x\n"),
                    response(b"x\n", fields=[b"Content-Type: t; charset=gbk"])):
            perform(got, ["lines"])
            told = perform(pickle.loads(pickle.dumps(got)), ["look", "read", "bytes", "lines"])
            self.assertEqual(told, (b"", [self.PIECES] * 2))


# ==== Connection, pool, session: over loopback ================================
# Sections 7 and 9 to 12 of asyncget: raw bytes over loopback, on connections held open.


OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


def count(session: Session) -> tuple[int, ...]:
    """Connections of a session: all, idle ones, and requests that wait for one."""
    pool = session._pool
    lanes = [*pool.lanes.values()]
    return (len(pool.all), sum(len(lane.idle) for lane in lanes),
            sum(len(lane.waiting) for lane in lanes))


async def code_of(call: Any) -> Any:
    """The exit code of the error that a call ends with; else its body."""
    outcome: Any = (await gather(call, return_exceptions=True))[0]
    return outcome.content if isinstance(outcome, Response) else outcome.exit_code


async def never(*_: Any, **__: Any) -> Any:
    """Instead of asyncio.open_connection: an answer that does not come."""
    await asyncio.Event().wait()


def redirect(to: str, *fields: str, status: int = 302) -> bytes:
    """A response that sends the client elsewhere, with a body that must be read past."""
    return answer(b"gone", f"Location: {to}", *fields, status=f"{status} F")


@contextmanager
def beside(*scripts: Script, tls: ssl.SSLContext | None = None) -> Iterator[
        tuple[str, threading.Semaphore]]:
    """A server in a thread, which goes on while the loop stands still: its URL, scripts played.

    A script has bytes, READ, RESET (once all that was sent has arrived), functions, and events
    to wait for; TLS begins behind those that stand first.
    """
    played, kept = threading.Semaphore(0), []

    def play(script: Script, peer: socket.socket) -> None:
        kept.append(peer)
        for number, step in enumerate([*script, None]):
            if tls and number == sum(isinstance(one, threading.Event) for one in script[:1]):
                kept.append(peer.dup())  # so that no RST overtakes the alert of a failed handshake
                kept.append(peer := tls.wrap_socket(peer, server_side=True))
            if step is READ:
                while b"\r\n\r\n" not in peer.recv(65536):
                    pass
            elif isinstance(step, bytes):
                peer.sendall(step)
            elif isinstance(step, threading.Event):
                step.wait(TEST_SECONDS)
            elif callable(step):
                step()
            elif step is RESET:
                while fcntl.ioctl(peer, termios.TIOCOUTQ, b"\0" * 4) != b"\0" * 4:
                    time.sleep(0.001)  # until the other side's kernel has all (Linux tells)
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                peer.close()

    def serve() -> None:
        for script in scripts:
            with suppress(OSError, ValueError):  # the client, or the test, has gone
                peer = listener.accept()[0]
                peer.settimeout(TEST_SECONDS)
                peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                play(script, peer)
            played.release()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"http{'s' * bool(tls)}://127.0.0.1:{listener.getsockname()[1]}", played
        finally:
            with suppress(OSError):  # of Windows, where close() is enough to end accept()
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
            for step in itertools.chain(*scripts):
                if isinstance(step, threading.Event):
                    step.set()
            for peer in kept:
                peer.close()
            thread.join()
            for peer in kept:  # TLS may have begun meanwhile
                peer.close()


@contextmanager
def clock() -> Iterator[Callable[[float], None]]:
    """A function that moves the loop's clock on, as if the program had been busy elsewhere."""
    loop, ahead = get_running_loop(), list[float]()
    real = loop.time
    with patch.object(loop, "time", lambda: real() + sum(ahead)):
        yield ahead.append


class Double(asyncio.Transport):
    """A connection without sockets: it answers each request at once with its target."""

    made = 0
    last: Double  # that was written to
    protocol: Any = mock.Mock()

    def __init__(self, host: str, tls_name: str | None) -> None:
        super().__init__()
        self.host, self.tls_name, self.sent = host, tls_name, b""

    @classmethod
    async def connect(cls, host: str, *_: Any, server_hostname: Any = None, **__: Any) -> Any:
        cls.made += 1
        made, reader = cls(host, server_hostname), asyncio.StreamReader()
        made.protocol = asyncio.StreamReaderProtocol(reader)
        return reader, asyncio.StreamWriter(made, made.protocol, reader, get_running_loop())

    def get_protocol(self) -> Any:
        return self.protocol

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def write(self, head: Any) -> None:
        Double.last, self.sent = self, head
        self.protocol.data_received(answer(head.split(b" ")[1]))

    def is_closing(self) -> bool:
        return True  # nothing is to be closed

    def close(self, *_: Any) -> None: ...

    def abort(self) -> None:
        self.protocol.connection_lost(None)


class Section6Connection(AsyncCase):

    async def test_framings(self) -> None:
        """At once, byte by byte, or cut in two: the same body, and the connection kept or not."""
        chunked = CHUNKED + b"3;a=\"b\"\r\nhel\r\n2\r\nlo\r\n0\r\nX: y\r\n\r\n"
        interim = b"HTTP/1.1 100 Go\r\n\r\nHTTP/1.1 103\r\nLink: <x>\r\n\r\nHTTP/1.1 199\r\n\r\n"
        packed, old = gzip.compress(b"hello"), b"HTTP/1.0 200\r\nContent-Length: 5\r\n"
        behind = [answer(b"hello") + answer(b"EVIL!"), answer(b"hello") + b"\n",
                  chunked + answer(b"EVIL")]  # cut, it would come to an idle connection: section 9
        for (data, *rest), kept in table([  # steps, connection kept
                ([old + b"Connection: Keep-Alive\r\n\r\nhello"], True), ([answer(b"hello")], True),
                ([answer(b"hello", "Connection: foo, CLOSE")], False), ([chunked], True),
                ([answer(packed, "Content-Encoding: gzip")], True), ([old + b"\r\nhello"], False),
                *(([answer(b"hello").replace(b"\r\n\r\n", end)], True) for end in (
                    b"\n\n", b"\r\n\n", b"\n\r\n")), ([interim + answer(b"hello")], True),
                ([OK + b"\r\nhello", CLOSE], False), *(([data], False) for data in behind)]):
            ways = [[data]] * 3
            if data not in behind:
                ways += [bytewise(data), *([data[:i], 0, 0, data[i:]] for i in range(1, len(data)))]
            scripts = [[READ, *way, *rest] for way in ways]
            async with scripted(*([list(itertools.chain(*scripts))] if kept else scripts)
                                ) as server, Session() as session:
                for way in ways:
                    self.assertEqual((await session.get(server.url)).content, b"hello", way)
                self.assertEqual(server.connections, 1 if kept else len(ways), data)

    async def test_broken_responses(self) -> None:
        for steps, kind, code, text in table([
                ([CLOSE], IncompleteBody, 52, "empty reply"), ([RESET], IncompleteBody, 56, "lost"),
                *(([OK, end], IncompleteBody, 18, "inside the head") for end in (CLOSE, CUT)),
                ([OK + b"\r\nhello", CUT], IncompleteBody, 18, "TLS was cut off"),
                ([OK + b"\r\nhello", 0.1, RESET], IncompleteBody, 56, "lost"),
                ([b"HTTP/1.1 101 X\r\nUpgrade: h2c\r\n\r\n"], ProtocolError, 8, "101"),
                ([b"SSH-2.0-OpenSSH\r\n"], ProtocolError, 1, "SSH-2.0")]):
            async with scripted([READ, *steps], tls=server_tls() if CUT in steps else None
                                ) as server, Session(verify=False) as session:
                error = await self.raised(kind, session.get(server.url + "/x"), text,
                                          exit_code=code, url=server.url + "/x")
                self.assertEqual((type(error), server.connections), (kind, 1))
                self.assertEqual(getattr(error, "received", 0), 5 * (OK + b"\r\nhello" in steps))
                await until(lambda: not server.open)
                self.assertEqual(count(session), (0, 0, 0))
        async with always(OK + b"\r\n", *[0] * 9, b"hello", CLOSE, tls=server_tls()) as server:
            for turns in range(20):  # held up, until the end of TLS has come, or is half-way
                async with asyncget.stream(server.url, verify=False) as response:
                    with patch("asyncget.INBOX_BYTES", 1):
                        await pause(turns)
                        self.assertEqual(await response.read(), b"hello")

    @not_pypy
    async def test_addresses_with_a_scope(self) -> None:
        """They are connected to with their scope, and named without it (RFC 6874, 9110 7.2)."""
        for scheme, name in (("http", None), ("https", "fe80::1")):
            await asyncget.get(f"{scheme}://[fe80::1%25eth0]/x", open_connection=Double.connect)
            made = Double.last
            self.assertEqual((made.host, made.tls_name, field(made.sent, "host")),
                             ("fe80::1%eth0", name, ["[fe80::1]"]))
        zone = socket.if_nameindex()[0][0]
        name = socket.getnameinfo(("fe80::1", 80, 0, zone), socket.NI_NUMERICHOST)[0].split("%")[1]
        found, loop = [(socket.AF_INET6, 1, 6, "", ("fe80::1", 80, 0, zone))], get_running_loop()
        with patch("socket.getaddrinfo", return_value=found), \
                patch.object(loop, "sock_connect", mock.AsyncMock()) as connected:
            opened = await asyncget.connect_first(await asyncget.look_up("h.test"), 80)
        opened.close()
        # (host, port) is IPv4 for Windows' loop: "Invalid argument"
        self.assertEqual(connected.call_args[0], (opened, (f"fe80::1%{name}", 80, 0, 0)))

    async def test_timeouts(self) -> None:
        """In each phase, straight or through a proxy; each phase has its own time. With doubles of
        the streams that do nothing, too; but the slips of those are not hidden.
        """
        wrong = mock.AsyncMock(return_value=(mock.Mock(), mock.Mock(spec=["transport", "close"])))
        await self.raised(AttributeError, asyncget.get("http://h.test/", open_connection=wrong))
        idle: dict[str, Any] = {"open_connection": mock.AsyncMock(
            side_effect=lambda *_, **__: (asyncio.StreamReader(), mock.MagicMock()))}
        head, drip = OK + b"Content-Length: 10\r\n\r\n", [b"x", 0.05] * 10
        silence, gone, ok = {"timeout": 0.1}, {"open_connection": never}, b"\x05\x00"
        rows: list[tuple[str, list[Any], dict[str, Any], str]] = [  # schemes, steps, limit, phase
            ("https", [], silence, "connection"), ("http", [], {**silence, **gone}, "connection"),
            ("http", [], {"deadline": 0.1, **gone}, "connection"),
            *(("http", [], {key: 0.1, **idle}, "response head") for key in ("timeout", "deadline")),
            ("http", [READ], silence, "response head"),
            ("http", [READ, *(step or 0.02 for step in bytewise(head))], silence, "response head"),
            ("http", [READ, *[b"HTTP/1.1 100 C\r\n\r\n", 0.02] * 9], silence, "response head"),
            *(("http", [READ, head + b"x"], limits, "more of the body")  # the first ends it
              for limits in ({**silence, "deadline": 9}, {"deadline": 0.1, "timeout": 9})),
            ("http", [READ, head, *drip], {"timeout": 0.4}, ""),
            ("http", [READ, head, *drip], {"deadline": 0.2}, "more of the body"),
            ("http", [READ, 0.08, redirect("/x"), LOOP], {"deadline": 0.2}, "response head"),
            *(row for limit in (silence, {"deadline": 0.1}) for row in (
                ("http https", [], limit, "answer of the proxy"),
                ("http https", [READ, b"HTTP/1.1 2"], limit, "answer of the proxy"),
                ("http https", [READ, OPENED], limit, "TLS handshake"),
                ("http http", [READ], limit, "response head"))),
            *(("socks5h http", steps, silence, "answer of the proxy") for steps in (
                [], [3, ok[:1]], [3, ok], [3, ok, 13, b"\x05\x00\x00\x01"])),
            ("http https", [READ, 0.3, OPENED], {"timeout": 0.4}, "TLS handshake")]

        async def wait(schemes: str, steps: list[Any], options: dict[str, Any], phase: str) -> None:
            *via, scheme = schemes.split()
            async with scripted(steps) as server:
                begun, seconds = time.monotonic(), next(iter(options.values()))
                way = via[0] + server.url[4:] if via else None
                url = f"{scheme}://h.test/" if via else scheme + server.url[4:]
                call = asyncget.get(url, proxy=way, **options)
                if not phase:
                    self.assertEqual((await call).content, b"x" * 10)
                    return
                said = f"no {phase}.* within {seconds} s.*" + f"h.test:.* proxy {way}" * len(via)
                error = await self.raised(TimedOut, call, said, phase=phase, seconds=seconds)
                self.assertEqual([*options][0] == "deadline", "deadline" in str(error), steps)
                least = seconds + (0.3 if 0.3 in steps else 0) - 0.01
                self.assertGreaterEqual(time.monotonic() - begun, least, steps)
                await until(lambda: not server.open)

        await gather(*(wait(*row) for row in rows))
        async with scripted([HOLD]) as server:  # connected, and yet
            await self.raised(TimedOut, asyncget.get(
                f"https://localhost:{server.port}/", timeout=0.1), "no TLS handshake within 0.1 s")
        if sys.version_info >= (3, 11):  # our use of cancel() is not seen outside
            async with asyncio.timeout(5):
                await code_of(asyncget.get("http://h.test/", timeout=0.05, open_connection=never))
                task = asyncio.current_task()
                self.assertEqual(task and task.cancelling(), 0)
            with self.assertRaises(TimeoutError) as outer:
                async with asyncio.timeout(0.05):
                    await asyncget.get("http://h.test/", open_connection=never)
            self.assertIs(type(outer.exception), TimeoutError)

    async def test_the_clock_waits_for_the_user(self) -> None:
        """However slow he is: the timeout is for servers."""
        later, at_once = threading.Event(), threading.Event()
        start = OK + b"Content-Length: 6\r\n\r\n"
        script = [READ, start, later, b"abc", at_once, b"def", READ, start + b"abcdef"]

        async def turns(*seconds: float) -> None:
            for second in (*seconds, 0.0):
                busy(second)
                await pause(2 * asyncget.LAST_TURNS)

        with clock() as busy, beside(script) as (url, _):
            async with Session(timeout=1) as session, session.stream(url) as response:
                pieces = response.iter_bytes()
                for go, body in ((later, b"abc"), (at_once, b"def")):
                    if go is at_once:
                        go.set()
                    await turns(1.2, 1.2)
                    reading = ensure_future(pieces.__anext__())
                    await turns()
                    go.set()
                    self.assertEqual(await reading, body)
                self.assertEqual(await listed(pieces), [])
                self.assertEqual((await session.get(url)).content, b"abcdef")

    async def test_a_loop_that_stood_still(self) -> None:
        """A clock that ran out is believed when what lies in the kernel has been brought in."""
        start, body = OK + b"Content-Length: 4\r\n\r\n", b"abcd"
        seen: list[str] = []
        for tls, at in table((None, server_tls()), ("head", "body", "queue")):
            go, there = threading.Event(), threading.Event()
            wire = [start, go, body] if at == "body" else [go, start + body]
            script = [READ, *wire, there.set, READ, start + body]
            seen.clear()
            with self.subTest(at, tls=tls), clock() as busy, beside(script, tls=tls) as (url, _):
                async with Session(verify=False, timeout=1, limit=1,
                                   trace=lambda kind, _: seen.append(kind)) as session:
                    calls = ensure_future(session.get_all([url] * (1 + (at == "queue"))))
                    await until(lambda: ("<" if at == "body" else ">") in seen)  # noqa: B023
                    await asyncio.sleep(0.01)
                    go.set()
                    self.assertTrue(there.wait(TEST_SECONDS))
                    busy(1.2)
                    self.assertEqual({got.content for got in await calls}, {body})

    async def test_a_loop_that_stood_still_while_connecting(self) -> None:
        """Then TLS, say, had no time of its own at all, however quick the server is."""
        for tls, turns in table((None, server_tls()), (1, 2, 3, 5)):
            go = threading.Event()
            with self.subTest(tls=tls, turns=turns), clock() as busy, beside(
                    [go, READ, answer()], tls=tls) as (url, _):
                call = ensure_future(asyncget.get(url, verify=False, timeout=1))
                await pause(turns)
                busy(1.2)
                get_running_loop().call_later(0.02, go.set)
                self.assertEqual((await call).content, b"ok")

    async def test_what_came_before_a_reset(self) -> None:
        """It is handed out first; then the framing says whether it was all.
        Not on Windows: a reset throws away what came before it.
        """
        body = bytes(range(256)) * 1200
        chunked = CHUNKED + b"400\r\n%b\r\n" % body[:1024] * 300
        for (wire, code), slow in table([  # code: the error's
                (answer(body), None), (chunked + b"0\r\n\r\n", None), (OK + b"\r\n" + body, 56),
                (chunked, 56), (answer(body + b"x")[:-1], 56)], (False, True)):
            with self.subTest(wire[:50], slow=slow), beside([READ, wire, RESET]) as (url, played):
                async with asyncget.stream(url) as response:
                    if slow:
                        await asyncio.to_thread(played.acquire)
                    received, failed = b"", None
                    try:
                        async for piece in response.iter_bytes():
                            received += piece
                            await asyncio.sleep(0.01 * slow)
                    except IncompleteBody as error:
                        failed = error.exit_code
                        self.assertEqual((error.received, error.expected), (
                            len(body), len(body) + 1 if b"Content-Length" in wire else None))
                    self.assertEqual((received == body, failed), (True, code))
        with beside([READ, answer(b""), RESET], [READ, OK[:-2], RESET]) as (url, _):
            self.assertEqual([await code_of(asyncget.get(url)) for _ in range(2)], [b"", 56])

    @not_pypy
    async def test_what_is_closed_is_freed(self) -> None:
        """Collected in another order, asyncio would say that an exception was never retrieved.
        Not on Windows: a reset throws away what came before it.
        """
        with uncollected(), beside([READ, OK + b"\r\nx", RESET]) as (url, _):
            failed, = await gather(asyncget.get(url), return_exceptions=True)
            self.assertIsInstance(failed, IncompleteBody)
            self.assertNotIn(asyncio.StreamReaderProtocol, map(type, gc.get_objects()))
        async with scripted([READ, answer(), 0.01, CLOSE]) as server, Session() as session:
            with uncollected():
                await session.get(server.url)
                await until(partial(lambda kept: not kept, weakref.WeakSet(session._pool.all)))

    async def test_a_fast_server_waits_for_a_slow_reader(self) -> None:
        """CVE-2024-24750, CVE-2024-12254: what is not asked for is not read."""
        sent = 0

        def more(_: bytes) -> list[Any]:
            nonlocal sent
            sent += 65_536
            return [bytes(65_536), 0, more]  # 0: over TLS, drain() may never wait

        for tls in None, server_tls():  # straight, and over TLS in a tunnel
            sent, early = 0, -1
            async with scripted([READ, OK + b"\r\n", more], tls=tls) as server, proxy() as via, \
                    asyncget.stream(server.url, verify=False, proxy=via.url if tls else "") as got:
                await got.iter_bytes().__anext__()
                while sent != early and sent < 32 * MIB:  # most of it the kernel's
                    early = sent
                    await asyncio.sleep(0.1)
                self.assertEqual(sent, early)
                while got.received < early + MIB:  # and once it is read, more is sent
                    await got.iter_bytes().__anext__()

    async def test_timing_and_trace(self) -> None:
        lines: list[tuple[str, Any]] = []
        wire = answer()
        async with scripted([READ, 0.05, wire[:-2], 0.05, wire[-2:], LOOP]) as server, \
                Session(trace=lambda *line: lines.append(line)) as session:
            for was_reused in (False, True):
                async with session.stream(server.url) as response:
                    times, elapsed = response.timing, response.elapsed.total_seconds()
                    self.assertEqual((times.done, round(elapsed - times.head, 5)), (0, 0))
                    await response.read()
                connected, sent, head, done, reused = response.timing
                self.assertTrue(0 <= connected <= sent <= head - 0.04 <= done - 0.08)
                self.assertAlmostEqual(response.elapsed.total_seconds(), done, 5)
                self.assertEqual((reused, response.request_bytes),
                                 (was_reused, len(server.requests[0])))
        marks, texts = zip(*lines)
        self.assertEqual(("".join(marks), texts[1]), ("*><><", server.requests[0]))


class Section9Pool(AsyncCase):

    async def test_who_has_waited_longest_is_served_first(self) -> None:
        """Over all hosts, among those whom a place can serve."""
        for (hosts, most, limits), end in table([  # most: at once
                (1, 1, {"limit": 1}), (1, 2, {"limit": 9, "limit_per_host": 2}),
                (3, 1, {"limit": 1}), (3, 3, {"limit": 3, "limit_per_host": 2})], (LOOP, CLOSE)):
            async with scripted([READ, 0.003, answer(), end], again=True) as server, Session(
                    resolve={f"*:{server.port}": "127.0.0.1"}, **limits) as session:
                await gather(*(session.get(
                    f"http://h{i % hosts}.test:{server.port}/{i}") for i in range(15)))
                order = [int(target[1:]) for target in server.targets()]
                self.assertLess(max(abs(i - n) for i, n in enumerate(order)), most + (most > 1),
                                (hosts, end, limits))
                if end is LOOP:
                    self.assertEqual(server.most, most, (hosts, limits))
                if end is LOOP and hosts == 1:
                    self.assertEqual([server.connections, *count(session)], [most] * 3 + [0])

    async def test_a_busy_host_leaves_others_their_turn(self) -> None:
        """And its connections are used again all the same."""
        async with always(0.001, answer()) as server, Session(
                limit=5, resolve={f"*:{server.port}": "127.0.0.1"}) as session:
            urls = [f"http://{host}.test:{server.port}/a" for host in "ab" * 200]
            busy = ensure_future(session.get_all(urls, limit=50))
            await until(lambda: count(session) == (5, 0, 45))
            before = len(server.requests)
            await session.get_all(f"http://{host}.test:{server.port}/b" for host in "cde")
            self.assertTrue(len(server.requests) - before < 50 and len(await busy) == 400)
            self.assertLess(server.connections, 200)  # about 70; 400 if they were not

    @not_pypy
    async def test_the_work_of_a_release_does_not_grow_with_the_queue(self) -> None:
        async def use(pool: asyncget.Pool, origin: Origin) -> None:
            route = asyncget.Route(origin, None, None, None)
            lane = pool.lanes.setdefault(route, asyncget.Lane(route))
            connection = pool.decide(lane) or await pool.acquire(lane, asyncget.Deadline(), 9.0)
            await asyncio.sleep(0)
            connection.close()

        for hosts, limit, per_host in ((1, 25, 4), (25, 5, None), (25, 10, 1), (8, 5, 4)):
            steps = []
            for waiting in (50, 200):
                pool = asyncget.Pool({
                    **asyncget.DEFAULTS, "limit": limit, "limit_per_host": per_host})
                origins = [Origin("http", f"h{i % hosts}.test", 80) for i in range(waiting)]
                calls = itertools.count()
                sys.setprofile(lambda *_, calls=calls: next(calls) and None)
                try:
                    await gather(*(use(pool, origin) for origin in origins))
                finally:
                    sys.setprofile(None)
                self.assertFalse(pool.all or any(lane.waiting for lane in pool.lanes.values()))
                steps.append(next(calls))
            self.assertLess(steps[1] / steps[0], 4 * 1.3, (hosts, limit, per_host, steps))

    async def test_standing_still(self) -> None:
        """A queue that moves may take as long as it takes; one that does not, times out."""
        async with always(lambda head: HOLD if b"/hold" in head else answer()) as a, origin() as b:
            for limits, used, wanted in table([  # limits, in use, wanted
                    ({"limit": 1}, 1, a.url), ({"limit_per_host": 1}, 1, a.url),
                    ({"limit": 2}, 2, f"http://localhost:{a.port}")]):
                async with Session(**limits) as session:
                    held = [ensure_future(session.get(a.url + "/hold")) for _ in range(used)]
                    await until(lambda: count(session)[0] == len(held))  # noqa: B023
                    await self.raised(TimedOut, session.get(wanted, timeout=0.05, deadline=9),
                                      phase="free connection", seconds=0.05)
                    self.assertEqual(count(session), (used, 0, 0), limits)
                    self.assertFalse(session._pool.eligible)
                    new = [ensure_future(session.get(wanted + end)) for end in ("/hold", "")[-used:]]
                    await asyncget.cancel(held)  # as many places come free, and all are given away
                    self.assertTrue((await asyncio.wait_for(new[-1], 5)).ok)
                    await asyncget.cancel(new)
                    self.assertEqual(count(session)[:2], (1, 1), limits)
            with clock() as busy:  # one host stands still while the other moves
                async with Session(limit=2, limit_per_host=1, timeout=1) as session:
                    hold = ensure_future(session.get(a.url + "/hold", timeout=None))
                    await until(lambda: count(session)[0] == 1)
                    still = ensure_future(session.get(a.url))
                    for _ in range(3):
                        await session.get_all([b.url] * 3)
                        busy(0.4)
                    await self.raised(TimedOut, asyncio.wait_for(still, 0.5))
                    await asyncget.cancel([hold])

    async def test_a_clock_that_ticks_slowly(self) -> None:
        """No time has passed by it, though an answer that nobody asked for may have come."""
        loop, tick = get_running_loop(), 1 / 64
        self.assertTrue(0 < asyncget.IDLE_MOMENT_SECONDS < 0.001 or sys.platform == "win32")
        for passed, slow, looked in table([(0.0, 0, False), (0.0005, 0, False), (0.1, 0, True),
                                           (0.0, tick, True), (tick, tick, True)]):
            async with Session(open_connection=Double.connect) as session:
                await session.get("http://h.test/")
                now = next(iter(session._pool.all)).since + passed
                with patch("asyncget.IDLE_MOMENT_SECONDS", 0.001 - slow), \
                        patch("asyncio.sleep", side_effect=asyncio.sleep) as slept, \
                        patch.object(loop, "time", lambda: now):  # noqa: B023
                    await session.get("http://h.test/")
                self.assertEqual(slept.called, looked, (passed, slow))
        deadline = asyncget.Deadline(1.0, 2.0)
        deadline.until = loop.time() + 1
        with patch("asyncio.sleep"):  # its timers are early, too
            await self.raised(TimedOut, deadline.breathe(9), seconds=2.0)

    async def test_the_deadline_does_not_run_in_the_queue(self) -> None:
        """Save for later hops, but there not because of others who came later. A program that was
        busy gives the queue its time back, as to the request under way.
        """
        with clock() as busy:
            async with always(0.005, lambda _: busy(0.6) or answer()) as server, Session(
                    limit=1, timeout=1, resolve={f"*:{server.port}": "127.0.0.1"}) as session:
                urls = [server.url] * 6 + [f"http://h{n}.test:{server.port}" for n in range(7)]
                await gather(*(session.get(url, deadline=1) for url in urls))
                await asyncget.get_all([server.url] * 4, limit_per_host=1, timeout=1)
            async with always(0.002, lambda head: busy(0.1) or (
                    answer() if b"/end" in head else redirect("/end"))) as server, \
                    Session(limit=1) as session:
                await gather(*(session.get(server.url, deadline=2) for _ in range(30)))
            async with always(0.01, answer()) as server, Session(limit=1, timeout=1) as session:
                calls = ensure_future(session.get_all([server.url] * 4))
                await until(lambda: count(session) == (1, 0, 3))
                busy(2.5)
                await calls
            for late in (0, 2):  # what a deadline has left is never below nothing
                async with scripted([READ, redirect("/end")]) as server, Session(
                        limit=1, trace=lambda kind, _: busy(late * (kind == "<"))  # noqa: B023
                        ) as session:
                    call = ensure_future(session.get(server.url, deadline=0.2))
                    held = ensure_future(session.get(server.url + "/hold"))
                    error = await self.raised(TimedOut, call, "deadline", url=server.url + "/end",
                                              phase="free connection")
                    self.assertTrue(error.seconds == 0.0 or not late)
                    await asyncget.cancel([held])
                    self.assertEqual(count(session), (0, 0, 0))

    async def test_idle_ones_make_room_for_other_routes(self) -> None:
        async with origin() as server, Session(
                limit=2, resolve={f"*:{server.port}": "127.0.0.1"}) as session:
            urls = [f"http://h{i}.test:{server.port}/" for i in range(3)]
            for i, connections in ((0, 1), (1, 2), (0, 2), (2, 3), (0, 3), (1, 4)):
                await session.get(urls[i])  # the one unused for longest goes
                self.assertTrue(server.connections == connections and count(session)[0] <= 2)
            await until(lambda: server.open == 2)
            await session.get_all(urls * 10)
            self.assertEqual(count(session)[0], 2)

    async def test_what_comes_to_an_idle_connection(self) -> None:
        """It is closed at once, though nobody asks for one, and nothing that it says is held."""
        for steps, way in table([[answer(b"EVIL!")], [b"\n"], [CLOSE], [RESET], [bytes(MIB)] * 8,
                [answer(b"EVIL!", status="408 X"), CLOSE]], ("plain", "TLS", "tunnel")):
            tls = server_tls() if way != "plain" else None
            async with proxy() as via, scripted(
                    [READ, answer(b"1"), 0.01, *steps], [READ, answer(b"2")], tls=tls) as server, \
                    Session(verify=False, proxy=via.url if way == "tunnel" else None) as session:
                with self.subTest(str(steps)[:50], way=way):  # CVE-2026-6733
                    self.assertEqual((await session.get(server.url)).content, b"1")
                    await until(lambda: count(session) == (0, 0, 0))
                    self.assertEqual((await session.get(server.url)).content, b"2")
                    self.assertEqual((server.connections, len(server.requests)), (2, 2))
        async with scripted([READ, answer(), 0.01, answer(b"EVIL!")], [READ, answer(b"2")]
                            ) as server, Session() as session:
            await session.get(server.url)
            writer = next(iter(session._pool.all)).writer
            writer.transport.pause_reading()  # it lies in the kernel: the loop was elsewhere
            await asyncio.sleep(0.02)
            writer.transport.resume_reading()
            self.assertEqual((await session.get(server.url)).content, b"2")

    async def test_a_kept_connection_that_dies_unanswered(self) -> None:
        session: Session
        first, again = [READ, answer(b"1"), READ], [READ, answer(b"2"), LOOP]
        early, late = b"HTTP/1.1 103 X\r\n\r\n", answer(b"408", "Connection: close", status="408 X")
        for scripts, expected, requests in table([  # connections, outcome, requests
                ([[*first, CLOSE], again], b"2", 3), ([[*first, RESET], again], b"2", 3),
                ([[*first, late, CLOSE], again], b"2", 3), ([[*first, late], again], b"2", 3),
                ([[*first, lambda _: [one.reader.connection_lost(ssl.SSLError(1, "alert"))
                                      for one in session._pool.all] and HOLD], again], b"2", 3),
                ([[*first, answer(b"408", status="408 X")], again], b"408", 2),  # it may be kept
                ([[*first, CHUNKED.replace(b"200", b"408") + b"3\r\n408\r\n0\r\n\r\n"],
                  again], b"408", 2), ([[*first, CLOSE], [READ, CLOSE], again], 52, 3),
                ([[*first, late], [READ, late]], b"408", 3),
                ([[*first, early, late], again], b"408", 2),
                ([[*first, b"H", CLOSE], again], 18, 2), ([[*first, early, CLOSE], again], 52, 2),
                ([[*first, answer(b"2")[:-1], CLOSE], again], 18, 2)]):
            async with scripted(*scripts) as server, Session() as session:
                await session.get(server.url + "/1")
                self.assertEqual(await code_of(session.get(server.url + "/2")), expected, scripts)
                self.assertEqual(server.targets(), ["/1", "/2", "/2"][:requests], scripts)
        async with scripted(*[[*first, CLOSE]] * 2, again) as server, Session() as session:
            await gather(*(session.get(server.url) for _ in range(2)))
            self.assertEqual((await session.get(server.url)).content, b"2")
            self.assertEqual(len(server.requests), 4)  # not once more on the other old one

    async def test_kept_connections_that_the_network_forgot(self) -> None:
        """After one fell silent, none of the others is tried; Linux notices before `timeout`."""
        again = [READ, answer(b"2"), LOOP]
        for end in HOLD, CLOSE:  # an end says the same
            async with scripted(*[[READ, answer(), READ, end]] * 3, again) as server, \
                    Session(retries=lambda attempt, _: 0 if attempt == 1 else None) as session:
                await session.get_all([server.url] * 3, timeout=9)
                for one in session._pool.all if sys.platform == "linux" else ():
                    limit = one.writer.get_extra_info("socket").getsockopt(
                        socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
                    self.assertEqual(limit, 3000)
                self.assertEqual((await session.get(server.url, timeout=0.1)).content, b"2")
                self.assertEqual((len(server.requests), *count(session)), (5, 1, 1, 0))
        opens = iter([asyncio.open_connection])  # then none: that tells nothing of the one that works
        async with origin() as server, Session(
                timeout=0.1, open_connection=lambda *to: next(opens, never)(*to)) as session:
            self.assertEqual((await code_of(session.get_all([server.url] * 2)), *count(session)),
                             (28, 1, 1, 0))

    async def test_idle_for_too_long(self) -> None:
        """No timeout makes it live longer, and no deadline ends it."""
        for timeout in (30, 3600, None):
            async with origin() as server, Session(timeout=timeout) as session:
                await session.get(server.url, deadline=0.05)
                await asyncio.sleep(0.08)
                self.assertEqual(count(session), (1, 1, 0))
                with patch("asyncget.IDLE_SECONDS", 0.05):
                    await session.get(server.url, deadline=300)
                    await until(lambda: not server.open)  # noqa: B023
                self.assertEqual(count(session), (0, 0, 0))

    async def test_close_leaves_nothing(self) -> None:
        async with scripted([READ, answer(), READ, OK + b"\r\n"], again=True) as server:
            session = Session()
            await session.get_all([server.url] * 3)
            files = len([] if session.closed else open_files())
            async with session.stream(server.url) as response:
                reading = ensure_future(response.read())
                await asyncio.sleep(0.01)
                await session.close()
                self.assertLessEqual(len(open_files()), max(files - 3, 0))
                await self.raised(AsyncGetError, reading)  # no whole body, though it had no length
            await self.raised(AsyncGetError, session.get(server.url), "closed")
            self.assertEqual((repr(session), session.closed), ("<Session closed>", True))
        with beside([READ, answer()], [b""], tls=server_tls()) as (url, ended):  # no close_notify
            session = Session(verify=False)
            await session.get(url)
            made = await asyncget.connect_to("127.0.0.1", int(url.rpartition(":")[2]))
            shake, call = ssl.SSLObject.do_handshake, ensure_future(session.get("https://localhost"))
            with patch("asyncget.connect_first", mock.AsyncMock(return_value=made)), patch.object(
                    ssl.SSLObject, "do_handshake", lambda tls: (shake(tls), call.cancel())):
                await asyncio.wait([call])
            await asyncio.wait_for(until(lambda: made.fileno() < 0), 5)
            self.assertTrue(ended.acquire() and ended.acquire())
            opened = [*session._pool.all][0].writer.get_extra_info("socket")
            await asyncio.wait_for(session.close(), 5)
            self.assertEqual(opened.fileno(), -1)

    async def test_streams_of_a_connector(self) -> None:
        """What a caller feeds is read as it is; a writer tells of the end; one task reads at
        a time.
        """
        fed, writers = asyncio.StreamReader(), list[asyncio.StreamWriter]()

        async def connect(*address: Any, **options: Any) -> Any:
            reader, writer = await asyncio.open_connection(*address, **options)
            writers.append(writer)
            return (reader if writers[1:] else fed), writer

        coded = OK + b"Content-Encoding: gzip\r\n\r\n"
        async with scripted([READ, answer(b"raw")], [READ, coded, HOLD]) as server, \
                Session(open_connection=connect) as session:
            get_running_loop().call_later(0.05, fed.feed_data, answer(b"fed"))
            self.assertEqual((await session.get(server.url)).content, b"fed")
            async with session.stream(server.url) as response:
                both = gather(response.read(), response.read())
                await self.raised(AsyncGetError, both, "another task")
        await asyncio.wait_for(writers[1].wait_closed(), 5)

    async def test_closed_in_the_turn_in_which_bytes_come(self) -> None:
        """By another task. What is closed is not kept, and no timer is set for it any more; and if
        that comes amid decoding, when others may run, no part passes for the whole.
        """
        big = gzip.compress(bytes(8 * MIB))
        coded = CHUNKED.replace(b"Tr", b"Content-Encoding: gzip\r\nTr") + b"%x\r\n%b" % (len(big), big)
        for close, came, rest in table(("response", "session"), (CHUNKED + b"1\r\na", coded),
                                       (b"1\r\nb\r\n", b"0\r\n\r\n")):
            reader = asyncio.StreamReader()
            connect = mock.AsyncMock(return_value=(reader, mock.MagicMock()))
            reader.feed_data(came + b"\r\n")
            async with Session(open_connection=connect, timeout=0.05) as session:
                async with session.stream("http://h.test/") as response:
                    reading = ensure_future(response.read())
                    await pause(3)  # well within the timeout
                    reader.feed_data(rest)
                    if close == "session":
                        await session.close()
                    response.close()
                    await self.raised(AsyncGetError, reading, "closed on our side|given up")
                    await self.raised(AsyncGetError, response.read())
                    await asyncio.sleep(0.06)  # the loop complains of what a timer raises
                self.assertEqual(count(session), (0, 0, 0), (close, came[:99], rest))

    async def test_handed_over_and_closed(self) -> None:
        """By its clock, say, before who waited for it could run: then a new one is opened."""
        steps = [READ, answer()[:-1], 0.02, answer()[-1:], LOOP]
        async with scripted(steps, again=True) as server, Session(limit=1) as session:
            async with session.stream(server.url) as response:
                kept, = session._pool.all
                call = ensure_future(session.get(server.url))
                await until(lambda: count(session)[2])
                await response.read()
                self.assertEqual(count(session), (1, 0, 0))
                kept.close()
            self.assertEqual(((await call).timing.reused, server.connections), (False, 2))

    async def test_close_while_others_wait_and_open(self) -> None:
        async def get_and_close(session: Session, url: str) -> None:
            await session.get(url)  # hands its place on to the next
            await session.close()

        async def ended(*calls: Any) -> list[type]:
            return [type(one) for one in await gather(*calls, return_exceptions=True)]

        async with scripted([READ, answer(b"", "Connection: close")], again=True) as server:
            session = Session(limit=1)
            calls = [session.get(server.url) for _ in range(2)]
            self.assertEqual(await ended(get_and_close(session, server.url), *calls),
                             [type(None), AsyncGetError, AsyncGetError])
            self.assertEqual(server.connections, 1)
        async with scripted([READ]) as server:
            session = Session(limit=1)
            tasks = [ensure_future(session.get(server.url)) for _ in range(2)]
            await until(lambda: server.requests)
            closing = ensure_future(session.close())
            await asyncio.sleep(0)
            tasks[1].cancel()  # it was told of the end, but has not heard
            self.assertEqual(await ended(*tasks), [AsyncGetError, asyncio.CancelledError])
            await closing
        async with scripted([READ, CLOSE]) as server:
            session = Session(retries=lambda *_: 0.1)
            task = ensure_future(session.get(server.url))
            await until(lambda: server.connections == 1 and not server.open)
            await session.close()
            await session.close()
            await self.raised(AsyncGetError, task, "closed")  # while it waits to try again
            self.assertEqual(server.connections, 1)
            await self.raised(AsyncGetError, session.get_all([server.url]), "closed")

    async def test_closed_while_it_opens(self) -> None:
        """At whichever turn of the loop, nothing is left behind: not by a connector that passes
        over its cancellation either, as asyncio.wait_for did before 3.12.
        """
        async def stubborn(*address: Any, **options: Any) -> Any:
            opening = ensure_future(asyncio.open_connection(*address, **options))
            while not opening.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([opening])
            return opening.result()

        for connect, tls in table((asyncio.open_connection, stubborn), (None, server_tls())):
            async with scripted([READ, HOLD], again=True, tls=tls) as server:
                for turns in range(16):
                    with self.subTest(connect.__name__, tls=tls, turns=turns):
                        before = asyncio.all_tasks()
                        session = Session(open_connection=connect, verify=False)
                        call = ensure_future(session.get(server.url))
                        await pause(turns)
                        await session.close()
                        left = asyncio.all_tasks() - before - {call}
                        self.assertFalse([task for task in left if "Connection.connect" in repr(task)])
                        await self.raised(AsyncGetError, call, "closed")
                        await until(lambda: not server.open)

    async def test_model(self) -> None:
        """Whatever happens in whatever order: each body is its own request's."""
        for seed, limits in enumerate(((3, 2), (1, None), (4, 1), (5, 3))):
            await Model(seed, *limits).run(self)


class Model:
    """Random requests to two servers that tag what they send, some of them spiteful."""

    GOOD = ("length", "chunked", "close", "redirect", "slow")
    BAD = ("extra", "die", "stall", "cut", "garbage")

    def __init__(self, seed: int, limit: int, limit_per_host: int | None) -> None:
        self.random = random.Random(seed)
        self.limit, self.per_host = limit, limit_per_host
        self.writers: list[asyncio.StreamWriter] = []
        self.most: Counter[int] = Counter()  # open at once to each port, and in all (0)

    @staticmethod
    def reply(head: bytes) -> list[Any]:
        tag, kind = head.split(b" ")[1].lstrip(b"/").split(b"?")
        body = tag * 20
        wire = answer(body)
        replies: dict[bytes, list[Any]] = {
            b"length": [wire], b"redirect": [redirect(f"/{tag.decode()}?length")], b"die": [CLOSE],
            b"chunked": [CHUNKED, *[b"%x\r\n%b\r\n" % (len(tag), tag)] * 20, b"0\r\n\r\n"],
            b"close": [OK + b"\r\n" + body, CLOSE], b"garbage": [b"EVIL" * 9],
            b"slow": [*(wire[i:i + 30] for i in range(0, len(wire), 30)), 0.003],
            b"extra": [wire + answer(b"EVIL")], b"late": [wire, 0.004, answer(b"EVIL")],
            b"stall": [OK + b"Content-Length: 99\r\n\r\n" + tag, HOLD],
            b"cut": [OK + b"Content-Length: 9999\r\n\r\n" + body, RESET]}
        return replies[kind]

    def open(self) -> list[int]:
        """The ports to which connections are open."""
        return [writer.get_extra_info("peername")[1]
                for writer in self.writers if not writer.is_closing()]

    async def connect(self, *args: Any, **options: Any) -> Any:
        """open_connection, watching how many are open at once."""
        reader, writer = await asyncio.open_connection(*args, **options)
        self.writers.append(writer)
        self.most |= Counter(self.open()) + Counter({0: len(self.open())})
        return reader, writer

    async def one(self, case: AsyncCase, session: Session, url: str, kind: str, tag: bytes) -> None:
        """One request, of which all is known that may come of it."""
        manner = self.random.choice(("get", "get", "stream", "early", "timeout"))
        may_fail = manner == "timeout" or kind in self.BAD
        options: dict[str, Any] = {"timeout": 0.02} if may_fail else {}
        body, whole = b"", tag * 20
        try:
            if manner in ("get", "timeout"):
                body = (await session.get(url, **options)).content
            else:
                async with session.stream(url, **options) as response:
                    async for piece in response.iter_bytes():
                        body += piece
                        if manner == "early":
                            break
        except AsyncGetError as error:
            case.assertTrue(may_fail, f"{manner} {url}: {error!r}")
        else:
            came = body == whole or manner == "early" and whole.startswith(body)
            case.assertTrue(came, (url, body))

    async def run(self, case: AsyncCase) -> None:
        pick = self.random
        async with always(self.reply) as a, always(self.reply) as b, Session(limit=self.limit,
                limit_per_host=self.per_host, open_connection=self.connect) as session:
            for _ in range(6):
                tasks = []
                for _ in range(pick.randrange(1, 12)):
                    kind, tag = pick.choice(self.GOOD + self.BAD), f"<{pick.randrange(10**9)}>"
                    url = f"{pick.choice((a, b)).url}/{tag}?{kind}"
                    tasks.append(ensure_future(self.one(case, session, url, kind, tag.encode())))
                    if pick.random() < 0.2:
                        get_running_loop().call_later(pick.random() / 200, tasks[-1].cancel)
                for outcome in await gather(*tasks, return_exceptions=True):
                    if isinstance(outcome, Exception):  # no CancelledError
                        raise outcome
                everything, idle, waiting = count(session)
                case.assertEqual((len(self.open()), idle, waiting), (everything, everything, 0))
                await self.one(case, session, a.url + "/last?late", "late", b"last")
                await asyncio.sleep(pick.choice((0.006, 0.01)) + 2 * TICK)
            opened = {lane: lane.open for lane in session._pool.lanes.values() if lane.open}
            case.assertEqual(Counter(session._pool.all.values()), opened)
        case.assertLessEqual(self.most.pop(0), self.limit)
        case.assertLessEqual(max(self.most.values()), self.per_host or self.limit)
        case.assertEqual((self.open(), session._pool.all), ([], {}))


class Section10RedirectsAndRetries(AsyncCase):

    def test_which_responses_are_redirects(self) -> None:
        def led(status: int, *fields: bytes) -> str | None:
            following = next_request(Request(parse_url("http://h/a"), (("Host", ""),)), response(
                fields=fields, status=b"HTTP/1.1 %d X" % status), asyncget.DEFAULTS)
            return following and str(following.url)

        for fields in ([], [b"Location:"], [b"Location: ", b"Location:"]):
            self.assertIsNone(led(302, *fields))
        for field in (  # CVE-2020-8284, CVE-2020-8492: nor does another field lead anywhere
                b'Alt-Svc: h2="127.0.0.1:1"', b"Refresh: 0; url=/x", b"Content-Location: /x",
                b'WWW-Authenticate: Basic realm="' + b"\xa0," * 20_000):
            self.assertIsNone(led(401, field) or led(200, field))
        for status in range(200, 600):
            self.assertEqual(led(status, b"Location: /b", b"location: /b"),
                             "http://h/b" if status in (301, 302, 303, 307, 308) else None, status)
        self.refuses(ProtocolError, "", led, 302, b"Location: /b", b"location: /c")

    def test_where_redirects_lead_and_with_what(self) -> None:
        fields = (("Host", "front"), ("AUTHORIZATION", "a"), ("authorization", "b"),
                  ("Cookie", "c"), ("X-Key", "d"), ("Accept", "e"))

        def lead(location: str, request: Request, secret: Sequence[str] = (),
                 trust: bool = False) -> Any:
            moved = response(url=str(request.url), status=b"HTTP/1.1 302 F",
                             fields=[f"Location: {location}".encode()])
            return next_request(request, moved, {
                **asyncget.DEFAULTS, "secret_headers": secret, "trust_redirects": trust})

        request = Request(parse_url("http://me:pw@h.test/a/b#top"), fields)
        for location, url, kept in [
                ("/b", "http://h.test/b#top", True), ("../c#new", "http://h.test/c#new", True),
                ("http://H.TEST:80/x", "http://h.test/x#top", True),
                ("http://u:p@h.test/x", "http://h.test/x#top", True),  # RFC 9110 4.2.4: ignored
                ("http://u:p@b.test/x", "http://b.test/x#top", False),
                ("https://h.test/", "https://h.test/#top", False),
                ("https://h.test:80/", "https://h.test:80/#top", False),
                ("http://h.test:81/", "http://h.test:81/#top", False),
                ("//hh.test", "http://hh.test/#top", False), ("/x#", "http://h.test/x", True),
                ("http://www.h.test/", "http://www.h.test/#top", False),
                ("http://h.test./", "http://h.test./#top", False)]:
            following = lead(location, request, ["x-key"])
            self.assertEqual((str(following.url), following.url.userinfo), (url, ""))
            self.assertEqual(following.fields, fields if kept else (("Host", ""), ("Accept", "e")))
        # CVE-2023-45289
        for location in ("file:///etc/passwd", "http:x", "http://[::1%25.h.test]/"):
            self.refuses(InvalidURL, "", lead, location, request)
        self.assertEqual(lead("//b/", request, trust=True).fields, (("Host", ""), *fields[1:]))
        # CVE-2024-45336: what was dropped stays dropped
        self.assertEqual(lead("//h.test/", lead("//b/", request)).fields,
                         (("Host", ""), ("X-Key", "d"), ("Accept", "e")))

    @patch("os.urandom", bytes)
    def test_when_to_retry(self) -> None:
        def told(text: str) -> Response:
            line = f"Retry-After: {text}".encode("latin-1")
            return response(status=b"HTTP/1.1 503 X", fields=[line])

        def of(error: AsyncGetError, cause: BaseException) -> AsyncGetError:
            error.__cause__ = cause
            return error

        self.alike(lambda outcome: asyncget.retry_delay(1, outcome, 2), [
            (told("60"), 60.0), (told("1.5"), 1.5), *((told(text), None) for text in (
                "61", "9" * 5000, "1764086400", "inf", "-1", "1_0", "soon", "\xb2", "1.", ".5",
                "Fri, 31 Dec 2999 23:59:59 GMT", "Fri, 99 Dec 2999 99:59:59 GMT")),
            *((told(text), 0.5) for text in ("", "0", "0.1", "Fri, 31 Dec 1999 23:59:59 GMT")),
            *((error, 0.5) for error in (
                ConnectError(), TimedOut(), IncompleteBody(), ProxyError(status=503),
                IncompleteBody("x", response=response()), of(ProxyError(), IncompleteBody()),
                of(TLSError(), ConnectionResetError()),  # in a handshake
                of(ProxyError(), socket.gaierror()), of(ProxyError(), EOFError()))),
            *((error, None) for error in (
                DecodingError(), TLSError(), ProxyError(), ProtocolError(), InvalidURL(),
                TooLarge(), ProxyError(status=407),
                of(AsyncGetError(), BrokenPipeError()),  # nobody reads
                of(TLSError(), ssl.SSLCertVerificationError()), of(ProxyError(), ProtocolError()))),
            *((response(status=b"HTTP/1.1 %d X" % status),
               0.5 if status in (408, 429, 500, 502, 503, 504) else None)
              for status in range(200, 600))])
        self.alike(lambda attempt: asyncget.retry_delay(attempt, TimedOut(), 2),
                   [(1, 0.5), (2, 1.0), (3, None)])
        self.assertEqual(asyncget.retry_delay(1025, TimedOut(), 1025), 32)  # 2.0**1024 is too much


class Word(str, enum.Enum):
    """A text whose str() and format() show another, from Python 3.11 on."""

    ONE = "one"
    __str__ = __format__ = lambda *_: "Word.ONE\r\nX: 1"


class Section11Settings(AsyncCase):

    async def test_none_is_no_limit(self) -> None:
        seam = mock.AsyncMock(side_effect=never)
        async with Session(limit=None, limit_per_host=None, open_connection=seam) as session:
            calls = ensure_future(session.get_all(["http://h.test/"] * 150, limit=150))
            await until(lambda: seam.call_count == 150)
            await asyncget.cancel([calls])
        pages = iter([*(redirect(f"/{n}") for n in range(99)), answer()])
        async with always(lambda _: next(pages)) as server:
            self.assertEqual(len((await asyncget.get(server.url, max_redirects=None)).history), 99)

    async def test_a_text_is_what_it_holds(self) -> None:
        """Not what its class shows: what was checked is what is sent."""
        one = Word.ONE
        async with Session(open_connection=Double.connect, cookies={one: one}) as session:
            for options in ({"headers": {one: one}, "params": {one: [one]}, "auth": one},
                            {"headers": [(one, one)], "params": [(one, one)], "auth": (one, one)}):
                await session.get("http://h.test/", **options)
                wire, auth = Double.last.sent, asyncget.render_auth(("one", "one"))
                self.assertNotIn(b"Word", wire)
                self.assertEqual(wire.splitlines()[0], b"GET /?one=one HTTP/1.1")
                self.assertEqual([*map(partial(field, wire), ("one", "Cookie"))], [["one"], ["one=one"]])
                self.assertIn(field(wire, "Authorization"), (["Bearer one"], [auth]))

    async def test_long_targets(self) -> None:
        """They are refused as they would go out, encoded and joined, and never sent."""
        for url, options in table([
                (f"http://h/{'é' * 11_000}", {}), ("?" + "a" * 65_535, {"base_url": "http://h/"}),
                ("b" * 6000, {"base_url": f"http://h/{'a' * 60_000}/"}),
                ("http://h/", {"params": {"q": "a" * 65_536}})]):
            error = await self.raised(InvalidURL, asyncget.get(
                url, open_connection=Double.connect, **options), "65536")
            self.assertLess(len(str(error)), 1000)
        fits = "http://h/" + "a" * 65_535  # RFC 9110 4.1: 8,000 at least
        self.assertEqual((await asyncget.get(fits, open_connection=Double.connect)).url, fits)

    async def test_several_values_of_a_parameter(self) -> None:
        """Whatever gives them, and however often they are needed; a mapping is none."""
        get = partial(asyncget.get, "http://h.test/", open_connection=Double.connect)
        for value in table([[1, 2], (1, 2), range(1, 3), {1: 0, 2: 0}.keys(),
                            {0: 1, 1: 2}.values(), (n for n in (1, 2))]):
            with patch("asyncget.render_request", side_effect=ConnectError) as rendered:
                await self.raised(ConnectError, get(params={"a": value}, retries=tried(1)))
            asked = [call.args[0] for call in rendered.call_args_list]
            self.assertEqual(asked, ["/?a=1&a=2"] * 2, value)
        for value in (re.RegexFlag.A, ipaddress.ip_network("10.0.0.0/30"), UserString("ab")):
            await get(params=[("a", value)])
            self.assertEqual(Double.last.sent.count(b"a="), 1, value)

    async def test_wrong_settings(self) -> None:
        """They are told where they are given, and with what is expected; set as attributes, as
        with requests' Session, they would not be looked at.
        """
        calls, url, cut = asyncget.RequestSettings.__annotations__, "http://h.test/", "1\r\nY: 2"
        pairs = r"Mapping.*Iterable"
        rows: list[tuple[str, list[Any], type[Exception], str]] = [  # names, values, error, text
            ("timout", [5], TypeError, "unknown keyword 'timout'; there are params, headers, auth"),
            ("stream", [True], TypeError, r"stream\(\) is another function"),
            ("timeout", ["5", (3, 5)], TypeError, "seconds of silence; deadline=.*: not"),
            ("deadline rate", ["5", (3, 5)], TypeError, r"be float \| None: not "),
            ("timeout deadline rate", [0, -1, float("nan")], ValueError, "must be above 0"),
            ("limit limit_per_host max_size max_redirects", ["5", 2.5], TypeError, r"int \| None"),
            ("limit limit_per_host", [0], ValueError, "above 0"),
            ("retries max_size max_redirects", [-1], ValueError, "at least 0"),
            ("follow_redirects trust_env decode", [None, 1, "no"], TypeError, "must be bool: not"),
            ("retries", ["3", None, 1.0], TypeError, r"int \| Callable\[\[int, Outcome"),
            ("proxy", [{"http": "p"}, b"p"], TypeError,
             r"str \| None; for several kinds.*environment's http_proxy"),
            ("params", [b"a=b", "a=b", 5, [1], ["abc"], {"a": {"b": 1}}], TypeError,
             pairs + ".*the URL"), ("cert", [("a", ["b"])], TypeError, r"\(cert, key\)"),
            ("params", [{"a": "\ud800"}], InvalidURL, ""), ("base_url", ["h"], InvalidURL, ""),
            ("headers", ["a: b", b"x", 5, [1], [("a", "b", "c")]], TypeError, pairs),
            ("headers", [{5: "x"}, {"x": 5}, {"x": b"y"}], InvalidHeader, "pairs, of text"),
            # CVE-2026-0865, CVE-2026-50269, CVE-2023-23936, RUSTSEC-2020-0008: and see section 3
            ("headers", [{"X": cut}, {"X\r\nY": "1"}, {"Content-Length": "1"}], InvalidHeader, ""),
            ("auth", [5, {"me": "pw"}, b"token"], TypeError, r"str \| tuple\[str, str\]"),
            ("auth", [("me",), ("me", 5), ("a", "b", "c")], InvalidHeader, r"\(user, password\)"),
            ("auth", ["x\r\n", ("a:b", "c")], InvalidHeader, ""),
            ("cookies", [5, "a=b", [("a", "b")]], TypeError, r"bool \| Mapping.*Jar"),
            # CVE-2026-0672
            ("cookies", [{"a": 5}, {5: "a"}, {"a": cut}, {"a\r\nY": "1"}], InvalidHeader, "are text"),
            ("proxy", ["http://p\r\nY: 2:1"], ProxyError, ""),  # CVE-2026-1502
            ("secret_headers", [None, 5, [5], [b"x"]], TypeError, r"str \| Iterable\[str\]"),
            ("verify", [None, 5, b"ca"], TypeError, r"bool \| str \| os.PathLike\[str\] \| ssl.S"),
            ("cert", [5, {"cert": "x"}], TypeError, r"os.PathLike\[str\] \| tuple\[Any, ...\]"),
            ("unix_socket netrc", [5, b"x"], TypeError, r"str \| os.PathLike"),
            ("resolve", [5, "h:80:::1", {5: "::1"}, {"h.test:80": 5}], TypeError,
             r"Mapping\[str, str\] \| None"),
            ("base_url", [None, 5], TypeError, "must be str: not"),
            ("open_connection", [None, 5], TypeError, r"Callable\[\.\.\., Awaitable"),
            ("trace", [5], TypeError, r"Callable\[\[str, str \| bytes\], object\]")]
        Double.made = 0
        async with Session(open_connection=Double.connect) as session:
            for names, values, kind, text in rows:
                for name, value in table(names.split(), values):
                    with self.subTest(value=value, setting=name):
                        options: dict[str, Any] = {"open_connection": Double.connect, name: value}
                        await self.raised(kind, asyncget.get(url, **options), text)
                        if name in calls or name == "timout":  # and no session's own
                            await self.raised(kind, session.get(url, **{name: value}), text)
            for one in table({name: 1} for name in "limit base_url rate open_connection".split()):
                await self.raised(TypeError, session.get(url, **one), f"keyword '{[*one][0]}'")
            for url in table(["", "ftp://h/", "http://h/\r\nX:", "http://h%0d%0aY/", 1]):
                # CVE-2020-11078
                await self.raised(InvalidURL, session.get(url))
            for name in "verify headers proxies cookies timeout".split():
                said = f"{name} is not set so"
                self.assertRaisesRegex(AttributeError, said, setattr, session, name, {})
            self.assertEqual((count(session), Double.made), ((0, 0, 0), 0))
            session.get = mock.AsyncMock()  # type: ignore[method-assign]

    def test_signatures(self) -> None:
        """Editors and help() see each keyword."""
        calls, client, session, load = (set(kind.__annotations__) for kind in (
            asyncget.RequestSettings, asyncget.ClientSettings, asyncget.SessionSettings,
            asyncget.DownloadSettings))
        self.assertEqual((client - calls, session - client, load - calls), (
            {"base_url", "limit_per_host", "rate", "open_connection"}, {"limit"},
            {"progress", "resume", "overwrite", "any_status", "on_response"}))
        rows: list[tuple[Any, set[str]]] = [(Session, session)]
        for name, own in {"get": {"url"}, "stream": {"url"}, "download": {"url", "path"} | load,
                "as_completed": {"urls", "limit"},
                "get_all": {"urls", "limit", "return_exceptions"}}.items():
            rows += [(getattr(Session, name), calls | own | {"self"}),
                     (getattr(asyncget, name), session | own)]
        for function, expected in rows:
            parameters = inspect.signature(function).parameters
            timeout = parameters["timeout"]
            self.assertEqual((set(parameters), timeout.default, timeout.annotation),
                             (expected, 30.0, "float | None"), function)
        for outcomes in (Session().as_completed([]), asyncget.as_completed([])):
            self.assertTrue(inspect.isasyncgen(outcomes))  # for contextlib.aclosing

    async def test_the_request(self) -> None:
        """As it is (CVE-2014-8150), whatever the session's other calls have sent before."""
        codings = f"Accept-Encoding: {asyncget.ACCEPT_ENCODING}\r\n"
        agent = f"User-Agent: asyncget/{asyncget.__version__}\r\n"
        rest, host = f"{agent}Accept: */*\r\n{codings}\r\n", "HTTP/1.1\r\nHost: h.test\r\n"
        rows: list[tuple[str, dict[str, Any], str]] = [
            ("?q#f", {}, f"GET /?q {host}{rest}"), ("/%2e/a b%0d", {"params": {"x": [1, 2]}},
                                                    f"GET /%2e/a%20b%0d?x=1&x=2 {host}{rest}"),
            ("", {"decode": False}, f"GET / {host}{agent}Accept: */*\r\n\r\n"),
            ("", {"decode": False, "headers": {"Accept-Encoding": asyncget.ACCEPT_ENCODING}},
             f"GET / {host}{rest}"), ("", {"headers": {"Host": None}}, f"GET / HTTP/1.1\r\n{rest}"),
            ("", {"headers": dict.fromkeys(("User-agent", "ACCEPT", "accept-encoding"))},
             f"GET / {host}\r\n"),
            ("", {"headers": {"host": "front:1", "Accept": "x", "X": "é"}}, "GET / HTTP/1.1\r\n"
             f"host: front:1\r\n{agent}Accept: x\r\nX: é\r\n{codings}\r\n")]
        async with Session(open_connection=Double.connect) as session:
            for target, options, wire in [*rows, *rows]:
                await session.get("http://h.test" + target, **options)
                self.assertEqual(Double.last.sent.decode(), wire)

    async def test_settings_that_can_be_read_but_once_serve_every_url(self) -> None:
        async with origin() as server, Session(params=iter([("k", 1)]), headers=iter([("X", "1")]),
                                               secret_headers=iter(["X"])) as session:
            urls = [f" {server.url}/{number}\n" for number in (1, 2, 3)]  # blanks are no part of it
            for get in (session.get_all, session.as_completed):
                got: Any = get(urls, params=iter([("q", 1)]), headers=iter([("Y", "1")]), limit=1)
                await (listed(got) if inspect.isasyncgen(got) else got)
            self.assertEqual(server.targets(), [f"/{number}?k=1&q=1" for number in (1, 2, 3)] * 2)
            self.assertEqual([field(head, "x") + field(head, "y") for head in server.requests],
                             [["1", "1"]] * 6)
            for one in table(["http://h/", b"x"]):
                await self.raised(TypeError, session.get_all(one), "list of URLs")
            for limit, kind in table([(None, ValueError), (0, ValueError), ("5", TypeError)]):
                await self.raised(kind, session.get_all([], limit=limit), "limit must be")

    async def test_the_way_of_a_call(self) -> None:
        """It is that of its own keywords, and the session's is remembered beside it."""
        with patch.dict(os.environ, http_proxy="p.test", no_proxy=""):
            async with Session(open_connection=Double.connect) as session:
                for options, asked in table([
                        ({}, "p.test"), ({"trust_env": False}, "h.test"), ({}, "p.test"),
                        ({"proxy": "q.test"}, "q.test"), ({"proxy": None}, "h.test"),
                        ({"proxy": None, "resolve": {"*:80": "127.0.0.1"}}, "127.0.0.1"),
                        ({"timeout": 9}, "p.test")]):
                    await session.get("http://h.test/", headers={"Connection": "close"}, **options)
                    self.assertEqual(Double.last.host, asked, options)

    async def test_what_a_call_adds(self) -> None:
        inside, plain, far = "http://u:p%3Aw@h.test/", "http://h.test", "http://b.test"
        token, told = {"auth": "t0ken"}, "Bearer t0ken"
        me, secret = basic("me", "p@ss"), ["c=1", "SECRET"]
        every = ["1", "1", me, *secret]
        base = {"base_url": "http://me:p%40ss@h.test/v1", "params": {"k": 1}, "secret_headers": "Z",
                "headers": {"X": "1", "Y": "1", "Cookie": "c=1", "Z": "SECRET"}}
        pages = {"params": (("key", "k"), ("p", 1), ("p", 2))}
        for own, url, options, target, values in table([  # values: of X, Y, Authorization, ...
                (base, "users?a", {}, "/v1/users?a&k=1", every),
                (base, "../up", {}, "/up?k=1", every),
                (base, inside, {}, "/?k=1", ["1", "1", basic("u", "p:w"), *secret]),
                (base, "", {"params": {"z": 2}, "headers": {"x": None, "Y": "2"}},
                 "/v1/?k=1&z=2", ["2", me, *secret]), (base, "/root", {}, "/root?k=1", every),
                (base, "", {"auth": None}, "/v1/?k=1", ["1", "1", *secret]),
                (base, " \t\n", {"params": iter({"z": [1, 2], "k": None}.items())},
                 "/v1/?z=1&z=2", every), (base, "http://h.test/abs", {}, "/abs?k=1", every),
                # an absolute URL may come out of a page
                *(({**base, **more}, far, {}, "/?k=1", ["1", "1"]) for more in ({}, token)),
                (base, "//u:p@b.test/x", {}, "/x?k=1", ["1", "1", basic("u", "p")]),
                (base, far, {**token, "headers": {"Z": "its"}}, "/?k=1", ["1", "1", told, "its"]),
                ({**base, **token}, "", {}, "/v1/?k=1", ["1", "1", told, *secret]),
                *((pages, plain, {"params": params}, target, []) for params, target in (
                    ({"Key": 1}, "/?key=k&p=1&p=2&Key=1"), (iter([("p", [])]), "/?key=k"),
                    ([("q", 1), ("q", None), ("q", 2), ("key", "l")], "/?p=1&p=2&q=1&q=2&key=l"))),
                ({}, inside, {}, "/", [basic("u", "p:w")]), (token, plain, {"auth": None}, "/", []),
                (token, plain, {}, "/", [told]), ({}, plain, {}, "/", []),
                (token, plain, {"headers": {"authorization": None}}, "/", []),
                ({"headers": {"Authorization": None}}, inside, {}, "/", []),
                ({}, inside, {"headers": {"authorization": None}}, "/", []),
                ({}, inside, {"auth": ("a", "b")}, "/", [basic("a", "b")]),
                ({}, inside, {"headers": {"authorization": "X"}}, "/", ["X"])]):
            async with Session(open_connection=Double.connect, **own) as session:
                response, head = await session.get(url, **options), Double.last.sent
            self.assertEqual([response.text, response.url[13:]], [target] * 2, (own, url, options))
            self.assertEqual([value for name in ("x", "y", "authorization", "cookie", "z")
                              for value in field(head, name)], values, (own, url, options))


@types.coroutine
def noticing(coroutine: Any, notice: Callable[[Any], None]) -> Any:
    """Run a coroutine; tell of each suspension, with the future that is waited for."""
    step: Callable[[Any], Any] = coroutine.send
    argument: Any = None
    while True:
        try:
            waited = step(argument)
        except StopIteration as end:
            return end.value
        notice(waited)
        try:
            step, argument = coroutine.send, (yield waited)
        except BaseException as error:
            step, argument = coroutine.throw, error


@Mapping.register
class JarAndMapping(http.cookiejar.CookieJar):
    """A jar that is a mapping, too, as requests' RequestsCookieJar is."""

    def items(self) -> list[tuple[str, str | None]]:
        return [(cookie.name, cookie.value) for cookie in self]


class Section12Session(AsyncCase):

    async def test_cancelled_at_every_await(self) -> None:
        """While it waits, or when the wait is just over: nothing stays in use, nothing is lost."""
        gz, moved = answer(gzip.compress(b"ok"), "Content-Encoding: gzip"), redirect("/b")
        plain, odd = [READ, answer(), LOOP], itertools.count()
        cut = [OK + b"Content-Length: 3\r\n\r\nx", 0, CUT]
        again = {"retries": lambda attempt, _: 0.001 if attempt < 3 else None}
        for (name, script, options), race in table([
                ("chunked", [READ, CHUNKED, 0, b"1\r\no\r\n", 0, b"1\r\nk\r\n0\r\n\r\n", LOOP], {}),
                ("gzip", [READ, gz[:9], 0, gz[9:-9], 0, gz[-9:], LOOP], {}), ("kept", plain, again),
                ("redirect", [READ, moved[:-2], 0, moved[-2:], READ, answer(), LOOP], {}),
                ("retry", [READ, answer(b"", status="503"), *plain], again),
                *((name, plain, {}) for name in ("tls", "tunnel", "socks", "name")),
                ("stale", [READ, lambda head: answer() if b"/last" in head else [
                    answer(), READ, CLOSE], LOOP], again), ("paced", plain, {"rate": 1000}),
                ("queued", plain, {**again, "limit": 1}), ("body again", [
                    READ, lambda head: answer() if b"/last" in head or next(odd) % 2 else cut,
                    LOOP], again)], (False, True)):
            number, done, tls = 0, False, server_tls() if name in ("tls", "tunnel") else None
            if name == "tunnel" and race and sys.version_info < (3, 11):
                continue  # asyncio itself leaves a transport to the garbage collector
            kind = SocksProxy if name == "socks" else HTTPProxy
            async with scripted(script, again=True, tls=tls) as server, proxy(kind) as via:
                url = server.url.replace("127.0.0.1", "localhost") if name == "name" else server.url
                way = {"tunnel": via.url, "socks": f"socks5h://{via.url}"}.get(name)
                while not done:
                    with self.subTest(name, suspension=number, race=race):
                        async with Session(verify=False, proxy=way, **options) as session:
                            done = await self.cancel_at(number, race, name, session, url)
                        await until(lambda: not server.open and not via.open)
                    number += 1
                    self.assertLess(number, 300)
            self.assertGreater(number, 2)

    async def cancel_at(self, number: int, race: bool, name: str, session: Session,
                        url: str) -> bool:
        """Cancel one GET at its n-th suspension, or its opener's; True if it was done before."""
        left, holder = number, None

        def notice(future: Any) -> None:
            nonlocal left
            left -= 1
            if left == -1 and not race:
                task.cancel()
            elif left == -1 and future is None:
                get_running_loop().call_soon(task.cancel)
            elif left == -1:
                future.add_done_callback(lambda _: task.cancel())

        def noticed(opening: Any, **_: Any) -> Any:
            opener = ensure_future(noticing(opening, notice))
            opener.add_done_callback(lambda _: opening.close())  # it may not have begun
            return opener

        if name in ("kept", "stale"):
            await session.get(url)
            await asyncio.sleep(0.002)
        elif name == "queued":
            holder = ensure_future(session.get(url))
            await asyncio.sleep(0)
        try:
            with patch("asyncio.Task", noticed):
                task = ensure_future(noticing(session.get(url), notice))
                self.assertEqual((await task).content, b"ok")
            self.assertGreaterEqual(left, 0, "the cancellation was swallowed")
        except asyncio.CancelledError:
            self.assertLess(left, 0)
        if holder:
            self.assertEqual((await holder).content, b"ok")
        everything, idle, waiting = count(session)
        self.assertEqual((everything - idle, waiting), (0, 0), "in use, though nobody uses it")
        self.assertEqual((await session.get(url + "/last")).content, b"ok")
        return left >= 0

    async def test_redirects_over_the_wire(self) -> None:
        gone = redirect("/b?x")
        async with scripted([READ, lambda head: {
                b"/a": [gone[:-2], 0.01, gone[-2:]], b"/b?x": redirect("c#new", status=307),
                b"/c": answer(b"end"), b"/": redirect(""), b"/file": redirect("file:///etc/passwd"),
                b"/two": redirect("a", "Location: b"),
                }[head.split()[1]], LOOP]) as server, Session(base_url=server.url) as session:
            response = await session.get("/a#top")
            self.assertEqual((response.content, response.url), (b"end", server.url + "/c#new"))
            self.assertEqual([(hop.status_code, hop.url) for hop in response.history],
                             [(302, server.url + "/a#top"), (307, server.url + "/b?x#top")])
            for url, off in table([("/", {}), *(("/a", {f"{name}_redirects": False})
                                                for name in ("follow", "allow"))]):
                response = await session.get(url, **off)
                self.assertEqual((response.status_code, response.content, response.history),
                                 (302, b"gone", []))
            for url, kind in (("/file", InvalidURL), ("/two", ProtocolError)):
                error = await self.raised(kind, session.get(url))
                self.assertEqual((error.response.status_code, error.response.url),
                                 (302, server.url + url))
            self.assertEqual((await session.get("/c")).content, b"end")
            self.assertEqual((server.connections, len(server.requests)), (1, 9))  # bodies were read
        for hops, most in table([(21, {}), (3, {"max_redirects": 2}), (1, {"max_redirects": 0})]):
            async with scripted([READ, redirect("/loop"), LOOP]) as server:
                call = asyncget.get(server.url, **most)
                error = await self.raised(asyncget.TooManyRedirects, call)
                self.assertEqual((len(error.history), len(server.requests)), (hops, hops))
                self.assertEqual([*error.response.history, error.response], error.history)

    async def test_seeds_go_to_the_base_or_to_who_is_asked_first(self) -> None:
        for first in table([None, False, http.cookiejar.CookieJar()]):
            async with origin() as server, origin() as other, Session(base_url=server.url * (
                    first is None), cookies=Cookies({"sid": "1"})) as session:
                if first is not None:
                    await session.get(server.url, cookies=first)
                await session.get_all([other.url, server.url])
                self.assertEqual([field(head, "cookie") for head in
                                  (other.requests[0], server.requests[-1])], [[], ["sid=1"]])

    async def test_cookies_over_the_wire(self) -> None:
        sets = redirect("/x/", "Set-Cookie: a=1", "Set-Cookie: b=2; Path=/x",
                        "SET-COOKIE: c=\xe9%0d",
                        "Set-Cookie: d=\x01", "Set-Cookie: d=1; Domain=other.test")
        jar, bank, c = JarAndMapping(), parse_url("http://bank.test/"), "c=(E9)%0d"
        plain = [[], [f"b=2; a=1; {c}"], [f"a=1; {c}"]]
        seeded = [["a=0; m=1"], [f"b=2; m=1; a=1; {c}"], [f"m=1; a=1; {c}"]]
        own = [["m=1; a=0"], [f"m=1; b=2; a=1; {c}"], [f"m=1; a=0; {c}"]]
        rows: list[tuple[dict[str, Any], dict[str, Any], list[list[str]]]] = [  # session's, call's
            ({}, {}, plain), ({"cookies": Cookies()}, {}, plain),
            ({"cookies": jar}, {}, plain), ({}, {"cookies": jar}, plain),
            ({"cookies": False}, {}, [[]] * 3), ({}, {"cookies": False}, [[]] * 3),
            ({"cookies": False}, {"cookies": asyncget.Cookies()}, plain),
            ({"cookies": False}, {"cookies": {"m": "1"}}, [["m=1"]] * 3),
            ({"cookies": {"a": "0", "m": "1"}}, {}, seeded),  # what the server sets, replaces
            ({}, {"cookies": {"m": "1", "a": "0"}}, own),
            ({"cookies": {"a": "0"}}, {"cookies": {"a": None}}, [[], [f"b=2; a=1; {c}"], [c]]),
            ({"headers": {"Cookie": "a=9"}}, {}, [["a=9"], [f"a=9; b=2; {c}"], [f"a=9; {c}"]])]
        async with always(lambda head: sets if b" / " in head else answer()) as server:
            for settings, options, expected in rows:
                jar.clear()
                asyncget.OthersJar(jar).store(bank, ["its=own"])  # RFC 6265 5.4: for no other
                server.requests.clear()
                with self.subTest(settings, **options):
                    async with Session(**settings) as session:
                        await session.get(server.url, **options)
                        await session.get(server.url + "/y", **options)
                    sent = [field(head.replace(b"\xe9", b"(E9)"), "cookie")
                            for head in server.requests]
                    self.assertNotIn(b"; \r\n", b"".join(server.requests))
                    self.assertEqual(sent, expected)

    async def test_retries_over_the_wire(self) -> None:
        busy = answer(b"busy", "Retry-After: 0", status="503 X")
        end, cut = [READ, answer(b"end")], OK + b"Content-Length: 9\r\n\r\nx"
        for scripts, expected, requests in table([  # connections, body or code, requests
                ([[READ, busy, READ, busy[:-2], 0.01, busy[-2:], *end]], b"end", 3),
                ([[READ, busy, LOOP]], b"busy", 3), ([[READ], end], b"end", 2),  # silence
                ([[READ, CLOSE], [READ, RESET], end], b"end", 3), ([[READ, CLOSE]] * 4, 52, 3),
                ([[READ, cut, CLOSE], [READ, cut, RESET], end], b"end", 3),
                ([[READ, b"garbage"]], 1, 1), ([[READ, answer(b"no", status="404 X")]], b"no", 1),
                ([[READ, busy.replace(b"0\r", b"9\r", 1), LOOP]], b"busy", 1)]):  # no time to wait
            async with scripted(*scripts) as server:
                with self.subTest(scripts=scripts), patch("os.urandom", return_value=[512]):
                    call = asyncget.get(server.url, retries=2, timeout=0.1, deadline=5)
                    self.assertEqual((await code_of(call), len(server.requests)), (expected, requests))

    async def test_a_rule_of_the_callers(self) -> None:
        """It is asked about errors and statuses from 400 on, and about broken bodies."""
        asked: list[Any] = []

        def rule(attempt: int, outcome: Any) -> float | None:
            asked.append((attempt, getattr(outcome, "status_code", type(outcome))))
            return 0 if attempt < 9 else None

        no, bad, odd = ([READ, answer(b"x", status=f"{status} X")] for status in (503, 404, 400))
        cut, end = [READ, OK + b"Content-Length: 9\r\n\r\n", CLOSE], [READ, answer()]
        for scripts, expected, noted in table([([[*no, *bad, *odd, *end]], b"ok", [503, 404, 400]),
                ([[READ, redirect("/x"), READ, answer(b"204", status="204 X")]], b"", []),
                ([[READ, redirect("")]], b"gone", []), ([[READ, redirect("ftp://h/")]], 1, []),
                ([[READ, answer(b"exact", status="399 X")]], b"exact", []),
                ([cut, [READ, b"garbage", CLOSE],
                  [READ, answer(b"x", "Content-Encoding: gzip"), *end]],
                 b"ok", [IncompleteBody, ProtocolError, DecodingError]),
                ([[READ, answer(b"longer")]], 63, [])]):  # not its fault
            asked.clear()
            async with scripted(*scripts) as server:
                call = asyncget.get(server.url, retries=rule, max_size=5)
                self.assertEqual((await code_of(call), asked), (expected, [*enumerate(noted, 1)]))

        broken = mock.Mock(side_effect=KeyError)
        async with scripted([*no, READ, CLOSE]) as server, Session(retries=broken) as session:
            for _ in range(2):
                await self.raised(KeyError, session.get(server.url))
            self.assertEqual(count(session), (0, 0, 0))

    async def test_a_connection_that_had_ended_costs_one_turn_of_the_rate(self) -> None:
        ending = [READ, 0.2, answer(), READ, CLOSE]
        async with scripted(*[ending] * 3, [READ, answer()]) as server, Session(rate=20) as session:
            await session.get_all([server.url] * 3, limit=3)
            await until(lambda: not [lane for lane in session._pool.lanes.values() if lane.paused])
            with watched(asyncget.Pool, "_resume") as resumed:
                await session.get(server.url)
            self.assertEqual((resumed.call_count, server.connections), (1, 4))

    async def test_rate(self) -> None:
        """At most so many a second to one host: each comes no earlier than its turn."""
        loop, came, gate = get_running_loop(), list[float](), list[bool]()

        def note(head: bytes) -> Any:
            came.append(loop.time())
            return {b"/r": redirect("/end"), b"/hold": held, b"/busy": answer(
                b"", "Retry-After: 0", status="503 X")}.get(head.split()[1], answer())

        def held(_: bytes) -> Any:
            return answer() if gate else [0.001, held]

        def check(begun: float) -> None:
            self.assertGreaterEqual(len(came), 4)
            for i, when in enumerate(came):
                self.assertGreaterEqual(when - begun, i / 100 - 0.001)
            came.clear()

        async with always(note, host="localhost") as a, origin() as b:
            for paths in (["/"] * 5, ["/r"] * 2, ["/busy"]):
                with patch("os.urandom", return_value=[512]):
                    begun = loop.time()
                    await asyncget.get_all(paths, retries=3, rate=100, base_url=a.url)
                check(begun)
            async with Session(rate=100, limit=4) as session:  # many places come free at once
                calls = gather(*(session.get(a.url + "/hold") for _ in range(8)))
                await until(lambda: len(came) == 4 and count(session)[2] == 4)
                came.clear()
                gate.append(True)
                begun = loop.time()
                await calls
            check(begun)
            with clock() as busy:
                async with Session(rate=0.1) as session:
                    begun = loop.time()
                    await session.get(a.url)
                    first, second = (asyncio.create_task(session.get(f"{a.url}/{n}")) for n in "12")
                    self.assertTrue((await session.get(b.url)).ok)  # another host is not held up
                    first.cancel()  # and costs nobody a turn
                    busy(10.2)
                    await second
                    self.assertTrue(a.targets()[-1] == "/2" and loop.time() - begun < 19)

    async def test_what_a_session_remembers_is_bounded(self) -> None:
        context = ssl.create_default_context()
        forgotten = weakref.ref(context)
        async with Session(open_connection=Double.connect, limit=10, rate=1e6) as session:
            await session.get("https://h.test/", verify=context, headers={"Connection": "close"})
            del context
            await until(lambda: not [lane for lane in session._pool.lanes.values() if lane.paused])
            await until(lambda: (gc.collect(), forgotten())[1] is None)  # PyPy takes two
            with patch("asyncget.MAX_REMEMBERED", 50):
                for url in (f"http://h{i}.test/" for i in range(75)):
                    await session.get(url, resolve={url[7:-1] + ":80": "127.0.0.1"})
                    await session.get(url)
            await until(lambda: not [lane for lane in session._pool.lanes.values() if lane.paused])
            gc.collect()  # PyPy keeps lanes until then
            for name, value in [*vars(session).items(), *vars(session._pool).items(),
                                *session.settings.items()]:
                self.assertLessEqual(len(value) if hasattr(value, "__len__") else 0, 50, name)

    async def test_a_stream_is_entered_once(self) -> None:
        """Not a second time while it waits for the head, either, nor after an error."""
        for lone, wire in table([False, True], [HOLD, b"garbage"]):
            async with scripted([READ, wire]) as server, Session() as session:
                opened = asyncget.stream(server.url) if lone else session.stream(server.url)
                with watched(Session, "close") as closed:
                    first = ensure_future(opened.__aenter__())
                    await until(lambda: first.done() or server.requests)  # noqa: B023
                    await self.raised(TypeError, opened.__aenter__(), "entered once")
                    await asyncget.cancel([first])
                self.assertEqual(closed.call_count, lone)  # one of its own

    async def test_get_all(self) -> None:
        async def later(urls: list[str]) -> AsyncIterator[str]:
            for url in urls:
                await asyncio.sleep(0)
                yield url

        def broken() -> Iterator[str]:
            yield "/hang"
            raise KeyError("of the caller's")

        odd = {b"/slow": [0.05, answer(b"/slow")], b"/bad": b"garbage", b"/hang": HOLD,
               b"/half": answer()[:-1]}
        async with always(lambda head: odd.get(path := head.split()[1], answer(path))) as server, \
                Session(base_url=server.url) as session:
            paths = ["/slow", *(f"/{i}" for i in range(30))]
            urls = [server.url + path for path in paths]
            for many in (urls, iter(urls), later(urls)):
                self.assertEqual([got.text for got in await asyncget.get_all(many, limit=4)], paths)
            self.assertLessEqual(server.most, 4)
            connect = mock.AsyncMock(side_effect=never)
            how: Any = {"limit": 120, "open_connection": connect}  # a session's own limit is 100
            calls = [*map(ensure_future, (asyncget.get_all(urls * 4, **how),
                                          asyncget.as_completed(urls * 4, **how).__anext__()))]
            await asyncio.wait_for(until(lambda: connect.call_count == 240), 9)
            await asyncget.cancel(calls)
            for no in ([], ["x://"]):
                self.assertEqual(len(await asyncget.get_all(no, return_exceptions=True)), len(no))
            asked = len(server.requests)
            call = session.get_all(["/1", "/hang", "/hang", "/bad", *["/no"] * 9], limit=3)
            await self.raised(ProtocolError, call, url=server.url + "/bad")
            self.assertLessEqual(len(server.requests), asked + 4)
            outcomes = await session.get_all(["/1", "/bad", "x://"], return_exceptions=True)
            self.assertEqual([*map(type, outcomes)], [Response, ProtocolError, InvalidURL])
            bad, = await session.get_all(["/1"], return_exceptions=True, cookies={"a": "b\nc"})
            self.assertEqual((type(bad), bad.url), (InvalidHeader, "/1"))
            task = ensure_future(session.get_all(["/hang"] * 5, limit=2))
            await until(lambda: server.targets()[-2:] == ["/hang"] * 2)
            task.cancel()
            await self.raised(asyncio.CancelledError, task)
            await self.raised(KeyError, session.get_all(broken()))
            await self.raised(KeyError, session.as_completed(broken()).__anext__())
            self.assertRaises(TypeError, session.as_completed, urls, retires=1)
            with self.assertRaises(KeyError):  # of the caller's in a stream, which ends with it
                async with session.stream("/half"):
                    raise KeyError
            self.assertEqual(count(session)[0], count(session)[1])

    async def test_cancelled_once_more(self) -> None:
        """While it ends what is under way: the session made for it is closed all the same."""
        with patch("asyncget.cancel", side_effect=asyncio.CancelledError), \
                watched(Session, "close") as closed:
            await self.raised(asyncio.CancelledError, asyncget.get_all(
                ["http://h.test/"], open_connection=Double.connect))
        closed.assert_called_once()

    @not_pypy
    async def test_as_completed(self) -> None:
        replies: dict[bytes, Any] = {b"/slow": [0.05, answer()], b"/bad": b"garbage"}
        async with always(lambda head: replies.get(head.split()[1], answer())) as server, \
                Session(base_url=server.url) as session:
            urls = ["/slow", "/1", "/bad", "/2"]
            seen = await listed(session.as_completed(urls))
            self.assertEqual((seen[-1][0], {url for url, _ in seen}), ("/slow", set(urls)))
            self.assertEqual([url for url, got in seen if not isinstance(got, Response)], ["/bad"])
            tasks = len(asyncio.all_tasks()) - server.open
            async for _ in session.as_completed(["/slow"] * 99, limit=3):
                break
            await until(lambda: len(asyncio.all_tasks()) - server.open == tasks)
            self.assertEqual(count(session)[0], count(session)[1])
            self.assertLess(server.targets().count("/slow"), 8)

    async def test_as_completed_ends_when_somebody_cancels_what_the_urls_wait_for(self) -> None:
        """Or what opens a connection."""
        async def cancelled(*_: object, **__: object) -> Any:
            future = get_running_loop().create_future()
            future.cancel()
            await future

        async def urls() -> AsyncIterator[str]:
            yield "http://h.test/"
            await cancelled()

        for many, connect in table([(urls(), Double.connect), (["http://h.test/"] * 3, cancelled)]):
            async with Session(open_connection=connect) as session:
                await self.raised(asyncio.CancelledError, asyncio.wait_for(
                    listed(session.as_completed(many, limit=2)), TEST_SECONDS / 2))

    def test_left_early(self) -> None:
        """However the loop over as_completed is left, the program ends, and says nothing."""
        async def leave(outcomes: AsyncIterator[Any], way: str) -> None:
            async for _ in outcomes:
                await asyncio.sleep(9 if way == "late" else 0.02)  # as many as may wait, wait
                if way == "raises":
                    raise KeyError
                break

        async def main(way: str, inside: bool) -> None:
            loop = get_running_loop()
            loop.set_exception_handler(lambda _, what: said.append(str(what)))
            loop.call_later(TEST_SECONDS, loop.stop)  # an error of asyncio.run's
            async with Session(open_connection=Double.connect) as session:
                call: Any = session.as_completed if inside else partial(
                    asyncget.as_completed, open_connection=Double.connect)
                outcomes = call(["http://h.test/"] * 20, limit=5)
                kept.append(outcomes if way != "wraps" else (one async for one in outcomes))
                with suppress(KeyError, asyncio.TimeoutError):
                    await asyncio.wait_for(leave(kept[-1], way), 0.05 if way == "late" else 9)

        kept, said = list[Any](), list[str]()
        with patch("sys.unraisablehook", lambda what: said.append(repr(what))):
            for way, inside in table("raises breaks wraps late".split(), (False, True)):
                with self.subTest(way, inside=inside), watched(Session, "close") as closed:
                    asyncio.run(main(way, inside))
                    gc.collect()
                    self.assertEqual((said, closed.call_count), ([], 2 - inside))


# ==== Somebody else's network =================================================
# Sections 13 to 16: addresses and TLS, proxies, cookies, passwords; loopback alone.
#
# The real servers are Debian's squid, tinyproxy, microsocks and nginx; who lacks one is told.


OPENED = b"HTTP/1.1 200 Connection established\r\n\r\n"
TLS_VERSIONS = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)
HASHED = "/56c899cd.0"  # the name of PEMS["ca"] in a folder, as `openssl x509 -hash` gives it


def basic(user: str, password: str) -> str:
    """The value of Authorization or Proxy-Authorization."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


# ---- doubles of proxies

async def pump(reader: Any, writer: Any, heads: list[bytes]) -> None:
    """Pass on all that comes, and write it down; what is for the proxy stays here."""
    while data := await reader.read(65536):
        heads.append(data)
        writer.write(re.sub(rb"(?m)^Proxy-Authorization:.*\n", b"", data))
        await writer.drain()


async def relay(reader: Any, writer: Any, port: int, heads: list[bytes]) -> None:
    """Pass on both directions between a client and a port of this machine."""
    far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
    pumps = [ensure_future(pump(reader, far_writer, heads)),
             ensure_future(pump(far_reader, writer, []))]
    try:
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
    finally:
        far_writer.transport.abort()
        await asyncget.cancel(pumps)


class HTTPProxy(Server):
    """An HTTP proxy: every name leads to this machine; requests are the heads it was sent."""

    established = OPENED

    async def steps(self, script: Script, reader: Any, writer: Any) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        method, target, _ = head.split(b" ", 2)
        port = int(re.findall(rb":([0-9]+)(?=/|\Z)", target)[0])
        if method == b"CONNECT":
            self.requests.append(head)
            writer.write(self.established)
            await relay(reader, writer, port, [])
        else:
            reader.feed_data(head)  # back to where it was
            await relay(reader, writer, port, self.requests)


class SocksProxy(Server):
    """A SOCKS5 proxy: every name leads to this machine; requests are what it was sent."""

    login = False

    async def steps(self, script: Script, reader: Any, writer: Any) -> None:
        hello = await reader.readexactly(2)
        self.requests.append(hello + await reader.readexactly(hello[1]))
        writer.write(b"\x05\x02" if self.login else b"\x05\x00")
        if self.login:
            start = await reader.readexactly(2)
            user = await reader.readexactly(start[1] + 1)
            self.requests.append(start + user + await reader.readexactly(user[-1]))
            writer.write(b"\x01\x00")
        asked = await reader.readexactly(5)
        address = await reader.readexactly({1: 3, 3: asked[4], 4: 15}[asked[3]] + 2)
        self.requests.append(asked + address)
        writer.write(b"\x05\x00\x00" + asked[3:] + address)  # of any of the three kinds
        await relay(reader, writer, int.from_bytes(address[-2:], "big"), [])


def proxy(kind: type[Server] = HTTPProxy, tls: ssl.SSLContext | None = None) -> Any:
    """A running proxy, for as many connections as come."""
    return serving(kind(((),), True), tls)


def origin(tls: str | ssl.SSLContext = "", body: bytes = b"ok") -> Any:
    """A running origin that answers all; tls: its context, or the name of its certificate."""
    context = server_tls(tls) if tls and isinstance(tls, str) else tls or None
    return always(answer(body), tls=context)


def demanding(version: ssl.TLSVersion) -> Any:
    """other.test, which wants a client certificate; asyncio's tells nobody why it refuses one."""
    return beside(*[[READ, answer()]] * 4, tls=server_tls("other", True, version))


# ---- 13. Addresses and TLS

@with_readme
def recipe(name: str) -> Any:
    """What a block of the README defines by this name; how it is used there is left out."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S)
    block, = (block for block in blocks if re.search(rf"^(?:class|.*def) {name}\b", block, re.M))
    tree = ast.parse(block)
    tree.body = [node for node in tree.body if isinstance(node, (
        ast.Import, ast.Assign, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))]
    names: dict[str, Any] = {"__name__": "readme", "asyncio": asyncio, "asyncget": asyncget}
    exec(compile(tree, "README.md", "exec"), names)
    return names[name]


class Section13AddressesAndTLS(AsyncCase):
    """Which address, whom to believe, and errors that say what to change."""

    def test_resolved(self) -> None:
        h = Origin("https", "h.test", 443)
        for resolve, asked, address in table([
                ({"H.Test:0443": "[::1]"}, h, "::1"), ({"h.test:80": "127.0.0.1"}, h, None),
                ({"x.h.test:443": "127.0.0.1"}, h, None),
                ({"[0::1]:80": "::2"}, Origin("http", "::1", 80), "::2"),
                ({"*:443": "127.0.0.2", "h.test:443": "127.0.0.1"}, h, "127.0.0.2"),  # the first
                ({"BÜCHER.test:443": "::2"}, Origin("https", "xn--bcher-kva.test", 443), "::2")]):
            self.assertEqual(asyncget.resolved(resolve, asked), address, resolve)
        for key in ("h.test", "h.test:", "443", "h.test:https", "a/b:443"):
            self.refuses(InvalidURL, "", asyncget.resolved, {key: "127.0.0.1"}, h)

    def test_tls_context(self) -> None:
        self.assertEqual(asyncget.handshake_hint("BAD_DECRYPT"), "")  # none where none is due
        self.assertEqual(asyncget.certificate_hint(mock.Mock(verify_code=9), True), "")  # too early
        self.assertIn("cert=", asyncget.handshake_hint("SSLV3_ALERT_BAD_CERTIFICATE"))  # Go's
        # Each get() has a session of its own.
        self.assertIs(default := asyncget.tls_context(True), asyncget.tls_context(True))
        with patch.dict(os.environ, SSL_CERT_FILE=pem("ca")):
            self.assertIsNot(default, asyncget.tls_context(True))
        self.assertIsNot(default, asyncget.tls_context(True, minimum=ssl.TLSVersion.TLSv1_3))
        for trusting in default, asyncget.new_context(""):  # "": the store, as True
            self.assertEqual((trusting.verify_mode, trusting.check_hostname), (ssl.CERT_REQUIRED, 1))
        # a file takes the store's place: CVE-2016-9015
        self.assertEqual(len(asyncget.tls_context(pem("ca")).get_ca_certs()), 1)
        locked = (pem("client"), pem("encrypted_key"))
        asyncget.tls_context(pem("ca"), (*locked, "secret"))
        with patch.object(ssl.SSLContext, "load_default_certs", side_effect=ssl.SSLError):
            self.assertFalse(asyncget.new_context(False).check_hostname)
        with patch.object(ssl.SSLContext, "load_cert_chain") as load:
            asyncget.tls_context(pem("ca"), pem("client"))
        self.assertIsNotNone(load.call_args[0][2])  # None: OpenSSL would ask on the terminal
        for verify, cert, said, code in table([*((pem("ca"), cert, "client cert", 58) for cert in (
                    locked, (*locked, "wrong-secret"), (*locked, b"wrong-secret"), (*locked, 17),
                    (None,), ("/none", "/none", "secret"))),
                *((path, None, "verify=", 77) for path in ("/none", pem("key"), None, 7.5, "a\0b")),
                (ssl.create_default_context(), pem("client"), "load it into your SSLContext", 58)]):
            error = self.refuses(TLSError, said, asyncget.tls_context, verify, cert, exit_code=code)
            self.assertNotIn("secret", str(error))
        self.refuses(TLSError, "version", asyncget.tls_context, True, None, 0x999, exit_code=4)

    def test_a_certificate_with_controls(self) -> None:
        """A trace is told its names in one line, fit for a terminal."""
        opened = mock.MagicMock()
        opened.writer.get_extra_info().__getitem__.return_value = [[("commonName", "\x1b\r\n")]]
        self.assertIn(r" subject: CN=\x1b\r\n", [*asyncget.connection_notes(opened)])

    async def test_a_certificate_that_is_asked_for_behind_the_handshake(self) -> None:
        """As Apache does for some paths (RFC 8446 4.6.2): it may, if the client has offered it."""
        def ask(_: bytes) -> bytes:
            opened[0].verify_client_post_handshake()
            return b"HTTP/1.1 100 Continue\r\n\r\n"  # with it goes the wish

        def shown(_: bytes) -> Any:
            return answer() if opened[0].getpeercert() else [0.001, shown]

        opened: list[ssl.SSLObject] = []
        context = server_tls(client_ca=True)
        context.post_handshake_auth = True
        context.sni_callback = lambda tls, *_: opened.append(tls)
        async with always(ask, shown, tls=context, host="localhost") as server:
            response = await asyncget.get(server.url, verify=pem("ca"),
                                          cert=(pem("client"), pem("key")))
            self.assertEqual(response.content, b"ok")

    async def test_certificates(self) -> None:
        """CVE-2021-28363: what a proxy tunnels, is checked as well, and for the origin's name.
        And CVE-2025-47279: nothing is left of a handshake that failed.
        """
        ca, strict = pem("ca"), ssl.create_default_context(cafile=pem("ca"))
        strict.verify_flags |= ssl.VERIFY_X509_STRICT  # python/cpython#138193: as 3.13 has it
        for name, host, verify, text in table([  # certificate, host, verify, complaint
                ("leaf", "127.0.0.1", ca, ""), ("leaf", "localhost", strict, ""),
                ("expired", "localhost", ca, r"expired \(after 0.\d\d s\)\Z"),
                ("other", "localhost", ca, r"Hostname mismatch.*localhost.* \(after 0.+ s\)\Z"),
                ("other", "127.0.0.1", ca, r"IP address mismatch.* \(after 0.+ s\)\Z"),
                ("common_name", "localhost", pem("common_name"), "Hostname mismatch"),  # 9110 4.3.4
                ("common_name", "localhost", ca,
                 f"self.signed certificate.*only those in {re.escape(repr(ca))}"),
                ("common_name", "localhost", strict, "only those in <ssl.SSLContext"),
                *[("no_aki", "localhost", strict, "Missing Authority Key Identifier.*since Python "
                   "3.13.*_flags &= ~ssl.VERIFY_X509_STRICT")][:ssl.OPENSSL_VERSION_INFO >= (3,)],
                ("leaf", "localhost", True, "SSL_CERT_FILE")]):
            async with origin(name) as server, proxy() as via, proxy(SocksProxy) as socks, \
                    Session() as session:
                url = f"https://{host}:{server.port}/"
                for done, way in enumerate((None, f"http://{via.url}", f"socks5h://{socks.url}")):
                    call = session.get(url, verify=verify, proxy=way)
                    if text:
                        said = f"certificate of {host}:{server.port}.*{way or ''}.*{text}"
                        error = await self.raised(TLSError, call, said, exit_code=60)
                        self.assertNotIn("trusted" if "Missing" in text else "STRICT", str(error))
                        self.assertEqual((server.requests, count(session)), ([], (done, done, 0)))
                        call = session.get(url, verify=False, proxy=way)
                    self.assertEqual((await call).content, b"ok")
                    server.requests.clear()

    async def test_where_the_authorities_come_from(self) -> None:
        folder, hashed = self.empty_folder(), self.empty_folder()
        shutil.copy(pem("ca"), hashed + HASHED)
        async with origin("leaf") as server:
            for environ, options, said in table([
                    ({"SSL_CERT_FILE": "/none/ca.pem", "SSL_CERT_DIR": "/"}, {},
                     re.escape("SSL_CERT_FILE (no such file) and SSL_CERT_DIR (/)")),
                    ({}, {"verify": folder}, re.escape(repr(folder)) + " .* `openssl rehash`"),
                    ({"SSL_CERT_FILE": pem("ca")}, {}, ""), ({"SSL_CERT_DIR": hashed}, {}, ""),
                    ({}, {"verify": hashed}, "")]):
                with self.subTest(environ, **options), patch.dict(os.environ, environ):
                    call = asyncget.get(f"https://localhost:{server.port}/", **options)
                    if said:
                        await self.raised(TLSError, call, said)
                    else:
                        self.assertTrue((await call).ok)

    async def test_name_asked_for_wherever_it_leads(self) -> None:
        """SNI and check are for the URL's host, by resolve, unix socket and tunnel alike."""
        names: list[str | None] = []
        context = server_tls("other")
        context.sni_callback = lambda _, name, __: names.append(name)
        async with origin(tls=context) as server, proxy() as via, \
                serving(Server(server.scripts, True), context, path=self.folder + "/s"):
            for way in table([{"resolve": {f"*:{server.port}": "127.0.0.1"}}, {"proxy": via.url},
                              {"unix_socket": self.folder + "/s", "proxy": "http://p.test"}]):
                options = {"verify": pem("ca"), "headers": {"Host": "odd.test"}, **way}
                for dot in ("", "."):  # RFC 6066 3
                    await asyncget.get(f"https://other.test{dot}:{server.port}/", **options)
                    self.assertEqual(names.pop(), "other.test", way)
                await self.raised(TLSError, asyncget.get(
                    f"https://h.test:{server.port}/", **options), "Hostname mismatch")
                self.assertEqual(names.pop(), "h.test")

    async def test_client_certificate_wanted(self) -> None:
        """TLS 1.3 says so behind the handshake."""
        cert = (pem("client"), pem("encrypted_key"), "secret")
        for version in TLS_VERSIONS:
            async with proxy() as via:
                with demanding(version) as (url, _):
                    url = url.replace("127.0.0.1", "other.test")
                    for way in table([{"proxy": via.url}, {"resolve": {url[8:]: "127.0.0.1"}}]):
                        await self.raised(TLSError, asyncget.get(url, verify=pem("ca"), **way),
                                          "other.test:.*cert=", exit_code=35)
                        response = await asyncget.get(url, cert=cert, verify=pem("ca"), **way)
                        self.assertTrue(response.ok)

    async def test_errors_of_the_way(self) -> None:
        """Which hop, after how long, at which address, from which variable."""
        port = free_port()
        there, both = (f"127.0.0.1', {port}", "'127.0.0.1'.*'127.0.0.2'") if not WINDOWS else ["1225"] * 2
        nowhere = mock.AsyncMock(side_effect=socket.gaierror(-2, "Name or service not known"))
        odd, slow, reset, untrusted = (mock.AsyncMock(side_effect=kind("said so")) for kind in (
            UnicodeError, asyncio.TimeoutError, ConnectionResetError, ssl.SSLCertVerificationError))

        def streams(*read: Any, **writer: Any) -> Any:
            """A connector: what its reader reads, or raises, and what its writer does."""
            reader = mock.Mock(read=mock.AsyncMock(side_effect=read))
            return mock.AsyncMock(return_value=(reader, mock.MagicMock(**writer)))

        broken = streams(**{"write.side_effect": BrokenPipeError("said so")})
        # uvloop's writer, and its socket
        closed = streams(*[b""] * 9, **{"write.side_effect": RuntimeError("the handler is closed")})
        gone = streams(**{"get_extra_info.side_effect": [mock.Mock(), ValueError("negative")]})
        refused, damaged = (streams(
            *came, ssl.SSLError(1, "bad record"),
            # Up to Python 3.10 it is not called if TLS has failed already.
            write=(came or sys.version_info >= (3, 11)) and mock.Mock(),
            **{"get_extra_info.return_value.version.return_value": came})
            for came in ([], [answer(b"half")[:-1]]))
        far, bare, strict = "https://h.test", "http://no.test", ssl.create_default_context()
        for url, options, kind, code, text in table([
                (far, {}, ConnectError, 7, rf"cannot connect to proxy http://127.0.0.1:{port} "
                 rf"\(from https_proxy or -x\): .*{there}.*\(after 0.\d\d s\)"),
                (far, {"proxy": None, "resolve": {"*:443": "127.0.0.1"}}, ConnectError, 7,
                 "to h.test:443 at 127.0.0.1: .*after 0"),
                (far, {"trust_env": False, "resolve": {"*:443": "127.0.0.1,127.0.0.2"}},
                 ConnectError, 7, "to h.test:443 .*" + both),
                *((far, {"unix_socket": path}, ConnectError, 7, said) for path, said in (
                    ("/none/s", "unix:/none/s: .*No such file.*after"),
                    ("/" + "x" * 200, "cannot connect"), ("a\0b", "cannot connect"))),
                (far, {"proxy": "", "open_connection": nowhere}, ConnectError, 6,
                 "resolve 'h.test', for h.test:443: .*not known.*after"),
                (far, {"proxy": None, "open_connection": odd}, ConnectError, 6, "said so"),
                (far, {"proxy": None, "open_connection": reset}, TLSError, 35, "said so"),
                (bare, {"open_connection": nowhere}, ConnectError, 6, "'no.test', for no.test:80:"),
                (bare, {"open_connection": mock.AsyncMock(side_effect=OSError(  # no words for it
                    10061, "Connect call failed"))}, ConnectError, 7, "10061. Connect call failed"),
                (bare, {"open_connection": refused}, TLSError, 35, "TLS with .*bad record"),
                (bare, {"open_connection": slow}, ConnectError, 7, "said so"),
                (bare, {"open_connection": broken}, IncompleteBody, 56, "lost: said so"),
                (bare, {"open_connection": closed}, IncompleteBody, 56, "lost: .*closed"),
                (bare, {"open_connection": gone}, ConnectError, 7, "no.test:80: negative"),
                (bare, {"open_connection": closed, "proxy": "socks5h://p"}, ProxyError, 97,
                 "closed the connection"),
                (bare, {"open_connection": untrusted}, TLSError, 60, "refused: .*said so"),
                (far, {"verify": strict, "cert": "x"}, TLSError, 58, "into your SSLContext"),
                (bare, {"open_connection": damaged}, IncompleteBody, 56, "lost: .*bad record"),
                (bare, {"proxy": "p.test", "open_connection": nowhere}, ProxyError, 5,
                 "resolve 'p.test', for proxy http://p.test:80"),
                ("http://h", {"timeout": 0.05, "open_connection": never}, TimedOut, 28,
                 r"no connection within 0.05 s: proxy socks5://p.test:1080 \(from all_pr")]):
            with patch.dict(os.environ, HTTPS_PROXY=f"http://127.0.0.1:{port}",
                                 all_proxy="socks5://p.test", no_proxy="no.test"):
                call = asyncget.get(url, **{"verify": pem("ca"), **options})
                error = await self.raised(kind, call, text, exit_code=code)
                self.assertIs(type(error), kind)
                if "127.0.0.1" in text:
                    self.assertEqual(error.errno, errno.EINVAL if WINDOWS else errno.ECONNREFUSED)
        with patch.dict(vars(asyncio)):
            vars(asyncio).pop("open_unix_connection", None)  # as on Windows
            call = asyncget.get("http://h.test/", unix_socket="/x")
            await self.raised(ConnectError, call, "no unix sockets")

    # ---- the README's examples of open_connection=

    async def test_answers_from_bytes(self) -> None:
        double = recipe("Answering")(answer(b"hello"))
        async with Session(open_connection=double.open_connection) as session:
            for url in ("http://h.test/x", "https://h.test/y", "https://h.test/z"):
                self.assertEqual((await session.get(url)).text, "hello")
        self.assertEqual(re.findall(rb"GET (\S+)", double.asked), [b"/x", b"/y", b"/z"])
        cut = recipe("Answering")(answer(b"hello")[:-1])
        await self.raised(IncompleteBody, asyncget.get(
            "http://h.test/", open_connection=cut.open_connection))

    async def test_at_a_unix_socket(self) -> None:
        """Not on Windows: its asyncio has no unix sockets."""
        for name, tls in (("http", None), ("https", server_tls("other"))):
            path, daemon = self.empty_folder() + "/s", Server(([READ, answer(b"daemon")],), True)
            async with serving(daemon, tls, path=path):
                response = await asyncget.get(f"{name}://other.test/v1", verify=pem("ca"),
                                              open_connection=recipe("at_unix_socket")(path))
                self.assertEqual((response.text, daemon.targets()), ("daemon", ["/v1"]))

    async def test_public_addresses_alone(self) -> None:
        real, open_public = asyncio.open_connection, recipe("open_public")
        at: list[str] = []

        async def look_up(host: str, *_: Any, **__: Any) -> Any:
            return [(2, 1, 6, "", (one, 80)) for one in (at if host == "h.test" else [host])]

        async def to_server(host: str, port: int, **options: Any) -> Any:
            self.assertEqual(host, "1.1.1.1")  # what was checked, not the name
            return await real("127.0.0.1", server.port, **options)

        async with scripted([READ, redirect("http://127.0.0.1:9/")]) as server:
            with patch.object(get_running_loop(), "getaddrinfo", look_up), \
                    patch("asyncio.open_connection", to_server):
                for address in ("127.0.0.1", "10.0.0.1", "192.168.1.1", "172.16.0.1",
                                "169.254.169.254", "0.0.0.0", "224.0.0.1", "::1", "fe80::1",
                                "fd00::1", "::ffff:127.0.0.1", "64:ff9b::10.0.0.1", ""):
                    at[:] = ["1.1.1.1", address] if address else ["1.1.1.1"]
                    said = f"{'h.test' if address else '127.0.0.1'} is at .*{address}.* not public"
                    call = asyncget.get("http://h.test/", open_connection=open_public)
                    await self.raised(ConnectError, call, said)
                    self.assertEqual(len(server.requests), not address, address)  # that redirects


# ---- 14. Proxies

def asking() -> ssl.SSLContext:
    """A proxy's context, which asks for a certificate and refuses the one meant for the origin."""
    context = server_tls()
    context.verify_mode = ssl.CERT_OPTIONAL  # it knows no authority
    return context


class Section14Proxies(AsyncCase):
    """Which proxy, what it is told byte for byte, and what its answers may do to us."""

    def test_no_proxy_table(self) -> None:
        """The superset of what clients agree on."""
        for url, exempt, other in table([  # URL, exempt by these, and not by those
            ("http://x.corp.test", [
                "CORP.TEST", "foo, corp.test", ".corp.test", "*.corp.test", "test", "*", "foo,*",
                "foo corp.test",                   # blanks, as in libproxy and Go
                ".x.corp.test", "x.corp.test.",    # the host itself; the root's dot, on either side
                "*.corp.test:80"], [               # the port that is not written
                "", ",, ,", ".", "corp", "y.x.corp.test", "x.corp.test:81",
                "orp.test", "x.*.test",            # no dot boundary (bpo-39057), no such wildcard
                "0.0.0.0/0",                       # names are not looked up
                "10.0.0.0/99, [, ], :, :80, a:b, " + "9" * 5000]),
            ("http://corp.test", ["*.corp.test"], []), ("http://x.corp.test.", ["x.corp.test"], []),
            ("https://x.corp.test", ["x.corp.test:443"], ["x.corp.test:80"]),
            ("http://127.0.0.1:8080", [
                "127.0.0.1", "127.0.0.1:8080", "*:8080", "0.0.0.0/0", "127.0.0.1/8"], [
                "127.0.0.1:80", "10.0.0.0/8", "::/0", "0.0.1"]),  # no suffixes of addresses
            ("http://10.1.2.3", ["10.0.0.0/8:80"], []),
            ("http://[::1]", ["::1"], []),  # undici #5623
            ("https://[fd00::1]", ["*,foo", "fd00::/8", "[fd00::1]", "FD00:0::1", "[fd00::1]:443"],
             ["[fd00::1]:80"])]):
            for no_proxy in exempt + other:
                self.assertIs(asyncget.bypasses_proxy(no_proxy, parse_url(url).origin),
                              no_proxy in exempt, (no_proxy[:60], url))

    def test_choose_proxy(self) -> None:
        http, https, every = (f"proxy http://p:1 (from {kind}_proxy or -x)" for kind in (
            "http", "https", "all"))
        both = every, every
        origins = Origin("http", "h.test", 80), Origin("https", "h.test", 443)
        for text, expected in table([  # environment; for http, for https
            ("", (None, None)), ("http_proxy=p:1 HTTP_PROXY=q:1", (http, None)),
            ("HTTP_PROXY=p:1", (http, None)), ("http_proxy=p:1 REQUEST_METHOD=GET", (http, None)),
            ("HTTPS_PROXY=p:1", (None, https)), ("http_proxy= HTTP_PROXY=p:1", (None, None)),
            ("HTTP_PROXY=q:1 REQUEST_METHOD=GET ALL_PROXY=p:1", both),  # httpoxy
            ("all_proxy=socks5h://p:1 https_proxy=p:1", (every.replace("http", "socks5h"), https)),
            ("all_proxy=p:1 https_proxy=", both),  # as curl has it
            ("all_proxy=p:1 NO_PROXY=h.test", (None, None)),
            ("all_proxy=p:1 NO_PROXY=h.test no_proxy=", both),
            ("all_proxy=p:1 no_proxy=x NO_PROXY=*", both),
            ("all_proxy=p:1 no_proxy=h.test:80", (None, every))]):
            environ = dict(pair.split("=") for pair in text.split())
            with patch.dict(os.environ, environ, clear=True):
                found = [chosen and str(chosen) for chosen in map(asyncget.choose_proxy, origins)]
                self.assertEqual(tuple(found), expected, text)
        with patch.dict(os.environ, clear=True), patch("sys.platform", "darwin"), \
                patch("urllib.request.getproxies", lambda: {"https": "http://mac:8080"}), \
                patch("urllib.request.proxy_bypass", {"h.test": 0, "inside.test": 1}.pop):
            chosen = map(asyncget.choose_proxy, (*origins, Origin("https", "inside.test", 443)))
            self.assertEqual([*map(str, chosen)], [
                "None", "proxy http://mac:8080 (from the system's settings)", "None"])
            os.environ["ALL_PROXY"] = "p:1"
            self.assertEqual(str(asyncget.choose_proxy(origins[1])), every)

    def test_parse_proxy(self) -> None:
        self.alike(lambda text: tuple(asyncget.parse_proxy(text, "x")), [
            (" p\n", ("http", "p", 80, "", "x")), ("HTTP://P:3128/", ("http", "p", 3128, "", "x")),
            ("http://p:3128?x", ("http", "p", 3128, "", "x")),
            ("https://p", ("https", "p", 443, "", "x")),
            ("socks5://p", ("socks5", "p", 1080, "", "x")),
            ("socks5h://me:a%40b@[::1]:9", ("socks5h", "::1", 9, "me:a%40b", "x")),
            ("me:pw@10.0.0.1:1", ("http", "10.0.0.1", 1, "me:pw", "x")),
            ("http://bücher.test", ("http", "xn--bcher-kva.test", 80, "", "x"))])
        for text in ("socks4://me:secret@p", "me:secret://se@cret@p", "", "http://p\n:1",
                     "http://me:secret@p:99999", "http://me:sec/ret@p:1", "http://me:se cret@p"):
            error = self.refuses(ProxyError, "", asyncget.parse_proxy, text, "http_proxy")
            self.assertRegex(str(error), "^http_proxy: (?!.*cret)")

    # ---- what it is told

    async def test_absolute_form(self) -> None:
        own = {"User-Agent": "x", "Accept-Encoding": None}
        for userinfo, value in (("", ""), ("m%40e:p%3Aw%2F@", basic("m@e", "p:w/"))):
            extra = f"Proxy-Authorization: {value}\r\n" if value else ""
            async with scripted([READ, answer()], again=True) as server, Session(
                    proxy=userinfo + server.url[7:], headers=own) as session:
                await session.get("http://h.test/a%2Fb?q=1#top")
                await session.get("http://h.test:8080")  # a port that is not the scheme's own
            for head, target, host in zip(server.requests, ("h.test/a%2Fb?q=1", "h.test:8080/"),
                                          ("h.test", "h.test:8080")):
                self.assertEqual(head.decode(), f"GET http://{target} HTTP/1.1\r\nHost: {host}"
                                 f"\r\nAccept: */*\r\nUser-Agent: x\r\n{extra}\r\n")

    async def test_tunnel(self) -> None:
        """What is for the proxy, and what for the origin; and the tunnel is kept."""
        agent = "User-Agent: mine\r\n"  # some proxies let only browsers through
        told = f"Proxy-Authorization: {basic('me', 'pw')}\r\n"
        for userinfo, extra in (("", ""), ("me:pw@", told)):
            async with origin("other") as server, proxy() as via, Session(
                    proxy=userinfo + via.url, verify=pem("ca"), cookies={"a": "b"}, timeout=None,
                    headers={"X-Own": "1", "User-Agent": "mine"}) as session:
                for reused in (False, True):
                    response = await session.get(f"https://u:p@other.test:{server.port}/x")
                    self.assertEqual((response.content, response.timing.reused), (b"ok", reused))
                await gather(*(session.get(f"https://other.test:{server.port}/x") for _ in "12"))
                self.assertEqual([head.decode() for head in via.requests],
                                 [f"CONNECT other.test:{server.port} HTTP/1.1\r\n"
                                  f"Host: other.test:{server.port}\r\n{agent}{extra}\r\n"] * 2)
        async with scripted([READ, answer(b"", status="403 No")], again=True) as server:
            for url, target in (("https://h.test/", "h.test:443"), ("https://[::1]/", "[::1]:443")):
                await self.raised(ProxyError, asyncget.get(url, proxy=server.url))
                self.assertEqual(server.targets().pop(), target)  # the port stands there always

    async def test_tunnel_of_a_fussy_proxy(self) -> None:
        """RFC 9110 9.3.6: length and coding of a 2xx to CONNECT mean nothing; 1xx may precede."""
        async with origin("other") as server, proxy() as via, Session(
                proxy=via.url, verify=pem("ca")) as session:
            url = f"https://other.test:{server.port}/"
            for head in (b"HTTP/1.0 200 OK\r\nContent-Length: 10\r\n\r\n",
                         b"HTTP/1.1 299\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n",
                         b"HTTP/1.1 100 C\r\n\r\n" * 3 + OPENED, b"HTTP/1.1 200\nX: 1\n\n"):
                via.established = head
                response = await session.get(url, headers={"Connection": "close"})
                self.assertEqual(response.content, b"ok")
            via.established = OPENED + answer(b"slipped in")  # CVE-2021-22947
            await self.raised(ProxyError, session.get(url), "before the tunnel was", exit_code=56)
            self.assertEqual(via.connections, 5)

    async def test_refusals(self) -> None:
        """What a proxy says is told, short and printable; a password is not."""
        html = b"<html><style></style>\n<head><title>ERROR: blocked</title></head>\n"
        me, ok, asked = "me:s3cret@", b"\x05\x00", [3, b"\x05\x00", 13]
        tunnels: list[tuple[str, list[Any], str]] = [  # user and password, answer to CONNECT, text
            ("", [answer(b"no ticket\nmore", status="407 Proxy Authentication Required")],
             r"refused a tunnel to h.test:443: 407 Proxy Authentication Required \(user and "
             r"password in its URL are wanted; it asks for ''\); it says b'no ticket more'"),
            (me, [answer(b"", "Proxy-Authenticate: NTLM", "Proxy-Authenticate: Negotiate abc",
                         status="407 x")],
             r"407 x \(user and password in its URL were refused; it asks for 'NTLM, Nego"),
            (me, [answer(b"", status="401 x")], r"401 x \(user and password in its URL were ref"),
            ("", [b"HTTP/1.1 403 No\r\n\r\n\n  because \r\n"], "says b'because'"),
            ("", [answer(html, status="403 x")], "says b'ERROR: blocked'"),
            ("", [b"HTTP/1.1 502 x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"],
             "502 x; it says b'3 abc 0'"),
            ("", [b"HTTP/1.1 403 No\r\nContent-Length: 9\r\n\r\n"], "403 No"),  # nor does it come
            ("", [answer(b"\x1b[2Jx", status="403 \x9b31m" + "A" * 100_000)], r"x1b\[2Jx"),
            ("", [answer(b"", "Location: http://evil.test/", status="302 Found")], "302"),
            ("", [b"SSH-2.0-OpenSSH\r\n"], "did not answer CONNECT h.test:443: .* not an HTTP"),
            ("", [CLOSE], "did not answer CONNECT.*empty reply"),
            ("", [RESET], "closed the connection")]
        later: list[tuple[list[Any], type[ConnectError], str]] = [  # behind the answer to CONNECT
            ([0.02, answer()], TLSError, "after.*does not speak TLS"),
            *(([*wait, CLOSE], ConnectError, "handshake with h.test:443") for wait in ([], [0.02])),
            ([0.02, RESET], TLSError, "handshake with h.test:443 through proxy")]
        socks: list[tuple[str, list[Any], str]] = [
            ("", [3, b"\x05\xff"], "wants credentials that are not in its URL"),
            (me, [4, b"\x05\x01"], "wants credentials"),
            (f"me:{'s' * 256}@", [4, b"\x05\x02", CLOSE], "more than 255 bytes"),
            (me, [4, b"\x05\x02", 11, b"\x01\x01"], "refused the user and password in its URL"),
            ("", [3, b"HTTP/1.1 400 Bad Request\r\n\r\n"], r"not a SOCKS5 proxy.*b'HT'"),
            ("", [3, ok, b"HTTP/1.1 400"], "cannot connect to h.test:80: reply 84"),
            ("", [*asked, b"\x05\x00\x00\x09\0\0", CLOSE], "closed"),             # an odd address
            *(("", [*steps, CLOSE], "closed the connection") for steps in (    # cut somewhere
                [3, b"\x05"], [*asked, b"\x05\x00\x00"], [*asked, b"\x05\x00\x00\x03\x05abc"])),
            *(("", [*asked, b"\x05\x05\x00\x00", end], "refused") for end in (CLOSE, RESET)),
            *(("", [*asked, b"\x05%c\0\1\0\0\0\0\0\0" % number], f"connect to h.test:80: {text}")
              for number, text in enumerate([
                  "general failure", "not allowed", "network unreachable", "host unreachable",
                  "connection refused", "expired", "command not", "address type", "reply 9"], 1))]
        for scheme, user, steps, kind, text in table([
                *(("http", me, [READ, *steps], ProxyError, text) for me, steps, text in tunnels),
                *(("http", "", [READ, OPENED, *steps], kind, text) for steps, kind, text in later),
                *(("socks5h", me, steps, ProxyError, text) for me, steps, text in socks)]):
            url = "https://h.test/" if scheme == "http" else "http://h.test/"
            async with scripted(steps) as server, Session(
                    proxy=f"{scheme}://{user}{server.url[7:]}", verify=pem("ca")) as session:
                error = await self.raised(kind, session.get(url), text, url=url)
                if kind is ProxyError:  # curl's: 97 is for SOCKS alone
                    self.assertEqual(error.exit_code, 56 if scheme == "http" else 97)
                if text == "closed the connection":  # it may be another time
                    self.assertTrue(asyncget.retry_delay(1, error, 1))
                self.assertIn(f"proxy {scheme}://{server.url[7:]} (from proxy=)", str(error))
                self.assertIn("(after 0.", str(error))
                self.assertNotRegex(str(error), r"^proxy \S+ \(from proxy=\) proxy|s3cret")
                if "closed" not in text:  # it has answered, and what it said is told
                    self.assertNotIn("closed the connection", str(error))
                self.harmless(error)
                self.assertEqual((count(session), server.connections), ((0, 0, 0), 1))
                await until(lambda: not server.open)

    # ---- TLS to the proxy

    async def test_https_proxy(self) -> None:
        async with origin() as server, proxy(tls=asking()) as via:
            url, cert = f"http://h.test:{server.port}/", (pem("client"), pem("key"))
            response = await asyncget.get(
                url, proxy=f"https://me:pw@{via.url}", verify=pem("ca"), cert=cert)
            self.assertEqual(response.content, b"ok")
            self.assertIn(basic("me", "pw"), field(via.requests[0], "proxy-authorization"))
            for verify in True, False:  # that is for the origin; the proxy is sent a password
                call = asyncget.get(url, proxy=f"https://me:pw@{via.url}", verify=verify)
                await self.raised(TLSError, call, "certificate of proxy https.*refused.*no proxy")
            self.assertEqual(len(via.requests), 1)
        async with proxy(tls=server_tls("other")) as via:
            call = asyncget.get("http://h.test/", proxy=f"https://{via.url}", verify=pem("ca"))
            await self.raised(TLSError, call, "of proxy .*address mismatch", exit_code=60)
            self.assertEqual(via.requests, [])
        async with scripted([1, b"HTTP/1.1 400 Bad Request\r\n\r\n", CLOSE], again=True) as plain:
            wrong = plain.url.replace("http", "https")
            for asked, hop in (("http://h.test/", rf"proxy {wrong} \(from http_proxy or -x\)"),
                               (wrong, wrong[8:])):
                with self.subTest(asked), patch.dict(os.environ, http_proxy=wrong):
                    await self.raised(TLSError, asyncget.get(asked, verify=pem("ca")),
                                      f"with {hop}.*begin with http://")

    async def test_tls_in_tls(self) -> None:
        loop = get_running_loop()
        handler = loop.get_exception_handler()
        assert handler
        # Before 3.11.8 and 3.12.2 asyncio stumbles on each error in TLS in TLS, and logs that.
        loop.set_exception_handler(lambda loop, context: None if "_abort" in repr(
            context.get("exception")) else handler(loop, context))
        trust: dict[str, Any] = {"verify": pem("ca"), "cert": (pem("client"), pem("key"))}
        async with origin(server_tls("other", client_ca=True)) as server, proxy(
                tls=asking()) as via, Session(proxy=f"https://me:pw@{via.url}", **trust) as session:
            url = f"https://other.test:{server.port}/"
            if sys.version_info < (3, 11):
                await self.raised(ProxyError, session.get(url), "needs Python 3.11.*http:// proxy")
                self.assertEqual(via.connections, 0)  # said before anything is sent
                return
            for reused in (False, True):
                response = await session.get(url)
                self.assertEqual((response.content, response.timing.reused), (b"ok", reused))
            self.assertEqual(len(via.requests), 1)
            await self.raised(TLSError, session.get(f"https://h.test:{server.port}/"),
                              "certificate of h.test:.* through proxy https")
            for version in TLS_VERSIONS:
                with demanding(version) as (url, _):
                    url = url.replace("127.0.0.1", "other.test")
                    await self.raised(TLSError, session.get(url, cert=None), "other.test:.*cert=")
            with beside([READ], tls=server_tls(client_ca=True)) as (wanting, _):
                await self.raised(ProxyError, session.get(url, proxy=wanting),  # not from cert=
                                  f"proxy {wanting}.* closed .*CERTIFICATE_REQUIRED")
            for end in (CLOSE, CUT, RESET):
                async with scripted([READ, answer()[:-1], end], tls=server_tls("other")) as cut:
                    url = f"https://other.test:{cut.port}/"
                    await self.raised(IncompleteBody, session.get(url))
        async with scripted([READ, OPENED], tls=server_tls()) as mute:
            await self.raised(TimedOut, asyncget.get(
                "https://h.test/", proxy=mute.url, verify=pem("ca"), timeout=0.1))

        class Deaf(HTTPProxy):
            """It does not see that we close, and stays open when the origin has closed."""

            async def steps(self, script: Script, reader: Any, writer: Any) -> None:
                self.transport = writer.transport
                await super().steps(script, reader, writer)

        async with proxy(Deaf, server_tls()) as deafened, scripted(
                [READ, lambda _: deafened.transport.pause_reading() or OK + b"\r\nok", 0, CLOSE],
                tls=server_tls("other")) as ending, Session(verify=pem("ca")) as session:
            async with session.stream(f"https://other.test:{ending.port}",
                                      proxy=f"https://{deafened.url}") as response:
                one, = session._pool.all
                made = one.outer.get_extra_info("socket")
                await until(one.outer.is_closing)  # by the TLS inside, which has ended
                self.assertEqual(await response.read(), b"ok")
            await asyncio.wait_for(until(lambda: made.fileno() < 0), 5)
            deafened.transport.abort()
        # given up as TLS begins, or amid it: nobody waits for the proxy's end
        for turns, cancelled in table((0, 9), (False, True)):
            with beside([READ, OPENED, threading.Event()], tls=server_tls()) as (deaf, _):
                async with Session(proxy=deaf, verify=pem("ca")) as session:
                    task = ensure_future(session.get("https://h.test/"))
                    while not (begun := [one for one in session._pool.all if one.outer]):
                        await asyncio.sleep(0)
                    made = begun.pop().outer.get_extra_info("socket")
                    await pause(turns)
                    if cancelled:
                        task.cancel()
                    else:
                        await session.close()
                    await asyncio.wait([task])
                    await asyncio.wait_for(until(lambda: made.fileno() < 0), 5)  # noqa: B023
                    self.assertTrue(task.cancelled() if cancelled else task.exception())

    # ---- SOCKS5 (RFC 1928, RFC 1929)

    async def test_socks_bytes(self) -> None:
        async with origin() as server, proxy(SocksProxy) as via:
            url, port = f"http://h.test:{server.port}/", server.port.to_bytes(2, "big")
            local, name, hello = b"\x01\x7f\x00\x00\x01", b"\x03\x06h.test", b"\x05\x01\x00"
            for scheme, host, address, expected in [  # host in the URL, resolve, what is asked for
                    ("socks5h", "h.test", "", name), ("socks5h", "127.0.0.1", "", local),
                    ("socks5h", "[::1]", "", b"\x04" + bytes(15) + b"\x01"),
                    ("socks5", "h.test", "127.0.0.1", local),
                    ("socks5", "h.test", "127.0.0.1,::1", local),  # of a list, the first
                    ("socks5h", "h.test", "10.9.9.9", name)]:      # the proxy's to resolve
                resolve = {f"*:{server.port}": address} if address else None
                response = await asyncget.get(f"http://{host}:{server.port}/x", resolve=resolve,
                                              proxy=f"{scheme}://{via.url}")
                self.assertEqual(response.content, b"ok")
                self.assertEqual(via.requests, [hello, hello + expected + port])
                self.assertTrue(server.requests.pop().startswith(b"GET /x HTTP/1.1\r\nHost: "))
                via.requests.clear()
            via.login = True
            await asyncget.get(url, proxy=f"socks5h://m%40e:p%C3%A4ss@{via.url}")
            self.assertEqual(via.requests[:2], [b"\x05\x02\x00\x02", b"\x01\x03m@e\x05p\xc3\xa4ss"])
            via.login = False  # none wanted, none given
            await asyncget.get(url, proxy=f"socks5h://me:pw@{via.url}")
            self.assertEqual(len(via.requests), 5)
            self.assertEqual(field(server.requests[-1], "proxy-authorization"), [])
            found = [(2, 1, 6, "", ("127.0.0.7", 0))]  # socks5:// resolves here
            none = socket.gaierror(-2, "none")
            with patch("socket.getaddrinfo", side_effect=[found, none]) as look_up:
                await asyncget.get(url, proxy=f"socks5://{via.url}")
                self.assertEqual(look_up.call_args[0][0], "h.test")
                self.assertEqual(via.requests[-1][3:8], b"\x01\x7f\x00\x00\x07")
                error = await self.raised(
                    ConnectError, asyncget.get(url, proxy=f"socks5://{via.url}"),
                    "resolve 'h.test', for h.test:.* through proxy socks5://.*none", exit_code=6)
                self.assertIs(type(error), ConnectError)

    # ---- who may share a connection

    async def each_its_own(self, url: str, ways: list[dict[str, Any]]) -> None:
        """Check that no two ways share a connection, and that each is used again."""
        ways = [*table(ways)]
        async with Session() as session:
            for expected, way in table((False, True), ways):
                self.assertIs((await session.get(url, **way)).timing.reused, expected, way)
            self.assertEqual(count(session), (len(ways), len(ways), 0))
            for made in (one.writer.get_extra_info("socket") for one in session._pool.all):
                self.assertTrue(made.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
                self.assertTrue(made.family != socket.AF_INET  # Nagle's would hold back requests
                                or made.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            if url.startswith("https"):
                for through in (ways[0], ways[-1]):  # no stranger's trust is inherited
                    await self.raised(TLSError, session.get(url, proxy=through.get("proxy")))

    async def test_same_host_by_other_ways(self) -> None:
        local = Server(([READ, answer(), LOOP],), True)
        paths = [os.path.join(self.folder, name) for name in "ab"]
        async with origin() as server, proxy() as one, proxy() as two, proxy(SocksProxy) as socks, \
                serving(local, path=paths[0]), serving(local, path=paths[1]):
            await self.each_its_own(f"http://localhost:{server.port}/", [
                {}, {"resolve": {f"*:{server.port}": "127.0.0.1"}},
                *({"unix_socket": path} for path in paths), *({"proxy": way} for way in (
                    one.url, "me:pw@" + one.url, "me:PW@" + one.url, two.url,
                    f"socks5://{socks.url}", f"socks5h://{socks.url}",
                    f"socks5h://me:pw@{socks.url}"))])

    async def test_same_host_with_other_tls(self) -> None:
        """CVE-2024-35195, CVE-2022-27782, CVE-2026-54275: the context's identity is the key."""
        contexts = [ssl.create_default_context(cafile=pem("ca")) for _ in range(2)]
        certs = (pem("client"), pem("key")), (pem("client"), pem("encrypted_key"), "secret")
        ways: list[Any] = [{"verify": verify} for verify in (False, pem("ca"), *contexts)]
        ways += [{"verify": pem("ca"), "cert": cert} for cert in (pem("leaf"), *certs)]
        async with origin("leaf") as server, proxy() as via:
            await self.each_its_own(f"https://localhost:{server.port}/", [
                *ways, *({**way, "proxy": via.url} for way in ways)])

# ---- 15. Cookies: RFC 6265bis section 5, rule by rule

NOW = 1_700_000_000.0
MINUTE, FAR = NOW + 60, NOW + asyncget.MAX_COOKIE_SECONDS


def sent_with(jar: asyncget.Cookies, url: str) -> str:
    """The Cookie field that a jar has for a URL."""
    request = Request(parse_url(url), ()).with_cookies(jar.pairs_for(parse_url(url)))
    return Headers(request.fields).get("cookie", "")


def setting(url: str, *lines: str, jar: Cookies | None = None) -> Cookies:
    """A jar, or this one, behind a response that set cookies."""
    jar = Cookies() if jar is None else jar
    jar.store(parse_url(url), lines)
    return jar


class Section15Cookies(Tables):

    def test_dates(self) -> None:
        """6265bis 5.1.1 and RFC 9110 5.6.7."""
        nov = 784_111_777.0
        self.alike(asyncget.parse_date, [
            ("Sun, 06 Nov 1994 08:49:37 GMT", nov), ("Sunday, 06-Nov-94 08:49:37 GMT", nov),
            ("Sun Nov  6 08:49:37 1994", nov), ("\t06\"NOv'94~08:49:37x", nov),
            ("1994y November 6th 8:49:37 +0200", nov),       # letters behind digits, no zone
            ("Wed, 31 Dec 1969 23:59:59 GMT", -1.0), ("1 Jan 1601 00:00:00", -11_644_473_600.0),
            ("31 Dec 9999 23:59:59", 253_402_300_799.0), ("29 Feb 2024 0:0:0", 1_709_164_800.0),
            ("1 Jan 70 0:0:0", 0.0), ("1 Jan 00 0:0:0", 946_684_800.0),  # two digits of a year
            ("1 Jan 069 0:0:0", 3_124_224_000.0),            # 2*4DIGIT
            ("1 02 03 Jan 0:0:0", 1_009_843_200.0),          # the first that fits counts
            ("1 Jan Feb 2024 0:0:0", 1_704_067_200.0), *((text, None) for text in (
                "31 Dec 1600 23:59:59", "31 Dec 10000 23:59:59", "1 Jan 100 0:0:0",
                "29 Feb 2023 0:0:0", "0 Jan 2024 0:0:0", "1 Jan 2024 24:00:00",
                "1 Jan 2024 23:59:60", "1 Jan 2024 1:2:345",
                "001 Jan 2024 0:0:0",                        # a time-field, a day have two digits
                "1 2 3 Jan 4 0:0:0", "1 Jan 0:0:0", "1 Jan 2024", "", "soon", "0", ":::", "\udcff",
                "1 ſep 2024 0:0:0", "\u0661 Jan 2024 0:0:0"))])  # no letters, no digits

    # ---- one Set-Cookie

    def check_set(self, url: str, rows: Iterable[tuple[str, object]], *names: str) -> None:
        """Check what becomes of Set-Cookie lines, by these fields of the cookie."""
        for line, expected in rows:
            cookie = asyncget.parse_set_cookie(line, parse_url(url), NOW)
            got = cookie and tuple(getattr(cookie, name) for name in names)
            self.assertEqual(got[0] if got and len(names) == 1 else got, expected, (url, line[:80]))

    def test_name_and_value(self) -> None:
        """6265bis 5.6 steps 1 to 5, 5.7 steps 2 to 4."""
        most = asyncget.MAX_COOKIE_BYTES
        self.check_set("http://h.test/", [
            (" \ta b\t = x y \t", ("a b", "x y")), ("a==b=c, d", ("a", "=b=c, d")),
            ('a="q;r"', ("a", '"q')),
            ("a=%0d%0aY:2", ("a", "%0d%0aY:2")),  # CVE-2026-9679: as it is
            ("a=", ("a", "")), ("=1", ("", "1")), ("  1 ; Path=/", ("", "1")),  # no "=": a value
            ("a\u00a0=\u00a01", ("a\u00a0", "\u00a01")),     # no blank of ours
            ("a=\u00e9\udcff\tx", ("a", "\u00e9\udcff\tx")),
            *((f"a=x{chr(i)}y", None) for i in [*range(9), *range(10, 32), 127]),
            *((line, None) for line in (
                "a\0b=1", "a=1; Path=/\x01", "a=1; Foo=\n", "", "=", " = ; Path=/", "; a=1",
                "a=" + "x" * most, "a=" + "\u00e9" * 2048, "a=" + "\udcff" * most,
                "x" * (most + 1))),  # octets count
            *((f"a={value}", ("a", value)) for value in ("x" * (most - 1), "\u00e9" * 2047)),
            ("x" * most, ("", "x" * most))], "name", "value")

    def test_when_it_ends(self) -> None:
        """6265bis 5.6.1, 5.6.2, 5.5, 5.7 step 6."""
        date, past = "Tue, 14 Nov 2023 22:14:20 GMT", "1 Jan 1970 0:0:0"
        self.check_set("http://h.test/", [("a=1" + text, expected) for text, expected in (
            ("; Expires=Wed, 21 Oct 2099 07:28:00 GMT", FAR), (f"; eXPIRES = {date} ", MINUTE),
            ("; Expires", None), ("", None),
            ("; Expires=Mon, 01 Jan 1900 00:00:00 GMT", -2_208_988_800.0), ("; Expires=soon", None),
            (f"; Expires={date}; Expires=soon", None),        # the last counts, as in browsers
            (f"; Expires={past}; Expires={date}", MINUTE),
            ("; Expires=" + " " * 1012 + date, MINUTE),       # blanks around are no part of it
            ("; Expires=" + "x " * 600 + date, None),         # more than 1024 octets
            ("; MAX-AGE= 060 ", MINUTE), (f"; Max-Age=60; Expires={past}", MINUTE),
            (f"; Max-Age=x; Expires={date}", MINUTE), ("; Max-Age=0", NOW),
            ("; Max-Age=-1", NOW - 1), ("; Max-Age=" + "9" * 1024, FAR),
            ("; Max-Age=-" + "9" * 1023, float("-inf")), ("; Max-Age=1; Max-Age=60", MINUTE),
            ("; Max-Age=60; Max-Age=x", None), *((f"; Max-Age={age}", None) for age in (
                "9" * 1025, "", "1x", "+1", "1.5", "-", "- 1", "\u0661", "1_0")))], "expires")

    def test_domain(self) -> None:
        """6265bis 5.6.3, 5.1.3, 5.7 steps 8 to 10: (domain, host-only)."""
        host_only, wide = ("www.h.test", True), ("h.test", False)
        self.check_set("http://www.h.test/", [("a=1" + text, expected) for text, expected in (
            *((text, host_only) for text in (
                "", "; Domain=", "; Domain", "; Domain=.", "; Domain=h.test; Domain=",
                f"; Domain={'x' * 1025}")),                   # ignored with its 1025 octets
            ("; domain = .H.TEST ", wide), ("; Domain=www.h.test", ("www.h.test", False)),
            ("; Domain=x.test; Domain=h.test", wide),
            ("; Domain=h.test; Domain=x.test", None),  # the last
            *((f"; Domain={domain}", None) for domain in (
                "test", "test.", "com", "x.test", "a.www.h.test", "ww.h.test", "..h.test",
                "h.test.", "h test", "h.test:80", "http://h.test", "h.t\u00e9st", "\udcff.h.test",
                "*.h.test", "[", "]", "[]", ":", "x" * 1024)))], "domain", "host_only")
        kept = """10.0.0.1 10.0.0.1, [::1] ::1, localhost .LocalHost, com com, h.test. h.test.,
            www.b.co.uk b.co.uk, co.uk co.uk, www.co.com co.com, a.h.uk h.uk, a.co.ukx co.ukx,
            www.xn--bcher-kva.example .XN--BCHER-KVA.example"""
        refused = """10.0.0.1 0.0.1, [::1] [::1], [::1] ::2, x.localhost localhost, a.com. com.,
            h.test. h.test, www.b.co.uk co.uk, www.xn--bcher-kva.example b\u00fccher.example"""
        for pairs, stays in ((kept, True), (refused, False)):
            for host, domain in map(str.split, pairs.split(",")):
                expected = (domain.lower().removeprefix("."), False) if stays else None
                self.check_set(f"http://{host}/", [(f"a=1; Domain={domain}", expected)],
                               "domain", "host_only")

    def test_path(self) -> None:
        """6265bis 5.6.4 and 5.1.4."""
        self.check_set("http://h.test/dir/page?q=/a/b", [*(("a=1" + rest, "/dir") for rest in (
                "", "; Path=", "; Path", "; Path=x", '; Path="/"', "; Path=/a; Path=b",
                "; Path=/" + "x" * 1024)), ("a=1; PATH = /x y/ ", "/x y/"),
            ("a=1; Path=/a; Path=/b", "/b"), ("a=1; Path=/a; Path=/" + "x" * 1024, "/a"),
            ("a=1; Path=/" + "x" * 1023, "/" + "x" * 1023)], "path")
        for target, expected in (("/", "/"), ("/a", "/"), ("/a/", "/a"), ("/a/b", "/a"),
                                 ("/?/b", "/"), ("//a", "/"), ("/a//b", "/a/")):
            self.check_set("http://h.test" + target, [("a=1", expected)], "path")

    def test_flags(self) -> None:
        """6265bis 5.6.5, 5.6.6, 5.7 step 12: Secure, HttpOnly, and what is unknown."""
        rows: list[tuple[str, object]] = [("a=1; httponly=no;;; ;", (False, True)),
            ("a=1; Secured; XHttpOnly", (False, False)), ("secure=1; =; =x", (False, False)),
            ("a=1; Secure=" + "x" * 1025, (False, False))]    # too long
        secure = ["a=1; Secure", "a=1; sECURE=false", "a=1; Secure=" + "x" * 1024]
        for url, got in [("http://h.test/", None), ("http://127.0.0.2/", None), *(
                (url, (True, False)) for url in (  # what never gets on a wire, as curl and browsers
                    "https://h.test/", "http://localhost/", "http://127.0.0.1/", "http://[::1]/"))]:
            self.check_set(url, [*rows, *((line, got) for line in secure)], "secure", "http_only")

    def test_prefixes(self) -> None:
        """6265bis 4.1.3 and 5.7 steps 20 to 22."""
        good = ["__sECURE-a=1; Secure; Domain=h.test", "__hOST-a=1; Secure; Path=/", "x__Host-a=1",
                "__Host=1", "__Secure=1", "x=__Host-a"]
        bad = ["__secure-=1", "__Host-a=1; Path=/", "__host-a=1; Secure",
               "__Host-a=1; Secure; Path=/x", "__Host-a=1; Secure; Path=/; Domain=h.test",
               "=__Host-a=1; Secure; Path=/", "__Host-; Secure; Path=/", "=__SECURE-a=1; Secure"]
        self.check_set("https://h.test/d/", [*((line, line.partition("=")[0]) for line in good),
            *((line, None) for line in bad)], "name")

    # ---- the jar, as servers fill it

    def test_round_trips(self) -> None:
        """6265bis 5.8.3: (set by, Set-Cookie, where it is sent, and where not)."""
        for setter, line, good, bad in [
                ("http://a.test", "x=1", "https://a.test:81",              # neither port nor scheme
                 "http://b.test http://s.a.test"),                         # CVE-2015-2296: its own
                ("http://s.a.test", "x=1; Domain=a.test", "http://a.test http://t.s.a.test",
                 "http://nota.test"), ("http://a.test.", "x=1", "", "http://a.test"),
                ("http://a.test", "nameless", "http://a.test", ""),
                ("http://10.0.0.1", "x=1; Domain=10.0.0.1", "http://10.0.0.1", "http://x.10.0.0.1"),
                ("http://com", "x=1; Domain=com", "http://com", "http://h.com"),
                ("http://a.test", "x=1; Path=/any", "http://a.test/any?q http://a.test/any/x",
                 "http://a.test/anybad http://a.test/q?/any"),
                ("http://a.test/dir/page", "x=1", "http://a.test/dir/other", "http://a.test/other"),
                ("https://a.test", "x=1; Secure", "https://a.test:81", "http://a.test"),
                ("https://localhost", "x=1; Secure", "http://localhost:81", "")]:
            for asker in f"{good} {bad}".split():
                self.assertEqual(sent_with(setting(setter, line), asker),
                                 line.partition(";")[0] * (asker in good.split()), (setter, line))

    def test_order_and_identity(self) -> None:
        """6265bis 5.8.3 step 2: the longest path first, then the oldest; 5.7 step 23: name, domain,
        host-only and path make a cookie."""
        url = "http://a.test/p/q"
        jar = setting(url, *(f"x={path}; Path={path}" for path in ("/", "/p/q", "/p")),
                      "X=1; Path=/p", "x=2; Path=/; Domain=a.test")
        self.assertEqual(sent_with(jar, url), "x=/p/q; x=/p; X=1; x=/; x=2")
        setting(url, "x=3; Path=/p", jar=jar)  # set again it keeps its place
        setting("http://s.a.test", "x=5; Path=/p", jar=jar)  # another host's
        self.assertEqual(sent_with(jar, url), "x=/p/q; x=3; X=1; x=/; x=2")
        setting(url, "x=; Path=/p; Max-Age=0", "x=4; Path=/p", jar=jar)
        self.assertEqual(sent_with(jar, url), "x=/p/q; x=4; X=1; x=/; x=2")

    def test_nothing_is_left_behind(self) -> None:
        url, jar = parse_url("http://a.test/"), Cookies()
        with patch("time.time", lambda: NOW):
            names = jar.store(url, ["a=1; Max-Age=60", "b=2", "bad\0", "c=3; Max-Age=0"])
        self.assertEqual(names, ["a", "b", "c"])
        for at, sent in ((MINUTE - 1, "a=1; b=2"), (MINUTE, "b=2")):
            with patch("time.time", lambda at=at: at):
                self.assertEqual(sent_with(jar, "http://a.test/"), sent)
                self.assertEqual(len(jar), sent.count("="))
        self.assertEqual(jar.store(url, ["b=; Expires=Thu, 01 Jan 1970 00:00:00 GMT"]), ["b"])
        self.assertEqual((jar.store(url, ["bad\0"]), len(jar), jar._sites), ([], 0, {}))

    def test_secure_cookies_are_left_alone(self) -> None:
        """5.7 step 16."""
        http, https, old = "http://a.test/", "https://a.test/", "x=1; Secure"
        for setter, was, line, url, allowed in (
                (https, old + "; Path=/p", "x=2; Path=/p", http, False),
                (https, old + "; Path=/p", "x=2; Path=/p/q", http, False),
                (https, old + "; Path=/p", "x=2; Path=/", http, True),
                (https, old, "x=; Max-Age=0", http, False), (https, old, "y=2", http, True),
                (https, old, "x=2", https, True), (https, old + "; Max-Age=9", "x=2", http, True),
                (https, old + "; Domain=a.test", "x=2", "http://s.a.test/", False),
                ("https://s.a.test/", old, "x=2; Domain=a.test", http, False),
                ("https://s.a.test/", old, "x=2", "http://t.a.test/", True)):
            with patch("time.time", lambda: NOW):
                jar = setting(setter, was)
            self.assertEqual(bool(jar.store(parse_url(url), [line])), allowed, (setter, line, url))

    def test_who_makes_room_in_a_site(self) -> None:
        """6265bis 5.7 and 6.1: what has expired, then what is not Secure (http cannot push that
        out), then the oldest; and endless subdomains push out nobody else's."""
        many, theirs = ["x=" + "y" * 4096, *(f"a{i}=1" for i in range(100))], JarAndMapping()
        asyncget.OthersJar(theirs).store(parse_url("http://a.test/"), many)
        self.assertEqual([len(setting("http://a.test/", *many)), len(theirs)], [49] * 2)  # of 50
        with patch("asyncget.MAX_SITE_COOKIES", 10), patch("time.time", lambda: NOW):
            jar = setting("http://victim.test/", "v=1")
            setting("https://a.test/", "old=1", "sid=1; Secure", jar=jar)
            setting("http://a.test/", *(f"gone{i}=1; Max-Age=9" for i in range(8)), jar=jar)
            with patch("time.time", lambda: MINUTE):
                setting("http://a.test/", *(f"b{i}=1" for i in range(8)), jar=jar)
            self.assertEqual((len(jar), "old" in jar), (11, True))
            for i in range(12):
                setting(f"http://s{i}.a.test/", "x=1", f"y{i}=1; Domain=a.test", jar=jar)
            self.assertEqual((len(jar), "old" in jar, "y8" in jar), (11, False, True))
            self.assertEqual((sent_with(jar, "http://victim.test/"), jar["sid"]), ("v=1", "1"))

    def test_which_site_makes_room_or_is_looked_at(self) -> None:
        jar = setting("http://first.test/", "x=1")
        with patch("asyncget.MAX_COOKIES", 30):
            for i in range(10):
                setting(f"http://s{i}.test/", *(f"x{j}=1" for j in range(3)), jar=jar)
                if i == 5:
                    setting("http://first.test/", "y=1", jar=jar)
            self.assertEqual(len(jar), 29)  # whole sites make room
            with watched(asyncget.Cookie, "belongs") as belongs:
                self.alike(lambda host: sent_with(jar, f"http://{host}.test/"), [
                    ("first", "x=1; y=1"),  # it spoke since
                    ("s0", ""), ("s1", "x0=1; x1=1; x2=1"), ("a.b.c.s8", "")])
            looked_at = [call[0][0].domain for call in belongs.call_args_list]  # one site each time
            self.assertEqual(looked_at, ["first.test"] * 2 + ["s1.test"] * 3 + ["s8.test"] * 3)
            for i in range(40):
                setting(f"http://t{i}.test/", "x=1", jar=jar)
            self.assertEqual((len(jar), len(jar._sites)), (30, 30))
            self.assertEqual(sent_with(jar, "http://first.test/"), "")

    # ---- the jar, as the caller does

    def test_seeds_go_to_the_first_origin(self) -> None:
        jar = Cookies({"a": "1"})
        jar["b"] = "2"
        self.assertEqual([(c.name, c.domain) for c in jar], [("a", ""), ("b", "")])
        self.assertEqual(sent_with(jar, "https://h.test:444/"), "a=1; b=2")
        jar.set("d", "4", path="/p")
        self.alike(partial(sent_with, jar), [
            ("https://h.test:444/p", "d=4; a=1; b=2"), ("https://h.test:444/", "a=1; b=2"),
            ("http://h.test:444/", ""), ("https://h.test/", ""), ("https://s.h.test:444/", "")])

    def test_a_server_takes_the_place_of_a_seed(self) -> None:
        own = "http://www.h.test"
        for home, by, line, sent in ((own, own, "sid=new", "sid=new"),
                (own, own, "sid=new; Domain=h.test", "sid=new"),
                (own, own, "sid=new; Path=/elsewhere", ""),    # whatever its path
                (own, own, "sid=; Max-Age=0; Path=/p", ""),
                (own, own, "other=new", "sid=old; other=new"),
                (own, own, "sid=new; Secure", "sid=old"),      # refused
                (own, own + ":81", "sid=new", "sid=old"),      # another origin's
                (own, "http://api.h.test", "sid=api", "sid=old"),
                ("https://www.h.test", own, "sid=evil", "sid=old")):  # 5.7: nor may http take it
            jar = Cookies({"sid": "old"})
            jar.home = parse_url(home).origin
            setting(by + "/p/q", line, jar=jar)
            self.assertEqual({*sent_with(jar, home + "/p").split("; ")}, {*sent.split("; ")}, line)

    def test_the_caller_takes_the_place_of_a_server(self) -> None:
        jar = Cookies()
        jar.home = Origin("http", "h.test", 80)
        setting("http://h.test/p/", "sid=a", "sid=b; Path=/", "sid=c; Domain=h.test",
                "x=1; Path=/", jar=jar)
        jar["sid"] = "mine"
        self.assertEqual(jar["sid"], "mine")
        self.assertEqual(sent_with(jar, "http://h.test/p/"), "sid=mine; x=1")
        self.assertEqual(sent_with(jar, "http://h.test:81/p/"), "sid=a; sid=c; sid=b; x=1")
        jar.set("sid", "deep", path="/p")                      # two of the caller's are two
        self.assertEqual(sent_with(jar, "http://h.test/p/"), "sid=deep; sid=mine; x=1")

    def test_mapping(self) -> None:
        jar = Cookies()
        jar.home = Origin("http", "home.test", 80)
        jar.set("a", "1", domain=".H.test", path="/p")
        jar.set("a", "2", domain="b\u00fccher.test", path="")
        jar.set("ip", "6", domain="[::1]")
        jar.add(asyncget.Cookie("gone", "1", "h.test", expires=time.time() - 9))
        jar["b"] = ""
        told = [(c.name, c.value, c.domain, c.path, c.host_only, c.secure) for c in jar]
        self.assertEqual(told, [("a", "1", "h.test", "/p", False, False),
            ("a", "2", "xn--bcher-kva.test", "/", False, False),
            ("ip", "6", "::1", "/", False, False), ("b", "", "", "/", True, False)])
        self.assertEqual((len(jar), jar["b"], jar.get("c"), jar.get("c", "d")), (4, "", None, "d"))
        self.assertEqual(("a" in jar, "gone" in jar, 7 in jar), (True, False, False))
        self.assertEqual(jar["a"], "2")                        # of several the last ...
        jar["a"] = "home"
        setting("http://other.test/", "a=other", jar=jar)
        self.assertEqual(jar["a"], "home")                     # ... but servers' come before
        self.assertEqual(sent_with(jar, "https://s.h.test/p"), "a=1")
        for missing in (jar.__getitem__, jar.__delitem__):
            self.assertRaises(KeyError, missing, "c")
        jar.update({"a": "new", "c": "3"})
        self.assertEqual((jar["a"], jar["c"], len(jar)), ("new", "3", 7))
        del jar["a"], jar["c"]
        self.assertEqual([cookie.name for cookie in jar], ["ip", "b"])
        jar.set("c", "1", domain="com")                        # a suffix reaches nobody
        jar.add(asyncget.Cookie("b", "1", "co.uk", host_only=False))
        for host in ("a.h.com", "h.co.uk"):
            self.assertEqual(sent_with(jar, f"https://{host}/"), "")
        jar.clear()
        self.assertEqual((len(jar), list(jar), bool(jar), repr(jar)), (0, [], False, "<Cookies []>"))

    def test_what_cannot_be_sent(self) -> None:
        most = asyncget.MAX_COOKIE_FIELD_BYTES
        for (name, value), setter in table([
                *((name, "1") for name in ("", "a b", "a=", "a;", "\u00e9", "a\n", 1)),
                *(("a", value) for value in (
                    "1;2", "1\r\nX: y", "\0", "\x7f", "x" * most, 1, None, b"1"))], [
                asyncget.check_cookie, Cookies().set, lambda name, value: Cookies({name: value})]):
            self.refuses(InvalidHeader, "", setter, name, value)
        self.refuses(InvalidURL, "", lambda: Cookies().set("a", "1", domain="h test"))
        for value in ("", "a=b, c", '"q"', "\u00e9", "\udcff", " x\ty ", "x" * (most - 18)):
            asyncget.check_cookie("!#$%&'*+-.^_`|~a0", value)
        asyncget.check_cookie("user[name]{}()<>@,:/?\\\"", "1")

    def test_field(self) -> None:
        """6265bis 5.8.3 step 4."""
        half = "x" * (asyncget.MAX_COOKIE_FIELD_BYTES // 2 - 3)  # two of these, "a=", "b=" and "; "
        octets = "\udcff\u00e9" * (len(half) // 3)  # just as many
        self.alike(asyncget.render_cookies, [
            ([], ""), ([("a", "1"), ("", "v"), ("b", "")], "a=1; v; b="),
            *(([("a", half), ("b", other)], f"a={half}; b={other}") for other in (half, octets)),
            *(([("a", half), ("b", more), ("c", "1")], f"a={half}")
              for more in (half + "x", octets + "x", "\u00e9" * (len(half) // 2 + 1)))])
        jar = setting("http://h.test/", "sid=SECRET", "\u202ename=SECRET")
        jar["a"] = "SECRET"
        self.assertEqual(repr(jar), r"<Cookies ['sid', '\u202ename', 'a']>")

    # ---- files

    def test_read(self) -> None:
        """As curl 7.88.1 reads them, but where a comment says otherwise."""
        plain, start = asyncget.Cookie("a", "1", "h.test"), "h.test\tFALSE\t/\tFALSE\t"
        for line, expected in table([
            (start + "0\ta\t x y ", plain._replace(value=" x y ")), (start + "0\ta\t1\r", plain),
            ("H.TEST\tfalse\t/\tfalse\t0\ta\t1", plain), (start + "0\ta", plain._replace(value="")),
            (start + "0\ta\t\udcff\u2028", plain._replace(value="\udcff\u2028")),
            (".h.test\tFALSE\t/\tFALSE\t0\ta\t1", plain),
            ("h.test\ttrue\t/\ttrue\t0\ta\t1", plain._replace(host_only=False, secure=True)),
            ("#HttpOnly_h.test\tFALSE\t/\tFALSE\t0\ta\t1", plain._replace(http_only=True)),
            (start + "4000000000.5\ta\t1", plain._replace(expires=4000000000.5)),
            (start + "0.0\ta\t1", plain), (start + "\ta\t1", plain),  # http.cookiejar's; curl: none
            ("h.test\tFALSE\t\tFALSE\t0\ta\t1", plain),
            ('h.test\tFALSE\t"/"\tFALSE\t0\ta\t1', plain),
            ("h.test\tFALSE\t/a/\tFALSE\t0\ta\t1", plain._replace(path="/a/")),
            ("h.test\tFALSE\t/\tTRUE\t0\t__Secure-\t1",
             plain._replace(name="__Secure-", secure=True)), *((start + rest, None) for rest in (
                "0\t__Secure-a\t1", "1700000000\ta\t1", "-1\ta\t1", "1e9\ta\t1", "0\ta\t1\t2", "0",
                "0\t\t", "0\ta\tx\x01")),                     # curl keeps it in a file
            *((line, None) for line in (".\tFALSE\t/\tFALSE\t0\ta\t1", "#" + start + "0\ta\t1", "",
                                        "# Netscape", "h.test FALSE / FALSE 0 a 1"))]):
            with patch("time.time", lambda: NOW):
                cookies = asyncget.parse_cookie_file(f"# x\n{line}\n")
                living = [cookie for cookie in cookies if cookie.lives()]
            self.assertEqual(living, [expected] * bool(expected), line)

    def test_written(self) -> None:
        jar = setting("https://h.test/", "a=1; Secure; HttpOnly; Path=/p",
                      "b=\u00e9\udcff; Domain=h.test", "c=x\ty", "nameless", "d=1; Max-Age=1000")
        jar["mine"] = "1"
        lines = asyncget.render_cookie_file(jar).split("\n")
        self.assertEqual(lines[0], "# Netscape HTTP Cookie File")
        self.assertEqual(lines[3:6], ["#HttpOnly_h.test\tFALSE\t/p\tTRUE\t0\ta\t1",
                                      ".h.test\tTRUE\t/\tFALSE\t0\tb\t\u00e9\udcff",
                                      "h.test\tFALSE\t/\tFALSE\t0\t\tnameless"])
        self.assertRegex(lines[6], "^h.test\tFALSE\t/\tFALSE\t[0-9]+\td\t1$")
        self.assertEqual(lines[7:], [""])  # neither a tab nor what is for one port
        again = Cookies()
        for cookie in asyncget.parse_cookie_file("\n".join(lines)):
            again.add(cookie)
        self.assertEqual(sent_with(again, "https://h.test/p"), "a=1; b=\u00e9\udcff; nameless; d=1")


# ---- 16. Passwords

MINE = b"machine a.test login me password secret\n"
ME, OTHERS = ("me", "secret"), b"machine b.test login you password other\n"
NETRC: list[tuple[bytes, Any]] = [  # a file, and what a.test gets, as with curl
    (MINE, ME), (b"machine a.test\r\n  login me\r\n\tpassword secret\r\n", ME),
    (b"# mine\rmachine a.test\rlogin me\rpassword secret\r", ME),
    (b"machine a.test login me account password password secret", ME),
    (MINE + b"machine a.test login you password other\n", ME),  # the first of two
    (b"machine test login x password y machine x.a.test login x password y", None),
    # odd words
    (b"machine b.test login you passwd other\n" + MINE, ME), (MINE[:-1] + b" oops\n", ME),
    (b'machine a.test login me "login" you password secret\n', ME),  # a keyword in quotes is none
    (b"machine a.test login you login me password secret", ME),
    (b"machine a.test password secret\n", ("", "secret")),
    # quotes
    (b'machine a.test login "my self" password "#a\tb # c"', ("my self", "#a\tb # c")),
    (rb'machine a.test login me password "a\"b\\\n\r\t\q\\"', ("me", 'a"b\\\n\r\tq\\')),
    (rb'machine a.test login m"e password a\b\"\\c\n#d', ('m"e', r'a\b\"\\c\n#d')),
    # comments
    (b"# machine a.test login x password y\nmachine a.test # two\n #three \"\n" + MINE[15:], ME),
    (b"machine a.test login me password\n # other\nsecret", ME),
    # macros
    (b"macdef init\nmachine a.test login x password y\n", None),  # without an end
    (b"macdef init\r\nmachine a.test login x password \"y\r\n\r\n" + MINE, ME),
    (b"machine a.test login me\nmacdef x\nput\n\npassword secret\n", ME),
    # other bytes
    (b"machine a.test login m\xe9 password \xff\xfe", ("m\udce9", "\udcff\udcfe")),
    ("machine a.test login me password a\xa0b\x85c\u2028d\x0be\x1cf".encode(),
     ("me", "a\xa0b\x85c\u2028d\x0be\x1cf")), (b"\xef\xbb\xbf" + MINE, ME),
    # default, which is no part of an entry
    (b"machine a.test login me\ndefault password everybodys", ("me", "")),
    (OTHERS + b"default login all password p\n", None)]

NETRC_USERS: list[tuple[bytes, Any]] = [  # a file, and what "me" gets at a.test
    (b"machine a.test login you password other\n" + MINE, ME),
    (b"machine a.test login you password other\n", None), (MINE.replace(b"me", b"ME"), None),
    (MINE.replace(b"a.", b"b."), None), (b"machine a.test password secret\n", ME),
    (b"machine a.test login me\n", None), (b"machine a.test login me\n" + MINE, ME)]

NETRC_BROKEN: list[tuple[bytes, str]] = [
    (b'#\n\nmachine b.test\npassword "s3cret\nmachine a.test login "me"\n', "line 4"),
    (b'#\r\n\r\n"s3cret\r\n', "line 3"), (b"machine\n# c", "line 1"),
    *((b"machine b.test " + rest, "line 1") for rest in (
        b'password "s3cret\\', b'password "s3cret\\"\n', b'password "s3cret\ns3cret"\n',
        b"login s3cret PASSWORD\n\n# s3cret\n"))]


class Section16Passwords(AsyncCase):
    """Which password, and what each of several origins and proxies gets to see."""

    def found(self, data: bytes, host: str = "a.test", user: str = "") -> Any:
        """What a file with these bytes has for a host."""
        return asyncget.netrc_auth(self.write(".netrc", data), host, user)

    def test_netrc_auth(self) -> None:
        self.alike(self.found, NETRC)
        self.alike(lambda data: self.found(data, user="me"), NETRC_USERS)
        hosts = (b"machine A.test login 1 password 1 machine ::1 login 2 password 2 machine c\n"
                 b"MACHINE default LOGIN 3 password 3 machine b login 4 default password 4\n")
        self.alike(partial(self.found, hosts), [("a.test", ("1", "1")), ("::1", ("2", "2")),
            ("default", ("3", "3")), ("b", ("4", "")), ("c", None), ("login", None)])
        for data, text in NETRC_BROKEN:
            error = self.refuses(AsyncGetError, f"netrc, {text}: a value is missing, or a quote is "
                                 "not closed", self.found, data, exit_code=26)
            self.assertNotIn(SECRET, repr(error.__context__))
        path = self.write(".netrc", MINE)
        for wrong in (path + "/x", path + "\0", self.folder, ""):
            self.refuses(AsyncGetError, "cannot read", asyncget.netrc_auth, wrong, "a.test")
        with patch.dict(os.environ, HOME=self.folder, USERPROFILE=self.folder):
            self.assertEqual(asyncget.netrc_auth(True, "a.test"), ME)

    async def test_every_redirect(self) -> None:
        """All 16 redirects between four origins, by two proxies with two passwords.

        GHSA-hm92-r4w5-c3mj: a tunnel is to one origin.
        """
        def lead(head: bytes) -> bytes:
            number = re.search(rb"\?(\d)", head)
            return redirect(servers[int(number[1])].url + "/end") if number else answer()

        options: dict[str, Any] = {
            "auth": ("me", "pw"), "cookies": {"a": "b"}, "secret_headers": ["x-key"],
            "headers": {"X-Key": "k", "X-Public": "p", "Host": "odd.test"}, "verify": pem("ca")}
        async with contextlib.AsyncExitStack() as stack:
            servers = [await stack.enter_async_context(always(lead, host="localhost", tls=tls))
                       for tls in (None, None, server_tls(), server_tls())]
            one, two = [await stack.enter_async_context(proxy()) for _ in range(2)]
            for first, second, straight in table(range(4), range(4), ("", "03")):
                for server in [*servers, one, two]:
                    server.requests.clear()
                environ = {"http_proxy": f"one:1@{one.url}", "https_proxy": f"two:2@{two.url}",
                           "no_proxy": ",".join(servers[int(i)].url[-15:] for i in straight)}
                with self.subTest(first=first, second=second, straight=straight), patch.dict(
                        os.environ, environ):
                    async with Session(**({} if straight else options)) as session:
                        await session.get(f"{servers[first].url}/start?{second}",
                                          **(options if straight else {}))  # the call's own
                    heads = [(i, head) for i in range(4) for head in servers[i].requests]
                    self.assertEqual(len(heads), 2)
                    for i, head in heads:
                        own = i == first
                        for name, values in (
                                ("authorization", [basic("me", "pw")] * own), ("referer", []),
                                ("cookie", ["a=b"] * own), ("x-key", ["k"] * own),
                                ("x-public", ["p"]), ("proxy-authorization", []),
                                ("host", ["odd.test" if own else servers[i].url.split("/")[2]])):
                            self.assertEqual(field(head, name), values)
                    by_proxy = [i for i in (first, second) if str(i) not in straight]
                    self.assertEqual([[field(head, "proxy-authorization") for head in via.requests]
                                      for via in (one, two)], [
                        [[basic("one", "1")]] * sum(i < 2 for i in by_proxy),
                        [[basic("two", "2")]] * len({i for i in by_proxy if i > 1})])
                    self.assertEqual({head[:8] for head in two.requests} - {b"CONNECT "}, set())


# ---- real servers

WITH_CURL = LONG and bool(shutil.which("curl"))


def needs(*programs: str, modules: Sequence[str] = ()) -> Callable[[Any], Any]:
    """Skips, saying what is missing."""
    missing = [name for name in programs if find(name) is None]
    missing += [name for name in modules if importlib.util.find_spec(name) is None]
    return unittest.skipIf(bool(missing), f"not installed: {', '.join(missing)}")


def find(program: str) -> str | None:
    """A program, also where only root has it on the path."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


AROUND = [2**14, 2**16, asyncget.MAX_HEAD_BYTES, asyncget.READ_BYTES, 2 * asyncget.READ_BYTES]
BODY_SIZES = [0, 1, *(limit + step for limit in AROUND for step in (-1, 0, 1)), 4 * 2**20]
SITE_CONF = """
daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 64; }}
http {{
    access_log off; default_type text/plain; client_body_temp_path {folder}/temp;
    gzip on; gzip_types text/plain; gzip_min_length 0; gzip_http_version 1.0; sendfile on;
    server {{ listen 127.0.0.1:{port}; root {folder}; }}
}}
"""


SQUID_CONF = """
http_port 127.0.0.1:{port}; pid_filename none; cache_log /dev/null; access_log none
visible_hostname localhost; max_filedescriptors 256
auth_param basic program /usr/lib/squid/basic_ncsa_auth {folder}/passwords
acl known proxy_auth REQUIRED; acl tunnels port {allowed}
http_access deny !known; http_access deny CONNECT !tunnels; http_access allow all
"""


class RealServers(AsyncCase):
    """squid, tinyproxy, microsocks and nginx, as Debian has them."""

    @contextlib.asynccontextmanager
    async def daemon(self, conf: str, *command: str, **known: object) -> AsyncIterator[int]:
        """Run a program for a while, from when it answers on its port; its settings are in conf.

        In these and in the command, {port}, {folder} and what else is known are put in.
        """
        os.chmod(self.folder, 0o755)  # for servers that leave root behind
        port = free_port()
        settings, program, *words = (
            text.format(port=port, folder=self.folder, **known) for text in (conf, *command))
        Path(self.folder, "conf").write_text(settings, encoding="utf-8")
        with tempfile.TemporaryFile() as log:
            process = subprocess.Popen([str(find(program)), *words], stdout=log, stderr=log)
            try:
                with socket.socket() as probe:
                    while process.poll() is None and probe.connect_ex(("127.0.0.1", port)):
                        await asyncio.sleep(0.01)
                log.seek(0)
                self.assertIsNone(process.poll(), log.read()[-2000:])
                yield port
            finally:
                process.kill()  # squid would take two seconds to say goodbye
                process.wait()

    async def through(self, denied: str, conf: str, *command: str) -> None:
        """What each HTTP proxy must do: http, https, three passwords, a port denied to CONNECT."""
        async with origin("leaf", b"inside") as inside, origin("leaf") as secure, \
                origin() as plain, self.daemon(conf, *command, allowed=inside.port) as port, \
                Session(verify=pem("ca"), proxy=f"http://me:secret@127.0.0.1:{port}") as session:
            url, tunnelled = f"http://127.0.0.1:{plain.port}/x", f"https://127.0.0.1:{inside.port}/"
            for reused in (False, True):
                self.assertEqual((await session.get(url)).content, b"ok")
                response = await session.get(tunnelled)
                self.assertEqual((response.content, response.timing.reused), (b"inside", reused))
            await self.raised(ProxyError, session.get(f"https://127.0.0.1:{secure.port}/"),
                              f"refused a tunnel .*403.*{denied}", exit_code=56)
            for user in ("", "me:wrong@"):
                other = f"http://{user}127.0.0.1:{port}"
                await self.raised(ProxyError, session.get(tunnelled, proxy=other),
                                  "40[17] .*user and password in (its|the proxy's) URL")
            await self.raised(TLSError, session.get(tunnelled, verify=True),
                              "certificate of 127.0.0.1:.* through proxy")

    @needs("squid")
    async def test_squid(self) -> None:
        # by openssl passwd -apr1
        self.write("passwords", b"me:$apr1$abcdefgh$h9FWgUz3n9YxylKLlR5SQ/\n")
        await self.through("could not be retrieved", SQUID_CONF.replace("; ", "\n"),
                           "squid", "-N", "-f", "{folder}/conf")

    @needs("tinyproxy")
    async def test_tinyproxy(self) -> None:
        conf = "Port {port}\nListen 127.0.0.1\nBasicAuth me secret\nConnectPort {allowed}\n"
        await self.through("Access violation", conf, "tinyproxy", "-d", "-c", "{folder}/conf")

    @needs("microsocks")
    async def test_microsocks(self) -> None:
        async with origin("leaf") as secure, origin() as plain:
            urls = f"http://localhost:{plain.port}/", f"https://localhost:{secure.port}/"
            for login in ([], ["-u", "me", "-P", "secret"]):
                async with self.daemon("", "microsocks", "-i", "127.0.0.1", "-p", "{port}", *login
                                       ) as port, Session(verify=pem("ca")) as session:
                    at, user = f"127.0.0.1:{port}", "me:secret@" * bool(login)
                    for url, reused in table(urls, (False, True)):
                        got = await session.get(url, proxy=f"socks5h://{user}{at}")
                        self.assertEqual((got.content, got.timing.reused), (b"ok", reused))
                    if login:
                        wrong = f"socks5h://me:wrong@{at}"
                        await self.raised(ProxyError, session.get(url, proxy=wrong), "the user")

    async def compare(self, conf: str, *command: str) -> set[str]:
        """Read files around each buffer's limit, coded and not, and side by side: the codings."""
        bodies, codings, chance = dict[str, bytes](), set[str](), random.Random(5)
        for size in BODY_SIZES:
            body = chance.randbytes(size // 2) + bytes(size - size // 2)  # half of it compresses
            Path(self.folder, f"{size}.txt").write_bytes(body)
            bodies[f"{size}.txt"] = body
        async with self.daemon(conf, *command) as port, Session(
                base_url=f"http://127.0.0.1:{port}", max_size=None) as session:
            for name, decode in table(bodies, (True, False)):
                async with session.stream(name, decode=decode) as response:
                    codings.add(response.headers.get("content-encoding", ""))
                    seen = b"".join(await listed(response.iter_bytes()))
                self.assertTrue(seen == bodies[name], (name, decode))
            responses = await session.get_all(bodies, limit=4)
            self.assertTrue([got.content for got in responses] == [*bodies.values()])
        return codings

    async def test_bodies_of_http_server(self) -> None:
        self.assertEqual({""}, await self.compare("", sys.executable, "-m", "http.server", "--bind",
                                                  "127.0.0.1", "--directory", "{folder}", "{port}"))

    @needs("nginx")
    async def test_bodies_of_nginx(self) -> None:
        self.assertEqual(await self.compare(
            SITE_CONF + "user root;" * (os.geteuid() == 0), "nginx", "-p", "{folder}", "-c",
            "{folder}/conf"), {"", "gzip"})

# ==== Hostile servers, broken networks, long runs =============================
# Hostile servers, broken networks, long runs: fuzzing, faults, load, and published faults.
#
#     ASYNCGET_LONG=1         fuzz and loads, which are skipped otherwise; with it, and one by one:
#     ASYNCGET_FUZZ=1000000   so many inputs (200,000 under CI=true, 20,000 otherwise)
#     ASYNCGET_SEED=7         another seed than 1
#     ASYNCGET_LOAD=50        1,000,000 requests in a row
#
# Published faults of other clients that cannot apply here, and why:
#
#     CVE-2020-26116, -26137, CVE-2023-49081   the method and the version are no parameters
#     CVE-2026-34514                           a GET has no payload, and no type of one
#     CVE-2026-0865, -1299                     heads are made of text by section 3 alone
#     CVE-2026-11856, CVE-2026-54276           there is no digest authentication
#     CVE-2021-22876, CVE-2026-9546            there is no Referer but the caller's own
#     CVE-2026-34513                           no name look-up is remembered
#     CVE-2021-22890, CVE-2025-68121           no TLS session is resumed
#     CVE-2013-2099, CVE-2023-28321, ...       certificates are matched by OpenSSL alone
#     CVE-2026-34993                           a jar is saved as text, not as a pickle
#     CVE-2010-1512, CVE-2025-69194            no metalink is read
#     9110 8.4 for zstd                        where the standard library has none (before 3.14)
#
# And classes of them that tests hold without naming each:
#
#     credentials                      Section10RedirectsAndRetries.
#                                      test_where_redirects_lead_and_with_what,
#                                      Section16Passwords.test_every_redirect
#     pool, 9112 9.2, 9.5, 9110 9.2.2  Section9Pool.test_what_comes_to_an_idle_connection,
#                                      test_a_kept_connection_that_dies_unanswered, test_model,
#                                      Section14Proxies.test_same_host_by_other_ways
#     CVE-2021-22947, cancelling       Section14Proxies.test_refusals,
#                                      Section12Session.test_cancelled_at_every_await
#     TLS, 9110 4.3.4                  Section13AddressesAndTLS
#     proxies                          Section14Proxies
#     cookies                          Section15Cookies
#     files, 9110 14 and 15.5.17, 6266  the tests of downloads and of the command line
#     URLs, 3986 3.2.2                 Section2URLs.test_bad_urls
FUZZ = int(os.environ.get("ASYNCGET_FUZZ", 0)) or (
    200_000 if os.environ.get("CI") == "true" else 20_000)
SEED, LOAD = int(os.environ.get("ASYNCGET_SEED", 1)), int(os.environ.get("ASYNCGET_LOAD", 1))
BASE = parse_url("http://h.test/a/b?q#f")


# ---- the second opinion: RFC 9112 once more, written without a look at the module's grammar;
# what codings are undone to, zlib and Section8Decoding know

TEXT, PRINTED = rb"[^\0\r\n]*", rb"[\t -~\x80-\xff]*"  # that: where something is decided from it
EOL = rb"\r?\n"  # a lone LF ends a line of a head (9112 2.2), as section 4 of the module says
FIELD = (rb"[!#-'*+.0-9A-Z^-z|~-]+:" + TEXT +
         rb"(?:" + EOL + rb"[ \t]+" + TEXT + rb")*" + EOL)  # with obs-fold (5.2)
STATUS = re.compile(  # the reason may be missing, and the blank before it with it
    rb"HTTP/1\.(?P<minor>\d) +(?P<status>[1-9]\d\d)(?: " + TEXT + rb")?" + EOL +
    rb"(?P<fields>(?:" + FIELD + rb")*)" + EOL)
NAMED = re.compile(rb"([!#-'*+.0-9A-Z^-z|~-]+):(" + TEXT + rb")" + EOL)
CHUNK = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*(?:;" + PRINTED + rb")?\r\n")
TRAILERS = re.compile(rb"((?:" + FIELD + rb")*)(?<=\r\n)\r\n")  # their end is not lenient


def fields_in(block: bytes) -> list[tuple[bytes, bytes]]:
    """The fields of a block that matched, folds joined."""
    block = re.sub(rb"\r?\n[ \t]+", b" ", block)
    return [(name.lower(), value.strip(b" \t")) for name, value in NAMED.findall(block)]


def dechunked(wire: bytes) -> tuple[bytes, bytes, bytes] | None:
    """The payload of a chunked body, its trailer lines, and what is behind; None if it is none."""
    content, at = b"", 0
    while True:
        chunk = CHUNK.match(wire, at)
        if not chunk or len(chunk[0]) > 16_382:
            return None
        size, at = int(chunk[1], 16), chunk.end()
        if not size:
            trailers = TRAILERS.match(wire, at)
            return (content, trailers[1], wire[trailers.end():]) if trailers else None
        if wire[at + size:at + size + 2] != b"\r\n":
            return None
        content, at = content + wire[at:at + size], at + size + 2


def second_opinion(wire: bytes) -> tuple[int, bytes, bytes] | None:
    """Status, body (whatever coded it) and trailers of a message; None if it is not a whole one."""
    for _ in range(11):
        head = STATUS.match(wire)
        if not head or head["status"] == b"101":
            return None
        wire, status = wire[head.end():], int(head["status"])
        if status >= 200:
            break
    else:
        return None
    fields = fields_in(head["fields"])
    transfer, length = ([value for name, value in fields if name == wanted] for wanted in (
        b"transfer-encoding", b"content-length"))
    if status in (204, 304):
        return status, b"", b""
    if transfer and b",".join(transfer).lower() != b"identity":
        alone = re.fullmatch(rb"(?i)[ \t,]*chunked[ \t,]*", b",".join(transfer)) and not length
        found = dechunked(wire) if alone else None
        return (status, *found[:2]) if found else None
    if length:
        sizes = {size.strip(b" \t") for value in length for size in value.split(b",")}
        size = sizes.pop()
        if sizes or not re.fullmatch(rb"\d{1,18}", size) or int(size) > len(wire):
            return None
        wire = wire[:int(size)]
    return status, wire, b""


REQUEST = re.compile(  # origin-form, or absolute-form; one Host, which is the first field
    rb"GET (?:http://[a-z0-9._:\[\]-]+)?/[!-~]* HTTP/1\.1\r\n"
    rb"(?:(?i:host): (?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::\d{1,5})?\r\n)?"
    rb"(?P<fields>(?:(?!(?i:host:))[!#-'*+.0-9A-Z^-z|~-]+: [\t -~\x80-\xff]*\r\n)*)\r\n")
WANTED = re.compile(  # RFC 3986, as far as it is ASCII; behind the path, all that is no control
    r"https?://(?:[A-Za-z0-9._~!$&'()*+,;=:%@-]*@)?"
    r"(?:[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*\.?|\[[0-9a-f:.]+(?:%(?:25)?[\w.~-]+)?\])"
    r"(?::0*\d{0,5})?(?:[/?#][ -~]*)?\Z", re.I)


# ---- mutation

TOKENS = [
    b"Content-Type: text/html; charset=utf-16\r\n", b"Transfer-Encoding: gzip, chunked\r\n", b"0x5",
    b"Transfer-Encoding:\r\n chunked\r\n", b"Transfer-Encoding: chunked\r\n", b"HTTP/1.1 204 N\r\n",
    b"Content-Encoding: identity\r\n", b"Connection: ,, keep-alive\r\n", b"HTTP/1.1 100 C\r\n\r\n",
    b"Content-Encoding: deflate\r\n", b"Content-Encoding: gzip\r\n", b"Location: http://[::1\r\n",
    b"Link: <x>; rel=\"next\r\n", b"HTTP/1.1 101 S\r\n\r\n", b"Content-Length : 3\r\n", b"\r\n\r\n",
    b"Content-Length: 5\r\n", b"Connection: close\r\n", b"99999999999999999999", b"5\r\nhello\r\n",
    b"HTTP/1.0 200\r\n\r\n", b"content-length:0\r\n", b"Location: //B/x\r\n", b"Location: \xff\r\n",
    b"Set-Cookie: =;;\r\n", b"Retry-After: 1\r\n", b"10000000000000005", b"FFFFFFFFFFFFFFFF", b"\n",
    b"HTTP/1.1 304\r\n", b"HTTP/2 200\r\n", b"charset=rot13", b"\xe2\x80\xa8", b" folded\r\n", b" ",
    "٥".encode(), "²".encode(), b"0\r\n\r\n", b"HTTP/1.1 ", b"\xc2\x85", b"X: y\r\n", b"chunked",
    b"\n\r\n", b"gzip, ", b"\r\n", b"\n\n", b"\x01", b"\x0b", b"\x7f", b"\x85", b"\xa0", b"\xff",
    b"none", b"1_0", b"\r", b"\t", b"\0", b"\"", b"-1", b"+5", b"br", b":", b",", b";", b"=", b"0",
    b"1", b"5",
    b"Set-Cookie: a=b; Domain=.test; Path=/; Expires=x; Max-Age=9\r\n", b"Content-Length: 5, \r\n",
    b"Retry-After: Fri, 31 Dec 9999 23:59:59 -9999\r\n", b"\x1f\x8b", b"\x78\x9c", gzip.compress(b"")]

JSON = b'{"a": [1, 2.5e300, "\\ud800\xc3\xa9"]}'


def corpus() -> list[bytes]:
    """Responses as servers send them, and as attackers do."""
    gz, coded = gzip.compress(JSON, mtime=0), "Content-Encoding: gzip"
    return [answer(b"hello"), answer(b"", status="204 No Content"),
        CHUNKED + b"1;" + b"e" * 4094 + b"\r\nx\r\n0\r\n\r\n", answer(gz + b"\0<!-- 7 -->", coded),
        b"HTTP/1.1 200 OK\nContent-Length: 2\n\n\r\n", b"HTTP/1.1 200\r\n\r\nuntil close",
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nhello",
        *(CHUNKED + wire for wire, *_ in Section5BodyFraming.CHUNKED), answer(gz + b"\n", coded),
        *(answer(wire, f"Content-Encoding: {b', '.join(codings).decode()}")
          for codings, wire in Section8Decoding.CODED), CHUNKED + b"0\r\nX: y\nZ: \r\n\t\r\n\r\n",
        answer(zlib.compress(gz), coded, "content-encoding: DEFLATE"), b"ICY 200 OK\r\n\r\n",
        answer(gzip.compress(gz), "Content-Encoding: gzip, identity, x-gzip"),
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: </s.css>; rel=preload\r\n\r\n"
        + answer(b"hi"), OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        answer(b"gone", "Location: ../c?x=1#y", status="302 Found"),
        answer(b"", "Location: https://u:p@b.test:8443/", status="308 P"), b"SSH-2.0-OpenSSH_9\r\n",
        answer(b"x", "Set-Cookie: sid=1; Path=/; HttpOnly",
               "Set-Cookie: b=\"2\"; Domain=h.test; Max-Age=60; Secure",
               "Set-Cookie: c=3; Expires=Wed, 09 Jun 2100 10:18:14 GMT; SameSite=Lax"), b"<html>",
        answer(JSON, "Content-Type: text/html;charset=\"Shift_JIS\"; x",
               "Link: </p?2>; rel=\"next\"; title*=UTF-8''x, ;;<c>;rel",
               "Set-Cookie: __Host-a=\"\\; Max-Age=99999999999999999999; Domain=b.test; Path=/a",
               "Retry-After: Sun, 31 Dec 9999 23:59:59 -2400", status="503 S"), answer(b"", coded),
        answer(b"\xe9", "Content-Type: text/plain; charset=\"ISO-8859-1\"", "X-Fold: a\r\n\tb",
               "Vary: a", "vary: b", "X: a\x01b"), answer(JSON, "Content-Type: application/json"),
        answer(b"hello" + answer(b"EVIL")), answer(b"hello") + answer(b"EVIL"),
        OK + b"Content-Length: 5, 5\r\nTransfer-Encoding: identity\r\n\r\nhello", answer(gz, coded),
        answer(b"x", "Set-Cookie: a=caf\xe9", "Location: /\xe9", status="302 F"),
        OK + b"".join(b"X-%d: 1\r\n" % at for at in range(200)) + b"Content-Length: 0\r\n\r\n",
        b"HTTP/1.1 999 \xff\x80\r\nX:\r\nConnection: foo, CLOSE\r\nContent-Length: 1\r\n\r\nx",
        OK + b"X: \r\n \r\n\t\r\nContent-Length: 1\r\n\r\nx"]


URLS = [*(pair.partition("→")[0] for pair in Section2URLs.EXAMPLES.split()),
    *itertools.chain(*Section2URLs.BAD.values()),
    "https://u:p%40@H.test:8443/a/../b;c?d=e&f#g", "http://[::1%25eth0]/", "/%2e%2e/%0d%0a",
    "http://[::ffff:1.2.3.4]", "http://127.0.0.1:8080/?q=a b", "http://user:pass:word@h/",
    "http://bücher.example/ü?ü#ü", "/a//b///", "HTTP://xn--bcher-kva.example:00080",
    " http://web.1/./a/.. \n", "http://h#@b#z", "//b.test/x"]
URL_TOKENS = [
    *"/?#@:[]%\\ \t\0\x85\u2028üß．。１K\ud8000-_;&=", "//", "..", ".", "\r\n", "80", "99999", "::1",
    "127.1", "http:", "https://", "%2f", "%0d%0a", "xn--", "a" * 64]


class Mutator:
    """Makes inputs out of a corpus: the same ones for the same seed."""

    def __init__(self, seeds: list[str], tokens: list[str], name: str, bits: int = 8) -> None:
        self.seeds, self.tokens, self.bits = seeds, tokens, bits
        self.chance = random.Random(f"{SEED} {name}")

    def make(self) -> str:
        """A seed, changed in up to five places."""
        chance = self.chance
        text = chance.choice(self.seeds)
        for _ in range(chance.choice((0, 1, 1, 1, 2, 2, 3, 5))):
            at, to = sorted(chance.randint(0, len(text)) for _ in range(2))
            if chance.random() < 0.5:
                to = min(to, at + chance.randint(0, 3))
            start, middle, end = text[:at], text[at:to], text[to:]
            token, letter = chance.choice(self.tokens), text[at:at + 1] or " "
            text = chance.choice((
                start + token + end, start + token + end, start + middle + token + middle + end,
                start + end, start + middle, chance.choice(self.seeds)[:at] + middle + end,
                start + chr(ord(letter) ^ 1 << chance.randrange(self.bits)) + text[at + 1:],
                start + re.sub(r"\d", str(chance.randrange(10)), middle + end, count=1)))
        return text

    def cut(self, data: bytes) -> list[bytes]:
        """The pieces in which data may arrive."""
        if self.chance.random() < 0.1:
            return [data[at:at + 1] for at in range(len(data))]
        places = sorted(self.chance.randint(0, len(data)) for _ in range(self.chance.randint(1, 5)))
        pieces = [data[at:to] for at, to in zip([0, *places], [*places, len(data)])]
        return [piece for piece in pieces if piece]


class Pieces(Double):
    """The streams in one, without any socket: it plays pieces, whatever is asked, then ends."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        asyncio.Transport.__init__(self)
        self.pieces, self.transport, self.taken = iter(pieces), self, 0

    async def read(self, size: int) -> bytes:
        """The next piece."""
        piece = next(self.pieces, b"")
        self.taken += len(piece)
        return piece

    async def connect(self, *_: Any, **__: Any) -> Any:  # type: ignore[override]
        return self, self

    write = Double.close  # type: ignore[assignment]


async def receive(pieces: Iterable[bytes]) -> tuple[tuple[Any, ...], Any]:
    """What becomes of pieces that answer a request: something to compare, and the Response."""
    kept: list[asyncget.Connection] = []
    double = Pieces(pieces)
    owner = types.SimpleNamespace(connector=double.connect, opened=id, keep=kept.append, forget=id)
    connection = asyncget.Connection(ROUTE, owner)
    await connection.open(9.0)
    try:
        head = await connection.exchange(b"", 9.0)
        response = Response(head, BASE, connection, keep=True, decode=True)
        content = await response.read(100_000)
    except AsyncGetError as error:
        connection.close()
        return (type(error), error.exit_code), error
    finally:
        if connection.timer:
            connection.timer.cancel()
    left = next(double.pieces, b"")  # came too late for the response to see: a pool would
    return (response.status_code, response.raw_head, content, response.trailers.pairs,
            bool(kept and not left)), response


@long
class HostileFuzz(Tables):
    """A response or an AsyncGetError, whatever comes and in whatever pieces."""

    def fuzz(self, share: float, mutator: Mutator, check: Callable[[Any], Any]) -> None:
        """Check that share of all inputs; say with which one it went wrong."""
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for number in range(int(FUZZ * share)):
                given = mutator.make()
                try:
                    check(given)
                except Exception as error:
                    raise AssertionError(f"ASYNCGET_FUZZ={FUZZ} ASYNCGET_SEED={SEED}, input "
                                         f"{number}: {given!r}: {error!r}") from error

    def one_request(self, sent: bytes, fields: int) -> None:
        """A head of ours is one request, of so many fields."""
        self.assertTrue(REQUEST.fullmatch(sent), sent)
        self.assertEqual(sent.count(b"\r\n"), fields + 2, sent)

    def test_responses(self) -> None:
        tokens = [token.decode("latin-1") for token in TOKENS]
        mutator = Mutator([wire.decode("latin-1") for wire in corpus()], tokens, "responses")
        seen: Counter[Any] = Counter()
        loop = asyncio.new_event_loop()
        loop.set_debug(False)  # a stack per callback: half the time
        self.addCleanup(loop.close)

        def check(text: str) -> None:
            wire = text.encode("latin-1")
            outcome, response = loop.run_until_complete(receive([wire] if wire else []))
            again, _ = loop.run_until_complete(receive(mutator.cut(wire)))
            if {again[0], outcome[0]} != {ProtocolError, DecodingError}:  # one is met first
                self.assertEqual(again, outcome)
            opinion = second_opinion(wire)
            seen[outcome[0]] += 1
            if isinstance(response, AsyncGetError):
                self.harmless(response)
                self.assertTrue(opinion is None or isinstance(response, (DecodingError, TooLarge))
                                or "chunk extensions" in str(response))
                return
            assert opinion is not None, "accepted, but not by the grammar"
            if "content-encoding" not in response.headers:
                self.assertEqual((outcome[0], outcome[2]), opinion[:2])
            self.assertEqual([(name.lower(), value) for name, value in outcome[3]],
                             [(name.decode(), asyncget.field_text(value))
                              for name, value in fields_in(opinion[2])])
            self.use(response)

        self.fuzz(0.5, mutator, check)
        for kind in (200, 204, 302, ProtocolError, IncompleteBody, DecodingError):
            self.assertGreater(seen[kind], FUZZ // 1000, kind)

    def use(self, response: Response) -> None:
        """Whatever can be asked of a response has an answer, or an AsyncGetError."""
        self.assertEqual(dict(response.headers).keys(), set(response.headers))
        self.assertIsNotNone((response.text, response.reason, repr(response), response.elapsed,
                              response.links, response.cookies, response.encoding))
        delay = asyncget.retry_delay(1, response, 1)
        self.assertTrue(delay is None or 0 <= delay <= 60)
        self.use_cookies(response)
        asked, following = Request(BASE, (("Host", ""), ("Cookie", "s"))), None
        for call in (response.json, lambda: next_request(asked, response, asyncget.DEFAULTS)):
            try:
                following = call()
            except AsyncGetError as error:
                self.harmless(error)
        if isinstance(following, Request):
            self.assertEqual("cookie" in Headers(following.fields),
                             following.url.origin == BASE.origin)
            self.one_request(render_request(following.url.target, render_fields(
                following.fields, following.url.origin)), len(following.fields))

    def use_cookies(self, response: Response) -> None:
        """Whatever is set can be sent, and saved."""
        jar = Cookies()
        jar.store(BASE, asyncget.octets_text(response.raw_head, "set-cookie"))
        fields = Request(BASE, (("Host", ""),)).with_cookies(jar.pairs_for(BASE)).fields
        self.one_request(render_request("/", render_fields(fields, BASE.origin)), len(fields))
        text = asyncget.render_cookie_file(jar)
        again = list(asyncget.parse_cookie_file(text))
        self.assertEqual((asyncget.render_cookie_file(again), [cookie.key for cookie in again]),
                         (text, [cookie.key for cookie in jar if "\t" not in "".join(cookie[:4])]))

    def test_urls(self) -> None:
        seen: Counter[bool] = Counter()

        def check(text: str) -> None:
            for make in (parse_url, partial(join_url, BASE)):
                try:
                    url = make(text)
                except InvalidURL as error:
                    self.harmless(error)
                    seen[False] += 1
                    continue
                seen[True] += 1
                scheme, host, port = url.origin
                self.assertTrue(scheme in ("http", "https") and 0 <= port <= 65535)
                self.assertRegex(host, r"\A(?:[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*\.?"
                                       r"|[0-9a-f:.]+(?:%[\w.~-]{1,63})?)\Z")
                self.assertLessEqual(len(host), 255)
                self.assertNotRegex(url.target, r"\A[^?]*/\.\.?(?:[/?]|\Z)")
                fields = render_fields((("Host", ""),), url.origin)
                self.one_request(render_request(url.target, fields), 1)
                self.assertEqual(parse_url(str(url)), url._replace(userinfo=""))
                self.assertEqual(join_url(BASE, str(url)).target, url.target)
                if text.isascii() and make is parse_url:
                    self.assertRegex(text.strip(" \t\r\n\f"), WANTED)

        self.fuzz(0.15, Mutator(URLS, URL_TOKENS, "urls", 12), check)
        self.assertGreater(min(seen.values()), FUZZ // 100)

    def test_request_heads(self) -> None:
        fields = ["Host", "X-A", "Cookie", "a", "Accept", "h.test:80", "[::1]", "1; b=2", "é", "",
                  "Connection", "close", "keep-alive", "TE", "trailers"]
        tokens = ["\r\n", "\n", "\r", "\0", " ", ":", "\t", "\x85", "\u2028", "\x7f", "\ud800",
                  "Host: b", "GET / HTTP/1.1\r\n\r\n", "ü"]
        mutator = Mutator(fields, tokens, "request heads", 12)
        sent: list[bytes] = []

        def check(name: str) -> None:
            value, other = mutator.make(), mutator.make()
            try:
                merged = merge_fields(asyncget.DEFAULT_FIELDS, [(name, value), ("X", other)])
                asyncget.check_cookie("c", other)
                merged += (("Cookie", asyncget.render_cookies([("c", other)])),
                           ("Authorization", asyncget.render_auth((value, other))))
                url = asyncget.add_params(BASE, ((name, value), ("b", [other, None])))
                head = render_request(url.target, render_fields(merged, BASE.origin))
                self.one_request(head, len(merged))
                sent.append(head)
            except AsyncGetError as error:
                self.harmless(error)

        self.fuzz(0.1, mutator, check)
        self.assertGreater(len(sent), FUZZ // 200)


class Endless(AsyncCase):
    """What has no end is given up, at the same place in any cut, with little held meanwhile."""

    @contextmanager
    def within(self, size: int) -> Iterator[None]:
        """A limit to what is held at any time."""
        tracing = tracemalloc or mock.Mock(get_traced_memory=lambda: (0, 0))  # none with PyPy
        tracing.start()
        try:
            yield
            self.assertLess(tracing.get_traced_memory()[1], size)
        finally:
            tracing.stop()

    async def test_bodies_and_heads(self) -> None:
        a_head = asyncget.MAX_HEAD_BYTES
        for (why, start, again, kind, most), size in table([  # again and again; most: taken of it
                ("CVE-2023-38039: fields", OK, b"X: y\r\n", ProtocolError, a_head),
                ("CVE-2021-31525: one line", OK + b"X: ", b"y", ProtocolError, a_head),
                ("CVE-2021-3737: interim", b"", b"HTTP/1.1 100 C\r\n\r\n", ProtocolError, 11 * 18),
                ("interim of a lot of fields", b"",
                 b"HTTP/1.1 103 E\r\n" + b"X: y\r\n" * 128 + b"\r\n", ProtocolError, 11 * 800),
                ("CVE-2023-39326: extensions", CHUNKED, b"1;" + b"e" * 30 + b"\r\nx\r\n",
                 ProtocolError, 34_000), ("GO-2025-4155: no HTTP", b"", b"y", ProtocolError, 0),
                ("CVE-2026-22815: trailers", CHUNKED + b"0\r\n", b"X: y\r\n",
                 ProtocolError, a_head + 99),
                ("CVE-2017-14158: until close", OK + b"\r\n", b"y" * 999, TooLarge, 20_000),
                ("chunks for ever", CHUNKED, b"1\r\nx\r\n", TooLarge, 120_000),
                ("CVE-2025-13836: a length", OK + b"Content-Length: 999999999999999999\r\n\r\n",
                 b"y" * 999, TooLarge, 20_000), ("CVE-2025-69223: gzip",
                 OK + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(bytes(10**7)),
                 b"", TooLarge, 10**5)], (99, 65_536)):
            block, cut = again * size or start, range(0, len(again) * size or len(start), size)
            pieces = itertools.chain([start[at:at + size] for at in range(0, len(start), size)],
                                     itertools.cycle([block[at:at + size] for at in cut]))
            double = Pieces(pieces)
            memory = self.within(3 * MIB) if size > 99 else contextlib.nullcontext()
            with self.subTest(why, size=size), memory:  # CVE-2026-54277
                error = await self.raised(kind, asyncget.get(
                    "http://h.test/", open_connection=double.connect, max_size=20_000))
                self.assertTrue(kind is ProtocolError or error.limit == 20_000)
                self.assertLessEqual(double.taken, len(start) + most + 2 * size)

    async def test_a_long_head(self) -> None:
        """However it comes, it has its limit; the body behind it does not count."""
        start, rest = OK + b"Content-Length: 4\r\nX: ", b"\r\n\r\nbody"
        most = asyncget.MAX_HEAD_BYTES
        for more, cut in table((0, 1, 99_999), (2**18, 2**16, most, most - 1)):
            wire = start.ljust(most + more - 4, b"x") + rest
            double = Pieces(wire[at:at + cut] for at in range(0, len(wire), cut))
            call = asyncget.get("http://h.test/", open_connection=double.connect)
            if more:
                await self.raised(ProtocolError, call, f"more than {most}", exit_code=56)
            else:
                self.assertEqual((await call).content, b"body")

    async def test_heads_of_a_history(self) -> None:
        long_field = "X: " + "x" * 60_000
        moved = [step for hop in range(9) for step in (redirect(f"/{hop}", long_field), READ)]
        async with scripted([READ, *moved[:6], answer()], [READ, *moved]) as server:
            self.assertEqual(len((await asyncget.get(server.url)).history), 3)
            error = await self.raised(TooLarge, asyncget.get(server.url))
            self.assertEqual(error.limit, asyncget.MAX_HISTORY_BYTES)
            self.assertLess(len(server.requests), 4 + 6)

    async def test_small_pieces(self) -> None:
        """Up to a limit of 4 KiB a body is held in little more, however small its pieces are; of
        bytes that no character comes of, nothing is held.
        """
        size, mark = 2**13, b"Content-Type: a/b; charset=%b\r\n\r\n"
        for (name, wire), call in table({"members": [*gzipped(gzip.compress(b"x", 1) * size)],
                "members amid nothing": [*gzipped((EMPTY + gzip.compress(b"x", 1)) * size)],
                "chunks": [CHUNKED, *[b"1\r\nx\r\n" * 4096] * (size // 4096), b"0\r\n\r\n"],
                "reads": [OK + b"Content-Length: %d\r\n\r\n" % size, *[b"x"] * size],
                "shifts": [OK + mark % b"iso-2022-jp", *[b"\x1b(B" * 4096] * 9],
                "BOMs": [OK + mark % b"utf-8", *[b"\xef\xbb\xbf" * 4096] * 9],
                }.items(), ("get", "lines")):
            with self.subTest(name, call=call), self.within(3 * MIB // 2), patch(
                    "asyncget.MAX_LINE_CHARS", 2**12), contextlib.nullcontext() if (
                    name, call) == ("shifts", "lines") else self.assertRaises(TooLarge):
                async with Session(open_connection=Pieces(wire).connect, max_size=2**12) as session:
                    if call == "get":
                        await session.get("http://h.test/")
                    async with session.stream("http://h.test/") as got:
                        await listed(got.iter_lines())


# ---- faults

HEAD = OK + b"Content-Length: 14\r\nX: y\r\n\r\n"


class Faults(AsyncCase):
    """Whatever breaks, and wherever: the right error, and nothing is left open."""

    async def test_an_unwanted_body_is_not_waited_for(self) -> None:
        """The body of a redirect that drips or stops does not hold up the call."""
        moved = OK.replace(b"200", b"302") + b"Location: /x\r\nContent-Length: 99\r\n\r\n"
        for steps in ([moved + b"x"], [moved, *[b"x", 0.03] * 90]):
            for seconds, deadline, some in (0.05, None, [b"ok"]), (9, 0.1, [b"ok", 28]):
                async with scripted([READ, *steps], [READ, answer()]) as server:
                    with patch("asyncget.MAX_DISCARD_SECONDS", seconds):
                        call = code_of(asyncget.get(server.url, deadline=deadline))
                        self.assertIn(await asyncio.wait_for(call, 5), some)

    async def test_a_name_server_that_is_silent(self) -> None:
        """The error says that it is the name that hangs, not the server."""
        asyncget.TRANSFER.set(mock.Mock(options=parse_arguments(["http://slow.test/"])))
        with patch("socket.getaddrinfo", side_effect=lambda *_: time.sleep(0.3)):
            for connector in (asyncio.open_connection, asyncget.open_by_flags):
                await self.raised(TimedOut, asyncget.get(
                    "http://slow.test/", timeout=0.1, open_connection=connector),
                    "no address found within 0.1 s: slow.test:80", phase="connection")
            await asyncio.sleep(0.2)

    async def test_several_addresses(self) -> None:
        """RFC 8305: what refuses or is silent is passed by; who loses the race is closed.
        By the command, too, where a first address that swallows all cost the whole timeout.
        """
        real = asyncget.connect_to
        tried: list[str] = []

        async def connect(host: str, port: int) -> socket.socket:
            tried.append(host)
            if host.startswith("refused"):
                raise ConnectionRefusedError(111, f"{host} refused")
            if host.startswith("off"):
                raise OSError(101, "unreachable")
            await asyncio.sleep(99 if host.startswith("silent") else 0.03 * len(tried))
            return await real("127.0.0.1", port)

        for names, said, flags in table([  # what is said of them
                (["refused", "good"], "", None), (["silent", "refused", "good"], "", None),
                (["good1", "good2"], "", None),
                (["refused1", "refused2"], "refused1 refused; .*refused2 refused", None),
                (["off1", "off2"], r"[0-9]: \[Errno 101\] unreachable \(after", None),  # once
                (["silent1", "silent2"], "no connection", None), ([], "no addresses", None),
                ([f"refused{number}" for number in range(2000)], "refused[0-9]+ refused", None),
                *((["silent", "good"], "", flags) for flags in (None, "-y 9", "-4", "-6"))]):
            found = [(10 if "2" in name else 2, 1, 6, "", (name, 1)) for name in names]
            look_up = mock.Mock(return_value=found)
            tried.clear()
            with self.subTest(names[:2], flags=flags), patch.multiple(
                    asyncget, connect_to=connect, HAPPY_EYEBALLS_SECONDS=0.02), patch.multiple(
                    socket, getnameinfo=lambda address, _: address, getaddrinfo=look_up):
                async with scripted([READ, answer()], [READ, answer()]) as server:
                    url = f"http://host.test:{server.port}/"
                    options: Any = parse_arguments([url, *(flags or "").split()])
                    asyncget.TRANSFER.set(mock.Mock(options=options))
                    async with asyncget.open_session(options) if flags else Session(
                            timeout=0.1 if said else 9) as session:
                        if said:
                            error = await self.raised(
                                (ConnectError, TimedOut), session.get(url), said)
                            self.assertEqual(error.exit_code == 6, not names)
                        else:
                            self.assertEqual((await session.get(url)).content, b"ok")
                    self.assertEqual(len(tried), min(len(names), asyncget.MAX_ADDRESSES))
                    self.assertEqual({"2" in name for name in tried},
                                     {"2" in name for name in names})
                    self.assertEqual(look_up.call_args.args[2], {
                        "-4": socket.AF_INET, "-6": socket.AF_INET6}.get(flags or "", 0))

    async def test_a_name_server_that_is_down(self) -> None:
        """A name is looked up once for all who ask meanwhile; names that wait hold up no others,
        nor the program's threads, nor its end; and who gives up takes nothing from the others.
        Containers limit threads: without one it is looked up here.
        """
        asked, go = list[str](), threading.Event()

        def look_up(host: str, *_: Any) -> Any:
            asked.append(host)
            if host != "good.test":
                go.wait()
            return [(2, 1, 6, "", ("127.0.0.1", 0))]

        async with origin() as server, Session() as session:
            with patch("socket.getaddrinfo", look_up):
                urls = [f"http://{name}.test:{server.port}/" for name in (
                    *(f"dead{number}" for number in range(30)), *["slow"] * 30, "good", "late")]
                waiting = [ensure_future(session.get(url, timeout=wait))
                           for url in urls[:-2] for wait in (0.05, 60)]
                self.assertEqual((await session.get(urls[-2])).content, b"ok")
                await asyncio.to_thread(int)
                await until(lambda: sum(call.done() for call in waiting) == 60)
                go.set()
                ended = await gather(*waiting, return_exceptions=True)
                with patch.object(threading, "Thread", wraps=threading.Thread,  # no daemons
                                       side_effect=[RuntimeError, mock.DEFAULT]):
                    self.assertEqual((await session.get(urls[-1])).content, b"ok")
                go.clear()
                get_running_loop().call_later(0.01, go.set)
                await gather(*(asyncget.look_up("x.test", family) for family in (0, 2, 0)))
        self.assertEqual([type(one) for one in ended], [TimedOut, Response] * 60)
        self.assertEqual((len(asked), asyncget._asked), (35, {}))

    async def test_errors_that_are_not_ours_give_the_place_back(self) -> None:
        noted: list[str] = []

        def trace(kind: str, what: str | bytes) -> None:
            noted.append(kind if "Connected to" in str(what) or kind == ">" else "")
            if noted.count("*") == 1 and kind == "*" or noted.count(">") == 2 and kind == ">":
                raise ZeroDivisionError

        connect = mock.AsyncMock(side_effect=ZeroDivisionError)
        async with Session(open_connection=connect, limit=1) as session:
            for _ in range(2):
                await self.raised(ZeroDivisionError, session.get("http://h.test/"))
        async with scripted([HOLD], [READ, answer(), READ], [READ, answer()]) as server, \
                Session(trace=trace, limit=1) as session:
            await self.raised(ZeroDivisionError, session.get(server.url))
            await session.get(server.url)
            await self.raised(ZeroDivisionError, session.get(server.url))  # kept, being read from
            self.assertEqual((await session.get(server.url)).content, b"ok")

    async def test_too_many_open_files(self) -> None:
        """A clear error for those that find no descriptor, and the rest goes on."""
        async with origin() as server, Session(limit=100, timeout=0.15) as session:
            with socket.create_server(("127.0.0.1", 0), backlog=100) as mute:
                free = sorted(set(range(999)) - set(map(int, open_files())))
                self.limit("RLIMIT_NOFILE", free[25])
                url = f"http://127.0.0.1:{mute.getsockname()[1]}/"
                outcomes: Any = await session.get_all([url] * 60, limit=60, return_exceptions=True)
            said = Counter((type(one), os.strerror(errno.EMFILE) in str(one)) for one in outcomes)
            self.assertEqual(set(said), {(TimedOut, False), (ConnectError, True)})
            self.assertGreater(min(said.values()), 10)
            await session.get_all([server.url] * 20, limit=3, timeout=9)


class LoopsThatEnd(Tables):
    """The event loop ends in the middle of things, or is another."""

    @contextmanager
    def left(self, said: bytes) -> Iterator[str]:
        """The URL of a server that says this and then nothing; no file stays but its own end."""
        complaints: list[str] = []
        with beside([READ, said, threading.Event()]) as (url, _), warnings.catch_warnings(), \
                patch("sys.unraisablehook", lambda it: complaints.extend(  # bpo-39232: Windows, 3.9
                    [repr(it)] if "_ProactorBase" not in repr(it) else [])):
            warnings.simplefilter("ignore", ResourceWarning)  # asyncio's, on the transport
            gc.collect()
            files = len(open_files())
            yield url
            gc.collect()
            self.assertLessEqual(len(open_files()), files + 1)
        self.assertEqual(complaints, [])

    @not_pypy
    def test_in_the_middle_of_a_call(self) -> None:
        """What is left of it vanishes without a word; `tidy`: as asyncio.run ends."""
        for said, tidy in table((b"", HEAD + b"x"), (True, False)):
            with self.subTest(said=said, tidy=tidy), self.left(said) as url:
                loop = asyncio.new_event_loop()
                loop.set_exception_handler(lambda *_: None)  # "Task was destroyed"
                session = Session()
                task = loop.create_task(session.get(url))
                # While it connects, asyncio complains.
                loop.run_until_complete(until(partial(lambda opened, silent: [
                    1 for one in opened if one.exchanges and one.silent == silent],
                    session._pool.all, not said)))
                if tidy:
                    task.cancel()
                    loop.run_until_complete(gather(task, return_exceptions=True))
                    self.assertTrue(task.cancelled())
                loop.close()
                del task, session

    @not_pypy
    def test_a_session_in_another_loop(self) -> None:
        with self.left(answer()) as url:
            session, loop = Session(), asyncio.new_event_loop()
            loop.run_until_complete(session.get(url))
            get = partial(session.get, url)
            for call in (session.close, session.__aexit__, get):
                self.refuses(AsyncGetError, "another event loop", asyncio.run, call())
            self.assertEqual(repr(session), "<Session 1 of 100 connections>")
            self.assertEqual(repr(Session(limit=None)), "<Session 0 of inf connections>")
            loop.close()
            self.refuses(AsyncGetError, "another event loop", asyncio.run, get())
            asyncio.run(session.close())
            del session, get, call

    @not_pypy
    def test_a_stream_in_another_loop(self) -> None:
        """It does not hang, where no clock of its own runs any more."""
        with self.left(HEAD) as url:
            opened, loop = asyncget.stream(url), asyncio.new_event_loop()
            got = loop.run_until_complete(opened.__aenter__())
            self.refuses(RuntimeError, "different loop", asyncio.run, got.read())
            loop.run_until_complete(opened.__aexit__())
            loop.close()

    def test_a_generator_around_a_stream(self) -> None:
        """Left early, and closed with all others at the end of the loop: without a complaint."""
        complaints, kept = list[Any](), list[Any]()

        async def lines(url: str) -> AsyncIterator[str]:
            async with asyncget.stream(url) as got:
                async for line in got.iter_lines():
                    yield line

        async def main() -> None:
            get_running_loop().set_exception_handler(lambda *it: complaints.append(it))
            kept.append(lines(url))
            await kept[0].__anext__()

        with self.left(answer(b"a\nb")[:-1]) as url:
            asyncio.run(main())
        self.assertEqual(complaints, [])


class Varied(Double):
    """A connection without sockets that answers anything between 204 and garbage."""

    ANSWERS = [
        answer(gzip.compress(b"ok"), "Content-Encoding: gzip"), answer(b"ok", "Connection: close"),
        answer(b"", "Location: /x", status="302 F"), CHUNKED + b"2\r\nok\r\n0\r\nX: y\r\n\r\n",
        answer(b"ok", "Set-Cookie: a=%d; Path=/"), OK + b"Content-Length: 9\r\n\r\ncut",
        answer(b"no", status="503 S"), b"HTTP/1.1 junk\r\n\r\n", answer(b"ok"), answer(b"ok"),
        answer(b"ok"), OK + b"Connection: x%d\r\nContent-Length: 2\r\n\r\nok"]
    number = 0

    def write(self, head: Any) -> None:
        Varied.number += 1
        said = self.ANSWERS[Varied.number % 101 % len(self.ANSWERS)]
        self.protocol.data_received(said % Varied.number if b"%d" in said else said)
        if said.endswith(b"cut"):
            self.protocol.eof_received()


@long
class LongRuns(AsyncCase):
    seconds = 300.0 * LOAD

    async def test_many_in_a_row(self) -> None:
        """One session, all kinds of answers: as many blocks at the end as early on."""
        seen: Counter[str] = Counter()
        done = early = 0
        urls = (f"http://h{number % 3}.test/{number}" for number in range(20_000 * LOAD))
        async with Session(open_connection=Varied.connect, limit=10, max_redirects=3,
                           retries=lambda attempt, _: 0 if attempt < 2 else None) as session:
            async for _, got in session.as_completed(urls, limit=10):
                seen[str(getattr(got, "status_code", type(got).__name__))] += 1
                done += 1
                if done == 2_000:
                    gc.collect()
                    early = sys.getallocatedblocks()
            gc.collect()
            self.assertLess(sys.getallocatedblocks() - early, 5_000)
        for kind in ("200", "503", "IncompleteBody", "ProtocolError"):
            self.assertGreater(seen[kind], sum(seen.values()) // 100, seen)


# ==== What a stranger may cost ================================================
# Amounts, time and secrets, counted in bytes, steps and turns of the loop, never in seconds.


MIB, EMPTY = 2**20, gzip.compress(b"")
MEMBERS = EMPTY * (MIB // len(EMPTY))  # a MiB that says nothing
BLOCKS = b"\0\0\0\xff\xff" * (MIB // 5)  # the same, inside of one member


def deflating(*pieces: bytes) -> bytes:
    """One gzip member of all pieces."""
    coder = zlib.compressobj(9, wbits=31)
    return b"".join([*map(coder.compress, pieces), coder.flush()])


def nested(data: bytes, times: int) -> bytes:
    for _ in range(times):
        data = gzip.compress(data)
    return data


class Work:
    """What decoding has made, at which stage it may be, and how much of it between two turns."""

    SECOND = 8 * MIB  # on the clock of `working`
    TURN = 4 * MIB  # what may be made before others have theirs

    def __init__(self) -> None:
        self.made = self.since = self.most = 0

    def add(self, size: int) -> None:
        self.made += size
        self.since += size
        self.most = max(self.most, self.since)

    async def tick(self) -> None:
        """Somebody else in the loop."""
        while True:
            self.since = 0
            await asyncio.sleep(0)


class Counting:
    """A decompressor whose every step is counted."""

    def __init__(self, work: Work, *asked: Any, _open: Any = asyncget.decompressor) -> None:
        self.stream, self.work = _open(*asked), work

    def decompress(self, data: bytes, most: int) -> bytes:
        piece: bytes = self.stream.decompress(data, most)
        self.work.add(len(piece) + 1024)
        return piece

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def working() -> Iterator[Work]:
    """The loop's clock goes by the work of decoding alone; somebody else ticks meanwhile."""
    work, loop = Work(), get_running_loop()
    ticking = loop.create_task(work.tick())
    try:
        with patch("asyncget.decompressor", partial(Counting, work)), \
                patch.object(loop, "time", lambda: work.made / work.SECOND):
            yield work
    finally:
        ticking.cancel()


def gzipped(wire: bytes, codings: int = 1, cut: int = 2**18) -> Iterator[bytes]:
    """A response of stacked gzips, as it arrives."""
    yield OK + b"Content-Length: %d\r\nContent-Encoding: %b\r\n\r\n" % (
        len(wire), b",".join([b"gzip"] * codings))
    yield from (wire[at:at + cut] for at in range(0, len(wire), cut))


class StrangersCost(AsyncCase):
    """Nothing that a server sends stops the loop, outlasts a deadline or outgrows its bytes."""

    async def outcome(self, call: str, wire: Iterable[bytes], deadline: float | None = 0.5) -> Any:
        """What a call gives: bytes, or the kind of error."""
        path = Path(self.empty_folder(), "f")
        async with Session(open_connection=Pieces(wire).connect, deadline=deadline,
                           max_size=None) as session:
            try:
                if call == "get":
                    return (await session.get("http://h.test/")).content
                if call == "download":  # asks for identity, and may get something else
                    await session.download("http://h.test/", path)
                    return path.read_bytes()
                async with session.stream("http://h.test/") as got:
                    return b"".join(await listed(got.iter_bytes()))
            except AsyncGetError as error:
                self.assertEqual((error.url, path.exists()), ("http://h.test/", False))
                return type(error)

    async def test_bombs(self) -> None:
        """All of them say far more than a second's work: CVE-2025-66471."""
        honest = gzip.compress(random.Random(10).getrandbits(8 * MIB).to_bytes(MIB, "big"), 1)
        zeros, comment = [bytes(MIB)] * 10, b"\x1f\x8b\x08\x10\0\0\0\0\0\xff"
        turns = deflating(*[gzip.compress(bytes(MIB)) + EMPTY * 5000] * 4)
        kinds = set()
        for number, (name, codings, wire) in enumerate(table([  # codings: gzips
                ("zeros and members by turns", 2, turns), ("members of nothing", 1, MEMBERS),
                ("zeros", 1, deflating(*zeros)),
                ("zeros, then members", 5, nested(deflating(deflating(*zeros), MEMBERS), 3)),
                ("members of a byte", 2, deflating(gzip.compress(b"x") * 40_000)),
                ("blocks of nothing", 2, deflating(EMPTY[:10], *[BLOCKS] * 10)),
                # What has arrived gives credit for what is made of it, but not for standing still.
                ("credit, then padding", 2, deflating(honest, *zeros)),
                ("credit, then blocks", 2, deflating(honest, EMPTY[:10], *[BLOCKS] * 10)),
                ("credit, then a comment", 2, deflating(honest, comment, *[b"c" * MIB] * 10))])):
            for call in ("stream", "get", "download") if number < 3 else ("stream",):
                with self.subTest(name, call=call), working() as work:
                    kinds.add(await self.outcome(call, gzipped(wire, codings)))
                    self.assertLess(work.most, work.TURN, "without a turn")
                    self.assertLess(work.made, work.SECOND, "beyond the deadline")
        self.assertEqual(kinds, {TimedOut, DecodingError})

    async def test_what_is_no_bomb(self) -> None:
        """Large bodies, honestly coded, are what they were, and leave the others their turns."""
        noise = random.Random(1).getrandbits(8 * MIB).to_bytes(MIB, "big")
        text = b"".join(b"%d: hello, world\n" % number for number in range(100_000))
        log = b"".join(gzip.compress(text[at:at + 9999], 1) for at in range(0, len(text), 9999))
        for name, codings, body, wire, cut in [
                ("noise", 1, noise * 4, gzip.compress(noise * 4, 1), 2**18),
                ("log", 1, text, log, 2**18), ("log, in small cuts", 1, text, log, 999),
                ("zeros twice", 2, bytes(16 * MIB), nested(bytes(16 * MIB), 2), 999)]:
            with self.subTest(name), working() as work:
                got = await self.outcome("stream", gzipped(wire, codings, cut), None)
                self.assertTrue(got == body and work.most < work.TURN)

    async def test_short_lines(self) -> None:
        """However many have come at once, others have their turns, and the deadline counts."""
        connect = Pieces([answer(b"\n" * 99_999)]).connect
        async with asyncget.stream("http://h.test/", open_connection=connect) as got:
            with working() as work, self.assertRaises(TimedOut) as caught:
                async for _ in got.iter_lines():
                    work.add(1)
                    if work.made == 50_000:
                        got._deadline.until = 0.0
            self.assertEqual((caught.exception.url, caught.exception.response), (got.url, got))
            self.assertLess(work.most, 1001)

    async def test_the_body_of_an_error_is_read_for_a_second_at_most(self) -> None:
        """MAX_DISCARD_SECONDS are for its decoding, too."""
        wire = b"".join(gzipped(deflating(MEMBERS), 2)).replace(b"200 OK", b"500 No", 1)
        with working() as work, self.assertRaises(StatusError):
            async with asyncget.stream(
                    "http://h.test/", open_connection=Pieces([wire]).connect) as got:
                got.raise_for_status()
        self.assertLess(work.made, 2 * work.SECOND)

    # ---- what is held for ever, and for how long

    @not_pypy
    async def test_nothing_of_a_session_outlives_it(self) -> None:
        """No cache of the process holds what it said, or what was said to it."""
        marker = "-".join(["marker", "of", str(os.getpid())])  # not a constant of the code

        async def use() -> None:
            own = {"X-Own": marker, "Cookie": f"a={marker}", "Authorization": f"Bearer {marker}"}
            wire = answer(b"ok", f"Set-Cookie: b={marker}", f"Connection: {marker}",
                          f"Link: <{marker}>", f"Content-Type: a/b; charset={marker}",
                          f"Location: /{marker}", f"X: {marker}")
            odd = [READ, wire, READ, wire[:40], wire[40:].partition(b"\r\n")[2], LOOP]
            async with scripted(odd, again=True) as server:
                url = server.url.replace("//", f"//me:{marker}@") + f"/?token={marker}"
                for settings in table([
                        {"headers": own}, {"auth": ("me", marker)}, {"params": {"key": marker}},
                        {"base_url": url}, *({"cookies": jar} for jar in (
                            {"c": marker}, http.cookiejar.CookieJar()))]):
                    async with Session(**settings) as session:
                        got = await session.get(url)
                        _ = got.text, got.links, got.cookies, got.headers, repr(got)
                        with suppress(InvalidURL):
                            await session.get(url.replace("@", f"/{marker}@"))

        await use()
        gc.unfreeze()
        self.addCleanup(gc.freeze)  # again, for the tests that follow
        gc.collect()
        caches = {name: thing for name, thing in vars(asyncget).items()
                  if hasattr(thing, "cache_info")}
        self.assertEqual(set(caches), {"kinds_of", "parse_origin", "system_context"})
        found = [one for thing in gc.get_objects() if isinstance(thing, (list, dict, tuple, set))
                 for one in (thing.items() if isinstance(thing, dict) else [thing])
                 if any(isinstance(part, str) and marker in part and part is not marker
                        or isinstance(part, bytes) and marker.encode() in part for part in one)]
        self.assertEqual([repr(one)[:200] for one in found], [])

    @not_pypy
    async def test_outcomes_that_nobody_has_taken(self) -> None:
        """as_completed holds one for each place, and what was just handed out."""
        def alive() -> int:
            gc.collect()
            return sum(type(one) is Response for one in gc.get_objects())

        Double.made, before = 0, alive()
        async with Session(open_connection=Double.connect) as session:
            for limit in (1, 4):
                numbers = iter(range(999))  # of the URLs that were pulled
                outcomes = session.as_completed(map("http://h/{}".format, numbers), limit=limit)
                for taken in range(9):
                    await outcomes.__anext__()
                    for _turn in range(20):
                        await asyncio.sleep(0)
                    self.assertLessEqual(alive() - before, limit + 1)
                    self.assertLessEqual(next(copy.copy(numbers)) - taken, 2 * limit + 2)
                await outcomes.aclose()
        self.assertLessEqual(Double.made, 4)


def expressions() -> set[str]:
    """The functions of asyncget with a regular expression in them."""
    tree = ast.parse(Path(asyncget.__file__).read_text(encoding="utf-8"))
    compiled = {target.id for node in tree.body
                if isinstance(node, ast.Assign) and "re.compile" in ast.unparse(node.value)
                for target in node.targets if isinstance(target, ast.Name)}
    used = re.compile(rf"(?<!\w)({'|'.join(compiled)}|re\.(?!escape)\w+)\b")
    return {node.name for node in ast.walk(tree)
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
            and used.search("".join(map(ast.unparse, node.body)))}


def planned(*words: str) -> str:
    """The URLs of a run."""
    command: Any = types.SimpleNamespace(options=parse_arguments(words))
    with patch("asyncget.Transfer", lambda _, url, __: url):
        return " ".join(map(str, asyncget.plan_transfers(command)))


@not_pypy
class LinearTime(Tables):
    """Each expression and each loop that a stranger's bytes reach takes eight times the input
    in eight times the time.
    """

    SHAPES = [  # repeated to the length wanted
        *"\"\\a=; \t,-:/.%@#[1ä\0\n\udce9", '\\"', "a=", "a;", "<a>", "; a", ';a="', ", ", "/../",
        "a.", "%41", "a@", "{a}", "[1-", "%{", "%{x}", "%header{", "\\n",
        "x-", '"a"', 'a","', ";charset=x", "0 ", "1:1:1 ", "jan ", "a: b\n", "a:\n", " \n", "\r\n ",
        "\n ", "machine h ", '"a" ', "10.0.0.0/8,", "*.", ".a", "a:1,", "[::1]:1,", "::", "ä.",
        "http://", "1\r\nx\r\n", "1;a\r\nx\r\n", "h\tTRUE\t/\tFALSE\t0\ta\t1\n", "\x1f\x8b",
        "jan 1 1:1:1 70;expires="]

    # Calls with a text t or its bytes b, each on its line or behind two blanks. A call begins with
    # the function of asyncget that it is for; where it reaches that by another, with its name.
    CALLS = r"""
        printable(t)  parse_host(t)  punycode(t)  split_userinfo(t)  charset_of(t)  parse_date(t)
        site_of(t)  complete_url(t)  expand_glob(t)  parse_cookie_file(t)  condition("", t)
        name_from_header(t)  netrc_entries(t)  handshake_hint(t)  masked("http://" + t)
        without_userinfo("http://" + t)  parse_url("http://" + t)  parse_url("http://h/" + t)
        name_from_url("http://h/" + t)  remove_dots("/" + t)  charset_of("a;charset=" + t)
        netrc_entries("machine h password " + t)  netrc_entries("macdef " + t)
        fit_for(mock.Mock(), b)
        parse_cookie_file("h\tTRUE\t/\tFALSE\t0\t" + t)  name_from_header("a; filename=" + t)
        name_from_header("a; filename*=utf-8''" + t)  shown(b)  parse_list(b)  exchange: _HEAD_END.search(b)
        status_reason(b)  content_codings(b)  body_framing: got(b"content-length: " + b).status
        parse: got(b"x: " + b).headers  parse_links: got(b"link: " + b).links
        parse_links: got(b'link: <a>;rel="' + b + b'"').links
        cookies: got(b"set-cookie: " + b).cookies  parse_address("::%25" + t)
        parse_origin.__wrapped__("http", t)  join_url(page, t)  merge_fields((), {"connection": t})
        retry_delay(1, got(b"Retry-After: " + b, status=b"HTTP/1.1 503 X"), 1)
        with_codings((("accept-encoding", t),), True)  render_fields((("Host", t),), HERE)
        render_fields((("X", t),), HERE)  render_auth((t, t))  check_fields(b + b"\n\n")
        parse_head(b"HTTP/1.1 200 " + b + b"\r\n\r\n")  parse_head(OK + b + b"\r\n\r\n")
        octets_text(OK + b"x:" + b + b"\r\n", "x")  may_reuse(head(b"Connection: " + b), 0)
        parse_border(b"\r\n1;" + b)  read_chunked: take([b])  render_request(t, b"")
        read_chunked: take([b"0\r\n" + b])  read_chunked: take(cut(b))
        read_chunked: take(cut(b"0\r\n" + b))  read_chunked: take(cut(b"%x\r\n" % len(b) + b))
        inflate: decode([b"gzip"], [EMPTY + b])
        inflate: decode([b"gzip"], [EMPTY * (len(b) // 20)])
        iter_lines: run(listed(response(b).iter_lines()))
        iter_lines: run(listed(response(*cut(b), fields=[TEXT_FIELD + b"utf-16-be"]).iter_lines()))
        ask_for_tunnel: re.sub(rb"(<[^<>]*>|\s)+", b" ", b)
        next_request(Request(page, ()), got(b"Location: " + b, status=b"HTTP/1.1 302 F"), DEFAULTS)
        redirect_url(got(b"Location: x:" + b, status=b"HTTP/1.1 302 F"))
        with_cookies: Request(page, (("Cookie", t),)).with_cookies([("a", "1")])
        pairs_for: re.findall("(?:^|; )(?:([^=;]+)=)?([^;]*)", t)
        parse_set_cookie("a=1;" + t, page, NOW)  parse_set_cookie("a=1;domain=" + t, page, NOW)
        parse_set_cookie("a=1" + f";{t[:99]}" * (len(t) // 99), page, NOW)  check_cookie("a", t)
        store: (jar := Cookies()).store(page, many(t)), render_cookie_file(jar)
        store: OthersJar(http.cookiejar.CookieJar()).store(page, [t[:4096]])  parse_proxy(t, "x")
        bypasses_proxy(t, Origin("http", "h.test", 80))
        in_network: bypasses_proxy(t, Origin("http", "127.0.0.1", 80))  resolved({"h:80": t}, HERE)
        strong_validator(Headers([("etag", f'"{t}"')]))
        leave_own_coding(got(b"content-encoding: gzip", b"content-type: " + b), t)
        ask_own_coding(Request(parse_url("http://h/")._replace(target=t), DEFAULT_FIELDS))
        url_parts("http://h/" + t, "")  read_sidecar: re.fullmatch(_SIDECAR, t)  safe_name(t, False)
        plan_transfers: planned("u/{a,b}", "-o", "#1" + t)
        render_cookie_file([Cookie("a", t, "h")])
        render_write_out(t, {"exitcode": 0}, Headers())  read_lines: reading(t, read_lines)("")
        netrc_auth: reading(t, netrc_auth)(True, "h")  show: re.sub(_FIELD, mask_field, t)
        mask_field: re.sub(_FIELD, mask_field, f"x{t.strip()}: {t}")
        mask_field: re.sub(_FIELD, mask_field, "Location: http://" + t)"""
    FLAGS = "-C -m -o -d -z --connect-to --max-filesize --rate --resolve".split()

    def calls(self) -> Iterator[tuple[str, Callable[[str, bytes], Any]]]:
        """Each of them, and those of flags: its text, and a function."""
        known = {**globals(), **vars(asyncget), "page": parse_url("http://h/"),
            "got": lambda *fields, **more: response(fields=fields, **more),
            "TEXT_FIELD": b"Content-Type: a; charset=", "cut": lambda b: [bytes([octet]) for octet in b],
            "many": lambda t: [f"a{number}={t[:99]}" for number in range(len(t) // 99)],
            "reading": lambda t, call: patch("asyncget.read_text", lambda _: t)(call)}
        flags = (f'store_flag: parse_arguments(["u", "{flag}", t])' for flag in self.FLAGS)
        for text in (*re.split(r"\n\s*|  ", self.CALLS.strip()), *flags):
            yield text, eval("lambda t, b: (" + re.sub(r"^\w+: ", "", text) + ")", known)

    def test_all_are_listed(self) -> None:
        # or the caller's own, or the system's
        of_constants = set("failure known_flags kinds_of glob_values written_in_place open_session".split())
        listed = {re.split(r"\W", text)[0] for text, _ in self.calls()}
        self.assertEqual(expressions() - listed, of_constants)

    def test_eight_times_the_input(self) -> None:
        size = 2**15 if LONG else 4400
        for text, call in self.calls():
            with uncollected():  # what collects garbage goes through all that the tests hold
                slow = [shape for shape in self.SHAPES if not self.is_linear(call, shape, size)]
            self.assertEqual(slow, [], text)

    def is_linear(self, call: Callable[[str, bytes], Any], shape: str, size: int) -> bool:
        """Three doublings cost 8 times if linear, 64 if quadratic; what is quick is passed by."""
        def seconds(size: int) -> float:
            text = shape * (size // len(shape))  # whole ones: one cut off may be an error
            octets = text.encode("utf-8", "surrogateescape")
            begun = time.process_time()
            with suppress(AsyncGetError, ValueError, EOFError):
                got = call(text, octets)
                if isinstance(got, types.GeneratorType):
                    list(got)
            return time.process_time() - begun

        def fits() -> bool:
            last = min(seconds(size) for _ in range(3))
            return last < 24 * max(min(seconds(size // 8) for _ in range(3)), 1e-4, TICK)

        return seconds(size) < 0.05 or any(fits() for _ in range(9))  # machines are busy


class TrustAndSecrets(AsyncCase):
    """Certificates are credentials; and no secret is in any text."""

    async def shown(self, calls: Any, moved: dict[str, str], **settings: Any) -> list[Any]:
        """Each connection, with the client certificate that its context holds; and who each
        request says that it comes from. What has moved is led on once.
        """
        opened, sent = list[Any](), list[Any]()

        async def connect(host: str, port: int, **options: Any) -> Any:
            name = f"{'https' if 'ssl' in options else 'http'}://{host}"
            name += f":{port}" * (port not in (80, 443))
            opened.append((name, getattr(options.get("ssl"), "shown", None)))
            reader, writer = await Double.connect(host)

            def write(head: bytes) -> None:
                sent.append((*field(head, "Authorization"), None)[0])
                wire = redirect(moved.pop(name)) if name in moved else answer()
                writer.transport.protocol.data_received(wire)

            writer.write = write
            return reader, writer

        async with Session(open_connection=connect, **settings) as session:
            for url, options in calls:
                await session.get(url, max_redirects=9, **options)
        return [opened, sent]

    @patch.object(ssl.SSLContext, "load_cert_chain",
                       lambda context, path, *_: setattr(context, "shown", path))
    async def test_client_certificates(self) -> None:
        a, b, plain, c = "https://a.test", "https://b.test", "http://a.test", {"cert": "c"}
        at_a = {"base_url": a, **c}
        of_flags = [asyncget.open_session(parse_arguments([a, "-E", "c", *flags])).settings
                    for flags in ([], ["--tlsv1.3"], ["-k"])]  # whatever else is said of TLS
        self.alike(lambda text: asyncget.open_session(parse_arguments([a, "-E", text])).settings[
            "cert"], [("c", ("c", None, "")), ("c:a:b", ("c", None, "a:b")),
                      *((f"{file}{more}", (file, None, more[1:])) for file in (
                          r"C:\c.pem", "d:/c") for more in ("", ":a:b"))])  # Windows' drives
        for name, calls, moved, settings, expected in table([
                ("another port", [(a + ":444", {})], {}, at_a, [(a + ":444", None)]),
                ("no base: each its own", [(a, {}), (b, {})], {}, c, [(a, "c"), (b, "c")]),
                ("redirect from http", [(plain, {})], {plain: a}, c, [(plain, None), (a, None)]),
                ("trusted", [(a, {})], {a: b}, {**c, "trust_redirects": True},
                 [(a, "c"), (b, "c")]), ("another than the base", [(b, {})], {}, at_a, [(b, None)]),
                ("on the call, redirect", [(b, {"cert": "d"})], {b: a}, at_a,
                 [(b, "d"), (a, None)]), ("at home", [("/", {}), (a, {})], {}, at_a, [(a, "c")]),
                ("none on the call", [(a, {"cert": None})], {}, c, [(a, None)]),
                ("with, then without", [(b, {}), (a, {})], {a: b}, c,
                 [(b, "c"), (a, "c"), (b, None)]),
                ("shared", [(a, {}), (b, {}), (a, {})], {a: b}, c, [(a, "c"), (b, None), (b, "c")]),
                *(("command", [(a, {})], {a: b}, {name: given[name] for name in ("verify", "cert")},
                   [(a, "c"), (b, None)]) for given in of_flags)]):
            opened, _ = await self.shown(calls, moved, **settings)
            self.assertEqual(opened, expected, name)

    async def test_netrc(self) -> None:
        """Opt-in, bound to scheme and port; and what counts before it."""
        netrc = self.write("netrc", b"machine a.test login me password pw machine b.test login you "
                                    b"password pw\ndefault login all password pw\n")
        mine, theirs, told = basic("me", "pw"), basic("you", "pw"), "Bearer token"
        a, plain, b, c = "https://a.test", "http://a.test", "http://b.test", "http://c.test"
        for url, to, own, sent in table([*((url, to, {}, [mine, then]) for url, to, then in (
                    (a, a + "/x", mine), (a, plain + "/", None), (a, a + ":444/", None),
                    (plain, a + "/", None), (plain, b + "/", theirs), (plain, b + ":81/", None),
                    (a, b + "/", None), (plain, c, None))), (c, plain, {}, [None, mine]),
                (plain, b, {"netrc": False}, [None] * 2), ("http://x.a.test", "", {}, [None]),
                ("http://u:p@a.test", b, {}, [basic("u", "p"), theirs]),
                ("http://me@a.test", b, {}, [mine, theirs]),
                ("http://x@a.test", "", {}, [basic("x", "")]),
                ("http://me:@a.test", "", {}, [basic("me", "")]),     # an empty password is one
                ("http://me@a.test", "", {"auth": "token"}, [told]),  # psf/requests#3929
                (plain, "", {"headers": {"authorization": "own"}}, ["own"]),
                (plain, "", {"headers": {"authorization": None}}, [None]),
                (plain, b, {"auth": "token"}, [told, theirs]),
                (plain, c, {"auth": "token"}, [told, None])]):        # CVE-2025-14524
            moved = {re.sub("//.*@", "//", url): to} if to else {}
            _, found = await self.shown([(url, {})], moved, **{"netrc": netrc, **own})
            self.assertEqual(found, sent, (url, to, own))
        _, found = await self.shown([(plain, {"auth": None})], {}, netrc=netrc)
        self.assertEqual(found, [None])  # a call that says so itself has none

    async def test_refused_settings(self) -> None:
        """What has come of the session is fit to be shown, and says nothing when it goes; and
        of a rule for retries it is only known later that it gives no seconds.
        """
        for settings in table([{"limit": 0}, {"verify": 1}, {"base_url": "x"}]):
            session = Session.__new__(Session)
            with self.subTest(settings), self.assertRaises((TypeError, ValueError)):
                Session.__init__(session, **settings)
            self.assertEqual(repr(session), "<Session closed>")
        for wrong, busy in table((float("nan"), -0.1, "1", [1]), (True, False)):
            double = Pieces([answer(b"", status="503 X")] if busy else [])
            with self.subTest(wrong=wrong, busy=busy):
                async with Session(open_connection=double.connect, deadline=None,
                                   retries=lambda *_, wrong=wrong: wrong) as session:
                    await self.raised(ValueError, session.get("http://h.test/"),
                                      "a rule for retries gives seconds")
                    await asyncio.sleep(0)  # Pieces has ended: the listener is told then
                    self.assertEqual(count(session), (0, 0, 0))

    # ---- one marker in all that may hold a secret

    MARK = "s3CrEtMaRk"
    WRITTEN = [*(f"http://me:{end}" for end in (
            "{}@h.test/", "a/{}@h.test/", "a#{}@h.test/", "a?{}@h.test/", "a@{}@h.test/",
            "{}\\@h.test/", "{}@[::1/", "{}@", "{}%zz@h.test/", "{}@h.test:99999/", "{}@h:x/",
            "{}@h.test/\x01", "{}@h .test/", "é{}@h.test/", "{}@127.1/", "\udc80{}@h.test/",
            "[{}]@h.test/", "{}/x@h/", "{}:x/@h/", "{}]:x?@h/", "{}?@h/", "{}@h.test/" + "x" * 70_000)),
        "http://{}@h.test/", "http://{}:@h.test/", "ftp://me:{}@h.test/", "//me:{}@h.test/",
        "http:/me:{}@h.test/", "http:me:{}@h.test", "me:{}@h.test", " http://me:{}@h.test/ ",
        "http://[{}@h.test/", "http://{}\n@h/", "http://u:" + "x" * 90 + "{}" + "x" * 500 + "@\n"]

    def assertHidden(self, *texts: Any) -> None:
        for text in texts:
            shown = text if isinstance(text, str) else repr(text)
            self.assertNotIn(self.MARK.lower(), shown.lower())
            self.assertNotIn(base64.b64encode(self.MARK.encode()).decode()[4:-4], repr(text))

    def hidden_error(self, error: BaseException) -> None:
        while error:
            self.assertHidden(str(error), error, getattr(error, "url", ""),
                              getattr(error, "response", ""))
            error = error.__cause__  # type: ignore[assignment]

    async def asked(self, url: str, settings: dict[str, Any], own: bool = False) -> None:
        """Check what is told of a GET with these settings, of a session's or the call's own."""
        notes: list[Any] = []
        double = Pieces([answer(b"", "Set-Cookie: b=1")])
        with self.subTest(url[:60], settings=settings, own=own):
            try:
                async with Session(open_connection=double.connect, **({} if own else settings),
                                   trace=lambda *note: notes.append(note)) as session:
                    got = await session.get(url, **(settings if own else {}))
                    self.assertHidden(session, session.cookies, session._pool.all)
                    if "params" not in settings:
                        self.assertHidden(got)
            except (AsyncGetError, TypeError, ValueError) as error:
                self.hidden_error(error)
            self.assertHidden(*[text for kind, text in notes if kind == "*"])

    async def test_urls(self) -> None:
        """Errors, notes and reprs; where to get, as a base and as a proxy, and as a Location."""
        for form in self.WRITTEN:
            url = form.format(self.MARK)
            self.assertHidden(asyncget.without_userinfo(url), asyncget.masked(url))
            await self.asked(url, {})
            await self.asked("http://h.test/x", {"base_url": url})
            await self.asked("http://h.test/x", {"proxy": url})
            if re.search("[\1\n]|^http:/m", url):
                continue
            for to, more in table((url, url.replace("http:", "", 1)), ([], [b"Location: /b"])):
                fields = [b"Location: " + to.encode("utf-8", "surrogateescape"), *more]
                got = response(fields=fields, status=b"HTTP/1.1 302 F", url=str(BASE))
                try:
                    following = next_request(Request(BASE, ()), got, asyncget.DEFAULTS)
                    self.assertHidden(following, following and following.url)
                except AsyncGetError as error:
                    self.hidden_error(error)

    async def test_values(self) -> None:
        """In fields, cookies, parameters: refused ones as well."""
        for bad in ("", "\n", "\0", "\ud800", ";\x7f", ":\x01"):
            value = self.MARK + bad
            for settings, own in table([*[{"headers": {name: value}} for name in (
                        "X-Key", "Cookie", "Proxy-Authorization", "Connection")],
                    {"headers": value}, {"headers": {f"X: {value}": "y"}},
                    {"headers": {"X": value.encode("utf-8", "surrogatepass")}},
                    *[{"auth": auth} for auth in (
                        value, ("me", value), (value, "x"), [value], {value: 1})],
                    {"cookies": {"a": value}}, {"params": {"key": value}},
                    {"params": [("key", value)]}, {"params": value}, {"cert": ("c", "k", value)},
                    *[{"proxy": proxy} for proxy in (
                        f"http://me:{value}@p.test", f"socks5://me:{value * 30}@p.test",
                        f"gopher://me:{value}@p.test")]], (False, True)):
                await self.asked("http://h.test/", settings, own)
        there = parse_url(f"http://me:{self.MARK}@h.test/")
        route = asyncget.Route(there.origin, None, asyncget.parse_proxy(f"me:{self.MARK}@p", "x"), None)
        session = Session(auth=("me", self.MARK), cert=("a", "b", self.MARK))
        call = asyncget.Call(session, f"http://me:{self.MARK}@h.test/", session._settled({}))
        self.assertHidden(there, str(there), route, route.proxy, str(route.proxy), session, call,
                          # a response keeps this URL, and may be pickled
                          Request(there, (("X", self.MARK),)), *call.first_request().url)

    SHOWN = [
        "Set-Cookie: a={}", "Set-Cookie: a=b\r\n {}", "Set-Cookie: a\r\n \r\n {}", "Cookie: {}",
        "Proxy-Authorization: {}", "Authentication-Info: nextnonce={}", "APIKEY: {}", "Api_Key: {}",
        "X-Auth-Token: {}", "X-Secret: {}", "Location: http://me:{}@h/", "Location: //{}@h/",
        "Location: http://me:a/{}@h/", "Location: http:/me:{}@h/", "Location: https:\\me:{}@h/",
        "Location: http://me:\r\n {}@h/", "Refresh: 0;url=http://me:{}@h/", "X-Access-Key: {}",
        "Ocp-Apim-Subscription-Key: {}", "X-Amz-Signature-Key: {}", "Set-Cookie2: {}"]

    def test_the_wire_as_v_shows_it(self) -> None:
        said: list[str] = []
        transfer: Any = types.SimpleNamespace(options=parse_arguments(["-v"]),
            command=types.SimpleNamespace(say=lambda *words: said.append(" ".join(words))))
        for line, kind in table(self.SHOWN, (str, str.encode)):
            wire = f"HTTP/1.1 302 F\r\nX: 1\r\n{line.format(self.MARK)}\r\nX-Cookie: 2\r\n\r\n"
            said.clear()
            asyncget.Transfer.show(transfer, "<", kind(wire))
            self.assertHidden(*said)
            self.assertIn("< X-Cookie: 2", said, line)

    def test_the_command(self) -> None:
        """Each URL alone and beside another: errors, -w, -v, the waterfall, and no traceback."""
        template = "%{url}%{url_effective}%{json}%{errormsg}%{redirect_url}%{url.path}%{urle.host}"
        flags = ["-gv", "--waterfall", "-w", template, "-m", "5", "--noproxy", "*", "--resolve",
                 "*:80:127.0.0.1", "--resolve", "*:1:127.0.0.1"]
        urls = [form.format(self.MARK) for form in self.WRITTEN if len(form) < 99
                and form[:7] not in ("http:/m", "http:me", "//me:{}") and "\udc80" not in form]
        calls = [[*flags, url, *more] for url in urls for more in ([], ["http://127.0.0.1:1/"])]
        code = ("import json, sys, asyncget\nfor call in json.load(sys.stdin):\n"
                "    print('failed:', asyncget.main(call) > 0, flush=True)")
        done = completed(*PYTHON, "-c", code, input=json.dumps(calls).encode())
        self.assertHidden(done.stdout, done.stderr)
        self.assertNotIn(b"Traceback", done.stderr)
        self.assertEqual(done.stdout.count(b"failed: True"), len(calls))


# ==== Section 17: downloads ===================================================
# Downloads: what is on the disk after each thing that can go wrong on the way.
#
# With ASYNCGET_LONG=1, ASYNCGET_KILL_MIB=128 ASYNCGET_KILLS=20 is the long run of Kill.test_kill.


KILL_BYTES = int(os.environ.get("ASYNCGET_KILL_MIB", "4")) << 20
KILLS = int(os.environ.get("ASYNCGET_KILLS", "4"))
KILL_SECONDS = 1.0  # for all the bytes, if nobody is killed
WHOLE, OTHER, V1, V2 = b"hello world", b"HELLO WORLD!", 'ETag: "v1"', 'ETag: "v2"'
GZIPPED = gzip.compress(WHOLE, mtime=0)


def parsed(wire: bytes, *urls: str) -> Response:
    """A Response of those bytes, at the end of those redirects."""
    *history, last = urls or ("http://h.test/f",)
    status, *fields = wire.partition(b"\r\n\r\n")[0].split(b"\r\n")
    got = response(status=status, fields=fields, url=last)
    got.history = [parsed(b"HTTP/1.1 302 X\r\n\r\n", url) for url in history]
    return got


def unsized(body: bytes, *fields: str, status: str = "200 OK") -> bytes:
    """The bytes of a response without a Content-Length."""
    return answer(b"", *fields, status=status).replace(b"Content-Length: 0\r\n", b"") + body


def unmet(span: str, *fields: str) -> bytes:
    """A 416, with a body that is no part of the file."""
    return answer(b"gone", f"Content-Range: {span}", *fields, status="416 X")


def piece(first: int, body: bytes = WHOLE, version: str = V1, *fields: str) -> bytes:
    """A 206 with all that comes behind so many bytes."""
    span = f"Content-Range: bytes {first}-{len(body) - 1}/{len(body)}"
    return answer(body[first:], version, span, *fields, status="206 X")


def first_asked(head: bytes, version: str = V1) -> int:
    """The byte from which on a request wants a file, if that still is of this version."""
    asked = "".join(field(head, "Range"))
    same = field(head, "If-Range") == [version.partition(": ")[2]]
    return int(asked[6:-1]) if asked and same else 0


def good_at_ranges(body: bytes = WHOLE, version: str = V1) -> Callable[[bytes], bytes]:
    """An answer to each request, as its Range and If-Range have it."""
    def play(head: bytes) -> bytes:
        first = first_asked(head, version)
        if first == len(body):
            return unmet(f"bytes */{first}")
        return piece(first, body, version) if first else answer(body, version)
    return play


def tried(times: int, delay: float = 0.0) -> Callable[[int, Any], float | None]:
    """A rule for retries: what broke is tried again; what was answered is answered."""
    return lambda attempt, outcome: (
        None if attempt > times or isinstance(outcome, Response) else delay)


@contextlib.asynccontextmanager
async def giving(*answers: Any) -> AsyncIterator[Server]:
    """A server of one file, with one answer a connection, the last one again and again."""
    async with scripted(*([READ, one, CLOSE] for one in answers), again=True) as server:
        server.url += "/f"
        yield server


def asked_for(server: Server | Scripted) -> list[str]:
    """The Range of each request, less its "bytes="; "" where it asks for all."""
    return ["".join(field(head, "Range"))[6:] for head in server.requests]


class OnDisk(AsyncCase):
    """A folder, and downloads into it."""

    def setUp(self) -> None:
        super().setUp()
        self.path = os.path.join(self.folder, "f")
        self.part, self.meta = self.path + ".part", self.path + ".part.meta"
        self.victim = self.path + "ictim"

    async def get(self, url: str, path: Any = None, **options: Any) -> Response:
        return await asyncget.download(url, path or self.path, trust_env=False, **options)

    def leave(self, server: Server, part: bytes = WHOLE[:5]) -> None:
        """What the cut connection of an earlier call has left: so many bytes of eleven."""
        self.write(self.part, part)
        source = hashlib.sha256(f"{server.url} {server.url}".encode()).hexdigest()
        self.write(self.meta, f'"v1"\n11\n{source}\n'.encode())

    def assert_whole(self, body: bytes = WHOLE) -> None:
        """Check that the file is there, and nothing else; and take it away for the next row."""
        self.assertEqual((self.read(self.path), self.names()), (body, ["f"]))
        os.unlink(self.path)

    async def fails(self, said: str, *args: Any, **options: Any) -> None:
        """What the file system refuses is told in a line, with curl's code."""
        error = await self.raised(AsyncGetError, self.get(*args, **options), said, exit_code=23)
        self.assertNotIn("\n", str(error))

    async def refused(self, said: str, path: Any = None, *, asks: Any = 0, **options: Any) -> None:
        async with giving(answer(WHOLE)) as server:
            await self.fails(said, server.url, path, **options)
        self.assertIn(len(server.requests), (asks,) if asks is not None else (0, 1))


class Section17Downloads(OnDisk):
    """What to trust, and what then goes over the wire."""

    monday, later = "Mon, 02 Jan 2023 10:00:00 GMT", "Mon, 02 Jan 2023 10:01:00 GMT"

    def test_strong_validator(self) -> None:
        monday, later = self.monday, self.later
        self.alike(lambda fields: asyncget.strong_validator(Headers(fields.items())), [
            ({"ETag": '"a"'}, '"a"'), ({"Last-Modified": monday, "Date": later}, monday),
            *((fields, "") for fields in table([
                *({"ETag": text} for text in ('W/"a"', "a", '"a" ', '"a"b"', '"é"', '"\x01"')),
                *({"ETag": text, "Last-Modified": monday, "Date": later} for text in ('W/"a"', "")),
                *({"Last-Modified": text, "Date": later} for text in ("soon", monday + "\x01")),
                {"Last-Modified": monday, "Date": "Mon, 02 Jan 2023 10:00:59 GMT"},
                {"Last-Modified": later, "Date": monday}, {"Last-Modified": monday}]))])

    def test_sidecar(self) -> None:
        """It says of which version the bytes are; torn anywhere, it says nothing."""
        source = asyncget.source_of(parsed(answer()))

        def noted(sidecar: bytes) -> asyncget.Partial | None:
            self.write(self.meta, sidecar)
            return asyncget.read_sidecar(self.part)

        self.write(self.part, b"hello")
        for validator, length, wire in [
            ('"v1"', "11", answer(WHOLE, V1, "Content-Length: 11")), ('"v1"', "0", answer(b"", V1)),
            ('"v1"', "None", unsized(b"", V1)), ('"v1"', "11", answer(WHOLE, V1)),
            ('"v1"', "11", answer(WHOLE, V1, "Content-Encoding: identity")),
            ('"v1"', "None", unsized(b"", V1, "Transfer-Encoding: chunked")),
            ("", "11", answer(WHOLE, f'ETag: "{"x" * 999}"')),  # and others: test_cut
            *(("", "11", answer(WHOLE, V1, status=status)) for status in ("206 X", "404 X")),
            ("", "None", answer(WHOLE, V1, "Content-Encoding: gzip"))]:
            asyncget.write_sidecar(self.part, parsed(wire))
            written = self.read(self.meta) or b""
            self.assertEqual(noted(written), asyncget.Partial(5, validator, length, source), wire)
            self.assertLess(len(written), asyncget.SIDECAR_BYTES)
        names = (b'W/"v1"', b'"v1"\r', b'"a"\nX: y', b"\xff", b"??", b'"\xc3\xa9"', b"v1")
        for torn in [*(written[:end] for end in range(len(written))), written + b"\n",
                     *(name + b"\n11\n" + b"0f" * 32 + b"\n" for name in names)]:
            self.assertIsNone(noted(torn))

    def test_what_is_the_rest(self) -> None:
        source, span = asyncget.source_of(parsed(answer())), "Content-Range: bytes 5-10/11"
        ours = asyncget.Partial(5, '"v1"', "11", source)
        untold, full = ours._replace(length="None"), ours._replace(size=11)
        dated, monday = ours._replace(validator=self.monday), f"Last-Modified: {self.monday}"
        elsewhere = "0" * 64

        def rest(text: str, *fields: str, body: bytes = b" world") -> bytes:
            return answer(body, f"Content-Range: {text}", *fields, status="206 X")

        fitting = partial(rest, "bytes 5-10/11")
        self.alike(lambda row: asyncget.length_of_rest(parsed(row[1]), row[0]) is not None, [
            *((row, True) for row in [
                (ours, fitting(V1)), (ours, rest("Bytes 5-10/11", V1)), (untold, fitting(V1)),
                (ours, fitting("Content-Encoding: identity", V1)), (dated, fitting()),
                (dated, fitting(monday, V2)), (full, unmet("bytes */11", V1)),
                (full, unmet("bytes */11")), (untold, unmet("bytes */5"))]),
            *((row, False) for row in [
                (ours, fitting()), (ours, fitting(V2)), (ours, fitting(V1, span)),
                (ours, fitting(V1, "Content-Encoding: gzip")), (ours, fitting(V1, body=b" worl")),
                (dated, fitting(f"Last-Modified: {self.later}", V2)),
                (ours._replace(source=elsewhere), fitting(V1)),
                (ours, rest("bytes 5-7/11", V1, body=b" wo")),
                (ours, rest("bytes 5-11/12", V1, body=b" world!")),
                (ours, rest("bytes 4-10/11", V1, body=b"o world")),
                (full._replace(length="None"), rest("bytes 11-10/11", V1, body=b"")),
                *((ours, rest(text, V1)) for text in (
                    "", "bytes 5-4/11", "bytes +5-10/11", "bytes 5-10/*", "bytes */11")),
                (ours, unsized(b"", span, V1, status="206 X")),  # where does it end?
                (full._replace(source=elsewhere), unmet("bytes */11")),
                (full, unmet("bytes */11", V2)), (ours, unmet("bytes */11"))])])

    def test_source(self) -> None:
        """The URL asked for and the one that answered, this one without what was signed."""
        def same(chains: tuple[tuple[str, ...], ...]) -> bool:
            return len({asyncget.source_of(parsed(answer(), *urls)) for urls in chains}) == 1

        self.alike(same, [
            ((("http://a/", "http://b/x?sign=1"), ("http://a/", "http://b/x?sign=2")), True),
            ((("http://me:pw@a/",), ("http://a/",)), True),
            *(((("http://a/", "http://b/x"), (*asked, last)), False) for *asked, last in (
                ["http://b/x"], ["http://a/?q", "http://b/x"], ["http://a/", "http://b/y"]))])

    def test_whose_coding(self) -> None:
        """One that the file's name or type announces is the file's own; another is undone."""
        for (own, name, url, kind, coding), status in table([
                (True, "a.tar.gz", "", "application/octet-stream", "gzip"),
                (True, "A.TGZ", "", "", "GZIP"), (True, "a.svgz", "", "image/svg+xml", "gzip"),
                (True, "a", "a.tar.gz?sign=1", "", "x-gzip"), (True, "a.tzst", "", "", "zstd"),
                (True, "a", "a.gz#x", "", "gzip"), (True, "a", "", "application/tar", "gzip"),
                (True, "a", "", "Application/X-Gzip; x=y", "gzip"),
                (True, "a", "", "application/zstd", "zstd"),
                (False, "a.gz.html", "", "text/html", "gzip"),
                (False, "a.tar", "f?a.gz#b.gz", "text/plain", "x-gzip"),
                (False, "a.zst", "", "application/zstd", "gzip")], ("200 OK", "404 X")):
            fields = f"Content-Type: {kind}", f"Content-Encoding: {coding}"
            response = parsed(answer(b"", *fields, status=status), "http://h.test/" + url)
            asyncget.leave_own_coding(response, f"/b/{name}")
            self.assertEqual(not asyncget.is_coded(response), own and status == "200 OK",
                             (name, url, fields, status))

    async def test_answers(self) -> None:
        """Whatever comes, the end is one version, or a partial file that has lost nothing; and
        each try has the call's headers, which can be read but once. Where it begins and ends is
        told, too.
        """
        begun, other, weak = answer(WHOLE, V1), piece(4), answer(WHOLE, 'ETag: W/"v1"')
        gone, busy = answer(status="404 X"), answer(status="503 X")
        half, none, any_status = WHOLE[:5], unsized(b"", status="204 X"), {"any_status": True}

        def again(times: int, **options: Any) -> dict[str, Any]:
            return {"retries": tried(times), **options}

        # What lies there, answers, settings; what is asked for; the file, or an error and the part.
        seen, notes = list[Any](), list[str]()

        async def progress(size: int, total: int | None) -> None:
            seen.append((size, total))

        untold = unsized(WHOLE), answer(GZIPPED, "Content-Encoding: gzip")  # how long they are
        for left, answers, options, asked, outcome, part in table([
                (b"", [answer(b"")], {}, [""], b"", None),
                *((b"", [wire], {}, [""], WHOLE, None) for wire in (begun, *untold)),
                (half, [piece(5)], {}, ["5-"], WHOLE, None),
                (half, [answer(OTHER, V2)], {}, ["5-"], OTHER, None),
                (half, [begun], {}, ["5-"], WHOLE, None),  # no ranges here
                (half, [other, begun], {}, ["5-", ""], WHOLE, None),
                (half, [other, other], any_status, ["5-", ""], StatusError, WHOLE[:5]),
                (half, [other, busy], any_status, ["5-", ""], StatusError, WHOLE[:5]),
                (WHOLE, [unmet("bytes */11")], {}, ["11-"], WHOLE, None),
                *((half, [one], any_status, ["5-"], StatusError, WHOLE[:5])
                  for one in (gone, none, unsized(b"", status="304 X"))),
                (half, [gone], {"resume": False, **any_status}, [""], b"ok", None),
                (half, [piece(6)], {"headers": {"range": "bytes=6-"}}, ["6-"], b"world", None),
                # What is not the file: for any_status it is, unless it was a piece of one.
                *((b"", [one], {}, [""], StatusError, None) for one in (piece(0), gone, none)),
                (b"", [piece(0)], any_status, [""], StatusError, None),
                *((b"", [one], any_status, [""], body, None)
                  for one, body in ((gone, b"ok"), (none, b""))),
                # Each retry goes on where the last one ended.
                (b"", [begun[:-8], piece(3)[:-2], piece(9)[:-1], piece(10)], again(2),
                 ["", "3-", "9-"], IncompleteBody, WHOLE[:10]),
                *((b"", [begun[:-8], busy, b"HTTP", piece(3)[:-2], piece(9)], {"retries": given},
                   ["", "3-", "3-", "3-", "9-"], WHOLE, None) for given in (4, lambda *_: 0)),
                # resume=False is about what an earlier call has left, not about its own bytes
                (half, [answer(OTHER, V1)[:-4], piece(8, OTHER)], again(9, resume=False),
                 ["", "8-"], OTHER, None),
                # To ask for all of the file is a part of the same try.
                (b"", [begun[:-6], piece(4), begun[:-3], piece(8)], again(2), ["", "5-", "", "8-"],
                 WHOLE, None),
                (b"", [lambda head: piece(4) if field(head, "Range") else begun[:-6]],  # for ever
                 again(2), ["", "5-", "", "5-", ""], IncompleteBody, WHOLE[:5]),
                (b"", [weak[:-6], answer(OTHER)], again(1), ["", ""], OTHER, None)]):
            own = options.pop("headers", {})
            headers = iter([*own.items(), ("X-Tenant", "7"), ("Accept-Encoding", "gzip")])
            with self.subTest(answers, left=left, options=options), patch(
                    "asyncio.sleep", mock.AsyncMock()):
                self.empty()
                seen.clear()
                async with giving(*answers) as server:
                    if left:
                        self.leave(server, left)
                    call = self.get(server.url, Path(self.path), progress=progress, headers=headers,
                                    on_response=seen.append, **options,
                                    trace=lambda _, text: notes.append(str(text)[:12]))
                    if isinstance(outcome, bytes):
                        got = await call
                        self.assert_whole(outcome)
                        total = None if answers[-1] in untold else len(outcome)
                        self.assertEqual(seen[-1], (len(outcome), total))
                    else:
                        self.assertEqual((await self.raised(outcome, call)).exit_code,
                                         22 if outcome is StatusError else 18)
                        self.assertEqual((self.read(self.path), self.read(self.part)), (None, part))
                        kept = [] if part is None else ["f.part", "f.part.meta"]
                        self.assertEqual(self.names(), kept)
                self.assertEqual(asked_for(server), asked)
                if len(answers) == 1 and isinstance(outcome, bytes):
                    start = len(left) * (answers in ([piece(5)], [unmet("bytes */11")]))
                    self.assertEqual(seen[:2], [got, (start, total)])
                for head in server.requests:
                    self.assertEqual(field(head, "X-Tenant"), ["7"])
                    self.assertEqual(field(head, "Accept-Encoding"), ["identity"])
                    self.assertEqual(field(head, "If-Range"), ['"v1"'] * (
                        not own and field(head, "Range") != []))
        self.assertEqual(notes.count("trying again"), 2 * 4 + 8)

    async def test_cut(self) -> None:
        """What is kept of an answer that ends early, and whether it is gone on from."""
        date = f"Last-Modified: {self.monday}"
        coded = answer(GZIPPED, V1, "Content-Encoding: gzip")[:-4]
        for first, options, kept, validator in table([
                *((answer(WHOLE, V1)[:got - 11], {}, WHOLE[:got], '"v1"') for got in range(11)),
                (answer(WHOLE, V1)[:-12], {}, None, ""),
                (answer(WHOLE, date, f"Date: {self.later}")[:-6], {}, WHOLE[:5], self.monday),
                (unsized(b"5\r\nhello\r\n6\r\n", V1, "Transfer-Encoding: chunked"), {},
                 WHOLE[:5], '"v1"'), (answer(WHOLE, 'ETag: W/"v1"')[:-6], {}, WHOLE[:5], ""),
                (answer(WHOLE, 'ETag: "v\x011"')[:-6], {}, WHOLE[:5], ""),
                # With decode=False: the rest might come in another coding, or in none.
                (coded, {"decode": False}, GZIPPED[:-4], ""), (coded, {}, WHOLE, "")]):
            with self.subTest(first):
                async with giving(first, good_at_ranges(
                        version=date if validator == self.monday else V1)) as server:
                    await self.raised(IncompleteBody, self.get(server.url, **options))
                    self.assertEqual((self.read(self.path), self.read(self.part)), (None, kept))
                    await self.get(server.url, **options)
                self.assert_whole()
                resumed = bool(kept and validator)
                self.assertEqual(asked_for(server), ["", f"{len(kept or b'')}-" * resumed])
                self.assertEqual(field(server.requests[1], "If-Range"), [validator] * resumed)

    async def test_the_page_of_a_416_holds_no_connection(self) -> None:
        page = unmet("bytes */11")
        async with scripted([READ, page[:-4], 0.02, page[-4:], READ, answer(b"next")]) as server:
            server.url += "/f"
            self.leave(server, WHOLE)
            async with Session(limit=1, timeout=1.0, trust_env=False) as session:
                await session.download(server.url, self.path)
                self.assertEqual((await session.get(server.url)).content, b"next")
        self.assert_whole()

    async def test_under_any_name(self) -> None:
        """Of 246 bytes and more, there is no room for .part; or one that a coding belongs to."""
        seen: list[Any] = []
        for name, body, fields in table([
                *((name, WHOLE, []) for name in ("x" * 245, "x" * 246, "x" * 255, "x" + "é" * 127)),
                ("a b.tar.gz", GZIPPED, ["Content-Encoding: x-gzip"])]):
            path, first = os.path.join(self.folder, name), len(body) - 3
            with self.subTest(name):
                async with giving(answer(body, V1, *fields)[:-3],
                                  piece(first, body, V1, *fields)) as server:
                    await self.raised(IncompleteBody, self.get(server.url, path))
                    self.assertEqual(len(self.names()), 2)
                    await self.get(server.url, path, progress=lambda *told: seen.append(told))
                self.assertEqual((self.read(path), self.names()), (body, [name]))
                self.assertEqual(seen[-1], (len(body),) * 2)
                self.assertEqual(asked_for(server), ["", f"{first}-"])
                os.unlink(path)
        self.assertNotEqual(*(asyncget.part_of("x" * 250 + end) for end in "yz"))

    async def test_silence(self) -> None:
        """A body that stops coming is gone on from, until the deadline for it all."""
        with clock() as busy:
            def one_more(head: bytes) -> list[Any]:
                first = first_asked(head)
                return [good_at_ranges()(head)[:first - 10], 0.02, lambda _: busy(1.1) or b"", HOLD]

            for times, delay, deadline, asked in [  # nobody sleeps beyond it
                    (1, 0.0, None, ["", "1-"]), (99, 0.0, 3.0, ["", "1-", "2-"]),
                    (1, 60.0, 3.0, [""]), (0, 0.0, 1.0, [""])]:
                with self.subTest(times=times, delay=delay, deadline=deadline):
                    self.empty()
                    async with giving(one_more) as server:
                        await self.raised(TimedOut, self.get(
                            server.url, timeout=None if deadline == 1.0 else 1.0,
                            retries=tried(times, delay), deadline=deadline))
                    self.assertEqual(asked_for(server), asked)
                    self.assertEqual(self.read(self.part), WHOLE[:len(asked)])

    async def test_ended_by_the_caller(self) -> None:
        """By a cancellation, by what a function of the caller's raises: the part stays. And no
        such error is told as if the disk were full.
        """
        async with giving(lambda _: [answer(WHOLE, V1)[:-6], HOLD]) as server:
            task: asyncio.Task[Any] = asyncio.create_task(
                self.get(server.url, progress=lambda *_: task.cancel()))
            await self.raised(asyncio.CancelledError, task)
            self.assertEqual(self.names(), ["f.part", "f.part.meta"])
            for name, made in (("progress", b""), ("on_response", None)):
                self.empty()
                await self.raised(BrokenPipeError, self.get(
                    server.url, **{name: mock.Mock(side_effect=BrokenPipeError)}))
                self.assertEqual(self.read(self.part), made)
            await self.raised(ConnectError, self.get(
                server.url, on_response=lambda _: asyncget.get("http://127.0.0.1:1")),
                url="http://127.0.0.1:1/", response=None)


class Section17Files(OnDisk):
    """What else may be on the disk."""

    async def test_no_name_of_a_file(self) -> None:
        """A pipe of our own: root, tested on /dev/null, would lose it if this went wrong."""
        folder, pipe, link, dangling = (
            os.path.join(self.folder, name) for name in ("d", "pipe", "link", "dangling"))
        more = {} if WINDOWS else {"pipe": b"|", "link": b"->d", "dangling": b"->nowhere"}
        self.empty(**more)
        os.makedirs(os.path.join(folder, "f.part"))
        if more:
            await self.refused("exists", dangling, overwrite=False)  # it is something, too
        for path in (folder, folder + "/", self.folder + "/new/", "a\0b", *(more and [link, pipe])):
            said = "embedded null" if path == "a\0b" else "not the name of a file"
            await self.refused(said, path)
            await self.refused(said, lambda _, path=path: path, asks=1)
        await self.refused("not the name of a file", lambda _: "", asks=1)
        for said, path in [("No such file", folder + "/absent/f"), ("irectory", folder + "/f"),
                           ("Not a directory", __file__ + "/f"), ("too long", folder + "x" * 256)]:
            await self.refused("" if WINDOWS else said, path, asks=1)
        with patch("os.open", side_effect=PermissionError(errno.EACCES, "Not you")):
            await self.refused("Not you", asks=1)
        with patch("os.access", return_value=False):  # root has it always
            await self.refused("write-protected", self.write("mine", b"old"))
        self.assertEqual(self.read("mine"), b"old")
        self.assertTrue(not more or stat.S_ISFIFO(os.stat(pipe).st_mode))
        self.assertEqual(self.names(), sorted(["d", "mine", *more]))

    async def test_what_file_systems_lack(self) -> None:
        """Links, as on vfat, locks, threads, room for all that is written at once, or for another
        file: where one file is mounted, as in a container, nothing can take its place; other modes;
        and other owners than ours, as with bindfs, CIFS or a squashing NFS. In a folder like /tmp
        another's file, which all may write, cannot be replaced either.
        Not on Windows: it has no owners, modes and flock.
        """
        class Slow(io.FileIO):
            def write(self, data: Any) -> int:
                return super().write(data[:3])

            def truncate(self, size: Any = None) -> int:
                assert self.tell(), "ext4 would flush all that comes, in close()"
                return super().truncate(size)

        def slow(path: str, mode: str, **options: Any) -> Any:
            return Slow(path, mode) if "buffering" in options else open(path, mode, **options)

        def no(number: int) -> Any:
            return mock.Mock(side_effect=OSError(number, "No"))

        for name, lack in table([
                ("nothing", contextlib.nullcontext()), ("links", patch("os.link", no(errno.EPERM))),
                ("locks", patch("fcntl.flock", no(errno.ENOLCK))),
                ("room", patch("asyncget.open", slow, create=True)),
                ("threads", patch.object(threading.Thread, "start", side_effect=RuntimeError)),
                ("owners", patch("os.geteuid", return_value=os.geteuid() + 1)),
                ("syncs", patch("os.fsync", no(errno.ENOTSUP))),
                ("modes", patch("os.chmod", no(errno.EPERM))), *(
                    ("another", patch.multiple(os, replace=no(number), rename=no(number)))
                    for number in (errno.EBUSY, errno.EPERM, errno.ENOSYS))]):
            with self.subTest(name), lack:
                self.empty(f=b"mine")
                await self.refused("exists", overwrite=False)
                self.assertEqual((self.names(), self.read(self.path)), (["f"], b"mine"))
                inode = os.stat(self.path).st_ino
                async with giving(answer(WHOLE, V1)[:-3], piece(8), answer(WHOLE, V1)) as server:
                    await self.raised(IncompleteBody, self.get(server.url))
                    for overwrite in (True, False):
                        await self.get(server.url, overwrite=overwrite)
                        if overwrite:
                            self.assertEqual(os.stat(self.path).st_ino == inode, name == "another")
                        self.assertEqual(os.stat(self.path).st_nlink, 1)
                        self.assert_whole()
                    await self.fails("exists", server.url, overwrite=False,  # since then
                                     progress=lambda *_: self.write(self.path, b"mine"))
                self.assertEqual((self.read(self.path), self.read(self.part)), (b"mine", WHOLE))

    async def test_nothing_is_copied_but_into_a_plain_file(self) -> None:
        """Not through another's link in a folder like /tmp; nor where a .part can be renamed."""
        no = mock.Mock(side_effect=PermissionError(errno.EPERM, "No"))
        with patch("shutil.copyfile", side_effect=AssertionError):
            self.empty(fictim=b"ours", f=b"->fictim")
            with patch("os.replace", no):
                await self.refused("No", asks=1)
            self.empty()
            async with giving(answer(WHOLE)) as server:
                with patch("os.link", no):
                    await self.get(server.url, overwrite=False)
        self.assert_whole()

    async def test_what_a_disk_has_lost_is_not_gone_on_from(self) -> None:
        """A second fsync would not tell of it again."""
        async with giving(answer(WHOLE, V1)) as server:
            with patch("os.fsync", side_effect=OSError(errno.EIO, "Lost")):
                await self.fails("Lost", server.url)
            await self.get(server.url)
        self.assertEqual(asked_for(server), ["", ""])
        self.assert_whole()

    async def test_what_is_not_ours_is_left_alone(self) -> None:
        """Nor does it hold us, or fill the memory.
        Not on Windows: it has no owners and named pipes.
        """
        part, meta = "f.part", "f.part.meta"
        held: list[int] = []
        valid = b'"v1"\n11\n%b\n' % (b"0" * 64)
        mine, theirs = {part: b"mine"}, {"fictim": b"mine", meta: valid}
        ours = {**mine, meta: valid}

        for (files, plant), options in table([*((files, None) for files in (
                    {**theirs, part: b"->fictim"}, {**theirs, part: b"=>fictim"}, {meta: b"mine"},
                    {part: b"->fictim"}, {meta: b"->fictim"}, {part: b"|"}, {meta: b"|"}, mine,
                    {**ours, "f": b"=>f.part"})),  # killed between link and unlink
                *(({**mine, meta: text}, None) for text in (b"", bytes(range(256)), b"|")),
                *(({**one, "fictim": valid, meta: to}, None)
                  for one in ({}, mine) for to in (b"->fictim", b"=>fictim")),
                ({**mine, meta: b"|"}, lambda: held.append(  # with a writer, who writes nothing
                    os.open(self.meta, os.O_RDWR | os.O_NONBLOCK))),
                (ours, lambda: os.truncate(self.meta, 1 << 33)),
                *((ours, lambda names=names: [*map(partial(os.chown, uid=65534, gid=65534), names)])
                  for names in ([self.part], [self.meta], [self.part, self.meta, self.folder])
                  if os.geteuid() == 0)],  # root alone can
                ({}, {"resume": False, "retries": tried(1)})):
            with self.subTest(files, plant=plant, options=options):
                self.empty(**files)
                if plant:
                    plant()
                before = self.photo()
                await self.refused("", asks=None, **options)
                self.assertEqual({name: facts for name, facts in self.photo().items()
                                  if name in before or facts[0][6]}, before)  # an empty .part
            while held:
                os.close(held.pop())

    def photo(self) -> dict[str, Any]:
        """All that is in the folder: kind, owner, size, the first bytes."""
        facts = {name: os.lstat(os.path.join(self.folder, name))[:7] for name in self.names()}
        return {name: (told, self.read(name) if 0 < told[6] < 1 << 20 else b"")
                for name, told in facts.items()}

    async def test_only_what_was_written_is_published(self) -> None:
        part, other, do = self.part, self.path + "2", partial
        for steps, old in table([[do(self.write, other, WHOLE), do(os.replace, other, part)],
                [do(os.rename, part, other), do(os.symlink, other, part)], [do(os.unlink, part)],
                [do(os.unlink, part), do(self.write, part, b"he")], [do(os.link, part, other)],
                [do(os.truncate, part, 12)], [do(os.truncate, part, 3)]], (b"old", None)):
            with self.subTest(steps, old=old):
                self.empty(**({"f": old} if old else {}))
                once = iter(steps)
                async with giving(answer(WHOLE)) as server:
                    await self.fails("", server.url, overwrite=bool(old),
                                     progress=lambda *_: [step() for step in once])  # noqa: B023
                self.assertEqual(self.read(self.path), old)

    async def test_mode(self) -> None:
        """A private file stays private when it is replaced, while that goes on, too; and of a
        service's file that root renews, the owner stays.
        Not on Windows: it has no modes and owners.
        """
        def mode(path: str) -> int:
            return stat.S_IMODE(os.stat(path).st_mode)

        seen: set[int] = set()
        self.addCleanup(os.umask, os.umask(0o022))
        root = os.geteuid() == 0  # who alone gives files away
        for old, left, expected, owner in table([
                (None, False, 0o644, None), (0o600, False, 0o600, None), (0o600, True, 0o600, None),
                (0o755, False, 0o755, None), (0o4755, False, 0o755, None),
                *[(0o640, False, 0o640, (65534, 33)), (0o444, False, 0o444, None)][:2 * root]]):
            seen.clear()
            with self.subTest(old=old, left=left, owner=owner):
                async with giving(piece(5) if left else answer(WHOLE, V1)) as server:
                    if left:
                        self.leave(server)  # 0644
                    if old is not None:
                        self.write(self.path, b"old")
                        os.chmod(self.path, old)
                    if owner:
                        os.chown(self.path, *owner)
                    await self.get(server.url, progress=lambda *_: seen.add(mode(self.part)))
                    found = os.stat(self.path)
                self.assertEqual((seen, mode(self.path)), ({expected}, expected))
                self.assertIn(owner, (None, (found.st_uid, found.st_gid)))
                self.assert_whole()
        who = [(tag, 6, 99 if tag == 2 else 2**32 - 1) for tag in (1, 2, 4, 16, 32)]
        everybody = struct.pack("<I" + 5 * "HHI", 2, *itertools.chain(*who))
        self.write(self.path, b"old")
        with suppress(OSError, AttributeError):  # there are systems without such lists
            os.setxattr(self.folder, "system.posix_acl_default", everybody)
            with patch("os.removexattr", wraps=os.removexattr) as removed:
                for own in (None, everybody):  # the second is never without one
                    async with giving(answer(WHOLE)) as server:
                        await self.get(server.url)
                    self.assertEqual("system.posix_acl_access" in os.listxattr(self.path), bool(own))
                    os.setxattr(self.path, "system.posix_acl_access", everybody)
                self.assertEqual(removed.call_count, 1)
        self.empty(fictim=b"su", f=b"->fictim")
        os.chmod(self.victim, 0o755)  # what is behind a link lends its mode to nobody
        async with giving(answer(WHOLE)) as server:
            await self.get(server.url)
        self.assertEqual((mode(self.path), self.read(self.victim)), (0o644, b"su"))

    async def test_a_link_in_the_place_of_the_part(self) -> None:
        """Put there between our look and our next step, by somebody who may write to the folder.
        Not on Windows: links need rights, and open files keep their names.
        """
        is_plain = asyncget.is_plain

        def looked(path: str) -> bool:
            if looks.call_count == number and os.path.exists(self.part):
                os.rename(self.part, path + ".away")
                os.symlink("fictim", self.part)
            return is_plain(path)

        for number in range(1, 5):
            self.empty(fictim=b"su", f=b"old")
            os.chmod(self.victim, 0o600)
            os.chmod(self.path, 0o666)
            with patch("asyncget.is_plain", side_effect=looked) as looks:
                async with giving(answer(WHOLE)) as server:
                    with suppress(AsyncGetError):
                        await self.get(server.url)
            found = os.stat(self.victim).st_mode & 0o777, self.read(self.victim)
            self.assertEqual(found, (0o600, b"su"), number)
            self.assertGreaterEqual(looks.call_count, number)

    async def test_a_function_as_path(self) -> None:
        """What lies there is not gone on from; what comes for a retry is not asked for a name."""
        seen: list[Response] = []

        def choose(response: Response) -> str:
            seen.append(response)
            return self.path + response.headers["x-name"]

        async with giving(answer(OTHER, V1, "X-Name: 2"), answer(WHOLE, V1, "X-Name: 3")[:-6],
                          piece(5)) as server:
            self.leave(server)
            self.assertEqual([await self.get(server.url, choose)], seen)
            await self.get(server.url, choose, retries=tried(1))
        self.assertEqual(asked_for(server), ["", "", "5-"])
        self.assertEqual([self.read(self.path + end) for end in "23"], [OTHER, WHOLE])
        self.assertEqual(self.names(), ["f.part", "f.part.meta", "f2", "f3"])

    async def test_others_at_the_same_time(self) -> None:
        """All but one are refused; each gap in turn.
        Not on Windows: open files keep their names.
        """
        async with giving(answer(WHOLE, V1)) as server:
            await self.get(server.url, progress=lambda *_: self.refused(
                "another download is writing it", asks=1))
            self.assert_whole()
            windows = mock.Mock(locking=mock.Mock(side_effect=PermissionError(13, "locked")))
            with patch("sys.platform", "win32"), patch.dict(sys.modules, msvcrt=windows):
                await self.refused("another download is writing it", asks=1)
        flock = fcntl.flock

        def rename_and_lock(file: Any, how: int) -> None:  # another download has finished,
            os.rename(self.part, self.victim)              # and a third one has begun
            self.write(self.part, b"hell")
            flock(file, how)

        def more_there(_: bytes) -> bytes:  # than when we asked
            self.write(self.part, WHOLE[:6])
            return piece(5)

        async with giving(answer(WHOLE), more_there) as server:
            self.leave(server)
            with patch("fcntl.flock", rename_and_lock):
                await self.fails("", server.url, resume=False)
            self.assertEqual((self.read(self.victim), self.read(self.part)), (WHOLE[:5], b"hell"))
            self.leave(server)
            await self.fails("", server.url)
        self.assertEqual((self.read(self.part), self.read(self.path)), (WHOLE[:6], None))


class Killed(BaseException):
    """The process is gone: nothing of ours runs after this."""


class EveryStep(OnDisk):
    """A kill before each single thing that is done to the disk, or in the middle of it."""

    left = 0  # things that are done until then

    def step(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def stepped(*args: Any, **options: Any) -> Any:
            self.left -= 1
            if self.left < 0:
                raise Killed
            return function(*args, **options)
        return stepped

    def open(self, path: str, mode: str, **options: Any) -> Any:
        """A file to which each half of what is written is a step."""
        if mode == "rb":
            return open(path, mode, **options)
        file: Any = self.step(io.FileIO)(path, mode, opener=options.get("opener"))
        write, file.truncate = file.write, self.step(file.truncate)

        def halves(data: Any) -> Any:
            half = len(data) // 2
            return write(data[:half]) + self.step(write)(data[half:])

        file.write = halves
        return file

    async def killed(self, last: int, server: Server, overwrite: bool) -> bool:
        """Whether that step was reached."""
        self.left = last
        stepped: Any = {name: self.step(getattr(os, name))
                        for name in ("unlink", "replace", "link", "fsync", "chmod")}
        with suppress(Killed), patch.multiple(os, **stepped), \
                patch("asyncget.open", self.open, create=True):
            await self.get(server.url, overwrite=overwrite)
        return self.left < 0

    async def test_every_step(self) -> None:
        for name, overwrite, old, left, body, version in [
                ("fresh", True, None, False, WHOLE, V1), ("resumed", True, None, True, WHOLE, V1),
                ("kept", False, None, False, WHOLE, V1), ("anew", True, b"old", False, WHOLE, V1),
                ("changed", True, None, True, OTHER, V2)]:
            async with giving(good_at_ranges(body, version)) as server:
                for last in range(100):
                    if old:
                        self.write(self.path, old)
                    if left:
                        self.leave(server)
                    killed = await self.killed(last, server, overwrite)
                    self.assertIn(self.read(self.path), (old, body), name)
                    if not killed:
                        break
                    if os.path.exists(self.part) and os.stat(self.part).st_nlink > 1:
                        os.unlink(self.part)  # killed between link and unlink: is refused
                    await self.get(server.url)
                    self.assert_whole(body)
            self.assertGreater(last, 4)
            self.assert_whole(body)


@long
class Kill(OnDisk):
    """kill -9 of a real process at random instants, until a run gets through."""

    seconds = 600.0

    async def test_kill(self) -> None:
        body, pause = random.Random(1).randbytes(KILL_BYTES), KILL_SECONDS * 2**16 / KILL_BYTES
        chance = random.Random(SEED)

        def slowly(head: bytes) -> list[Any]:
            wire = memoryview(good_at_ranges(body)(head))
            return [step for at in range(0, len(wire), 2**16)
                    for step in (bytes(wire[at:at + 2**16]), pause)]

        async with giving(slowly) as server:
            for number in range(KILLS + 1):
                before = os.path.getsize(self.part) if os.path.exists(self.part) else 0
                process = await asyncio.create_subprocess_exec(
                    *COMMAND, "-C", "-", "-so", self.path, server.url, env=environment())
                if number < KILLS:
                    await until(lambda: len(server.requests) > number)  # noqa: B023
                    await asyncio.sleep(chance.uniform(0.0, KILL_SECONDS / KILLS))
                    process.kill()
                await process.wait()
                if number < KILLS and not os.path.exists(self.path):  # nothing is lost or another's
                    part = self.read(self.part) or b""
                    self.assertTrue(len(part) >= before and body.startswith(part))
        self.assertEqual((process.returncode, any(asked_for(server))), (0, True))
        self.assert_whole(body)


# ==== Sections 18 to 20: the command ==========================================
# The command runs in this process, by main, on standard streams of its own; as a process
# only where that is the point: signals, pipes, closed streams, what is imported, memory.


PROGRAM, PYTHON = os.path.abspath(asyncget.__file__), [sys.executable, "-W", "error"]
COMMAND = [*PYTHON, "-S", "-m", "asyncget"]  # -S: what is installed takes time
# With -X dev asyncio tells of each step that takes 0.1 s:
SLOW_STEP = re.compile(rb"Executing <.*?> took [0-9.]+ seconds\r?\n")
PATIENCE = 60  # seconds for a process; the machine may have other things to do


def ok(body: bytes = b"hello\n", *fields: str, status: str = "200 OK") -> bytes:
    """The bytes of a plain answer."""
    return answer(body, *fields, status=status)


class Scripted:
    """A server in a thread, which plays the steps of a path, and closes unless they loop or hold.

    A page is bytes, or a list of steps, or for each visit one such list.
    """

    def __init__(self, pages: Mapping[str, Any], tls: ssl.SSLContext | None = None) -> None:
        self.plays(pages)
        self.running = always(self.page, tls=tls)
        self.loop = asyncio.new_event_loop()
        self.loop.set_exception_handler(lambda *_: None)  # of handshakes that were broken off
        self.loop.set_debug(False)  # a stack per callback: half the time
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)

    def __enter__(self) -> Scripted:
        self.thread.start()
        server = asyncio.run_coroutine_threadsafe(self.running.__aenter__(), self.loop).result()
        self.url, self.address = server.url, f"127.0.0.1:{server.port}"
        return self

    def __exit__(self, *_: object) -> None:
        over = self.running.__aexit__(None, None, None)
        asyncio.run_coroutine_threadsafe(over, self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    def plays(self, pages: Mapping[str, Any]) -> None:
        """From now on these pages, as if none had been visited."""
        self.pages = pages
        self.visits: Counter[str] = Counter()
        self.requests: list[bytes] = []

    def page(self, head: bytes) -> list[Any]:
        """What to do after a request."""
        self.requests.append(head)
        path = re.sub(r"^http://[^/]*", "", head.split(b" ")[1].decode("latin-1")).partition("?")[0]
        steps = self.pages.get(path, ok(b"no page\n", status="404 Not Found"))
        if isinstance(steps, bytes):
            steps = [steps]
        elif isinstance(steps[0], list):
            steps = steps[min(self.visits[path], len(steps) - 1)]
            self.visits[path] += 1
        return [*steps, CLOSE]

    def filled(self, text: str) -> str:
        """A line or an output, with what is known once there is a server."""
        text = text.replace("{u}", self.url).replace("{port}", self.address.partition(":")[2])
        return text.replace("{host}", self.address).replace("/dev/null", os.devnull)


@functools.cache
def compiled() -> str:
    """A folder with the module and its bytecode: most of what the start of a process costs."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder)
    py_compile.compile(shutil.copy(PROGRAM, folder))
    return folder


def environment(**extra: str) -> dict[str, str]:
    """Ours, without what leads a client elsewhere, or the system's store, which is slow to load."""
    kept = {name: value for name, value in os.environ.items()
            if not name.lower().endswith("_proxy") and name not in ("COLUMNS", "CURL_CA_BUNDLE")}
    return {**kept, "PYTHONPATH": compiled(), "SSL_CERT_FILE": pem("expired"), **extra}


def completed(*words: str, **how: Any) -> subprocess.CompletedProcess[bytes]:
    """Run one to its end."""
    return subprocess.run(words, **{"capture_output": True, "timeout": PATIENCE,
                                    "cwd": compiled(), "env": environment(), **how})


@contextmanager
def as_program(folder: str, *streams: int, **env: str) -> Iterator[None]:
    """This process as if just started: in a folder, with these descriptors as 0, 1 and 2."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(patch.dict(os.environ, environment(**env), clear=True))
        stack.enter_context(patch("os._exit", side_effect=AssertionError))
        # Without a stack per callback: half the time.
        stack.enter_context(patch("asyncio.run", partial(asyncio.run, debug=False)))
        stack.callback(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT))
        stack.callback(os.chdir, os.getcwd())
        os.chdir(folder)
        for number, name in enumerate(("stdin", "stdout", "stderr")):
            kept = os.dup(number)
            stack.callback(os.close, kept)
            stack.callback(os.dup2, kept, number)
            os.dup2(streams[number], number)
            stream = open(number, "w" if number else "r", encoding="utf-8", closefd=False)
            stack.enter_context(stream)
            stack.enter_context(patch.object(sys, name, stream))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("error")
        yield


class Folder(Tables):
    """A test with an empty folder, in which the command runs, and a server."""

    @functools.cached_property
    def server(self) -> Scripted:
        server = Scripted({})
        self.addCleanup(server.__exit__)
        return server.__enter__()

    def path(self, name: str) -> str:
        return os.path.join(self.folder, name)

    def contents(self) -> dict[str, bytes]:
        return {name: self.read(name) for name in self.names() if os.path.isfile(self.path(name))}

    def get(self, line: str, *more: str, stdin: bytes = b"", stdout: Any = None, **env: str) -> Any:
        """Run the command with the words of a line, cut at each blank, and more that have some."""
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(3)]
            files[0].write(stdin)
            files[0].seek(0)
            streams = files[0], stdout or files[1], files[2]
            words = self.server.filled(line).split(" ") if line else []
            with as_program(self.folder, *(stream.fileno() for stream in streams), **env):
                code = asyncget.main([*words, *more])
                gc.collect(1)  # what was left open is told on stderr
            for file in files:
                file.seek(0)
            out, err = files[1].read(), SLOW_STEP.sub(b"", files[2].read())
            err = err.replace(os.linesep.encode(), b"\n")
            return subprocess.CompletedProcess(line, code, out, err)

    def leaves(self, line: str, before: Any, code: int, after: Any, **how: Any) -> Any:
        """Run a line where these files are; check the exit code, and what is there then."""
        with self.subTest(line, before=before):
            self.empty(**before)
            done = self.get(line, **how)
            self.assertEqual((done.returncode, self.contents()), (code, after), done.stderr)
        return done


class Section20Files(Folder):
    """What the command leaves in files, and in stdout, which may be one."""

    def mounted(self, *options: str, on: str) -> None:
        """Mount something for this test, which is skipped where that is not allowed."""
        done = subprocess.run(["mount", *options, on], capture_output=True)
        if done.returncode:
            self.skipTest(f"no mount: {done.stderr.decode()}")
        self.addCleanup(subprocess.run, ["umount", "-l", on], check=True)

    # ---- every writer writes all, or the exit code is 23

    @unittest.skipUnless(os.path.exists("/dev/full"), "needs /dev/full")
    def test_full_device(self) -> None:
        body = os.urandom(100_000).replace(b"\0", b"0")
        self.server.plays({"/": ok(body, 'ETag: "v1"', "Set-Cookie: a=b", "X-Long: " + "x" * 9000)})
        for line in ("{u}/", "-i {u}/", "-I {u}/", "-D - {u}/", "{u}/ {u}/", "-o f -w x {u}/",
                "-o f -c - {u}/", "--help all", "-sS -w %output{/dev/full}x -o f {u}/",
                "-o /dev/full {u}/", "-i -o /dev/full {u}/", "-D /dev/full -o f {u}/",
                "-c /dev/full -o f {u}/", "--demo", "--etag-save /dev/full -o f {u}/"):
            stdout = os.devnull if "/dev/full" in line else "/dev/full"
            with self.subTest(line), open(stdout, "wb") as out:
                self.empty()
                done = self.get(line, stdout=out)
                self.assertEqual(done.returncode, 23, done.stderr)
                self.assertRegex(done.stderr, rb"^(asyncget: \(23\) .*No space left.*\n)+$")
                self.assertIn(self.contents(), ({}, {"f": body}))

    def test_full_disk(self) -> None:
        """A part of the bytes has room, and is no success; it is gone on from when there is room
        for more. An old jar stays as it was.
        """
        body = os.urandom(20_000)
        page = ok(body, *(f"Set-Cookie: n{n}={'x' * 4000}" for n in range(3)))
        self.server.plays({"/": page, "/ranges": [good_at_ranges(body)]})
        jar = {"f": b"# my notes\n"}
        compiled()  # while there is room
        self.limit("RLIMIT_FSIZE", 9000)
        self.leaves("-i -o f {u}", {}, 23, {"f": page[:9000]})
        self.leaves("--out-null -c f {u}", jar, 23, jar)
        self.assertIn(b"too large", self.get("-o g {u}/ranges").stderr)
        self.limit("RLIMIT_FSIZE")
        self.assertEqual(self.get("-C - -o g {u}/ranges").returncode, 0)
        self.assertEqual((self.read("g"), asked_for(self.server)[-1]), (body, "9000-"))

    def test_slow_pipes(self) -> None:
        """A reader that stops and goes on, a pipe that does not block, a writer that is stopped.
        Not on Windows: it has no SIGSTOP.
        """
        page = ok(os.urandom(300_000).replace(b"\0", b"0"), "X: y")
        self.server.plays({"/": page})
        for unbuffered, blocking in ("", False), ("1", True):
            reading, writing = os.pipe()
            os.set_blocking(writing, blocking)
            process = subprocess.Popen(
                [*COMMAND, "-i", "-w", "end" * 9999, self.server.url], stdout=writing,
                cwd=self.folder, env=environment(PYTHONUNBUFFERED=unbuffered))
            os.close(writing)
            got = b""
            with open(reading, "rb", buffering=0) as pipe:
                while piece := pipe.read(50_000):
                    got += piece
                    time.sleep(0.02)  # for the pipe to be full
                    process.send_signal(signal.SIGSTOP)
                    process.send_signal(signal.SIGCONT)
            self.assertEqual((process.wait(PATIENCE), got == page + b"end" * 9999), (0, True),
                             (unbuffered, blocking))

    # ---- names

    def test_somebody_elses_files_are_left_alone(self) -> None:
        new = ok(b"new", 'Content-Disposition: attachment; filename="thesis"')
        rest = ok(b"ew", "Content-Range: bytes 1-2/3", status="206 Partial Content")
        self.server.plays({"/thesis": new, "/x": new, "/r/thesis": [[rest], [new]]})
        mine = {"thesis.part": b"mine"}, {"thesis.part": b"mine", "thesis.part.meta": b"mine"}
        lines = ("-O {u}/thesis", "-O -C - {u}/thesis", "-O --no-clobber {u}/thesis",
                 "-o thesis {u}/thesis", "-OJ {u}/x")
        for files, line in table(mine, lines):
            self.leaves(line, files, 23, files)
        for line in "-O {u}/thesis", "-OJ {u}/x", "-OC- {u}/thesis", "-OC- {u}/r/thesis":
            with self.subTest(line):  # no name of a URL's follows a link
                self.empty(thesis=b"->victim", victim=b"n")
                self.get(line)
                self.assertEqual(self.read("victim"), b"n")

    def test_a_folder_that_is_gone(self) -> None:
        self.server.plays({"/": ok(b"", "Content-Disposition: attachment; filename=x")})
        with patch("asyncget.realpath", side_effect=FileNotFoundError(2, "Gone")):
            for line in "-o x {u}", "-OJ {u}", "-c jar {u}":
                self.assertIn(b"(23) cannot write", self.leaves(line, {}, 23, {}).stderr)

    def test_windows(self) -> None:
        """NUL is not stdout, though both have no number there. A Ctrl-C ends with its own code;
        a pipe that nobody reads, with an error of its own.
        """
        async def to_stdout() -> bool:
            with patch("os.stat", lambda _: os.stat_result([0o20666, *[0] * 9])):
                command = asyncget.Command(parse_arguments(["-o", "NUL", "h.test"]))
            return command.transfers[0].to_stdout

        self.assertFalse(asyncio.run(to_stdout()))
        with patch("sys.platform", "win32"), patch("os._exit", side_effect=SystemExit) as left, \
                patch("signal.signal"), patch("signal.raise_signal"):
            self.assertRaises(SystemExit, asyncget.interrupted)
        left.assert_called_once_with(0xC000013A - 2**32)
        command = mock.Mock(code=0, unread=False)
        with self.assertRaises(AsyncGetError) as caught, asyncget.disk_errors("stdout"):
            raise OSError(errno.EINVAL, "Invalid argument")
        asyncget.Command.fail(command, caught.exception)
        self.assertEqual((command.code, command.unread, command.say.called), (23, True, False))

    def test_output_that_is_no_plain_file(self) -> None:
        """stdout itself, whatever it is, under all of its names."""
        self.server.plays({"/": ok(b"hello\n", f"Last-Modified: {formatdate(usegmt=True)}")})
        for name in "/dev/stdout", "/dev/fd/1", "link", "long", "/proc/self/fd/1", "-":
            self.empty(link=b"->/dev/stdout", long=b"->link", out=b"before")
            reading, writing = os.pipe()
            with open(reading, "rb") as pipe, open(self.path("out"), "ab+") as out:
                with open(writing, "wb") as end:
                    codes = [self.get(f"-o {name} -w end {{u}}", stdout=stdout).returncode
                             for stdout in (end, out)]
                out.seek(0)  # in the file that was given, not in another of its name
                said = b"hello\nend"
                self.assertEqual((codes, pipe.read(), out.read()),
                                 ([0, 0], said, b"before" + said), name)
            self.assertEqual(self.names(), ["link", "long", "out"])
        self.empty(pipe=b"|")
        reading, writing = os.pipe()  # as bash's >(...) gives it
        for name, outlet in ((f"/dev/fd/{writing}", reading), ("pipe", os.open(
                self.path("pipe"), os.O_RDONLY | os.O_NONBLOCK))):
            with patch("os.utime", side_effect=PermissionError("not yours")):
                self.assertEqual(self.get(f"-R -o {name} {{u}}").returncode, 0)
            self.assertEqual(os.read(outlet, 99), b"hello\n")
            os.close(outlet)
        os.close(writing)
        self.assertEqual(self.names(), ["pipe"])
        with open(self.path("gone"), "wb+") as file:  # a program's own file, without a name, too
            for _ in range(2):
                self.get(f"-o /dev/fd/{file.fileno()} {{u}}")
                self.assertEqual(os.pread(file.fileno(), 99, 0), b"hello\n")
                self.empty()

    def test_output_where_no_other_file_can_be_made(self) -> None:
        """A mount of one file, and a file in a folder of others: written in place.
        Not on Windows: it has no mounts and owners.
        """
        rest = ok(b"llo\n", "Content-Range: bytes 2-5/6", status="206 Partial Content")
        cookie = ok(b"hello\n", "Set-Cookie: a=b")
        self.server.plays({"/f": ok(), "/rest": rest, "/cookie": cookie, "/empty": ok(b"")})
        root, folder = os.geteuid() == 0, self.path("folder")
        os.mkdir(folder)
        if root:
            self.mounted("-t", "tmpfs", "none", on=folder)
        outside, inside = self.write("outside", b"he"), self.write("folder/f", b"he")
        if root:
            self.mounted("--bind", outside, on=inside)
        for readonly in False, True:
            if readonly and root:
                subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
            elif readonly:
                os.chmod(folder, 0o500)
                self.addCleanup(os.chmod, folder, 0o700)
            for line, code, body in (
                    ("-o folder/f -C 2 {u}/rest", 0, b"hello\n"), ("-o folder/f -i {u}/f", 0, ok()),
                    ("-o folder/f -C - {u}/rest", 0, b"hello\n"), ("-o folder/f {u}/empty", 0, b""),
                    ("-o folder/f -C 2 {u}/f", 33, b"he"), ("-o folder/f {u}/f", 0, b"hello\n"),
                    ("-o folder/f http://127.0.0.1:1/", 7, b"he"),
                    ("-c folder/f -o/dev/null {u}/cookie", 0, b"a\tb\n"),
                    # no name of a URL's is worth it
                    ("--output-dir folder -O {u}/f",
                     *((23, b"he") if readonly else (0, b"hello\n")))):
                with self.subTest(line, readonly=readonly):
                    self.write("folder/f", b"he")
                    done = self.get(line)
                    self.assertEqual(done.returncode, code, done.stderr)
                    left = self.read("folder/f")
                    self.assertEqual(left[-len(body):] if "-c" in line else left, body)
                    self.assertEqual(os.listdir(folder), ["f"])

    def test_nothing_came(self) -> None:
        """What stands in a file stays until there is something to put in its place; and where
        the file is as new as the server's, that is a success. -z holds also where the server
        ignores it, as with curl.
        """
        bomb = b"".join(gzipped(nested(deflating(*[bytes(MIB)] * 16) * 256, 1), 2))
        old, new, dated = {"f": b"old"}, {"f": b"new"}, "Last-Modified: {}"
        earlier, later = (dated.format(formatdate(time.time() + seconds, usegmt=True))
                          for seconds in (-3600, 3600))
        self.server.plays({
            "/old": [ok(b"new", earlier)[:-3], 0.01, b"new"], "/new": ok(b"new", later),
            "/same": [lambda _: ok(b"new", dated.format(formatdate(
                os.path.getmtime(self.path("f")), usegmt=True)))], "/undated": ok(b"new"),
            "/f": [CLOSE], "/bomb": [bomb, HOLD], "/404": ok(status="404 Not Found"),
            "/304": b"HTTP/1.1 304 Not Modified\r\n\r\n"})
        self.assertEqual((self.get("-m 0.3 -o f {u}/bomb").returncode, self.read("f")), (28, None))
        both = {"304": b"old", "304.part": b"mine", "tag": b'"v1"\n'}  # as nothing is written
        for code, before, left, lines in table([(52, old, old, [f"{flags} -o f {{u}}/f"
                                for flags in ("-i", "-I", "-C -", "-C 3", "-s")]),
                (0, old, old, ["-z f -o f {u}/old", "-z -f -o f {u}/new", "-z f -C - -o f {u}/old",
                               "-z f -y 5 --parallel-max 1 {u}/old {u}/old",
                               "-z f -o f {u}/same"]), (22, old, old, ["-f -o f {u}/404"]),
                (0, old, new, ["-z -f -o f {u}/old", "-z f -o f {u}/new", "-z f -o f {u}/undated"]),
                (0, both, both, [f"{flags} {{u}}/304" for flags in (
                    "-z 304 -O", "-z 304 -o 304 -R", "-z 304 -O -f", "-z 304 -O -C -", "-z 304 -OJ",
                    "--etag-compare tag --etag-save tag -o 304 --retry 1")])]):
            for line in lines:
                done = self.leaves(line, before, code, left)
                self.assertEqual((done.stdout, done.stderr if code == 0 else b""), (b"", b""))

    def test_what_came_meanwhile_is_not_replaced(self) -> None:
        """By --no-clobber and -J, but for a name of -o."""
        def meanwhile(_: bytes) -> bytes:
            self.write("f", b"x")
            return ok(b"hello", "Content-Disposition: attachment; filename=f")

        self.server.plays({"/": [meanwhile]})
        for flags, code, left in (("--no-clobber -o f", 23, b"x"), ("-OJ", 23, b"x"),
                                  ("-J -o f", 0, b"hello"), ("-o f", 0, b"hello")):
            self.assertEqual(self.leaves(f"{flags} {{u}}", {}, code, {"f": left}).stdout, b"")

    def test_a_fifo_has_all_heads(self) -> None:
        self.server.plays({"/": ok(), "/moved": redirect("/")})
        self.get("-D h -o a -o b -w %output{>>h}x --parallel-max 1 {u} {u}")
        self.assertEqual(self.read("h"), (ok()[:-6] + b"x") * 2)  # both append
        self.empty(pipe=b"|")
        with ThreadPoolExecutor(1) as pool:
            came = pool.submit(Path(self.path("pipe")).read_bytes)
            self.assertEqual(self.get("-D pipe -o f {u}/moved").returncode, 0)
            self.assertEqual(came.result(), redirect("/")[:-4] + ok()[:-6])

    # ---- going on

    def test_going_on(self) -> None:
        """-C: the file in the end, the exit code, and the ranges that were asked for."""
        dated = [f"Last-Modified: {formatdate(time.time() + after, usegmt=True)}"
                 for after in (-3600, 3600)]
        monday, later = Section17Downloads.monday, Section17Downloads.later
        aged = f"Last-Modified: {monday}", f"Date: {later}"
        old, full, whole, begun = b"hello", WHOLE, ok(WHOLE), ok(WHOLE, V1)[:-6]
        busy, gone = ok(b"busy", status="503 No"), ok(b"gone", status="404 No")
        complete = ok(b"", "Content-Range: bytes */5", dated[1], status="416 No")
        for name, flags, before, answers, code, body, ranges in [
            ("an empty one", "-C -", b"", [whole], 0, full, [""]),
            ("older", "-C - -R", old, [piece(5, version=dated[0])], 0, full, ["5"]),
            ("younger", "-C -", b"HELLO", [piece(5, version=dated[1]), whole], 0, full, ["5", ""]),
            ("a 206 whatever is asked for", "-C -", b"HELLO", [piece(5, version=dated[1])] * 2,
             22, b"HELLO", ["5", ""]),
            ("no ranges", "-C -", b"HELLO", [whole, whole], 0, full, ["5", ""]),
            ("no ranges, cut", "-C -", old, [whole, whole[:-3]], 18, old, ["5", ""]),
            ("no ranges, busy", "-C -", old, [whole, busy], 22, old, ["5", ""]),
            ("moved", "-C - --no-location", old, [redirect("/g")], 22, old, ["5"]),
            ("cut again", "-C -", old, [piece(5)[:-3]], 18, b"hello wo", ["5"]),
            ("complete", "-C -", old, [complete], 0, old, ["5"]),
            *(("all there", f"-C - {fail}", full, [unmet("bytes */11")], 0, full, ["11"])
              for fail in ("-f", "--fail-with-body")),
            ("-f, another file", "-f -C -", old, [unmet("bytes */3"), gone], 22, old, ["5", ""]),
            ("-C 5, ignored", "-C 5", old, [whole], 33, old, ["5"]),
            ("--retry, the other version, cut", "-C - --retry 2", old,
             [piece(5)[:-3], piece(8, version=V2), ok(full.upper(), V2)[:-6],
              piece(5, full.upper(), version=V2)], 0, full.upper(), ["5", "8", "", "5"]),
            ("--retry, another one, cut", "-C - --retry 2", old,
             [piece(5)[:-3], piece(8, version=V2), ok(full.upper())[:-6],
              piece(8, full.upper(), version=V2), ok(full.upper())],
             0, full.upper(), ["5", "8", "", "8", ""]),
            ("--retry, a page of 503", "--retry 1", None, [busy, busy], 0, b"busy", [""] * 2),
            ("--retry, begun", "--retry 2", None, [begun, busy, piece(5)], 0, full, ["", "5", "5"]),
            ("--retry -f", "-f --retry 1", old, [busy, busy], 22, old, [""] * 2),
            ("stdout", "-C 5", None, [whole], 33, b"", ["5"]),
            ("stdout", "-C 5", None, [unmet("bytes */5")], 0, b"", ["5"]),
            ("stdout", "-C 5 --retry 1", None, [piece(5)[:-2], piece(9)], 0, b" world", ["5", "9"]),
            ("stdout", "-C -", None, [whole], 0, full, [""]),
            ("stdout, dated", "-C - --retry 2", None, [ok(WHOLE, *aged)[:-6], piece(
                5, version="X: 1")[:-3], piece(8, version="X: 1")], 0, full, ["", "5", "8"]),
            *(("stdout", "-C - --retry 1", None, [begun, rest], code, out, ["", "5"])
              for rest, code, out in ((piece(5), 0, full), (piece(5, version=dated[1]), 33, old)))]:
            with self.subTest(name):
                self.server.plays({"/f": [[one] for one in answers]})
                self.empty(**({} if before is None else {"f": before}))
                to_file = ["-O"] * (name[:6] != "stdout")
                done = self.get(f"--retry-delay 0.01 {flags} {{u}}/f", *to_file)
                got = self.read("f") if to_file else done.stdout
                self.assertEqual((done.returncode, got), (code, body))
                self.assertEqual(asked_for(self.server), [one and one + "-" for one in ranges])
                if code == 0 or not to_file:
                    self.assertEqual(self.names(), ["f"] * len(to_file))
                if not to_file:
                    again = [field(head, "If-Range") for head in self.server.requests[1:]]
                    same = monday if "dated" in name else '"v1"'
                    self.assertEqual(again, [[same]] * (len(ranges) - 1))
                if "-R" in flags:
                    self.assertLess(os.path.getmtime(self.path("f")), time.time() - 3000)

    def test_a_part_of_another_run(self) -> None:
        self.server.plays({"/part": [[ok(WHOLE, V1)[:-6]]] * 2 + [[piece(5)]], "/all": ok()})
        self.empty(part=b"an old version", all=b"hello\n")  # a new one is under way: it goes on
        for _ in range(2):
            self.assertEqual(self.get("-O {u}/part").returncode, 18)
            self.assertEqual(self.read("part"), b"an old version")
        self.assertEqual(asked_for(self.server), ["", ""])  # without -C a part makes way
        self.assertEqual(self.get("-C - -O {u}/part -O {u}/all").returncode, 0)
        self.assertIn(b'\r\nIf-Range: "v1"\r\n', b"".join(self.server.requests))
        self.assertEqual(self.contents(), {"part": WHOLE, "all": b"hello\n"})

    def test_times_and_tags(self) -> None:
        """-R and --etag-save, whichever way the body takes."""
        page = [ok(b"hello", "Last-Modified: Mon, 02 Jan 2023 10:00:00 GMT", V1)]
        for flags in "-O", "-o f", "-o f -C -", "-i -o f", "-OJ", "-o f --retry 1":
            busy = [[ok(b"", status="503 No")]] if "retry" in flags else []
            self.server.plays({"/f": [*busy, page]})
            left = {"f": page[0] if "-i" in flags else b"hello", "tag": b'"v1"\n'}
            done = self.leaves(
                f"-R --etag-save tag {flags} --retry-delay 0.01 {{u}}/f", {}, 0, left)
            self.assertEqual(os.path.getmtime(self.path("f")), 1672653600, flags)
            self.assertEqual(done.stderr, b"", flags)
        self.server.plays({"/cut": ok(b"hello", V1)[:-1], "/": ok(), "/f": page})
        self.leaves("--etag-save tag {u}/cut", {}, 18, {})  # later it would say: nothing new
        self.leaves("-R -o f {u}/", {}, 0, {"f": b"hello\n"})
        self.assertGreater(os.path.getmtime(self.path("f")), time.time() - 3000)  # no date came
        no = mock.Mock(side_effect=PermissionError(errno.EPERM, "No"))
        with patch("os.utime", no), patch("os.chmod", no):  # as on Android's shared storage
            done = self.leaves("-R -c j -o f {u}/f", {}, 0, {"f": b"hello", "j": mock.ANY})
            self.assertEqual((done.stderr, no.call_count), (b"", 1))

    # ---- jars

    def test_the_jar(self) -> None:
        """For its owner alone; what we do not understand in it is not ours to delete."""
        unknown = [b"# my notes", b"#HttpOnly_broken", b"no tabs here", b"a\tb\tc",
                   b"h.test\tTRUE\t/\tFALSE\tsoon\tname\tvalue", b"\xff\xfe Latin-1", b"#", b"  x"]
        jar = b"# Netscape HTTP Cookie File\n\n" + b"\n".join(unknown) + (
            b"\n.h.test\tTRUE\t/\tFALSE\t0\tkept\t\xe9\r\n")
        self.server.plays({"/": ok(b"", "Set-Cookie: a=b")})
        for mode, flags, link in [(0o644, "-b jar -c jar", False), (0o644, "-c jar", False),
                                  (None, "-c jar", False), (0o600, "-b jar -c jar", True),
                                  (None, "-c jar", True)]:
            self.empty(**({"jar": b"->real"} if link else {}))
            if mode:
                os.chmod(self.write("jar", jar), mode)  # through the link
            for _ in range(2):
                done = self.get(f"{flags} {{u}}")
                self.assertEqual((done.returncode, done.stderr), (0, b""), (flags, mode, link))
                lines = self.read("jar").split(b"\n")
                self.assertEqual([line for line in lines if line in unknown],
                                 unknown if mode else [], (flags, mode, link))
                self.assertEqual(sum(line.endswith(b"\ta\tb") for line in lines), 1)
                self.assertEqual(any(b"kept\t\xe9" in line for line in lines), "-b" in flags)
            mode = stat.S_IMODE(os.stat(self.path("jar")).st_mode)
            self.assertEqual(mode, 0o666 if WINDOWS else 0o600)
            self.assertEqual(self.names(), ["jar", "real"] if link else ["jar"])


class Section18Timeline(AsyncCase):
    """What the example in render_timeline does not show."""

    def test_at_the_borders(self) -> None:
        Bar = asyncget.Bar
        bars = [Bar("200 " + "long/" * 50, 0, 1, 2, 3, size=10**12), Bar("x", 3, 3, 3, 3)]
        for width in (40, 80, 200):
            rows = asyncget.render_timeline(bars, width).splitlines()[:2]
            self.assertEqual([len(row) for row in rows], [width, width])
            self.assertRegex(rows[0], r"^200.*\.\.\..*g/ \|")  # a URL says most at its ends
        bars = [Bar("x", 0, 0, 0, 0), Bar("y", 0, 0, 0, 100), Bar("z", 100, 100, 100, 100)]
        for some in (bars[:1], bars):
            for line in asyncget.render_timeline(some).splitlines()[:-2]:
                self.assertIn("#", line)  # no request is too short to be seen

    async def test_redirects_have_their_rows(self) -> None:
        slowly = [READ, redirect("/b"), READ, 0.05, answer()[:-1], 0.05, b"k"]
        async with scripted(slowly) as server, Session(trust_env=False) as session:
            async with session.stream(server.url + "/a") as got:
                _, unread = asyncget.response_bars(got)
                await got.read()
            bars = [*asyncget.response_bars(got)]
        self.assertEqual((unread.head, unread.done), (bars[1].head,) * 2)
        host = f"127.0.0.1:{server.port}"
        self.assertEqual([bar.label for bar in bars], [f"302 {host}/a", f"200 {host}/b"])
        self.assertEqual([(bar.reused, bar.size) for bar in bars], [(False, 4), (True, 2)])
        self.assertEqual(bars[1].started, bars[0].done)
        self.assertGreaterEqual(bars[1].head - bars[1].started, 0.04)
        for bar in bars:
            self.assertEqual(sorted(bar[1:5]), list(bar[1:5]))


class Section19DemoServer(AsyncCase, Folder):

    async def test_pages(self) -> None:
        """Each as its head says; nonsense gets no answer, and no traceback."""
        server = await asyncio.start_server(asyncget.serve_demo, "127.0.0.1", 0)
        base = "http://{}:{}".format(*server.sockets[0].getsockname())
        async with server, Session(base_url=base, trust_env=False) as session:
            for path, status, text, reused in [("/length", 200, "I end after 22 bytes.", False),
                    ("/chunked", 200, "I end with a chunk of 0 bytes.", True),
                    ("/close", 200, "I end when I hang up.", True),
                    ("/delay/0.1", 200, "I thought about it.", False),
                    ("/redirect", 200, "I end after 22 bytes.", True),
                    ("/other", 404, "No such page.", True)]:
                got = await session.get(path)
                self.assertEqual((got.status, got.text, got.timing.reused, len(got.history)),
                                 (status, text + "\n", reused, path == "/redirect"))
            await self.raised(AsyncGetError, session.get("/delay/soon"))
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(b"nonsense\r\n\r\n")
            self.assertEqual(await reader.read(), b"")
            writer.close()

    def test_the_story(self) -> None:
        """Eight times as fast."""
        sleep = asyncio.sleep
        with patch("asyncio.sleep", lambda seconds: sleep(seconds / 8)), \
                patch("asyncget.render_timeline", wraps=asyncget.render_timeline) as drawn:
            told = self.get("--demo")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # its server's connections
            gc.collect()
        self.assertEqual(told.returncode, 0)
        story, drawings = told.stdout.decode().split("\nWhat 2 and 3 looked like, to scale\n")
        places = [story.index(text) for text in (
            "1 s ... still", "2 s ... still", "I thought about it.", "Content-Length: 22  ",
            "Transfer-Encoding: chunked   I end with", "Connection: close  ", "_numbers(2, 3) = 5")]
        self.assertEqual(places, sorted(places))
        self.assertNotIn("... still", story.partition("\n2. ")[2])  # and then it is cancelled
        _, in_a_row = map(float, re.findall(r"^ +([0-9.]+) s in all", story, re.M))
        first, second = (call[0][0] for call in drawn.call_args_list)
        self.assertLess(max(bar.started for bar in first), min(bar.done for bar in first))
        self.assertTrue(all(a.done <= b.started for a, b in zip(second, second[1:])))
        self.assertGreaterEqual(in_a_row, 0.35)
        self.assertEqual(len(re.findall(r"^200 127.* \|", drawings, re.M)), 20)


class Section20CommandLine(Folder):

    # ---- what only decides

    def test_flags_are_found_in_every_spelling(self) -> None:
        for arguments, expected in table([
                ("-sSfLo f u", {"silent": True, "show_error": True, "fail": True, "output": ["f"]}),
                ("--output=f u", {"output": ["f"]}), ("-m 1.5 --max-time .5 u", {"max_time": 0.5}),
                ("u -o f v -O", {"output": ["f", None], "url": ["u", "v"]}),
                ("-C - -o - u", {"continue_at": "-", "output": ["-"]}),
                ("-w -%{x}- u", {"write_out": "-%{x}-"}), ("-s --no-silent u", {"silent": False}),
                ("--no-compressed --no-location u", {"compressed": False, "location": False}),
                ("--no-clobber --clobber u", {"no_clobber": False}), ("-H a:b -", {"url": ["-"]}),
                ("--http1.1 -gNq4 u", {"ipv4": True, "globoff": True, "url": ["u"]}),
                ("--max-filesize 2M u", {"max_filesize": 2 << 20}),
                ("-- -u --x", {"url": ["-u", "--x"]}), ("-# -Z -X GET u", {"request": "GET"})]):
            options = parse_arguments(arguments.split())
            self.assertEqual({**vars(options), **expected}, vars(options), arguments)

    def test_wrong_flags_are_refused_with_a_hint(self) -> None:
        for arguments, text in (
            ("--proxy-insecure u", "-k is not"), ("--etag-save e u v", "one URL"), ("-d a u", "-G"),
            ("--max-filesize 1x u", "BYTES"), ("--pass x u", "FILE:PASSWORD"), ("-C - -OJ u", "-J"),
            ("--limit-rate 1.M u", "BYTES"), ("--retrys 3 u", "try --retry"), ("-C 5 -r 5 u", "-r"),
            ("--data-urlencode a u", "-G"), ("--max-redirs -2 u", "LIMIT"), ("-m -1 u", "SECONDS"),
            ("--crlf u", "try --help all"), ("--silent=1 u", "--silent="), ("-C - -i -o f u", "-i"),
            ("-s- u", "no flag -s-; try"), ("--no-output u", "no flag"), ("-m \u0661 u", "SECONDS"),
            ("--ciphers X u", "OpenSSL"), ("--key-type DER u", "PEM"), ("--retry 1.5 u", "NUMBER"),
            ("--trace-ascii f u", "-v"), ("-K f u", "command line"), ("u -o", "needs a value"),
            ("--next u", "all URLs"), ("-C x u", "POSITION"), ("--stderr f u", "2>"),
            ("-Q u", "no flag -Q"), ("-X POST u", "GET"), ("-C - -I u", "-I"), ("-i -OJ u", "-J"),
            ("-qO- u", "no flag -O-; -O- -qO-                   wget's; here stdout"),
            (f"-E :{SECRET} u", "needs FILE"), ("-F a=b u", "-F"), ("-T f u", "GET"),
            ("--interface eth0 u", "routes")):
            self.refuses(AsyncGetError, text, lambda line: asyncget.check_options(
                parse_arguments(line.split())), arguments, exit_code=2)

    def test_every_flag_of_the_contract_is_there(self) -> None:
        """Those that stand in no other test; and no two do the same unawares, but for data."""
        flags = asyncget.known_flags()
        names = """--user-agent --header --referer --cookie --cookie-jar --user --netrc --range
                --get --location --proxy --proxy-user --cert --include --dump-header --write-out
                --head --speed-limit --speed-time --netrc-optional --data-binary --basic --keepalive
                --parallel-immediate --remove-on-error"""
        self.assertEqual([name for name in names.split() if name not in flags], [])
        long = {name: flag for name, flag in flags.items()
                if name.startswith("--") and flag.on and not name.startswith("--data-")}
        self.assertEqual(len({flag.name for flag in long.values()}), len(long))

    def test_urls(self) -> None:
        self.alike(lambda line: planned(*line.split()), (
            ("-G -d a=1&b=2 -d c h?z", "http://h?z&a=1&b=2&c"), ("HTTPS://h", "HTTPS://h"),
            ("localhost:8000", "http://localhost:8000"), ("-g h/{a,b}[1-2]", "http://h/{a,b}[1-2]"),
            ("--url-query +a=%20 h/p#f", "http://h/p?a=%20#f"),
            ("--url-query \u00e9 h", "http://h?%C3%A9"), ("h/?u=http://x", "http://h/?u=http://x"),
            ("--url-query +a --url-query + h? h?b&", "http://h?a http://h?b&a"),
            ("https:/me:pw@h/ http:///h//x", "https://me:pw@h/ http://h//x"),
            ("h/{a,b}[08-10:2]", "http://h/a08 http://h/a10 http://h/b08 http://h/b10"),
            (r"h/\{a\}?b\[[1-2]\]", "http://h/{a}?b[1] http://h/{a}?b[2]"),
            ("[fe80::1%25eth0]/[1-2]", "http://[fe80::1%25eth0]/1 http://[fe80::1%25eth0]/2"),
            ("http://[::1]/[b-c]{x}", "http://[::1]/bx http://[::1]/cx")))
        self.assertEqual(len(asyncget.glob_values("[0-999999]")), asyncget.MAX_GLOB + 1)  # no more

    def test_names_from_urls_keep_to_the_folder(self) -> None:
        self.alike(asyncget.name_from_url, (
            ("http://h/a?x=/y", "a"), ("http://h/a#/y", "a"), ("http://h//", "curl_response"),
            ("http://h/%2e%2e%2fx", "%2e%2e%2fx"), ("http://h/a\\b", "b"), ("http://h/.p", ".p")))
        for path in ("..", "a/.", "x" * 256, "a\u202eb"):
            self.assertRaises(AsyncGetError, asyncget.name_from_url, f"http://h/{path}")

    def test_names_from_servers_keep_to_the_folder(self) -> None:
        """None is no name, and ... one that is refused."""
        self.alike(self.name_from, [
            ("attachment; filename*=utf-7''x; filename=good", "good"), ("attachment", None),
            ('attachment;FileName = "a;b.txt" ; size=3', "a;b.txt"), ("inline; xfilename=a", None),
            ("attachment; filename=\u00c3\u00a9", "\u00e9"), ('filename="a b.txt"', "a b.txt"),
            ("attachment; filename*=UTF-8''..%2Fx", "x"),
            ("attachment; filename*=UTF-8''y; filename=x", "y"),
            ('attachment; name="; filename=evil"; filename=good', "good")])
        self.alike(lambda name: self.name_from(f'attachment; filename="{name}"'), {
            "%252e%252e%252fx": "%2e%2e%2fx", r"..\..\evil.exe": "evil.exe", "C:\\a\\b": "b",
            "../../etc/passwd": "passwd", "a%1b[2Jb": ..., ".bashrc": ..., "..": ..., "a/": ...,
            "n" * 255: "n" * 255, "n" * 256: ..., "": ...,
            # what a later -C - of another URL believes: two versions were spliced
            "a.iso.part": ..., "a.Part.Meta": ..., "a.parts": "a.parts",
            # what a later python -m would import
            "types.py": ..., "t.PYC": ..., "t.abi3.so": ..., "t.pyd": ..., "t.pyw": ...,
            "t.pyz": "t.pyz", "t.so.1": "t.so.1", "py": "py"}.items())
        with patch("os.name", "posix"):
            self.alike(self.name_from, [(f'attachment; filename="{name}"', name.replace("\\", ""))
                                        for name in ("C:evil.dll", "CON", r'a\"b')])
        with patch("os.name", "nt"):  # CVE-2016-0754: devices, drives, streams
            names = ("C:evil.dll", "a.txt:stream", "CON", "nul.txt", "com1", "LPT9.x", "aux .c",
                     "a.", "a b ?", "a*", "a<b", "a|b")
            self.alike(lambda name: self.name_from(f'attachment; filename="{name}"'), [
                *((name, ...) for name in names),
                *((name, name) for name in ("console", "a.b", "com", "xcon.txt"))])
        ascii_only = UnicodeEncodeError("ascii", "\u2603", 0, 1, "not there")  # the locale
        with patch("os.fsencode", side_effect=ascii_only):
            self.assertEqual(self.name_from("attachment; filename=\u2603"), ...)

    def name_from(self, disposition: str) -> Any:
        try:
            return asyncget.name_from_header(disposition)
        except AsyncGetError as error:
            self.assertEqual(error.exit_code, 23)
            return ...

    def test_proxy_flags(self) -> None:
        def found(line: str, **environ: str) -> dict[str, str]:
            with patch.dict(os.environ, environ, clear=True):
                asyncget.set_proxies(parse_arguments(line.split(" ")))
                return {**os.environ}

        def kept(**environ: str) -> dict[str, str]:  # in Windows' capitals, there
            return found("u", **environ)

        def all_by(proxy: str) -> dict[str, str]:
            return kept(http_proxy=proxy, https_proxy=proxy, all_proxy=proxy)

        self.alike(found, (("u", {}), ("--noproxy * u", kept(no_proxy="*")),
            ("--socks5 p:1 u", all_by("socks5://p:1")), ("-x p:1 u", all_by("p:1")),
            ("--socks5-hostname p u", all_by("socks5h://p"))))
        with patch.dict(os.environ, {"ALL_PROXY": "p"}, clear=True), \
                patch("sys.platform", "darwin"), patch(
                    "urllib.request.getproxies", lambda: {"http": "of-the-system"}):
            asyncget.set_proxies(parse_arguments(["-x", "", "u"]))  # takes none
            self.assertIsNone(asyncget.choose_proxy(HERE))
        for user, sent in ("a:b@", b"YTpiQA=="), ("a:%40", b"YTpA"):  # whoever names the proxy
            self.server.plays({"/": ok()})
            self.get(f"-U {user} http://h.test", http_proxy=f"http://old:one@{self.server.address}")
            self.assertIn(b"\r\nProxy-Authorization: Basic " + sent, self.server.requests[0])

    def test_settings(self) -> None:
        with patch("asyncget.exists", return_value=True):  # of ~/.netrc
            self.alike(lambda line: "{timeout:g} {limit} {netrc}".format_map(
                asyncget.open_session(parse_arguments(line.split())).settings), [
                    ("", "30 50 False"), ("-m 9 -n", "30 50 ~/.netrc"), ("-y9 -m99", "9 50 False"),
                    ("-m 99 --netrc-optional --parallel-max 200", "99 200 ~/.netrc")])

    # ---- a table of command lines

    HEAD, GONE = ok()[:-6], ok(b"gone\n", "X: y", status="404 Not Found")
    TO = ok(b"moved\n", "Location: /", status="302 F")
    MORE = ok(b"iec", "Content-Range: bytes 1-3/4", status="206 Partial")
    BUSY, AGAIN = ok(b"busy\n", status="503 Busy"), ok(b"again\n", status="503 Busy")
    CODED = zlib.compress(random.Random(1).randbytes(25_000).hex().encode(), 9)[:-9]
    PAGES = {"/": ok(), "/404": GONE, "/to": TO, "/more": MORE,
        "/tobad": ok(b"moved\n", "Location: http://[x/", status="302 F"), "/lost": [[GONE], [ok()]],
        "/nothing": [CLOSE], "/early-coding": answer(CODED, "Content-Encoding: deflate"),
        "/worse": [[ok()[:-5]], [CLOSE]],
        "/loop": ok(b"", "Location: /loop", status="302 F"), "/stall": [ok(b"x" * 9)[:-8], HOLD],
        "/chunked": CHUNKED + b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n", "/breaks": [[ok()[:-5]], [ok()]],
        "/cut": b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfour", "/hangs": [[HOLD], [ok()]],
        "/hang": [HOLD], "/early-chunk": CHUNKED + b"4\r\nfour\r\n9\r\nab",
        "/early-border": CHUNKED + b"4\r\nfour\r\nx\r\n",
        "/early-reset": [ok(b"four more")[:-5], 0.04, RESET], "/junk": b"\x00\x01\x02 junk\r\n\r\n",
        "/coded-piece": ok(b"iec", "Content-Encoding: gzip\r\nContent-Range: bytes 1-3/30",
                           status="206 Partial"),
        "/gzip": ok(gzip.compress(b"unpacked"), "Content-Encoding: gzip"), "/2": ok(b"2"),
        "/unknown": ok(b"x", "Content-Encoding: secret"), "/503": [[BUSY], [AGAIN], [ok()]],
        "/mega": ok(gzip.compress(b"y" * 3_000_000), "Content-Encoding: gzip"), "/b": ok(b"B"),
        "/big": b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + b"x" * 5000, "/1": ok(b"1"),
        "/103": b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + ok(),
        "/later": [[ok(b"later\n", "Retry-After: 60", status="503 Later")], [ok()]], "/a": ok(b"A"),
        "/204": b"HTTP/1.1 204 No Content\r\n\r\n",
        "/204-long": b"HTTP/1.1 204 No\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
        "/cookie": ok(b"b", "Set-Cookie: s=secret"), "/packed": ok(b"p", "Content-Encoding: gzip"),
        "/etag": ok(b"e\n", 'ETag: "v1"', "Last-Modified: Sun, 06 Nov 1994 08:49:37 GMT"),
        "/badlength": b"HTTP/1.1 103 E\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        "/http2": b"HTTP/2 200 OK\r\n\r\nx", "/large": b"HTTP/1.1 200 OK\r\nX: " + b"y" * 200_000,
        **{f"/{page}": ok(b"N", f'Content-Disposition: attachment; filename="{name}"')
           for page, name in (("named", "../b c"), ("old", "old"), ("dot", ".bashrc"))},
        "/twice": [[ok(b"1", f"Content-Disposition: attachment; filename={name}")]
                   for name in ("first", "second")],
        "/drips": [ok(b"x" * 30)[:-30], *([b"x", 0.1] * 30)]}
    LINKS = {} if WINDOWS else {"here": b"->.", "link": b"->to", "dangling": b"->new"}
    # in the folder of each row
    FILES = {"old": b"x", "format": b"%{http_code}\r\n.\n", "to": b"x", **LINKS}

    ROWS: tuple[tuple[Any, ...], ...] = (  # arguments, stdout, stderr pattern, exit code, files
        *((line, b"hello\n", "", 0) for line in (
            "{u}/", "--resolve h.test:{port}:127.0.0.2,127.0.0.1 http://h.test:{port}/",
            "--max-filesize 6.5B {u}/", "--proto =http,https x.localhost:{port}",
            "--parallel-max 0 {u}/", "--max-redirs -1 {u}/to", "-H Accept-Encoding: {u}/",
            "-m 0 -y 0 --max-filesize 0 --connect-timeout 0 --retry 0 {u}/", "--connect-to  {u}/",
            "-m 0.3 --retry 1 --retry-delay 1 {u}/hangs", "--netrc-optional --netrc-file none {u}/",
            "-x http://127.0.0.1:1 --noproxy 127.0.0.1 {u}/", "--connect-to other:::1 {u}/",
            "--connect-to H.test:80:127.0.0.1:{port} --connect-to ::x:1 h.test",  # the first
            "--connect-to :1:x:1 --connect-to ::127.0.0.1:{port} --connect-to ::x:1 h.test",
            "--connect-to [::1]:1:[127.0.0.1]:{port} [::1]:1",
            "--resolve +h.test:{port}:127.0.0.1 --resolve -x:1 http://h.test:{port}/")),
        *((line, b"", rf"\({code}\)", code) for code, lines in {
            1: ["{u}/junk", "{u}/http2", "ftp://{host}/", "--proto -all,https {u}/"],
            2: ["--demo 99999", "-s", "-H broken {u}/", "-o  {u}/",
                "-x {u} --connect-to ::127.0.0.1:1 {u}/"],
            5: ["-x http://[ {u}/"], 56: ["{u}/large"],
            3: ["http://a..b/", "{u}/[3-1]", "{u}/[1", "{u}/{a", "{u}/a}", "{u}/[1-3:0]", "{u}/{}"],
            6: ["--resolve h.test:{port}:127.0.0.1 --resolve -H.test:{port} http://h.test:{port}/"],
            7: ["-x foo://h {u}/", "--retry 1 --retry-delay 1 --retry-connrefused 127.0.0.1:1"],
            22: ["--retry 1 --retry-delay 1 --retry-all-errors -f {u}/404"],
            23: ["-o none/x {u}/", "-o . {u}/", "-OJ {u}/dot", "--out-null -c none/x {u}/",
                 "--out-null -c . {u}/"],
            26: ["-H @none {u}/", "--url @none", "-n --netrc-file none {u}/", "-G -d @none {u}/"],
            28: ["-m 0.1 {u}/hang", "-y 0.1 {u}/hang",
                 "--connect-timeout 0.2 -y 0 https://{host}/"],  # a handshake that never comes
            49: ["--resolve x {u}/", "--resolve h:1:127.0.0.1,256.1.1.1 {u}/"],
            63: ["--max-filesize 5 {u}/", "--max-filesize 1k -o x {u}/big"],
        }.items() for line in lines), *((line, stdout, "", 0) for line, stdout in {
            "{u}/404": b"gone\n", "-i {u}/404": GONE, "--no-compressed {u}/unknown": b"x",
            "{u}/{a,b}": b"AB", "-H accept-encoding:gzip {u}/packed": b"p",  # as it is
            "{u}/204": b"", "-s -w %{redirect_url}. --no-location {u}/tobad": b"moved\nhttp://[x/.",
            "{u}/204-long": b"", "-s -w %{redirect_url}. --location-trusted {u}/to": b"hello\n.",
            "--parallel-max 1 {u}/ {u}/chunked": b"hello\nabc", "-r 1-3 {u}/coded-piece": b"iec",
            "-s -w %{redirect_url} {u}/to": b"moved\n{u}/", "--no-remote-name {u}/a": b"A",
            "-g {u}/{a,b}": b"no page\n", "--out-null {u}/a {u}/b -w .": b".B.",
            # heads as they come
            "-i {u}/103": b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + ok(),
            "-I {u}/to": TO[:-6] + HEAD, "-I --no-location {u}/to": TO[:-6],
            "-I {u}/drips": HEAD.replace(b"6", b"30"), "-iI {u}/ {u}/": HEAD + HEAD,
            "-sD - -o /dev/null {u}/": HEAD,  # and where the body is written in place
            # -w
            "-w a%{onerror}b {u}/": b"hello\na", "-sw @format {u}/": b"hello\n200.",
            "-w %{what}%{error_code} {u}/": b"hello\n%{what}%{error_code}",
            r"-w \t\r\n\x\\100%%%d%{ {u}/": b"hello\n\t\r\n\\x\\\\100%%d%{", "-J {u}/named": b"N",
            "-w %{http_code}|%{size_download}|%{url_effective}|%{exitcode}\\n {u}/to":
                b"hello\n200|6|{u}/|0\n", "-w %{content_type}%header{x-a}. {u}/": b"hello\n.",
            "-w |%{size_delivered}|%{proxy_used}|%{tls_earlydata} {u}/": b"hello\n|6|0|0",
            "-w %header{etag}|%header{no}|%{num_headers}|%{size_header} {u}/etag": b'e\n"v1"||3|96',
            "-o /dev/null -w "
            "%{url.host}|%{url.port}|%{url.path}|%{urle.query}|%{urle.scheme} {u}/to?q#f":
                b"127.0.0.1|{port}|/to||http", "-o o -w %{filename_effective} {u}/": b"o",
            # lines of public Dockerfiles, health checks and installers, and of browsers
            "-flLsS --compressed --http2 --tcp-nodelay --no-keepalive -4 -N {u}/gzip": b"unpacked",
            "{u}/ -X GET -H user-agent:Mozilla/5.0 -H accept-language:de -H Sec-Fetch-Dest:empty "
            "-b a=1;b=2 --compressed --insecure": b"hello\n",  # Chrome; Firefox writes -H Cookie
        }.items()), *((line, b"", "", 0, files) for line, files in {
            "-D f -o o {u}/to": {"f": TO[:-6] + HEAD, "o": b"hello\n"}, "-I -o f {u}/": {"f": HEAD},
            "-i -o o {u}/to": {"o": TO[:-6] + ok()}, "-z none -o none {u}/": {"none": b"hello\n"},
            "-H accept-encoding:gzip -o o {u}/packed": {"o": b"p"},
            "-H accept-encoding:gzip --compressed -o o {u}/gzip": {"o": b"unpacked"},
            # time and tries
            "--retry 2 --retry-delay 1 -f -o o {u}/503": {"o": b"hello\n"},
            "--retry 1 --retry-delay 1 --retry-all-errors -O {u}/breaks": {"breaks": b"hello\n"},
            "-i -o f --retry 1 --retry-delay 1 --retry-all-errors {u}/breaks": {"f": ok()},
            "-o /dev/null --retry 1 --retry-delay 1 --retry-all-errors {u}/breaks": {},
            # which files
            "-o f#1 {u}/[1-2]": {"f1": b"1", "f2": b"2"}, "-o #1.#2#3 {u}/{a,b}?[08-10:2]":
                {"a.08#3": b"A", "a.10#3": b"A", "b.08#3": b"B", "b.10#3": b"B"},
            "-o f {u}/1 -o f.part2 {u}/2": {"f": b"1", "f.part2": b"2"},
            "-o /dev/null {u}/1 -o /dev/null {u}/2": {}, "-o dangling {u}/": {"new": b"hello\n"},
            "-OJ {u}/twice -OJ {u}/twice": {"first": b"1", "second": b"1"},
            "--no-clobber -o f {u}/1 -o f {u}/2": {"f": b"1", "f.1": b"2"},
            "--no-clobber -O {u}/here": {"here.1": b"no page\n"},
            # through a link, when all has come
            "-o old --no-clobber {u}/b": {"old": b"x", "old.1": b"B"}, "-OJ {u}/a": {"a": b"A"},
            "-OJ --no-clobber {u}/old": {"old": b"x", "old.1": b"N"}, "-o old {u}/b": {"old": b"B"},
            "--remote-name-all {u}/a {u}/b": {"a": b"A", "b": b"B"}, "-OJ {u}/named": {"b c": b"N"},
            "-O {u}/to?x#y": {"to": b"hello\n"}, "-o link {u}/": {"to": b"hello\n"},
            "-O {u}/404": {"404": b"gone\n"}, "-o link -i {u}/": {"to": ok()},
            "--retry 1 --retry-delay 1 --retry-all-errors -f -O {u}/lost": {"lost": b"hello\n"},
            "--create-dirs --output-dir n -o m/a {u}/a -o m/b {u}/b": {"n/m/a": b"A", "n/m/b": b"B"
                                                                       }}.items()),
        ("-f {u}/404", b"", r"^asyncget: \(22\) .*404.*\n$", 22), ("-sf {u}/404", b"", "", 22),
        ("--fail-with-body {u}/404", b"gone\n", r"\(22\)", 22), ("-sfI {u}/404", GONE[:-5], "", 22),
        ("-s -w %{num_retries} http://a..b/", b"0", "", 3), ("--demo x", b"", r"^.*\(2\).*\n$", 2),
        ("-if {u}/404", GONE[:-5], r"\(22\)", 22), ("-m 0.3 {u}/stall", b"x", r"\(28\)", 28),
        ("-w %{http_code} --proto-redir =https {u}/to", b"302", "--proto-redir", 1),
        ("-z old -w %{http_code} {u}/etag", b"304", "", 0),  # though the server ignores -z
        ("{u}/nothing {u}/cut {u}/", b"fourhello\n", r"(?s)\(52\).*\(18\)", 52),
        ("-f {u}/ {u}/404 {u}/cut", b"hello\nfour",  # the first one's code, in the order given
         r"^asyncget: \(22\) .* \[\S+/404\]\nasyncget: \(18\) .* \[\S+/cut\]\n$", 22),
        # its time stands still
        ("-m 0.6 {u}/hang {u}/mega", b"y" * 3_000_000, r"^.*\(28\).*\n$", 28),
        ("-m 9 -f --fail-early -w %{exitcode} {u}/hang {u}/404", b"22", r"^.*\(22\).*\n$", 22),
        ("-m 9 --fail-early --waterfall {u}/hang {u}/cut", b"",  # it was not its turn
         r"^.*\(18\).*\n200 .*/cut .*\n(?!.*/hang)", 18),
        ("-f --fail-early --retry 3 127.0.0.1:1 {u}/404", b"", r"^.*\(22\).*\n$", 22),
        ("-m 0.3 --limit-rate 1 {u}/", b"hello\n", r"\(28\)", 28),
        ("http://u:secret@h/{a", b"", r"^((?!secret).)*\(3\)((?!secret).)*\n$", 3),
        ("--oauth2-baerer=secret u", b"", r"^((?!secret).)*\(2\)((?!secret).)*\n$", 2),
        ("http://user:secret@127.0.0.1:1/", b"", r"^((?!secret).)*\n$", 7),
        ("-x http://127.0.0.1:1 {u}/", b"", r"\((7|97|5)\)", 7),
        # what came before an error is handed on, as far as it was payload
        *((f"{flags} {{u}}/{page}", stdout, rf"\({code}\)", code, files) for page, code, body in (
            ("cut", 18, b"four"), ("early-chunk", 18, b"fourab"), ("early-border", 56, b"four"),
            ("early-coding", 61, zlib.decompressobj().decompress(CODED)),
            ("early-reset", 56, b"four")) for flags, stdout, files in (
                ("-sS", body, {}), ("-o f", b"", {"f": None, "f.part": body}),
                ("-o /dev/stdout", body, {}))),
        # heads as they come
        ("-D f {u}/103", b"hello\n", "", 0, {"f": b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + HEAD}),
        ("-D - -o o {u}/to", TO[:-6] + HEAD, "", 0, {"o": b"hello\n"}),
        ("-D - -C - -o old {u}/more", MORE[:-3], "", 0, {"old": b"xiec"}),
        ("-i --max-redirs 0 {u}/to", TO[:-6], r"\(47\)", 47),
        ("-i {u}/tobad", TO[:-6].replace(b": /", b": http://[x/"), r"\(3\)", 3),
        ("-i {u}/badlength", b"HTTP/1.1 103 E\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", r"\(8\)", 8),
        ("-D f --retry 2 --retry-delay 1 {u}/503", b"hello\n", "", 0,
         {"f": BUSY[:-5] + AGAIN[:-6] + HEAD}),
        # time and tries
        ("-m 0.2 -o o {u}/drips {u}/", b"hello\n", r"\(28\)", 28),
        ("-Y 100 -y 0.3 -o o {u}/drips", b"", r"\(28\) slower", 28),
        ("-Y 5 -y 0.3 -m 0.7 -o o {u}/drips", b"", r"\(28\) (?!slower)", 28),
        ("-Y 1G -y 0.4 {u}/hang {u}/mega", b"y" * 3_000_000, r"^.*\(28\) no.*\n$", 28),
        ("--retry 5 --retry-delay 9 --retry-max-time 1 {u}/503", b"busy\n", "", 0),
        ("--retry 5 --retry-delay 1 --retry-max-time 2 {u}/later", b"later\n", "", 0),
        ("--retry 1 --retry-delay 1 {u}/breaks", b"h", r"\(18\)", 18),
        # only if it is new
        ("--etag-save e --etag-compare e {u}/etag", b"e\n", "", 0, {"e": b'"v1"\n'}),
        ("--etag-save e {u}/404", b"gone\n", "", 0, {"e": None}),
        # which files
        # two URLs that would meet, and that would not
        *((line, b"", r"\(2\) two URLs", 2) for line in (
            "-O {u}/f.iso -o ./f.iso {u}/2", "-O {u}/f.iso -O {u}/f.iso.part.meta",
            "-O {u}/f.iso.part -O {u}/f.iso", "-o link {u}/1 -o to.part {u}/2",
            "-o new {u}/1 -o dangling {u}/2", "--no-clobber -o f.part {u}/1 -o f {u}/2",
            "-o f {u}/1 -o here/f {u}/2", "-o /dev/shm/asyncget {u}/1 -o /dev/shm/asyncget {u}/2")),
        ("-o link {u}/cut", b"", r"\(18\)", 18, {"to": b"x"}),
        ("-o x -O {u}/a {u}/b {u}/1", b"1", "", 0, {"x": b"A", "b": b"B"}),
        ("--fail-with-body -o y {u}/404", b"", r"\(22\)", 22, {"y": b"gone\n"}),
        ("-OJ {u}/old", b"", r"\(23\)", 23, {"old": b"x"}),
        # -w
        ("-w a%{stderr}b%{stdout}c {u}/", b"hello\nac", "^b$", 0),
        ("-sw a%{onerror}%{exitcode} {u}/cut", b"foura18", "", 18),
        ("-w %output{f}a%output{>>f}b%{stdout}c {u}/", b"hello\nc", "", 0, {"f": b"ab"}),
        ("-s -w %{num_redirects}|%{http_code}|%{num_connects} --max-redirs 1 {u}/loop",
         b"1|302|2", "", 47), ("-w %{http_code}-%{exitcode} {u}/nothing", b"000-52", r"\(52\)", 52),
        ("-sw %{http_code} -C 3 {u}/a", b"200", "", 33),
        ("-o f -sw %{http_code} --retry 1 --retry-delay 1 --retry-all-errors {u}/worse",
         b"000", "", 52),
        # what is told on stderr
        ("-v -u a:secret -b s=secret {u}/cookie", b"b", r"(?s)^(?!.*secret)(?!.*YTpzZWNyZXQ)"
         r"(?=.*\n> Authorization: \*\*\*\n)(?=.*\n> Cookie: \*\*\*\n)"
         r"\* [^\n]*127\.0\.0\.1.*\n> GET /cookie HTTP/1\.1\n.*\n> \n.*< HTTP/1\.1 200 OK\n"
         r".*\n< Set-Cookie: \*\*\*\n< \n", 0),
        ("-sv 127.0.0.1:1", b"", r"\(7\) cannot connect.*: [^:]*refused", 7),
        ("-s --waterfall {u}/ {u}/404 127.0.0.1:1", b"hello\ngone\n",
         r"^200 .*\n404 .*\n\(7\) (?s:.*)\n\d+\.\d\d s in all; one after another \d", 7),)
    DIFFERS = re.compile(  # from curl 7.88: newer than it, or on purpose
        r"-y 0\.|\d[km]? -o x|/nothing .*cut|^-f .*cut|-delay 9|ftp:|a\.\.b|-H broken|@none|"
        r"-file none|/badlength|^-[Di] f? ?--retry|/http2|/large|/loop$|^-m 0|-o link|-o dangling|"
        r"/early|^-o f {u}/cut|-null|%output|url\.host|size_delivered|-long|coded-piece|"
        r"^-o /dev/null --r|-early|/dot|-waterf|-save e {|{what}|two URLs|-to ::|/mega|"
        r"-optional|6\.5B|/packed|redirect_url} {u}/to$")

    def test_table(self) -> None:
        """What the command does; and, if it is there for the long tests, what curl does."""
        for row, by_curl in table(self.ROWS, (False, True)):
            line, stdout, told, code, files = (*row, {})[:5]
            if by_curl and (not WITH_CURL or self.DIFFERS.search(line + told)):
                continue
            with self.subTest(line, by_curl=by_curl):
                self.server.plays(self.PAGES)
                self.empty(**self.FILES)
                if by_curl:
                    result = self.curl(self.server.filled(line).split(" "))
                else:  # curl knows whole seconds alone
                    result = self.get(line.replace("-delay 1", "-delay 0.01"), HOME=self.folder)
                self.assertEqual(result.stdout.decode(), self.server.filled(stdout.decode()))
                self.assertEqual(result.returncode, code, result.stderr)
                self.assertEqual({name: self.read(name) for name in files}, files)
                if by_curl:
                    continue
                self.assertRegex(result.stderr.decode(), told or r"\A\Z")
                for name in self.LINKS:  # they are written through
                    self.assertTrue(os.path.islink(self.path(name)))
                if code == 2:  # is told before anything is done
                    self.assertEqual((self.server.requests, self.names()), ([], sorted(self.FILES)))

    def curl(self, words: Iterable[str]) -> subprocess.CompletedProcess[bytes]:
        """Run it in the folder, with what ours does unasked."""
        more = [flag for flag, but in (("-L", "--no-location"), ("-sS", "-s"),
                                       ("--compressed", "--no-compressed")) if but not in words]
        return completed("curl", *words, *more, cwd=self.folder, stdin=subprocess.DEVNULL,
                         env=environment(HOME=self.folder))

    # ---- requests

    REQUESTS = (  # arguments, with | for a blank; lines that are new, lines that are gone
        ("-A me", "User-Agent: me", "User-Agent"), ("--user-agent=", "", "User-Agent"),
        ("-u a:", "Authorization: Basic YTo=", ""), ("-b jar", "Cookie: j=1", ""), ("-G", "", ""),
        ("-u a:b:c", "Authorization: Basic YTpiOmM=", ""), ("-H ", "", ""), ("-b none", "", ""),
        ("-u a:b -H Authorization:|x", "Authorization: x", ""), ("-H X;", "X:", ""),
        ("-e http://r/", "Referer: http://r/", ""), ("-H Cookie:|a=1 -b b=2", "Cookie: a=1", ""),
        ("-H Accept:", "", "Accept"), ("-H X: -H Accept;", "Accept:", "Accept"),
        ("-H user-agent:|own -A flag", "user-agent: own", "User-Agent"), ("-H X;ignored", "", ""),
        ("-H Host:|other.test", "Host: other.test", "Host"), ("-H @-", "B: from file,C:", "Accept"),
        ("-H X:|1 -H X:|2 -H x:|3", "X: 1,X: 2,x: 3", ""), ("-b a=1;|b=2", "Cookie: a=1; b=2", ""),
        ("-H @heads", "B: from file,C:", "Accept"), ("-r 0-1,3-4", "Range: bytes=0-1,3-4", ""),
        ("-H Accept-Encoding:|gzip,|x", "Accept-Encoding: gzip, x", ""),
        ("-r 5", "Range: bytes=5-", ""), ("--oauth2-bearer tok", "Authorization: Bearer tok", ""),
        *((f"-x {{host}} -U {user}",  # which may be any bytes
           f"GET http://H/ HTTP/1.1,Proxy-Authorization: Basic {shown}", "GET") for user, shown in (
               ("a:b@", "YTpiQA=="), ("\udcff:x", "7bO/Ong=" if WINDOWS else "/zp4"))),
        ("--netrc-file net", "Authorization: Basic bWU6cHc=", ""),
        ("-G -d a=1&b -d c=@x", "GET /?a=1&b&c=@x HTTP/1.1", "GET"),
        ("-G --data-raw @d -d e", "GET /?@d&e HTTP/1.1", "GET"),
        ("-G --data @d --data-ascii @d", "GET /?a=b&c&a=b&c HTTP/1.1", "GET"),
        ("-G --data-urlencode n@d --data-urlencode @d --data-urlencode =a=b",
         "GET /?n=a%3Db%0D%0A%26c%0A&a%3Db%0D%0A%26c%0A&a%3Db HTTP/1.1", "GET"),
        ("--url-query a=b|c --url-query +d%20e", "GET /?a=b+c&d%20e HTTP/1.1", "GET"),
        ("-z 06|Nov|1994|08:49:37|GMT", "If-Modified-Since: Sun, 06 Nov 1994 08:49:37 GMT", ""),
        ("-z -heads", "If-Unmodified-Since: Sun, 09 Sep 2001 01:46:40 GMT", ""),
        *((f"-z 1-Jan-2020{time}", f"If-Modified-Since: Wed, 01 Jan 2020 {hour}:00:00 GMT", "")
          for time, hour in (("", "00"), ("|12:00:00", "12"))),
        ("-e ;auto", "", ""), *((f"-z {when}", "", "") for when in (
            "26|Nov|2026|9:30:49|IST", "1|Jan|2026|9:30:49|pm", "32|Jan|2026",
            "Thu,|999999999999-Aug-2007|20:49:07|GMT")),
        ("--etag-compare etag", 'If-None-Match: "v1"', ""),
        ("--etag-compare old", 'If-None-Match: ""', ""), ("-C 3 -o old", "Range: bytes=3-", ""),
        ("-C 3 -o old -H If-Range:1", "Range: bytes=3-,If-Range: 1", ""))

    def test_requests(self) -> None:
        for name, data in {
                "heads": b"\xef\xbb\xbfB: from file\r\n\r\nC;\r\nAccept:", "d": b"a=b\r\n&c\n",
                "old": b"", "etag": b'"v1"\n', "net": b"machine 127.0.0.1 login me password pw\n",
                "jar": b"# Netscape HTTP Cookie File\n127.0.0.1\tFALSE\t/\tFALSE\t0\tj\t1\n"}.items():
            os.utime(self.write(name, data), (10**9, 10**9))
        os.chmod(self.path("net"), 0o600)
        usual = ["GET / HTTP/1.1", "Host: H", "User-Agent: U", "Accept: */*"]
        # than 7.88, or a BOM, or %0a for %0A, or with Proxy-Connection
        newer = re.compile("agent=|url-query|@heads|-C 3|-H @-|n@d|-x")

        for (line, added, gone), by_curl in table(self.REQUESTS, (False, True)):
            if by_curl and (not WITH_CURL or newer.search(line)):
                continue
            self.server.plays({"/": [ok(), LOOP]})
            words = [word.replace("|", " ") for word in self.server.filled(line).split(" ")]
            with self.subTest(line, by_curl=by_curl):
                words += ["--no-compressed", self.server.address]
                result = self.curl(words) if by_curl else self.get(
                    "", *words, stdin=self.read("heads"))
                expected = [text for text in usual if not gone or not text.startswith(gone)]
                expected += filter(None, re.split(",(?=[A-Za-z])", added))
                self.assertTrue(self.server.requests, result.stderr)
                head = self.server.requests[0].decode().replace(self.server.address, "H")
                lines = re.sub(r"(?<=Agent: )(asyncget|curl)/\S+", "U", head).split("\r\n")
                self.assertEqual(sorted(map(str.strip, filter(None, lines))), sorted(expected))
        # Of what has no coding the length is the file's; but some ask whether it can be packed.
        for line, codings in ("-I {u}", []), ("-I --compressed {u}", [asyncget.ACCEPT_ENCODING]):
            self.get(line)
            self.assertEqual(field(self.server.requests[-1], "Accept-Encoding"), codings)
        self.get("{u}", "-H", "X: caf\udce9")
        self.assertIn(b"\r\nX: caf\xe9\r\n", self.server.requests[-1])
        self.assertIn(b"\r\nAccept-Encoding: gzip, deflate", self.server.requests[-1])
        self.assertRegex(self.get("-H", " ", "{u}").stderr, rb"\A.*-H needs a colon\n\Z")
        asked = "Accept-Encoding: " + asyncget.ACCEPT_ENCODING
        for flags, said in (["-of"], asked), (["--compressed", "-of"], "Accept-Encoding: identity"):
            self.get("{u}", "-H", asked, *flags)  # what comes then: test_table
            self.assertIn(f"\r\n{said}\r\n".encode(), self.server.requests[-1])
        # A server that packs all that it is asked to would pack this a second time:
        self.server.plays({"/": ok(b"", "Location: a.tar.gz?x", status="302 X")})
        self.get("{u}")
        self.assertEqual([field(head, "Accept-Encoding") for head in self.server.requests],
                         [[asyncget.ACCEPT_ENCODING], ["identity"]])

    def test_tls_flags(self) -> None:
        ca, here = f"--cacert {pem('ca')}", "https://localhost:{port}"
        name = "https://OTHER.test:{port} --resolve other.TEST:{port}:127.0.0.1"
        os.mkdir(self.path("certs"))
        shutil.copy(pem("ca"), self.path("certs") + HASHED)
        client = f"-E {pem('client')} --key {pem('key')}"
        leaf, asking, named = server_tls(), server_tls(client_ca=True), server_tls("other")
        old = server_tls(newest=TLS_VERSIONS[0])
        told = rb"(?s)\A(\Z|\* Connected .* \([\d.:]+\)\n.* TLSv1.* CN=.* GMT\n)|asyncget: "
        for context, line, codes in table([
                (leaf, f"-v {ca} {here}", (0,)), (leaf, here, (60,)), (named, f"{ca} {name}", (0,)),
                (leaf, f"-k {here}", (0,)), (leaf, f"--capath certs {here}", (0,)),
                (leaf, f"-S {here}", (0,)), (named, f"{ca} {here}", (60,)),
                (server_tls("common_name"), f"-w %{{ssl_verify_result}} {here}", (60,)),
                (asking, f"-v {ca} {here}", (35, 52, 56)), (asking, f"{ca} {client} {here}", (0,)),
                (old, f"--proto =https --tlsv1.2 -sSf {ca} {here}", (0,)),
                *((old, f"{flags} {here}", (code,)) for flags, code in (
                    (f"--tlsv1.3 {ca}", 35), ("--tlsv1.3 -k", 35), ("--tlsv1.2", 60),
                    ("--proto =http -k", 1)))]):
            with self.subTest(line), Scripted({"/": ok()}, tls=context) as server:
                env: Any = {"CURL_CA_BUNDLE": pem("ca")} if "-S" in line else {}
                done = self.get(server.filled(line), **env)
                self.assertIn(done.returncode, codes, done.stderr)
                self.assertRegex(done.stderr, b"--cacert|not valid for" if 60 in codes else told)
                self.assertEqual(done.stdout, b"hello\n" if codes == (0,) else
                                 b"18" if "-w" in line else b"")  # 18 is self-signed

    def test_what_follows_a_redirect(self) -> None:
        """A password, and headers whose names say that they are secret, only where they may."""
        with Scripted({"/": ok()}) as second:
            self.server.plays({"/": redirect(second.url + "/")})
            for flags in "", "--location-trusted ":
                self.get(flags + "-u a:b -H X-Api-Key:k -H X:1 {u}")
        told = [[field(head, name) for name in ("Authorization", "X-Api-Key", "X")]
                for head in (*self.server.requests, *second.requests)]
        whole = [["Basic YTpi"], ["k"], ["1"]]
        self.assertEqual(told, [whole, whole, [[], [], ["1"]], whole])

    def test_rates(self) -> None:
        self.server.plays({"/": ok()})
        for line in "--rate 20/s {u} {u} {u}", "--limit-rate 40 {u}":
            done = self.get(f"-s {'--out-null ' * line.count('{u}')}-w %{{time_total}}\\n {line}")
            self.assertRegex(done.stdout, rb"^(\d\.\d{6}\n)+$")
            self.assertGreater(max(map(float, done.stdout.split())), 0.095)

    def test_cookies_between_runs(self) -> None:
        """Their bytes are no text: they come, are kept and go back as they are."""
        sets = ok(b"", "Set-Cookie: id=7; HttpOnly", "Set-Cookie: x=\x01", "Set-Cookie: l=caf\xe9")
        self.server.plays({"/set": sets, "/": ok()})
        self.get("-c jar {u}/set")
        self.get("-b - -c jar2 {u}/", stdin=self.read("jar"))
        self.get("-b x=1 {u}/set --parallel-max 1 {u}/")
        result = self.get("-b none -c - {u}/set")
        self.get("{u}/", "-b", "l=caf\udce9")
        self.write("none", b"# but this: 127.0.0.1\n127.0.0.1\tFALSE\t/\tFALSE\t4102444800\tx\t\xff\n")
        late = self.get("-b none -c - {u}/")
        self.assertEqual(self.read("jar").split(b"\n")[3:],
                         [b"#HttpOnly_127.0.0.1\tFALSE\t/\tFALSE\t0\tid\t7",
                          b"127.0.0.1\tFALSE\t/\tFALSE\t0\tl\tcaf\xe9", b""])
        self.assertEqual(self.read("jar2"), self.read("jar"))
        sent = [b"".join(re.findall(rb"Cookie: (.*)\r", head)) for head in self.server.requests]
        self.assertEqual(sent, [b"", b"id=7; l=caf\xe9", b"x=1", b"x=1",  # no jar unless asked for
                                b"", b"l=caf\xe9", b"x=\xff"])
        self.assertIn(b"\tid\t7\n", result.stdout)
        self.assertIn(b"4102444800\tx\t\xff\n", late.stdout)
        self.assertEqual((result.stderr, late.stderr), (b"", b""))

    # ---- many

    def test_all_at_once_and_in_order(self) -> None:
        """What waited is not kept."""
        def when_all_ask(_: bytes) -> list[Any]:
            return [] if len(self.server.requests) == 10 else [0.01, when_all_ask]

        def planned(command: Any) -> list[Any]:
            transfers.extend(plan(command))
            return transfers

        plan = asyncget.plan_transfers
        transfers: list[Any] = []
        self.server.plays({f"/{n}": [when_all_ask, 0.01 * (9 - n), ok(b"%d\n" % n)]
                           for n in range(10)})
        with patch("asyncget.plan_transfers", planned):
            done = self.get("-m 9 " + " ".join(f"{{u}}/{n}" for n in range(10)))
        self.assertEqual(done.stdout, b"".join(b"%d\n" % n for n in range(10)))
        self.assertEqual([bytes(transfer.held) for transfer in transfers], [b""] * 10)

    def test_whose_turn_it_is_writes_at_once(self) -> None:
        reading, writing = os.pipe()

        def when_seen(_: bytes) -> list[Any]:  # what was written; the body ends no sooner
            return [] if select.select([reading], [], [], 0)[0] else [0.01, when_seen]

        self.server.plays({"/a": [OK + b"\r\nfirst", when_seen], "/b": ok(b"second")})
        with open(reading, "rb") as pipe:
            with open(writing, "wb") as stdout:
                done = self.get("-m 9 {u}/a {u}/b", stdout=stdout)
            self.assertEqual((done.returncode, pipe.read()), (0, b"firstsecond"))

    @unittest.skipUnless(os.path.exists("/proc/self/status"), "needs /proc")
    @not_pypy
    def test_a_body_that_waits_is_not_held_in_memory(self) -> None:
        """Nor does -m count how long it waits; one that fails costs the others nothing."""
        size, slow = 16 << 20, [[0.7, ok(status="503 No")], [0.7, ok(b"a" * 20)]]
        self.server.plays({"/a": slow, "/c": ok(b"c" * size), "/d": ok(b"d" * size)[:-1],
                           "/e": ok(b"e")})
        code = ("import asyncget, sys; code = asyncget.main(sys.argv[1:]);"
                "sys.stderr.write(open('/proc/self/status').read()); sys.exit(code)")
        line = "-m 1.3 --retry 1 --retry-delay 0.1 {u}/a {u}/c {u}/d {u}/e"
        process = completed(sys.executable, "-c", code, *self.server.filled(line).split())
        self.assertEqual(process.returncode, 18, process.stderr)
        self.assertTrue(process.stdout == b"a" * 20 + b"c" * size + b"d" * (size - 1) + b"e")
        peak, = re.findall(rb"VmHWM:\s+(\d+) kB", process.stderr)
        self.assertLess(int(peak), 50 << 10)

    def test_lists_of_urls(self) -> None:
        """They are saved as by -O."""
        self.server.plays({f"/{name}": ok(name.encode()) for name in "abc"})
        listed = self.server.filled("\ufeff# ours\n\n  {u}/a  \r\n{host}/b\n").encode()
        files = {"a": b"a", "b": b"b"}
        for name in "list", "-":
            done = self.leaves(f"--url @{name} {{u}}/c", {"list": listed}, 0,
                               {**files, "list": listed}, stdin=listed)
            self.assertEqual(done.stdout, b"c")
        empty = {"list": b"# nothing\n\n"}
        self.assertRegex(self.leaves("--url @list", empty, 2, empty).stderr, b"no URL")
        odd = {"list": listed + b"\n\xc2\xa0# c\n #d\nh/.."}  # has no name: it fails alone
        done = self.leaves("--url @list", odd, 23, {**files, **odd})
        self.assertEqual(done.stderr.count(b"\n"), 1, done.stderr)

    # ---- terminals

    def in_terminal(self, line: str, stdout: Any = None, columns: int = 80) -> tuple[str, int]:
        """Run with stderr, and stdout unless given, on a terminal: what it shows, and the code."""
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        with ThreadPoolExecutor(1) as pool:
            reader = pool.submit(lambda: b"".join(self.coming(master)))
            try:
                with as_program(self.folder, slave, stdout.fileno() if stdout else slave, slave):
                    code = asyncget.main(self.server.filled(line).split(" "))
            finally:
                os.close(slave)
            shown = SLOW_STEP.sub(b"", reader.result())
        os.close(master)
        return shown.decode("utf-8", "replace"), code

    @staticmethod
    def coming(master: int) -> Iterator[bytes]:
        """What a terminal shows."""
        with suppress(OSError):  # Linux's word for the end
            while data := os.read(master, 65536):
                yield data

    def test_binary_is_kept_from_a_terminal(self) -> None:
        """Not on Windows: it has no pty."""
        self.server.plays({"/b": ok(b"a\0b"), "/t": ok("hé\n".encode())})
        shown, code = self.in_terminal("{u}/b")
        self.assertRegex(f"{code} {shown}", r"^23 asyncget: \(23\) .*-o -")
        self.assertEqual(self.in_terminal("-o - {u}/b"), ("a\0b", 0))
        self.assertEqual(self.in_terminal("{u}/t"), ("hé\r\n", 0))

    def test_no_control_reaches_a_terminal(self) -> None:
        """Nor a file's name; and in a pipe -v, messages and JSON have none, either.
        Not on Windows: it has no pty.
        """
        named = 'Content-Disposition: attachment; filename="a\x1b]0;b\x07"'
        evil = ok(b"", "X: a\x1b]0;\x07\x9b2J", named, "Set-Cookie: c=\xc2\x9b2J", status="404 \x1b[2J")
        self.server.plays({"/e": evil, "/to": redirect("/e?\x1b[2J")})
        null = open(os.devnull, "wb")
        self.addCleanup(null.close)
        for flags, path in table(("-i", "-v", "-f", "-D -", "-w %header{x}%{json}", "--waterfall",
                                  "-OJ", "-D /dev/stderr", "-io /dev/stderr", "-c -",
                                  "-c /dev/stderr"), ("/e", "/to")):
            shown, _ = self.in_terminal(f"{flags} {{u}}{path}", null if "-io" in flags else None)
            self.assertNotRegex(shown.replace(asyncget.WIPE, ""),
                                "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", (flags, path))
            if flags[:2] not in ("-i", "-D", "-c"):
                done = self.get(f"{flags} {{u}}{path}")
                self.assertNotRegex(done.stdout + done.stderr, b"[\x1b\x07]", (flags, path))
        self.assertEqual(self.names(), [])

    def test_progress(self) -> None:
        """So many times a second at most, on one line, which is wiped, before an error, too.
        Not on Windows: it has no pty.
        """
        page = [ok(b"x" * 6000)[:-6000], 0.05, *([b"x" * 300, 0.006] * 20)]
        self.server.plays({"/f": page, **{f"/{n}": [n * 0.08, ok()] for n in range(4)}})
        with open(self.path("out"), "wb") as out, patch("asyncget.REDRAW_SECONDS", 0.02) as seconds:
            for columns in 80, 20:
                started = time.monotonic()
                shown, code = self.in_terminal("{u}/f", stdout=out, columns=columns)
                self.assertEqual((code, shown[-len(asyncget.WIPE):]), (0, asyncget.WIPE))
                lines = shown.replace("\x1b[K", "").split("\r")
                self.assertTrue(any("kB of 6.0 kB" in line for line in lines), lines)
                self.assertLessEqual(max(map(len, lines)), columns - 1)
                self.assertTrue(4 < len(lines) <= (time.monotonic() - started) / seconds + 4)
            self.assertRegex(self.in_terminal("-o o {u}/f", columns=0)[0], r"[1-8]\d%.*B/s.*left\r")
            for quiet in "-s", "--no-progress-meter":
                self.assertEqual(self.in_terminal(f"{quiet} -o o2 {{u}}/f"), ("", 0))
            self.assertEqual(self.in_terminal("{u}/f"), ("x" * 6000, 0))
            many = "{u}/0 {u}/1 {u}/2 {u}/3"
            self.assertEqual(self.in_terminal(f"127.0.0.1:1 {many}", stdout=out)[1], 7)
            shown, _ = self.in_terminal(f"{many} 127.0.0.1:1", stdout=out)
            self.assertRegex(shown, r"[234]/5 done   ")
            self.assertRegex(shown, r"\r\x1b\[Kasyncget: \(7\)")
            with patch("asyncget.REDRAW_SECONDS", 60):  # no line, none to wipe
                self.assertEqual(self.in_terminal("{u}/f", stdout=out), ("", 0))

    def test_what_is_typed(self) -> None:
        """A password, without its echo; and Ctrl-C, which leaves the terminal as it was, and
        the part of a file.
        Not on Windows: it has no pty.
        """
        control = ("import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
                   "os.execv(sys.argv[1], sys.argv[1:])")
        self.server.plays({"/": ok(), "/f": [ok(b"x" * 90)[:-89], 0.2, b"x", HOLD]})
        for line, awaited, typed, code in (("-u me {u}", b"me: ", b"secret\n", 0),
                ("-u me {u}", b"me: ", b"\x03", -signal.SIGINT),
                ("-O {u}/f", b"B/s", b"\x03", -signal.SIGINT)):
            master, slave = pty.openpty()
            command = [sys.executable, "-S", "-c", control, *COMMAND,
                       *self.server.filled(line).split()]  # in a terminal of its own
            process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave,
                                       cwd=self.folder, env=environment(), start_new_session=True)
            os.close(slave)
            shown, to_type = b"", [typed]
            for data in self.coming(master):
                shown += data
                echo = termios.tcgetattr(master)[3] & termios.ECHO
                if awaited in shown and to_type:
                    os.write(master, to_type.pop())
            os.close(master)
            self.assertEqual((process.wait(PATIENCE), bool(echo)), (code, True), (line, typed))
            self.assertRegex(shown, rb"(?s)^(?!.*Traceback).*\r\x1b\[K$" if code else
                             rb"^Password of me: \r\nhello\r\n$")
        self.assertEqual(field(self.server.requests[0], "Authorization"), ["Basic bWU6c2VjcmV0"])
        self.assertIn(self.read("f.part"), (b"x", b"xx"))
        with patch("getpass.getpass", side_effect=EOFError):  # nobody is there to ask
            self.assertEqual(self.get("-u me {u}").returncode, 2)

    def test_json_report(self) -> None:
        late = [0.1, ok(b"", "Location: /", status="302 Found"), LOOP]
        self.server.plays({"/": ok(b"b", "Content-Type: text/plain"), "/late": late})
        done = self.get("--out-null --out-null --out-null -w %{json}\\n {u} http://u:secret@127.0.0.1:1/ {u}/late")
        first, second, third = map(json.loads, done.stdout.splitlines())
        self.assertEqual(first.keys(), second.keys())
        expected = {"http_code": 200, "content_type": "text/plain", "size_download": 1, "urlnum": 0,
                    "exitcode": 0, "remote_ip": "127.0.0.1", "http_version": "1.1",
                    "num_connects": 1, "errormsg": None}
        self.assertEqual({**first, **expected}, first)
        self.assertEqual((second["exitcode"], second["http_code"], second["urlnum"]), (7, 0, 1))
        self.assertGreater(third["time_redirect"], third["time_connect"])  # of both hops
        self.assertEqual(max(third[name] for name in third if "time_" in name), third["time_total"])

        if not shutil.which("curl"):
            self.skipTest("not installed: curl, to compare with")
        self.server.plays({
            "/": ok(b"b", "Content-Type: text/plain", "X: 1", "x: \"2"), "/cut": ok()[:-1],
            "/empty": ok(b"", status="404 No"), "/to": [redirect("/"), LOOP]})
        later = {  # what only other protocols, client certificates and a later curl than ours have
            "certs", "num_certs", "ftp_entry_path", "http_connect", "proxy_ssl_verify_result"}
        varies = re.compile("time_|speed_|local_port|errormsg|size_request|curl_version|scheme")
        for line in ("{u}/", "{u}/to", "{u}/cut -o f", "{u}/none -e http://r/",
                     "{u}/to --max-redirs 0", "-f {u}/empty", "-w %{header_json} {u}/"):
            line = self.server.filled(f"-L -s -o /dev/null -w %{{json}} {line}")
            ours = json.loads(self.get(line).stdout)
            theirs = json.loads(self.curl(line.split(" ")).stdout)
            self.assertLessEqual(theirs.keys() - ours.keys(), later)
            names = [name for name in theirs if name in ours and not varies.match(name)]
            self.assertEqual({name: ours[name] for name in names},
                             {name: theirs[name] for name in names}, line)

    # ---- processes: pipes, closed streams, signals

    SHELL = {  # what the shell prints in the end, and whether f is then as it was asked for
        # trouble on stderr changes nothing
        "$AG -v -w '%{stderr}x' --waterfall -f {u} {u}/404 2>/dev/full; echo $?": "hello\n22\n",
        "$AG {u} 2>/dev/full >/dev/full; echo $?": "23\n",
        "($AG -v -o f {u} 2>&1; echo $? >&3) | head -1 >/dev/null; cat f": "0\nhello\n",
        # a closed pipe ends quietly
        "($AG {u}/big 2>&3; echo $? >&3) | head -c1 >/dev/null": "23\n",
        "($AG --help 2>&3; echo $? >&3) | :": "23\n",
        # what is opened next must not become stdout
        "$AG -v -o f {u} <&- >&- 2>&-; echo $?; cat f": "0\nhello\n",
        "$AG {u} >&-; echo $?": "23\n",
        # Something that starts with Python has the number of stdout.
        "echo 'log = open(\"log\", \"a\")' > sitecustomize.py; "
        "PYTHONPATH=$PYTHONPATH:. ${AG/ -S/} {u} >&-; echo $?; cat log": "23\n",
        "mkfifo p; head -c 1 p >/dev/null & $AG -s -o p {u}/big -o - {u}; echo $?": "hello\n23\n",
        "$AG --out-null {u} >&-; echo $?": "0\n", "$AG -o /dev/null {u} >&-; echo $?": "0\n",
        "$AG -V >&-; echo $?": "23\n", "$AG -v -f {u}/404 2>&-; echo $?": "22\n",
        "$AG -o f -w %{http_code} {u} >&-; echo $?; cat f": "23\nhello\n",
        # the failure of stdout is that of one URL; nobody waits for what has nowhere to go
        "$AG -w '%{stderr}%{exitcode}.' -c jar -s -f -o - -o - -o f {u}/404 {u} {u}/late 2>&3"
        " >/dev/full; echo $?; cat f jar | wc -l": "22.23.0.22\n5\n",
        "($AG -c jar -o - -o f {u}/big {u}/late {u} 2>&3; echo $? >&3) | :; cat f jar | wc -l":
            "23\n5\n", "(timeout 9 $AG {u}/big {u}/hang 2>&3; echo $? >&3) | :": "23\n",
        "(timeout 9 $AG --retry 9 --retry-all-errors {u} 2>&3; echo $? >&3) | :": "23\n",
        # stdin is left alone
        "echo for somebody else | ($AG -o f {u}; cat - f)": "for somebody else\nhello\n"}

    @needs("bash")
    def test_in_a_shell(self) -> None:
        self.server.plays({"/": ok(), "/404": self.GONE, "/big": OK + b"\r\n" + b"x" * (8 << 20),
                           "/late": [0.3, ok(b"hello\n", "Set-Cookie: a=b")], "/hang": [HOLD]})

        def one(line: str) -> str:
            line = f"exec 3>&1; cd `mktemp -d -p .`; {self.server.filled(line)}"
            return completed("bash", "-c", line, stdin=subprocess.DEVNULL, cwd=self.folder,
                             env=environment(AG=shlex.join(COMMAND))).stdout.decode()

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for line, said in zip(self.SHELL, pool.map(one, self.SHELL)):
                self.assertEqual(said, self.SHELL[line], line)

    def test_ctrl_c(self) -> None:
        """It ends the look-up of a name, as -m does; a shell's loop; and process 1.
        Not on Windows: it has no groups of processes.
        """
        code = ("import os, socket, sys, time\n"
                "def slow(*_, **__): os.write(1, b'asked '); time.sleep(99)\n"
                "socket.getaddrinfo = slow\n"
                "import asyncget; sys.exit(asyncget.main(sys.argv[1:]))")
        look_up = [*PYTHON, "-c", code, "name.test"]
        loop = f"for n in 1 2 3; do {shlex.join(COMMAND)} $URL; done; echo survived"
        unshare = ["unshare", "--pid", "--fork", "--kill-child"]
        self.server.plays({"/": [OK + b"\r\nx", HOLD]})
        url = self.server.url
        rows = [(look_up, b"asked ", -signal.SIGINT), (["bash", "-c", loop], b"x", -signal.SIGINT)]
        if shutil.which("unshare") and not completed(*unshare, "true").returncode:
            rows.append(([*unshare, *COMMAND, url], b"x", 130))
        for command, said, end in rows:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                       cwd=self.folder, env=environment(URL=url),
                                       start_new_session=True)
            assert process.stdout
            self.assertEqual(os.read(process.stdout.fileno(), 9), said)
            if end == 130:
                children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
                os.kill(int(children.read_text()), signal.SIGINT)
            else:
                os.killpg(process.pid, signal.SIGINT)
            self.assertEqual((*process.communicate(timeout=PATIENCE), process.returncode),
                             (b"", b"", end), command)
        done = completed(*look_up, "-m", "0.2", "-w", "end")
        self.assertEqual((done.returncode, done.stdout), (28, b"asked end"))
        self.assertRegex(done.stderr, rb"^asyncget: \(28\) .*\n$")

    # ---- ways to start it

    def test_nothing_is_imported_from_the_folder(self) -> None:
        """A server's file was executed: saved as json.py, and then imported."""
        source = Path(PROGRAM).read_bytes()
        self.write("empty.py", b"import sys; print(*sys.modules)")
        loaded = completed(sys.executable, "-m", "empty", cwd=self.folder, check=True,
                           text=True).stdout.split()  # -m takes these
        program = self.write("asyncget.py", source)
        names = {module.name for module in pkgutil.iter_modules([os.path.dirname(os.__file__)])}
        self.assertLess({"json", "hashlib", "random", "email", "urllib", "ssl"}, names)
        for name in names.difference(loaded, ["__future__"]):
            self.write(f"{name}.py", b"import os; os.write(2, b'EXECUTED %s')\n" % name.encode())
        named = 'Content-Disposition: attachment; filename="new.txt"'
        self.server.plays({"/": ok(b"x", 'ETag: "v"', named)})
        here = os.path.dirname(PROGRAM)
        os.mkdir(self.path("elsewhere"))  # there the folder of the program is not the current one
        with contextlib.suppress(OSError):  # on Windows
            os.symlink(self.folder, self.path("link"))
        most = "-w %{json}%{header_json} -n -u a:b -z asyncget.py -c jar -G --data-urlencode x -OJ"
        ways = [([*start, *most.split(), self.server.url], stdin, path) for start, stdin, path in (
            (["-m", "asyncget"], b"", here), (["asyncget.py"], b"", "."), ([program], b"", ""),
            (["-"], source, ""), (["-"], source, "link"), (["-"], source, f":{here}:"))]
        for command, result in (
                *self.started(ways), *self.started(ways[-1:], PYTHONSAFEPATH="1")):
            self.assertNotIn(b"EXECUTED", result.stderr)
            self.assertIn(result.returncode, (0, 23), (command, result.stderr))
        own = os.path.dirname(os.__file__)  # current, as with a Python unpacked from Windows' zip
        completed(sys.executable, "-I", PROGRAM, "-V", cwd=own, check=True)

    def started(self, ways: list[tuple[list[str], bytes, str]], **variables: str
                ) -> Iterator[tuple[list[str], Any]]:
        """Run Python with arguments, a stdin and a path, some at once."""
        def one(way: tuple[list[str], bytes, str]) -> subprocess.CompletedProcess[bytes]:
            folder = "elsewhere" if os.path.dirname(way[0][0]) == self.folder else ""
            return completed(sys.executable, *way[0], input=way[1], cwd=self.path(folder),
                             env=environment(HOME=self.folder, PYTHONPATH=way[2], **variables))

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            yield from zip((way[0] for way in ways), pool.map(one, ways))

    def test_ways_to_start(self) -> None:
        source = Path(PROGRAM).read_bytes()
        for name, file, main in (("app", "__main__.py", None),
                                 ("named", "asyncget.py", "asyncget:main")):
            os.mkdir(self.path(name))
            self.write(f"{name}/{file}", source)
            zipapp.create_archive(self.path(name), self.path(name + ".pyz"), main=main)
        self.server.plays({"/": ok()})
        bare, urls = ["-I", "-S", "-OO"], [self.server.url, "127.0.0.1:1"]
        ways = [([*way, *urls], b"", compiled()) for way in (
            [*bare, PROGRAM], ["app.pyz"], ["named.pyz"],
            ["-c", "from asyncget import main; main()"])]
        for command, result in self.started(ways):
            self.assertEqual((result.returncode, result.stdout), (7, b"hello\n"),
                             (command, result.stderr))

    def test_help_and_version(self) -> None:
        result = completed(sys.executable, "-OO", PROGRAM, "-h")
        self.assertIn(b"--max-time SECONDS", result.stdout)
        self.assertEqual((result.returncode, result.stderr), (0, b""))
        rows = [line[at:at + 80] for line in result.stdout.splitlines()
                for at in range(0, len(line) or 1, 80)]
        self.assertLessEqual(len(rows), 2 * 23)  # two screens, with a line for the pager
        everything = self.get("--help all").stdout.decode()
        self.assertTrue(everything.startswith(result.stdout.decode().rstrip()))
        for name in (name for name, flag in asyncget.known_flags().items() if flag.on):
            self.assertRegex(everything, rf"(?m)^  (-\S )?(--\S+)?.*{re.escape(name)}\b|{name} ")
        self.assertRegex(self.get("-V").stdout, rb"^asyncget \d")

    def test_an_import_costs_little(self) -> None:
        """It leaves the path alone, and takes nothing for the command's sake."""
        code = ("import asyncio, ssl, sys; path, before = list(sys.path), set(sys.modules);"
                "import asyncget; assert path == sys.path; print(set(sys.modules) - before)")
        result = completed(sys.executable, "-c", code, check=True)
        self.assertNotRegex(result.stdout, b"'(argparse|difflib|json|tempfile|urllib|cookiejar)")


# ==== The parts ===============================================================
# The file is cut behind a part, and what is left is run: so each part is whole without the next.


@functools.cache
def up_to(part: str) -> Any:
    """A module of all that stands before a part, "II" or "III"."""
    text = TheText.source.partition(f"\n# #### Part {part}. ")[0]
    module = types.ModuleType(f"asyncget_before_{part}")
    exec(compile(text, module.__name__ + ".py", "exec"), module.__dict__)
    return module


class TheParts(AsyncCase):
    """Who stops behind a part has a whole client in hand."""

    async def test_part_one_is_a_client(self) -> None:
        one: Any = up_to("II")
        trusting = ssl.create_default_context(cafile=pem("ca"))
        for (wire, outcome), tls in table([
                (answer(b"hello"), b"hello"), (answer(b"x")[:-1], one.IncompleteBody),
                (b"HTP/1.1 200 OK\r\n\r\n", one.ProtocolError)], (None, server_tls())):
            async with scripted([READ, wire, CLOSE], tls=tls) as server:
                with patch.object(ssl, "create_default_context", return_value=trusting):
                    got: Any = (await gather(one.fetch(server.url + "/x"),
                                             return_exceptions=True))[0]
            self.assertEqual(getattr(got, "content", type(got)), outcome, wire)
            self.assertEqual(server.targets(), ["/x"])
        async with scripted([READ, HOLD]) as server:
            await self.raised(one.TimedOut, one.fetch(server.url, timeout=0.05),
                              "no response head within 0.05 s")

    async def test_part_two_is_a_client_for_many(self) -> None:
        two: Any = up_to("III")
        trusting = ssl.create_default_context(cafile=pem("ca"))
        plain = {"cookies": False, "trust_env": False, "verify": trusting}
        pages = [redirect("/there"), answer(gzip.compress(b"hello"), "Content-Encoding: gzip"),
                 answer(b"", status="503 x"), answer(b"again"), answer(b"1"), answer(b"2")]
        for tls in (None, server_tls()):
            script = [step for page in pages for step in (READ, page)]
            async with scripted(script, tls=tls) as server, two.Session(
                    base_url=server.url, retries=lambda *_: 0.0, **plain) as session:
                got = await session.get("here", params={"q": 1})
                self.assertEqual((got.text, [hop.status for hop in got.history]), ("hello", [302]))
                async with session.stream("again") as streamed:
                    self.assertEqual([line async for line in streamed.iter_lines()], ["again"])
                many = await session.get_all(["a", "b"], limit=1)
                self.assertEqual([one.content for one in many], [b"1", b"2"])
            self.assertEqual((server.connections, server.targets()),
                             (1, ["/here?q=1", "/there", "/again", "/again", "/a", "/b"]))

    async def test_what_a_get_costs(self) -> None:
        """On a warm pool: our functions called, our coroutines deep, and nothing else begun."""
        async with scripted([READ, answer(b"hello"), LOOP]) as server, Session() as session:
            await session.get(server.url)
            calls: set[str] = set()
            deep = deepest = 0
            loop = get_running_loop()

            def profile(frame: types.FrameType, event: str, _: object) -> None:
                nonlocal deep, deepest
                if frame.f_code.co_filename != asyncget.__file__:
                    return
                coroutine = bool(frame.f_code.co_flags & inspect.CO_COROUTINE)
                deep += coroutine * ((event == "call") - (event == "return"))
                deepest = max(deepest, deep)
                if event == "call" and not frame.f_code.co_name.startswith("<"):
                    calls.add(f"{frame.f_code.co_name}, line {frame.f_code.co_firstlineno}")

            no = mock.Mock(side_effect=AssertionError)
            with patch("asyncget.IDLE_MOMENT_SECONDS", 9.0), \
                    patch.multiple(loop, create_task=no, call_at=no):
                sys.setprofile(profile)
                try:
                    await session.get(server.url)
                finally:
                    sys.setprofile(None)
            self.assertLessEqual(len(calls), MOST_CALLS, calls)
            self.assertLessEqual(deepest, MOST_COROUTINES)


MOST_CALLS, MOST_COROUTINES = 33, 6  # four of them, and one, in the place of asyncio's StreamReader
# Lines of code and tokens of all up to the end of a part: what it may have at most. A feature that
# does not fit is a reason to find the simpler idea, and what became shorter stays so.
SIZES = {"I": (868, 6710), "II": (1875, 16_010), "III": (2498, 22_080), "IV": (3862, 33_880)}


# ==== The text itself =========================================================
# The text itself: its map, its layers, its examples.


@functools.cache
def tokens_of(source: str) -> list[tokenize.TokenInfo]:
    """The tokens of code: no comments, docstrings or blank lines."""
    layout = (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
              tokenize.ENDMARKER, tokenize.COMMENT)
    documented = ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef
    told: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, documented) and ast.get_docstring(node):
            told.update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return [token for token in tokenize.generate_tokens(io.StringIO(source).readline)
            if token.type not in layout and token.start[0] not in told]


def lines_of(tokens: Iterable[tokenize.TokenInfo]) -> set[int]:
    """The lines on which these tokens are."""
    return {line for token in tokens for line in range(token.start[0], token.end[0] + 1)}


def depth(node: ast.AST) -> int:
    """How deep statements are nested in a function; elif is no step, a function has its own."""
    steps = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try)
    deepest = 0
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
            elif_ = (isinstance(node, ast.If) and node.orelse == [child]
                     and isinstance(child, ast.If))
            deepest = max(deepest, depth(child) + (isinstance(child, steps) and not elif_))
    return deepest


class TheText(unittest.TestCase):
    """The file is one text: its map is true, and its layers hold."""

    source = Path(asyncget.__file__).read_text(encoding="utf-8")

    def test_shapes(self) -> None:
        """Functions of at most 45 lines, classes of 200; three levels deep, a parser four."""
        lines = lines_of(tokens_of(self.source))
        for node in ast.walk(ast.parse(self.source)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                size = len(lines.intersection(range(node.lineno, (node.end_lineno or 0) + 1)))
                whole = isinstance(node, ast.ClassDef)
                self.assertLessEqual(size, 200 if whole else 45, node.name)
                if not whole:
                    most = 4 if node.name == "read_chunked" else 3
                    self.assertLessEqual(depth(node), most, node.name)

    def parts(self) -> list[str]:
        """What stands before the first part, and each of them."""
        return re.split(r"(?m)^(?=# #### Part [IV]+\. )", self.source)

    @not_pypy  # which has no symtable
    def test_the_places_that_lead_on(self) -> None:
        """What a part uses of the later ones is told at its end, all of it and nothing else."""
        import symtable
        parts = self.parts()[1:]
        defined = [{name.get_name() for name in symtable.symtable(part, "", "exec").get_symbols()
                    if name.is_assigned() and not name.is_imported()} for part in parts]
        for number, part in enumerate(parts[:2]):
            tree = ast.parse(part)
            kinds: list[ast.AST] = [kind for node in ast.walk(tree) for kind in (
                getattr(node, "annotation", None), getattr(node, "returns", None)) if kind]
            told_only = {name for kind in kinds for name in ast.walk(kind)}  # never evaluated
            names = [node for node in ast.walk(tree)
                     if isinstance(node, ast.Name) and node not in told_only]
            own = {node.id for node in names if not isinstance(node.ctx, ast.Load)}
            own |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
            used = {node.id for node in names} & set().union(*defined[number + 1:]) - own
            end = part[part.rindex("# You may stop here"):].replace("\n# ", " ")
            told = end.partition("reached from this one")[2]
            self.assertEqual(set(re.findall(r"`(\w+)`", told)), used)

    def test_sizes(self) -> None:
        opening, *parts = self.parts()
        parts[0] = opening + parts[0]
        end = 0
        for text, (part, most) in zip(parts, SIZES.items()):
            end += text.count("\n")
            code = [token for token in tokens_of(self.source) if token.start[0] <= end]
            self.assertLessEqual(len(lines_of(code)), most[0], part)
            if sys.version_info < (3, 12):  # later an f-string is several tokens
                self.assertLessEqual(len(code), most[1], part)
        self.assertEqual(len(parts), len(SIZES))

    def test_layers(self) -> None:
        """What only decides knows no network, and the command line alone the terminal."""
        titles = re.split(r"^# ==== (\d+\. .+?) =+$", self.source, flags=re.M)
        for title, text in zip(titles[1::2], titles[2::2]):
            number = int(title.split(".")[0])
            text = text.partition("\nasync def fetch")[0]  # which puts all of them together
            names = {node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}
            if number < 9 and number != 6:
                self.assertFalse(names & {"asyncio", "socket", "ssl", "time", "open"}, title)
            if number < 19:
                self.assertFalse(names & {"print", "input"}, title)

    @with_readme
    def test_the_readme_tells_all(self) -> None:
        """The map, as it is everywhere; and every public name and setting."""
        text = README.read_text(encoding="utf-8")
        titles = re.findall(r"^# ==== (\d+\. .+?) =+$", self.source, re.M)
        numbers = [int(title.split(".")[0]) for title in titles]
        self.assertEqual(numbers, list(range(1, len(titles) + 1)))
        told = re.findall(r"^    (\d+\. \S+(?: \S+)*)  ", asyncget.__doc__ or "", re.M)
        self.assertEqual((told, re.findall(r"^\| (\d+\. [^|]+?) \|", text, re.M)), (titles, titles))
        for name in asyncget.__all__:
            self.assertTrue(hasattr(asyncget, name), name)
            self.assertIn(name, text)
        for name in asyncget.SessionSettings.__annotations__:
            self.assertIn(f"`{name}`", text)


# ==== The recipes =============================================================
# The README's recipes, as they stand there but for their hosts, which are on this machine. What
# a recipe needs and is not installed, its test names where it skips.


@with_readme
class Recipes(OnDisk):
    """Each block of the README's recipes does what is said of it."""

    seconds = 240.0  # for programs that start others

    def setUp(self) -> None:
        super().setUp()
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(self.folder)

    def block(self, heading: str, start: str, url: str = "", *places: tuple[str, str]) -> str:
        """The block that begins so below a heading, with one text in another's place."""
        text = README.read_text(encoding="utf-8").partition("\n## Recipes\n")[2]
        below = text.partition(f"\n### {heading}")[2].partition("\n##")[0]
        block, = re.findall(rf"(?s)```\w+\n({re.escape(start)}.*?)```", below)
        if url:
            block = re.sub(r"https://(api\.)?example\.com", url, block)
        for there, here in places:
            self.assertIn(there, block)
            block = block.replace(there, here)
        return str(block)

    async def play(self, block: str, **names: Any) -> dict[str, Any]:
        """Run a block as a notebook would; give what it has defined, and printed."""
        names.update(__name__="readme", asyncio=asyncio, asyncget=asyncget)
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        code = compile(block, "README.md", "exec", flags, dont_inherit=True)
        with contextlib.redirect_stdout(io.StringIO()) as printed, \
                contextlib.redirect_stderr(io.StringIO()):
            outcome = eval(code, names)
            if outcome is not None:
                await outcome
        return {**names, "printed": printed.getvalue()}

    async def program(self, *command: str, stdin: bytes = b"", **env: str) -> tuple[int, bytes]:
        """Run a program in the folder; give its exit code, and stdout."""
        done = await asyncio.to_thread(completed, sys.executable, *command, input=stdin,
                                       timeout=200, cwd=self.folder, env=environment(**env))
        self.said = done.stderr.decode()
        return done.returncode, done.stdout

    async def test_health_check(self) -> None:
        """Both ways end with curl's codes, and one takes no proxy of the environment's."""
        docker = self.block("A health check", "COPY", "", ("\\\n", ""),
                            ("/asyncget.py", Path(PROGRAM).as_posix()))
        image = json.loads(docker.partition("CMD ")[2])[1:]
        pod = self.block("A health check", "kubectl").split()[6:-2]

        async def check(way: list[str], script: list[Any], end: tuple[int, bytes]) -> None:
            async with scripted(script) as server:
                url = server.url if script else f"http://127.0.0.1:{free_port()}"
                words = [word.replace("http://127.0.0.1:8000", url) for word in way]
                if script == [READ]:
                    words = [word.replace("Sm3", "Sm.5") for word in words]
                self.assertEqual(await self.program(
                    *words, stdin=Path(PROGRAM).read_bytes() if way is pod else b"",
                    http_proxy="x:1" if way is image else ""), end, words)

        await gather(*(check(*row) for row in table([
            (image, [READ, answer(b"well")], (0, b"")), (image, [READ], (28, b"")),
            (image, [READ, answer(status="503 X")], (22, b"")),
            (pod, [READ, answer(b"well")], (0, b"well")), (pod, [], (7, b""))])))

    @needs("sh")
    async def test_corporate_network(self) -> None:
        """What a proxy is told, and whose certificate is believed, by environment and keywords."""
        heading, daemon = "A corporate proxy", Server(([READ, answer(b"[1]")],), True)
        async with origin("other") as server, proxy() as via, serving(daemon, path=self.path):
            url = f"https://other.test:{server.port}"
            places = ("proxy.corp:3128", via.url), ("/etc/ssl/corp-ca.pem", pem("ca"))
            program = shlex.join([sys.executable, PROGRAM])
            script = self.block(heading, "python3", url, ("/var/run/docker.sock", self.path),
                                ("python3 asyncget.py", program), *places)
            done = await asyncio.to_thread(completed, "sh", "-ec", script, env=os.environ)
            self.assertEqual((done.returncode, done.stdout), (0, b"[1]ok"), done.stderr)
            names = await self.play(self.block(heading, "import ssl", url, *places))
        self.assertEqual((names["page"].text, len(names["both"].get_ca_certs())),
                         ("ok", len(ssl.create_default_context().get_ca_certs()) + 1))
        self.assertEqual([field(head, "Proxy-Authorization") for head in via.requests
                          if head.startswith(b"CONNECT")], [[basic("me", "pass@word")]] * 2)
        self.assertEqual(daemon.targets(), ["/containers/json"])

    async def test_pages_by_link(self) -> None:
        """A link that is relative, a retry, and another origin, which is not told the token."""
        async with scripted([READ, answer(b"[3]")]) as other, scripted(
                [READ, answer(b"[1]", 'Link: <?page=2>; rel="next"'),
                 READ, answer(b"", "Retry-After: 0", status="503 X"),
                 READ, answer(b"[2]", f'Link: <{other.url}/x>; rel="next"')]) as server:
            names = await self.play(self.block("Page after page", "from", server.url))
        self.assertEqual(names["items"], [1, 2, 3])
        self.assertEqual(server.targets(), ["/v1/items", "/v1/items?page=2", "/v1/items?page=2"])
        heads = server.requests + other.requests
        self.assertEqual([field(head, "Authorization") for head in heads],
                         [["Bearer token"]] * 3 + [[]])

    async def test_lines_and_events(self) -> None:
        rows, live = b'{"a": 1}\n{"a"', b': [2]}\n'
        stream = ": hello\n\nid: 1\nevent: x\ndata: one\ndata:  two\r\n\r\nretry: 9\n\ndata:é\n\n"
        pages = {b"/rows.ndjson": [unsized(rows), 0.01, live, CLOSE],
                 b"/live": [unsized(b""), *bytewise(stream.encode()), CLOSE]}
        async with scripted([READ, lambda head: pages[head.split(b" ")[1]]], again=True) as server:
            names = await self.play(self.block("Lines of JSON", "import json", server.url))
        self.assertEqual(names["printed"], "{'a': 1}\n{'a': [2]}\n{'id': '1', 'event': 'x', "
                         "'data': 'one\\n two'}\n{'retry': '9'}\n{'data': 'é'}\n")

    async def test_many_into_a_file(self) -> None:
        def play(head: bytes) -> Any:
            number = int(head.split(b" ")[1].rpartition(b"/")[2])
            return {7: [b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", CLOSE],
                    9: answer(status="404 X")}.get(number, answer())

        async with always(play) as server:
            await self.play(self.block("100,000", "import csv", server.url, ("100_000", "300")))
        rows = sorted(Path("items.csv").read_text(encoding="utf-8").splitlines())
        self.assertEqual((len(rows), rows[0]), (300, f"{server.url}/items/0,200"))
        self.assertRegex("\n".join(rows), r"(?s)/items/7,[^\n]*Content-Length.*/items/9,404\n")
        self.assertIn(server.most, (50, 50 - WINDOWS))  # one may go before the last is accepted

    @needs(modules=["tqdm", "rich"])
    async def test_bars(self) -> None:
        """A program that broke off half way; the same block goes on, and the bar ends full."""
        body, half = random.Random(5).randbytes(300_000), 200_000
        for start, state in (("from tqdm", "bar.n, bar.total"),
                             ("from rich", "bars.tasks[0].completed, bars.tasks[0].total")):
            async with scripted([READ, answer(body, V1)[:half - len(body)], CLOSE],
                                [READ, good_at_ranges(body)]) as server:
                block = self.block("A download with a bar", start, server.url)
                await self.raised(IncompleteBody, self.play(block))
                names = await self.play(block)
            self.assertEqual(asked_for(server), ["", f"{half}-"], start)
            self.assertEqual((self.read("a.iso"), self.names()), (body, ["a.iso"]))
            self.assertEqual(eval(state, names), (len(body), len(body)))
            os.unlink("a.iso")

    @needs(modules=["fastapi", "uvicorn"])
    async def test_web_application(self) -> None:
        """Two requests on one kept connection, which is closed where the application ends."""
        uvicorn = importlib.import_module("uvicorn")
        async with origin(body=b'{"name": "Ann"}') as server:
            names = await self.play(self.block("One session", "import contextlib", server.url))
            web = uvicorn.Server(uvicorn.Config(names["app"], port=0, log_level="warning"))
            serving = ensure_future(web.serve())
            await until(lambda: web.started)
            url = "http://{}:{}/users/".format(*web.servers[0].sockets[0].getsockname())
            pages = [await asyncget.get(url + number) for number in "78"]
            web.should_exit = True
            await serving
            await until(lambda: not server.open)
        self.assertEqual([page.json() for page in pages], [{"name": "Ann"}] * 2)
        self.assertEqual((server.targets(), server.connections), (["/users/7", "/users/8"], 1))

    @needs(modules=["pytest"])
    async def test_pytest_fixture(self) -> None:
        block = self.block("A pytest fixture", "import pytest")
        self.write("test_it.py", f"import asyncio, asyncget\n{block}".encode())
        end, said = await self.program(*PYTHON[1:], "-X", "dev", "-m", "pytest", "-q", "-p",
                                       "no:cacheprovider", PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
        self.assertEqual((end, said.splitlines()[-1][:8]), (0, b"1 passed"), said)

    @needs(modules=["distributed"])
    async def test_dask(self) -> None:
        """A cluster on this machine fetches 40 pages, and one whose server has gone."""
        heading, place = "Beyond one machine", ('"scheduler:8786"', (
            "n_workers=2, threads_per_worker=1, dashboard_address=None, local_directory='dask'"))
        async with origin() as server:
            gone = f"http://127.0.0.1:{free_port()}/"
            self.write("it.py", f"""
urls = [f"{server.url}/{{number}}" for number in range(40)] + [{gone!r}]
{self.block(heading, "def fetch", "", ("rate=2", "rate=100"))}
if __name__ == "__main__":
{textwrap.indent(self.block(heading, "from dask", "", place), "    ")}
    pairs = sum(parts, [])
    print(sorted(type(outcome).__name__ for _, outcome in pairs))
    assert {{url for url, _ in pairs}} == set(urls)
""".encode())
            shutil.copy(PROGRAM, "asyncget.py")
            end, said = await self.program("it.py", PYTHONPATH="")
        self.assertEqual(end, 0, self.said)
        self.assertIn(str(["ConnectError"] + ["Response"] * 40), said.decode())
        self.assertEqual(sorted(server.targets()), sorted(f"/{number}" for number in range(40)))

    async def test_vendored(self) -> None:
        """The copy passes its doctests, and mypy reads its types as those of a module of ours."""
        cp, doctests, mypy, _ = self.block("The file in your own tree", "cp", "", (
            "../asyncget/asyncget.py", shlex.quote(PROGRAM))).splitlines()
        os.makedirs("yours/_vendor")
        self.write("yours/__init__.py", b"")
        self.write("yours/_vendor/__init__.py", b"")
        self.write("yours/program.py", b"from yours._vendor.asyncget import get\n"
                   b"async def f() -> str:\n  return (await get('http://h/', timeouts=5)).text\n")
        shutil.copy(*shlex.split(cp)[1:])
        self.assertEqual(await self.program(*doctests.split()[1:]), (0, b""), self.said)
        if importlib.util.find_spec("mypy") is None:
            self.skipTest("not installed: mypy")
        end, said = await self.program("-m", *mypy.split())
        self.assertEqual(re.findall(rb"\S+: error: .*\[", said), [
            b'yours/program.py:3: error: Unexpected keyword argument "timeouts" for "get"; '
            b'did you mean "timeout"?  ['])


@with_readme
class TheReadme(Folder):
    """What stands above its reference runs as it is pasted, beside the server of `--demo 8080`."""

    @needs("bash")
    def test_every_block(self) -> None:
        top = README.read_text(encoding="utf-8").partition("\n## The library\n")[0]
        self.assertLess(top.count("\n"), 4 * 35)  # four screens
        shutil.copytree(compiled(), self.folder, dirs_exist_ok=True)
        for name in "python", "python3":
            os.chmod(self.write(name, f'#!/bin/sh\nexec {sys.executable} "$@"\n'.encode()), 0o755)
        port = free_port()
        commands: list[list[str]] = []
        env = environment(PATH=self.folder + os.pathsep + os.environ["PATH"])
        server = subprocess.Popen(["./python", "asyncget.py", "--demo", str(port)], cwd=self.folder,
                                  env=env, stdout=subprocess.PIPE)
        self.addCleanup(server.wait)
        self.addCleanup(server.kill)
        for kind, block in re.findall(r"(?s)```(python|console)\n(.*?)```", top):
            for slow, quick in (("localhost:8080", f"127.0.0.1:{port}"), ("sleep(1)", "sleep(.08)"),
                                ("delay/0.", "delay/0.0"), ("delay/5", "delay/0.5"),
                                ("delay/1", "delay/0.1")):
                block = block.replace(slow, quick)
            commands += [["./python", "-Xdev", "-Werror", "-c", block]] if kind == "python" else [
                ["bash", "-c", line] for line in block.splitlines()
                if not re.search("--demo|-m unittest", line)]  # they have tests of their own
        with server.stdout or open(os.devnull, "rb") as said, ThreadPoolExecutor(3) as pool:
            said.readline()
            ended = [*pool.map(lambda words: completed(
                *words, cwd=self.folder, env=env, text=True, check=True), commands)]
        ran: list[Any] = [done.stdout + done.stderr for done in ended]
        for part in ("200 Ada\n", "1\n2\n3\n4\n5\n200 I thought about it.\n\n",
                     "{'id': 7, 'name': 'Ada'}\n",
                     "delay/0.09 <Response 200 http", "\n0 22\n22 22\n", "healthy\n", "200 0."):
            self.assertTrue(any(part in text for text in ran), (part, ran))
        self.assertIn(". wait   # receive", ran[-1])
        for name in "length", "length.txt":
            self.assertEqual(self.read(name), b"I end after 22 bytes.\n")


def load_tests(_: Any, tests: unittest.TestSuite, __: Any) -> unittest.TestSuite:
    """The examples in the docstrings are tests, too."""
    tests.addTests(doctest.DocTestSuite(asyncget))
    if hasattr(gc, "freeze"):  # what is there is no leak, and each test would look at it twice
        gc.freeze()
    return tests
