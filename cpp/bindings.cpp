// The Python face of the extension: kvasir._cpu_avx2 or kvasir._cpu_portable. kvasir/backends/cpu.py is its one caller.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/function.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <chrono>
#include <cstring>
#include <map>
#include <stdexcept>
#include <utility>

#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#endif

#include "adapt.h"
#include "attend.h"
#include "bpe.h"
#include "cpu.h"
#include "decode.h"
#include "executor.h"
#include "experts.h"
#include "ops.h"
#include "peak.h"
#include "products.h"
#include "recurrent.h"
#include "repack.h"
#include "sample.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvasir {
inline namespace KVASIR_ISA_NS {
namespace {

template <class T>
using Flat = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class T>
using Rows = nb::ndarray<const T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using OutRows = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using OutFlat = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Fresh = nb::ndarray<nb::numpy, float>;
using Vector = std::optional<Flat<float>>;

Format format_named(const std::string& name) {
    Format format;
    if (!format_from_name(name.c_str(), format)) throw std::invalid_argument("no kernel for number format " + name);
    return format;
}

// A numpy array that owns `floats`.
Fresh give(std::vector<float>&& floats, std::initializer_list<size_t> shape) {
    auto* held = new std::vector<float>(std::move(floats));
    nb::capsule owner(held, [](void* p) noexcept { delete static_cast<std::vector<float>*>(p); });
    return Fresh(held->data(), shape, owner);
}

Floats floats_of(const Vector& v) {
    if (!v) return nullptr;
    return std::make_shared<const std::vector<float>>(v->data(), v->data() + v->size());
}

int64_t row_width(Format format, const Rows<uint8_t>& raw, int64_t width) {
    size_t bytes = raw_row_bytes(format, width);
    if (!bytes || raw.shape(1) != bytes)
        throw std::invalid_argument(std::string(format_name(format)) + " rows of " + std::to_string(width) + " do not have " +
                                    std::to_string(raw.shape(1)) + " bytes");
    return width;
}

// A stack of `count` matrices over packed bytes that `data` keeps alive.
std::vector<Matrix> stack_over(Format format, int64_t rows, int64_t width, int64_t count, const std::shared_ptr<const uint8_t>& data) {
    const size_t each = static_cast<size_t>((rows + kPanel - 1) / kPanel) * panel_bytes(format, width);
    std::vector<Matrix> all;
    for (int64_t m = 0; m < count; m++)
        all.push_back(view(format, rows, width, std::shared_ptr<const uint8_t>(data, data.get() + static_cast<size_t>(m) * each)));
    return all;
}

// Memory for [begin, end) in one call of the kernel, where a page at a time would cost a third more.
void touch_pages(uint8_t* begin, uint8_t* end) {
#ifdef __linux__
    constexpr int kPopulateWrite = 23;  // MADV_POPULATE_WRITE, Linux 5.14; older kernels refuse it, and fault
    static const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    const uintptr_t first = (reinterpret_cast<uintptr_t>(begin) + page - 1) / page * page, last = reinterpret_cast<uintptr_t>(end) / page * page;
    if (first < last) madvise(reinterpret_cast<void*>(first), last - first, kPopulateWrite);
#else
    (void)begin, (void)end;
#endif
}

// Gives back the pages of a mapped file that [begin, end) lies in, up to the page of `end`: they can be had again from the file.
void drop_pages(const uint8_t* begin, const uint8_t* end) {
#ifdef __linux__
    static const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    const uintptr_t first = reinterpret_cast<uintptr_t>(begin) / page * page, last = reinterpret_cast<uintptr_t>(end) / page * page;
    if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
#else
    (void)begin, (void)end;
#endif
}

// `count` matrices, one after another in `raw`, repacked by all threads of the pool. `mapped`: raw lies in a file that is mapped
// read-only, and its pages are given back as they are done, so that a weight is in memory once.
std::vector<Matrix> pack_stack(Pool& pool, const std::string& name, Rows<uint8_t> raw, int64_t width, int64_t count, bool mapped) {
    constexpr size_t kDropped = 1 << 20;  // bytes of the file to give back at a time
    Format format = format_named(name);
    row_width(format, raw, width);
    int64_t rows = static_cast<int64_t>(raw.shape(0)) / count;
    if (rows * count != static_cast<int64_t>(raw.shape(0))) throw std::invalid_argument("the rows do not share out evenly");
    int64_t panels = (rows + kPanel - 1) / kPanel;
    size_t each = panel_bytes(format, width), row_bytes = raw.shape(1);
    const uint8_t* from = raw.data();
    nb::gil_scoped_release free;
    auto data = weight_memory(static_cast<size_t>(panels * count) * each);
    auto few = static_cast<int64_t>(kDropped / (row_bytes * kPanel));
    int64_t grain = std::max<int64_t>(8, std::min(few, panels * count / (4 * pool.threads())));
    pool.split(panels * count, grain, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end;) {
            int64_t m = i / panels, first = i % panels, last = std::min(panels, first + end - i);
            const uint8_t* matrix = from + static_cast<size_t>(m * rows) * row_bytes;
            uint8_t* to = data.get() + static_cast<size_t>(m * panels) * each;
            touch_pages(to + static_cast<size_t>(first) * each, to + static_cast<size_t>(last) * each);
            pack_panels(format, matrix, rows, width, first, last, to);
            if (mapped)
                drop_pages(matrix + static_cast<size_t>(first * kPanel) * row_bytes,
                           matrix + static_cast<size_t>(std::min(rows, last * kPanel)) * row_bytes);
            i += last - first;
        }
    });
    // Faults map the pages around them too, so some came back after they were given away.
    if (mapped) drop_pages(from, from + static_cast<size_t>(rows * count) * row_bytes);
    return stack_over(format, rows, width, count, data);
}

// Bytes of `count` packed matrices; 0 for a shape that cannot be, and -1 for one beyond 2^60.
int64_t stack_bytes(const std::string& name, int64_t rows, int64_t width, int64_t count) {
    constexpr int64_t kMost = int64_t{1} << 60;
    Format format;
    if (rows < 1 || width < 1 || count < 1 || !format_from_name(name.c_str(), format) || raw_row_bytes(format, width) == 0) return 0;
    if (rows > kMost / 8 || width > kMost / 64) return -1;
    const auto each = static_cast<int64_t>(panel_bytes(format, width)), panels = (rows + kPanel - 1) / kPanel;
    return panels > kMost / each || count > kMost / (panels * each) ? -1 : panels * each * count;
}

// The same from bytes packed before, read-only and kept alive by the matrices: a cache that is mapped.
std::vector<Matrix> view_stack(const std::string& name, Flat<uint8_t> packed, int64_t rows, int64_t width, int64_t count) {
    Format format = format_named(name);
    if (stack_bytes(name, rows, width, count) != static_cast<int64_t>(packed.size()))
        throw std::invalid_argument("the packed bytes are not as many as the shape needs");
    if (reinterpret_cast<uintptr_t>(packed.data()) % 64) throw std::invalid_argument("packed bytes must begin on a cache line");
    auto keep = std::make_shared<Flat<uint8_t>>(packed);
    return stack_over(format, rows, width, count, std::shared_ptr<const uint8_t>(keep, packed.data()));
}

// Its packed bytes, read-only.
nb::object packed_bytes(const Matrix& w) {
    auto* held = new std::shared_ptr<const uint8_t>(w.data);
    nb::capsule owner(held, [](void* p) noexcept { delete static_cast<std::shared_ptr<const uint8_t>*>(p); });
    size_t shape[1] = {w.bytes()};
    return nb::cast(nb::ndarray<nb::numpy, const uint8_t>(w.data.get(), 1, shape, owner));
}

// The memory of a state, uint8 [rows, row_bytes], to read and to write between steps.
nb::object rows_of(const Buffer& memory, int64_t row_bytes) {
    auto* held = new Buffer(memory);
    nb::capsule owner(held, [](void* p) noexcept { delete static_cast<Buffer*>(p); });
    const size_t width = static_cast<size_t>(row_bytes), shape[2] = {width ? memory.bytes() / width : 0, width};
    return nb::cast(nb::ndarray<nb::numpy, uint8_t>(memory.as<uint8_t>(), 2, shape, owner));
}

// Maps what is in the page cache already, and begins to read what is not, without a fault for each page later.
void populate(Flat<uint8_t> bytes) {
#ifdef __linux__
    constexpr int kPopulateRead = 22;  // MADV_POPULATE_READ, Linux 5.14; older kernels refuse it, and fault
    constexpr size_t kPiece = 4 << 20;  // whoever maps memory meanwhile waits for a piece
    nb::gil_scoped_release free;
    for (size_t at = 0; at < bytes.size(); at += kPiece)
        if (madvise(const_cast<uint8_t*>(bytes.data()) + at, std::min(kPiece, bytes.size() - at), kPopulateRead) != 0) return;
#else
    (void)bytes;
#endif
}

Matrix pack_alone(const std::string& name, Rows<uint8_t> raw, int64_t width) {
    Format format = format_named(name);
    return pack(format, raw.data(), static_cast<int64_t>(raw.shape(0)), row_width(format, raw, width));
}

Fresh linear_alone(const Matrix& w, Rows<float> x, int threads) {
    auto T = static_cast<int64_t>(x.shape(0));
    if (static_cast<int64_t>(x.shape(1)) != w.width) throw std::invalid_argument("x is not as wide as the matrix");
    size_t stride = activation_stride(w.activation(), w.width);
    Buffer rows;
    rows.reserve(static_cast<size_t>(T) * stride + 16);
    for (int64_t t = 0; t < T; t++)
        prepare(w.activation(), x.data() + t * w.width, w.width, rows.as<uint8_t>() + static_cast<size_t>(t) * stride);
    std::vector<float> y(static_cast<size_t>(T * w.rows));
    Pool pool(threads);
    pool.split(w.panels(), 1, [&](int64_t begin, int64_t end, int) {
        multiply(w, rows.as<uint8_t>(), stride, T, y.data(), w.rows, nullptr, begin * kPanel, std::min(end * kPanel, w.rows));
    });
    return give(std::move(y), {static_cast<size_t>(T), static_cast<size_t>(w.rows)});
}

Fresh prepared_alone(const Matrix& w, Rows<float> x) {
    if (static_cast<int64_t>(x.shape(1)) != w.width) throw std::invalid_argument("x is not as wide as the matrix");
    Buffer row;
    row.reserve(activation_bytes(w.activation(), w.width));
    std::vector<float> y(x.size());
    for (size_t t = 0; t < x.shape(0); t++) {
        prepare(w.activation(), x.data() + t * x.shape(1), w.width, row.as<uint8_t>());
        unprepare(w.activation(), row.as<uint8_t>(), w.width, y.data() + t * x.shape(1));
    }
    return give(std::move(y), {x.shape(0), x.shape(1)});
}

Fresh decode_rows(const std::string& name, Rows<uint8_t> raw, int64_t width) {
    Format format = format_named(name);
    row_width(format, raw, width);
    std::vector<float> y(raw.shape(0) * static_cast<size_t>(width));
    for (size_t i = 0; i < raw.shape(0); i++)
        decode(format, raw.data() + i * raw.shape(1), width, y.data() + i * static_cast<size_t>(width));
    return give(std::move(y), {raw.shape(0), static_cast<size_t>(width)});
}

// Bytes a second that `threads` threads read from memory, of each of some sweeps over `megabytes`.
std::vector<double> bandwidth(int64_t megabytes, int threads, int sweeps) {
    constexpr int64_t kPiece = 1 << 16;
    int64_t bytes = std::max<int64_t>(megabytes, 1) << 20;
    std::shared_ptr<uint8_t> data = weight_memory(static_cast<size_t>(bytes));  // as weights lie
    std::memset(data.get(), 1, static_cast<size_t>(bytes));
    Pool pool(threads);
    std::atomic<int> sink{0};
    std::vector<double> rates;
    for (int sweep = 0; sweep < sweeps; sweep++) {
        auto begin = std::chrono::steady_clock::now();
        pool.split(bytes / kPiece, 16, [&](int64_t i, int64_t end, int) {
            i8 total[4] = {};
            for (const uint8_t *p = data.get() + i * kPiece, *stop = data.get() + end * kPiece; p < stop; p += 128)
                for (int k = 0; k < 4; k++) {
                    i8 v;
                    std::memcpy(&v, p + 32 * k, sizeof v);
                    total[k] |= v;
                }
            i8 any = (total[0] | total[1]) | (total[2] | total[3]);
            sink.fetch_or(any[0] | any[7], std::memory_order_relaxed);
        });
        std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
        rates.push_back(static_cast<double>(bytes) / took.count());
    }
    return rates;
}

// Strings of a GGUF file, held while they are used.
struct HeldStrings {
    HeldStrings(Flat<uint8_t> bytes, Flat<int64_t> ends) : bytes(std::move(bytes)), ends(std::move(ends)) {
        int64_t last = 0;
        for (size_t i = 0; i < this->ends.size(); last = this->ends.data()[i++])
            if (this->ends.data()[i] < last + 8 || this->ends.data()[i] > static_cast<int64_t>(this->bytes.size()))
                throw std::invalid_argument("strings that do not lie one after another");
    }
    Strings all() const { return {bytes.data(), ends.data(), static_cast<int64_t>(ends.size())}; }

    Flat<uint8_t> bytes;
    Flat<int64_t> ends;
};

class HeldBpe {
   public:
    HeldBpe(Flat<uint8_t> tokens, Flat<int64_t> token_ends, Flat<uint8_t> merges, Flat<int64_t> merge_ends, bool whole)
        : tokens_(std::move(tokens), std::move(token_ends)), bpe_(made(tokens_, {std::move(merges), std::move(merge_ends)}, whole)) {}

    int find(const std::string& token) const { return bpe_.find(token); }

    std::vector<int32_t> encode(const std::vector<std::string>& pieces) const {
        nb::gil_scoped_release free;
        std::vector<int32_t> ids;
        for (const std::string& piece : pieces) bpe_.encode(piece, ids);
        return ids;
    }

   private:
    static Bpe made(const HeldStrings& tokens, const HeldStrings& merges, bool whole) {
        nb::gil_scoped_release free;
        return Bpe(tokens.all(), merges.all(), whole);
    }

    HeldStrings tokens_;
    Bpe bpe_;
};

nb::ndarray<nb::numpy, int64_t> string_ends_of(Flat<uint8_t> data, int64_t n, int64_t most) {
    auto* ends = new std::vector<int64_t>(string_ends(data.data(), static_cast<int64_t>(data.size()), n, most));
    nb::capsule owner(ends, [](void* p) noexcept { delete static_cast<std::vector<int64_t>*>(p); });
    size_t shape[1] = {ends->size()};
    return nb::ndarray<nb::numpy, int64_t>(ends->data(), 1, shape, owner);
}

void bind_text(nb::module_& m) {
    nb::class_<HeldBpe>(m, "Bpe")
        .def(nb::init<Flat<uint8_t>, Flat<int64_t>, Flat<uint8_t>, Flat<int64_t>, bool>(), "tokens"_a, "token_ends"_a, "merges"_a,
             "merge_ends"_a, "whole"_a)
        .def("find", &HeldBpe::find)
        .def("encode", &HeldBpe::encode);
    m.def("string_ends", &string_ends_of, "data"_a, "n"_a, "most"_a);
    m.def("first_not_utf8", [](Flat<uint8_t> data, Flat<int64_t> ends) {
        const HeldStrings strings(std::move(data), std::move(ends));
        nb::gil_scoped_release free;
        return first_not_utf8(strings.all());
    });
}

// An op that Python computes: `fn(inputs, out)` on views of the arena, with the GIL, on one thread.
class PythonOp : public Op {
   public:
    PythonOp(nb::callable fn, std::vector<Value> inputs, Value out) : fn_(std::move(fn)), inputs_(std::move(inputs)), out_(out) {}
    Work work(const Step&, int) const override { return {1, 0}; }
    void run(const Step& s, int, int64_t, int64_t, int) override {
        nb::gil_scoped_acquire hold;
        nb::list given;
        for (const Value& v : inputs_) given.append(look(s, v));
        fn_(given, look(s, out_));
    }
    static nb::object look(const Step& s, const Value& v) {
        size_t shape[2] = {static_cast<size_t>(s.count(v)), static_cast<size_t>(v.width)};
        int64_t strides[2] = {v.stride, 1};
        return nb::cast(Fresh(s.at(v, 0), 2, shape, nb::none(), strides), nb::rv_policy::reference);
    }

   private:
    nb::callable fn_;
    std::vector<Value> inputs_;
    Value out_;
};

using Tables = std::vector<std::shared_ptr<Adapted>>;

// A Program as it is built, op by op, in plan order. Each method returns the index of the op it added last.
class Builder {
   public:
    Builder(std::shared_ptr<Pool> pool, std::vector<int64_t> widths, int output_rows, std::vector<int64_t> limits)
        : pool_(pool), program_(pool, std::move(widths), output_rows,
                   Limits{limits.at(0), limits.at(1), limits.at(2), limits.at(3), limits.at(4) != 0, limits.at(5) != 0, limits.at(6)}) {}

    Builder(const Builder&) = delete;

    int put(std::unique_ptr<Op> op) {
        if (chained_) {
            links_.push_back(std::move(op));
        } else {
            program_.add(std::move(op));
        }
        return static_cast<int>(program_.size()) - 1;
    }

    // What is put from here to `close` becomes one op.
    void open() { chained_ = true; }
    int close() {
        chained_ = false;
        return put(chain(std::exchange(links_, {})));
    }

    int embed(const std::string& format, Rows<uint8_t> raw, int64_t width, bool by_position, Value out) {
        Format f = format_named(format);
        row_width(f, raw, width);
        auto keep = std::make_shared<Rows<uint8_t>>(raw);
        return put(kvasir::embed(Table{f, raw.data(), keep, raw.shape(1), width}, by_position, out));
    }

    int rope(Value x, std::vector<double> frequencies, double magnitude, int heads, Value out) {
        auto& known = turns_[{frequencies, magnitude}];
        if (!known) {
            known = std::make_shared<Turn>(Turn{frequencies, magnitude, {}});
            put(turn(known, Value{-1, 0, 0, 0, 0, 0}));
        }
        return put(kvasir::rope(x, known, heads, out));
    }

    // The rows of x as the kernel of `format` reads them, from here on. `slot` names the buffer; it is free again after the last
    // product that reads x.
    void prepare(Value x, const std::string& format, int slot) {
        if (!prepared_.count({x.id, activation_of(format_named(format))})) put(prepare_rows(room(x, activation_of(format_named(format)), slot)));
    }

    // `adapted`: what adapters add to each; none where they never do.
    int products(Value x, const std::vector<Matrix>& w, const std::vector<Vector>& biases, const std::vector<Value>& outs,
                 const Tables& adapted) {
        return put(kvasir::products(parts_of(x, w, biases, outs, adapted)));
    }

    // `formats`: of the products that read `out`; they find it prepared.
    int gated(Value x, const std::vector<Matrix>& w, const std::vector<Vector>& biases, const std::vector<Value>& outs,
              const std::string& fn, float limit, const std::vector<std::string>& formats, int slot, const Tables& adapted) {
        auto parts = parts_of(x, w, biases, outs, adapted);
        Gated g{parts.at(0), parts.at(1), activated_from_name(fn), limit, outs.at(2), {}};
        for (const std::string& f : formats)
            if (!prepared_.count({g.out.id, activation_of(format_named(f))})) g.ready.push_back(room(g.out, activation_of(format_named(f)), slot));
        return put(kvasir::gated(std::move(g)));
    }

    std::string fault(const Batch& b) const { return program_.fault(b); }

    void step(const Batch& b, float* output, const std::optional<nb::callable>& seen) {
        std::function<void(const Step&, int)> tell;
        if (seen)
            tell = [this, &seen](const Step& s, int i) {
                nb::gil_scoped_acquire hold;
                now_ = &s;
                (*seen)(i);
            };
        nb::gil_scoped_release free;
        program_.step(b, output, tell);
    }

    // `keep` holds the arrays of the batch and the output until the next one is begun.
    void begin(const Batch& b, float* output, std::shared_ptr<void> keep) {
        program_.begin(b, output);
        kept_ = std::move(keep);
    }
    bool go_on(double seconds) {
        nb::gil_scoped_release free;
        return program_.go_on(seconds);
    }

    // A value as it is now: only inside `seen`.
    nb::object value(const Value& v) const {
        if (!now_) throw std::invalid_argument("no step is running");
        return PythonOp::look(*now_, v);
    }

    Program& program() { return program_; }
    Pool& pool() { return *pool_; }

   private:
    std::vector<Part> parts_of(const Value& x, const std::vector<Matrix>& w, const std::vector<Vector>& biases,
                               const std::vector<Value>& outs, const Tables& adapted) {
        std::shared_ptr<Shrunk> low;
        if (!adapted.empty()) {
            low = std::make_shared<Shrunk>();
            low->x = x, low->products = adapted;
            put(shrink(low));
        }
        std::vector<Part> parts;
        for (size_t i = 0; i < w.size(); i++)
            parts.push_back({prepared_.at({x.id, w[i].activation()}), w[i], floats_of(biases.at(i)), outs.at(i), low, i});
        return parts;
    }

    std::shared_ptr<Prepared> room(const Value& x, Activation kind, int slot) {
        auto& buffer = buffers_[{slot, kind}];
        if (!buffer) buffer = std::make_shared<Buffer>();
        return prepared_[{x.id, kind}] = std::make_shared<Prepared>(Prepared{x, kind, buffer});
    }

    std::shared_ptr<Pool> pool_;
    Program program_;
    bool chained_ = false;
    std::vector<std::unique_ptr<Op>> links_;
    std::map<std::pair<std::vector<double>, double>, std::shared_ptr<Turn>> turns_;
    std::map<std::pair<int, Activation>, std::shared_ptr<Prepared>> prepared_;
    std::map<std::pair<int, Activation>, std::shared_ptr<Buffer>> buffers_;
    const Step* now_ = nullptr;
    std::shared_ptr<void> kept_;
};

Batch batch_of(const Flat<int32_t>& tokens, const Flat<int32_t>& positions, const Flat<int32_t>& starts, const Rows<int32_t>& blocks,
               const Flat<int32_t>& slots, const Flat<int32_t>& logit_rows, const std::optional<Flat<int32_t>>& adapters) {
    auto size = [](const auto& a) { return static_cast<int64_t>(a.size()); };
    return {tokens.data(), positions.data(), starts.data(), blocks.data(), slots.data(), logit_rows.data(),
            size(tokens), size(starts) - 1, static_cast<int64_t>(blocks.shape(1)), size(logit_rows),
            adapters && adapters->size() ? adapters->data() : nullptr};
}

bool fits(const Flat<int32_t>& positions, const Flat<int32_t>& slots, const Rows<int32_t>& blocks,
          const std::optional<Flat<int32_t>>& adapters, const Batch& b) {
    return static_cast<int64_t>(positions.size()) == b.T && static_cast<int64_t>(slots.size()) == b.N &&
           static_cast<int64_t>(blocks.shape(0)) == b.N && (!b.adapters || static_cast<int64_t>(adapters->size()) == b.N);
}

void bind_program(nb::module_& m) {
    nb::class_<Builder>(m, "Program")
        .def(nb::init<std::shared_ptr<Pool>, std::vector<int64_t>, int, std::vector<int64_t>>(), "pool"_a, "widths"_a,
             "output_rows"_a, "limits"_a)
        .def("embed", &Builder::embed)
        .def("rope", &Builder::rope)
        .def("open", &Builder::open)
        .def("close", &Builder::close)
        .def("prepare", &Builder::prepare, "x"_a, "format"_a, "slot"_a)
        .def("products", &Builder::products, "x"_a, "matrices"_a, "biases"_a, "outs"_a, "adapted"_a = Tables{})
        .def("gated", &Builder::gated, "x"_a, "matrices"_a, "biases"_a, "outs"_a, "fn"_a, "limit"_a, "formats"_a, "slot"_a,
             "adapted"_a = Tables{})
        .def("take", [](Builder& b, Value x, Value out) { return b.put(take(x, out)); })
        .def("pool", [](Builder& b, Value x, const std::string& how, Value out) { return b.put(pool_rows(x, how, out)); })
        .def("add", [](Builder& b, Value x, Value y, Value out) { return b.put(add(x, y, out)); })
        .def("mul", [](Builder& b, Value x, Value y, Value out) { return b.put(mul(x, y, out)); })
        .def("scale", [](Builder& b, Value x, float by, Value out) { return b.put(scale(x, by, out)); })
        .def("softcap", [](Builder& b, Value x, float cap, Value out) { return b.put(softcap(x, cap, out)); })
        .def("act", [](Builder& b, Value x, const std::string& fn, Value out) { return b.put(act(x, activated_from_name(fn), out)); })
        .def("glu", [](Builder& b, Value gate, Value up, const std::string& fn, float limit, Value out) {
            return b.put(glu(gate, up, activated_from_name(fn), limit, out));
        })
        .def("cat", [](Builder& b, std::vector<Value> xs, Value out) { return b.put(cat(std::move(xs), out)); })
        .def("norm", [](Builder& b, Value x, Vector w, Vector bias, float eps, int heads, bool center, Value out) {
            return b.put(norm(x, floats_of(w), floats_of(bias), eps, heads, center, out));
        }, "x"_a, "weight"_a.none(), "bias"_a.none(), "eps"_a, "heads"_a, "center"_a, "out"_a)
        .def("l2norm", [](Builder& b, Value x, float eps, int heads, Value out) { return b.put(l2norm(x, eps, heads, out)); })
        .def("attend", [](Builder& b, Value q, Value k, Value v, std::shared_ptr<Cache> cache, std::tuple<int, int> heads, float scale,
                          int window, bool causal, float cap, Vector sinks, Value out) {
            AttendShape shape{std::get<0>(heads), std::get<1>(heads), scale, window, causal, cap};
            return b.put(attend(q, k, v, std::move(cache), shape, floats_of(sinks), out, b.pool().threads()));
        }, "q"_a, "k"_a, "v"_a, "cache"_a.none(), "heads"_a, "scale"_a, "window"_a, "causal"_a, "softcap"_a, "sinks"_a.none(), "out"_a)
        .def("conv", [](Builder& b, Value x, Flat<float> w, int taps, std::shared_ptr<Slots> past, Value out) {
            return b.put(conv(x, floats_of(w), taps, std::move(past), out));
        })
        .def("decay", [](Builder& b, Value x, Flat<float> a, Flat<float> bias, Value out) {
            return b.put(decay(x, floats_of(a), floats_of(bias), out));
        })
        .def("delta", [](Builder& b, Value q, Value k, Value v, Value g, Value beta, std::shared_ptr<Slots> memory, int k_heads,
                         int v_heads, Value out) {
            return b.put(delta({q, k, v, g, beta}, std::move(memory), k_heads, v_heads, out));
        })
        .def("experts", [](Builder& b, Value x, Value scores, std::vector<Matrix> gate, std::vector<Matrix> up,
                           std::vector<Matrix> down, Vector gate_bias, Vector up_bias, Vector down_bias, int k,
                           const std::string& route, const std::string& fn, float limit, Value out) {
            ExpertsShape shape{k, route_from_name(route), activated_from_name(fn), limit};
            return b.put(experts(x, scores, {std::move(gate), std::move(up), std::move(down)},
                                 {floats_of(gate_bias), floats_of(up_bias), floats_of(down_bias)}, shape, out));
        }, "x"_a, "scores"_a, "gate"_a, "up"_a, "down"_a, "gate_bias"_a.none(), "up_bias"_a.none(), "down_bias"_a.none(), "k"_a,
           "route"_a, "fn"_a, "limit"_a, "out"_a)
        .def("reference", [](Builder& b, nb::callable fn, std::vector<Value> inputs, Value out) {
            return b.put(std::make_unique<PythonOp>(std::move(fn), std::move(inputs), out));
        })
        // What is wrong with the batch, or "" after the step.
        .def("step", [](Builder& b, Flat<int32_t> tokens, Flat<int32_t> positions, Flat<int32_t> starts, Rows<int32_t> blocks,
                        Flat<int32_t> slots, Flat<int32_t> logit_rows, OutRows output, std::optional<nb::callable> seen,
                        std::optional<Flat<int32_t>> adapters) {
            Batch batch = batch_of(tokens, positions, starts, blocks, slots, logit_rows, adapters);
            std::string fault = fits(positions, slots, blocks, adapters, batch) ? b.fault(batch) : "its arrays do not fit together";
            if (fault.empty()) b.step(batch, output.data(), seen);
            return fault;
        }, "tokens"_a, "positions"_a, "starts"_a, "blocks"_a, "slots"_a, "logit_rows"_a, "output"_a, "seen"_a.none() = nb::none(),
           "adapters"_a.none() = nb::none())
        .def("begin", [](Builder& b, Flat<int32_t> tokens, Flat<int32_t> positions, Flat<int32_t> starts, Rows<int32_t> blocks,
                         Flat<int32_t> slots, Flat<int32_t> logit_rows, Flat<int32_t> adapters, OutRows output) {
            Batch batch = batch_of(tokens, positions, starts, blocks, slots, logit_rows, adapters);
            std::string fault = fits(positions, slots, blocks, adapters, batch) ? b.fault(batch) : "its arrays do not fit together";
            auto keep = std::make_tuple(tokens, positions, starts, blocks, slots, logit_rows, adapters, output);
            if (fault.empty()) b.begin(batch, output.data(), std::make_shared<decltype(keep)>(std::move(keep)));
            return fault;
        }, "tokens"_a, "positions"_a, "starts"_a, "blocks"_a, "slots"_a, "logit_rows"_a, "adapters"_a, "output"_a)
        .def("go_on", &Builder::go_on, "seconds"_a)
        .def("value", &Builder::value)
        .def_prop_rw("timed", [](Builder& b) { return b.program().timed; }, [](Builder& b, bool on) { b.program().timed = on; })
        .def_prop_ro("seconds", [](Builder& b) { return b.program().seconds; })
        .def_prop_rw("poison", [](Builder& b) { return b.program().poison; }, [](Builder& b, bool on) { b.program().poison = on; });
}

}  // namespace
}  // namespace KVASIR_ISA_NS
}  // namespace kvasir

#define KVASIR_TEXT_(x) #x
#define KVASIR_TEXT(x) KVASIR_TEXT_(x)

NB_MODULE(KVASIR_MODULE, m) {
    using namespace kvasir;
    nb::set_leak_warnings(false);
    m.attr("isa") = KVASIR_TEXT(KVASIR_ISA_NS);
    m.attr("layout") = kLayout;
    m.def("supports", &supports, "isa"_a);
    nb::class_<Pool>(m, "Pool")
        .def(nb::init<int>(), "threads"_a)
        .def_prop_ro("threads", &Pool::threads)
        .def("resize", &Pool::resize, nb::call_guard<nb::gil_scoped_release>());
    nb::class_<Value>(m, "Value")
        .def("__init__", [](Value* v, int id, int base, int64_t offset, int64_t column, int64_t stride, int64_t width) {
            new (v) Value{id, base, offset, column, stride, width};
        });
    nb::class_<Matrix>(m, "Matrix")
        .def_prop_ro("format", [](const Matrix& w) { return format_name(w.format); })
        .def_prop_ro("shape", [](const Matrix& w) { return nb::make_tuple(w.rows, w.width); })
        .def_prop_ro("n_bytes", &Matrix::bytes)
        .def_prop_ro("packed", &packed_bytes);
    nb::class_<Adapted>(m, "Adapted")
        .def(nb::init<int64_t, int64_t>(), "rows"_a, "width"_a)
        .def("put", [](Adapted& all, int64_t at, Matrix a, Matrix b, float scale) { all.put(at, {std::move(a), std::move(b), scale}); },
             "at"_a, "a"_a, "b"_a, "scale"_a)
        .def("drop", &Adapted::drop, "at"_a);
    nb::class_<Cache>(m, "Cache").def("__init__", [](Cache* c, const std::string& format, int kv_heads, int64_t k_width, int64_t v_width, int64_t n_blocks) {
        new (c) Cache(kv_format_from_name(format), kv_heads, k_width, v_width);
        c->reserve(n_blocks);
    }).def("fill", [](Cache& c, int byte, int64_t n_blocks) {  // the benchmark of a long past does not compute one
        std::memset(c.tile(0, 0), byte, static_cast<size_t>(n_blocks * c.kv_heads * c.tile_bytes));
    }, "byte"_a, "n_blocks"_a).def_prop_ro("bytes", [](const Cache& c) { return rows_of(c.data(), c.block_bytes()); });
    nb::class_<Slots>(m, "Slots").def(nb::init<int64_t, int64_t>(), "n_slots"_a, "width"_a).def("copy", &Slots::copy, "source"_a, "target"_a)
        .def_prop_ro("bytes", [](const Slots& s) { return rows_of(s.data, s.width * static_cast<int64_t>(sizeof(float))); });
    bind_program(m);
    bind_text(m);
    m.def("pack", &pack_alone, "format"_a, "raw"_a, "width"_a);
    m.def("pack_stack", &pack_stack, "pool"_a, "format"_a, "raw"_a, "width"_a, "count"_a, "mapped"_a = false);
    m.def("stack_bytes", &stack_bytes, "format"_a, "rows"_a, "width"_a, "count"_a);
    m.def("view_stack", &view_stack, "format"_a, "packed"_a, "rows"_a, "width"_a, "count"_a);
    m.def("populate", &populate, "bytes"_a);
    m.def("linear", &linear_alone, "matrix"_a, "x"_a, "threads"_a = 1);
    m.def("prepared", &prepared_alone, "matrix"_a, "x"_a);
    m.def("decode", &decode_rows, "format"_a, "raw"_a, "width"_a);
    m.def("bandwidth", &bandwidth, "megabytes"_a, "threads"_a, "sweeps"_a = 5, nb::call_guard<nb::gil_scoped_release>());
    m.def("peak", [](const std::string& kind, int threads) { return peak(kind == "bytes", threads); }, "kind"_a, "threads"_a,
          nb::call_guard<nb::gil_scoped_release>());
    m.def("sample", [](Flat<float> logits, double temperature, int top_k, double top_p, double min_p, double typical_p, double uniform) {
        return sample(logits.data(), static_cast<int64_t>(logits.size()), {temperature, top_k, top_p, min_p, typical_p}, uniform);
    }, "logits"_a, "temperature"_a, "top_k"_a = 0, "top_p"_a = 1.0, "min_p"_a = 0.0, "typical_p"_a = 1.0, "uniform"_a = 0.0);
    m.def("penalize", [](OutFlat logits, Flat<int32_t> recent, double repetition, double presence, double frequency) {
        penalize(logits.data(), static_cast<int64_t>(logits.size()), recent.data(), static_cast<int64_t>(recent.size()), repetition, presence, frequency);
    }, "logits"_a, "recent"_a, "repetition"_a = 1.0, "presence"_a = 0.0, "frequency"_a = 0.0);
}
