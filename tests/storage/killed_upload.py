"""A process that puts a unit to an S3 server, its record last, and that is killed when all parts of
the first file have arrived: python -m tests.storage.killed_upload FOLDER"""

import os
import signal
import sys
from pathlib import Path

from std_cli.storage.remote import open_url
from std_cli.storage.transfer import put_file

PART = 5 * 2**20
"""Bytes of a part of an upload: the fewest that S3 takes."""


def main(folder):
    import s3fs

    call = s3fs.S3FileSystem._call_s3

    async def killed(self, method, *arguments, **options):
        if method == "complete_multipart_upload":
            os.kill(os.getpid(), signal.SIGKILL)
        return await call(self, method, *arguments, **options)

    s3fs.S3FileSystem._call_s3 = killed
    s3fs.core.calculate_chunksize = lambda size, **_: PART
    for name in ("segment-00000", "done.json"):
        put_file(Path(folder, name), open_url(f"s3://box/unit/{name}", "-o"), overwrite=True)


if __name__ == "__main__":
    main(sys.argv[1])
