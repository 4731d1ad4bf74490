// What the pieces of prefill attention cost, in ticks of the clock, beside multiply-adds alone: the least of many runs.
//   g++ -std=gnu++20 -O3 -mavx2 -mfma -mf16c -ffp-contract=off -Wno-psabi -DKVASIR_ISA_NS=lab -Icpp lab/attend_v3.cpp -o /tmp/attend_v3
#include <x86intrin.h>
#include <cstdio>
#include <vector>
#include "attend_tile.h"
using namespace kvasir;
template <class F> double least(F f, int n = 400) { unsigned long best = ~0ul; for (int i = 0; i < n; i++) { unsigned a; unsigned long t = __rdtscp(&a); f(); t = __rdtscp(&a) - t; if (t < best) best = t; } return double(best); }
alignas(64) float q[48*128], s[48*72], y[48*128], kf[128*16], vf[64*16]; uint16_t tile[128*16*2];
template<int G> __attribute__((noinline)) void sc(float* q, float* s) { Plain<float>::Keys k{kf}; scores<G,1,false>(&k,0,q,128,s); }
template<int G> __attribute__((noinline)) void we(float* s, float* y) { Column v{vf}; weigh<G,2,false>(&v,nullptr,0,s,y,48*16,0,64); }
int main() {
    for (auto& x : q) x = 0.01f; for (auto& x : kf) x = 0.02f; for (auto& x : vf) x = 0.03f;
    for (int round = 0; round < 3; round++) {
    f8 a[12]; for (auto& x : a) x = all(0); f8 b = all(1e-3f);
    double peak = least([&]{ for (int i = 0; i < 1000; i++) { for (auto& x : a) x = fma(b, b, x); asm volatile("" : "+x"(b)); } }) / 12000;
    volatile float sink = 0; for (auto& x : a) sink = sink + x[0];
    auto told = [&](const char* what, double ticks, double fmas) { std::printf("%-34s %8.0f ticks %5.1f %% of peak\n", what, ticks, 100 * fmas * peak / ticks); };
    std::printf("a multiply-add: %.3f ticks\n", peak);
    told("scores 6, one group, hot", least([&]{ sc<6>(q, s); }), 6*2*128);
    told("scores 6, 8 groups", least([&]{ for (int g = 0; g < 48; g += 6) sc<6>(q + g*128, s + g*kChunk); }), 8*6*2*128);
    told("scores 6, 4 groups", least([&]{ for (int g = 0; g < 24; g += 6) sc<6>(q + g*128, s + g*kChunk); }), 4*6*2*128);
    told("scores 4, 1 group", least([&]{ sc<4>(q, s); }), 4*2*128);
    told("weigh 6, one group, hot", least([&]{ we<6>(s, y); }), 6*2*64);
    told("weigh 6, 8 groups", least([&]{ for (int g = 0; g < 48; g += 6) we<6>(s + g*kChunk, y + g*16); }), 8*6*2*64);
    told("weigh 6, 8 groups, 8 slices", least([&]{ for (int c = 0; c < 8; c++) for (int g = 0; g < 48; g += 6) we<6>(s + g*kChunk, y + c*48*16 + g*16); }), 64*6*2*64);
    std::vector<Softmax> now(48);
    for (auto& x : s) x = -1.0f;
    std::printf("soften, 48 queries                 %8.0f ticks\n", least([&]{ for (int m = 0; m < 48; m++) soften(s + m*kChunk, 0, 64, 0, now[m], y + m*16, 48*16, 8); }));
    std::printf("keys to floats, 4 tiles            %8.0f ticks\n", least([&]{ for (int t = 0; t < 4; t++) { Plain<uint16_t>::Keys k{tile}; for (int i = 0; i < 128; i++) { store(kf + i*16, k.read(i,0)); store(kf + i*16+8, k.read(i,1)); } asm volatile("" ::: "memory"); } }));
    std::printf("all of a chunk at the peak         %8.0f ticks\n", peak * 48 * 64 * 256 / 8);
    }
}
