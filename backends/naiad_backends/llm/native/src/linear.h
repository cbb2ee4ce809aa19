// Matrices of weights in a layout for vectors, and their products with rows of activations.
//
// A row's result depends on nothing but the row: every path adds in the same order, whatever other
// rows it is computed with, and each row and group of 32 has its own scale.
#pragma once
#include <sys/mman.h>

#include <algorithm>
#include <cstddef>
#include <new>
#include <utility>
#include <vector>

#include "isa.h"

namespace naiad {

constexpr int COLUMNS = 16;  // Outputs of a block: its weights lie together, 16 lanes side by side.
constexpr int GROUP = 32;    // Inputs that share a scale.
constexpr int HEIGHT = 32;   // The most rows of activations that are computed together.
constexpr int AHEAD = 8192;  // Bytes: how far ahead products fetch weights.

inline int up(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }

// Zeroed memory; in huge pages if it is large and the system has some, because at the speed of the
// memory looking up small pages would cost a third of the time.
template <class T>
class Buffer {
   public:
    Buffer() = default;
    explicit Buffer(size_t count) : bytes_(count * sizeof(T) + HUGE) {
        void* p = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED) throw std::bad_alloc();
        mapped_ = p;
        data_ = reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(p) + HUGE - 1) / HUGE * HUGE);
        if (count * sizeof(T) >= HUGE) madvise(p, bytes_, MADV_HUGEPAGE);
    }
    Buffer(Buffer&& other) noexcept { *this = std::move(other); }
    Buffer& operator=(Buffer&& other) noexcept {
        std::swap(mapped_, other.mapped_);
        std::swap(data_, other.data_);
        std::swap(bytes_, other.bytes_);
        return *this;
    }
    ~Buffer() {
        if (mapped_) munmap(mapped_, bytes_);
    }
    T* data() const { return data_; }

   private:
    static constexpr size_t HUGE = 2 << 20;
    void* mapped_ = nullptr;
    T* data_ = nullptr;
    size_t bytes_ = 0;
};

// Memory for many matrices side by side, which lives as long as this.
class Slabs {
   public:
    uint8_t* take(size_t bytes) {
        bytes = (bytes + 63) / 64 * 64;
        if (bytes > left_) {
            left_ = std::max(bytes, SIZE);
            slabs_.emplace_back(left_);
            next_ = slabs_.back().data();
        }
        left_ -= bytes;
        taken_ += bytes;
        return std::exchange(next_, next_ + bytes);
    }
    size_t taken() const { return taken_; }

   private:
    static constexpr size_t SIZE = 32 << 20;
    std::vector<Buffer<uint8_t>> slabs_;
    uint8_t* next_ = nullptr;
    size_t left_ = 0, taken_ = 0;
};

// How weights are kept. Q4 and Q8: unsigned numbers q of 4 or 8 bits in groups of 32 inputs, each
// with a scale d and a minimum m as half floats: d * q + m.
enum class Kind : int { Q4 = 0, Q8 = 1, BF16 = 2, F16 = 3, F32 = 4 };

inline bool quantized(Kind kind) { return kind == Kind::Q4 || kind == Kind::Q8; }

// Bytes of a group of a block: lines of 64 bytes, four of each lane, then 16 scales and 16 minima.
template <int BITS>
constexpr int group_bytes() {
    return GROUP * COLUMNS * BITS / 8 + 2 * COLUMNS * 2;
}

struct Linear {
    Kind kind = Kind::F32;
    int outputs = 0, inputs = 0;
    uint8_t* data = nullptr;
    std::vector<float> bias;  // Empty, or one for each output, padded to whole blocks.

    int groups() const { return up(inputs, GROUP) / GROUP; }
    int blocks() const { return up(outputs, COLUMNS) / COLUMNS; }
    size_t block_bytes() const {
        switch (kind) {
            case Kind::Q4: return size_t(groups()) * group_bytes<4>();
            case Kind::Q8: return size_t(groups()) * group_bytes<8>();
            case Kind::F32: return size_t(inputs) * COLUMNS * 4;
            default: return size_t(inputs) * COLUMNS * 2;
        }
    }
    const uint8_t* block(int b) const { return data + size_t(b) * block_bytes(); }
};

// Rows of activations: as floats, and as signed bytes in groups of 32, with the scale of each and
// the sum of its numbers. Bytes lie in tiles of `height` rows, in each tile group after group.
struct Activations {
    int stride = 0;  // Of a row of floats, a multiple of 32; what is behind the inputs is 0.
    int height = 1;
    Buffer<float> floats;
    Buffer<int8_t> bytes;
    Buffer<float> scales, sums;

    Activations() = default;
    Activations(int rows, int inputs)
        : stride(up(inputs, GROUP)),
          floats(size_t(up(rows, HEIGHT)) * size_t(stride)),
          bytes(size_t(up(rows, HEIGHT)) * size_t(stride)),
          scales(size_t(up(rows, HEIGHT)) * size_t(stride / GROUP)),
          sums(size_t(up(rows, HEIGHT)) * size_t(stride / GROUP)) {}

    // Tiles as even as can be: weights are unpacked once for each.
    void set_rows(int rows) {
        int tiles = up(rows, HEIGHT) / HEIGHT;
        height = (rows + tiles - 1) / tiles;
    }
    float* row(int r) const { return floats.data() + size_t(r) * size_t(stride); }
    // Where the scale of a group of a row is; its bytes are at 32 times that.
    size_t place(int r, int group) const {
        size_t tile = size_t(r / height) * size_t(height) * size_t(stride / GROUP);
        return tile + size_t(group) * size_t(height) + size_t(r % height);
    }
    void quantize(int r, int group, const float* x) {
        F most = abs(load(x));
        UNROLL for (int i = LANES; i < GROUP; i += LANES) most = max(most, abs(load(x + i)));
        // What is next to nothing becomes nothing: its inverse might be infinite.
        float scale = greatest(most) / 127.0f, factor = scale > 1e-30f ? 1.0f / scale : 0.0f;
        size_t at = place(r, group);
        scales.data()[at] = scale;
        sums.data()[at] = scale * float(to_bytes(x, factor, bytes.data() + at * GROUP));
    }
    void quantize(int r) {
        for (int g = 0; g < stride / GROUP; g++) quantize(r, g, row(r) + g * GROUP);
    }
};

// The scales and minima of one vector of a group's columns.
template <int BITS>
struct Scales {
    F d, m;
    explicit Scales(const uint8_t* group, int vector) {
        const half* p = (const half*)(group + GROUP * COLUMNS * BITS / 8) + vector * LANES;
        d = load(p), m = load(p + COLUMNS);
        if constexpr (ZERO<BITS> != 0) m = fma(d, set1(ZERO<BITS>), m);
    }
    // Adds what a group's sum of products is worth.
    F onto(F sum, float scale, float total, F dot) const { return fma(m, set1(total), fma(mul(dot, d), set1(scale), sum)); }
};

template <int BITS>
void fetch_ahead(const uint8_t* group) {
    for (int i = 0; i < group_bytes<BITS>(); i += 64) __builtin_prefetch(group + AHEAD + i);
}

// One block times one row of quantized activations.
template <int BITS>
void block_row(const uint8_t* group, int groups, const Activations& x, int row, float* out) {
    using W = Weights<BITS, 8>;
    constexpr int VECTORS = COLUMNS / LANES;
    F sums[VECTORS];
    UNROLL for (int v = 0; v < VECTORS; v++) sums[v] = set1(0.0f);
    for (int g = 0; g < groups; g++, group += group_bytes<BITS>()) {
        size_t at = x.place(row, g);
        fetch_ahead<BITS>(group);
        UNROLL for (int v = 0; v < VECTORS; v++) {
            F dot = W::floats(W(group + v * LANES * 4).dot(x.bytes.data() + at * GROUP));
            sums[v] = Scales<BITS>(group, v).onto(sums[v], x.scales.data()[at], x.sums.data()[at], dot);
        }
    }
    UNROLL for (int v = 0; v < VECTORS; v++) store(out + v * LANES, sums[v]);
}

// One block times several rows, all of one tile. Weights are unpacked once for all rows, as many as
// registers hold, so sums stay in memory. Where that is not the whole group, registers do not hold its
// scales beside them either, which then have a loop of their own. Adds in the order of block_row.
template <int BITS>
void block_rows(const uint8_t* block, int groups, const Activations& x, int row, int rows, float* __restrict out) {
    constexpr int WIDTH = WIDE<BITS>, FOURS = 8 / PARTS<BITS>;
    using W = Weights<BITS, FOURS>;
    using Sum = typename W::Sum;
    Sum dots[HEIGHT][WIDTH];
    std::fill(out, out + rows * COLUMNS, 0.0f);
    for (int g = 0; g < groups; g++, block += group_bytes<BITS>()) {
        fetch_ahead<BITS>(block);
        size_t at = x.place(row, g);
        const float *scale = x.scales.data() + at, *total = x.sums.data() + at;
        for (int v = 0; v < COLUMNS / LANES; v += WIDTH) {
            auto finish = [&](const Scales<BITS>& scales, int r, int w, Sum dot) {
                float* to = out + r * COLUMNS + (v + w) * LANES;
                store(to, scales.onto(load(to), scale[r], total[r], W::floats(dot)));
            };
            if constexpr (PARTS<BITS> == 1 && WIDTH == 1) {
                const int8_t* q = x.bytes.data() + at * GROUP;
                W weights(block + v * LANES * 4);
                Scales<BITS> scales(block, v);
                for (int r = 0; r < rows; r++, q += GROUP) finish(scales, r, 0, weights.dot(q));
                continue;
            }
            UNROLL for (int part = 0; part < PARTS<BITS>; part++) {
                const uint8_t* from = block + part * FOURS * COLUMNS * 4 * BITS / 8 + v * LANES * 4;
                const int8_t* q = x.bytes.data() + at * GROUP + part * FOURS * 4;
                W first(from), second(from + (WIDTH - 1) * LANES * 4);
                for (int r = 0; r < rows; r++, q += GROUP) {
                    Sum dot = first.dot(q), dot2 = second.dot(q);
                    dots[r][0] = part ? W::add(dots[r][0], dot) : dot;
                    if (WIDTH == 2) dots[r][WIDTH - 1] = part ? W::add(dots[r][WIDTH - 1], dot2) : dot2;
                }
            }
            Scales<BITS> scales(block, v), scales2(block, v + WIDTH - 1);
            for (int r = 0; r < rows; r++) {
                finish(scales, r, 0, dots[r][0]);
                if (WIDTH == 2) finish(scales2, r, 1, dots[r][WIDTH - 1]);
            }
        }
    }
}

template <int BITS>
void block_quantized(const Linear& w, int b, const Activations& x, int row, int rows, float* out) {
    if (rows == 1)
        block_row<BITS>(w.block(b), w.groups(), x, row, out);
    else
        block_rows<BITS>(w.block(b), w.groups(), x, row, rows, out);
}

// c[ROWS][WIDTH] (+)= a[ROWS][k] * b[k][WIDTH], added from k = 0 on. Meanwhile it fetches what lies
// `ahead` elements from b's.
template <int ROWS, int WIDTH, bool ONTO, class T>
void tile(const float* a, size_t lda, const T* b, size_t ldb, int k, float* c, size_t ldc, ptrdiff_t ahead) {
    constexpr int VECTORS = WIDTH / LANES;
    F acc[ROWS][VECTORS];
    UNROLL for (int r = 0; r < ROWS; r++)
        UNROLL for (int v = 0; v < VECTORS; v++)
            acc[r][v] = ONTO ? load(c + size_t(r) * ldc + v * LANES) : set1(0.0f);
    for (int i = 0; i < k; i++) {
        const T* line = b + size_t(i) * ldb;
        __builtin_prefetch(line + ahead);
        if constexpr (ROWS < VECTORS) {  // Registers hold the shorter side of the tile.
            F ones[ROWS];
            UNROLL for (int r = 0; r < ROWS; r++) ones[r] = set1(a[size_t(r) * lda + size_t(i)]);
            UNROLL for (int v = 0; v < VECTORS; v++) {
                F part = load(line + v * LANES);
                UNROLL for (int r = 0; r < ROWS; r++) acc[r][v] = fma(ones[r], part, acc[r][v]);
            }
        } else {
            F parts[VECTORS];
            UNROLL for (int v = 0; v < VECTORS; v++) parts[v] = load(line + v * LANES);
            UNROLL for (int r = 0; r < ROWS; r++) {
                F one = set1(a[size_t(r) * lda + size_t(i)]);
                UNROLL for (int v = 0; v < VECTORS; v++) acc[r][v] = fma(one, parts[v], acc[r][v]);
            }
        }
    }
    UNROLL for (int r = 0; r < ROWS; r++)
        UNROLL for (int v = 0; v < VECTORS; v++) store(c + size_t(r) * ldc + v * LANES, acc[r][v]);
}

// The same for any number of rows.
template <int WIDTH, bool ONTO, class T, int ROWS>
void tiles(int rows, const float* a, size_t lda, const T* b, size_t ldb, int k, float* c, size_t ldc, ptrdiff_t ahead) {
    if constexpr (ROWS > 0) {
        for (; rows >= ROWS; rows -= ROWS, a += ROWS * lda, c += ROWS * ldc)
            tile<ROWS, WIDTH, ONTO>(a, lda, b, ldb, k, c, ldc, ahead);
        if (rows) tiles<WIDTH, ONTO, T, ROWS - 1>(rows, a, lda, b, ldb, k, c, ldc, ahead);
    }
}

// And for any multiple of 16 columns.
template <bool ONTO, class T>
void product(int rows, int columns, const float* a, size_t lda, const T* b, size_t ldb, int k, float* c, size_t ldc, ptrdiff_t ahead) {
    constexpr int TWO = 2 * COLUMNS;
    if (rows <= WIDE_ROWS)
        for (; columns >= TWO; columns -= TWO, b += TWO, c += TWO)
            tiles<TWO, ONTO, T, WIDE_ROWS>(rows, a, lda, b, ldb, k, c, ldc, ahead);
    for (; columns > 0; columns -= COLUMNS, b += COLUMNS, c += COLUMNS)
        tiles<COLUMNS, ONTO, T, TILE_ROWS>(rows, a, lda, b, ldb, k, c, ldc, ahead);
}

// out[rows][16] = rows `row`, ... of x times block b of w, without the bias.
inline void multiply(const Linear& w, int b, const Activations& x, int row, int rows, float* out) {
    size_t stride = size_t(x.stride);
    switch (w.kind) {
        case Kind::Q4: return block_quantized<4>(w, b, x, row, rows, out);
        case Kind::Q8: return block_quantized<8>(w, b, x, row, rows, out);
        case Kind::BF16:
            return product<false>(rows, COLUMNS, x.row(row), stride, (const bf16*)w.block(b), COLUMNS, w.inputs, out, COLUMNS, AHEAD / sizeof(bf16));
        case Kind::F16:
            return product<false>(rows, COLUMNS, x.row(row), stride, (const half*)w.block(b), COLUMNS, w.inputs, out, COLUMNS, AHEAD / sizeof(half));
        case Kind::F32:
            return product<false>(rows, COLUMNS, x.row(row), stride, (const float*)w.block(b), COLUMNS, w.inputs, out, COLUMNS, AHEAD / sizeof(float));
    }
}

// One row of the matrix, as an embedding: out[inputs].
inline void row_of(const Linear& w, int n, float* out) {
    const uint8_t* block = w.block(n / COLUMNS);
    int lane = n % COLUMNS;
    for (int k = 0; k < w.inputs; k++) {
        if (w.kind == Kind::F32)
            out[k] = ((const float*)block)[k * COLUMNS + lane];
        else if (w.kind == Kind::BF16)
            out[k] = to_float(((const bf16*)block)[k * COLUMNS + lane]);
        else if (w.kind == Kind::F16)
            out[k] = to_float(((const half*)block)[k * COLUMNS + lane]);
        else {
            int bits = w.kind == Kind::Q4 ? 4 : 8, i = k % GROUP;
            const uint8_t* group = block + size_t(k / GROUP) * size_t(bits == 4 ? group_bytes<4>() : group_bytes<8>());
            const half* scales = (const half*)(group + GROUP * COLUMNS * bits / 8);
            int q = bits == 8 ? group[64 * (i / 4) + 4 * lane + i % 4]
                              : group[64 * (i / 8) + 4 * lane + i % 4] >> (i / 4 % 2 * 4) & 15;
            out[k] = to_float(scales[lane]) * float(q) + to_float(scales[COLUMNS + lane]);
        }
    }
}

}  // namespace naiad
