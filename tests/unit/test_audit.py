"""``make audit`` reports vulnerabilities, and says so where it could not look for any."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).parents[1] / "audit.py"
FINE = {"name": "click", "version": "8.2.0", "vulns": []}
BAD = {"name": "pillow", "version": "1.0", "vulns": [{"id": "CVE-2020-1", "fix_versions": ["1.1", "2.0"]}]}
SKIPPED = {"name": "torch", "skip_reason": "Dependency not found"}


@pytest.fixture
def audit(tmp_path, capsys):
    """Run the script with a pip-audit that answers for each list with a report, or with an error as text."""
    spec = importlib.util.spec_from_file_location("audit_script", PATH)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)

    def run(**answers):
        answers = {
            name: answer if isinstance(answer, str) else json.dumps({"dependencies": answer, "fixes": []})
            for name, answer in answers.items()
        }
        fake = tmp_path / "pip-audit"
        fake.write_text(
            f"#!{sys.executable}\nimport sys\n"
            f"answer = {answers!r}[sys.argv[sys.argv.index('--vulnerability-service') + 1]]\n"
            "print(answer, file=sys.stdout if answer.startswith('{') else sys.stderr)\n"
            "sys.exit('CVE' in answer or not answer.startswith('{'))\n"
        )
        fake.chmod(0o755)
        code = script.main(str(fake), "constraints.txt")
        return code, capsys.readouterr().out

    return run


def test_a_vulnerability_ends_with_exit_code_1(audit):
    code, out = audit(pypi=[FINE, BAD, SKIPPED])
    assert code == 1
    assert out.splitlines() == [
        "1 packages are not in the list: torch",
        "pillow 1.0: CVE-2020-1, fixed by 1.1, 2.0",
        "2 packages audited, 1 known vulnerabilities",
    ]


def test_the_second_list_is_asked_if_the_first_knows_nothing(audit):
    code, out = audit(pypi=[SKIPPED], osv=[FINE])
    assert (code, out) == (0, "1 packages audited, 0 known vulnerabilities\n")


def test_without_a_list_the_output_says_so(audit):
    code, out = audit(pypi=[SKIPPED], osv="ERROR:x\nConnection refused")
    assert code == 0
    assert out == (
        "NOT AUDITED: no list of vulnerabilities could be reached "
        "(pypi: it knows none of the packages; osv: Connection refused)\n"
    )
