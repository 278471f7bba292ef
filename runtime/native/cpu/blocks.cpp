#include "blocks.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

namespace posecrafter::cpu {

namespace {

constexpr float kLayerNormEps = 1e-5f;

/* Rows whose intermediate values, up to 8 C a row, stay in a core's caches: whole tiles of products, and of attention.
 */
constexpr int kBlock = 96;

std::size_t floats(int rows, int width) {
    return static_cast<std::size_t>(rows) * static_cast<std::size_t>(width);
}

}  // namespace

ResBlock::ResBlock(Machine& machine, const Layers& layers, const std::string& name, int groups, float eps, bool timed)
    : norm1_(layers, name + ".norm1", groups, eps),
      norm2_(layers, name + ".norm2", groups, eps),
      conv1_(machine, layers, name + ".conv1"),
      conv2_(machine, layers, name + ".conv2") {
    if (timed) time_ = Linear(machine, layers, {name + ".time_emb_proj"});
    if (layers.has(name + ".conv_shortcut.weight"))
        shortcut_.emplace(machine, layers, std::vector{name + ".conv_shortcut"});
    if (timed) check_width(time_.outputs(), conv1_.outputs());
    if (shortcut_) check_width(shortcut_->outputs(), conv2_.outputs());
}

Images ResBlock::run(Machine& machine, const Images& x, Time time, int frames) const {
    Block bias;
    if (time.data) {  // one sum a channel, with conv1's bias
        bias = machine.arena.take(static_cast<std::size_t>(conv1_.outputs()));
        check_width(time.width, time_.inputs());
        Product product = time_.product(time.data, bias.data());
        product.add = conv1_.bias();
        machine.k.multiply(product, 0, 1);
    }
    const Scaling before = norm1_.scaling(machine, x, frames);
    const Images y = conv1_.run(machine, x, {&before, true}, bias.data());
    const Scaling between = norm2_.scaling(machine, y, frames);
    if (!shortcut_) check_width(x.channels, conv2_.outputs());
    if (!shortcut_) return conv2_.run(machine, y, {&between, true}, nullptr, x.data());
    const Images around = multiply(machine, *shortcut_, x);
    return conv2_.run(machine, y, {&between, true}, nullptr, around.data());
}

struct TransformerBlock::Keys {
    Block packed;
    int count;         // keys of a context
    std::size_t head;  // floats of one head
    const float* of(int context, int head_index, int heads) const {
        return packed.data() + head * static_cast<std::size_t>(context * heads + head_index);
    }
};

TransformerBlock::TransformerBlock(Machine& machine, const Layers& layers, const std::string& name, int heads)
    : heads_(heads),
      temporal_(layers.has(name + ".attn_temp.to_q.weight")),
      norm1_(layers, name + ".norm1"),
      norm2_(layers, name + ".norm2"),
      norm3_(layers, name + ".norm3") {
    const auto linear = [&](std::vector<std::string> parts) {
        for (std::string& part : parts) part = name + "." + part;
        return Linear(machine, layers, parts, machine.bf16);
    };
    width_ = norm1_.channels;
    of_frames_ = temporal_ ? linear({"attn1.to_q", "attn_temp.to_q", "attn_temp.to_k", "attn_temp.to_v"})
                           : linear({"attn1.to_q"});
    of_key_ = linear({"attn1.to_k", "attn1.to_v"});
    out_ = linear({"attn1.to_out.0"});
    if (temporal_) temporal_out_ = linear({"attn_temp.to_out.0"});
    text_q_ = linear({"attn2.to_q"});
    of_text_ = linear({"attn2.to_k", "attn2.to_v"});
    text_out_ = linear({"attn2.to_out.0"});
    hidden_ = GatedLinear(machine, layers, name + ".ff.net.0.value", name + ".ff.net.0.gate");
    ff_out_ = linear({"ff.net.2"});
    for (const int found :
         {norm2_.channels, norm3_.channels, of_frames_.inputs(), of_key_.inputs(), out_.inputs(), out_.outputs(),
          text_q_.inputs(), text_q_.outputs(), text_out_.inputs(), text_out_.outputs(), hidden_.inputs(),
          ff_out_.outputs(), of_key_.outputs() / 2, of_text_.outputs() / 2, of_frames_.outputs() / (temporal_ ? 4 : 1)})
        check_width(found, width_);
    check_width(ff_out_.inputs(), hidden_.outputs());
    if (temporal_) {
        check_width(temporal_out_.inputs(), width_);
        check_width(temporal_out_.outputs(), width_);
    }
    if (heads < 1 || width_ % heads != 0)
        throw LayersError(name + " has a width that " + std::to_string(heads) + " heads do not share");
}

/* rows [contexts count, 2 C]: keys and values side by side. */
TransformerBlock::Keys TransformerBlock::pack(Machine& machine, const float* rows, int contexts, int count) const {
    const int width = width_ / heads_;
    Keys keys{{}, count, machine.k.packed_head_size(count, width)};
    keys.packed = machine.arena.take(keys.head * static_cast<std::size_t>(contexts * heads_));
    machine.threads.share(contexts * heads_, [&](int index, int) {
        const float* first = rows + floats(index / heads_ * count, 2 * width_);
        const Attention attention{nullptr, first, first + width_, nullptr, 0, 2 * width_, 0, count, heads_, width};
        machine.k.pack_head(attention, index % heads_,
                            keys.packed.data() + keys.head * static_cast<std::size_t>(index));
    });
    return keys;
}

TransformerBlock::Keys TransformerBlock::key_frames(Machine& machine, const Images& x, Fold fold) const {
    const int cells = x.cells(), block = kBlock;
    const Block rows = machine.arena.take(floats(fold.outer() * cells, 2 * width_));
    const int blocks = (cells + block - 1) / block;
    machine.threads.share(fold.outer() * blocks, [&](int index, int thread) {
        const int begin = index % blocks * block, count = std::min(block, cells - begin);
        float* normed = machine.scratch(thread, floats(block, width_));
        const float* first = x.image(index / blocks * fold.frames) + floats(begin, width_);
        machine.k.layer_norm(first, count, width_, norm1_.weight.get(), norm1_.bias.get(), kLayerNormEps, normed);
        float* to = rows.data() + floats(index / blocks * cells + begin, 2 * width_);
        machine.k.multiply(of_key_.product(normed, to), 0, count);
    });
    return pack(machine, rows.data(), fold.outer(), cells);
}

TransformerBlock::Keys TransformerBlock::texts(Machine& machine, const Text& text) const {
    check_width(text.width, of_text_.inputs());
    const int rows = text.prompts * text.tokens;
    const Block made = machine.arena.take(floats(rows, 2 * width_));
    const Product product = of_text_.product(text.data, made.data());
    machine.by_rows(rows, 24, [&](int begin, int end, int) { machine.k.multiply(product, begin, end); });
    return pack(machine, made.data(), text.prompts, text.tokens);
}

/* All heads of rows q [rows, C] with the keys of one context -> out [rows, C]. */
void TransformerBlock::attend(Machine& machine, const Keys& keys, int context, const float* q, std::ptrdiff_t ldq,
                              int rows, float* out, float* scratch) const {
    const Attention attention{q, nullptr, nullptr, out, ldq, 0, width_, keys.count, heads_, width_ / heads_};
    for (int head = 0; head < heads_; ++head)
        machine.k.attend(attention, head, keys.of(context, head, heads_), 0, rows, scratch);
}

Images TransformerBlock::run(Machine& machine, Images x, const Text& text, Fold fold) const {
    const Kernels& k = machine.k;
    check_width(x.channels, width_);
    const int width = width_, frame = x.cells(), clip = fold.frames * frame, block = kBlock;
    const int blocks = (clip + block - 1) / block, head = width / heads_;
    const Keys keys = key_frames(machine, x, fold), words = texts(machine, text);
    const std::size_t attending = std::max(k.attend_scratch(frame, head), k.attend_scratch(text.tokens, head));

    // x += attn1(n), and what temporal attention reads: rows [q, k, v].
    const Block across = temporal_ ? machine.arena.take(floats(x.rows(), 3 * width)) : Block{};
    const int projected = of_frames_.outputs();
    machine.threads.share(fold.outer() * blocks, [&](int index, int thread) {
        const int outer = index / blocks, begin = index % blocks * block, count = std::min(block, clip - begin);
        float* normed = machine.scratch(thread, floats(block, 2 * width + projected) + attending);
        float *rows = normed + floats(block, width), *seen = rows + floats(block, projected);
        float *own = x.data() + floats(outer * clip + begin, width), *scratch = seen + floats(block, width);
        k.layer_norm(own, count, width, norm1_.weight.get(), norm1_.bias.get(), kLayerNormEps, normed);
        k.multiply(of_frames_.product(normed, rows), 0, count);
        attend(machine, keys, outer, rows, projected, count, seen, scratch);
        Product product = out_.product(seen, own);
        product.add = own;
        k.multiply(product, 0, count);
        if (temporal_)
            for (int row = 0; row < count; ++row)
                std::memcpy(across.data() + floats(outer * clip + begin + row, 3 * width),
                            rows + floats(row, projected) + width, sizeof(float) * floats(3, width));
    });

    if (temporal_) {  // every frame sees every frame; what is seen goes where q was
        const int places = k.lanes, parts = (frame + places - 1) / places;
        machine.threads.share(fold.outer() * parts, [&](int index, int thread) {
            float* q = across.data() + floats(index / parts * clip, 3 * width);
            const int begin = index % parts * places, end = std::min(begin + places, frame);
            const Attention attention{q,         q + width, q + 2 * width, q,      3 * width,
                                      3 * width, 3 * width, fold.frames,   heads_, head};
            const std::ptrdiff_t stride = static_cast<std::ptrdiff_t>(frame) * 3 * width;
            k.attend_temporal(attention, stride, stride, begin, end,
                              machine.scratch(thread, k.temporal_scratch(fold.frames, head)));
        });
    }

    // The rest is each row's own: x += attn_temp; then of every prompt x += attn2(norm2(x)), x += ff(norm3(x)).
    const int hidden = hidden_.outputs();
    Images y = fold.split ? std::move(x) : machine.images(fold.prompts * fold.frames, x.high, x.wide, width);
    const float* from = fold.split ? y.data() : x.data();
    machine.threads.share(fold.outer() * blocks, [&](int index, int thread) {
        const int outer = index / blocks, begin = index % blocks * block, count = std::min(block, clip - begin);
        float* own = machine.scratch(thread, floats(block, 4 * width + hidden) + attending);
        float *normed = own + floats(block, width), *q = normed + floats(block, width),
              *seen = q + floats(block, width);
        float *inner = seen + floats(block, width), *scratch = inner + floats(block, hidden);
        const std::size_t place = floats(outer * clip + begin, width);
        if (temporal_) {
            Product product = temporal_out_.product(across.data() + 3 * place, own);
            product.lda = 3 * width, product.add = from + place;
            k.multiply(product, 0, count);
        } else {
            std::memcpy(own, from + place, sizeof(float) * floats(count, width));
        }
        k.layer_norm(own, count, width, norm2_.weight.get(), norm2_.bias.get(), kLayerNormEps, normed);
        k.multiply(text_q_.product(normed, q), 0, count);
        const int first = fold.split ? outer : 0, last = fold.split ? outer + 1 : fold.prompts;
        for (int prompt = first; prompt < last; ++prompt) {
            float* out = y.data() + floats(prompt * clip + begin, width);
            attend(machine, words, prompt, q, width, count, seen, scratch);
            Product product = text_out_.product(seen, out);
            product.add = own;
            k.multiply(product, 0, count);
            k.layer_norm(out, count, width, norm3_.weight.get(), norm3_.bias.get(), kLayerNormEps, normed);
            k.multiply(hidden_.product(normed, inner), 0, count);
            product = ff_out_.product(inner, out);
            product.add = out;
            k.multiply(product, 0, count);
        }
    });
    return y;
}

Transformer::Transformer(Machine& machine, const Layers& layers, const std::string& name, int heads, int depth,
                         int groups, float eps)
    : norm_(layers, name + ".norm", groups, eps),
      proj_in_(machine, layers, {name + ".proj_in"}, machine.bf16),
      proj_out_(machine, layers, {name + ".proj_out"}, machine.bf16) {
    for (int index = 0; index < depth; ++index)
        blocks_.emplace_back(machine, layers, name + ".transformer_blocks." + std::to_string(index), heads);
}

Images Transformer::run(Machine& machine, const Images& x, const Text& text, Fold fold) const {
    const Kernels& k = machine.k;
    check_width(x.channels, proj_in_.inputs());
    check_width(x.channels, proj_out_.outputs());
    const int width = x.channels, block = kBlock, cells = x.cells(), blocks = (cells + block - 1) / block;
    const Scaling scaling = norm_.scaling(machine, x, 1);
    Images y = machine.images(x.count, x.high, x.wide, proj_in_.outputs());
    machine.threads.share(x.count * blocks, [&](int index, int thread) {
        const int image = index / blocks, begin = index % blocks * block, count = std::min(block, cells - begin);
        float* normed = machine.scratch(thread, floats(block, width));
        const std::size_t channels = floats(image, width);
        k.scale_shift(x.image(image) + floats(begin, width), count, width, scaling.scale.data() + channels,
                      scaling.shift.data() + channels, normed);
        k.multiply(proj_in_.product(normed, y.image(image) + floats(begin, y.channels)), 0, count);
    });
    const int outer = fold.outer();
    for (const TransformerBlock& inner : blocks_) {
        y = inner.run(machine, std::move(y), text, fold);
        fold = fold.done();
    }
    check_width(y.channels, proj_out_.inputs());
    Images out = machine.images(y.count, x.high, x.wide, width);
    const int clip = fold.frames * cells;
    machine.by_rows(y.rows(), block, [&](int begin, int end, int) {
        for (int row = begin;
             row < end;) {  // a block may reach into the next prompt, whose residual may be the same rows
            const int prompt = row / clip, stop = std::min(end, (prompt + 1) * clip);
            const int source = outer == 1 ? row - prompt * clip : row;
            Product product = proj_out_.product(y.data() + floats(row, y.channels), out.data() + floats(row, width));
            product.add = x.data() + floats(source, width);
            k.multiply(product, 0, stop - row);
            row = stop;
        }
    });
    return out;
}

}  // namespace posecrafter::cpu
