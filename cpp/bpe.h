// Byte-pair encoding over a vocabulary as a GGUF file has it: the strings stay where the file is mapped, and only two tables
// are made, so that 128,000 tokens and 280,000 merges are ready in a few hundredths of a second.
//
// A piece is a word as pre-tokenizers leave it, spelled in GPT-2's alphabet of 256 letters. Law: of all pairs of neighbours the
// one with the lowest rank is joined, of several the leftmost, until none has a rank; with `whole`, a piece that is a token is
// that token. Of two equal tokens the first counts, of two equal merges the last.
// Equals the tokenizers library. Tests: tests/pure/test_bpe.py
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace kvasir {
inline namespace KVASIR_ISA_NS {

// `n` strings of an array of a GGUF file, each behind eight bytes that say its length: string i ends at ends[i], and the next
// one's length follows. The ends lie in `data`; whoever makes one has seen to that.
struct Strings {
    const uint8_t* data;
    const int64_t* ends;
    int64_t n;

    std::string_view operator[](int64_t i) const {
        const int64_t begin = (i ? ends[i - 1] : 0) + 8;
        return {reinterpret_cast<const char*>(data) + begin, static_cast<size_t>(ends[i] - begin)};
    }
};

// Where each of `n` strings ends, as far as they lie within `size` bytes and none is longer than `most`.
std::vector<int64_t> string_ends(const uint8_t* data, int64_t size, int64_t n, int64_t most);
// The first string that is not UTF-8; -1 when all are.
int64_t first_not_utf8(const Strings& strings);

class Bpe {
   public:
    // Throws std::invalid_argument for a merge that is not two tokens of the vocabulary that make a third, and for an
    // alphabet that is not complete. `tokens` must stay where they are.
    Bpe(const Strings& tokens, const Strings& merges, bool whole);

    int32_t find(std::string_view token) const;  // -1 for none
    // Throws std::invalid_argument for a letter that is not of the alphabet.
    void encode(std::string_view piece, std::vector<int32_t>& ids) const;

   private:
    struct Merge {
        uint64_t pair = ~uint64_t{0};
        int32_t rank = 0, id = 0;
    };
    static constexpr int kLetters = 0x180;

    void add_token(int32_t id);
    void add_merges(const Strings& merges, int64_t begin, int64_t end);
    int32_t find(std::string_view token, uint64_t hash) const;
    int32_t made_by(std::string_view joined, int32_t last) const;
    const Merge* merge(int32_t left, int32_t right) const;
    void join_short(std::vector<int32_t>& symbols) const;
    void join_long(std::vector<int32_t>& symbols) const;

    Strings tokens_;
    bool whole_;
    bool twice_ = false;  // some token is there twice
    int32_t last_ = 0;    // what the merge added last makes
    std::vector<uint64_t> token_slots_;  // upper half of the hash | id + 1; 0 is free
    std::vector<Merge> merge_slots_;
    int32_t letters_[kLetters];
};

}  // namespace KVASIR_ISA_NS
}  // namespace kvasir
