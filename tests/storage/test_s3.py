"""Pictures from an S3 server and to it: moto's, on this machine."""

import io
import json
import signal
import subprocess
import sys

import pytest
from PIL import Image

from std_cli.cli.commands import run
from std_cli.storage.remote import matching, open_url
from tests.micro import micro
from tests.storage.killed_upload import PART

ACCOUNT = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "sesame",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_MAX_ATTEMPTS": "1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@pytest.fixture(scope="module")
def s3():
    """A client of the server."""
    import boto3
    from moto.server import ThreadedMotoServer

    patch = pytest.MonkeyPatch()
    for name, value in ACCOUNT.items():
        patch.setenv(name, value)
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    client = boto3.client("s3")
    client.create_bucket(Bucket="box")
    yield client
    client.close()
    moto.stop()
    patch.undo()


def connect_again():
    """Let the next connection look at the environment."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(autouse=True)
def new_connections():
    connect_again()


def keys(client, start=""):
    return [
        o["Key"] for o in client.list_objects_v2(Bucket="box", Prefix=start).get("Contents", [])
    ]


def stylize(*arguments):
    fast = ["-m", micro(), "--steps", "1", "--size", "64"]
    return run(["stylize", "image", *arguments, *fast, "--json"])


def test_pictures_in_and_out(s3, photo, capsys):
    for key in ("in/a.png", "ref.png"):
        data = io.BytesIO()
        photo.resize((64, 64)).save(data, "PNG")
        s3.put_object(Bucket="box", Key=key, Body=data.getvalue())
    request = ["s3://box/in/*.png", "-s", "s3://box/ref.png:2", "-o", "s3://box/out/"]
    assert stylize(*request) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert events[-1]["input"] == "s3://box/in/a.png"
    assert events[-1]["output"] == "s3://box/out/a_stylized.png"
    assert keys(s3) == ["in/a.png", "out/a_stylized.png", "ref.png"]
    result = s3.get_object(Bucket="box", Key="out/a_stylized.png")["Body"].read()
    record = json.loads(Image.open(io.BytesIO(result)).info["std"])
    assert record["origin"]["input"] == "s3://box/in/a.png"
    assert record["origin"]["style"] == ["s3://box/ref.png"]

    assert stylize(*request) == 3
    assert "'s3://box/out/a_stylized.png' exists" in capsys.readouterr().out
    assert stylize(*request, "--skip-existing") == 0
    assert s3.get_object(Bucket="box", Key="out/a_stylized.png")["Body"].read() == result


def test_what_others_put_since_the_last_look_is_found(s3):
    folder = open_url("s3://box/units/", "-o")
    s3.put_object(Bucket="box", Key="units/a/segment-00000", Body=b"frames")
    assert matching(folder.child("*/done.json"))[1] == {}
    s3.put_object(Bucket="box", Key="units/a/done.json", Body=b"{}")
    assert matching(folder.child("*/done.json"))[1] == {"a/done.json": 2}


def failed(capsys, *arguments):
    """(exit code, message) of a command whose only line is its error."""
    code = stylize(*arguments)
    said = capsys.readouterr()
    assert "sesame" not in said.out + said.err and not said.err
    [line] = said.out.splitlines()
    return code, json.loads(line)["message"]


def test_what_cannot_be_reached_is_one_line(s3, picture, reference, monkeypatch, capsys):
    files = [str(picture), "-s", str(reference)]
    code, message = failed(capsys, *files, "-o", "s3://none/out/")
    assert code == 2 and "s3://none/out/: no such file, folder or bucket" in message
    code, message = failed(capsys, "s3://none/a.png", *files[1:], "-o", "s3://box/new/")
    assert code == 2 and "s3://none/a.png: no such file, folder or bucket" in message

    with monkeypatch.context() as patch:
        patch.setattr("moto.settings.INITIAL_NO_AUTH_ACTION_COUNT", 0)
        code, message = failed(capsys, *files, "-o", "s3://box/new/")
        assert code == 2 and "s3://box/new/: no access (" in message
        assert "check the credentials" in message
    with monkeypatch.context() as patch:
        patch.setattr("s3fs.S3FileSystem.retries", 1)
        patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        connect_again()
        code, message = failed(capsys, *files, "-o", "s3://box/new/")
        assert code == 5 and "s3://box/new/: the storage cannot be reached" in message
    assert not keys(s3, "new/")


def test_a_killed_upload_leaves_no_object(s3, tmp_path):
    with (tmp_path / "segment-00000").open("wb") as file:
        file.truncate(2 * PART)
    (tmp_path / "done.json").write_text("{}")
    command = [sys.executable, "-m", "tests.storage.killed_upload", str(tmp_path)]
    assert subprocess.run(command).returncode == -signal.SIGKILL
    assert s3.list_multipart_uploads(Bucket="box")["Uploads"], "it was under way"
    assert keys(s3, "unit/") == []
