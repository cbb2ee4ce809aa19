// Chooses the next token of a row of logits: the rules and the random numbers of engine/draws.py.
//
// Blocks whose largest logit cannot matter are left out, and what is left is sorted only around the
// place where top-p ends.
#pragma once
#include <algorithm>
#include <cfloat>
#include <functional>
#include <limits>
#include <vector>

#include "isa.h"

namespace naiad {

// What a row asks for; the same in sampling.py. temperature: 0 for the largest logit.  top_p: 1 for
// all.  reach: how far below the largest logit others may be (min_p).  top_k: 0 for all.
struct Wish {
    uint64_t key;
    double top_p;
    float temperature, reach;
    int32_t top_k;
};

// In place of a token: a logit is not finite; every token is forbidden.
constexpr int NOT_FINITE = -1, FORBIDDEN = -2;

constexpr float INFINITE = std::numeric_limits<float>::infinity();

inline uint64_t mixed(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

// A number in (0, 1).
inline double uniform(uint64_t key, size_t number) {
    uint64_t x = mixed((uint64_t(number) + 1) * 0x9e3779b97f4a7c15u + key);
    return (double(x >> 11) + 0.5) * 0x1p-53;
}

class Sampler {
   public:
    // A token of `size` logits, or why there is none.
    int choose(const float* logits, int size, const Wish& wish) {
        look(logits, size);
        if (broken_ || best_ == INFINITE) return NOT_FINITE;
        if (best_ == -INFINITE) return FORBIDDEN;
        if (wish.temperature == 0) return first();
        float scale = 1 / wish.temperature;
        if ((wish.top_k > 0 && wish.top_k < size) || wish.reach < INFINITE) {
            collect_largest(wish.top_k > 0 ? std::min(wish.top_k, size) : size, best_ - wish.reach);
            for (size_t i = 0; i < weights_.size(); i += LANES) store(&weights_[i], weight(&weights_[i], scale));
            weights_.resize(ids_.size());
            if (wish.top_p < 1) cut(wish.top_p);
        } else {
            weigh_all(scale);
            if (wish.top_p >= 1) return race_of_blocks(wish.key);
            collect_nucleus(wish.top_p);
        }
        return ids_[race(wish.key, weights_.data(), ids_.size(), [this](size_t i) { return size_t(ids_[i]); })];
    }

   private:
    static constexpr int BLOCK = 64;
    static constexpr size_t FEW = 256;

    // Finds the largest logit of each block, of a row that has only whole ones.
    void look(const float* logits, int size) {
        size_t blocks = (size_t(size) + BLOCK - 1) / BLOCK;
        size_ = size;
        row_.resize(blocks * BLOCK);
        values_ = logits;
        if (size % BLOCK) {
            std::copy(logits, logits + size, row_.begin());
            std::fill(row_.begin() + size, row_.end(), -INFINITE);
            values_ = row_.data();
        }
        tops_.resize(blocks);
        F broken = set1(0);
        best_ = -INFINITE;
        for (size_t b = 0; b < blocks; b++) {
            F top = set1(-INFINITE);
            for (int i = 0; i < BLOCK; i += LANES) {
                F x = load(values_ + b * BLOCK + i);
                top = max(top, x);
                // max gives its second argument if one is not a number.
                broken = fma(max(set1(-FLT_MAX), x), set1(0), broken);
            }
            tops_[b] = greatest(top);
            best_ = std::max(best_, tops_[b]);
        }
        broken_ = sum(broken) != 0;
    }

    int first() const {
        size_t i = size_t(std::find(tops_.begin(), tops_.end(), best_) - tops_.begin()) * BLOCK;
        while (values_[i] != best_) i++;
        return int(i);
    }

    // Logits to weights: 1 for the best.
    F weight(const float* logits, float scale) const {
        return exponential(mul(sub(load(logits), set1(best_)), set1(scale)));
    }

    void weigh_all(float scale) {
        sums_.resize(tops_.size());
        total_ = 0;
        for (size_t b = 0; b < tops_.size(); b++) {
            F all = set1(0), top = set1(0);
            for (int i = 0; i < BLOCK; i += LANES) {
                F w = weight(values_ + b * BLOCK + i, scale);
                store(&row_[b * BLOCK + size_t(i)], w);
                all = add(all, w);
                top = max(top, w);
            }
            tops_[b] = greatest(top);
            total_ += double(sums_[b] = sum(all));
        }
        values_ = row_.data();
    }

    // Calls body(i, values_[i]) for all that reach a bound.
    template <class Body>
    void each_from(float bound, Body&& body) const {
        for (size_t b = 0; b < tops_.size(); b++)
            if (tops_[b] >= bound)
                for (size_t i = b * BLOCK; i < (b + 1) * BLOCK; i++)
                    if (values_[i] >= bound) body(int(i), values_[i]);
    }

    // The `count` largest logits of those from `least` on, largest first.
    void collect_largest(int count, float least) {
        if (size_t(count) <= tops_.size()) {
            // Each of the `count` best blocks has one that is at least as large as this.
            sums_ = tops_;
            auto bound = sums_.begin() + (count - 1);
            std::nth_element(sums_.begin(), bound, sums_.end(), std::greater<float>());
            least = std::max(least, *bound);
        }
        found_.clear();
        each_from(std::max(least, -FLT_MAX), [&](int id, float x) { found_.push_back({x, id}); });
        size_t kept = std::min(size_t(count), found_.size());
        std::partial_sort(found_.begin(), found_.begin() + kept, found_.end());
        ids_.clear();
        weights_.assign((kept + LANES - 1) / LANES * LANES, best_);
        for (size_t i = 0; i < kept; i++) {
            ids_.push_back(found_[i].id);
            weights_[i] = found_[i].value;
        }
    }

    // Of falling weights, the fewest that make up `top_p` of all.
    void cut(double top_p) {
        double all = 0, sum = 0;
        for (float weight : weights_) all += double(weight);
        size_t kept = 0;
        while (kept < ids_.size() && sum < top_p * all) sum += double(weights_[kept++]);
        ids_.resize(kept);
        weights_.resize(kept);
    }

    // The same of all weights of the row. Looks for two bounds: above `high` is not enough, above
    // `low` is, and only the few between them have to be sorted.
    void collect_nucleus(double top_p) {
        double enough = top_p * total_, sum = 0;
        // Those below this one make up less than 1 - top_p together.
        Part low{std::max(float((1 - top_p) * total_ / size_), FLT_MIN), 0, row_.size()}, high{2, 0, 0};
        for (int i = 0; i < 24 && low.count - high.count > FEW; i++) {
            Part middle = from(std::sqrt(low.bound * high.bound));
            (middle.sum < enough ? high : low) = middle;
        }
        ids_.clear(), weights_.clear(), found_.clear();
        auto keep = [&](int id, float weight) {
            ids_.push_back(id);
            weights_.push_back(weight);
            sum += double(weight);
        };
        each_from(low.bound, [&](int id, float weight) {
            if (weight >= high.bound)
                keep(id, weight);
            else
                found_.push_back({weight, id});
        });
        std::sort(found_.begin(), found_.end());
        for (size_t i = 0; i < found_.size() && sum < enough; i++) keep(found_[i].id, found_[i].value);
    }

    // The weights that reach a bound: their sum and how many they are.
    struct Part {
        float bound;
        double sum;
        size_t count;
    };
    Part from(float bound) const {
        double all = 0;
        F counts = set1(0);
        for (size_t b = 0; b < tops_.size(); b++) {
            if (tops_[b] < bound) continue;
            F sums = set1(0);
            for (int i = 0; i < BLOCK; i += LANES) {
                F x = load(values_ + b * BLOCK + i), there = reaches(x, set1(bound));
                sums = fma(x, there, sums);
                counts = add(counts, there);
            }
            all += double(sum(sums));
        }
        return {bound, all, size_t(sum(counts))};
    }

    // Which of `count` weights arrives first, at -log(u) / weight: each as often as its part of all.
    // number(i): the token of weight i, or its like.
    template <class Number>
    static size_t race(uint64_t key, const float* weights, size_t count, Number&& number) {
        size_t first = 0;
        double least = INFINITE;
        for (size_t i = 0; i < count; i++) {
            double u = uniform(key, number(i)), weight = double(weights[i]);
            // -log(u) is more than 1 - u, and a logarithm costs more than all else.
            if (weight == 0 || (1 - u) > least * weight) continue;
            double time = -std::log(u) / weight;
            if (time < least) least = time, first = i;
        }
        return first;
    }
    // A race of blocks, then one in the block that has won: fewer random numbers.
    int race_of_blocks(uint64_t key) const {
        size_t start = BLOCK * race(mixed(key), sums_.data(), sums_.size(), [](size_t i) { return i; });
        return int(start + race(key, values_ + start, BLOCK, [start](size_t i) { return start + i; }));
    }

    // By falling value; of equal ones the lowest token first.
    struct Found {
        float value;
        int id;
        bool operator<(const Found& other) const {
            return value != other.value ? value > other.value : id < other.id;
        }
    };
    int size_ = 0;
    bool broken_ = false;
    float best_ = 0;
    double total_ = 0;
    // The row's logits, then weights, in whole blocks; of each block the largest and the sum.
    const float* values_ = nullptr;
    std::vector<float> row_, tops_, sums_;
    std::vector<Found> found_;
    std::vector<int> ids_;
    std::vector<float> weights_;
};

}  // namespace naiad
