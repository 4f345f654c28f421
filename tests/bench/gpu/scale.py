"""How large the rows are: SDXL's real shapes, or a narrow copy in SDXL's topology."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Clip:
    """The videos of one slice."""

    name: str
    size: tuple[int, int]
    """(width, height) in pixels."""
    steps: int
    cfg: float


@dataclass(frozen=True)
class Scale:
    narrow: bool
    guided_steps: int
    """Steps of pictures with guidance."""
    few_steps: int
    """Steps of pictures without."""
    side: int
    """Of pictures, pixels."""
    vae_sides: tuple[int, ...]
    tiled_side: int
    """Of a picture whose VAE can work in tiles: more than 256 pixels."""
    pictures: int
    """Timed in each row, after the first one."""
    clips: tuple[Clip, ...]
    frames: int
    """Of a clip that is timed."""
    batches: tuple[int, ...]
    kills: tuple[str, ...]
    """The signals that interrupt a video."""
    killed_frames: int
    """Of the video that is interrupted; SIGKILL leaves something only after 48 frames."""
    matrix: int
    """Side of the matrices whose products give the rate of the device."""
    training_side: int
    training_batches: tuple[int, ...]
    updates: int
    """Timed updates of training, after `updates_before`."""
    updates_before: int
    seconds: float
    """For which a short measurement is repeated."""

    @property
    def name(self) -> str:
        return "narrow" if self.narrow else "sdxl"


REAL = Scale(
    narrow=False,
    guided_steps=8,
    few_steps=4,
    side=1024,
    vae_sides=(512, 1024),
    tiled_side=1024,
    pictures=6,
    clips=(
        Clip("small", (512, 512), 4, 1.0),
        Clip("medium", (1024, 576), 4, 1.0),
        Clip("large", (1368, 768), 8, 6.0),
    ),
    frames=48,
    batches=(1, 2, 4, 8),
    kills=("SIGTERM", "SIGKILL"),
    killed_frames=96,
    matrix=8192,
    training_side=512,
    training_batches=(1, 4),
    updates=12,
    updates_before=3,
    seconds=1.0,
)
NARROW = Scale(
    narrow=True,
    guided_steps=3,
    few_steps=2,
    side=64,
    vae_sides=(64, 128),
    tiled_side=264,
    pictures=2,
    clips=(
        Clip("small", (64, 64), 2, 1.0),
        Clip("medium", (128, 72), 2, 1.0),
        Clip("large", (144, 80), 3, 6.0),
    ),
    frames=12,
    batches=(1, 2, 4, 8),
    kills=("SIGTERM", "SIGKILL"),
    killed_frames=52,
    matrix=512,
    training_side=64,
    training_batches=(1, 4),
    updates=2,
    updates_before=1,
    seconds=0.1,
)
