// How fast attention reads a cache that lies in memory (decode), and how near prefill comes to the arithmetic's peak.
//   g++ -std=gnu++20 -O3 -mavx2 -mfma -mf16c -ffp-contract=off -DKVASIR_ISA_NS=lab -Icpp lab/attend_v1.cpp -o /tmp/attend_v1
#include <ctime>
#include <cstdio>
#include <cstdlib>
#include <vector>
#include "attend_tile.h"
namespace kvasir { inline namespace KVASIR_ISA_NS {
void Buffer::reserve(size_t bytes) { if (bytes<=bytes_) return; void*p=std::aligned_alloc(1<<21,(bytes+(1<<21)-1)>>21<<21); data_=std::shared_ptr<uint8_t>((uint8_t*)p,[](uint8_t*q){std::free(q);}); bytes_=bytes; }
static int64_t up(int64_t n,int64_t m){return (n+m-1)/m*m;}
static int64_t el(KvFormat f){return f==KvFormat::f32?4:f==KvFormat::f16?2:1;}
Cache::Cache(KvFormat f,int heads,int64_t kw,int64_t vw):format(f),kv_heads(heads),k_dim(kw/heads),v_dim(vw/heads),v_stride(up(v_dim,8)),
 key_bytes(up(k_dim*kBlock*el(f)+(f==KvFormat::q8_0?up(k_dim,32)/32*kBlock*2:0),32)),
 tile_bytes(up(key_bytes+v_stride*kBlock*el(f)+(f==KvFormat::q8_0?up(v_dim,32)/32*kBlock*2:0),64)){}
void Cache::reserve(int64_t n){data_.reserve(size_t(n*kv_heads*tile_bytes));}
}}
using namespace kvasir;
constexpr int kRuns = 12;
static double now(){timespec t; clock_gettime(CLOCK_THREAD_CPUTIME_ID,&t); return t.tv_sec+t.tv_nsec*1e-9;}

// One query group G over all blocks of a head.
template <int G,int N,int C,bool Ahead,class F>
void decode(const Cache& c,int head,int64_t blocks,const float* q,float* s,float* y,Softmax* soft){
    const int64_t d=c.k_dim,slices=up(c.v_stride,16)/16,slice=16*G;
    for(int64_t b=0;b<blocks;b+=kChunkTiles){
        typename F::Keys k[4]; typename F::Values v[4]; const uint8_t* next[4];
        for(int t=0;t<4;t++){ auto* tile=c.tile(b+t,head); k[t]=F::keys(c,tile); v[t]=F::values(c,tile); next[t]=c.tile(std::min(b+4+t,blocks-1),head);}    
        for(int t=0;t<4;t+=N) scores<G,N,Ahead>(k+t,c.key_bytes,q,d,s+t*16);
        for(int g=0;g<G;g++) soften(s+g*kChunk,0,64,0,soft[g],y+g*16,slice,slices);
        int64_t col=0;
        for(;col+8*C<=c.v_stride;col+=8*C) weigh<G,C,Ahead>(v,next,col,s,y+col/16*slice,slice,0,64);
    }
}
template <int G,int N,int C,bool Ahead,class F>
void bench_decode(const char* name,const Cache& c,int64_t blocks){
    std::vector<float> q(c.k_dim*G,0.01f),s(G*kChunk+16),y(G*16*16); double best=1e9;
    for(int r=0;r<kRuns;r++){ double t=now(); for(int h=0;h<c.kv_heads;h++){Softmax soft[G]; decode<G,N,C,Ahead,F>(c,h,blocks,q.data(),s.data(),y.data(),soft);} best=std::min(best,now()-t);}    
    printf("decode %s G=%d N=%d C=%d ahead=%d: %.2f GB/s  %.0f ns a tile\n",name,G,N,C,Ahead,blocks*c.kv_heads*c.tile_bytes/best/1e9,best/(blocks*c.kv_heads)*1e9);
}
// M queries over `blocks` blocks of one head, through float scratch.
template <class F>
void prefill(const Cache& c,int head,int64_t blocks,int M,const float* q,float* s,float* y,Softmax* soft,float* kf,float* vf){
    const int64_t d=c.k_dim,slices=up(c.v_stride,16)/16,slice=16*M;
    for(int64_t b=0;b<blocks;b+=4){
        for(int t=0;t<4;t++){
            auto k=F::keys(c,c.tile(b+t,head));
            for(int64_t i=0;i<d;i++){ if(i%32==0)k.block(i/32); store(kf+i*16,k.read(i,0)); store(kf+i*16+8,k.read(i,1)); }
            typename Plain<float>::Keys kk{kf};
            for(int m=0;m<M;m+=6) scores<6,1,false>(&kk,0,q+m*d,d,s+m*kChunk+t*16);
        }
        for(int m=0;m<M;m++) soften(s+m*kChunk,0,64,0,soft[m],y+m*16,slice,slices);
        for(int64_t col=0;col<c.v_stride;col+=16){
            Column vv{vf};
            for(int t=0;t<4;t++){ auto v=F::values(c,c.tile(b+t,head));
                for(int u=0;u<16;u++){ v.block(col/32,u); store(vf+t*256+u*16,v.read(col,u)); store(vf+t*256+u*16+8,v.read(col+8,u)); } }
            for(int m=0;m<M;m+=6) weigh<6,2,false>(&vv,nullptr,0,s+m*kChunk,y+col/16*slice+m*16,slice,0,64);
        }
    }
}
template <class F> void bench_prefill(const char* name,const Cache& c,int64_t blocks,int M){
    std::vector<float> q(c.k_dim*M,0.01f),s(M*kChunk),y(M*16*16),kf(c.k_dim*16),vf(64*16); double best=1e9;
    std::vector<Softmax> soft(M);
    for(int r=0;r<kRuns;r++){ double t=now(); for(int h=0;h<2;h++){std::fill(soft.begin(),soft.end(),Softmax{}); prefill<F>(c,h,blocks,M,q.data(),s.data(),y.data(),soft.data(),kf.data(),vf.data());} best=std::min(best,now()-t);}    
    printf("prefill %s M=%d: %.1f G multiply-adds/s\n",name,M,2.0*blocks*16*M*(c.k_dim+c.v_dim)/best/1e9);
}
int main(){
    const int64_t blocks=2048; // 128 MB of f16
    auto fill=[](Cache& c,int64_t n){ for(int64_t b=0;b<n;b++)for(int h=0;h<c.kv_heads;h++){float k[128],v[128];for(int u=0;u<16;u++){for(int i=0;i<128;i++){k[i]=0.01f*((b*7+u*3+i)%13-6);v[i]=0.01f*((b+u+i)%17);}
        if(c.format==KvFormat::f16)Plain<uint16_t>::write(c,c.tile(b,h),u,k,v);else if(c.format==KvFormat::f32)Plain<float>::write(c,c.tile(b,h),u,k,v);else Bytes::write(c,c.tile(b,h),u,k,v);}}};
    Cache half(KvFormat::f16,8,1024,1024),byte(KvFormat::q8_0,8,1024,1024);
    half.reserve(blocks);byte.reserve(blocks);
    double t=now(); fill(half,blocks); printf("write f16 %.2f ns/number\n",(now()-t)*1e9/(blocks*8*16*256)); t=now(); fill(byte,blocks);printf("write q8 %.2f ns/number\n",(now()-t)*1e9/(blocks*8*16*256));
    { double best=1e9; f8 x=all(0); for(int r=0;r<3;r++){double t=now(); const uint8_t*p=half.tile(0,0); for(int64_t i=0;i<blocks*8*half.tile_bytes;i+=128){x=x+load((float*)(p+i));x=x+load((float*)(p+i+64));} best=std::min(best,now()-t);} printf("read %.2f GB/s %g\n",blocks*8*half.tile_bytes/best/1e9,x[0]>1e30?1.:0.); }
    using H=Plain<uint16_t>;
    bench_decode<1,4,8,true,H>("f16",half,blocks);
    bench_decode<2,2,4,false,H>("f16",half,blocks); bench_decode<2,2,4,true,H>("f16",half,blocks); bench_decode<4,1,2,true,H>("f16",half,blocks);
    bench_decode<2,2,4,true,Bytes>("q8",byte,blocks); bench_decode<4,1,2,true,Bytes>("q8",byte,blocks);
    for(int M:{24,48,96}) bench_prefill<H>("f16",half,128,M);
    bench_prefill<Bytes>("q8",byte,128,48);
}
