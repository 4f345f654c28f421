"""The wavefront against a plain implementation that holds the whole clip."""

import itertools
import json
import random

import pytest
import torch

from std_cli.diffusion.windows import Wavefront, blend_weights, window_starts

STEPS = 4


def predict(latents, steps, numbers):
    """A toy network: every frame's prediction depends on its whole window, on its place in it, and
    on the step."""
    frames = latents.shape[2]
    place = torch.arange(frames, dtype=latents.dtype).view(1, 1, frames, 1, 1)
    t = torch.tensor(steps, dtype=latents.dtype).view(-1, 1, 1, 1, 1)
    return torch.sin(
        3 * latents.mean(2, keepdim=True) + latents * (1 + 0.1 * place) + t
    ) + 0.3 * latents.flip(2)


def step(prediction, latent, k):
    return 0.8 * latent + 0.3 * prediction / (k + 1)


def clip(frames, seed=0):
    return torch.randn(frames, 2, 3, 3, generator=torch.Generator().manual_seed(seed))


def whole(latents, shots, length, stride):
    """Every window of every shot at step k, then the next step: all frames held. Shots are (start,
    end)."""
    x = latents.clone()
    for k in range(STEPS):
        total, weight = torch.zeros_like(x), torch.zeros(len(x), 1, 1, 1)
        for begin, end in shots:
            for s in window_starts(end - begin, length, stride):
                span = slice(begin + s, min(begin + s + length, end))
                out = predict(x[span].transpose(0, 1)[None], [k], [])[0].transpose(0, 1)
                w = torch.tensor(blend_weights(len(out), length - stride)).view(-1, 1, 1, 1)
                total[span] += out * w
                weight[span] += w
        x = torch.stack([step(p, latent, k) for p, latent in zip(total / weight, x, strict=True)])
    return x


def shots_of(frames, cuts):
    edges = [0, *cuts, frames]
    return list(itertools.pairwise(edges))


def work(wave):
    return [f for finished in wave.work() for f in finished]


def push(wave, latent, cut=False):
    wave.push(latent, cut)
    return work(wave)


def end(wave):
    wave.end()
    return work(wave)


def run(wave, latents, cuts=(), begin=0):
    done = [f for i in range(begin, len(latents)) for f in push(wave, latents[i], cut=i in cuts)]
    return done + end(wave)


def wavefront(length, stride, batch=4, **options):
    return Wavefront(length, stride, STEPS, predict, step, batch, **options)


LAYOUTS = [
    (1, (), 8, 4),  # one frame
    (7, (), 8, 4),  # one short window
    (8, (), 8, 4),
    (9, (), 8, 4),  # the shifted window is one frame off
    (12, (), 8, 4),
    (40, (), 8, 6),
    (41, (), 8, 6),
    (50, (), 8, 2),  # four windows on a frame
    (33, (), 8, 8),  # no overlap but the shifted window's
    (60, (20, 21, 24, 43), 8, 5),  # shots of one frame, of three, of a window and a bit
    (64, (8, 16, 32), 8, 4),  # cuts where windows end
    (30, (13,), 16, 12),
    (20, (), 1, 1),  # frame by frame
]


@pytest.mark.parametrize(("frames", "cuts", "length", "stride"), LAYOUTS)
def test_equals_the_whole_clip_computation(frames, cuts, length, stride):
    latents = clip(frames)
    expected = whole(latents, shots_of(frames, cuts), length, stride)
    done = run(wavefront(length, stride), latents, cuts)
    assert len(done) == frames
    torch.testing.assert_close(torch.stack([f.latent for f in done]), expected, atol=1e-5, rtol=0)


def test_equals_it_for_random_layouts():
    r = random.Random(1)
    for _ in range(40):
        frames, length = r.randint(1, 70), r.randint(1, 12)
        stride = r.randint(1, length)
        cuts = sorted(r.sample(range(1, frames), r.randint(0, min(5, frames - 1))))
        latents = clip(frames)
        done = run(wavefront(length, stride, r.randint(1, 9)), latents, cuts)
        expected = whole(latents, shots_of(frames, cuts), length, stride)
        torch.testing.assert_close(
            torch.stack([f.latent for f in done]), expected, atol=1e-5, rtol=0
        )


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_the_batch_does_not_change_the_result(batch):
    latents = clip(60)
    one = run(wavefront(8, 4, batch), latents, {25})
    other = run(wavefront(8, 4, 4), latents, {25})
    assert all(torch.equal(a.latent, b.latent) for a, b in zip(one, other, strict=True))


def test_a_batch_may_be_filled_up_without_an_effect():
    """Every call gets as many windows as one that is full, and the first of them again."""
    sizes = []

    def counted(latents, steps, numbers):
        sizes.append((len(latents), len(steps), len(numbers)))
        return predict(latents, steps, numbers)

    wave = Wavefront(8, 4, STEPS, counted, step, batch=3, fill=True)
    filled, other = run(wave, clip(30), {13}), run(wavefront(8, 4, 3), clip(30), {13})
    assert set(sizes) == {(3, 3, 3)}
    assert all(torch.equal(a.latent, b.latent) for a, b in zip(filled, other, strict=True))


def test_frames_of_a_step_advance_together():
    calls = []

    def counted(predictions, latents, k):
        calls.append((k, len(latents)))
        return step(predictions, latents, k)

    wave = Wavefront(8, 4, STEPS, predict, counted, 4)
    done = run(wave, clip(60))
    assert sum(count for _, count in calls) == 60 * STEPS
    assert len(calls) <= 60 * STEPS / 4 + 2 * STEPS  # four frames a round, and the edges
    one = run(wavefront(8, 4), clip(60))
    assert all(torch.equal(a.latent, b.latent) for a, b in zip(done, one, strict=True))


def test_holds_a_bounded_number_of_frames_and_fills_its_batches():
    """METHOD's bound: about m K S + L live frames, m = 2, and one window per step in a batch."""
    length, stride, sizes, live = 8, 4, [], []

    def counted(latents, steps, numbers):
        sizes.append(len(steps))
        return predict(latents, steps, numbers)

    wave = Wavefront(length, stride, STEPS, counted, step, batch=100)
    for latent in clip(1000):
        push(wave, latent)
        live.append(wave.live)
    assert max(live) <= 2 * STEPS * stride + length
    assert max(live[:200]) == max(live)
    assert sum(sizes[20:]) / len(sizes[20:]) > STEPS - 0.1


def test_many_short_shots_are_bounded_too():
    wave, live = wavefront(8, 4), []
    for i, latent in enumerate(clip(400)):
        push(wave, latent, cut=i % 3 == 0)
        live.append(wave.live)
    assert max(live) <= 3 * (STEPS + 1)


def test_a_saved_state_continues_bit_for_bit():
    """From every state: between rounds and in the middle of them, in the drain, too."""
    latents, cuts = clip(40), {17, 30}
    expected = run(wavefront(8, 5, batch=2), latents, cuts)
    first, done, states = wavefront(8, 5, batch=2), [], []

    def note():
        tensors, rest = first.state()
        # through JSON, as it is kept; the tensors themselves: what follows must not touch them
        states.append((tensors, json.loads(json.dumps(rest)), list(done)))

    for i in [*range(len(latents)), None]:
        if i is None:
            first.end()
        else:
            first.push(latents[i], cut=i in cuts)
        note()
        for finished in first.work():
            done += finished
            note()
    assert sum(rest["_due"] for _, rest, _ in states) > 20
    for tensors, rest, before in states:
        second = wavefront(8, 5, batch=1)
        second.load_state(tensors, rest)
        assert second.batch == 2
        after = before + work(second)
        after += run(second, latents, cuts, begin=second.pushed)
        assert [f.number for f in after] == list(range(40))
        assert all(
            torch.equal(a.latent, b.latent) and a.joint == b.joint
            for a, b in zip(after, expected, strict=True)
        )


def seen_by_predict(first, latents, cuts):
    """(frames of a window, step) of all that is predicted, and the results."""
    calls = []

    def noted(x, steps, numbers):
        assert all(len(frames) == x.shape[2] for frames in numbers)
        calls.extend(zip(numbers, steps, strict=True))
        return predict(x, steps, numbers)

    wave = Wavefront(8, 4, STEPS, noted, step, batch=1, first=first)
    return calls, run(wave, latents, cuts)


def test_predict_is_given_the_frames_of_each_window():
    calls, _ = seen_by_predict(0, clip(23), {13})
    windows = {range(0, 8), range(4, 12), range(5, 13), range(13, 21), range(15, 23)}
    assert sorted(calls, key=str) == sorted(itertools.product(windows, range(STEPS)), key=str)


def test_shots_can_be_denoised_apart():
    """The second shot alone, its frames numbered as in the whole: the same windows and bits."""
    latents = clip(33)
    calls, whole_run = seen_by_predict(0, latents, {13})
    first_calls, first = seen_by_predict(0, latents[:13], ())
    second_calls, second = seen_by_predict(13, latents[13:], ())
    assert sorted(calls, key=str) == sorted(first_calls + second_calls, key=str)
    assert all(
        torch.equal(a.latent, b.latent) and a.joint == b.joint
        for a, b in zip(whole_run, first + second, strict=True)
    )


def test_the_drawing_of_the_cursors():
    """The state that the module's docstring draws."""
    wave = Wavefront(8, 4, 2, predict, step, batch=4)
    for latent in clip(22):
        push(wave, latent)
    cursors = {name: getattr(wave, f"_{name}") for name in ("shot", "emitted", "settled")}
    assert cursors == {"shot": 0, "emitted": 4, "settled": 13}
    assert (wave._covered, wave.pushed) == (20, 22)
    held = [wave._frames[i].step for i in range(4, 22)]
    assert held == [1] * 9 + [0] * 9


def test_joints_are_where_windows_start_and_end():
    done = run(wavefront(8, 5), clip(14))  # windows 0-8, 5-13, 6-14
    assert [i for i, f in enumerate(done) if f.joint] == [0, 5, 6, 8, 13]


def test_out_of_memory_halves_the_batch_with_the_same_result():
    batches, latents = [], clip(40)

    def small(x, steps, numbers):
        if len(steps) > 1:
            raise torch.OutOfMemoryError
        return predict(x, steps, numbers)

    wave = Wavefront(8, 4, STEPS, small, step, batch=4, on_halved=batches.append)
    done = run(wave, latents)
    expected = run(wavefront(8, 4), latents)
    assert batches[-1] == 1 and wave.batch == 1
    assert all(torch.equal(a.latent, b.latent) for a, b in zip(done, expected, strict=True))


def test_out_of_memory_on_one_window_is_raised():
    def never(x, steps, numbers):
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        run(Wavefront(8, 4, STEPS, never, step, batch=4), clip(9))


def test_blend_weights():
    assert blend_weights(8, 4) == [1, 2, 3, 4, 4, 3, 2, 1]
    assert blend_weights(8, 2) == [1, 2, 2, 2, 2, 2, 2, 1]
    assert blend_weights(5, 0) == [1, 1, 1, 1, 1]


def test_window_starts():
    assert window_starts(5, 8, 4) == [0]
    assert window_starts(8, 8, 4) == [0]
    assert window_starts(16, 8, 4) == [0, 4, 8]
    assert window_starts(17, 8, 4) == [0, 4, 8, 9]
