"""The Python kernel as a process: values, output, exceptions, interrupts, and what hostile or careless code does."""

from __future__ import annotations

import asyncio
import base64
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from belljar.control.sandboxes.kernels.programs import kernel_of
from support.kernel_process import KernelProcess, kernel_process

pytestmark = pytest.mark.process

PNG = base64.b64decode("iVBORw0KGgo=")


@pytest.fixture
async def kernel(tmp_path: Path) -> AsyncIterator[KernelProcess]:
    async with kernel_process(kernel_of("python"), tmp_path) as kernel:
        yield kernel


async def test_variables_stay_and_the_last_expression_is_the_result(kernel: KernelProcess) -> None:
    assert (await kernel.run("x = 41")).results == []
    ran = await kernel.run("def f(n):\n    return n + 1\n\nf(x)")
    assert (ran.text, ran.count, ran.error) == ("42", 2, None)
    assert (await kernel.run("_ * 2")).text == "84"
    assert (await kernel.run("f(x);")).results == []
    assert (await kernel.run("None")).results == [] and (await kernel.run("")).results == []
    assert (await kernel.run("# only a comment")).error is None
    assert (await kernel.run("'a\\nb'")).text == r"'a\nb'"
    assert (await kernel.run("import __main__; __main__.x, __name__")).text == "(41, '__main__')"
    assert (await kernel.run("import pickle\nclass A: pass\ntype(pickle.loads(pickle.dumps(A()))) is A")).text == "True"
    # What the kernel's own modules import as a future does not reach user code.
    assert (await kernel.run("def g(a: 1): pass\ng.__annotations__")).text == "{'a': 1}"
    await kernel.run("from __future__ import annotations")
    assert (await kernel.run("def g(a: 1): pass\ng.__annotations__")).text == "{'a': '1'}"


async def test_output_comes_in_its_streams_and_in_order_with_what_is_displayed(kernel: KernelProcess) -> None:
    code = "import os, sys, subprocess\nprint('one'); subprocess.run(['echo', 'two']); os.write(1, b'three\\n')"
    ran = await kernel.run(code + "\nprint('err', file=sys.stderr); print('last', end='')")
    assert (ran.stdout, ran.stderr) == ("one\ntwo\nthree\nlast", "err\n")
    await kernel.send("print('before'); display('shown'); print('after')")
    kinds = [message.kind for message in [await kernel.next() for _ in range(4)] if message is not None]
    assert kinds == ["stdout", "result", "stdout", "done"]
    await kernel.send("import time\nprint('no line end', end='')\ntime.sleep(60)")
    message = await kernel.next()
    assert message is not None and message.fields == {"text": "no line end"}


async def test_large_output_and_invalid_text_arrive_whole(kernel: KernelProcess) -> None:
    ran = await kernel.run("for n in range(200_000): print(n)")
    assert ran.stdout == "".join(f"{n}\n" for n in range(200_000))
    ran = await kernel.run(r"import os; print('\ud800 ü 😀'); os.write(1, b'\xff\xc3'); os.write(1, b'\xbc')")
    assert ran.stdout == "\\ud800 ü 😀\n\ufffdü"
    ran = await kernel.run(r"'\ud800'")
    assert ran.text == r"'\ud800'"
    ran = await kernel.run("class S:\n  def __repr__(self): return '\\ud800'\nS()")
    assert ran.text == "?"
    ran = await kernel.run(r"raise ValueError('\udcff')")
    assert ran.error is not None and ran.error["message"] == "?"
    long = await kernel.run("'x' * 3_000_000")
    assert len(long.text) < 1_100_000 and long.text.endswith("more characters)")


async def test_a_line_is_in_one_message_whatever_pieces_it_is_written_in(kernel: KernelProcess) -> None:
    """The node masks a secret in a message, and finds none that is in two."""
    await kernel.run("import os, subprocess, time")
    await kernel.send(
        "for n in range(2000):\n  os.write(1, b'SECRET-'); os.write(1, b'%05d\\n' % n)\n"
        "print('x' * 20 + '-12345\\n' * 40_000)\n"
        "subprocess.run(['sh', '-c', 'i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo SECRET-$i; done | cat']);"
    )
    texts = []
    while (message := await kernel.next()) is not None and message.kind != "done":
        assert message.kind == "stdout" and message.fields["text"].endswith("\n")
        texts.append(message.fields["text"])
    assert len("".join(texts).splitlines()) == 2000 + 40_001 + 3000
    # The beginning of a line does not wait for long, also while the other stream is busy.
    await kernel.send(
        "os.write(1, b'prompt> ')\nuntil = time.monotonic() + 60\n"
        "while time.monotonic() < until:\n  os.write(2, b'busy\\n'); time.sleep(0.01)"
    )
    while (message := await kernel.next()) is not None and message.kind != "stdout":
        pass
    assert message is not None and message.fields["text"] == "prompt> "
    kernel.interrupt()
    assert (await kernel.finish()).error is not None


async def test_json_of_more_values_than_the_server_takes_is_left_out(kernel: KernelProcess) -> None:
    many = "class Many:\n  def _repr_json_(self): return [[]] * 150_000\n  def __repr__(self): return 'many'\nMany()\n"
    ran = await kernel.run(many)
    assert ran.main == {"text/plain": "many"} and "over 200000 values" in ran.stderr


async def test_values_have_the_representations_of_notebooks(kernel: KernelProcess) -> None:
    await kernel.run(
        "class Rich:\n"
        "    def _repr_html_(self): return '<b>x</b>'\n"
        f"    def _repr_png_(self): return {PNG!r}\n"
        "    def _repr_svg_(self): return None\n"
        "    def _repr_latex_(self): raise ValueError('no latex')\n"
        "    def __repr__(self): return 'Rich!'"
    )
    ran = await kernel.run("Rich()")
    assert ran.main == {"text/plain": "Rich!", "text/html": "<b>x</b>", "image/png": "iVBORw0KGgo="}
    assert "ValueError: no latex" in ran.stderr and ran.error is None
    shown = await kernel.run("display(Rich(), 2); 'end'")
    assert [each["is_main"] for each in shown.results] == [False, False, True]
    assert (await kernel.run("Rich")).main.keys() == {"text/plain"}  # the class has no value to show
    bundle = (
        "class B:\n    def _repr_mimebundle_(self, **_): return {'a/b': 'x', 'application/json': {'k': [1]}}, {}\nB()"
    )
    assert (await kernel.run(bundle)).main.keys() == {"a/b", "application/json", "text/plain"}
    assert (await kernel.run("{'a': [1, None]}")).main["application/json"] == {"a": [1, None]}
    assert "application/json" not in (await kernel.run("{'a': float('nan'), 1: {2}}")).main
    assert "application/json" not in (await kernel.run("l = []; l.append(l); l")).main
    assert (await kernel.run("list(range(100))")).text.count("\n") > 2  # laid out in lines
    raw = await kernel.run("display({'text/html': '<i>'}, raw=True)")
    assert raw.results == [{"data": {"text/html": "<i>"}, "is_main": False}]
    large = await kernel.run("display({'text/html': 'x' * 5_000_000, 'text/plain': 'short'}, raw=True)")
    assert large.results[0]["data"] == {"text/plain": "short"} and "is left out" in large.stderr
    broken = await kernel.run("class C:\n    def __repr__(self): return 1 / 0\nC()")
    assert broken.error is not None and broken.error["name"] == "ZeroDivisionError"
    assert (await kernel.run("from IPython.display import display, HTML\nHTML('<p>')")).main["text/html"] == "<p>"


FAKE_TABLE = """
class RangeIndex: pass
class DataFrame:
    def __init__(self, index): self.index = index
    def _repr_html_(self): return '<table>'
    def head(self, n): return self
    def reset_index(self): return DataFrame(RangeIndex())
    def to_json(self, orient, date_format): return '[{"a": 1}]' if isinstance(self.index, RangeIndex) else 'lost'
"""


async def test_a_table_has_its_rows_and_its_index_as_json(kernel: KernelProcess) -> None:
    await kernel.run(FAKE_TABLE)
    for index in ("RangeIndex()", "'names'"):
        main = (await kernel.run(f"DataFrame({index})")).main
        assert (main["text/html"], main["application/json"]) == ("<table>", [{"a": 1}])


async def test_a_traceback_shows_the_users_lines_and_none_of_the_kernels(kernel: KernelProcess) -> None:
    await kernel.run("def divide(a):\n    return a / 0  # here")
    ran = await kernel.run("a = 1\ndivide(a)")
    assert ran.error is not None and ran.error["name"] == "ZeroDivisionError"
    assert ran.error["message"] == "division by zero"
    trace = ran.error["traceback"]
    assert 'File "<cell 2>", line 2, in <module>' in trace and "divide(a)" in trace
    assert 'File "<cell 1>", line 2, in divide' in trace and "return a / 0  # here" in trace
    assert "belljar" not in trace
    syntax = await kernel.run("x = (1,\ny = 2")
    assert syntax.error is not None and syntax.error["name"] == "SyntaxError"
    assert "<cell 3>" in syntax.error["traceback"] and "x = (1," in syntax.error["traceback"]
    deep = await kernel.run("def r(): r()\nr()")
    assert deep.error is not None and deep.error["name"] == "RecursionError"
    assert len(deep.error["traceback"]) < 10_000
    chained = await kernel.run("try:\n    1 / 0\nexcept ZeroDivisionError:\n    int('x')")
    assert chained.error is not None and "During handling" in chained.error["traceback"]
    assert "belljar" not in chained.error["traceback"]
    mute = await kernel.run("class E(Exception):\n    def __str__(self): return 1 / 0\nraise E")
    assert mute.error is not None and mute.error["name"] == "E"
    huge = await kernel.run("raise ValueError('x' * 10_000_000)")
    assert huge.error is not None and len(huge.error["message"]) + len(huge.error["traceback"]) < 400_000
    group = await kernel.run("raise ExceptionGroup('many', [ValueError(1), KeyError(2)])")
    assert group.error is not None and "KeyError" in group.error["traceback"]
    assert (await kernel.run("import inspect; inspect.getsource(divide)")).text.startswith("'def divide")


async def test_await_works_at_the_top_level_and_in_one_loop(kernel: KernelProcess) -> None:
    await kernel.run("import asyncio\nlock = asyncio.Lock()\nawait lock.acquire()")
    assert (await kernel.run("await asyncio.sleep(0, 'value')")).text == "'value'"
    assert (await kernel.run("lock.release(); lock.locked()")).text == "False"
    assert (await kernel.run("async def f(): return 5\nasyncio.run(f())")).text == "5"
    failed = await kernel.run("async def g():\n    await asyncio.sleep(0)\n    raise KeyError('k')\nawait g()")
    assert failed.error is not None and failed.error["name"] == "KeyError"
    assert failed.error["traceback"].count("File") == 2 and "raise KeyError('k')" in failed.error["traceback"]
    ran = await kernel.run("await asyncio.sleep(60)", interrupt_after=0.3)
    assert ran.error is not None and ran.error["name"] == "KeyboardInterrupt"
    assert (await kernel.run("await asyncio.sleep(0, 1)")).text == "1"


async def test_an_interrupt_ends_loops_and_waits_but_not_the_variables(kernel: KernelProcess) -> None:
    for code in (
        "n = 1\nwhile True: n += 1",
        "import time\ntime.sleep(60)",
        "import subprocess\nsubprocess.run(['sleep', '60'])",
    ):
        ran = await kernel.run(code, interrupt_after=0.4)
        assert ran.error is not None and ran.error["name"] == "KeyboardInterrupt", code
        assert "<cell" in ran.error["traceback"]
    assert (await kernel.run("n > 1")).text == "True"
    kernel.interrupt()  # between two runs nothing happens
    await asyncio.sleep(0.1)
    assert (await kernel.run("1")).text == "1"
    # An interrupt never cuts a message.
    ran = await kernel.run("while True: display('x' * 100_000)", interrupt_after=0.5)
    assert ran.error is not None and ran.error["name"] == "KeyboardInterrupt" and ran.results


async def test_input_is_empty(kernel: KernelProcess) -> None:
    ran = await kernel.run("input('name? ')")
    assert ran.error is not None and ran.error["name"] == "EOFError" and "set the value" in ran.error["message"]
    assert (await kernel.run("import sys, os; sys.stdin.read(), os.read(0, 10)")).text == "('', b'')"
    assert (await kernel.run("import subprocess; subprocess.run(['cat'], capture_output=True).stdout")).text == "b''"


async def test_exit_does_not_end_the_kernel_but_a_real_end_is_noticed(kernel: KernelProcess) -> None:
    for code in ("import sys; sys.exit(3)", "exit()", "quit(1)"):
        ran = await kernel.run(code)
        assert ran.error is not None and ran.error["name"] == "SystemExit", code
    ran = await kernel.run("print('last words', flush=True)\nimport time; time.sleep(0.3)\nimport os; os._exit(7)")
    assert (ran.count, ran.exit_code, ran.stdout) == (None, 7, "last words\n")


async def test_a_crash_shows_where_it_was(kernel: KernelProcess) -> None:
    ran = await kernel.run("import ctypes\nctypes.string_at(0)")
    assert ran.exit_code == -11
    await asyncio.sleep(0.1)
    assert b"Segmentation fault" in kernel.errors and b"<cell 1>" in kernel.errors


async def test_a_forked_child_says_nothing_to_the_host(kernel: KernelProcess) -> None:
    ran = await kernel.run(
        "import os\npid = os.fork()\nprint('child' if pid == 0 else 'parent')\nif pid: os.waitpid(pid, 0)"
    )
    assert sorted(ran.stdout.split()) == ["child", "parent"] and ran.count == 1
    pool = "with multiprocessing.get_context('fork').Pool(2) as pool: r = pool.map(f, [1, 2, 3])\nr"
    pool = f"import multiprocessing\ndef f(n): return n * n\n{pool}"
    assert (await kernel.run(pool)).text == "[1, 4, 9]"
    assert (await kernel.run("if os.fork() == 0: display('in the child')\nelse: os.wait()")).results == []


async def test_what_threads_write_between_runs_comes_with_the_next_one(kernel: KernelProcess, tmp_path: Path) -> None:
    await kernel.run(
        "import threading, time\n"
        "def late(text, mark):\n"
        "    time.sleep(0.3)\n"
        "    print(text)\n"
        "    open(mark, 'w').close()"
    )
    for text, mark, newest in (("'late'", "small", "late\n"), ("'x' * 10_000_000", "flood", "x" * 50)):
        started = f"threading.Thread(target=late, args=({text}, {str(tmp_path / mark)!r})).start()"
        assert (await kernel.run(started)).stdout == ""
        while not (tmp_path / mark).exists():
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)  # the kernel reads the last of it
        stdout = (await kernel.run("print('now')")).stdout
        assert newest in stdout and stdout.endswith("now\n")
        assert len(stdout) <= 128 * 1024  # only the newest is kept between runs
    await kernel.run(
        "def endless():\n    while True: print('y')\nthreading.Thread(target=endless, daemon=True).start()"
    )
    assert (await kernel.run("'still here'")).text == "'still here'"


async def test_files_in_the_working_folder_are_imported_but_never_by_the_kernel(tmp_path: Path) -> None:
    for name in ("json", "traceback", "threading", "select"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('replaced')")
    (tmp_path / "own.py").write_text("value = 6")
    async with kernel_process(kernel_of("python"), tmp_path) as kernel:
        assert (await kernel.run("import own; own.value * 7")).text == "42"
        ran = await kernel.run("1 / 0")
        assert ran.error is not None and "ZeroDivisionError" in ran.error["traceback"]


async def test_lines_for_a_shell_and_pip_work_as_in_notebooks(kernel: KernelProcess, tmp_path: Path) -> None:
    ran = await kernel.run("x = 1\nif x:\n    !echo hello; exit 3\n%matplotlib inline\nx")
    assert (ran.stdout, ran.stderr, ran.text) == ("hello\n", "[exit code 3]\n", "1")
    (tmp_path / "a b").mkdir()
    assert (await kernel.run("%cd 'a b'")).stdout == f"{tmp_path}/a b\n"
    assert (await kernel.run("%%bash\nfor i in 1 2; do echo $i; done")).stdout == "1\n2\n"
    assert (await kernel.run("%pip --version")).stdout.startswith("pip ") or sys.prefix
    assert (await kernel.run("'''\n!not a command\n'''")).text == r"'\n!not a command\n'"
    unknown = await kernel.run("%unknown")
    assert unknown.error is not None and unknown.error["name"] == "SyntaxError"


FAKE_PYPLOT = """
import sys
class Figure:
    axes = ()
    def savefig(self, file, **_): file.write(b'PNG')
_open = []
def figure(n=None):
    if n is None:
        _open.append(Figure())
    return _open[(n or len(_open)) - 1]
def get_fignums(): return list(range(1, len(_open) + 1))
def close(which): _open.clear() if which == 'all' else _open.remove(which) if which in _open else None
def show(): raise SystemExit('not patched')
"""


async def test_open_figures_are_shown_once(tmp_path: Path) -> None:
    package = tmp_path / "matplotlib"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "figure.py").write_text("from matplotlib.pyplot import Figure")
    (package / "pyplot.py").write_text(FAKE_PYPLOT)
    async with kernel_process(kernel_of("python"), tmp_path) as kernel:
        png = base64.b64encode(b"PNG").decode()
        ran = await kernel.run(
            "import matplotlib.pyplot as plt, os\nplt.figure(); plt.show(); plt.show()\nos.environ['MPLBACKEND']"
        )
        assert [each["data"].get("image/png") for each in ran.results] == [png, None]
        assert ran.text == "'agg'"
        ran = await kernel.run("plt.figure(); plt.figure(); 1")
        assert [each["data"].get("image/png") for each in ran.results] == [None, png, png]
        ran = await kernel.run("import matplotlib.figure\nplt.figure()")
        assert [(each["is_main"], each["data"].get("image/png")) for each in ran.results] == [(True, png)]
        assert (await kernel.run("1")).results[0]["data"] == {"text/plain": "1"}
