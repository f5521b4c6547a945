"""A prototype of the graph builder in Python, the peer that the one in Rust must not be slower than.

usage: prototype_graphs.py CHECKPOINT_DIR OUT_DIR fp32|int8
Shapes: B rows, H heads, d head width, T 448 slots, E 1500 frames, S tokens of this call, V vocabulary.
"""
import sys, os, json, numpy as np, onnx
from onnx import helper as h, TensorProto as TP, numpy_helper as nh
from safetensors.numpy import load_file
F, I32, I64, MS = TP.FLOAT, TP.INT32, TP.INT64, "com.microsoft"

class Graph:
    def __init__(s, sd): s.sd, s.nodes, s.inits, s.seen, s.ins, s.outs = sd, [], [], set(), [], []
    def init(s, n, a):
        if n not in s.seen: s.seen.add(n); s.inits.append(nh.from_array(np.ascontiguousarray(a), n))
        return n
    def w(s, name): return s.sd[name].astype(np.float32)
    def op(s, op, ins, outs, dom="", **k):
        outs = [outs] if isinstance(outs, str) else outs
        s.nodes.append(h.make_node(op, ins, outs, domain=dom, name=f"{op}_{outs[0]}", **k)); return outs[0]
    def input(s, n, t, shape): s.ins.append(h.make_tensor_value_info(n, t, shape)); return n
    def output(s, n, t, shape): s.outs.append(h.make_tensor_value_info(n, t, shape)); return n
    def linear(s, x, name, out, bias=True):
        s.op("MatMul", [x, s.init(name + ".w", s.w(name + ".weight").T)], out + "_mm" if bias else out)
        if bias: s.op("Add", [out + "_mm", s.init(name + ".b", s.w(name + ".bias"))], out)
        return out
    def ln(s, name): return s.init(name + ".g", s.w(name + ".weight")), s.init(name + ".b", s.w(name + ".bias"))
    def skip_ln(s, x, y, ybias, lnname, out):  # -> normalised, sum
        g, b = s.ln(lnname)
        s.nodes.append(h.make_node("SkipLayerNormalization", [x, y, g, b, ybias], [out + "_n", "", "", out + "_s"], domain=MS, name="SLN_" + out, epsilon=1e-5)); return out + "_n", out + "_s"
    def qkv(s, x, a, out):  # packed projection, split
        W = np.concatenate([s.w(a + p + "_proj.weight").T for p in "qkv"], 1); D = W.shape[0]
        B = np.concatenate([s.w(a + "q_proj.bias"), np.zeros(D, np.float32), s.w(a + "v_proj.bias")])
        s.op("MatMul", [x, s.init(a + "qkv.w", W)], out + "_mm"); return s.op("Add", [out + "_mm", s.init(a + "qkv.b", B)], out)
    def mlp(s, x, l, out):
        s.op("MatMul", [x, s.init(l + "fc1.w", s.w(l + "fc1.weight").T)], out + "_1")
        s.op("BiasGelu", [out + "_1", s.init(l + "fc1.b", s.w(l + "fc1.bias"))], out + "_2", MS)
        return s.op("MatMul", [out + "_2", s.init(l + "fc2.w", s.w(l + "fc2.weight").T)], out)
    def model(s, name):
        return h.make_model(h.make_graph(s.nodes, name, s.ins, s.outs, s.inits), opset_imports=[h.make_opsetid("", 18), h.make_opsetid(MS, 1)], ir_version=10)

def encoder(sd, c):
    """mel [B, bins, 3000] -> cross_k_i, cross_v_i [B, H, 1500, d] for each decoder layer."""
    g = Graph(sd); D, He, H, E = c["d_model"], c["encoder_attention_heads"], c["decoder_attention_heads"], c["max_source_positions"]; p = "model.encoder."
    g.input("mel", F, ["B", c["num_mel_bins"], 2 * E]); g.op("Transpose", ["mel"], "melT", perm=[0, 2, 1]); x = "melT"
    g.init("pads", np.array([0, 1, 0, 0, 1, 0], np.int64)); g.init("ax1", np.array([1], np.int64))
    for i, step in ((1, 1), (2, 2)):  # convolution of width 3 as slice + concat + MatMul
        W = g.w(p + f"conv{i}.weight"); g.op("Pad", [x, "pads"], f"c{i}p")
        for k in range(3):
            g.op("Slice", [f"c{i}p", g.init(f"c{i}s{k}", np.array([k], np.int64)), g.init(f"c{i}e{k}", np.array([k + 2 * E - (step - 1)], np.int64)), "ax1", g.init(f"st{step}", np.array([step], np.int64))], f"c{i}_{k}")
        g.op("Concat", [f"c{i}_0", f"c{i}_1", f"c{i}_2"], f"c{i}c", axis=2)
        g.op("MatMul", [f"c{i}c", g.init(f"conv{i}.w", W.transpose(2, 1, 0).reshape(-1, W.shape[0]))], f"c{i}m")
        x = g.op("BiasGelu", [f"c{i}m", g.init(f"conv{i}.b", g.w(p + f"conv{i}.bias"))], f"c{i}g", MS)
    x = g.op("Add", [x, g.init("pos", g.w(p + "embed_positions.weight"))], "x0")
    gg, b = g.ln(p + "layers.0.self_attn_layer_norm"); n = g.op("LayerNormalization", [x, gg, b], "n0", axis=-1, epsilon=1e-5)
    for i in range(c["encoder_layers"]):
        l = p + f"layers.{i}."; g.qkv(n, l + "self_attn.", f"qkv{i}")
        g.op("Split", [f"qkv{i}"], [f"q{i}", f"k{i}", f"v{i}"], axis=2, num_outputs=3)
        g.op("MultiHeadAttention", [f"q{i}", f"k{i}", f"v{i}"], f"a{i}", MS, num_heads=He)
        g.op("MatMul", [f"a{i}", g.init(l + "o.w", g.w(l + "self_attn.out_proj.weight").T)], f"o{i}")
        n, x = g.skip_ln(x, f"o{i}", g.init(l + "o.b", g.w(l + "self_attn.out_proj.bias")), l + "final_layer_norm", f"m{i}")
        y = g.mlp(n, l, f"f{i}"); nxt = p + (f"layers.{i+1}.self_attn_layer_norm" if i + 1 < c["encoder_layers"] else "layer_norm")
        n, x = g.skip_ln(x, y, g.init(l + "fc2.b", g.w(l + "fc2.bias")), nxt, f"e{i}")
    g.init("heads", np.array([0, 0, H, D // H], np.int64))
    for i in range(c["decoder_layers"]):
        a = f"model.decoder.layers.{i}.encoder_attn."
        for kv, bias in (("k", False), ("v", True)):
            y = g.linear(n, a + kv + "_proj", f"x{kv}{i}", bias); g.op("Reshape", [y, "heads"], f"x{kv}{i}r")
            g.op("Transpose", [f"x{kv}{i}r"], g.output(f"cross_{kv}_{i}", F, ["B", H, E, D // H]), perm=[0, 2, 1, 3])
    return g.model("encoder")

def decoder(sd, c, align=None):
    """ids, positions [B, S], seqlens_k [B], shared self-KV [B, H, T, d], cross-KV -> logits [B, V] of the last position, next_token [B].
    With align (a list of [layer, head]): no cache; -> weights [B, len(align), S, 1500], softmax(QK) of those cross-attention heads."""
    g = Graph(sd); D, H, V, L, E = c["d_model"], c["decoder_attention_heads"], c["vocab_size"], c["decoder_layers"], c["max_source_positions"]; d = D // H; p = "model.decoder."
    g.input("input_ids", I32, ["B", "S"]); g.input("position_ids", I32, ["B", "S"])
    if not align: g.input("seqlens_k", I32, ["B"]); g.input("total_sequence_length", I32, [])
    emb = g.init("emb", g.w(p + "embed_tokens.weight"))
    g.op("Gather", [emb, "input_ids"], "te"); g.op("Gather", [g.init("pos", g.w(p + "embed_positions.weight")), "position_ids"], "pe"); x = g.op("Add", ["te", "pe"], "x0")
    gg, b = g.ln(p + "layers.0.self_attn_layer_norm"); n = g.op("LayerNormalization", [x, gg, b], "n0", axis=-1, epsilon=1e-5); picked = []
    for i in range(L if not align else max(l for l, _ in align) + 1):
        l = p + f"layers.{i}."
        for kv in "kv": g.input(f"cross_{kv}_{i}", F, ["B", H, E, d])
        g.qkv(n, l + "self_attn.", f"qkv{i}")
        if align:
            g.op("Split", [f"qkv{i}"], [f"q{i}", f"k{i}", f"v{i}"], axis=2, num_outputs=3); g.op("MultiHeadAttention", [f"q{i}", f"k{i}", f"v{i}"], f"a{i}", MS, num_heads=H, unidirectional=1)
        else:
            for kv in "kv": g.input(f"self_{kv}_{i}", F, ["B", H, "T", d]); g.output(f"present_{kv}_{i}", F, ["B", H, "T", d])
            g.op("GroupQueryAttention", [f"qkv{i}", "", "", f"self_k_{i}", f"self_v_{i}", "seqlens_k", "total_sequence_length"], [f"a{i}", f"present_k_{i}", f"present_v_{i}"], MS, num_heads=H, kv_num_heads=H)
        g.op("MatMul", [f"a{i}", g.init(l + "o.w", g.w(l + "self_attn.out_proj.weight").T)], f"o{i}")
        n, x = g.skip_ln(x, f"o{i}", g.init(l + "o.b", g.w(l + "self_attn.out_proj.bias")), l + "encoder_attn_layer_norm", f"s{i}")
        q = g.linear(n, l + "encoder_attn.q_proj", f"cq{i}")
        hs = [hd for ll, hd in align or [] if ll == i]
        if hs:
            g.init("hd", np.array([0, 0, H, d], np.int64)); g.op("Reshape", [q, "hd"], f"cqr{i}"); g.op("Transpose", [f"cqr{i}"], f"cqt{i}", perm=[0, 2, 1, 3]); sel = g.init(f"sel{i}", np.array(hs, np.int64))
            g.op("Gather", [f"cqt{i}", sel], f"cqs{i}", axis=1); g.op("Gather", [f"cross_k_{i}", sel], f"cks{i}", axis=1); g.op("Transpose", [f"cks{i}"], f"ckt{i}", perm=[0, 1, 3, 2])
            g.op("MatMul", [f"cqs{i}", f"ckt{i}"], f"qk{i}"); g.op("Mul", [f"qk{i}", g.init("scale", np.array(d ** -0.5, np.float32))], f"qks{i}"); g.op("Softmax", [f"qks{i}"], f"w{i}", axis=-1); picked.append(f"w{i}")
        if align and i == max(l for l, _ in align): break
        g.op("MultiHeadAttention", [q, f"cross_k_{i}", f"cross_v_{i}"], f"c{i}", MS, num_heads=H)
        g.op("MatMul", [f"c{i}", g.init(l + "co.w", g.w(l + "encoder_attn.out_proj.weight").T)], f"co{i}")
        n, x = g.skip_ln(x, f"co{i}", g.init(l + "co.b", g.w(l + "encoder_attn.out_proj.bias")), l + "final_layer_norm", f"t{i}")
        y = g.mlp(n, l, f"f{i}"); nxt = p + (f"layers.{i+1}.self_attn_layer_norm" if i + 1 < L else "layer_norm")
        n, x = g.skip_ln(x, y, g.init(l + "fc2.b", g.w(l + "fc2.bias")), nxt, f"e{i}")
    if align:
        g.op("Concat", picked, g.output("weights", F, ["B", len(align), "S", E]), axis=1); return g.model("align")
    g.op("Slice", [n, g.init("m1", np.array([-1], np.int64)), g.init("big", np.array([2**62], np.int64)), g.init("ax1", np.array([1], np.int64))], "last")
    g.op("Squeeze", ["last", "ax1"], "last2"); g.op("Gemm", ["last2", emb], g.output("logits", F, ["B", V]), transB=1)
    g.op("ArgMax", ["logits"], g.output("next_token", I64, ["B"]), axis=-1, keepdims=0)
    return g.model("decoder")

def quantise(path, bits8_weights_only):
    """Encoder: dynamic int8 MatMul (weights per channel). Decoder: MatMulNBits, 8 bits, blocks of 32, accuracy level 4."""
    if bits8_weights_only:
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
        m = onnx.load(path); q = MatMulNBitsQuantizer(m, bits=8, block_size=int(os.environ.get("BLOCK", "32")), is_symmetric=True, accuracy_level=4); q.process(); onnx.save(q.model.model, path)
    else:
        from onnxruntime.quantization import quantize_dynamic, QuantType
        quantize_dynamic(path, path, op_types_to_quantize=["MatMul"], weight_type=QuantType.QInt8, per_channel=True, reduce_range=False, extra_options={"DefaultTensorType": TP.FLOAT})

if __name__ == "__main__":
    src, out, prec = sys.argv[1:4]; os.makedirs(out, exist_ok=True)
    sd = load_file(f"{src}/model.safetensors"); c = json.load(open(f"{src}/config.json")); heads = json.load(open(f"{src}/generation_config.json")).get("alignment_heads")
    for n, m in (("encoder", encoder(sd, c)), ("decoder", decoder(sd, c)), ("align", decoder(sd, c, heads) if heads else None)):
        if m is None: continue
        if n == "decoder" and prec == "int8":  # the vocabulary projection as MatMul so that it is quantised too
            i = next(k for k, x in enumerate(m.graph.node) if x.op_type == "Gemm"); g = m.graph.node[i]; e = next(t for t in m.graph.initializer if t.name == "emb")
            m.graph.initializer.append(nh.from_array(np.ascontiguousarray(nh.to_array(e).T), "embT")); m.graph.node[i].CopyFrom(h.make_node("MatMul", [g.input[0], "embT"], list(g.output), name="logits_mm"))
        f = f"{out}/{n}.onnx"; onnx.save(m, f)
        if prec == "int8" and n != "align": quantise(f, n == "decoder" or os.environ.get("ENC") == "nbits")
        print(n, os.path.getsize(f) >> 10, "KiB")
