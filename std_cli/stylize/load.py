"""The pipeline of a request: loaded, with its style."""

from collections.abc import Callable
from typing import TYPE_CHECKING, overload

from std_cli.environment import LOADING, silent_libraries
from std_cli.stylize.pictures import ImageRequest
from std_cli.stylize.request import request_notices
from std_cli.stylize.videos import VideoRequest

if TYPE_CHECKING:
    from std_cli.diffusion.pipeline import ImagePipeline, Pipeline
    from std_cli.diffusion.video_pipeline import VideoPipeline


@overload
def load_pipeline(r: ImageRequest, on_notice: Callable[[str], None]) -> "ImagePipeline": ...
@overload
def load_pipeline(r: VideoRequest, on_notice: Callable[[str], None]) -> "VideoPipeline": ...
def load_pipeline(
    r: ImageRequest | VideoRequest, on_notice: Callable[[str], None]
) -> "ImagePipeline | VideoPipeline":
    """Load what a request asks for onto its device, with its style.

    Raises InputError for weights that do not fit each other, StdError if they cannot be loaded.
    """
    assert r.files is not None
    settings = r.s
    with LOADING:
        from std_cli.diffusion.devices import choose_device, choose_dtype
        from std_cli.diffusion.pipeline import ImagePipeline
        from std_cli.diffusion.video_pipeline import VideoPipeline

        silent_libraries.renew()
        device = choose_device(settings.device)
        dtype = choose_dtype(settings.dtype, device)
        kind = VideoPipeline if isinstance(r, VideoRequest) else ImagePipeline
        pipeline = kind(
            r.files,
            r.lora,
            device,
            dtype,
            settings.offload,
            settings.compile,
            r.motion if isinstance(r, VideoRequest) else None,
            settings.method,
            settings.allow_partial,
        )
    for message in [*request_notices(settings, r.lora), *pipeline.notices]:
        on_notice(message)
    pipeline.on_notice = on_notice
    set_style(pipeline, r)
    return pipeline


def set_style(pipeline: "Pipeline", r: ImageRequest | VideoRequest) -> None:
    """Encode a request's references for a pipeline."""
    shares = [weight for _, weight in r.styles]
    pipeline.set_style(r.references, shares, r.s.style_scale, r.s.style_blocks)
