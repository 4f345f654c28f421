"""Tar shards (the webdataset layout): which bytes of them are which file. They are read in place,
never extracted."""

import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from std_cli.errors import InputError
from std_cli.media.video.clip import Part

_BLOCK = 512


def members(shard: Path, on_link: Callable[[str], None]) -> Iterator[tuple[str, Part]]:
    """The name and place of each regular file in an uncompressed tar, in its order; hidden files
    are left out.

    Only headers are read. Links and devices go to `on_link` instead, by name. Raises InputError for
    a shard that is damaged or cut short, and for a name that leads out of it.
    """
    size, end = _size(shard), 0
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                # a crafted size can send tarfile backwards, to the same header for ever
                if member.offset < end or member.offset_data + max(0, member.size) > size:
                    raise tarfile.ReadError("a member reaches beyond its end")
                end = member.offset_data
                path = PurePosixPath(member.name)
                if path.is_absolute() or ".." in path.parts or "\0" in member.name:
                    raise InputError(
                        f"{str(shard)!r}: the name {member.name!r} leads out of the shard; pack "
                        f"it again"
                    )
                if path.name.startswith(".") or member.isdir():
                    continue
                if not member.isreg() or member.issparse():
                    on_link(member.name)
                else:
                    yield str(path), Part(shard, member.offset_data, member.size)
            end = tar.offset
        with shard.open("rb") as file:  # tarfile takes a damaged header for the end
            file.seek(end)
            if any(file.read(_BLOCK)):
                raise tarfile.ReadError("a header is damaged")
    except (tarfile.TarError, OSError, ValueError, OverflowError) as e:
        reason = getattr(e, "strerror", None) or e
        raise InputError(
            f"{str(shard)!r} cannot be read as a tar ({reason}); get it again, or unpack it if "
            f"it is compressed"
        ) from None


def read_part(part: Part) -> bytes:
    """The bytes of a member. Raises OSError, and EOFError if the file has become shorter."""
    with part.file.open("rb") as file:
        file.seek(part.offset)
        data = file.read(part.size)
    if len(data) != part.size:
        raise EOFError
    return data


def _size(shard: Path) -> int:
    try:
        if not shard.is_file():  # opening a pipe could wait for ever
            raise InputError(f"no such shard: {str(shard)!r}; check the path")
        return shard.stat().st_size
    except OSError as e:
        raise InputError(
            f"{str(shard)!r} cannot be read ({e.strerror}); check its permissions"
        ) from None
