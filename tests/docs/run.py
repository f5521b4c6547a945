"""Runs what the documentation shows, in a folder of its own, and compares what is printed."""
import os
import pathlib
import re
import shlex
import subprocess

from book import BUILT, ROOT, Block

TIMEOUT_SECONDS = 120
# A block in YAML or another form whose first line names a file: the commands below find it.
FILE = re.compile(r"^# ([\w-]+\.(?:yaml|csv))$")


class Sandbox:
    """The built programs in PATH, the folders of the repository, and the files that a page names."""

    def __init__(self, folder: pathlib.Path, replace: dict[str, str] | None = None):
        self.folder, self.replace = folder, replace or {}
        for name in ("tests", "charts", "controller"):
            (folder / name).symlink_to(ROOT / name)
        clean = {key: value for key, value in os.environ.items() if not re.match("HUSH_|ASR_|MODEL_IDLE", key)}
        # A cluster that does not exist.
        self.env = {**clean, "PATH": f"{BUILT}:{os.environ['PATH']}", "KUBECONFIG": "/dev/null", "LC_ALL": "C.UTF-8"}

    def write(self, block: Block) -> pathlib.Path | None:
        name = FILE.match(block.lines[0]) if block.lines else None
        if not name:
            return None
        path = self.folder / name[1]
        path.write_text(self._here(block.text))
        return path

    def _here(self, text: str) -> str:
        for told, here in self.replace.items():
            text = text.replace(told, here)
        return text

    def _there(self, text: str) -> str:
        for told, here in self.replace.items():
            text = text.replace(here, told)
        return text

    def run(self, command: str) -> tuple[int, str]:
        done = subprocess.run(["bash", "-c", self._here(command)], cwd=self.folder, env=self.env, timeout=TIMEOUT_SECONDS,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        return done.returncode, self._there(done.stdout)


def same(expected: list[str], printed: str) -> bool:
    """`...` in a line stands for any text in it, and as a whole line for any lines."""
    pattern = ""
    for line in trimmed(expected):
        if line.strip() == "...":
            pattern += r"(?:.*\n)*?"
        else:
            pattern += ".*".join(re.escape(part) for part in line.rstrip().split("...")) + r"[ \t]*\n"
    text = "".join(line.rstrip() + "\n" for line in trimmed(printed.splitlines()))
    return re.fullmatch(pattern, text) is not None


def trimmed(lines: list[str]) -> list[str]:
    """Without empty lines at the end."""
    lines = list(lines)
    while lines and not lines[-1].strip():
        lines.pop()
    return lines


def words(text: str) -> list[list[str]]:
    """The simple commands of a script."""
    text = re.sub(r"(^|\s)#\s.*$", "", text.replace("\\\n", " "), flags=re.M)
    lexer = shlex.shlex(text, posix=True, punctuation_chars="|&;()<>\n")
    lexer.whitespace, lexer.commenters, lexer.whitespace_split = " \t\r", "", True
    commands: list[list[str]] = [[]]
    for word in lexer:
        if set(word) <= set("|&;()\n"):
            commands.append([])
        else:
            commands[-1].append(word)
    return [command for command in commands if command]
