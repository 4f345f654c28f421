"""Which texts are URLs, what of them is shown, and what is found behind them."""

import pytest

from std_cli.errors import InputError, StdError, redacted
from std_cli.paths import is_url, user_path
from std_cli.storage.remote import children, kind_of, matching, open_url
from tests.storage.counted import counted


@pytest.mark.parametrize(
    "text",
    ["a:b.png", "12:30.mp4", "C:\\photos\\a.png", "C://photos/a.png", "s3:/b/a.png", "note://a.png",
     "a s3://b", "", "://", "S3://b/a.png"],
)  # fmt: skip
def test_a_colon_makes_no_url(text):
    assert not is_url(text)


@pytest.mark.parametrize("text", ["s3://b/a.png", "gs://b/*.mp4", "memory://a", "https://h/a.png"])
def test_a_known_scheme_makes_a_url(text):
    assert is_url(text)
    with pytest.raises(InputError, match="--model .*: a URL cannot be used here"):
        user_path(text, "--model")


def test_a_local_file_is_no_url(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s3:" / "b").mkdir(parents=True)
    (tmp_path / "s3:" / "b" / "a.png").write_bytes(b"")
    assert not is_url("s3://b/a.png") and user_path("s3://b/a.png", "input").exists()


SECRETS = {
    "https://anna:pw@h.org/a.png?token=abc&x=1": "https://***@h.org/a.png?***",
    "https://h.org/a.png#access=abc": "https://h.org/a.png?***",
    "https://h.org/a.png?abc": "https://h.org/a.png?***",
    "sftp://anna:pw@h.org/a.png": "sftp://***@h.org/a.png",
    "abfs://box@store/a.png?sig=abc": "abfs://***@store/a.png?***",
    "s3://in/frame?.png": "s3://in/frame?.png",
    "no URL at all: a@b?c=d": "no URL at all: a@b?c=d",
}


@pytest.mark.parametrize("url", SECRETS)
def test_what_may_be_secret_in_a_url_is_not_shown(url):
    text = f"cannot read '{url}', or {url} for that matter"
    assert redacted(text) == text.replace(url, SECRETS[url])
    assert str(StdError(text)) == redacted(text)


def test_folders_and_patterns_are_listed_once():
    fs = counted({f"/box/in/{i}.png": b"x" * i for i in range(1, 4)} | {"/box/in/sub/b.png": b""})
    found = children(open_url("counted://box/in/", "input"))
    assert found == {"1.png": 1, "2.png": 2, "3.png": 3, "sub": None}
    assert fs.calls["ls"] == 1 and not fs.calls["info"]

    root, found = matching(open_url("counted://box/in/[12].png", "input"))
    assert (root.url, found) == ("counted://box/in", {"1.png": 1, "2.png": 2})
    _, found = matching(open_url("counted://box/**/*.png", "input"))
    assert sorted(found) == ["in/1.png", "in/2.png", "in/3.png", "in/sub/b.png"]
    assert kind_of(open_url("counted://box/in/2.png", "input")) == ("file", 2)
    assert kind_of(open_url("counted://box/in", "input")) == ("directory", None)
    assert kind_of(open_url("counted://box/no", "input")) == (None, None)


def test_a_name_that_leads_out_of_the_folder_is_refused():
    counted({"/box/in/a.png": b""})
    fs = counted({})
    fs.ls = lambda path, **_: [{"name": "/box/in/../../a.png", "type": "file", "size": 1}]
    folder = open_url("counted://box/in", "input")
    with pytest.raises(InputError, match=r"holds '\.\./\.\./a.png', which cannot be a file's name"):
        children(type(folder)(fs, folder.path, folder.url))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("zip://a.png::s3://b/a.zip", "a chain of URLs cannot be used"),
        ("s3://", "names no bucket or server"),
        ("dropbox://box/a.png", "URLs of dropbox:// need a library: install its library"),
    ],
)
def test_urls_that_cannot_be_used(url, message):
    with pytest.raises(InputError, match=message):
        open_url(url, "input")


def test_a_missing_library_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gcsfs", None)
    with pytest.raises(InputError, match=r"-o 'gs://b/a': .*: pip install 'std-cli\[gcs\]'"):
        open_url("gs://b/a", "-o")
