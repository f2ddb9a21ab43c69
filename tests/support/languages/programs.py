"""In every language: a program that copies its input and exits with 3, one that crashes, one that does not compile."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Programs:
    #: Copies standard input to standard output and exits with 3.
    echo: str
    crash: str
    #: How the crash ends: an exit code, or the name of a signal.
    crash_end: int | str
    #: Part of what is said on stderr meanwhile.
    crash_words: str
    #: Does not compile; None for languages that need no compiler.
    broken: str | None = None
    example: str = ""


PROGRAMS = {
    "python": Programs(
        "import sys\nsys.stdout.write(sys.stdin.read())\nsys.exit(3)\n",
        "raise ValueError('boom')\n",
        1,
        "ValueError: boom",
        example="wordcount.py",
    ),
    "shell": Programs("cat\nexit 3\n", "echo boom >&2\nkill -SEGV $$\n", "SIGSEGV", "boom", example="wordcount.sh"),
    "node": Programs(
        "process.stdout.write(require('fs').readFileSync(0));\nprocess.exitCode = 3;\n",
        "throw new Error('boom');\n",
        1,
        "Error: boom",
        example="wordcount.js",
    ),
    "ruby": Programs("print $stdin.read\nexit 3\n", "raise 'boom'\n", 1, "boom (RuntimeError)", example="wordcount.rb"),
    "perl": Programs("print while <STDIN>;\nexit 3;\n", "die 'boom';\n", 255, "boom at", example="wordcount.pl"),
    "php": Programs(
        "<?php echo stream_get_contents(STDIN); exit(3);\n",
        "<?php throw new Exception('boom');\n",
        255,
        "boom",
        example="wordcount.php",
    ),
    "lua": Programs("io.write(io.read('a'))\nos.exit(3)\n", "error('boom')\n", 1, "boom", example="wordcount.lua"),
    "sqlite": Programs(
        'CREATE TABLE input(line TEXT);\n.mode ascii\n.separator "\\037" "\\n"\n.import /dev/stdin input\n'
        ".mode list\nSELECT line FROM input;\n.exit 3\n",
        "SELECT abs(-9223372036854775807 - 1);\n",
        1,
        "overflow",
        example="wordcount.sql",
    ),
    "c": Programs(
        "#include <stdio.h>\nint main(void) { int c; while ((c = getchar()) != EOF) putchar(c); return 3; }\n",
        '#include <stdio.h>\nint main(void) { fputs("boom\\n", stderr); *(volatile int *)8 = 1; }\n',
        "SIGSEGV",
        "boom",
        "int main(void) { return undeclared; }\n",
        example="wordcount.c",
    ),
    "cpp": Programs(
        # Headers that compile quickly; the example has the others.
        "#include <cstdio>\nint main() { for (int c; (c = std::getchar()) != EOF;) std::putchar(c); return 3; }\n",
        "struct boom {};\nint main() { throw boom(); }\n",
        "SIGABRT",
        "boom",
        "int main() { return undeclared; }\n",
        example="wordcount.cpp",
    ),
    "go": Programs(
        'package main\n\nimport (\n\t"io"\n\t"os"\n)\n\n'
        "func main() {\n\tio.Copy(os.Stdout, os.Stdin)\n\tos.Exit(3)\n}\n",
        'package main\n\nfunc main() { panic("boom") }\n',
        2,
        "panic: boom",
        "package main\n\nfunc main() { undeclared() }\n",
        example="wordcount.go",
    ),
    "java": Programs(
        "public class Main {\n    public static void main(String[] args) throws Exception {\n"
        "        System.in.transferTo(System.out);\n        System.exit(3);\n    }\n}\n",
        'public class Main {\n    public static void main(String[] args) { throw new RuntimeException("boom"); }\n}\n',
        1,
        "java.lang.RuntimeException: boom",
        "public class Main {\n    public static void main(String[] args) { undeclared(); }\n}\n",
        example="WordCount.java",
    ),
    "rust": Programs(
        "fn main() {\n    std::io::copy(&mut std::io::stdin(), &mut std::io::stdout()).unwrap();\n"
        "    std::process::exit(3);\n}\n",
        'fn main() { panic!("boom"); }\n',
        101,
        "boom",
        "fn main() { undeclared(); }\n",
        example="wordcount.rs",
    ),
}
