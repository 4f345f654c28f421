"""The mathematics of distillation against diffusers' schedulers, numbers worked out by hand, and a
known truth."""

from collections import Counter
from functools import partial

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, TCDScheduler

from std_cli.distill.bank import Bank, BankEntry, Forecast, stack
from std_cli.distill.solver import Solver, draw_target, phase_edges
from std_cli.distill.step import consistency_loss, jump, noisy_pair, teacher_step
from std_cli.schedule import timesteps
from tests.bench.mixture import ABAR, STD, Mixture, Truth, guided, train

SDXL = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
PREDICTIONS = ["epsilon", "v_prediction", "sample"]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed))


def full(count, value):
    return torch.full((count,), value)


@pytest.fixture
def solver():
    return Solver(ABAR, 50, "epsilon")


def ddim(prediction):
    """DDIM on the same grid: trailing spacing, and timestep 0 after the last point."""
    scheduler = DDIMScheduler(
        **SDXL,
        timestep_spacing="trailing",
        set_alpha_to_one=False,
        clip_sample=False,
        prediction_type=prediction,
    )
    scheduler.set_timesteps(50)
    return scheduler


# --- The solver


def test_the_schedule_is_sdxls():
    torch.testing.assert_close(ABAR, DDPMScheduler(**SDXL).alphas_cumprod)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_every_step_of_the_grid_is_ddims(prediction):
    scheduler, solver = ddim(prediction), Solver(ABAR, 50, prediction)
    n = torch.arange(50)
    assert solver.timestep(n).flip(0).tolist() == scheduler.timesteps.tolist()
    x, output = noise(50, 4, 3, 3), noise(50, 4, 3, 3, seed=1)
    x0, eps = solver.split(output, x, n)  # every sample at an index of its own
    ours = solver.move(x0, eps, n)
    for i in range(50):
        expected = scheduler.step(output[i], int(solver.timestep(n[i])), x[i])
        torch.testing.assert_close(x0[i], expected.pred_original_sample, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ours[i], expected.prev_sample, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8])
def test_jumps_between_grid_points_are_tcds_without_gamma(prediction, steps):
    scheduler, solver = (
        TCDScheduler(**SDXL, prediction_type=prediction),
        Solver(ABAR, 50, prediction),
    )
    visited = timesteps(steps, 0.75, "aligned")
    scheduler.set_timesteps(timesteps=visited)
    x = theirs = noise(2, 4, 3, 3)
    ends = [(t + 1) // 20 for t in visited[1:]] + [0]  # a move to index s arrives at t_(s-1)
    for t, s in zip(visited, ends, strict=True):
        output = 0.5 * theirs.roll(1, 2)
        theirs = scheduler.step(output, torch.tensor(t), theirs, eta=0.0).prev_sample
        x, _ = jump(
            lambda x, *_: 0.5 * x.roll(1, 2), solver, x, full(2, (t + 1) // 20 - 1), {}, full(2, s)
        )
        torch.testing.assert_close(x, theirs, rtol=1e-4, atol=1e-4)


def test_noise_is_added_as_ddpm_does(solver):
    t = torch.tensor([0, 19, 500, 999])
    x0, eps = noise(4, 4, 3, 3), noise(4, 4, 3, 3, seed=1)
    torch.testing.assert_close(
        solver.add_noise(x0, eps, t), DDPMScheduler(**SDXL).add_noise(x0, eps, t)
    )


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_split_finds_the_sample_and_the_noise_at_any_timestep(prediction):
    solver, scheduler = Solver(ABAR, 50, prediction), DDPMScheduler(**SDXL)
    x0, eps, t = noise(3, 4, 2, 2), noise(3, 4, 2, 2, seed=1), torch.tensor([7, 500, 999])
    truth = {"epsilon": eps, "sample": x0, "v_prediction": scheduler.get_velocity(x0, eps, t)}[
        prediction
    ]
    found_x0, found_eps = solver.split_at(truth, scheduler.add_noise(x0, eps, t), t)
    torch.testing.assert_close(found_x0, x0, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found_eps, eps, rtol=1e-3, atol=1e-4)


def test_grid_by_hand(solver):
    assert solver.timestep(torch.tensor([0, 1, 38, 49])).tolist() == [19, 39, 779, 999]
    assert solver.level(torch.tensor([0, 1, 2, 38])).tolist() == [0, 19, 39, 759]
    assert [solver.start(eta) for eta in (0.65, 0.75, 0.85, 0.95, 0.56, 0.01, 0.98, 0.99, 1.0)] == [
        33, 38, 43, 48, 28, 1, 49, 49, 49,
    ]  # fmt: skip
    assert [solver.reach(*p) for p in ((0.75, 0.5), (0.75, 0.3), (0.75, 1.0), (1.0, 0.5))] == [
        19,
        12,
        38,
        25,
    ]


def test_a_trajectory_begins_noised_to_its_level_or_as_pure_noise(solver):
    x0, eps = noise(2, 4, 3, 3), noise(2, 4, 3, 3, seed=1)
    at_779 = DDPMScheduler(**SDXL).add_noise(x0, eps, full(2, 779))
    torch.testing.assert_close(solver.begin(x0, eps, 38), at_779)
    assert torch.equal(solver.begin(x0, eps, 49), eps)


# --- The target index


@pytest.mark.parametrize(
    "mode, n, expected",
    [
        ("lcm", 38, {0}),
        ("lcm", 1, {0}),
        ("tcd", 38, set(range(38))),
        ("tcd", 1, {0}),
        ("std", 38, set(range(19, 38))),  # R = 19
        ("std", 20, set(range(1, 20))),
        ("std", 19, set(range(19))),
        ("std", 5, set(range(5))),
        ("std", 1, {0}),
    ],
)
def test_targets_are_uniform_on_their_range(mode, n, expected):
    counts = Counter(draw_target(mode, full(20_000, n), 37.5, 19, 8, seeded()).tolist())
    assert set(counts) == expected
    share = 20_000 / len(expected)
    assert all(abs(c - share) < 5 * share**0.5 for c in counts.values())  # 5 standard deviations


def test_phases_end_at_the_last_edge_that_is_not_above():
    # N eta = 37.5 in 8 phases: 0, 4.69, 9.38, 14.06, 18.75, 23.44, 28.13, 32.81, rounded down
    n = torch.tensor([1, 3, 4, 8, 9, 13, 14, 17, 18, 22, 23, 27, 28, 31, 32, 38])
    s = [0, 0, 4, 4, 9, 9, 14, 14, 18, 18, 23, 23, 28, 28, 32, 32]
    assert draw_target("pcm", n, 37.5, 19, 8, seeded()).tolist() == s
    assert draw_target("pcm", n, 37.5, 19, 1, seeded()).tolist() == [0] * len(n)
    # 0.58 x 50 is 28.999999999999996 in floating point
    assert phase_edges(Solver(ABAR, 50, "epsilon").span(0.58), 29).tolist() == list(range(29))
    assert phase_edges(2.0, 4).tolist() == [0, 0, 1, 1], "more phases than points"


def test_at_an_edge_the_target_is_the_teachers_own_step(solver):
    x, n = noise(2, 4, 3, 3), torch.tensor([32, 18])
    s = draw_target("pcm", n, 37.5, 19, 8, seeded())
    goal, _ = jump(lambda x, t, c: 0.5 * x.roll(1, 2), solver, x, n - 1, {}, s)
    torch.testing.assert_close(goal, x, rtol=1e-4, atol=1e-4)


def test_lcms_target_is_the_clean_sample_itself(solver):
    x, n = noise(2, 4, 3, 3), torch.tensor([38, 5])
    x_s, x0 = jump(
        lambda x, t, c: 0.5 * x,
        solver,
        x,
        n,
        {},
        draw_target("lcm", n, 37.5, 19, 8, seeded()),
        clean=True,
    )
    assert torch.equal(x_s, x0)
    abar = ABAR[[779, 119]].view(2, 1, 1, 1)
    torch.testing.assert_close(
        x0, (x - (1 - abar).sqrt() * 0.5 * x) / abar.sqrt(), rtol=1e-4, atol=1e-4
    )


def test_every_sample_has_a_range_of_its_own():
    n = torch.tensor([38, 2, 20, 1]).repeat(500)
    s = draw_target("std", n, 37.5, 19, 8, seeded())
    assert ((s < n) & (s >= (n - 19).clamp_min(0))).all()
    assert len(set(s[0::4].tolist())) == 19 and set(s[1::4].tolist()) == {0, 1}


# --- The bank


def entry(n, mark=0.0):
    return BankEntry(full(2, mark), full(2, mark + 0.5), {"c": full(3, mark)}, n)


def filled(*slots, length=8):
    bank = Bank(length)
    for slot in slots:
        bank.put(slot, entry(20, float(slot)))
    return bank


def test_only_occupied_slots_are_drawn_each_alike():
    bank, g = filled(1, 4, 6), seeded()
    counts = Counter(slot for _ in range(9000) for slot in bank.draw(1, 1.0, g))
    assert set(counts) == {1, 4, 6}
    assert all(abs(c - 3000) < 5 * 3000**0.5 for c in counts.values())


def test_no_slot_is_drawn_twice_and_what_is_missing_is_fresh():
    bank, g = filled(1, 4, 6), seeded()
    for _ in range(50):
        assert Counter(bank.draw(5, 1.0, g)) == {1: 1, 4: 1, 6: 1, None: 2}


def test_the_rate_is_that_of_drawing():
    bank, g = filled(*range(8)), seeded()
    drawn = sum(slot is not None for _ in range(2500) for slot in bank.draw(4, 0.8, g))
    assert abs(drawn - 8000) < 200  # 5 standard deviations
    assert bank.draw(4, 0.0, g) == [None] * 4
    assert Bank(8).draw(3, 1.0, g) == [None] * 3


def test_new_entries_take_free_slots_until_there_are_none():
    bank = Bank(3)
    for n in (20, 21, 22, 23):
        bank.put(None, entry(n))
    assert bank.indices == [20, 21, 22]
    bank.put(1, entry(19))  # what became of slot 1
    assert bank.indices == [20, 19, 22]


def test_an_entry_that_has_come_to_its_end_makes_room():
    bank = Bank(2)
    bank.put(None, entry(3))
    bank.put(None, entry(9))
    bank.put(0, entry(2))
    assert bank.indices == [2, 9]
    bank.put(0, entry(1))
    assert bank.indices == [9] and bank.slots[0] is None
    bank.put(None, entry(1))  # too far down to be stored at all
    assert bank.indices == [9]
    bank.put(None, entry(12))
    assert bank.indices == [12, 9]
    later = Bank(1, retire_at=5)
    later.put(None, entry(5))
    assert later.indices == []


def test_an_entry_owns_its_memory_and_its_parts_stay_together():
    x0, x, c = noise(4, 2), noise(4, 2, seed=1).requires_grad_(), {"c": noise(4, 3, seed=2)}
    bank = Bank(4)
    for i in range(4):
        bank.put(None, BankEntry(x0[i], x[i], {"c": c["c"][i]}, 10 + i))
    held = bank.slots[2]
    assert not held.x.requires_grad
    assert len(held.x.untyped_storage()) == 2 * 4  # bytes of its own, not the batch's
    before = x0[2].clone()
    x0.zero_()
    assert torch.equal(held.x0, before)
    got_x0, got_x, got_c, got_n = stack([bank.slots[2], bank.slots[0]], torch.device("cpu"))
    assert (
        torch.equal(got_x, x[[2, 0]])
        and torch.equal(got_c["c"], c["c"][[2, 0]])
        and got_n.tolist() == [12, 10]
    )
    assert got_x0.shape == (2, 2) and torch.equal(got_x0[0], before)


def run_bank(bank, g, steps):
    """The bank as training uses it: what is drawn goes one index down, the rest starts at 6.
    Returns what was drawn, and what is left."""
    drawn = []
    for _ in range(steps):
        slots = bank.draw(4, 0.8, g)
        drawn.append(slots)
        for slot in slots:
            held = (
                bank.slots[slot]
                if slot is not None
                else entry(6, float(torch.rand((), generator=g)))
            )
            bank.put(slot, BankEntry(held.x0, held.x * 0.9, held.c, held.n - 1))
    return drawn, [
        None if e is None else (e.n, e.x0.tolist(), e.x.tolist(), e.c["c"].tolist())
        for e in bank.slots
    ]


def test_a_restored_bank_goes_on_exactly(tmp_path):
    bank, g = Bank(5), seeded()
    run_bank(bank, g, 11)
    torch.save({"bank": bank.state_dict(), "random": g.get_state()}, tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    restored, g2 = Bank(5), torch.Generator()
    restored.load_state_dict(state["bank"])
    g2.set_state(state["random"])
    assert len(bank.indices) >= 2
    assert run_bank(restored, g2, 30) == run_bank(bank, g, 30)


@pytest.mark.parametrize(
    "count, length, rate", [(1, 4, 0.8), (3, 6, 0.5), (2, 0, 0.8), (2, 2, 1.0)]
)
def test_what_is_fresh_is_known_ahead(count, length, rate):
    bank = Bank(length, 1, start=9)
    ahead = Forecast(bank, count, rate, 9, seeded)
    forecast, found = [], []
    for step in range(80):
        if step == 30:  # as a resumed run does
            state, bank = bank.state_dict(), Bank(length, 1, start=9)
            bank.load_state_dict(state)
            ahead = Forecast(bank, count, rate, 9, seeded)
        forecast.append(ahead.fresh(step))
        slots = bank.draw(count, rate, seeded(step))
        held = [bank.slots[slot] if slot is not None else entry(9) for slot in slots]
        for slot, e in zip(slots, held, strict=True):
            bank.put(slot, entry(e.n - 1 - (bank.lead() if slot is None else 0)))
        found.append(slots.count(None))
        assert bank.begun == sum(found)
    assert forecast == found


def test_the_first_walk_is_staggered():
    bank = Bank(8, 1, start=38)
    for _ in range(8):
        bank.put(None, entry(37 - bank.lead()))
    # 36 steps are there to go: 0, 1/2, 1/4, 3/4, 1/8, 5/8, 3/8, 7/8 of them
    assert bank.indices == [37, 19, 28, 10, 33, 15, 24, 6]
    bank.put(3, entry(1))
    assert bank.lead() == 0, "the first walk only"
    assert Bank(3).lead() == 0 and Bank(0, 1, start=38).lead() == 0
    narrow = Bank(64, 1, start=2)  # the shortest trajectory: no room for a lead
    for _ in range(64):
        assert narrow.lead() == 0
        narrow.put(None, entry(2))


def test_short_runs_see_the_whole_trajectory():
    """16 lanes of 4 slots, as the published runs have: without leads n is 19 at the least in 50
    updates."""
    seen = []
    for lane in range(16):
        ahead = Forecast(
            Bank(4, 1, start=38), 1, 0.8, 38, lambda step, lane=lane: seeded(1000 * lane + step)
        )
        for step in range(50):
            ahead.fresh(step)
            seen += ahead.bank.indices if step >= 25 else []
    counts = Counter(n // 8 for n in seen)
    assert min(seen) == 2 and all(counts[k] > len(seen) / 10 for k in range(4))


# --- The step


def network(x, t, c):
    """Raw outputs that depend on every input."""
    scale = (1 + t / 1000 + c["text"].mean(1) + 0.1 * c["size"]).view(-1, *[1] * (x.ndim - 1))
    return torch.sin(scale * x) + 0.2 * x.roll(1, -1)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("shape", [(3, 4, 2, 2), (3, 4, 5, 2, 2)])
def test_teacher_step_is_two_passes_under_guidance_and_a_ddim_step(prediction, shape):
    scheduler, solver = ddim(prediction), Solver(ABAR, 50, prediction)
    x, n, w = noise(*shape), torch.tensor([38, 7, 0]), torch.tensor([5.0, 9.5, 0.0])
    c = {"text": noise(3, 6, seed=1), "size": torch.tensor([1.0, 2.0, 3.0])}
    empty = {"text": noise(3, 6, seed=2)}  # the size stays the caption's
    ours = teacher_step(network, solver, x, n, c, empty, w)
    for i in range(3):
        t = solver.timestep(n[i : i + 1])
        size = c["size"][i : i + 1]
        with_text = network(x[i : i + 1], t, {"text": c["text"][i : i + 1], "size": size})
        without = network(x[i : i + 1], t, {"text": empty["text"][i : i + 1], "size": size})
        # CFG as pipelines have it, one higher than w
        cfg = without + (w[i] + 1) * (with_text - without)
        theirs = scheduler.step(cfg, int(t), x[i : i + 1]).prev_sample
        torch.testing.assert_close(ours[i : i + 1], theirs, rtol=1e-4, atol=1e-3)


def test_teacher_step_makes_one_call_and_no_gradient(solver):
    calls = []

    def teacher(x, t, c):
        calls.append((x.shape, t.tolist(), c["text"].shape))
        return network(x, t, c)

    x = noise(2, 4, 2, 2).requires_grad_()
    c = {"text": noise(2, 6), "size": torch.ones(2)}
    out = teacher_step(
        teacher, solver, x, torch.tensor([38, 7]), c, {"text": torch.zeros(2, 6)}, full(2, 5.0)
    )
    assert calls == [((4, 4, 2, 2), [779, 159, 779, 159], (4, 6))]
    assert not out.requires_grad


def test_jump_by_hand():
    solver = Solver(torch.tensor([0.81, 0.64, 0.36, 0.25]), 2, "epsilon")  # t_0 = 1, t_1 = 3
    x, s = torch.tensor([[1.0], [1.0]]), torch.tensor([1, 0])
    x_s, x0 = jump(lambda x, t, c: 0.5 * x, solver, x, full(2, 1), {}, s)
    # abar at t_1: 0.25; x0 = (1 - sqrt(0.75) 0.5) / 0.5; levels t_0 = 1 (abar 0.64) and 0 (abar
    # 0.81)
    clean = (1 - 0.75**0.5 * 0.5) / 0.5
    torch.testing.assert_close(x0, torch.tensor([[clean], [clean]]))
    torch.testing.assert_close(
        x_s, torch.tensor([[0.8 * clean + 0.6 * 0.5], [0.9 * clean + 0.19**0.5 * 0.5]])
    )


def test_half_precision_outputs_are_moved_in_full(solver):
    x = noise(2, 4, 2, 2)
    x_s, x0 = jump(lambda x, t, c: (0.5 * x).bfloat16(), solver, x, full(2, 38), {}, full(2, 20))
    assert x_s.dtype == x0.dtype == torch.float32


def test_losses_and_gradients_by_hand():
    student = torch.tensor([3.0, 0.0, -4.0], requires_grad=True)
    target = torch.zeros(3)
    huber = consistency_loss(student, target, c=4.0)
    torch.testing.assert_close(huber, torch.tensor((1 + 0 + (32**0.5 - 4)) / 3))
    [grad] = torch.autograd.grad(huber, student)  # d / sqrt(d^2 + c^2) / 3
    torch.testing.assert_close(grad, torch.tensor([0.6, 0.0, -(0.5**0.5)]) / 3)
    l2 = consistency_loss(student, target, "l2")
    torch.testing.assert_close(l2, torch.tensor(25 / 3))
    [grad] = torch.autograd.grad(l2, student)
    torch.testing.assert_close(grad, torch.tensor([2.0, 0.0, -8 / 3]))
    torch.testing.assert_close(
        consistency_loss(student, target), torch.tensor((2.999 + 0 + 3.999) / 3), atol=1e-6, rtol=0
    )


def test_the_jumps_gradient_is_the_chain_rules(solver):
    """d x_s / d eps = sqrt(1 - abar_s) - sqrt(abar_s) sqrt(1 - abar_t) / sqrt(abar_t), through loss
    and jump."""
    eps = noise(1, 4).requires_grad_()
    x_s, _ = jump(lambda x, t, c: eps, solver, noise(1, 4, seed=1), full(1, 38), {}, full(1, 20))
    [grad] = torch.autograd.grad(consistency_loss(x_s, torch.zeros(1, 4), "l2"), eps)
    at, to = ABAR[779], ABAR[399]
    slope = (1 - to).sqrt() - to.sqrt() * (1 - at).sqrt() / at.sqrt()
    torch.testing.assert_close(grad, 2 * x_s.detach() / 4 * slope)


# --- What the discriminator sees


def levels(mode, solver, s, count=20_000):
    """(fake, the timesteps the real ones are noised to, read off from noise and x_0)."""
    x0, eps = torch.ones(count, 1), torch.zeros(count, 1)
    n = full(count, min(s + 10, 48))
    fake, real = noisy_pair(
        mode, solver, full(count, 2.0), full(count, 3.0), x0, n, full(count, s), eps, seeded()
    )
    # with no noise the scale sqrt(abar) is what is left
    return fake, (real[:, :1] - ABAR.sqrt()).abs().argmin(1)


@pytest.mark.parametrize(
    "mode, s, lowest, highest",
    [
        ("xs-xr", 20, 0, 398),  # below t_19 = 399
        ("xs-xr", 1, 0, 18),
        ("xs-xr", 0, 0, 0),
        ("xs", 20, 399, 399),
        ("xs", 0, 0, 0),
        ("xs-xR", 20, 399, 618),  # from t_19 to below t_30 = 619
        ("xs-xR", 48, 959, 978),  # s = n, at an edge of pcm: to below t_48 = 979
        ("xs-xR", 0, 0, 218),
    ],
)
def test_the_real_one_is_noised_as_the_mode_says(solver, mode, s, lowest, highest):
    fake, t = levels(mode, solver, s)
    assert (fake == 2.0).all()
    assert int(t.min()) == lowest and int(t.max()) == highest
    middle, width = (lowest + highest) / 2, highest - lowest
    assert abs(t.double().mean() - middle) <= 5 * width / (12 * len(t)) ** 0.5 + 0.5  # uniform


def test_pairs_that_are_not_noised(solver):
    x_s, x0_hat, x0, eps = (noise(2, 4, 3, 3, seed=i) for i in range(4))
    s = torch.tensor([5, 20])
    fake, real = noisy_pair("x0", solver, x_s, x0_hat, x0, s + 1, s, eps, seeded())
    assert fake is x0_hat and real is x0
    fake, real = noisy_pair("xs-x0", solver, x_s, x0_hat, x0, s + 1, s, eps, seeded())
    assert fake is x_s and real is x0


def test_the_real_one_is_ddpm_noise_of_each_samples_own_level(solver):
    x_s, x0_hat, x0, eps = (noise(2, 4, 3, 3, seed=i) for i in range(4))
    s = torch.tensor([5, 20])
    _, real = noisy_pair("xs", solver, x_s, x0_hat, x0, s + 1, s, eps, seeded())
    torch.testing.assert_close(
        real, DDPMScheduler(**SDXL).add_noise(x0, eps, torch.tensor([99, 399]))
    )


# --- Where the truth is known


def test_the_mixtures_teacher_is_the_gradient_of_its_density():
    mixture = Mixture()
    x0, c = mixture.sample(6, seeded())
    t = torch.tensor([0, 100, 400, 700, 779, 999])
    x = Solver(ABAR, 50, "epsilon").add_noise(x0, noise(6, 2), t).double().requires_grad_()
    a, b = ABAR[t].double().sqrt()[:, None], (1 - ABAR[t].double()).sqrt()[:, None]
    centres = mixture.centres[c["class"].argmax(1)].double()  # (6, modes, 2), all modes alike
    parts = torch.distributions.Normal(
        a[:, None] * centres, ((a * mixture.spread) ** 2 + b**2).sqrt()[:, None]
    )
    density = parts.log_prob(x[:, None]).sum(2).logsumexp(1)
    [score] = torch.autograd.grad(density.sum(), x)
    found = mixture.epsilon(x.detach().float(), t, c)
    torch.testing.assert_close(found, (-b * score).float(), rtol=1e-3, atol=1e-4)


def test_a_short_training_already_beats_the_teacher_at_few_steps():
    """Guards the step as a whole. The full comparison: python -m tests.bench.mixture."""
    mixture = Mixture()
    truth = Truth(mixture, 0, 0.75, count=512)
    teacher, before = truth.errors(partial(guided, mixture)), truth.errors(mixture.epsilon)
    after = truth.errors(train(STD, mixture, 0, 0.75, updates=300))
    # measured: 2.67, 1.02 (teacher), 1.27, 1.06, 1.02 (before) and 1.06, 0.50, 0.48 at 1, 2 and 4
    # steps
    assert after[0] < 0.5 * teacher[0] and after[0] < before[0]
    assert after[1] < 0.6 * teacher[1] and after[1] < 0.6 * before[1]
    assert after[2] < 0.6 * before[2]
