#include "sample.h"

#include <algorithm>
#include <cmath>
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

// Candidates in order, sorted only as far as somebody looks: most draws end among the first few of 150,000.
class Ranked {
   public:
    // The first `most` of the candidates; 0: all.
    Ranked(const float* logits, int64_t n, int64_t most) {
        constexpr float inf = std::numeric_limits<float>::infinity();
        if (most > 0 && most < n / 8) {
            gather(logits, n, static_cast<size_t>(most));
        } else {
            all_.reserve(static_cast<size_t>(n));
            for (int64_t i = 0; i < n; i++)
                if (logits[i] > -inf) all_.push_back({logits[i], static_cast<int32_t>(i)});
        }
        if (all_.empty()) throw std::domain_error("no token has a finite logit");
        see(0);
        if (all_[0].logit == inf) {  // infinities share the draw evenly
            cut(static_cast<size_t>(std::count_if(all_.begin(), all_.end(), [](const Candidate& c) { return c.logit == inf; })));
            for (Candidate& c : all_) c.logit = 0;
        }
    }

    size_t size() const { return all_.size(); }
    const Candidate& operator[](size_t i) {
        see(i);
        return all_[i];
    }
    // e^(logit - greatest), tempered: unnormalized probability.
    double weight(size_t i, double temperature = 1) { return std::exp((double{(*this)[i].logit} - all_[0].logit) / temperature); }

    double total(double temperature = 1) const {
        double sum = 0;
        for (const Candidate& c : all_) sum += std::exp((double{c.logit} - all_[0].logit) / temperature);
        return sum;
    }

    void cut(size_t keep) {
        if (keep >= all_.size()) return;
        see(keep - 1);
        all_.resize(keep);
        sorted_ = std::min(sorted_, keep);
    }

    void replace(std::vector<Candidate> kept) {
        all_ = std::move(kept);
        std::sort(all_.begin(), all_.end());
        sorted_ = all_.size();
    }

   private:
    // Few of many: what is above the least of the best so far is collected, and thinned out when it is twice too much. An equal
    // logit that comes later has a higher id, and stands behind.
    void gather(const float* logits, int64_t n, size_t most) {
        float floor = kLowest;
        all_.reserve(2 * most);
        auto meet = [&](int64_t i) {
            if (!(logits[i] > floor)) return;
            all_.push_back({logits[i], static_cast<int32_t>(i)});
            if (all_.size() < 2 * most) return;
            auto last = all_.begin() + static_cast<std::ptrdiff_t>(most) - 1;
            std::nth_element(all_.begin(), last, all_.end());
            floor = last->logit;
            all_.resize(most);
        };
        int64_t i = 0;
        for (; i + 8 <= n; i += 8)
            if (any(load(logits + i) > all(floor)))
                for (int64_t k = 0; k < 8; k++) meet(i + k);
        for (; i < n; i++) meet(i);
    }

    void see(size_t i) {
        if (i < sorted_) return;
        size_t wanted = std::min(std::max({i + 1, 2 * sorted_, size_t{128}}), all_.size());
        auto from = all_.begin() + static_cast<std::ptrdiff_t>(sorted_), to = all_.begin() + static_cast<std::ptrdiff_t>(wanted);
        if (to != all_.end()) std::nth_element(from, to, all_.end());
        std::sort(from, to);
        sorted_ = wanted;
    }

    std::vector<Candidate> all_;
    size_t sorted_ = 0;
};

// Keeps those whose surprise is closest to the mean surprise, until they hold `p`.  Source: arXiv 2202.00666.
void cut_typical(Ranked& r, double p) {
    double total = r.total(), entropy = 0;
    std::vector<double> share(r.size());
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
    for (size_t i = 0; i < r.size(); i++) {
        sum += r.weight(i) / total;
        if (sum >= p) return r.cut(i + 1);
    }
}

void cut_min_p(Ranked& r, double p) {
    size_t i = 1;
    while (i < r.size() && r.weight(i) >= p) i++;
    r.cut(i);
}

}  // namespace

int64_t sample(const float* logits, int64_t n, const Sampling& how, double uniform) {
    if (!(how.temperature > 0)) return greatest(logits, n);
    Ranked r(logits, n, how.top_k);
    if (how.top_k > 0) r.cut(static_cast<size_t>(how.top_k));
    if (how.typical_p < 1) cut_typical(r, how.typical_p);
    if (how.top_p < 1) cut_top_p(r, how.top_p);
    if (how.min_p > 0) cut_min_p(r, how.min_p);
    double wanted = uniform * r.total(how.temperature), sum = 0;
    for (size_t i = 0; i < r.size(); i++) {
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
