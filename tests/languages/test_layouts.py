"""Projects as each language's own tools lay them out, and files with names that their compilers do not expect."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from belljar.images.recipe import default_image
from support.languages.unpacked import UnpackedImages


def printing(value: str) -> str:
    """A main method in Java that prints an expression."""
    return f"public static void main(String[] args) {{ System.out.println({value}); }}"


@dataclass(frozen=True)
class Project:
    language: str
    entrypoint: str
    files: Mapping[str, str]
    stdout: str


def java(name: str, entrypoint: str, files: Mapping[str, str], stdout: str) -> tuple[str, Project]:
    return name, Project("java", entrypoint, files, stdout)


PROJECTS = dict(
    [
        java(
            "Maven's tree, of two packages",
            "src/main/java/com/acme/app/Main.java",
            {
                "src/main/java/com/acme/app/Main.java": (
                    "package com.acme.app;\nimport com.acme.util.Text;\n"
                    "public class Main { " + printing('Text.twice("ab") + new Helper().n()') + "}"
                ),
                "src/main/java/com/acme/app/Helper.java": "package com.acme.app; class Helper { int n() { return 7;} }",
                "src/main/java/com/acme/util/Text.java": (
                    "package com.acme.util;\n"
                    "public class Text { public static String twice(String s) { return s + s; } }"
                ),
                "src/test/java/com/acme/AppTest.java": "package com.acme; import org.junit.Test; class AppTest {}",
            },
            "abab7\n",
        ),
        java(
            "a tree of several modules",
            "app/src/main/java/app/Main.java",
            {
                "app/src/main/java/app/Main.java": "package app; public class Main { " + printing("lib.Lib.X") + "}",
                "lib/src/main/java/lib/Lib.java": "package lib; public class Lib { public static int X = 5; }",
            },
            "5\n",
        ),
        java(
            "resources beside the sources, and Maven's",
            "src/Main.java",
            {
                "src/Main.java": (
                    "public class Main { "
                    + printing('new Other().x() + there("/conf.txt") + there("/in/it.txt")')
                    + "static boolean there(String name) { return Main.class.getResource(name) != null; } }"
                ),
                "src/Other.java": 'class Other { String x() { return "other "; } }',
                "src/conf.txt": "c",
                "src/main/java/x": "",
                "src/main/resources/in/it.txt": "r",
            },
            "other truetrue\n",
        ),
        java(
            "a method that only looks like main",
            "prog.java",
            {
                "prog.java": (
                    "class Alpha { static void show(String[] a) { System.out.println(a.length); } }\n"
                    '/* public static void main(String[] a) */ class Beta { String s = "public static void main("; }\n'
                    'class Zeta { public static void main(String[] a) { Alpha.show(new String[]{"x"}); } }'
                )
            },
            "1\n",
        ),
        java(
            "a name that the upload has changed",
            "Gr__e.java",
            {"Gr__e.java": "public class Größe { " + printing('"Größe"') + "}"},
            "Größe\n",
        ),
        java(
            "a public class that is not called like the file",
            "Main.java",
            {"Main.java": "package a.b; public class HelloWorld { " + printing('"hw"') + "}"},
            "hw\n",
        ),
        java(
            "main in a class that is not public, beside others",
            "Solution.java",
            {
                "Solution.java": (
                    "class Solution { public int add(int a, int b) { return a + b; } }\n"
                    "class Runner { " + printing("new Solution().add(2, 3)") + "}"
                )
            },
            "5\n",
        ),
        java(
            "a byte order mark, and main of an interface",
            "upload.java",
            {"upload.java": "\ufeffinterface Program { static void main(String... args) { System.out.println(1); } }"},
            "1\n",
        ),
        (
            "C++ with include and src",
            Project(
                "cpp",
                "src/main.cpp",
                {
                    "src/main.cpp": '#include <iostream>\n#include "u.h"\nint main() { std::cout << twice(21); }',
                    "src/deep/u.cpp": '#include "u.h"\nint twice(int x) { return 2 * x; }',
                    "src/old.c": "int unused(void) { return 1; }",
                    "include/u.h": "int twice(int);",
                    "Makefile": "all:\n\tg++ -Iinclude -o app src/*.cpp\n",
                },
                "42",
            ),
        ),
        (
            "one program a file",
            Project(
                "cpp",
                "day2.cpp",
                {
                    "day1.cpp": "#include <iostream>\nint main() { std::cout << 1; }",
                    "day2.cpp": '#include "common.h"\n#include <iostream>\nint main() { std::cout << common(); }',
                    "day3.cpp": "int main() { not finished",
                    "common.h": "int common();",
                    "common.cpp": "int common() { return 2; }",
                },
                "2",
            ),
        ),
        (
            "C with an odd ending",
            Project(
                "c", "upload-4711", {"upload-4711": '#include <stdio.h>\nint main(void) { puts("c ok"); }'}, "c ok\n"
            ),
        ),
        (
            "deep recursion in C",
            Project(
                "c",
                "main.c",
                {
                    "main.c": (
                        "#include <stdio.h>\nint deep(int n) { volatile char b[1000]; b[0] = 1;"
                        ' return n ? deep(n - 1) + b[0] : 0; }\nint main(void) { printf("%d\\n", deep(50000)); }'
                    )
                },
                "50000\n",
            ),
        ),
        (
            "a crate with a library and a program",
            Project(
                "rust",
                "src/main.rs",
                {
                    "Cargo.toml": '[package]\nname = "my-proj"\nversion = "0.1.0"\nedition = "2018"\n',
                    "src/main.rs": 'fn main() { println!("{}", my_proj::f()); }',
                    "src/lib.rs": "pub mod util;\npub fn f() -> i32 { util::g() }",
                    "src/util.rs": "pub fn g() -> i32 { 42 }",
                    "src/bin/other.rs": "fn main() { unfinished }",
                },
                "42\n",
            ),
        ),
        (
            "a crate's program of another name",
            Project(
                "rust",
                "app/start.rs",
                {
                    "Cargo.toml": (
                        '[package]\nname = "many"\nversion = "0.1.0"\n\n[[bin]]\nname = "odd"\npath = "app/start.rs"\n'
                    ),
                    "app/start.rs": 'fn main() { println!("odd"); }',
                },
                "odd\n",
            ),
        ),
        (
            "a module with a command",
            Project(
                "go",
                "cmd/app/main.go",
                {
                    "go.mod": "module example.com/m\n\ngo 1.19\n",
                    "cmd/app/main.go": (
                        'package main\nimport ("fmt"; "example.com/m/inner")\nfunc main() { fmt.Println(inner.X()) }'
                    ),
                    "inner/inner.go": "package inner\nfunc X() int { return 9 }",
                },
                "9\n",
            ),
        ),
        (
            "one Go program a file",
            Project(
                "go",
                "day2.go",
                {
                    "day1.go": "package main\nfunc main() { unfinished }",
                    "day2.go": 'package main\nimport "fmt"\nfunc main() { fmt.Println(common()) }',
                    "common.go": "package main\nfunc common() int { return 2 }",
                },
                "2\n",
            ),
        ),
        (
            "Go with an odd ending",
            Project(
                "go",
                "upload-4711",
                {"upload-4711": 'package main\nimport "fmt"\nfunc main() { fmt.Println("go ok") }'},
                "go ok\n",
            ),
        ),
    ]
)


@pytest.mark.parametrize("name", PROJECTS)
def test_a_project_runs(unpacked: UnpackedImages, tmp_path: Path, name: str) -> None:
    done = run(unpacked, PROJECTS[name], tmp_path)
    assert (done[0], done[1]) == (0, PROJECTS[name].stdout), done[2]


@pytest.mark.parametrize(
    ("project", "words"),
    [
        (Project("java", "A.java", {"A.java": "class A { void main(String[] a) {} }"}, ""), "no class here has a main"),
        (Project("java", "A.java", {"A.java": "class A { undeclared"}, ""), "reached end of file"),
        (
            Project(
                "rust",
                "src/main.rs",
                {
                    "Cargo.toml": '[package]\nname = "x"\nversion = "0.1.0"\n[dependencies]\nserde = "1"\n',
                    "src/main.rs": "fn main() {}",
                },
                "",
            ),
            "serde",
        ),
        (
            Project(
                "c", "main.c", {"main.c": "int f(void); int main(void) { return f(); }", "f.c": "int f(void) {"}, ""
            ),
            "f.c:1",
        ),
    ],
    ids=["no main", "no Java", "a crate that is not there", "a broken part"],
)
def test_a_project_that_cannot_run_is_refused_with_the_reason(
    unpacked: UnpackedImages, tmp_path: Path, project: Project, words: str
) -> None:
    code, stdout, stderr = run(unpacked, project, tmp_path)
    assert code != 0 and stdout == "" and words in stderr


def run(unpacked: UnpackedImages, project: Project, tmp_path: Path) -> tuple[int, str, str]:
    image = default_image(project.language, tmp_path)
    assert image is not None
    work = tmp_path / "work"
    work.mkdir()
    done = unpacked[image].run(project.files, project.language, project.entrypoint, work)
    return done.returncode, done.stdout.decode(), done.stderr.decode()
