"""Reference subtitles: tests/fixtures/subtitles.json, from the writers of openai/whisper.

usage: golden_subtitles.py UTILS_PY       UTILS_PY: whisper/utils.py out of the source package of openai-whisper 20250625
needs: nothing but Python

Each case holds the options, the name of the recording whose `words` (tests/fixtures/parity) were written, and what came
out as srt and vtt.
"""
import importlib.util
import io
import json
import pathlib
import sys

CASES = [
    {},
    {"max_line_width": 1000, "max_line_count": 10},
    {"highlight_words": True},
    {"max_line_width": 20},
    {"max_line_width": 24, "max_line_count": 2},
    {"max_line_width": 12, "max_line_count": 1, "highlight_words": True},
    {"max_line_count": 1},
    {"max_words_per_line": 1},
    {"max_words_per_line": 3},
    {"max_words_per_line": 4, "highlight_words": True},
    {"max_words_per_line": 2, "max_line_width": 10},
    {"max_words_per_line": 2, "max_line_width": 30, "max_line_count": 2},
]
# Pauses, spaces in words, marks and words that are longer than a line.
ODD = {
    "segments": [
        {"start": 0.0, "end": 0.0, "text": "", "words": []},
        {
            "start": 1.0,
            "end": 9.5,
            "text": " One incomprehensibilities two -, three",
            "words": [
                {"word": " One", "start": 1.0, "end": 1.25},
                {"word": " incomprehensibilities", "start": 1.25, "end": 1.25},
                {"word": " two -,", "start": 1.5, "end": 2.0},
                {"word": " three", "start": 6.0, "end": 9.5},
            ],
        },
        {"start": 9.5, "end": 10.0, "text": " ", "words": [{"word": " ", "start": 9.5, "end": 10.0}]},
        {
            "start": 3661.2345,
            "end": 3663.0,
            "text": "今天是",
            "words": [
                {"word": "今天", "start": 3661.2345, "end": 3662.0},
                {"word": "是", "start": 3662.0, "end": 3663.0},
            ],
        },
    ]
}


def main():
    spec = importlib.util.spec_from_file_location("utils", sys.argv[1])
    utils = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(utils)
    root = pathlib.Path(__file__).resolve().parent.parent / "tests/fixtures"
    results = {"odd": ODD} | {
        name: json.loads((root / f"parity/{name}.json").read_text())["words"]
        for name in ("en-1", "long-en", "long-zh", "pauses-es")
    }
    out = []
    for name, result in results.items():
        for options in CASES:
            case = {"recording": name, "options": options}
            for extension, writer in (("srt", utils.WriteSRT), ("vtt", utils.WriteVTT)):
                text = io.StringIO()
                writer("").write_result(result, text, options)
                case[extension] = text.getvalue()
            out.append(case)
    value = {"odd": ODD, "cases": out}
    (root / "subtitles.json").write_text(json.dumps(value, ensure_ascii=False, indent=0) + "\n")


if __name__ == "__main__":
    main()
