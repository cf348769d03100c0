"""swapjax search: what it finds and writes, how it goes on, what it refuses."""

import json
import re

import numpy as np
import pytest
from nas_tables import arrays

from swapjax.cli import main, search_report, search_run, search_state
from swapjax.cli.search_tables import PROXIES, SPACES
from swapjax.experiments import datasets
from swapjax.search import Table, count_sizes

# A supernet that compiles fast.
FREEFLOW = PROXIES["freeflow"]
TOY = ("--space", "toy", "--channels", "1", "--seeds", "0,1")


def fast(space, shape):
    """Make a score that compiles nothing."""

    def score(theta, alpha):
        stem = float(np.abs(theta["stem"]["kernel"]).sum())
        sizes = np.sin(stem * np.arange(1.0, 13.0)).reshape(3, 4) ** 2
        return {"cell": sizes * np.abs(np.asarray(alpha["cell"]))}

    return score


@pytest.fixture(scope="module", autouse=True)
def quick():
    """FreeFlow that compiles nothing; one test has the true one."""

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PROXIES, "freeflow", PROXIES["freeflow"]._replace(make=fast))
        yield


@pytest.fixture
def call():
    def run(*options, out):
        return main(["search", *map(str, (*TOY, *options, "--out", out))])

    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that nothing has stopped."""
    out = tmp_path_factory.mktemp("search") / "out"
    assert main(["search", *TOY, "--out", str(out)]) == 0
    return out


def report_of(folder):
    """All but times, and where things are."""
    report = json.loads((folder / "report.json").read_text())
    report["options"]["out"] = None
    for seed in report["seeds"]:
        assert seed.pop("seconds") > 0
    return report


def test_the_report_tells_genotypes_and_sizes(whole):
    assert sorted(p.name for p in whole.iterdir()) == ["report.json", "search.png"]
    report = report_of(whole)
    space = SPACES["toy"].make(channels=1)
    assert report["space"]["architectures"] == 4**3
    first = report["seeds"][0]
    network = space.network(first["genotype"])
    assert first["params"] == pytest.approx(network.weights / 1e6)
    assert first["flops"] == pytest.approx(network.macs / 1e6)
    assert [row["seed"] for row in report["seeds"]] == [0, 1]
    assert report["repeats"]["runs"] == 2
    assert report["result"]["genotype"] == first["genotype"]
    assert np.shape(report["result"]["scores"]["cell"]) == (3, 4)
    assert report["tables"] == []


def test_tables_tell_what_a_choice_is_worth(tmp_path, capsys, monkeypatch):
    np.savez(tmp_path / "tables.npz", **arrays())
    monkeypatch.setattr(search_report, "_RESAMPLES", 3)
    monkeypatch.setitem(PROXIES, "freeflow", FREEFLOW)
    words = ("--channels", "1", "--cells", "1", "--tables", tmp_path / "tables.npz")
    out = tmp_path / "out"
    assert main(["search", *map(str, (*words, "--out", out))]) == 0
    tables = json.loads((out / "report.json").read_text())["tables"]
    assert len(tables) == 6
    first = tables[0]
    assert first["table"] == "cifar10, test, after 12 epochs"
    assert first["places"]["best"]["accuracy"] == 40
    assert first["places"]["random"]["accuracy"] == 25
    assert first["places"]["found"]["accuracy"] is None  # it is in no table
    assert first["ranks"] == {}  # of two architectures
    text = capsys.readouterr().out
    assert "Accuracy in percent on test images, after 12 epochs" in text
    assert re.search(r"found +not there +not there +not there", text)
    assert re.search(r"most params +91.00 \(75\) +71.00 \(75\) +41.00 \(75\)", text)
    assert re.search(r"random +25.00 +35.00 +45.00", text)


@pytest.mark.parametrize(
    ("score", "ranked", "left_out"),
    [
        (lambda i: i, {"score", "params", "flops"}, ()),
        (lambda i: 3, {"params", "flops"}, ("score",)),
        (lambda i: np.inf if i else 0, {"params", "flops"}, ("score",)),
    ],
)
def test_scores_that_rank_nothing_are_left_out(score, ranked, left_out):
    """And sizes are those of the space as published, not of a small supernet."""
    small = SPACES["nb201"].make(channels=1, cells=1)
    cells = tuple(search_run.draw_genotypes(small, 0, 12))
    accuracy = np.arange(12.0)
    table = Table("nb201", "cifar10", 12, "test", cells, accuracy, None, {})
    drawn = {cell: float(score(i)) for i, cell in enumerate(cells)}
    row = search_state.Row(0, cells[0], {}, drawn, 1.0)
    setup = search_run.Setup(small, (32, 32, 3), 10, None, "")
    found = search_report.find(setup, [row], [table])
    (judged,) = found.judged
    assert set(judged.ranks) == ranked
    assert judged.left_out == left_out
    sizes = count_sizes(SPACES["nb201"].make(), cells)["params"]
    assert np.array_equal(judged.table.columns["params"], sizes)
    search_report.tell(found)


def test_whole_architectures_compete_where_a_proxy_scores_them(call, tmp_path, capsys):
    assert call("--proxy", "params", "--draws", "20", "--seeds", "0", out=tmp_path) == 0
    assert "by params: the best of 20 random ones." in capsys.readouterr().out
    report = report_of(tmp_path)
    assert report["repeats"] is None
    drawn = report["result"]["drawn"]
    assert len(drawn) == 20
    assert drawn[report["result"]["genotype"]] == max(drawn.values())
    assert report["result"]["params"] == max(drawn.values())


def test_a_proxy_that_looks_at_data_gets_the_first_of_them(call, tmp_path, monkeypatch):
    seen = []

    def find(space, key, **told):
        seen.append(told)
        return space.parse("|none~0|+|none~0|skip_connect~1|")

    def make(space, batch):
        seen.append(batch)
        return PROXIES["freeflow"].make(space, None)

    rows = {"perturb": {"find": find}, "snip-ops": {"make": make}}
    for name, changes in rows.items():
        monkeypatch.setitem(PROXIES, name, PROXIES[name]._replace(**changes))
        words = ("--proxy", name, "--data", "digits", "--batch", "5", "--seeds", "3")
        assert call(*words, out=tmp_path / name) == 0
    told, (images, labels) = seen
    digits = datasets.load("digits")
    assert (told["shape"], told["classes"], told["examples"]) == ((8, 8, 1), 10, 5)
    assert np.array_equal(told["images"][..., 0], digits.x_train[:5])
    assert np.array_equal(images, told["images"])
    assert np.array_equal(labels, digits.y_train[:5])


@pytest.mark.parametrize(
    ("words", "alpha"),
    [
        (("--proxy", "freeflow"), "ones"),
        (("--proxy", "synflow-ops"), "random"),
        (("--proxy", "synflow-ops", "--alpha", "ones"), "ones"),
        (("--proxy", "freeflow", "--alpha", "random"), "random"),
    ],
)
def test_alpha_is_the_proxy_s_by_default(words, alpha, call, tmp_path, monkeypatch):
    """Alphas of ones are 0 or 1, and no operations of synflow-ops differ by them."""
    seen = []

    def make(space, shape):
        score = fast(space, shape)

        def watched(theta, alpha):
            seen.append(np.asarray(alpha["cell"]))
            return score(theta, alpha)

        return watched

    monkeypatch.setitem(PROXIES, words[1], PROXIES[words[1]]._replace(make=make))
    assert call(*words, "--seeds", "0", out=tmp_path) == 0
    assert (np.abs(seen[-1]).max() < 0.1) == (alpha == "random")


def test_no_architecture_is_drawn_twice():
    space = SPACES["toy"].make()
    assert len(set(search_run.draw_genotypes(space, 1, 1000))) == space.size == 64
    assert (
        search_run.draw_genotypes(space, 1, 3)
        == search_run.draw_genotypes(space, 1, 5)[:3]
    )


def test_the_same_words_find_the_same(call, whole, tmp_path, capsys):
    assert call(out=tmp_path) == 0
    assert report_of(tmp_path) == report_of(whole)
    text = capsys.readouterr().out
    genotype = report_of(whole)["result"]["genotype"]
    assert f"seed 0: {genotype}" in text
    assert f"\n{genotype}\n" in text
    assert f"Written to {tmp_path}: report.json, search.png." in text.replace("\n", " ")


def test_what_was_stopped_goes_on_after_its_last_seed(
    call, whole, tmp_path, capsys, monkeypatch
):
    write = search_state.write

    def stop(*arguments):
        write(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(search_state, "write", stop)
        assert call(out=tmp_path) == 130
    assert [p.name for p in tmp_path.iterdir()] == ["search.json"]
    capsys.readouterr()
    assert call("--steps", "3", out=tmp_path) == 2
    assert "search.json: holds another search (space=toy" in capsys.readouterr().err
    assert call(out=tmp_path) == 0
    assert "1 of 2 seeds are done already." in capsys.readouterr().out
    assert report_of(tmp_path) == report_of(whole)
    assert not (tmp_path / "search.json").exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"seeds": [], "digest": "0"}'])
def test_a_state_of_something_else_is_refused(text, call, tmp_path, capsys):
    (tmp_path / "search.json").write_text(text)
    assert call(out=tmp_path) == 2
    assert "search.json: not the state of a search: " in capsys.readouterr().err
    assert (tmp_path / "search.json").read_text() == text


@pytest.mark.parametrize(
    ("options", "saying"),
    [
        (("--seeds", "0,x"), "--seeds: whole numbers separated by commas wanted, got"),
        (("--seeds", "-1"), "--seeds must be from 0 to 4294967295, got -1"),
        (("--steps", "0"), "--steps must be 1 or more, got 0"),
        (("--cells", "0"), "--cells must be 1 or more, got 0"),
        (("--data", "digits"), "--data digits: freeflow looks at no data; leave it"),
        (("--tables", "TABLES"), "there is no table of toy, any data, any epochs; th"),
        (("--tables", "none.npz"), "none.npz: no such file"),
        (("--space", "mobilenet", "--cells", "2"), "--cells 2: mobilenet has no such"),
        (("--proxy", "snip"), "--proxy snip looks at images and labels: name them"),
        (("--draws", "9"), "--draws 9: freeflow has no use for it; leave it out"),
        (("--batch", "9"), "--batch 9: freeflow has no use for it; leave it out"),
        (("--proxy", "params", "--scope", "edge"), "--scope edge: params has no use f"),
        (("--proxy", "params", "--alpha", "ones"), "--alpha ones: params has no use"),
        (("--proxy", "params", "--steps", "2"), "--steps 2: params has no use for it"),
    ],
)
def test_bad_input_is_one_sentence(options, saying, call, tmp_path, capsys):
    np.savez(tmp_path / "tables.npz", **arrays())
    options = (tmp_path / "tables.npz" if x == "TABLES" else x for x in options)
    assert call(*options, out=tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert saying in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_help_explains_every_space_and_proxy(capsys):
    with pytest.raises(SystemExit) as end:
        main(["search", "--help"])
    assert end.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for table in (SPACES, PROXIES):
        for name, row in table.items():
            assert f"{name}: {row.summary[:20]}" in text
