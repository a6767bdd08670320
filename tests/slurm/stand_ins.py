"""Programs that take the place of Apptainer and uv where the real ones would be slow: each writes down its words."""

from __future__ import annotations

from pathlib import Path

APPTAINER = """
echo "$@" >>"$0.calls"
case "$1" in
--version) echo "apptainer version 1.4.5" ;;
exec) echo "a notice"; echo '[3, 12, "glibc", 2, 36, "x86_64"]' ;;
build)
    for word in "$@"; do previous=${last:-}; last=$word; done
    case " $* " in
    *" --sandbox "*) mkdir -p "$previous/.singularity.d" ;;
    *) echo "built by $*" >"$previous" ;;
    esac
    ;;
test) [ ! -e "$0.fails" ] || { echo "INFO:    testing" >&2; echo "AssertionError: no loss" >&2; exit 1; } ;;
esac
"""
UV = """
echo "$@" >>"$0.calls"
while [ "$1" != --prefix ]; do shift; done
site=$2/lib/pythonHOST/site-packages
mkdir -p "$2/bin" "$site/foo-1.dist-info" "$site/swarm_hpc/examples"
printf '#!/somewhere/python3\\nprint(1)\\n' >"$2/bin/foo"
printf '#!/bin/sh\\necho\\n' >"$2/bin/other"
printf 'Metadata-Version: 2.1\\nName: foo\\nVersion: 1\\n' >"$site/foo-1.dist-info/METADATA"
echo '{}' >"$site/foo-1.dist-info/direct_url.json"
: >"$2/.lock"
"""


def put(file: Path, text: str) -> Path:
    """An executable shell script."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"#!/bin/sh\n{text}")
    file.chmod(0o755)
    return file


def calls(program: Path) -> list[str]:
    """The words of each call so far."""
    file = Path(f"{program}.calls")
    return file.read_text().splitlines() if file.exists() else []
