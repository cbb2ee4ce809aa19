// From rows as files have them to blocks of a Linear. Knows GGUF's packed types.
#pragma once
#include "linear.h"

namespace naiad {

// Numbers of GGUF's types; the formats are those of its specification.
enum class Type : int { F32 = 0, F16 = 1, Q4_0 = 2, Q4_1 = 3, Q5_0 = 6, Q5_1 = 7, Q8_0 = 8, Q4_K = 12, Q5_K = 13, Q6_K = 14, IQ4_NL = 20, BF16 = 30 };

// 32 numbers of a row: d * q + m.
struct Group {
    uint8_t q[GROUP];
    float d = 0, m = 0;
};

inline float half_at(const uint8_t* p) {
    half h;
    std::memcpy(&h, p, 2);
    return to_float(h);
}

// Numbers without a common scale, to the nearest of 255 steps.
inline Group nearest(const float* x) {
    Group g;
    float most = 0;
    for (int i = 0; i < GROUP; i++) most = std::max(most, std::fabs(x[i]));
    half scale;
    from_float(most / 127.0f, scale);
    g.d = to_float(scale);
    g.m = -128.0f * g.d;
    for (int i = 0; i < GROUP; i++) {
        float steps = g.d > 0 ? std::nearbyint(x[i] / g.d) : 0.0f;
        g.q[i] = uint8_t(128 + int(std::max(-127.0f, std::min(127.0f, steps))));
    }
    return g;
}

inline void low_and_high(const uint8_t* p, uint8_t* q) {
    for (int i = 0; i < 16; i++) {
        q[i] = p[i] & 15;
        q[i + 16] = p[i] >> 4;
    }
}

// The six-bit scale and minimum of one of the eight groups of Q4_K and Q5_K.
inline std::pair<int, int> scale_and_minimum(const uint8_t* s, int j) {
    if (j < 4) return {s[j] & 63, s[j + 4] & 63};
    return {(s[j + 4] & 15) | (s[j - 4] >> 6) << 4, s[j + 4] >> 4 | (s[j] >> 6) << 4};
}

// Group `index` of a row of packed bytes.
inline Group read_group(Type type, const uint8_t* row, int index) {
    Group g;
    switch (type) {
        case Type::Q4_0: {
            const uint8_t* p = row + index * 18;
            g.d = half_at(p);
            g.m = -8 * g.d;
            low_and_high(p + 2, g.q);
            break;
        }
        case Type::Q4_1: {
            const uint8_t* p = row + index * 20;
            g.d = half_at(p);
            g.m = half_at(p + 2);
            low_and_high(p + 4, g.q);
            break;
        }
        case Type::Q5_0:
        case Type::Q5_1: {
            bool minimum = type == Type::Q5_1;
            const uint8_t* p = row + index * (minimum ? 24 : 22);
            g.d = half_at(p);
            g.m = minimum ? half_at(p + 2) : -16 * g.d;
            p += minimum ? 4 : 2;
            uint32_t fifth;
            std::memcpy(&fifth, p, 4);
            low_and_high(p + 4, g.q);
            for (int i = 0; i < GROUP; i++) g.q[i] = uint8_t(g.q[i] | (fifth >> i & 1) << 4);
            break;
        }
        case Type::Q8_0: {
            const uint8_t* p = row + index * 34;
            g.d = half_at(p);
            g.m = -128 * g.d;
            for (int i = 0; i < GROUP; i++) g.q[i] = uint8_t(p[2 + i] ^ 128);
            break;
        }
        case Type::Q4_K:
        case Type::Q5_K: {
            bool five = type == Type::Q5_K;
            const uint8_t* p = row + index / 8 * (five ? 176 : 144);
            int j = index % 8;
            auto [scale, minimum] = scale_and_minimum(p + 4, j);
            g.d = half_at(p) * float(scale);
            g.m = -half_at(p + 2) * float(minimum);
            const uint8_t* nibbles = p + (five ? 48 : 16) + j / 2 * 32;
            for (int i = 0; i < GROUP; i++) {
                g.q[i] = nibbles[i] >> (j % 2 * 4) & 15;
                if (five) g.q[i] = uint8_t(g.q[i] | (p[16 + i] >> j & 1) << 4);
            }
            break;
        }
        case Type::Q6_K: {
            const uint8_t* p = row + index / 8 * 210;
            int j = index % 8, part = j / 4, quarter = j % 4;
            const uint8_t *low = p + part * 64 + quarter % 2 * 32, *high = p + 128 + part * 32;
            const int8_t* scales = (const int8_t*)p + 192 + part * 8 + quarter * 2;
            float d = half_at(p + 208), x[GROUP];
            for (int i = 0; i < GROUP; i++) {
                int q = (low[i] >> (quarter / 2 * 4) & 15) | (high[i] >> (quarter * 2) & 3) << 4;
                x[i] = d * float(scales[i / 16]) * float(q - 32);
            }
            g = nearest(x);
            break;
        }
        case Type::IQ4_NL: {
            static const int8_t values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
            const uint8_t* p = row + index * 18;
            g.d = half_at(p);
            g.m = -128 * g.d;
            low_and_high(p + 2, g.q);
            for (uint8_t& q : g.q) q = uint8_t(128 + values[q]);
            break;
        }
        default: {  // F32
            float x[GROUP];
            std::memcpy(x, row + size_t(index) * GROUP * 4, sizeof x);
            g = nearest(x);
        }
    }
    return g;
}

inline void pack_quantized(Linear& w, Type type, const uint8_t* rows, size_t row_bytes, int b) {
    int bits = w.kind == Kind::Q4 ? 4 : 8;
    size_t size = size_t(bits == 4 ? group_bytes<4>() : group_bytes<8>());
    uint8_t* block = w.data + size_t(b) * w.block_bytes();
    for (int lane = 0; lane < COLUMNS && b * COLUMNS + lane < w.outputs; lane++) {
        const uint8_t* row = rows + size_t(b * COLUMNS + lane) * row_bytes;
        for (int k = 0; k < w.groups(); k++) {
            Group g = read_group(type, row, k);
            uint8_t* group = block + size_t(k) * size;
            for (int i = 0; i < GROUP; i++) {
                if (bits == 8)
                    group[64 * (i / 4) + 4 * lane + i % 4] = g.q[i];
                else
                    group[64 * (i / 8) + 4 * lane + i % 4] |= uint8_t(g.q[i] << (i / 4 % 2 * 4));
            }
            half* scales = (half*)(group + GROUP * COLUMNS * bits / 8);
            from_float(g.d, scales[lane]);
            from_float(g.m, scales[COLUMNS + lane]);
        }
    }
}

template <class To, class From>
void pack_plain(Linear& w, const uint8_t* rows, size_t row_bytes, int b) {
    To* block = (To*)(w.data + size_t(b) * w.block_bytes());
    for (int lane = 0; lane < COLUMNS && b * COLUMNS + lane < w.outputs; lane++) {
        const From* row = (const From*)(rows + size_t(b * COLUMNS + lane) * row_bytes);
        for (int k = 0; k < w.inputs; k++) from_float(to_float(row[k]), block[size_t(k) * COLUMNS + size_t(lane)]);
    }
}

template <class To>
void pack_floats(Linear& w, Type type, const uint8_t* rows, size_t row_bytes, int b) {
    if (type == Type::F32)
        pack_plain<To, float>(w, rows, row_bytes, b);
    else if (type == Type::F16)
        pack_plain<To, half>(w, rows, row_bytes, b);
    else
        pack_plain<To, bf16>(w, rows, row_bytes, b);
}

// Block b of w from rows of a file. Quantized kinds take packed types and F32 with whole groups,
// the others F32, F16 and BF16; the caller has checked that.
inline void pack(Linear& w, Type type, const uint8_t* rows, size_t row_bytes, int b) {
    switch (w.kind) {
        case Kind::BF16: return pack_floats<bf16>(w, type, rows, row_bytes, b);
        case Kind::F16: return pack_floats<half>(w, type, rows, row_bytes, b);
        case Kind::F32: return pack_floats<float>(w, type, rows, row_bytes, b);
        default: return pack_quantized(w, type, rows, row_bytes, b);
    }
}

}  // namespace naiad
