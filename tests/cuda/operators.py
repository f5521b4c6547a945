#!/usr/bin/env python3
"""Compares operators of ONNX one by one: ONNX Runtime's CPU provider against its CUDA provider on the double.

usage: operators.py [WORD...]      only cases whose names hold one of the words; exit status 1 when a result differs

For those who add kernels. It needs Python's `numpy`, `onnx` and `onnxruntime-gpu` (the version of scripts/fetch-onnxruntime),
and LD_LIBRARY_PATH with the folder of the double. Without cuDNN the provider has no ReduceMax, ReduceMin, ReduceProd, ReduceL2
and ReduceLogSumExp.
"""
import sys

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

HALF, FLOAT, INT, LONG, BOOL = np.float16, np.float32, np.int32, np.int64, np.bool_
ELEMENTS = {np.dtype(kind): helper.np_dtype_to_tensor_dtype(np.dtype(kind)) for kind in (HALF, FLOAT, INT, LONG, BOOL)}
random = np.random.default_rng(1)
different = []


def values(kind, *shape):
    if np.dtype(kind).kind == "f":
        return random.standard_normal(shape).astype(kind)
    return random.integers(0, 2, shape).astype(bool) if kind is BOOL else random.integers(1, 50, shape).astype(kind)


def longs(*numbers):
    return np.array(numbers, LONG)


def run(model, inputs, provider):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if provider != "CPUExecutionProvider":
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return onnxruntime.InferenceSession(model, options, providers=[provider]).run(None, inputs)


def case(name, operator, inputs, constants=None, outputs=1, near=2e-3, domain="", opset=23, **attributes):
    """One operator; constants are inputs that the graph itself holds."""
    if len(sys.argv) > 1 and not any(word in name for word in sys.argv[1:]):
        return
    constants = constants or {}
    results = [f"result_{n}" for n in range(outputs)]
    node = helper.make_node(operator, [*inputs, *constants], results, domain=domain, **attributes)
    given = [helper.make_tensor_value_info(n, ELEMENTS[v.dtype], [None] * v.ndim) for n, v in inputs.items()]
    made = [helper.make_empty_tensor_value_info(n) for n in results]
    held = [numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()]
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(helper.make_graph([node], "one", given, made, held), opset_imports=opsets, ir_version=10)
    model = model.SerializeToString()
    expected = run(model, inputs, "CPUExecutionProvider")
    try:
        found = run(model, inputs, "CUDAExecutionProvider")
    except Exception as error:
        different.append(name)
        print(f"fails    {name}: {str(error).splitlines()[0][-200:]}")
        return
    for one, other in zip(expected, found):
        real = one.dtype.kind == "f"
        same = np.allclose(one.astype(float), other.astype(float), near, near, equal_nan=True) if real else np.array_equal(one, other)
        if not same:
            different.append(name)
            print(f"differs  {name}: {one.ravel()[:5]} is {other.ravel()[:5]}")
            return
    print(f"same     {name}")


def each_kind(kind):
    name = np.dtype(kind).name
    a, b = values(kind, 3, 4, 5), np.maximum(values(kind, 3, 4, 5), np.array(1, kind))
    for operator in ("Add", "Sub", "Mul", "Div", "Min", "Max"):
        for how, other in {"each": b, "row": b[0, 0], "column": b[0, :, :1], "one": np.array(b[0, 0, 0]), "middle": b[:, :1]}.items():
            case(f"{operator} {name} {how}", operator, {"a": a, "b": other})
        case(f"{operator} {name} left", operator, {"a": b[0, 0], "b": b})
    for operator in ("Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal"):
        case(f"{operator} {name}", operator, {"a": values(kind, 3, 4), "b": values(kind, 4)})
        case(f"{operator} {name} columns", operator, {"a": values(kind, 4), "b": values(kind, 3, 1)})
    choice = values(BOOL, 3, 4)
    case(f"Where {name}", "Where", {"c": choice, "a": values(kind, 3, 4), "b": values(kind, 3, 4)})
    case(f"Where {name} one", "Where", {"c": choice, "a": values(kind, 3, 4), "b": np.array(values(kind, 1)[0])})
    case(f"Where {name} broadcast", "Where", {"c": choice[:, :1], "a": values(kind, 3, 4), "b": values(kind, 4)})
    for to in ELEMENTS:
        case(f"Cast {name} {to.name}", "Cast", {"a": np.abs(values(kind, 5, 7))}, to=ELEMENTS[to])
    for operator in ("Abs", "Neg", "Sign"):
        case(f"{operator} {name}", operator, {"a": values(kind, 4, 50)})
    moves(kind, name)
    choices(kind, name)
    sums(kind, name)


def moves(kind, name):
    case(f"Slice {name}", "Slice", {"a": values(kind, 6, 7, 8)}, {"s": longs(1, 2), "e": longs(5, 8), "x": longs(0, 2), "t": longs(2, 1)})
    for count in (2, 3, 40):
        case(f"Concat {name} {count}", "Concat", {f"a{n}": values(kind, 2, 3, 4) for n in range(count)}, axis=1)
    case(f"Concat {name} different", "Concat", {f"a{n}": values(kind, 2, n + 1, 4) for n in range(4)}, axis=1)
    case(f"Split {name}", "Split", {"a": values(kind, 2, 6, 4)}, {"s": longs(3, 3)}, outputs=2, axis=1)
    case(f"Split {name} different", "Split", {"a": values(kind, 2, 6, 4)}, {"s": longs(1, 5)}, outputs=2, axis=1)
    case(f"Split {name} small", "Split", {"a": values(kind, 20, 12)}, {"s": longs(4, 4, 4)}, outputs=3, axis=1)
    for shape, to in (((3, 1, 4), (3, 5, 4)), ((3, 1), (3, 5)), ((1,), (3, 5))):
        case(f"Expand {name} {shape}", "Expand", {"a": values(kind, *shape)}, {"s": longs(*to)})
    for repeats in ((2, 3), (2, 1)):
        case(f"Tile {name} {repeats}", "Tile", {"a": values(kind, 3, 4)}, {"s": longs(*repeats)})
    orders = (((2, 3, 4, 5), (0, 2, 1, 3)), ((2, 3, 4, 64), (0, 2, 1, 3)), ((40, 33), (1, 0)), ((2, 40, 64), (0, 2, 1)),
              ((2, 3, 4, 5), (3, 1, 0, 2)), ((2, 3, 4, 5, 6), (0, 4, 2, 1, 3)))
    for shape, order in orders:
        case(f"Transpose {name} {shape} {order}", "Transpose", {"a": values(kind, *shape)}, perm=order)
    case(f"Trilu {name}", "Trilu", {"a": values(kind, 4, 5)}, upper=0)
    case(f"ConstantOfShape {name}", "ConstantOfShape", {"s": longs(3, 4)}, value=numpy_helper.from_array(np.array([3], kind)))


def choices(kind, name):
    def places(most, *shape):
        return random.integers(0, most, shape).astype(LONG)

    case(f"Gather {name} rows", "Gather", {"a": values(kind, 6, 7), "i": np.array([[1, 5], [0, -1]], LONG)}, axis=0)
    case(f"Gather {name} columns", "Gather", {"a": values(kind, 6, 7), "i": np.array([1, 5, 2], INT)}, axis=1)
    case(f"GatherElements {name} columns", "GatherElements", {"a": values(kind, 6, 7), "i": places(7, 6, 3)}, axis=1)
    case(f"GatherElements {name} rows", "GatherElements", {"a": values(kind, 6, 7), "i": places(6, 3, 7)}, axis=0)
    case(f"GatherElements {name} middle", "GatherElements", {"a": values(kind, 2, 6, 7), "i": places(6, 2, 3, 7)}, axis=1)
    case(f"ScatterND {name}", "ScatterND", {"a": values(kind, 6, 7), "i": np.array([[1], [4]], LONG), "u": values(kind, 2, 7)})
    case(f"ScatterElements {name}", "ScatterElements", {"a": values(kind, 6, 7), "i": np.array([[1, 3, 0]], LONG), "u": values(kind, 1, 3)}, axis=1)
    case(f"TensorScatter {name}", "TensorScatter", {"a": values(kind, 2, 3, 16, 8), "u": values(kind, 2, 3, 2, 8), "i": longs(1, 4)}, opset=24, axis=2)
    for rows, length, count in ((4, 50, 5), (2, 51865, 8), (5, 51865, 8), (2, 1501, 8), (2, 3000, 300)):
        case(f"TopK {name} {rows}x{length} {count}", "TopK", {"a": values(kind, rows, length)}, {"k": longs(count)}, outputs=2, axis=-1)


def sums(kind, name):
    case(f"CumSum {name}", "CumSum", {"a": values(kind, 4, 50)}, {"x": longs(1)}, near=2e-2)
    for axis in (0, 1):
        case(f"ReduceSum {name} {axis}", "ReduceSum", {"a": values(kind, 4, 50)}, {"x": longs(axis)}, keepdims=1, near=2e-2)
    case(f"ReduceSum {name} long", "ReduceSum", {"a": values(kind, 3, 51865)}, {"x": longs(1)}, keepdims=1, near=2e-1)


def real_kinds(kind):
    name = np.dtype(kind).name
    for operator in ("Exp", "Sqrt", "Log", "Tanh", "Sigmoid", "Erf", "Gelu", "Relu", "Floor", "Ceil", "Round", "Reciprocal", "Sin", "Cos", "IsNaN"):
        case(f"{operator} {name}", operator, {"a": np.abs(values(kind, 4, 50)) + kind(0.01)})
    for operator in ("Softmax", "LogSoftmax"):
        for width in (5, 700, 1501, 51865):
            case(f"{operator} {name} {width}", operator, {"a": values(kind, 4, width)}, axis=-1)
    for width in (50, 51865):
        case(f"ArgMax {name} {width}", "ArgMax", {"a": values(kind, 4, width)}, axis=1)
        case(f"ReduceMean {name} {width}", "ReduceMean", {"a": values(kind, 4, width)}, {"x": longs(1)}, keepdims=1, near=2e-2)
    case(f"Pow {name}", "Pow", {"a": np.abs(values(kind, 4, 5)), "b": np.full(5, 2, kind)})
    case(f"Clip {name}", "Clip", {"a": values(kind, 4, 50)}, {"low": np.array(-1, kind), "high": np.array(1, kind)})
    for rows, inner, columns in ((1, 128, 384), (5, 128, 77), (1500, 128, 512), (3, 7, 9)):
        a, b, c = values(kind, rows, inner), values(kind, inner, columns), values(kind, columns)
        case(f"MatMul {name} {rows}x{inner}x{columns}", "MatMul", {"a": a, "b": b}, near=3e-2)
        case(f"Gemm {name} {rows}x{inner}x{columns}", "Gemm", {"a": a, "b": np.ascontiguousarray(b.T), "c": c}, transB=1, near=3e-2)
    case(f"MatMul {name} batch", "MatMul", {"a": values(kind, 3, 4, 8), "b": values(kind, 3, 8, 6)}, near=3e-2)
    case(f"MatMul {name} broadcast", "MatMul", {"a": values(kind, 2, 3, 4, 8), "b": values(kind, 3, 8, 6)}, near=3e-2)


def halves():
    row = {"s": values(HALF, 128), "b": values(HALF, 128)}
    case("LayerNormalization", "LayerNormalization", {"a": values(HALF, 30, 128), **row}, epsilon=1e-5, near=2e-2)
    case("SkipLayerNormalization", "SkipLayerNormalization", {"a": values(HALF, 1, 30, 128), "k": values(HALF, 1, 30, 128), **row},
         domain="com.microsoft", epsilon=1e-5, near=2e-2)
    case("BiasGelu", "BiasGelu", {"a": values(HALF, 4, 128), "b": row["b"]}, domain="com.microsoft", near=2e-2)
    for queries, keys in ((1500, 1500), (1, 448), (5, 1500), (20, 20), (7, 600)):
        heads = {"q": values(HALF, 2, 2, queries, 64), "k": values(HALF, 2, 2, keys, 64), "v": values(HALF, 2, 2, keys, 64)}
        case(f"Attention heads {queries} {keys}", "Attention", heads, near=1e-2)
        rows = {n: np.ascontiguousarray(v.swapaxes(1, 2)).reshape(2, -1, 128) for n, v in heads.items()}
        counts = {"q_num_heads": 2, "kv_num_heads": 2}
        case(f"Attention rows {queries} {keys}", "Attention", rows, near=1e-2, **counts)
        if queries == keys:
            case(f"Attention causal {queries}", "Attention", rows, near=1e-2, is_causal=1, **counts)


def main() -> int:
    onnxruntime.set_default_logger_severity(4)
    for kind in (HALF, FLOAT, INT, LONG):
        each_kind(kind)
    for kind in (HALF, FLOAT):
        real_kinds(kind)
    for operator in ("And", "Or", "Xor"):
        case(operator, operator, {"a": values(BOOL, 3, 4), "b": values(BOOL, 4)})
    case("Not", "Not", {"a": values(BOOL, 3, 4)})
    halves()
    print(f"{len(different)} differ")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
