"""Reference values of voice activity detection: tests/fixtures/vad/NAME.json for every recording in tests/fixtures/audio.

usage: golden_vad.py MODEL FASTER_WHISPER_VAD_PY      MODEL: what scripts/fetch-vad fetched
       FASTER_WHISPER_VAD_PY: faster_whisper/vad.py out of the wheel of faster-whisper 1.2.1
needs: numpy, onnxruntime, soundfile

Each file holds `probabilities` (one for each 512 samples at 16 kHz, from Python's onnxruntime, one window per call) and
`chunks`: what faster-whisper's `get_speech_timestamps` makes of them, by set of options.
"""
import importlib.util
import json
import pathlib
import sys
import types

import numpy as np
import onnxruntime
import soundfile

WINDOW, CONTEXT = 512, 64
OPTIONS = {
    "default": {},
    "short": {"min_silence_duration_ms": 100, "speech_pad_ms": 30, "min_speech_duration_ms": 250},
    "cut": {"min_silence_duration_ms": 500, "max_speech_duration_s": 5.0},
    "strict": {"threshold": 0.8, "neg_threshold": 0.2, "min_silence_duration_ms": 300},
}


def load_vad(path):
    """The module by itself: its package would want an engine."""
    package, utils = types.ModuleType("faster_whisper"), types.ModuleType("faster_whisper.utils")
    utils.get_assets_path = lambda: ""
    sys.modules |= {"faster_whisper": package, "faster_whisper.utils": utils}
    spec = importlib.util.spec_from_file_location("faster_whisper.vad", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def probabilities(session, audio):
    padded = np.pad(audio, (CONTEXT, WINDOW - len(audio) % WINDOW))
    hidden = cell = np.zeros((1, 1, 128), np.float32)
    found = []
    for start in range(0, len(padded) - CONTEXT, WINDOW):
        window = padded[None, start : start + CONTEXT + WINDOW]
        value, hidden, cell = session.run(None, {"input": window, "h": hidden, "c": cell})
        found.append(float(value.reshape(-1)[0]))
    return np.array(found, np.float32)


def main():
    model, vad_path = sys.argv[1:]
    root = pathlib.Path(__file__).resolve().parent.parent / "tests/fixtures"
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    vad = load_vad(vad_path)
    out = root / "vad"
    out.mkdir(exist_ok=True)
    for path in sorted((root / "audio").iterdir()):
        audio, rate = soundfile.read(path, dtype="int16")
        assert rate == 16000 and audio.ndim == 1, path
        audio = audio.astype(np.float32) / 32768
        found = probabilities(session, audio)
        vad.get_vad_model = lambda: lambda _: found
        chunks = {
            name: [[chunk["start"], chunk["end"]] for chunk in vad.get_speech_timestamps(audio, **options)]
            for name, options in OPTIONS.items()
        }
        value = {"samples": len(audio), "chunks": chunks, "probabilities": [round(float(p), 6) for p in found]}
        (out / f"{path.stem}.json").write_text(json.dumps(value) + "\n")
        print(path.stem, chunks["default"])


if __name__ == "__main__":
    main()
