"""Imported once by the server that tests fork processes from: the libraries, and all that a command
imports.

Torch has one thread (see conftest.py), so a fork loses none.
"""

from diffusers import MotionAdapter, StableDiffusionXLImg2ImgPipeline, UNetMotionModel  # noqa: F401
from transformers import CLIPVisionModelWithProjection  # noqa: F401

import std_cli.cli.commands
import std_cli.diffusion.video_pipeline
import std_cli.distill.train
import std_cli.stylize.stylizer  # noqa: F401
