"""Who computes a product: measured once, remembered for the machine, the same from then on."""

import numpy as np
import pytest

import staticgrad as sg
from staticgrad.kernels.cache import DiskCache
from staticgrad.kernels.cpu import gemm_choice
from staticgrad.kernels.cpu.contraction import generated_product
from staticgrad.kernels.cpu.gemm import Product
from staticgrad.kernels.products import StoredProduct

PRODUCT = Product("float32", 24, 40, 16, False, True, 16, 16, 40)


@pytest.fixture
def nothing_known(monkeypatch):
    monkeypatch.setattr(gemm_choice, "_known", {})


def test_both_ways_compute_the_product(nothing_known):
    random = np.random.default_rng(0)
    a, b = random.standard_normal((24, 16)).astype(np.float32), random.standard_normal((40, 16)).astype(np.float32)
    expected = a.astype(np.float64) @ b.astype(np.float64).T
    scratch = np.zeros(64, np.float32)
    for way in ("own", "blas"):
        out = np.zeros((24, 40), np.float32)
        arrays = [a, b, out, scratch]
        if way == "own":
            run, code = gemm_choice._generated(PRODUCT, arrays)
            run()
            code.free()
        else:
            gemm_choice._through_blas(PRODUCT, arrays)()
        np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("faster", [True, False])
def test_a_product_is_timed_once_for_a_machine(nothing_known, monkeypatch, tmp_path, faster):
    timed = []
    monkeypatch.setattr(gemm_choice, "_measured", lambda product: timed.append(product) or faster)
    cache = DiskCache(tmp_path)
    for _ in range(2):
        assert gemm_choice.own_is_faster(PRODUCT, cache) is faster
    monkeypatch.setattr(gemm_choice, "_known", {})  # another process
    assert gemm_choice.own_is_faster(PRODUCT, cache) is faster
    assert timed == [PRODUCT]


def test_a_batch_is_chosen_for_as_one_of_its_matrices(nothing_known, monkeypatch):
    timed = []
    monkeypatch.setattr(gemm_choice, "_measured", lambda product: timed.append(product) or True)
    batch = Product("float32", 24, 40, 16, False, True, 16, 16, 40, batch=7, stride_a=384, stride_b=640, stride_c=960)
    assert gemm_choice.own_is_faster(PRODUCT)
    assert gemm_choice.own_is_faster(batch)
    assert timed == [PRODUCT]


def test_huge_products_are_left_to_blas_untimed(nothing_known, monkeypatch):
    monkeypatch.setattr(gemm_choice, "_measured", lambda product: pytest.fail("timed"))
    assert not gemm_choice.own_is_faster(Product("float32", 2048, 2048, 1024, False, False, 1024, 2048, 2048))


@pytest.mark.parametrize(("m", "n", "k"), [(1, 64, 64), (64, 1, 64), (4, 4, 4), (64, 64, 0)])
def test_vectors_and_numbers_are_left_to_blas(m, n, k):
    assert generated_product(StoredProduct("float32", m, n, k, False, False, max(k, 1), n, n)) is None


@pytest.mark.parametrize("own", [True, False])
def test_a_program_gives_the_same_either_way(monkeypatch, own):
    monkeypatch.setattr("staticgrad.kernels.cpu.lower.own_is_faster", lambda product, cache: own)
    random = np.random.default_rng(1)
    x, w, v = (random.standard_normal(shape).astype(np.float32) for shape in ((3, 33, 21), (21, 45), (45, 18)))
    step = sg.compile(sg.value_and_grad(lambda w, x, v: sg.mean(sg.tanh(x @ w) @ v)), cache=False)
    loss, gradient = step(w, x, v)
    hidden = np.tanh(x.astype(np.float64) @ w)
    np.testing.assert_allclose(loss.item(), (hidden @ v).mean(), rtol=1e-5)
    slope = (1 - hidden**2) * v.sum(axis=1) / (3 * 33 * 18)
    np.testing.assert_allclose(gradient.numpy(), np.einsum("bij,bik->jk", x, slope), rtol=1e-4, atol=1e-6)
    assert step.profile(w, x, v)
