// A dense decoder: one step over rows of tokens, from embeddings to logits.
//
// Phases run on the pool one after another; what is too small to share runs on the caller. The
// residual stream, norms, rotation and attention are in 32-bit floats.
#pragma once
#include <map>
#include <string>

#include "attention.h"
#include "pack.h"
#include "pool.h"
#include "sampling.h"

namespace naiad {

// The same in library.py.
struct Config {
    int vocab, hidden, intermediate, heads, kv_heads, head_dim, layers, ropes;
    int pre_norm, post_norm, qk_norm, activation;  // 0 silu, 1 tanh's gelu, 2 gelu.
    int threads, max_tokens, block_size, blocks, cache;  // A Kind of the plain ones.
    float eps, attention_scale, score_softcap, logit_softcap, embedding_scale, residual_scale, logit_scale;
};

// Step of runner.py.
struct Step {
    int tokens, sequences, width, rows;
    const int32_t *ids, *positions, *slots, *starts, *lengths, *blocks, *wanted;
};

enum Norm { ATTN, POST_ATTN, MLP, POST_MLP, QUERY, KEY, NORMS };
enum Matrix { Q, K, V, O, GATE, UP, DOWN, MATRICES };

struct Layer {
    Linear matrices[MATRICES];
    std::vector<float> norms[NORMS];
    int window = 0, rope = -1;
};

struct Rope {
    int dimensions = 0, interleaved = 0;
    float scale = 1;
    std::vector<float> inv_freq;
};

class Model {
   public:
    explicit Model(const Config& config)
        : c(config),
          pool_(config.threads),
          layers_(size_t(config.layers)),
          ropes_(size_t(config.ropes)),
          queries_(up(c.heads * c.head_dim, COLUMNS)),
          keys_(up(c.kv_heads * c.head_dim, COLUMNS)),
          x_(size_t(c.max_tokens) * size_t(up(c.hidden, GROUP))),
          branch_(size_t(c.max_tokens) * size_t(up(c.hidden, GROUP))),
          qkv_(size_t(c.max_tokens) * size_t(queries_ + 2 * keys_)),
          hidden_(c.max_tokens, c.hidden),
          attended_(c.max_tokens, c.heads * c.head_dim),
          middle_(c.max_tokens, c.intermediate),
          cache_(layer_bytes() * size_t(c.layers)) {}

    // layer: -1 for what is outside of the layers: matrix 0 is the embedding, 1 the head.
    Linear& matrix(int layer, int which) {
        return layer < 0 ? (which ? head_ : embedding_) : layers_[size_t(layer)].matrices[which];
    }
    std::vector<float>& norm(int layer, int which) { return layer < 0 ? norm_ : layers_[size_t(layer)].norms[which]; }
    Layer& layer(int i) { return layers_[size_t(i)]; }
    Rope& rope(int i) { return ropes_[size_t(i)]; }

    void load(Linear& w, Kind kind, int outputs, int inputs, Type type, const uint8_t* rows, size_t row_bytes) {
        w.kind = kind, w.outputs = outputs, w.inputs = inputs;
        w.data = weights_.take(size_t(w.blocks()) * w.block_bytes());
        pool_.run(w.blocks(), [&](int b, int) { pack(w, type, rows, row_bytes, b); });
    }
    size_t weight_bytes() const { return weights_.taken(); }

    // Whether what the arrays of a step say belongs together, and every index is in bounds.
    bool fits(const Step& s) const {
        auto within = [](const int32_t* p, int count, int end) {
            bool all = true;
            for (int i = 0; i < count; i++) all &= uint32_t(p[i]) < uint32_t(end);
            return all;
        };
        if (s.tokens < 1 || s.tokens > c.max_tokens || s.starts[0] || s.starts[s.sequences] != s.tokens) return false;
        for (int i = 0; i < s.sequences; i++) {
            int from = s.starts[i], to = s.starts[i + 1];
            if (from >= to || to > s.tokens || s.positions[from] < 0) return false;
            if (s.positions[to - 1] != s.lengths[i] - 1 || s.lengths[i] > s.width * c.block_size) return false;
        }
        for (int r = 1; r < s.rows; r++)
            if (s.wanted[r - 1] >= s.wanted[r]) return false;
        return within(s.ids, s.tokens, c.vocab) && within(s.slots, s.tokens, c.blocks * c.block_size) &&
               within(s.wanted, s.rows, s.tokens) && within(s.blocks, s.sequences * s.width, c.blocks);
    }

    // logits: [step.rows][vocab].
    void forward(const Step& step, float* logits) {
        Pool::Pinned pinned(pool_);
        plans_.clear();
        rotations(step);
        set_rows(step.tokens);
        embed(step);
        int rows = step.tokens;
        for (int i = 0; i < c.layers; i++) {
            const Layer& layer = layers_[size_t(i)];
            attention(step, layer, i);
            if (i == c.layers - 1) rows = keep_wanted(step);
            if (!rows) return;
            attention_out(rows, layer);
            mlp_block(rows, layer);
        }
        head(rows, logits);
    }

    // The next token of each row; see Sampler.
    void choose(const float* logits, int vocab, int rows, const Wish* wishes, int32_t* tokens) {
        Pool::Pinned pinned(pool_);
        samplers_.resize(size_t(pool_.threads()));
        pool_.run(rows, [&](int row, int thread) {
            tokens[row] = samplers_[size_t(thread)].choose(logits + size_t(row) * size_t(vocab), vocab, wishes[row]);
        });
    }

   private:
    // Work that the pool shares if there is enough of it: `size` floats for each of the items.
    template <class Body>
    void each(int items, int size, Body&& body) {
        if (int64_t(items) * size < 4096)
            for (int i = 0; i < items; i++) body(i, 0);
        else
            pool_.run(items, body);
    }

    // Products of x with each of the matrices, block by block; done(which, block, row, rows, out[rows][16]).
    template <class Done>
    void project(std::initializer_list<const Linear*> matrices, const Activations& x, int rows, Done&& done) {
        int blocks = 0, height = x.height;
        for (const Linear* w : matrices) blocks += w->blocks();
        pool_.run(up(rows, height) / height * blocks, [&](int item, int) {
            int row = item / blocks * height, count = std::min(height, rows - row), b = item % blocks, which = 0;
            auto w = matrices.begin();
            while (b >= (*w)->blocks()) b -= (*w++)->blocks(), which++;
            alignas(64) float out[HEIGHT * COLUMNS];
            multiply(**w, b, x, row, count, out);
            if (!(*w)->bias.empty()) add_bias(**w, b, count, out);
            done(which, b, row, count, out);
        });
    }
    static void add_bias(const Linear& w, int b, int rows, float* out) {
        for (int r = 0; r < rows; r++)
            for (int i = 0; i < COLUMNS; i += LANES) {
                float* o = out + r * COLUMNS + i;
                store(o, add(naiad::load(o), naiad::load(w.bias.data() + b * COLUMNS + i)));
            }
    }

    // turns_[rope][token]: cosines, then sines, of half the dimensions each.
    void rotations(const Step& step) {
        turns_.resize(ropes_.size());
        for (size_t k = 0; k < ropes_.size(); k++) {
            const Rope& rope = ropes_[k];
            int half = rope.dimensions / 2;
            turns_[k].resize(size_t(step.tokens) * size_t(rope.dimensions));
            each(step.tokens, 8 * half, [&](int t, int) {
                float* turns = turns_[k].data() + size_t(t) * size_t(rope.dimensions);
                for (int i = 0; i < half; i++) {
                    // The product in 32 bits, as everybody trains.
                    double angle = double(float(step.positions[t]) * rope.inv_freq[size_t(i)]);
                    turns[i] = float(std::cos(angle)) * rope.scale;
                    turns[half + i] = float(std::sin(angle)) * rope.scale;
                }
            });
        }
    }

    void set_rows(int rows) { hidden_.set_rows(rows), attended_.set_rows(rows), middle_.set_rows(rows); }

    // Behind the last attention nobody reads more than the rows whose logits are wanted. How many.
    int keep_wanted(const Step& step) {
        if (step.rows == step.tokens) return step.rows;
        for (int r = 0; r < step.rows; r++) {  // They ascend, so none is overwritten before its turn.
            int from = step.wanted[r];
            if (from == r) continue;
            std::copy_n(row(x_, from), c.hidden, row(x_, r));
            std::copy_n(attended_.row(from), attended_.stride, attended_.row(r));
        }
        if (step.rows) set_rows(step.rows);
        return step.rows;
    }

    void embed(const Step& step) {
        each(step.tokens, c.hidden, [&](int t, int) {
            float* x = row(x_, t);
            row_of(embedding_, step.ids[t], x);
            scale(x, c.hidden, c.embedding_scale);
        });
    }

    // To `attended_`.
    void attention(const Step& step, const Layer& layer, int index) {
        const Linear* m = layer.matrices;
        normalize(step.tokens, layer.norms[ATTN], quantized(m[Q].kind) || quantized(m[K].kind) || quantized(m[V].kind));
        int offsets[] = {0, queries_, queries_ + keys_}, width = queries_ + 2 * keys_;
        project({&m[Q], &m[K], &m[V]}, hidden_, step.tokens, [&](int which, int b, int row, int rows, const float* out) {
            float* to = qkv_.data() + size_t(row) * size_t(width) + offsets[which] + b * COLUMNS;
            for (int r = 0; r < rows; r++, to += width) std::copy(out + r * COLUMNS, out + (r + 1) * COLUMNS, to);
        });
        switch (Kind(c.cache)) {
            case Kind::F16: attend_all<half>(step, layer, index); break;
            case Kind::BF16: attend_all<bf16>(step, layer, index); break;
            default: attend_all<float>(step, layer, index);
        }
    }
    void attention_out(int rows, const Layer& layer) {
        const Linear& out = layer.matrices[O];
        if (quantized(out.kind)) each(rows, attended_.stride, [&](int t, int) { attended_.quantize(t); });
        onto_residual(out, attended_, rows, layer.norms[POST_ATTN]);
    }

    void mlp_block(int rows, const Layer& layer) {
        const Linear &gate = layer.matrices[GATE], &up_ = layer.matrices[UP], &down = layer.matrices[DOWN];
        normalize(rows, layer.norms[MLP], quantized(gate.kind) || quantized(up_.kind));
        int height = hidden_.height, groups = middle_.stride / GROUP;
        pool_.run(up(rows, height) / height * groups, [&](int item, int) {
            int row = item / groups * height, count = std::min(height, rows - row), g = item % groups;
            for (int b = 2 * g; b < std::min(2 * g + 2, gate.blocks()); b++) {
                alignas(64) float gates[HEIGHT * COLUMNS], ups[HEIGHT * COLUMNS];
                multiply(gate, b, hidden_, row, count, gates);
                if (!gate.bias.empty()) add_bias(gate, b, count, gates);
                multiply(up_, b, hidden_, row, count, ups);
                if (!up_.bias.empty()) add_bias(up_, b, count, ups);
                for (int r = 0; r < count; r++)
                    for (int i = 0; i < COLUMNS; i += LANES) {
                        F g_ = activate(naiad::load(gates + r * COLUMNS + i));
                        store(middle_.row(row + r) + b * COLUMNS + i, mul(g_, naiad::load(ups + r * COLUMNS + i)));
                    }
            }
            if (quantized(down.kind))
                for (int r = row; r < row + count; r++) middle_.quantize(r, g, middle_.row(r) + g * GROUP);
        });
        onto_residual(down, middle_, rows, layer.norms[POST_MLP]);
    }

    void head(int rows, float* logits) {
        const Linear& w = head_.outputs ? head_ : embedding_;
        each(rows, c.hidden, [&](int r, int) {
            rms_norm(row(x_, r), norm_, c.hidden, hidden_.row(r));
            if (quantized(w.kind)) hidden_.quantize(r);
        });
        project({&w}, hidden_, rows, [&](int, int b, int row, int rows, float* out) {
            int columns = std::min(COLUMNS, c.vocab - b * COLUMNS);
            for (int r = 0; r < rows; r++)
                for (int i = 0; i < COLUMNS; i += LANES) {
                    F y = mul(naiad::load(out + r * COLUMNS + i), set1(c.logit_scale));
                    if (c.logit_softcap > 0) y = softcap(y, c.logit_softcap);
                    store(out + r * COLUMNS + i, y);
                }
            for (int r = 0; r < rows; r++)
                std::copy(out + r * COLUMNS, out + r * COLUMNS + columns,
                          logits + size_t(row + r) * size_t(c.vocab) + b * COLUMNS);
        });
    }

    // The norm of the residual stream, or the stream itself, to `hidden_`.
    void normalize(int tokens, const std::vector<float>& weight, bool quantize) {
        each(tokens, c.hidden, [&](int t, int) {
            if (c.pre_norm)
                rms_norm(row(x_, t), weight, c.hidden, hidden_.row(t));
            else
                std::copy(row(x_, t), row(x_, t) + c.hidden, hidden_.row(t));
            if (quantize) hidden_.quantize(t);
        });
    }

    // Adds a matrix's product, or the norm of it, to the residual stream.
    void onto_residual(const Linear& w, const Activations& in, int tokens, const std::vector<float>& weight) {
        int stride = up(c.hidden, GROUP);
        float* to = c.post_norm ? branch_.data() : x_.data();
        project({&w}, in, tokens, [&](int, int b, int row, int rows, const float* out) {
            F scale = set1(c.residual_scale);
            for (int r = 0; r < rows; r++)
                for (int i = 0; i < COLUMNS; i += LANES) {
                    float* y = to + size_t(row + r) * size_t(stride) + b * COLUMNS + i;
                    F o = naiad::load(out + r * COLUMNS + i);
                    store(y, c.post_norm ? o : fma(o, scale, naiad::load(y)));
                }
        });
        if (!c.post_norm) return;
        each(tokens, c.hidden, [&](int t, int) {
            float *branch = row(branch_, t), *x = row(x_, t);
            rms_norm(branch, weight, c.hidden, branch);
            for (int i = 0; i < c.hidden; i++) x[i] = std::fma(branch[i], c.residual_scale, x[i]);
        });
    }

    void rms_norm(const float* x, const std::vector<float>& weight, int n, float* y) const {
        F even = set1(0.0f), odd = even;
        int i = 0;
        for (; i + 2 * LANES <= n; i += 2 * LANES) {
            F a = naiad::load(x + i), b = naiad::load(x + i + LANES);
            even = fma(a, a, even), odd = fma(b, b, odd);
        }
        float total = sum(add(even, odd));
        for (; i < n; i++) total += x[i] * x[i];
        float factor = 1.0f / std::sqrt(total / float(n) + c.eps);
        for (i = 0; i + LANES <= n; i += LANES)
            store(y + i, mul(mul(naiad::load(x + i), set1(factor)), naiad::load(weight.data() + i)));
        for (; i < n; i++) y[i] = x[i] * factor * weight[size_t(i)];
    }

    F activate(F x) const {
        if (c.activation == 0) return div(x, add(set1(1.0f), exponential(sub(set1(0.0f), x))));
        if (c.activation == 1) {
            F cubic = fma(mul(mul(x, x), x), set1(0.044715f), x);
            return mul(mul(x, set1(0.5f)), add(set1(1.0f), tangent(mul(cubic, set1(0.7978845608f)))));
        }
        float v[LANES];
        store(v, x);
        for (float& y : v) y *= 0.5f * (1.0f + std::erf(y * 0.70710678f));
        return naiad::load(v);
    }
    static F softcap(F x, float cap) { return mul(tangent(div(x, set1(cap))), set1(cap)); }

    // Queries and keys normed and turned; keys and values to the cache.
    template <class T>
    void write_cache(const Step& step, const Layer& layer, const Pages<T>& pages) {
        int width = queries_ + 2 * keys_, d = c.head_dim;
        each(step.tokens, width, [&](int t, int) {
            float* q = qkv_.data() + size_t(t) * size_t(width);
            float *k = q + queries_, *v = k + keys_;
            for (int h = 0; h < c.heads; h++) {
                turn(q + h * d, layer, layer.norms[QUERY], t);
                scale(q + h * d, d, c.attention_scale);
            }
            for (int h = 0; h < c.kv_heads; h++) {
                turn(k + h * d, layer, layer.norms[KEY], t);
                pages.write(step.slots[t], h, k + h * d, v + h * d);
            }
        });
    }
    static void scale(float* x, int n, float factor) {
        int i = 0;
        for (; i + LANES <= n; i += LANES) store(x + i, mul(naiad::load(x + i), set1(factor)));
        for (; i < n; i++) x[i] *= factor;
    }
    void turn(float* x, const Layer& layer, const std::vector<float>& weight, int t) const {
        if (c.qk_norm) rms_norm(x, weight, c.head_dim, x);
        if (layer.rope < 0) return;
        const Rope& rope = ropes_[size_t(layer.rope)];
        int half = rope.dimensions / 2, i = 0;
        const float *cosines = turns_[size_t(layer.rope)].data() + size_t(t) * size_t(rope.dimensions), *sines = cosines + half;
        if (!rope.interleaved)
            for (; i + LANES <= half; i += LANES) {
                F a = naiad::load(x + i), b = naiad::load(x + half + i);
                F cosine = naiad::load(cosines + i), sine = naiad::load(sines + i);
                store(x + i, sub(mul(a, cosine), mul(b, sine)));
                store(x + half + i, add(mul(b, cosine), mul(a, sine)));
            }
        for (; i < half; i++) {
            float &a = rope.interleaved ? x[2 * i] : x[i], &b = rope.interleaved ? x[2 * i + 1] : x[i + half];
            float first = a;
            a = first * cosines[i] - b * sines[i];
            b = b * cosines[i] + first * sines[i];
        }
    }

    // Tokens of one sequence whose queries of one KV head are computed together.
    struct Tile {
        int sequence, head, token, count;  // token: of the step.
        int first_chunk, chunks;
        int part;  // Its first one of the parts that are merged later, -1 if there are none.
    };
    // What to do in layers of one window: tiles, and (tile, chunk) of those that are split.
    struct Plan {
        std::vector<Tile> tiles;
        std::vector<std::pair<int, int>> items;
        std::vector<int> split;
        int parts = 0;
    };

    const Plan& plan(const Step& step, int window) {
        auto [found, fresh] = plans_.try_emplace(window);
        Plan& p = found->second;
        if (!fresh) return p;
        int most = QUERY_ROWS / (c.heads / c.kv_heads);
        for (int s = 0; s < step.sequences; s++)
            for (int end = step.starts[s + 1]; end > step.starts[s];) {
                // The last tokens, which see the most, first.
                int count = (end - step.starts[s] - 1) % most + 1, token = end - count, at = step.positions[token];
                int first = window ? std::max(0, at - window + 1) / CHUNK : 0;
                int chunks = step.positions[end - 1] / CHUNK + 1 - first;
                for (int h = 0; h < c.kv_heads; h++) p.tiles.push_back({s, h, token, count, first, chunks, -1});
                end = token;
            }
        bool few = int(p.tiles.size()) < 8 * pool_.threads();
        for (int i = 0; i < int(p.tiles.size()); i++) {
            Tile& tile = p.tiles[size_t(i)];
            if (!few || tile.chunks == 1) {
                p.items.push_back({i, -1});
                continue;
            }
            tile.part = p.parts;
            p.parts += tile.chunks;
            p.split.push_back(i);
            for (int j = 0; j < tile.chunks; j++) p.items.push_back({i, j});
        }
        return p;
    }

    template <class T>
    void attend_all(const Step& step, const Layer& layer, int index) {
        int width = up(c.head_dim, COLUMNS);
        Pages<T> pages{(T*)(cache_.data() + size_t(index) * layer_bytes()), c.kv_heads, c.head_dim, width, c.block_size};
        write_cache(step, layer, pages);
        const Plan& p = plan(step, layer.window);
        size_t part = size_t(QUERY_ROWS) * size_t(width + 2);
        if (parts_.size() < size_t(p.parts) * part) parts_.resize(size_t(p.parts) * part);
        auto gathered = [&](int i) {
            float* at = parts_.data() + size_t(i) * part;
            return Gathered{at, at + QUERY_ROWS, at + 2 * QUERY_ROWS};
        };
        pool_.run(int(p.items.size()), [&](int item, int) {
            auto [i, chunk] = p.items[size_t(item)];
            const Tile& tile = p.tiles[size_t(i)];
            thread_local std::vector<float> rows, values;
            Query q = query(step, layer, tile, rows);
            if (chunk >= 0)
                return gather(q, pages, tile.head, (tile.first_chunk + chunk) * CHUNK, gathered(tile.part + chunk));
            float most[QUERY_ROWS], total[QUERY_ROWS];
            values.resize(size_t(QUERY_ROWS) * size_t(width));
            Gathered all{most, total, values.data()};
            attend(q, pages, tile.head, all);
            finish(tile, all, width);
        });
        each(int(p.split.size()), 1024, [&](int i, int) {
            const Tile& tile = p.tiles[size_t(p.split[size_t(i)])];
            Gathered all = gathered(tile.part);
            for (int j = 1; j < tile.chunks; j++) {
                Gathered next = gathered(tile.part + j);
                for (int r = 0; r < tile.count * (c.heads / c.kv_heads); r++)
                    merge(all.most[r], all.total[r], all.values + r * width, next.most[r], next.total[r],
                          next.values + r * width, width);
            }
            finish(tile, all, width);
        });
    }

    Query query(const Step& step, const Layer& layer, const Tile& tile, std::vector<float>& rows) const {
        int group = c.heads / c.kv_heads, size = group * c.head_dim, stride = queries_ + 2 * keys_;
        const float* from = qkv_.data() + size_t(tile.token) * size_t(stride) + tile.head * size;
        if (tile.count > 1) {
            rows.resize(size_t(tile.count) * size_t(size));
            for (int t = 0; t < tile.count; t++)
                std::copy(from + size_t(t) * size_t(stride), from + size_t(t) * size_t(stride) + size,
                          rows.data() + size_t(t) * size_t(size));
            from = rows.data();
        }
        return {from, tile.count * group, group, step.positions[tile.token], layer.window, c.score_softcap,
                step.blocks + size_t(tile.sequence) * size_t(step.width)};
    }

    void finish(const Tile& tile, const Gathered& all, int width) const {
        int group = c.heads / c.kv_heads;
        for (int r = 0; r < tile.count * group; r++) {
            float* to = attended_.row(tile.token + r / group) + (tile.head * group + r % group) * c.head_dim;
            float share = 1.0f / all.total[r];
            for (int i = 0; i < c.head_dim; i++) to[i] = all.values[r * width + i] * share;
        }
    }

    float* row(const Buffer<float>& buffer, int t) const {
        return buffer.data() + size_t(t) * size_t(up(c.hidden, GROUP));
    }
    size_t layer_bytes() const {
        size_t head = Pages<half>::head_size(c.head_dim, up(c.head_dim, COLUMNS), c.block_size);
        return size_t(c.blocks) * size_t(c.kv_heads) * head * (Kind(c.cache) == Kind::F32 ? 4 : 2);
    }

    const Config c;
    Pool pool_;
    std::vector<Sampler> samplers_;
    Slabs weights_;
    std::vector<Layer> layers_;
    std::vector<Rope> ropes_;
    Linear embedding_, head_;
    std::vector<float> norm_;
    int queries_, keys_;  // Columns of queries, and of keys or values, in qkv_.
    Buffer<float> x_, branch_, qkv_;
    Activations hidden_, attended_, middle_;
    Buffer<uint8_t> cache_;
    std::vector<std::vector<float>> turns_;
    std::map<int, Plan> plans_;
    std::vector<float> parts_;
};

}  // namespace naiad
