// Vectors of floats and dot products of bytes, for each instruction set. All else is written once, on these.
//
// A vector F has LANES floats; `reaches` gives 1 where a >= b, else 0. Weights<BITS, FOURS> hold LANES
// columns of a matrix, FOURS times four numbers of each, as unsigned integers; dot products with as
// many signed bytes are exact. Sums of a whole group of 32 fit a Sum.
#pragma once

// Before loops of constant length over vectors, which else would not stay in registers.
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define NAIAD_X86 1
#include <immintrin.h>
#endif

namespace naiad {

struct half {
    uint16_t bits;
};
struct bf16 {
    uint16_t bits;
};

inline float bits_to_float(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}
inline uint32_t float_to_bits(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}
inline float to_float(float x) { return x; }
inline float to_float(bf16 x) { return bits_to_float(uint32_t(x.bits) << 16); }
inline void from_float(float x, float& y) { y = x; }
inline void from_float(float x, bf16& y) {
    uint32_t bits = float_to_bits(x);
    if ((bits & 0x7fffffff) > 0x7f800000)
        y.bits = uint16_t(bits >> 16 | 0x40);
    else
        y.bits = uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
#if NAIAD_X86
inline float to_float(half x) { return _cvtsh_ss(x.bits); }
inline void from_float(float x, half& y) { y.bits = _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT); }
#else
inline float to_float(half x) {
    uint32_t sign = uint32_t(x.bits & 0x8000) << 16, rest = x.bits & 0x7fff;
    if (rest >= 0x7c00) return bits_to_float(sign | 0x7f800000 | (rest & 0x3ff) << 13);
    if (rest >= 0x400) return bits_to_float(sign | ((rest << 13) + (112u << 23)));
    float small = float(rest) * 5.9604644775390625e-8f;
    return sign ? -small : small;
}
inline void from_float(float x, half& y) {
    uint32_t bits = float_to_bits(x), sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
    if (rest > 0x7f800000)
        rest = 0x7e00;
    else if (rest >= 0x477ff000)
        rest = 0x7c00;
    else if (rest < 0x38800000)  // Below the smallest normal one: steps of 2^-24.
        rest = uint32_t(std::nearbyint(bits_to_float(rest) * 16777216.0f));
    else
        rest = (rest - (112u << 23) + 0xfff + (rest >> 13 & 1)) >> 13;
    y.bits = uint16_t(sign | rest);
}
#endif

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VNNI__)

#define NAIAD_ISA "AVX-512 VNNI"
constexpr int LANES = 16;
constexpr int TILE_ROWS = 12, WIDE_ROWS = 6;  // Of a tile of sums in registers, 16 or 32 columns wide.
using F = __m512;

inline F set1(float x) { return _mm512_set1_ps(x); }
inline F load(const float* p) { return _mm512_loadu_ps(p); }
inline F load(const half* p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
inline F load(const bf16* p) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
inline void store(float* p, F x) { _mm512_storeu_ps(p, x); }
inline F add(F a, F b) { return _mm512_add_ps(a, b); }
inline F sub(F a, F b) { return _mm512_sub_ps(a, b); }
inline F mul(F a, F b) { return _mm512_mul_ps(a, b); }
inline F div(F a, F b) { return _mm512_div_ps(a, b); }
inline F max(F a, F b) { return _mm512_max_ps(a, b); }
inline F min(F a, F b) { return _mm512_min_ps(a, b); }
inline F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
inline F abs(F a) { return _mm512_abs_ps(a); }
inline F reaches(F a, F b) { return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, b, _CMP_GE_OQ), set1(1.0f)); }
inline F round(F a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
// 2^n of whole numbers n from -127, which gives 0, to 127.
inline F power2(F n) {
    __m512i e = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
    return _mm512_castsi512_ps(_mm512_slli_epi32(e, 23));
}
inline float sum(F a) { return _mm512_reduce_add_ps(a); }
inline float greatest(F a) { return _mm512_reduce_max_ps(a); }
// 32 numbers times a factor to the nearest bytes; returns their sum. They fit.
inline int to_bytes(const float* x, float factor, int8_t* q) {
    __m512i a = _mm512_cvtps_epi32(mul(load(x), set1(factor)));
    __m512i b = _mm512_cvtps_epi32(mul(load(x + 16), set1(factor)));
    _mm_storeu_si128((__m128i*)q, _mm512_cvtepi32_epi8(a));
    _mm_storeu_si128((__m128i*)(q + 16), _mm512_cvtepi32_epi8(b));
    return _mm512_reduce_add_epi32(_mm512_add_epi32(a, b));
}

// Byte b of lane c of part[i] is number 4 i + b of column c.
template <int BITS, int FOURS>
struct Weights {
    using Sum = __m512i;
    __m512i part[FOURS];
    explicit Weights(const uint8_t* p) {
        const __m512i low = _mm512_set1_epi8(15);
        UNROLL for (int i = 0; i < FOURS; i++)
            if constexpr (BITS == 8) {
                part[i] = _mm512_loadu_si512(p + 64 * i);
            } else {
                __m512i both = _mm512_loadu_si512(p + 64 * (i / 2));
                part[i] = _mm512_and_si512(i % 2 ? _mm512_srli_epi16(both, 4) : both, low);
            }
    }
    Sum dot(const int8_t* a) const {
        __m512i even = _mm512_setzero_si512(), odd = even;
        UNROLL for (int i = 0; i < FOURS; i += 2) {
            even = _mm512_dpbusd_epi32(even, part[i], spread(a + 4 * i));
            odd = _mm512_dpbusd_epi32(odd, part[i + 1], spread(a + 4 * i + 4));
        }
        return _mm512_add_epi32(even, odd);
    }
    static __m512i spread(const int8_t* a) {
        int32_t four;
        std::memcpy(&four, a, 4);
        return _mm512_set1_epi32(four);
    }
    static Sum add(Sum a, Sum b) { return _mm512_add_epi32(a, b); }
    static F floats(Sum a) { return _mm512_cvtepi32_ps(a); }
};
// How many of a group's parts, and how many vectors of columns, fit the registers at once.
template <int BITS>
constexpr int PARTS = 1;
template <int BITS>
constexpr int WIDE = 1;
template <int BITS>
constexpr int ZERO = 0;  // Numbers are counted from here.

#elif NAIAD_X86

#define NAIAD_ISA "AVX2"
constexpr int LANES = 8;
constexpr int TILE_ROWS = 6, WIDE_ROWS = 3;
using F = __m256;

inline F set1(float x) { return _mm256_set1_ps(x); }
inline F load(const float* p) { return _mm256_loadu_ps(p); }
inline F load(const half* p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
inline F load(const bf16* p) {
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
inline void store(float* p, F x) { _mm256_storeu_ps(p, x); }
inline F add(F a, F b) { return _mm256_add_ps(a, b); }
inline F sub(F a, F b) { return _mm256_sub_ps(a, b); }
inline F mul(F a, F b) { return _mm256_mul_ps(a, b); }
inline F div(F a, F b) { return _mm256_div_ps(a, b); }
inline F max(F a, F b) { return _mm256_max_ps(a, b); }
inline F min(F a, F b) { return _mm256_min_ps(a, b); }
inline F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
inline F abs(F a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
inline F reaches(F a, F b) { return _mm256_and_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ), set1(1.0f)); }
inline F round(F a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline F power2(F n) {
    __m256i e = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(e, 23));
}
inline float sum(F a) {
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
inline float greatest(F a) {
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}

inline int to_bytes(const float* x, float factor, int8_t* q) {
    __m256i n[4];
    UNROLL for (int i = 0; i < 4; i++) n[i] = _mm256_cvtps_epi32(mul(load(x + 8 * i), set1(factor)));
    __m256i pairs = _mm256_packs_epi16(_mm256_packs_epi32(n[0], n[1]), _mm256_packs_epi32(n[2], n[3]));
    // The packing works on each half of a register by itself.
    pairs = _mm256_permutevar8x32_epi32(pairs, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256((__m256i*)q, pairs);
    __m256i all = _mm256_add_epi32(_mm256_add_epi32(n[0], n[1]), _mm256_add_epi32(n[2], n[3]));
    __m128i half = _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
    half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(half, _mm_shuffle_epi32(half, 0xb1)));
}

inline __m256i spread(const int8_t* a) {
    int32_t four;
    std::memcpy(&four, a, 4);
    return _mm256_set1_epi32(four);
}

template <int BITS, int FOURS>
struct Weights;

// Sums of 8 products of 4-bit and 8-bit numbers, two at a time, fit 16 bits: 8 * 2 * 15 * 127 < 2^15.
template <int FOURS>
struct Weights<4, FOURS> {
    using Sum = __m256i;
    __m256i part[FOURS];
    explicit Weights(const uint8_t* p) {
        const __m256i low = _mm256_set1_epi8(15);
        UNROLL for (int i = 0; i < FOURS; i += 2) {
            __m256i both = _mm256_loadu_si256((const __m256i*)(p + 32 * i));
            part[i] = _mm256_and_si256(both, low);
            part[i + 1] = _mm256_and_si256(_mm256_srli_epi16(both, 4), low);
        }
    }
    Sum dot(const int8_t* a) const {
        __m256i even = _mm256_maddubs_epi16(part[0], spread(a));
        __m256i odd = _mm256_maddubs_epi16(part[1], spread(a + 4));
        UNROLL for (int i = 2; i < FOURS; i += 2) {
            even = _mm256_add_epi16(even, _mm256_maddubs_epi16(part[i], spread(a + 4 * i)));
            odd = _mm256_add_epi16(odd, _mm256_maddubs_epi16(part[i + 1], spread(a + 4 * i + 4)));
        }
        return _mm256_add_epi16(even, odd);
    }
    static Sum add(Sum a, Sum b) { return _mm256_add_epi16(a, b); }
    static F floats(Sum a) { return _mm256_cvtepi32_ps(_mm256_madd_epi16(a, _mm256_set1_epi16(1))); }
};

// Products of two bytes overflow 16 bits if one is unsigned. So the weights minus 128, whose sign
// goes to the other factor: 2 * 128 * 127 < 2^15.
template <int FOURS>
struct Weights<8, FOURS> {
    using Sum = __m256i;
    __m256i part[FOURS], size[FOURS];
    explicit Weights(const uint8_t* p) {
        UNROLL for (int i = 0; i < FOURS; i++) {
            __m256i raw = _mm256_loadu_si256((const __m256i*)(p + 64 * i));
            part[i] = _mm256_xor_si256(raw, _mm256_set1_epi8(-128));
            size[i] = _mm256_abs_epi8(part[i]);
        }
    }
    Sum dot(const int8_t* a) const {
        const __m256i ones = _mm256_set1_epi16(1);
        __m256i total = _mm256_setzero_si256();
        UNROLL for (int i = 0; i < FOURS; i++) {
            __m256i signed_a = _mm256_sign_epi8(spread(a + 4 * i), part[i]);
            __m256i pairs = _mm256_maddubs_epi16(size[i], signed_a);
            total = _mm256_add_epi32(total, _mm256_madd_epi16(pairs, ones));
        }
        return total;
    }
    static Sum add(Sum a, Sum b) { return _mm256_add_epi32(a, b); }
    static F floats(Sum a) { return _mm256_cvtepi32_ps(a); }
};
template <int BITS>
constexpr int PARTS = BITS == 4 ? 2 : 4;
template <int BITS>
constexpr int WIDE = 2;
template <int BITS>
constexpr int ZERO = BITS == 8 ? 128 : 0;

#else

// Plain loops that a compiler makes vectors of.
#define NAIAD_ISA "portable"
constexpr int LANES = 8;
constexpr int TILE_ROWS = 4, WIDE_ROWS = 2;
struct F {
    float v[LANES];
};
template <class Op>
inline F each(Op op) {
    F r;
    for (int i = 0; i < LANES; i++) r.v[i] = op(i);
    return r;
}
inline F set1(float x) { return each([&](int) { return x; }); }
template <class T>
inline F load(const T* p) { return each([&](int i) { return to_float(p[i]); }); }
inline void store(float* p, F x) { std::memcpy(p, x.v, sizeof x.v); }
inline F add(F a, F b) { return each([&](int i) { return a.v[i] + b.v[i]; }); }
inline F sub(F a, F b) { return each([&](int i) { return a.v[i] - b.v[i]; }); }
inline F mul(F a, F b) { return each([&](int i) { return a.v[i] * b.v[i]; }); }
inline F div(F a, F b) { return each([&](int i) { return a.v[i] / b.v[i]; }); }
inline F max(F a, F b) { return each([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; }); }
inline F min(F a, F b) { return each([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; }); }
#ifdef __FP_FAST_FMAF
inline F fma(F a, F b, F c) { return each([&](int i) { return __builtin_fmaf(a.v[i], b.v[i], c.v[i]); }); }
#else
inline F fma(F a, F b, F c) { return each([&](int i) { return a.v[i] * b.v[i] + c.v[i]; }); }
#endif
inline F abs(F a) { return each([&](int i) { return std::fabs(a.v[i]); }); }
inline F reaches(F a, F b) { return each([&](int i) { return a.v[i] >= b.v[i] ? 1.0f : 0.0f; }); }
inline F round(F a) { return each([&](int i) { return std::nearbyint(a.v[i]); }); }
inline F power2(F n) { return each([&](int i) { return bits_to_float(uint32_t(int(n.v[i]) + 127) << 23); }); }
inline float sum(F a) {
    for (int n = LANES / 2; n; n /= 2)
        for (int i = 0; i < n; i++) a.v[i] += a.v[i + n];
    return a.v[0];
}
inline float greatest(F a) {
    for (int i = 1; i < LANES; i++) a.v[0] = a.v[i] > a.v[0] ? a.v[i] : a.v[0];
    return a.v[0];
}

inline int to_bytes(const float* x, float factor, int8_t* q) {
    int total = 0;
    for (int i = 0; i < 32; i++) total += q[i] = int8_t(std::nearbyint(x[i] * factor));
    return total;
}

template <int BITS, int FOURS>
struct Weights {
    struct Sum {
        int32_t v[LANES];
    };
    uint8_t part[FOURS][LANES][4];
    explicit Weights(const uint8_t* p) {
        for (int i = 0; i < FOURS; i++)
            for (int c = 0; c < LANES; c++)
                for (int b = 0; b < 4; b++)
                    if constexpr (BITS == 8)
                        part[i][c][b] = p[64 * i + 4 * c + b];
                    else
                        part[i][c][b] = p[64 * (i / 2) + 4 * c + b] >> (i % 2 * 4) & 15;
    }
    Sum dot(const int8_t* a) const {
        Sum total = {};
        for (int i = 0; i < FOURS; i++)
            for (int c = 0; c < LANES; c++)
                for (int b = 0; b < 4; b++) total.v[c] += part[i][c][b] * a[4 * i + b];
        return total;
    }
    static Sum add(Sum a, Sum b) {
        for (int c = 0; c < LANES; c++) a.v[c] += b.v[c];
        return a;
    }
    static F floats(Sum a) { return each([&](int c) { return float(a.v[c]); }); }
};
template <int BITS>
constexpr int PARTS = 1;
template <int BITS>
constexpr int WIDE = 1;
template <int BITS>
constexpr int ZERO = 0;

#endif

// e^x to about 1e-7 of it; 0 below -88.
inline F exponential(F x) {
    x = min(max(x, set1(-88.0f)), set1(88.0f));
    F n = round(mul(x, set1(1.44269504f)));
    F r = fma(n, set1(-0.693359375f), x);
    r = fma(n, set1(2.12194440e-4f), r);
    F p = set1(1.9875691500e-4f);
    p = fma(p, r, set1(1.3981999507e-3f));
    p = fma(p, r, set1(8.3334519073e-3f));
    p = fma(p, r, set1(4.1665795894e-2f));
    p = fma(p, r, set1(1.6666665459e-1f));
    p = fma(p, r, set1(5.0000001201e-1f));
    p = fma(mul(p, r), r, add(r, set1(1.0f)));
    return mul(p, power2(n));
}
inline F tangent(F x) {  // The hyperbolic one.
    return sub(set1(1.0f), div(set1(2.0f), add(set1(1.0f), exponential(add(x, x)))));
}

}  // namespace naiad
