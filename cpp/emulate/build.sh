#!/bin/sh
# Builds the products of the VNNI and AMX builds with their instructions emulated (matmul/pair.h), as a library in the folder
# that is named: `make emulate` runs tests/kernels/test_emulated.py on it. Under a minute on one core.
set -e
mkdir -p "$1"
out=$(cd "$1" && pwd)
cd "$(dirname "$0")"
for file in products.cpp ../repack.cpp ../matmul/*.cpp; do
    ${CXX:-g++} -std=gnu++20 -O1 -ffp-contract=off -fPIC -Wall -Wextra -Wno-psabi -mavx2 -mfma -mf16c \
        -DKVASIR_EMULATE -DKVASIR_ISA_NS=emulated -c "$file" -o "$out/$(basename "$file" .cpp).o"
done
${CXX:-g++} -shared -o "$out/libemulated.so" "$out"/*.o
