"""Reads a Containerfile: stages, and in each its instructions."""
import dataclasses
import pathlib
import re
import shlex


@dataclasses.dataclass
class Instruction:
    line: int
    name: str
    text: str


@dataclasses.dataclass
class Stage:
    image: str
    name: str | None
    instructions: list[Instruction]

    def all(self, name: str) -> list[Instruction]:
        return [one for one in self.instructions if one.name == name]

    def env(self) -> dict[str, str]:
        return dict(part.split("=", 1) for one in self.all("ENV") for part in shlex.split(one.text))


def read(path: pathlib.Path) -> list[Stage]:
    stages: list[Stage] = []
    text, began = "", 0
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if line.lstrip().startswith("#") or not (text or line.strip()):
            continue
        began = began if text else number
        text += line.rstrip("\\").strip() + " "
        if line.endswith("\\"):
            continue
        name, _, rest = text.strip().partition(" ")
        text = ""
        if name == "FROM":
            image, stage = re.fullmatch(r"(\S+)(?: AS (\S+))?", rest).groups()
            stages.append(Stage(image, stage, []))
        else:
            stages[-1].instructions.append(Instruction(began, name, rest))
    return stages
