// Attention: flash attention, XQA (one query against a cache), and what GroupQueryAttention launches before them.
#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include "../kernel.h"

namespace cuda_double {
namespace {

// One head of one sequence. Strides are between rows, in values.
struct Head {
    const half *query, *key, *value;
    half* out;
    size_t queries, keys, width;
    size_t query_stride, key_stride, value_stride, out_stride;
    float scale;
    // How many keys the first query sees; each later one sees one more. Nothing: all of them.
    std::optional<long> first_sees;
};

float dot(const float* a, const float* b, size_t width) {
    float sum = 0;
    for (size_t n = 0; n < width; ++n) sum += a[n] * b[n];
    return sum;
}

// The rows of a matrix as floats, one behind the other.
std::vector<float> rows_of(const half* from, size_t rows, size_t width, size_t stride) {
    std::vector<float> values(rows * width);
    for (size_t r = 0; r < rows; ++r) to_float(from + r * stride, &values[r * width], width);
    return values;
}

void attend(const Head& head) {
    std::vector<float> keys = rows_of(head.key, head.keys, head.width, head.key_stride);
    std::vector<float> values = rows_of(head.value, head.keys, head.width, head.value_stride);
    std::vector<float> weights(head.keys), query(head.width), sum(head.width);
    for (size_t q = 0; q < head.queries; ++q) {
        long sees = head.first_sees ? *head.first_sees + static_cast<long>(q) : static_cast<long>(head.keys);
        auto seen = static_cast<size_t>(std::clamp(sees, 0l, static_cast<long>(head.keys)));
        to_float(head.query + q * head.query_stride, query.data(), head.width);

        float highest = -INFINITY;
        for (size_t k = 0; k < seen; ++k) {
            weights[k] = dot(query.data(), &keys[k * head.width], head.width) * head.scale;
            highest = std::max(highest, weights[k]);
        }
        float total = 0;
        for (size_t k = 0; k < seen; ++k) weights[k] = std::exp(weights[k] - highest);
        for (size_t k = 0; k < seen; ++k) total += weights[k];

        std::fill(sum.begin(), sum.end(), 0.f);
        for (size_t k = 0; k < seen; ++k) {
            const float* value = &values[k * head.width];
            for (size_t n = 0; n < head.width; ++n) sum[n] += weights[k] * value[n];
        }
        half* out = head.out + q * head.out_stride;
        for (size_t n = 0; n < head.width; ++n) out[n] = half(seen == 0 ? 0.f : sum[n] / total);
    }
}

// Flash attention's parameters, as far as they are used here. Offsets are those of ONNX Runtime 1.31's
// `Flash_fwd_params`, which begins with `Qkv_params`.
struct FlashParameters {
    const void *query, *key, *value;
    // Strides between batches, rows and heads.
    long query_batch, key_batch, value_batch, query_row, key_row, value_row, query_head, key_head, value_head;
    int heads, key_heads, heads_per_key_head, padding;
    const void *out, *partial_out;
    long out_batch, out_row, out_head;
    const void* softmax[3];
    int batches, queries, keys, keys_in_blocks, width;
    int rest[5];
    float scale;
};
static_assert(offsetof(FlashParameters, heads) == 24 * 4 && offsetof(FlashParameters, out) == 14 * 8);
static_assert(offsetof(FlashParameters, out_batch) == 16 * 8 && offsetof(FlashParameters, batches) == 44 * 4);
static_assert(offsetof(FlashParameters, width) == 48 * 4 && offsetof(FlashParameters, scale) == 54 * 4);
// How many keys of each sequence are used, where it is not all of them.
constexpr size_t keys_used_at = 30 * 8;

Work flash(const Launch& launch, bool causal) {
    if (launch.name.text.find("cutlass::half_t") == std::string::npos && launch.name.text.find("half_t") == std::string::npos) return {};
    auto parameters = launch.value<FlashParameters>(0);
    const void* used = nullptr;
    std::memcpy(&used, static_cast<const char*>(launch.arguments[0]) + keys_used_at, sizeof used);
    DevicePointer<int> keys_used{used};
    return [=] {
        const FlashParameters& p = parameters;
        auto count = [](int value) { return static_cast<size_t>(value); };
        auto at = [](const void* base, long values, size_t rows, long stride, size_t width) {
            size_t span = rows == 0 ? 0 : (rows - 1) * static_cast<size_t>(stride) + width;
            return (DevicePointer<half>{base} + values).at(span);
        };
        for (int batch = 0; batch < p.batches; ++batch) {
            size_t keys = keys_used ? std::min(count(keys_used.at(count(p.batches))[batch]), count(p.keys)) : count(p.keys);
            for (int head = 0; head < p.heads; ++head) {
                int key_head = head / p.heads_per_key_head;
                Head one{};
                one.query = at(p.query, batch * p.query_batch + head * p.query_head, count(p.queries), p.query_row, count(p.width));
                one.key = at(p.key, batch * p.key_batch + key_head * p.key_head, keys, p.key_row, count(p.width));
                one.value = at(p.value, batch * p.value_batch + key_head * p.value_head, keys, p.value_row, count(p.width));
                one.out = at(p.out, batch * p.out_batch + head * p.out_head, count(p.queries), p.out_row, count(p.width));
                one.queries = count(p.queries);
                one.keys = keys;
                one.width = count(p.width);
                one.query_stride = static_cast<size_t>(p.query_row);
                one.key_stride = static_cast<size_t>(p.key_row);
                one.value_stride = static_cast<size_t>(p.value_row);
                one.out_stride = static_cast<size_t>(p.out_row);
                one.scale = p.scale;
                // The last query sees all keys.
                if (causal) one.first_sees = static_cast<long>(keys) - p.queries + 1;
                attend(one);
            }
        }
    };
}

}  // namespace

// <traits, causal, local, ...>(parameters)
KERNEL(flash_fwd_kernel) { return flash(launch, launch.name.arguments[1] == "true"); }
// <traits, causal, local, ...>(parameters)
KERNEL(flash_fwd_splitkv_kernel) { return flash(launch, launch.name.arguments[1] == "true"); }
// The kernel before it has already put everything together.
KERNEL(flash_fwd_splitkv_combine_kernel) { return [] {}; }

namespace {

// CUTLASS's fused attention, which GPUs before 8.0 take: `AttentionKernel<...>::Params` of ONNX Runtime 1.31.
struct FusedParameters {
    const void *query, *key, *value, *bias;
    const int *query_starts, *key_starts, *key_lengths;
    unsigned diagonal_offset, padding_1;
    void *out, *partial_out, *softmax;
    int window;
    float scale, softcap;
    int width, value_width, queries, keys, keys_in_all;
    unsigned char mask;  // 0: none; 1: the first query sees the first key; 2: the last query sees the last key
    int query_row, key_row, value_row, bias_row, out_row, query_head, key_head, value_head;
    long bias_head, query_batch, key_batch, value_batch, bias_batch;
    int batches, heads;
};
static_assert(offsetof(FusedParameters, out) == 64 && offsetof(FusedParameters, scale) == 92);
static_assert(offsetof(FusedParameters, mask) == 120 && offsetof(FusedParameters, out_row) == 140);
static_assert(offsetof(FusedParameters, query_batch) == 168 && offsetof(FusedParameters, heads) == 204);

Work fused(const Launch& launch) {
    const std::string& kernel = launch.name.arguments[0];
    auto parameters = launch.value<FusedParameters>(0);
    const FusedParameters& given = parameters;
    bool plain = given.bias == nullptr && given.query_starts == nullptr && given.key_starts == nullptr && given.window <= 0 &&
                 given.softcap == 0 && given.diagonal_offset == 0 && given.width == given.value_width;
    if (!plain || kernel.find("half_t") == std::string::npos) return {};
    return [=] {
        const FusedParameters& p = parameters;
        auto count = [](long value) { return static_cast<size_t>(value); };
        DevicePointer<int> lengths{p.key_lengths};
        for (int batch = 0; batch < p.batches; ++batch) {
            long keys = lengths ? std::min(lengths.at(count(p.batches))[batch], p.keys) : p.keys;
            for (int head = 0; head < p.heads; ++head) {
                auto at = [&](const void* base, long start, long rows, long row) {
                    size_t span = rows == 0 ? 0 : count((rows - 1) * row + p.width);
                    return (DevicePointer<half>{base} + start).at(span);
                };
                Head one{};
                one.query = at(p.query, batch * p.query_batch + long{head} * p.query_head, p.queries, p.query_row);
                one.key = at(p.key, batch * p.key_batch + long{head} * p.key_head, keys, p.key_row);
                one.value = at(p.value, batch * p.value_batch + long{head} * p.value_head, keys, p.value_row);
                one.out = at(p.out, long{batch} * p.queries * p.out_row + long{head} * p.width, p.queries, p.out_row);
                one.queries = count(p.queries);
                one.keys = count(keys);
                one.width = count(p.width);
                one.query_stride = count(p.query_row);
                one.key_stride = count(p.key_row);
                one.value_stride = count(p.value_row);
                one.out_stride = count(p.out_row);
                one.scale = p.scale;
                if (p.mask == 1) one.first_sees = 1;
                if (p.mask == 2) one.first_sees = keys - p.queries + 1;
                attend(one);
            }
        }
    };
}

}  // namespace

KERNEL(attention_kernel_batched_impl) { return fused(launch); }
KERNEL(attention_kernel_batched_impl_right_padding) { return fused(launch); }

// (int* lengths, int* past, int* total, int* padded, ..., int batches, int queries, bool first prompt, ...)
KERNEL(GetSequenceLengths) {
    auto lengths = launch.device<int>(0), past = launch.device<int>(1), total = launch.device<int>(2), padded = launch.device<int>(3);
    auto batches = static_cast<size_t>(launch.value<int>(7));
    int queries = launch.value<int>(8);
    bool first_prompt = launch.value<bool>(9);
    return [=] {
        const int* last = lengths.at(batches);
        for (size_t n = 0; n < batches; ++n) {
            if (total) total.at(batches)[n] = last[n] + 1;
            if (past) past.at(batches)[n] = first_prompt ? 0 : last[n] + 1 - queries;
            if (padded) padded.at(batches)[n] = first_prompt ? queries : 0;
        }
    };
}

// (long* lengths given, int* lengths, int batches, int keys)
KERNEL(ConvertNonpadKvSeqlenToFlashSeqlensKKernel) {
    auto given = launch.device<long>(0);
    auto lengths = launch.device<int>(1);
    auto batches = static_cast<size_t>(launch.value<int>(2));
    long keys = launch.value<int>(3);
    return [=] {
        const long* from = given.at(batches);
        int* to = lengths.at(batches);
        for (size_t n = 0; n < batches; ++n) to[n] = static_cast<int>(std::clamp(from[n], 0l, keys));
    };
}

// <T>(T* out, int* lengths, int batches, long values of a batch): no value where a sequence has no keys
KERNEL(ZeroOutputForFullyMaskedBatchesKernel) {
    size_t bytes = size_of_type(launch.name.arguments[0]) * static_cast<size_t>(launch.value<long>(3));
    if (bytes == 0) return {};
    auto out = launch.device<char>(0);
    auto lengths = launch.device<int>(1);
    auto batches = static_cast<size_t>(launch.value<int>(2));
    return [=] {
        char* to = out.at(batches * bytes);
        for (size_t n = 0; n < batches; ++n) {
            if (lengths.at(batches)[n] == 0) std::memset(to + n * bytes, 0, bytes);
        }
    };
}

// <T, U, .., head width>(T* packed, T* query, T* key, T* value, T* to query, U* key cache, U* value cache, ..., int heads,
// int key heads, int width, int packed row, int cache rows, int, int* past, ...); a block a token, sequences in z
KERNEL(UnpackRoPEAppend) {
    if (launch.name.arguments[0] != "__half" || launch.name.arguments[1] != "__half") return {};
    auto packed = launch.device<half>(0);
    // Queries, keys and values that come apart, and rotary positions, are not known.
    if (!packed || launch.value<void*>(18) != nullptr) return {};
    auto query = launch.device<half>(4), key = launch.device<half>(5), value = launch.device<half>(6);
    auto size = [&](int n) { return static_cast<size_t>(launch.value<int>(n)); };
    size_t heads = size(10), key_heads = size(11), width = size(12), row = size(13), cache_rows = size(14);
    auto past = launch.device<int>(16);
    size_t tokens = launch.grid.x, batches = launch.grid.z;
    return [=] {
        const half* from = packed.at((batches * tokens - 1) * row + (heads + 2 * key_heads) * width);
        half* queries = query.at(batches * tokens * heads * width);
        half* caches[2] = {key.at(batches * key_heads * cache_rows * width), value.at(batches * key_heads * cache_rows * width)};
        const int* before = past.at(batches);
        for (size_t batch = 0; batch < batches; ++batch) {
            for (size_t token = 0; token < tokens; ++token) {
                const half* values = from + (batch * tokens + token) * row;
                std::memcpy(queries + (batch * tokens + token) * heads * width, values, heads * width * sizeof(half));
                size_t place = static_cast<size_t>(before[batch]) + token;
                if (place >= cache_rows) continue;
                for (size_t n = 0; n < 2 * key_heads; ++n) {
                    half* cache = caches[n / key_heads] + ((batch * key_heads + n % key_heads) * cache_rows + place) * width;
                    std::memcpy(cache, values + (heads + n) * width, width * sizeof(half));
                }
            }
        }
    };
}

// XQA: (unsigned key heads, unsigned, float scale, Vec* out, Vec* query, float*, caches, unsigned batches, ...)
KERNEL(kernel_mha) {
    const std::string& space = launch.name.space;
    auto ends_with = [&](const std::string& end) {
        return space.size() >= end.size() && space.compare(space.size() - end.size(), end.size(), end) == 0;
    };
    // A query head for each key head, of 64 halves.
    if (!ends_with("H64::grp1_fp16")) return {};
    struct Caches {
        const void *keys, *values, *lengths;
        unsigned rows;
        int by_token;
    };
    size_t heads = launch.value<unsigned>(0), batches = launch.value<unsigned>(7);
    float scale = launch.value<float>(2);
    auto out = launch.device<half>(3), query = launch.device<half>(4);
    auto caches = launch.value<Caches>(6);
    constexpr size_t width = 64;
    return [=] {
        size_t rows = caches.rows;
        const half* queries = query.at(batches * heads * width);
        const half* keys = DevicePointer<half>{caches.keys}.at(batches * heads * rows * width);
        const half* values = DevicePointer<half>{caches.values}.at(batches * heads * rows * width);
        const int* lengths = DevicePointer<int>{caches.lengths}.at(batches);
        half* results = out.at(batches * heads * width);
        for (size_t batch = 0; batch < batches; ++batch) {
            for (size_t head = 0; head < heads; ++head) {
                size_t n = batch * heads + head;
                attend({queries + n * width, keys + n * rows * width, values + n * rows * width, results + n * width, 1,
                        static_cast<size_t>(lengths[batch]) + 1, width, width, width, width, width, scale, {}});
            }
        }
    };
}

namespace {

// (int width, bool, T* in, T* out), a thread a value, heads in y: between [batch, head, row] and [batch, row, head]
Work swap_heads_and_rows(const Launch& launch, bool to_rows) {
    size_t bytes = size_of_type(launch.name.arguments[0]) * static_cast<size_t>(launch.value<int>(0));
    if (bytes == 0 || launch.grid.z != 1) return {};
    auto in = launch.device<char>(2), out = launch.device<char>(3);
    size_t rows = launch.grid.x, batches = launch.grid.y, heads = launch.block.y;
    return [=] {
        const char* from = in.at(batches * rows * heads * bytes);
        char* to = out.at(batches * rows * heads * bytes);
        for (size_t batch = 0; batch < batches; ++batch) {
            for (size_t row = 0; row < rows; ++row) {
                for (size_t head = 0; head < heads; ++head) {
                    size_t by_heads = ((batch * heads + head) * rows + row) * bytes;
                    size_t by_rows = ((batch * rows + row) * heads + head) * bytes;
                    std::memcpy(to + (to_rows ? by_rows : by_heads), from + (to_rows ? by_heads : by_rows), bytes);
                }
            }
        }
    };
}

}  // namespace

KERNEL(TransposeCtx) { return swap_heads_and_rows(launch, true); }
KERNEL(TransposeQKV) { return swap_heads_and_rows(launch, false); }

}  // namespace cuda_double
