# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Run a command in an instance, through kerf's agent in it: what the connection plugin kerf has hosts run.

It comes to a host as text on standard input, in every call, and so imports nothing but Python's own modules,
and of those few: a host compiles it each time. What kerf exec cannot do and this can: tell an exit code of
the command from a failure of its own, notice that the kernel has died, and take a command of any bytes.

Standard input, output and error are the command's. When it is over, one more line on standard error says how
it ended: a word that only the caller knows, the end (one of the words below), a number and a text. The
instance is not trusted: the sizes of what is read from it are bounded.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import time

# How it ended
EXITED = "exited"  # number: the exit code, or 128 and a signal's number
UNSTARTABLE = "unstartable"  # number: errno, and text: why the agent could not start the command
ROOTLESS = "rootless"
UNMOUNTED = "unmounted"
ABSENT = "absent"
STOPPED = "stopped"  # text: its state, and how it ended last
TRANSPORTLESS = "transportless"  # text: why
AGENTLESS = "agentless"
SILENT = "silent"  # number: seconds
DIED = "died"  # text: its state, and how it ended
LOST = "lost"  # text: how the connection has ended; the kernel goes on
CONFUSED = "confused"  # text: what it said that is not the agent's language
FLOODED = "flooded"  # number: the bytes that were too many
TIRED = "tired"  # number: the seconds that the command was given

INSTANCES = "/sys/fs/multikernel/instances"
ACTIVE = "active"
# The shell finds what kerf exec lets it find.
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# Of kerf's agent and of the kernel's vsock transport for spawned kernels, as divide/ready.py has them
_AGENT_PORT = 1023
_RESERVED_PORTS = range(1023, 511, -1)
_PORTS_A_SECOND = 40  # a port comes again after more than the 8 s that a kernel takes to forget a connection
_SET_TRANSPORT, _MULTIKERNEL = 9, 1
_OPEN, _STDIN, _STDIN_EOF, _SIGNAL = 1, 2, 3, 5
_STARTED, _ERROR, _STDOUT, _STDERR, _EXIT, _STDIN_ACK = range(16, 22)
_VERSION, _WITH_STDIN = 1, 2
_WINDOW = 65536  # bytes of standard input that may be on their way
_LONGEST = 65536  # of a frame's content
_HEAD = struct.Struct("<IHH")
_ACCEPTING = 2.0  # seconds for which an agent may refuse: many connections at once fill its queue
_LOOK = 1.0  # seconds between two looks at the instance
_HUNG = 10000  # milliseconds without a sign of life, as the kernel counts a spawn as lost
_LAG = 2.0  # seconds that the kernel may take to say why a connection has ended
_BACKLOG = 1 << 20  # bytes that the caller has not taken yet
_CHUNK = 65536
_TURNS = 16
_TEXT = 300  # characters of what the instance says in an error


class Ended(Exception):
    """The end, a number and a text."""

    def __init__(self, end: str, number: int = 0, text: str = "") -> None:
        super().__init__(end, number, text)
        self.end, self.number, self.text = end, number, text


# --- what the kernel tells of the instance ----------------------------------------------------------


def read(name: str, what: str) -> str | None:
    """A file of the instance; None where there is none."""
    try:
        with open(f"{INSTANCES}/{name}/{what}", encoding="utf-8", errors="replace") as file:
            return file.read(4096).strip()
    except OSError:
        return None


def condition(name: str) -> tuple[str, str]:
    """What would be another run of the kernel, and its state in words."""
    status = (read(name, "status") or "").lower()
    if not status:
        return "", "it has been deleted"
    reason = read(name, "exit_reason")
    words = f"its state is '{status}'"
    if reason not in (None, "none"):
        words += f", and it ended last with '{reason}'"
    return (read(name, "epoch") or "") if status == ACTIVE else "", words


def hung(name: str) -> int:
    """Seconds without a sign of life, where that is too long; else 0."""
    for line in (read(name, "stats") or "").splitlines():
        key, _space, value = line.partition(" ")
        if key == "heartbeat_age_ms" and value.isdecimal() and int(value) > _HUNG:
            return int(value) // 1000
    return 0


def check(name: str, epoch: str | None) -> str:
    """That the instance runs, and that it is the run it was (None: any); which run it is."""
    if not os.path.isdir(INSTANCES):
        raise Ended(UNMOUNTED)
    now, words = condition(name)
    if (read(name, "status") or "").lower() != ACTIVE:
        if epoch is not None:
            raise Ended(DIED, 0, words)
        raise Ended(STOPPED if read(name, "id") else ABSENT, 0, words)
    if epoch is not None and now != epoch:
        raise Ended(DIED, 0, "it has been started again")
    silence = hung(name)
    if silence:
        raise Ended(DIED, 0, f"its kernel has shown no sign of life for {silence} s")
    return now


# --- the agent --------------------------------------------------------------------------------------


def ports() -> list[int]:
    """All ports that may be tried, first the one whose turn it is.

    What is still said of a connection that has ended, ends another one from the same port.
    """
    turn = int(time.monotonic() * _PORTS_A_SECOND) % len(_RESERVED_PORTS)
    return [*_RESERVED_PORTS[turn:], *_RESERVED_PORTS[:turn]]


def connect(number: int, patience: float) -> socket.socket:
    """A connection to the agent of an instance, which takes them from reserved ports only."""
    started = time.monotonic()
    while True:
        try:
            channel = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
            channel.setsockopt(socket.AF_VSOCK, _SET_TRANSPORT, _MULTIKERNEL)
        except OSError as error:
            raise Ended(TRANSPORTLESS, 0, os.strerror(error.errno or 0)) from None
        try:
            candidates = ports()
            for port in candidates:
                try:
                    channel.bind((socket.VMADDR_CID_ANY, port))
                    break
                except OSError as error:
                    if error.errno == errno.EACCES:
                        raise Ended(ROOTLESS) from None
                    if error.errno != errno.EADDRINUSE or port == candidates[-1]:
                        raise
            channel.settimeout(max(0.1, started + patience - time.monotonic()))
            channel.connect((number, _AGENT_PORT))
            channel.setblocking(False)
            return channel
        except OSError as error:
            channel.close()
            waited = time.monotonic() - started
            if isinstance(error, socket.timeout) or error.errno == errno.ETIMEDOUT:
                # The kernel has a time-out of its own, which is short.
                if waited >= patience:
                    raise Ended(SILENT, int(patience)) from None
            elif error.errno not in (errno.ECONNRESET, errno.ECONNREFUSED):
                raise Ended(TRANSPORTLESS, 0, os.strerror(error.errno or 0)) from None
            elif waited > min(patience, _ACCEPTING):
                raise Ended(AGENTLESS) from None
            time.sleep(0.1)
        except BaseException:
            channel.close()
            raise


def frame(kind: int, content: bytes = b"") -> bytes:
    return _HEAD.pack(len(content), kind, 0) + content


def opening(command: bytes, environment: dict[str, str]) -> bytes:
    """The first frame: a command for the shell, as root, in the root directory, with standard input."""
    words = [b"/", b"/bin/sh", b"-c", command]
    words += (f"{key}={value}".encode("utf-8", "surrogateescape") for key, value in environment.items())
    fixed = struct.pack("<HHIIHHHHHH", _VERSION, _WITH_STDIN, 0, 0, 0, 0, 0, 3, len(environment), 0)
    return frame(_OPEN, fixed + b"".join(word + b"\0" for word in words))


class Session:
    """One command, its input and output. None of the file descriptors is waited for alone."""

    def __init__(self, channel: socket.socket, stdin: int, stdout: int, stderr: int, limit: int) -> None:
        self.channel, self.stdin = channel, stdin
        self.input, self.input_ends, self.eof_sent = bytearray(), False, False
        self.out = {stdout: bytearray(), stderr: bytearray()}
        self.stdout, self.stderr = stdout, stderr
        self.to_send, self.received = bytearray(), bytearray()
        self.started, self.credit, self.left, self.limit = False, _WINDOW, limit, limit
        self.exit_code: int | None = None
        self.gone = False  # the connection
        self.how = "it was closed"  # the connection has gone

    def step(self, seconds: float) -> None:
        """Wait until something can be done, at most so long, and do it."""
        self._feed()
        waiting = select.poll()
        flooded = any(len(buffer) > _BACKLOG for buffer in self.out.values())
        if not self.gone:
            wanted = (0 if flooded else select.POLLIN) | (select.POLLOUT if self.to_send else 0)
            waiting.register(self.channel, wanted)
        # The caller may give all of the input before it takes any output.
        if not self.input_ends:
            waiting.register(self.stdin, select.POLLIN)
        for one, buffer in self.out.items():
            # Without an event, only that the reader is gone.
            waiting.register(one, select.POLLOUT if buffer else 0)
        for one, events in waiting.poll(seconds * 1000):
            if one == self.channel.fileno():
                if events & select.POLLOUT:
                    self._send()
                if events & ~select.POLLOUT:
                    self._receive()
            elif one in self.out:
                if events & (select.POLLERR | select.POLLHUP):
                    raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
                self._write(one)
            else:
                self._read()

    def flush(self) -> None:
        """Write what is left, however long the caller takes."""
        for one, buffer in self.out.items():
            while buffer:
                select.select([], [one], [])
                self._write(one)

    def stop(self) -> None:
        """Have the command stopped, and take leave: what the agent has not read is lost where we just go."""
        with contextlib.suppress(OSError):
            self.channel.settimeout(1)
            signals = (frame(_SIGNAL, struct.pack("<I", signal)) for signal in (15, 9))
            self.channel.sendall(bytes(self.to_send) + b"".join(signals))
            deadline = time.monotonic() + _LAG
            while time.monotonic() < deadline and self.channel.recv(_CHUNK):
                pass

    def _feed(self) -> None:
        """As much of the input as the agent takes."""
        while self.started and self.input and self.credit:
            part = bytes(self.input[: min(self.credit, _LONGEST)])
            del self.input[: len(part)]
            self.credit -= len(part)
            self.to_send += frame(_STDIN, part)
        if self.started and self.input_ends and not self.input and not self.eof_sent:
            self.to_send += frame(_STDIN_EOF)
            self.eof_sent = True

    def _read(self) -> None:
        data = os.read(self.stdin, _CHUNK)
        self.input += data
        self.input_ends = not data

    def _write(self, one: int) -> None:
        buffer = self.out[one]
        with contextlib.suppress(BlockingIOError):
            del buffer[: os.write(one, bytes(buffer[:_CHUNK]))]

    def _send(self) -> None:
        try:
            # As much as goes: packets are small, and to wait for each anew costs more than to send it.
            for _turn in range(_TURNS):
                with memoryview(self.to_send) as view:
                    sent = self.channel.send(view[:_CHUNK])
                del self.to_send[:sent]
                if not self.to_send:
                    break
        except BlockingIOError:
            pass
        except OSError:
            self.to_send.clear()  # what it has said before is read nevertheless

    def _receive(self) -> None:
        for _turn in range(_TURNS):
            try:
                data = self.channel.recv(_CHUNK)
            except BlockingIOError:
                break
            except OSError as error:
                data, self.how = b"", os.strerror(error.errno or 0)
            if not data:
                self.gone = True
                break
            self.received += data
        at = 0
        while self.exit_code is None and len(self.received) - at >= _HEAD.size:
            length, kind, _zero = _HEAD.unpack_from(self.received, at)
            if length > _LONGEST:
                raise Ended(CONFUSED, 0, f"a message of {length} bytes")
            if len(self.received) - at - _HEAD.size < length:
                break
            at += _HEAD.size
            self._take(kind, bytes(self.received[at : at + length]))
            at += length
        del self.received[:at]

    def _take(self, kind: int, content: bytes) -> None:
        if kind == _STARTED:
            self.started = True
        elif kind in (_STDOUT, _STDERR):
            self.left -= len(content)
            if self.left < 0:
                raise Ended(FLOODED, self.limit)
            self.out[self.stdout if kind == _STDOUT else self.stderr] += content
        elif kind == _STDIN_ACK and len(content) == 4:
            # More than it was sent is no credit.
            self.credit = min(_WINDOW, self.credit + int.from_bytes(content, "little"))
        elif kind == _EXIT and len(content) == 2:
            signaled, code = content
            self.exit_code = min(255, 128 + code) if signaled else code
        elif kind == _ERROR and len(content) >= 4:
            text = content[4:].split(b"\0", 1)[0].decode("utf-8", "replace")
            raise Ended(UNSTARTABLE, int.from_bytes(content[:4], "little"), text[:_TEXT])
        else:
            raise Ended(CONFUSED, 0, f"a message of kind {kind} and {len(content)} bytes")


# --- one call ---------------------------------------------------------------------------------------


def converse(session: Session, name: str, epoch: str, patience: float, seconds: float) -> int:
    """The command's exit code."""
    begun = looked = time.monotonic()
    while session.exit_code is None:
        session.step(_LOOK)
        now = time.monotonic()
        if session.gone and session.exit_code is None:
            # Who is told why it died has to give the kernel the time to notice.
            while time.monotonic() - now < _LAG:
                check(name, epoch)
                time.sleep(0.1)
            when = "" if session.started else ", before it said that the command runs"
            raise Ended(LOST, 0, session.how + when)
        if now - looked >= _LOOK:
            looked = now
            check(name, epoch)
        if not session.started and now - begun > patience:
            raise Ended(SILENT, int(patience))
        if seconds and now - begun > seconds:
            raise Ended(TIRED, int(seconds))
    return session.exit_code


def call(
    name: str, command: bytes, environment: dict[str, str], patience: float, seconds: float, limit: int,
    stdin: int = 0, stdout: int = 1, stderr: int = 2,
) -> tuple[str, int, str]:  # fmt: skip
    """Run a command for the shell of an instance; how it ended.

    patience: seconds for the agent to answer. seconds: for the command; 0 is no limit. limit: bytes that it
    may print.
    """
    try:
        epoch = check(name, None)
        number = int(read(name, "id") or "0")
        environment = {
            "PATH": PATH, "HOME": "/root", "USER": "root", "LOGNAME": "root", "SHELL": "/bin/sh",
            **environment, "MKOPS_INSTANCE": name, "MKOPS_INSTANCE_ID": str(number),
        }  # fmt: skip
        with connect(number, patience) as channel:
            for one in (stdin, stdout, stderr):
                os.set_blocking(one, False)
            session = Session(channel, stdin, stdout, stderr, limit)
            session.to_send += opening(command, environment)
            try:
                code = converse(session, name, epoch, patience, seconds)
                session.flush()
                return EXITED, code, ""
            except Ended as ended:
                if ended.end in (FLOODED, TIRED, CONFUSED, SILENT):
                    session.stop()
                session.flush()
                raise
            except BaseException:
                session.stop()  # nobody listens any more
                raise
            finally:
                for one in (stdin, stdout, stderr):
                    os.set_blocking(one, True)
    except Ended as ended:
        return ended.end, ended.number, ended.text


def report(mark: str, end: str, number: int, text: str) -> bytes:
    """The last line on standard error. What the text says stays within it."""
    plain = text.encode("unicode_escape").decode("ascii")
    return f"{mark} {end} {number} {plain}\n".encode()


def main(
    mark: str,
    name: str,
    command: bytes,
    environment: dict[str, str],
    patience: float,
    seconds: float,
    limit: int,
) -> None:
    """As the text on standard input calls it."""
    said = report(mark, *call(name, command, environment, patience, seconds, limit))
    while said:
        said = said[os.write(2, said) :]
