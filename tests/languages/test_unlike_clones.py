"""Clones of one snapshot, in which Node.js and Ruby have waited, draw different numbers."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from belljar.images.catalog import Images
from belljar.node.guest.command import Command
from belljar.node.machines.protocol import MachineSpec, Shape
from belljar.node.machines.provision.provisioner import MachineProvisioner
from belljar.node.machines.provision.request import ProvisionedMachine
from belljar.node.machines.provision.snapshots import Snapshots
from belljar.node.machines.qemu.hypervisor import QemuHypervisor
from belljar.node.worker.plan import DEFAULT_ENV
from belljar.node.worker.warm_ups import WarmUps
from belljar.scripts.pack import pack_tree
from belljar.settings import Settings
from support.conversation import Collector
from support.running import descendants, name_of

pytestmark = pytest.mark.vm

#: tests/node/machines/provision/test_provisioner.py has fifty of Python. Each of these takes seconds,
#: and two alike would do.
CLONES = 5
#: In so many of them a fresh interpreter is asked too.
FRESH = 2
NODE = """
const crypto = require('crypto'), vm = require('vm');
const { Worker } = require('worker_threads');
const drawn = {
    uuid: crypto.randomUUID(), bytes: crypto.randomBytes(16).toString('hex'), math: Math.random(), more: Math.random(),
    int: crypto.randomInt(2 ** 47), web: Buffer.from(crypto.webcrypto.getRandomValues(new Uint8Array(16))).toString('hex'),
    context: vm.runInNewContext('Math.random()'), created: vm.runInContext('Math.random()', vm.createContext({})),
    script: new vm.Script('Math.random()').runInNewContext(), key: crypto.generateKeySync('aes', { length: 128 }).export().toString('hex'),
};
const inThread = `
    const crypto = require('crypto');
    require('worker_threads').parentPort.postMessage({ thread: Math.random(), threadUuid: crypto.randomUUID() });
`;
new Worker(inThread, { eval: true }).on('message', (said) => console.log(JSON.stringify({ ...drawn, ...said })));
"""  # noqa: E501
RUBY = """
require 'json'
require 'securerandom'
puts JSON.generate(
  secure: SecureRandom.hex(16), uuid: SecureRandom.uuid, rand: rand, seed: Random.seed,
  other: Random.new.bytes(16).unpack1('H*'),
  shuffled: (1..40).to_a.shuffle.join(' '), urandom: Random.urandom(16).unpack1('H*'), float: Random.rand
)
"""
SCRIPTS = {"node": ("draw.js", NODE), "ruby": ("draw.rb", RUBY)}


@pytest.fixture
async def hypervisor(tmp_path: Path) -> AsyncIterator[QemuHypervisor]:
    settings = Settings(data_dir=tmp_path / "data")
    yield QemuHypervisor(settings, "tcg")
    assert [pid for pid in descendants(os.getpid()) if "qemu" in name_of(pid)] == []


async def draw(ready: ProvisionedMachine, language: str, *, waited: bool) -> dict[str, object]:
    command = Command(
        argv=[language, f"/work/{SCRIPTS[language][0]}"],
        env=DEFAULT_ENV,
        prefork=language if waited else "",
        keep=True,
    )
    sink = Collector()
    async with asyncio.timeout(120):
        exited = await ready.connection.run(command, b"", sink, lambda _: None)
    assert exited.exit_code == 0, sink.stderr
    return {f"{language}: {name}": value for name, value in json.loads(sink.stdout).items()}


async def test_no_two_clones_draw_the_same_numbers(
    scripting_image: Path, hypervisor: QemuHypervisor, tmp_path: Path
) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    image = Images(scripting_image).get("scripting")
    preparation = await WarmUps(settings).of(image)
    provisioner = MachineProvisioner(Snapshots(settings))
    (tmp_path / "tree").mkdir()
    for name, text in SCRIPTS.values():
        (tmp_path / "tree" / name).write_text(text)
    await pack_tree(tmp_path / "tree", tmp_path / "script.erofs")
    spec = MachineSpec(image=image, shape=Shape(vcpus=1, memory_mb=256), script_disk=tmp_path / "script.erofs")
    assert provisioner.snapshots is not None
    assert await provisioner.make_snapshot(hypervisor, spec, preparation)
    room = asyncio.Semaphore(2)
    drawn: list[dict[str, object]] = []

    async def one(number: int) -> None:
        async with room, provisioner.machine(hypervisor, spec, preparation, 60) as ready:
            assert ready.source == "snapshot"
            drawn.append(await draw(ready, "node", waited=True) | await draw(ready, "ruby", waited=True))
            for language in SCRIPTS if number < FRESH else ():
                drawn.append(await draw(ready, language, waited=False))

    try:
        async with asyncio.TaskGroup() as group:
            for number in range(CLONES):
                group.create_task(one(number))
    finally:
        hypervisor.release_snapshot(
            provisioner.snapshots.folder / provisioner.snapshots.key(hypervisor, image, spec.shape, preparation)
        )
    for name in drawn[0]:
        values = [each[name] for each in drawn if name in each]
        assert len(values) == CLONES + FRESH, name
        assert len(set(values)) == len(values), name
