#!/bin/sh
# tools/venv.sh EXTRAS: make .venv hold this checkout (editable) with these extras; nothing to do when it already does.
# Needs a Python >= 3.11 and nothing else. PYTHON=/path/to/python picks one.
set -eu
cd "$(dirname "$0")/.."
extras=$1
stamp=.venv/ready.$(printf %s "$extras" | tr , +)

say() { printf '%s\n' "$*" >&2; }

pip() { # pip's own, long account only matters when it fails
    .venv/bin/python -m pip --disable-pip-version-check "$@" > .venv/pip.log 2>&1 && return
    cat .venv/pip.log >&2
    say "pip could not install what jobschedd needs; its own words are above."
    exit 1
}

compiled() { # as pip does for whatever else it installs: where PYTHONDONTWRITEBYTECODE is set, nobody does it later
    .venv/bin/python -m compileall -q jobschedd || true # an unwritable checkout works all the same
}

usable() { # a Python that can run jobschedd: 3.12.0 lost vfork in subprocess and is refused
    "$1" -c 'import sys; v = sys.version_info[:3]; sys.exit(not (v >= (3, 11) and v != (3, 12, 0)))' 2>/dev/null
}

with_pip() { # able to make an environment with pip in it, or to install into one from outside
    "$1" -c 'import ensurepip, venv' 2>/dev/null || "$1" -c 'import pip, venv' 2>/dev/null
}

find_python() {
    found=
    for python in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        usable "$python" || continue
        if with_pip "$python"; then
            found=$python
            return
        fi
        without_pip=$python
    done
}

explain_and_stop() {
    if [ -n "${without_pip:-}" ]; then
        say "$without_pip is new enough, but its venv module cannot install pip (Debian and Ubuntu ship that apart)."
        say "Mend it with:  apt-get install python3-venv      (as root)"
    else
        python=${PYTHON:-python3}
        version=$("$python" -c 'import platform; print(platform.python_version())' 2>/dev/null || echo missing)
        say "jobschedd needs Python 3.11 or newer (not 3.12.0); $python is $version."
        say "Install one (apt-get install python3 python3-venv, dnf install python3.12, uv python install 3.13)"
        say "or name one:  make PYTHON=/path/to/python3.13 ..."
    fi
    exit 1
}

# A moved checkout breaks the scripts inside .venv, hence the folder in the stamp.
want="$(pwd) $(cat setup.cfg setup.py tools/venv.sh | cksum)"
if [ "$(cat "$stamp" 2>/dev/null)" = "$want" ] && usable .venv/bin/python; then
    compiled
    exit 0
fi

if ! { usable .venv/bin/python && grep -qsxF "$(pwd)" .venv/home; }; then
    find_python
    [ -n "$found" ] || explain_and_stop
    say "Making .venv with $("$found" -c 'import sys; print(sys.executable)') (once)"
    rm -rf .venv
    if "$found" -c 'import ensurepip' 2>/dev/null; then
        "$found" -m venv .venv
    else
        "$found" -m venv --without-pip .venv
        "$found" -m pip --python .venv/bin/python install --quiet --disable-pip-version-check pip
    fi
    pwd > .venv/home
fi
say "Installing jobschedd[$extras] into .venv"
# As a path: the finder that setuptools would install instead costs every start of Python in here 15 ms.
pip install --editable ".[$extras]" --config-settings editable_mode=compat
compiled
printf '%s\n' "$want" > "$stamp"
