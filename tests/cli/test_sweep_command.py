"""``sweep``: JSON and summary, exit codes, refusals before anything is written."""

import pytest
import yaml
from command_line import assert_refused, only_json

from kdgan_compress.api import sweep as sweep_module

TRAINING = {"batch_size": 8, "epochs": 1}


@pytest.fixture
def grid(npz, tmp_path):
    content = {
        "description": "A tiny grid.",
        "data": {"source": f"npz:{npz}", "normal": "0"},
        "model": {"width": 2, "latent_size": 8},
        "training": TRAINING,
        "score": {"type": "norm"},
        "sweep": {"axes": {"seed": "0..3"}, "quick": {"axes": {"seed": [0]}}},
    }
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_sweep_prints_json_or_a_summary_and_keeps_what_is_finished(cli, grid, tmp_path):
    out = tmp_path / "s"
    code, stdout, stderr = cli("sweep", grid, "--axis", "normal=0,5", "--workers", 1, "--out", out, "--json")
    assert code == 1
    result = only_json(stdout)
    assert [(cell["axes"], cell["result"] is not None) for cell in result["cells"]] == [
        ({"seed": 0, "normal": 0}, True),
        ({"seed": 0, "normal": 5}, False),
    ]
    failed = str(out / "runs" / "seed-0_normal-5")
    assert list(result["failed"]) == [failed]
    assert result["variant"] == "quick"
    assert f"{failed}: " in stderr
    assert "logs/runs-seed-0_normal-5.txt" in stderr
    assert "(1 of 2 done, 0 running, 1 failed" in stderr

    code, stdout, _ = cli("sweep", grid, "--axis", "normal=0", "--workers", 1, "--out", out)
    assert code == 0
    assert "quick variant" in stdout
    assert "1 of 1 cells, 1 of them from an earlier command" in stdout


def test_an_interruption_says_how_to_continue(cli, grid, tmp_path, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep_module, "sweep", interrupted)
    code, stdout, stderr = cli("sweep", grid, "--out", tmp_path / "s")
    assert (code, stdout) == (130, "")
    assert "the same command continues" in stderr


def test_what_names_no_setting_is_refused(cli, grid, tmp_path):
    out = tmp_path / "s"
    assert_refused(cli("sweep", grid, "--axis", "widht=1,2", "--out", out), "widht", "width")
    assert_refused(cli("sweep", grid, "--axis", "width=3..1", "--out", out), "3..1")
    assert_refused(cli("sweep", "tabel4", "--out", out), "tabel4", "table4")
    assert_refused(cli("sweep", grid, "--set", "model.widht=1", "--out", out), "width")
    assert_refused(cli("sweep", grid, "--workers", 0, "--out", out), "at least 1 worker")
    assert not out.exists()
    for bad in (["--axis", "width"], ["--axis", "seed=1", "--axis", "seed=2"]):
        code, stdout, _ = cli("sweep", grid, *bad, "--out", out)
        assert (code, stdout) == (2, "")
