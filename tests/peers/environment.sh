#!/bin/bash
# Make the environments of dynx's peers, beside the one that runs dynx:
#
#     tests/peers/environment.sh PYTHON FOLDER [llama|genai|optimum]…
#
# PYTHON is an interpreter that has torch, transformers and openvino: they are shared, not installed again.
# FOLDER/peers gets llama-cpp-python, compiled here for this machine (about ten minutes on two cores), and OpenVINO
# GenAI; FOLDER/optimum gets optimum-intel and the transformers that it wants, to export models for GenAI.
# Wheels in the folder $WHEELS, where there is one, are used before the package index.
set -euo pipefail
base=$(realpath -s "$1")
place=$2
shift 2
[ $# -gt 0 ] || set -- llama genai optimum
site=$("$base" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
paths=$("$base" -c 'import sys; print("\n".join(p for p in sys.path if p.endswith("site-packages")))')
find=()
[ -z "${WHEELS:-}" ] || find=(--find-links "$WHEELS")

environment() { # environment NAME: one that sees PYTHON's packages after its own
    [ -x "$place/$1/bin/python" ] && return
    "$base" -m venv "$place/$1"
    local own
    own=$("$place/$1/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
    printf '%s\n' "$site" "$paths" | awk '!seen[$0]++' >"$own/shared.pth"
}

for part in "$@"; do
    case $part in
    llama)
        environment peers
        export CMAKE_ARGS="-DGGML_NATIVE=ON -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAVA_BUILD=OFF ${CMAKE_ARGS:-}"
        "$place/peers/bin/python" -m pip install --no-binary llama-cpp-python --no-deps llama-cpp-python==0.3.36
        "$place/peers/bin/python" -m pip install diskcache
        ;;
    genai)
        environment peers
        "$place/peers/bin/python" -m pip install "${find[@]}" --no-deps openvino-genai openvino-tokenizers
        ;;
    optimum)
        environment optimum
        # Without dependencies: one of them is torchvision, which would bring another torch. Gemma 3 is exported by
        # transformers up to 5.0.
        "$place/optimum/bin/python" -m pip install "${find[@]}" --no-deps optimum-intel optimum openvino-tokenizers
        "$place/optimum/bin/python" -m pip install "${find[@]}" "transformers<5.1" "huggingface-hub<1.22" "diffusers<0.38" nncf
        ;;
    *)
        echo "llama, genai or optimum, not $part" >&2
        exit 2
        ;;
    esac
done
