#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Get ONNX Runtime Web (MIT licence, 33 MB) from npm for `export.py --format=web`, into build/onnxruntime-web or the
# folder in the first argument. Needs npm. The version is that of TESTED_RUNTIME in training/export_web.py.
set -eu
version=1.30.0
sha512=ab4cbe26baedba45d2cec05610c71c55fa97db92d19a8b171c5f8269126683ca590a5cdc57bb2f35ce2b298de32f4d956fb42644c0ecd528a0a91e025c07ca61
dest=${1:-$(dirname "$0")/../build/onnxruntime-web}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
npm pack --silent --pack-destination="$work" "onnxruntime-web@$version" >/dev/null
archive=$work/onnxruntime-web-$version.tgz
echo "$sha512  $archive" | sha512sum --check --quiet
mkdir -p "$dest"
tar xzf "$archive" -C "$dest" --strip-components=1 package/package.json package/dist/ort.wasm.min.js \
  package/dist/ort-wasm-simd-threaded.mjs package/dist/ort-wasm-simd-threaded.wasm
echo "ONNX Runtime Web $version is in $dest"
