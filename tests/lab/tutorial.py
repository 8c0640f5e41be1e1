# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Does what docs/tutorial.md says, in a fresh clone: writes files, runs commands, compares what they print.

tutorial.py [PAGE]

A block that begins with "# PATH" is a file. In a block "console", lines that begin with "$ " are commands,
and the lines that follow are what they print: "..." alone is any number of lines, and "..." and "*" in a line
are anything. All commands run in one shell, and have to succeed.
"""

import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PATH = re.compile(r"# (\S+/\S+)\n")


@dataclass
class Command:
    words: str
    expected: list[str] = field(default_factory=list)

    def pattern(self):
        """Matches all that it prints."""
        found = ""
        for line in self.expected:
            if line == "...":
                found += "(?:.*\n)*?"
                continue
            parts = re.split(r"(\.\.\.|\*)", line)
            found += "".join(".*" if part in ("...", "*") else re.escape(part) for part in parts) + " *\n"
        return re.compile(found)


def steps(text):
    """Files as (path, text), and commands, in their order."""
    for kind, block in BLOCK.findall(text):
        if kind == "console":
            command = None
            for line in block.splitlines():
                if line.startswith("$ "):
                    if command:
                        yield command
                    command = Command(line[2:])
                else:
                    command.expected.append(line)
            yield command
        elif match := PATH.match(block):
            yield match[1], block[match.end() :]
        else:
            sys.exit(f"a block is neither a file nor commands: {block}")


def fresh(environment):
    """Without what make has told of the tree that this test stands in."""
    return {
        name: value
        for name, value in environment.items()
        if not name.startswith(("ANSIBLE_", "MAKE", "MFLAGS", "MOLECULE_", "MKOPS_KERNEL", "MKOPS_LAB"))
    }


class Shell:
    """One for all commands, as a person has it."""

    END = "that was it:"

    def __init__(self, directory):
        self.process = subprocess.Popen(
            ["bash"],
            cwd=directory,
            env=fresh(os.environ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        )

    def run(self, words):
        self.process.stdin.write(f"{words} </dev/null\nprintf '\\n%s %d\\n' {shlex.quote(self.END)} $?\n")
        self.process.stdin.flush()
        output = ""
        for line in self.process.stdout:
            if line.startswith(self.END):
                return output.removesuffix("\n"), int(line.removeprefix(self.END))
            print(f"    {line}", end="", flush=True)
            output += line
        sys.exit(f"the shell has ended: {words}")


def main():
    page = Path(sys.argv[1]) if len(sys.argv) > 1 else TOP / "docs/tutorial.md"
    found = list(steps(page.read_text(encoding="utf-8")))
    commands = [step for step in found if isinstance(step, Command)]
    with tempfile.TemporaryDirectory(prefix="mkops-tutorial-") as directory:
        clone = Path(directory, "mkops.multikernel")
        subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", TOP, clone], check=True)
        shell = Shell(clone)
        failed = ""
        for step in found:
            if failed:
                break
            if not isinstance(step, Command):
                path = clone / step[0]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(step[1], encoding="utf-8")
                print(f"wrote {step[0]}", flush=True)
                continue
            print(f"$ {step.words}", flush=True)
            begun = time.monotonic()
            output, rc = shell.run(step.words)
            print(f"  {time.monotonic() - begun:.0f} s", flush=True)
            if rc:
                failed = f"{step.words}: {rc}"
            elif not step.pattern().fullmatch(
                output if output.endswith("\n") or not output else output + "\n"
            ):
                failed = f"{step.words}: prints something else than\n" + "\n".join(step.expected)
        if failed:
            shell.run("make lab-down")
            sys.exit(f"tutorial: {failed}")
    print(f"tutorial: {len(commands)} commands did and printed what the page says")


if __name__ == "__main__":
    main()
