"""``make audit``: known vulnerabilities of the versions in constraints.txt, by pip-audit.

    python tests/audit.py PIP_AUDIT REQUIREMENTS

Exit code 1 if a version has a known vulnerability. Where no list of vulnerabilities can be reached, nothing is audited:
the output says so, and the exit code is 0.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

SERVICES = ("pypi", "osv")
"""Names of pip-audit's lists, in the order in which they are tried."""

TIMEOUT_SECONDS = 300
NAMES_SHOWN = 10


def main(pip_audit: str, requirements: str) -> int:
    """Audit by the first list that knows any of the packages."""
    reasons = []
    for service in SERVICES:
        packages, reason = _ask(pip_audit, requirements, service)
        audited = [package for package in packages if "skip_reason" not in package]
        if audited:
            return _report(audited, [package["name"] for package in packages if "skip_reason" in package])
        reasons.append(f"{service}: {reason or 'it knows none of the packages'}")
    print(f"NOT AUDITED: no list of vulnerabilities could be reached ({'; '.join(reasons)})")
    return 0


def _ask(pip_audit: str, requirements: str, service: str) -> tuple[list[dict[str, Any]], str]:
    """The packages of pip-audit's report, or none and the reason."""
    options = ["--no-deps", "--disable-pip", "--progress-spinner", "off", "--format", "json", "--timeout", "15"]
    command = [pip_audit, "--requirement", requirements, "--vulnerability-service", service, *options]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return [], f"no answer in {TIMEOUT_SECONDS} s"
    try:
        return json.loads(ended.stdout)["dependencies"], ""
    except (ValueError, KeyError, TypeError):
        lines = ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"]
        return [], lines[-1][:200]


def _report(audited: Sequence[dict[str, Any]], skipped: Sequence[str]) -> int:
    if skipped:
        more = " …" if len(skipped) > NAMES_SHOWN else ""
        print(f"{len(skipped)} packages are not in the list: {', '.join(skipped[:NAMES_SHOWN])}{more}")
    num_found = 0
    for package in audited:
        for each in package["vulns"]:
            num_found += 1
            fixed = ", ".join(each["fix_versions"]) or "no version yet"
            print(f"{package['name']} {package['version']}: {each['id']}, fixed by {fixed}")
    print(f"{len(audited)} packages audited, {num_found} known vulnerabilities")
    return 1 if num_found else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
