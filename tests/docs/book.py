"""The pages of the documentation, taken apart: headings, links, pictures, code."""
import os
import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
# Where the built programs, the bundled model and ONNX Runtime are; `make test-docs` says so.
BUILT = pathlib.Path(os.environ.get("HUSH_BUILT", ROOT / "target/debug"))
MODELS = pathlib.Path(os.environ.get("HUSH_MODELS", ROOT / ".hush/models"))
ONNXRUNTIME = pathlib.Path(os.environ.get("ORT_DYLIB_PATH", ROOT / ".hush/lib/libonnxruntime.so"))

FENCE = re.compile(r"^( *)```(\S*)\s*$")
# Above a block of commands that no test runs, with the reason.
NOT_RUN = re.compile(r"^ *<!-- not run: (.+) -->$")


class Block:
    """A fenced block of code."""

    def __init__(self, page, line, language, lines, not_run):
        self.page, self.line, self.language, self.lines, self.not_run = page, line, language, lines, not_run

    @property
    def text(self) -> str:
        return "\n".join(self.lines) + "\n"

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def script(self) -> str:
        """Of a shell; what a console prints is no part of it."""
        if self.language != "console":
            return self.text
        return "".join(line[2:] + "\n" for line in self.lines if line.startswith(("$ ", "> ")))

    def steps(self):
        """`(command, what it prints)` of a console."""
        steps = []
        for line in self.lines:
            if line.startswith("$ "):
                steps.append(([line[2:]], []))
            elif line.startswith("> ") and steps and not steps[-1][1]:
                steps[-1][0].append(line[2:])
            elif steps:
                steps[-1][1].append(line)
        return [("\n".join(command), output) for command, output in steps]


class Page:
    def __init__(self, path: pathlib.Path):
        self.path = path
        self.lines = path.read_text().splitlines()
        self.blocks, self.prose = self._split()

    def _split(self):
        """Blocks, and the numbered lines outside of them."""
        blocks, prose, start, not_run = [], [], None, None
        for number, line in enumerate(self.lines, 1):
            fence = FENCE.match(line)
            if start is None and fence:
                start = (number, fence[2], len(fence[1]))
                content = []
            elif start is not None and fence and not fence[2]:
                blocks.append(Block(self.path, start[0], start[1], content, not_run))
                start = not_run = None
            elif start is not None:
                content.append(line[start[2]:])
            else:
                mark = NOT_RUN.match(line)
                not_run = mark[1] if mark else not_run if not line.strip() else None
                prose.append((number, line))
        assert start is None, f"{self.path}: the block of line {start} has no end"
        return blocks, prose

    def text(self) -> str:
        return "\n".join(line for _, line in self.prose)

    def anchors(self) -> set[str]:
        """Of headings, as GitHub and mdBook make them."""
        anchors = set()
        for _, line in self.prose:
            heading = re.match(r"#{1,6} (.+)", line)
            if not heading:
                continue
            anchor = slug(heading[1])
            count = 0
            while (anchor if not count else f"{anchor}-{count}") in anchors:
                count += 1
            anchors.add(anchor if not count else f"{anchor}-{count}")
        return anchors

    def links(self):
        """`(line, target)` of links and pictures, in Markdown and in HTML."""
        for number, line in self.prose:
            plain = re.sub(r"`[^`]*`", "", line)
            for target in re.findall(r"\]\(([^)\s]+)\)", plain) + re.findall(r"(?:src|href)=\"([^\"]+)\"", plain):
                yield number, target

    def code(self):
        """`(line, text)` of what stands between backticks; it may go over the end of a line."""
        for match in re.finditer(r"`([^`]+)`", self.text()):
            line = self.prose[self.text()[:match.start()].count("\n")][0]
            yield line, " ".join(match[1].split())


def slug(heading: str) -> str:
    heading = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", heading).replace(" ", "-")


def pages() -> list[Page]:
    """The readme and every page of the book."""
    return [Page(path) for path in [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]]
