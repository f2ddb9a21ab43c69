"""doctor's findings about hosts that this one is not: trees of the files that it reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from belljar.doctor.check import Check
from belljar.doctor.host import check_host_setup

GOOD = {
    "proc/sys/kernel/osrelease": "6.1.0-10-amd64",
    "proc/sys/kernel/printk": "1\t4\t1\t7",
    "proc/cmdline": "BOOT_IMAGE=/vmlinuz root=/dev/sda1 quiet",
    "proc/swaps": "Filename\tType\tSize\tUsed\tPriority\n",
    "sys/devices/system/cpu/smt/active": "0",
    "sys/devices/system/cpu/vulnerabilities/mds": "Not affected",
    "sys/devices/system/cpu/vulnerabilities/spectre_v1": "Mitigation: usercopy barriers",
    "sys/devices/system/cpu/vulnerabilities/itlb_multihit": "Not affected",
    "sys/kernel/mm/ksm/run": "0",
    "sys/module/kvm/parameters/min_timer_period_us": "200",
    "sys/module/kvm/parameters/nx_huge_pages": "never",
}

Examine = Callable[..., dict[str, Check]]


@pytest.fixture
def examine(tmp_path: Path) -> Examine:
    """The findings about a good host on which some files say something else, or are not there (None)."""

    def found(**changed: str | None) -> dict[str, Check]:
        for name, text in (GOOD | {name.replace("__", "/"): text for name, text in changed.items()}).items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if text is None:
                path.unlink(missing_ok=True)
            else:
                path.write_text(text + "\n")
        return {check.name: check for check in check_host_setup(tmp_path)}

    return found


def test_a_host_that_is_set_up_well_has_nothing_to_mend(examine: Examine) -> None:
    assert [check for check in examine().values() if check.level != "ok" and check.name != "clock"] == []


@pytest.mark.parametrize(
    ("file", "text", "name", "level", "words"),
    [
        ("proc/sys/kernel/osrelease", "4.19.0-27-amd64", "kernel", "warn", "older than 5.10"),
        ("sys/devices/system/cpu/smt/active", "1", "SMT", "warn", "share a core"),
        ("proc/cmdline", "quiet mitigations=off", "mitigations", "fail", "mitigations=off"),
        ("sys/devices/system/cpu/vulnerabilities/mds", "Vulnerable", "vulnerabilities", "warn", "mds"),
        ("sys/kernel/mm/ksm/run", "1", "KSM", "warn", "shared"),
        ("proc/swaps", "Filename\tType\n/dev/sda2 partition 1 0 -2", "swap", "warn", "/dev/sda2"),
        ("proc/sys/kernel/printk", "7\t4\t1\t7", "kernel messages", "warn", "level 7"),
        ("sys/module/kvm/parameters/min_timer_period_us", "50", "KVM timers", "warn", "50 µs"),
        ("sys/module/kvm/parameters/nx_huge_pages", "N", "KVM huge pages", "warn", "unnecessary"),
    ],
)
def test_what_is_not_well_is_said_with_why_and_what_to_do(
    examine: Examine, file: str, text: str, name: str, level: str, words: str
) -> None:
    check = examine(**{file.replace("/", "__"): text})[name]
    assert check.level == level and words in check.message
    assert check.why and check.fix


def test_swap_in_memory_or_encrypted_is_no_matter(examine: Examine) -> None:
    swaps = "Filename\tType\n/dev/zram0 partition 1 0 -2\n/dev/dm-1 partition 1 0 -3"
    assert examine(proc__swaps=swaps, **{"sys__block__dm-1__dm__uuid": "CRYPT-PLAIN-swap"})["swap"].level == "ok"
    assert "/dev/dm-1" in examine(proc__swaps=swaps, **{"sys__block__dm-1__dm__uuid": "LVM-x"})["swap"].message


def test_a_processor_that_needs_the_huge_page_mitigation_keeps_it(examine: Examine) -> None:
    changed = {
        "sys__devices__system__cpu__vulnerabilities__itlb_multihit": "KVM: Mitigation: Split huge pages",
        "sys__module__kvm__parameters__nx_huge_pages": "Y",
    }
    assert examine(**changed)["KVM huge pages"].level == "ok"


def test_a_host_without_kvm_gets_no_check_of_its_parameters(examine: Examine) -> None:
    found = examine(
        sys__module__kvm__parameters__min_timer_period_us=None, sys__module__kvm__parameters__nx_huge_pages=None
    )
    assert not {"KVM timers", "KVM huge pages"} & set(found)


def test_a_host_that_shows_nothing_breaks_nothing(tmp_path: Path) -> None:
    assert {check.name for check in check_host_setup(tmp_path)} >= {"kernel", "SMT", "swap", "clock"}
