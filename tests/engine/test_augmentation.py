"""Augmentation follows from (seed, round, node, step, row): the same on every backend, and off in evaluation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from torch import Tensor, nn

from algorithms import FedAMD, FedAvg, FedSAM, Scaffold
from fedsim import Batch, Local, uniform_of
from fedsim.backends.ray.ray_backend import RayActors
from fedsim.clients import cohort
from fedsim.data import Split
from fedsim.engine.augmentation import AUGMENTATIONS, Chain, CropAndFlip, Cutout, Jitter, augmented, try_augmentation
from fedsim.engine.blocks import Blocks
from fedsim.engine.examine import examine
from fedsim.engine.federation import Backend, Federation
from fedsim.engine.local_work import CHUNK, LocalWork, Shards
from fedsim.engine.loop import Loop
from fedsim.engine.mixup import Mixup
from fedsim.engine.model import Model
from fedsim.errors import CodeError, ConfigError
from fedsim.models.losses import cross_entropy
from fedsim.types import Augmentation
from tests.backends.ray.shared import workers

SIZES = np.array([3, 18, 7, 11, 8, 5])
C, H, W, CLASSES = 2, 5, 6, 3
KEYS = torch.arange(4000)


def noisy(x: Tensor, key: Tensor) -> Tensor:
    """Add noise, as a user's function would."""
    return x + (uniform_of(key, x[0].numel()) - 0.5).to(x.dtype).view(x.shape)


KINDS: dict[str, Augmentation] = {
    "crop and flip": CropAndFlip(2),
    "cutout": Cutout(3),
    "jitter": Jitter(),
    "chain": Chain(CropAndFlip(1, crop=0.5), Chain(Cutout(2), noisy)),
    "function": noisy,
}


def network(kind: str) -> nn.Module:
    if kind == "dense":
        return nn.Sequential(nn.Flatten(), nn.Linear(C * H * W, 7), nn.Tanh(), nn.Dropout(0.3), nn.Linear(7, CLASSES))
    return nn.Sequential(nn.Conv2d(C, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * (H - 2) * (W - 2), CLASSES))


def federation(
    backend: Backend, by: Augmentation | None, kind: str = "dense", seed: int = 3, sizes: np.ndarray = SIZES
) -> Federation:
    torch.manual_seed(0)
    n = int(sizes.sum())
    x, y = torch.randn(n, C, H, W, dtype=torch.float64), torch.randint(0, CLASSES, (n,))
    model = Model(network(kind), cross_entropy, dtype=torch.float64)
    examine(model, Split(x, y))
    return Federation(model, Shards(x, y, np.r_[0, np.cumsum(sizes)]), LocalWork(4, 2, augment=by), seed, backend)


def after_rounds(backend: Backend, by: Augmentation | None, method: Any = None, **settings: Any) -> Tensor:
    fed, method = federation(backend, by, **settings), method or FedAvg()
    state = method.init(fed.model.vector(), cohort(fed, 0))
    for k in range(1, 3):
        state = method.round(state, cohort(fed, k, np.array([0, 1, 2, 4, 5])))
    x: Tensor = state.x
    return x


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("kind", ["dense", "convolution"])
@pytest.mark.parametrize("by", KINDS.values(), ids=KINDS)
def test_blocks_agree_with_the_loop(by: Augmentation, kind: str) -> None:
    x = after_rounds(Loop(), by, kind=kind)
    torch.testing.assert_close(after_rounds(Blocks(3), by, kind=kind), x, rtol=0, atol=1e-12)
    assert not torch.allclose(after_rounds(Loop(), None, kind=kind), x, atol=1e-6)


METHODS: list[Any] = [FedAMD(large_batch=6), FedSAM(), Scaffold(option="I")]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_methods_with_several_gradients_whole_shards_and_large_batches(method: Any) -> None:
    x = after_rounds(Loop(), KINDS["chain"], method)
    torch.testing.assert_close(after_rounds(Blocks(3), KINDS["chain"], method), x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", [Loop(), Blocks(2)], ids=["loop", "blocks"])
def test_a_run_is_repeated_bit_for_bit_and_follows_the_seed(backend: Backend) -> None:
    first = after_rounds(backend, CropAndFlip(2))
    assert torch.equal(first, after_rounds(backend, CropAndFlip(2)))
    assert not torch.allclose(first, after_rounds(backend, CropAndFlip(2), seed=4), atol=1e-6)


@pytest.mark.ray
def test_actors_agree_with_blocks_bit_for_bit() -> None:
    by = KINDS["chain"]
    assert torch.equal(after_rounds(RayActors(workers(), 2), by), after_rounds(Blocks(2), by))


def whole(local: Local, x: Tensor) -> Tensor:
    return local.grad(x)


def test_whole_shards_of_several_chunks_are_augmented_alike() -> None:
    sizes = np.array([CHUNK + 3, 4, CHUNK + 3])
    loop, blocks, plain = (
        cohort(federation(backend, by, sizes=sizes), 1).each(whole, federation(Loop(), None).model.vector()).stacked
        for backend, by in ((Loop(), CropAndFlip(2)), (Blocks(3), CropAndFlip(2)), (Loop(), None))
    )
    torch.testing.assert_close(blocks, loop, rtol=0, atol=1e-12)
    assert (loop - plain).abs().amax(1).min() > 1e-4


@pytest.mark.parametrize("backend", [Loop(), Blocks(6)], ids=["loop", "blocks"])
def test_the_gradients_of_a_step_see_the_same_samples_and_the_next_step_others(backend: Backend) -> None:
    """The client has one minibatch, its shard, twice; sums of its pixels tell their form."""

    def client(local: Local, x: Tensor) -> Tensor:
        def step(carry: Tensor, batch: Batch, x: Tensor) -> Tensor:
            change = local.grad(x, batch) - local.grad(x, batch)
            return torch.stack([carry[1], batch.x[:, 0, 0, 0].sum(), change.norm()])

        return local.fold(step, x.new_zeros(3), x)

    fed = replace(federation(backend, CropAndFlip(2), "convolution"), work=LocalWork(0, 2, augment=CropAndFlip(2)))
    first, second, same = cohort(fed, 1).each(client, fed.model.vector()).stacked.T
    assert (same == 0).all() and (first != second).any()


def test_crops_are_those_of_the_padded_image_at_every_place_equally_often() -> None:
    x, p = torch.rand(1, C, H, W).expand(len(KEYS), -1, -1, -1), 2
    made, padded = CropAndFlip(p)(x, KEYS).numpy(), np.pad(x[0].numpy(), ((0, 0), (p, p), (p, p)))
    crops = {}
    for i in range(2 * p + 1):
        for j in range(2 * p + 1):
            crop = padded[:, i : i + H, j : j + W]
            crops |= {crop.tobytes(): (i, j, False), crop[:, :, ::-1].tobytes(): (i, j, True)}
    found = [crops[image.tobytes()] for image in made]     # a KeyError for anything else
    n = (2 * p + 1) ** 2 * 2
    assert len(crops) == n
    counts = np.unique(found, axis=0, return_counts=True)[1]
    assert len(counts) == n and ((counts - len(KEYS) / n) ** 2).sum() / (len(KEYS) / n) < 49 + 5 * np.sqrt(98)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_flips_and_crops_happen_as_often_as_they_are_to(share: float) -> None:
    x = torch.rand(1, C, H, W).expand(len(KEYS), -1, -1, -1)
    made = CropAndFlip(0, flip=share)(x, KEYS)
    flipped = (made == x.flip(3)).flatten(1).all(1)
    assert ((made == x).flatten(1).all(1) != flipped).all()
    assert abs(float(flipped.double().mean()) - share) <= 5 * (share * (1 - share) / len(KEYS)) ** 0.5
    moved = (CropAndFlip(2, crop=share, flip=0)(x, KEYS) != x).flatten(1).any(1).double().mean()
    moving = share * (1 - 1 / 25)                          # the middle one of 25 crops is the image
    assert abs(float(moved) - moving) <= 5 * (moving * (1 - moving) / len(KEYS)) ** 0.5


def test_cutout_is_a_square_around_a_pixel() -> None:
    x = torch.ones(len(KEYS), C, H, W)
    expected = set()
    for i in range(H):
        for j in range(W):
            image = np.ones((C, H, W), np.float32)
            image[:, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2] = 0
            expected.add(image.tobytes())
    assert {image.tobytes() for image in Cutout(3)(x, KEYS).numpy()} == expected


def test_jitter_is_within_its_bounds() -> None:
    x = torch.rand(1, C, H, W, dtype=torch.float64).expand(len(KEYS), -1, -1, -1)
    made = Jitter(brightness=0.1, contrast=0.3)(x, KEYS)
    shift, spread = made.mean((1, 2, 3)) - x[0].mean(), made.std((1, 2, 3)) / x[0].std()
    assert_array_equal([shift.abs().max() <= 0.1, shift.abs().max() > 0.099, spread.min() < 0.701], True)
    assert spread.min() >= 0.7 and 1.299 < spread.max() <= 1.3
    assert abs(np.corrcoef(shift, spread)[0, 1]) < 5 / len(KEYS) ** 0.5


@pytest.mark.parametrize("by", KINDS.values(), ids=KINDS)
def test_a_row_does_not_depend_on_those_after_it_nor_on_the_block(by: Augmentation) -> None:
    x, key = torch.randn(2, 7, C, H, W), torch.tensor([[5], [9]]).expand(-1, 7)
    block = augmented(by, Batch(x, x, None, key)).x
    assert torch.equal(block[1, :3], augmented(by, Batch(x[1, :3], x, None, key[1, :3])).x)
    alike = augmented(by, Batch(x[:1, :1].expand(2, 7, -1, -1, -1), x, None, key)).x.flatten(0, 1)
    assert len(alike.unique(dim=0)) > 8                    # keys of rows and clients differ


def test_a_function_sees_trees() -> None:
    def without_some(x: dict[str, Tensor], key: Tensor) -> dict[str, Tensor]:
        kept = uniform_of(key, x["ids"].shape[1]) < 0.5
        return {"ids": x["ids"] * kept, "mask": x["mask"] & kept}

    x = {"ids": torch.arange(1, 13).view(3, 4), "mask": torch.ones(3, 4, dtype=torch.bool)}
    try_augmentation(without_some, x)
    made = augmented(without_some, Batch(x, x, None, torch.full((3,), 8))).x
    assert torch.equal(made["ids"] > 0, made["mask"]) and 0 < int(made["mask"].sum()) < 12


@pytest.mark.parametrize(("by", "message"), [
    (CropAndFlip(H), f"CropAndFlip.padding is {H}, and images are {H} x {W}; expected less"),
    (lambda x, key: x + torch.rand(1), "draws from the global generator of PyTorch or NumPy"),
    (lambda x, key: x.mul_(0.5), "writes into its inputs"),
    (lambda x, key: x[:, :1], "expected the same shapes and types"),
    (lambda x, key: x.double(), r"made \[2, 5, 6\] float64 of \[2, 5, 6\] float32"),
    (lambda x, key: None, "made a NoneType of"),
    (lambda x, key, seen=[]: x + len(seen) + (seen.append(0) or 0), "expected a function"),
    (lambda x, key: x - x.mean(0), "mixes samples"),
])  # fmt: skip
def test_what_cannot_be_repeated_or_does_not_fit_is_refused(by: Augmentation, message: str) -> None:
    x = torch.randn(6, C, H, W)
    before = x.clone()
    with pytest.raises(ConfigError, match=message):
        try_augmentation(by, x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("make", [make for make in AUGMENTATIONS if make is not Mixup])
def test_tables_and_tokens_are_no_images(make: type) -> None:
    for x, form in ((torch.randn(6, 30), r"\[30\] float32"), (torch.arange(6).view(6, 1, 1, 1), r"\[1, 1, 1\] int64")):
        with pytest.raises(ConfigError, match=f"takes images of floats .C, H, W., and a sample is {form}"):
            try_augmentation(make(), x)


def test_errors_in_a_users_function_have_its_lines() -> None:
    with pytest.raises(CodeError, match=r"local.augment .* raised RuntimeError(.|\n)*x @ x"):
        try_augmentation(lambda x, key: x @ x, torch.randn(6, C, H, W))


@pytest.mark.parametrize(("make", "message"), [
    (lambda: LocalWork(augment=CropAndFlip), "local.augment is <class .*CropAndFlip.>; expected an augmentation"),
    (lambda: LocalWork(augment="CropAndFlip"), "local.augment is 'CropAndFlip'; expected"),
    (lambda: Chain(CropAndFlip(), 3), "Chain.then is 3; expected an augmentation"),
    (lambda: CropAndFlip(-1), "CropAndFlip.padding is -1; expected a whole number, 0 or more"),
    (lambda: CropAndFlip(flip=1.5), r"CropAndFlip.flip.* 1.5"),
    (lambda: Cutout(0), "Cutout.size is 0"),
    (lambda: Jitter(contrast=2), r"Jitter.contrast.* 2"),
])  # fmt: skip
def test_settings_are_checked(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
