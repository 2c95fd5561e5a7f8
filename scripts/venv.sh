# Sourced by the scripts beside it. venv DIRECTORY NAME [NAME]: make a virtual environment with the locked
# requirements/NAME.txt and the project itself, or bring it up to date; a second NAME is installed
# without its dependencies. Uses the pip configuration it finds.

find_python() {
    for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11; do
        if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "error: no Python 3.11 or newer found" >&2
    echo "hint: install one (Amazon Linux 2023: dnf install python3.11; Ubuntu: apt install python3-venv), or set PYTHON" >&2
    return 1
}

venv() {
    if [ -e "$1/.complete" ] && [ "$(cat "$1/.complete")" = "$(venv_inputs "$@")" ]; then
        return
    fi
    python=$(find_python)
    echo "== installing into $1" >&2
    rm -rf "$1"
    "$python" -m venv "$1"
    "$1/bin/python" -m pip install --quiet --disable-pip-version-check \
        --require-hashes --requirement "requirements/$2.txt"
    if [ -n "${3:-}" ]; then
        "$1/bin/python" -m pip install --quiet --disable-pip-version-check \
            --require-hashes --no-deps --requirement "requirements/$3.txt"
    fi
    "$1/bin/python" -m pip install --quiet --disable-pip-version-check \
        --no-deps --no-build-isolation --editable .
    venv_inputs "$@" >"$1/.complete"
}

# What the environment was made from; it is made again when this changes.
venv_inputs() {
    cksum pyproject.toml "requirements/$2.txt" ${3:+"requirements/$3.txt"}
}
