"""One UNet as teacher, student and target, and the spatial head."""

import torch

from std_cli.diffusion.pipeline import Pipeline
from std_cli.distill.conditioner import Conditioner
from std_cli.distill.roles import TARGET, Roles
from std_cli.distill.spatial_head import SpatialHead
from std_cli.weights.motion import resolve_motion
from std_cli.weights.resolve import resolve_model
from tests.distill.runs import TARGETS
from tests.micro import micro


def test_only_the_adapter_moves(pictures):
    files = resolve_model(micro())
    pipeline = Pipeline(files, None, torch.device("cpu"), torch.float32)
    conditioner = Conditioner(pipeline, unconditional_pooled="empty", style=False)
    unet = pipeline.pipe.unet
    base = {n: p.clone() for n, p in unet.named_parameters()}
    torch.manual_seed(0)
    x, t = torch.randn(2, 4, 16, 16), torch.tensor([779, 339])
    [c] = conditioner.encode_text(["a"])
    c = {k: v[None].expand(2, *v.shape) for k, v in c.items()}
    c["time_ids"] = conditioner.time_ids((64, 64), (0, 0), (64, 64)).expand(2, 6)
    added = {"text_embeds": c["pooled"], "time_ids": c["time_ids"]}
    with torch.no_grad():
        plain = unet(x, t, c["states"], added_cond_kwargs=added).sample
    roles = Roles(unet, rank=4, alpha=4, dropout=0, targets=TARGETS, motion=True, ema=0.5)
    assert torch.equal(roles.teacher(x, t, c), plain)
    with torch.no_grad():
        for p in roles.parameters.values():
            p.normal_(0, 0.05)
    roles.average()
    student, target = roles.student(x, t, c), roles.target(x, t, c)
    assert torch.equal(roles.teacher(x, t, c), plain), (
        "the teacher is the base, whatever the adapter"
    )
    assert (student - plain).abs().max() > 1e-3 and (target - student).abs().max() > 1e-4
    student.square().mean().backward()
    assert all(p.grad is not None for p in roles.parameters.values())
    assert all((p.grad is None) == (".student." not in n) for n, p in unet.named_parameters())
    torch.optim.AdamW(list(roles.parameters.values()), 1e-2).step()
    for name, p in unet.named_parameters():
        plain_name = name.replace(".base_layer", "")
        assert plain_name not in base or torch.equal(p, base[plain_name]), name
    key = next(iter(roles.state_dict(TARGET)))
    assert roles.state_dict().keys() == roles.state_dict(TARGET).keys() and "lora_" in key


def test_the_head_is_the_identity_at_first():
    z = torch.randn(2, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for heavy in (False, True):
        head = SpatialHead(heavy)
        assert torch.equal(head(z), z) and torch.equal(head(z[:, :, 0]), z[:, :, 0])
        head.layers[-1].weight.data.normal_(generator=torch.Generator().manual_seed(1))
        apart = torch.stack([head(z[:, :, i]) for i in range(3)], 2)
        assert torch.allclose(head(z), apart, atol=1e-5), "each frame by itself"
    assert sum(isinstance(m, torch.nn.Conv2d) for m in SpatialHead(False).modules()) == 2
    assert sum(isinstance(m, torch.nn.Conv2d) for m in SpatialHead(True).modules()) == 5


def test_checkpointed_activations_change_nothing():
    files = resolve_model(micro())
    gradients = []
    for saving in (False, True):
        motion = resolve_motion("auto", files)
        pipeline = Pipeline(files, None, torch.device("cpu"), torch.float32, motion=motion)
        conditioner = Conditioner(pipeline, unconditional_pooled="empty", style=False)
        torch.manual_seed(0)
        roles = Roles(
            pipeline.pipe.unet,
            rank=2,
            alpha=2,
            dropout=0,
            targets=["to_q", "proj_out"],
            motion=True,
            ema=0,
        )
        if saving:
            roles.checkpoint_activations()
        g = torch.Generator().manual_seed(1)
        x = torch.randn(1, 4, 2, 8, 8, generator=g)
        c = {k: v[None] for k, v in conditioner.encode_text(["a"])[0].items()}
        c["time_ids"] = conditioner.time_ids((32, 32), (0, 0), (32, 32))[None]
        roles.student(x, torch.tensor([500]), c).square().mean().backward()
        gradients.append({n: p.grad for n, p in roles.parameters.items()})
    assert all(torch.allclose(gradients[0][n], gradients[1][n], atol=1e-6) for n in gradients[0])


def test_dropout_is_the_students_alone():
    pipeline = Pipeline(resolve_model(micro()), None, torch.device("cpu"), torch.float32)
    conditioner = Conditioner(pipeline, unconditional_pooled="empty", style=False)
    roles = Roles(
        pipeline.pipe.unet, rank=2, alpha=2, dropout=0.5, targets=["to_q"], motion=True, ema=0
    )
    for p in roles.parameters.values():
        p.data.normal_(generator=torch.Generator().manual_seed(0))
    c = {k: v[None] for k, v in conditioner.encode_text(["a"])[0].items()}
    c["time_ids"] = conditioner.time_ids((32, 32), (0, 0), (32, 32))[None]
    x, t = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([500])
    assert not torch.equal(roles.student(x, t, c), roles.student(x, t, c))
    with torch.no_grad():
        assert torch.equal(roles.student(x, t, c), roles.student(x, t, c))
