"""Students that learn the owner's answers: against formulas, and on digits against an independent network."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from scipy.special import log_softmax, softmax

from jaxguard import data, evaluation, models, training
from jaxguard.errors import OptionError
from jaxguard.theft import SGD, THEFTS, TheftError, halves, independent
from jaxguard.theft.adversarial_extraction import PGDStep
from jaxguard.theft.extraction import Answers, DistillationLoss, query
from jaxguard.types import Batch, Network

label_extraction, distillation = THEFTS["label-extraction"], THEFTS["distillation"]
adversarial_extraction, fine_tuning = THEFTS["adversarial-extraction"], THEFTS["fine-tune-all"]

KEY, OTHER = jax.random.key(0), jax.random.key(1)
MODEL = models.build("mlp:hidden=32", num_classes=10, input_shape=(16, 16, 1))
STUDENT = models.build("mlp:hidden=24x24", num_classes=10, input_shape=(16, 16, 1))
QUICK = {"epochs": 15, "batch_size": 64}


@functools.cache
def digits():
    """`(owner, thief's images, test images)`; the owner has few images, so that it errs in ways of its own."""
    everything = data.load("digits")
    mine, theirs = halves(everything.train, KEY, share=0.1)
    owner, _ = independent(MODEL, mine, KEY, **QUICK)
    return owner, theirs, everything.test


@functools.cache
def student():
    """Extracted by label."""
    owner, theirs, _ = digits()
    return label_extraction(owner, theirs, OTHER, student=STUDENT, **QUICK)


def agreement(one, other):
    images = digits()[2].images
    ours, theirs = (evaluation.predictions(net, images) for net in (one, other))
    return np.mean(ours == theirs)


# ---------------------------------------------------------------- the loss


def test_the_loss_is_hintons():
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 5, 4)) * 3
    soft, hard = softmax(teacher / 20, axis=1), teacher.argmax(1)
    divergence = (soft * (np.log(soft) - log_softmax(student / 20, axis=1))).sum(1).mean()
    entropy = -log_softmax(student, axis=1)[np.arange(5), hard].mean()
    loss = DistillationLoss(temperature=20.0, alpha=0.9)(student, teacher)
    np.testing.assert_allclose(loss, 0.9 * 400 * divergence + 0.1 * entropy, rtol=1e-4)


def test_a_perfect_student_has_nothing_to_learn():
    logits = jnp.array([[3.0, -1.0, 0.5]])
    gradient = jax.grad(DistillationLoss(temperature=3.0, alpha=1.0))(logits, logits)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


# ---------------------------------------------------------------- queries


@pytest.mark.parametrize("batch_size", [1, 3, 7, 500])
def test_every_image_is_answered_once_in_order(batch_size):
    images = np.random.default_rng(0).normal(size=(7, 2, 2, 1)).astype(np.float32)
    model = lambda v, x: x.reshape(len(x), -1) * v  # noqa: E731
    answers = query(Answers(model, False), jnp.float32(2), images, batch_size=batch_size)
    np.testing.assert_array_equal(answers, 2 * images.reshape(7, 4))
    classes = query(Answers(model, True), jnp.float32(2), images, batch_size=batch_size)
    np.testing.assert_array_equal(classes, images.reshape(7, 4).argmax(1))


@pytest.mark.parametrize("labels_only", [False, True])
def test_an_answer_that_is_not_finite_is_refused(labels_only):
    model = lambda v, x: x.reshape(len(x), -1) * v  # noqa: E731
    with pytest.raises(TheftError, match="expected finite answers, got NaN or infinity for some of 2 images"):
        query(Answers(model, labels_only), jnp.float32(np.nan), np.ones((2, 1, 1, 3), np.float32))


# ---------------------------------------------------------------- on digits


def test_students_agree_with_the_owner_more_than_an_independent_network_does():
    owner, theirs, test = digits()
    assert 0.7 < evaluation.accuracy(owner, test) < 0.97
    innocent, _ = independent(STUDENT, theirs, OTHER, **QUICK)
    by_label, labelled = student()
    by_probability, softened = distillation(owner, theirs, OTHER, student=STUDENT, **QUICK)
    assert agreement(by_label, owner) > agreement(innocent, owner) + 0.02
    assert agreement(by_probability, owner) > agreement(innocent, owner) + 0.02
    assert labelled.queries == softened.queries == len(theirs.images)
    for network in (by_label, by_probability):
        assert network.apply_fn.__self__ == STUDENT and network.graph.producers


def test_the_owners_architecture_is_the_default():
    owner, theirs, _ = digits()
    student, _ = label_extraction(owner, theirs, KEY, epochs=0)
    assert student.apply_fn.__self__ == MODEL
    stranger = Network(owner.variables, functools.partial(owner.apply_fn), owner.input_spec)
    with pytest.raises(TheftError, match="expected an architecture to train, got None in student, and an owner of"):
        label_extraction(stranger, theirs, KEY)


def mirror(_, images):
    return images[:, :, ::-1]


@pytest.mark.parametrize("theft", [label_extraction, distillation])
def test_views_are_asked_about_one_by_one(theft):
    """Learning mirrored views is learning mirrored images: the answers are those to the views."""
    owner, theirs, _ = digits()
    few = Batch(theirs.images[:100], theirs.labels[:100])
    mirrored = few._replace(images=np.asarray(few.images)[:, :, ::-1])
    viewed, report = theft(owner, few, KEY, augment=mirror, epochs=2, batch_size=30)
    plain, _ = theft(owner, mirrored, KEY, epochs=2, batch_size=30)
    for ours, theirs in zip(jax.tree.leaves(viewed.variables), jax.tree.leaves(plain.variables), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    assert report.queries == 100 + 2 * 4 * 30  # the last batch of an epoch is filled up


def test_label_extraction_is_training_on_the_owners_labels():
    owner, theirs, _ = digits()
    few = Batch(theirs.images[:100], theirs.labels[:100])
    labels = evaluation.predictions(owner, few.images)
    student, report = label_extraction(owner, few, KEY, student=STUDENT, epochs=3, schedule="constant")
    key_init, key_learn = jax.random.split(KEY)
    expected = training.fit(
        STUDENT.train_fn,
        STUDENT.init(key_init),
        Batch(few.images, labels),
        key_learn,
        epochs=3,
        batch_size=512,
        learning_rate=0.05,
        schedule="constant",
    )
    jax.tree.map(np.testing.assert_array_equal, student.variables, expected.variables)
    np.testing.assert_array_equal(report.curves["loss"], expected.losses)


def test_the_rate_falls_by_epoch():
    """With one step per epoch it is optax's cosine; the first step of many has the whole rate."""
    constant, cosine = (SGD(epochs=4, learning_rate=0.1, schedule=name) for name in ("constant", "cosine"))
    gradient, parameters = {"w": jnp.ones(2)}, {"w": jnp.zeros(2)}
    for sgd, last in ((constant, 1.0), (cosine, 0.5 * (1 + np.cos(np.pi * 3 / 4)))):
        optimizer = replace(sgd, momentum=0.0, weight_decay=0.0, batch_size=8).optimizer(16)
        state, steps = optimizer.init(parameters), []
        for _ in range(8):  # two steps per epoch
            updates, state = optimizer.update(gradient, state, parameters)
            steps.append(-float(updates["w"][0]))
        np.testing.assert_allclose([*steps[:2], *steps[-2:]], [0.1, 0.1, 0.1 * last, 0.1 * last], rtol=1e-5)


def test_a_student_of_other_classes_is_refused():
    owner, theirs, _ = digits()
    student = models.build("mlp:hidden=4", num_classes=9, input_shape=(16, 16, 1))
    with pytest.raises(TheftError, match="expected a student with the owner's 10 classes, got one with 9"):
        distillation(owner, theirs, KEY, student=student)


@pytest.mark.parametrize("option", [{"temperature": 0.0}, {"alpha": 1.5}])
def test_settings_out_of_range_are_refused(option):
    owner, theirs, _ = digits()
    with pytest.raises(OptionError, match=f"for {next(iter(option))} of distillation"):
        distillation(owner, theirs, KEY, **option)


def test_equal_students_share_a_compiled_step():
    counted = tiny.Counted(tiny.train_fn)

    class Blueprint:
        init = staticmethod(tiny.init)

        def network(self, variables):
            return Network(variables, tiny.apply_fn, tiny.INPUT_SHAPE, counted)

    owner = Network(tiny.init(OTHER), tiny.apply_fn, tiny.INPUT_SHAPE)
    for key in (KEY, OTHER):
        distillation(owner, tiny.images(16, key), key, student=Blueprint(), epochs=2, batch_size=8)
        label_extraction(owner, tiny.images(16, key), key, student=Blueprint(), epochs=2, batch_size=8)
    assert counted.calls == 2  # one trace for each of the two thefts


# ---------------------------------------------------------------- adversarial


def test_an_attack_on_a_linear_model_by_hand():
    """The gradient's sign is that of the weights' difference; steps add up to epsilon, and pixels stay in [0, 1]."""
    weights = jnp.array([[1.0, -1.0], [-2.0, 2.0], [3.0, 0.0]])
    model = lambda v, x: x.reshape(len(x), -1) @ v  # noqa: E731
    batch = Batch(jnp.array([[0.5, 0.5, 0.01]]).reshape(1, 3, 1, 1), jnp.array([0]))
    step = jax.tree_util.Partial(PGDStep(model, 0.02, 0.05), weights, batch)
    once, _ = training.descend(step, batch.images, 1)
    np.testing.assert_allclose(once.ravel(), [0.48, 0.52, 0.0], atol=1e-6)
    thrice, metrics = training.descend(step, batch.images, 3)
    np.testing.assert_allclose(thrice.ravel(), [0.45, 0.55, 0.0], atol=1e-6)
    assert (np.diff(metrics["loss"]) > 0).all()


def attacked_accuracy(network, images, labels, epsilon):
    step = jax.tree_util.Partial(
        PGDStep(network.apply_fn, epsilon / 4, epsilon), network.variables, Batch(images, labels)
    )
    found, _ = training.descend(step, jnp.asarray(images), 10)
    return np.mean(evaluation.predictions(network, found) == labels)


def test_a_hardened_student_withstands_attacks():
    owner, theirs, test = digits()
    start, _ = student()
    hardened, report = adversarial_extraction(
        owner, theirs, KEY, start=start, epochs=5, batch_size=128, learning_rate=0.05, epsilon=0.1, step_size=0.025,
        attack_steps=6,
    )  # fmt: skip
    labels = evaluation.predictions(owner, test.images)
    images = np.asarray(test.images)
    before, after = (attacked_accuracy(network, images, labels, 0.1) for network in (start, hardened))
    assert after > before + 0.1
    assert agreement(hardened, owner) > 0.7
    assert report.curves["attacked_loss"][-5:].mean() < report.curves["attacked_loss"][:5].mean()
    assert report.queries == len(theirs.images)


def test_without_a_start_one_is_extracted():
    owner, theirs, _ = digits()
    few = Batch(theirs.images[:100], theirs.labels[:100])
    options = {"epochs": 3, "batch_size": 50}
    made, report = adversarial_extraction(owner, few, KEY, student=STUDENT, extraction=options, epochs=0)
    key_student, _ = jax.random.split(KEY)
    expected, _ = label_extraction(owner, few, key_student, student=STUDENT, **options)
    jax.tree.map(np.testing.assert_array_equal, made.variables, expected.variables)
    assert len(report.curves["loss"]) == 0


def test_an_attack_of_no_size_is_fine_tuning_of_twice_the_loss():
    """Both terms are the plain cross-entropy then."""
    owner, theirs, _ = digits()
    few = Batch(theirs.images[:100], theirs.labels[:100])
    labels = evaluation.predictions(owner, few.images)
    hardened, report = adversarial_extraction(
        owner, few, KEY, start=owner, epsilon=0.0, attack_steps=1, epochs=2, weight_decay=0.0, learning_rate=0.01
    )
    tuned, plain = fine_tuning(
        owner, few._replace(labels=labels), KEY, epochs=2, weight_decay=0.0, learning_rate=0.02
    )  # fmt: skip
    np.testing.assert_allclose(report.curves["loss"], 2 * plain.curves["loss"], rtol=1e-4)
    for ours, theirs in zip(jax.tree.leaves(hardened.variables), jax.tree.leaves(tuned.variables), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "option",
    [{"attack_steps": -1}, {"epsilon": -0.1}, {"step_size": -0.1}, {"student": STUDENT}, {"extraction": {"epochs": 1}}],
)
def test_what_makes_no_sense_is_refused(option):
    owner, theirs, _ = digits()
    with pytest.raises((OptionError, TheftError), match=r"of adversarial-extraction|no student nor extraction beside"):
        adversarial_extraction(owner, theirs, KEY, start=owner, **option)
