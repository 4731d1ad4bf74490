#include "sample.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <vector>

#include "lanes.h"

namespace kvasir {
inline namespace KVASIR_ISA_NS {

namespace {

struct Candidate {
    float logit;
    int32_t id;
    bool operator<(const Candidate& o) const { return logit != o.logit ? logit > o.logit : id < o.id; }
};

constexpr float kLowest = -std::numeric_limits<float>::infinity();

// The first of the greatest; a NaN is never.
int64_t greatest(const float* logits, int64_t n) {
    constexpr int64_t kAtOnce = 32;
    f8 tops[4] = {all(kLowest), all(kLowest), all(kLowest), all(kLowest)};
    int64_t i = 0;
    for (; i + kAtOnce <= n; i += kAtOnce)
        for (int k = 0; k < 4; k++) {
            f8 v = load(logits + i + 8 * k);
            tops[k] = v > tops[k] ? v : tops[k];
        }
    float top = std::max({largest(tops[0]), largest(tops[1]), largest(tops[2]), largest(tops[3])});
    for (; i < n; i++) top = logits[i] > top ? logits[i] : top;
    if (top == kLowest) throw std::domain_error("no token has a finite logit");
    for (i = 0; i + kAtOnce <= n; i += kAtOnce) {
        i8 found = all_int(0);
        for (int k = 0; k < 4; k++) found |= load(logits + i + 8 * k) == all(top);
        if (any(found)) break;
    }
    while (logits[i] != top) i++;
    return i;
}

typedef double d4 __attribute__((vector_size(32)));
typedef int64_t l4 __attribute__((vector_size(32)));
typedef float f4 __attribute__((vector_size(16)));

constexpr d4 all_doubles(double x) { return d4{x, x, x, x}; }

// e^x for x <= 0, within 3e-16 of it; what is below e^-708 comes out as that. 2^k e^r, |r| <= ln(2) / 2, e^r by its series.
KVASIR_INLINE d4 exponential(d4 x) {
    x = x < all_doubles(-708.0) ? all_doubles(-708.0) : x;
    const d4 shift = all_doubles(0x1.8p52);  // whose last bits are whole numbers
    const d4 moved = x * all_doubles(1.4426950408889634) + shift, k = moved - shift;
    const d4 r = (x - k * all_doubles(0x1.62e42fefa0000p-1)) - k * all_doubles(0x1.cf79abc9e3b3ap-40);
    d4 series = all_doubles(1.0);
    for (int i = 13; i >= 1; i--) series = series * r * all_doubles(1.0 / i) + all_doubles(1.0);
    return (d4)((l4)series + (((l4)moved - (l4)shift) << 52));
}

// The sum over all logits of e^((logit - top) / temperature); NaN and -infinity give nothing.
double total_weight(const float* logits, int64_t n, float top, double temperature) {
    const double rate = 1 / temperature;
    const auto weigh = [&](const float* at) __attribute__((always_inline)) {
        f4 v;
        std::memcpy(&v, at, sizeof v);
        const d4 x = __builtin_convertvector(v, d4);
        const d4 e = exponential((x - all_doubles(double{top})) * all_doubles(rate));
        return x > all_doubles(double{kLowest}) ? e : all_doubles(0.0);
    };
    d4 sums[4] = {};
    int64_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (int k = 0; k < 4; k++) sums[k] += weigh(logits + i + 4 * k);
    const d4 whole = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    double sum = (whole[0] + whole[2]) + (whole[1] + whole[3]);
    for (; i < n; i++) {
        const float last[4] = {logits[i], kLowest, kLowest, kLowest};
        sum += weigh(last)[0];
    }
    return sum;
}

// Candidates in order, gathered and sorted only as far as somebody looks: most draws end among the first few of 150,000.
class Ranked {
   public:
    // The first `most` of the candidates; 0: all.
    Ranked(const float* logits, int64_t n, int64_t most) : logits_(logits), n_(n), most_(most > 0 ? std::min(most, n) : n) {
        const float top = logits[greatest(logits, n)];
        if (top == kInfinity) {  // infinities share the draw evenly
            for (int64_t i = 0; i < n; i++)
                if (logits[i] == top) all_.push_back({0, static_cast<int32_t>(i)});
            complete_ = true;
            cut(static_cast<size_t>(most_));
        } else {
            gather(most > 0 ? most_ : kFirst);
        }
    }

    // Whether there is an i-th candidate, which `[]` gives.
    bool has(size_t i) {
        if (i >= all_.size() && !complete_) gather(static_cast<int64_t>(i) < kSecond ? kSecond : most_);
        return i < all_.size();
    }
    const Candidate& operator[](size_t i) {
        see(i);
        return all_[i];
    }
    // How many there are; gathers them all.
    size_t size() {
        if (!complete_) gather(most_);
        return all_.size();
    }
    // e^(logit - greatest), tempered: unnormalized probability.
    double weight(size_t i, double temperature = 1) { return std::exp((double{(*this)[i].logit} - all_[0].logit) / temperature); }

    double total(double temperature = 1) const {
        if (!complete_) return total_weight(logits_, n_, all_[0].logit, temperature);
        double sum = 0;
        for (const Candidate& c : all_) sum += std::exp((double{c.logit} - all_[0].logit) / temperature);
        return sum;
    }

    void cut(size_t keep) {
        if (!has(keep)) return;
        see(keep - 1);
        all_.resize(keep);
        sorted_ = std::min(sorted_, keep);
        complete_ = true;
    }

    void replace(std::vector<Candidate> kept) {
        all_ = std::move(kept);
        std::sort(all_.begin(), all_.end());
        sorted_ = all_.size();
        complete_ = true;
    }

   private:
    static constexpr int64_t kFirst = 256, kSecond = 4096;

    // The first `count` again, more than there were. Those that are sorted already stay what they are.
    void gather(int64_t count) {
        all_.clear();
        sorted_ = 0;
        count = std::min(count, most_);
        if (count < n_ / 8) {
            gather_few(static_cast<size_t>(count));
        } else {
            for (int64_t i = 0; i < n_; i++)
                if (logits_[i] > kLowest) all_.push_back({logits_[i], static_cast<int32_t>(i)});
            if (all_.size() > static_cast<size_t>(most_)) {
                auto last = all_.begin() + most_;
                std::nth_element(all_.begin(), last, all_.end());
                all_.resize(static_cast<size_t>(most_));
            }
            count = most_;
        }
        complete_ = count == most_ || all_.size() < static_cast<size_t>(count);
        see(0);
    }

    // Few of many: what is above the least of the best so far is collected, and thinned out when it is twice too much. An equal
    // logit that comes later has a higher id, and stands behind.
    void gather_few(size_t most) {
        float floor = kLowest;
        all_.reserve(2 * most);
        auto thin = [&] {
            auto last = all_.begin() + static_cast<std::ptrdiff_t>(most) - 1;
            std::nth_element(all_.begin(), last, all_.end());
            floor = last->logit;
            all_.resize(most);
        };
        auto meet = [&](int64_t i) {
            if (!(logits_[i] > floor)) return;
            all_.push_back({logits_[i], static_cast<int32_t>(i)});
            if (all_.size() == 2 * most) thin();
        };
        int64_t i = 0;
        for (; i + 8 <= n_; i += 8)
            if (any(load(logits_ + i) > all(floor)))
                for (int64_t k = 0; k < 8; k++) meet(i + k);
        for (; i < n_; i++) meet(i);
        if (all_.size() > most) thin();
    }

    void see(size_t i) {
        if (i < sorted_) return;
        size_t wanted = std::min(std::max({i + 1, 2 * sorted_, size_t{128}}), all_.size());
        auto from = all_.begin() + static_cast<std::ptrdiff_t>(sorted_), to = all_.begin() + static_cast<std::ptrdiff_t>(wanted);
        if (to != all_.end()) std::nth_element(from, to, all_.end());
        std::sort(from, to);
        sorted_ = wanted;
    }

    const float* logits_;
    int64_t n_, most_;
    std::vector<Candidate> all_;
    size_t sorted_ = 0;
    bool complete_ = false;  // all_ holds every candidate
};

// Keeps those whose surprise is closest to the mean surprise, until they hold `p`.  Source: arXiv 2202.00666.
void cut_typical(Ranked& r, double p) {
    std::vector<double> share(r.size());
    double total = r.total(), entropy = 0;
    for (size_t i = 0; i < r.size(); i++) {
        share[i] = r.weight(i) / total;
        if (share[i] > 0) entropy -= share[i] * std::log(share[i]);
    }
    std::vector<std::pair<double, size_t>> order;
    for (size_t i = 0; i < r.size(); i++) order.emplace_back(std::fabs(-std::log(share[i]) - entropy), i);
    std::sort(order.begin(), order.end());
    std::vector<Candidate> kept;
    double sum = 0;
    for (auto [_, i] : order) {
        kept.push_back(r[i]);
        sum += share[i];
        if (sum >= p) break;
    }
    r.replace(std::move(kept));
}

void cut_top_p(Ranked& r, double p) {
    double total = r.total(), sum = 0;
    for (size_t i = 0; r.has(i); i++) {
        sum += r.weight(i) / total;
        if (sum >= p) return r.cut(i + 1);
    }
}

void cut_min_p(Ranked& r, double p) {
    size_t i = 1;
    while (r.has(i) && r.weight(i) >= p) i++;
    r.cut(i);
}

}  // namespace

int64_t sample(const float* logits, int64_t n, const Sampling& how, double uniform) {
    if (!(how.temperature > 0)) return greatest(logits, n);
    Ranked r(logits, n, how.top_k);
    if (how.typical_p < 1) cut_typical(r, how.typical_p);
    if (how.top_p < 1) cut_top_p(r, how.top_p);
    if (how.min_p > 0) cut_min_p(r, how.min_p);
    double wanted = uniform * r.total(how.temperature), sum = 0;
    for (size_t i = 0; r.has(i); i++) {
        sum += r.weight(i, how.temperature);
        if (sum > wanted) return r[i].id;
    }
    return r[r.size() - 1].id;  // rounding left a crumb
}

void penalize(float* logits, int64_t n, const int32_t* recent, int64_t n_recent, double repetition, double presence,
              double frequency) {
    std::vector<int32_t> ids(recent, recent + n_recent);
    std::sort(ids.begin(), ids.end());
    for (size_t i = 0, j; i < ids.size(); i = j) {
        for (j = i; j < ids.size() && ids[j] == ids[i];) j++;
        if (ids[i] < 0 || ids[i] >= n) continue;
        float logit = logits[ids[i]], by = static_cast<float>(repetition);
        logit = logit > 0 ? logit / by : logit * by;
        logits[ids[i]] = logit - static_cast<float>(static_cast<double>(j - i) * frequency) - static_cast<float>(presence);
    }
}

}  // namespace KVASIR_ISA_NS
}  // namespace kvasir
