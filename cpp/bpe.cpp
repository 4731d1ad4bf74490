#include "bpe.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <queue>
#include <stdexcept>
#include <tuple>

namespace kvasir {
inline namespace KVASIR_ISA_NS {
namespace {

constexpr size_t kShort = 48;  // symbols up to which looking at all pairs is quicker than a heap
constexpr int64_t kTogether = 32;
constexpr int32_t kNoRank = std::numeric_limits<int32_t>::max();

uint64_t mix(uint64_t h) {
    h *= 0x9e3779b97f4a7c15u;
    return h ^ (h >> 29);
}

uint64_t hash_of(std::string_view s) {
    uint64_t h = s.size(), word;
    const char* p = s.data();
    size_t left = s.size();
    for (; left >= 8; p += 8, left -= 8) std::memcpy(&word, p, 8), h = mix(h ^ word);
    word = 0;
    std::memcpy(&word, p, left);
    return mix(mix(h ^ word));
}

uint64_t pair_of(int32_t left, int32_t right) { return static_cast<uint64_t>(left) << 32 | static_cast<uint32_t>(right); }

size_t slots_for(int64_t n) {
    size_t size = 16;
    while (size < static_cast<size_t>(n) * 2) size *= 2;
    return size;
}

// The code point at `at`, which moves behind it. Only of UTF-8 that was checked, or comes from Python.
uint32_t letter_at(std::string_view s, size_t& at) {
    auto byte = [&](size_t i) { return i < s.size() ? static_cast<uint8_t>(s[i]) : 0u; };
    const uint32_t first = byte(at);
    const size_t n = first < 0x80 ? 1 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
    uint32_t letter = n == 1 ? first : first & (0xffu >> (n + 1));
    for (size_t i = 1; i < n; i++) letter = letter << 6 | (byte(at + i) & 0x3f);
    at += n;
    return letter;
}

// The letters of GPT-2's alphabet: printable Latin-1, and one from U+0100 on for each byte that is not.
bool is_letter(uint32_t c) {
    return (c >= 0x21 && c <= 0x7e) || (c >= 0xa1 && c <= 0xac) || (c >= 0xae && c <= 0xff) || (c >= 0x100 && c < 0x144);
}

bool is_utf8(std::string_view s) {
    const auto* p = reinterpret_cast<const uint8_t*>(s.data());
    const auto* end = p + s.size();
    while (p < end) {
        if (*p < 0x80) {
            p++;
            continue;
        }
        const int n = *p >= 0xc2 && *p <= 0xdf ? 2 : (*p & 0xf0) == 0xe0 ? 3 : *p >= 0xf0 && *p <= 0xf4 ? 4 : 0;
        if (!n || end - p < n) return false;
        for (int i = 1; i < n; i++)
            if ((p[i] & 0xc0) != 0x80) return false;
        // not the shortest form, a surrogate, or beyond the last code point
        if ((*p == 0xe0 && p[1] < 0xa0) || (*p == 0xed && p[1] > 0x9f) || (*p == 0xf0 && p[1] < 0x90) || (*p == 0xf4 && p[1] > 0x8f))
            return false;
        p += n;
    }
    return true;
}

}  // namespace

std::vector<int64_t> string_ends(const uint8_t* data, int64_t size, int64_t n, int64_t most) {
    std::vector<int64_t> ends;
    ends.reserve(static_cast<size_t>(std::clamp<int64_t>(n, 0, size / 8)));
    for (int64_t at = 0, i = 0; i < n && size - at >= 8; i++) {
        uint64_t length;
        std::memcpy(&length, data + at, 8);
        at += 8;
        if (length > static_cast<uint64_t>(most) || length > static_cast<uint64_t>(size - at)) break;
        ends.push_back(at += static_cast<int64_t>(length));
    }
    return ends;
}

int64_t first_not_utf8(const Strings& strings) {
    for (int64_t i = 0; i < strings.n; i++)
        if (!is_utf8(strings[i])) return i;
    return -1;
}

Bpe::Bpe(const Strings& tokens, const Strings& merges, bool whole)
    : tokens_(tokens), whole_(whole), token_slots_(slots_for(tokens.n)), merge_slots_(slots_for(merges.n)) {
    for (int64_t i = 0; i < tokens.n; i++) add_token(static_cast<int32_t>(i));
    std::fill(letters_, letters_ + kLetters, -1);
    for (uint32_t c = 0; c < kLetters; c++) {
        if (!is_letter(c)) continue;
        char spelled[2] = {static_cast<char>(c < 0x80 ? c : 0xc0 | c >> 6), static_cast<char>(0x80 | (c & 0x3f))};
        letters_[c] = find({spelled, c < 0x80 ? 1u : 2u});
        if (letters_[c] < 0) throw std::invalid_argument("the alphabet is not complete");
    }
    for (int64_t i = 0; i < merges.n; i += kTogether) add_merges(merges, i, std::min(merges.n, i + kTogether));
}

// Some merges at a time: what their look-ups will touch is asked for before it is needed.
void Bpe::add_merges(const Strings& merges, int64_t begin, int64_t end) {
    struct Found {
        std::string_view text;
        uint64_t hash;
    } halves[2 * kTogether];
    const auto n = static_cast<size_t>(end - begin);
    for (size_t i = 0; i < n; i++) {
        const std::string_view both = merges[begin + static_cast<int64_t>(i)];
        const size_t gap = both.find(' ', 1);  // the first letter may itself be a space
        if (gap == std::string_view::npos || gap + 1 == both.size())
            throw std::invalid_argument("merge " + std::to_string(begin + static_cast<int64_t>(i)) + " is not two tokens");
        for (const auto& half : {both.substr(0, gap), both.substr(gap + 1)}) {
            Found& found = halves[2 * i + (half.data() != both.data())];
            found = {half, hash_of(half)};
            __builtin_prefetch(&token_slots_[found.hash & (token_slots_.size() - 1)]);
        }
    }
    for (size_t i = 0; i < 2 * n; i++)
        if (const uint64_t slot = token_slots_[halves[i].hash & (token_slots_.size() - 1)]) __builtin_prefetch(tokens_.ends + (slot & 0xffffffffu) - 1);
    for (size_t i = 0; i < 2 * n; i++)
        if (const uint64_t slot = token_slots_[halves[i].hash & (token_slots_.size() - 1)])
            __builtin_prefetch(tokens_[static_cast<int32_t>(slot & 0xffffffffu) - 1].data());
    Merge made[kTogether];
    std::string joined;
    for (size_t i = 0; i < n; i++) {
        const Found &left = halves[2 * i], &right = halves[2 * i + 1];
        const int32_t l = find(left.text, left.hash), r = find(right.text, right.hash);
        last_ = made_by(joined.assign(left.text).append(right.text), last_);
        const int64_t rank = begin + static_cast<int64_t>(i);
        if (l < 0 || r < 0 || last_ < 0)
            throw std::invalid_argument("merge " + std::to_string(rank) + " has a token that is not in the vocabulary");
        made[i] = {pair_of(l, r), static_cast<int32_t>(rank), last_};
        __builtin_prefetch(&merge_slots_[mix(made[i].pair) & (merge_slots_.size() - 1)]);
    }
    for (size_t i = 0; i < n; i++) {
        size_t slot = mix(made[i].pair) & (merge_slots_.size() - 1);
        while (merge_slots_[slot].pair != ~uint64_t{0} && merge_slots_[slot].pair != made[i].pair)
            slot = (slot + 1) & (merge_slots_.size() - 1);
        merge_slots_[slot] = made[i];
    }
}

void Bpe::add_token(int32_t id) {
    const std::string_view token = tokens_[id];
    if (token.empty()) return;
    const uint64_t hash = hash_of(token);
    size_t slot = hash & (token_slots_.size() - 1);
    for (; token_slots_[slot]; slot = (slot + 1) & (token_slots_.size() - 1))
        if (token_slots_[slot] >> 32 == hash >> 32 && tokens_[static_cast<int32_t>(token_slots_[slot] & 0xffffffffu) - 1] == token) {
            twice_ = true;
            return;
        }
    token_slots_[slot] = (hash >> 32) << 32 | static_cast<uint32_t>(id + 1);
}

int32_t Bpe::find(std::string_view token) const {
    return token.empty() ? -1 : find(token, hash_of(token));
}

int32_t Bpe::find(std::string_view token, uint64_t hash) const {
    for (size_t slot = hash & (token_slots_.size() - 1); token_slots_[slot]; slot = (slot + 1) & (token_slots_.size() - 1)) {
        const int32_t id = static_cast<int32_t>(token_slots_[slot] & 0xffffffffu) - 1;
        if (token_slots_[slot] >> 32 == hash >> 32 && tokens_[id] == token) return id;
    }
    return -1;
}

// What a merge makes is nearly always what the one before made, or the token behind that: then it is not searched for. A token
// that has an equal before it is.
int32_t Bpe::made_by(std::string_view joined, int32_t last) const {
    for (int32_t id = last; id < std::min<int64_t>(last + 2, tokens_.n); id++)
        if (tokens_[id] == joined && !twice_) return id;
    return find(joined);
}

const Bpe::Merge* Bpe::merge(int32_t left, int32_t right) const {
    const uint64_t pair = pair_of(left, right);
    for (size_t slot = mix(pair) & (merge_slots_.size() - 1);; slot = (slot + 1) & (merge_slots_.size() - 1)) {
        if (merge_slots_[slot].pair == pair) return &merge_slots_[slot];
        if (merge_slots_[slot].pair == ~uint64_t{0}) return nullptr;
    }
}

void Bpe::encode(std::string_view piece, std::vector<int32_t>& ids) const {
    if (whole_) {
        const int32_t id = find(piece);
        if (id >= 0) return ids.push_back(id);
    }
    std::vector<int32_t> symbols;
    symbols.reserve(piece.size());
    for (size_t at = 0; at < piece.size();) {
        const uint32_t letter = letter_at(piece, at);
        if (letter >= kLetters || letters_[letter] < 0) throw std::invalid_argument("a letter that is not of the alphabet");
        symbols.push_back(letters_[letter]);
    }
    symbols.size() <= kShort ? join_short(symbols) : join_long(symbols);
    ids.insert(ids.end(), symbols.begin(), symbols.end());
}

void Bpe::join_short(std::vector<int32_t>& symbols) const {
    int32_t ranks[kShort], made[kShort];  // of the pair that begins there
    auto look = [&](size_t i) {
        const Merge* m = i + 1 < symbols.size() ? merge(symbols[i], symbols[i + 1]) : nullptr;
        ranks[i] = m ? m->rank : kNoRank;
        made[i] = m ? m->id : 0;
    };
    for (size_t i = 0; i < symbols.size(); i++) look(i);
    while (symbols.size() > 1) {
        const size_t best = static_cast<size_t>(std::min_element(ranks, ranks + symbols.size()) - ranks);
        if (ranks[best] == kNoRank) return;
        symbols[best] = made[best];
        symbols.erase(symbols.begin() + static_cast<int64_t>(best) + 1);
        std::copy(ranks + best + 2, ranks + symbols.size() + 1, ranks + best + 1);
        std::copy(made + best + 2, made + symbols.size() + 1, made + best + 1);
        look(best);
        if (best) look(best - 1);
    }
}

void Bpe::join_long(std::vector<int32_t>& symbols) const {
    const auto n = static_cast<int32_t>(symbols.size());
    std::vector<int32_t> next(symbols.size()), previous(symbols.size());
    using Candidate = std::tuple<int32_t, int32_t, int32_t, int32_t>;  // rank, place, left, right
    std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> waiting;
    auto at = [&](int32_t i) -> int32_t& { return symbols[static_cast<size_t>(i)]; };
    auto offer = [&](int32_t i) {
        const int32_t j = i < 0 ? n : next[static_cast<size_t>(i)];
        if (j >= n) return;
        if (const Merge* m = merge(at(i), at(j))) waiting.emplace(m->rank, i, at(i), at(j));
    };
    for (int32_t i = 0; i < n; i++) next[static_cast<size_t>(i)] = i + 1, previous[static_cast<size_t>(i)] = i - 1;
    for (int32_t i = 0; i < n; i++) offer(i);
    while (!waiting.empty()) {
        const auto [rank, i, left, right] = waiting.top();
        waiting.pop();
        const int32_t j = at(i) < 0 ? n : next[static_cast<size_t>(i)];
        if (j >= n || at(i) != left || at(j) != right) continue;  // one of them has been joined since
        at(i) = merge(left, right)->id;
        at(j) = -1;
        const int32_t k = next[static_cast<size_t>(i)] = next[static_cast<size_t>(j)];
        if (k < n) previous[static_cast<size_t>(k)] = i;
        offer(i);
        offer(previous[static_cast<size_t>(i)]);
    }
    symbols.erase(std::remove(symbols.begin(), symbols.end(), -1), symbols.end());
}

}  // namespace KVASIR_ISA_NS
}  // namespace kvasir
