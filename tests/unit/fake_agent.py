# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""An instance that is this machine: kerf's agent on a Unix socket, which really runs what it is told to.

It speaks the agent's language as `kerf exec` 0.4 does, but only what is needed here: no terminal, no users.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import threading
from pathlib import Path

OPEN, STDIN, STDIN_EOF, SIGNAL = 1, 2, 3, 5
STARTED, ERROR, STDOUT, STDERR, EXIT, STDIN_ACK = range(16, 22)
WINDOW = 65536


def frame(kind: int, content: bytes = b"") -> bytes:
    return struct.pack("<IHH", len(content), kind, 0) + content


class FakeInstance:
    """Files of the kernel below a directory, and an agent that listens beside them."""

    def __init__(self, root: Path, name: str = "red", number: int = 7) -> None:
        self.instances, self.name, self.number = root / "instances", name, number
        self.directory = self.instances / name
        self.directory.mkdir(parents=True)
        self.tell(id=number, status="active", epoch=1, exit_reason="none", stats="heartbeat_age_ms 20")
        self.path = root / "agent"
        self.opened: list[dict[str, object]] = []
        self.signals: list[int] = []
        self.script = self.obey  # what is done with a connection
        self.environment: dict[str, str] = {}
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(self.path))
        self._listener.listen(64)
        self.connections: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def tell(self, **files: object) -> None:
        for name, text in files.items():
            (self.directory / name).write_text(f"{text}\n")

    def overrides(self) -> str:
        """Python text that makes plugins/module_utils/divide/agent.py speak to this one."""
        return (
            f"\nINSTANCES = {str(self.instances)!r}\n"
            "class _Unix(socket.socket):\n"
            "    def __init__(self, *_kind): super().__init__(socket.AF_UNIX, socket.SOCK_STREAM)\n"
            "    def setsockopt(self, *_what): pass\n"
            "    def bind(self, _where): pass\n"
            f"    def connect(self, _where): super().connect({str(self.path)!r})\n"
            "class _Module:\n"
            "    def __getattr__(self, name): return getattr(_socket, name)\n"
            "    socket = _Unix\n"
            "import socket as _socket\n"
            "socket = _Module()\n"
        )

    def close(self) -> None:
        self._listener.close()
        for one in self.connections:
            one.close()

    def die(self, reason: str = "panic: Fatal exception") -> None:
        """As a spawned kernel does: the connection ends, and the kernel tells why."""
        self.tell(status="loaded", exit_reason=reason)
        for one in self.connections:
            one.shutdown(socket.SHUT_RDWR)

    # --- the agent ---

    def _accept(self) -> None:
        while True:
            try:
                channel, _address = self._listener.accept()
            except OSError:
                return
            self.connections.append(channel)
            threading.Thread(target=self._serve, args=(channel,), daemon=True).start()

    def _serve(self, channel: socket.socket) -> None:
        try:
            self.script(channel)
        except (OSError, EOFError):
            pass
        finally:
            channel.close()

    @staticmethod
    def exactly(channel: socket.socket, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = channel.recv(size - len(data))
            if not part:
                raise EOFError
            data += part
        return data

    def receive(self, channel: socket.socket) -> tuple[int, bytes]:
        length, kind, zero = struct.unpack("<IHH", self.exactly(channel, 8))
        assert zero == 0 and length <= 65536
        return kind, self.exactly(channel, length)

    def open(self, channel: socket.socket) -> dict[str, object]:
        kind, content = self.receive(channel)
        assert kind == OPEN
        version, flags, *_users, argc, envc, _zero = struct.unpack_from("<HHIIHHHHHH", content)
        words = content[24 + 0 :].split(b"\0")
        assert words.pop() == b""
        opened = {
            "version": version,
            "flags": flags,
            "cwd": words[0],
            "argv": words[1 : 1 + argc],
            "env": dict(word.decode().split("=", 1) for word in words[1 + argc :]),
        }
        assert len(words) == 1 + argc + envc
        self.opened.append(opened)
        return opened

    def obey(self, channel: socket.socket) -> None:
        opened = self.open(channel)
        assert opened["version"] == 1 and opened["flags"] == 2
        lock = threading.Lock()

        def say(kind: int, content: bytes = b"") -> None:
            with lock:
                channel.sendall(frame(kind, content))

        environment = {**opened["env"], **self.environment}
        try:
            process = subprocess.Popen(
                opened["argv"], cwd=opened["cwd"], env=environment, start_new_session=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )  # fmt: skip
        except OSError as error:
            say(ERROR, struct.pack("<I", error.errno) + f"{error.strerror}".encode() + b"\0")
            return
        say(STARTED, struct.pack("<I", process.pid))

        def forward(pipe, kind: int) -> None:
            while data := os.read(pipe.fileno(), 65536):
                with contextlib.suppress(OSError):  # nobody listens any more
                    say(kind, data)

        def listen() -> None:
            outstanding = 0
            try:
                while True:
                    kind, content = self.receive(channel)
                    if kind == STDIN:
                        outstanding += len(content)
                        assert outstanding <= WINDOW
                        try:
                            process.stdin.write(content)
                            process.stdin.flush()
                        except (BrokenPipeError, ValueError):
                            pass
                        outstanding -= len(content)
                        say(STDIN_ACK, struct.pack("<I", len(content)))
                    elif kind == STDIN_EOF:
                        process.stdin.close()
                    elif kind == SIGNAL:
                        self.signals.append(*struct.unpack("<I", content))
                        os.killpg(process.pid, self.signals[-1])
            except (OSError, EOFError):
                pass

        pumps = [
            threading.Thread(target=forward, args=(process.stdout, STDOUT), daemon=True),
            threading.Thread(target=forward, args=(process.stderr, STDERR), daemon=True),
        ]
        threading.Thread(target=listen, daemon=True).start()
        for pump in pumps:
            pump.start()
        for pump in pumps:
            pump.join()
        code = process.wait()
        say(EXIT, bytes([1, -code] if code < 0 else [0, code]))
