#!/usr/bin/env bash
# Installs what a build and the tests need: apt packages, and .venv from requirements.txt.
# Checks first and installs only what is missing, so `make build` can afford to call it each time.
set -eu
cd "$(dirname "$0")/.."

packages=(
  build-essential cmake ninja-build ccache pkg-config
  libhwy-dev libgtest-dev libgmock-dev librapidcheck-dev libbenchmark-dev
  nlohmann-json3-dev libcli11-dev libspdlog-dev libsentencepiece-dev
  python3 python3-venv python3-dev
  clang-format clang-tidy
)
venv=.venv
stamp=$venv/.requirements.sha256

say() { echo "forge: $*"; }
die() { echo "forge: $*" >&2; exit 1; }

missing_packages() {
  local installed
  installed=$(dpkg-query -W -f '${db:Status-Status} ${Package}\n' "${packages[@]}" 2>/dev/null || true)
  local name
  for name in "${packages[@]}"; do
    grep -qx "installed $name" <<<"$installed" || echo "$name"
  done
}

install_packages() {
  command -v apt-get >/dev/null && command -v dpkg-query >/dev/null ||
    die "this script installs with apt, which is absent here; install the equivalents of: ${packages[*]}"
  local missing
  mapfile -t missing < <(missing_packages)
  [ "${#missing[@]}" -gt 0 ] || return 0

  local as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null ||
      die "these apt packages are missing and neither root nor sudo is at hand to install them: ${missing[*]}"
    as_root=(sudo)
  fi
  say "installing apt packages: ${missing[*]}"
  "${as_root[@]}" apt-get update -qq
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends "${missing[@]}"
}

find_python() {
  local candidate
  for candidate in python3 python3.13 python3.12 python3.11 /usr/bin/python3; do
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  die "no Python of version 3.11 or later (with venv) was found; python3 is $(python3 --version 2>&1)"
}

# True when the environment already holds every pinned version, however it was made.
requirements_met() {
  "$venv/bin/python" - <<'PY'
import importlib.metadata as metadata
import sys

for line in open("requirements.txt"):
    name, _, wanted = line.strip().partition("==")
    try:
        # A local suffix (+cpu) names a build of the same version.
        found = metadata.version(name).partition("+")[0]
    except metadata.PackageNotFoundError:
        sys.exit(1)
    if found != wanted:
        sys.exit(1)
PY
}

install_requirements() {
  local wanted
  wanted=$(sha256sum <requirements.txt)
  if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && "$venv/bin/python" -S -c '' 2>/dev/null; then
    return
  fi
  if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    local python
    python=$(find_python)
    say "making $venv with $("$python" --version)"
    "$python" -m venv --clear "$venv"
  fi
  if ! requirements_met; then
    # torch goes first and by exact version: resolved as somebody's dependency it may come as another build.
    local torch
    torch=$(grep '^torch==' requirements.txt)
    say "installing Python packages: $torch"
    "$venv/bin/python" -m pip install --quiet "$torch"
    say "installing Python packages: $(grep -v '^torch==' requirements.txt | xargs)"
    "$venv/bin/python" -m pip install --quiet -r requirements.txt
  fi
  echo "$wanted" >"$stamp"
}

install_packages
install_requirements
