"""Writes a checkpoint of a published model's shape: how fast a model is does not depend on what its weights say."""
import json
import pathlib
import random
import shutil
import struct


def write_checkpoint(out: pathlib.Path, bundled: pathlib.Path, shape: dict, seed: int = 0) -> int:
    """Tokenizer and vocabulary are the bundled model's. Needs no NumPy. Returns the bytes of the weights."""
    width, mels = shape["width"], shape["mels"]
    out.mkdir(parents=True)
    config = json.loads((bundled / "config.json").read_text())
    sides = {"encoder": shape["encoder_layers"], "decoder": shape["decoder_layers"]}
    for side, layers in sides.items():
        config |= {f"{side}_layers": layers, f"{side}_attention_heads": shape["heads"], f"{side}_ffn_dim": 4 * width}
    config |= {"d_model": width, "num_mel_bins": mels}
    generation = json.loads((bundled / "generation_config.json").read_text())
    generation["alignment_heads"] = [[layer, 0] for layer in range(sides["decoder"] // 2, sides["decoder"])]
    features = json.loads((bundled / "preprocessor_config.json").read_text()) | {"feature_size": mels}
    features.pop("mel_filters", None)
    for name, content in ("config", config), ("generation_config", generation), ("preprocessor_config", features):
        (out / f"{name}.json").write_text(json.dumps(content))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(bundled / name, out / name)

    # Name, shape, and the deviation of the weights; a number for weights that are all equal to it.
    tensors = []

    def linear(name: str, to: int, of: int, bias: bool = True) -> None:
        tensors.append((f"{name}.weight", [to, of], "deviation", of**-0.5))
        if bias:
            tensors.append((f"{name}.bias", [to], "deviation", 0.02))

    def norm(name: str) -> None:
        tensors.extend([(f"{name}.weight", [width], "equal", 1.0), (f"{name}.bias", [width], "equal", 0.0)])

    for name, of in ("conv1", mels), ("conv2", width):
        tensors.append((f"encoder.{name}.weight", [width, of, 3], "deviation", (3 * of) ** -0.5))
        tensors.append((f"encoder.{name}.bias", [width], "deviation", 0.02))
    for side, positions in ("encoder", config["max_source_positions"]), ("decoder", config["max_target_positions"]):
        tensors.append((f"{side}.embed_positions.weight", [positions, width], "deviation", 0.1))
        norm(f"{side}.layer_norm")
        for layer in (f"{side}.layers.{index}" for index in range(sides[side])):
            for attention in ["self_attn"] + ["encoder_attn"] * (side == "decoder"):
                for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
                    linear(f"{layer}.{attention}.{part}", width, width, bias=part != "k_proj")
                norm(f"{layer}.{attention}_layer_norm")
            linear(f"{layer}.fc1", 4 * width, width)
            linear(f"{layer}.fc2", width, 4 * width)
            norm(f"{layer}.final_layer_norm")
    tensors.append(("decoder.embed_tokens.weight", [config["vocab_size"], width], "deviation", 0.05))

    # safetensors: the length of the header, the header, the numbers. transformers asks for the format.
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, dimensions, _, _ in tensors:
        length = 2
        for dimension in dimensions:
            length *= dimension
        header[f"model.{name}"] = {"dtype": "F16", "shape": dimensions, "data_offsets": [at, at + length]}
        at += length
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    draw = random.Random(seed)
    # A prime number of draws is repeated, so that no two rows are equal.
    draws = [draw.gauss(0, 1) for _ in range(65521)]
    blocks = {}
    with (out / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, _, kind, value in tensors:
            begin, end = header[f"model.{name}"]["data_offsets"]
            if (kind, value) not in blocks:
                numbers = [value * number for number in draws] if kind == "deviation" else [value] * 4096
                blocks[kind, value] = struct.pack(f"<{len(numbers)}e", *numbers)
            block, left = blocks[kind, value], end - begin
            while left:
                left -= file.write(block[:left])
    return at
