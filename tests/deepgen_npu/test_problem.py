"""What is wrong, and its fix, as one message."""

from __future__ import annotations

from deepgen_npu.problem import Problem


def test_a_message_has_its_command_on_a_line_of_its_own():
    command = Problem("A is wrong", "do this  # now?")
    assert command.message() == "A is wrong. To fix it:\n    do this  # now?\n"
    assert command.message("Or not.") == "A is wrong. To fix it:\n    do this  # now?\nOr not."
    sentence = Problem("A is wrong", "Do this")
    assert sentence.message() == "A is wrong. Do this."
    assert sentence.message("Or not.") == "A is wrong. Do this. Or not."
