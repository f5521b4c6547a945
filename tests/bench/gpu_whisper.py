"""Whisper of Hugging Face's transformers on a GPU, for `scripts/gpu`: the same work as `hush-bench engine`.

usage: gpu_whisper.py CHECKPOINT RUNS TOKENS

One window of noise, a forced prompt, TOKENS greedy steps with the cache, fp16. Prints milliseconds per run.
"""
import json
import sys
import time


def main() -> int:
    checkpoint, runs, tokens = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    try:
        import torch
        from transformers import WhisperForConditionalGeneration
    except ImportError as missing:
        print(f"skipped: the peer is not here ({missing})")
        return 0
    if not torch.cuda.is_available():
        print("skipped: this PyTorch sees no GPU")
        return 0
    model = WhisperForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float16).to("cuda").eval()
    config = model.config
    mel = torch.rand(1, config.num_mel_bins, 2 * config.max_source_positions, dtype=torch.float16, device="cuda") * 2 - 1
    prompt = torch.tensor([[50258, 50259, 50359, 50363]], device="cuda")
    print(f"transformers, {checkpoint.rsplit('/', 1)[-1]} fp16, {torch.cuda.get_device_name()}")
    with torch.inference_mode():
        # One run more comes first and warms up.
        for run in range(runs + 1):
            torch.cuda.synchronize()
            begun = time.perf_counter()
            encoded = model.model.encoder(mel)
            torch.cuda.synchronize()
            encode_ms = (time.perf_counter() - begun) * 1e3
            out = model(encoder_outputs=encoded, decoder_input_ids=prompt, use_cache=True)
            for token in range(tokens):
                step = torch.tensor([[1000 + token]], device="cuda")
                cache = out.past_key_values
                out = model(encoder_outputs=encoded, decoder_input_ids=step, past_key_values=cache, use_cache=True)
                # The next token is chosen from the logits: they must be there.
                out.logits[0, -1].argmax().item()
            total_ms = (time.perf_counter() - begun) * 1e3
            if run:
                print(json.dumps({"encode_ms": encode_ms, "total_ms": total_ms, "tokens": tokens}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
