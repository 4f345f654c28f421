"""Imported once by the server that tests fork processes from: the libraries, and all that a command
imports, at once or later.

Torch has one thread (see conftest.py), so a fork loses none.
"""

import gc

import cv2  # noqa: F401
import diffusers.guiders  # noqa: F401
import pillow_heif  # noqa: F401
from diffusers import MotionAdapter, StableDiffusionXLImg2ImgPipeline, UNetMotionModel  # noqa: F401
from transformers import CLIPVisionModelWithProjection  # noqa: F401

import std_cli.cli.commands
import std_cli.diffusion.video_pipeline
import std_cli.distill.train
import std_cli.stylize.stylizer  # noqa: F401

# What the imports made stays: the garbage collections of a run need not go through it.
gc.collect()
gc.freeze()
