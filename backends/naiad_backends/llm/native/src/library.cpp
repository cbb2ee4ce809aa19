// The functions that library.py calls. Arguments have been checked there, but for those of a step.
#include "model.h"

using namespace naiad;

namespace {
template <class Work>
int guarded(Work&& work) {
    try {
        work();
        return 0;
    } catch (...) {  // Of what is called here, only memory can run out.
        return 1;
    }
}
}  // namespace

#pragma GCC visibility push(default)
extern "C" {

const char* naiad_isa() { return NAIAD_ISA; }

Model* naiad_new(const Config* config) {
    try {
        return new Model(*config);
    } catch (...) {
        return nullptr;
    }
}

void naiad_delete(Model* model) { delete model; }

int naiad_matrix(Model* model, int layer, int which, int kind, int outputs, int inputs, int type, const uint8_t* rows,
                 size_t row_bytes) {
    return guarded([&] {
        model->load(model->matrix(layer, which), Kind(kind), outputs, inputs, Type(type), rows, row_bytes);
    });
}

void naiad_bias(Model* model, int layer, int which, const float* numbers, int count) {
    auto& bias = model->matrix(layer, which).bias;
    bias.assign(size_t(up(count, COLUMNS)), 0.0f);
    std::copy(numbers, numbers + count, bias.begin());
}

void naiad_norm(Model* model, int layer, int which, const float* numbers, int count) {
    model->norm(layer, which).assign(numbers, numbers + count);
}

void naiad_layer(Model* model, int layer, int window, int rope) {
    model->layer(layer).window = window;
    model->layer(layer).rope = rope;
}

void naiad_rope(Model* model, int index, int dimensions, int interleaved, float scale, const float* inv_freq) {
    Rope& rope = model->rope(index);
    rope.dimensions = dimensions;
    rope.interleaved = interleaved;
    rope.scale = scale;
    rope.inv_freq.assign(inv_freq, inv_freq + dimensions / 2);
}

size_t naiad_weight_bytes(const Model* model) { return model->weight_bytes(); }

// A token for each row of logits, or a negative number that says why there is none.
int naiad_choose(Model* model, const float* logits, int vocab, int rows, const Wish* wishes, int32_t* tokens) {
    return guarded([&] { model->choose(logits, vocab, rows, wishes, tokens); });
}

// 2 for a step whose arrays do not belong together.
int naiad_forward(Model* model, const Step* step, float* logits) {
    if (!model->fits(*step)) return 2;
    return guarded([&] { model->forward(*step, logits); });
}
}
