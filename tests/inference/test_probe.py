"""Classes told from features: by hand, by scikit-learn, and from a run."""

import json

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

import vit_jax
from vit_jax.cli import main
from vit_jax.inference import probe as probing
from vit_jax.inference.probe import Features, knn_classify, linear_probe, probe

pytestmark = pytest.mark.xdist_group("run")

GENERATOR = np.random.default_rng(0)
LABELS = GENERATOR.integers(0, 3, 60)
CENTRES = GENERATOR.normal(size=(3, 4))
NEAR = (CENTRES[LABELS] + GENERATOR.normal(size=(60, 4))).astype(np.float32)
QUERIES = GENERATOR.normal(size=(11, 4)).astype(np.float32)


def knn_by_hand(k: int, temperature: float) -> np.ndarray:
    found = np.zeros((11, 3))
    for row, query in zip(found, QUERIES.astype(np.float64), strict=True):
        cosines = NEAR @ query / np.linalg.norm(NEAR, axis=1) / np.linalg.norm(query)
        for index in np.argsort(-cosines)[:k]:
            row[LABELS[index]] += np.exp(cosines[index] / temperature)
    return found / found.sum(axis=1, keepdims=True)


def test_neighbours_vote_as_by_hand_whatever_is_compared_at_a_time(monkeypatch) -> None:
    want = knn_by_hand(7, 0.2)
    for at_a_time in (2**24, 300):
        monkeypatch.setattr(probing, "SIMILARITIES", at_a_time)  # 300: five queries of 60
        got = knn_classify(NEAR, LABELS, QUERIES, num_classes=3, k=7, temperature=0.2)
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


def test_votes_of_a_low_temperature_are_the_nearest_neighbours() -> None:
    votes = knn_classify(NEAR, LABELS, NEAR, num_classes=3, k=60, temperature=1e-6)
    np.testing.assert_array_equal(votes.argmax(axis=1), LABELS)


@pytest.mark.usefixtures("x64")
def test_the_linear_probe_is_scikit_learns() -> None:
    features = np.concatenate([NEAR, np.ones((60, 1))], axis=1).astype(np.float64)
    features[:, 1] *= 30
    fitted = linear_probe(features, LABELS, num_classes=3, l2=1e-2, tolerance=1e-9)
    standard = (features - fitted.mean) / fitted.std
    assert fitted.gradient_norm <= 1e-9
    reference = LogisticRegression(C=1 / (1e-2 * 60), tol=1e-10, max_iter=2000)
    reference.fit(standard, LABELS)
    np.testing.assert_allclose(fitted.kernel, reference.coef_.T, rtol=0, atol=1e-5)
    logits = fitted.logits(features)
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(shares, reference.predict_proba(standard), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 61}, "k must be from 1 to the 60 neighbours, got 61"),
        ({"temperature": 0.0}, "temperature must be above 0, got 0.0"),
    ],
)
def test_numbers_that_make_no_vote(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        knn_classify(NEAR, LABELS, QUERIES, num_classes=3, **options)


def test_other_methods_and_sets_of_other_classes() -> None:
    one = Features("one", NEAR, LABELS, ("a", "b", "c"))
    with pytest.raises(ValueError, match="method must be knn or linear, got 'svm'"):
        probe(one, one, "svm")
    with pytest.raises(ValueError, match="one and two are not of the same classes"):
        probe(one, Features("two", NEAR, LABELS, ("a", "b", "d")), "knn")
    with pytest.raises(ValueError, match="l2 must be at least 0"):
        probe(one, one, "linear", l2=-1.0)


def test_the_features_of_a_run(run, capsys) -> None:
    """Its images, its preprocessing, its own test split; and what the head would make of them."""
    loaded = vit_jax.from_pretrained(run)
    status = main(["probe", str(run), "--method", "linear", "--json"])
    figures = json.loads(capsys.readouterr().out)
    assert status == 0
    assert figures["num_features"] == 16
    assert figures["top1"] > 0.5  # ten digits, from a ViT of one block after 12 updates
    from vit_jax.inference.labelled import open_labelled

    test = open_labelled(run).source
    assert figures["num_test"] == len(test)
    found = probing.extract_features(loaded, test)
    np.testing.assert_array_equal(found.labels[:5], [test[i]["label"] for i in range(5)])
    head = loaded.head
    logits = found.features @ np.asarray(head.kernel[...]) + np.asarray(head.bias[...])
    from vit_jax.inference.evaluate import evaluate

    np.testing.assert_array_equal(logits.argmax(axis=1), evaluate(loaded, test).predictions)
    assert main(["probe", str(run), "--k", "5"]) == 0
    assert "5 nearest neighbours over 16 features" in capsys.readouterr().out
