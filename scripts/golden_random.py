#!/usr/bin/env python3
"""Computes what openai/whisper computes with random weights in the true shapes; writes tests/fixtures/golden/*.json.

usage: golden_random.py [NAME...]        needs torch and openai-whisper 20250625; a minute and 3 GB of memory

The weights are a function of seed, tensor name and index (`tests/model/support/random.rs` of hush-whisper computes the
same), so nothing but the results is stored.
"""
import json
import pathlib
import sys

import numpy as np
import torch
from whisper.model import ModelDimensions, Whisper, disable_sdpa

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "golden"
SEED = 20250625
# Vocabulary, bins, width, heads, encoder layers, decoder layers, alignment heads.
SHAPES = {
    "tiny": (51865, 80, 384, 6, 4, 4, [[2, 2], [3, 0], [3, 5]]),
    "base": (51865, 80, 512, 8, 6, 6, [[3, 1], [4, 2], [5, 7]]),
    "large-v3-two-layers": (51866, 128, 1280, 20, 2, 2, [[0, 3], [1, 19]]),
    "small-one-decoder-layer": (51866, 128, 64, 2, 3, 1, [[0, 1]]),
}
TOKENS = [50258, 50259, 50359, 50363, 400, 7061, 11, 25, 31000, 50257, 50364, 9]
# Positions whose logits are kept: the prompt's last, and every step after it.
FIRST = 3

MIX = [(30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)]


def odd(name: str, count: int) -> np.ndarray:
    """`count` odd numbers from -127 to 127: splitmix64 over FNV-1a of the name."""
    stream = 0xCBF29CE484222325
    for byte in name.encode():
        stream = (stream ^ byte) * 0x100000001B3 % 2**64
    stream ^= SEED
    out = np.empty(count, np.int32)
    for start in range(0, count, 1 << 22):
        z = np.arange(start + 1, min(start + (1 << 22), count) + 1, dtype=np.uint64)
        z = z * np.uint64(0x9E3779B97F4A7C15) + np.uint64(stream)
        for shift, factor in MIX:
            z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
        z ^= z >> np.uint64(31)
        out[start : start + len(z)] = 2 * (z >> np.uint64(57)).astype(np.int32) - 127
    return out


def tensor(name: str, shape: tuple) -> np.ndarray:
    values = odd(name, int(np.prod(shape))).reshape(shape)
    if "layer_norm" in name and name.endswith(".weight"):
        return (1 + np.trunc(values / 8) / 128).astype(np.float32)
    if name.endswith(".bias"):
        scale = 1 / 16
    elif "embed_positions" in name:
        scale = 0.25
    else:
        inner, scale, reach = int(np.prod(shape[1:])), 1.0, 12
        while reach <= inner:
            reach, scale = reach * 4, scale / 2
        scale *= 4 if "embed_tokens" in name else 1
    return (values / 128 * scale).astype(np.float32)


# Parts of names, openai/whisper -> Hugging Face; the order matters.
NAMES = [
    ("blocks", "layers"),
    ("mlp.0", "fc1"),
    ("mlp.2", "fc2"),
    ("mlp_ln", "final_layer_norm"),
    ("cross_attn_ln", "encoder_attn_layer_norm"),
    ("attn_ln", "self_attn_layer_norm"),
    ("cross_attn.query", "encoder_attn.q_proj"),
    ("cross_attn.key", "encoder_attn.k_proj"),
    ("cross_attn.value", "encoder_attn.v_proj"),
    ("cross_attn.out", "encoder_ATTN.out_proj"),
    ("attn.query", "self_attn.q_proj"),
    ("attn.key", "self_attn.k_proj"),
    ("attn.value", "self_attn.v_proj"),
    ("attn.out", "self_attn.out_proj"),
    ("decoder.ln.", "decoder.layer_norm."),
    ("token_embedding", "embed_tokens"),
    ("encoder.positional_embedding", "encoder.embed_positions.weight"),
    ("decoder.positional_embedding", "decoder.embed_positions.weight"),
    ("ln_post", "layer_norm"),
]


def hugging_face(name: str) -> str:
    for old, new in NAMES:
        name = name.replace(old, new)
    return name.replace("encoder_ATTN", "encoder_attn")


def golden(vocab, bins, width, heads, encoder_layers, decoder_layers, alignment):
    dims = ModelDimensions(bins, 1500, width, heads, encoder_layers, vocab, 448, width, heads, decoder_layers)
    model = Whisper(dims).eval()
    weights = {k: torch.from_numpy(tensor(hugging_face(k), tuple(v.shape))) for k, v in model.state_dict().items()}
    model.load_state_dict(weights)
    del weights
    mel = torch.from_numpy((odd("mel", bins * 3000) / 128).astype(np.float32).reshape(1, bins, 3000))
    scores = {}
    for i, block in enumerate(model.decoder.blocks):
        block.cross_attn.register_forward_hook(lambda _m, _i, out, i=i: scores.__setitem__(i, out[-1]))
    with torch.no_grad(), disable_sdpa():
        hidden = model.encoder(mel)
        logits = model.decoder(torch.tensor([TOKENS]), hidden)[0]
    rng = np.random.default_rng(0)
    places = [[int(rng.integers(1500)), int(rng.integers(width))] for _ in range(400)]
    ids = sorted({*rng.integers(0, vocab, 200).tolist(), 0, 50257, 50258, vocab - 1})
    attention = []
    for layer, head in alignment:
        rows = torch.softmax(scores[layer][0, head].float(), dim=-1)
        for token in (0, 5, len(TOKENS) - 1):
            top = rows[token].argmax().item()
            for frame in (top, 0, 700, 1499):
                attention.append([layer, head, token, frame, round(rows[token, frame].item(), 7)])
    return {
        "seed": SEED,
        "config": {
            "d_model": width,
            "encoder_layers": encoder_layers,
            "encoder_attention_heads": heads,
            "encoder_ffn_dim": 4 * width,
            "decoder_layers": decoder_layers,
            "decoder_attention_heads": heads,
            "decoder_ffn_dim": 4 * width,
            "num_mel_bins": bins,
            "max_source_positions": 1500,
            "max_target_positions": 448,
            "vocab_size": vocab,
        },
        "alignment_heads": alignment,
        "tokens": TOKENS,
        "first": FIRST,
        "hidden": [[*place, round(hidden[0, place[0], place[1]].item(), 5)] for place in places],
        "logit_ids": ids,
        "logits": [[round(v, 5) for v in logits[i, ids].tolist()] for i in range(FIRST, len(TOKENS))],
        "best": [logits[i].argmax().item() for i in range(FIRST, len(TOKENS))],
        # Layer, head, token, frame, weight.
        "attention": attention,
    }


def main() -> int:
    OUT.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[1:] or SHAPES:
        result = golden(*SHAPES[name])
        (OUT / f"{name}.json").write_text(json.dumps(result, separators=(",", ":")) + "\n")
        largest = max(abs(v) for row in result["logits"] for v in row)
        print(f"{name}: largest logit {largest:.1f}, hidden {max(abs(h[2]) for h in result['hidden']):.1f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
