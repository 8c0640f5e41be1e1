# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""PostgreSQL in a spawned kernel, used from its host, by root. Nothing committed may get lost.

database.py begin NAME          make tables, for pgbench and for numbers
database.py panic NAME          the kernel panics while pgbench runs; what it heard of is there afterwards
database.py commits NAME        commit one number after the other; print each when it is acknowledged
database.py committed NAME N    the numbers up to N are there, and what pgbench wrote adds up

Needs psql, pgbench in /usr/local/bin, and devices.py and agent.py beside this program.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from devices import Died, addresses, inside, ready, run_of, said, until

CLIENTS, SECONDS = 4, 900
SCALE = 2


def client(name):
    return ["-h", addresses(name)[4], "-U", "postgres"]


def sql(name, text, rc=0):
    return said("psql", "-AtqX", *client(name), "-c", text, rc=rc).strip()


def answers(name):
    return sql(name, "select 1", rc=None) == "1"


def begin(name):
    until(f"PostgreSQL in {name} answers", lambda: answers(name), 600)
    sql(name, "create table if not exists numbers (n bigint primary key)")
    said("pgbench", *client(name), "-q", "-i", "-s", str(SCALE), "postgres")
    print(sql(name, "select version()"))


def started(name, directory):
    """pgbench at work: it notes each transaction that was acknowledged."""
    return subprocess.Popen(
        ["pgbench", *client(name), "-n", "-c", str(CLIENTS), "-T", str(SECONDS), "-l", "postgres"],
        cwd=directory,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def history(name):
    return int(sql(name, "select count(*) from pgbench_history"))


def adds_up(name):
    """What a transaction does to four tables is there as a whole or not at all."""
    sums = sql(
        name,
        "select (select sum(tbalance) from pgbench_tellers), (select sum(bbalance) from pgbench_branches),"
        " (select sum(abalance) from pgbench_accounts), (select coalesce(sum(delta), 0)"
        " from pgbench_history)",
    ).split("|")
    if len({*sums}) != 1:
        sys.exit(f"the sums of tellers, branches, accounts and history are {sums}")


def panic(name):
    until(f"PostgreSQL in {name} answers", lambda: answers(name), 600)
    before, epoch = history(name), run_of(name)[1]
    with tempfile.TemporaryDirectory() as directory:
        bench = started(name, directory)
        time.sleep(30)
        if bench.poll() is not None:
            sys.exit(f"pgbench has ended: {bench.stdout.read()}")
        with contextlib.suppress(Died):
            inside(name, "echo c >/proc/sysrq-trigger", rc=None, seconds=20)
        begun = time.monotonic()
        until(
            f"{name} is started again", lambda: run_of(name)[0] == "active" and run_of(name)[1] > epoch, 600
        )
        until(f"{name} answers", lambda: ready(name), 600)
        until(f"PostgreSQL in {name} answers", lambda: answers(name), 600)
        took = time.monotonic() - begun
        with contextlib.suppress(subprocess.TimeoutExpired):
            bench.wait(120)
        if bench.poll() is None:
            bench.terminate()
            bench.wait()
        heard = sum(len(path.read_text().splitlines()) for path in Path(directory).glob("pgbench_log.*"))
    there = history(name) - before
    adds_up(name)
    told = inside(name, "cat /var/log/postgresql/*.log")
    recovered = [
        line for line in told.splitlines() if "redo done" in line or "not properly shut down" in line
    ]
    print(f"{heard} transactions were acknowledged, {there} are there; {took:.0f} s until it answered again")
    print("\n".join(recovered[-2:]))
    if not heard <= there <= heard + CLIENTS or not heard:
        sys.exit("transactions are missing, or there are too many")
    if not recovered:
        sys.exit(f"PostgreSQL did not recover anything: {told}")


def commits(name):
    number = int(sql(name, "select coalesce(max(n), 0) from numbers"))
    with (
        subprocess.Popen(
            ["psql", "-AtqX", *client(name), "-v", "ON_ERROR_STOP=1"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as one,
        tempfile.TemporaryDirectory() as directory,
        started(name, directory),
    ):
        while True:
            number += 1
            one.stdin.write(f"insert into numbers values ({number}) returning n;\n")
            one.stdin.flush()
            if one.stdout.readline().strip() != str(number):
                sys.exit("psql has ended")
            print(number, flush=True)


def committed(name, last):
    until(f"PostgreSQL in {name} answers", lambda: answers(name), 900)
    count, most = map(int, sql(name, "select count(*), coalesce(max(n), 0) from numbers").split("|"))
    adds_up(name)
    print(
        f"{last} were acknowledged last; {count} are there, {most} is the highest; {history(name)} by pgbench"
    )
    if count != most or not 0 < int(last) <= most <= int(last) + 1:
        sys.exit("numbers are missing, or there are too many")


def main():
    call = {one.__name__: one for one in (begin, panic, commits, committed)}[sys.argv[1]]
    call(*sys.argv[2:])


if __name__ == "__main__":
    main()
