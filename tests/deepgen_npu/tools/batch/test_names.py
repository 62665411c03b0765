"""Names of files by ids."""

from __future__ import annotations

import pytest

from deepgen_npu.tools.batch.names import TakenNames, check_id, image_files


@pytest.mark.parametrize(
    "value", ["a", "a b", "caf\u00e9", "\u732b", "a.b", "a-1_2", "x" * 200, "\u732b" * 66, "console", 7]
)
def test_ids_that_can_be_file_names(value):
    assert check_id(value) == str(value)


@pytest.mark.parametrize(
    "value",
    [
        *("", " ", "a/b", "a\\b", "..", ".a", "a.", "a ", " a", "a:b", 'a"', "a|b", "a*", "a?", "<a>", "a\0", "a\n"),
        *("x" * 201, "\u732b" * 67, "CON", "nul.x", "Com1", "lpt9.tar", "\ud800", "a\u200b", True, 1.0, None, ["a"]),
    ],
)
def test_ids_that_cannot(value):
    with pytest.raises(ValueError, match=r"^id must be a file name of at most 200 bytes, without separators"):
        check_id(value)


def test_where_the_images_are():
    assert [str(path) for path in image_files("a", 1)] == ["images/ca/a.png"]
    assert [str(path) for path in image_files("a", 3)] == [f"images/ca/a_{number}.png" for number in range(3)]
    folders = {path.parent for number in range(3000) for path in image_files(f"{number:08d}", 1)}
    assert len(folders) == 256


@pytest.mark.parametrize(
    ("first", "second", "clash"),
    [
        (("a", 1), ("b", 1), False),
        (("a", 1), ("a", 1), True),
        (("a", 1), ("A", 1), True),
        (("stra\u00dfe", 1), ("STRASSE", 1), True),
        (("a", 1), ("a", 2), True),
        (("a", 2), ("a", 1), True),
        (("a", 2), ("a_1", 1), True),
        (("A_1", 1), ("a", 2), True),
        (("a", 2), ("a_2", 1), False),
        (("a", 2), ("a_01", 1), False),
        (("a", 2), ("a_1", 2), False),
        (("a_1", 2), ("a", 2), False),
        (("a", 1), ("a_0", 1), False),
    ],
)
def test_two_rows_have_no_file_in_common(first, second, clash):
    """Also no id: the manifest knows a row by it, however many images it has."""
    names = TakenNames()
    assert names.take(*first, 5) is None
    assert names.take(*second, 6) == (5 if clash else None)
    if clash:
        assert names.take(*second, 7) == 5, "the second has taken nothing"
    else:
        assert not {*image_files(*first)} & {*image_files(*second)}
