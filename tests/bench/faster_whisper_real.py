"""Peer of `real.py`: faster-whisper on real speech, one process that answers a JSON line with a JSON line.

usage: faster_whisper_real.py CT2_DIR COMPUTE_TYPE THREADS

Requests: {"path": FILE, "language": CODE or null}; with "vad": true through the batched pipeline with its own voice
activity detection; {"paths": [FILE...], "language": CODE}: all at once through the batched pipeline, each file a clip.
Answers: {"text", "language", "seconds"}, or {"texts", "seconds"}. Before the first answer: {"ready": true}.
"""
import json
import pathlib
import shutil
import sys
import tempfile
import time

import numpy as np
from faster_whisper import BatchedInferencePipeline, WhisperModel
from faster_whisper.audio import decode_audio

RATE = 16000
AT_ONCE = 8
# Silence between clips that are batched, so that none hears the end of another.
GAP_SECONDS = 0.5


def with_vocabulary(checkpoint: pathlib.Path, out: pathlib.Path) -> pathlib.Path:
    """A folder with the list of tokens that CTranslate2 wants, where the checkpoint has none."""
    for path in checkpoint.iterdir():
        if path.name == "model.bin":
            (out / path.name).symlink_to(path.resolve())
        else:
            shutil.copy(path, out)
    if not any((out / name).exists() for name in ("vocabulary.json", "vocabulary.txt")):
        tokenizer = json.loads((checkpoint / "tokenizer.json").read_text())
        tokens = dict(tokenizer["model"]["vocab"]) | {added["content"]: added["id"] for added in tokenizer["added_tokens"]}
        ordered = [token for token, _ in sorted(tokens.items(), key=lambda entry: entry[1])]
        (out / "vocabulary.json").write_text(json.dumps(ordered))
    return out


class Peer:
    def __init__(self, folder: str, compute_type: str, threads: int):
        self.model = WhisperModel(folder, device="cpu", compute_type=compute_type, cpu_threads=threads, num_workers=1)
        self.batched = BatchedInferencePipeline(self.model)

    def one(self, request: dict) -> dict:
        begun = time.perf_counter()
        if request.get("vad"):
            segments, info = self.batched.transcribe(
                request["path"], language=request["language"], beam_size=1, batch_size=AT_ONCE, vad_filter=True)
        else:
            segments, info = self.model.transcribe(request["path"], language=request["language"], beam_size=1)
        text = " ".join(segment.text for segment in segments)
        return {"text": text, "language": info.language, "seconds": time.perf_counter() - begun}

    def together(self, request: dict) -> dict:
        begun = time.perf_counter()
        gap = np.zeros(int(GAP_SECONDS * RATE), np.float32)
        pieces, cuts, at = [], [], 0
        for path in request["paths"]:
            audio = decode_audio(path, sampling_rate=RATE)
            cuts.append({"start": at / RATE, "end": (at + len(audio)) / RATE})
            pieces += [audio, gap]
            at += len(audio) + len(gap)
        segments, _ = self.batched.transcribe(
            np.concatenate(pieces), language=request["language"], beam_size=1, batch_size=len(cuts), vad_filter=False,
            clip_timestamps=cuts)
        texts = ["" for _ in cuts]
        for segment in segments:
            middle = (segment.start + segment.end) / 2
            nearest = min(range(len(cuts)), key=lambda cut: abs((cuts[cut]["start"] + cuts[cut]["end"]) / 2 - middle))
            texts[nearest] += segment.text
        return {"texts": texts, "seconds": time.perf_counter() - begun}


def main() -> None:
    checkpoint, compute_type, threads = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    with tempfile.TemporaryDirectory() as scratch:
        peer = Peer(str(with_vocabulary(checkpoint, pathlib.Path(scratch))), compute_type, threads)
        print(json.dumps({"ready": True}), flush=True)
        for line in sys.stdin:
            request = json.loads(line)
            answer = peer.together(request) if "paths" in request else peer.one(request)
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
