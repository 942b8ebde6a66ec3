#!/bin/sh
# What the build stages of the Dockerfile run: stages.sh tools UV_VERSION | locked [--only-group NAME] | service
#
# What an image gets is left in /layers/NAME, a tree that is copied over its root. The same input makes the same bytes
# and times, so that the same layer is stored and sent once. INDEX_URL, and a build-ca.pem in the current directory, are
# used where they are there.
set -eu

if [ -f build-ca.pem ]; then
    export SSL_CERT_FILE="$PWD/build-ca.pem" PIP_CERT="$PWD/build-ca.pem"
fi

tools() {
    python3 -m venv /opt/uv
    /opt/uv/bin/pip install --quiet --no-cache-dir --disable-pip-version-check \
        ${INDEX_URL:+--index-url "$INDEX_URL"} "uv==$1"
}

locked() {
    uv export --quiet --locked --no-emit-project "$@" --output-file locked.txt
    uv venv --quiet --python "$(command -v python3)" /app/.venv
    uv pip install --python /app/.venv --require-hashes --no-deps --compile-bytecode \
        ${INDEX_URL:+--default-index "$INDEX_URL"} --requirement locked.txt
    for packages in /app/.venv/lib/python3*/site-packages; do
        [ "$#" -gt 0 ] || echo /app/service >"$packages/agent_executor.pth"
        # Never imported: packages' own tests, and the half of zstandard that is for PyPy.
        find "$packages" -type d -name tests -prune -exec rm -r {} +
        rm -f "$packages"/zstandard/_cffi.*
    done
    standard_library
    layer locked /app
}

standard_library() { # images of Python may lack its bytecode, and nobody can write it later
    library=$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')
    : >/tmp/before
    python3 -m compileall -q --invalidation-mode unchecked-hash "$library" \
        -x '/(test|tests|idlelib|lib2to3|tkinter|turtledemo|ensurepip|pydoc_data|site-packages|dist-packages)/'
    mkdir -p /layers/locked
    find "$library" -name '*.pyc' -newer /tmp/before -print0 | tar -c --null -P -T - | tar -x -C /layers/locked
}

service() {
    uv build --quiet --offline --wheel --out-dir wheel
    uv pip install --quiet --offline --no-deps --python "$(command -v python3)" --compile-bytecode \
        --target /app/service wheel/*.whl
    # uv's note of when it installed what
    rm /app/service/*.dist-info/uv_cache.json
    sed -i '/uv_cache.json/d' /app/service/*.dist-info/RECORD
    mv migrations LICENSE run.sh /app
    layer service /app
}

layer() { # layer NAME TREE: moves the tree into the layer, and sets all times
    find "$2" -name .lock -delete # uv's, and writable
    mkdir -p "/layers/$1"
    mv "$2" "/layers/$1"
    find "/layers/$1" -exec touch --no-dereference --date=@315532800 {} +
}

"$@"
