"""The examples reach what the README promises."""

import pytest

from examples import diagnosis, digits


def test_digits_goes_on_where_it_was(tmp_path, capsys):
    arguments = ["--epochs", "2", "--out", str(tmp_path)]
    accuracy = digits.main(arguments)
    capsys.readouterr()
    assert digits.main(arguments) == accuracy
    assert "epoch 2 of 2 is done" in capsys.readouterr().out


@pytest.mark.parametrize("net", ["mlp", "conv"])
def test_digits_reach_97_percent(net, tmp_path, capsys):
    accuracy = digits.main(["--net", net, "--out", str(tmp_path)])
    assert accuracy >= 0.97
    printed = capsys.readouterr()
    assert f"test accuracy {accuracy:.2%}" in printed.out
    assert "epoch 30/30  loss" in printed.out
    picture = (tmp_path / f"digits-{net}.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 10_000


def test_diagnosis_finds_what_is_planted_and_heals_it(tmp_path, capsys):
    before, after = diagnosis.main(["--steps", "400", "--out", str(tmp_path)])
    assert before.verdicts[0].name == "vanishing_gradient"
    assert after.healthy, str(after)
    assert "trying the first remedy: Use activations that do not saturate" in capsys.readouterr().out
    made = {path.name for path in tmp_path.iterdir()}
    assert made == {
        "sigmoid-before.png", "sigmoid-after.png", "sigmoid-before.html", "sigmoid-after.html", "sigmoid-gradients.png",
    }  # fmt: skip
