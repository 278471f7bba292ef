#include "blocks.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

namespace posecrafter::cpu {

namespace {

/* Rows whose intermediate values, up to 8 C a row, stay in a core's caches: whole tiles of products, and of attention.
 */
constexpr int kBlock = 96;

std::size_t floats(int rows, int width) {
    return static_cast<std::size_t>(rows) * static_cast<std::size_t>(width);
}

struct Rows {
    int clip, first, count;  // first: of all clips' rows
};

/* How the rows of clips, all equally long, are shared out: in blocks of one clip's rows, whole tiles of attention. */
struct Split {
    Split(const Machine& machine, int clips, int rows)
        : rows(rows),
          block(machine.block_of(clips, rows, kBlock, 2 * machine.k.lanes)),
          parts((rows + block - 1) / block),
          blocks(clips * parts) {}

    Rows at(int index) const {
        const int clip = index / parts, begin = index % parts * block;
        return {clip, clip * rows + begin, std::min(block, rows - begin)};
    }

    int rows, block, parts, blocks;
};

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
        machine.share(1, [&](int) { machine.k.multiply(product, 0, 1); });
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
    width_ = norm1_.channels();
    query_ = linear({"attn1.to_q"});
    of_key_ = linear({"attn1.to_k", "attn1.to_v"});
    out_ = linear({"attn1.to_out.0"});
    if (temporal_) of_time_ = linear({"attn_temp.to_q", "attn_temp.to_k", "attn_temp.to_v"});
    if (temporal_) temporal_out_ = linear({"attn_temp.to_out.0"});
    text_q_ = linear({"attn2.to_q"});
    of_text_ = linear({"attn2.to_k", "attn2.to_v"});
    text_out_ = linear({"attn2.to_out.0"});
    hidden_ = Linear::gated(machine, layers, name + ".ff.net.0.value", name + ".ff.net.0.gate", machine.bf16);
    ff_out_ = linear({"ff.net.2"});
    for (const int found :
         {norm2_.channels(), norm3_.channels(), query_.inputs(), query_.outputs(), of_key_.inputs(), out_.inputs(),
          out_.outputs(), text_q_.inputs(), text_q_.outputs(), text_out_.inputs(), text_out_.outputs(),
          hidden_.inputs(), ff_out_.outputs(), of_key_.outputs() / 2, of_text_.outputs() / 2})
        check_width(found, width_);
    check_width(ff_out_.inputs(), hidden_.outputs());
    if (temporal_) {
        check_width(of_time_.inputs(), width_);
        check_width(of_time_.outputs(), 3 * width_);
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
    machine.share(contexts * heads_, [&](int index) {
        const float* first = rows + floats(index / heads_ * count, 2 * width_);
        const Attention attention{nullptr, first, first + width_, nullptr, 0, 2 * width_, 0, count, heads_, width};
        machine.k.pack_head(attention, index % heads_,
                            keys.packed.data() + keys.head * static_cast<std::size_t>(index));
    });
    return keys;
}

TransformerBlock::Keys TransformerBlock::key_frames(Machine& machine, const Images& x, Fold fold) const {
    const int cells = x.cells();
    const Block made = machine.arena.take(floats(fold.outer() * cells, 2 * width_));
    const Split split(machine, fold.outer(), cells);
    machine.share(split.blocks, floats(kBlock, width_), [&](int index, float* normed) {
        const Rows rows = split.at(index);
        const float* own = x.image(rows.clip * fold.frames) + floats(rows.first - rows.clip * cells, width_);
        norm1_.rows(machine, own, rows.count, normed);
        machine.k.multiply(of_key_.product(normed, made.data() + floats(rows.first, 2 * width_)), 0, rows.count);
    });
    return pack(machine, made.data(), fold.outer(), cells);
}

TransformerBlock::Keys TransformerBlock::texts(Machine& machine, const Text& text) const {
    check_width(text.width, of_text_.inputs());
    const int rows = text.prompts * text.tokens;
    const Block made = machine.arena.take(floats(rows, 2 * width_));
    const Product product = of_text_.product(text.data, made.data());
    machine.by_rows(rows, 24, [&](int begin, int end) { machine.k.multiply(product, begin, end); });
    return pack(machine, made.data(), text.prompts, text.tokens);
}

/* All heads of rows q [rows, C] with the keys of one context -> out [rows, C]. */
void TransformerBlock::attend(Machine& machine, const Keys& keys, int context, const float* q, std::ptrdiff_t ldq,
                              int rows, float* out, float* scratch) const {
    const Attention attention{q, nullptr, nullptr, out, ldq, 0, width_, keys.count, heads_, width_ / heads_};
    for (int head = 0; head < heads_; ++head)
        machine.k.attend(attention, head, keys.of(context, head, heads_), 0, rows, scratch);
}

/* x += attn1(n), n = norm1(x), and what temporal attention reads of n: rows [q, k, v] to `across`. */
void TransformerBlock::see_key_frame(Machine& machine, const Images& x, Fold fold, float* across) const {
    const Kernels& k = machine.k;
    const Keys keys = key_frames(machine, x, fold);
    const int width = width_, clip = fold.frames * x.cells();
    const std::size_t needed = floats(kBlock, 3 * width) + k.attend_scratch(keys.count, width / heads_);
    const Split split(machine, fold.outer(), clip);
    machine.share(split.blocks, needed, [&](int index, float* normed) {
        const Rows rows = split.at(index);
        float *queries = normed + floats(kBlock, width), *seen = queries + floats(kBlock, width);
        float *own = x.data() + floats(rows.first, width), *scratch = seen + floats(kBlock, width);
        norm1_.rows(machine, own, rows.count, normed);
        k.multiply(query_.product(normed, queries), 0, rows.count);
        if (across) k.multiply(of_time_.product(normed, across + floats(rows.first, 3 * width)), 0, rows.count);
        attend(machine, keys, rows.clip, queries, width, rows.count, seen, scratch);
        Product product = out_.product(seen, own);
        product.add = own;
        k.multiply(product, 0, rows.count);
    });
}

/* Every frame sees every frame; what is seen goes where q was. */
void TransformerBlock::see_frames(Machine& machine, float* across, int cells, Fold fold) const {
    const Kernels& k = machine.k;
    const int row = 3 * width_, places = k.lanes, parts = (cells + places - 1) / places, head = width_ / heads_;
    const std::ptrdiff_t frame = static_cast<std::ptrdiff_t>(cells) * row;
    const int tasks = fold.outer() * parts * heads_;
    machine.share(tasks, k.temporal_scratch(fold.frames, head), [&](int index, float* scratch) {
        const int part = index / heads_;
        float* q = across + part / parts * fold.frames * frame + index % heads_ * head;
        const int begin = part % parts * places, end = std::min(begin + places, cells);
        const Attention attention{q, q + width_, q + 2 * width_, q, row, row, row, fold.frames, 1, head};
        k.attend_temporal(attention, frame, frame, begin, end, scratch);
    });
}

/* What is each row's own: x += what was seen across time; then of every prompt x += attn2(norm2(x)), x += ff(norm3(x)).
 * Until the prompts part, their queries are the same. */
Images TransformerBlock::see_text(Machine& machine, Images x, const float* across, const Text& text, Fold fold) const {
    const Kernels& k = machine.k;
    const Keys words = texts(machine, text);
    const int width = width_, hidden = hidden_.outputs(), clip = fold.frames * x.cells();
    const std::size_t needed = floats(kBlock, 4 * width + hidden) + k.attend_scratch(text.tokens, width / heads_);
    Images y = fold.split ? std::move(x) : machine.images(fold.prompts * fold.frames, x.high, x.wide, width);
    const float* from = fold.split ? y.data() : x.data();
    const Split split(machine, fold.outer(), clip);
    machine.share(split.blocks, needed, [&](int index, float* own) {
        const Rows rows = split.at(index);
        float *normed = own + floats(kBlock, width), *q = normed + floats(kBlock, width);
        float *seen = q + floats(kBlock, width), *inner = seen + floats(kBlock, width);
        float* scratch = inner + floats(kBlock, hidden);
        const std::size_t place = floats(rows.first, width);
        if (across) {
            Product product = temporal_out_.product(across + 3 * place, own);
            product.lda = 3 * width, product.add = from + place;
            k.multiply(product, 0, rows.count);
        } else {
            std::memcpy(own, from + place, sizeof(float) * floats(rows.count, width));
        }
        norm2_.rows(machine, own, rows.count, normed);
        k.multiply(text_q_.product(normed, q), 0, rows.count);
        const int first = fold.split ? rows.clip : 0, last = fold.split ? rows.clip + 1 : fold.prompts;
        for (int prompt = first; prompt < last; ++prompt) {
            float* out = y.data() + floats(prompt * clip + rows.first - rows.clip * clip, width);
            attend(machine, words, prompt, q, width, rows.count, seen, scratch);
            Product product = text_out_.product(seen, out);
            product.add = own;
            k.multiply(product, 0, rows.count);
            norm3_.rows(machine, out, rows.count, normed);
            k.multiply(hidden_.product(normed, inner), 0, rows.count);
            product = ff_out_.product(inner, out);
            product.add = out;
            k.multiply(product, 0, rows.count);
        }
    });
    return y;
}

Images TransformerBlock::run(Machine& machine, Images x, const Text& text, Fold fold) const {
    check_width(x.channels, width_);
    const int cells = x.cells();
    const Block across = temporal_ ? machine.arena.take(floats(x.rows(), 3 * width_)) : Block{};
    see_key_frame(machine, x, fold, across.data());
    if (temporal_) see_frames(machine, across.data(), cells, fold);
    return see_text(machine, std::move(x), across.data(), text, fold);
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
    const int width = x.channels, cells = x.cells();
    const Scaling scaling = norm_.scaling(machine, x, 1);
    Images y = machine.images(x.count, x.high, x.wide, proj_in_.outputs());
    const Split split(machine, x.count, cells);
    machine.share(split.blocks, floats(kBlock, width), [&](int index, float* normed) {
        const Rows rows = split.at(index);
        const std::size_t channels = floats(rows.clip, width);  // every image is a clip of its own here
        k.scale_shift(x.data() + floats(rows.first, width), rows.count, width, scaling.scale.data() + channels,
                      scaling.shift.data() + channels, normed);
        k.multiply(proj_in_.product(normed, y.data() + floats(rows.first, y.channels)), 0, rows.count);
    });
    const int outer = fold.outer();
    for (const TransformerBlock& inner : blocks_) {
        y = inner.run(machine, std::move(y), text, fold);
        fold = fold.done();
    }
    check_width(y.channels, proj_out_.inputs());
    Images out = machine.images(y.count, x.high, x.wide, width);
    const int clip = fold.frames * cells;
    const Split joined(machine, fold.prompts, clip);
    machine.share(joined.blocks, [&](int index) {
        const Rows rows = joined.at(index);
        const int source = outer == 1 ? rows.first - rows.clip * clip : rows.first;  // the prompts may share x
        Product product =
            proj_out_.product(y.data() + floats(rows.first, y.channels), out.data() + floats(rows.first, width));
        product.add = x.data() + floats(source, width);
        k.multiply(product, 0, rows.count);
    });
    return out;
}

}  // namespace posecrafter::cpu
