"""The function of MiniLM, on a tiny file with the same names."""

import docstrings
import hub_files as hub
import jax
import minilm
import numpy as np
import pytest

import swapjax
from swapjax.io.huggingface import open_checkpoint

WIDTH, HIDDEN, WORDS, LENGTH, LAYERS = 24, 16, 11, 6, 2
_DENSE = {
    "attention.self.query": (WIDTH, WIDTH),
    "attention.self.key": (WIDTH, WIDTH),
    "attention.self.value": (WIDTH, WIDTH),
    "attention.output.dense": (WIDTH, WIDTH),
    "intermediate.dense": (HIDDEN, WIDTH),
    "output.dense": (WIDTH, HIDDEN),
}


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """A file of random weights, and what the maps make of it."""
    random = np.random.default_rng(0)
    shapes = {
        "embeddings.word_embeddings.weight": (WORDS, WIDTH),
        "embeddings.position_embeddings.weight": (LENGTH, WIDTH),
        "embeddings.token_type_embeddings.weight": (2, WIDTH),
        "pooler.dense.weight": (WIDTH, WIDTH),
    }
    norms = ["embeddings.LayerNorm"]
    for i in range(LAYERS):
        layer = f"encoder.layer.{i}"
        norms += [f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm"]
        for name, shape in _DENSE.items():
            shapes[f"{layer}.{name}.weight"] = shape
            shapes[f"{layer}.{name}.bias"] = shape[:1]
    for name in norms:
        shapes |= {f"{name}.weight": (WIDTH,), f"{name}.bias": (WIDTH,)}
    arrays = {k: random.normal(size=s).astype(np.float32) for k, s in shapes.items()}
    arrays["embeddings.position_ids"] = np.arange(LENGTH)[None]
    folder = hub.save(tmp_path_factory.mktemp("bert"), arrays)
    return {
        stacked: open_checkpoint(folder, minilm.names(stacked=stacked))
        for stacked in (False, True)
    }


TOKENS = np.array([[3, 1, 4, 0, 0, 0], [5, 9, 2, 6, 8, 7]], np.int32)


def test_padding_changes_nothing_and_a_scan_is_the_same(opened):
    encode = jax.jit(minilm.encode)
    found, scanned = (encode(source.load(), TOKENS) for source in opened.values())
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(found, scanned, atol=1e-5)
    params = opened[True].load()
    table = params["embeddings"]
    table |= {"word": table["word"].at[0].set(9), "position": table["position"] * 2}
    table["position"] = table["position"].at[:3].divide(2)
    changed = encode(params, TOKENS)
    np.testing.assert_allclose(found[0], changed[0], atol=1e-5)  # the padded one
    assert np.abs(found[1] - changed[1]).max() > 0.01


def test_listed_and_scanned_layers_have_the_same_masks(opened):
    random = np.random.default_rng(1)
    data = random.integers(1, WORDS, (8, 2, LENGTH)).astype(np.int32)
    data[::2, 0, 4:] = 0
    found = []
    for source in opened.values():
        params = source.load()
        plan = swapjax.plan(
            params, pattern=swapjax.NM(2, 4), loss_fn=minilm.contrast, batch=data
        )
        tables = {path: why for path, why in plan.left_out if "look" in why}
        assert tables == {"embeddings/word": "is looked up by gather"}
        assert all("kernel" in path for path in plan.paths)
        pruned = swapjax.prune(
            minilm.contrast,
            params,
            data,
            plan=plan,
            method=swapjax.wanda(),
            samples=4,
            batch=2,
            key=jax.random.key(0),
        )
        found.append(dict(source.by_name(pruned.masks)))
    for name, mask in found[0].items():
        np.testing.assert_array_equal(mask, found[1][name])


def test_pairs_are_docstrings_and_what_is_left_of_functions(tmp_path):
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "apart.py").write_text("def f():\n 'One two three four.'\n 1")
    (tmp_path / "one.py").write_text(
        '''
class A:
    @property
    def f(self):
        """Say what this is about.

        At length.
        """
        # Not kept.
        return self.x

    def g(self):
        """Too short."""
        return 1

def same(self):
    """Say what this is about."""
    return 2
'''
    )
    (pair,) = docstrings.pairs(tmp_path)
    assert pair.name == "one.A.f"
    assert pair.query == "Say what this is about."
    assert pair.document == "def f(self):\n    return self.x"
