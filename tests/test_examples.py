"""The examples reach what the README promises."""

import pytest

from examples import diagnosis, digits


@pytest.mark.parametrize(("net", "epochs"), [("mlp", 30), ("conv", 12)])
def test_digits_reach_97_percent(net, epochs, tmp_path, capsys):
    arguments = ["--net", net, "--epochs", str(epochs), "--out", str(tmp_path)]
    accuracy = digits.main(arguments)
    assert accuracy >= 0.97
    printed = capsys.readouterr()
    assert f"test accuracy {accuracy:.2%}" in printed.out
    assert f"epoch {epochs}/{epochs}  loss" in printed.out
    picture = (tmp_path / f"digits-{net}.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 10_000
    if net == "mlp":  # the same command goes on where it was
        assert digits.main(arguments) == accuracy
        assert "epoch 30 of 30 is done" in capsys.readouterr().out


def test_diagnosis_finds_what_is_planted_and_heals_it(tmp_path, capsys):
    before, after = diagnosis.main(["--steps", "160", "--out", str(tmp_path)])
    assert before.verdicts[0].name == "vanishing_gradient"
    assert after.healthy, str(after)
    assert "trying the first remedy: Use activations that do not saturate" in capsys.readouterr().out
    made = {path.name for path in tmp_path.iterdir()}
    assert made == {
        "sigmoid-before.png", "sigmoid-after.png", "sigmoid-before.html", "sigmoid-after.html", "sigmoid-gradients.png",
    }  # fmt: skip
