"""How commands end: an error of the user is one sentence and an exit code, any other error stays loud."""

import pytest
import typer

from voxelfm_hf.command import one_sentence_errors, typer_main
from voxelfm_hf.volumes.errors import ScanError


@one_sentence_errors
def command(error: BaseException | None = None) -> None:
    if error is not None:
        raise error


def test_a_command_that_ends_well_says_nothing(capsys):
    assert command() == 0
    assert capsys.readouterr().err == ""


def test_an_error_of_the_user_is_one_whole_sentence_and_exit_code_2(capsys):
    sentence = "[red]scan[/] (1).nii: " + "a long reason, " * 20 + "check it."
    assert command(ScanError(sentence)) == 2
    assert capsys.readouterr().err == f"voxelfm: {sentence}\n"


def test_a_programming_error_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        command(ZeroDivisionError())


@pytest.mark.parametrize("how", ["module", "typer"])
def test_ctrl_c_is_one_sentence_and_exit_code_130(how, monkeypatch, capsys):
    app = typer.Typer()
    app.command()(lambda: command.__wrapped__(KeyboardInterrupt()))
    monkeypatch.setattr("sys.argv", ["voxelfm"])
    assert (command(KeyboardInterrupt()) if how == "module" else typer_main(app, "voxelfm")()) == 130
    assert capsys.readouterr().err.strip() == "voxelfm: stopped; run the command again to finish it"
