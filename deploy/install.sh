#!/bin/sh
# Install Duologue's programs into a folder: `deploy/install.sh /opt/duologue`. The image's steps are these.
#
# A virtual environment at the exact versions of requirements.lock, with what serving and learning need and without what
# tests need. Wants Python 3.11 or newer and a C compiler at run time (the CPU's step is compiled on the machine it runs
# on, once). Set PYTHON for another interpreter, EXTRAS for other extras of pyproject.toml, and TORCH_INDEX for an index
# of your choice with the build of torch that you want: CPU or CUDA. Without it, pip's own index decides.
set -eu

prefix=${1:?usage: deploy/install.sh FOLDER, which is made if it is not there}
source=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
extras=${EXTRAS:-server,postgres}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11) and "install.sh: got Python %d.%d, expected 3.11 or newer; set PYTHON" % sys.version_info[:2])'
"$python" -m venv "$prefix"
pip() {
    "$prefix/bin/python" -m pip --disable-pip-version-check --quiet "$@"
}

# torch first and by name, so that a build of its own kind can be chosen (docs/decisions/0001-lift-upstream-pins.md).
torch=$(sed -n 's/^TORCH := //p' "$source/Makefile")
pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$torch"
# moshi without its dependencies: its own pins contradict ours.
pip install --no-deps "$(grep '^moshi==' "$source/requirements.lock")"
# The lock as a limit: whatever else is wanted comes at the version that was tested.
pip install --constraint "$source/requirements.lock" "$source[$extras]"

"$prefix/bin/duologue-server" --help >/dev/null
"$prefix/bin/python" -c 'import torch; print("installed: torch", torch.__version__, "for CUDA" if torch.version.cuda else "for CPUs")'
