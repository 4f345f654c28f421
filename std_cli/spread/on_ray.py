"""`--devices` and `--cluster`: a request on a Ray of this machine, or in a cluster, where it
continues though the process that asked for it is gone."""

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Unpack

from std_cli.config import image_settings, video_settings
from std_cli.errors import Cancelled, InputError, Kind, StdError, flags_named
from std_cli.events import Event, OnEvent
from std_cli.interruption import deferred
from std_cli.paths import user_path
from std_cli.spread.devices import (
    Devices,
    choose_threads,
    chosen_threads,
    gpus_here,
    parse_devices,
    processors,
    processors_of_each,
    visible,
)
from std_cli.spread.drive import PictureDrive, drive_videos
from std_cli.spread.facts import worker_facts
from std_cli.spread.pictures import Chunk, PictureWork
from std_cli.spread.ray_executor import Pool, RayExecutor, deaths
from std_cli.spread.ray_start import check_installed, cluster, local_ray
from std_cli.spread.run_unit import UnitWork
from std_cli.spread.saved_request import SavedRequest
from std_cli.spread.units import Unit
from std_cli.stylize.options import ImageOptions, VideoOptions
from std_cli.stylize.outputs import Existing, existing_rule
from std_cli.stylize.request import Style

NAMESPACE = "std"
LINGER = 3600.0
"""Seconds that a run in a cluster, which has ended, waits for who asks how it ended."""
MOST_LOST = 120
"""How often in a row, each second, a run in a cluster is asked for that does not answer."""
KEPT = 10_000
"""Events that a run in a cluster keeps for that, progress apart."""


@dataclass(frozen=True)
class Where:
    """On which devices a request runs."""

    devices: str = "all"
    """As `devices.FORMS` has it."""
    cluster: str | None = None
    """The address of a Ray cluster, or "auto"; None: a Ray of this machine."""
    detach: bool = False
    """Whether to return as soon as the cluster has the request."""
    mixed_gpus: bool = False
    """Whether GPUs of several kinds are accepted, whose results differ in their last bits."""


@dataclass(frozen=True)
class Spread:
    """A request and how it is run, as it is sent to a cluster."""

    saved: SavedRequest
    existing: Existing
    resume: bool
    keep_work: bool
    report: str | None
    """The page of --report."""
    verbose: bool
    threads: dict[str, str]
    """What `chosen_threads` says where the request is made."""


def spread_video(
    inputs: str | Path | Sequence[str | Path],
    style: Style | Sequence[Style],
    output: str | Path,
    where: Where,
    *,
    overwrite: bool = False,
    skip_existing: bool = False,
    keep_going: bool = True,
    resume: bool = True,
    keep_work: bool = False,
    on_event: OnEvent,
    verbose: bool = False,
    report: str | Path | None = None,
    **options: Unpack[VideoOptions],
) -> None:
    """Stylize videos on several devices; parameters and errors as of `stylize_video`.

    Raises InputError, in addition, for devices that are not there and where Ray is missing;
    StdError for a cluster that does not answer, and with the videos that failed, while the others
    are finished.
    """
    check_installed()
    video_settings(dict(options))  # raises what is wrong of them before Ray is started
    saved = SavedRequest.of("video", inputs, style, output, keep_going, options)
    rule = existing_rule(overwrite, skip_existing)
    spread = Spread(saved, rule, resume, keep_work, _page(report), verbose, chosen_threads())
    _run(spread, where, on_event)


def spread_images(
    inputs: str | Path | Sequence[str | Path],
    style: Style | Sequence[Style],
    output: str | Path,
    where: Where,
    *,
    overwrite: bool = False,
    skip_existing: bool = False,
    keep_going: bool = True,
    on_event: OnEvent,
    verbose: bool = False,
    report: str | Path | None = None,
    **options: Unpack[ImageOptions],
) -> None:
    """Stylize picture files on several devices; parameters as of `stylize_images`, errors as of
    `spread_video`.

    keep_going: whether pictures that cannot be read do not stop the others; one that fails later
    never does.
    """
    check_installed()
    image_settings(dict(options))
    saved = SavedRequest.of("image", inputs, style, output, keep_going, options)
    rule = existing_rule(overwrite, skip_existing)
    spread = Spread(saved, rule, True, False, _page(report), verbose, chosen_threads())
    _run(spread, where, on_event)


def _page(report: str | Path | None) -> str | None:
    return None if report is None else str(user_path(report, "--report").absolute())


def _run(spread: Spread, where: Where, on_event: OnEvent) -> None:
    wanted = parse_devices(where.devices)
    spread = _on_device(spread, wanted)
    if where.cluster is not None:
        _run_in_cluster(spread, wanted, where, on_event)
        return
    if where.detach:
        raise InputError("--detach needs --cluster: give it, or leave out --detach")
    with local_pool(wanted) as pool:
        cores = processors() if wanted.cpu else None
        _drive(spread, replace(pool, mixed=where.mixed_gpus), on_event, cores=cores)


@contextmanager
def local_pool(wanted: Devices) -> Iterator[Pool]:
    """A Ray of this machine with these devices."""
    if wanted.cpu:
        assert wanted.count is not None
        with local_ray(wanted.count, 0):  # it counts a processor for each worker
            yield Pool(wanted.count, gpu=False)
        return
    gpus = gpus_here(wanted)
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = visible(gpus, before)  # for Ray, which is started now
    try:
        with local_ray(processors(), len(gpus)):
            yield Pool(len(gpus), gpu=True)
    finally:
        del os.environ["CUDA_VISIBLE_DEVICES"]
        if before is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = before


def _on_device(spread: Spread, wanted: Devices) -> Spread:
    """The request with the device that every worker has."""
    device = "cpu" if wanted.cpu else "cuda"
    if (given := spread.saved.options.get("device", "auto")) not in ("auto", device):
        raise InputError(
            f"--device {given}: each worker has the one that --devices {wanted.given} gives it: "
            f"leave out one of them"
        )
    options = spread.saved.options | {"device": device}
    return replace(spread, saved=replace(spread.saved, options=options))


def _drive(
    spread: Spread,
    pool: Pool,
    on_event: OnEvent,
    stop: Callable[[], bool] = lambda: False,
    cores: int | None = None,
) -> None:
    """Make a request by the workers of a pool; cores: as of `drive_videos`."""
    if not pool.gpu:
        given = spread.saved.options.get("dtype", "auto")
        pool = replace(pool, dtype=worker_facts("cpu", given)["dtype"])
    if spread.saved.task == "image":
        pictures = PictureWork(spread.saved, spread.existing, spread.verbose)
        drive = PictureDrive(on_event)
        with RayExecutor[Chunk](pool, pictures, drive.pass_on, stop) as executor:
            how = spread.existing, spread.report, cores
            drive.go(spread.saved, executor, executor.parts, *how)
        return
    # what a worker left, another continues; a run that starts over has removed it before
    work = UnitWork(spread.saved, resume=True, verbose=spread.verbose)
    with RayExecutor[Unit](pool, work, on_event, stop) as on_ray:
        drive_videos(
            spread.saved,
            on_ray,
            on_ray.parts,
            on_event,
            existing=spread.existing,
            resume=spread.resume,
            keep_work=spread.keep_work,
            report=spread.report,
            cores=cores,
        )


# --- in a cluster ------------------------------------------------------------------------------


def _run_in_cluster(spread: Spread, wanted: Devices, where: Where, on_event: OnEvent) -> None:
    """Run a request in a cluster, or show the one that runs there already.

    The run itself is an actor of the cluster: it continues where this process is killed or loses
    its connection, and the same call shows it again. Ctrl-C stops it. Raises what the run raises.
    """
    assert where.cluster is not None
    check_unnumbered(wanted)
    with cluster(where.cluster):
        driver, fresh = _driver(spread, wanted, where.mixed_gpus)
        if not fresh:
            on_event({"event": "notice", "message": "this run is in the cluster already"})
        if where.detach:
            message = "the run is in the cluster; the same command without --detach shows it"
            on_event({"event": "notice", "message": message})
            return
        _follow(driver, on_event)


def check_unnumbered(wanted: Devices) -> None:
    """Raises InputError for certain GPUs of this machine, where those of a cluster are meant."""
    if wanted.gpus:
        raise InputError(
            f"--devices {wanted.given}: GPUs of a cluster have no numbers: give --devices "
            f"{len(wanted.gpus)} for as many of them, whichever"
        )


@contextmanager
def cluster_pool(wanted: Devices, address: str) -> Iterator[Pool]:
    """The workers of a cluster, for a run that this process leads."""
    with cluster(address):
        yield _pool_of_cluster(wanted, mixed=False)


def _driver(spread: Spread, wanted: Devices, mixed: bool) -> tuple[Any, bool]:
    """(the handle of the run's actor, whether it was begun now)."""
    import ray

    said = json.dumps([asdict(spread), asdict(wanted), mixed], sort_keys=True)
    name = f"run-{hashlib.sha256(said.encode()).hexdigest()[:16]}"
    with suppress(ValueError):  # there is none
        return ray.get_actor(name, NAMESPACE), False
    kind: Any = ray.remote(Driver)
    options = {
        "name": name,
        "namespace": NAMESPACE,
        "lifetime": "detached",
        "num_cpus": 0,
        "max_restarts": 3,
        "max_concurrency": 4,
        "get_if_exists": True,  # another process may have begun it meanwhile
    }
    if not wanted.cpu:
        options |= _where_a_gpu_is()
    return kind.options(**options).remote(spread, wanted, mixed), True


def _where_a_gpu_is() -> dict[str, Any]:
    """The run's own actor needs no GPU, but its checks need a machine like those of the workers."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    for node in ray.nodes():
        if node["Alive"] and node["Resources"].get("GPU"):
            return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node["NodeID"], True)}
    return {}


@dataclass(frozen=True)
class End:
    """How a run in a cluster ended."""

    message: str = ""
    """Why it failed; "" if it is done."""
    kind: Kind = "failed"


class Driver:
    """A run in the cluster, as an actor. It is started again where its machine dies, and then
    resumes."""

    def __init__(self, spread: Spread, wanted: Devices, mixed: bool) -> None:
        import ray

        if ray.get_runtime_context().was_current_actor_reconstructed:
            spread = replace(spread, resume=True)
        if not wanted.cpu:
            os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # Ray hides GPUs from who has none
        choose_threads(spread.threads)
        self._spread, self._wanted, self._mixed = spread, wanted, mixed
        self._events: list[tuple[int, Event]] = []
        self._number = 0
        self._news = threading.Condition()
        self._stop = threading.Event()
        self._end: End | None = None
        threading.Thread(target=self._run, daemon=True).start()

    def follow(self, since: int) -> tuple[list[tuple[int, Event]], End | None]:
        """The events after number `since`, of progress the newest, as soon as there are any; and
        how the run ended."""
        with self._news:
            self._news.wait_for(lambda: self._number > since or self._end is not None, timeout=2)
            return [(n, event) for n, event in self._events if n > since], self._end

    def stop(self) -> None:
        """Let the workers save what they have, and end."""
        self._stop.set()

    def _run(self) -> None:
        end = End()
        try:
            with flags_named():
                pool = _pool_of_cluster(self._wanted, self._mixed)
                _drive(self._spread, pool, self._on_event, self._stop.is_set)
        except StdError as e:
            end = End(str(e), e.kind)
        except BaseException as e:
            end = End(f"unexpected {type(e).__name__}: {e}")
        with self._news:
            self._end = end
            self._news.notify_all()
        time.sleep(LINGER)
        os._exit(0)

    def _on_event(self, event: Event) -> None:
        with self._news:
            self._number += 1
            if event["event"] == "progress":
                self._events = [e for e in self._events if e[1]["event"] != "progress"]
            self._events = [*self._events[-KEPT:], (self._number, event)]
            self._news.notify_all()


def _pool_of_cluster(wanted: Devices, mixed: bool) -> Pool:
    """The workers that a cluster may have. Raises InputError if it has no GPU to begin with."""
    import ray

    has: Mapping[str, float] = ray.cluster_resources()
    if wanted.cpu:
        assert wanted.count is not None
        cpus = processors_of_each(wanted.count, int(has.get("CPU", 1)))
        return Pool(wanted.count, gpu=False, cpus=cpus, mixed=mixed)
    if wanted.count is None and not has.get("GPU"):
        raise InputError(
            "--devices all: the cluster has no GPU: give --devices cpu:8 for eight workers on its "
            "processors, or --devices 8 for as many GPUs as it is to start"
        )
    return Pool(wanted.count, gpu=True, mixed=mixed)


def _follow(driver: Any, on_event: OnEvent) -> None:
    """Show a run until it ends. Raises what it raised, KeyboardInterrupt if that was Ctrl-C."""
    import ray

    seen, end, asked, lost = 0, None, False, 0
    with deferred() as interrupted:
        while end is None:
            if interrupted() and not asked:
                asked = True
                driver.stop.remote()
            try:
                events, end = ray.get(driver.follow.remote(seen))
            except deaths():  # its machine died: it is started again, and counts from 1
                seen, lost = 0, lost + 1
                if lost > MOST_LOST:
                    raise StdError(
                        "the run was lost in the cluster: give the same command again to continue"
                    ) from None
                time.sleep(1)
                continue
            lost = 0
            for seen, event in events:  # noqa: B007
                try:
                    on_event(event)
                except Cancelled:
                    driver.stop.remote()
                    raise
    with suppress(Exception):
        ray.kill(driver)
    if interrupted():
        raise KeyboardInterrupt
    if end.message:
        raise _error_of(end)


def _error_of(end: End) -> StdError:
    """The error that a run in a cluster ended with."""
    error = StdError(end.message)
    error.kind = end.kind
    return error
