"""Views against torchvision's functional transforms, uniform draws, normalisation by hand; whitening; channel statistics."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as reference

from kdcore.data.augment import Views, cutout
from kdcore.data.preprocess import ZCA, channel_mean_std, global_contrast_normalise


def pictures(count=3, channels=3, height=8, width=10, seed=0):
    return torch.randint(256, (count, channels, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def every_view(pad, image, flip):
    shifts = range(2 * pad + 1)
    return [(image, dy, dx, f) for dy in shifts for dx in shifts for f in ((0, 1) if flip else (0,))]


def test_views_are_shifted_windows():
    picture = torch.zeros(2, 1, 5, 5, dtype=torch.uint8)
    picture[1, 0, 2, 2] = 255
    views = Views(picture, pad=2)
    assert torch.equal(views(torch.tensor([1, 2, 2])), picture[1] / 255)
    # dy = 0 shows the window that begins 2 px above the picture: its content stands 2 px lower
    assert views(torch.tensor([1, 0, 2]))[0].nonzero().tolist() == [[4, 2]]
    assert views(torch.tensor([1, 2, 4]))[0].nonzero().tolist() == [[2, 0]]
    assert views(torch.tensor([[[0, 0, 0], [1, 1, 3]]])).shape == (1, 2, 1, 5, 5)


def test_jitter_covers_the_25_shifts_evenly():
    views = Views(torch.zeros(1, 1, 5, 5, dtype=torch.uint8), pad=2)
    drawn = views.draw(torch.zeros(100, 500, dtype=torch.int64), torch.Generator().manual_seed(0))
    counts = torch.bincount((drawn[..., 1] * 5 + drawn[..., 2]).flatten(), minlength=25)
    assert len(counts) == 25
    chi_square = ((counts - 2000.0) ** 2 / 2000).sum().item()
    assert chi_square < 43  # 99 % quantile of chi-square with 24 degrees of freedom: 42.98


def test_crops_and_flips_cover_the_162_views_evenly():
    views = Views(pictures(1), pad=4, flip=True)
    assert views.count == 162
    drawn = views.draw(torch.zeros(162, 1000, dtype=torch.int64), torch.Generator().manual_seed(0))
    counts = torch.bincount(((drawn[..., 1] * 9 + drawn[..., 2]) * 2 + drawn[..., 3]).flatten(), minlength=162)
    assert len(counts) == 162
    chi_square = ((counts - 1000.0) ** 2 / 1000).sum().item()
    assert chi_square < 206  # 99 % quantile of chi-square with 161 degrees of freedom: 205.8
    # neighbours in a batch are drawn apart: the same view twice in a row once in 162 times, 1000 expected
    same = (drawn[1:, :, 1:] == drawn[:-1, :, 1:]).all(-1).sum().item()
    assert abs(same - 161_000 / 162) < 4 * (161_000 / 162) ** 0.5


def test_one_seed_one_stream_and_flip_draws_behind_the_shifts():
    cases = torch.arange(6).view(2, 3)
    plain, flipped = Views(pictures(6), pad=4), Views(pictures(6), pad=4, flip=True)

    def drawn(views, seed):
        return views.draw(cases, torch.Generator().manual_seed(seed))

    assert torch.equal(drawn(flipped, 5), drawn(flipped, 5)) and not torch.equal(drawn(flipped, 5), drawn(flipped, 6))
    assert torch.equal(drawn(flipped, 5)[..., :3], drawn(plain, 5))
    assert torch.equal(drawn(plain, 5)[..., 0], cases)
    # the stream that records of trials rest on, from the generator alone
    assert torch.equal(drawn(plain, 5)[..., 1:], torch.randint(9, (2, 3, 2), generator=torch.Generator().manual_seed(5)))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("border, mode", [("zero", "constant"), ("reflect", "reflect")])
def test_every_view_equals_torchvisions_byte_for_byte(border, mode, memory_format):
    images, pad = pictures(), 3
    views = Views(images, pad, flip=True, border=border, memory_format=memory_format)
    index = torch.tensor(every_view(pad, 1, flip=True))
    expected = []
    for _, dy, dx, flip in index.tolist():
        picture = Image.fromarray(images[1].permute(1, 2, 0).numpy())
        picture = reference.hflip(picture) if flip else picture
        picture = reference.pad(picture, [pad], padding_mode=mode)
        expected.append(reference.pil_to_tensor(reference.crop(picture, dy, dx, 8, 10)))
    batch = views(index)
    assert batch.dtype == torch.float32 and batch.is_contiguous(memory_format=memory_format)
    assert torch.equal(batch, torch.stack(expected).float() / 255)
    assert torch.equal(views.windows[index.unbind(-1)], views._look_up(index.unbind(-1))), "a GPU's look-up"
    # the mirrored window is the window mirrored, at the mirrored place: crop before flip is the same set of views
    assert torch.equal(views(torch.tensor([1, 2, 0, 1])), views(torch.tensor([1, 2, 2 * pad, 0])).flip(-1))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_normalised_views_equal_torchvisions_and_the_border_is_black_before(memory_format):
    images, pad, mean, std = pictures(4), 2, (0.5, 0.25, 0.75), (0.25, 0.5, 0.2)
    views = Views(images, pad, mean=mean, std=std, memory_format=memory_format)
    index = torch.tensor([[i, dy, dx] for i in range(4) for dy in range(5) for dx in range(5)])
    expected = []
    for i, dy, dx in index.tolist():
        picture = reference.pad(Image.fromarray(images[i].permute(1, 2, 0).numpy()), [pad])
        expected.append(reference.normalize(reference.to_tensor(reference.crop(picture, dy, dx, 8, 10)), mean, std))
    assert torch.equal(views(index), torch.stack(expected))
    # black is (0 - 0.5) / 0.25, (0 - 0.25) / 0.5, (0 - 0.75) / 0.2
    assert views(torch.tensor([0, 0, 0]))[:, 0, 0].tolist() == pytest.approx([-2.0, -0.5, -3.75])


def test_plain_views_are_the_images():
    images = pictures()
    for views in (Views(images, 4), Views(images, 4, flip=True, border="reflect"), Views(images, 0, memory_format=torch.channels_last)):
        assert torch.equal(views(views.plain(torch.tensor([2, 0]))), images[[2, 0]].float() / 255)


def test_any_leading_axes_and_any_dtype():
    images = pictures(5)
    index = Views(images, 2, flip=True).draw(torch.arange(4).view(2, 2), torch.Generator().manual_seed(0))
    for memory_format in (torch.contiguous_format, torch.channels_last):
        options = {"flip": True, "mean": (0.4,) * 3, "std": (0.3,) * 3, "memory_format": memory_format}
        views = Views(images, 2, **options)
        assert views(index).shape == (2, 2, 3, 8, 10)
        assert torch.equal(views(index)[1, 0], views(index[1, 0]))
        half = Views(images, 2, dtype=torch.bfloat16, **options)(index)
        assert half.dtype == torch.bfloat16 and torch.equal(half, views(index).bfloat16()), "float32 arithmetic, rounded once"


def test_float_images_are_taken_as_they_are_and_left_alone():
    whitened = torch.randn(3, 3, 8, 10, generator=torch.Generator().manual_seed(0))
    before = whitened.clone()
    views = Views(whitened, 2, flip=True, mean=(1.0,) * 3, std=(2.0,) * 3)
    for _ in range(2):
        assert torch.equal(views(views.plain(torch.tensor(1))), (before[1] - 1) / 2)
    assert torch.equal(views(torch.tensor([1, 2, 2, 1])), ((before[1] - 1) / 2).flip(-1))
    assert torch.equal(whitened, before)


def test_wrong_arguments_are_named():
    images = pictures()
    with pytest.raises(ValueError, match="border must be 'zero' or 'reflect', not 'wrap'"):
        Views(images, 2, border="wrap")
    with pytest.raises(ValueError, match="8 px cannot be reflected from an image of 8 px"):
        Views(images, 8, border="reflect")
    for mean, std in (((0.5,), (0.5,)), ((0.5,) * 3, None)):
        with pytest.raises(ValueError, match="one value for each of the 3 channels"):
            Views(images, 2, mean=mean, std=std)
    with pytest.raises(ValueError, match="an index of 4 columns, not 3"):
        Views(images, 2, flip=True)(torch.tensor([[0, 1, 1]]))
    with pytest.raises(IndexError):
        Views(images, 2)(torch.tensor([[0, 5, 1]]))


def test_channel_statistics():
    images = pictures(7, height=6, width=5, seed=3)
    mean, std = channel_mean_std(images)
    pixels = images.numpy().astype(np.float64).transpose(1, 0, 2, 3).reshape(3, -1) / 255
    assert mean == pytest.approx(pixels.mean(1)) and std == pytest.approx(pixels.std(1))


def test_global_contrast_normalisation_by_hand():
    # mean 2, centred (-1, 1, 1, -1), norm 2: times 55 / 2
    picture = torch.tensor([1, 3, 3, 1], dtype=torch.uint8).view(1, 1, 2, 2)
    assert global_contrast_normalise(picture).flatten().tolist() == [-27.5, 27.5, 27.5, -27.5]
    assert global_contrast_normalise(picture, scale=1.0).flatten().tolist() == [-0.5, 0.5, 0.5, -0.5]
    assert global_contrast_normalise(torch.full((1, 3, 2, 2), 9)).abs().sum() == 0, "one grey: nothing to divide by"
    images = pictures(5)
    before = images.float()
    result = global_contrast_normalise(before)
    assert torch.equal(before, images.float()), "the caller's images stay"
    assert result.dtype == torch.float32 and result.shape == images.shape
    pixels = images.numpy().astype(np.float64).reshape(5, -1)
    centred = pixels - pixels.mean(1, keepdims=True)
    expected = 55 * centred / np.sqrt((centred**2).sum(1, keepdims=True))
    assert np.abs(result.numpy().reshape(5, -1) - expected).max() < 1e-5


def test_zca_whitens():
    rng = np.random.default_rng(0)
    mixing = rng.normal(0, 1, (12, 12)) + 2 * np.eye(12)
    train = torch.tensor(rng.normal(0, 1, (12_000, 12)) @ mixing + 5, dtype=torch.float32).view(-1, 3, 2, 2)
    zca = ZCA(filter_bias=0.0).fit(train)
    white = zca.apply(train)
    assert white.dtype == torch.float32 and white.shape == train.shape
    assert np.abs(np.cov(white.flatten(1).double().numpy().T, bias=True) - np.eye(12)).max() < 1e-3
    assert white.flatten(1).mean(0).abs().max() < 1e-4
    assert torch.allclose(zca.matrix, zca.matrix.T, atol=1e-6), "of all whitenings the symmetric one"


def test_zca_with_its_bias_equals_scipy():
    from scipy.linalg import fractional_matrix_power

    rng = np.random.default_rng(1)
    train, test = rng.normal(3, 2, (200, 6)), rng.normal(3, 2, (9, 6))
    covariance = np.cov(train.T, bias=True) + 0.1 * np.eye(6)
    expected = (test - train.mean(0)) @ fractional_matrix_power(covariance, -0.5)
    zca = ZCA().fit(torch.tensor(train))
    assert np.abs(zca.apply(torch.tensor(test)).numpy() - expected).max() < 1e-5


def test_cutout_by_hand():
    torch.manual_seed(0)
    x = torch.ones(200, 3, 8, 8)
    cut = cutout(x, 4)
    lost = (cut == 0).all(1)
    assert torch.equal(lost, (cut == 0).any(1)), "all channels at one place"
    rows, columns = lost.any(2).sum(1), lost.any(1).sum(1)
    assert torch.equal(lost.sum((1, 2)), rows * columns), "a rectangle"
    # centre c loses c - 2 to c + 1, as far as that is inside
    assert set(rows.tolist()) == {2, 3, 4} and {int(row.nonzero()[0]) for row in lost.any(2)} == {0, 1, 2, 3, 4, 5}
    assert torch.equal(x, torch.ones(200, 3, 8, 8)) and not torch.equal(lost[0], lost[1])
    assert (cutout(x, 16) == 0).all(), "a square of twice the side hides everything"
