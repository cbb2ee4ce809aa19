// Attention over a paged cache of keys and values, for one KV head and rows of queries that share it.
//
// Positions are taken in chunks of CHUNK, whose borders depend on nothing, and the chunks' results are merged
// in order. So a query's result does not depend on how many queries come with it, on who computes
// which chunk, or on the size of blocks.
#pragma once
#include <cmath>
#include <limits>

#include "linear.h"

namespace naiad {

constexpr int CHUNK = 128;
constexpr int QUERY_ROWS = 48;  // The most rows of queries (tokens times heads of a group) together.

// The cache of one layer: blocks of [kv_head][K: head_dim x block_size, V: block_size x width].
// Keys lie with positions side by side, values with a position's numbers side by side.
template <class T>
struct Pages {
    T* data;
    int kv_heads, head_dim, width, block_size;  // width: head_dim up to a multiple of 16.

    static size_t head_size(int head_dim, int width, int block_size) {
        return size_t(head_dim + width) * size_t(block_size);
    }
    T* keys(int block, int head) const {
        return data + (size_t(block) * size_t(kv_heads) + size_t(head)) * head_size(head_dim, width, block_size);
    }
    T* values(int block, int head) const { return keys(block, head) + size_t(head_dim) * size_t(block_size); }

    void write(int slot, int head, const float* key, const float* value) const {
        int block = slot / block_size, place = slot % block_size;
        T* k = keys(block, head) + place;
        for (int i = 0; i < head_dim; i++) from_float(key[i], k[size_t(i) * size_t(block_size)]);
        T* v = values(block, head) + size_t(place) * size_t(width);
        for (int i = 0; i < head_dim; i++) from_float(value[i], v[i]);
    }
};

// What some rows of queries have gathered: for each the greatest score, the sum of weights and the
// weighted sum of values [width].
struct Gathered {
    float *most, *total, *values;
};

struct Query {
    const float* rows;     // [count][head_dim], scaled.
    int count, heads;      // Rows; the first `heads` are of one token, and so on.
    int position, window;  // Of the first token; 0 for no window.
    float softcap;
    const int32_t* blocks;  // Of its sequence.

    int first(int row) const {
        int p = position + row / heads;
        return window ? std::max(0, p - window + 1) : 0;
    }
    int last(int row) const { return position + row / heads; }
};

// scores[count][CHUNK] of a chunk's positions from `from` to before `to`, both multiples of the
// block's size; elsewhere and where a row may not look they are -inf.
template <class T>
void score(const Query& q, const Pages<T>& pages, int head, int chunk, int from, int to, float* scores) {
    int size = pages.block_size;
    for (int p = from; p < to; p += size) {
        const T* keys = pages.keys(q.blocks[p / size], head);
        // Blocks lie anywhere, so the processor cannot guess which memory comes next.
        const T* next = p + size < to ? pages.keys(q.blocks[p / size + 1], head) : pages.values(q.blocks[from / size], head);
        product<false>(q.count, size, q.rows, size_t(pages.head_dim), keys, size_t(size), pages.head_dim,
                       scores + p - chunk, CHUNK, next - keys);
    }
    if (q.softcap > 0)
        for (int r = 0; r < q.count; r++)
            for (int p = from - chunk; p < to - chunk; p += LANES) {
                float* s = scores + r * CHUNK + p;
                store(s, mul(tangent(div(load(s), set1(q.softcap))), set1(q.softcap)));
            }
    const float never = -std::numeric_limits<float>::infinity();
    for (int r = 0; r < q.count; r++) {
        float* s = scores + r * CHUNK;
        int begin = std::min(std::max(q.first(r), from), to), end = std::max(std::min(q.last(r) + 1, to), begin);
        std::fill(s + from - chunk, s + begin - chunk, never);
        std::fill(s + end - chunk, s + to - chunk, never);
    }
}

// Scores to weights, in place; most and total of the row.
inline void weigh(float* s, int from, int to, float& most, float& total) {
    F top = set1(-std::numeric_limits<float>::infinity());
    for (int p = from; p < to; p += LANES) top = max(top, load(s + p));
    most = greatest(top);
    if (most == -std::numeric_limits<float>::infinity()) {
        std::fill(s + from, s + to, 0.0f);
        total = 0;
        return;
    }
    F shift = set1(most), all = set1(0.0f);
    for (int p = from; p < to; p += LANES) {
        F e = exponential(sub(load(s + p), shift));
        all = add(all, e);
        store(s + p, e);
    }
    total = sum(all);
}

// What one chunk, from position `chunk` on, gives.
template <class T>
void gather(const Query& q, const Pages<T>& pages, int head, int chunk, Gathered out) {
    alignas(64) float scores[QUERY_ROWS * CHUNK];
    int size = pages.block_size, width = pages.width, end = q.last(q.count - 1) + 1;
    int from = std::max(chunk, q.first(0) / size * size), to = std::min(chunk + CHUNK, up(end, size));
    score(q, pages, head, chunk, from, to, scores);
    for (int r = 0; r < q.count; r++)
        weigh(scores + r * CHUNK, from - chunk, to - chunk, out.most[r], out.total[r]);
    std::fill(out.values, out.values + size_t(q.count) * size_t(width), 0.0f);
    for (int p = from; p < to; p += size) {
        const T* values = pages.values(q.blocks[p / size], head);
        const T* next = p + size < to ? pages.values(q.blocks[p / size + 1], head)
                        : to < end    ? pages.keys(q.blocks[to / size], head)
                                      : values;
        // Behind the last position there may be anything, so nobody looks.
        product<true>(q.count, width, scores + p - chunk, CHUNK, values, size_t(width), std::min(size, end - p),
                      out.values, size_t(width), next - values);
    }
}

// Adds what a later chunk gave one row.
inline void merge(float& most, float& total, float* values, float most2, float total2, const float* values2, int width) {
    if (total2 == 0) return;
    if (total == 0) {
        most = most2, total = total2;
        std::copy(values2, values2 + width, values);
        return;
    }
    float top = std::max(most, most2), a = std::exp(most - top), b = std::exp(most2 - top);
    most = top;
    total = std::fma(total, a, total2 * b);
    for (int i = 0; i < width; i += LANES)
        store(values + i, fma(load(values + i), set1(a), mul(load(values2 + i), set1(b))));
}

// All chunks that the rows see, one after another.
template <class T>
void attend(const Query& q, const Pages<T>& pages, int head, Gathered out) {
    float most[QUERY_ROWS], total[QUERY_ROWS];
    thread_local std::vector<float> values;
    values.resize(size_t(QUERY_ROWS) * size_t(pages.width));
    std::fill(out.total, out.total + q.count, 0.0f);
    for (int chunk = q.first(0) / CHUNK * CHUNK; chunk <= q.last(q.count - 1); chunk += CHUNK) {
        gather(q, pages, head, chunk, {most, total, values.data()});
        for (int r = 0; r < q.count; r++) {
            size_t at = size_t(r) * size_t(pages.width);
            merge(out.most[r], out.total[r], out.values + at, most[r], total[r], values.data() + at, pages.width);
        }
    }
}

}  // namespace naiad
