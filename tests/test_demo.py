"""The demo: layers, check of the gradients, fairness of the comparison, and output."""

import io

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("rich")
pytest.importorskip("sklearn")

from matplotlib.image import imread
from rich.console import Console

import xhat
from xhat.demo import run, show, training
from xhat.demo.network import Dense, Network, Silu, cross_entropy
from xhat.demo.picture import paths_of
from xhat.numpy import BatchNorm


@pytest.fixture(scope="module")
def digits():
    return training.load(0)


def demo(tmp_path, *, width=None, **options):
    """The output of a run into a pipe, and its exit status."""
    text = io.StringIO()
    status = run(tmp_path / "out", console=Console(file=text, highlight=False, width=width), **options)
    return text.getvalue(), status


# The network


@pytest.mark.parametrize("batch_norm", [False, True])
def test_closed_forms_agree_with_finite_differences(batch_norm):
    rng = np.random.default_rng(1)
    network = Network([3, 4, 5, 6], batch_norm=batch_norm, seed=1, dtype=np.float64)
    x, labels = rng.normal(size=(7, 3)), rng.integers(0, 6, 7)

    def loss():
        return cross_entropy(network.forward(x), labels)[0]

    loss()
    dx = network.backward(cross_entropy(network.forward(x), labels)[1])
    for name, value, closed in [*network.parameters(), ("x", x, dx)]:
        numeric = np.empty_like(value)
        for i in np.ndindex(value.shape):
            kept = value[i]
            value[i] = kept + 1e-6
            above = loss()
            value[i] = kept - 1e-6
            numeric[i] = (above - loss()) / 2e-6
            value[i] = kept
        np.testing.assert_allclose(closed, numeric, atol=2e-9, err_msg=name)


def test_cross_entropy_is_right_for_logits_beyond_exp():
    loss, dlogits = cross_entropy(np.array([[1000.0, 0.0], [0.0, 1000.0]]), np.array([0, 0]))
    assert loss == 500
    np.testing.assert_array_equal(dlogits, [[0, 0], [-0.5, 0.5]])


def test_both_networks_start_from_the_same_weights_and_see_the_same_batches(digits):
    plain, normalized = (Network(training.SIZES, batch_norm=b, seed=4) for b in (False, True))
    weights = [[layer.weight for layer in n.layers if isinstance(layer, Dense)] for n in (plain, normalized)]
    assert len(weights[0]) == 4
    for ours, theirs in zip(*weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert sum(isinstance(layer, BatchNorm) for layer in normalized.layers) == 3
    assert sum(isinstance(layer, Silu) for layer in plain.layers) == 3


# Data and training


def test_every_digit_is_in_exactly_one_split(digits):
    rows = {row.tobytes() for row in digits.x}
    assert len(digits.x) + len(digits.held_x) == 1797
    assert digits.x.min() == 0
    assert digits.x.max() == 1
    assert not rows & {row.tobytes() for row in digits.held_x}


def test_the_same_seed_gives_the_same_losses(digits):
    options = {"batch_norm": True, "rate": 0.1, "steps": 20, "advance": lambda: None}
    once, again = (training.train(digits, seed=3, **options) for _ in range(2))
    assert once.losses == again.losses
    assert training.train(digits, seed=5, **options).losses != once.losses


def test_batch_norm_reaches_95_percent_before_the_plain_network(digits):
    options = {"rate": 0.1, "steps": 150, "seed": 0, "advance": lambda: None}
    assert training.train(digits, batch_norm=True, **options).steps_to_target is not None
    assert training.train(digits, batch_norm=False, **options).steps_to_target is None


def test_the_held_out_digits_are_never_trained_on(digits):
    steps = []
    other = digits._replace(held_x=digits.held_x[::-1] * 0.5)
    runs = [
        training.train(d, batch_norm=True, rate=0.1, steps=12, seed=0, advance=lambda: steps.append(1))
        for d in (digits, other)
    ]
    assert len(steps) == 24
    assert runs[0].losses == runs[1].losses
    assert [step for step, _ in runs[0].accuracies] == [5, 10, 12]
    logits = runs[0].network.forward(digits.held_x, training=False)
    assert runs[0].accuracies[-1][1] == np.mean(logits.argmax(1) == digits.held_labels)


def test_every_kind_of_gradient_is_checked():
    checked = training.check_gradients(0, per_array=4)
    assert {check.name: check.values for check in checked} == {
        "weight": 16, "gamma": 12, "beta": 12, "bias": 4, "pixels": 4,
    }  # fmt: skip
    assert 0 < max(check.error for check in checked) < 1e-7


# Output


def test_a_wrong_gradient_stops_the_demo(tmp_path, monkeypatch):
    backward = BatchNorm.backward
    monkeypatch.setattr(BatchNorm, "backward", lambda self, dy: backward(self, dy) + 1e-3 * dy)
    shown, status = demo(tmp_path, steps=1)
    assert status == 1
    assert "The worst error is" in shown
    assert "2. Training" not in shown


def test_the_demo_fits_a_terminal_of_80_columns_and_writes_a_picture(tmp_path, capsys):
    shown, status = demo(tmp_path, steps=25, seed=2, width=80)
    assert status == 0
    assert capsys.readouterr().out == ""  # everything goes to the console
    for title in ("1. Every gradient", "2. Training", "3. The same weights", "4. Steps to 95%"):
        assert title in shown
    picture = tmp_path / "out" / "digits.png"
    assert str(picture) in shown
    lines = [line for line in shown.splitlines() if str(tmp_path) not in line]  # a path is never wrapped
    assert max(map(len, lines)) <= 80
    assert "100/100" in shown  # both bars finish, in a pipe too
    page = tmp_path / "out" / "layer.html"
    assert str(page) in shown
    assert "The last batch norm of the digits network" in page.read_text()
    pixels = imread(picture)
    assert pixels.shape == (1410, 1800, 4)
    quarters = [pixels[i : i + 600, j : j + 850] for i in (120, 760) for j in (0, 900)]
    assert all(np.mean(quarter[..., :3] < 0.9) > 0.005 for quarter in quarters)  # no panel is empty


def test_without_torch_one_line_names_the_omitted_part(tmp_path, monkeypatch):
    monkeypatch.setattr(show, "find_spec", lambda name: None)
    shown, status = demo(tmp_path, steps=1)
    assert status == 0
    (line,) = (line for line in shown.splitlines() if "PyTorch" in line)
    assert line == "Two more parts, with a residual network, need PyTorch, which is missing."
    assert not (tmp_path / "out" / "residual.png").exists()


def test_the_result_of_a_training_is_a_word_or_a_number():
    run = training.Run(Network([2, 3, 2], batch_norm=False, seed=0), rate=1.0, losses=[2.0, np.nan])
    assert show._steps(run) == "diverged"
    run.losses = [2.0, 1.0]
    run.accuracies = [(5, 0.94)]
    assert show._steps(run) == "never"
    run.accuracies += [(10, 0.95), (15, 0.94), (20, 0.99)]
    assert show._steps(run) == "10"
    run.losses += [np.nan]
    assert show._steps(run) == "10, then diverged"


def test_the_paths_of_a_layer_sum_to_its_gradient_and_leave_the_network_alone(digits):
    network = Network(training.SIZES, batch_norm=True, seed=0)
    x, labels = digits.x[:64], digits.labels[:64]
    paths = paths_of(*training.last_batch_norm(network, digits))
    layer = network.layers[-2]
    assert layer.updates == 0

    logits = network.forward(x)
    dy = network.layers[-1].backward(cross_entropy(logits, labels)[1])
    np.testing.assert_allclose(
        paths.direct + paths.mean + paths.variance, layer.backward(dy), atol=1e-6 * np.abs(paths.direct).max()
    )
    np.testing.assert_allclose(paths.xhat.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(paths.xhat.std(axis=0), 1, atol=1e-4)


def test_the_page_shows_the_same_gradient_without_the_fused_silu(digits, monkeypatch, tmp_path):
    run = training.Run(Network(training.SIZES, batch_norm=True, seed=0), rate=0.1)
    shown = {}
    monkeypatch.setattr(show, "report", lambda *arrays, **options: shown.update(arrays=arrays))
    show.report_of(run, digits, tmp_path)
    x, dy, gamma, beta = shown["arrays"]
    dx = xhat.batch_norm_backward(dy, xhat.batch_norm(x, gamma, beta)[1]).dx
    fused = xhat.batch_norm_backward(*reversed(training.last_batch_norm(run.network, digits))).dx
    np.testing.assert_allclose(dx, fused, atol=1e-6 * np.abs(fused).max())
