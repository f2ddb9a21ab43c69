"""What a program printed before it was stopped is there, in every language: nothing waits in a buffer for its end."""

from __future__ import annotations

from pathlib import Path

import pytest

from belljar.images.recipe import default_image
from support.languages.unpacked import UnpackedImages

SIGKILL = 128 + 9
PARTIAL = ["python", "ruby", "perl", "php", "lua", "node", "go", "java", "shell"]
#: Each prints a line, and part of one where its language lets that through, and is killed.
KILLED = {
    "python": "import os\nprint('line')\nprint('part', end='')\nos.kill(os.getpid(), 9)\n",
    "shell": "echo line\nprintf part\nkill -9 $$\n",
    "ruby": "puts 'line'\nprint 'part'\nProcess.kill(:KILL, $$)\nsleep 9\n",
    "perl": 'print "line\\n";\nprint "part";\nkill 9, $$;\n',
    "php": "<?php echo \"line\\n\"; echo 'part'; exec('kill -9 ' . getmypid());\n",
    "lua": "print('line')\nio.write('part')\nos.execute('kill -9 $PPID')\n",
    "node": "console.log('line');\nprocess.stdout.write('part');\nprocess.kill(process.pid, 'SIGKILL');\n",
    "c": (
        "#include <signal.h>\n#include <stdio.h>\n#include <unistd.h>\n"
        'int main(void) { printf("line\\n"); printf("part"); kill(getpid(), SIGKILL); }\n'
    ),
    "cpp": (
        "#include <csignal>\n#include <iostream>\n#include <unistd.h>\n"
        'int main() { std::cout << "line\\n" << "part"; kill(getpid(), SIGKILL); }\n'
    ),
    "rust": (
        'fn main() { println!("line"); print!("part");\n'
        'std::process::Command::new("kill").args(["-9", &std::process::id().to_string()]).status().unwrap(); }\n'
    ),
    "go": (
        'package main\nimport ("fmt"; "os"; "syscall")\n'
        'func main() { fmt.Println("line"); fmt.Print("part"); syscall.Kill(os.Getpid(), syscall.SIGKILL); select {} }'
    ),
    "java": (
        "public class Main { public static void main(String[] a) throws Exception {\n"
        'System.out.println("line"); System.out.print("part");\n'
        'new ProcessBuilder("kill", "-9", "" + ProcessHandle.current().pid()).start().waitFor(); } }\n'
    ),
}


@pytest.mark.parametrize("language", KILLED)
def test_what_was_printed_before_a_program_was_killed_is_there(
    unpacked: UnpackedImages, tmp_path: Path, language: str
) -> None:
    image = default_image(language, tmp_path)
    assert image is not None
    work = tmp_path / "work"
    work.mkdir()
    spoken = unpacked[image].image.language(language)
    assert spoken is not None
    name = f"Main{spoken.extensions[0]}"
    done = unpacked[image].run({name: KILLED[language]}, language, name, work)
    assert done.returncode == SIGKILL, done.stderr.decode()
    # A line is what C and Rust hold back, as on a terminal.
    assert done.stdout.decode() == ("line\npart" if language in PARTIAL else "line\n")
