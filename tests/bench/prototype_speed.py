"""Peer: ONNX graphs of the fast layout driven from Python through IoBinding. Prints one JSON line per run.

usage: prototype_speed.py GRAPHS_DIR CHECKPOINT_DIR THREADS RUNS TOKENS

GRAPHS_DIR comes from prototype_graphs.py, the Python prototype that the Rust graph builder must not be slower than.
Prompt and tokens are forced, so that every run does the same work.
"""
import json
import sys
import time

import numpy as np
import onnxruntime as ort

PROMPT = [50258, 50259, 50359, 50363]
SLOTS = 448


def main() -> None:
    graphs, checkpoint, threads, runs, count = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6])
    config = json.load(open(f"{checkpoint}/config.json"))
    layers, heads = config["decoder_layers"], config["decoder_attention_heads"]
    width = config["d_model"] // heads
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    start = time.perf_counter()
    encoder = ort.InferenceSession(f"{graphs}/encoder.onnx", options)
    decoder = ort.InferenceSession(f"{graphs}/decoder.onnx", options)
    sessions_ms = (time.perf_counter() - start) * 1e3
    names = [f"{kv}_{i}" for i in range(layers) for kv in "kv"]
    mel = np.random.default_rng(0).normal(0, 0.5, (1, config["num_mel_bins"], 2 * 1500)).astype(np.float32)
    cache = {n: ort.OrtValue.ortvalue_from_numpy(np.zeros((1, heads, SLOTS, width), np.float32)) for n in names}

    def step(ids: list[int], length: int, cross: dict) -> None:
        binding = decoder.io_binding()
        feeds = {
            "input_ids": np.array([ids], np.int32),
            "position_ids": np.arange(length - len(ids), length, dtype=np.int32)[None],
            "seqlens_k": np.array([length - 1], np.int32),
            "total_sequence_length": np.array(length, np.int32),
        }
        for name, value in feeds.items():
            binding.bind_cpu_input(name, value)
        for name in names:
            binding.bind_cpu_input("cross_" + name, cross[name])
            binding.bind_ortvalue_input("self_" + name, cache[name])
            binding.bind_ortvalue_output("present_" + name, cache[name])
        binding.bind_output("logits")
        binding.bind_output("next_token")
        decoder.run_with_iobinding(binding)
        binding.copy_outputs_to_cpu()

    for _ in range(runs + 1):
        start = time.perf_counter()
        cross = dict(zip(names, encoder.run([f"cross_{n}" for n in names], {"mel": mel})))
        encode_ms = (time.perf_counter() - start) * 1e3
        step(PROMPT, len(PROMPT), cross)
        for i in range(count):
            step([1000 + i], len(PROMPT) + 1 + i, cross)
        total_ms = (time.perf_counter() - start) * 1e3
        print(json.dumps({"encode_ms": encode_ms, "total_ms": total_ms, "sessions_ms": sessions_ms, "tokens": count}), flush=True)


if __name__ == "__main__":
    main()
