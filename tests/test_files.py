"""Files and folders appear whole or not at all."""

import os
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest

from gma_hf.files import whole_file, whole_folder


def test_a_file_appears_when_it_is_whole(tmp_path):
    place = tmp_path / "table.json"
    with whole_file(place) as path:
        path.write_text("one")
        assert path.parent == tmp_path and path.suffix == ".json"
        assert not place.exists()
    assert place.read_text() == "one"
    place.chmod(0o600)
    with whole_file(str(place)) as path:
        path.write_text("two")
        assert place.read_text() == "one"
    assert place.read_text() == "two" and stat.S_IMODE(place.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [place]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_error_leaves_the_file_as_it_was(tmp_path, error):
    place = tmp_path / "table.json"
    place.write_text("before")
    with pytest.raises(error), whole_file(place) as path:
        path.write_text("half")
        raise error
    assert place.read_text() == "before" and list(tmp_path.iterdir()) == [place]
    with pytest.raises(FileNotFoundError), whole_file(tmp_path / "none.json"):
        pass  # a block that writes nothing
    assert list(tmp_path.iterdir()) == [place]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "target").write_text("before")
    (tmp_path / "link").symlink_to("target")
    with whole_file(tmp_path / "link") as path:
        path.write_text("after")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_text() == "after"


def test_what_is_no_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(ValueError, match="take the place of a file, but .* is something else"), whole_file(place):
            pass
    said = "There must be a folder to write 'x' to, but .* is none"
    with pytest.raises(FileNotFoundError, match=said), whole_file(tmp_path / "none" / "x"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_threads_write_the_same_file(tmp_path):
    texts = [str(number) * 100_000 for number in range(8)]

    def write(text):
        with whole_file(tmp_path / "text") as path:
            path.write_text(text)
        return (tmp_path / "text").read_text()

    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(write, texts * 5)) <= set(texts)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_appears_when_it_is_whole(tmp_path):
    place = tmp_path / "model"
    with whole_folder(place) as folder:
        (folder / "part").mkdir()
        (folder / "part" / "weights").write_text("one")
        assert not place.exists()
    assert (place / "part" / "weights").read_text() == "one"
    (tmp_path / "plain").mkdir()
    assert place.stat().st_mode == (tmp_path / "plain").stat().st_mode

    with pytest.raises(FileExistsError, match="There must be nothing yet"), whole_folder(place):
        pass
    with whole_folder(place, replace=True) as folder:
        (folder / "weights").write_text("two")
        assert (place / "part" / "weights").read_text() == "one"
    assert [path.name for path in place.iterdir()] == ["weights"]
    with pytest.raises(OSError, match="no space"), whole_folder(place, replace=True) as folder:
        (folder / "weights").write_text("three")
        raise OSError("no space")
    assert (place / "weights").read_text() == "two"
    with pytest.raises(ValueError, match="take the place of a folder"), whole_folder(place / "weights", replace=True):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "plain"]


def test_a_folder_that_cannot_be_moved_leaves_the_old_one(tmp_path):
    place = tmp_path / "model"
    place.mkdir()
    (place / "weights").write_text("before")
    with pytest.raises(FileNotFoundError), whole_folder(place, replace=True) as folder:
        folder.rename(tmp_path / "gone")
    assert (place / "weights").read_text() == "before"
