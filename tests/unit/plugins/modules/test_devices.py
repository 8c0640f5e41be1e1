# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Network, disks and shares of instances, from a task to what the kernel is told and the host keeps."""

from __future__ import annotations

import json

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.devices.record import tap_name
from ansible_collections.mkops.multikernel.plugins.module_utils.divide import apply as _apply
from ansible_collections.mkops.multikernel.plugins.module_utils.divide import kerf as _kerf
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.store import DeviceUnits
from ansible_collections.mkops.multikernel.plugins.modules import instance, layout
from ansible_collections.mkops.multikernel.tests.unit.fake_kernel import MIB, POOL_BASE

ROUTED = {"mode": "routed", "prefixes": ["10.77.0.0/24", "fd77::/64"]}
UNIT = "mkops-devices@red.service"
STARTED = [f"start --no-block {UNIT}", f"start {UNIT}"]


@pytest.fixture
def host(make_host, monkeypatch):
    monkeypatch.setattr(_apply, "SETTLE", 0.1)
    monkeypatch.setattr(_apply, "SETTLE_AFTER_ERROR", 0)
    return make_host(
        virtio=True, bridges=["br0"], pool_cpus=[4, 6], chunks=[(POOL_BASE, 512 * MIB, 0)], cpus=4
    )


@pytest.fixture
def run(run_module, host, vmlinux, initrd):
    base = {"name": "red", "cpus": "2", "memory": "128M", "kernel": str(vmlinux), "initrd": str(initrd)}

    def run(_check=False, /, _module=instance, **params):
        if _module is layout:
            return run_module(layout, host, _check, **params)
        return run_module(instance, host, _check, **{**base, "state": "started", **params})

    return run


def record(host, name="red"):
    return json.loads((host.root / f"var/lib/mkops/devices/{name}.json").read_text())


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(4096))
    return path


def test_who_takes_an_instance_up_has_its_devices_served(run, host):
    """As after a boot in which it has run on; one that has none needs nothing, nor one whose are served."""
    units = DeviceUnits(host.root / "var/lib/mkops/devices", host.root / "run/mkops/devices")
    units.resume("red")
    assert host.units == []
    run(network=ROUTED)
    units.resume("red")
    assert host.units == STARTED
    (host.root / "run/mkops/devices/red").rmdir()
    units.resume("red")
    assert host.units == [*STARTED, f"start {UNIT}"]


def test_an_instance_with_one_of_each(run, host, image, tmp_path):
    wish = {
        "network": ROUTED,
        "disks": [{"path": str(image)}],
        "shares": [{"path": str(tmp_path), "tag": "t"}],
    }
    planned = run(True, **wish)
    assert planned["changed"] and not host.instances and "depends" not in planned
    assert planned["steps"] == ["create", "set_devices", "load", "start"]
    assert [words.split()[1] for words in planned["commands"]] == ["load", "start"]

    done = run(**wish)
    assert done["steps"] == planned["steps"]
    assert host.instances["red"].virtio == {"net@0": (1, 2), "blk@1": (2, 1), "fs@2": (26, 2)}
    assert host.units == STARTED
    (link,) = record(host)["links"]
    assert link["addresses"] == ["10.77.0.3/31", "fd77::3/127"]
    assert host.instances["red"].cmdline.split()[:2] == [
        "ip=10.77.0.3::10.77.0.2:255.255.255.254:::off",
        f"mkops.net0=mac={link['mac']},addr=10.77.0.3/31,addr=fd77::3/127,gw=10.77.0.2,gw=fd77::2,mtu=1500",
    ]
    assert done["instance"]["devices"] == record(host)
    assert (
        json.loads(done["diff"]["after"])["devices"]
        if isinstance(done["diff"]["after"], str)
        else done["diff"]["after"]["devices"] == record(host)
    )

    # The second time there is nothing to do, whether all of it is said or nothing.
    for again in (wish, {}):
        assert not run(**again)["changed"]
        assert not run(True, **again)["changed"]
    (host.root / "run/mkops/devices/red").exists()

    gone = run(state="absent")
    assert gone["steps"] == ["kill", "unload", "delete", "set_devices"]
    assert host.units[2:] == [f"stop {UNIT}"]
    # After the record is gone, or the host's end would stay.
    assert host.networks == [[]]
    assert not (host.root / "var/lib/mkops/devices/red.json").exists()
    assert not run(state="absent")["changed"]


def test_devices_of_several_come_up_at_the_same_time(run, host, vmlinux, initrd):
    images = {"memory": "128M", "kernel": str(vmlinux), "initrd": str(initrd), "state": "started"}
    instances = {"red": {"cpus": "2", "network": ROUTED}, "blue": {"cpus": "3", "network": ROUTED}}
    done = run(_module=layout, instances=instances, defaults=images)
    assert done["steps"][-4:] == ["load red", "start red", "load blue", "start blue"]
    every = [UNIT, "mkops-devices@blue.service"]
    assert host.units == [f"start --no-block {' '.join(every)}", *(f"start {unit}" for unit in every)]
    # One that nothing is made for first is only waited for.
    run(state="stopped")
    run(state="started")
    assert host.units[3:] == [f"start {UNIT}"]


def test_what_only_the_host_does_changes_while_it_runs(run, host):
    run(network=ROUTED)
    done = run(network={**ROUTED, "nat": True, "forwards": [{"port": 80}]})
    assert done["steps"] == ["set_devices"]
    assert host.units == [*STARTED, f"reload {UNIT}"]
    assert host.instances["red"].epoch == 1


def test_what_a_kernel_sees_at_its_start_needs_a_restart(run, host):
    run(network=ROUTED)
    refused = run(network={**ROUTED, "mtu": 9000})
    assert any("would need a restart" in reason for reason in refused["reasons"])
    done = run(network={**ROUTED, "mtu": 9000}, allow_restart=True)
    assert done["steps"] == [
        "kill",
        "unload",
        "set_devices",
        "load",
        "start",
    ]
    assert host.units[2:] == [f"restart {UNIT}", f"start {UNIT}"]


def test_a_disk_changes_in_place_of_another(run, host, image, tmp_path):
    other = tmp_path / "other.img"
    run(disks=[{"path": str(image)}])
    done = run(disks=[{"path": str(other), "size": "1M"}], allow_restart=True)
    assert done["steps"] == ["kill", "set_devices", "start"]
    assert other.stat().st_size == MIB


def test_another_device_means_another_instance(run, host, image):
    run(network=ROUTED)
    mac = record(host)["links"][0]["mac"]
    done = run(network=[ROUTED, {"mode": "bridge", "bridge": "br0"}], allow_restart=True)
    assert done["steps"] == ["kill", "unload", "delete", "create", "set_devices", "load", "start"]
    assert record(host)["links"][0]["mac"] == mac
    assert host.units[2:] == [f"stop {UNIT}", *STARTED]
    # None at all is said by an empty list.
    done = run(network=[], allow_restart=True)
    assert host.instances["red"].virtio == {}
    assert not (host.root / "var/lib/mkops/devices/red.json").exists()


def test_a_kernel_without_such_devices_refuses_them(run_module, make_host, image):
    host = make_host(pool_cpus=[4, 6], chunks=[(POOL_BASE, 512 * MIB, 0)], cpus=4)
    wish = {"name": "red", "cpus": "2", "memory": "128M", "disks": [{"path": str(image)}]}
    for check in (False, True):
        result = run_module(instance, host, check, **wish)
        assert result["failed"] and "need a kernel that offers virtio devices" in str(result["reasons"])


def test_all_that_is_wrong_is_told_at_once(run, tmp_path):
    result = run(
        network=[{"mode": "bridge", "bridge": "none"}, ROUTED],
        disks=[{"path": str(tmp_path)}, {"path": "/none/x.img"}, {"path": "/none/y.img", "size": "1M"}],
        shares=[{"path": "/dev/null", "tag": "t"}],
    )
    assert [reason for reason in result["reasons"] if "exist" in reason or " is not " in reason] == [
        "network: bridge none does not exist on the host: make it first",
        f"disks: {tmp_path} is not a file or block device",
        "disks: /none/x.img does not exist on the host",
        "disks: /none does not exist on the host",
        "shares: /dev/null is not a directory",
    ]


def test_what_an_earlier_task_makes_is_supposed(run):
    result = run(True, disks=[{"path": "/none/x.img"}], network={"mode": "bridge", "bridge": "none"})
    assert not result.get("failed") and len(result["depends"]) == 2


def test_one_task_after_the_other_gets_addresses_of_its_own(run, host):
    run(network=ROUTED)
    run(name="blue", cpus="3", network=ROUTED)
    assert record(host, "blue")["links"][0]["addresses"] == ["10.77.0.5/31", "fd77::5/127"]
    twice = run(
        name="green", cpus=None, memory="128M", network={"mode": "routed", "addresses": "10.77.0.6/24"}
    )
    assert any("overlaps" in reason for reason in twice["reasons"])


def test_a_whole_layout(run, host, vmlinux):
    wish = {
        "defaults": {"memory": "128M", "kernel": str(vmlinux), "state": "started", "network": ROUTED},
        "instances": {
            "red": {"cpus": 2, "network": {**ROUTED, "reach": ["blue"]}},
            "blue": {"cpus": 3, "cmdline": "ip=off"},
        },
    }
    result = run(_module=layout, **wish)
    assert result["changed"], result
    assert record(host)["links"][0]["reach"] == ["blue"]
    # Who says ip= himself has the device all the same.
    words = host.instances["blue"].cmdline.split()
    assert [word.partition("=")[0] for word in words] == ["ip", "mkops.net0", "console"]
    assert not run(_module=layout, **wish)["changed"]
    wish["instances"]["red"]["network"]["reach"] = ["green"]
    refused = run(_module=layout, **wish)
    assert any("reach of instance red names green" in reason for reason in refused["reasons"])
    # Whom red may reach goes, and red is not named: nobody minds.
    assert run(name="blue", state="absent")["changed"]
    assert not run(_module=layout, instances={"red": {"cpus": 2}})["changed"]
    pruned = run(_module=layout, prune=True, instances={})
    assert pruned["changed"]
    assert not list((host.root / "var/lib/mkops/devices").iterdir())


def test_what_is_recorded_of_nobody_goes_with_its_declaration(run, host):
    run(network=ROUTED)
    run(state="absent")
    path = host.root / "var/lib/mkops/devices/old.json"
    path.write_text(json.dumps({"disks": [{"path": "/x"}]}))
    assert not run(True, state="absent")["changed"]
    assert run(name="old", state="absent")["steps"] == ["set_devices"]
    assert not path.exists()


def test_a_damaged_record_is_told(run, host):
    path = host.root / "var/lib/mkops/devices/old.json"
    path.parent.mkdir(parents=True)
    for text, why in (
        ("{", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ("[]", "is no record"),
        ('{"disks": [5]}', "not as this version"),
    ):
        path.write_text(text)
        result = run()
        assert result["failed"] and why in result["msg"], result


def test_it_is_kept_for_boot(run, host):
    run(network=ROUTED, at_boot=True)
    kept = json.loads((host.root / "etc/mkops/layout.json").read_text())
    assert kept["instances"]["red"]["network"] == ROUTED
    assert not run(network=ROUTED, at_boot=True)["changed"]


def test_an_overlay_that_fails(run, host):
    host.broken["overlay"] = "Invalid argument"
    result = run(network=ROUTED)
    assert result["failed"] and "after kerf create it is absent" in result["msg"]


def test_kerfs_lock_is_waited_for(run, host, monkeypatch):
    lock = host.root / "var/run/kerf.lock"
    lock.touch()
    result = run(network=ROUTED)  # stale: no kerf runs
    assert result["changed"] and not lock.exists()
    run(state="absent")
    lock.touch()
    monkeypatch.setattr(_kerf, "_PATIENCE", 0.15)
    monkeypatch.setattr(_kerf, "_kerf_runs", lambda _proc: True)
    result = run(network=ROUTED)
    assert result["failed"] and "File exists" in json.dumps(result)
    assert lock.exists()


def test_taps_have_short_names():
    assert tap_name("red", 0) == "mk-red-0"


def test_an_address_without_a_device_needs_a_kernel(run_module, host):
    result = run_module(
        instance, host, name="a", cpus="2", memory="128M", state="present", network={"address": "dhcp"}
    )
    assert any("network needs a kernel" in reason for reason in result["reasons"])
    result = run_module(instance, host, name="a", cpus="2", memory="128M", state="present", network=ROUTED)
    assert result["changed"] and host.instances["a"].virtio


def test_a_path_that_leads_nowhere(run, image):
    result = run(disks=[{"path": f"{image}/x"}])
    assert result["reasons"] == [f"disks: {image}/x cannot be used: Not a directory"]


def test_what_is_kept_is_not_looked_for_on_this_host(run, host, image, tmp_path):
    wish = {"disks": [{"path": str(image)}], "shares": [{"path": str(tmp_path), "tag": "t"}], "at_boot": True}
    assert run(**wish)["changed"]
    image.unlink()
    kept = json.loads((host.root / "etc/mkops/layout.json").read_text())["instances"]["red"]
    assert (kept["disks"][0]["path"], kept["shares"][0]["tag"]) == (str(image), "t")
    assert run(name="blue", cpus="3", at_boot=True)["changed"]
