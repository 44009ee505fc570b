"""The choice between a generated product and BLAS is measured once and remembered."""

import pytest

from staticgrad.kernels.cache import DiskCache
from staticgrad.kernels.cpu import gemm_choice
from staticgrad.kernels.cpu.gemm import Product

SPEC = Product("float32", 6, 20, 9, False, True, 9, 9, 20, batch=2, stride_a=54, stride_b=180, stride_c=120)


@pytest.fixture
def measured(monkeypatch):
    """The products that are measured, with the answer that ours takes 94 or 96 units of time against 100."""
    asked = []

    def times(product):
        asked.append(product)
        return (94.0 if product.m == 6 else 96.0), 100.0

    monkeypatch.setattr(gemm_choice, "_times", times)
    monkeypatch.setattr(gemm_choice, "_known", {})
    return asked


def test_ours_must_win_clearly(measured, tmp_path):
    cache = DiskCache(tmp_path)
    assert gemm_choice.faster(SPEC, cache) == "own"
    assert gemm_choice.faster(Product("float32", 7, 20, 9, False, True, 9, 9, 20), cache) == "blas"


def test_remembered_in_the_process_and_on_disk(measured, tmp_path, monkeypatch):
    for _ in range(2):
        assert gemm_choice.faster(SPEC, DiskCache(tmp_path)) == "own"
    monkeypatch.setattr(gemm_choice, "_known", {})
    assert gemm_choice.faster(SPEC, DiskCache(tmp_path)) == "own"
    assert len(measured) == 1
    monkeypatch.setattr(gemm_choice, "_known", {})
    gemm_choice.faster(SPEC, DiskCache(tmp_path / "other"))
    assert len(measured) == 2


def test_huge_products_are_not_measured(measured, tmp_path):
    huge = Product("float32", 4096, 4096, 4096, False, False, 4096, 4096, 4096)
    assert gemm_choice.faster(huge, DiskCache(tmp_path)) == "blas"
    assert measured == []


def test_both_are_run():
    assert min(gemm_choice._times(SPEC)) > 0
