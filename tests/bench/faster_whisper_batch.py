"""Peer: the same random weights through faster-whisper's batched pipeline. Prints one JSON line per run.

usage: faster_whisper_batch.py CHECKPOINT_DIR COMPUTE_TYPE THREADS RUNS TOKENS WINDOWS

One recording of WINDOWS times 30 s of noise is cut at those places, so that each run decodes WINDOWS times TOKENS tokens
in one batch (see ctranslate2_speed.py for how their number is fixed). The time that its spectrograms take is not
counted.
"""
import json
import shutil
import sys
import tempfile
import time

import numpy as np
from ctranslate2_speed import END_OF_TEXT, PROMPT, build
from faster_whisper import BatchedInferencePipeline, WhisperModel

RATE, SECONDS = 16000, 30


def main() -> None:
    checkpoint, compute_type, threads, runs, count, windows = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:7])
    with tempfile.TemporaryDirectory() as out:
        build(checkpoint, out)
        for name in ("tokenizer.json", "preprocessor_config.json"):
            shutil.copy(f"{checkpoint}/{name}", out)
        model = WhisperModel(out, device="cpu", compute_type=compute_type, cpu_threads=threads, num_workers=1)
        spent = 0.0
        extract = model.feature_extractor.__call__

        def timed(*args: object, **options: object) -> np.ndarray:
            nonlocal spent
            start = time.perf_counter()
            try:
                return extract(*args, **options)
            finally:
                spent += time.perf_counter() - start

        model.feature_extractor = timed_like(model.feature_extractor, timed)
        audio = np.random.default_rng(0).normal(0, 0.1, windows * SECONDS * RATE).astype(np.float32)
        cuts = [{"start": i * SECONDS, "end": (i + 1) * SECONDS} for i in range(windows)]
        pipeline = BatchedInferencePipeline(model)
        for _ in range(runs + 1):
            spent, start = 0.0, time.perf_counter()
            segments, _ = pipeline.transcribe(
                audio, language="en", task="transcribe", beam_size=1, temperature=0.0, batch_size=windows,
                vad_filter=False, clip_timestamps=cuts, without_timestamps=True, suppress_blank=False,
                suppress_tokens=[END_OF_TEXT], max_new_tokens=2 * count - len(PROMPT),
            )  # fmt: skip
            tokens = sum(len(segment.tokens) for segment in segments)
            total = time.perf_counter() - start
            print(json.dumps({"total_ms": (total - spent) * 1e3, "features_ms": spent * 1e3, "tokens": tokens}), flush=True)


def timed_like(extractor: object, call: object) -> object:
    """The extractor with another call; everything else of it stays."""

    class Timed(type(extractor)):
        def __call__(self, *args: object, **options: object) -> np.ndarray:
            return call(*args, **options)

    timed = object.__new__(Timed)
    timed.__dict__.update(extractor.__dict__)
    return timed


if __name__ == "__main__":
    main()
