# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What kernel_build costs, and what becomes of builds when things go wrong: real ones, here, as root.

kernel_builds.py [--profile NAME] [cost] [packages] [faults]
                all of them by default; needs the source package in the cache

cost        a profile's kernel: by hand and by kernel_build at the same time; then again elsewhere, without
            ccache (the same bytes?), and warm at the same time; unchanged
packages    deb, rpm and tar: each twice, and each with a signed image and a signed module
faults      a full disk and a lost controller in the middle of a build, and inputs that are not right
"""

import argparse
import concurrent.futures
import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

TOP = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(TOP / ".ansible/collections"))
# E402: the collection is found only by the path above.
from ansible_collections.mkops.multikernel.plugins.module_utils.boot import secure_boot  # noqa: E402
from ansible_collections.mkops.multikernel.plugins.module_utils.build.patches import (  # noqa: E402
    with_own_fragments,
)

FILES = TOP / "roles/kernel/files"
CACHE = Path(os.environ["MKOPS_CACHE"])
COLD_GOAL, WARM_GOAL, UNCHANGED_GOAL = 1.05, 0.25, 2.0
# A kernel that can be signed and has a module, and little else.
PLAIN = """\
CONFIG_64BIT=y
CONFIG_PRINTK=y
CONFIG_BINFMT_ELF=y
CONFIG_PCI=y
CONFIG_ACPI=y
CONFIG_EFI=y
CONFIG_EFI_STUB=y
CONFIG_MODULES=y
CONFIG_CRC7=m
"""
# Without a key of its own the kernel makes one, another one each time: not for those that are to be the same.
SIGNABLE = """\
CONFIG_MODULE_SIG=y
CONFIG_MODULE_SIG_ALL=y
"""


def fail(text):
    sys.exit(f"FAIL  {text}")


def check(what, holds):
    if not holds:
        fail(what)
    print(f"ok  {what}", flush=True)


def digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def source():
    """The newest source package that was fetched, with its checksum."""
    found = sorted((CACHE / "sources").glob("linux-source-6.12_*.deb"), key=lambda path: path.stat().st_mtime)
    if not found:
        fail(f"there is no source package in {CACHE}/sources: run `make kernel` first")
    return {"path": str(found[-1]), "checksum": f"sha256:{digest(found[-1])}"}


def command(wish):
    return [
        *("ansible", "localhost", "-c", "local", "-m", "mkops.multikernel.kernel_build"),
        *("-a", json.dumps({"source": source(), **wish})),
    ]


ENVIRONMENT = {**os.environ, "ANSIBLE_FORCE_COLOR": "0", "ANSIBLE_CALLBACK_RESULT_FORMAT": "json"}


def kernel_build(**wish):
    """Its result, and the seconds of the whole command."""
    began = time.monotonic()
    done = subprocess.run(command(wish), check=False, capture_output=True, text=True, env=ENVIRONMENT)
    seconds = time.monotonic() - began
    start = done.stdout.find("{\n")
    if start < 0:
        fail(f"no result: {done.stdout}{done.stderr}")
    return {"failed": done.returncode != 0, **json.loads(done.stdout[start:])}, seconds


def built(**wish):
    result, seconds = kernel_build(**wish)
    if result["failed"]:
        fail(f"the build failed: {result['msg']}")
    return result, seconds


def by_hand(directory, patches, base, fragments, jobs):
    """The commands of a person who knows them: seconds of all, and of make alone."""

    def run(*argv, cwd=directory, **environment):
        done = subprocess.run(
            argv, check=False, cwd=cwd, capture_output=True, text=True, env={**os.environ, **environment}
        )
        if done.returncode:
            fail(f"{' '.join(argv)}: {done.stdout[-2000:]}{done.stderr[-2000:]}")

    began = time.monotonic()
    run("dpkg-deb", "-x", source()["path"], "package")
    (archive,) = directory.glob("package/usr/src/linux-source-*.tar.*")
    run("tar", "-xf", str(archive))
    tree = directory / archive.name.split(".tar")[0]
    for patch in patches:
        run("patch", "-p1", "-s", "-i", str(patch), cwd=tree)
    run("make", base, cwd=tree)
    run("scripts/kconfig/merge_config.sh", "-n", ".config", *map(str, fragments), cwd=tree)
    making = time.monotonic()
    run("make", f"-j{jobs}", "bindeb-pkg", "DPKG_FLAGS=--rules-target=binary-image", cwd=tree)
    now = time.monotonic()
    return now - began, now - making


def cost(scratch, profile):
    series = FILES / "series/6.12"
    patches = sorted(series.glob("*.patch"))
    made_of = yaml.safe_load((TOP / "roles/kernel/vars/main.yml").read_text())["kernel_profiles"][profile]
    if made_of["base"] != "tinyconfig":
        fail(f"profile {profile} is not one over tinyconfig")
    fragments = [FILES / f"config/{name}.config" for name in (*made_of["config"], "multikernel")]
    own = with_own_fragments(series, fragments)
    # A machine that others use, too, is now fast, now slow: what is compared runs at the same time, with jobs
    # for half of the CPUs each, and something runs beside each until its end.
    jobs = max(1, len(os.sched_getaffinity(0)) // 2)
    wish = {"series": str(series), "config": list(map(str, fragments)), "jobs": jobs}
    one, two, hand = (str(scratch / name) for name in ("one", "two", "hand"))

    def hand_then_elsewhere():
        Path(hand).mkdir()
        whole, make = by_hand(Path(hand), patches, made_of["base"], own, jobs)
        print(f"by hand: {whole:.0f} s, of which make {make:.0f} s", flush=True)
        result, seconds = built(**wish, ccache=False, cache_dir=two)
        print(f"kernel_build, cold elsewhere, without ccache: {seconds:.0f} s", flush=True)
        return whole, make, result

    def cold_then_warm():
        result, cold = built(**wish, cache_dir=one)
        print(f"kernel_build, cold: {cold:.0f} s", flush=True)
        _result, warm = built(**wish, cache_dir=one, local_version="-warm")
        print(f"kernel_build, warm: {warm:.0f} s", flush=True)
        return cold, warm, result

    with concurrent.futures.ThreadPoolExecutor() as pool:
        ours = pool.submit(cold_then_warm)
        whole, make, second = hand_then_elsewhere()
        cold, warm, first = ours.result()
    print(f"cold is {cold / whole:.3f} of by hand, {cold / make:.3f} of its make", flush=True)
    check("both are of one key, made twice", first["key"] == second["key"] and second["changed"])
    for name in ("vmlinux", "config"):
        check(
            f"both have the same {name}, sha256 {digest(first[name])}",
            digest(first[name]) == digest(second[name]),
        )
    same = digest(first["debs"][0]) == digest(second["debs"][0])
    check(f"both have the same package, sha256 {digest(first['debs'][0])}", same)
    again = [built(**wish, cache_dir=one) for _time in range(3)]
    unchanged = min(seconds for _result, seconds in again)
    texts = ", ".join(f"{seconds:.2f}" for _result, seconds in again)
    check(
        f"unchanged, three times: {texts} s of the whole command",
        not any(result["changed"] for result, _seconds in again),
    )
    check(f"cold takes at most {COLD_GOAL} of by hand", cold <= COLD_GOAL * whole)
    check(f"warm takes {warm / cold:.3f} of cold, at most {WARM_GOAL}", warm <= WARM_GOAL * cold)
    check(f"unchanged takes less than {UNCHANGED_GOAL} s", unchanged < UNCHANGED_GOAL)


def make_key(directory):
    key, certificate = directory / "signing.key", directory / "signing.pem"
    argv = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=lab", "-days", "2"]
    subprocess.run([*argv, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    key.chmod(0o600)
    return {"key": str(key), "certificate": str(certificate)}


def unpacked(package, directory):
    """The kernel image and the modules in a package."""
    directory.mkdir()
    with open(package, "rb") as file:
        if package.endswith(".deb"):
            argv = ["dpkg-deb", "--extract", package, directory]
        elif package.endswith(".rpm"):
            with open(directory / "archive.tar", "wb") as tar:
                subprocess.run(["rpm2archive", "--nocompression"], check=True, stdin=file, stdout=tar)
            argv = ["tar", "-xf", directory / "archive.tar", "-C", directory]
        else:
            argv = ["tar", "-xf", package, "-C", directory]
        subprocess.run(argv, check=True)
    (image,) = directory.rglob("vmlinuz*")
    return image, list(directory.rglob("*.ko*"))


def packages(scratch, _profile):
    plain, signable = scratch / "plain.config", scratch / "signable.config"
    plain.write_text(PLAIN)
    signable.write_text(SIGNABLE)
    for place in ("one", "two"):
        (scratch / place).mkdir(exist_ok=True)
    # The compiler's answers are the same; what is made of them is looked at.
    (scratch / "one/ccache").mkdir(exist_ok=True)
    (scratch / "two/ccache").symlink_to(scratch / "one/ccache")

    keys = set()
    for package in ("deb", "rpm", "tar"):
        results = [
            built(config=[str(plain)], package=package, keep_tree=True, cache_dir=str(scratch / place))[0]
            for place in ("one", "two")
        ]
        (first,), (second,) = (result["packages"] for result in results)
        check(f"{package}: {Path(first).name} twice, the same bytes", digest(first) == digest(second))
        check(f"{package}: the tree is kept", Path(results[0]["build_tree"], "ready.json").is_file())
        keys.add(results[0]["key"])
        image, modules = unpacked(first, scratch / f"plain-{package}")
        check(f"{package}: it has {image.name} and {[path.name for path in modules]}", len(modules) == 1)
        listed = subprocess.run(["sbverify", "--list", image], check=False, capture_output=True, text=True)
        check(f"{package}: nobody signed it", "No signature table present" in listed.stderr + listed.stdout)

    sign = make_key(scratch)
    for package in ("deb", "rpm", "tar"):
        config = [str(plain), str(signable)]
        signed, seconds = built(config=config, package=package, sign=sign, cache_dir=str(scratch / "one"))
        keys.add(signed["key"])
        image, modules = unpacked(signed["packages"][0], scratch / f"signed-{package}")
        verify = ["sbverify", "--cert", sign["certificate"], str(image)]
        good = subprocess.run(verify, check=False, capture_output=True).returncode == 0
        check(f"{package}: signed, {seconds:.0f} s; the image in the package has the signature", good)
        check(f"{package}: kernel_boot takes it for signed", bool(secure_boot.signature(image.read_bytes())))
        argv = ["modinfo", "-F", "signer", modules[0]]
        signer = subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()
        check(f"{package}: the module is signed by {signer}", signer == "lab")
    check("each is a kernel of its own", len(keys) == 6)
    secret = Path(sign["key"]).read_text().splitlines()[1]
    grep = ["grep", "-rlF", "--", secret, str(scratch / "one")]
    left = subprocess.run(grep, check=False, capture_output=True, text=True).stdout
    check(f"the key is nowhere in the cache {left}", not left)


class Background:
    """A build that something happens to."""

    def __init__(self, **wish):
        self.work = Path(wish["cache_dir"], "kernels/.work")
        self.process = subprocess.Popen(
            command(wish),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=ENVIRONMENT,
            start_new_session=True,
        )

    def compiles(self, objects):
        """Wait until so many objects are made."""
        deadline = time.monotonic() + 600
        while time.monotonic() < deadline and self.process.poll() is None:
            for path in self.work.glob("progress-*.json"):
                with contextlib.suppress(OSError, ValueError):
                    progress = json.loads(path.read_text())
                    if progress["stage"] == "compile" and progress["done"] >= objects:
                        return
            time.sleep(0.2)
        fail(f"the build did not come to its objects: {self.process.communicate(timeout=60)[0]}")

    def trees(self):
        return [path for path in self.work.glob("*/") if not path.name.startswith("trash-")]


def makes(tree):
    """The sessions of the makes that work in a tree: each build is one."""
    found = set()
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            inside = Path(os.readlink(path / "cwd")).is_relative_to(tree)
            if inside and (path / "comm").read_text() == "make\n":
                found.add((path / "stat").read_text().rsplit(")", 1)[1].split()[3])
    return found


def wrong(scratch, small):
    """Inputs that are not right change nothing."""
    cache = scratch / "wrong"
    cases = {
        "a wrong checksum": (
            {"source": {**source(), "checksum": "sha256:" + "0" * 64}},
            ("has sha256", "source.checksum says"),
        ),
        "an option that cannot be had": (
            {"config": [str(small), str(scratch / "numa.config")]},
            ("CONFIG_NUMA=y (numa.config:1)", "it depends on"),
        ),
        "a patch that was tampered with": (
            {"series": str(scratch / "series")},
            ("patch 0001-harmed.patch does not apply", "hunk 1"),
        ),
    }
    (scratch / "numa.config").write_text("CONFIG_NUMA=y\n")
    (scratch / "series").mkdir()
    first = sorted((FILES / "series/6.12").glob("0001-*.patch"))[0].read_text().splitlines(keepends=True)
    # A line of context that is not the source's.
    at = next(number for number, line in enumerate(first) if line.startswith("@@")) + 1
    first[at] = f" {first[at].strip()} harmed\n"
    (scratch / "series/0001-harmed.patch").write_text("".join(first))
    for name, (more, words) in cases.items():
        result, _seconds = kernel_build(**{"config": [str(small)], "cache_dir": str(cache), **more})
        missing = [word for word in words if word not in result.get("msg", "")]
        check(f"{name}: {result.get('msg', '')[:200]!r}", result["failed"] and not missing)
        kernels = [path for path in (cache / "kernels").glob("*") if path.name != ".work"]
        check(f"{name}: no kernel is there", not kernels)


def faults(scratch, _profile):
    small = scratch / "faults.config"
    small.write_text(PLAIN)
    wrong(scratch, small)

    wish = {"config": [str(small)], "cache_dir": str(scratch / "lost"), "ccache": False}
    build = Background(**wish)
    build.compiles(60)
    os.killpg(build.process.pid, signal.SIGKILL)
    build.process.communicate()
    (tree,) = build.trees()
    check("the controller is gone, one make goes on", len(makes(tree)) == 1)
    result, seconds = built(**wish)
    check(f"the next run waits for it and has the kernel after {seconds:.0f} s", result["changed"] is False)

    disk = scratch / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4400m", "mkops-test", disk], check=True)
    try:
        wish = {"config": [str(small)], "cache_dir": str(disk), "ccache": False}
        build = Background(**wish)
        build.compiles(60)
        with contextlib.suppress(OSError), open(disk / "filler", "wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 20))
        text = build.process.communicate(timeout=300)[0]
        check(f"a full disk: {text[-600:]!r}", "No space left on device" in text and "FAILED" in text)
        (tree,) = build.trees()
        deadline = time.monotonic() + 30
        while makes(tree) and time.monotonic() < deadline:
            time.sleep(0.2)
        check("a full disk: no make is left", not makes(tree))
        check("a full disk: no kernel is there", not list((disk / "kernels").glob("[0-9a-f]*")))
        objects = sum(1 for _path in tree.rglob("*.o"))
        (disk / "filler").unlink()
        result, seconds = built(**wish)
        check(f"the next run goes on from {objects} objects, {seconds:.0f} s", result["changed"])
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def main():
    parts = {"cost": cost, "packages": packages, "faults": faults}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--profile", default="spawn", help="what cost builds, a profile of the role kernel")
    parser.add_argument("part", nargs="*", help=", ".join(parts))
    wanted = parser.parse_args()
    names = wanted.part or list(parts)
    if unknown := [name for name in names if name not in parts]:
        sys.exit(f"{', '.join(unknown)}: not one of {', '.join(parts)}")
    for name in names:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(
            prefix="mkops-builds-", dir=CACHE, ignore_cleanup_errors=True
        ) as scratch:
            parts[name](Path(scratch), wanted.profile)
        print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
