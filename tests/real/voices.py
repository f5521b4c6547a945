"""Human voices with their texts, long recordings made of them, and the error rate of words."""
import pathlib
import random
import re
import unicodedata
import wave

LANGUAGES = ("en", "es", "fr", "it", "ru")
SHORTEST_WORDS = 6
# The sample rate of every recording here.
RATE = 8000


def words(text: str) -> list[str]:
    """Lower case, without punctuation; an apostrophe separates."""
    text = unicodedata.normalize("NFKC", text).lower().replace("ё", "е")
    return re.findall(r"\w+", text)


def clips(folder: pathlib.Path, language: str, count: int) -> list[tuple[pathlib.Path, str]]:
    """`count` recordings of sentences, spread over the whole list, with what is said in them."""
    found = []
    for line in (folder / language / "texts.txt").read_text().splitlines():
        name, _, text = line.partition(":")
        path = folder / language / f"{name.strip()}.wav"
        if len(words(text)) >= SHORTEST_WORDS and "[" not in text and path.exists():
            found.append((path, text.strip()))
    found.sort()
    return [found[index * len(found) // count] for index in range(count)]


def errors(reference: list[str], heard: list[str]) -> int:
    """Words that are replaced, left out or invented (edit distance)."""
    row = list(range(len(heard) + 1))
    for position, word in enumerate(reference, 1):
        previous, row[0] = row[0], position
        for index, other in enumerate(heard, 1):
            previous, row[index] = row[index], min(row[index] + 1, row[index - 1] + 1, previous + (word != other))
    return row[-1]


def samples(path: pathlib.Path) -> bytes:
    with wave.open(str(path)) as recording:
        assert (recording.getframerate(), recording.getsampwidth(), recording.getnchannels()) == (RATE, 2, 1), path
        return recording.readframes(recording.getnframes())


def seconds(pcm: bytes) -> float:
    return len(pcm) / 2 / RATE


def silence(length: float) -> bytes:
    return bytes(2 * int(length * RATE))


def noise(length: float, loudness: int = 300) -> bytes:
    dice = random.Random(7)
    return b"".join(int(dice.gauss(0, loudness)).to_bytes(2, "little", signed=True) for _ in range(int(length * RATE)))


def write(path: pathlib.Path, pcm: bytes) -> pathlib.Path:
    with wave.open(str(path), "wb") as out:
        out.setframerate(RATE)
        out.setsampwidth(2)
        out.setnchannels(1)
        out.writeframes(pcm)
    return path
