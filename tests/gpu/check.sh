#!/bin/sh
# Proves on a real accelerator what the tests prove on a stand-in, and times it: eager passes against captured graphs.
#
#     tests/gpu/check.sh [--device cuda] [--minutes 8] [--json FILE] [--small]
#
# Needs a python3 with torch for the device and transformers. Other packages may be carried along as wheels: WHEELS=FOLDER
# installs what is in it into a folder of its own. Nothing is downloaded and nothing outside that folder is changed. The exit
# code is 0 if every check passed, 1 if one failed, 2 if there is no such device.
set -eu
here=$(cd "$(dirname "$0")/../.." && pwd)
site=
if [ -n "${WHEELS:-}" ]; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    python3 -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "$WHEELS"/*.whl
fi
DYNX_CACHE_DIR=${DYNX_CACHE_DIR:-$(mktemp -d)} HF_HUB_OFFLINE=1 \
    PYTHONPATH="$here:$here/tests:${site:+$site:}${PYTHONPATH:-}" python3 "$here/tests/gpu/check.py" "$@"
