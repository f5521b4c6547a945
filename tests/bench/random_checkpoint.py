"""Writes a checkpoint folder of a published model's shape with random weights: speed does not depend on what is in them.

usage: random_checkpoint.py OUT_DIR [tiny|base|turbo|large-v3]
"""
import json
import pathlib
import shutil
import sys

import numpy as np
from safetensors.numpy import save_file

VOCABULARY, MELS = 51865, 80
# Width, layers of the encoder and of the decoder, heads. Vocabulary and mel bands are those of tiny in all of them.
SHAPES = {"tiny": (384, 4, 4, 6), "base": (512, 6, 6, 8), "turbo": (1280, 32, 4, 20), "large-v3": (1280, 32, 32, 20)}
WIDTH, ENCODER_LAYERS, DECODER_LAYERS, HEADS = SHAPES[sys.argv[2] if len(sys.argv) > 2 else "base"]
BUNDLED = pathlib.Path(__file__).resolve().parents[1] / "fixtures/model/whisper-hush-tiny"


def weights() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    tensors: dict[str, np.ndarray] = {}

    def normal(name: str, shape: tuple[int, ...], scale: float) -> None:
        tensors[f"model.{name}"] = random.normal(0, scale, shape).astype(np.float16)

    def linear(name: str, out: int, fan_in: int, bias: bool = True) -> None:
        normal(name + ".weight", (out, fan_in), fan_in**-0.5)
        if bias:
            normal(name + ".bias", (out,), 0.02)

    def norm(name: str) -> None:
        tensors[f"model.{name}.weight"] = np.ones(WIDTH, np.float16)
        tensors[f"model.{name}.bias"] = np.zeros(WIDTH, np.float16)

    for conv, fan_in in (("conv1", MELS), ("conv2", WIDTH)):
        normal(f"encoder.{conv}.weight", (WIDTH, fan_in, 3), (3 * fan_in) ** -0.5)
        normal(f"encoder.{conv}.bias", (WIDTH,), 0.02)
    for side, positions in (("encoder", 1500), ("decoder", 448)):
        normal(f"{side}.embed_positions.weight", (positions, WIDTH), 0.1)
        norm(f"{side}.layer_norm")
        for i in range(ENCODER_LAYERS if side == "encoder" else DECODER_LAYERS):
            layer = f"{side}.layers.{i}"
            for attention in ["self_attn"] + (["encoder_attn"] if side == "decoder" else []):
                for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
                    linear(f"{layer}.{attention}.{part}", WIDTH, WIDTH, bias=part != "k_proj")
                norm(f"{layer}.{attention}_layer_norm")
            linear(f"{layer}.fc1", 4 * WIDTH, WIDTH)
            linear(f"{layer}.fc2", WIDTH, 4 * WIDTH)
            norm(f"{layer}.final_layer_norm")
    normal("decoder.embed_tokens.weight", (VOCABULARY, WIDTH), 0.05)
    return tensors


def main() -> None:
    out = pathlib.Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    config = json.loads((BUNDLED / "config.json").read_text())
    for side, layers in (("encoder", ENCODER_LAYERS), ("decoder", DECODER_LAYERS)):
        config |= {f"{side}_layers": layers, f"{side}_attention_heads": HEADS, f"{side}_ffn_dim": 4 * WIDTH}
    config["d_model"] = WIDTH
    generation = json.loads((BUNDLED / "generation_config.json").read_text())
    generation["alignment_heads"] = [[layer, 1] for layer in range(DECODER_LAYERS // 2, DECODER_LAYERS)]
    (out / "config.json").write_text(json.dumps(config))
    (out / "generation_config.json").write_text(json.dumps(generation))
    for name in ("tokenizer.json", "preprocessor_config.json", "tokenizer_config.json"):
        shutil.copy(BUNDLED / name, out / name)
    save_file(weights(), out / "model.safetensors")


if __name__ == "__main__":
    main()
