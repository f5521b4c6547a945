"""Peer: the same random weights through CTranslate2. Prints one JSON line of milliseconds per run.

usage: ctranslate2_speed.py CHECKPOINT_DIR COMPUTE_TYPE THREADS RUNS TOKENS [cpu|cuda]

CTranslate2 generates at most half of `max_length` (the reference keeps the other half for the prompt).
The model is built from NumPy arrays through `ctranslate2.specs`, so that no PyTorch is needed. The end-of-text token
is suppressed: each run decodes exactly TOKENS tokens after the 4 tokens of the prompt.
"""
import json
import os
import sys
import tempfile
import time

import ctranslate2
import numpy as np
from ctranslate2.specs import whisper_spec
from safetensors.numpy import load_file

PROMPT = [50258, 50259, 50359, 50363]
END_OF_TEXT = 50257


def build(checkpoint: str, out: str) -> dict:
    config = json.load(open(f"{checkpoint}/config.json"))
    tensors = {k.removeprefix("model."): v.astype(np.float32) for k, v in load_file(f"{checkpoint}/model.safetensors").items()}
    spec = whisper_spec.WhisperSpec(
        config["encoder_layers"], config["encoder_attention_heads"], config["decoder_layers"], config["decoder_attention_heads"]
    )

    def norm(target, name):
        target.gamma, target.beta = tensors[name + ".weight"], tensors[name + ".bias"]

    def linear(target, names):
        weights = [tensors[n + ".weight"] for n in names]
        biases = [tensors.get(n + ".bias", np.zeros(w.shape[0], np.float32)) for n, w in zip(names, weights)]
        target.weight, target.bias = np.concatenate(weights), np.concatenate(biases)

    def attention(target, name, fused_query):
        parts = [["q_proj", "k_proj", "v_proj"]] if fused_query else [["q_proj"], ["k_proj", "v_proj"]]
        for i, group in enumerate(parts):
            linear(target.linear[i], [f"{name}.{p}" for p in group])
        linear(target.linear[-1], [f"{name}.out_proj"])

    def feed_forward(layer, name):
        norm(layer.ffn.layer_norm, f"{name}.final_layer_norm")
        linear(layer.ffn.linear_0, [f"{name}.fc1"])
        linear(layer.ffn.linear_1, [f"{name}.fc2"])

    for conv in ("conv1", "conv2"):
        target = getattr(spec.encoder, conv)
        target.weight, target.bias = tensors[f"encoder.{conv}.weight"], tensors[f"encoder.{conv}.bias"]
    for side, part in (("encoder", spec.encoder), ("decoder", spec.decoder)):
        part.position_encodings.encodings = tensors[f"{side}.embed_positions.weight"]
        norm(part.layer_norm, f"{side}.layer_norm")
        for i, layer in enumerate(part.layer):
            name = f"{side}.layers.{i}"
            norm(layer.self_attention.layer_norm, f"{name}.self_attn_layer_norm")
            attention(layer.self_attention, f"{name}.self_attn", True)
            if side == "decoder":
                norm(layer.attention.layer_norm, f"{name}.encoder_attn_layer_norm")
                attention(layer.attention, f"{name}.encoder_attn", False)
            feed_forward(layer, name)
    spec.decoder.embeddings.weight = tensors["decoder.embed_tokens.weight"]
    spec.decoder.projection.weight = tensors["decoder.embed_tokens.weight"]
    spec.config.suppress_ids = []
    spec.config.suppress_ids_begin = []
    spec.config.lang_ids = list(range(50259, 50358))
    spec.config.alignment_heads = [[0, 0]]
    tokens = [f"token{i}" for i in range(config["vocab_size"])]
    for token in json.load(open(f"{checkpoint}/tokenizer.json"))["added_tokens"]:
        tokens[token["id"]] = token["content"]
    spec.register_vocabulary(tokens)
    spec.validate()
    spec.save(out)
    return config


def main() -> None:
    checkpoint, compute_type, threads, runs, count = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6])
    device = sys.argv[6] if len(sys.argv) > 6 else "cpu"
    with tempfile.TemporaryDirectory() as out:
        config = build(checkpoint, out)
        model = ctranslate2.models.Whisper(out, device=device, compute_type=compute_type, intra_threads=threads, inter_threads=1)
        mel = np.random.default_rng(0).normal(0, 0.5, (1, config["num_mel_bins"], 3000)).astype(np.float32)
        features = ctranslate2.StorageView.from_array(mel)
        for _ in range(runs + 1):
            start = time.perf_counter()
            # On a GPU, to copy what was encoded is the way to wait for it.
            encoded = model.encode(features, to_cpu=device == "cuda")
            np.array(encoded)
            encode_ms = (time.perf_counter() - start) * 1e3
            result = model.generate(
                encoded, [PROMPT], beam_size=1, max_length=2 * count, suppress_blank=False, suppress_tokens=[END_OF_TEXT]
            )
            total_ms = (time.perf_counter() - start) * 1e3
            tokens = len(result[0].sequences_ids[0])
            print(json.dumps({"encode_ms": encode_ms, "total_ms": total_ms, "tokens": tokens}), flush=True)


if __name__ == "__main__":
    main()
